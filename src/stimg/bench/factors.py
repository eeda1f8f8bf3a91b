"""What a grid of scores says of its factors: how much each one moves the score, and whether one level beats another."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stimg._core import validate
from stimg.metrics import Interval, cluster_bootstrap

EXACT = 8
"""Replicates up to which all resamples are counted."""


def factor_components(scores: pd.DataFrame, factors: tuple[str, str], *, value: str = "value", replicate: str = "fold") -> pd.DataFrame:
    r"""Return how much each of two crossed factors moves a score, one row a factor and one for their interaction.

    Columns: ``variance``, the variance between the levels with the part that chance alone would give taken off (it can be below zero);
    ``range``, the largest minus the smallest mean of a level; ``lowest`` and ``highest``, those levels.

    Parameters
    ----------
    scores
        One row a cell and replicate; rows of the same cell and replicate, such as seeds, are averaged.
    factors
        Two columns with the levels.
    value
        Column with the score.
    replicate
        Column with the replicate, such as the fold: every cell has all of them.

    Raises
    ------
    KeyError
        For columns that are not there.
    ValueError
        For cells without some replicate, fewer than two levels or replicates, values that are not finite.

    Notes
    -----
    Levels are fixed, replicates a sample: with I levels of A, J of B and R replicates,
    :math:`\theta^2_A = (MS_A - MS_{AR}) / JR`, :math:`\theta^2_{AB} = (MS_{AB} - MS_{ABR}) / R`, unbiased for
    :math:`\sum a_i^2 / (I - 1)` (Scheffe 1959, The Analysis of Variance, chapter 8). Ranges are not corrected: with noise they grow with the
    number of levels.

    Examples
    --------
    >>> rows = [{"image": i, "gene": j, "fold": r, "value": 2.0 * i + 0.1 * j} for i in range(2) for j in range(3) for r in range(2)]
    >>> found = factor_components(pd.DataFrame(rows), ("image", "gene"))
    >>> found["range"].round(3).tolist()
    [2.0, 0.2, 0.0]
    """
    y, names = _array(scores, factors, value, replicate)
    return _components(y, factors, names)


def factor_contrast(
    scores: pd.DataFrame,
    factors: tuple[str, str],
    *,
    value: str = "value",
    replicate: str = "fold",
    of: str = "variance",
    level: float = 0.95,
) -> Interval:
    """Return how much more the first factor moves the score than the second, with the percentile interval over replicates.

    Parameters
    ----------
    scores, factors, value, replicate
        As for :func:`factor_components`.
    of
        ``"variance"`` or ``"range"``.
    level
        Nominal coverage.

    Raises
    ------
    KeyError, ValueError
        As :func:`factor_components`; for more than eight replicates.

    Notes
    -----
    Replicates are drawn with replacement, all resamples counted with their probabilities. A resample that holds one replicate alone has no
    error to take off, so that variances are compared without the correction: it is the same for no factor, and small where there are many
    cells. With few replicates the interval is too narrow (see :func:`stimg.metrics.cluster_bootstrap`).
    """
    validate.one_of(of, ("variance", "range"), "of")
    y, _ = _array(scores, factors, value, replicate)

    def contrast(part: np.ndarray) -> float:
        mean = part.mean(axis=2)
        sides = mean.mean(axis=1), mean.mean(axis=0)
        return (
            float(np.var(sides[0], ddof=1) - np.var(sides[1], ddof=1)) if of == "variance" else float(np.ptp(sides[0]) - np.ptp(sides[1]))
        )

    return _resampled(y, contrast, level)


def paired_difference(
    scores: pd.DataFrame,
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    *,
    by: Sequence[str],
    value: str = "value",
    cluster: str = "fold",
) -> Interval:
    """Return the mean of (first - second) over pairs of rows that agree in all of ``by``, with its interval over clusters.

    Parameters
    ----------
    scores
        One row a score.
    first, second
        Columns and the values that rows of each side have there.
    by
        Columns in which the two rows of a pair agree, ``cluster`` among them; several rows of one side that agree are averaged, such as seeds.
    value
        Column with the score.
    cluster
        Column with what is drawn for the interval, each cluster weighing alike.

    Raises
    ------
    KeyError
        For columns that are not there.
    ValueError
        Where one side has rows that the other lacks, or there is none.

    Examples
    --------
    >>> scores = pd.DataFrame({"fold": [1, 1, 2, 2], "loss": ["a", "b"] * 2, "value": [0.3, 0.1, 0.5, 0.2]})
    >>> round(paired_difference(scores, {"loss": "a"}, {"loss": "b"}, by=["fold"]).value, 3)
    0.25
    """
    _need(scores, [*by, value, *first, *second])
    if cluster not in by:
        raise ValueError(f"by={list(by)} lacks the cluster {cluster!r}; pairs have to be of one cluster. Add it.")
    sides = []
    for wanted in (first, second):
        mask = np.logical_and.reduce([(scores[k] == v).to_numpy() for k, v in wanted.items()])
        sides.append(scores[mask].groupby(list(by), observed=True)[value].mean())
    if sides[0].empty or set(sides[0].index) != set(sides[1].index):
        raise ValueError(
            f"{dict(first)} has {len(sides[0])} rows and {dict(second)} {len(sides[1])}, which differ in {list(by)}; wanted the same on both sides."
        )
    pairs = (sides[0] - sides[1].reindex(sides[0].index)).reset_index()
    each = pairs.groupby(cluster, observed=True)[value].mean()
    return cluster_bootstrap(each.to_numpy(dtype=np.float64), each.index.to_numpy())


def _need(scores: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = sorted(set(columns) - set(scores.columns))
    if missing:
        raise KeyError(f"scores lacks the columns {missing} (found {list(scores.columns)}).")


def _array(scores: pd.DataFrame, factors: tuple[str, str], value: str, replicate: str) -> tuple[np.ndarray, tuple[list[Any], list[Any]]]:
    """Return scores as (levels, levels, replicates), and the names of the levels in order."""
    _need(scores, [*factors, value, replicate])
    mean = scores.groupby([*factors, replicate], observed=True, sort=True)[value].mean()
    levels = [list(mean.index.get_level_values(k).unique().sort_values()) for k in range(3)]
    shape = tuple(len(each) for each in levels)
    if min(shape) < 2:
        raise ValueError(f"{list(factors)} and {replicate!r} have {shape} different values; wanted at least two of each.")
    full = mean.reindex(pd.MultiIndex.from_product(levels))
    y = full.to_numpy(dtype=np.float64).reshape(shape)
    if not np.isfinite(y).all():
        raise ValueError(
            f"{int((~np.isfinite(y)).sum())} of {y.size} cells of {list(factors)} have no finite score for some {replicate!r}."
        )
    return y, (levels[0], levels[1])


def _components(y: np.ndarray, factors: tuple[str, str], names: tuple[list[Any], list[Any]]) -> pd.DataFrame:
    i, j, r = y.shape
    a, b, c = (y.mean(axis=axes, keepdims=True) for axes in ((1, 2), (0, 2), (0, 1)))
    ab, ar, br = (y.mean(axis=axis, keepdims=True) for axis in (2, 1, 0))
    m = y.mean()

    def square(part: np.ndarray, times: int, freedom: int) -> float:
        return times * float((part**2).sum()) / freedom

    mean_square_a, mean_square_b = square(a - m, j * r, i - 1), square(b - m, i * r, j - 1)
    error_a, error_b = square(ar - a - c + m, j, (i - 1) * (r - 1)), square(br - b - c + m, i, (j - 1) * (r - 1))
    both = square(ab - a - b + m, r, (i - 1) * (j - 1))
    error = square(y - ab - ar - br + a + b + c - m, 1, (i - 1) * (j - 1) * (r - 1))
    rows = []
    for name, levels, means, variance in (
        (factors[0], names[0], a.ravel(), (mean_square_a - error_a) / (j * r)),
        (factors[1], names[1], b.ravel(), (mean_square_b - error_b) / (i * r)),
    ):
        low, high = int(np.argmin(means)), int(np.argmax(means))
        rows.append({"factor": name, "variance": variance, "range": float(np.ptp(means)), "lowest": levels[low], "highest": levels[high]})
    interaction = (ab - a - b + m)[:, :, 0]
    rows.append({"factor": f"{factors[0]} x {factors[1]}", "variance": (both - error) / r, "range": float(np.ptp(interaction))})
    return pd.DataFrame(rows).set_index("factor")


def _resampled(y: np.ndarray, statistic: Callable[[np.ndarray], float], level: float) -> Interval:
    """Return a statistic of (.., .., replicates) with the percentile interval when replicates are drawn."""
    k = y.shape[2]
    if k > EXACT:
        raise ValueError(
            f"There are {k} replicates; at most {EXACT} can be counted through. Average some of them, such as sections of a donor."
        )
    values, ways = [], []
    for drawn in itertools.combinations_with_replacement(range(k), k):
        values.append(statistic(y[:, :, list(drawn)]))
        ways.append(math.factorial(k) // math.prod(math.factorial(n) for n in np.bincount(drawn, minlength=k).tolist()))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], weights=np.array(ways, dtype=np.float64), method="inverted_cdf")
    return Interval(statistic(y), float(low), float(high), k, float(level))
