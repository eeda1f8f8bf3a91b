"""The baselines against scikit-learn, plain loops over dense arrays, and simulated counts whose expected values are known."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from stimg.image.interpolate import _weights as weights
from stimg.image.lattice import neighbour_pairs
from stimg.image.spec import RasterSpec
from stimg.metrics import _noise_ceiling, nulls


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's r of each column by scipy, 0 where it is not defined."""
    flat = (np.ptp(a, axis=0) == 0) | (np.ptp(b, axis=0) == 0)
    return np.array([0.0 if f else scipy.stats.pearsonr(p, t)[0] for p, t, f in zip(a.T, b.T, flat, strict=True)])


# --- constant


def test_constant_is_the_training_mean_and_scores_zero():
    rng = np.random.default_rng(0)
    train, test = rng.gamma(1.0, size=(20, 4)), rng.gamma(1.0, size=(7, 4))
    predicted = nulls.constant(train, 7)
    np.testing.assert_allclose(predicted, np.tile(train.mean(axis=0), (7, 1)))
    np.testing.assert_array_equal(correlations(predicted, test), 0)
    assert nulls.constant(train, 0).shape == (0, 4)


# --- ridge


@pytest.mark.parametrize(("n", "p"), [(40, 6), (12, 30), (10, 10), (1, 3)])
@pytest.mark.parametrize("penalty", [1e-3, 0.7, 50.0])
def test_ridge_is_that_of_scikit_learn(n, p, penalty):
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(1)
    x, y, new = rng.normal(3, 2, (n, p)) * np.arange(1, p + 1), rng.normal(size=(n, 5)), rng.normal(size=(4, p))
    trace = np.trace((x - x.mean(axis=0)).T @ (x - x.mean(axis=0)))
    fitted = nulls.ridge(x, y, penalty=penalty)
    if n == 1:
        np.testing.assert_allclose(fitted.predict(new), np.tile(y, (4, 1)))
        return
    theirs = Ridge(alpha=penalty * trace / p).fit(x, y)
    np.testing.assert_allclose(fitted.coefficients, theirs.coef_.T, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(fitted.intercept, theirs.intercept_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(fitted.predict(new), theirs.predict(new), rtol=1e-7, atol=1e-9)


def test_the_penalty_has_no_scale_and_no_sample_size():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 3))
    once = nulls.ridge(x, y, penalty=0.3).predict(x)
    np.testing.assert_allclose(nulls.ridge(1e4 * x + 7, y, penalty=0.3).predict(1e4 * x + 7), once, atol=1e-9)
    np.testing.assert_allclose(nulls.ridge(np.tile(x, (4, 1)), np.tile(y, (4, 1)), penalty=0.3).predict(x), once, atol=1e-9)
    flat = nulls.ridge(np.ones((30, 5)), y, penalty=0.3)
    np.testing.assert_allclose(flat.predict(x), np.tile(y.mean(axis=0), (30, 1)))


# --- depth line


def test_depth_line_is_a_straight_line_on_log_depth():
    rng = np.random.default_rng(3)
    depth, test_depth = rng.integers(100, 9000, 50), rng.integers(100, 9000, 8)
    values = rng.normal(size=(50, 4)) + np.outer(np.log(depth), [0, 1, -0.5, 2])
    predicted = nulls.depth_line(values, depth, test_depth)
    for gene in range(4):
        line = np.polyfit(np.log(depth), values[:, gene], 1)
        np.testing.assert_allclose(predicted[:, gene], np.polyval(line, np.log(test_depth)), rtol=1e-9)


def test_depth_line_within_sections_does_not_see_differences_between_them():
    rng = np.random.default_rng(4)
    section = np.repeat(["a", "b", "c"], 30)
    shift = np.repeat([0.0, 5.0, -3.0], 30)
    depth = np.exp(rng.normal(7, 0.5, 90) + shift / 5)
    values = np.outer(np.log(depth), [1.0, -2.0]) - 4 * shift[:, None] + rng.normal(0, 0.01, (90, 2))
    predicted = nulls.depth_line(values, depth, np.exp([7.0, 8.0]), train_section=section)
    np.testing.assert_allclose(predicted[1] - predicted[0], [1.0, -2.0], atol=0.01)
    at_mean = nulls.depth_line(values, depth, [np.exp(np.log(depth).mean())], train_section=section)
    np.testing.assert_allclose(at_mean[0], values.mean(axis=0))
    assert abs(np.diff(nulls.depth_line(values, depth, np.exp([7.0, 8.0])), axis=0)[0, 0] - 1) > 1
    order = rng.permutation(90)
    shuffled = nulls.depth_line(values[order], depth[order], np.exp([7.0, 8.0]), train_section=section[order])
    np.testing.assert_allclose(shuffled, predicted, rtol=1e-12)


