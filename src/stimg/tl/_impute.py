"""Values where nothing was measured."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys, progress, provenance, validate
from stimg._core.rng import RngLike, as_seed
from stimg.data.ledger import recall, remember, seen_of
from stimg.data.slots import RasterLibrary, raster_libraries
from stimg.data.tables import is_spatialdata, table_of
from stimg.image.interpolate import BEST, Guide, Interpolator, LogCounts, Measured, axes_of_sections, in_parts, trust, windowed
from stimg.tl._impute_guide import guides
from stimg.tl._impute_methods import Site, resolve
from stimg.tl._impute_places import wanted_places
from stimg.tl._impute_table import add_to_spatialdata, table

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
UNIT = "log1p_cp10k"
HELPERS = 2000
"""Genes with most counts that help, beside those asked for."""
FEWEST = 10
"""Measured observations that a library must have."""
MOST = 4e9
"""Most values, (observations and places) x genes, that a result has: 16 GB, and as much again with standard deviations."""
ROWS = 16_384
"""Observations whose values are copied through at a time."""


def impute(
    data: "AnnData | SpatialData",
    *,
    method: Any = BEST,
    targets: Any = None,
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
    """Return a table of the measured observations and of places in between, where values are predicted; in a SpatialData it is added.

    Measured values are copied through; ``obs["stimg_status"]`` says of every observation whether it is measured, imputed or invented.

    Parameters
    ----------
    data
        Raw counts of rasterised observations (:func:`stimg.pp.rasterize`). It is left as it is but for the table that a SpatialData gets.
    method
        A name of ``stimg.image.interpolate.METHODS``: ``"ensemble"`` (the default: best on hidden spots), ``"kriging"``, ``"pca_kriging"``, ``"gaussian"``,
        ``"nearest"``, ...; a model with ``impute(adata, targets, genes=)``, such as a trained :class:`stimg.model.S2SImputer`; a function of (measured,
        wanted), see :class:`stimg.image.interpolate.Measured`; or a pair of these, ``(model, "kriging")``: the second interpolates what the first misses
        at measured observations that are left out of it.
    targets
        None: the empty points of each raster inside the tissue. An AnnData with ``obsm["spatial"]`` and the library in ``obs``, whose counts are
        not read; or (x, y) in full-resolution pixels, (n, 2), by library where there are several. Places that were measured are left out.
    genes
        Genes to predict; None: all.
    reference
        Sections of other donors, raw counts, for methods that need their axes of expression (``"donor_ensemble"``).
    guide
        Slot of ``obsm`` of data and of targets, an AnnData, with features of every place, such as embeddings of the H&E image (:func:`stimg.tl.embed_image`,
        :func:`stimg.pp.colour_statistics`). Methods that krige read it: how far expression follows features, how far distance, is chosen by likelihood. A model
        has a guide of its own.
    max_gap_um
        Widest gap between measured observations that counts as tissue, in µm; None: three times the distance to the nearest observation that 95 % of
        them have at most.
    uncertainty
        Whether standard deviations are written; ``n_folds`` times a part of the measured observations is then predicted from the others.
    n_folds
        Parts.
    layer
        Layer with raw counts.
    library_key
        Column of ``obs`` with the library.
    key_added
        Layer; ``"stimg_<method>"`` where None. In a SpatialData it names the table, ``"<table_key>_imputed"`` where None, and the circles.
    table_key
        Table of a SpatialData.
    copy
        Whether the table is returned for a SpatialData too, instead of added.
    rng
        For the parts.

    Returns
    -------
    AnnData (measured, then predicted, observations x genes): ``layers["stimg_<method>"]`` (float32, log1p counts per 10,000) and ``layers["stimg_<method>_sd"]``
    (NaN where measured), ``obs["stimg_status"]``, coordinates, raster and images; ``X`` is empty. ``"imputed"`` is a point of the measured lattice in a gap
    of at most ``max_gap_um``; everything else that was not measured is ``"invented"``: off the lattice, in a wider gap, or outside. None for a
    SpatialData, whose ``tables[key_added]`` it is then, with circles ``<library>_<key_added>``.

    Raises
    ------
    KeyError
        For missing slots, genes or libraries.
    ValueError
        For an unknown method, no place to predict, observations without counts, a library with fewer than 10 of them, a reference that has a library of ``data``,
        or more values than fit.
    TypeError
        For a method that is none.

    Notes
    -----
    The standard deviation is that of a new measurement. It is stretched, gene by gene, so that mean ± 1.645 sd holds 90 % of the measured values
    that were left out; a method without one gets a constant. Wide gaps and the outside are farther from measured observations than those were, so there it
    holds only as far as the method itself knows. A model brings its own calibration. Values below 0 become 0. Above 1,200 observations kriging works in
    overlapping windows, so that memory beyond the result does not grow with the slide; above 3,000 the stretching is learned from about so many, in windows by chance.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(12, 12), n_genes=20, rng=0)
    >>> stimg.pp.rasterize(adata)
    >>> sparse, truth = stimg.pp.sparsify(adata, mask="checkerboard")
    >>> filled = stimg.tl.impute(sparse, targets=truth)
    >>> filled.obs["stimg_status"].value_counts().to_dict()
    {'measured': 72, 'imputed': 72, 'invented': 0}
    """
    adata = table_of(data, table_key)
    validate.not_empty(adata)
    validate.unique_names(adata.var_names, "gene names", todo="Run `adata.var_names_make_unique()` or add up the duplicates.")
    counts = validate.counts(adata, layer)
    columns = (
        np.arange(adata.n_vars)
        if genes is None
        else validate.genes(validate.names(genes), adata.var_names, what="genes", todo="Pass names of adata.var_names.")
    )
    if not len(columns):
        raise ValueError("genes is empty; wanted at least one, or None for all.")
    validate.unique_names(adata.var_names[columns], "genes asked for", todo="Name each gene once.")
    seed = as_seed(rng)
    chosen = resolve(method, n_folds=validate.whole(n_folds, "n_folds", least=2), seed=seed)
    libraries = raster_libraries(adata, library_key)
    _check(counts, libraries)
    if chosen.donors and reference is None:
        raise ValueError(f"method {chosen.name!r} needs sections of other donors. Pass them as `reference=`, or take {BEST!r}.")
    wanted = wanted_places(adata, targets, libraries, gap_um=max_gap_um, library_key=library_key)
    if guide is not None and chosen.model:
        raise ValueError(
            f"guide={guide!r} is for methods by name. Set the model up with its guide: `setup_anndata(adata, guide={guide!r})`."
        )
    features = {} if guide is None else guides(adata, targets, guide, libraries, wanted)
    size = float(adata.n_obs + sum(len(each.points) for each in wanted.values())) * len(columns)
    if size > MOST:
        raise ValueError(f"{size:.2g} values are more than fit at a time ({MOST:.2g}). Ask for fewer `genes=` or `targets=`.")
    read = _helped(counts, columns)
    loadings = None if reference is None else _loadings(reference, adata, read, layer, library_key)
    result = table(adata, columns, libraries, wanted, library_key=library_key)
    key, name = _named(data, chosen.name, key_added, table_key)
    values = np.zeros(result.shape, dtype=np.float32)
    own, depth = counts[:, columns], _depth(counts)
    for row in range(0, adata.n_obs, ROWS):
        block = slice(row, min(row + ROWS, adata.n_obs))
        values[block] = _logs(own[block], depth[block])
    sd = np.full(result.shape, np.nan, dtype=np.float32) if uncertainty else None
    start, spread = adata.n_obs, False
    for each, places in wanted.items():
        library = libraries[each]
        if not len(places.points):
            continue
        measured = _measured(counts, library, read, len(columns), loadings, features.get(each))
        site = Site(adata, library.rows, measured.places, places, targets, adata.var_names[columns].tolist(), each, library_key)
        function = chosen.function(site)
        rows = slice(start, start + len(places.points))
        mine = None if sd is None else sd[rows]
        spread |= _fill(values[rows], mine, function, measured, places.points, model=chosen.model, n_folds=n_folds, seed=seed)
        start += len(places.points)
    result.layers[key] = values
    if sd is not None and spread:
        result.layers[f"{key}_sd"] = sd
    facts = {
        "verb": "stimg.tl.impute",
        "unit": UNIT,
        "method": chosen.name,
        "guide": guide,
        "max_gap_um": max_gap_um,
        "uncertainty": spread,
        "n_folds": n_folds,
    }
    provenance.record(result, key, **facts, seed=seed, library_key=library_key)
    seen = seen_of(adata, who=f"tl.impute ({chosen.name})", kind="prediction", layer=layer, library_key=library_key)
    others = (
        () if reference is None else (seen_of(reference, who="axes of other donors", kind="PCA", layer=layer, library_key=library_key),)
    )
    guided = () if guide is None else [*recall(adata, only=[guide]), *recall(targets, only=[guide])]
    remember(result, key, seen, *others, *chosen.ledger, *guided)
    logger.info("impute (%s): %d places from %d observations, %d genes", chosen.name, start - adata.n_obs, adata.n_obs, len(columns))
    if not is_spatialdata(data) or copy:
        return result
    add_to_spatialdata(data, name, result, libraries, library_key=library_key)
    return None


def _named(data: Any, method: str, key_added: str | None, table_key: str) -> tuple[str, str]:
    """Return the names of the layer and of the table."""
    if not is_spatialdata(data):
        return key_added or keys.layer_key(method), ""
    return keys.layer_key(method), key_added or f"{table_key}_imputed"


def _check(counts: Any, libraries: dict[str, RasterLibrary]) -> None:
    few = {name: len(lib.rows) for name, lib in libraries.items() if len(lib.rows) < FEWEST}
    if few:
        raise ValueError(f"Observations by library: {few}; wanted at least {FEWEST} on the raster of each. Leave these libraries out.")
    rows = np.concatenate([lib.rows for lib in libraries.values()])
    empty = int((_depth(counts)[rows] == 0).sum())
    if empty:
        raise ValueError(
            f"{empty} of {len(rows)} observations have no counts, so nothing was measured there. Remove them; their places are then imputed."
        )


def _depth(counts: Any) -> np.ndarray:
    return np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()


def _logs(counts: Any, depth: np.ndarray) -> np.ndarray:
    """Return log(1 + counts per 10,000) of sparse counts, dense float64; 0 where there is no count at all."""
    return LogCounts(counts, depth).dense()


def _helped(counts: Any, columns: np.ndarray) -> np.ndarray:
    """Return the genes that are read: those asked for, then those with most counts beside them."""
    total = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    most = np.argsort(-total, kind="stable")[:HELPERS]
    return np.concatenate([columns, most[~np.isin(most, columns)]])


def _measured(counts: Any, library: RasterLibrary, read: np.ndarray, n: int, loadings: np.ndarray | None, guide: Guide | None) -> Measured:
    """Return what is measured of a library; counts stay sparse until a method reads them."""
    part = counts[library.rows]
    values = LogCounts(part[:, read], _depth(part))
    points = library.spec.lattice_points(library.rc)
    return Measured(points, values, columns=np.arange(n), depth=values.depth, loadings=loadings, rows=library.rows, guide=guide)


def _fill(
    values: np.ndarray,
    sd: np.ndarray | None,
    function: Interpolator,
    measured: Measured,
    points: np.ndarray,
    *,
    model: bool,
    n_folds: int,
    seed: int,
) -> bool:
    """Write values at ``points``, and standard deviations where ``sd`` is there, a window at a time; return whether there are deviations."""
    learned = None if sd is None or model else trust(function, measured, n_folds=n_folds, rng=seed)
    own, varies = windowed(function), False
    total = 1 if own is None else int(np.ceil(len(measured.places) / own.size(len(measured.places))))
    parts = in_parts(function, measured, points)
    if sd is not None:
        sd[:] = 0.0
    for at, share, found in progress.track(parts, desc="impute", total=total, progress=None if total > 1 else False):
        values[at] += share[:, None] * found.values
        if sd is not None and found.variance is not None:
            sd[at] += share[:, None] * found.variance
            varies = True
    np.maximum(values, 0.0, out=values)
    if sd is None:
        return False
    if learned is None:
        sd[:] = np.sqrt(sd) if varies else np.nan
    else:
        sd[:] = np.sqrt(sd) * learned.factor if learned.own and varies else learned.factor
    return varies or learned is not None


def _loadings(reference: "AnnData", adata: "AnnData", read: np.ndarray, layer: str | None, library_key: str) -> np.ndarray:
    """Return axes of expression of other donors in the genes that are read; genes that the reference does not list count 0."""
    if not hasattr(reference, "obsm"):
        raise TypeError(
            f"reference is a {type(reference).__name__}; wanted an AnnData with sections of other donors. Read the file, or pass its table."
        )
    library = validate.obs(reference, library_key, todo="Name the section of every observation of the reference.").astype(str).to_numpy()
    both = sorted(set(library) & set(adata.obs[library_key].astype(str)))
    if both:
        raise ValueError(f"reference has libraries of data: {both}. Leave them out; it is for sections of other donors.")
    validate.unique_names(reference.var_names, "gene names in reference", todo="Run `reference.var_names_make_unique()`.")
    counts = validate.counts(reference, layer)
    at = reference.var_names.get_indexer(adata.var_names[read])
    if not (at >= 0).any():
        raise ValueError("reference shares no gene with data; wanted the same names of genes in both.")
    sections = []
    for name in np.unique(library):
        part = counts[np.flatnonzero(library == name)]
        part = part[_depth(part) > 0]
        if not part.shape[0]:
            raise ValueError(f"library {name!r} of reference has no counts; wanted measured sections. Check its layer, or leave it out.")
        values = np.zeros((part.shape[0], len(read)))
        values[:, at >= 0] = _logs(part[:, at[at >= 0]], _depth(part))
        sections.append((values, _depth(part)))
    return axes_of_sections(sections)
