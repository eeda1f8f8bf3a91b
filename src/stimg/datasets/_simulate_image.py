"""The simulated H&E: optical densities of two stains, drawn block by block from the cells and the tissue."""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.fft

from stimg._core.rng import derive
from stimg.datasets._simulate_cells import Cells, Kind, kinds
from stimg.datasets._simulate_options import DonorOptions, ImageOptions
from stimg.datasets._simulate_tissue import Stream, Tissue

BLOCK = 256
"""Side of what is drawn at once, in pixels. Every pixel depends on its own place alone, so it decides memory and speed, not the image."""
FINEST_UM = 2.0
"""Pixels larger than this are means over smaller ones, as a nucleus would vanish between them."""
NODE = 8
TABLE = 1024
GRAIN = 8
LIGHT = 246.0
PATCH_PIXELS = 1_000_000


def stain_matrix(image: ImageOptions, donors: DonorOptions, *, seed: int, donor: int, section: int) -> np.ndarray:
    """Return the optical density of one unit of haematoxylin and of eosin, float64 (2 stains, 3 colours), of one section."""
    base = np.array([image.haematoxylin, image.eosin], dtype=np.float64)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    shift = np.zeros((2, 4))
    if donor:
        shift += donors.stain_sd * derive(seed, Stream.STAIN, donor).standard_normal((2, 4))
    if section:
        shift += donors.section_stain_sd * derive(seed, Stream.STAIN, donor, section).standard_normal((2, 4))
    stains = np.clip(base + shift[:, :3], 0.01, None)
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    return stains * (image.strength * np.exp(2 * shift[:, 3:]))