def test_one_depth_throughout_gives_the_mean():
    values = np.random.default_rng(0).normal(size=(9, 2))
    np.testing.assert_allclose(nulls.depth_line(values, np.full(9, 1234.5), [1.0, 1e6]), np.tile(values.mean(axis=0), (2, 1)))


# --- coordinates


def plain_neighbours(train, values, test, k):
    """Average over the k nearest; observations at the k-th distance share the places that are left."""
    out = []
    for point in test:
        square = ((train - point) ** 2).sum(axis=1)
        limit = np.sort(square)[k - 1]
        near, tied = square < limit - 1e-9, np.abs(square - limit) <= 1e-9
        out.append((values[near].sum(axis=0) + (k - near.sum()) * values[tied].mean(axis=0)) / k)
    return np.array(out)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 40), st.integers(1, 60))
def test_coordinate_neighbours_share_ties(seed, n, k):
    rng = np.random.default_rng(seed)
    n = max(n, k)
    train, test = rng.integers(0, 6, (n, 2)), rng.integers(-2, 8, (9, 2)) + rng.choice([0.0, 0.5], (9, 2))
    values = rng.normal(size=(n, 3))
    got = nulls.coordinate_neighbours(train, values, test, k=k)
    np.testing.assert_allclose(got, plain_neighbours(train, values, test, k), atol=1e-12)
    order = rng.permutation(n)
    np.testing.assert_allclose(nulls.coordinate_neighbours(train[order], values[order], test, k=k), got, atol=1e-12)


def test_more_ties_than_are_asked_for_at_first(monkeypatch):
    rng = np.random.default_rng(5)
    train = np.tile(np.argwhere(np.ones((4, 5))), (60, 1))
    values, test = rng.normal(size=(len(train), 2)), rng.integers(0, 5, (50, 2)).astype(float)
    expected = plain_neighbours(train, values, test, 7)
    np.testing.assert_allclose(nulls.coordinate_neighbours(train, values, test, k=7), expected, atol=1e-12)
    monkeypatch.setattr(weights, "ROWS", 3)
    np.testing.assert_allclose(nulls.coordinate_neighbours(train, values, test, k=7), expected, atol=1e-12)


def test_coordinate_neighbours_with_section_means_taken_out():
    rng = np.random.default_rng(6)
    rc = rng.random((40, 2)) * 9
    section = np.repeat([3, 8], [15, 25])
    values = rng.normal(size=(40, 2))
    offset = np.where(section == 3, 100.0, -40.0)[:, None]
    got = nulls.coordinate_neighbours(rc, values + offset, rc[:5] + 0.3, k=6, train_section=section)
    level = np.stack([values[section == s].mean(axis=0) for s in section])
    expected = plain_neighbours(rc, values - level, rc[:5] + 0.3, 6) + (values + offset).mean(axis=0)
    np.testing.assert_allclose(got, expected, atol=1e-10)
    everyone = nulls.coordinate_neighbours(rc, values, rc[:5], k=40)
    np.testing.assert_allclose(everyone, np.tile(values.mean(axis=0), (5, 1)))


# --- neighbours


@pytest.mark.parametrize("lattice", [("square", -1, False), ("square", -1, True), ("hex", 0, False)])
def test_neighbour_mean_is_that_of_a_dense_graph(lattice):
    rng = np.random.default_rng(7)
    spec = RasterSpec(lattice[0], (9, 8), 100.0, lattice[1])
    rc = np.argwhere(rng.random((9, 8)) < 0.5)
    rc = rc[rng.permutation(len(rc))]
    section = rc[:, 0] > 4
    pairs = neighbour_pairs(spec, rc, diagonal=lattice[2])
    pairs = pairs[section[pairs[:, 0]] == section[pairs[:, 1]]]
    graph = np.zeros((len(rc), len(rc)))
    graph[pairs[:, 0], pairs[:, 1]] = graph[pairs[:, 1], pairs[:, 0]] = 1
    values = rng.gamma(1.0, size=(len(rc), 5))
    got = nulls.neighbour_mean(values, pairs, section=section)
    alone = graph.sum(axis=1) == 0
    assert lattice[2] or alone.any()
    for i in range(len(rc)):
        expected = values[section == section[i]].mean(axis=0) if alone[i] else values[graph[i] > 0].mean(axis=0)
        np.testing.assert_allclose(got[i], expected, atol=1e-12)
    changed = values.copy()
    i = int(np.argmin(alone))
    changed[i] = 1e6
    np.testing.assert_allclose(nulls.neighbour_mean(changed, pairs, section=section)[i], got[i])  # its own value does not count


