"""Compositions against their parts, left-out predictions against plain refits, windows against the whole."""

import numpy as np
import pytest

from stimg.image.interpolate import (
    BEST,
    METHODS,
    Interpolated,
    Measured,
    axes_of_sections,
    cross_fitted,
    in_windows,
    kriging,
    mean_of,
    on_residual,
    trust,
)

SAY = {name: METHODS[name] for name in METHODS}


@pytest.fixture
def measured():
    rng = np.random.default_rng(0)
    rc = np.argwhere(np.ones((9, 9)))[rng.permutation(81)[:60]].astype(float)
    depth = rng.lognormal(7, 0.4, 60)
    rate = np.exp(np.sin(rc[:, :1] / 3) + np.cos(rc[:, 1:] / 2) @ np.ones((1, 1))) * rng.gamma(2, 1, (1, 25))
    counts = rng.poisson(depth[:, None] * rate / rate.sum(axis=1, keepdims=True))
    values = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    loadings = axes_of_sections([(values[::2], depth[::2])], 5)
    return Measured(rc, values, columns=np.array([3, 0, 7]), depth=counts.sum(axis=1).astype(float), loadings=loadings, rows=np.arange(60))


WANTED = np.random.default_rng(1).uniform(0, 8, (17, 2))


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_gives_the_genes_asked_for_whatever_the_order(measured, name):
    method = METHODS[name]
    found = method(measured, WANTED)
    assert found.values.shape == (17, 3)
    assert np.isfinite(found.values).all()
    if found.variance is not None:
        assert (found.variance > 0).all()
    order = np.random.default_rng(2).permutation(60)
    np.testing.assert_allclose(method(measured.part(order), WANTED).values, found.values, atol=1e-7)
    assert method.what.endswith(".")
    if not method.donors:  # residuals are values too
        assert method(measured.with_values(measured.asked - 1.0), WANTED).values.shape == (17, 3)


def test_a_method_for_other_donors_says_so(measured):
    from dataclasses import replace

    with pytest.raises(
        ValueError, match=r"method 'donor_kriging' needs sections of other donors. Pass them \(`reference=`\), or take 'ensemble'"
    ):
        METHODS["donor_kriging"](replace(measured, loadings=None), WANTED)
    with pytest.raises(ValueError, match=r"no method of imputation named 'krigging'. Did you mean 'kriging'\?"):
        METHODS["krigging"]
    assert not METHODS[BEST].donors


def test_without_depth_every_place_counts_alike(measured):
    from dataclasses import replace

    even = replace(measured, depth=np.full(60, 1000.0))
    blind = replace(measured, depth=None)
    for name in ("kriging_by_depth", "pca_kriging_by_depth", "laplacian"):
        np.testing.assert_allclose(METHODS[name](even, WANTED).values, METHODS[name](blind, WANTED).values, atol=1e-9)


def test_mean_of(measured):
    a, b, c = (SAY[n](measured, WANTED) for n in ("nearest", "kriging", "gaussian"))
    found = mean_of([SAY["nearest"], SAY["kriging"], SAY["gaussian"]])(measured, WANTED)
    np.testing.assert_allclose(found.values, (a.values + b.values + c.values) / 3)
    np.testing.assert_allclose(found.variance, (b.variance + c.variance) / 2)
    assert mean_of([SAY["nearest"]])(measured, WANTED).variance is None


def test_cross_fitted_predicts_each_place_without_it(measured):
    """Two observations of one place are left out together, and what is left out changes nothing."""
    from dataclasses import replace

    twice = replace(measured, places=np.repeat(measured.places[:30], 2, axis=0))
    found = cross_fitted(SAY["nearest"], twice, n_folds=4, rng=3)
    points = np.unique(twice.places, axis=0)
    fold = np.random.default_rng(3).permutation(30) % 4
    of = {tuple(p): f for p, f in zip(points, fold, strict=True)}
    for i, place in enumerate(twice.places):
        others = [j for j, p in enumerate(twice.places) if of[tuple(p)] != of[tuple(place)]]
        expected = SAY["nearest"](twice.part(np.array(others)), place[None]).values[0]
        np.testing.assert_allclose(found.values[i], expected)
    assert found.variance is None
    assert cross_fitted(SAY["kriging"], measured).variance is not None


def test_on_residual(measured):
    found = on_residual(SAY["mean"], SAY["kriging"], n_folds=5, rng=1)(measured, WANTED)
    seed = np.random.SeedSequence(int(np.random.default_rng(1).integers(2**31)))
    left = cross_fitted(SAY["mean"], measured, n_folds=5, rng=np.random.default_rng(seed)).values
    rest = kriging(measured.places, measured.asked - left, WANTED)
    np.testing.assert_allclose(found.values, measured.asked.mean(axis=0) + rest.values, atol=1e-9)
    np.testing.assert_allclose(found.variance, rest.variance)


def test_on_residual_mends_what_the_first_misses(measured):
    def blind(part, wanted):
        return Interpolated(np.zeros((len(wanted), 3)))

    mended = on_residual(blind, SAY["kriging"])(measured, WANTED)
    np.testing.assert_allclose(mended.values, SAY["kriging"](measured, WANTED).values, atol=1e-9)


@pytest.mark.parametrize("name", ["kriging", "nearest", "gaussian"])
def test_trust_holds_nine_tenths(measured, name):
    found = trust(SAY[name], measured, rng=0)
    left = cross_fitted(SAY[name], measured, rng=0)
    sd = np.ones_like(left.values) if left.variance is None else np.sqrt(left.variance)
    assert found.own == (left.variance is not None)
    np.testing.assert_array_equal(found.predicted, left.values)
    inside = (np.abs(measured.asked - left.values) <= 1.6448537 * found.factor * sd).sum(axis=0)
    assert (inside == np.ceil(0.9 * 61)).all()


def test_windows(measured):
    """More reach than the section is wide: nothing changes. Places far from what a window misses: nearly nothing."""
    rng = np.random.default_rng(4)
    rc = np.argwhere(np.ones((40, 12))).astype(float)
    values = np.column_stack([np.sin(rc[:, 0] / 4), np.cos(rc[:, 1] / 3)]) + rng.normal(0, 0.2, (480, 2))
    whole, wanted = Measured(rc, values), rng.uniform([0, 0], [39, 11], (60, 2))
    full = SAY["kriging"](whole, wanted)
    for halo, tolerance in ((100.0, 1e-12), (8.0, 0.12)):
        cut = in_windows(SAY["kriging"], most=120, halo=halo)(whole, wanted)
        np.testing.assert_allclose(cut.values, full.values, atol=tolerance)
        np.testing.assert_allclose(cut.variance, full.variance, rtol=1e-9 if halo == 100 else 0.5)
    seen = []

    def spy(part, wanted):
        seen.append(len(part.places))
        return SAY["nearest"](part, wanted)

    np.testing.assert_allclose(in_windows(spy, most=120, halo=3.0)(whole, wanted).values, SAY["nearest"](whole, wanted).values)
    assert len(seen) == 4
    assert max(seen) < 300
    far = in_windows(spy, most=120, halo=1.0)(whole, np.full((1, 2), 500.0))
    assert far.variance is None
    assert seen[-1] >= 64
    assert in_windows(spy, most=120)(whole, wanted[:0]).values.shape == (0, 2)


def test_parts_hold_nothing_of_the_rest(measured):
    part = measured.part(np.arange(60) % 2 == 0)
    assert part.rows.tolist() == list(range(0, 60, 2))
    for name in ("places", "values", "depth"):
        assert not np.shares_memory(getattr(part, name), getattr(measured, name))
