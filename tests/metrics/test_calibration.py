"""Coverage and calibration errors against loops, and against data whose calibration is known."""

import math

import numpy as np
import pytest
import scipy.stats

from stimg.metrics.calibration import classification_calibration, coverage, error_by_sd, interval_coverage_error


def test_coverage_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(50, 4))
    low = rng.normal(-1, 0.5, (50, 4))
    high = low + rng.random((50, 4)) * 4
    low[3, 1] = high[7, 2] = low[9, 0] = high[9, 0] = np.nan
    inside, widths = np.zeros((50, 4)), []
    for i, j in np.ndindex(50, 4):
        if not (math.isnan(low[i, j]) or math.isnan(high[i, j])):
            inside[i, j] = low[i, j] <= truth[i, j] <= high[i, j]
            widths.append(high[i, j] - low[i, j])
    result = coverage(truth, low, high, level=0.8)
    assert result.coverage == pytest.approx(inside.mean())
    np.testing.assert_allclose(result.per_gene, inside.mean(axis=0))
    assert result.mean_width == pytest.approx(np.mean(widths))
    assert (result.level, result.n_undefined) == (0.8, 3)
    assert result.error == pytest.approx(inside.mean() - 0.8)
    mixed = rng.permutation(50)
    assert coverage(truth[mixed], low[mixed], high[mixed], level=0.8).coverage == result.coverage


def test_right_intervals_cover_what_they_claim():
    truth = np.random.default_rng(1).normal(size=(20000, 2))
    for level in (0.5, 0.9):
        z = scipy.stats.norm.ppf((1 + level) / 2)
        result = coverage(truth, np.full_like(truth, -z), np.full_like(truth, z), level=level)
        assert abs(result.error) < 0.01
        assert result.mean_width == pytest.approx(2 * z)
        assert coverage(truth, np.full_like(truth, -z / 2), np.full_like(truth, z / 2), level=level).error < -0.1


def test_bounds_count_as_inside_and_bounds_may_be_infinite():
    x = np.array([1.0, 2.0])
    assert coverage(x, x, x, level=0.9).coverage == 1.0
    wide = coverage(x, np.full(2, -np.inf), np.full(2, np.inf), level=0.9)
    assert (wide.coverage, wide.mean_width) == (1.0, np.inf)
    nothing = coverage(x, np.full(2, np.nan), x, level=0.9)
    assert (nothing.coverage, nothing.mean_width, nothing.n_undefined) == (0.0, 0.0, 2)
    assert coverage(x, np.full(2, np.inf), np.full(2, np.inf), level=0.9).n_undefined == 2


def test_bad_coverage_is_refused():
    x = np.zeros((3, 2))
    for level in (0.0, 1.0, 95, np.nan):
        with pytest.raises(ValueError, match="is not between 0 and 1"):
            coverage(x, x, x, level=level)
    with pytest.raises(ValueError, match=r"'high': \(3,\)"):
        coverage(x, x, x[:, 0], level=0.9)
    with pytest.raises(ValueError, match="not empty"):
        coverage(x[:0], x[:0], x[:0], level=0.9)
    with pytest.raises(ValueError, match="6 intervals of 6 have a lower bound above"):
        coverage(x, x + 1, x, level=0.9)
    with pytest.raises(ValueError, match="truth has 1 NaN"):
        coverage(np.array([0.0, np.nan]), np.zeros(2), np.ones(2), level=0.9)


def test_interval_error_is_that_of_a_loop():
    rng = np.random.default_rng(2)
    truth, mean, sd = rng.normal(size=(40, 3)), rng.normal(0, 0.3, (40, 3)), rng.random((40, 3)) + 0.2
    mean[0, 0], sd[1, 1], sd[2, 2] = np.nan, np.nan, 0.0
    levels, gaps = [0.2, 0.5, 0.95], []
    result = interval_coverage_error(truth, mean, sd, levels=levels)
    for k, level in enumerate(levels):
        hits = 0
        for t, m, s in zip(truth.ravel(), mean.ravel(), sd.ravel(), strict=True):
            if not (math.isnan(m) or math.isnan(s)) and s > 0:
                low, high = scipy.stats.norm.interval(level, m, s)
                hits += low <= t <= high
        assert result.observed[k] == pytest.approx(hits / truth.size)
        gaps.append(abs(hits / truth.size - level))
    assert result.error == pytest.approx(np.mean(gaps))
    assert result.n_undefined == 2
    np.testing.assert_array_equal(result.levels, levels)
    flat = interval_coverage_error(truth.ravel(), mean.ravel(), sd.ravel(), levels=levels)
    assert flat.error == result.error


