"""One library as it was read, and how it becomes an AnnData or SpatialData object; shared by all loaders."""

import gzip
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg._core import keys, validate
from stimg.image.pixels import open_image

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
ImageChoice = Literal["none", "hires", "full"]
HIRES_PX, LOWRES_PX = 2000, 600
"""Longest side in pixels of the reduced images, as Space Ranger writes them."""


@dataclass
class Section:
    """One library: counts (n_obs x n_vars, CSR), tables, geometry in full-resolution pixels, and where its image is.

    ``names`` identify the observations inside the library; ``xy`` is (x, y); ``mpp`` is µm per full-resolution pixel. ``image_scale`` is pixels
    of the image file per full-resolution pixel, below 1 where only a reduced image is published.
    """

    library: str
    donor: str
    counts: sp.csr_matrix
    names: Sequence[str]
    var: pd.DataFrame
    obs: pd.DataFrame
    xy: np.ndarray
    mpp: float
    spot_um: float
    image: Path | None = None
    image_size: tuple[int, int] = (0, 0)
    image_scale: float = 1.0
    scalefactors: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def check_image(image: str, as_sdata: bool) -> None:
    """Raise where ``image`` is not a known choice or cannot be held by an AnnData object."""
    validate.one_of(image, ("none", "hires", "full"), "image")
    if image == "full" and not as_sdata:
        raise ValueError("image='full' needs an object that reads pixels when they are asked for. Pass `as_sdata=True`, or image='hires'.")


