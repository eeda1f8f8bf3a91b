"""Moran's I and Geary's C against scanpy, squidpy, plain sums over dense matrices, and the list of all permutations."""

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from stimg.image.spec import RasterSpec
from stimg.metrics import spatial
from stimg.metrics.spatial import SpatialWeights, autocorrelation, gearys_c, morans_i


def dense_graph(rc: np.ndarray, *, lattice: str, parity: int, diagonal: bool) -> np.ndarray:
    """Adjacency from distances between lattice points: nothing in common with the code under test."""
    y, x = rc[:, 0].astype(float), rc[:, 1].astype(float)
    if lattice == "hex":
        x, y = x + 0.5 * (rc[:, 0] % 2 == parity), y * math.sqrt(3) / 2
    distance = np.hypot(y[:, None] - y, x[:, None] - x)
    return ((distance > 0) & (distance < (1.5 if diagonal else 1.1))).astype(float)


def plain_moran(graph: np.ndarray, x: np.ndarray) -> np.ndarray:
    z = x.astype(np.longdouble) - x.astype(np.longdouble).mean(axis=0)
    top = np.array([(graph * np.outer(c, c)).sum() for c in z.T])
    return (len(x) / graph.sum() * top / (z**2).sum(axis=0)).astype(float)


def plain_geary(graph: np.ndarray, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.longdouble)
    top = np.array([(graph * (c[:, None] - c[None, :]) ** 2).sum() for c in x.T])
    return ((len(x) - 1) / (2 * graph.sum()) * top / ((x - x.mean(axis=0)) ** 2).sum(axis=0)).astype(float)


def tissue(rng, shape, holes=0.25):
    """Occupied lattice points of a raster with holes, in random order."""
    rc = np.argwhere(rng.random(shape) > holes)
    return rc[rng.permutation(len(rc))]


KINDS = [("square", -1, False), ("square", -1, True), ("hex", 0, False), ("hex", 1, False)]


