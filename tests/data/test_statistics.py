"""Statistics of libraries against dense arrays."""

import numpy as np
import pytest
import scipy.sparse as sp

from stimg.data.library import Library
from stimg.data.statistics import gene_statistics, log_values, principal_axes
from stimg.image.spec import RasterSpec

V = 12


def dense(library, n_genes=V):
    """Counts (n, V) of the occupied points in row-major order, NaN where a gene was not measured, and the depths."""
    rows, depths = [], []
    for y, x in np.ndindex(*library.spec.shape):
        if library.store.index[y, x] < 0:
            continue
        row = np.full(n_genes, np.nan)
        for column, g in enumerate(library.panel):
            if g >= 0:
                row[g] = library.store.dense[column, y, x]
        rows.append(row)
        depths.append(library.depth[library.store.index[y, x]])
    return np.array(rows), np.array(depths, dtype=np.float64)


def log_of(counts, share):
    total = np.nansum(counts, axis=1, keepdims=True)
    return np.log1p(1e4 * counts * share[~np.isnan(counts[0])].sum() / np.maximum(total, 1))


def from_table(dense_store, counts, name="a", panel=None, depth=None):
    """A library of one row of spots with the given counts."""
    n = len(counts)
    rc = np.column_stack([np.zeros(n, dtype=np.int32), np.arange(n, dtype=np.int32)])
    store = dense_store.from_csr(sp.csr_matrix(counts.astype(np.float32)), rc, (1, n))
    depth = (counts.sum(1) if depth is None else depth).astype(np.float32)
    panel = np.arange(counts.shape[1]) if panel is None else np.asarray(panel)
    return Library(name, store, RasterSpec("square", (1, n), 100.0), panel.astype(np.int64), depth, np.arange(n), rc)


@pytest.fixture
def two(make_library):
    return [make_library(seed=0), make_library(seed=1, shape=(5, 6), filled=0.5, panel=np.random.default_rng(0).permutation(V))]


def test_moments_are_those_of_dense_arrays(two):
    found = gene_statistics(two, V)
    counts, depths = zip(*(dense(library) for library in two), strict=True)
    shares = np.array([c.sum(0) / d.sum() for c, d in zip(counts, depths, strict=True)])
    np.testing.assert_allclose(found.composition, shares, rtol=1e-6)
    np.testing.assert_allclose(found.pooled_composition, shares.mean(0), rtol=1e-6)
    logs = [log_of(c, shares.mean(0)) for c in counts]
    for library, wanted in zip(two, logs, strict=True):
        np.testing.assert_allclose(log_values(library, shares.mean(0)).toarray(), wanted, rtol=1e-6)
    means = np.array([x.mean(0) for x in logs])
    np.testing.assert_allclose(found.mean, means, rtol=1e-6)
    np.testing.assert_allclose(found.pooled_mean, means.mean(0), rtol=1e-6)
    centred = np.concatenate([x - m for x, m in zip(logs, means, strict=True)])
    np.testing.assert_allclose(found.spread, np.sqrt((centred**2).mean(0)), rtol=1e-5)
    np.testing.assert_array_equal(found.coverage, 1)
    assert all(a.dtype == np.float32 for a in vars(found).values())


