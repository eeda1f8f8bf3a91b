import itertools
import warnings

import numba
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import average_precision_score

from stimg.metrics import class_map, retrieval, retrieval_gap, retrieve, retrieve_in_batches


def similarity(query, gallery, normalise):
    """Cosine (by scipy's distances) or dot product, to 12 decimals: equal scores are equal."""
    q, g = np.asarray(query, dtype=np.float64), np.asarray(gallery, dtype=np.float64)
    return (1 - cdist(q, g, "cosine") if normalise else np.array([[float(a @ b) for b in g] for a in q])).round(12)


def plain(
    query,
    gallery,
    *,
    partner=None,
    normalise=True,
    group=None,
    gallery_group=None,
    within=None,
    query_um=None,
    gallery_um=None,
    exclude_um=0.0,
):
    """(better, ties, gallery) of each query by the definition: a double loop."""
    score = similarity(query, gallery, normalise)
    n, m = score.shape
    partner = np.arange(n) if partner is None else partner
    group = np.zeros(n) if group is None else group
    gallery_group = group if gallery_group is None else gallery_group
    out = []
    for i in range(n):
        p, better, ties, size = partner[i], 0, 0, 1
        for j in range(m):
            if j == p:
                continue
            if within == "group" and gallery_group[j] != group[i]:
                continue
            if within == "other" and gallery_group[j] == group[i]:
                continue
            if exclude_um and gallery_group[j] == gallery_group[p]:
                centre = gallery_um[p] if query_um is None else query_um[i]
                if np.hypot(*(gallery_um[j] - centre)) < exclude_um:
                    continue
            size += 1
            better += score[i, j] > score[i, p]
            ties += score[i, j] == score[i, p]
        out.append((better, ties, size))
    return np.array(out).T


def same(found, wanted):
    better, ties, size = wanted
    np.testing.assert_array_equal(found.better, better)
    np.testing.assert_array_equal(found.ties, ties)
    np.testing.assert_array_equal(found.gallery, size)
    np.testing.assert_array_equal(found.rank, 1 + better + ties / 2)
    assert not found.undefined.any()


def pairs(rng, n, d=6, noise=1.0):
    x = rng.normal(size=(n, d))
    return x + noise * rng.normal(size=(n, d)), x + noise * rng.normal(size=(n, d))


def with_ties(rng, n, m, d=3):
    """Small whole numbers: many scores are equal; one row repeats, one is a multiple of another."""
    q, g = rng.integers(-2, 3, (n, d)).astype(float), rng.integers(-2, 3, (m, d)).astype(float)
    q[~q.any(axis=1)], g[~g.any(axis=1)] = 1, 1
    g[1], g[2] = g[0], 3 * g[0]
    return q, g


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("within", [None, "group", "other"])
@pytest.mark.parametrize("exclude_um", [0.0, 200.0])
@pytest.mark.parametrize("tied", [False, True])
def test_ranks_are_those_of_a_double_loop(normalise, within, exclude_um, tied):
    rng = np.random.default_rng(7)
    n, m = 43, 60
    q, g = with_ties(rng, n, m) if tied else (rng.normal(size=(n, 5)), rng.normal(size=(m, 5)))
    gallery_group = rng.choice(["a", "b", "c"], m)
    partner = rng.integers(0, m, n)
    options = {
        "partner": partner,
        "group": gallery_group[partner],
        "gallery_group": gallery_group,
        "within": within,
        "gallery_um": 100.0 * rng.integers(0, 6, (m, 2)),  # a lattice: distances of 200 exactly, and shared places
        "exclude_um": exclude_um,
        "normalise": normalise,
    }
    found = retrieve(q, g, **options)
    same(found, plain(q, g, **options))
    assert found.ties.any() == tied
    if exclude_um and within != "other":
        assert (found.gallery < retrieve(q, g, **{**options, "exclude_um": 0.0}).gallery).any()


def test_partners_in_other_groups_and_queries_with_places_of_their_own():
    rng = np.random.default_rng(3)
    n, m = 30, 40
    q, g = with_ties(rng, n, m)
    options = {
        "partner": rng.integers(0, m, n),
        "group": rng.integers(0, 4, n),
        "gallery_group": rng.integers(1, 3, m),  # groups 0 and 3 have queries alone
        "query_um": rng.uniform(0, 500, (n, 2)),
        "gallery_um": rng.uniform(0, 500, (m, 2)),
        "exclude_um": 150.0,
    }
    for within in (None, "other"):
        same(retrieve(q, g, within=within, **options), plain(q, g, within=within, **options))
    with pytest.raises(ValueError, match="queries have a partner in another group"):
        retrieve(q, g, within="group", **options)


