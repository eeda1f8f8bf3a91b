"""``pp.rasterize_points``: transcripts to counts per (bin, gene), one partition at a time."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stimg._core import keys, panel, provenance, validate
from stimg.data.tables import is_spatialdata
from stimg.image.spec import RasterSpec
from stimg.image.units import Metadata, resolve_scale, to_yx
from stimg.pp import _elements

logger = logging.getLogger(__name__)
MERGE_FROM = 4_000_000
"""Pending (bin, gene) counts from which they are merged with those before them."""
HALF = 1 << 23
"""Bins on either side of the origin that a packed key can hold."""


def rasterize_points(
    data: Any,
    *,
    pixel_um: float,
    mpp: float | None = None,
    points_key: str | None = None,
    feature_key: str | None = None,
    min_qv: float | None = None,
    coordinate_system: str | None = None,
    library_id: str | None = None,
    new_table_key: str | None = None,
    new_shapes_key: str | None = None,
) -> AnnData | None:
    """Write a table of counts per (occupied bin, gene) and the squares it annotates into a SpatialData, or return it for a frame of points.

    Parameters
    ----------
    data
        SpatialData with a points element, or a pandas or dask frame with columns ``x``, ``y`` and ``feature_key``. A dask frame is read one partition at a
        time and never whole.
    pixel_um
        Edge of the bins in µm. Bin edges lie at multiples of it from the coordinate system's origin.
    mpp
        µm per unit of ``coordinate_system``; 1 where it is in µm. Must be passed: nothing in the points states it.
    points_key
        The points element; may be left out where there is one.
    feature_key
        Column with the gene. Default: the points' own ``feature_key``, else ``"gene"``.
    min_qv
        Leave out points whose column ``qv`` is below this (Xenium: 20 is customary). Default: keep all.
    coordinate_system
        Where the bins are upright squares; the points' transformation to it, any affine, is applied first. None: ``"global"``, else the points' only
        one, else the one named after ``library_id``.
    library_id
        Name of the library. Default: ``points_key``, or ``"points"``.
    new_table_key, new_shapes_key
        Names of the new elements. Default: ``<points_key>_bins`` and ``<points_key>_squares``.

    Returns
    -------
    None for a SpatialData; for a frame, an AnnData: ``X`` int32 CSR (occupied bins × genes, both sorted), ``obs["array_row"]``, ``obs["array_col"]``
    (index from the coordinate system's origin), ``obs["library_id"]``, ``obsm["spatial"]`` (x, y of the bin's centre), ``var["control"]`` (True for control probes,
    which are kept), and the slots of :func:`stimg.pp.rasterize`.

    Raises
    ------
    KeyError
        Where an element, a column or a transformation is missing.
    ValueError
        Where there are no points, positions or genes are missing, the scale is not stated, or a new name is taken.

    Notes
    -----
    The table annotates squares rather than nothing, so that queries, joins and plots of SpatialData work; the squares have a transformation to every
    coordinate system of the points. The z coordinate is not used.
    """
    validate.positive(pixel_um, "pixel_um", "µm")
    affine = np.eye(3)
    sdata = data if is_spatialdata(data) else None
    points = data
    if sdata is not None:
        points_key = _points_key(sdata, points_key)
        points = sdata.points[points_key]
        what = f"sdata.points[{points_key!r}]"
        coordinate_system = coordinate_system or _elements.system_of({what: points}, library_id or points_key)
        affine = _elements.affine_xy(points, coordinate_system, what=what)
        if feature_key is None:
            feature_key = points.attrs.get("spatialdata_attrs", {}).get("feature_key")
    feature_key = feature_key or "gene"
    name = library_id or points_key or "points"
    scale = resolve_scale(None, Metadata(), mpp=mpp, pitch_um=pixel_um, where=f"library {name!r}: ")
    step = pixel_um / scale.mpp
    needed = ["x", "y", feature_key] + (["qv"] if min_qv is not None else [])
    missing = [column for column in needed if column not in points.columns]
    if missing:
        raise KeyError(f"the points have no column {missing} (found {list(points.columns)}). Pass `feature_key=`.")
    known = _categories(points[feature_key])

    table_key, shapes_key = new_table_key or f"{name}_bins", new_shapes_key or f"{name}_squares"
    if sdata is not None:
        for taken in (table_key, shapes_key):
            if any(taken == other for _, other, _ in sdata.gen_elements()):
                raise ValueError(
                    f"sdata has an element named {taken!r} already. Remove it, or pass `new_table_key=` and `new_shapes_key=`."
                )

    x, occupied, names = _count(_partitions(points, needed), affine, step, feature_key, min_qv, known)
    adata = _table(x, occupied, names, step=step, pixel_um=float(pixel_um), mpp=scale.mpp, library=name)
    provenance.record(
        adata,
        "rasterize_points",
        pixel_um=float(pixel_um),
        mpp=scale.mpp,
        feature_key=feature_key,
        min_qv=min_qv,
        coordinate_system=coordinate_system,
    )
    logger.info(
        "library %s: %d points in %d occupied bins of %g µm, %d genes",
        name,
        int(x.sum(dtype=np.int64)),
        adata.n_obs,
        pixel_um,
        adata.n_vars,
    )
    if sdata is None:
        return adata
    squares = _squares(points, occupied, step, str(coordinate_system), affine)
    from spatialdata.models import TableModel

    adata.obs["region"] = pd.Categorical([shapes_key] * adata.n_obs)
    adata.obs["instance_id"] = np.arange(adata.n_obs)
    table = TableModel.parse(adata, region=shapes_key, region_key="region", instance_key="instance_id")
    sdata.shapes[shapes_key] = squares
    sdata.tables[table_key] = table
    return None


def _points_key(sdata: Any, points_key: str | None) -> str:
    if points_key is None:
        if len(sdata.points) != 1:
            raise KeyError(f"sdata has {len(sdata.points)} points elements ({sorted(sdata.points)}). Pass `points_key=`.")
        return str(next(iter(sdata.points)))
    if points_key not in sdata.points:
        raise KeyError(f"sdata.points[{points_key!r}] is missing (found {sorted(sdata.points)}). Pass `points_key=`.")
    return points_key


def _categories(column: Any) -> list[str]:
    """Return the categories of a column where they are known before it is read, so that genes without a point are kept."""
    if not isinstance(column.dtype, pd.CategoricalDtype) or not getattr(column.cat, "known", True):
        return []
    return [str(value) for value in column.dtype.categories]


def _partitions(points: Any, columns: list[str]) -> Iterator[pd.DataFrame]:
    if isinstance(points, pd.DataFrame):
        yield points[columns]
        return
    chosen = points[columns]
    for index in range(chosen.npartitions):
        yield chosen.partitions[index].compute(scheduler="synchronous")


def _count(
    parts: Iterable[pd.DataFrame],
    affine: np.ndarray,
    step: float,
    feature_key: str,
    min_qv: float | None,
    known: list[str],
) -> tuple[sp.csr_matrix, np.ndarray, list[str]]:
    """Return counts (bins x genes, int32), sorted (row, column) of the occupied bins, int64 (n, 2), and sorted gene names."""
    ids: dict[str, int] = {gene: i for i, gene in enumerate(known)}
    done: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64))]
    pending = 0
    for number, part in enumerate(parts):
        if min_qv is not None:
            part = part[part["qv"] >= min_qv]
        if not len(part):
            continue
        code, unique = pd.factorize(part[feature_key])
        if (code < 0).any():
            raise ValueError(f"partition {number} has {int((code < 0).sum())} points without a gene in {feature_key!r}. Remove them.")
        yx = to_yx(_elements.apply_xy(affine, part[["x", "y"]].to_numpy(dtype=np.float64)))
        validate.finite(yx, f"the points' positions in partition {number}", todo="Remove points without a position.")
        gene = np.array([ids.setdefault(str(value), len(ids)) for value in unique], dtype=np.int64)[code]
        done.append(np.unique(_pack(np.floor(yx / step), gene), return_counts=True))
        pending += len(done[-1][0])
        if pending > max(MERGE_FROM, len(done[0][0])):
            done, pending = [_merge(done)], 0
    key, count = _merge(done)
    if not len(key):
        raise ValueError("there are no points to count. Check the element, and `min_qv`.")
    if count.max() > np.iinfo(np.int32).max:
        raise ValueError(f"one bin has {int(count.max())} points of one gene, more than int32 holds. Pass a smaller `pixel_um`.")
    names = np.asarray(list(ids), dtype=str)
    order = np.argsort(names, kind="stable")
    rank = np.empty(len(names), dtype=np.int32)
    rank[order] = np.arange(len(names), dtype=np.int32)
    indices = rank[(key & np.uint64(0xFFFF)).astype(np.int64)]
    key >>= np.uint64(16)
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    x = sp.csr_matrix((count.astype(np.int32), indices, np.append(first, len(key))), shape=(len(first), len(names)))
    x.sort_indices()
    return x, _unpack(key[first]), names[order].tolist()


def _pack(bins: np.ndarray, gene: np.ndarray) -> np.ndarray:
    """Return one uint64 per point, ordered as (row, column, gene): 24 bits for row and column, 16 for the gene."""
    if np.abs(bins).max() >= HALF:
        raise ValueError(
            f"the points reach bin {np.abs(bins).max():.0f} from the origin; wanted less than {HALF}. Check their unit, or pass a larger `pixel_um`."
        )
    if gene.max() >= 1 << 16:
        raise ValueError(f"the points have more than {1 << 16} genes. Check `feature_key`.")
    row, col = (bins.astype(np.int64) + HALF).astype(np.uint64).T
    return (row << np.uint64(40)) | (col << np.uint64(16)) | gene.astype(np.uint64)


def _unpack(key: np.ndarray) -> np.ndarray:
    """Return (row, column), int64 (n, 2), of the keys of :func:`_pack` without their gene."""
    return np.stack([key >> np.uint64(24), key & np.uint64(0xFFFFFF)], axis=1).astype(np.int64) - HALF


def _merge(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted keys with the counts of equal ones added up."""
    key, count = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    if not len(key):
        return key, count
    order = np.argsort(key, kind="stable")
    key, count = key[order], count[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return key[first], np.add.reduceat(count, first)


def _table(x: sp.csr_matrix, occupied: np.ndarray, names: list[str], *, step: float, pixel_um: float, mpp: float, library: str) -> AnnData:
    """Return the table of occupied bins with the slots of ``pp.rasterize``."""
    first = occupied.min(axis=0)
    size = occupied.max(axis=0) - first + 1
    spec = RasterSpec(
        "square",
        (int(size[0]), int(size[1])),
        pixel_um,
        origin=(int(first[0]), int(first[1])),
        affine=((step, 0.0, float(first[0] + 0.5) * step), (0.0, step, float(first[1] + 0.5) * step)),
        mpp=mpp,
        source="points",
    )
    obs = pd.DataFrame(
        {"array_row": occupied[:, 0], "array_col": occupied[:, 1], keys.LIBRARY: pd.Categorical([library] * len(occupied))},
        index=pd.Index([f"{row}x{col}" for row, col in occupied.tolist()]),
    )
    adata = AnnData(X=x, obs=obs, var=pd.DataFrame(index=pd.Index(names)))
    adata.var[panel.CONTROL_COLUMN] = panel.is_control(adata.var)
    adata.obsm[keys.SPATIAL] = ((occupied + 0.5) * step)[:, ::-1].copy()
    adata.obsm[keys.RC] = (occupied - first).astype(np.int32)
    adata.uns["spatial"] = {
        library: {
            "images": {},
            "scalefactors": {"microns_per_pixel": mpp, "bin_size_um": pixel_um, "spot_diameter_fullres": step},
            "metadata": {},
        }
    }
    adata.uns[keys.UNS] = {keys.RASTER: {library: spec.to_dict()}}
    return adata


def _squares(points: Any, occupied: np.ndarray, step: float, coordinate_system: str, affine: np.ndarray) -> Any:
    """Return the occupied bins as a shapes element, with the points' transformations."""
    import geopandas
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Affine, Identity, get_transformation

    low = occupied * step
    frame = geopandas.GeoDataFrame(geometry=shapely.box(low[:, 1], low[:, 0], low[:, 1] + step, low[:, 0] + step))
    back = np.linalg.inv(affine)
    transformations: dict[str, Any] = {coordinate_system: Identity()}
    for name in get_transformation(points, get_all=True):
        if name != coordinate_system:
            there = _elements.affine_xy(points, name, what="points")
            transformations[name] = Affine(there @ back, input_axes=("x", "y"), output_axes=("x", "y"))
    return ShapesModel.parse(frame, transformations=transformations)
