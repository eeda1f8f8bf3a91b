import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from stimg.data.channels import CropView, channel_rules, pack, pack_spots
from stimg.image.store import SparseWindow


def view_of(dense, depth, seen, genes=None, counts=True, spots=False):
    """View of a dense crop (gene, pixel); ``depth`` and ``seen`` per pixel."""
    gene, pixel = np.nonzero(dense)
    genes = np.arange(len(dense)) if genes is None else genes
    window = SparseWindow(pixel.astype(np.int32), gene.astype(np.int32), dense[gene, pixel])
    row = np.where(seen, np.cumsum(seen) - 1, -1)
    table = sp.csr_matrix(dense[:, np.asarray(seen)].T) if spots else None
    return CropView(genes, len(dense), row, np.asarray(depth, dtype=np.float32), lambda: window, table, counts)


@pytest.mark.filterwarnings("ignore:Some cells have zero counts")
@pytest.mark.parametrize("spots", [False, True])
def test_variance_equals_scanpy_on_the_dense_crop(spots):
    rng = np.random.default_rng(0)
    seen = rng.random(256) < 0.7
    counts = rng.poisson(rng.gamma(0.3, 4, size=(50, 1)), size=(50, 256)).astype(np.float32) * seen
    counts[:, np.flatnonzero(seen)[0]] = 0  # an observation without a count
    counts[3] *= 30  # beyond the table of small counts
    adata = ad.AnnData(sp.csr_matrix(counts[:, seen].T))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    np.testing.assert_allclose(
        view_of(counts, counts.sum(0), seen, spots=spots).variance, adata.X.toarray().astype(np.float64).var(0), rtol=1e-5, atol=1e-6
    )