@pytest.mark.parametrize("normalise", [True, False])
def test_neither_chunks_nor_threads_nor_order_matter(normalise, monkeypatch):
    rng = np.random.default_rng(1)
    n = 203
    q, g = pairs(rng, n)
    g[50:80] = g[50]  # equal, nearly equal and distant items
    g[80:90] = g[50] + 1e-9 * rng.normal(size=(10, 6))
    q[60:70] = q[60]
    options = {"normalise": normalise, "group": rng.integers(0, 3, n), "gallery_um": rng.uniform(0, 900, (n, 2)), "exclude_um": 90.0}
    for within in (None, "group", "other"):
        one = retrieve(q, g, within=within, **options)
        for chunk in (1, 7, 64, n):
            monkeypatch.setattr(retrieval, "COLUMNS", 4096 if chunk == 64 else 17 * chunk)
            for a, b in zip(one, retrieve(q, g, within=within, chunk=chunk, **options), strict=True):
                np.testing.assert_array_equal(a, b)
        before = numba.get_num_threads()
        numba.set_num_threads(1)
        try:
            serial = retrieve(q, g, within=within, chunk=16, **options)
        finally:
            numba.set_num_threads(before)
        np.testing.assert_array_equal(one.rank, serial.rank)
        order = rng.permutation(n)
        moved = {**options, "group": options["group"][order], "gallery_um": options["gallery_um"][order]}
        np.testing.assert_array_equal(one.rank[order], retrieve(q[order], g[order], within=within, **moved).rank)
        shuffled = {**moved, "group": options["group"], "gallery_group": moved["group"], "partner": np.argsort(order)}
        np.testing.assert_array_equal(one.rank, retrieve(q, g[order], within=within, **shuffled).rank)


@pytest.mark.parametrize("normalise", [True, False])
def test_neither_scale_nor_dtype_nor_the_order_of_dimensions_matters(normalise):
    rng = np.random.default_rng(2)
    q, g = pairs(rng, 150, d=33)
    q, g = q.astype(np.float32), g.astype(np.float32)
    one = retrieve(q, g, normalise=normalise)
    same(one, plain(q, g, normalise=normalise))
    axes = rng.permutation(33)
    for a, b in (
        (q.astype(float), g),
        (q.astype(float), g.astype(float)),
        (1e-25 * q.astype(float), 1e30 * g.astype(float)),
        (3 * q, 7 * g),
        (np.asfortranarray(q), g[:, ::-1][:, ::-1]),
        (q[:, axes], g[:, axes]),
    ):
        np.testing.assert_array_equal(one.rank, retrieve(a, b, normalise=normalise).rank)
    whole = rng.integers(-50, 50, (40, 5))
    np.testing.assert_array_equal(
        retrieve(whole, whole[::-1]).rank, retrieve(whole.astype(np.float16), whole[::-1].astype(np.float16)).rank
    )
    # the length of a query orders nothing; that of an item does so for the dot product alone
    np.testing.assert_array_equal(one.rank, retrieve(q * rng.uniform(0.1, 9, (150, 1)), g, normalise=normalise).rank)
    lengths = np.exp(rng.normal(size=(150, 1)))
    assert np.array_equal(one.rank, retrieve(q, g * lengths, normalise=normalise).rank) == normalise


@pytest.mark.parametrize(("normalise", "spread"), [(True, 2e-2), (False, 5e-3), (False, 1e-6)])
def test_differences_that_float32_cannot_hold(normalise, spread):
    """Scores that differ in the last digits of float32, about an offset shared by all: float32 alone calls them equal or confuses them."""
    rng = np.random.default_rng(0)
    q, g = 5.0 + spread * rng.normal(size=(2, 200, 16))
    found = retrieve(q, g, normalise=normalise)
    a, b = q.astype(np.longdouble), g.astype(np.longdouble)
    if normalise:
        a, b = a / np.sqrt((a * a).sum(axis=1, keepdims=True)), b / np.sqrt((b * b).sum(axis=1, keepdims=True))
    score = (a[:, None] * b[None]).sum(axis=2)
    np.testing.assert_array_equal(found.better, (score > np.diag(score)[:, None]).sum(axis=1))
    assert not found.ties.any()
    single = a.astype(np.float32) @ b.astype(np.float32).T
    assert (found.better != (single > np.diag(single)[:, None]).sum(axis=1)).any()