def test_neighbour_mean_without_any_pair():
    values = np.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(nulls.neighbour_mean(values, np.empty((0, 2), int)), np.tile([2.0, 3.0], (3, 1)))


# --- ridge on embeddings


def features(rng, n, p, genes=7):
    x = rng.normal(size=(n, 4)) @ rng.normal(size=(4, p)) * np.arange(1, p + 1) + rng.normal(size=(n, p)) + 5
    y = x[:, :4] @ rng.normal(size=(4, genes)) / 4 + rng.normal(0, 3, (n, genes))
    return x, y


def pipeline(x, y, new, penalty, n_components):
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    z, t = scaler.transform(x), scaler.transform(new)
    if n_components is not None:
        pca = PCA(min(n_components, *z.shape), svd_solver="full").fit(z)
        z, t = pca.transform(z), pca.transform(t)
    return Ridge(alpha=penalty * (z**2).sum() / z.shape[1]).fit(z, y).predict(t)


@pytest.mark.parametrize(
    ("n", "p", "n_components"), [(60, 10, None), (60, 10, 4), (60, 10, 256), (20, 50, None), (20, 50, 6), (20, 50, 256)]
)
def test_embedding_ridge_is_scikit_learns_pipeline(n, p, n_components):
    rng = np.random.default_rng(8)
    x, y = features(rng, n + 9, p)
    for penalty in (0.01, 1.0):
        got = nulls.embedding_ridge(x[:n], y[:n], x[n:], n_components=n_components, penalties=[penalty])
        assert got.penalty == penalty
        assert np.isnan(got.inner_scores).all()
        np.testing.assert_allclose(got.values, pipeline(x[:n], y[:n], x[n:], penalty, n_components), rtol=1e-6, atol=1e-7)
    if n_components is None:
        z, t = ((v - x[:n].mean(axis=0)) / x[:n].std(axis=0) for v in (x[:n], x[n:]))
        np.testing.assert_allclose(got.values, nulls.ridge(z, y[:n], penalty=1.0).predict(t), atol=1e-8)


@pytest.mark.parametrize("centre", [False, True])
def test_the_penalty_is_chosen_on_groups_that_are_held_out(centre):
    rng = np.random.default_rng(9)
    x, y = features(rng, 90, 12)
    section = np.repeat(["s1", "s2", "s3", "s4", "s5"], [20, 15, 25, 10, 20])
    donor = np.where(section < "s3", "d1", np.where(section < "s5", "d2", "d3"))
    x = x + 10 * (section == "s2")[:, None]
    train = np.arange(70)
    penalties = (0.001, 0.1, 3.0, 100.0)
    sections = {"train_section": section[:70], "test_section": section[70:]} if centre else {}
    if not centre:
        donor = section  # a group is then one section
    got = nulls.embedding_ridge(x[:70], y[:70], x[70:], train_group=donor[:70], n_components=5, penalties=penalties, **sections)
    if centre:
        xc, yc = (np.concatenate([v[section == s] - v[section == s].mean(axis=0) for s in np.unique(section)]) for v in (x, y))
    else:
        xc, yc = x, y
    scores = np.zeros(4)
    for i, penalty in enumerate(penalties):
        by_group = []
        for d in np.unique(donor[:70]):
            fit, held = train[donor[:70] != d], train[donor[:70] == d]
            predicted = pipeline(xc[fit], yc[fit], xc[held], penalty, 5)
            by_group.append(
                np.mean([correlations(predicted[section[held] == s], y[held][section[held] == s]).mean() for s in np.unique(section[held])])
            )
        scores[i] = np.mean(by_group)
    np.testing.assert_allclose(got.inner_scores, scores, atol=1e-6)
    assert got.penalty == penalties[int(np.argmax(scores))]
    expected = pipeline(xc[:70], yc[:70], xc[70:], got.penalty, 5) + (y[:70].mean(axis=0) if centre else 0)
    np.testing.assert_allclose(got.values, expected, atol=1e-6)
    reversed_ = nulls.embedding_ridge(x[:70], y[:70], x[70:], train_group=donor[:70], n_components=5, penalties=penalties[::-1], **sections)
    np.testing.assert_allclose(reversed_.inner_scores, got.inner_scores[::-1])
    np.testing.assert_allclose(reversed_.values, got.values)


