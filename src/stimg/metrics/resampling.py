"""Uncertainty of scores: bootstrap of donors, spread over seeds, and p-values that respect spatial autocorrelation."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from stimg._core import validate
from stimg._core.rng import RngLike, as_generator

EXACT = 5
"""Up to this many clusters all resamples are enumerated."""


class Interval(NamedTuple):
    """A statistic, its percentile interval, the number of clusters behind it, and the level."""

    value: float
    low: float
    high: float
    n_clusters: int
    level: float


class Spread(NamedTuple):
    """Mean and standard deviation (ddof 1; NaN for one value) of ``n`` values."""

    mean: float
    sd: float
    n: int


def cluster_bootstrap(
    values: np.ndarray, clusters: Any, *, level: float = 0.95, n: int = 2000, rng: RngLike = 0, statistic: str = "mean"
) -> Interval:
    """Return the statistic of ``values`` and its bootstrap interval: clusters (donors) are drawn with replacement, each with all its values.

    Raises
    ------
    ValueError
        For no value, NaN, or lengths that differ.
    """
    values, clusters = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    if values.ndim != 1 or len(values) != len(clusters) or not len(values):
        raise ValueError(f"values has shape {values.shape} and clusters {clusters.shape}; wanted the same number of each, at least one.")
    validate.finite(values[:, None], "values", todo="Undefined scores count as 0 before they come here.")
    validate.one_of(statistic, ("mean", "median"), "statistic")
    function: Callable[[np.ndarray], Any] = np.mean if statistic == "mean" else np.median
    names = np.unique(clusters)
    if len(names) < 2:
        return Interval(float(function(values)), float("nan"), float("nan"), len(names), level)
    groups = [values[clusters == name] for name in names]
    if len(names) <= EXACT:
        draws = np.array(list(itertools.product(range(len(names)), repeat=len(names))))
    else:
        draws = as_generator(rng).integers(len(names), size=(n, len(names)))
    found = [function(np.concatenate([groups[i] for i in draw])) for draw in draws]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(function(values)), float(low), float(high), len(names), level)


def seed_spread(values: np.ndarray) -> Spread:
    """Return mean and standard deviation of the values of single seeds."""
    values = np.asarray(values, dtype=np.float64)
    return Spread(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan"), len(values))