@pytest.mark.parametrize(("lattice", "parity", "diagonal"), KINDS)
@pytest.mark.parametrize("row_standardise", [False, True])
def test_agrees_with_scanpy_and_with_plain_sums(lattice, parity, diagonal, row_standardise):
    import scanpy as sc

    rng = np.random.default_rng(3)
    rc = tissue(rng, (13, 11))
    x = sp.random(len(rc), 40, density=0.3, format="csr", random_state=1, dtype=np.float64)
    x.data[:] = rng.poisson(3, x.nnz) + 1
    x = x.tocsr()
    graph = dense_graph(rc, lattice=lattice, parity=parity, diagonal=diagonal)
    if row_standardise:
        graph = graph / np.maximum(graph.sum(axis=1, keepdims=True), 1)
    weights = SpatialWeights.from_raster(
        RasterSpec(lattice, (13, 11), 100.0, parity), rc, diagonal=diagonal, row_standardise=row_standardise
    )
    sparse_graph = sp.csr_matrix(graph)
    for ours, scanpys, plain in ((morans_i, sc.metrics.morans_i, plain_moran), (gearys_c, sc.metrics.gearys_c, plain_geary)):
        expected = plain(graph, x.toarray())
        for values in (x, x.astype(np.float32), x.astype(np.int64), x.astype(np.uint8), x.tocsc(), x.toarray()):
            np.testing.assert_allclose(ours(values, weights), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(ours(x, sparse_graph), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(ours(x, weights), scanpys(sparse_graph, x.T.tocsr()), rtol=1e-10, atol=1e-12)
    if not row_standardise:
        pairs = np.argwhere(np.triu(graph) > 0)
        np.testing.assert_allclose(morans_i(x, pairs), plain_moran(graph, x.toarray()), rtol=0, atol=1e-12)


def test_a_graph_that_is_not_symmetric_and_has_a_diagonal():
    rng = np.random.default_rng(0)
    graph = sp.random(30, 30, density=0.2, random_state=2, format="csr")
    assert graph.diagonal().any()
    x = rng.poisson(0.6, (30, 12))
    np.testing.assert_allclose(morans_i(sp.csr_matrix(x), graph), plain_moran(graph.toarray(), x), rtol=0, atol=1e-12)
    np.testing.assert_allclose(gearys_c(sp.csr_matrix(x), graph), plain_geary(graph.toarray(), x), rtol=0, atol=1e-12)
    w, g = SpatialWeights.from_graph(graph), graph.toarray()
    assert w.s0 == pytest.approx(g.sum())
    assert w.s1 == pytest.approx(((g + g.T) ** 2).sum() / 2)
    assert w.s2 == pytest.approx(((g.sum(axis=0) + g.sum(axis=1)) ** 2).sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 7), st.integers(2, 7), st.sampled_from(KINDS))
def test_any_small_tissue(seed, height, width, kind):
    rng = np.random.default_rng(seed)
    rc = tissue(rng, (height, width), holes=0.3)
    graph = dense_graph(rc, lattice=kind[0], parity=kind[1], diagonal=kind[2])
    x = rng.poisson(0.7, (len(rc), 5)).astype(np.float32)
    spec = RasterSpec(kind[0], (height, width), 1.0, kind[1])
    if graph.sum() == 0:
        with pytest.raises(ValueError, match="no neighbours"):
            morans_i(sp.csr_matrix(x), SpatialWeights.from_raster(spec, rc, diagonal=kind[2]))
        return
    constant = x.min(axis=0) == x.max(axis=0)
    for ours, plain in ((morans_i, plain_moran), (gearys_c, plain_geary)):
        got = ours(sp.csr_matrix(x), SpatialWeights.from_raster(spec, rc, diagonal=kind[2]))
        assert np.isnan(got[constant]).all()
        np.testing.assert_allclose(got[~constant], plain(graph, x[:, ~constant]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e9])
def test_large_offsets_do_not_cancel(offset):
    rng = np.random.default_rng(5)
    rc = tissue(rng, (15, 15))
    x = rng.integers(0, 5, (len(rc), 6)).astype(float) + offset
    x[:, 2] = offset  # constant
    graph = dense_graph(rc, lattice="square", parity=-1, diagonal=False)
    weights = SpatialWeights.from_raster(RasterSpec("square", (15, 15), 1.0), rc)
    keep = [0, 1, 3, 4, 5]
    for ours, plain in ((morans_i, plain_moran), (gearys_c, plain_geary)):
        got = ours(sp.csr_matrix(x), weights)
        assert np.isnan(got[2])
        np.testing.assert_allclose(got[keep], plain(graph, x[:, keep]), rtol=0, atol=1e-9)


def test_more_cancelling_genes_than_one_block():
    rng = np.random.default_rng(5)
    rc = tissue(rng, (9, 9))
    x = rng.integers(0, 3, (len(rc), 3 * spatial.BLOCK + 5)).astype(float)
    x[:, ::2] += 1e5
    graph = dense_graph(rc, lattice="square", parity=-1, diagonal=False)
    weights = SpatialWeights.from_raster(RasterSpec("square", (9, 9), 1.0), rc)
    np.testing.assert_allclose(morans_i(sp.csr_matrix(x), weights), plain_moran(graph, x), rtol=0, atol=1e-9)
    np.testing.assert_allclose(gearys_c(x, weights), plain_geary(graph, x), rtol=0, atol=1e-9)


def test_duplicated_entries_add_up_and_rows_of_other_observations_are_not_read():
    rc = np.argwhere(np.ones((3, 3), bool))
    spec = RasterSpec("square", (3, 3), 1.0)
    data, col, row = [1.0, 2.0, 4.0, 1.0, 1.0], [0, 0, 0, 1, 1], [0, 0, 4, 8, 5]
    x = sp.csr_matrix((data, col, np.searchsorted(np.sort(row), np.arange(10))), shape=(9, 2))
    np.testing.assert_allclose(
        morans_i(x, SpatialWeights.from_raster(spec, rc)), morans_i(x.toarray(), SpatialWeights.from_raster(spec, rc))
    )
    more = sp.vstack([sp.csr_matrix(np.full((2, 2), 1e6)), x]).tocsr()
    weights = SpatialWeights.from_raster(spec, rc, rows=np.arange(9) + 2, n_rows=11)
    np.testing.assert_array_equal(morans_i(more, weights), morans_i(x, SpatialWeights.from_raster(spec, rc)))


def test_libraries_side_by_side():
    rng = np.random.default_rng(1)
    rcs = [tissue(rng, (6, 5)), tissue(rng, (7, 4))]
    n = [len(rc) for rc in rcs]
    order = rng.permutation(sum(n))
    rows = [order[: n[0]], order[n[0] :]]
    x = rng.poisson(0.8, (sum(n), 9))
    spec = RasterSpec("square", (7, 5), 1.0)
    parts = [SpatialWeights.from_raster(spec, rc, rows=r, n_rows=sum(n), row_standardise=True) for rc, r in zip(rcs, rows, strict=True)]
    graph = np.zeros((sum(n), sum(n)))
    for rc, r in zip(rcs, rows, strict=True):
        g = dense_graph(rc, lattice="square", parity=-1, diagonal=False)
        graph[np.ix_(r, r)] = g / np.maximum(g.sum(axis=1, keepdims=True), 1)
    weights = SpatialWeights.concatenate(parts)
    np.testing.assert_allclose(morans_i(sp.csr_matrix(x), weights), plain_moran(graph, x), rtol=0, atol=1e-12)
    whole = SpatialWeights.from_graph(sp.csr_matrix(graph))
    assert (weights.s0, weights.s1, weights.s2) == pytest.approx((whole.s0, whole.s1, whole.s2))


@pytest.mark.parametrize("mode", ["moran", "geary"])
def test_moments_under_randomisation_are_those_of_all_permutations(mode):
    rng = np.random.default_rng(8)
    n = 6
    graph = sp.csr_matrix(np.triu(rng.random((n, n)) < 0.5, 1) * rng.random((n, n)) + 0.3 * np.eye(n, k=-1))
    x = rng.gamma(1.0, size=(n, 2))
    score = morans_i if mode == "moran" else gearys_c
    every = np.array([score(x[list(order)], graph) for order in itertools.permutations(range(n))])
    got = autocorrelation(x, graph, mode=mode)
    np.testing.assert_allclose(every.mean(axis=0), got.expected, rtol=1e-10)
    np.testing.assert_allclose(every.var(axis=0), got.var_rand, rtol=1e-9)
    sparse = autocorrelation(sp.csr_matrix(x), graph, mode=mode)
    np.testing.assert_allclose(sparse.var_rand, got.var_rand, rtol=1e-12)
    drawn = autocorrelation(x, graph, mode=mode, n_perms=2000, rng=0)
    np.testing.assert_allclose(drawn.var_sim, every.var(axis=0), rtol=0.15)
    upper = np.minimum((every >= score(x, graph) - 1e-12).mean(axis=0), (every < score(x, graph) - 1e-12).mean(axis=0))
    np.testing.assert_allclose(drawn.pval_sim, upper, atol=0.04)


@pytest.mark.parametrize("mode", ["moran", "geary"])
def test_normal_variance_is_that_of_normal_values(mode):
    rng = np.random.default_rng(2)
    rc = tissue(rng, (8, 8))
    weights = SpatialWeights.from_raster(RasterSpec("hex", (8, 8), 1.0, 1), rc)
    score = morans_i if mode == "moran" else gearys_c
    drawn = score(rng.normal(size=(len(rc), 6000)), weights)
    got = autocorrelation(rng.normal(size=(len(rc), 1)), weights, mode=mode)
    assert drawn.var() == pytest.approx(got.var_norm, rel=0.1)
    assert drawn.mean() == pytest.approx(got.expected, abs=4 * math.sqrt(got.var_norm / 6000))


def test_permutations_follow_the_seed_alone_and_stay_in_their_group():
    import numba

    rng = np.random.default_rng(2)
    rc = tissue(rng, (10, 10))
    x = sp.csr_matrix(rng.poisson(0.5, (len(rc), 20)).astype(np.float32))
    weights = SpatialWeights.from_raster(RasterSpec("square", (10, 10), 1.0), rc)
    one = autocorrelation(x, weights, n_perms=20, rng=7)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        again = autocorrelation(x, weights, n_perms=20, rng=7)
    finally:
        numba.set_num_threads(before)
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.var_sim, autocorrelation(x, weights, n_perms=20, rng=8).var_sim)
    # values that only tell one group from the other are the same after every permutation within the groups
    group = np.asarray(rc[:, 0] > 4)
    still = autocorrelation(group.astype(float), weights, n_perms=10, groups=group)
    assert still.var_sim[0] == pytest.approx(0, abs=1e-20)
    assert autocorrelation(group.astype(float), weights, n_perms=10).var_sim[0] > 1e-5