def test_nothing_is_fitted_on_the_test_rows():
    rng = np.random.default_rng(10)
    x, y = features(rng, 50, 8)
    one = nulls.embedding_ridge(x[:40], y[:40], x[40:41], penalties=[0.1]).values
    many = nulls.embedding_ridge(x[:40], y[:40], np.concatenate([x[40:41], 1e3 * x[41:]]), penalties=[0.1]).values
    np.testing.assert_allclose(many[:1], one, atol=1e-10)


def test_columns_that_are_constant_within_sections_carry_nothing():
    rng = np.random.default_rng(11)
    x, y = features(rng, 60, 6)
    section = np.repeat([0, 1, 2], 20)
    level = np.array([0.1, 0.7, 123.456])[section][:, None]  # less its mean, rounding is what is left
    sections = {"train_section": section[:40], "test_section": section[40:], "n_components": None, "penalties": [0.1]}
    without = nulls.embedding_ridge(x[:40], y[:40], x[40:], **sections).values
    wider = np.concatenate([x, level, np.zeros((60, 1))], axis=1)
    got = nulls.embedding_ridge(wider[:40], y[:40], wider[40:], **{**sections, "penalties": [0.1 * 8 / 6]}).values
    np.testing.assert_allclose(got, without, atol=1e-9)
    flat = nulls.embedding_ridge(level[:40], y[:40], level[40:], **sections).values
    np.testing.assert_allclose(flat, np.tile(y[:40].mean(axis=0), (20, 1)))


# --- permutations and random features


def test_permuted_labels_are_the_same_rows_and_score_chance():
    rng = np.random.default_rng(12)
    values = rng.normal(size=(400, 30))
    got = nulls.permute_labels(values, rng=1)
    np.testing.assert_array_equal(np.sort(got[:, 0]), np.sort(values[:, 0]))
    np.testing.assert_array_equal(got, nulls.permute_labels(values, rng=1))
    assert not np.array_equal(got, nulls.permute_labels(values, rng=2))
    assert abs(correlations(got, values).mean()) < 0.03
    row = {tuple(v) for v in values}
    assert all(tuple(v) in row for v in got)


def test_permuted_blocks_move_as_one():
    rng = np.random.default_rng(13)
    block = rng.permutation(np.repeat(np.arange(8), 5))  # blocks of one size, rows in any order
    rows = np.arange(40)
    seen = set()
    for seed in range(20):
        moved = nulls.permute_blocks(rows, block, rng=seed)
        np.testing.assert_array_equal(np.sort(moved), rows)
        for b in range(8):
            source = moved[block == b]
            assert len(set(block[source])) == 1
            np.testing.assert_array_equal(source, rows[block == block[source[0]]])  # in the order that they had
        seen.add(tuple(moved))
    assert len(seen) == 20
    np.testing.assert_array_equal(nulls.permute_blocks(rows, np.zeros(40), rng=0), rows)


def test_blocks_of_different_sizes_follow_each_other_and_stay_in_their_library():
    block = np.array([1, 0, 0, 2, 2, 2, 0, 1])
    library = np.array(["x", "x", "x", "x", "x", "x", "y", "y"])
    in_order = [1, 2, 0, 3, 4, 5]
    parts = [[1, 2], [0], [3, 4, 5]]
    seen = set()
    for seed in range(60):
        moved = nulls.permute_blocks(np.arange(8), block, library=library, rng=seed)
        assert set(moved[6:]) == {6, 7}
        seen.add(tuple(moved[in_order]))
    assert seen == {tuple(itertools.chain(*order)) for order in itertools.permutations(parts)}


def test_random_embedding():
    x = nulls.random_embedding(2000, 8, rng=3)
    assert x.dtype == np.float32
    assert abs(x.mean()) < 0.03
    assert abs(x.std() - 1) < 0.03
    np.testing.assert_array_equal(x, nulls.random_embedding(2000, 8, rng=3))


# --- noise ceiling


