"""Expression of single genes from the image."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._core import keys, provenance, validate
from stimg.data.ledger import remember
from stimg.data.tables import is_spatialdata, table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg.model import ExpressionHead
    from stimg.model.expression_head import PredictedGenes

logger = logging.getLogger(__name__)
UNIT = "log1p_cp10k"
PREDICTABILITY, LOWER, UPPER = "predictability", "lower", "upper"


def predict_expression(
    data: "AnnData | SpatialData",
    *,
    reference: Any = None,
    model: Any = None,
    features: str | Sequence[str] = "X_efficientnet_lite0",
    head: str | None = None,
    genes: str | Sequence[str] | None = None,
    k: int = 50,
    centre: bool = True,
    coverage: float | None = 0.9,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    donor_key: str = keys.DONOR,
    key_added: str | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> "AnnData | None":
    """Predict log1p counts per 10,000 of genes from image features, and write them with intervals and what they are worth.

    Genes that ``data`` measured go into ``layers["stimg_<head>"]`` (float32, NaN for all others), the bounds of their intervals into
    ``layers["stimg_<head>_lower"]`` and ``layers["stimg_<head>_upper"]``, and Pearson's r on observations that were left out of the fit into
    ``var["stimg_<head>_predictability"]``. With genes that it did not measure there is another gene set, so all predictions become a table of
    their own: it is returned for an AnnData (``copy=True`` is then required, as nothing is written), and added as
    ``tables["<head>_<table_key>"]`` to a SpatialData, annotating the same elements. So a slide without expression gets predicted genes.

    Parameters
    ----------
    data
        Observations with image features: spots, cells, or the tiles of a slide.
    reference
        One AnnData or several with counts and the same features, to fit a head on; or, with the decoder of a ``model``, to calibrate it on.
    model
        A :class:`stimg.model.ExpressionHead`, fitted or loaded, or a trained :class:`stimg.model.ImageGeneCLIP`.
    features
        Slots of ``obsm`` to fit a head on. A model knows what it reads.
    head
        ``"ridge"``, ``"axes"``, ``"retrieval"`` or ``"trained"``; see :class:`stimg.model.ExpressionHeadOptions`. None: ``"ridge"``, or ``"trained"`` with an
        ImageGeneCLIP.
    genes
        Genes to predict. None: those of the head that ``data`` measured, or all of them where it measured none.
    k, centre, layer, donor_key
        As for :meth:`stimg.model.ExpressionHead.fit`.
    coverage
        Share of true values that intervals should hold; None writes no intervals.
    library_key
        Column of ``obs`` with the section, in ``data`` and ``reference``.
    key_added
        Name of the layer; ``"stimg_<head>"`` where None. With a table of its own, the name of the table.
    table_key
        Table of a SpatialData.
    copy
        Whether to return the predictions as an AnnData (n_obs x genes) instead of writing them.

    Returns
    -------
    None, or the predictions where ``copy`` is True: values in ``X``, bounds in ``layers``, with ``obs``, coordinates and images of ``data``.

    Raises
    ------
    KeyError
        For missing slots, columns or genes.
    ValueError
        Where an AnnData did not measure some of the genes and ``copy`` is False; for a head without calibration and a ``coverage``; and as
        :meth:`stimg.model.ExpressionHead.fit` and :meth:`~stimg.model.ExpressionHead.predict`.
    TypeError
        For a model that is none of the two.

    Notes
    -----
    Predictability and intervals hold for observations like those that were left out: of donors like those of the reference. See
    :doc:`/concepts/predicted_genes`.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, n_donors=3, rng=0)
    >>> adata.obsm["X_some"] = adata.X.toarray()[:, :4].astype("float32")
    >>> reference, new = (adata[adata.obs["donor"].isin(d)].copy() for d in (["D1", "D2"], ["D3"]))
    >>> stimg.tl.predict_expression(new, reference=reference, features="X_some", genes=["Gene00001", "Gene00002"])
    >>> sorted(k for k in new.layers if k is not None)
    ['stimg_ridge', 'stimg_ridge_lower', 'stimg_ridge_upper']
    """
    adata = table_of(data, table_key)
    if adata.n_obs == 0:
        raise ValueError("data has no observation; wanted at least one. Check the reader or the filter that made it.")
    asked = None if genes is None else validate.names(genes)
    options = {"k": k, "centre": centre, "layer": layer, "library_key": library_key, "donor_key": donor_key}
    fitted = _head(model, reference, head, features, asked, adata, options)
    names = _wanted(fitted, asked, adata)
    missing = [g for g in names if g not in adata.var_names]
    if missing and not copy and not is_spatialdata(data):
        raise ValueError(
            f"{len(missing)} of the genes to predict are not in adata.var_names (such as {missing[:3]}), so no layer of adata can hold them. "
            "Pass `copy=True` to get them as a new AnnData."
        )
    found = fitted.predict(adata, genes=names, coverage=coverage, library_key=library_key)
    name = "imagegeneclip" if fitted.options.kind == "trained" else fitted.options.kind
    facts = {
        "verb": "stimg.tl.predict_expression",
        "unit": UNIT,
        "genes": names,
        "coverage": coverage,
        "library_key": library_key,
        **fitted.identity(),
    }
    if not (copy or missing):
        key = key_added or keys.layer_key(name)
        _write(adata, key, names, found, fitted.predictability)
        provenance.record(adata, key, **facts)
        remember(adata, key, *fitted.ledger)
        logger.info("Wrote adata.layers[%r]: %d genes of %d observations", key, len(names), adata.n_obs)
        return None
    key = keys.layer_key(name)
    table = _table(adata, key, names, found, fitted.predictability)
    provenance.record(table, key, **facts)
    remember(table, key, *fitted.ledger)
    if copy:
        return table
    added = key_added or f"{name}_{table_key}"
    data.tables[added] = table  # type: ignore[union-attr]
    logger.info("Wrote sdata.tables[%r]: %d observations x %d genes", added, *table.shape)
    return None


def _head(
    model: Any, reference: Any, head: str | None, features: Any, genes: list[str] | None, adata: "AnnData", options: dict[str, Any]
) -> "ExpressionHead":
    """Return the head that is meant: the one given, or one fitted now."""
    from stimg.model import ExpressionHead
    from stimg.model.head_options import KINDS

    if isinstance(model, ExpressionHead):
        if reference is not None or head not in (None, model.options.kind):
            raise ValueError(
                f"model is a fitted head ({model.options.kind!r}), so reference= and head={head!r} would not be used. Leave them out, or leave out the model."
            )
        return model
    if model is not None and not hasattr(model, "get_image_embedding"):
        raise TypeError(f"model is a {type(model).__name__}; wanted a stimg.model.ExpressionHead or a trained stimg.model.ImageGeneCLIP.")
    if model is None and reference is None:
        raise ValueError(
            "Nothing says how images and genes go together. Pass `reference=` (sections with counts and features) or `model=`."
        )
    kind = head or ("ridge" if model is None else "trained")
    validate.one_of(kind, KINDS, "head")
    if kind == "trained" and model is not None and reference is None:
        return ExpressionHead.of_model(model, genes=genes)
    if reference is None:
        raise ValueError(f"head={kind!r} needs `reference=`, sections with counts.")
    if genes is None and adata.n_vars:
        genes = _measured(reference, adata, options["layer"], None if kind != "trained" else model.genes)
    tables = [reference] if not isinstance(reference, list | tuple) else list(reference)
    own = [table_of(each, "table") if is_spatialdata(each) else each for each in tables]
    return ExpressionHead.fit(own, features=features, genes=genes, kind=kind, model=model, **options)


def _measured(reference: Any, adata: "AnnData", layer: str | None, known: Any) -> list[str] | None:
    """Return the genes that the reference has and ``adata`` measured; None, for all of the reference, where there are none."""
    from stimg.model._head_reference import shared_genes, tables_of

    if known is None:
        tables = [table_of(each, "table") for each in (reference if isinstance(reference, list | tuple) else [reference])]
        known = shared_genes(tables_of(tables), None, layer)
    return [str(g) for g in known if g in adata.var_names] or None


def _wanted(head: "ExpressionHead", asked: list[str] | None, adata: "AnnData") -> list[str]:
    if asked is not None:
        validate.genes(asked, head.genes, what="genes asked for", todo="The head predicts `head.genes` alone.")
        return asked
    return [g for g in head.genes if g in adata.var_names] or head.genes.tolist()


def _write(adata: "AnnData", key: str, genes: list[str], found: "PredictedGenes", predictability: pd.Series) -> None:
    at = adata.var_names.get_indexer(pd.Index(genes))
    layers = {key: found.values, f"{key}_{LOWER}": found.lower, f"{key}_{UPPER}": found.upper}
    for name, values in layers.items():
        if values is None:
            adata.layers.pop(name, None)  # of an earlier call with other settings
            continue
        whole = np.full(adata.shape, np.nan, dtype=np.float32)
        whole[:, at] = values
        adata.layers[name] = whole
    worth = np.full(adata.n_vars, np.nan, dtype=np.float32)
    worth[at] = predictability.loc[genes].to_numpy()
    adata.var[f"{key}_{PREDICTABILITY}"] = worth


def _table(adata: "AnnData", key: str, genes: list[str], found: "PredictedGenes", predictability: pd.Series) -> "AnnData":
    """Return the predictions as a table with the observations, places, images, raster and tiles of ``adata``, none of them shared with it."""
    from anndata import AnnData

    var = pd.DataFrame({f"{key}_{PREDICTABILITY}": predictability.loc[genes].to_numpy(dtype=np.float32)}, index=pd.Index(genes))
    own = adata.uns.get(keys.UNS, {})
    kept = [name for name in own if name == keys.RASTER or (hasattr(own[name], "keys") and "spec" in own[name])]
    uns = {name: deepcopy(adata.uns[name]) for name in ("spatial", "spatialdata_attrs") if name in adata.uns}
    uns[keys.UNS] = {name: deepcopy(own[name]) for name in kept}
    places = [keys.SPATIAL, keys.RC, *(keys.tiles_key(name) for name in kept)]
    obsm = {name: adata.obsm[name].copy() for name in places if name in adata.obsm}
    layers = {f"{key}_{name}": values for name, values in ((LOWER, found.lower), (UPPER, found.upper)) if values is not None}
    return AnnData(found.values, obs=adata.obs.copy(), var=var, uns=uns, obsm=obsm, layers=layers)
