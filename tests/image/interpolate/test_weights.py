"""Weighted means against scikit-learn, scipy and plain loops."""

import numpy as np
import pytest
from scipy.interpolate import CloughTocher2DInterpolator, LinearNDInterpolator, griddata
from sklearn.neighbors import KNeighborsRegressor

from stimg.image import interpolate
from stimg.image.interpolate._gaussian import BANDWIDTHS, best_bandwidth, gaussian_mean
from stimg.image.interpolate._weights import k_nearest_weights, linear_weights, nearest_weights


@pytest.fixture
def free():
    """Places without ties, values of more genes than places and of fewer."""
    rng = np.random.default_rng(0)
    return rng.uniform(0, 9, (60, 2)), rng.normal(size=(60, 5)), rng.uniform(-1, 10, (40, 2))


def test_nearest_and_k_nearest_agree_with_scikit_learn(free):
    known, values, wanted = free
    np.testing.assert_allclose(interpolate.nearest(known, values, wanted).values, griddata(known, values, wanted, method="nearest"))
    for k in (1, 3, 8):
        expected = KNeighborsRegressor(k).fit(known, values).predict(wanted)
        np.testing.assert_allclose(interpolate.k_nearest(known, values, wanted, k=k).values, expected)
    everything = interpolate.k_nearest(known, values, wanted, k=100).values
    np.testing.assert_allclose(everything, np.tile(values.mean(axis=0), (40, 1)))


@pytest.mark.parametrize(("k", "power"), [(8, 2.0), (5, 1.0), (12, 3.5)])
def test_inverse_distance_agrees_with_scikit_learn(free, k, power):
    known, values, wanted = free
    expected = KNeighborsRegressor(k, weights=lambda d: d**-power).fit(known, values).predict(wanted)
    np.testing.assert_allclose(interpolate.inverse_distance(known, values, wanted, k=k, power=power).values, expected)
    there = interpolate.inverse_distance(known, values, known, k=k, power=power).values
    np.testing.assert_allclose(there, values)


def test_ties_share_the_places_that_are_left():
    known = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]])
    weights = k_nearest_weights(known, np.zeros((1, 2)), 3).toarray()[0]
    np.testing.assert_allclose(weights, [1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 3])
    assert k_nearest_weights(known, np.zeros((0, 2)), 3).shape == (0, 5)


@pytest.mark.parametrize("function", ["linear", "cubic"])
def test_triangles_agree_with_scipy_and_the_nearest_outside(free, function):
    known, values, wanted = free
    order = np.lexsort(known.T[::-1])
    made = LinearNDInterpolator if function == "linear" else CloughTocher2DInterpolator
    options = {} if function == "linear" else {"tol": 1e-10, "maxiter": 5000}
    expected = made(known[order], values[order], **options)(wanted)
    outside = np.isnan(expected).any(axis=1)
    assert 3 < outside.sum() < 20
    expected[outside] = griddata(known, values, wanted[outside], method="nearest")
    np.testing.assert_allclose(getattr(interpolate, function)(known, values, wanted).values, expected, atol=1e-6)


def test_cubic_is_the_same_by_genes_and_by_places_and_reproduces_a_plane(free):
    known, _, wanted = free
    many = np.random.default_rng(1).normal(size=(60, 90))
    together = interpolate.cubic(known, many, wanted).values
    apart = np.concatenate([interpolate.cubic(known, many[:, i : i + 30], wanted).values for i in (0, 30, 60)], axis=1)
    np.testing.assert_allclose(together, apart, atol=1e-5)
    inside = wanted[griddata(known, known[:, 0], wanted) == griddata(known, known[:, 0], wanted)]
    plane = interpolate.cubic(known, known @ [[2.0], [-1.0]] + 3, inside).values[:, 0]
    np.testing.assert_allclose(plane, inside @ [2.0, -1.0] + 3, atol=1e-6)
    twice = interpolate.cubic(np.repeat(known, 2, axis=0), np.repeat(many, 2, axis=0) + np.tile([[1.0], [-1.0]], (60, 1)), wanted).values
    np.testing.assert_allclose(twice, together, atol=1e-6)


def test_one_row_of_places_has_no_triangle():
    known, wanted = np.array([[0.0, 0.0], [0.0, 2.0], [0.0, 4.0]]), np.array([[0.0, 1.0], [0.0, 3.5]])
    assert (linear_weights(known, wanted) != nearest_weights(known, wanted)).nnz == 0
    assert nearest_weights(known, wanted).toarray().tolist() == [[1, 0, 0], [0, 0, 1]]
    np.testing.assert_allclose(interpolate.cubic(known, known, wanted).values, known[[0, 2]])


def test_gaussian_agrees_with_a_plain_loop(free):
    known, values, wanted = free
    far = ((known[:, None] - known) ** 2).sum(-1)

    def loop(h, square):
        weight = np.exp(-square / (2 * h * h))
        return weight @ values / weight.sum(axis=1, keepdims=True)

    losses = {}
    for h in BANDWIDTHS:
        other = far + np.diag(np.full(60, np.inf))
        other = other - other.min(axis=1, keepdims=True)  # so that small bandwidths do not underflow
        losses[h] = (loop(h, other) - values) ** 2
    best = min(BANDWIDTHS, key=lambda h: (losses[h].mean(axis=0) / values.var(axis=0)).sum())
    chosen, error = best_bandwidth(known, values)
    assert chosen == best
    np.testing.assert_allclose(error, losses[best].mean(axis=0), rtol=5e-3)
    found = interpolate.gaussian(known, values, wanted)
    np.testing.assert_allclose(found.values, loop(best, ((wanted[:, None] - known) ** 2).sum(-1)), atol=5e-3)
    np.testing.assert_allclose(found.variance, np.tile(error, (40, 1)))


def test_gaussian_gives_something_however_small_the_bandwidth(monkeypatch):
    known = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 900.0]])
    values = np.array([[1.0], [2.0], [5.0]])
    np.testing.assert_allclose(gaussian_mean(known, values, known, 0.35, np.arange(3)), [[2], [1], [2]])
    np.testing.assert_allclose(gaussian_mean(known, values, np.array([[0.0, 0.2], [0.0, 1.2]]), 0.02), [[1], [2]])
    places = np.random.default_rng(0).uniform(0, 9, (50, 2))
    whole = gaussian_mean(known, values, places, 1.0)
    monkeypatch.setattr("stimg.image.interpolate._gaussian.ROWS", 7)
    np.testing.assert_allclose(gaussian_mean(known, values, places, 1.0), whole, rtol=1e-12)


@pytest.mark.parametrize("function", ["nearest", "linear", "cubic", "k_nearest", "inverse_distance", "gaussian", "kriging", "laplacian"])
def test_bad_input(free, function):
    known, values, wanted = free
    call = getattr(interpolate, function)
    with pytest.raises(ValueError, match=r"known has shape \(60, 1\); wanted \(n, 2\), \(y, x\) in pitches"):
        call(known[:, :1], values, wanted)
    with pytest.raises(ValueError, match=r"values has shape \(59, 5\) for 60 known places"):
        call(known, values[1:], wanted)
    spoilt = values.copy()
    spoilt[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"values has 1 rows of 60 with NaN"):
        call(known, spoilt, wanted)
    with pytest.raises(ValueError, match=r"wanted has 40 rows of 40 with NaN"):
        call(known, values, wanted * np.nan)
    with pytest.raises(ValueError, match=r"There are 0 known places; wanted at least"):
        call(known[:0], values[:0], wanted)
