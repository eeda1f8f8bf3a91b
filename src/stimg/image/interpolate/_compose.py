"""Methods made of methods: means of several, one on what another leaves; and how far a method can be trusted."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stimg._core import validate
from stimg._core.rng import RngLike, as_generator
from stimg.image.interpolate._arrays import Interpolated
from stimg.image.interpolate._kriging import shared_spectra
from stimg.image.interpolate._measured import Interpolator, Measured
from stimg.image.interpolate._windows import windowed

FOLDS = 5
LEFT_OUT = 3000
"""Measured places that are all left out in turn; of more than these about so many are, by chance."""
LEVEL, QUANTILE = 0.9, 1.6448536269514722
"""Share of the left-out values that mean ± 1.645 sd is to hold."""


class Trust(NamedTuple):
    """How far a method can be trusted, from places that were left out.

    Parameters
    ----------
    factor
        float64 (genes,), by which the method's standard deviation is multiplied, so that mean ± 1.645 sd holds 90 % of the left-out values; where
        the method gives none, the standard deviation itself.
    own
        Whether the method gives standard deviations.
    predicted
        float64 (n, genes), predictions of measured places, each made without it.
    rows
        int64 (n,), which measured places these are: all of them, up to 3,000.
    """

    factor: np.ndarray
    own: bool
    predicted: np.ndarray
    rows: np.ndarray


def mean_of(methods: Sequence[Interpolator]) -> Interpolator:
    """Return the method that gives the mean of several; the variance is the mean of theirs, as their errors are nearly the same."""

    def together(measured: Measured, wanted: np.ndarray) -> Interpolated:
        with shared_spectra():
            found = [method(measured, wanted) for method in methods]
        variances = [f.variance for f in found if f.variance is not None]
        variance = sum(variances[1:], variances[0]) / len(variances) if variances else None
        return Interpolated(sum((f.values for f in found[1:]), found[0].values) / len(found), variance)

    return together


def on_residual(first: Interpolator, second: Interpolator, *, n_folds: int = FOLDS, rng: RngLike = 0) -> Interpolator:
    """Return the method in which ``second`` interpolates what ``first`` leaves, and both are added.

    What ``first`` leaves is what it misses at places that were left out of it, ``n_folds`` times a part of them. The variance is that of ``second``.
    """
    seed = np.random.SeedSequence(int(as_generator(rng).integers(2**31)))

    def both(measured: Measured, wanted: np.ndarray) -> Interpolated:
        left = cross_fitted(first, measured, n_folds=n_folds, rng=np.random.default_rng(seed))
        rest = second(measured.with_values(measured.asked - left.values), wanted)
        return Interpolated(first(measured, wanted).values + rest.values, rest.variance)

    return both


def cross_fitted(method: Interpolator, measured: Measured, *, n_folds: int = FOLDS, rng: RngLike = 0) -> Interpolated:
    """Return predictions of the measured places, each by the method without the places of its fold.

    Folds are drawn over distinct places, so that two observations of one place are left out together, whatever their order.
    """
    fold = _folds(measured.places, n_folds, rng)
    values = np.empty((len(fold), measured.n_asked))
    variance: np.ndarray | None = np.empty(values.shape)
    for number in range(fold.max() + 1):
        held = fold == number
        found = method(measured.part(~held), measured.places[held])
        values[held] = found.values
        if variance is not None and found.variance is not None:
            variance[held] = found.variance
        else:
            variance = None
    return Interpolated(values, variance)


def _folds(places: np.ndarray, n_folds: int, rng: RngLike) -> np.ndarray:
    points, member = np.unique(places, axis=0, return_inverse=True)
    n_folds = min(validate.whole(n_folds, "n_folds", least=2), len(points))
    return (as_generator(rng).permutation(len(points)) % n_folds)[member.ravel()]


def trust(method: Interpolator, measured: Measured, *, n_folds: int = FOLDS, rng: RngLike = 0, most: int = LEFT_OUT) -> Trust:
    """Return how far the method's intervals have to be stretched, gene by gene, to hold 90 % of left-out values (see :class:`Trust`).

    The quantile is that of split conformal prediction (Lei et al. 2018, JASA 113, 1094-1111), whose coverage holds for places that are as far from measured
    ones as the left-out places were. Up to ``most`` measured places are all left out in turn, one of ``n_folds`` parts at a time. Of more, about ``most`` are predicted,
    in as few parts as give these; of a method in windows in some of its windows, by chance.
    """
    n = len(measured.places)
    if n <= most:
        rows, left = np.arange(n), cross_fitted(method, measured, n_folds=n_folds, rng=rng)
    else:
        rows, left = _sampled(method, measured, n_folds, as_generator(rng), most)
    miss = np.abs(measured.part(rows).asked - left.values)
    own = left.variance is not None
    if left.variance is not None:
        sd = np.sqrt(left.variance)
        miss = np.divide(miss, sd, out=np.zeros_like(miss), where=sd > 0)
    rank = min(int(np.ceil(LEVEL * (len(miss) + 1))), len(miss)) - 1
    return Trust(np.partition(miss, rank, axis=0)[rank] / QUANTILE, own, left.values, rows)


def _sampled(
    method: Interpolator, measured: Measured, n_folds: int, rng: np.random.Generator, most: int
) -> tuple[np.ndarray, Interpolated]:
    """Return about ``most`` places, and their predictions from the parts that they are not in."""
    asked, found, count = [], [], 0
    for rows, each in _left_out(method, measured, n_folds, rng, most):
        asked.append(rows)
        found.append(each)
        count += len(rows)
        if count >= most:
            break
    variances = [each.variance for each in found if each.variance is not None]
    values = np.concatenate([each.values for each in found])
    return np.concatenate(asked), Interpolated(values, np.concatenate(variances) if len(variances) == len(found) else None)


def _left_out(
    method: Interpolator, measured: Measured, n_folds: int, rng: np.random.Generator, most: int
) -> Iterator[tuple[np.ndarray, Interpolated]]:
    """Yield left-out places and their predictions: part by part, at most ``most`` of each, or window by window, in random order."""
    own, fold = windowed(method), _folds(measured.places, n_folds, rng)
    windows = [] if own is None else list(own.windows(measured.places, measured.places[:0]))
    for part in range(fold.max() + 1):
        held = fold == part
        if own is None:
            rows = np.sort(rng.permutation(np.flatnonzero(held))[:most])
            yield rows, method(measured.part(~held), measured.places[rows])
            continue
        for number in rng.permutation(len(windows)):
            near, core = windows[number].near, windows[number].core
            rows = core[held[core]]
            if len(rows):
                yield rows, own.method(measured.part(near[~held[near]]).dense(), measured.places[rows])
