"""Methods made of methods: means of several, one on what another leaves, in windows; and how far a method can be trusted."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stimg._core import validate
from stimg._core.rng import RngLike, as_generator
from stimg.image.interpolate._arrays import Interpolated
from stimg.image.interpolate._measured import Interpolator, Measured
from stimg.image.split import balanced_blocks

FOLDS = 5
MOST, HALO = 1200, 6.0
"""Known places of a window, and how far it reaches beyond the places it answers for, in pitches."""
FEWEST = 64
"""Known places that a window has at least, the nearest ones where fewer lie in it."""
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
        float64 (n, genes), predictions of the measured places, each made without it.
    """

    factor: np.ndarray
    own: bool
    predicted: np.ndarray


def mean_of(methods: Sequence[Interpolator]) -> Interpolator:
    """Return the method that gives the mean of several; the variance is the mean of theirs, as their errors are nearly the same."""

    def together(measured: Measured, wanted: np.ndarray) -> Interpolated:
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
    points, member = np.unique(measured.places, axis=0, return_inverse=True)
    n_folds = min(validate.whole(n_folds, "n_folds", least=2), len(points))
    fold = (as_generator(rng).permutation(len(points)) % n_folds)[member.ravel()]
    values = np.empty(measured.asked.shape)
    variance: np.ndarray | None = np.empty(measured.asked.shape)
    for number in range(n_folds):
        held = fold == number
        found = method(measured.part(~held), measured.places[held])
        values[held] = found.values
        if variance is not None and found.variance is not None:
            variance[held] = found.variance
        else:
            variance = None
    return Interpolated(values, variance)


def trust(method: Interpolator, measured: Measured, *, n_folds: int = FOLDS, rng: RngLike = 0) -> Trust:
    """Return how far the method's intervals have to be stretched, gene by gene, to hold 90 % of left-out values (see :class:`Trust`).

    The quantile is that of split conformal prediction (Lei et al. 2018, JASA 113, 1094-1111), whose coverage holds for places that are as far from measured
    ones as the left-out places were.
    """
    left = cross_fitted(method, measured, n_folds=n_folds, rng=rng)
    miss = np.abs(measured.asked - left.values)
    own = left.variance is not None
    if left.variance is not None:
        sd = np.sqrt(left.variance)
        miss = np.divide(miss, sd, out=np.zeros_like(miss), where=sd > 0)
    n = len(miss)
    rank = min(int(np.ceil(LEVEL * (n + 1))), n) - 1
    return Trust(np.partition(miss, rank, axis=0)[rank] / QUANTILE, own, left.values)


def in_windows(method: Interpolator, *, most: int = MOST, halo: float = HALO) -> Interpolator:
    """Return the method applied in overlapping windows where there are more than ``most`` known places.

    The section is cut into blocks with at most about ``most`` known places; the places of a block are predicted from the known ones in it and up to ``halo`` pitches
    around it. Time and memory then grow with the number of places, not its square or cube.
    """

    def windowed(measured: Measured, wanted: np.ndarray) -> Interpolated:
        n = len(measured.places)
        if n <= most or not len(wanted):
            return method(measured, wanted)
        block = balanced_blocks(np.concatenate([measured.places, wanted]), int(np.ceil(n / most)))
        values = np.empty((len(wanted), measured.asked.shape[1]))
        variance: np.ndarray | None = np.empty(values.shape)
        for number in np.unique(block[n:]):
            mine, core = block[n:] == number, block == number
            inside = np.concatenate([measured.places, wanted])[core]
            low, high = inside.min(axis=0) - halo, inside.max(axis=0) + halo
            near = ((measured.places >= low) & (measured.places <= high)).all(axis=1)
            if near.sum() < FEWEST:
                away = ((measured.places - inside.mean(axis=0)) ** 2).sum(axis=1)
                near[np.argsort(away, kind="stable")[:FEWEST]] = True
            found = method(measured.part(near), wanted[mine])
            values[mine] = found.values
            if variance is not None and found.variance is not None:
                variance[mine] = found.variance
            else:
                variance = None
        return Interpolated(values, variance)

    return windowed
