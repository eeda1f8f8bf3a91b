"""Smoothing on a graph against a dense solve, and leaving out against doing it."""

import numpy as np
import pytest

from stimg.image.interpolate import laplacian
from stimg.image.interpolate._laplacian import ANCHOR, adjacency


def dense(places, k):
    """Weights of the graph by sorting all distances, for places without ties."""
    n = len(places)
    gap = np.sqrt(((places[:, None] - places) ** 2).sum(-1))
    one = np.zeros((n, n))
    for i in range(n):
        for j in np.argsort(gap[i])[1 : k + 1]:
            one[i, j] = 1
    return (one + one.T) / 2


@pytest.fixture
def section():
    rng = np.random.default_rng(0)
    return rng.uniform(0, 9, (30, 2)), rng.normal(size=(30, 3)), rng.uniform(0, 9, (12, 2))


def solved(known, values, wanted, alpha, weight, k=6):
    places = np.concatenate([known, wanted])
    graph = dense(places, k)
    system = np.diag(graph.sum(axis=1)) - graph
    pull = np.zeros(len(places))
    pull[: len(known)] = weight
    middle = values.mean(axis=0)
    right = np.zeros((len(places), values.shape[1]))
    right[: len(known)] = weight[:, None] * (values - middle)
    return np.linalg.solve(np.diag(pull + ANCHOR) + alpha * system, right) + middle


def test_the_graph():
    places = np.random.default_rng(1).uniform(0, 5, (25, 2))
    np.testing.assert_allclose(adjacency(places, 6).toarray(), dense(places, 6))
    lattice = np.argwhere(np.ones((5, 5))).astype(float)
    graph = adjacency(lattice, 4).toarray()
    np.testing.assert_allclose(graph[12, [7, 11, 13, 17]], 1)
    assert np.count_nonzero(graph[12]) == 4
    np.testing.assert_allclose(graph, graph.T)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("alpha", [0.3, 10.0])
def test_one_strength_is_a_dense_solve(section, alpha, uneven):
    known, values, wanted = section
    noise = np.random.default_rng(2).uniform(0.5, 2, 30) if uneven else None
    weight = np.ones(30) if noise is None else np.median(noise) / noise
    found = laplacian(known, values, wanted, strengths=[alpha], noise=noise)
    np.testing.assert_allclose(found.values, solved(known, values, wanted, alpha, weight)[30:], atol=1e-8)


def test_the_strength_has_the_least_error_when_single_places_are_left_out(section):
    known, values, wanted = section
    strengths = (0.1, 1.0, 10.0)
    losses = []
    for alpha in strengths:
        errors = np.zeros((30, 3))
        for i in range(30):  # the place stays in the graph and loses its value
            weight = np.ones(30)
            weight[i] = 0
            errors[i] = values[i] - solved(known, values, wanted, alpha, weight)[i]
        losses.append((errors**2).mean(axis=0))
    best = int(np.argmin([(loss / values.var(axis=0)).sum() for loss in losses]))
    found = laplacian(known, values, wanted, strengths=strengths)
    np.testing.assert_allclose(found.values, laplacian(known, values, wanted, strengths=[strengths[best]]).values)
    np.testing.assert_allclose(found.variance, np.tile(losses[best], (12, 1)), rtol=1e-4)


def test_places_that_nothing_reaches_get_the_mean():
    rng = np.random.default_rng(3)
    known, far = rng.uniform(0, 5, (20, 2)), rng.uniform(1000, 1005, (20, 2))
    values = rng.normal(size=(20, 2))
    np.testing.assert_allclose(laplacian(known, values, far, strengths=[1.0]).values, np.tile(values.mean(axis=0), (20, 1)), atol=1e-3)


def test_bad_options(section):
    with pytest.raises(ValueError, match="strengths is empty"):
        laplacian(*section, strengths=[])
    with pytest.raises(ValueError, match=r"strengths=-1\.0 is not above zero"):
        laplacian(*section, strengths=[-1.0])
    with pytest.raises(ValueError, match="k=0 is not usable"):
        laplacian(*section, k=0)
