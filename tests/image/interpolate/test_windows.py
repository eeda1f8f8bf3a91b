"""Windows against the method on the whole and against a plain loop, sparse counts against dense ones, memory, and intervals learned from a sample."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from stimg.image.interpolate import METHODS, Guide, Interpolated, LogCounts, Measured, cross_fitted, in_parts, in_windows, trust, windowed
from stimg.image.split import balanced_blocks

ENSEMBLE = METHODS["ensemble"].function.method


@pytest.fixture(scope="module")
def slide():
    """Counts of a slide of 30 x 30 points, half of them measured; a place without any count, and an entry that is stored in two parts."""
    rng = np.random.default_rng(0)
    rc = np.argwhere(np.ones((30, 30))).astype(float)[rng.permutation(900)]
    known, wanted = rc[:450], rc[450:]
    share = np.exp(np.sin(known[:, :1] / rng.uniform(2, 9, 40)) + rng.normal(0, 1, 40))
    counts = rng.poisson(60 * share / share.sum(axis=1, keepdims=True)).astype(np.float32)
    counts[7] = 0
    counts[3, 4] = 5
    twice = sp.coo_matrix(counts)
    split = (np.append(twice.row, 3), np.append(twice.col, 4))
    data = np.append(np.where((twice.row == 3) & (twice.col == 4), 3, twice.data), 2).astype(np.float32)
    order = np.argsort(split[0], kind="stable")
    indptr = np.searchsorted(split[0][order], np.arange(451))
    sparse = sp.csr_matrix((data[order], split[1][order], indptr), shape=counts.shape)
    assert sparse.nnz == twice.nnz + 1
    return known, wanted, counts, sparse


def logs(counts):
    depth = counts.sum(axis=1, keepdims=True).astype(float)
    return np.log1p(np.where(depth > 0, 1e4 * counts / np.maximum(depth, 1), 0))


def pair_of(slide):
    """The same measurements, dense and as counts."""
    known, _, counts, sparse = slide
    depth, columns = counts.sum(axis=1).astype(float), np.array([5, 0, 17])
    return (Measured(known, each, columns=columns, depth=depth, rows=np.arange(450)) for each in (logs(counts), LogCounts(sparse, depth)))


def test_log_counts_are_those_of_the_dense_table(slide):
    dense, lazy = pair_of(slide)
    stored = lazy.stored
    assert isinstance(stored, LogCounts)
    assert len(stored) == 450
    assert stored.shape == (450, 40)
    np.testing.assert_allclose(lazy.values, dense.values, rtol=1e-14)
    np.testing.assert_allclose(lazy.asked, dense.asked, rtol=1e-14)
    np.testing.assert_allclose(stored.places(np.array([3, 7])).genes(np.array([4, 1])).dense(), dense.values[[3, 7]][:, [4, 1]], rtol=1e-14)
    assert lazy.n_asked == dense.n_asked == 3
    assert replace(lazy, columns=None).n_asked == 40
    mask = np.arange(450) % 3 == 0
    for rows in (mask, np.flatnonzero(mask)):
        part = lazy.part(rows)
        assert isinstance(part.stored, LogCounts)
        np.testing.assert_allclose(part.values, dense.values[mask], rtol=1e-14)
        np.testing.assert_array_equal(part.rows, np.flatnonzero(mask))
    assert isinstance(lazy.dense().stored, np.ndarray)
    np.testing.assert_array_equal(dense.dense().values, dense.values)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'values'"):
        Measured(slide[0])


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name].donors])
def test_every_method_reads_counts_as_it_reads_values(slide, name):
    dense, lazy = pair_of(slide)
    a, b = (METHODS[name](each, slide[1][:50]) for each in (dense, lazy))
    np.testing.assert_allclose(b.values, a.values, atol=1e-10)
    assert (a.variance is None) == (b.variance is None)
    if a.variance is not None:
        np.testing.assert_allclose(b.variance, a.variance, rtol=1e-8)


def by_hand(method, measured, wanted, most, halo):
    """Blocks of places one after the other, nearness by comparing every pair; each place from all blocks close to it, by how deep it lies in their boxes."""
    n, every = len(measured.places), np.concatenate([measured.places, wanted])
    block = balanced_blocks(every, -(-n // most))
    values, total = np.zeros((len(wanted), measured.n_asked)), np.zeros(len(wanted))
    for number in range(block.max() + 1):
        core = every[block == number]
        low, high = core.min(axis=0), core.max(axis=0)
        near = [all(low[a] - halo <= p[a] <= high[a] + halo for a in (0, 1)) for p in measured.places]
        depth = [min(*(p - low), *(high - p)) for p in wanted]
        weight = np.array([min(max(0.5 + d / halo, 0.0), 1.0) for d in depth])
        mine = weight > 0
        found = method(measured.part(np.flatnonzero(near)), wanted[mine]).values
        values[mine] += weight[mine, None] * found
        total += weight
    return values / total[:, None]


def test_windows_are_those_of_a_plain_loop(slide):
    dense, lazy = pair_of(slide)
    expected = by_hand(METHODS["kriging"], dense, slide[1][:40], 120, 4.0)
    for measured in (dense, lazy):
        np.testing.assert_allclose(in_windows(METHODS["kriging"], most=120, halo=4.0)(measured, slide[1][:40]).values, expected, atol=1e-9)


def test_parts_are_independent_of_their_order_and_their_shares_add_up(slide):
    _, lazy = pair_of(slide)
    method = in_windows(ENSEMBLE, most=120, halo=5.0)
    whole = method(lazy, slide[1])
    parts = list(in_parts(method, lazy, slide[1]))
    assert len(parts) == 4
    values, shares = np.zeros(whole.values.shape), np.zeros(450)
    for at, share, found in reversed(parts):
        assert (share > 0).all()
        values[at] += share[:, None] * found.values
        shares[at] += share
    np.testing.assert_allclose(shares, 1.0, rtol=1e-12)
    np.testing.assert_allclose(values, whole.values, atol=1e-12)
    order, other = np.random.default_rng(1).permutation(450), np.random.default_rng(2).permutation(450)
    shuffled = method(lazy.part(order), slide[1][other])
    np.testing.assert_allclose(shuffled.values, whole.values[other], atol=1e-9)
    np.testing.assert_allclose(shuffled.variance, whole.variance[other], rtol=1e-7)


def test_there_is_no_seam_where_windows_meet():
    """A method that gives each window's number of places: the answer goes over from one to the next in steps no larger than the taper allows."""
    known = np.argwhere(np.ones((40, 10))).astype(float)
    known = known[(known[:, 0] < 20) | (known[:, 1] % 2 == 0)]
    line = np.column_stack([np.linspace(0, 39, 391), np.full(391, 5.0)])

    def size(measured, wanted):
        return Interpolated(np.full((len(wanted), 1), float(len(measured.places))), None)

    found = in_windows(size, most=100, halo=6.0)(Measured(known, np.zeros((len(known), 1)), logs=False), line).values[:, 0]
    apart = np.ptp(found)
    assert apart > 20
    assert np.abs(np.diff(found)).max() < 0.05 * apart


