"""What the network starts from: a method of :mod:`stimg.image.interpolate`, by default the one that ``tl.impute`` takes. Loads no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import KDTree

from stimg.image.interpolate import METHODS, Guide, Interpolated, Measured, Method

ENSEMBLE = ("pca_kriging_by_depth", "factor_kriging", "kriging")
"""Members of ``METHODS["ensemble"]``: components of all genes that are read, factors of the genes asked for, single genes."""
OF_DONORS = "donor_kriging"
"""Member beside them where axes of other donors are known, as in ``METHODS["donor_ensemble"]``."""
FACTS = ("log mean", "noise", "explained by components", "explained by all")
"""Of each gene, from the known spots alone: log counts per 10,000; part of the variance that counting adds; part of it that the first member and the mean
of all members expect to explain at the wanted places, by their own variances; 0 where a method has none."""
N_MAPS = 3
"""What the cascade starts from, and two other opinions."""
TENTH = 10.0
"""What maps that are not standardised are divided by."""


@dataclass(frozen=True)
class Base:
    """Maps of the G genes asked for, from n known spots to m places.

    Attributes
    ----------
    mean, spread
        What is taken from the known values, and what they are divided by, (G,).
    maps
        What the cascade starts from, and two other opinions less that, in units of the spread, float32 (G, 3, m): of an ensemble the mean of its members, the first
        member, and the genes by themselves; of another method its values, 0 and 0.
    doubt
        Logarithm of the variance that the method expects, in units of the squared spread, float32 (G, m); 0 where it has none.
    far
        Between 0 at a known spot and 1 far from all, (m,).
    facts
        What is known of each gene, float32 (G, 4): see :data:`FACTS`.
    depth
        Relative depth of the known spots, (n,).
    """

    mean: np.ndarray
    spread: np.ndarray
    maps: np.ndarray
    doubt: np.ndarray
    far: np.ndarray
    facts: np.ndarray
    depth: np.ndarray

    def units(self, values: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return values (spots, len(genes)) about the mean in units of the spread, float32 (len(genes), spots)."""
        return ((values - self.mean[genes]) / self.spread[genes]).T.astype(np.float32)


def relative_depth(counts: np.ndarray, typical: float | None = None) -> np.ndarray:
    """Return counts relative to ``typical`` (None: their median), between 0.05 and 20."""
    counts = np.maximum(np.asarray(counts, dtype=np.float64), 1.0)
    return np.clip(counts / (np.median(counts) if typical is None else typical), 0.05, 20.0)


def members(kind: str, donors: bool) -> tuple[str, ...]:
    """Return the names of the methods whose mean is the base ``kind``."""
    if kind != "ensemble":
        return (kind,)
    return (*ENSEMBLE, OF_DONORS) if donors else ENSEMBLE