def test_items_of_very_different_lengths():
    rng = np.random.default_rng(5)
    q, g = rng.normal(size=(60, 8)), rng.normal(size=(60, 8)) * 10.0 ** rng.integers(-9, 9, (60, 1))
    score = q @ g.T
    np.testing.assert_array_equal(
        retrieve(q, g, normalise=False).better, (score > np.diag(score)[:, None] + 1e-11 * np.abs(score)).sum(axis=1)
    )


def test_random_embeddings_score_chance():
    rng = np.random.default_rng(0)
    n = 2000
    found = retrieve(rng.normal(size=(n, 8)), rng.normal(size=(n, 8)), group=rng.integers(0, 10, n), within="group")
    for k in (1, 5, 10, 50):
        assert found.recall(k) == pytest.approx(found.chance(k), abs=4 * np.sqrt(found.chance(k) / n))
    assert found.relative_median_rank() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("value", [np.full(5, 0.3), np.array([0.1, 0.2, 0.7, -3.0, 1e-3])])
def test_constant_embeddings_score_exactly_chance(value):
    rng = np.random.default_rng(0)
    n = 90
    lengths = rng.uniform(0.5, 2, (n, 1))  # one direction: equal cosines, up to rounding
    places = rng.uniform(0, 500, (n, 2))
    for options in ({}, {"group": np.arange(n) % 7, "within": "group"}, {"gallery_um": places, "exclude_um": 120.0}):
        found = retrieve(lengths * value, lengths[::-1] * value, **options)
        np.testing.assert_array_equal(found.better, 0)
        np.testing.assert_array_equal(found.ties, found.gallery - 1)
        for k in (1, 5, 50, 1000):
            assert found.recall(k) == pytest.approx(found.chance(k), rel=1e-14)
    assert retrieve(lengths * value, lengths * value).median_rank() == (n + 1) / 2
    assert found.chance(1000) == 1


def test_perfect_embeddings_score_one():
    q = np.random.default_rng(0).normal(size=(300, 12))
    found = retrieve(q, 2 * q)
    assert [found.recall(k) for k in (1, 5)] == [1, 1]
    assert found.median_rank() == 1
    np.testing.assert_array_equal(found.ties, 0)
    assert retrieve(q, -q).recall(50) == 0


def test_recall_is_the_expectation_over_orders_of_equal_scores():
    rng = np.random.default_rng(4)
    q, g = with_ties(rng, 12, 12)
    found = retrieve(q, g)
    score = similarity(q, g, True)
    for k in (1, 3, 5):
        drawn = []
        for _ in range(4000):
            noise = score + 1e-6 * rng.random(score.shape)
            drawn.append(((noise > np.diag(noise)[:, None]).sum(axis=1) < k).mean())
        assert found.recall(k) == pytest.approx(np.mean(drawn), abs=5 * np.std(drawn) / np.sqrt(4000))


def test_undefined_rows_are_misses_and_stay_in_the_gallery():
    rng = np.random.default_rng(6)
    q, g = pairs(rng, 40)
    q[3, 1], q[4], g[10, 2], g[11] = np.nan, 0.0, np.inf, 0.0
    found = retrieve(q, g)
    assert np.flatnonzero(found.undefined).tolist() == [3, 4, 10, 11]
    np.testing.assert_array_equal(found.rank[found.undefined], 40)
    np.testing.assert_array_equal(found.gallery, 40)
    assert found.table()["n_undefined"] == 4
    assert found.recall(40) == found.recall(1000) == 36 / 40
    keep = ~found.undefined
    left = np.array([j for j in range(40) if j not in (10, 11)])
    better, ties, _ = plain(q[keep], g[left], partner=np.searchsorted(left, np.flatnonzero(keep)))
    np.testing.assert_array_equal(found.rank[keep], 1 + better + ties / 2)
    # by the dot product a vector of zeros has a score like any other
    assert np.flatnonzero(retrieve(q, g, normalise=False).undefined).tolist() == [3, 10]
    # what is excluded is taken off whether it has a score or not
    places = np.stack([np.arange(40.0), np.zeros(40)], axis=1)
    near = retrieve(q, g, gallery_um=places, exclude_um=1.5)
    np.testing.assert_array_equal(near.gallery, np.where((np.arange(40) % 39) == 0, 39, 38))
    assert near.rank[12] == 1 + plain(q[keep], g[left], partner=np.searchsorted(left, np.flatnonzero(keep)))[0][
        np.flatnonzero(keep).tolist().index(12)
    ] - (similarity(q[12:13], g[13:14], True)[0, 0] > similarity(q[12:13], g[12:13], True)[0, 0])
    with np.errstate(all="raise"):
        nothing = retrieve(np.full((4, 2), np.nan), np.full((4, 2), np.nan))
    assert nothing.recall(4) == 0
    assert nothing.chance(4) == 1


