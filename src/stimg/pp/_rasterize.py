"""``pp.rasterize``: every observation gets its row and column, every library its raster."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from stimg._core import keys, provenance, validate
from stimg.data.slots import library_rows
from stimg.data.tables import is_spatialdata, table_of
from stimg.image.place import Placed, place_array, place_cells, place_coordinates
from stimg.image.spec import COLLISIONS, LATTICES
from stimg.image.units import Metadata, to_yx
from stimg.pp import _elements

logger = logging.getLogger(__name__)
SOURCES = ("auto", "array", "bins", "coordinates", "cells")
PerLibrary = float | Mapping[str, float] | None


def rasterize(
    data: Any,
    *,
    library_key: str = keys.LIBRARY,
    lattice: str = "auto",
    source: str = "auto",
    pitch_um: PerLibrary = None,
    mpp: PerLibrary = None,
    pixel_um: float | None = None,
    row_key: str = "array_row",
    col_key: str = "array_col",
    collision: str = "error",
    allow_mirror: bool = False,
    table_key: str = "table",
    coordinate_system: str | None = None,
) -> None:
    """Write ``obsm["stimg_rc"]`` (int32, row and column of every observation) and ``uns["stimg"]["raster"]`` (a RasterSpec per library).

    No image is made: this is the index map from which crops are cut. Every library is placed and checked by itself, and nothing is written where one
    fails.

    Parameters
    ----------
    data
        AnnData, or SpatialData whose table ``table_key`` annotates shapes; the slots are written to the table.
    library_key
        Column of ``obs`` that names the capture area. Where it is missing and ``uns["spatial"]`` has exactly one library (SpatialData: by the annotated
        region), the column is written.
    lattice
        ``"square"``, ``"hex"`` or ``"auto"``. With array indices, auto means square, unless row + column has one parity everywhere; then the array is
        hexagonal (Visium) or a checkerboard (2k arrays), whichever the coordinates stretch less. A checkerboard is kept on its own square lattice,
        turned by 45°; ``"square"`` keeps it upright with every second point empty. From coordinates, auto means the type with the larger bond order.
    source
        ``"array"``: ``obs[row_key]``, ``obs[col_key]``, checked against the coordinates where there are any. ``"bins"``: the same for dense square bins
        (Visium HD). ``"coordinates"``: the lattice is found. ``"cells"``: irregular observations are binned at ``pixel_um``. ``"auto"``: cells where
        ``pixel_um`` is given, else array where the library has indices, else coordinates.
    pitch_um
        Distance between the centres of neighbours in µm, for all libraries or by library name. Default: ``scalefactors["bin_size_um"]``, else measured
        pitch × mpp, else 100 µm for hexagonal arrays with indices (Visium).
    mpp
        µm per full-resolution pixel (SpatialData: per unit of ``coordinate_system``), for all libraries or by name. Default:
        ``uns["spatial"][library]["scalefactors"]["microns_per_pixel"]``, else known pitch / measured pitch.
    pixel_um
        Edge of the pixels for ``source="cells"``, in µm.
    row_key, col_key
        Columns of ``obs`` with the array indices.
    collision
        What to do with observations on one lattice point: ``"error"``, ``"nearest"`` (the others get row and column -1), or ``"sum"``.
    allow_mirror
        Accept coordinates that mirror the array indices. Turned arrays need no permission.
    table_key
        SpatialData: the table.
    coordinate_system
        SpatialData: the coordinate system in whose units the rasters are fitted; every annotated element must have it. None chooses for each library, among
        those that all of its elements have: ``"global"``, else the only one, else the one named after the library.

    Raises
    ------
    KeyError
        Where a slot is missing.
    ValueError
        Where observations collide, where coordinates and indices or two sources of the scale contradict each other, where nothing states the scale, or
        where there is no lattice; the message states the measured value.

    Notes
    -----
    ``RasterSpec.affine`` is the least-squares map from lattice points to (y, x); ``RasterSpec.residual_um`` is the largest distance to it.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> import stimg.pp as pp
    >>> row, col = np.divmod(np.arange(12), 4)
    >>> adata = AnnData(np.ones((12, 2)), obs={"array_row": row, "array_col": col, "library_id": "A"})
    >>> adata.obsm["spatial"] = 290.0 * np.stack([col, row], axis=1)
    >>> pp.rasterize(adata, pitch_um=200.0)
    >>> adata.uns["stimg"]["raster"]["A"]["shape"].tolist()
    [3, 4]
    >>> round(adata.uns["stimg"]["raster"]["A"]["mpp"], 3)
    0.69
    """
    for value, allowed, name in (
        (lattice, ("auto", *LATTICES), "lattice"),
        (source, SOURCES, "source"),
        (collision, COLLISIONS, "collision"),
    ):
        validate.one_of(value, allowed, name)
    if pixel_um is not None:
        validate.positive(pixel_um, "pixel_um", "µm")
        if source not in ("auto", "cells"):
            raise ValueError(
                f"pixel_um={pixel_um} goes with source='cells', not with source={source!r}. Pass `pitch_um=` to state a lattice's pitch."
            )
    elif source == "cells":
        raise ValueError("source='cells' needs `pixel_um=`, the edge of the pixels in µm.")
    binned = source == "cells" or pixel_um is not None
    if binned and (lattice == "hex" or pitch_um is not None):
        raise ValueError("cells are binned on a square raster of `pixel_um`: leave out `lattice='hex'` and `pitch_um=`.")
    if source == "bins" and lattice == "hex":
        raise ValueError("source='bins' means a square lattice; leave out `lattice='hex'`.")

    sdata = data if is_spatialdata(data) else None
    adata = table_of(data, table_key)
    if adata.n_obs == 0:
        raise ValueError("adata has 0 observations; wanted at least one. Check the reader or the filter that made this object.")
    validate.unique_names(adata.obs_names, "barcodes", todo="Make them unique, for example with `anndata.concat(..., index_unique='-')`.")
    column = _library_column(adata, library_key, sdata, table_key)
    groups = library_rows(column)
    systems = None
    if sdata is not None:
        systems = _elements.systems(sdata, adata, groups, table_key=table_key, wanted=coordinate_system)
    yx, unit = _coordinates(adata, sdata, table_key, groups, systems)

    for given, name in ((pitch_um, "pitch_um"), (mpp, "mpp")):
        unknown = sorted(set(given) - set(groups)) if isinstance(given, Mapping) else []
        if unknown:
            raise KeyError(f"{name} names {unknown}, which are no libraries of adata.obs[{library_key!r}] (found {sorted(groups)}).")
    placed: dict[str, Placed] = {}
    rc = np.full((adata.n_obs, 2), -1, dtype=np.int32)
    for name, rows in groups.items():
        if "/" in name:
            raise ValueError(f"library {name!r} has a '/' in its name, which h5ad and zarr files cannot hold as a key. Rename it.")
        metadata, units = Metadata.from_uns(_spatial(adata).get(name)), np.unique(unit[rows])
        if units.size != 1 or units[0] != 1.0:
            metadata = _in_units(metadata, units)
        where = f"library {name!r}: "
        common = {"names": adata.obs_names[rows], "metadata": metadata, "mpp": _of(mpp, name), "collision": collision, "where": where}
        here = yx[rows] if yx is not None else None
        if binned:
            placed[name] = place_cells(_need(here), pixel_um=float(pixel_um or 0.0), **common)
        else:
            indices = None if source == "coordinates" else _indices(adata, rows, row_key, col_key, needed=source != "auto", where=where)
            pitch = _of(pitch_um, name)
            if indices is None:
                placed[name] = place_coordinates(_need(here), lattice=lattice, pitch_um=pitch, **common)
            else:
                chosen = "square" if source == "bins" else lattice
                placed[name] = place_array(*indices, here, lattice=chosen, pitch_um=pitch, allow_mirror=allow_mirror, **common)
                if source == "bins":
                    placed[name] = replace(placed[name], spec=replace(placed[name].spec, source="bins"))
        rc[rows] = placed[name].rc

    if library_key not in adata.obs:
        adata.obs[library_key] = pd.Categorical(column)
    adata.obsm[keys.RC] = rc
    provenance.record(
        adata,
        "rasterize",
        library_key=library_key,
        lattice=lattice,
        source=source,
        collision=collision,
        coordinate_system=systems,
        mpp_source={name: p.scale.mpp_source for name, p in placed.items()},
        pitch_source={name: p.scale.pitch_source for name, p in placed.items()},
    )
    adata.uns[keys.UNS][keys.RASTER] = {name: p.spec.to_dict() for name, p in placed.items()}
    for name, p in placed.items():
        logger.info(
            "library %s: %d of %d observations on a %s raster of %d x %d, pitch %.4g µm, %.4g µm per pixel, residual %.3g µm",
            *(
                name,
                int((p.rc[:, 0] >= 0).sum()),
                len(p.rc),
                p.spec.lattice,
                *p.spec.shape,
                p.spec.pitch_um,
                p.spec.mpp,
                p.spec.residual_um,
            ),
        )


def _spatial(adata: Any) -> Mapping[str, Any]:
    found = adata.uns.get("spatial", {})
    return found if isinstance(found, Mapping) else {}


def _library_column(adata: Any, library_key: str, sdata: Any, table_key: str) -> pd.Series:
    todo = "Add a column that names the capture area of every observation, or pass `library_key=`."
    if library_key in adata.obs:
        return validate.obs(adata, library_key, todo=todo)
    if sdata is not None:
        region_key, _ = _elements.region_column(adata, table_key=table_key)
        return validate.obs(adata, region_key, todo=todo).astype(str)
    known = list(_spatial(adata))
    if len(known) == 1:
        return pd.Series(str(known[0]), index=adata.obs_names)
    raise KeyError(
        f"adata.obs[{library_key!r}] is missing (found {list(adata.obs.columns)[:12]}), and adata.uns['spatial'] has {len(known)} libraries, so the capture "
        f"area is not known. {todo}"
    )


def _coordinates(
    adata: Any, sdata: Any, table_key: str, groups: Mapping[str, np.ndarray], systems: Mapping[str, str] | None
) -> tuple[np.ndarray | None, np.ndarray]:
    if systems is not None:
        names, which = sorted(set(systems.values())), np.zeros(adata.n_obs, dtype=np.intp)
        for library, rows in groups.items():
            which[rows] = names.index(systems[library])
        yx, unit = _elements.centroids(sdata, adata, table_key=table_key, coordinate_system=names, which=which)
        validate.finite(yx, f"centroids of sdata.tables[{table_key!r}]", todo="Remove empty geometries.")
        return yx, np.round(unit, 12)
    unit = np.ones(adata.n_obs)
    if keys.SPATIAL not in adata.obsm:
        return None, unit
    todo = "Give (x, y) in full-resolution pixels for every observation, or remove the observations without a position."
    return to_yx(validate.obsm(adata, keys.SPATIAL, columns=2, todo=todo)), unit


def _in_units(metadata: Metadata, units: np.ndarray) -> Metadata:
    """Return metadata of an element's own pixels in the units of a coordinate system; nothing but the bin size where the elements differ."""
    if units.size != 1:
        return Metadata(pitch_um=metadata.pitch_um)
    return replace(
        metadata,
        mpp=metadata.mpp / units[0] if metadata.mpp else None,
        spot_diameter_px=metadata.spot_diameter_px * units[0] if metadata.spot_diameter_px else None,
        image_size=None,
    )


