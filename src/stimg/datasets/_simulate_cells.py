"""The cells of a simulated section: where they lie, what type they are, and which of them a capture area sees."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stimg._core.rng import derive
from stimg.datasets._simulate_tissue import Stream, Tissue

BAND = 64
CELL_HALF_UM = 5.0
CONTACT = 1.1
PAIRS = 2_000_000


class Kind(NamedTuple):
    """How one cell type looks, and how much RNA it holds.

    ``radius_um``: geometric mean of the nucleus' semi-axes; ``ratio``: minor over major axis; ``chromatin``: haematoxylin of the nucleus;
    ``grain``: contrast of its chromatin; ``rim``: extra haematoxylin at its border; ``nucleolus``: a dark dot inside;
    ``eosin``, ``basophilia``: stain of the cytoplasm; ``body``: radius of the cell over that of the nucleus; ``density``: probability
    that a place for such a cell is filled; ``rna``: RNA content; ``aligned``: 1 where it lies along the fibres, 0 for any direction.
    """

    name: str
    radius_um: float
    ratio: float
    chromatin: float
    grain: float
    rim: float
    nucleolus: float
    eosin: float
    basophilia: float
    body: float
    density: float
    rna: float
    aligned: float


KINDS: tuple[Kind, ...] = (
    Kind("epithelial", 3.7, 0.72, 0.85, 0.30, 0.15, 0.1, 0.22, 0.10, 1.9, 0.9, 1.2, 0.3),
    Kind("fibroblast", 2.6, 0.30, 1.00, 0.20, 0.05, 0.0, 0.06, 0.00, 1.5, 0.4, 0.7, 1.0),
    Kind("lymphocyte", 2.7, 0.94, 1.50, 0.30, 0.10, 0.0, -0.15, 0.03, 1.3, 1.0, 0.5, 0.0),
    Kind("tumour", 5.0, 0.80, 0.75, 0.45, 0.30, 0.7, 0.12, 0.22, 1.8, 0.95, 1.8, 0.0),
    Kind("macrophage", 3.4, 0.62, 0.75, 0.30, 0.15, 0.1, -0.08, 0.00, 2.2, 0.7, 1.1, 0.0),
    Kind("smooth_muscle", 2.9, 0.22, 0.90, 0.20, 0.05, 0.0, 0.30, 0.00, 2.0, 0.6, 0.8, 1.0),
    Kind("plasma", 2.9, 0.88, 1.30, 0.60, 0.15, 0.0, 0.08, 0.30, 1.9, 0.9, 1.4, 0.0),
    Kind("endothelial", 2.5, 0.28, 1.20, 0.20, 0.05, 0.0, 0.05, 0.00, 1.4, 0.5, 0.7, 0.7),
)


def kinds(n_types: int) -> list[Kind]:
    """Return the looks of ``n_types`` cell types; beyond the eight kinds they repeat with other sizes and stain."""
    out = []
    for t in range(n_types):
        kind, again = KINDS[t % len(KINDS)], t // len(KINDS)
        if again:
            size = 1 + 0.15 * (1 if again % 2 else -1) * ((again + 1) // 2) / (1 + 0.2 * again)
            kind = kind._replace(name=f"{kind.name}_{again + 1}", radius_um=kind.radius_um * size, chromatin=kind.chromatin / size)
        out.append(kind)
    return out


@dataclass(frozen=True)
class Cells:
    """Places for a cell on a square lattice ``spacing_um`` apart: ``yx_um`` float32 (rows, columns, 2), ``type`` int8, -1 where no cell lies."""

    spacing_um: float
    yx_um: np.ndarray
    type: np.ndarray

    @property
    def index(self) -> np.ndarray:
        """Flat lattice positions of the cells, int64 (n_cells,)."""
        return np.flatnonzero(self.type.ravel() >= 0)


def make_cells(tissue: Tissue, composition: np.ndarray, density: np.ndarray, *, seed: int, donor: int, section: int) -> Cells:
    """Return the cells of a section.

    Each place draws a position, a type from the domain's proportions and a priority; a cell stays where no neighbour of higher
    priority comes nearer than the two nuclei allow (Matérn's second hard-core process with marks; Stoyan, Kendall and Mecke,
    Stochastic Geometry and its Applications).
    """
    spacing = tissue.options.cell_um
    shape = (math.ceil(tissue.size_um[0] / spacing), math.ceil(tissue.size_um[1] / spacing))
    looks = kinds(composition.shape[1])
    filled = np.array([k.density for k in looks], dtype=np.float32)
    yx = np.empty((*shape, 2), dtype=np.float32)
    types = np.empty(shape, dtype=np.int8)
    priority = np.empty(shape, dtype=np.float32)
    for band in range(0, shape[0], BAND):
        rows = slice(band, min(band + BAND, shape[0]))
        draw = derive(seed, Stream.CELL, donor, section, band).random((rows.stop - band, shape[1], 5), dtype=np.float32)
        yx[rows, :, 0] = (np.arange(band, rows.stop)[:, None] + draw[..., 0]) * spacing
        yx[rows, :, 1] = (np.arange(shape[1]) + draw[..., 1]) * spacing
        priority[rows] = draw[..., 2]
        flat = yx[rows].reshape(-1, 2)
        membership, _, _, margin = tissue.read(flat)
        cumulative = np.cumsum(membership @ composition.astype(np.float32), axis=1)
        drawn = (draw[..., 3].reshape(-1, 1) * cumulative[:, -1:] > cumulative[:, :-1]).sum(axis=1)
        present = draw[..., 4].ravel() < (membership @ density.astype(np.float32)) * filled[drawn]
        present &= (margin >= 0) & (flat[:, 0] < tissue.size_um[0]) & (flat[:, 1] < tissue.size_um[1])
        types[rows] = np.where(present, drawn, -1).reshape(types[rows].shape)
    _thin(yx, types, priority, np.array([k.radius_um for k in looks] + [0.0], dtype=np.float32), spacing)
    return Cells(spacing, yx, types)


def _thin(yx: np.ndarray, types: np.ndarray, priority: np.ndarray, radius: np.ndarray, spacing: float) -> None:
    """Set ``types`` to -1 where a neighbour of higher priority is too near; the answer depends on the places alone, not on the order."""
    reach = int(2 * CONTACT * radius.max() / spacing) + 1
    shape = types.shape
    size = np.where(types >= 0, CONTACT * radius[types], -1e6).astype(np.float32)
    lost = np.zeros(shape, dtype=bool)
    for dy in range(reach + 1):
        for dx in range(-reach, reach + 1):
            if (dy == 0 and dx <= 0) or dy >= shape[0] or abs(dx) >= shape[1]:
                continue
            for band in range(0, shape[0] - dy, 8 * BAND):
                stop = min(band + 8 * BAND, shape[0] - dy)
                here = (slice(band, stop), slice(max(0, -dx), shape[1] - max(0, dx)))
                there = (slice(band + dy, stop + dy), slice(max(0, dx), shape[1] - max(0, -dx)))
                step = yx[here] - yx[there]
                limit = size[here] + size[there]
                clash = (limit > 0) & (step[..., 0] ** 2 + step[..., 1] ** 2 < limit**2)
                first = priority[here] >= priority[there]
                lost[there] |= clash & first
                lost[here] |= clash & ~first
    types[lost] = -1


def capture(cells: Cells, centres_um: np.ndarray, half_um: float, n_types: int, *, square: bool) -> np.ndarray:
    """Return how much of each cell type lies under each capture area, float32 (n, types).

    A cell counts by the share of its width (10 µm) that overlaps the area (spots: along the line to the centre; bins: per axis).
    """
    reach = int((half_um + CELL_HALF_UM) / cells.spacing_um) + 1
    offsets = np.stack(np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1), indexing="ij"), axis=-1).reshape(-1, 2)
    if not square:
        nearest = np.hypot(*(np.clip(np.abs(offsets) - 1, 0, None) * cells.spacing_um).T)
        offsets = offsets[nearest < half_um + CELL_HALF_UM]
    rows, cols = cells.type.shape
    flat_yx, flat_type = cells.yx_um.reshape(-1, 2), cells.type.ravel()
    width = 2 * min(half_um, CELL_HALF_UM)
    out = np.empty((len(centres_um), n_types), dtype=np.float32)
    step = max(1, PAIRS // len(offsets))
    for start in range(0, len(centres_um), step):
        centre = centres_um[start : start + step]
        base = np.floor(centre / cells.spacing_um).astype(np.int64)
        r, c = base[:, :1] + offsets[:, 0], base[:, 1:] + offsets[:, 1]
        valid = (r >= 0) & (r < rows) & (c >= 0) & (c < cols)
        place = np.where(valid, r * cols + c, 0)
        kind = np.where(valid, flat_type[place], -1)
        owner, which = np.nonzero(kind >= 0)
        away = np.abs(flat_yx[place[owner, which]] - centre[owner])
        if square:
            overlap = np.clip(half_um + CELL_HALF_UM - away, 0, width) / width
            weight = overlap[:, 0] * overlap[:, 1]
        else:
            weight = np.clip(half_um + CELL_HALF_UM - np.hypot(away[:, 0], away[:, 1]), 0, width) / width
        counted = np.bincount(owner * n_types + kind[owner, which], weights=weight, minlength=len(centre) * n_types)
        out[start : start + len(centre)] = counted.reshape(len(centre), n_types)
    return out