def test_right_standard_deviations_have_no_interval_error():
    rng = np.random.default_rng(3)
    sd = rng.random(30000) + 0.1
    truth, mean = rng.normal(0, sd), np.zeros(30000)
    assert interval_coverage_error(truth, mean, sd).error < 0.01
    assert interval_coverage_error(truth, mean, sd / 3).error > 0.2
    assert interval_coverage_error(truth, mean, sd * 3).error > 0.2
    np.testing.assert_allclose(interval_coverage_error(truth, mean, sd).levels, np.arange(1, 10) / 10)


def test_degenerate_predictions():
    x, levels = np.array([1.0, 2.0]), [0.5]
    assert interval_coverage_error(x, x, np.zeros(2), levels=levels).observed.tolist() == [1.0]
    assert interval_coverage_error(x, x + 1e-9, np.zeros(2), levels=levels).observed.tolist() == [0.0]
    assert interval_coverage_error(x, np.zeros(2), np.full(2, np.inf), levels=levels).observed.tolist() == [1.0]
    endless = interval_coverage_error(x, np.full(2, np.inf), np.full(2, np.inf), levels=levels)
    assert (endless.observed.tolist(), endless.n_undefined) == ([0.0], 2)


def test_bad_interval_errors_are_refused():
    x = np.ones(3)
    with pytest.raises(ValueError, match="sd has 3 negative values"):
        interval_coverage_error(x, x, -x)
    with pytest.raises(ValueError, match=r"level=0\.0 is not between"):
        interval_coverage_error(x, x, x, levels=[0.0, 0.5])
    with pytest.raises(ValueError, match="levels is empty"):
        interval_coverage_error(x, x, x, levels=[])
    with pytest.raises(ValueError, match="'sd': \\(2,\\)"):
        interval_coverage_error(x, x, x[:2])


def plain_ece(truth, probabilities, classes, n_bins):
    bins = [[] for _ in range(n_bins)]
    for t, row in zip(truth, probabilities, strict=True):
        confidence = max(row)
        number = next(b for b in range(n_bins) if confidence <= (b + 1) / n_bins + 1e-15)
        bins[number].append((confidence, classes[list(row).index(confidence)] == t))
    gaps = [abs(np.mean([c for c, _ in b]) - np.mean([r for _, r in b])) if b else 0.0 for b in bins]
    return sum(g * len(b) for g, b in zip(gaps, bins, strict=True)) / len(truth), max(gaps), [len(b) for b in bins]


