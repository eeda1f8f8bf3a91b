"""``pp.sparsify``: a sparse slide that physically does not contain the hidden observations, and apart from it the truth."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from stimg._core import keys, provenance, validate
from stimg._core.rng import RngLike, as_generator
from stimg.data.slots import raster_libraries
from stimg.data.tables import is_spatialdata, table_of
from stimg.image.masks import HOLE, MASKS, hide

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
OBS = (keys.DONOR, "section", "array_row", "array_col", "in_tissue", "label", "domain", "cell_type")
VAR = ("gene_ids", "feature_types", "control", "category", "programme", "second_programme")
"""Columns that readers write: facts of the slide, which no computation on hidden counts has touched."""
OPTIONS = {
    "random": ("fraction",),
    "checkerboard": ("phase",),
    "quarter": ("phase",),
    "holes": ("n_holes", "radius_um"),
    "half": ("side",),
    "rows": ("every", "phase"),
}


class Sparsified(NamedTuple):
    """``observed``, the sparse slide, and ``truth``, the observations that it lacks; neither refers to the other."""

    observed: Any
    truth: Any


def sparsify(
    data: "AnnData | SpatialData",
    *,
    mask: str = "random",
    fraction: float | None = None,
    phase: int | None = None,
    n_holes: int | None = None,
    radius_um: float | None = None,
    side: str | None = None,
    every: int | None = None,
    keep: str | Sequence[str] = (),
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    table_key: str = "table",
    rng: RngLike = 0,
) -> Sparsified:
    """Return the slide without its hidden observations, and the hidden ones as another object; ``data`` stays as it is.

    Parameters
    ----------
    data
        Raw counts of rasterised observations: an AnnData, or a SpatialData with such a table.
    mask
        ``"random"``: ``fraction`` (one half) of the lattice points is hidden. ``"checkerboard"``: every second point, ``phase`` 0 or 1.
        ``"quarter"``: all but every second point of every second lattice line, ``phase`` 0 to 3. ``"holes"``: ``n_holes`` (1) discs of ``radius_um``
        (4 pitches). ``"half"``: what lies beyond the median on one ``side`` (``"right"``). ``"rows"``: all rows but each ``every``-th (2), from ``phase``.
    fraction, phase, n_holes, radius_um, side, every
        Options of the mask; one that is not the mask's is an error.
    keep
        Names of further columns of ``obs`` and ``var`` and slots of ``obsm`` that come along. Name only what was computed from each observation
        alone, such as an embedding of its image: a cluster or a principal component has read the hidden counts.
    layer
        Layer with raw counts; they become ``X``.
    library_key
        Column of ``obs`` with the library; each one is masked on its own.
    table_key
        Table of a SpatialData.
    rng
        For ``"random"`` and ``"holes"``. ``"holes"`` with None: the fullest discs, nothing is drawn.

    Returns
    -------
    ``(observed, truth)``, of the type of ``data``. Of an AnnData come along: counts, what readers write (library, donor, array indices, labels, identifiers of
    genes), coordinates, raster, images, and ``keep``. Of a SpatialData also images, labels and shapes (of those that the table annotates, the
    observed ones; geometry alone), while points and other tables, which may hold counts of hidden places, are left out.

    Raises
    ------
    KeyError
        Where the raster or something to keep is missing.
    ValueError
        For counts that are none, an unknown mask, an option that is not the mask's or is out of range, or a mask that hides all or nothing of a library.

    Notes
    -----
    Observations that are not on the raster are in neither object. The raster stays that of the whole section.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, rng=0)
    >>> stimg.pp.rasterize(adata)
    >>> sparse, truth = stimg.pp.sparsify(adata, mask="quarter", phase=3)
    >>> sparse.n_obs, truth.n_obs
    (16, 48)
    """
    adata = table_of(data, table_key)
    validate.not_empty(adata)
    counts = validate.counts(adata, layer)
    given = {
        name: value
        for name, value in (
            ("fraction", fraction),
            ("phase", phase),
            ("n_holes", n_holes),
            ("radius_um", radius_um),
            ("side", side),
            ("every", every),
        )
        if value is not None
    }
    MASKS[mask]  # an unknown name is an error that lists the known ones
    foreign = sorted(set(given) - set(OPTIONS[mask]))
    if foreign:
        raise ValueError(f"mask={mask!r} has no option {foreign}; it has {list(OPTIONS[mask])}. Leave them out, or take another mask.")
    hidden = np.full(adata.n_obs, -1)
    generator = None if rng is None and mask == "holes" else as_generator(rng)
    for library in raster_libraries(adata, library_key).values():
        options: dict[str, Any] = dict(given)
        if mask == "holes":
            radius = options.pop("radius_um", HOLE * library.spec.pitch_um)
            validate.positive(radius, "radius_um", "µm")
            options = {"n": options.pop("n_holes", 1), "radius": radius / library.spec.pitch_um}
        if mask in ("random", "holes"):
            options["rng"] = generator
        found = hide(mask, library.spec, library.rc, **options)
        if found.all() or not found.any():
            raise ValueError(
                f"mask={mask!r} hides {int(found.sum())} of the {len(found)} observations of library {library.name!r}; wanted some hidden and some left. "
                "Change its options, or leave the library out."
            )
        hidden[library.rows] = found
    kept = _kept(adata, validate.names(keep))
    record = {"mask": mask, **given, "n_observed": int((hidden == 0).sum()), "n_hidden": int((hidden == 1).sum()), "unit": "counts"}
    parts = [_part(adata, counts, np.flatnonzero(hidden == state), kept, library_key, record) for state in (0, 1)]
    logger.info("sparsify (%s): %d observations stay, %d are hidden", mask, parts[0].n_obs, parts[1].n_obs)
    if is_spatialdata(data):
        return Sparsified(_elements(data, parts[0], table_key, whole=True), _elements(data, parts[1], table_key, whole=False))
    return Sparsified(*parts)


def _kept(adata: "AnnData", keep: list[str]) -> dict[str, list[str]]:
    """Return which columns of obs and var and which slots of obsm come along."""
    lacking = [name for name in keep if not any(name in part for part in (adata.obs, adata.var, adata.obsm))]
    if lacking:
        raise KeyError(f"keep names {lacking}, which are in none of obs, var and obsm. Name columns or slots that are there.")
    return {
        "obs": [c for c in adata.obs.columns if c in OBS or c in keep],
        "var": [c for c in adata.var.columns if c in VAR or c in keep],
        "obsm": [k for k in adata.obsm if k in (keys.SPATIAL, keys.RC) or k in keep],
    }


def _part(
    adata: "AnnData", counts: Any, rows: np.ndarray, kept: dict[str, list[str]], library_key: str, record: dict[str, Any]
) -> "AnnData":
    from anndata import AnnData

    attrs = adata.uns.get("spatialdata_attrs", {})
    names = dict.fromkeys([library_key, *kept["obs"], *(attrs[k] for k in ("region_key", "instance_key") if k in attrs)])
    obs = adata.obs[list(names)].iloc[rows].copy()
    for column in obs.columns:
        if isinstance(obs[column].dtype, pd.CategoricalDtype):
            obs[column] = obs[column].cat.remove_unused_categories()
    obsm = {
        k: v.iloc[rows].copy() if hasattr(v, "iloc") else np.asarray(v)[rows].copy() for k, v in ((k, adata.obsm[k]) for k in kept["obsm"])
    }
    uns = {k: deepcopy(adata.uns[k]) for k in ("spatial", "spatialdata_attrs") if k in adata.uns}
    space = adata.uns[keys.UNS]
    uns[keys.UNS] = {k: deepcopy(space[k]) for k in (keys.RASTER, "rasterize", *kept["obsm"]) if k in space}
    out = AnnData(counts[rows], obs=obs, var=adata.var[kept["var"]].copy(), obsm=obsm, uns=uns)
    provenance.record(out, "sparsify", **record)
    return out


def _elements(sdata: "SpatialData", table: "AnnData", table_key: str, *, whole: bool) -> "SpatialData":
    """Return a SpatialData with the table and the shapes that it annotates; ``whole``: with images, labels and other shapes too."""
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    attrs = table.uns.get("spatialdata_attrs", {})
    shapes: dict[str, Any] = {}
    regions = [] if not attrs else sorted(table.obs[attrs["region_key"]].astype(str).unique())
    for name, element in sdata.shapes.items():
        columns = [c for c in ("geometry", "radius") if c in element.columns]
        if name in regions:
            mine = (table.obs[attrs["region_key"]].astype(str) == name).to_numpy()
            shapes[name] = element.loc[table.obs[attrs["instance_key"]].to_numpy()[mine], columns]
        elif whole:
            shapes[name] = element[columns]
    if attrs:
        del table.uns["spatialdata_attrs"]  # it names all regions, and is written anew
        table = TableModel.parse(table, region=regions, **{key: attrs[key] for key in ("region_key", "instance_key")})
    others = {"images": dict(sdata.images.items()), "labels": dict(sdata.labels.items())} if whole else {}
    return SpatialData(shapes=shapes, tables={table_key: table}, **others)
