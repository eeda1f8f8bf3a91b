"""Reading back what ``stimg.pp.rasterize`` wrote: the rasters of an AnnData. Loads no torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stimg._core import keys, validate
from stimg.image.spec import RasterSpec

_TODO = "Run `stimg.pp.rasterize` first."


@dataclass(frozen=True)
class RasterLibrary:
    """One library on its raster.

    Parameters
    ----------
    name
        The library.
    spec
        How it lies on its lattice.
    rows
        Rows of the AnnData that are on the raster, int64 (n,), ascending.
    rc
        Their (row, column), int32 (n, 2).
    """

    name: str
    spec: RasterSpec
    rows: np.ndarray
    rc: np.ndarray


def library_rows(column: pd.Series) -> dict[str, np.ndarray]:
    """Return the positions of every library's observations, int64 ascending, by library name in sorted order."""
    codes, names = pd.factorize(column.astype(str), sort=True)
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    return {str(name): order[bounds[i] : bounds[i + 1]].astype(np.int64) for i, name in enumerate(names)}


def raster_libraries(adata: Any, library_key: str = keys.LIBRARY) -> dict[str, RasterLibrary]:
    """Return every library of ``adata`` with its raster and the observations on it, by name in sorted order.

    Observations that are not on the raster (``collision="nearest"``) are left out. Subsets of a rasterised object keep their rasters.

    Raises
    ------
    KeyError
        Where ``obsm["stimg_rc"]``, ``uns["stimg"]["raster"]``, the library column, or the raster of a library is missing.
    ValueError
        Where the library column has missing values, or an index lies outside its raster.
    """
    column = validate.obs(adata, library_key, todo=_TODO)
    rc = np.asarray(validate.slot(adata.obsm, "obsm", keys.RC, todo=_TODO))
    if rc.shape != (adata.n_obs, 2):
        raise ValueError(f"adata.obsm['{keys.RC}'] has shape {rc.shape}; wanted ({adata.n_obs}, 2). Run `stimg.pp.rasterize` again.")
    rc = rc.astype(np.int32, copy=False)
    rasters = adata.uns.get(keys.UNS, {}).get(keys.RASTER, {})
    found = {}
    for name, rows in library_rows(column).items():
        if name not in rasters:
            raise KeyError(
                f"adata.uns['{keys.UNS}']['{keys.RASTER}'][{name!r}] is missing (found {sorted(rasters)}). {_TODO} Joining objects drops `uns` unless "
                "`anndata.concat(..., uns_merge='unique')` is used."
            )
        spec = RasterSpec.from_dict(rasters[name])
        rows = rows[rc[rows, 0] >= 0]
        inside = rc[rows]
        if len(rows) and ((inside < 0).any() or (inside >= np.asarray(spec.shape)).any()):
            raise ValueError(
                f"library {name!r}: adata.obsm['{keys.RC}'] reaches {inside.max(axis=0).tolist()}, outside the raster of {spec.shape}. "
                "Run `stimg.pp.rasterize` again."
            )
        found[name] = RasterLibrary(name, spec, rows, inside)
    return found