@pytest.mark.parametrize("n_bins", [1, 3, 10])
def test_errors_by_sd_are_those_of_a_loop(n_bins):
    rng = np.random.default_rng(3)
    truth, mean, sd = rng.normal(size=(40, 5)), rng.normal(size=(40, 5)), rng.permutation(np.arange(1, 201) / 50).reshape(40, 5)
    mean[2, 1], sd[4, 4], sd[5, 0] = np.nan, np.inf, np.nan
    kept = sorted((float(sd[i, j]), float(truth[i, j] - mean[i, j])) for i, j in np.ndindex(40, 5) if math.isfinite(mean[i, j] + sd[i, j]))
    ends = [math.ceil(len(kept) * (b + 1) / n_bins) for b in range(n_bins)]
    parts = [kept[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    sds = [math.sqrt(sum(s * s for s, _ in part) / len(part)) for part in parts]
    errors = [math.sqrt(sum(e * e for _, e in part) / len(part)) for part in parts]
    result = error_by_sd(truth, mean, sd, n_bins=n_bins)
    np.testing.assert_allclose(result.sd, sds)
    np.testing.assert_allclose(result.rmse, errors)
    assert result.n.tolist() == [len(part) for part in parts]
    assert result.error == pytest.approx(np.mean([abs(e - s) / s for s, e in zip(sds, errors, strict=True)]))
    assert result.n_undefined == 3


def test_errors_follow_a_right_sd_and_not_one_that_knows_nothing():
    rng = np.random.default_rng(4)
    sd = rng.uniform(0.5, 2.0, 50_000)
    truth = rng.normal(0.0, sd)
    right = error_by_sd(truth, np.zeros_like(sd), sd)
    np.testing.assert_allclose(right.rmse, right.sd, rtol=0.05)
    assert right.error < 0.03
    shuffled = error_by_sd(truth, np.zeros_like(sd), rng.permutation(sd))  # the same coverage of its intervals would be near
    assert np.ptp(shuffled.rmse) < 0.1
    assert shuffled.error > 0.2


def test_equal_sds_are_one_bin_and_the_order_does_not_matter():
    truth = np.array([1.0, -2.0, 3.0, 0.0])
    one = error_by_sd(truth, np.zeros(4), np.full(4, 2.0))
    assert (one.n.tolist(), one.sd.tolist()) == ([4], [2.0])
    assert one.rmse[0] == pytest.approx(math.sqrt(14 / 4))
    sd = np.array([1.0, 1.0, 1.0, 5.0])
    two = error_by_sd(truth, np.zeros(4), sd, n_bins=2)
    again = error_by_sd(truth[::-1], np.zeros(4), sd[::-1], n_bins=2)
    assert two.n.tolist() == again.n.tolist() == [3, 1]
    np.testing.assert_allclose(two.rmse, again.rmse)


def test_bad_errors_by_sd_are_refused():
    x = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"sd has 1 values of 6 that are not above 0"):
        error_by_sd(x, x, np.array([[1, 1], [1, 0], [1, 1.0]]))
    with pytest.raises(ValueError, match="None of the 6 predictions is finite"):
        error_by_sd(x, x, np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match=r"'sd': \(3,\)"):
        error_by_sd(x, x, x[:, 0])
    with pytest.raises(ValueError, match="truth has 6 NaN"):
        error_by_sd(x * np.nan, x, x + 1)
    with pytest.raises(ValueError, match="n_bins=0"):
        error_by_sd(x, x, x + 1, n_bins=0)


@pytest.mark.parametrize("n_bins", [1, 7, 15])
def test_classification_calibration_is_that_of_a_loop(n_bins):
    rng = np.random.default_rng(4)
    classes = ["a", "b", "c"]
    p = rng.dirichlet([0.7, 0.7, 0.7], 300)
    p[0], p[1] = [1.0, 0.0, 0.0], [0.0, 0.6, 0.4]  # bounds of bins
    truth = np.where(rng.random(300) < 0.7, np.array(classes)[p.argmax(axis=1)], rng.choice([*classes, "other"], 300))
    result = classification_calibration(truth, p, classes=classes, n_bins=n_bins)
    ece, mce, n = plain_ece(truth, p, classes, n_bins)
    assert result.ece == pytest.approx(ece, abs=1e-12)
    assert result.mce == pytest.approx(mce, abs=1e-12)
    assert result.n.tolist() == n
    assert len(result.edges) == n_bins + 1
    assert len(result.confidence) == len(result.accuracy) == n_bins
    order, columns = rng.permutation(300), [2, 0, 1]
    again = classification_calibration(truth[order], p[order][:, columns], classes=[classes[c] for c in columns], n_bins=n_bins)
    assert again.ece == pytest.approx(result.ece, abs=1e-9)


def test_right_probabilities_are_calibrated_and_sharpened_ones_are_not():
    rng = np.random.default_rng(5)
    p = rng.dirichlet(np.ones(3), 20000)
    truth = (rng.random((20000, 1)) > p.cumsum(axis=1)).sum(axis=1)
    assert classification_calibration(truth, p, classes=[0, 1, 2]).ece < 0.015
    sharp = p**4 / (p**4).sum(axis=1, keepdims=True)
    assert classification_calibration(truth, sharp, classes=[0, 1, 2]).ece > 0.15
    perfect = np.eye(3)[truth]
    assert classification_calibration(truth, perfect, classes=[0, 1, 2])[:2] == (0.0, 0.0)


def test_undefined_probabilities_count_against_the_classifier():
    p = np.array([[1.0, 0.0], [np.nan, 0.5], [0.0, 1.0], [np.nan, np.nan]])
    result = classification_calibration(["a", "a", "b", "b"], p, classes=["a", "b"])
    assert (result.ece, result.mce, result.n_undefined, result.n.sum()) == (0.5, 1.0, 2, 2)
    nothing = classification_calibration(["a"], [[np.nan, np.nan]], classes=["a", "b"])
    assert (nothing.ece, nothing.mce, nothing.n_undefined) == (1.0, 1.0, 1)


def test_half_precision_is_enough_and_logits_are_refused():
    p = np.random.default_rng(6).dirichlet(np.ones(7), 50).astype(np.float16)
    classification_calibration([0] * 50, p, classes=range(7))
    with pytest.raises(ValueError, match="2 rows of 2 are not probabilities"):
        classification_calibration(["a", "b"], [[2.0, -1.0], [0.3, 0.3]], classes=["a", "b"])


def test_bad_classification_calibration_is_refused():
    p = [[0.5, 0.5], [0.5, 0.5]]
    with pytest.raises(ValueError, match=r"wanted \(2, 3\)"):
        classification_calibration(["a", "b"], p, classes=["a", "b", "c"])
    with pytest.raises(ValueError, match="truth has 1 missing labels of 2"):
        classification_calibration(["a", None], p, classes=["a", "b"])
    with pytest.raises(ValueError, match="each class once"):
        classification_calibration(["a", "b"], p, classes=["a", "a"])
    with pytest.raises(ValueError, match="n_bins=0"):
        classification_calibration(["a", "b"], p, classes=["a", "b"], n_bins=0)
    with pytest.raises(ValueError, match="not empty"):
        classification_calibration([], np.zeros((0, 2)), classes=["a", "b"])
    with pytest.raises(TypeError, match="mix strings"):
        classification_calibration(["0", "1"], p, classes=[0, 1])