@given(st.integers(0, 2**31 - 1), st.sampled_from([np.float32, np.int32, np.uint8]), st.booleans())
@settings(max_examples=50, deadline=None)
def test_variance_equals_numpy_in_double_precision(seed, dtype, spots):
    rng = np.random.default_rng(seed)
    seen = rng.random(12) < 0.6
    dense = (rng.poisson(rng.choice([0.2, 2, 20]), size=(6, 12)) * seen).astype(dtype)
    depth = (dense.sum(0, dtype=np.float64) + rng.integers(1, 9, 12)) * seen
    found = view_of(dense, depth, seen, spots=spots).variance
    if not seen.any():
        assert (found == 0).all()
        return
    logged = np.log1p(dense[:, seen] * 1e4 / depth.astype(np.float32)[seen].astype(np.float64))
    np.testing.assert_allclose(found, logged.var(1), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("spots", [False, True])
def test_values_that_are_no_counts_are_taken_as_they_are(spots):
    dense = np.array([[0.5, 1.5, 0.0], [2.0, 2.0, 2.0]], dtype=np.float32)
    found = view_of(dense, [1, 1, 1], [True] * 3, counts=False, spots=spots).variance
    np.testing.assert_allclose(found, dense.astype(np.float64).var(1), atol=1e-12)


def test_weighted_draw_has_the_inclusion_rates_of_drawing_one_after_the_other():
    rng = np.random.default_rng(1)
    dense = (rng.gamma(1.0, 1.0, size=(8, 20)) * np.geomspace(0.01, 1, 8)[:, None]).astype(np.float32)
    view = view_of(dense, np.ones(20), np.ones(20, bool), counts=False)
    v, rule, n = dense.astype(np.float64).var(1), channel_rules["weighted"].choose, 20_000
    found, naive = np.zeros(8), np.zeros(8)
    for i in range(n):
        found[rule(view, 3, np.random.default_rng([2, i]))] += 1
        left = list(range(8))  # the urn, one gene at a time
        for _ in range(3):
            share = np.cumsum(v[left])
            naive[left.pop(int(np.searchsorted(share, rng.random() * share[-1], "right")))] += 1
    error = np.sqrt(2 * np.maximum(naive / n * (1 - naive / n), 1e-4) / n)
    assert found.sum() == 3 * n
    assert (np.abs(found - naive) / n < 5 * error).all(), (found / n, naive / n)
    assert found[-1] > 10 * found[0]


def test_weighted_draw_keeps_the_weights_of_genes_whose_power_would_underflow():
    # v is about 1e-5 and 1e-4: u ** (1 / v) is 0 for most u, log(u) / v is not
    wave = np.where(np.arange(20) % 2, 1.0, -1.0)
    dense = np.concatenate([1 + np.sqrt(1e-5) * wave * np.ones((5, 1)), 1 + np.sqrt(1e-4) * wave * np.ones((5, 1))]).astype(np.float64)
    view = view_of(dense, np.ones(20), np.ones(20, bool), counts=False)
    first = [int(channel_rules["weighted"].choose(view, 1, np.random.default_rng([3, i]))[0]) for i in range(4000)]
    assert abs(np.mean(np.array(first) >= 5) - 10 / 11) < 0.02


def test_weighted_draw_of_genes_without_variance_is_uniform():
    view = view_of(np.zeros((6, 4), np.float32), np.ones(4), np.ones(4, bool))
    drawn = np.concatenate([channel_rules["weighted"].choose(view, 2, np.random.default_rng([4, i])) for i in range(6000)])
    assert np.abs(np.bincount(drawn, minlength=6) / 6000 - 1 / 3).max() < 0.03


def test_uniform_draw():
    view = view_of(np.zeros((9, 4), np.float32), np.ones(4), np.ones(4, bool), genes=np.array([1, 2, 4, 5, 8]))
    drawn = [channel_rules["uniform"].choose(view, 2, np.random.default_rng([5, i])) for i in range(5000)]
    assert all(len(set(d.tolist())) == 2 for d in drawn)
    rates = np.bincount(np.concatenate(drawn), minlength=9) / 5000
    assert (rates[[0, 3, 6, 7]] == 0).all()
    assert np.abs(rates[view.genes] - 0.4).max() < 0.03


def test_top_variance_equals_sorting_the_dense_variances():
    rng = np.random.default_rng(6)
    dense = rng.poisson(2.0, size=(30, 16)).astype(np.float32)
    view = view_of(dense, dense.sum(0), np.ones(16, bool), genes=np.arange(3, 30))
    v = np.log1p(dense / dense.sum(0) * 1e4).var(1)
    assert set(channel_rules["variance"].choose(view, 7, rng).tolist()) == set((3 + np.argsort(-v[3:])[:7]).tolist())


def test_an_unknown_rule_names_the_known_ones():
    with pytest.raises(ValueError, match="Did you mean 'weighted'"):
        channel_rules["weigthed"]


def test_pack_equals_a_naive_sort():
    rng = np.random.default_rng(7)
    dense = rng.poisson(0.7, size=(5, 12)).astype(np.int32)
    gene, pixel = np.nonzero(dense)
    value, chosen, ids, place = dense[gene, pixel], np.array([4, 0, 3]), np.array([2, 10, 11]), rng.permutation(12)
    start, stop = np.searchsorted(gene, chosen, "left"), np.searchsorted(gene, chosen, "right")
    got = pack(pixel.astype(np.int32), value, start, stop, ids, place)
    want = sorted((int(place[p]), int(ids[j]), float(dense[g, p])) for j, g in enumerate(chosen) for p in np.flatnonzero(dense[g]))
    assert list(zip(*(a.tolist() for a in got), strict=True)) == want
    assert [a.dtype for a in got] == [np.int64, np.int64, np.float32]


def test_packing_from_spots_equals_packing_from_hits():
    rng = np.random.default_rng(8)
    seen = rng.random(12) < 0.7
    dense = rng.poisson(0.7, size=(5, 12)).astype(np.int32) * seen
    gene, pixel = np.nonzero(dense)
    moved, chosen, ids = rng.permutation(12), np.array([0, 2, 3]), np.array([4, 7, 9])
    start, stop = np.searchsorted(gene, chosen, "left"), np.searchsorted(gene, chosen, "right")
    want = pack(pixel.astype(np.int32), dense[gene, pixel], start, stop, ids, np.argsort(moved))
    spots, row = sp.csr_matrix(dense[:, seen].T), np.where(seen, np.cumsum(seen) - 1, -1)
    channel = np.full(5, -1)
    channel[chosen] = ids
    for a, b in zip(want, pack_spots(spots.indptr, spots.indices, spots.data, row, moved, channel), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