class Texture:
    """A periodic table of smooth Gaussian noise (mean 0, standard deviation 1, a blob is about ``GRAIN`` entries wide)."""

    def __init__(self, rng: np.random.Generator) -> None:
        noise = rng.standard_normal((TABLE, TABLE), dtype=np.float32)
        fy, fx = np.fft.fftfreq(TABLE)[:, None], np.fft.rfftfreq(TABLE)[None, :]
        spectrum = scipy.fft.rfft2(noise) * np.exp(-0.5 * (GRAIN * 2.2) ** 2 * (fy**2 + fx**2)).astype(np.float32)
        table = scipy.fft.irfft2(spectrum, s=(TABLE, TABLE))
        self.table = np.ascontiguousarray((table - table.mean()) / table.std(), dtype=np.float32)
        self.white = noise

    def near(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the nearest entries at ``y``, ``x`` in blobs (broadcast together)."""
        return self.table[(y * GRAIN).astype(np.int32) & (TABLE - 1), (x * GRAIN).astype(np.int32) & (TABLE - 1)]

    def smooth(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the entries at ``y``, ``x`` in blobs by bilinear interpolation."""
        y, x = np.asarray(y) * GRAIN, np.asarray(x) * GRAIN
        y0, x0 = np.floor(y), np.floor(x)
        fy, fx = (y - y0).astype(np.float32), (x - x0).astype(np.float32)
        r, c = y0.astype(np.int64) & (TABLE - 1), x0.astype(np.int64) & (TABLE - 1)
        r1, c1 = (r + 1) & (TABLE - 1), (c + 1) & (TABLE - 1)
        t = self.table
        return (t[r, c] * (1 - fx) + t[r, c1] * fx) * (1 - fy) + (t[r1, c] * (1 - fx) + t[r1, c1] * fx) * fy


class _Ground(NamedTuple):
    """Stroma of each domain: eosin and haematoxylin levels, strength of the fibres, and where the clefts begin (standard deviations)."""

    eosin: np.ndarray
    haematoxylin: np.ndarray
    fibre: np.ndarray
    cleft: np.ndarray


class Slide:
    """One section's H&E image; any part of it is drawn when asked for, and is the same whatever part it is asked with.

    Attributes
    ----------
    shape
        (rows, columns) in pixels.
    mpp
        µm per pixel.
    stains
        float64 (2, 3): optical density of one unit of haematoxylin and of eosin in (red, green, blue).
    """

    def __init__(
        self,
        tissue: Tissue,
        cells: Cells,
        composition: np.ndarray,
        image: ImageOptions,
        donors: DonorOptions,
        *,
        mpp: float,
        seed: int,
        donor: int,
        section: int,
        textures: dict[int, Texture],
    ) -> None:
        self.mpp = float(mpp)
        self.shape = (math.ceil(tissue.size_um[0] / mpp - 1e-9), math.ceil(tissue.size_um[1] / mpp - 1e-9))
        self.stains = stain_matrix(image, donors, seed=seed, donor=donor, section=section)
        self._split = math.ceil(self.mpp / FINEST_UM)
        self._fine = self.mpp / self._split
        self._tissue, self._cells, self._image = tissue, cells, image
        self._looks = kinds(composition.shape[1])
        self._key = (seed, donor, section)
        self._textures = textures

    @cached_property
    def _texture(self) -> Texture:
        seed = self._key[0]
        if seed not in self._textures:
            self._textures[seed] = Texture(derive(seed, Stream.TEXTURE))
        return self._textures[seed]

    @cached_property
    def _ground(self) -> _Ground:
        n = self._tissue.options.n_domains
        rng = derive(self._key[0], Stream.TEXTURE, 1)
        order = rng.permutation(n)
        place = (order + 0.5) / n
        return _Ground(0.34 + 0.34 * place, rng.uniform(0.03, 0.10, n), rng.uniform(0.35, 1.0, n), rng.uniform(1.2, 2.4, n))

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted lattice positions of the cells, and their random numbers, float32 (n_cells, 8)."""
        index = self._cells.index
        return index, derive(self._key[0], Stream.NUCLEUS, *self._key[1:]).random((len(index), 8), dtype=np.float32)

    def _fibre(self, y_um: np.ndarray, x_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the coordinates (across in fibre widths, along in fibre lengths) of the wavy bundles at a position."""
        angle = derive(self._key[0], Stream.TEXTURE, 2, self._key[1]).uniform(0, math.pi)
        cos, sin = math.cos(angle), math.sin(angle)
        bend = self._texture.smooth(y_um / 180, x_um / 180)
        across = (y_um * cos + x_um * sin) / 4.5 + 22 * bend
        along = (x_um * cos - y_um * sin) / 45 + 2 * self._texture.smooth(x_um / 160 + 31, y_um / 160)
        return across, along

    def render(self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None) -> np.ndarray:
        """Return uint8 (height, width, 3) of a part of the image, in pixels; None: to the border."""
        height = self.shape[0] - top if height is None else height
        width = self.shape[1] - left if width is None else width
        if min(top, left) < 0 or min(height, width) < 1 or top + height > self.shape[0] or left + width > self.shape[1]:
            raise ValueError(
                f"rows {top} .. {top + height} and columns {left} .. {left + width} are not inside the image of shape {self.shape}."
            )
        out = np.empty((height, width, 3), dtype=np.uint8)
        for y, x, block in self._blocks(top, left, height, width):
            out[y - top : y - top + block.shape[0], x - left : x - left + block.shape[1]] = block
        return out

    def thumbnail(self, longest_px: int) -> tuple[np.ndarray, float]:
        """Return (uint8 image no longer than ``longest_px``, its pixels per full pixel): means over squares of whole pixels."""
        factor = math.ceil(max(self.shape) / longest_px)
        if factor == 1:
            return self.render(), 1.0
        total = np.zeros((math.ceil(self.shape[0] / factor), math.ceil(self.shape[1] / factor), 3), dtype=np.float32)
        for y, x, block in self._blocks(0, 0, *self.shape):
            rows, cols = np.arange(y, y + block.shape[0]) // factor, np.arange(x, x + block.shape[1]) // factor
            row_starts, col_starts = (np.flatnonzero(np.diff(part, prepend=-1)) for part in (rows, cols))
            sums = np.add.reduceat(np.add.reduceat(block.astype(np.float32), row_starts, axis=0), col_starts, axis=1)
            total[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] += sums
        counts = [np.bincount(np.arange(side) // factor) for side in self.shape]
        return np.rint(total / (counts[0][:, None, None] * counts[1][None, :, None])).astype(np.uint8), 1.0 / factor

    def cell_table(self) -> pd.DataFrame:
        """Return the cells of the section: ``x_um``, ``y_um``, ``type``, ``domain``."""
        index = self._cells.index
        yx = self._cells.yx_um.reshape(-1, 2)[index].astype(np.float64)
        domain = self._tissue.read(yx)[0].argmax(axis=1)
        return pd.DataFrame(
            {
                "x_um": yx[:, 1],
                "y_um": yx[:, 0],
                "type": pd.Categorical.from_codes(self._cells.type.ravel()[index], categories=[k.name for k in self._looks]),
                "domain": pd.Categorical.from_codes(domain, categories=[f"domain_{d}" for d in range(self._tissue.options.n_domains)]),
            }
        )

    def _blocks(self, top: int, left: int, height: int, width: int) -> Iterator[tuple[int, int, np.ndarray]]:
        for y in range(top, top + height, BLOCK):
            for x in range(left, left + width, BLOCK):
                yield y, x, self._block(y, x, min(BLOCK, top + height - y), min(BLOCK, left + width - x))

    def _block(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        split = self._split
        grey = self._light(top * split, left * split, height * split, width * split)
        if split > 1:
            grey = grey.reshape(height, split, width, split, 3).mean(axis=(1, 3))
        if self._image.noise > 0:
            r, c = (top + np.arange(height))[:, None] & (TABLE - 1), (left + np.arange(width))[None, :] & (TABLE - 1)
            for colour in range(3):
                grey[..., colour] += self._image.noise * self._texture.white[r, (c + 341 * colour) & (TABLE - 1)]
        return np.clip(np.rint(grey), 0, 255).astype(np.uint8)

    def _light(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return the light that passes, float32 (height, width, 3), on pixels of ``_fine`` µm."""
        y_um = ((top + np.arange(height) + 0.5) * self._fine)[:, None]
        x_um = ((left + np.arange(width) + 0.5) * self._fine)[None, :]
        rows, row, part_y = _nodes(top, height)
        cols, col, part_x = _nodes(left, width)
        node_y, node_x = np.meshgrid((rows + 0.5) * self._fine, (cols + 0.5) * self._fine, indexing="ij")
        membership, _, _, margin = self._tissue.read(np.stack([node_y.ravel(), node_x.ravel()], axis=1))

        def spread(values: np.ndarray) -> np.ndarray:
            values = values.reshape(node_y.shape).astype(np.float32)
            lines = values[row] * (1 - part_y)[:, None] + values[row + 1] * part_y[:, None]
            return lines[:, col] * (1 - part_x) + lines[:, col + 1] * part_x

        ground = self._ground
        levels = [(membership * part).sum(axis=1) for part in (ground.eosin, ground.haematoxylin, ground.fibre, ground.cleft)]
        eosin_level, haem_level, fibre_level, cleft_from = (spread(level) for level in levels)
        solid = np.clip(spread(margin) / self._tissue.soft_margin + 0.5, 0, 1)
        across, along = (spread(part) for part in self._fibre(node_y, node_x))
        texture, contrast = self._texture, np.float32(self._image.texture)
        fibre = texture.smooth(across, along)
        grain = texture.near(y_um / 2.2, x_um / 2.2)
        blob = texture.smooth(y_um / 22, x_um / 22)
        eosin = eosin_level * np.clip(1 + contrast * (0.30 * fibre_level * fibre + 0.10 * grain + 0.10 * blob), 0.05, None)
        haem = haem_level * (1 + 0.3 * contrast * grain)
        if contrast > 0:
            opening = 0.75 * texture.smooth(across / 2.6 + 7, along / 1.3) + 0.65 * blob
            solid = solid * (1 - 0.94 * np.clip((opening - cleft_from) / 0.3, 0, 1))
        nuclei, pink, blue = self._nuclei(top, left, height, width)
        covered = np.clip(nuclei / 0.5, 0, 1)
        haem = np.maximum((haem + blue) * solid, 1.45 * nuclei)
        eosin = np.clip(eosin + pink, 0, None) * np.maximum(solid, covered) * (1 - 0.3 * covered)
        density = eosin[..., None] * self.stains[1].astype(np.float32) + haem[..., None] * self.stains[0].astype(np.float32)
        return LIGHT * np.exp(-density)

    def _nuclei(self, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return haematoxylin of the nuclei, and eosin and haematoxylin of the cytoplasm, float32 (height, width) each."""
        index, chance = self._places
        n_cols = self._cells.type.shape[1]
        margin = math.ceil(max(_extent_um(k) for k in self._looks) / self._fine) + 2
        pad = 2 * margin + 1
        maps = np.zeros((3, (height + 2 * pad) * (width + 2 * pad)), dtype=np.float32)
        first = math.floor((top - margin) * self._fine / self._cells.spacing_um)
        last = math.floor((top + height + margin) * self._fine / self._cells.spacing_um)
        band = slice(*np.searchsorted(index, [first * n_cols, (last + 1) * n_cols]))
        place = index[band]
        centre = self._cells.yx_um.reshape(-1, 2)[place].astype(np.float64) / self._fine
        corner = np.floor(centre).astype(np.int64)
        near = ((corner >= (top - margin, left - margin)) & (corner < (top + height + margin, left + width + margin))).all(axis=1)
        place, chance, rest = place[near], chance[band][near], (centre - corner)[near].astype(np.float32)
        corner = corner[near] - (top, left)
        types = self._cells.type.ravel()[place]
        for t, kind in enumerate(self._looks):
            chosen = np.flatnonzero(types == t)
            half = math.ceil(_extent_um(kind) / self._fine) + 1
            step = max(1, PATCH_PIXELS // (2 * half + 1) ** 2)
            for start in range(0, len(chosen), step):
                some = chosen[start : start + step]
                position = self._cells.yx_um.reshape(-1, 2)[place[some]]
                self._draw(maps, kind, corner[some] + pad, rest[some], position, chance[some], half, width + 2 * pad)
        out = maps.reshape(3, height + 2 * pad, width + 2 * pad)[:, pad : pad + height, pad : pad + width]
        return out[0], out[1], out[2]

    def _draw(
        self,
        maps: np.ndarray,
        kind: Kind,
        corner: np.ndarray,
        rest: np.ndarray,
        yx_um: np.ndarray,
        chance: np.ndarray,
        half: int,
        row_length: int,
    ) -> None:
        """Add cells of one kind to the maps: ``corner`` (pixels of the map) and ``rest`` of a pixel, ``chance`` their random numbers."""
        c = chance.T[:, :, None, None]
        y_um, x_um = yx_um.astype(np.float64).T
        across = self._fibre(y_um, x_um)[0]
        ahead, aside = self._fibre(y_um + 0.5, x_um)[0] - across, self._fibre(y_um, x_um + 0.5)[0] - across
        direction = np.arctan2(-aside, ahead)[:, None, None]  # of the bundle, from the x axis towards y: at right angles to the gradient
        angle = direction + kind.aligned * 0.5 * (c[0] - 0.5) + (1 - kind.aligned) * math.pi * (c[0] - 0.5)
        size = 0.82 + 0.36 * c[1]
        ratio = np.clip(kind.ratio * (0.85 + 0.3 * c[2]), 0.12, 1.0)
        major, minor = kind.radius_um * size / np.sqrt(ratio), kind.radius_um * size * np.sqrt(ratio)
        steps = np.arange(-half, half + 1)
        dy = ((steps[None, :, None] + 0.5 - rest[:, 0, None, None]) * self._fine).astype(np.float32)
        dx = ((steps[None, None, :] + 0.5 - rest[:, 1, None, None]) * self._fine).astype(np.float32)
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        u, v = dx * cos + dy * sin, dy * cos - dx * sin
        bend = 0.35 * (c[3] - 0.5)
        radius = np.sqrt((u / major) ** 2 + (v / minor + bend * ((u / major) ** 2 - 0.4)) ** 2)
        edge = max(0.45, self._fine)
        cover = np.clip((1 - radius) * minor / edge + 0.5, 0, 1)
        mottle = self._texture.near(dy / 1.3 + 40 * c[4], dx / 1.3 + 40 * c[5])
        chromatin = 1 + kind.grain * 0.55 * mottle + kind.rim * np.clip((radius - 0.6) / 0.3, 0, 1)
        if kind.nucleolus:
            spot = (u - (c[6] - 0.5) * major) ** 2 + (v - (c[7] - 0.5) * minor) ** 2
            chromatin += kind.nucleolus * np.exp(-spot / (2 * 0.8**2))
        strength = kind.chromatin * (0.85 + 0.3 * c[6])
        body = (kind.body - 1) * kind.radius_um
        cell = np.sqrt((u / (major + body)) ** 2 + (v / (minor + body)) ** 2)
        cytoplasm = np.clip((1 - cell) * (minor + body) / 1.5, 0, 1)
        place = (corner[:, 0, None, None] + steps[None, :, None]) * row_length + corner[:, 1, None, None] + steps[None, None, :]
        place = place.ravel()
        np.maximum.at(maps[0], place, (cover * strength * np.clip(chromatin, 0.2, None)).ravel())
        np.add.at(maps[1], place, (kind.eosin * cytoplasm).ravel().astype(np.float32))
        if kind.basophilia:
            np.maximum.at(maps[2], place, (kind.basophilia * cytoplasm).ravel().astype(np.float32))


def _extent_um(kind: Kind) -> float:
    """Return the farthest reach of a cell of ``kind`` from its centre in µm."""
    return 1.18 * kind.radius_um / math.sqrt(max(0.85 * kind.ratio, 0.12)) * 1.15 + (kind.body - 1) * kind.radius_um


def _nodes(start: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the coarse nodes (pixels, ``NODE`` apart) around ``length`` pixels from ``start``, and each pixel's node and way to the next."""
    node, rest = np.divmod(np.arange(start, start + length), NODE)
    return np.arange(node[0], node[-1] + 2) * NODE, node - node[0], (rest / NODE).astype(np.float32)
