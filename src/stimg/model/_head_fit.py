"""Fitting a head, and leaving groups out in turn to learn what it is worth."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stimg.data.ledger import find_leaks
from stimg.model._head_axes import AxesMap, SharedAxes
from stimg.model._head_calibration import Calibration, calibrate, join
from stimg.model._head_maps import RetrievalMap, RidgeMap, gene_chunks, within
from stimg.model._head_reference import Groups, Reference

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.model.head_options import ExpressionHeadOptions

AnyMap = RidgeMap | RetrievalMap | AxesMap
Fit = Callable[[np.ndarray], AnyMap]


class Fitted(NamedTuple):
    """What a fit leaves: the map (None where a model predicts by itself), the calibration (None where there is none), columns of the features."""

    map: AnyMap | None
    calibration: Calibration | None
    n_features: int


def fit_features(x: np.ndarray, ref: Reference, options: "ExpressionHeadOptions") -> Fitted:
    """Return a head on features (n, columns), calibrated on groups that are left out in turn; rows of ``ref`` after the n have expression alone."""
    everything, further = np.arange(len(x)), np.arange(len(x), len(ref.section))
    whole_ref, ref = ref, ref.take(everything)
    x = within(x, ref.section, centre=options.centre)

    def fit(rows: np.ndarray) -> AnyMap:
        args = (x[rows], ref.values[rows], ref.groups(rows), ref.section[rows])
        if options.kind == "ridge":
            return RidgeMap.fit(*args, centre=options.centre, n_components=options.n_components)
        if options.kind == "axes":
            known = whole_ref.take(np.concatenate([rows, _allowed(whole_ref, rows, everything, further)]))
            axes = SharedAxes.fit(known, options.n_joint, centre=options.centre)
            return AxesMap.fit(x[rows], ref.take(rows), ref.groups(rows), axes, centre=options.centre, n_components=options.n_components)
        return RetrievalMap.fit(
            *args,
            centre=options.centre,
            n_components=options.n_components,
            n_joint=options.n_joint,
            k=options.k,
            temperature=options.temperature,
        )

    groups = ref.groups(everything)
    left_out, whole = _leave_out(fit, x, groups), fit(everything)
    if isinstance(whole, RidgeMap):
        gain = _gain(left_out, ref)
        whole = whole.scaled(gain)
        left_out = [part._replace(map=part.map.scaled(gain)) for part in left_out if isinstance(part.map, RidgeMap)]
    return Fitted(whole, _calibration(left_out, ref, groups), x.shape[1])


def _allowed(ref: Reference, rows: np.ndarray, everything: np.ndarray, further: np.ndarray) -> np.ndarray:
    """Return the rows of ``further`` that are of no donor whose observations are left out of ``rows``."""
    if ref.donor is None:
        return further
    left_out = np.setdiff1d(ref.donor[everything], ref.donor[rows])
    return further[~np.isin(ref.donor[further], left_out)]


def fit_network(
    tables: "Sequence[AnnData]", genes: Sequence[str], ref: Reference, options: "ExpressionHeadOptions", network: Any, **columns: Any
) -> Fitted:
    """Return a head that uses a model of image and expression; ``columns`` say where counts, sections and donors are."""
    if options.kind == "trained":
        level = _unseen(tables, network, **columns)
        if level is None:
            raise ValueError(
                "the model has seen observations of the reference, on which it should be judged. Pass sections that it was not trained on, or leave "
                "`reference=` out and pass `coverage=None`."
            )
        values = [network.predict_expression(each, genes=list(genes), head="trained").to_numpy() for each in tables]
        predicted = np.maximum(np.concatenate(values), 0.0)
        codes = ref.donor if level == "donor" and ref.donor is not None else ref.section
        parts = [calibrate(ref.values[:, part].toarray(), predicted[:, part], codes, ref.section) for part in gene_chunks(len(genes))]
        return Fitted(None, Calibration(**join(parts), level=level, n_obs=len(predicted), n_groups=len(np.unique(codes))), 0)
    gallery = np.concatenate([np.asarray(network.get_gene_embedding(each)) for each in tables])
    query = np.concatenate([np.asarray(network.get_image_embedding(each)) for each in tables])

    def fit(rows: np.ndarray) -> RetrievalMap:
        return RetrievalMap.of(
            gallery[rows], ref.values[rows], ref.section[rows], centre=options.centre, k=options.k, temperature=options.temperature
        )

    everything = np.arange(len(gallery))
    groups = ref.groups(everything)
    seen = _unseen(tables, network, **columns) is None
    return Fitted(fit(everything), None if seen else _calibration(_leave_out(fit, query, groups), ref, groups), 0)


class LeftOut(NamedTuple):
    """Observations that were left out, the map that was fitted on the others, and what it needs of their features."""

    rows: np.ndarray
    map: AnyMap
    prepared: Any


def _leave_out(fit: Fit, x: np.ndarray, groups: Groups) -> list[LeftOut]:
    """Return, for each group in turn, a map that was fitted on the others."""
    found = []
    for name in groups.names:
        rows = np.flatnonzero(groups.label == name)
        map_ = fit(np.flatnonzero(groups.label != name))
        found.append(LeftOut(rows, map_, map_.prepare(x[rows])))
    return found


def _predicted(left_out: Sequence[LeftOut], n: int, genes: slice) -> np.ndarray:
    """Return the predictions of left-out observations, float32 (n, genes)."""
    out = np.zeros((n, genes.stop - genes.start), dtype=np.float32)
    for part in left_out:
        out[part.rows] = part.map.values(part.prepared, genes)
    return out


def _gain(left_out: Sequence[LeftOut], ref: Reference) -> float:
    """Return the least-squares slope of truth on prediction, all genes together, within sections, of left-out observations; 0 at least."""
    both = square = 0.0
    for genes in gene_chunks(ref.values.shape[1]):
        truth = ref.values[:, genes].toarray().astype(np.float64)
        predicted = _predicted(left_out, len(truth), genes).astype(np.float64)
        for part in left_out:
            for name in np.unique(ref.section[part.rows]):
                rows = part.rows[ref.section[part.rows] == name]
                p = predicted[rows] - predicted[rows].mean(axis=0)
                both, square = both + float(np.einsum("ij,ij->", p, truth[rows])), square + float(np.einsum("ij,ij->", p, p))
    return max(both / square, 0.0) if square > 0 else 1.0


def _calibration(left_out: Sequence[LeftOut], ref: Reference, groups: Groups) -> Calibration:
    """Return the calibration from predictions of left-out observations."""
    n, parts = len(ref.section), []
    for genes in gene_chunks(ref.values.shape[1]):
        predicted = np.maximum(_predicted(left_out, n, genes), 0.0)
        parts.append(calibrate(ref.values[:, genes].toarray(), predicted, groups.label, ref.section))
    return Calibration(**join(parts), level=groups.level, n_obs=n, n_groups=len(groups.names))


def _unseen(tables: "Sequence[AnnData]", network: Any, **columns: Any) -> str | None:
    """Return how far the model has kept from all tables: ``"donor"``, ``"section"``, or None where it has seen observations of them."""
    for level in ("donor", "section"):
        if not any(find_leaks(each, network, level=level, **columns) for each in tables):
            return level
    return None
