"""Intervals against the list of all resamples and scipy, and p-values against every order of the blocks and fields that have nothing in common."""

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse as sp
import scipy.stats

from stimg.metrics.resampling import block_permutation_p, cluster_bootstrap, seed_spread


def sections(seed: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one to six sections of each of ``k`` donors, shuffled."""
    rng = np.random.default_rng(seed)
    donor = rng.permutation(np.repeat(np.arange(k), rng.integers(1, 7, k)))
    return rng.normal(size=k)[donor] + 0.3 * rng.normal(size=len(donor)), np.array([f"donor {i}" for i in donor])


# --- intervals


@pytest.mark.parametrize("k", [2, 3, 4, 5])
@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_few_clusters_give_the_interval_of_all_resamples(k, statistic):
    values, donor = sections(k, k)
    parts = [values[donor == name] for name in np.unique(donor)]
    every = [getattr(np, statistic)(np.concatenate([parts[i] for i in drawn])) for drawn in itertools.product(range(k), repeat=k)]
    assert len(every) == k**k
    for level in (0.5, 0.9, 0.95):
        got = cluster_bootstrap(values, donor, level=level, statistic=statistic)
        wanted = np.quantile(every, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
        np.testing.assert_allclose([got.low, got.high], wanted, rtol=1e-12)
        assert (got.value, got.n_clusters, got.level) == (pytest.approx(getattr(np, statistic)(values)), k, level)
        assert got == cluster_bootstrap(values, donor, level=level, statistic=statistic, n=3, rng=9)  # nothing is drawn


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_eight_clusters_are_counted_and_nine_drawn(statistic):
    values, donor = sections(0, 8)
    parts = [values[donor == name] for name in np.unique(donor)]
    rng = np.random.default_rng(1)
    drawn = [getattr(np, statistic)(np.concatenate([parts[i] for i in rng.integers(0, 8, 8)])) for _ in range(20_000)]
    got = cluster_bootstrap(values, donor, statistic=statistic)
    for bound, q in ((got.low, 0.025), (got.high, 0.975)):
        assert np.mean(np.array(drawn) <= bound + 1e-12) >= q - 0.004
        assert np.mean(np.array(drawn) < bound - 1e-12) <= q + 0.004
    values, donor = sections(0, 9)
    one, two = (cluster_bootstrap(values, donor, statistic=statistic, rng=seed) for seed in (0, 1))
    assert one == cluster_bootstrap(values, donor, statistic=statistic, rng=0)
    assert one != two


def test_one_value_a_cluster_is_the_bootstrap_of_scipy():
    values = np.random.default_rng(3).gamma(2, size=25)
    for statistic in (np.mean, np.median):
        theirs = scipy.stats.bootstrap((values,), statistic, method="percentile", n_resamples=20_000, rng=0).confidence_interval
        got = cluster_bootstrap(values, range(25), n=20_000, statistic=statistic.__name__)
        np.testing.assert_allclose([got.low, got.high], theirs, atol=0.03)


def test_the_order_of_the_values_and_the_names_of_the_clusters_change_nothing():
    for k, statistic in itertools.product((4, 12), ("mean", "median")):
        values, donor = sections(5, k)
        base = cluster_bootstrap(values, donor, statistic=statistic, rng=2)
        order = np.random.default_rng(0).permutation(len(values))
        np.testing.assert_allclose(cluster_bootstrap(values[order], donor[order], statistic=statistic, rng=2), base, rtol=1e-12)
        np.testing.assert_allclose(cluster_bootstrap(1 + 2 * values, donor, statistic=statistic, rng=2)[:3], 1 + 2 * np.array(base[:3]))
        assert base.low <= base.value <= base.high


def test_donors_are_drawn_and_not_their_spots():
    rng = np.random.default_rng(6)
    level = rng.normal(size=6)
    values, donor = np.repeat(level, 200) + 0.01 * rng.normal(size=1200), np.repeat(range(6), 200)
    by_donor, by_spot = cluster_bootstrap(values, donor), cluster_bootstrap(values, range(1200), n=500)
    assert by_donor.high - by_donor.low > 5 * (by_spot.high - by_spot.low)
    np.testing.assert_allclose(by_donor[:3], cluster_bootstrap(level, range(6))[:3], atol=0.01)


def test_fewer_than_two_clusters_have_no_interval():
    got = cluster_bootstrap([0.2, 0.4], ["A", "A"])
    assert (got.value, got.n_clusters) == (pytest.approx(0.3), 1)
    assert math.isnan(got.low)
    assert math.isnan(got.high)
    same = cluster_bootstrap([0.2, 0.2, 0.2], ["A", "B", "C"])
    np.testing.assert_allclose(same[:3], 0.2, rtol=1e-12)


def test_few_donors_cover_less_than_they_claim():
    rng = np.random.default_rng(0)
    intervals = [cluster_bootstrap(rng.normal(size=4), range(4)) for _ in range(400)]
    assert 0.74 < np.mean([i.low <= 0 <= i.high for i in intervals]) < 0.86


def test_spread_over_seeds():
    got = seed_spread([0.1, 0.4, 0.4])
    assert got == (pytest.approx(0.3), pytest.approx(np.sqrt(0.03)), 3)
    one = seed_spread(np.array([0.5]))
    assert (one.mean, one.n) == (0.5, 1)
    assert math.isnan(one.sd)


# --- permutations of blocks


def first_r(truth, predicted) -> float:
    return float(np.corrcoef(truth[:, 0], predicted[:, 0])[0, 1])


def grid(side: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rc = np.argwhere(np.ones((side, side)))
    return rc, rc[:, 0] // width * side + rc[:, 1] // width


def test_chance_is_called_chance_on_smooth_fields_where_free_permutation_calls_it_significant():
    rng = np.random.default_rng(1)
    rc, blocks = grid(24, 6)
    by_block, free = [], []
    for _ in range(80):
        truth, predicted = (scipy.ndimage.gaussian_filter(rng.normal(size=(24, 24)), 1.5).reshape(-1, 1) for _ in range(2))
        for found, labels in ((by_block, blocks), (free, np.arange(len(rc)))):
            found.append(block_permutation_p(truth, predicted, labels, rc=rc, n=39, rng=rng, statistic=first_r).p)
    assert np.mean(np.array(by_block) <= 0.05) < 0.16
    assert np.mean(np.array(free) <= 0.05) > 0.25
    assert 0.4 < np.mean(by_block) < 0.6


def test_chance_without_structure_has_uniform_p():
    rng = np.random.default_rng(2)
    p = [block_permutation_p(*rng.normal(size=(2, 64, 1)), np.repeat(range(16), 4), n=19, rng=rng, statistic=first_r).p for _ in range(300)]
    assert scipy.stats.kstest(np.array(p) - rng.uniform(0, 0.05, 300), "uniform").pvalue > 1e-3
    assert min(p) == pytest.approx(1 / 20)


@pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_a_perfect_prediction_has_the_smallest_p(layout):
    rng = np.random.default_rng(3)
    rc, blocks = grid(12, 3)
    truth = rng.poisson(2, (144, 5))
    got = block_permutation_p(layout(truth), layout(truth + rng.normal(0, 0.1, truth.shape)), blocks, rc=rc, n=40)
    assert got.p == pytest.approx(1 / 41)
    assert got.observed > 0.99
    assert got.null.shape == (40,)
    assert abs(got.null).max() < 0.5
    constant = block_permutation_p(truth, layout(np.ones(truth.shape)), blocks, n=20)
    assert (constant.p, constant.observed) == (1, 0)


def test_the_null_is_that_of_every_order_of_the_blocks():
    """Three blocks of 2, 1 and 3 spots, laid out by hand."""
    rng = np.random.default_rng(4)
    blocks = np.array(["b", "a", "a", "c", "b", "c", "c", "b"])
    library = np.array([1, 1, 1, 1, 1, 1, 1, 2])
    truth, predicted = rng.normal(size=(2, 8, 1))
    laid = [1, 2, 0, 4, 3, 5, 6, 7]  # a, a, b, b, c, c, c, and the one spot of the other library stays
    every = [
        first_r(truth[laid], predicted[[*itertools.chain(*order), 7]]) for order in itertools.permutations([[1, 2], [0, 4], [3, 5, 6]])
    ]
    got = block_permutation_p(truth, predicted, blocks, library=library, n=400, statistic=first_r)
    np.testing.assert_allclose(np.unique(got.null.round(12)), np.unique(np.round(every, 12)))
    assert got.observed == pytest.approx(every[0])
    assert got.p == pytest.approx(np.mean(np.array(every) >= every[0] - 1e-9), abs=0.1)
    assert got.p == (1 + (got.null >= got.observed - 1e-9).sum()) / 401


def test_blocks_never_leave_their_library():
    rng = np.random.default_rng(5)
    library = np.repeat(["x", "y"], 30)
    predicted = np.stack([library == "x", rng.random(60)], axis=1).astype(float)
    seen = []
    block_permutation_p(
        predicted, predicted, np.tile(np.repeat(range(5), 6), 2), library=library, n=30, statistic=lambda t, p: seen.append(p) or 0.0
    )
    assert all((p[:30, 0] == 1).all() and (p[30:, 0] == 0).all() for p in seen)
    assert len({p.tobytes() for p in seen}) > 20
    assert all(set(map(tuple, p[:30].reshape(5, -1))) == set(map(tuple, predicted[:30].reshape(5, -1))) for p in seen)  # whole blocks


def test_the_order_of_the_rows_and_the_names_change_nothing():
    rng = np.random.default_rng(6)
    rc = np.concatenate([grid(8, 2)[0]] * 2)
    blocks, library = np.concatenate([grid(8, 2)[1]] * 2), np.repeat(["x", "y"], 64)
    truth = rng.poisson(1, (128, 4))
    predicted = 0.2 * truth + rng.normal(size=truth.shape)
    base = block_permutation_p(truth, predicted, blocks, rc=rc, library=library, n=25, rng=3)
    order = rng.permutation(128)
    names = np.array([f"block {i:03d}" for i in blocks])
    for got in (
        block_permutation_p(truth[order], predicted[order], blocks[order], rc=rc[order], library=library[order], n=25, rng=3),
        block_permutation_p(truth, predicted, names, rc=rc, library=library, n=25, rng=3),
        block_permutation_p(truth, predicted, blocks, library=library, n=25, rng=3),  # the rows are in the order of the raster already
    ):
        np.testing.assert_array_equal(got.null, base.null)
        assert (got.p, got.observed) == (base.p, base.observed)
    assert not np.array_equal(block_permutation_p(truth, predicted, blocks, rc=rc, library=library, n=25, rng=4).null, base.null)


X = np.arange(12.0).reshape(6, 2)
PAIRS = np.repeat(range(3), 2)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: cluster_bootstrap([1.0, np.nan], ["a", "b"]), ValueError, "1 rows of 2 with NaN.*put 0 there"),
        (lambda: cluster_bootstrap([], []), ValueError, "at least one value"),
        (lambda: cluster_bootstrap([1, 2], ["a"]), ValueError, "2 values and 1 clusters"),
        (lambda: cluster_bootstrap([1, 2], ["a", None]), ValueError, "clusters has 1 missing labels of 2"),
        (lambda: cluster_bootstrap([1, 2], ["a", "b"], level=95), ValueError, "level=95"),
        (lambda: cluster_bootstrap([1, 2], ["a", "b"], n=0), ValueError, "n=0"),
        (lambda: cluster_bootstrap([1, 2], ["a", "b"], statistic="sum"), ValueError, "statistic='sum'"),
        (lambda: cluster_bootstrap(range(9), range(9), rng="x"), TypeError, "rng='x'"),
        (lambda: seed_spread([]), ValueError, "at least one value"),
        (lambda: seed_spread([1, np.inf]), ValueError, "NaN or infinite"),
        (lambda: block_permutation_p(X, X, PAIRS[:5]), ValueError, "'blocks': 5"),
        (lambda: block_permutation_p(X, X[:5], PAIRS), ValueError, "'predicted': 5"),
        (lambda: block_permutation_p(X, X, PAIRS, rc=X[:4]), ValueError, "'rc': 4"),
        (lambda: block_permutation_p(X, X, PAIRS, rc=X[:, 0]), ValueError, "rc of two dimensions"),
        (lambda: block_permutation_p(X, X, [None, *PAIRS[1:]]), ValueError, "blocks has 1 missing labels"),
        (lambda: block_permutation_p(X, X, np.zeros(6)), ValueError, "No library has two blocks"),
        (lambda: block_permutation_p(X, X, PAIRS, library=PAIRS), ValueError, "No library has two blocks"),
        (lambda: block_permutation_p(X, X, PAIRS, statistic=lambda t, p: np.nan), ValueError, "not finite"),
        (lambda: block_permutation_p(X, X, PAIRS, n=0), ValueError, "n=0"),
    ],
)
def test_errors_say_what_was_found(call, error, match):
    with pytest.raises(error, match=match):
        call()
