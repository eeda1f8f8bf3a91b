"""Ridge regression in one call, and on features of any kind with a penalty chosen on groups that are held out."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from stimg._core import validate
from stimg.metrics._arrays import correlation, matrix, same_length, same_width
from stimg.metrics.sections import centred

PENALTIES = tuple(float(p) for p in np.logspace(-4, 2, 13))
"""Penalties among which :func:`embedding_ridge` chooses."""


class Linear(NamedTuple):
    """A linear map: ``coefficients`` float64 (columns, genes) and ``intercept`` float64 (genes,)."""

    coefficients: np.ndarray
    intercept: np.ndarray

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the predictions for ``x`` (n, columns), float64 (n, genes)."""
        return matrix(x, "x") @ self.coefficients + self.intercept


class RidgePrediction(NamedTuple):
    """``values`` float64 (n_test, genes), the ``penalty`` that was used, and the mean inner score of each penalty, NaN where none was needed."""

    values: np.ndarray
    penalty: float
    inner_scores: np.ndarray


def ridge(x: np.ndarray, y: np.ndarray, *, penalty: float) -> Linear:
    r"""Return the ridge regression of ``y`` (n, genes) on ``x`` (n, columns), with an intercept that is not penalised.

    .. math:: \hat\beta = (X'X + \lambda I)^{-1} X'Y, \qquad \lambda = \mathrm{penalty} \cdot \mathrm{tr}(X'X) / p

    for centred ``X`` and ``Y`` and ``p`` columns, so that the penalty counts in units of the columns' mean sum of squares and means the same
    for any scale and number of observations. Solved in the smaller of the two dimensions. Source: Hoerl and Kennard (1970), Technometrics
    12, 55-67.

    Raises
    ------
    ValueError
        For NaN, different numbers of rows, or a penalty that is not above zero.
    """
    x, y = matrix(x, "x"), matrix(y, "y")
    same_length(x=x, y=y)
    validate.positive(penalty, "penalty")
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    z, t = x - x_mean, y - y_mean
    n, p = z.shape
    strength = penalty * np.einsum("ij,ij->", z, z) / max(p, 1)
    if strength == 0:
        coefficients = np.zeros((p, y.shape[1]))
    elif p <= n:
        coefficients = scipy.linalg.solve(z.T @ z + strength * np.eye(p), z.T @ t, assume_a="pos")
    else:
        coefficients = z.T @ scipy.linalg.solve(z @ z.T + strength * np.eye(n), t, assume_a="pos")
    return Linear(coefficients, y_mean - x_mean @ coefficients)


class Targets(NamedTuple):
    """What a :class:`RidgePath` needs of its targets: ``cross`` float64 (components, targets) and their ``mean`` float64 (targets,)."""

    cross: np.ndarray
    mean: np.ndarray


class RidgePath:
    """Ridge regressions on (the principal components of) standardised columns, for any targets and penalties, after one eigendecomposition.

    Parameters
    ----------
    x
        (n, columns), finite. A constant column is left out.
    n_components
        Number of principal components; None: the columns themselves.
    size
        Size of the values of each column, to tell a constant one from rounding; None: the largest absolute value.
    """

    def __init__(self, x: np.ndarray, n_components: int | None, *, size: np.ndarray | None = None) -> None:
        self.mean = x.mean(axis=0)
        sd = x.std(axis=0)
        least = 1e-12 * np.maximum(np.abs(x).max(axis=0) if size is None else size, 1e-300)
        self.scale = np.where(sd > least, sd, np.inf)
        z = (x - self.mean) / self.scale
        n, p = z.shape
        self.columns = p if n_components is None else min(n_components, n, p)
        top = [max(min(n, p) - self.columns, 0), min(n, p) - 1]
        squares, vectors = scipy.linalg.eigh(z.T @ z if p <= n else z @ z.T, subset_by_index=top)
        kept = squares > 1e-12 * max(squares.max(), 1.0)
        self.squares, vectors = squares[kept], vectors[:, kept]
        self.basis = vectors if p <= n else z.T @ vectors / np.sqrt(self.squares)
        self.scores = z @ self.basis
        self.unit = self.squares.sum() / self.columns

    def targets(self, y: np.ndarray) -> Targets:
        """Return what is needed of ``y`` (n, targets)."""
        mean = y.mean(axis=0)
        return Targets(self.scores.T @ (y - mean), mean)

    def predict(self, x: np.ndarray, targets: Targets, penalties: Sequence[float]) -> Iterator[np.ndarray]:
        """Yield the predictions (m, targets) for ``x`` (m, columns) with each penalty, in the sense of :func:`ridge` on the components."""
        scores = ((x - self.mean) / self.scale) @ self.basis
        for penalty in penalties:
            yield (scores / (self.squares + penalty * self.unit)) @ targets.cross + targets.mean

    def linear(self, targets: Targets, penalty: float | np.ndarray) -> Linear:
        """Return the map on the columns as they were given; ``penalty`` is one number, or one for each target."""
        strength = self.squares[:, None] + np.broadcast_to(penalty, targets.mean.shape) * self.unit
        coefficients = (self.basis @ (targets.cross / strength)) / self.scale[:, None]
        return Linear(coefficients, targets.mean - self.mean @ coefficients)


class SeparateRidge(NamedTuple):
    """``linear``, the map; ``penalty`` float64 (targets,), one each; ``held_out`` float64 (n, targets), each group predicted from the others."""

    linear: Linear
    penalty: np.ndarray
    held_out: np.ndarray


