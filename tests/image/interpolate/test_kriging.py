"""Kriging against Gaussian processes of scikit-learn, dense solves, and densities of contrasts by scipy."""

import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from stimg.image.interpolate import kriging, matern
from stimg.image.interpolate._kriging import _candidate, _half, _log_likelihood, _weights


@pytest.fixture
def section():
    rng = np.random.default_rng(0)
    known, wanted = rng.uniform(0, 10, (50, 2)), rng.uniform(0, 10, (20, 2))
    covariance = 2 * matern(cdist(known, known), 3.0) + 0.5 * np.eye(50)
    values = rng.multivariate_normal(np.zeros(50), covariance, size=4).T
    return known, values + np.array([0.0, 5.0, -3.0, 1.0]), wanted


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5])
def test_matern_agrees_with_scikit_learn(smoothness):
    x = np.random.default_rng(1).uniform(0, 5, (30, 2))
    np.testing.assert_allclose(matern(cdist(x, x), 1.7, smoothness), Matern(1.7, nu=smoothness)(x), atol=1e-12)


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5])
@pytest.mark.parametrize("uneven", [False, True])
def test_one_candidate_is_a_gaussian_process_with_a_free_mean(section, smoothness, uneven):
    known, values, wanted = section
    noise = np.random.default_rng(2).uniform(0.3, 3, 50) if uneven else np.ones(50)
    found = kriging(known, values, wanted, noise=7 * noise, smoothness=smoothness, ranges=[2.5], shares=[0.3])
    kernel = ConstantKernel(1e7, "fixed") + ConstantKernel(0.7, "fixed") * Matern(2.5, "fixed", nu=smoothness)
    process = GaussianProcessRegressor(kernel, alpha=0.3 * noise / np.median(noise), optimizer=None).fit(known, values[:, 0])
    mean, sd = process.predict(wanted, return_std=True)
    np.testing.assert_allclose(found.values[:, 0], mean, atol=2e-4)
    covariance = 0.7 * Matern(2.5, nu=smoothness)(known) + np.diag(0.3 * noise / np.median(noise))
    inverse = np.linalg.inv(covariance)
    one = np.ones(50)
    projected = inverse - np.outer(inverse @ one, inverse @ one) / (one @ inverse @ one)
    sigma = values[:, 0] @ projected @ values[:, 0] / 49
    np.testing.assert_allclose(found.variance[:, 0], sigma * (sd**2 + 0.3), rtol=1e-3)


def test_restricted_likelihood_is_the_density_of_contrasts(section):
    known, values, _ = section
    noise = np.random.default_rng(3).uniform(0.5, 2, 50)
    contrasts = scipy.linalg.null_space(np.ones((1, 50)))
    found, expected = [], []
    for length, share in ((1.0, 0.2), (3.0, 0.2), (3.0, 0.7), (8.0, 1.0)):
        part = _candidate(cdist(known, known), length, 0.5, _half(noise, 50), values)
        found.append(_log_likelihood(part, np.array([share]))[0])
        covariance = (
            contrasts.T @ ((1 - share) * matern(cdist(known, known), length) + share * np.diag(noise / np.median(noise))) @ contrasts
        )
        turned = contrasts.T @ values
        each = []
        for gene in range(4):
            sigma = turned[:, gene] @ np.linalg.solve(covariance, turned[:, gene]) / 49
            each.append(multivariate_normal(np.zeros(49), sigma * covariance).logpdf(turned[:, gene]))
        expected.append(each)
    np.testing.assert_allclose(np.diff(found, axis=0), np.diff(expected, axis=0), rtol=1e-8)


def test_weights_of_candidates():
    likelihood = np.random.default_rng(4).normal(0, 3, (2, 3, 7))
    pooled, none, averaged = (_weights(likelihood, sharing) for sharing in ("pooled", "none", "averaged"))
    best = np.unravel_index(likelihood.sum(axis=2).argmax(), (2, 3))
    assert (pooled[best] == 1).all()
    assert pooled.sum() == 7
    for gene in range(7):
        assert none[..., gene].argmax() == likelihood[..., gene].argmax()
    prior = np.full(6, 1 / 6)
    for _ in range(50):
        weight = np.array([[np.exp(likelihood.reshape(6, 7)[k, g]) * prior[k] for g in range(7)] for k in range(6)])
        weight = weight / weight.sum(axis=0)
        prior = weight.mean(axis=1)
    np.testing.assert_allclose(averaged.reshape(6, 7), weight, atol=1e-12)