def test_table():
    found = retrieve(np.eye(3), np.eye(3)[[0, 2, 1]])
    table = found.table(ks=(1, 2))
    assert table == {
        "recall@1": 1 / 3,
        "chance@1": 1 / 3,
        "recall@2": pytest.approx(2 / 3),
        "chance@2": pytest.approx(2 / 3),
        "median_rank": 2.5,
        "relative_median_rank": pytest.approx(5 / 6),
        "n_queries": 3,
        "n_undefined": 0,
    }
    assert list(found.table())[::2][:4] == [f"recall@{k}" for k in (1, 5, 10, 50)]


@pytest.mark.parametrize("shuffle", [None, 5])
def test_batches(shuffle):
    rng = np.random.default_rng(8)
    n, size = 150, 64
    q, g = pairs(rng, n)
    order = np.arange(n) if shuffle is None else np.random.default_rng(shuffle).permutation(n)
    found = retrieve_in_batches(q, g, batch_size=size, shuffle=shuffle)
    hits, chance = 0, 0
    for start in range(0, n, size):
        rows = order[start : start + size]
        logits = q[rows] @ g[rows].T  # as released: embeddings as they are
        top = np.argsort(-logits, axis=1)[:, :5]
        hits += (top == np.arange(len(rows))[:, None]).any(axis=1).sum()
        chance += min(5, len(rows))
        np.testing.assert_array_equal(found.gallery[rows], len(rows))
    assert found.recall(5) == pytest.approx(hits / n)
    assert found.chance(5) == pytest.approx(chance / n)
    assert found.chance(5) > 5 / 64
    cosine = retrieve_in_batches(q, g, normalise=True)
    unit = retrieve_in_batches(q, g / np.linalg.norm(g, axis=1, keepdims=True))
    np.testing.assert_array_equal(cosine.rank, unit.rank)
    whole = retrieve_in_batches(q, g, batch_size=1000)
    np.testing.assert_array_equal(whole.rank, retrieve(q, g, normalise=False).rank)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("with_partner", [True, False])
def test_class_map_is_that_of_sklearn(tied, normalise, with_partner):
    rng = np.random.default_rng(9)
    n, m = 37, 52
    q, g = with_ties(rng, n, m) if tied else (rng.normal(size=(n, 4)), rng.normal(size=(m, 4)))
    labels, gallery_labels = rng.choice(["x", "y", "zz"], n), rng.choice(["x", "y", "zz"], m)
    partner = rng.integers(0, m, n) if with_partner else None
    score = similarity(q, g, normalise)
    one = []
    for i in range(n):
        keep = np.arange(m) != partner[i] if with_partner else np.ones(m, bool)
        one.append(average_precision_score(gallery_labels[keep] == labels[i], score[i, keep]))
    for chunk in (1, 7, 64):
        found = class_map(q, g, labels, gallery_labels, partner=partner, normalise=normalise, chunk=chunk)
        assert found.value == pytest.approx(np.mean(one), abs=1e-12)
        assert list(found.per_class) == ["x", "y", "zz"]
        for label, value in found.per_class.items():
            assert value == pytest.approx(np.mean(np.array(one)[labels == label]), abs=1e-12)
        assert (found.n_undefined, found.n_unlabelled) == (0, 0)


def test_chance_of_class_map_is_the_mean_of_all_orders():
    labels = np.array([0, 0, 0, 1, 1, 2])
    x = np.arange(1.0, 7.0)[:, None]
    exact = []
    for label, n_relevant in ((0, 2), (1, 1)):  # the query's own item is left out of its gallery
        marks = [True] * n_relevant + [False] * (5 - n_relevant)
        every = [average_precision_score(order, -np.arange(5.0)) for order in set(itertools.permutations(marks))]
        exact += [np.mean(every)] * int((labels == label).sum())
    found = class_map(x, x, labels, labels, partner=np.arange(6))
    assert found.chance == pytest.approx(np.mean([*exact, 0.0]), abs=1e-12)  # no other item of class 2: 0, by chance too
    assert found.n_undefined == 1
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    drawn = class_map(rng.normal(size=(400, 9)), rng.normal(size=(400, 9)), labels, labels, partner=np.arange(400))
    assert drawn.value == pytest.approx(drawn.chance, abs=0.01)
    flat = class_map(np.ones((400, 9)), np.ones((400, 9)), labels, labels, partner=np.arange(400))
    assert flat.value == pytest.approx(np.mean([((labels == each).sum() - 1) / 399 for each in labels]), abs=1e-12)