def test_halves_are_binomial():
    for count in (0, 1, 2, 5, 63, 64, 400):
        half = _noise_ceiling._halves(np.full(40_000, count), np.random.default_rng(count))
        assert half.min() >= 0
        assert half.max() <= count
        expected = scipy.stats.binom(count, 0.5)
        assert half.mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / 200 + 1e-12)
        assert half.var() == pytest.approx(expected.var(), rel=0.05, abs=1e-12)
        if 0 < count <= 5:
            observed = np.bincount(half, minlength=count + 1)
            assert scipy.stats.chisquare(observed, 40_000 * expected.pmf(np.arange(count + 1))).pvalue > 1e-4


def simulated(rng, n=150, n_vars=120, depth=3000):
    rate = rng.gamma(0.7, size=n_vars) * np.exp(np.outer(np.sin(np.arange(n) / 9), rng.normal(0, 0.7, n_vars)))
    rate *= (depth * rng.lognormal(0, 0.4, n) / rate.sum(axis=1))[:, None]
    return rng.poisson(rate), rate


def plain_ceiling(counts, genes, n_splits, rng, target):
    r = []
    for _ in range(n_splits):
        first = rng.binomial(counts, 0.5)
        r.append(correlations(*(target(h, h.sum(axis=1, keepdims=True))[:, genes] for h in (first, counts - first))))
    mean = np.maximum(np.mean(r, axis=0), 0)
    return np.sqrt(2 * mean / (1 + mean))


def log1p_cp10k(counts, depth):
    return np.log1p(1e4 * counts / np.maximum(depth, 1))  # half of a library of one count may be empty


@pytest.mark.parametrize(
    ("name", "target"), [("log1p_cp10k", log1p_cp10k), ("log1p", lambda c, d: np.log1p(c)), ("custom", lambda c, d: np.sqrt(c / d))]
)
def test_noise_ceiling_agrees_with_whole_matrices_split_by_numpy(name, target):
    rng = np.random.default_rng(14)
    counts, _ = simulated(rng)
    genes = np.argsort(-counts.sum(axis=0))[:70]
    got = nulls.noise_ceiling(sp.csr_matrix(counts), genes=genes, n_splits=60, rng=1, target=target if name == "custom" else name)
    expected = plain_ceiling(counts, genes, 60, rng, target)
    assert got.n_undefined == 0
    assert got.ceiling.mean() == pytest.approx(expected.mean(), abs=0.005)
    np.testing.assert_allclose(got.reliability, expected**2, atol=0.04)
    np.testing.assert_allclose(got.ceiling**2, got.reliability)


def test_noise_ceiling_is_what_the_expected_values_reach():
    rng = np.random.default_rng(15)
    counts, rate = simulated(rng, n=600, depth=20_000)
    reached = correlations(np.log1p(rate), np.log1p(counts))
    ceiling = nulls.noise_ceiling(counts, target="log1p", n_splits=10).ceiling
    strong = counts.mean(axis=0) > 3
    assert strong.sum() > 60
    np.testing.assert_allclose(ceiling[strong], reached[strong], atol=0.04)
    assert abs((ceiling - reached)[strong].mean()) < 0.01


def test_noise_ceiling_takes_any_form_of_the_same_counts():
    rng = np.random.default_rng(16)
    counts, _ = simulated(rng)
    genes = np.array([5, 3, 80, 41])
    mask = np.isin(np.arange(counts.shape[1]), genes)
    full = sp.csr_matrix(counts.astype(np.float32))
    one = nulls.noise_ceiling(full, genes=genes, rng=3)
    for same in (
        nulls.noise_ceiling(counts, genes=genes, rng=3),
        nulls.noise_ceiling(sp.csc_array(counts), genes=genes, rng=3),
        nulls.noise_ceiling(full[:, genes], depth=counts.sum(axis=1), rng=3),
        nulls.noise_ceiling(full, genes=genes, rng=3, target=log1p_cp10k),
        nulls.noise_ceiling(full, genes=genes, rng=3, smooth=lambda v: 2 * v + 1),
        nulls.noise_ceiling(full, genes=genes, rng=np.random.default_rng(3)),
    ):
        np.testing.assert_allclose(same.ceiling, one.ceiling, rtol=1e-9, atol=1e-12)
    by_mask, by_position = (nulls.noise_ceiling(full, genes=g, rng=3).ceiling for g in (mask, np.sort(genes)))
    np.testing.assert_array_equal(by_mask, by_position)
    assert not np.array_equal(one.ceiling, nulls.noise_ceiling(full, genes=genes, rng=4).ceiling)


