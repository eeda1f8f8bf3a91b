"""Spatial blocks of every library, for splits within sections."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg._core import keys, provenance, validate
from stimg.data.slots import library_rows, raster_libraries
from stimg.data.tables import table_of
from stimg.image.split import balanced_blocks, hold_out, near_border, square_blocks

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


def spatial_blocks(
    data: "AnnData | SpatialData",
    *,
    block_um: float | None = None,
    n_blocks: int | None = None,
    buffer_um: float = 0.0,
    library_key: str = keys.LIBRARY,
    key_added: str = keys.BLOCK,
    table_key: str = "table",
) -> None:
    """Write ``obs[key_added]`` (categorical): the contiguous spatial block of each observation, named ``<library>/<number>``.

    Parameters
    ----------
    data
        An AnnData that `stimg.pp.rasterize` has seen, or a SpatialData with such a table.
    block_um
        Side of square blocks in µm; give this or ``n_blocks``.
    n_blocks
        Number of blocks per library, with nearly equal numbers of observations.
    buffer_um
        Where above zero, ``obs[f"{key_added}_border"]`` (bool) marks the observations within this distance, in µm, of another block.
    library_key
        Column of ``obs`` with the library.
    key_added
        Name of the column.
    table_key
        Table of a SpatialData; the slots are read from it and written to it.

    Raises
    ------
    KeyError
        Where the raster is missing.
    ValueError
        For both or none of ``block_um`` and ``n_blocks``, or numbers that are not positive.

    Notes
    -----
    Nothing is drawn: the same rasters give the same blocks. Distances are those of the raster, in µm. Observations that are not on the raster
    (another one is nearer to their lattice point) are placed by ``obsm["spatial"]``, so that they too are in a block.
    :func:`stimg.pp.hold_out_blocks` turns some of the blocks into a test set.
    """
    adata = table_of(data, table_key)
    if (block_um is None) == (n_blocks is None):
        raise ValueError(f"block_um={block_um} and n_blocks={n_blocks}; wanted exactly one of the two.")
    if not (np.isfinite(buffer_um) and buffer_um >= 0):
        raise ValueError(f"buffer_um={buffer_um} is not a distance; wanted zero or a positive number of µm.")
    if block_um is not None:
        validate.positive(block_um, "block_um", "µm")
    if n_blocks is not None:
        n_blocks = validate.whole(n_blocks, "n_blocks")
    centres = centres_um(adata, library_key=library_key)
    libraries = library_rows(validate.obs(adata, library_key, todo="Run `stimg.pp.rasterize` first."))
    categories: list[str] = []
    number = np.full(adata.n_obs, -1, dtype=np.int64)
    for library, rows in libraries.items():
        block = square_blocks(centres[rows], block_um) if block_um is not None else balanced_blocks(centres[rows], int(n_blocks or 0))
        width = len(str(block.max()))
        number[rows] = len(categories) + block
        categories += [f"{library}/{b:0{width}d}" for b in range(block.max() + 1)]
    adata.obs[key_added] = pd.Categorical.from_codes(number, categories=categories)
    if buffer_um > 0:
        library = adata.obs[library_key].astype(str).to_numpy()
        adata.obs[f"{key_added}_border"] = near_border(number, centres, buffer_um, library)
    provenance.record(
        adata, key_added, block_um=block_um, n_blocks=n_blocks, buffer_um=float(buffer_um), library_key=library_key, unit="µm"
    )
    logger.info("spatial_blocks: %d blocks of %d observations in %d libraries", len(categories), adata.n_obs, len(libraries))


def centres_um(adata: "AnnData", *, library_key: str = keys.LIBRARY) -> np.ndarray:
    """Return the (y, x) of each observation in µm on its library's raster, float64 (n_obs, 2).

    Coordinates of different libraries have nothing to do with each other. Observations that are not on the raster are placed by
    ``obsm["spatial"]`` through the inverse of the raster's map.
    """
    centres = np.full((adata.n_obs, 2), np.nan)
    rasters = raster_libraries(adata, library_key)
    for library, rows in library_rows(adata.obs[library_key]).items():
        lib = rasters[library]
        centres[lib.rows] = lib.spec.centres_um(lib.rc)
        off = np.setdiff1d(rows, lib.rows)
        if len(off):
            xy = validate.obsm(
                adata, keys.SPATIAL, columns=2, todo="Observations that are not on the raster are placed by their coordinates."
            )
            affine = np.asarray(lib.spec.affine)
            centres[off] = np.linalg.solve(affine[:, :2], (xy[off, ::-1] - affine[:, 2]).T).T * lib.spec.pitch_um
    return centres


def hold_out_blocks(
    data: "AnnData | SpatialData",
    *,
    held: str | Sequence[str],
    buffer_um: float = 0.0,
    block_key: str = keys.BLOCK,
    library_key: str = keys.LIBRARY,
    key_added: str = keys.SPLIT,
    table_key: str = "table",
) -> None:
    """Write ``obs[key_added]`` (categorical): ``"test"`` for the held-out blocks, ``"buffer"`` around them, ``"train"`` elsewhere.

    Parameters
    ----------
    data
        An AnnData that :func:`stimg.pp.spatial_blocks` has seen, or a SpatialData with such a table.
    held
        Names of the blocks to hold out.
    buffer_um
        Observations of other blocks within this distance, in µm, of a held-out observation are in neither set. Take at least the diagonal of a crop
        where a crop of training observations must not reach a held-out one.
    block_key, library_key
        Columns of ``obs`` with the block and the library.
    key_added
        Name of the column.
    table_key
        Table of a SpatialData; the slots are read from it and written to it.

    Raises
    ------
    KeyError
        Where the blocks or the raster are missing.
    ValueError
        For blocks that do not exist, a negative buffer, or nothing left to train on.
    """
    adata = table_of(data, table_key)
    block = validate.obs(adata, block_key, todo="Run `stimg.pp.spatial_blocks` first.").astype(str).to_numpy()
    library = validate.obs(adata, library_key, todo="Run `stimg.pp.rasterize` first.").astype(str).to_numpy()
    held = validate.names(held)
    parts = hold_out(block, held, centres_um(adata, library_key=library_key), buffer_um, library=library)
    codes = np.select([parts.train, parts.test], [0, 1], 2)
    adata.obs[key_added] = pd.Categorical.from_codes(codes, categories=["train", "test", "buffer"])
    provenance.record(adata, key_added, held=held, buffer_um=float(buffer_um), block_key=block_key, library_key=library_key, unit="µm")
    logger.info("hold_out_blocks: %d train, %d test, %d buffer", *(int(mask.sum()) for mask in parts))
