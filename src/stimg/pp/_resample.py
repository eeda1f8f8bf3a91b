"""``pp.resample``: a raster on any lattice, brought to upright square pixels of a stated size."""

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stimg._core import keys, provenance, validate
from stimg.data.slots import RasterLibrary, raster_libraries
from stimg.data.tables import table_of
from stimg.image.spec import RasterSpec

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
METHODS = ("nearest", "area")
SLIVER = 1e-9
"""Share of an observation below which a pixel gets none of it (rounding at shared edges)."""

EDGE = 1e-9
"""Centres this little below a pixel's edge count as on it, so that rounding does not scatter those of one line."""


class Shares(NamedTuple):
    """Shares of observations: ``data`` float64 (m,) sums to 1 over the entries of each observation in ``indices``, int64 (m,)."""

    data: np.ndarray
    indices: np.ndarray


def resample(
    data: "AnnData | SpatialData",
    *,
    pixel_um: float,
    method: str = "nearest",
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    table_key: str = "table",
) -> AnnData:
    """Return a new AnnData with one observation per occupied square pixel of ``pixel_um``; counts are conserved.

    Parameters
    ----------
    data
        Rasterised AnnData, or SpatialData with such a table; it is left as it is.
    pixel_um
        Edge of the pixels in µm. Their edges are parallel to x and y, at multiples of ``pixel_um`` from the origin of ``obsm["spatial"]``.
    method
        ``"nearest"``: each observation goes whole to the pixel that holds the centre of its lattice point, so that counts stay whole numbers.
        ``"area"``: each is spread over the pixels in proportion to their share of its lattice cell (hexagon or square), so that a pixel smaller than the
        pitch is filled; the sum of every gene is conserved to rounding, the values are float64 and no longer counts.
    layer
        Layer with the values. Default: ``X``.
    library_key
        Column of ``obs`` that names the library.
    table_key
        Table of a SpatialData.

    Returns
    -------
    AnnData with CSR ``X`` (pixels × genes), ``obs["array_row"]``, ``obs["array_col"]``, ``obs["n_merged"]`` (observations that contributed), the library, every
    column that is constant within each library, ``obsm["spatial"]`` (centres), ``uns["spatial"]``, and the slots of :func:`stimg.pp.rasterize`.

    Raises
    ------
    KeyError
        Where the table is missing or not rasterised.
    ValueError
        Where ``pixel_um`` or ``method`` is not valid.

    Notes
    -----
    Observations that are not on the raster (``collision="nearest"``) are left out.
    """
    adata = table_of(data, table_key)
    validate.positive(pixel_um, "pixel_um", "µm")
    validate.one_of(method, METHODS, "method")
    values = sp.csr_matrix(validate.finite_matrix(adata, layer))
    libraries = raster_libraries(adata, library_key)
    blocks, frames, centres, indices, rasters, spatial = [], [], [], [], {}, {}
    for name, library in libraries.items():
        if not len(library.rows):
            raise ValueError(f"library {name!r} has no observation on its raster. Remove it, or run `stimg.pp.rasterize` again.")
        step = float(pixel_um) / library.spec.mpp
        pixel, share = _shares(library, step, method)
        occupied, inverse = np.unique(pixel, axis=0, return_inverse=True)
        shape = (len(occupied), len(library.rows))
        weights = sp.csr_matrix((share.data, (inverse.ravel(), share.indices)), shape=shape)
        part = values[library.rows]
        blocks.append((weights.astype(part.dtype) if method == "nearest" else weights) @ part)
        first = occupied.min(axis=0)
        size = occupied.max(axis=0) - first + 1
        rasters[name] = RasterSpec(
            "square",
            (int(size[0]), int(size[1])),
            float(pixel_um),
            origin=(int(first[0]), int(first[1])),
            affine=((step, 0.0, float(first[0] + 0.5) * step), (0.0, step, float(first[1] + 0.5) * step)),
            mpp=library.spec.mpp,
            source="bins",
        ).to_dict()
        frame = pd.DataFrame({"array_row": occupied[:, 0], "array_col": occupied[:, 1], "n_merged": np.diff(weights.indptr)})
        frame.index = pd.Index([f"{name}_{row}x{col}" for row, col in occupied.tolist()])
        frame[library_key] = name
        frames.append(frame)
        centres.append(((occupied + 0.5) * step)[:, ::-1])
        indices.append((occupied - first).astype(np.int32))
        entry = dict(adata.uns.get("spatial", {}).get(name, {}))
        factors = {"microns_per_pixel": library.spec.mpp, "bin_size_um": float(pixel_um), "spot_diameter_fullres": step}
        spatial[name] = {"images": {}, "metadata": {}, **entry, "scalefactors": {**entry.get("scalefactors", {}), **factors}}

    obs = pd.concat(frames)
    obs[library_key] = pd.Categorical(obs[library_key])
    for column in adata.obs.columns:
        if column not in obs:
            constant = _constant(adata.obs[column], libraries)
            if constant is not None:
                obs[column] = obs[library_key].astype(str).map(constant).astype(adata.obs[column].dtype)
    out = AnnData(X=sp.csr_matrix(sp.vstack(blocks)), obs=obs, var=adata.var.copy())
    out.obsm[keys.SPATIAL] = np.concatenate(centres)
    out.obsm[keys.RC] = np.concatenate(indices)
    out.uns["spatial"] = spatial
    provenance.record(
        out, "resample", pixel_um=float(pixel_um), method=method, layer=layer, unit="counts" if method == "nearest" else "area-weighted sum"
    )
    out.uns[keys.UNS][keys.RASTER] = rasters
    logger.info(
        "%d observations resampled (%s) to %d pixels of %g µm",
        sum(len(lib.rows) for lib in libraries.values()),
        method,
        out.n_obs,
        pixel_um,
    )
    return out


