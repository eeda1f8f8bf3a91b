"""Calibration: whether intervals hold the truth as often as they claim, and probabilities come true as often as they say."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from stimg._core.validate import number, whole
from stimg.metrics.clusters import as_labels, encode, missing

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
OFF = 0.01
"""By how much probabilities may miss a sum of 1: half precision does."""


class Coverage(NamedTuple):
    """Coverage of intervals.

    Parameters
    ----------
    coverage
        Share of the truths within their interval, bounds included.
    per_gene
        The same for each gene, float64 (n_genes,).
    mean_width
        Mean width of the intervals that are defined, in the unit of the data (0 where none is): of two methods with the right coverage
        the narrower one knows more.
    level
        What the intervals claim to cover.
    n_undefined
        Intervals with a NaN bound: counted as not covering.
    error
        ``coverage - level``; below zero for intervals that are too sure.
    """

    coverage: float
    per_gene: np.ndarray
    mean_width: float
    level: float
    n_undefined: int
    error: float


class IntervalCalibration(NamedTuple):
    """``error``, the mean over ``levels`` of abs(``observed`` - level); ``n_undefined`` predictions are not finite and count as not covering."""

    error: float
    levels: np.ndarray
    observed: np.ndarray
    n_undefined: int


class ErrorBySd(NamedTuple):
    """Errors of Gaussian predictions in bins of their standard deviation.

    Parameters
    ----------
    sd, rmse
        float64 (bins,), root mean square of the standard deviations and of the errors in each bin, from the least sd to the greatest.
    n
        int64 (bins,), values in each bin.
    error
        Mean over the bins of abs(``rmse`` - ``sd``) / ``sd``: 0 where errors are as large as they were said to be.
    n_undefined
        Predictions that are not finite, in no bin.
    """

    sd: np.ndarray
    rmse: np.ndarray
    n: np.ndarray
    error: float
    n_undefined: int


class ClassificationCalibration(NamedTuple):
    """Calibration error of the top label.

    Parameters
    ----------
    ece, mce
        Expected and maximal calibration error: mean (weighted by the number of observations) and maximum over the bins of
        abs(accuracy - confidence).
    edges
        float64 (n_bins + 1,), bounds of the bins; the upper bound belongs to the bin.
    confidence, accuracy
        float64 (n_bins,), mean of the largest probability and share of right labels in each bin; 0 in an empty one.
    n
        int64 (n_bins,), observations in each bin.
    n_undefined
        Observations with NaN among their probabilities: in no bin, and each counts as a difference of 1.
    """

    ece: float
    mce: float
    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    n: np.ndarray
    n_undefined: int


def coverage(truth: np.ndarray, low: np.ndarray, high: np.ndarray, *, level: float) -> Coverage:
    """Return how often the truth lies within ``[low, high]``, compared with ``level``.

    Parameters
    ----------
    truth, low, high
        (n_obs, n_genes) or (n_obs,), in the same unit. Bounds may be infinite; NaN bounds count as not covering.
    level
        What the intervals claim to cover, between 0 and 1.

    Raises
    ------
    ValueError
        For shapes that differ, no value, a truth that is not finite, a lower bound above the upper one, or a level outside (0, 1).

    Examples
    --------
    >>> result = coverage(np.array([1.0, 2.0, 3.0, 9.0]), np.zeros(4), np.full(4, 5.0), level=0.9)
    >>> result.coverage, round(result.error, 3), result.mean_width
    (0.75, -0.15, 5.0)
    """
    level = _level(level)
    x, bottom, top = _same_shape({"truth": truth, "low": low, "high": high})
    crossed = int((bottom > top).sum())
    if crossed:
        raise ValueError(f"{crossed} intervals of {x.size} have a lower bound above the upper one. Check the order of low and high.")
    with np.errstate(invalid="ignore"):  # both bounds at the same infinity are no interval either
        width = top - bottom
    undefined = np.isnan(width)
    inside = (bottom <= x) & (x <= top)  # False for NaN
    share = float(inside.mean())
    mean_width = float(width[~undefined].mean()) if not undefined.all() else 0.0
    return Coverage(share, inside.mean(axis=0), mean_width, level, int(undefined.sum()), share - level)


def interval_coverage_error(
    truth: np.ndarray, mean: np.ndarray, sd: np.ndarray, *, levels: Sequence[float] | np.ndarray = LEVELS
) -> IntervalCalibration:
    r"""Return the expected calibration error of Gaussian predictions, with the curve behind it.

    .. math:: \frac{1}{m} \sum_j | \hat p_j - p_j |, \quad \hat p_j = \mathrm{mean}\,[\, |x - \mu| \le z_j \sigma \,], \quad
        z_j = \Phi^{-1}\big((1 + p_j) / 2\big)

    Parameters
    ----------
    truth, mean, sd
        (n_obs, n_genes) or (n_obs,): the truth, and mean and standard deviation of its prediction. ``sd`` may be 0: then the truth is
        covered where it equals the mean. NaN in either, or an infinite mean, counts as not covering.
    levels
        Nominal levels p, each between 0 and 1.

    Raises
    ------
    ValueError
        For shapes that differ, no value, a truth that is not finite, a negative ``sd``, or levels outside (0, 1).

    Notes
    -----
    Kuleshov, Fenner and Ermon (2018), ICML, section 3.5, compare quantiles, one-sided, and sum squared differences; here the intervals
    are central and the differences absolute, in the unit of the levels. All genes are pooled: intervals too wide for some and too narrow
    for others can cancel, which ``coverage(...).per_gene`` shows.

    Examples
    --------
    >>> result = interval_coverage_error(np.array([-1.0, 0.0, 0.5, 3.0]), np.zeros(4), np.ones(4), levels=[0.5, 0.9])
    >>> result.observed.tolist(), round(result.error, 3)
    ([0.5, 0.75], 0.075)
    """
    nominal = np.array([_level(each) for each in np.atleast_1d(np.asarray(levels))])
    if len(nominal) == 0:
        raise ValueError("levels is empty; wanted at least one level between 0 and 1.")
    x, mu, sigma = _same_shape({"truth": truth, "mean": mean, "sd": sd})
    negative = int((sigma < 0).sum())
    if negative:
        raise ValueError(f"sd has {negative} negative values of {sigma.size}; wanted standard deviations. Did you pass their logarithm?")
    undefined = ~np.isfinite(mu) | np.isnan(sigma)
    distance = np.where(undefined, np.nan, np.abs(x - mu))
    observed = np.array([np.mean(distance <= z * sigma) for z in scipy.stats.norm.ppf((1 + nominal) / 2)])
    return IntervalCalibration(float(np.mean(np.abs(observed - nominal))), nominal, observed, int(undefined.sum()))


def error_by_sd(truth: np.ndarray, mean: np.ndarray, sd: np.ndarray, *, n_bins: int = 10) -> ErrorBySd:
    r"""Return how large the errors of Gaussian predictions are where a small, and where a large standard deviation was predicted.

    .. math:: \mathrm{ENCE} = \frac{1}{m} \sum_b \frac{| \mathrm{rmse}_b - \mathrm{rms}_b |}{\mathrm{rms}_b}, \quad
        \mathrm{rms}_b = \sqrt{\mathrm{mean}_b\, \sigma^2}, \quad \mathrm{rmse}_b = \sqrt{\mathrm{mean}_b\, (x - \mu)^2}

    Parameters
    ----------
    truth, mean, sd
        (n_obs, n_genes) or (n_obs,): the truth, and mean and standard deviation (above 0) of its prediction, pooled. Predictions with NaN or an infinity are in
        no bin.
    n_bins
        Bins of ``sd`` with equally many values; equal ones are never divided, so there may be fewer.

    Raises
    ------
    ValueError
        For shapes that differ, no value, no finite prediction, a truth that is not finite, or an ``sd`` that is not above 0.

    Notes
    -----
    Levi, Gispan, Giladi and Fetaya (2022), Sensors 22, 5540, equations 8 to 10. Coverage can be right on average with an sd that says nothing about single
    values; then all bins have the same ``rmse``.

    Examples
    --------
    >>> result = error_by_sd(np.array([1.0, -1.0, 4.0, -4.0]), np.zeros(4), np.array([1.0, 1.0, 2.0, 2.0]), n_bins=2)
    >>> result.sd.tolist(), result.rmse.tolist(), result.error
    ([1.0, 2.0], [1.0, 4.0], 0.5)
    """
    n_bins = whole(n_bins, "n_bins")
    x, mu, sigma = (each.ravel() for each in _same_shape({"truth": truth, "mean": mean, "sd": sd}))
    defined = np.isfinite(mu) & np.isfinite(sigma)
    if not defined.any():
        raise ValueError(f"None of the {x.size} predictions is finite; wanted a mean and an sd for at least one value.")
    low = int((sigma[defined] <= 0).sum())
    if low:
        raise ValueError(f"sd has {low} values of {x.size} that are not above 0; wanted standard deviations. Did you pass their logarithm?")
    squares, variance = (x - mu)[defined] ** 2, sigma[defined] ** 2
    upper = np.unique(np.quantile(sigma[defined], np.arange(1, n_bins + 1) / n_bins, method="inverted_cdf"))  # values that occur
    bins = np.searchsorted(upper, sigma[defined], side="left")
    count = np.bincount(bins)
    rms, rmse = np.sqrt(np.bincount(bins, variance) / count), np.sqrt(np.bincount(bins, squares) / count)
    return ErrorBySd(rms, rmse, count, float(np.mean(np.abs(rmse - rms) / rms)), int((~defined).sum()))


def classification_calibration(
    truth: Sequence[Any] | np.ndarray, probabilities: np.ndarray, *, classes: Sequence[Any] | np.ndarray, n_bins: int = 15
) -> ClassificationCalibration:
    r"""Return the calibration error of the most probable label, over bins of equal width.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} | \mathrm{acc}_b - \mathrm{conf}_b |, \quad
        \mathrm{MCE} = \max_b | \mathrm{acc}_b - \mathrm{conf}_b |

    Parameters
    ----------
    truth
        (n_obs,), labels, none missing. A label that is not among ``classes`` makes every answer to it wrong.
    probabilities
        (n_obs, n_classes), each row sums to 1.
    classes
        The label of each column.
    n_bins
        Number of bins between 0 and 1.

    Raises
    ------
    ValueError
        For shapes that do not fit, no observation, missing labels, or rows that are not probabilities (logits, for instance).

    Notes
    -----
    Naeini, Cooper and Hauskrecht (2015), AAAI; bins ``(lower, upper]`` as in Guo et al. (2017), ICML, equations 3 and 5. The ECE is
    biased upwards where bins hold few observations.

    Examples
    --------
    >>> p = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.3, 0.7]])
    >>> result = classification_calibration(["a", "a", "b", "a"], p, classes=["a", "b"])
    >>> round(result.ece, 3), round(result.mce, 3)
    (0.15, 0.2)
    """
    labels, columns, p = as_labels(truth, "truth"), as_labels(classes, "classes"), np.asarray(probabilities, dtype=np.float64)
    n_bins = whole(n_bins, "n_bins")
    if p.shape != (len(labels), len(columns)) or p.size == 0:
        raise ValueError(f"probabilities has shape {p.shape}; wanted ({len(labels)}, {len(columns)}), labels by classes, and not empty.")
    for name, each in (("truth", labels), ("classes", columns)):
        if missing(each).any():
            raise ValueError(f"{name} has {int(missing(each).sum())} missing labels of {len(each)}; wanted none. Leave them out.")
    undefined = np.isnan(p).any(axis=1)
    sound = undefined | (((p >= 0) & (p <= 1 + OFF)).all(axis=1) & (np.abs(p.sum(axis=1) - 1) <= OFF))
    if not sound.all():
        raise ValueError(
            f"{int((~sound).sum())} rows of {len(p)} are not probabilities that sum to 1. Pass the output of a softmax, not logits."
        )
    _, y, codes = encode(labels, columns)
    if len(np.unique(codes)) < len(codes):
        raise ValueError(f"classes has {len(codes)} entries of which {len(np.unique(codes))} are distinct; wanted each class once.")
    y, p = y[~undefined], p[~undefined]
    top = np.minimum(p.max(axis=1), 1.0)
    right = codes[p.argmax(axis=1)] == y
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    bins = np.searchsorted(edges, top, side="left") - 1  # the largest of the probabilities is never 0
    count = np.bincount(bins, minlength=n_bins)
    filled = np.maximum(count, 1)
    confidence, accuracy = np.bincount(bins, top, n_bins) / filled, np.bincount(bins, right, n_bins) / filled
    gap = np.append(np.abs(accuracy - confidence), 1.0 if undefined.any() else 0.0)
    n_undefined = int(undefined.sum())
    ece = float(np.sum(gap * np.append(count, n_undefined)) / len(labels))
    return ClassificationCalibration(ece, float(gap.max()), edges, confidence, accuracy, count, n_undefined)


def _level(level: float) -> float:
    if not 0 < number(level, "level") < 1:
        raise ValueError(f"level={level} is not between 0 and 1, both excluded; wanted the share that the intervals claim to cover.")
    return float(level)


def _same_shape(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the arrays as float64 (n_obs, n_genes), the first of them finite."""
    found = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
    shapes = {name: array.shape for name, array in found.items()}
    first = next(iter(found.values()))
    if len(set(shapes.values())) > 1 or first.ndim not in (1, 2) or first.size == 0:
        raise ValueError(f"The shapes are {shapes}; wanted the same for all, (observations, genes) or (observations,), and not empty.")
    bad = int((~np.isfinite(first)).sum())
    if bad:
        raise ValueError(f"truth has {bad} NaN or infinite values of {first.size}; wanted finite ones. Leave those observations out.")
    return [array.reshape(len(array), -1) for array in found.values()]