def test_blocks_of_genes_and_draws_do_not_show(monkeypatch):
    counts = sp.csr_matrix(simulated(np.random.default_rng(17))[0])
    whole = nulls.noise_ceiling(counts, rng=0)
    monkeypatch.setattr(_noise_ceiling, "GENES", 7)
    np.testing.assert_array_equal(nulls.noise_ceiling(counts, rng=0).ceiling, whole.ceiling)
    np.testing.assert_allclose(nulls.noise_ceiling(counts, rng=0, target=log1p_cp10k).ceiling, whole.ceiling, rtol=1e-9, atol=1e-12)


def test_smoothing_has_its_own_ceiling():
    rng = np.random.default_rng(18)
    counts, _ = simulated(rng, depth=600)
    near = sp.diags([1 / 3, 1 / 3, 1 / 3], [-1, 0, 1], shape=(150, 150)).tocsr()
    plain = nulls.noise_ceiling(counts).ceiling
    smoothed = nulls.noise_ceiling(counts, smooth=lambda v: near @ v).ceiling
    assert smoothed.mean() > plain.mean() + 0.05
    with pytest.raises(ValueError, match="same shape"):
        nulls.noise_ceiling(counts, smooth=lambda v: v[:-1])


def test_genes_without_counts_are_counted_and_noise_has_no_ceiling():
    rng = np.random.default_rng(19)
    counts = rng.poisson(2.0, (400, 40))
    counts[:, 3] = 0
    counts[:, 4] = 0
    counts[7, 4] = 1  # constant in one of the two halves, always
    got = nulls.noise_ceiling(counts, target="log1p", n_splits=8)
    assert got.n_undefined == 2
    np.testing.assert_array_equal(got.ceiling[[3, 4]], 0)
    assert (got.ceiling[5:] == 0).sum() > 5  # negative averages
    assert got.reliability[5:].mean() < 0.05
    empty = counts.copy()
    empty[:50] = 0  # observations without counts are zeros in both halves
    assert np.isfinite(nulls.noise_ceiling(empty).ceiling).all()


# --- what does not fit


