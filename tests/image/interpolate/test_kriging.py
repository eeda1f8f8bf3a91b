"""Kriging against Gaussian processes of scikit-learn, dense solves, and densities of contrasts by scipy."""

import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern
from sklearn.linear_model import Ridge

from stimg.image.interpolate import METHODS, Guide, Measured, _kriging, kriging, matern
from stimg.image.interpolate._kriging import _fit, _half, _spectra, _weights, shared_spectra


def likelihood_of(known, values, ranges, shares, half):
    """Restricted log likelihood less what all candidates share, (ranges, shares, genes)."""
    spectra = _spectra(known, None, [(r, 0.0) for r in ranges], 0.5, half)
    return np.stack([_fit(spectrum, np.array(shares), half[:, None] * values).likelihood for spectrum in spectra])


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
        found.append(likelihood_of(known, values, [length], [share], _half(noise, 50))[0, 0])
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
    weight = _weights(likelihood_of(known, values, ranges, shares, np.ones(50)), "averaged")
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
    likelihood = likelihood_of(known, values, [1.4, 2.8, 5.6, 11.0], [0.05, 0.2, 0.5, 0.9], np.ones(324))
    assert np.unravel_index(likelihood.sum(axis=2).argmax(), (4, 4)) == (2, 1)


def test_shared_decompositions_change_nothing_and_are_made_once(section, monkeypatch):
    """Same places and noise: once. Other noise, other places, another smoothness: anew, and never taken for one another."""
    known, values, wanted = section
    noise = np.random.default_rng(7).uniform(0.5, 2, 50)
    calls = [
        (known, values[:, :2], {"noise": noise}),
        (known, values, {"noise": noise}),
        (known, values, {"noise": 4 * noise}),  # in another unit
        (known, values, {}),
        (known + 0.1, values, {}),
        (known, values, {"smoothness": 1.5}),
        (known, values, {"features": (known, wanted)}),
        (known, values, {"noise": noise}),
    ]
    alone = [kriging(k, v, wanted, **options) for k, v, options in calls]
    made = []
    monkeypatch.setattr(_kriging, "eigh", lambda *a, **b: made.append(1) or scipy.linalg.eigh(*a, **b))
    counted = []
    with shared_spectra():
        for (k, v, options), expected in zip(calls, alone, strict=True):
            found = kriging(k, v, wanted, **options)
            np.testing.assert_array_equal(found.values, expected.values)
            np.testing.assert_array_equal(found.variance, expected.variance)
            counted.append(len(made))
    assert np.diff(counted).tolist() == [0, 0, 6, 6, 6, 25, 6]
    kriging(known, values, wanted, noise=noise)
    assert len(made) == counted[-1] + 6  # nothing is kept afterwards


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


@pytest.fixture
def alike():
    rng = np.random.default_rng(8)
    features, weights = rng.normal(2.0, 3.0, (70, 6)), rng.normal(0, 0.3, (6, 4))
    features[:, 5] = 7.0  # a constant feature says nothing
    places = rng.uniform(0, 10, (70, 2))
    return places, features, features @ weights + rng.normal(0, 0.5, (70, 4))


def test_features_alone_are_a_ridge_regression(alike, monkeypatch):
    places, features, values = alike
    monkeypatch.setattr(_kriging, "GUIDED", (1.0,))
    found = kriging(places[:50], values[:50], places[50:], features=(features[:50], features[50:]), ranges=[3.0], shares=[0.2])
    z = (features[:, :5] - features[:50, :5].mean(axis=0)) / features[:50, :5].std(axis=0)
    z = z / np.sqrt((z[:50] ** 2).sum(axis=1).mean())
    ridge = Ridge(alpha=0.2 / 0.8).fit(z[:50], values[:50])
    np.testing.assert_allclose(found.values, ridge.predict(z[50:]), atol=1e-9)


def test_features_and_distance_together_are_one_gaussian_process(alike, monkeypatch):
    places, features, values = alike
    monkeypatch.setattr(_kriging, "GUIDED", (0.4,))
    noise = np.random.default_rng(9).uniform(0.5, 2, 50)
    known, wanted = places[:50], places[50:]
    found = kriging(known, values[:50], wanted, noise=noise, features=(features[:50], features[50:]), ranges=[3.0], shares=[0.3])
    z = (features[:, :5] - features[:50, :5].mean(axis=0)) / features[:50, :5].std(axis=0)
    z = z / np.sqrt((z[:50] ** 2).sum(axis=1).mean())
    cross = 0.7 * (0.6 * matern(cdist(places, places), 3.0) + 0.4 * z @ z.T)
    covariance = cross[:50, :50] + 0.3 * np.diag(noise / np.median(noise))
    system = np.block([[covariance, np.ones((50, 1))], [np.ones((1, 50)), np.zeros((1, 1))]])  # ordinary kriging with a Lagrange multiplier
    for i in range(20):
        right = np.append(cross[50 + i, :50], 1.0)
        solved = np.linalg.solve(system, right)
        np.testing.assert_allclose(found.values[i], solved[:50] @ values[:50], atol=1e-9)
        middle = values[:50] - (inverse := np.linalg.inv(covariance)).sum(axis=0) @ values[:50] / inverse.sum()
        sigma = np.einsum("ig,ij,jg->g", middle, inverse, middle) / 49
        expected = cross[50 + i, 50 + i] - solved @ right + 0.3
        np.testing.assert_allclose(found.variance[i], sigma * expected, rtol=1e-8)


def test_features_help_where_they_matter_and_do_little_harm_where_they_do_not(alike):
    places, features, values = alike
    measured = Measured(places[:50], values[:50], logs=False)
    error = {}
    for name, guide in {"none": None, "true": features, "noise": np.random.default_rng(10).normal(size=features.shape)}.items():
        given = Measured(places[:50], values[:50], logs=False, guide=None if guide is None else Guide(places, guide))
        error[name] = ((METHODS["kriging"](given, places[50:]).values - values[50:]) ** 2).mean()
    assert error["true"] < 0.5 * error["none"]
    assert error["noise"] < 1.1 * error["none"]
    with pytest.raises(
        ValueError, match=r"method 'nearest' reads no features of places. Leave the guide out, or take one of \['depth_ensemble'"
    ):
        METHODS["nearest"](given, places[50:])
    with pytest.raises(ValueError, match="1 of 1 places have no features; wanted features of every place"):
        METHODS["kriging"](given, np.array([[50.0, 50.0]]))
    assert measured.features(places[50:]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k, w: (k[:4], w), r"features have shapes \(4, 6\) and \(20, 6\); wanted \(50, d\) and \(20, d\)"),
        (lambda k, w: (k, w[:, :2]), r"features have shapes \(50, 6\) and \(20, 2\)"),
        (lambda k, w: (k, np.where(w > 0, w, np.nan)), "features of the wanted places"),
    ],
)
def test_bad_features(alike, change, message):
    places, features, values = alike
    with pytest.raises(ValueError, match=message):
        kriging(places[:50], values[:50], places[50:], features=change(features[:50], features[50:]))
