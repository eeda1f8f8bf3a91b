"""The best items of a gallery for each query, exactly, without the matrix of all scores."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stimg._core.validate import one_of, whole
from stimg.metrics import _retrieval_kernels as kernels
from stimg.metrics._retrieval_pairs import Pair, chunks, groups, run

COLUMNS = 4096
"""Gallery items that are multiplied at a time."""
DIGITS = 12
"""Decimals to which scores are compared: what differs beyond them is rounding, which depends on where in a matrix a row stands."""


class Nearest(NamedTuple):
    """``index`` int64 (n_queries, k), positions in the gallery, best first, -1 where there is no further item; ``score`` float64, NaN there."""

    index: np.ndarray  # type: ignore[assignment]  # positions, as everywhere; tuple.index is not missed
    score: np.ndarray


def nearest(
    query: np.ndarray,
    gallery: np.ndarray,
    *,
    k: int = 5,
    normalise: bool = True,
    group: Sequence[Any] | np.ndarray | None = None,
    gallery_group: Sequence[Any] | np.ndarray | None = None,
    within: str | None = None,
    chunk: int = 256,
) -> Nearest:
    """Return the ``k`` items of a gallery that are most similar to each query.

    Parameters
    ----------
    query, gallery
        (n, d) and (m, d), embeddings.
    k
        Items for each query.
    normalise
        Similarity is the cosine, or with False the dot product.
    group, gallery_group
        Section (or library) of each query and item, any labels; ``group`` alone serves both where rows are pairs.
    within
        Gallery of a query: None, all items; ``"group"``, those of its own group.
    chunk
        Queries that are multiplied at a time. Memory grows by about 150 KB with each, on each thread, and the result does not change.

    Raises
    ------
    ValueError
        For shapes that do not fit, groups that are missing, unknown ``within``.
    TypeError
        For embeddings that are not real numbers.

    Notes
    -----
    Items with equal scores (to 12 decimals, in units of the largest product of norms) come in the order of the gallery. Queries and items
    without a score (NaN, infinite, or no direction) have no neighbours and are nobody's.

    Examples
    --------
    >>> found = nearest(np.array([[1.0, 0.1]]), np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), k=2)
    >>> found.index.tolist(), found.score.round(3).tolist()
    ([[1, 2]], [[0.995, 0.774]])
    """
    pair = Pair(query, gallery, normalise)
    k, chunk = whole(k, "k"), whole(chunk, "chunk")
    one_of(within, (None, "group"), "within")
    if within is not None and group is None:
        raise ValueError("within='group' needs the group of each query. Pass `group=`.")
    if within is None:
        own, home, n_groups = np.zeros(pair.n, dtype=np.int64), np.zeros(pair.m, dtype=np.int64), 1
    else:
        own, home, n_groups = groups(group, gallery_group, None, pair.n, pair.m)
    index = np.full((pair.n, k), -1, dtype=np.int64)
    jobs = []
    for code in range(n_groups):
        items = np.flatnonzero(pair.usable_g & (home == code))
        jobs += [(rows, items) for rows in chunks(np.flatnonzero(pair.usable_q & (own == code)), chunk) if len(items)]

    def work(job: tuple[np.ndarray, np.ndarray]) -> None:
        rows, items = job
        unit = pair.queries(rows)
        best, at = np.empty((len(rows), 0)), np.empty((len(rows), 0), dtype=np.int64)
        for part in chunks(items, COLUMNS):
            scores = np.concatenate([best, np.round(unit @ pair.items(part).T, DIGITS)], axis=1)
            where = np.concatenate([at, np.broadcast_to(part, (len(rows), len(part)))], axis=1)
            top = _top(scores, k)
            best, at = np.take_along_axis(scores, top, axis=1), np.take_along_axis(where, top, axis=1)
        index[rows, : at.shape[1]] = at

    run(work, jobs)
    score = np.full(index.shape, np.nan)
    asked, place = np.nonzero(index >= 0)
    v = pair.vectors if normalise else pair.vectors._replace(scale_q=np.ones(pair.n), scale_g=np.ones(pair.m))
    score[asked, place] = kernels.scores(v, asked, index[asked, place])
    return Nearest(index, score)


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the columns of the ``k`` largest scores of each row, largest first, equal ones in the order of the columns."""
    m = scores.shape[1]
    if m > k:
        found = np.argpartition(scores, m - k, axis=1)[:, m - k :]
        limit = np.take_along_axis(scores, found, axis=1).min(axis=1, keepdims=True)
        cut = np.flatnonzero((scores >= limit).sum(axis=1) > k)  # equal scores on both sides of the limit: the partition took any of them
        if len(cut):
            found[cut] = np.argsort(-scores[cut], axis=1, kind="stable")[:, :k]
    else:
        found = np.broadcast_to(np.arange(m), scores.shape)
    found = np.sort(found, axis=1)
    order = np.argsort(-np.take_along_axis(scores, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