def test_averaged_is_the_mean_over_candidates(section):
    known, values, wanted = section
    ranges, shares = [1.0, 4.0], [0.2, 0.6]
    found = kriging(known, values, wanted, ranges=ranges, shares=shares)
    likelihood = np.stack([_log_likelihood(_candidate(cdist(known, known), r, 0.5, np.ones(50), values), np.array(shares)) for r in ranges])
    weight = _weights(likelihood, "averaged")
    expected = sum(
        weight[i, j] * kriging(known, values, wanted, ranges=[r], shares=[s]).values
        for i, r in enumerate(ranges)
        for j, s in enumerate(shares)
    )
    np.testing.assert_allclose(found.values, expected, atol=1e-10)


def test_range_and_noise_are_found_again():
    rng = np.random.default_rng(5)
    known = np.argwhere(np.ones((18, 18))).astype(float)
    covariance = matern(cdist(known, known), 5.6) + 0.25 * np.eye(324)
    values = rng.multivariate_normal(np.zeros(324), covariance, size=30, method="cholesky").T
    likelihood = np.stack(
        [
            _log_likelihood(_candidate(cdist(known, known), r, 0.5, np.ones(324), values), np.array([0.05, 0.2, 0.5, 0.9]))
            for r in (1.4, 2.8, 5.6, 11.0)
        ]
    )
    assert np.unravel_index(likelihood.sum(axis=2).argmax(), (4, 4)) == (2, 1)


@pytest.mark.parametrize("sharing", ["averaged", "pooled", "none"])
def test_order_repeated_places_constant_genes_and_scale(section, sharing):
    known, values, wanted = section
    values = np.column_stack([values, np.full(50, 2.5), np.zeros(50)])
    found = kriging(known, values, wanted, sharing=sharing)
    np.testing.assert_allclose(found.values[:, 4:], np.tile([2.5, 0.0], (20, 1)), atol=1e-12)
    assert (found.variance[:, 4:] == 0).all()
    assert (found.variance[:, :4] > 0).all()
    order = np.random.default_rng(6).permutation(50)
    again = kriging(known[order], values[order], wanted, sharing=sharing)
    np.testing.assert_allclose(again.values, found.values, atol=1e-9)
    if sharing != "pooled":
        larger = kriging(known, values * 1000 + 3, wanted, sharing=sharing)
        np.testing.assert_allclose(larger.values, found.values * 1000 + 3, rtol=1e-6)
    twice = kriging(np.repeat(known, 2, axis=0), np.repeat(values, 2, axis=0), wanted, sharing=sharing)
    assert np.isfinite(twice.values).all()


def test_a_noisy_place_counts_less():
    known = np.array([[0.0, 0.0], [0.0, 2.0], [0.0, 40.0], [0.0, 41.0], [0.0, 42.0]])
    values = np.array([[0.0], [10.0], [5.0], [5.0], [5.0]])
    middle = np.array([[0.0, 1.0]])
    options = {"ranges": [5.0], "shares": [0.3]}
    even, first, second = (
        kriging(known, values, middle, noise=np.array(n, dtype=float), **options).values[0, 0]
        for n in ([1, 1, 1, 1, 1], [9, 1, 1, 1, 1], [1, 9, 1, 1, 1])
    )
    assert second < even < first


def test_coverage_of_the_model_itself():
    rng = np.random.default_rng(7)
    places = np.argwhere(np.ones((16, 16))).astype(float)
    covariance = matern(cdist(places, places), 4.0) + 0.5 * np.eye(256)
    values = rng.multivariate_normal(np.zeros(256), covariance, size=60, method="cholesky").T
    half = rng.permutation(256) < 128
    found = kriging(places[half], values[half], places[~half])
    inside = np.abs(values[~half] - found.values) <= 1.645 * np.sqrt(found.variance)
    assert 0.88 < inside.mean() < 0.92


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharing": "some"}, r"sharing='some' is not known"),
        ({"smoothness": 1.0}, r"smoothness=1.0 is not known"),
        ({"ranges": []}, r"ranges=\(\); wanted at least one"),
        ({"ranges": [-1.0]}, r"ranges=\(-1.0,\); wanted at least one, all of them positive"),
        ({"shares": [0.0]}, r"shares=\(0.0,\); wanted at least one, all of them above 0"),
        ({"noise": np.zeros(50)}, r"noise has shape \(50,\), smallest value 0; wanted \(50,\) positive"),
        ({"noise": np.ones(3)}, r"noise has shape \(3,\)"),
    ],
)
def test_bad_options(section, options, message):
    with pytest.raises(ValueError, match=message):
        kriging(*section, **options)


def test_too_few_places(section):
    known, values, wanted = section
    with pytest.raises(ValueError, match="There are 3 known places; wanted at least 4"):
        kriging(known[:3], values[:3], wanted)