X, Y = np.arange(12.0).reshape(6, 2), np.arange(18.0).reshape(6, 3)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: nulls.constant(np.full((2, 2), np.nan), 3), ValueError, "NaN"),
        (lambda: nulls.constant(np.ones(4), 3), ValueError, "two dimensions"),
        (lambda: nulls.constant(np.ones((0, 3)), 3), ValueError, "train_values': 0"),
        (lambda: nulls.ridge(X, Y[:5], penalty=1.0), ValueError, "'x': 6, 'y': 5"),
        (lambda: nulls.ridge(X, Y, penalty=0), ValueError, "penalty=0"),
        (lambda: nulls.ridge(X.astype(str), Y, penalty=1.0), TypeError, "real numbers"),
        (lambda: nulls.depth_line(Y, [1, 2, 0, 4, 5, 6], [3]), ValueError, "train_depth is zero, negative or not finite for 1 of 6"),
        (lambda: nulls.depth_line(Y, np.arange(1, 7), [np.nan, 3]), ValueError, "test_depth is zero, negative or not finite for 1 of 2"),
        (lambda: nulls.coordinate_neighbours(X, Y, X, k=7), ValueError, "k=7 neighbours of 6"),
        (lambda: nulls.coordinate_neighbours(X, Y, X[:, :1], k=2), ValueError, "'test_rc': 1"),
        (lambda: nulls.coordinate_neighbours(X, Y, X, k=2, train_section=[1, 2]), ValueError, "'train_section': 2"),
        (lambda: nulls.neighbour_mean(Y, [[0, 1], [1, 2]], section=[0, 0, 1, 1, 1, 1]), ValueError, "1 of 2 pairs join two sections"),
        (lambda: nulls.neighbour_mean(Y, [[0, 6]]), ValueError, "wanted 0 to 5"),
        (lambda: nulls.neighbour_mean(Y, [[0, 1], [1, 0]]), ValueError, "twice"),
        (lambda: nulls.embedding_ridge(X, Y, X), ValueError, "13 penalties and 0 groups"),
        (lambda: nulls.embedding_ridge(X, Y, X, train_group=np.zeros(6)), ValueError, "13 penalties and 1 groups"),
        (lambda: nulls.embedding_ridge(X, Y, X, train_section=np.arange(6)), ValueError, "Only one of train_section"),
        (lambda: nulls.embedding_ridge(X, Y, X, penalties=[-1.0]), ValueError, "above zero"),
        (lambda: nulls.embedding_ridge(X, Y, X, penalties=[1.0], n_components=0), ValueError, "n_components=0"),
        (lambda: nulls.embedding_ridge(X, Y, X[:, :1], penalties=[1.0]), ValueError, "'test_x': 1"),
        (lambda: nulls.embedding_ridge(X[:, :0], Y, X[:, :0], penalties=[1.0]), ValueError, "no columns"),
        (lambda: nulls.permute_blocks(Y, np.zeros(5)), ValueError, "'blocks': 5"),
        (lambda: nulls.permute_labels(Y, rng="x"), TypeError, "rng='x'"),
        (lambda: nulls.random_embedding(3, 0), ValueError, "dim=0"),
        (lambda: nulls.noise_ceiling(Y + 0.5), ValueError, "fractional"),
        (lambda: nulls.noise_ceiling(-Y), ValueError, "17 of 17 stored counts are negative"),
        (lambda: nulls.noise_ceiling(Y[:1]), ValueError, "1 observations"),
        (lambda: nulls.noise_ceiling(Y, genes=[0, 3]), ValueError, "positions from 0 to 2"),
        (lambda: nulls.noise_ceiling(Y, genes=[0, 0]), ValueError, "each once"),
        (lambda: nulls.noise_ceiling(Y, genes=[True, False]), ValueError, "a mask of 3"),
        (lambda: nulls.noise_ceiling(Y, depth=np.ones(6)), ValueError, "below the counts of the wanted genes, for 6 of 6"),
        (lambda: nulls.noise_ceiling(Y, depth=np.ones(4)), ValueError, "4 values for 6 observations"),
        (lambda: nulls.noise_ceiling(Y, target="cpm"), ValueError, "target='cpm'"),
        (lambda: nulls.noise_ceiling(Y, n_splits=0), ValueError, "n_splits=0"),
    ],
)
def test_errors_say_what_was_found(call, error, match):
    with pytest.raises(error, match=match):
        call()


# --- measured sections


@pytest.mark.slow
@pytest.mark.data
def test_depth_coordinates_and_ceiling_of_her2st_are_those_of_plain_code(mirror):
    """C2 and C3 predict B4: the 250 genes with most counts, not smoothed. A median .37 of the depth line is what two such donors share."""
    from stimg.datasets import her2st

    adata = her2st(["C2", "C3", "B4"])
    library = adata.obs["library_id"].astype(str).to_numpy()
    full = {name: her2st(name) for name in ("C2", "C3", "B4")}
    depth = np.concatenate([np.asarray(full[name].X.sum(axis=1)).ravel() for name in full])
    test = library == "B4"
    genes = np.argsort(-np.asarray(adata[~test].X.sum(axis=0)).ravel(), kind="stable")[:250]
    values = np.log1p(1e4 * adata.X[:, genes].toarray() / depth[:, None])
    rc = adata.obs[["array_row", "array_col"]].to_numpy()

    line = correlations(nulls.depth_line(values[~test], depth[~test], depth[test]), values[test])
    plain = [np.polyval(np.polyfit(np.log(depth[~test]), v, 1), np.log(depth[test])) for v in values[~test].T]
    np.testing.assert_allclose(line, correlations(np.array(plain).T, values[test]), atol=1e-6)
    assert 0.3 < np.median(line) < 0.45

    near = nulls.coordinate_neighbours(rc[~test], values[~test], rc[test], k=10)
    np.testing.assert_allclose(near, plain_neighbours(rc[~test], values[~test], rc[test], 10), atol=1e-5)
    assert abs(correlations(near, values[test]).mean()) < 0.1

    own = full["B4"]
    position = own.var_names.get_indexer(adata.var_names[genes])
    got = nulls.noise_ceiling(own.X, genes=position, n_splits=10, rng=0).ceiling
    dense = own.X.toarray().astype(int)
    expected = plain_ceiling(dense, position, 3, np.random.default_rng(0), log1p_cp10k)
    assert got.mean() == pytest.approx(expected.mean(), abs=0.01)
    assert got.mean() == pytest.approx(0.62, abs=0.02)
