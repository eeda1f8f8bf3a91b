"""Counts against the negative binomial of scipy, sparse against dense, depths, memory."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from stimg._core.rng import derive
from stimg.datasets import CountOptions, DonorOptions, GeneOptions, simulate
from stimg.datasets import _simulate_counts as counts

MEAN = np.array([0.02, 0.3, 2.0, 9.0])
DISPERSION = np.array([0.5, 3.0, 0.4, 0.1])


def draw(
    n: int, *, sparse: bool, dispersion: np.ndarray = DISPERSION, dropout: float = 0.0, block_rows: int | None = None
) -> sp.csr_matrix:
    """``n`` observations of two programmes whose mixture has the means ``MEAN``."""
    share = np.array([0.3, 0.7])
    first = MEAN * [1.5, 0.2, 1.0, 1.1] / 10
    first /= first.sum()
    total = MEAN.sum()
    second = (MEAN / total - share[0] * first) / share[1]
    return counts.sample_counts(
        np.tile(share, (n, 1)),
        np.full(n, total),
        np.stack([first, second]),
        dispersion,
        dropout,
        lambda block: derive(5, block),
        sparse=sparse,
        block_rows=block_rows,
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_negative_binomial(sparse):
    n = 40_000
    found = draw(n, sparse=sparse).toarray()
    for g, (mean, dispersion) in enumerate(zip(MEAN, DISPERSION, strict=True)):
        law = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean))
        edges = np.arange(int(law.ppf(1 - 50 / n)) + 1)
        expected = np.append(law.pmf(edges), law.sf(edges[-1])) * n
        observed = np.append(np.bincount(found[:, g].astype(int), minlength=len(edges) + 1)[: len(edges)], (found[:, g] > edges[-1]).sum())
        assert stats.chisquare(observed, expected).pvalue > 1e-3, g
        assert found[:, g].mean() == pytest.approx(mean, rel=0.1)
        assert found[:, g].var() == pytest.approx(mean + dispersion * mean**2, rel=0.15)
    correlation = np.corrcoef(found.T)
    assert np.abs(correlation - np.eye(4)).max() < 0.03  # genes are independent, given the rate


@pytest.mark.parametrize("sparse", [False, True])
def test_poisson_without_dispersion(sparse):
    found = draw(20_000, sparse=sparse, dispersion=np.array([0.0, 0.0, 0.4, 0.0])).toarray()
    for g in (0, 1, 3):
        assert found[:, g].var() == pytest.approx(MEAN[g], rel=0.15 if g == 0 else 0.06)
        expected = stats.poisson(MEAN[g]).pmf(0)
        assert (found[:, g] == 0).mean() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("sparse", [False, True])
def test_dropout(sparse):
    kept, all_ = draw(20_000, sparse=sparse, dropout=0.4), draw(20_000, sparse=sparse)
    assert kept.nnz / all_.nnz == pytest.approx(0.6, abs=0.02)
    np.testing.assert_allclose(np.asarray(kept.mean(axis=0)), 0.6 * np.asarray(all_.mean(axis=0)), rtol=0.15)


@pytest.mark.parametrize("sparse", [False, True])
def test_canonical(sparse):
    found = draw(500, sparse=sparse, block_rows=64)
    again = sp.csr_matrix((found.data.copy(), found.indices.copy(), found.indptr.copy()), shape=found.shape)
    again.sum_duplicates()
    assert again.nnz == found.nnz
    assert (found.data > 0).all()
    np.testing.assert_array_equal(found.indices, again.indices)
    first = draw(64, sparse=sparse, block_rows=64)
    assert (found[:64] != first).nnz == 0  # a block depends on its number alone


def test_capture_thins():
    options = {"shape": (16, 16), "n_genes": 50, "rng": 0, "return_truth": True}
    _, full = simulate(**options)
    _, thin = simulate(**options, counts=CountOptions(capture=0.25))
    np.testing.assert_allclose(thin.rate(), 0.25 * full.rate())
    np.testing.assert_array_equal(thin.dispersion, full.dispersion)


def test_depth_is_log_normal():
    options = CountOptions(depth=500, depth_sd=0.4, depth_spatial_sd=0.0, density_effect=0.0)
    adata, truth = simulate(shape=(40, 40), n_genes=50, counts=options, rng=0, return_truth=True)
    logs = np.log(truth.depth)
    assert truth.depth.mean() == pytest.approx(500, rel=0.05)
    assert logs.std() == pytest.approx(0.4, rel=0.06)
    assert stats.kstest((logs - logs.mean()) / logs.std(), "norm").pvalue > 0.01
    total = np.asarray(adata.X.sum(axis=1)).ravel()
    assert np.corrcoef(total, truth.depth)[0, 1] > 0.9
    assert total.sum() == pytest.approx(truth.depth.sum(), rel=0.02)


def test_depth_has_a_smooth_part():
    options = CountOptions(depth_sd=0.0, depth_spatial_sd=0.3, density_effect=0.0)
    adata, truth = simulate(technology="st", shape=(30, 30), n_genes=5, counts=options, rng=0, return_truth=True)
    field = np.log(truth.depth).reshape(30, 30)
    assert field.std() == pytest.approx(0.3, rel=0.1)
    assert np.corrcoef(field[:, 1:].ravel(), field[:, :-1].ravel())[0, 1] > 0.9
    _, dense = simulate(
        technology="st", shape=(30, 30), n_genes=5, counts=CountOptions(depth_sd=0.0, depth_spatial_sd=0.0), rng=0, return_truth=True
    )
    domain = adata.obs["domain"].cat.codes.to_numpy()
    explained = np.array([np.log(dense.depth)[domain == d].mean() for d in range(5)])[domain]
    assert explained.var() > 0.3 * np.log(dense.depth).var()  # crowded domains hold more RNA


def test_programmes():
    genes = GeneOptions(n_gradients=2, second_programme=0.0, n_controls=4, control_fraction=0.01)
    found = counts.make_programmes(genes, CountOptions(), ["a", "b", "c"], 4, 1000, seed=1)
    assert found.names == [
        "type:a",
        "type:b",
        "type:c",
        "domain:0",
        "domain:1",
        "domain:2",
        "domain:3",
        "gradient:0",
        "gradient:1",
        "baseline",
    ]
    np.testing.assert_allclose(found.loadings.sum(axis=1), 1)
    np.testing.assert_allclose(found.loadings[:, 1000:].sum(axis=1), 0.01)
    size = found.var["category"].value_counts()
    assert size.to_dict() == {"marker": 350, "domain": 200, "background": 200, "gradient": 150, "housekeeping": 100, "control": 4}
    for k, name in enumerate(found.names[:-1]):
        own = (found.var["programme"] == name).to_numpy()
        ratio = np.log(found.loadings[k] / np.delete(found.loadings, k, axis=0).mean(axis=0))
        assert ratio[own].min() > ratio[~own].max() - 1.5
        assert np.median(ratio[own]) > 1.0 + np.median(ratio[~own])
    share = counts.activity(genes, np.array([[1.0, 0, 3]]), np.array([[0.5, 0.5, 0, 0]]), np.array([[0.2, 1.0]]))
    np.testing.assert_allclose(share[0], [0.1125, 0, 0.3375, 0.125, 0.125, 0, 0, 0.025, 0.125, 0.15], rtol=1e-6)


@pytest.mark.parametrize("n_genes", [1, 2, 7])
def test_very_few_genes(n_genes):
    adata = simulate(technology="visium_hd", shape=(8, 8), n_genes=n_genes, n_donors=2, donors=DonorOptions(gene_sd=1.0))
    assert adata.shape == (128, n_genes)


def test_sparse_is_chosen_for_shallow_data_and_agrees():
    shallow, truth = simulate(technology="visium_hd", shape=(60, 60), n_genes=300, counts=CountOptions(depth=5), rng=0, return_truth=True)
    assert truth.sparse
    rate = truth.rate()
    assert shallow.X.sum() == pytest.approx(rate.sum(), rel=0.03)
    found, expected = np.asarray(shallow.X.sum(axis=0)).ravel(), rate.sum(axis=0)
    spread = np.sqrt((rate + truth.dispersion * rate**2).sum(axis=0))
    assert ((found - expected) / spread).std() == pytest.approx(1, abs=0.15)
    assert not simulate(shape=(4, 4), n_genes=50, return_truth=True)[1].sparse


@pytest.mark.slow
def test_large_needs_little_memory():
    import subprocess
    import sys

    code = """
import resource
import anndata
from stimg.datasets import CountOptions, simulate
simulate(technology="visium_hd", shape=(4, 4), n_genes=18000, bin_um=2, counts=CountOptions(depth=10))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
adata = simulate(technology="visium_hd", shape=(600, 600), n_genes=18000, bin_um=2, counts=CountOptions(depth=10))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, adata.X.nnz)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    extra_mb, nnz = int(out[0]) / 1024, int(out[1])
    assert nnz > 2_000_000
    assert extra_mb < 800  # the dense table is 26 GB