def fit(
    points: np.ndarray,
    values: np.ndarray,
    counts: np.ndarray,
    wanted: np.ndarray,
    *,
    asked: np.ndarray | None = None,
    kind: str = "ensemble",
    count_aware: bool = True,
    standardise: bool = True,
    axes: np.ndarray | None = None,
    features: tuple[np.ndarray, np.ndarray] | None = None,
) -> Base:
    """Return maps at ``wanted`` (m, 2) of ``values`` (n, genes) known at ``points`` (n, 2).

    Parameters
    ----------
    points, wanted
        Places in units of the distance between neighbours.
    values
        Log1p counts per 10,000: the genes asked for, and others that help.
    counts
        Counts of each spot, (n,): its noise variance is proportional to their inverse.
    asked
        Columns of ``values`` that are asked for; None: all.
    kind
        A name of ``stimg.image.interpolate.METHODS``.
    count_aware
        Whether depth is heeded; otherwise all spots are equally noisy.
    standardise
        Whether maps are about the mean and in units of the spread, or divided by 10.
    axes
        Axes of expression of other donors, (k, genes), one more member of the ensemble; None: there are none.
    features
        Features of points and of places, (n, d) and (m, d), NaN where they are not known: places that have some are kriged with them.
    """
    asked = np.arange(values.shape[1]) if asked is None else asked
    depth = relative_depth(counts) if count_aware else np.ones(len(points))
    mean, spread, facts = _scales(values[:, asked], counts, depth)
    given = None if not count_aware else np.maximum(counts, 1.0)
    measured = Measured(points, values, columns=asked, depth=given, loadings=axes)
    found = [_predicted(METHODS[name], measured, wanted, features) for name in members(kind, axes is not None)]
    out = np.zeros((len(asked), N_MAPS, len(wanted)), dtype=np.float32)
    middle, unit = (mean, spread) if standardise else (np.zeros(len(asked)), np.full(len(asked), TENTH))
    start = sum((each.values for each in found[1:]), found[0].values) / len(found)
    out[:, 0] = ((start - middle) / unit).T
    if len(found) > 1:
        out[:, 1] = ((found[0].values - start) / unit).T
        out[:, 2] = ((found[len(ENSEMBLE) - 1].values - start) / unit).T
    doubt = np.zeros((len(asked), len(wanted)), dtype=np.float32)
    for i, some in ((2, found[:1]), (3, found)):
        relative = _relative(some, spread)
        if relative is not None:
            facts[:, i] = np.clip(1.0 - relative.mean(axis=1), 0.0, 1.0)
            doubt = np.log(relative * ((spread / unit) ** 2)[:, None]).astype(np.float32)
    far = 1.0 - np.exp(-KDTree(points).query(wanted)[0])
    return Base(middle, unit, out, doubt, far, facts, depth)


def _predicted(method: Method, measured: Measured, wanted: np.ndarray, features: tuple[np.ndarray, np.ndarray] | None) -> Interpolated:
    """Return what a method says of places, with their features where it reads them and they are known."""
    if features is None or not method.guided:
        return method(measured, wanted)
    own, theirs = features
    known = np.isfinite(theirs).all(axis=1)
    guide = Guide(np.concatenate([measured.places, wanted[known]]), np.concatenate([own, theirs[known]]).astype(np.float64))
    parts = [
        (rows, method(given, wanted[rows])) for rows, given in ((known, replace(measured, guide=guide)), (~known, measured)) if rows.any()
    ]
    values = np.empty((len(wanted), measured.n_asked))
    variance = None if any(found.variance is None for _, found in parts) else np.empty(values.shape)
    for rows, found in parts:
        values[rows] = found.values
        if variance is not None:
            variance[rows] = found.variance
    return Interpolated(values, variance)


def _scales(values: np.ndarray, counts: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean and spread of each gene over the known spots, and the first two of the facts."""
    share = depth / depth.sum()
    mean = share @ values
    total = share @ (values - mean) ** 2
    spread = np.where(total > 1e-12, np.sqrt(np.maximum(total, 1e-12)), 1.0)
    cp10k = share @ np.expm1(values)
    noise = cp10k / (1.0 + cp10k) ** 2 * 1e4 / float(np.median(np.maximum(counts, 1.0)))  # by the delta method
    facts = np.zeros((values.shape[1], len(FACTS)), dtype=np.float32)
    facts[:, 0], facts[:, 1] = 0.3 * np.log(cp10k + 0.1), np.minimum(noise / spread**2, 2.0)
    return mean, spread, facts


def _relative(found: Sequence[Interpolated], spread: np.ndarray) -> np.ndarray | None:
    """Return the mean variance of methods in units of the squared spread, (G, m), between 0.001 and 20; None where none has a variance."""
    variances = [each.variance for each in found if each.variance is not None]
    if not variances:
        return None
    mean = sum(variances[1:], variances[0]) / len(variances)
    return np.clip(mean / spread**2, 1e-3, 20.0).T