def test_whole_panel_is_counts_per_10000(dense_store):
    counts = np.random.default_rng(0).poisson(3.0, (20, V))
    library = from_table(dense_store, counts)
    wanted = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    found = gene_statistics([library], V)
    np.testing.assert_allclose(found.composition.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(log_values(library, found.pooled_composition).toarray(), wanted, rtol=1e-6)
    np.testing.assert_allclose(found.mean[0], wanted.mean(0), rtol=1e-5)


def test_normalised_layer_is_taken_as_it_is(make_library):
    library = make_library(values="log")
    values, _ = dense(library)
    np.testing.assert_allclose(log_values(library, np.full(V, 0.01)).toarray(), values)
    np.testing.assert_allclose(gene_statistics([library], V).mean[0], values.mean(0), rtol=1e-5)


def constant_share(rng, n, total=1000):
    """Counts of V genes; in every spot the first six have a quarter of them, and every gene occurs."""
    parts = [rng.multinomial(t - 6, rng.dirichlet(np.ones(6)), n) + 1 for t in (total // 4, total - total // 4)]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("like", [True, False])
def test_partial_panel_is_on_the_same_scale(dense_store, like):
    rng = np.random.default_rng(0)
    counts = constant_share(rng, 30)
    whole = from_table(dense_store, counts)
    part = from_table(dense_store, counts[:, :6], "b")
    trained = gene_statistics([whole], V)
    found = gene_statistics([part], V, like=trained) if like else gene_statistics([whole, part], V)
    np.testing.assert_allclose(found.pooled_composition, trained.pooled_composition, rtol=1e-5)
    np.testing.assert_allclose(found.mean[-1], trained.mean[0], rtol=1e-5)
    np.testing.assert_allclose(found.composition[-1], trained.composition[0], rtol=1e-5)
    np.testing.assert_allclose(found.coverage[-1], 0.25, rtol=1e-5)
    np.testing.assert_allclose(found.pooled_mean, trained.pooled_mean, rtol=1e-5)
    np.testing.assert_allclose(found.spread, trained.spread, rtol=1e-5)
    # depth on the common scale: that of the whole panel
    np.testing.assert_allclose(part.depth / found.coverage[-1], whole.depth, rtol=1e-5)


def test_panels_that_only_overlap(dense_store):
    counts = constant_share(np.random.default_rng(1), 30)
    parts = [from_table(dense_store, counts[:, :9], "a"), from_table(dense_store, counts[:, 4:], "b", panel=np.arange(4, V))]
    found, wanted = gene_statistics(parts, V), counts.sum(0) / counts.sum()
    np.testing.assert_allclose(found.pooled_composition, wanted, rtol=1e-4)
    np.testing.assert_allclose(found.composition, np.stack([wanted, wanted]), rtol=1e-4)
    np.testing.assert_allclose(found.coverage, [wanted[:9].sum(), wanted[4:].sum()], rtol=1e-4)


def test_panels_without_a_common_gene(dense_store):
    counts = constant_share(np.random.default_rng(1), 10)
    parts = [from_table(dense_store, counts[:, :3], "a"), from_table(dense_store, counts[:, 3:], "b", panel=np.arange(3, V))]
    found = gene_statistics(parts, V)
    np.testing.assert_allclose(found.composition.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.coverage, [0.25, 0.75], rtol=1e-5)


def test_like_keeps_what_is_pooled(two, make_library):
    trained = gene_statistics(two, V)
    other = make_library(seed=5, n_vars=7, panel=[3, -1, 0, 8, 5, 11, 2])
    found = gene_statistics([other], V, like=trained)
    for name in ("pooled_mean", "pooled_composition", "spread"):
        np.testing.assert_array_equal(getattr(found, name), getattr(trained, name))
    counts, _ = dense(other)
    measured = ~np.isnan(counts[0])
    assert measured.sum() == 6
    np.testing.assert_array_equal(found.mean[0, ~measured], trained.pooled_mean[~measured])
    np.testing.assert_array_equal(found.composition[0, ~measured], trained.pooled_composition[~measured])
    wanted = log_of(counts, trained.pooled_composition.astype(np.float64))[:, measured].mean(0)
    np.testing.assert_allclose(found.mean[0, measured], wanted, rtol=1e-5)
    share = counts[:, measured].sum(0) / counts[:, measured].sum() * trained.pooled_composition[measured].sum()
    np.testing.assert_allclose(found.composition[0, measured], share, rtol=1e-5)


def test_genes_that_never_vary(dense_store):
    counts = np.random.default_rng(0).poisson(3.0, (20, V))
    counts[:, 4] = 0
    found = gene_statistics([from_table(dense_store, counts)], V)
    assert found.spread[4] == 1
    assert found.mean[0, 4] == found.composition[0, 4] == 0
    empty = gene_statistics([from_table(dense_store, counts * 0)], V, like=found)
    assert all(np.isfinite(a).all() for a in vars(empty).values())
    assert empty.coverage[0] == 1


def centred_logs(libraries, found):
    blocks = []
    for library in libraries:
        logs = log_of(dense(library)[0], found.pooled_composition.astype(np.float64))
        blocks.append(np.nan_to_num(logs - logs.mean(0)))
    return np.concatenate(blocks)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("n_axes", [1, 4, 11, 50])
def test_principal_axes_are_those_of_the_svd(two, make_library, partial, n_axes):
    libraries = [*two, make_library(seed=5, n_vars=7, panel=[3, -1, 0, 8, 5, 11, 2], name="c")] if partial else two
    found = gene_statistics(libraries, V)
    x = centred_logs(libraries, found)
    axes, shrinkage = principal_axes(libraries, found, n_axes)
    k = min(n_axes, V - 1)
    assert axes.shape == (V, k)
    np.testing.assert_allclose(axes.T @ axes, np.eye(k), atol=1e-5)
    _, singular, vt = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(np.abs((axes * vt[:k].T).sum(0)), 1, atol=1e-4)
    assert (axes[np.abs(axes).argmax(0), np.arange(k)] > 0).all()
    variance = singular**2 / len(x)
    wanted = np.clip((1 - variance[k:].mean() / variance[:k]) * variance[:k] / (variance[:k] + variance[:k].mean()), 0.02, 1)
    np.testing.assert_allclose(shrinkage, wanted, atol=1e-4)
    assert (np.diff(shrinkage) <= 1e-6).all()


def test_more_genes_than_observations(dense_store):
    counts = np.random.default_rng(0).poisson(3.0, (5, V))
    library = from_table(dense_store, counts)
    found = gene_statistics([library], V)
    axes, shrinkage = principal_axes([library], found, 8)
    assert axes.shape == (V, 4)
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-5)
    assert ((shrinkage >= 0.02) & (shrinkage <= 1)).all()


def test_principal_axes_do_not_depend_on_the_run(two):
    found = gene_statistics(two, V)
    for a, b in zip(principal_axes(two, found, 5), principal_axes(two, found, 5), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_observation_has_no_axes(dense_store):
    library = from_table(dense_store, np.ones((1, V)))
    with pytest.raises(ValueError, match="have no principal axes"):
        principal_axes([library], gene_statistics([library], V), 3)


@pytest.mark.parametrize("technology", ["visium", "st"])
def test_real_store(technology):
    from stimg.data import libraries
    from stimg.datasets import simulate
    from stimg.pp import rasterize

    adata = simulate(technology=technology, shape=(7, 6), n_genes=20, n_sections=2, rng=0)
    rasterize(adata)
    names = list(adata.var_names[::-1])
    found = libraries(adata, vocabulary=names)
    statistics = gene_statistics(found, len(names))
    for i, library in enumerate(found):
        counts = adata.X[library.rows].toarray()[:, ::-1].astype(np.float64)
        measured = np.isin(np.arange(len(names)), library.panel)
        wanted = counts.sum(0)[measured] / counts[:, measured].sum()
        np.testing.assert_allclose(statistics.composition[i, measured], wanted, rtol=1e-5)
        logs = np.log1p(1e4 * counts[:, measured] / np.maximum(counts[:, measured].sum(1, keepdims=True), 1))
        np.testing.assert_allclose(statistics.mean[i, measured], logs.mean(0), rtol=1e-4, atol=1e-6)