def test_windows_read_the_guide_of_their_own_places(slide):
    dense, lazy = (each.part(np.arange(120)) for each in pair_of(slide))
    wanted = slide[1][:40]
    places = np.concatenate([lazy.places, wanted])
    guide = Guide(places, np.column_stack([np.sin(places), places[:, 0] * places[:, 1]]))
    whole = METHODS["kriging"](replace(dense, guide=guide), wanted)
    for halo, same in ((100.0, True), (2.0, False)):
        cut = in_windows(METHODS["kriging"], most=50, halo=halo)(replace(lazy, guide=guide), wanted)
        assert np.allclose(cut.values, whole.values, atol=1e-9) == same
    assert not np.allclose(METHODS["kriging"](dense, wanted).values, whole.values, atol=1e-3)


def test_what_has_no_windows_comes_in_one_part(slide):
    dense, _ = pair_of(slide)
    ((at, share, found),) = in_parts(METHODS["nearest"], dense, slide[1])
    assert (share == 1).all()
    assert at.tolist() == list(range(450))
    np.testing.assert_array_equal(found.values, METHODS["nearest"](dense, slide[1]).values)
    assert windowed(METHODS["nearest"]) is None
    assert windowed(METHODS["kriging"]) is METHODS["kriging"].function
    assert len(list(in_parts(lambda m, w: METHODS["mean"](m, w), dense, slide[1]))) == 1
    with pytest.raises(ValueError, match="method 'donor_kriging' needs sections of other donors"):
        next(in_parts(METHODS["donor_kriging"], dense, slide[1]))