def select(wanted: str | Sequence[str] | None, known: Sequence[str], what: str) -> list[str]:
    """Return the wanted libraries as a list without repeats; None is all, an unknown one a ValueError that lists the known ones."""
    names = list(known) if wanted is None else [wanted] if isinstance(wanted, str) else [str(w) for w in wanted]
    unknown = [n for n in names if n not in known]
    if unknown or not names:
        raise ValueError(f"{what} {unknown or names} is not registered; wanted one or more of {list(known)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"{what} {names} names one library twice; wanted each once.")
    return names


def read_count_table(path: Path, *, delimiter: str) -> tuple[sp.csr_matrix, list[str], list[str]]:
    """Return (counts, row names, column names) of a text table of whole numbers, gzip-compressed or not.

    The first line holds the column names after an empty cell, every other line a row name and one number a column.
    """
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    lines = text.splitlines()
    columns = lines[0].split(delimiter)[1:]
    names, indices, values = [], [], []
    for number, line in enumerate(lines[1:], start=2):
        name, _, rest = line.partition(delimiter)
        row = _whole_numbers(rest, delimiter, len(columns))
        if len(row) != len(columns):
            raise ValueError(f"{path}, line {number}: {len(row)} numbers for {len(columns)} columns. Copy the file again.")
        here = np.flatnonzero(row)
        names.append(name)
        indices.append(here)
        values.append(row[here])
    indptr = np.concatenate([[0], np.cumsum([len(i) for i in indices])])
    parts = (np.concatenate(values), np.concatenate(indices), indptr) if names else (np.empty(0, np.float32), np.empty(0, int), indptr)
    return sp.csr_matrix(parts, shape=(len(names), len(columns))), names, columns


def _whole_numbers(text: str, delimiter: str, n: int) -> np.ndarray:
    """Return the numbers of a line, float32; as whole numbers where they are written so, which is read four times as fast."""
    try:
        row = np.fromstring(text, dtype=np.int64, sep=delimiter)
        if len(row) == n:
            return row.astype(np.float32)
    except ValueError:  # something else than digits, such as 1.0
        pass
    return np.fromstring(text, dtype=np.float32, sep=delimiter)


def affine_scale(grid: np.ndarray, pixels: np.ndarray) -> float:
    """Return pixels per unit of ``grid``: the square root of the area ratio of the least-squares affine map from grid to pixels."""
    design = np.column_stack([grid, np.ones(len(grid))])
    matrix = np.linalg.lstsq(design, pixels, rcond=None)[0][:2]
    return float(np.sqrt(abs(np.linalg.det(matrix))))


def reduced(path: Path, size: tuple[int, int], longest: int) -> tuple[np.ndarray, float]:
    """Return (uint8 (y, x, 3), scale) of the image reduced to at most ``longest`` pixels on its longer side."""
    from PIL import Image

    scale = min(1.0, longest / max(size))
    width, height = (max(1, round(s * scale)) for s in size)
    with open_image(path, size) as image:
        box: tuple[float, float, float, float] = (0.0, 0.0, float(size[0]), float(size[1]))
        drafted = image.draft("RGB", (width, height))  # jpeg: decode at 1/2, 1/4 or 1/8; the box below keeps the geometry exact
        if drafted is not None:
            factor = round(size[0] / image.size[0])
            box = (0.0, 0.0, size[0] / factor, size[1] / factor)
        pixels = image.convert("RGB")
        if (width, height) != size:
            pixels = pixels.resize((width, height), Image.Resampling.BOX, box=box)
        return np.asarray(pixels), scale


def full(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the whole image, uint8 (y, x, 3)."""
    with open_image(path, size) as image:
        return np.asarray(image.convert("RGB"))


def to_anndata(section: Section, *, image: ImageChoice) -> "AnnData":
    """Return the section with counts in X, ``obsm["spatial"]``, and ``uns["spatial"][library]``; reduced images where ``image="hires"``."""
    import anndata as ad

    lib = section.library
    obs = section.obs.copy()
    obs.insert(0, keys.LIBRARY, pd.Categorical([lib] * len(obs)))
    obs.insert(1, keys.DONOR, pd.Categorical([section.donor] * len(obs)))
    obs.index = pd.Index([f"{lib}_{name}" for name in section.names])
    validate.unique_names(obs.index, f"observations in {lib}", todo="Copy the file again.")
    validate.unique_names(section.var.index, f"genes in {lib}", todo="Copy the file again.")
    factors = {
        "tissue_hires_scalef": 1.0,
        "tissue_lowres_scalef": 1.0,
        "spot_diameter_fullres": section.spot_um / section.mpp,
        **section.scalefactors,
        "microns_per_pixel": section.mpp,
    }
    metadata, images = dict(section.metadata), {}
    if section.image is not None:
        metadata["source_image_path"] = str(section.image)
        metadata["source_image_scale"] = float(section.image_scale)  # pixels of that file per full-resolution pixel
        if image == "hires":
            for key, longest in (("hires", HIRES_PX), ("lowres", LOWRES_PX)):
                pixels, scale = reduced(section.image, section.image_size, longest)
                images[key] = pixels
                factors[f"tissue_{key}_scalef"] = scale * section.image_scale
    adata = ad.AnnData(X=section.counts.astype(np.float32), obs=obs, var=section.var.copy())
    adata.obsm[keys.SPATIAL] = np.asarray(section.xy, dtype=np.float64)
    adata.uns["spatial"] = {lib: {"images": images, "scalefactors": factors, "metadata": metadata}}
    return adata


def joined(parts: Sequence["AnnData"]) -> "AnnData":
    """Return the sections as one object with the genes that all of them list (a gene that a section does not list is not a zero)."""
    import anndata as ad

    if len(parts) == 1:
        return parts[0]
    result = ad.concat(parts, join="inner", merge="same")
    result.uns["spatial"] = {lib: entry for part in parts for lib, entry in part.uns["spatial"].items()}
    most = max(part.n_vars for part in parts)
    logger.info("%d libraries share %d genes (the largest lists %d); %d observations", len(parts), result.n_vars, most, result.n_obs)
    return result


def assemble(sections: Sequence[Section], *, image: ImageChoice, as_sdata: bool) -> "AnnData | SpatialData":
    """Return the sections as one AnnData or SpatialData object."""
    adata = joined([to_anndata(s, image="none" if as_sdata else image) for s in sections])
    if not as_sdata:
        return adata
    from stimg.datasets.elements import to_spatialdata

    return to_spatialdata(adata, sections, image=image)
