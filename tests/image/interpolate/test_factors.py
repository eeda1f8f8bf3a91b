"""Axes against scikit-learn and plain formulas, factor kriging against kriging of scores made by hand."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from stimg.image.interpolate import Axes, axes_of_sections, count_noise, factor_kriging, kriging, principal_axes


@pytest.mark.parametrize("shape", [(40, 12), (15, 60)])
def test_axes_agree_with_scikit_learn(shape):
    values = np.random.default_rng(0).normal(size=shape) * np.linspace(3, 1, shape[1]) + 5
    found = principal_axes(values, 6)
    expected = PCA(6, svd_solver="full").fit(values)
    np.testing.assert_allclose(found.mean, expected.mean_)
    np.testing.assert_allclose(np.abs(np.sum(found.loadings * expected.components_, axis=1)), 1, atol=1e-8)
    np.testing.assert_allclose(found.loadings @ found.loadings.T, np.eye(6), atol=1e-9)


def test_weights_are_repeats_and_scale_divides():
    rng = np.random.default_rng(1)
    values, times = rng.normal(size=(20, 8)), rng.integers(1, 5, 20)
    scale = rng.uniform(0.5, 2, 8)
    found = principal_axes(values, 4, weights=times, scale=scale)
    expected = principal_axes(np.repeat(values, times, axis=0) / scale, 4)
    np.testing.assert_allclose(found.mean, expected.mean * scale)
    np.testing.assert_allclose(np.abs(np.sum(found.loadings * expected.loadings, axis=1)), 1, atol=1e-9)


def test_few_observations_and_no_variance():
    values = np.random.default_rng(2).normal(size=(3, 10))
    assert principal_axes(values, 20).loadings.shape == (2, 10)
    flat = principal_axes(np.ones((5, 10)), 4)
    assert flat.loadings.shape == (0, 10)
    found = factor_kriging(np.random.default_rng(0).uniform(0, 5, (5, 2)), np.ones((5, 10)), np.zeros((3, 2)), axes=flat)
    np.testing.assert_allclose(found.values, np.ones((3, 10)))
    assert (found.variance == 0).all()


def test_count_noise_is_that_of_poisson_counts():
    rng = np.random.default_rng(3)
    rate, depth = np.array([2.0, 10.0, 60.0]), 20_000.0
    counts = rng.poisson(rate * depth / 1e4, (20_000, 3))
    values = np.log1p(1e4 * counts / depth)
    np.testing.assert_allclose(count_noise(values, np.full(20_000, depth)), values.std(axis=0), rtol=0.06)
    assert (count_noise(np.zeros((10, 2)), np.full(10, depth)) > 0).all()


@pytest.mark.parametrize("genes", [10, 60])
def test_axes_of_sections_agree_with_an_svd(genes):
    rng = np.random.default_rng(4)
    sections = [(rng.normal(size=(n, genes)) + rng.normal(size=genes) * 9, rng.uniform(1, 5, n)) for n in (12, 25)]
    found = axes_of_sections(sections, 5)
    rows = []
    for values, depth in sections:
        mean = np.average(values, axis=0, weights=depth)
        rows += [(v - mean) * np.sqrt(d / depth.mean()) for v, d in zip(values, depth, strict=True)]
    expected = np.linalg.svd(np.array(rows), full_matrices=False)[2][:5]
    np.testing.assert_allclose(np.abs(np.sum(found * expected, axis=1)), 1, atol=1e-9)


def test_factor_kriging_is_kriging_of_scores():
    rng = np.random.default_rng(5)
    known, wanted = rng.uniform(0, 9, (40, 2)), rng.uniform(0, 9, (15, 2))
    values, depth = rng.normal(size=(40, 12)), rng.uniform(1, 4, 40)
    axes = principal_axes(values, 3, weights=depth, scale=rng.uniform(0.5, 2, 12))
    columns = np.array([4, 0, 11])
    found = factor_kriging(known, values, wanted, axes=axes, columns=columns, noise=1 / depth, sharing="none")
    scores = np.array(
        [[sum(axes.loadings[k, g] * (values[i, g] - axes.mean[g]) / axes.scale[g] for g in range(12)) for k in range(3)] for i in range(40)]
    )
    there = kriging(known, scores, wanted, noise=1 / depth, sharing="none")
    for j, gene in enumerate(columns):
        loading = axes.scale[gene] * axes.loadings[:, gene]
        np.testing.assert_allclose(found.values[:, j], axes.mean[gene] + there.values @ loading, atol=1e-10)
        rest = np.mean((values[:, gene] - axes.mean[gene] - scores @ loading) ** 2)
        np.testing.assert_allclose(found.variance[:, j], there.variance @ loading**2 + rest, rtol=1e-9)


def test_shared_programmes_are_predicted_better_than_gene_by_gene():
    """Fifty noisy genes that follow two smooth programmes: what they share is measured fifty times."""
    rng = np.random.default_rng(6)
    places = np.argwhere(np.ones((16, 16))).astype(float)
    programmes = np.column_stack([np.sin(places[:, 0] / 3), np.cos(places[:, 1] / 4)])
    truth = programmes @ rng.normal(size=(2, 50))
    values = truth + rng.normal(0, 2.0, truth.shape)
    half = rng.permutation(256) < 128
    alone = kriging(places[half], values[half], places[~half]).values
    shared = factor_kriging(places[half], values[half], places[~half], axes=principal_axes(values[half], 5)).values
    assert ((shared - truth[~half]) ** 2).mean() < 0.75 * ((alone - truth[~half]) ** 2).mean()


def test_axes_of_other_genes():
    with pytest.raises(ValueError, match="The axes have 4 genes and values 3; wanted the same genes in both"):
        factor_kriging(np.zeros((5, 2)), np.zeros((5, 3)), np.zeros((1, 2)), axes=Axes(np.zeros(4), np.ones(4), np.eye(4)))