def separate_ridge(
    x: np.ndarray, y: np.ndarray, *, group: Any, section: Any, n_components: int | None = 256, penalties: Sequence[float] = PENALTIES
) -> SeparateRidge:
    """Return one ridge regression for each column of ``y`` (n, targets), each with the penalty that suits it.

    For targets that differ in how well they are predicted, such as the axes of expression: a penalty for all would be that of the best ones.

    Parameters
    ----------
    x
        Features (n, columns), less the mean of their section where they should be.
    group
        Group of each row. The penalty of a target is the one with the highest correlation when each group in turn is predicted from the others
        (mean over sections, then over groups; an undefined one counts 0); equal ones go to the larger.
    section
        Section of each row, within which correlations are taken.
    n_components, penalties
        As for :func:`embedding_ridge`.

    Raises
    ------
    ValueError
        For fewer than two groups, NaN, or shapes that do not fit.
    """
    x, y = matrix(x, "x"), matrix(y, "y")
    same_length(x=x, y=y, group=group, section=section)
    group, section = np.asarray(group), np.asarray(section)
    names, candidates = np.unique(group), sorted((float(p) for p in penalties), reverse=True)
    if len(names) < 2:
        raise ValueError(f"{len(names)} group of rows; wanted at least two, to choose penalties by leaving one out.")
    found = np.zeros((len(candidates), *y.shape))
    for name in names:
        held = group == name
        path = RidgePath(x[~held], n_components)
        for i, values in enumerate(path.predict(x[held], path.targets(y[~held]), candidates)):
            found[i, held] = values
    scores = np.zeros((len(candidates), y.shape[1]))
    for name in names:
        parts = [(group == name) & (section == s) for s in np.unique(section[group == name])]
        for i in range(len(candidates)):
            scores[i] += np.mean([np.nan_to_num(correlation(found[i, m], y[m])) for m in parts], axis=0)
    best = scores.argmax(axis=0)
    path = RidgePath(x, n_components)
    penalty = np.asarray(candidates)[best]
    return SeparateRidge(path.linear(path.targets(y), penalty), penalty, found[best, :, np.arange(y.shape[1])].T)


def embedding_ridge(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    *,
    train_group: Any = None,
    train_section: Any = None,
    test_section: Any = None,
    n_components: int | None = 256,
    penalties: Sequence[float] = PENALTIES,
) -> RidgePrediction:
    """Return the predictions of a ridge regression on standardised features or their principal components.

    For colour statistics and for the embeddings of any encoder. Mean, scale, components and coefficients come from the training rows alone.

    Parameters
    ----------
    train_x, test_x
        Features, (n_train, dim) and (n_test, dim).
    train_y
        (n_train, genes).
    train_group
        Donor (or section) of each training observation. The penalty is the one with the highest correlation when each group in turn is
        predicted from the others (mean over genes, an undefined one as 0, then over sections, then over groups). Default: ``train_section``.
    train_section, test_section
        Section of each observation, any labels; both or neither. Features and training values are then taken less their section's mean, and
        the mean of all training values is added to the predictions. This reads the features of a whole test section, and no count of it.
    n_components
        Number of principal components; None regresses on all standardised columns.
    penalties
        Penalties to choose among, in the unit of :func:`ridge` on the components. A single one is used as it is.

    Raises
    ------
    ValueError
        For one of the two kinds of sections without the other, several penalties and fewer than two groups, NaN, or shapes that do not fit.

    Notes
    -----
    One eigendecomposition, in the smaller of the two dimensions, serves all penalties; choosing takes one more a group. Within a group that is
    held out, standardisation and components are fitted again on the others. Equal scores go to the larger penalty.
    """
    x, y, test = matrix(train_x, "train_x"), matrix(train_y, "train_y"), matrix(test_x, "test_x")
    same_length(train_x=x, train_y=y, train_group=train_group, train_section=train_section)
    same_width(train_x=x, test_x=test)
    if (train_section is None) != (test_section is None):
        raise ValueError("Only one of train_section and test_section is given; wanted both, to centre within sections, or neither.")
    if n_components is not None:
        n_components = validate.whole(n_components, "n_components")
    candidates = sorted({validate.number(p, "penalties") for p in penalties}, reverse=True)
    if not candidates or not np.isfinite(candidates).all() or candidates[-1] <= 0:
        raise ValueError(f"penalties={tuple(penalties)}; wanted one or more finite numbers above zero.")
    if x.shape[1] == 0:
        raise ValueError("train_x has no columns; wanted at least one feature.")
    size, truth = np.abs(x).max(axis=0), y
    if train_section is not None:
        same_length(test_x=test, test_section=test_section)
        x, y, test = centred(x, train_section), centred(y, train_section), centred(test, test_section)
    group = np.asarray(train_section if train_group is None else train_group)
    unit = group if train_section is None else np.asarray(train_section)
    inner = np.full(len(candidates), np.nan)
    if len(candidates) > 1:
        names = np.unique(group) if group.ndim else np.empty(0)
        if len(names) < 2:
            raise ValueError(
                f"{len(candidates)} penalties and {len(names)} groups of training observations; wanted at least two groups to choose by. Pass train_group, or one penalty."
            )
        scores = []
        for name in names:
            held = group == name
            parts = [unit[held] == u for u in np.unique(unit[held])]
            path = RidgePath(x[~held], n_components, size=size)
            found = path.predict(x[held], path.targets(y[~held]), candidates)
            scores.append([np.mean([np.nan_to_num(correlation(p[m], truth[held][m])).mean() for m in parts]) for p in found])
        inner = np.mean(scores, axis=0)
    best = int(np.argmax(inner)) if len(candidates) > 1 else 0
    path = RidgePath(x, n_components, size=size)
    predicted = next(path.predict(test, path.targets(y), candidates[best : best + 1]))
    if train_section is not None:
        predicted = predicted + truth.mean(axis=0)
    by_given = [candidates.index(float(p)) for p in penalties]
    return RidgePrediction(predicted, candidates[best], inner[by_given])