def test_class_map_with_missing_labels_and_undefined_rows():
    rng = np.random.default_rng(1)
    q, g = pairs(rng, 30, noise=0.3)
    labels = np.array(["a", "b", None] * 10, dtype=object)
    labels[0] = "alone"
    q[1], g[4, :2] = np.nan, (np.inf, -np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = class_map(q, g, labels, labels, partner=np.arange(30))
    assert (found.n_unlabelled, found.n_undefined) == (10, 2)  # the query "alone", and the one with NaN
    assert found.per_class["alone"] == 0
    known = np.flatnonzero(labels != np.array(None))
    one = np.zeros(30)
    for i in known:
        if i > 1:
            score = np.array([-9.0 if j == 4 else similarity(q[i : i + 1], g[j : j + 1], True)[0, 0] for j in known])
            keep = known != i
            one[i] = average_precision_score((labels[known] == labels[i])[keep], score[keep])
    assert found.value == pytest.approx(one[known].mean(), abs=1e-12)
    order = rng.permutation(30)
    again = class_map(q[order], g, labels[order], labels, partner=order)
    assert again.value == pytest.approx(found.value, abs=1e-12)


def plain_gap(q, g, group, k):
    """The definition, one query after the other; without equal scores."""
    score, n = similarity(q, g, True), len(q)
    within, across, own = [], [], []
    for i in range(n):
        mine, other = [j for j in range(n) if group[j] == group[i] and j != i], [j for j in range(n) if group[j] != group[i]]
        within.append(np.mean(score[i, i] > score[i, mine]))
        across.append(np.mean(score[i, i] > score[i, other]))
        best = sorted([j for j in range(n) if j != i], key=lambda j, i=i: -score[i, j])[:k]
        own.append(np.mean(group[best] == group[i]))
    expected = np.mean([((group == each).sum() - 1) / (n - 1) for each in group])
    return np.mean(within), np.mean(across), np.mean(own), expected


@pytest.mark.parametrize("offset", [0.0, 1.5, 30.0])
def test_gap(offset):
    rng = np.random.default_rng(2)
    n, k = 90, 5
    group = rng.integers(0, 3, n)
    q, g = pairs(rng, n)
    shift = offset * rng.normal(size=(3, 6))[group]
    q, g = q + shift, g + shift
    found = retrieval_gap(q, g, group, k=k)
    within, across, own, expected = plain_gap(q, g, group, k)
    assert (found.within, found.across) == pytest.approx((within, across), abs=1e-12)
    assert (found.own_share, found.expected_share) == pytest.approx((own, expected), abs=1e-12)
    assert found.gap == found.across - found.within
    pooled, inside = retrieve(q, g), retrieve(q, g, group=group, within="group")
    assert (found.recall_pooled, found.chance_pooled) == pytest.approx((pooled.recall(k), pooled.chance(k)))
    assert (found.recall_within, found.chance_within) == pytest.approx((inside.recall(k), inside.chance(k)))
    assert found == retrieval_gap(q, g, group, k=k, chunk=7)
    if offset == 0:
        assert abs(found.gap) < 0.05
        assert found.own_share == pytest.approx(found.expected_share, abs=0.1)
    if offset == 30:
        assert found.across > 0.97
        assert found.own_share > 0.9


def test_gap_where_sections_are_all_that_is_known():
    """An embedding of the section alone: chance within, certain across; at the k-th place equal scores share the places."""
    group = np.repeat([0, 1, 2], [4, 10, 6])
    x = np.eye(3)[group]
    found = retrieval_gap(x, x, group, k=5)
    assert found.within == 0.5
    assert found.across == 1
    assert found.recall_within == pytest.approx(found.chance_within)
    wanted = np.array([(3 + 2 * 0) / 5] * 4 + [1.0] * 10 + [1.0] * 6)  # three others of its own, then two of sixteen strangers
    assert found.own_share == pytest.approx(wanted.mean())
    flat = retrieval_gap(np.ones((20, 2)), np.ones((20, 2)), group, k=5)
    assert flat.gap == 0
    assert flat.own_share == pytest.approx(flat.expected_share)
    broken = x.copy()
    broken[:4] = np.nan
    half = retrieval_gap(broken, x, group, k=5)
    assert half.n_undefined == 4
    assert half.across == pytest.approx(16 / 20)
    assert half.own_share == 1
    nothing = retrieval_gap(np.full((20, 3), np.nan), x, group)
    assert (nothing.within, nothing.across, nothing.own_share, nothing.recall_pooled) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"gallery": np.ones((4, 3))}, ValueError, "different numbers of columns: {'query': 2, 'gallery': 3}"),
        ({"gallery": np.ones((5, 2))}, ValueError, "4 queries and 5 gallery items"),
        ({"query": np.ones(4)}, ValueError, r"query has shape \(4,\)"),
        ({"query": np.ones((0, 2))}, ValueError, r"query has shape \(0, 2\)"),
        ({"query": np.ones((4, 2), complex)}, TypeError, "query has dtype complex128; wanted real numbers"),
        ({"partner": np.array([0, 1, 2, 4])}, ValueError, "from 0 to 4; wanted"),
        ({"partner": np.array([0, 1, 2, -1])}, ValueError, "from -1 to 2; wanted"),
        ({"partner": np.array([0, 1])}, ValueError, r"partner has shape \(2,\)"),
        ({"partner": np.array([0.0, 1, 2, 3])}, TypeError, "partner has dtype float64"),
        ({"exclude_um": 100.0}, ValueError, "Pass `gallery_um=`"),
        ({"exclude_um": 100.0, "gallery_um": np.zeros((4, 3))}, ValueError, r"gallery_um has shape \(4, 3\); wanted \(4, 2\)"),
        ({"exclude_um": 100.0, "gallery_um": np.full((4, 2), np.nan)}, ValueError, "gallery_um has 4 rows of 4 with NaN"),
        ({"exclude_um": 1.0, "gallery_um": np.zeros((4, 2)), "query_um": np.zeros((3, 2))}, ValueError, r"query_um has shape \(3, 2\)"),
        ({"exclude_um": -1.0}, ValueError, "exclude_um=-1.0; wanted 0 or more"),
        ({"exclude_um": "200"}, TypeError, "wanted a number of µm"),
        ({"within": "section"}, ValueError, "within='section' is not known"),
        ({"within": "group"}, ValueError, "needs the group of each query"),
        ({"group": [1, 1, 2]}, ValueError, "group has 3 labels, 0 of them missing; wanted 4"),
        ({"group": [1, 1, 2, None]}, ValueError, "group has 4 labels, 1 of them missing"),
        ({"group": [1, 1, 2, 2], "partner": np.arange(4)}, ValueError, "Only one of group and gallery_group"),
        ({"gallery_group": [1, 1, 2, 2]}, ValueError, "Only one of group and gallery_group"),
        ({"chunk": 0}, ValueError, "chunk=0"),
    ],
)
def test_errors_of_retrieve(change, error, match):
    with pytest.raises(error, match=match):
        retrieve(**{"query": np.ones((4, 2)), "gallery": np.ones((4, 2)), **change})


