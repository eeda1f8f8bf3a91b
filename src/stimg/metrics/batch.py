"""Batch effects: how far an embedding tells the slides apart."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from stimg._core.optional import need
from stimg._core.rng import RngLike, as_seed
from stimg._core.validate import finite, whole
from stimg.metrics.clusters import as_labels, encode, missing, row_keys
from stimg.metrics.probes import probe

N_FOLDS = 5
N_NEIGHBOURS_KBET = 50
WORKING_MIB = 128
"""Memory for the distances that scikit-learn holds at a time."""


class BatchEffects(NamedTuple):
    """How far an embedding tells the slides apart.

    Parameters
    ----------
    probe_accuracy, probe_balanced_accuracy
        Of a logistic regression that names the slide, over the folds of a cross-validation.
    probe_chance
        Share of the commonest slide: the accuracy without an embedding.
    silhouette
        Mean silhouette width of the slides: about 0 where they are mixed, 1 where they are far apart.
    asw
        Batch ASW: 1 less the absolute silhouette width of the slides within each label, averaged within and then over labels; 1 where
        slides are mixed. Without labels all observations have one.
    ilisi
        Median inverse Simpson index of the slides among neighbours, from 0 (one slide) to 1 (all slides alike).
    kbet
        Share of observations whose neighbours hold the slides in the proportions of the whole, by a chi-square test at .05.
    converged
        Whether all fits of the probe ended before their limit of iterations.
    n_single
        Labels that one slide alone holds, or a different one for each observation: left out of ``asw``.
    missing
        Names of the scores that are NaN since scib-metrics is not installed.
    """

    probe_accuracy: float
    probe_balanced_accuracy: float
    probe_chance: float
    silhouette: float
    asw: float
    ilisi: float
    kbet: float
    converged: bool
    n_single: int
    missing: tuple[str, ...]


def batch_effects(
    embedding: np.ndarray,
    batch: Sequence[Any] | np.ndarray,
    *,
    labels: Sequence[Any] | np.ndarray | None = None,
    k: int = 90,
    rng: RngLike = 0,
) -> BatchEffects:
    """Return how far an embedding tells the slides apart, by several measures that a single number would hide.

    Parameters
    ----------
    embedding
        (n_obs, n_dims), finite.
    batch
        (n_obs,), slide of each observation: two slides or more, of five observations at least.
    labels
        (n_obs,), classes (tissue, domain) within which slides are compared by ``asw``. Observations without a label (None, NaN, empty)
        are left out of it, and of nothing else.
    k
        Neighbours for iLISI, the observation itself included; kBET looks at 50. Both at a quarter of the observations at most.
    rng
        Seed of the folds.

    Raises
    ------
    ValueError
        For shapes that do not fit, values that are not finite, fewer than two slides, a slide with fewer than five observations, missing
        slides, or labels of which none is found on two slides.
    ImportError
        For an installed scib-metrics that cannot be imported.

    Notes
    -----
    Slides differ in tissue as well as in stain and chemistry: none of the measures tells these apart but ``asw`` with labels. Compare
    embeddings of the same observations.

    The folds of the probe are random, since whole slides cannot be held out when the slide is what is asked for: neighbours in the tissue
    stand on both sides, and the accuracy says what is readable at all, an upper bound. Each dimension is standardised, as in
    :func:`~stimg.metrics.probe`; the other measures take Euclidean distances in the embedding as it is.

    Probe and silhouette widths come from scikit-learn (distances of all pairs: time grows with the square of the observations, memory does
    not). iLISI and kBET come from scib-metrics, on exact neighbours, if it is installed (``pip install 'stimg[metrics]'``). kBET is the
    rate over all observations, not within labels.

    ASW: Luecken et al. (2022), Nat Methods 19, 41-50. LISI: Korsunsky et al. (2019), Nat Methods 16, 1289-1296. kBET: Büttner et al.
    (2019), Nat Methods 16, 43-49.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(60, 3))
    >>> slide = np.repeat(["a", "b"], 30)
    >>> apart = batch_effects(x + 9.0 * (slide == "b")[:, None], slide)
    >>> apart.probe_accuracy, apart.probe_chance, apart.silhouette > 0.8
    (1.0, 0.5, True)
    """
    from sklearn import config_context

    x, k, seed = np.asarray(embedding), whole(k, "k", least=4), as_seed(rng)
    slides = as_labels(batch, "batch")
    if x.ndim != 2 or x.shape[1] == 0 or len(x) != len(slides):
        raise ValueError(f"embedding has shape {x.shape} for {len(slides)} slides; wanted (observations, dimensions) and one slide each.")
    finite(x, "embedding", todo="Remove or repair them.")
    if missing(slides).any():
        raise ValueError(f"batch has {int(missing(slides).sum())} missing values of {len(slides)}; wanted the slide of every observation.")
    names, code = encode(slides)
    count = np.bincount(code)
    if len(names) < 2 or count.min() < N_FOLDS:
        few = [name for name, size in zip(names, count, strict=True) if size < N_FOLDS]
        raise ValueError(
            f"batch has {len(names)} slides, of which {few[:12]} have fewer than {N_FOLDS} observations; wanted two slides or more, none so small."
        )
    of_label = np.zeros(len(x), dtype=np.int64) if labels is None else _coded(labels, len(x))
    order = np.argsort(row_keys(np.column_stack([x, code, of_label]).astype(np.float64)))
    x, code, of_label = x[order].astype(np.float64), code[order], of_label[order]  # folds do not follow the order of the rows

    with config_context(working_memory=WORKING_MIB):
        accuracy, balanced, converged = _probe(x, code, seed)
        silhouette, asw, n_single = _silhouettes(x, code, of_label)
    scib = _scib_metrics()
    ilisi, kbet = _mixing(scib, x, code, k) if scib else (np.nan, np.nan)
    return BatchEffects(
        probe_accuracy=accuracy,
        probe_balanced_accuracy=balanced,
        probe_chance=float(count.max() / len(x)),
        silhouette=silhouette,
        asw=asw,
        ilisi=ilisi,
        kbet=kbet,
        converged=converged,
        n_single=n_single,
        missing=() if scib else ("ilisi", "kbet"),
    )


def _coded(labels: Sequence[Any] | np.ndarray, n: int) -> np.ndarray:
    """Return labels as codes, -1 where there is none."""
    given = as_labels(labels, "labels")
    known = ~missing(given)
    if len(given) != n or not known.any():
        raise ValueError(f"labels has {len(given)} entries, {int((~known).sum())} of them missing; wanted {n}, not all missing.")
    out = np.full(n, -1)
    out[known] = encode(given[known])[1]
    return out


def _probe(x: np.ndarray, code: np.ndarray, seed: int) -> tuple[float, float, bool]:
    """Return accuracy and balanced accuracy of naming the slide, over all folds, and whether all fits converged."""
    from sklearn.model_selection import StratifiedKFold

    folds = []
    for _, rows in StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed).split(x, code):
        test = np.zeros(len(x), dtype=bool)
        test[rows] = True
        folds.append(probe(x, code, ~test, test))
    weight = [fold.n_test for fold in folds]
    accuracy, balanced = (
        float(np.average([getattr(f, name) for f in folds], weights=weight)) for name in ("accuracy", "balanced_accuracy")
    )
    return accuracy, balanced, all(fold.converged for fold in folds)


def _silhouettes(x: np.ndarray, code: np.ndarray, of_label: np.ndarray) -> tuple[float, float, int]:
    """Return the silhouette width of the slides, batch ASW, and how many labels the latter left out."""
    from sklearn.metrics import silhouette_samples

    overall = silhouette_samples(x, code)
    widths, n_single = [], 0
    for label in range(of_label.max() + 1):
        rows = of_label == label
        n_slides = len(np.unique(code[rows]))
        if n_slides < 2 or n_slides == rows.sum():
            n_single += 1
        else:
            widths.append(1.0 - np.abs(overall if rows.all() else silhouette_samples(x[rows], code[rows])).mean())
    if not widths:
        raise ValueError(f"None of the {n_single} labels is found on two slides, so none can be compared. Leave out `labels=`.")
    return float(overall.mean()), float(np.mean(widths)), n_single


def _mixing(scib: Any, x: np.ndarray, code: np.ndarray, k: int) -> tuple[float, float]:
    """Return iLISI among the ``k`` nearest of each observation, and the acceptance rate of kBET."""
    from sklearn.neighbors import NearestNeighbors

    most = max(len(x) // 4, 4)  # among all observations, the slides have their proportions in any embedding
    sizes = min(k, most), min(N_NEIGHBOURS_KBET, most)
    distances, indices = NearestNeighbors(n_neighbors=max(sizes)).fit(x).kneighbors(x)
    near = [scib.nearest_neighbors.NeighborsResults(indices=indices[:, :size], distances=distances[:, :size]) for size in sizes]
    return float(scib.ilisi_knn(near[0], code)), float(scib.kbet(near[1], code)[0])


def _scib_metrics() -> ModuleType | None:
    """Return scib-metrics, or None where it is not installed; one that is installed and fails is an error."""
    try:
        return need("scib_metrics", extra="metrics", purpose="iLISI and kBET")
    except ImportError as err:
        if isinstance(err.__cause__, ModuleNotFoundError) and err.__cause__.name == "scib_metrics":
            return None
        raise