def test_calibrated_without_structure():
    rng = np.random.default_rng(4)
    rc = tissue(rng, (12, 12))
    x = sp.csr_matrix(rng.poisson(1.0, (len(rc), 300)))
    weights = SpatialWeights.from_raster(RasterSpec("square", (12, 12), 1.0), rc)
    got = autocorrelation(x, weights, n_perms=99, two_tailed=True)
    for p in (got.pval_norm, got.pval_rand):
        assert 0.02 < (p < 0.05).mean() < 0.09
    assert 0.02 < (got.pval_sim <= 0.025).mean() < 0.09
    np.testing.assert_allclose(got.pval_norm, 2 * autocorrelation(x, weights).pval_norm)


@pytest.mark.parametrize("torch_first", [True, False])
def test_the_number_of_threads_of_torch_stays(torch_first):
    """Numba would otherwise set it for torch too, which makes small networks many times slower on a busy machine."""
    code = f"""
import numpy as np, scipy.sparse as sp
if {torch_first}:
    import torch
    torch.set_num_threads(1)
from stimg.metrics import morans_i
morans_i(sp.csr_matrix(np.arange(12.0).reshape(4, 3)), np.array([[0, 1], [1, 2], [2, 3]]))
import torch
print(torch.get_num_threads())
"""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    assert out.split() == ["1"]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda x, w: (x[:-1], w), ValueError, "8 observations and the weights 9"),
        (lambda x, w: (sp.csr_matrix(np.where(x.toarray() > 0, np.nan, 0)), w), ValueError, "NaN"),
        (lambda x, w: (x.toarray().astype(str), w), TypeError, "real numbers"),
        (lambda x, w: (x, np.array([[0, 9]])), ValueError, "wanted 0 to 8"),
        (lambda x, w: (x, np.array([[0, 1], [1, 0]])), ValueError, "twice"),
        (lambda x, w: (x, np.array([[1, 1]])), ValueError, "to itself"),
        (lambda x, w: (x, sp.csr_matrix((9, 8))), ValueError, "square"),
        (lambda x, w: (x, sp.csr_matrix((9, 9))), ValueError, "no neighbours"),
    ],
)
def test_errors_say_what_was_found(change, error, match):
    rc = np.argwhere(np.ones((3, 3), bool))
    x = sp.csr_matrix(np.arange(18).reshape(9, 2))
    with pytest.raises(error, match=match):
        morans_i(*change(x, SpatialWeights.from_raster(RasterSpec("square", (3, 3), 1.0), rc)))


def test_options_that_do_not_fit():
    rc = np.argwhere(np.ones((3, 3), bool))
    x = np.arange(18).reshape(9, 2)
    weights = SpatialWeights.from_raster(RasterSpec("square", (3, 3), 1.0), rc)
    with pytest.raises(ValueError, match="mode='join'"):
        autocorrelation(x, weights, mode="join")
    with pytest.raises(ValueError, match="n_perms=0"):
        autocorrelation(x, weights, n_perms=0)
    with pytest.raises(ValueError, match="one label for each"):
        autocorrelation(x, weights, n_perms=1, groups=np.zeros(4))
    with pytest.raises(ValueError, match="not on the raster"):
        SpatialWeights.from_raster(RasterSpec("square", (3, 3), 1.0), rc - 1)
    with pytest.raises(ValueError, match="hexagonal"):
        SpatialWeights.from_raster(RasterSpec("hex", (3, 3), 1.0, 0), rc, diagonal=True)