def test_one_window_is_dense_at_a_time():
    """20,000 places of 2,000 genes: 320 MB when dense, 20 MB in a window; and no gene that helps is dense where only those asked for are read."""
    rng = np.random.default_rng(3)
    places = np.argwhere(np.ones((200, 100))).astype(float)
    counts = sp.random(20_000, 2000, density=0.01, format="csr", dtype=np.float32, random_state=rng, data_rvs=np.ones)
    lazy = Measured(places, LogCounts(counts, np.asarray(counts.sum(axis=1)).ravel() + 1.0), columns=np.arange(3))

    def mean(measured, wanted):
        assert isinstance(measured.stored, np.ndarray)
        return Interpolated(np.tile(measured.values.mean(axis=0)[:3], (len(wanted), 1)))

    for call, limit in (
        (lambda: in_windows(mean, most=500, halo=4.0)(lazy, places + 0.5), 80),
        (lambda: METHODS["nearest"](lazy, places + 0.5), 40),
        (lambda: trust(in_windows(mean, most=500, halo=4.0), lazy, most=1000), 80),
    ):
        tracemalloc.start()
        try:
            call()
            assert tracemalloc.get_traced_memory()[1] < limit * 2**20
        finally:
            tracemalloc.stop()


@pytest.fixture(scope="module")
def noisy():
    """A pattern and noise of two sizes; the values of the same places measured once more."""
    rng = np.random.default_rng(4)
    places = np.argwhere(np.ones((60, 50))).astype(float)
    pattern = np.column_stack([np.sin(places[:, 0] / 6), np.cos(places[:, 1] / 5)])
    sd = np.array([0.3, 1.0])
    return Measured(places, pattern + rng.normal(0, sd, (3000, 2)), logs=False), pattern + rng.normal(0, sd, (3000, 2))


def with_spread(measured, wanted):
    """Mean of neighbours, with the variance of the whole: intervals far too wide for one gene, and to be stretched otherwise for the other."""
    values = METHODS["k_nearest"](measured, wanted).values
    return Interpolated(values, np.tile(measured.asked.var(axis=0), (len(wanted), 1)))


@pytest.mark.parametrize("kind", ["windows", "whole", "no variance"])
def test_intervals_learned_from_a_sample_hold_nine_tenths(noisy, kind):
    measured, again = noisy
    method = {
        "windows": in_windows(with_spread, most=300, halo=5.0),
        "whole": with_spread,
        "no variance": METHODS["k_nearest"],
    }[kind]
    found = trust(method, measured, most=900, rng=1)
    assert found.own == (kind != "no variance")
    assert 900 <= len(found.rows) <= 1200
    assert len(np.unique(found.rows)) == len(found.rows)
    assert found.predicted.shape == (len(found.rows), 2)
    inside = []
    for part in np.array_split(np.random.default_rng(5).permutation(3000), 5):  # fresh values of places that are left out
        rest = np.setdiff1d(np.arange(3000), part)
        answer = method(measured.part(rest), measured.places[part])
        own = np.sqrt(answer.variance) if answer.variance is not None else np.ones((len(part), 2))
        inside.append(np.abs(again[part] - answer.values) <= 1.6448537 * found.factor * own)
    np.testing.assert_allclose(np.concatenate(inside).mean(axis=0), 0.9, atol=0.03)
    every = trust(method, measured, most=3000, rng=1)
    np.testing.assert_allclose(found.factor, every.factor, rtol=0.12)


def test_a_sample_is_left_out_of_what_predicts_it(noisy):
    measured, _ = noisy
    seen = []

    def spy(given, wanted):
        seen.append(({tuple(p) for p in given.places}, {tuple(p) for p in wanted}))
        return METHODS["nearest"](given, wanted)

    for method in (spy, in_windows(spy, most=300, halo=3.0)):
        seen.clear()
        found = trust(method, measured, most=500, rng=2)
        assert all(not given & wanted for given, wanted in seen)
        assert sum(len(wanted) for _, wanted in seen) == len(found.rows) >= 500
        asked = np.concatenate([sorted(wanted) for _, wanted in seen])
        assert {tuple(p) for p in asked} == {tuple(p) for p in measured.places[found.rows]}
    again = trust(in_windows(spy, most=300, halo=3.0), measured, most=500, rng=2)
    np.testing.assert_array_equal(again.rows, found.rows)
    np.testing.assert_array_equal(again.factor, found.factor)


def test_few_places_are_all_left_out(noisy):
    measured = noisy[0].part(np.arange(200))
    found = trust(METHODS["nearest"], measured, most=200, rng=3)
    assert found.rows.tolist() == list(range(200))
    np.testing.assert_array_equal(found.predicted, cross_fitted(METHODS["nearest"], measured, rng=3).values)
