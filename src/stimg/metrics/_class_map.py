"""Mean average precision of retrieving items of the query's class."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stimg._core.validate import whole
from stimg.metrics import _retrieval_kernels as kernels
from stimg.metrics._retrieval_pairs import Pair, chunks, partners, run
from stimg.metrics.clusters import as_labels, encode, missing


class ClassMap(NamedTuple):
    """Mean average precision of finding items of the query's class.

    Parameters
    ----------
    value
        Mean over the queries that have a label.
    per_class
        The same over the queries of each class.
    chance
        Mean over the same queries of the expectation of a random order.
    n_undefined
        Queries whose embedding has no score, or without an item of their class in the gallery: counted as 0.
    n_unlabelled
        Queries without a label (None, NaN, empty): not scored. Items without one are left out of the gallery.
    """

    value: float
    per_class: dict[Any, float]
    chance: float
    n_undefined: int
    n_unlabelled: int


def class_map(
    query: np.ndarray,
    gallery: np.ndarray,
    query_labels: Sequence[Any] | np.ndarray,
    gallery_labels: Sequence[Any] | np.ndarray,
    *,
    partner: np.ndarray | None,
    normalise: bool = True,
    chunk: int = 64,
) -> ClassMap:
    r"""Return the mean average precision of retrieving items of the query's class, say of its tissue.

    .. math:: \mathrm{AP} = \sum_t (R_t - R_{t-1}) P_t

    over the distinct scores t, from the highest on, with recall R and precision P among the items that score t or more.

    Parameters
    ----------
    query, gallery
        (n, d) and (m, d).
    query_labels, gallery_labels
        (n,) and (m,), classes.
    partner
        int (n,), the item that is the query itself in the other modality: it shares the label by construction and is left out of the
        query's gallery. None where the gallery holds other observations; there is no default, since to forget it flatters.
    normalise
        As in :func:`~stimg.metrics.retrieve`.
    chunk
        Queries that are multiplied at a time. Memory grows by the size of the gallery times 8 bytes with each, on each thread; the
        result does not change.

    Raises
    ------
    ValueError, TypeError
        As :func:`~stimg.metrics.retrieve`; for labels that do not fit, or no query or no item that has one.

    Notes
    -----
    As ``sklearn.metrics.average_precision_score``: items with equal scores are one step, whatever their order, and scores are equal as in
    :func:`~stimg.metrics.retrieve`. Items without a score are one last step.

    With R relevant items among N a random order without ties has the expectation
    :math:`\frac{1}{N} \left(H_N + \frac{R-1}{N-1} (N - H_N)\right)`, H the harmonic number, a little above the prevalence R / N. A
    constant embedding has one step, hence the prevalence itself.
    Source of the expectation: Bestgen (2015), Prague Bulletin of Mathematical Linguistics 103, 131-138.

    Examples
    --------
    >>> x = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> class_map(x, x, ["a", "a", "b", "b"], ["a", "a", "b", "b"], partner=np.arange(4)).value
    1.0
    """
    pair = Pair(query, gallery, normalise)
    n, m = pair.n, pair.m
    skip = np.full(n, -1) if partner is None else partners(partner, n, m)
    labels = [as_labels(query_labels, "query_labels"), as_labels(gallery_labels, "gallery_labels")]
    for each, name, length in zip(labels, ("query_labels", "gallery_labels"), (n, m), strict=True):
        if len(each) != length or missing(each).all():
            raise ValueError(
                f"{name} has {len(each)} labels, {int(missing(each).sum())} of them missing; wanted {length}, some not missing."
            )
    known_q, known_g = (~missing(each) for each in labels)
    names, wanted, held = encode(labels[0][known_q], labels[1][known_g])
    rows, items = np.flatnonzero(known_q), np.flatnonzero(known_g)
    place = np.full(m + 1, -1)  # of an item among those with a label; the last entry answers for "none left out"
    place[items] = np.arange(len(items))
    columns, usable = pair.items(items).T, pair.usable_g[items]
    value, out = np.zeros(len(rows)), place[skip[rows]]
    left_out = out >= 0
    n_gallery = len(items) - left_out
    relevant = np.bincount(held, minlength=len(names))[wanted] - (left_out & (held[out] == wanted))
    undefined = ~pair.usable_q[rows] | (relevant == 0)

    def work(part: np.ndarray) -> None:
        scores = pair.queries(rows[part]) @ columns
        scores[:, ~usable] = -2.0  # below all scores, which are those of vectors no longer than 1
        bits = scores.view(np.int64)
        kernels.mark(bits, held, wanted[part])
        scores[left_out[part], out[part][left_out[part]]] = np.inf  # sorts last, where it is cut off
        scores.sort(axis=1)
        for i, row in enumerate(part):
            value[row] = kernels.average_precision(scores[i], bits[i], n_gallery[row])

    run(work, chunks(np.flatnonzero(~undefined), whole(chunk, "chunk")))
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, len(items) + 1))])[n_gallery]
    others = np.maximum(n_gallery - 1, 1)
    expected = (harmonic + (relevant - 1) / others * (n_gallery - harmonic)) / np.maximum(n_gallery, 1)
    return ClassMap(
        value=float(value.mean()),
        per_class={names[code]: float(value[wanted == code].mean()) for code in np.unique(wanted)},
        chance=float(np.where(relevant == 0, 0.0, expected).mean()),
        n_undefined=int(undefined.sum()),
        n_unlabelled=int(n - len(rows)),
    )
