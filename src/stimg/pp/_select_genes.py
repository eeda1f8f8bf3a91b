"""Choosing the genes that become image channels."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg._core import hashing, keys, provenance, validate
from stimg._core.ledger import Seen
from stimg._core.panel import is_control
from stimg._core.rng import RngLike, as_seed
from stimg.data.ledger import remember, seen_of
from stimg.data.slots import library_rows, raster_libraries
from stimg.data.tables import table_of
from stimg.metrics.spatial import SpatialWeights
from stimg.pp._gene_rules import DEFAULT_N, RULES, Fit

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


def select_genes(
    data: "AnnData | SpatialData",
    *,
    rule: str = "highly_variable",
    n: int | None = None,
    layer: str | None = None,
    fit_on: str | np.ndarray | None = None,
    library_key: str = keys.LIBRARY,
    markers: str | Sequence[str] | None = None,
    min_fraction: float = 0.05,
    rng: RngLike = 0,
    table_key: str = "table",
) -> None:
    """Choose image channels: writes ``var["stimg_channel"]`` (bool), ``var["stimg_channel_order"]`` (int32) and their provenance.

    Parameters
    ----------
    data
        Raw counts in ``X`` or ``layers[layer]`` of an AnnData, or of the table of a SpatialData.
    rule
        ``"highly_variable"`` (normalised dispersion, library by library, through scanpy), ``"highly_variable_v3"`` (the same with flavour
        seurat_v3), ``"spatially_variable"`` (Moran's I per library on the raster, average rank), ``"variance"`` (of log counts), ``"detected"``
        (in at least ``min_fraction`` of the observations), ``"uniform"`` (at random), ``"panel"`` or ``"markers"`` (the list ``markers``, in
        its order).
    n
        Number of channels; the default is 512, all that qualify for ``"detected"``, and the whole list for ``"panel"``.
    layer
        Layer with raw counts; None is ``X``.
    fit_on
        The observations that the rule may see: a boolean column of ``obs`` or a mask (n_obs,). None is all. The others are never read.
    library_key
        Column of ``obs`` with the library.
    markers
        Genes of the rules ``"panel"`` and ``"markers"``.
    min_fraction
        Least fraction of observations in which a gene is detected (rule ``"detected"``).
    rng
        Seed of the rule ``"uniform"``.
    table_key
        Table of a SpatialData; the slots are read from it and written to it.

    Raises
    ------
    KeyError
        For missing slots, or markers that are not in ``var_names`` (listed).
    ValueError
        For an unknown rule, more channels than genes, values that are not raw counts, control probes among the markers, or repeated names.
    TypeError
        Where the column ``fit_on`` is not boolean.

    Notes
    -----
    Log counts are log(1 + counts per 10,000), the depth being the sum over all genes without control probes. Control probes (see
    :func:`stimg._core.panel.is_control`) never become channels. Rules that read counts choose among genes detected in the observations they see.
    ``uns["stimg"]["channels"]`` holds the rule, its parameters, ``seen`` (the record of the observations the rule has read) and the
    hashes of the chosen and of the measured panel, so that a later check can tell whether test observations took part in the choice.
    """
    adata = table_of(data, table_key)
    chosen_rule = RULES[rule]
    validate.not_empty(adata)
    validate.unique_names(adata.var_names, "gene names", todo="Run `adata.var_names_make_unique()` first.")
    listed = rule in ("panel", "markers")
    if listed != (markers is not None):
        raise ValueError(
            f"rule={rule!r} with markers={'a list' if markers is not None else None}; wanted a list for 'panel' and 'markers', none otherwise."
        )
    if n is not None:
        n = validate.whole(n, "n")
    if not 0 <= min_fraction <= 1:
        raise ValueError(f"min_fraction={min_fraction} is not a fraction; wanted 0 to 1.")
    control = is_control(adata.var)
    if markers is not None:
        markers = validate.names(markers)
        n = _check_markers(adata, markers, control, n)
    rows = _rows(adata, fit_on)
    seed = as_seed(rng)
    seen = Seen(f"rule {rule!r} of select_genes", "gene list")
    allowed = ~control
    if chosen_rule.reads:
        counts = validate.counts(adata if fit_on is None else adata[rows], layer)
        known = library_key in adata.obs
        seen = seen_of(adata, who=seen.who, kind=seen.kind, rows=rows, layer=layer, library_key=library_key if known else "")
        depth = np.asarray(counts[:, ~control].sum(axis=1), dtype=np.float64).ravel()
        allowed &= np.bincount(counts.indices[counts.data > 0], minlength=adata.n_vars) > 0
        library = _library_codes(adata, library_key, rows)
    else:
        counts, depth, library = None, np.zeros(0), np.zeros(0, dtype=np.int64)
    candidates = np.flatnonzero(allowed)
    wanted = n if n is not None else (1 if rule == "detected" else DEFAULT_N)
    if not len(candidates):
        raise ValueError(
            f"None of the {adata.n_vars} genes can become a channel: {int(control.sum())} are control probes, and the others have no count in the "
            f"{len(rows)} chosen observations. Check adata.var, the layer, and `fit_on`."
        )
    if wanted > len(candidates):
        state = "detected in the chosen observations" if chosen_rule.reads else "in the object"
        raise ValueError(
            f"{wanted} channels of {len(candidates)} genes {state} ({int(control.sum())} control probes left out). Pass a smaller `n`."
        )

    def weights() -> Mapping[str, SpatialWeights]:
        position = np.full(adata.n_obs, -1, dtype=np.int64)
        position[rows] = np.arange(len(rows))
        out = {}
        for name, lib in raster_libraries(adata, library_key).items():
            inside = position[lib.rows] >= 0
            if inside.any():
                out[name] = SpatialWeights.from_raster(lib.spec, lib.rc[inside], rows=position[lib.rows[inside]], n_rows=len(rows))
        return out

    fit = Fit(
        counts=None if counts is None else counts[:, candidates],
        depth=depth,
        library=library,
        names=adata.var_names[candidates],
        n=n,
        weights=weights,
        markers=markers,
        min_fraction=min_fraction,
        rng=np.random.default_rng(seed),
    )
    order = candidates[chosen_rule.rank(fit)]
    rank = np.full(adata.n_vars, -1, dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    adata.var[keys.CHANNEL] = rank >= 0
    adata.var[keys.CHANNEL_ORDER] = rank
    provenance.record(
        adata,
        keys.CHANNELS,
        rule=rule,
        n=len(order),
        layer=layer,
        fit_on=fit_on if isinstance(fit_on, str) or fit_on is None else "mask",
        library_key=library_key,
        min_fraction=float(min_fraction),
        seed=seed,
        panel=hashing.of_strings(adata.var_names[order]),
        measured=hashing.of_strings(adata.var_names),
    )
    if chosen_rule.reads:
        remember(adata, keys.CHANNELS, seen)
    logger.info("select_genes: %d channels of %d genes by rule %r, from %d observations", len(order), adata.n_vars, rule, len(seen))


def _check_markers(adata: "AnnData", markers: list[str], control: np.ndarray, n: int | None) -> int:
    if not markers:
        raise ValueError("markers is empty; wanted at least one gene.")
    validate.unique_names(pd.Index(markers), "markers", todo="Name each gene once.")
    positions = validate.genes(
        markers, adata.var_names, what="markers", todo="Check the spelling, the species, or symbols against Ensembl identifiers."
    )
    probes = [m for m, p in zip(markers, positions, strict=True) if control[p]]
    if probes:
        raise ValueError(
            f"{len(probes)} of {len(markers)} markers are control probes: {probes[:12]}. Control probes never become channels; leave them out."
        )
    if n not in (None, len(markers)):
        raise ValueError(f"n={n} with {len(markers)} markers; the list decides. Leave `n` out.")
    return len(markers)


def _rows(adata: "AnnData", fit_on: str | np.ndarray | None) -> np.ndarray:
    """Return the rows that a rule may see, ascending."""
    if fit_on is None:
        return np.arange(adata.n_obs)
    todo = "Pass a boolean column of obs, or a boolean mask."
    mask = validate.obs(adata, fit_on, todo=todo) if isinstance(fit_on, str) else pd.Series(np.asarray(fit_on))
    name = f"adata.obs[{fit_on!r}]" if isinstance(fit_on, str) else "The mask `fit_on`"
    if not pd.api.types.is_bool_dtype(mask.dtype):
        raise TypeError(f"{name} has dtype {mask.dtype}; wanted booleans. {todo}")
    if len(mask) != adata.n_obs:
        raise ValueError(f"{name} has {len(mask)} values; wanted {adata.n_obs}, one per observation.")
    rows = np.flatnonzero(mask.to_numpy(dtype=bool))
    if len(rows) == 0:
        raise ValueError(f"{name} is False for all {adata.n_obs} observations; wanted some to fit on.")
    return rows


def _library_codes(adata: "AnnData", library_key: str, rows: np.ndarray) -> np.ndarray:
    """Return the number of each observation's library; an object without the column is one library."""
    codes = np.zeros(adata.n_obs, dtype=np.int64)
    if library_key in adata.obs:
        column = validate.obs(adata[rows], library_key, todo="Name the library of every observation.")
        for code, members in enumerate(library_rows(column).values()):
            codes[rows[members]] = code
    elif library_key != keys.LIBRARY:
        validate.slot(adata.obs, "obs", library_key, todo="Pass the column with the library of every observation.")
    return codes[rows]
