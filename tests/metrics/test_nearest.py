"""The best items of a gallery, beside a full sort of all scores."""

import numpy as np
import pytest

from stimg.metrics import _nearest as module
from stimg.metrics import nearest, retrieve


def sorted_all(query, gallery, k, *, normalise=True, allowed=None):
    """Every score, in a full matrix, and the first k of a stable sort."""
    q, g = np.asarray(query, dtype=np.float64), np.asarray(gallery, dtype=np.float64)
    if normalise:
        q, g = q / np.linalg.norm(q, axis=1, keepdims=True), g / np.linalg.norm(g, axis=1, keepdims=True)
    scores = q @ g.T
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    order = np.argsort(-scores.round(10), axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("n", "m", "k"), [(7, 5, 3), (40, 60, 10), (3, 4, 9)])
def test_as_a_full_sort(monkeypatch, n, m, k, normalise):
    monkeypatch.setattr(module, "COLUMNS", 7)
    rng = np.random.default_rng(0)
    query, gallery = rng.standard_normal((n, 6)), rng.standard_normal((m, 6)) + 0.5
    found = nearest(query, gallery, k=k, normalise=normalise, chunk=4)
    index, score = sorted_all(query, gallery, k, normalise=normalise)
    kept = min(k, m)
    np.testing.assert_array_equal(found.index[:, :kept], index)
    np.testing.assert_allclose(found.score[:, :kept], score, rtol=1e-10)
    assert (found.index[:, kept:] == -1).all()
    assert np.isnan(found.score[:, kept:]).all()


def test_equal_scores_come_in_the_order_of_the_gallery(monkeypatch):
    rng = np.random.default_rng(1)
    some = rng.standard_normal((3, 5))
    gallery = np.repeat(some, 20, axis=0)[rng.permutation(60)] * rng.uniform(0.1, 10, (60, 1))  # the same three directions over and over
    query = some + 0.01 * rng.standard_normal((3, 5))
    whole = nearest(query, gallery, k=25)
    np.testing.assert_array_equal(whole.index, sorted_all(query, gallery, 25)[0])
    monkeypatch.setattr(module, "COLUMNS", 4)
    parts = nearest(query, gallery, k=25, chunk=1)
    np.testing.assert_array_equal(parts.index, whole.index)
    np.testing.assert_array_equal(parts.score, whole.score)


def test_within_a_group():
    rng = np.random.default_rng(2)
    query, gallery = rng.standard_normal((12, 4)), rng.standard_normal((20, 4))
    own, home = np.array(list("aabbc") * 3)[:12], np.array(list("ab") * 10)
    found = nearest(query, gallery, k=12, group=own, gallery_group=home, within="group")
    index, _ = sorted_all(query, gallery, 10, allowed=own[:, None] == home[None])
    for row, letter in enumerate(own):
        if letter == "c":
            assert (found.index[row] == -1).all()  # there is no such item
        else:
            np.testing.assert_array_equal(found.index[row, :10], index[row])
            assert (found.index[row, 10:] == -1).all()


def test_rows_without_a_score_find_nothing_and_are_not_found():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((8, 3))
    x[2], x[5, 1] = 0.0, np.nan
    found = nearest(x, x, k=8)
    assert (found.index[[2, 5]] == -1).all()
    assert not np.isin([2, 5], found.index).any()
    np.testing.assert_array_equal(found.index[[0, 1, 3], 0], [0, 1, 3])


def test_the_partner_is_where_its_rank_says():
    rng = np.random.default_rng(4)
    a = rng.standard_normal((50, 5))
    b = a + rng.standard_normal((50, 5))
    found, ranks = nearest(a, b, k=50).index, retrieve(a, b).rank
    np.testing.assert_array_equal(np.argmax(found == np.arange(50)[:, None], axis=1) + 1, ranks)


def test_errors():
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"within='group' needs the group of each query\. Pass `group=`\."):
        nearest(x, x, within="group")
    with pytest.raises(ValueError, match="gallery_group has 3 labels, 0 of them missing; wanted 4"):
        nearest(x, np.ones((4, 2)), group=list("abc"), within="group")
    with pytest.raises(ValueError, match="within='other' is not known"):
        nearest(x, x, group=list("abc"), within="other")
    with pytest.raises(ValueError, match="different numbers of columns"):
        nearest(x, np.ones((3, 4)))
    with pytest.raises(ValueError, match="k=0 is not usable"):
        nearest(x, x, k=0)
