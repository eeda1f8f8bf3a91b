"""What the checks of a slide read of one library: positions, array indices, scale factors; from a table or from elements of SpatialData."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stimg._core import keys, validate
from stimg.data.slots import library_rows
from stimg.data.tables import is_spatialdata, table_of
from stimg.image.units import Metadata, to_yx
from stimg.pp import _elements
from stimg.pp import _rasterize as rasters


@dataclass(frozen=True)
class View:
    """One library.

    Parameters
    ----------
    name, rows
        The library, and its rows in the table.
    yx
        (y, x) of its observations, float64 (n, 2), NaN where there is none; in full-resolution pixels, or in units of ``system``.
    positioned
        Whether there are coordinates at all.
    indices
        Array row and column, None where there are none.
    entry
        ``uns["spatial"][name]``, possibly empty.
    metadata
        What its scale factors say, in the units of ``yx``.
    unit
        Units of ``system`` along a pixel of the element; 1 for a table.
    system
        Coordinate system of SpatialData; None for a table.
    stated
        µm per unit of ``yx`` by coordinate systems in µm, by name.
    """

    name: str
    rows: np.ndarray
    yx: np.ndarray
    positioned: bool
    indices: tuple[np.ndarray, np.ndarray] | None
    entry: Mapping[str, Any]
    metadata: Metadata
    unit: float
    system: str | None
    stated: Mapping[str, float]

    @property
    def here(self) -> np.ndarray:
        """Which observations have finite coordinates, bool (n,)."""
        return np.isfinite(self.yx).all(axis=1)


def read(
    data: Any,
    *,
    library_key: str,
    table_key: str,
    coordinate_system: str | None = None,
    row_key: str = "array_row",
    col_key: str = "array_col",
) -> tuple[Any, list[View]]:
    """Return the table, and its libraries in sorted order."""
    sdata = data if is_spatialdata(data) else None
    adata = table_of(data, table_key)
    validate.not_empty(adata)
    if sdata is None and coordinate_system is not None:
        raise ValueError(f"coordinate_system={coordinate_system!r} goes with a SpatialData; leave it out for an AnnData.")
    column = rasters._library_column(adata, library_key, sdata, table_key)
    groups = library_rows(column)
    slashed = [name for name in groups if "/" in name]
    if slashed:
        raise ValueError(f"library {slashed[0]!r} has a '/' in its name, which h5ad and zarr files cannot hold as a key. Rename it.")
    systems: Mapping[str, str] = {}
    unit = np.ones(adata.n_obs)
    if sdata is not None:
        systems = _elements.systems(sdata, adata, groups, table_key=table_key, wanted=coordinate_system)
        centres, unit = rasters._coordinates(adata, sdata, table_key, groups, systems)
        assert centres is not None  # for the type checker: shapes have centres
        yx, positioned = centres, True
    else:
        yx, positioned = _positions(adata)
    views = []
    for name, rows in groups.items():
        entry = rasters._spatial(adata).get(name, {})
        units = np.unique(unit[rows])
        metadata = Metadata.from_uns(entry)
        if units.size != 1 or units[0] != 1.0:
            metadata = rasters._in_units(metadata, units)
        indices = rasters._indices(adata, rows, row_key, col_key, needed=False, where=f"library {name!r}: ")
        stated = {} if sdata is None else _stated(sdata, adata, rows, table_key, name, systems[name])
        entry = entry if isinstance(entry, Mapping) else {}
        one = float(units[0]) if units.size == 1 else 1.0
        views.append(View(name, rows, yx[rows], positioned, indices, entry, metadata, one, systems.get(name), stated))
    return adata, views


def _positions(adata: Any) -> tuple[np.ndarray, bool]:
    if keys.SPATIAL not in adata.obsm:
        return np.full((adata.n_obs, 2), np.nan), False
    array = np.asarray(adata.obsm[keys.SPATIAL])
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(
            f"adata.obsm['{keys.SPATIAL}'] has shape {array.shape}; wanted ({adata.n_obs}, 2). Give (x, y) in full-resolution pixels."
        )
    if array.dtype.kind not in "iuf":
        raise TypeError(
            f"adata.obsm['{keys.SPATIAL}'] has dtype {array.dtype}; wanted numbers. Give (x, y) in full-resolution pixels as float64."
        )
    return to_yx(array), True


def _stated(sdata: Any, adata: Any, rows: np.ndarray, table_key: str, library: str, system: str) -> dict[str, float]:
    """Return µm per unit of ``system`` by the coordinate systems whose unit is µm, which the library's shapes have."""
    from spatialdata.transformations import get_transformation

    region_key, _ = _elements.region_column(adata, table_key=table_key)
    found = {}
    for region in sorted(set(adata.obs[region_key].astype(str).to_numpy()[rows])):
        element = sdata.shapes[region]
        own = _elements.affine_xy(element, system, what=f"sdata.shapes[{region!r}]")
        for name in get_transformation(element, get_all=True):
            if name in ("um", "µm", "micron", "microns", f"{library}_um") and name != system:
                affine = _elements.affine_xy(element, name, what=f"sdata.shapes[{region!r}]")
                found[name] = float(np.sqrt(abs(np.linalg.det(affine[:2, :2]) / np.linalg.det(own[:2, :2]))))
    return found
