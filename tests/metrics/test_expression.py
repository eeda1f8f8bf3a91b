"""Correlations and errors against scipy, scikit-learn, long doubles and least squares, on every mixture of layouts."""

import itertools
import tracemalloc

import numba
import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from stimg.metrics import _expression_blocks, expression
from stimg.metrics._expression_kernels import FLAT
from stimg.metrics.expression import (
    Scores,
    depth_residual_pearson,
    flattened_pearson,
    fraction_of_ceiling,
    per_gene_pearson,
    per_gene_spearman,
    per_spot_pearson,
    per_spot_spearman,
    relative_mse,
)

CORRELATIONS = (per_gene_pearson, per_gene_spearman, per_spot_pearson, per_spot_spearman)
OF_GENES = (per_gene_pearson, per_gene_spearman, lambda t, p: depth_residual_pearson(t, p, np.arange(1, t.shape[0] + 1)))


def counts(seed: int = 0, n: int = 60, n_genes: int = 23) -> tuple[np.ndarray, np.ndarray]:
    """Counts, and a prediction with zeros and negative values that has something to do with them."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.5, size=n_genes) * rng.lognormal(0, 0.5, (n, 1))
    truth = rng.poisson(rate)
    predicted = np.where(rng.random((n, n_genes)) < 0.5, 0, np.round(8 * (truth + rng.normal(size=(n, n_genes)))) / 8)
    truth[:, 0], truth[0], predicted[:, 0] = np.arange(n) % 5 + 1, np.arange(n_genes) % 3 + 1, 9  # no row and no column is constant
    predicted[0] = truth[0] + np.arange(n_genes) % 2 * 3
    return truth, predicted


def column_by_column(truth: np.ndarray, predicted: np.ndarray, of: str) -> np.ndarray:
    one = scipy.stats.pearsonr if of == "pearson" else scipy.stats.spearmanr
    return np.array([one(a, b).statistic for a, b in zip(truth.T, predicted.T, strict=True)])


def long_double(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    x, y = (m.astype(np.longdouble) - m.astype(np.longdouble).mean(axis=0) for m in (truth, predicted))
    return ((x * y).sum(axis=0) / np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))).astype(np.float64)


def mapped(values: np.ndarray, folder, mode: str = "r") -> np.memmap:
    path = folder / f"{len(list(folder.iterdir()))}.bin"
    values.tofile(path)
    return np.memmap(path, values.dtype, mode, shape=values.shape)


def layouts(values: np.ndarray, folder) -> dict[str, object]:
    unsorted = sp.csr_matrix(values.astype(np.float32))
    for start, stop in itertools.pairwise(unsorted.indptr):
        unsorted.indices[start:stop] = unsorted.indices[start:stop][::-1]
        unsorted.data[start:stop] = unsorted.data[start:stop][::-1]
    unsorted.has_sorted_indices = unsorted.has_canonical_format = False
    row, column = np.nonzero(np.ones(values.shape))
    halves = sp.coo_matrix((np.tile(values.ravel() / 2, 2), (np.tile(row, 2), np.tile(column, 2))), shape=values.shape)
    long = sp.csr_matrix(values.astype(np.float64))
    long.indices, long.indptr = long.indices.astype(np.int64), long.indptr.astype(np.int64)
    return {
        "array": values.astype(np.float64),
        "float32": values.astype(np.float32),
        "columns": np.asfortranarray(values.astype(np.float32)),
        "strided": np.repeat(values.astype(np.float64), 2, axis=1)[:, ::2],
        "map": mapped(values.astype(np.float32), folder),
        "csr": sp.csr_matrix(values.astype(np.float32)),
        "csc": sp.csc_matrix(values.astype(np.float64)),
        "csc_array": sp.csc_array(values.astype(np.float32)),
        "unsorted": unsorted,
        "stored twice": halves,
        "long": long,
    }


@pytest.mark.parametrize("small", [False, True])
def test_every_mixture_of_layouts_agrees_with_scipy(tmp_path, monkeypatch, small):
    if small:  # many blocks, of few rows and few columns
        monkeypatch.setattr(_expression_blocks, "STORED", 50)
        monkeypatch.setattr(_expression_blocks, "ENTRIES", 100)
    truth, predicted = counts()  # exact in single precision
    wanted = [column_by_column(*pair, of) for pair in ((truth, predicted), (truth.T, predicted.T)) for of in ("pearson", "spearman")]
    ours, theirs = layouts(truth, tmp_path), layouts(predicted, tmp_path)
    pairs = [("csr", "csr"), ("csr", "csc"), ("csc", "map"), ("map", "columns")] if small else list(itertools.product(ours, theirs))
    scores = list(zip(CORRELATIONS, wanted, strict=True))
    cases = itertools.product(pairs, scores) if small else zip(pairs, itertools.cycle([*scores, *scores[1:]]))  # 7 and 121 share no factor
    for (a, b), (score, expected) in cases:
        got = score(ours[a], theirs[b])
        np.testing.assert_allclose(got.values, expected, rtol=0, atol=1e-12, err_msg=f"{score.__name__} of {a} and {b}")
        assert got.n_undefined == 0


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int32, np.int64, np.uint64, np.float16, np.longdouble])
def test_other_dtypes(dtype):
    truth, predicted = counts(1)
    x = (truth > 0 if dtype is bool else truth).astype(dtype)
    for score, axis in ((per_gene_pearson, 0), (per_spot_spearman, 1), (per_gene_spearman, 0)):
        expected = score(x.astype(np.float64), predicted)
        sparse = () if dtype is np.float16 else (layout(x.astype(np.float64)).astype(dtype) for layout in (sp.csr_matrix, sp.csc_matrix))
        for values in (x, *sparse):
            for other in (predicted, sp.csr_matrix(predicted)):
                got = score(values, other)
                np.testing.assert_allclose(got.values, expected.values, rtol=0, atol=1e-12)
                assert len(got.values) == x.shape[1 - axis]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 9), st.integers(1, 6), st.floats(0, 1))
def test_any_small_matrix(seed, n, n_genes, density):
    rng = np.random.default_rng(seed)
    x, y = (rng.integers(-2, 3, (n, n_genes)) * (rng.random((n, n_genes)) < density) for _ in range(2))
    for score, (a, b) in zip(CORRELATIONS, [(x, y), (x, y), (x.T, y.T), (x.T, y.T)], strict=True):
        constant = (a.min(axis=0) == a.max(axis=0)) | (b.min(axis=0) == b.max(axis=0))
        if score in (per_gene_spearman, per_spot_spearman):
            a, b = scipy.stats.rankdata(a, axis=0), scipy.stats.rankdata(b, axis=0)
        with np.errstate(all="ignore"):
            expected = np.where(constant, 0, long_double(a, b))
        for pair in ((sp.csr_matrix(x), sp.csr_matrix(y)), (sp.csc_matrix(x), sp.csr_matrix(y)), (x, sp.csc_matrix(y)), (x, y)):
            got = score(*pair)
            np.testing.assert_array_equal(got.undefined, constant)
            np.testing.assert_allclose(got.values, expected, rtol=0, atol=1e-12)


# --- rounding


@pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_large_offsets_do_not_cancel(layout, chunk, monkeypatch):
    monkeypatch.setattr(_expression_blocks, "STORED", 8 * chunk)
    rng = np.random.default_rng(2)
    x = rng.normal(1e4, 1, (600, 4))
    y = 0.5 * x + rng.normal(-3e4, 1, (600, 4))
    x[:, 1] = np.sort(x[:, 1])  # the first block is unlike the others
    x[0, 2] = 0.0  # not stored, and far from the mean
    y[:3, 3] = 0.0
    for truth, predicted in ((x, y), (x, layout(y))):
        got = per_gene_pearson(layout(truth), predicted, chunk=chunk)
        np.testing.assert_allclose(got.values, long_double(x, y), rtol=0, atol=1e-11)
    np.testing.assert_allclose(per_spot_pearson(layout(x.T.copy()), y.T, chunk=chunk).values, long_double(x, y), rtol=0, atol=1e-12)


def test_single_precision_is_summed_in_double():
    rng = np.random.default_rng(0)
    x = rng.normal(1e4, 1, (50_000, 2)).astype(np.float32)
    y = (x + rng.normal(0, 1, x.shape)).astype(np.float32)
    for a, b in ((x, y), (sp.csr_matrix(x), y), (sp.csr_matrix(x), sp.csr_matrix(y))):
        np.testing.assert_allclose(per_gene_pearson(a, b).values, long_double(x, y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("score", CORRELATIONS)
@pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_the_noise_of_a_constant_is_no_correlation(score, layout):
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(400, 400))
    level = 10.0 ** rng.uniform(-8, 8, 400)
    rounded = np.float32(level) * (1 + np.float32(1e-7) * rng.normal(size=(400, 400))).astype(np.float32)
    rounded = rounded if score in (per_gene_pearson, per_gene_spearman) else rounded.T
    assert (np.ptp(rounded, axis=0 if score in (per_gene_pearson, per_gene_spearman) else 1) > 0).any()
    for got in (score(truth, layout(rounded)), score(layout(rounded), truth), score(layout(rounded), layout(truth))):
        assert got.undefined.all()
        assert not got.values.any()


def test_what_varies_by_more_than_rounding_is_no_constant():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(500, 3))
    for share, defined in ((10 * FLAT, True), (FLAT / 10, False)):
        y = 1 + share * x
        for layout, score in itertools.product((np.asarray, sp.csr_matrix), (per_gene_pearson, per_gene_spearman)):
            got = score(layout(y), x)
            assert (got.undefined == (not defined)).all()
            np.testing.assert_allclose(got.values, float(defined), atol=1e-6)


# --- undefined scores


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_a_value_that_is_not_finite_costs_its_gene_and_its_spot_alone(bad, layout):
    truth, predicted = (m.astype(np.float64) for m in counts(4))
    clean = [score(truth, predicted).values for score in CORRELATIONS]
    broken = predicted.copy()
    broken[0, 5] = broken[40, 6] = bad
    for (x, y), (score, good) in itertools.product(((truth, broken), (broken, truth)), zip(CORRELATIONS, clean, strict=True)):
        got = score(layout(x), layout(y))
        at = np.isin(np.arange(len(good)), [5, 6] if score in (per_gene_pearson, per_gene_spearman) else [0, 40])
        np.testing.assert_array_equal(got.undefined, at)
        np.testing.assert_allclose(got.values, np.where(at, 0, good), atol=1e-12)
    assert flattened_pearson(layout(truth), layout(broken)) == 0
    depth = np.arange(1.0, 61)
    got = depth_residual_pearson(layout(truth), layout(broken), depth)
    np.testing.assert_array_equal(np.flatnonzero(got.undefined), [5, 6])
    np.testing.assert_allclose(np.delete(got.values, [5, 6]), np.delete(depth_residual_pearson(truth, predicted, depth).values, [5, 6]))


def test_scores_count_what_is_not_defined_as_zero():
    scores = per_gene_pearson(
        np.array([[0, 0, 0, 1], [1, 1, 1, 1], [2, 2, 0, 1.0]]), np.array([[0, 2, 0, 1], [1, 1, 1, 2], [2, 0, 1, 3.0]])
    )
    np.testing.assert_allclose(scores.values, [1, -1, 0.5, 0], atol=1e-12)
    assert (scores.n_undefined, scores.undefined.tolist()) == (1, [False, False, False, True])
    assert scores.values.dtype == np.float64
    assert (scores.mean(), scores.median(), scores.quantile(1)) == pytest.approx((0.125, 0.25, 1))
    assert scores.quantile(0.25) == pytest.approx(np.quantile(scores.values, 0.25))


@pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (3, 0), (0, 0)])
def test_nothing_to_correlate(layout, shape):
    x = layout(np.ones(shape))
    for score in CORRELATIONS:
        got = score(x, x)
        assert len(got.values) == shape[0 if score in (per_spot_pearson, per_spot_spearman) else 1]
        assert got.undefined.all()
    assert flattened_pearson(x, x) == 0
    assert depth_residual_pearson(x, x, np.ones(shape[0])).undefined.all()
    error = relative_mse(x, x, training_mean=np.zeros(shape[1]))
    assert (error.to_test_mean == 1).all()
    assert error.pooled_to_test_mean == 1
    with pytest.raises(ValueError, match="no scores"):
        per_gene_pearson(np.ones((3, 0)), np.ones((3, 0))).mean()


# --- what must not change a score


@pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix])
def test_order_scale_threads_and_chunks_change_nothing(layout):
    truth, predicted = counts(5, n=300)
    order = np.random.default_rng(0).permutation(300)
    depth = np.random.default_rng(1).integers(1, 99, 300).astype(float)

    def run(score, rows, **keywords):
        more = (depth[rows],) if score is depth_residual_pearson else ()
        return score(layout(truth[rows]), layout(predicted[rows]), *more, **keywords).values

    for score in (per_gene_pearson, per_gene_spearman, depth_residual_pearson):
        base = run(score, slice(None))
        np.testing.assert_allclose(run(score, order), base, rtol=0, atol=1e-12)
        for chunk in (7, 10_000):
            np.testing.assert_allclose(run(score, slice(None), chunk=chunk), base, rtol=0, atol=1e-12)
        before = numba.get_num_threads()
        numba.set_num_threads(1)
        try:
            np.testing.assert_array_equal(run(score, slice(None)), base)
        finally:
            numba.set_num_threads(before)
    moved = per_gene_pearson(layout(3.0 * truth + 2), layout(-0.1 * predicted))
    np.testing.assert_allclose(moved.values, -per_gene_pearson(truth, predicted).values, rtol=0, atol=1e-12)
    stretched = per_gene_spearman(layout(np.expm1(truth)), layout(np.cbrt(predicted)))
    np.testing.assert_allclose(stretched.values, per_gene_spearman(truth, predicted).values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("score", CORRELATIONS)
def test_a_perfect_prediction_scores_one_and_a_shuffled_one_nothing(score):
    truth = counts(6, n=2000, n_genes=40)[0]
    kept = truth[:, np.ptp(truth, axis=0) > 0]
    for layout in (np.asarray, sp.csr_matrix):
        got = score(layout(kept), layout(kept))
        np.testing.assert_allclose(got.values[~got.undefined], 1, atol=1e-12)
        assert got.values.max() <= 1
    if score in CORRELATIONS[:2]:
        shuffled = kept[np.random.default_rng(0).permutation(len(kept))]
        assert abs(score(kept, shuffled).mean()) < 0.02


# --- memory


def test_no_matrix_is_made_dense_or_transposed_as_a_whole(tmp_path):
    n, n_genes = 20_000, 1000
    rng = np.random.default_rng(0)
    entries = rng.integers(0, n * n_genes, 200_000)
    x = sp.csr_matrix((np.ones(len(entries), np.float32), np.divmod(entries, n_genes)), shape=(n, n_genes))
    x.sum_duplicates()
    by_gene = x.tocsc()
    dense = np.memmap(tmp_path / "predicted.bin", np.float32, "w+", shape=x.shape)  # 80 MB
    dense[:, ::7] = rng.random((n, 1))
    for score, pair, limit_mb in (
        (per_gene_pearson, (x, x), 8),
        (per_gene_pearson, (x, by_gene), 8),
        (per_gene_spearman, (x, x), 8),
        (per_spot_pearson, (by_gene, x), 8),
        (per_gene_pearson, (x, dense), 40),
        (per_gene_pearson, (by_gene, dense), 40),
        (per_spot_pearson, (dense, x), 40),
    ):
        score(*pair, chunk=1000)  # compiles
        tracemalloc.start()
        try:
            score(*pair, chunk=1000)
            assert tracemalloc.get_traced_memory()[1] < limit_mb * 2**20
        finally:
            tracemalloc.stop()


def test_changes_of_a_memory_map_are_read_and_kept(tmp_path):
    truth, predicted = (m.astype(np.float32) for m in counts(7))
    expected = long_double(truth, predicted)
    for mode in ("r", "c", "r+"):
        values = mapped(truth[::-1].copy(), tmp_path, mode)
        if mode != "r":
            values[:] = truth  # not written back yet
        x = values if mode != "r" else values[::-1]
        for _ in range(2):
            np.testing.assert_allclose(per_gene_pearson(x[:, :20], predicted[:, :20], chunk=9).values, expected[:20], atol=1e-12)
        np.testing.assert_array_equal(x, truth)


def test_pages_that_were_read_leave_memory(tmp_path):
    psutil = pytest.importorskip("psutil")
    if not psutil.LINUX:
        pytest.skip("only Linux tells how much of a file is in memory")
    x = np.memmap(tmp_path / "x.bin", np.float32, "w+", shape=(50_000, 500))  # 100 MB
    x[:, 0] = 1
    x.flush()
    x = np.memmap(tmp_path / "x.bin", np.float32, "r", shape=x.shape)
    per_gene_pearson(x[:50], x[:50])
    before = psutil.Process().memory_info().shared
    per_gene_pearson(x, x, chunk=5000)
    assert psutil.Process().memory_info().shared - before < 50e6


# --- the flattened matrix, errors, depth, ceiling


@pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix])
def test_flattened_correlation_is_that_of_all_entries_and_flatters(layout):
    truth, predicted = counts(8)
    expected = np.corrcoef(truth.ravel(), predicted.ravel())[0, 1]
    assert flattened_pearson(layout(truth), layout(predicted)) == pytest.approx(expected, abs=1e-12)
    assert flattened_pearson(layout(truth + 1e4), layout(predicted - 1e4)) == pytest.approx(expected, abs=1e-9)
    means = np.tile(truth.mean(axis=0), (len(truth), 1))
    assert flattened_pearson(layout(truth), layout(means)) > 0.4
    assert per_gene_pearson(truth, means).n_undefined == truth.shape[1]
    assert flattened_pearson(layout(truth), layout(np.full(truth.shape, 0.1))) == 0


@pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_relative_errors_are_those_of_scikit_learn(layout):
    from sklearn.metrics import mean_squared_error, r2_score

    truth, predicted = counts(9)
    mean = np.random.default_rng(0).random(truth.shape[1])
    got = relative_mse(layout(truth), layout(predicted), training_mean=mean, chunk=7)
    error = mean_squared_error(truth, predicted, multioutput="raw_values")
    least = mean_squared_error(truth, np.tile(mean, (len(truth), 1)), multioutput="raw_values")
    np.testing.assert_allclose(got.to_training_mean, error / least, rtol=1e-10)
    np.testing.assert_allclose(got.to_test_mean, 1 - r2_score(truth, predicted, multioutput="raw_values"), rtol=1e-10)
    assert got.pooled_to_training_mean == pytest.approx(error.sum() / least.sum())
    assert got.pooled_to_test_mean == pytest.approx(1 - r2_score(truth, predicted, multioutput="variance_weighted"))
    assert got.n_undefined == 0
    perfect = relative_mse(layout(truth + 1e4), layout(truth + 1e4), training_mean=mean)
    np.testing.assert_allclose(perfect.to_test_mean, 0, atol=1e-9)
    as_mean = relative_mse(layout(truth), np.tile(mean, (len(truth), 1)), training_mean=mean)
    np.testing.assert_allclose([*as_mean.to_training_mean, as_mean.pooled_to_training_mean], 1)


def test_relative_errors_that_are_not_defined_count_as_those_of_the_mean():
    truth = np.array([[0, 1, 3, 0, 2, np.nan], [2, 1, 3, 4, 4, 1.0]])
    predicted = np.array([[1, 1, 4, np.nan, 2, 1], [1, 2, 4, 2, 4, 1.0]])
    mean = np.array([1, 1, 0, 2, np.nan, 1.0])
    got = relative_mse(truth, predicted, training_mean=mean)
    # the second gene and the third do not vary; the fourth is not predicted, the fifth not in training, the sixth not in the truth
    np.testing.assert_allclose(got.to_training_mean, [1, 1, 1 / 9, 1, 1, 1])
    np.testing.assert_allclose(got.to_test_mean, [1, 1, 1, 1, 0, 1])
    np.testing.assert_array_equal(got.undefined, [False, True, True, True, True, True])
    assert got.n_undefined == 5
    assert got.pooled_to_training_mean == pytest.approx((1 + 0.5 + 1 + 4) / (1 + 0 + 9 + 4))
    assert got.pooled_to_test_mean == pytest.approx((1 + 0.5 + 1 + 4 + 0) / (1 + 0 + 0 + 4 + 1))
    without = relative_mse(truth[:, :3], predicted[:, :3], training_mean=mean[:3])
    nothing = relative_mse(truth[:, :3], np.full((2, 3), np.nan), training_mean=mean[:3])
    assert (without.n_undefined, nothing.n_undefined) == (2, 3)
    assert nothing.pooled_to_training_mean == nothing.pooled_to_test_mean == 1


@pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_depth_residuals_are_those_of_least_squares(layout):
    rng = np.random.default_rng(10)
    depth = rng.lognormal(7, 1, 200)
    truth = np.log(depth)[:, None] * rng.normal(size=8) + rng.normal(size=(200, 8)) + 100
    predicted = np.log(depth)[:, None] + 0.3 * truth + rng.normal(size=(200, 8)) - 1e3
    design = np.stack([np.ones(200), np.log(depth)], axis=1)
    rest = [m - design @ np.linalg.lstsq(design, m, rcond=None)[0] for m in (truth, predicted)]
    got = depth_residual_pearson(layout(truth), layout(predicted), depth, chunk=33)
    np.testing.assert_allclose(got.values, column_by_column(*rest, "pearson"), rtol=0, atol=1e-10)
    np.testing.assert_allclose(depth_residual_pearson(truth, layout(predicted), 1e5 * depth).values, got.values, rtol=0, atol=1e-10)
    same = np.full(200, 3000.0)
    np.testing.assert_allclose(depth_residual_pearson(layout(truth), predicted, same).values, per_gene_pearson(truth, predicted).values)


def test_a_prediction_that_is_depth_alone_scores_nothing():
    rng = np.random.default_rng(11)
    depth = rng.lognormal(7, 1, 300)
    line = 2 + np.log(depth)[:, None] * np.array([0.5, -3.0, 1e-3])
    truth = line + 0.1 * rng.normal(size=line.shape)
    assert per_gene_pearson(truth[:, :2], line[:, :2]).values.min() > 0.9
    for predicted in (line, line.astype(np.float32)):
        got = depth_residual_pearson(truth, predicted, depth)
        assert got.undefined.all()
        assert got.mean() == 0


def test_fraction_of_ceiling_is_a_ratio_of_means():
    ceiling = np.array([0.6, 0.2, 0.0])
    scores = Scores(np.array([0.3, 0.1, 0.0]), np.array([False, False, True]))
    assert fraction_of_ceiling(scores, ceiling) == pytest.approx(0.5)
    assert fraction_of_ceiling(scores.values, ceiling) == pytest.approx(0.5)
    assert fraction_of_ceiling(ceiling, ceiling) == 1


X = np.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: per_gene_pearson(X, X[:3]), ValueError, r"truth has shape \(4, 3\) and predicted \(3, 3\)"),
        (lambda: per_spot_spearman(sp.csr_matrix(X), X[:, :2]), ValueError, r"predicted \(4, 2\)"),
        (lambda: per_gene_pearson(X[0], X[0]), ValueError, r"truth has shape \(3,\); wanted two dimensions"),
        (lambda: per_gene_spearman(X, X.astype(str)), TypeError, "predicted has dtype <U32; wanted real numbers"),
        (lambda: per_gene_pearson(X.astype(complex), X), TypeError, "truth has dtype complex128"),
        (lambda: per_gene_pearson(X, X, chunk=0), ValueError, "chunk=0"),
        (lambda: relative_mse(X, X, training_mean=np.zeros(4)), ValueError, r"training_mean has shape \(4,\) for 3 genes"),
        (lambda: depth_residual_pearson(X, X, np.ones(3)), ValueError, r"depth has shape \(3,\) for 4 observations"),
        (lambda: depth_residual_pearson(X, X, [1, 0, np.nan, 3]), ValueError, "not finite for 2 of 4 observations"),
        (lambda: fraction_of_ceiling(X[0], X[0, :2]), ValueError, r"shape \(3,\) and ceilings of shape \(2,\)"),
        (lambda: fraction_of_ceiling(X[0], np.zeros(3)), ValueError, "mean ceiling is 0; wanted one above 0"),
        (lambda: fraction_of_ceiling([np.nan, 1], [1, 1]), ValueError, "1 scores and 0 ceilings of 2 are not finite"),
    ],
)
def test_errors_say_what_was_found(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_the_inputs_stay_as_they_were():
    truth, predicted = counts(12)
    x, y = sp.csr_matrix(truth), sp.csc_matrix(predicted)
    before = [a.copy() for a in (x.data, x.indices, x.indptr, y.data, y.indices, y.indptr)]
    for score in (*CORRELATIONS, *OF_GENES, flattened_pearson):
        score(x, y)
        score(truth, y)
    for a, b in zip(before, (x.data, x.indices, x.indptr, y.data, y.indices, y.indptr), strict=True):
        np.testing.assert_array_equal(a, b)
    assert expression.CHUNK == 4096


@pytest.mark.data
def test_one_prediction_reads_very_differently(mirror):
    """A line on the true depth on measured spots: high over the flattened matrix and over genes, nothing once depth is out of it."""
    from stimg.datasets import her2st

    adata = her2st("B1")
    depth = np.asarray(adata.X.sum(axis=1)).ravel()
    genes = np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel(), kind="stable")[:250]
    truth = np.log1p(1e4 * adata.X[:, genes].toarray() / depth[:, None])
    design = np.stack([np.ones(len(depth)), np.log(depth)], axis=1)
    line = design @ np.linalg.lstsq(design, truth, rcond=None)[0]
    assert flattened_pearson(truth, line) > 0.5
    assert per_spot_pearson(truth, line).mean() > 0.5
    assert 0.1 < per_gene_pearson(truth, line).mean() < 0.5
    assert depth_residual_pearson(truth, line, depth).n_undefined == 250
    assert per_gene_pearson(sp.csr_matrix(truth), line).mean() == pytest.approx(column_by_column(truth, line, "pearson").mean(), abs=1e-9)
