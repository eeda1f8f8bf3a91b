"""Values on a lattice finer than the measured one."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from stimg._core import keys, provenance, validate
from stimg._core.rng import RngLike
from stimg.data.slots import RasterLibrary, raster_libraries
from stimg.data.tables import is_spatialdata, table_of
from stimg.image.interpolate import BEST
from stimg.tl import _impute
from stimg.tl._impute_pixels import applied, to_pixels
from stimg.tl._impute_places import Chosen, Featured, Wanted
from stimg.tl._impute_table import ARRAY, STATUSES, add_to_spatialdata
from stimg.tl._upsample_places import Finer, Lattice, finer_places, lattices

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


def upsample(
    data: "AnnData | SpatialData",
    *,
    factor: int | None = None,
    pixel_um: float | None = None,
    grid: Any = None,
    method: Any = BEST,
    genes: str | Sequence[str] | None = None,
    reference: "AnnData | None" = None,
    guide: str | None = None,
    max_gap_um: float | None = None,
    uncertainty: bool = True,
    n_folds: int = 5,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    key_added: str | None = None,
    table_key: str = "table",
    copy: bool = False,
    rng: RngLike = 0,
) -> "AnnData | None":
    """Return a table on a raster finer than the measured one, inside the tissue, where values are predicted; in a SpatialData it is added.

    One of ``factor``, ``pixel_um`` and ``grid`` says how fine. ``obs["stimg_status"]`` says of every value whether it is measured, imputed (an empty point
    of the measured lattice) or invented (between its points: nothing was measured at that scale).

    Parameters
    ----------
    data
        Raw counts of rasterised observations (:func:`stimg.pp.rasterize`). It is left as it is but for the table that a SpatialData gets.
    factor
        How many times finer: 2, 4 or any other whole number. The lattice stays of its kind, square or hexagonal, with all measured points: those in row r are in row
        ``factor * r``.
    pixel_um
        Edge of square pixels in µm, at most the pitch. Where it divides the pitch of a square lattice, that is ``factor = pitch / pixel_um``; otherwise, and always on
        a hexagonal lattice, pixels are upright, their edges at multiples of ``pixel_um`` as for :func:`stimg.pp.resample`, and the result has a measured
        observation only where it stands on the centre of a pixel.
    grid
        Any raster: a :class:`stimg.image.RasterSpec` whose map goes to full-resolution pixels of ``data``, one by library, or a rasterised AnnData with the same
        libraries, such as an earlier result, whose observations are the places, with their names; its values are not read.
    guide
        Slot of ``obsm`` of data and of ``grid``, an AnnData, with features of every place, see :func:`stimg.tl.impute`.
    method, genes, reference, max_gap_um, uncertainty, n_folds, layer, library_key, rng
        As for :func:`stimg.tl.impute`. A model predicts the finer lattices that its ``places(adata, factor)`` lists (:class:`stimg.model.S2SImputer`: 2 and 4);
        of the points in the tissue that it does not list those between measured points are left out.
    key_added
        Layer; ``"stimg_<method>"`` where None. In a SpatialData it names the table, ``"<table_key>_upsampled"`` where None, and the circles.
    table_key
        Table of a SpatialData.
    copy
        Whether the table is returned for a SpatialData too, instead of added.

    Returns
    -------
    AnnData as :func:`stimg.tl.impute` returns, on the finer raster: ``obsm["stimg_rc"]``, ``uns["stimg"]["raster"]`` and, where ``data`` has them,
    ``obs["array_row"]`` and ``obs["array_col"]`` are those of the finer lattice; diameters and bin sizes in ``uns["spatial"]`` fit it. None for a
    SpatialData, whose ``tables[key_added]`` it is then, with circles ``<library>_<key_added>``.

    Raises
    ------
    KeyError
        For missing slots, genes or libraries.
    ValueError
        As for :func:`stimg.tl.impute`, for none or several of ``factor``, ``pixel_um`` and ``grid``, for a pixel larger than the pitch, a grid in another scale, and
        a lattice with more points than fit.
    TypeError
        For a grid or a method that is none.

    Notes
    -----
    A place is in the tissue where the points of the measured lattice around it are: the corners of the square or triangle that it lies in, or the two ends of an edge.
    Those are measured, or in a gap of at most ``max_gap_um``. Nothing is predicted outside them, so that the rim is half a pitch narrower than the
    outline of the measured spots. Predictions at points of the measured lattice are those of :func:`stimg.tl.impute`.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(12, 12), n_genes=20, rng=0)
    >>> stimg.pp.rasterize(adata)
    >>> finer = stimg.tl.upsample(adata, factor=2, genes=adata.var_names[:3])
    >>> finer.obs["stimg_status"].value_counts().to_dict()
    {'invented': 385, 'measured': 144, 'imputed': 0}
    >>> round(finer.uns["stimg"]["raster"]["D1S1"]["pitch_um"], 3)
    50.0
    """
    adata = table_of(data, table_key)
    libraries = raster_libraries(adata, library_key)
    if guide is not None and not hasattr(grid, "obsm"):
        raise ValueError(
            f"guide={guide!r} needs the features of the places too. Pass as `grid=` an AnnData with obsm[{guide!r}], such as the table that `tl.upsample` gave "
            "before, after `pp.plan_tiles` and `tl.embed_image`."
        )
    asked = lattices(libraries, factor=factor, pixel_um=pixel_um, grid=grid, library_key=library_key)
    chosen = None if genes is None else validate.names(genes)
    model, n_genes = _model_in(method), adata.n_vars if chosen is None else len(chosen)
    finer: dict[str, Finer] = {}

    def find() -> dict[str, Wanted]:
        for name, library in libraries.items():
            covered = None if model is None else _covered(model, adata, library, asked[name])
            finer[name] = finer_places(library, asked[name], gap_um=max_gap_um, n_genes=n_genes, most=_impute.MOST, covered=covered)
        if not sum(len(each.rc) for each in finer.values()):
            raise ValueError(
                "There is no place to predict: no point of the finer lattice lies between measured ones. Pass a larger `max_gap_um=`, or a finer lattice."
            )
        return {name: each.wanted for name, each in finer.items()}

    factors = {name: each.factor for name, each in asked.items()}
    table = _impute.impute(
        adata,
        method=method,
        targets=Featured(find, factors, grid) if hasattr(grid, "obsm") else Chosen(find, factors),
        genes=chosen,
        reference=reference,
        guide=guide,
        max_gap_um=max_gap_um,
        uncertainty=uncertainty,
        n_folds=n_folds,
        layer=layer,
        library_key=library_key,
        key_added=None if is_spatialdata(data) else key_added,
        rng=rng,
    )
    assert table is not None
    table = _on_finer_rasters(table, adata, libraries, finer, asked)
    key = next(name for name in table.layers if name in table.uns[keys.UNS])
    facts = {
        **table.uns[keys.UNS][key],
        "verb": "stimg.tl.upsample",
        "factor": factor,
        "pixel_um": pixel_um,
        "pitch_um": {name: each.spec.pitch_um for name, each in finer.items()},
    }
    facts.pop("version")
    provenance.record(table, key, **facts)
    logger.info("upsample: %s", {name: f"{each.spec.pitch_um:g} µm, {len(each.rc)} places" for name, each in finer.items()})
    if not is_spatialdata(data) or copy:
        return table
    rasters = {name: replace(library, spec=finer[name].spec) for name, library in libraries.items()}
    add_to_spatialdata(data, key_added or f"{table_key}_upsampled", table, rasters, library_key=library_key)
    return None


def _model_in(method: Any) -> Any:
    """Return the model that predicts the places, which may be the first of a pair; None where it is a function or a name."""
    first = method[0] if isinstance(method, tuple) and method else method
    return first if hasattr(first, "impute") else None


def _covered(model: Any, adata: "AnnData", library: RasterLibrary, asked: Lattice) -> KDTree:
    """Return the places of the finer lattice that a model predicts, (y, x) in full-resolution pixels."""
    name = type(model).__name__
    if not hasattr(model, "places"):
        raise ValueError(f"{name} has no `places`, so it predicts points of the measured lattice alone. Take a method by name.")
    if asked.factor is None:
        raise ValueError(
            f"{name} predicts lattices a whole number of times finer; {asked.pixel_um:g} µm is another one for library {library.name!r}. Pass `factor=`, "
            "or take a method by name."
        )
    places = model.places(adata[library.rows].copy(), asked.factor)
    return KDTree(places[["y", "x"]].to_numpy(dtype=np.float64))


def _on_finer_rasters(
    table: "AnnData", adata: "AnnData", libraries: Mapping[str, RasterLibrary], finer: Mapping[str, Finer], asked: Mapping[str, Lattice]
) -> "AnnData":
    """Return the table on the finer rasters, without the measured observations that are on none of their points."""
    start = table.n_obs - sum(len(each.rc) for each in finer.values())
    rc, index = np.full((table.n_obs, 2), -1, dtype=np.int32), np.zeros((table.n_obs, 2))
    xy = np.array(table.obsm[keys.SPATIAL]) if keys.SPATIAL in table.obsm else None
    rasters, space = {}, table.uns.setdefault("spatial", {})
    indexed = set(ARRAY) <= set(table.obs.columns)
    for name, each in finer.items():
        rows, new = libraries[name].rows, np.arange(start, start + len(each.rc))
        rc[rows], rc[new] = each.measured, each.rc
        if xy is not None:
            xy[new] = applied(to_pixels(adata, libraries[name]), each.spec.centres_px(each.rc))[:, ::-1]
        if indexed:
            both = np.concatenate([rows, new])
            index[both] = _array_indices(table.obs, libraries[name], each, rc[both], asked[name].factor)
        rasters[name] = each.spec.to_dict()
        space[name] = _scaled(space.get(name, {}), libraries[name], each, asked[name])
        start += len(new)
    table.obsm[keys.RC] = rc
    if xy is not None:
        table.obsm[keys.SPATIAL] = xy
    table.uns[keys.UNS][keys.RASTER] = rasters
    if indexed:
        table.obs[list(ARRAY)] = index.astype(np.int64)
    if (rc[:, 0] >= 0).all():
        return table
    kept = table[rc[:, 0] >= 0].copy()
    kept.obs[keys.STATUS] = kept.obs[keys.STATUS].cat.set_categories(list(STATUSES))  # a subset loses those without observations
    return kept


def _array_indices(obs: pd.DataFrame, library: RasterLibrary, finer: Finer, rc: np.ndarray, factor: int | None) -> np.ndarray:
    """Return array indices on the finer lattice: ``factor`` times the measured ones where these are those of the lattice, else counted from its origin."""
    if factor is not None:
        index = obs[list(ARRAY)].iloc[library.rows].to_numpy(dtype=np.float64)
        design = np.column_stack([library.spec.lattice_points(library.rc), np.ones(len(library.rc))])
        slope, _, rank, _ = np.linalg.lstsq(design, index, rcond=None)
        if rank == 3 and np.abs(design @ slope - index).max() < 0.01:
            points = finer.spec.lattice_points(rc) / factor
            return np.rint(factor * np.column_stack([points, np.ones(len(points))]) @ slope)
    out, parity = rc.astype(np.float64), finer.spec.hex_parity
    if finer.spec.lattice == "hex":  # columns count half steps, as Space Ranger's
        out[:, 1] = 2 * out[:, 1] + (np.mod(rc[:, 0], 2) == parity) - (parity == 0)
    return out + finer.spec.origin


def _scaled(entry: Mapping[str, Any], library: RasterLibrary, finer: Finer, asked: Lattice) -> dict[str, Any]:
    """Return ``uns["spatial"][library]`` with the scale stated, and the sizes of spots and bins those of the finer lattice."""
    factors = dict(entry.get("scalefactors", {}))
    factors["microns_per_pixel"], factors["bin_size_um"] = library.spec.mpp, finer.spec.pitch_um
    if asked.factor is None:
        factors["spot_diameter_fullres"] = finer.spec.pitch_um / finer.spec.mpp
    elif "spot_diameter_fullres" in factors:
        factors["spot_diameter_fullres"] = np.asarray(factors["spot_diameter_fullres"], dtype=np.float64).item() / asked.factor
    return {"images": {}, "metadata": {}, **entry, "scalefactors": factors}