def test_errors_of_the_others():
    x = np.ones((4, 2))
    with pytest.raises(ValueError, match="batch_size=0"):
        retrieve_in_batches(x, x, batch_size=0)
    with pytest.raises(TypeError, match="legacy"):
        retrieve_in_batches(x, x, shuffle=np.random.RandomState(0))
    with pytest.raises(ValueError, match="4 queries and 3 gallery items"):
        retrieve_in_batches(x, x[:3])
    with pytest.raises(ValueError, match="k=0"):
        retrieve(x, x).recall(0)
    with pytest.raises(ValueError, match="query_labels has 3 labels"):
        class_map(x, x, [1, 1, 2], [1, 1, 2, 2], partner=None)
    with pytest.raises(ValueError, match="gallery_labels has 4 labels, 4 of them missing"):
        class_map(x, x, [1, 1, 2, 2], [None] * 4, partner=None)
    with pytest.raises(TypeError, match="mix strings"):
        class_map(x, x, [1, 1, 2, 2], ["1", "1", "2", "2"], partner=None)
    with pytest.raises(ValueError, match="There are 1 sections"):
        retrieval_gap(x, x, [0, 0, 0, 0])
    with pytest.raises(ValueError, match="the smallest with 1 items"):
        retrieval_gap(x, x, [0, 0, 0, 1])