def _constant(column: pd.Series, libraries: dict[str, RasterLibrary]) -> dict[str, Any] | None:
    """Return the one value of ``column`` in each library, or None where a library has several."""
    values = {}
    for name, library in libraries.items():
        unique = column.iloc[library.rows].unique()
        if len(unique) != 1:
            return None
        values[name] = unique[0]
    return values


def _shares(library: RasterLibrary, step: float, method: str) -> tuple[np.ndarray, Shares]:
    """Return the (row, column) of the pixel of every share, int64 (m, 2), and the shares: ``data`` sums to 1 over each ``indices``."""
    centre = library.spec.centres_px(library.rc)
    n = len(centre)
    if method == "nearest":
        return np.floor(centre / step + EDGE).astype(np.int64), Shares(np.ones(n), np.arange(n))
    import shapely

    linear = np.asarray(library.spec.affine)[:, :2]
    cell = _unit_cell(library.spec.lattice) @ linear.T
    low, high = centre + cell.min(axis=0), centre + cell.max(axis=0)
    first, last = np.floor(low / step).astype(np.int64), np.floor(high / step).astype(np.int64)
    count = last - first + 1
    times = count.prod(axis=1)
    who = np.repeat(np.arange(n), times)
    within = np.arange(len(who)) - np.repeat(np.cumsum(times) - times, times)
    pixel = first[who] + np.stack([within // count[who, 1], within % count[who, 1]], axis=1)
    cells = shapely.polygons((centre[:, None, :] + cell)[:, :, ::-1])
    corner = pixel * step
    boxes = shapely.box(corner[:, 1], corner[:, 0], corner[:, 1] + step, corner[:, 0] + step)
    area = shapely.area(shapely.intersection(cells[who], boxes)) / abs(_area(cell))
    keep = area > SLIVER
    who, pixel, area = who[keep], pixel[keep], area[keep]
    area = area / np.bincount(who, weights=area, minlength=n)[who]
    return pixel, Shares(area, who)


def _unit_cell(lattice: str) -> np.ndarray:
    """Return the corners (y, x) of the lattice cell around the origin, in units of the pitch: a unit square, or a hexagon with a corner up."""
    if lattice == "square":
        return np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0.5, -0.5]])
    angle = np.pi / 6 + np.arange(6) * np.pi / 3
    return np.stack([np.sin(angle), np.cos(angle)], axis=1) / np.sqrt(3.0)


def _area(corners: np.ndarray) -> float:
    """Return the signed area of a polygon (shoelace formula)."""
    y, x = corners.T
    return float(0.5 * (x * np.roll(y, -1) - y * np.roll(x, -1)).sum())
