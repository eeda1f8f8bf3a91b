"""Cross-modal retrieval: how far up a gallery each query finds its partner, exactly, over whole sections and whole test sets."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial import KDTree

from stimg._core.rng import RngLike, as_generator
from stimg._core.validate import finite, number, one_of, whole
from stimg.metrics import _retrieval_kernels as kernels
from stimg.metrics._class_map import ClassMap, class_map
from stimg.metrics._retrieval_pairs import Pair, chunks, groups, partners, run

__all__ = ["ClassMap", "Retrieval", "RetrievalGap", "class_map", "retrieval_gap", "retrieve", "retrieve_in_batches"]

COLUMNS = 4096
"""Gallery items that are multiplied at a time."""
KS = (1, 5, 10, 50)
WITHIN = (None, "group", "other")


class Retrieval(NamedTuple):
    """Where each query found its partner. A query that is ``undefined`` is a miss: last of its gallery, never among the first k.

    Parameters
    ----------
    rank
        float64 (n_queries,), rank of the partner, 1 the best; items with equal scores share their mean rank.
    better, ties
        int64 (n_queries,), items that score higher than the partner, and other items that score the same.
    gallery
        int64 (n_queries,), items among which the partner was looked for, itself included, those excluded not.
    undefined
        bool (n_queries,), whether the embedding of the query or of its partner has NaN or infinite values, or no direction.
    """

    rank: np.ndarray
    better: np.ndarray
    ties: np.ndarray
    gallery: np.ndarray
    undefined: np.ndarray

    def recall(self, k: int) -> float:
        """Return the share of queries whose partner is among the first ``k``: expected over random orders of equal scores."""
        k = whole(k, "k")
        found = np.clip((k - self.better) / (self.ties + 1.0), 0.0, 1.0)
        return float(np.where(self.undefined, 0.0, found).mean())

    def chance(self, k: int) -> float:
        """Return the recall at ``k`` of a random order, the mean of min(k, gallery) / gallery."""
        return float((np.minimum(whole(k, "k"), self.gallery) / self.gallery).mean())

    def median_rank(self) -> float:
        """Return the median rank of the partner."""
        return float(np.median(self.rank))

    def relative_median_rank(self) -> float:
        """Return the median of rank / gallery; about .5 by chance."""
        return float(np.median(self.rank / self.gallery))

    def table(self, ks: Iterable[int] = KS) -> dict[str, float]:
        """Return recall beside chance at each of ``ks``, median ranks, and how many queries there were and how many undefined."""
        scores = {f"{name}@{k}": score(k) for k in ks for name, score in (("recall", self.recall), ("chance", self.chance))}
        ranks = {"median_rank": self.median_rank(), "relative_median_rank": self.relative_median_rank()}
        return {**scores, **ranks, "n_queries": len(self.rank), "n_undefined": int(self.undefined.sum())}


def retrieve(
    query: np.ndarray,
    gallery: np.ndarray,
    *,
    partner: np.ndarray | None = None,
    normalise: bool = True,
    group: Sequence[Any] | np.ndarray | None = None,
    gallery_group: Sequence[Any] | np.ndarray | None = None,
    within: str | None = None,
    query_um: np.ndarray | None = None,
    gallery_um: np.ndarray | None = None,
    exclude_um: float = 0.0,
    chunk: int = 1024,
) -> Retrieval:
    """Return where each query finds its partner when a gallery is ranked by similarity to it.

    Parameters
    ----------
    query, gallery
        (n, d) and (m, d), embeddings of the two modalities.
    partner
        int (n,), position in the gallery of the item that belongs to each query; by default row by row.
    normalise
        Similarity is the cosine, or with False the dot product.
    group, gallery_group
        Section (or library) of each query and of each item, any labels; ``group`` alone serves both where rows are pairs.
    within
        Gallery of a query: None, all items (the whole test set); ``"group"``, those of its own group (the whole section); ``"other"``, its
        partner and the items of other groups.
    query_um, gallery_um, exclude_um
        (y, x) of each query and item in µm, (n, 2) and (m, 2): items of the partner's group nearer to the query than ``exclude_um``, the
        partner not meant, count neither as right nor as wrong. They show much the same tissue. A query is by default where its partner is.
    chunk
        Queries that are multiplied at a time. Memory grows by 16 KB with each (32 MB for the default on two threads) and the result
        does not change.

    Raises
    ------
    ValueError
        For shapes that do not fit, partners outside the gallery (or outside the query's group for ``within="group"``), missing groups or
        coordinates, unknown ``within``.
    TypeError
        For embeddings that are not real numbers, partners that are not whole ones.

    Notes
    -----
    Ranks are exact. Products in float32 settle whatever differs from the partner's score by more than their worst rounding, after the
    gallery's mean is taken off, which orders no gallery anew and leaves more digits to embeddings that share an offset. The rest is
    computed again in float64 in a fixed order: ranks depend neither on chunks nor on threads. Scores that differ by 1e-12 of the product
    of the norms or less are equal, since such a difference is rounding: an embedding with one direction throughout scores chance, not 1.

    Items of the gallery without a score (NaN, infinite, or no direction) rank behind all others and still count as gallery, so that
    chance does not change; the query that they belong to is a miss.

    Memory is that of the embeddings and of one copy of the gallery in float32.

    Examples
    --------
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> found = retrieve(x, x[:, ::-1])
    >>> found.rank.tolist(), round(found.recall(1), 3), round(found.chance(1), 3)
    ([3.0, 3.0, 1.0], 0.333, 0.333)
    """
    pair = Pair(query, gallery, normalise)
    item = partners(partner, pair.n, pair.m)
    own, home, n_groups = groups(group, gallery_group, partner, pair.n, pair.m)
    chunk = whole(chunk, "chunk")
    one_of(within, WITHIN, "within")
    if within is not None and group is None:
        raise ValueError(f"within={within!r} needs the group of each query. Pass `group=`.")
    if within == "group" and (home[item] != own).any():
        raise ValueError(f"{int((home[item] != own).sum())} queries have a partner in another group; wanted none for within='group'.")
    if not 0 <= number(exclude_um, "exclude_um", "µm") < np.inf:
        raise ValueError(f"exclude_um={exclude_um!r}; wanted 0 or more µm.")
    places = None
    if exclude_um > 0:
        if gallery_um is None:
            raise ValueError("exclude_um needs the coordinates of the gallery. Pass `gallery_um=`, (y, x) of each item in µm.")
        places = _places(gallery_um, home, "gallery_um", exclude_um)
        centres = places[item] if query_um is None else _places(query_um, home[item], "query_um", exclude_um)

    size = np.bincount(home, minlength=n_groups)
    n_gallery = {None: np.full(pair.n, pair.m), "group": size[own], "other": pair.m - size[own] + (home[item] == own)}[within]
    better, ties = np.zeros(pair.n, dtype=np.int64), np.zeros(pair.n, dtype=np.int64)
    undefined = ~(pair.usable_q & pair.usable_g[item])

    items = np.flatnonzero(pair.usable_g)
    items = items[np.argsort(home[items], kind="stable")]
    first = np.searchsorted(home[items], np.arange(n_groups + 1))
    packed, centre, reach = _centred(pair, items)
    rounding = 1.01 * (pair.d + 16) * 2.0**-24  # of a float32 product with a unit vector, in whatever order it is summed, and of comparing
    floor = 4 * kernels.TIE + 4 * pair.d * 2.0**-53  # what counts as equal, twice and more, and the rounding of float64
    slack = (rounding * reach[items]).astype(np.float32)

    def work(job: tuple[np.ndarray, list[tuple[int, int]]]) -> None:
        rows, ranges = job
        unit, target = pair.queries(rows), kernels.scores(pair.vectors, rows, item[rows])
        middle, room = target - unit @ centre, rounding * reach[item[rows]] + floor
        high, low = (middle + room).astype(np.float32), (middle - room).astype(np.float32)
        left, buffer = unit.astype(np.float32), np.empty(len(rows) * COLUMNS, dtype=np.float32)
        for start, stop in ((at, min(at + COLUMNS, end)) for begin, end in ranges for at in range(begin, end, COLUMNS)):
            screen = np.matmul(left, packed[start:stop].T, out=buffer[: len(rows) * (stop - start)].reshape(len(rows), -1))
            here = items[start:stop]
            kernels.count(screen, high, low, slack[start:stop], pair.vectors, rows, here, item, target, reach, better, ties)

    run(work, _jobs(np.flatnonzero(~undefined), own, first, within, chunk))

    if places is not None:
        tree = KDTree(places)
        for rows in chunks(np.arange(pair.n), chunk):
            near = KDTree(centres[rows]).sparse_distance_matrix(tree, exclude_um, output_type="ndarray")
            near = near[near["v"] < exclude_um]
            who, what = rows[near["i"]], near["j"].astype(np.int64)
            taken = (what != item[who]) & ((within != "other") | (home[what] != own[who]))
            who, what = who[taken], what[taken]
            n_gallery = n_gallery - np.bincount(who, minlength=pair.n)
            scored = ~undefined[who] & pair.usable_g[what]
            kernels.forget(pair.vectors, who[scored], what[scored], item, better, ties)

    better[undefined] = n_gallery[undefined] - 1
    return Retrieval(1.0 + better + ties / 2.0, better, ties, n_gallery, undefined)


def _jobs(
    asked: np.ndarray, own: np.ndarray, first: np.ndarray, within: str | None, chunk: int
) -> list[tuple[np.ndarray, list[tuple[int, int]]]]:
    """Return jobs: queries, and the ranges of items, sorted by group, that are the gallery of all of them."""
    bounds = first.tolist()
    if within is None:
        return [(rows, [(0, bounds[-1])]) for rows in chunks(asked, chunk)]
    asked = asked[np.argsort(own[asked], kind="stable")]
    members = np.split(asked, np.searchsorted(own[asked], np.arange(1, len(bounds) - 1)))
    out = []
    for start, stop, queries in zip(bounds[:-1], bounds[1:], members, strict=True):
        ranges = [(start, stop)] if within == "group" else [(0, start), (stop, bounds[-1])]
        out += [(rows, ranges) for rows in chunks(queries, chunk)]
    return out


def _centred(pair: Pair, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the scaled items less their mean, float32 (len(items), d), that mean, and the distance of each item of the gallery from it."""
    centre = sum((pair.items(part).sum(axis=0) / len(items) for part in chunks(items, COLUMNS)), np.zeros(pair.d))
    out, reach = np.empty((len(items), pair.d), dtype=np.float32), np.zeros(pair.m)
    for start in range(0, len(items), COLUMNS):
        part = items[start : start + COLUMNS]
        rows = pair.items(part) - centre
        out[start : start + COLUMNS], reach[part] = rows, kernels.norms(rows)
    return out, centre, reach


def _places(where_um: Any, group: np.ndarray, name: str, exclude_um: float) -> np.ndarray:
    """Return (y, x, g) with groups further apart along g than anything that is excluded, (n, 3)."""
    where = np.asarray(where_um, dtype=np.float64)
    if where.shape != (len(group), 2):
        raise ValueError(f"{name} has shape {where.shape}; wanted ({len(group)}, 2), (y, x) of each row.")
    finite(where, name, todo="Remove or repair them.")
    return np.column_stack([where, group * (2.0 * exclude_um)])


def retrieve_in_batches(
    query: np.ndarray, gallery: np.ndarray, *, batch_size: int = 64, shuffle: RngLike = None, normalise: bool = False
) -> Retrieval:
    """Return where each query finds its partner inside its mini-batch: for comparison with numbers published in that way alone.

    Parameters
    ----------
    query, gallery
        (n, d) each, pairs row by row.
    batch_size
        Pairs in a batch. The last batch holds what is left.
    shuffle
        None for consecutive rows, often neighbours in the tissue; or the seed of a random order.
    normalise
        As in :func:`retrieve`; the released code takes the dot product.

    Raises
    ------
    ValueError, TypeError
        As :func:`retrieve`, and for a ``batch_size`` below 1.

    Notes
    -----
    HESCAPE's protocol, after its released code: recall inside consecutive batches of 64, embeddings not normalised, the short last batch
    kept. Recall at 5 in a gallery of 64 is .078 by chance. Consecutive rows are neighbours in the tissue, which look alike: shuffled, the
    same embeddings score higher. ``chance`` knows the size of each batch, the last one's too. Scores are means over
    queries, which differ from means over batches by the weight of the last batch.

    Examples
    --------
    >>> found = retrieve_in_batches(np.eye(5), np.eye(5), batch_size=2)
    >>> found.gallery.tolist(), round(found.chance(1), 3), found.recall(1)
    ([2, 2, 2, 2, 1], 0.6, 1.0)
    """
    n, size = len(np.asarray(query)), whole(batch_size, "batch_size")
    order = np.arange(n) if shuffle is None else as_generator(shuffle).permutation(n)
    batch = np.empty(n, dtype=np.int64)
    batch[order] = np.arange(n) // size
    return retrieve(query, gallery, normalise=normalise, group=batch, within="group")


class RetrievalGap(NamedTuple):
    """How much of retrieval is knowing the section.

    Parameters
    ----------
    within, across
        Probability that the partner scores higher than an item of the query's own section, and than one of another section, drawn at
        random (equal scores half): .5 by chance, whatever the sizes.
    gap
        ``across - within``: 0 where a foreign item is as hard to tell from the partner as one of the own section.
    recall_within, chance_within
        Recall at ``k`` among the items of the own section, and chance.
    recall_pooled, chance_pooled
        The same among all items.
    own_share, expected_share
        Share of the own section among the ``k`` best items, the partner left out, and its share of all items; means over the defined
        queries.
    n_undefined
        Queries without a score: misses in all but the shares.
    """

    within: float
    across: float
    gap: float
    recall_within: float
    chance_within: float
    recall_pooled: float
    chance_pooled: float
    own_share: float
    expected_share: float
    n_undefined: int


def retrieval_gap(
    query: np.ndarray,
    gallery: np.ndarray,
    group: Sequence[Any] | np.ndarray,
    *,
    gallery_group: Sequence[Any] | np.ndarray | None = None,
    partner: np.ndarray | None = None,
    normalise: bool = True,
    k: int = 5,
    chunk: int = 64,
) -> RetrievalGap:
    """Return how retrieval inside the query's own section differs from that among sections.

    Parameters
    ----------
    query, gallery, partner, normalise
        As in :func:`retrieve`.
    group, gallery_group
        Section of each query and item; the partner is in the query's own.
    k
        Items that count as found.
    chunk
        As in :func:`class_map`.

    Raises
    ------
    ValueError, TypeError
        As :func:`retrieve`; for fewer than two sections, or a section with a single item.

    Notes
    -----
    An embedding in which sections lie apart (stain, batch, depth) finds the section first: the k best are of the own section, and foreign
    items are no distractors. Recall over all sections then looks like an achievement while it is that within the section.
    Equal scores at the k-th place share the places that are left.

    Examples
    --------
    >>> x = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> gap = retrieval_gap(x, x[[1, 0, 3, 2]], ["a", "a", "b", "b"], k=1)
    >>> gap.within, gap.across, gap.gap, gap.own_share, round(gap.expected_share, 3)
    (0.0, 1.0, 1.0, 1.0, 0.333)
    """
    k = whole(k, "k")
    pair = Pair(query, gallery, normalise)
    n, m = pair.n, pair.m
    item = partners(partner, n, m)
    own, home, n_groups = groups(group, gallery_group, partner, n, m)
    least = np.bincount(home, minlength=n_groups).min()
    if n_groups < 2 or least < 2:
        raise ValueError(f"There are {n_groups} sections, the smallest with {least} items; wanted at least two, of two items each.")
    options: dict[str, Any] = {"group": group, "gallery_group": gallery_group, "partner": partner, "normalise": normalise}
    inside = retrieve(query, gallery, within="group", **options)
    outside = retrieve(query, gallery, within="other", **options)
    pooled = Retrieval(
        inside.rank + outside.rank - 1, inside.better + outside.better, inside.ties + outside.ties, np.full(n, m), inside.undefined
    )
    columns, share = pair.items(np.arange(m)).T, np.zeros(n)
    usable, size = int(pair.usable_g.sum()), np.bincount(home[pair.usable_g], minlength=n_groups)

    def work(rows: np.ndarray) -> None:
        scores = pair.queries(rows) @ columns
        scores[:, ~pair.usable_g] = -np.inf
        scores[np.arange(len(rows)), item[rows]] = -np.inf
        top = min(k, usable - 1)
        limit = np.partition(scores, m - top, axis=1)[:, m - top, None]
        for each, kth, row in zip(scores, limit, rows, strict=True):
            first, tied = each > kth + kernels.TIE, np.abs(each - kth) <= kernels.TIE
            mine = home == own[row]
            share[row] = ((first & mine).sum() + (top - first.sum()) * (tied & mine).sum() / tied.sum()) / top

    asked = np.flatnonzero(~inside.undefined)
    run(work, chunks(asked, whole(chunk, "chunk")) if usable > 1 else [])
    within, across = (float(1 - ((each.rank - 1) / (each.gallery - 1)).mean()) for each in (inside, outside))
    return RetrievalGap(
        within=within,
        across=across,
        gap=across - within,
        recall_within=inside.recall(k),
        chance_within=inside.chance(k),
        recall_pooled=pooled.recall(k),
        chance_pooled=pooled.chance(k),
        own_share=float(share[asked].mean()) if len(asked) else 0.0,
        expected_share=float(((size[own[asked]] - 1) / max(usable - 1, 1)).mean()) if len(asked) else 0.0,
        n_undefined=int(inside.undefined.sum()),
    )