def _need(yx: np.ndarray | None) -> np.ndarray:
    if yx is None:
        raise KeyError(
            f"adata.obsm['{keys.SPATIAL}'] is missing, and there are no array indices to use instead. Give (x, y) in full-resolution pixels, or array "
            "indices in obs."
        )
    return yx


def _of(value: PerLibrary, name: str) -> float | None:
    return value.get(name) if isinstance(value, Mapping) else value


def _indices(adata: Any, rows: np.ndarray, row_key: str, col_key: str, *, needed: bool, where: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the array indices of a library, or None where it has none and they are not needed."""
    there = [key for key in (row_key, col_key) if key in adata.obs]
    if len(there) < 2 and not needed and not there:
        return None
    todo = "Add the array indices, pass `row_key=` and `col_key=`, or pass `source='coordinates'`."
    columns = []
    for key in (row_key, col_key):
        given = validate.slot(adata.obs, "obs", key, todo=todo).iloc[rows]
        plain = given if pd.api.types.is_numeric_dtype(given.dtype) else given.astype(object)
        values = pd.to_numeric(plain, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        words = np.isnan(values) & ~given.isna().to_numpy()
        if words.any():
            raise ValueError(
                f"{where}adata.obs[{key!r}] has {int(words.sum())} values that are no numbers, the first is {given[words].iloc[0]!r}. {todo}"
            )
        columns.append(values)
    missing = ~np.isfinite(columns).all(axis=0)
    if missing.all() and not needed:
        return None
    if missing.any():
        raise ValueError(
            f"{where}{int(missing.sum())} of {len(rows)} observations have no array index, the first is {adata.obs_names[rows][missing][0]!r}. {todo}"
        )
    for key, values in zip((row_key, col_key), columns, strict=True):
        off = np.abs(values - np.rint(values))
        if off.max() > 1e-6:
            raise ValueError(
                f"{where}adata.obs[{key!r}] has {int((off > 1e-6).sum())} values that are no whole numbers (for example "
                f"{values[int(np.argmax(off))]:g}). Round adjusted array coordinates to indices first."
            )
    return np.rint(columns[0]).astype(np.int64), np.rint(columns[1]).astype(np.int64)
