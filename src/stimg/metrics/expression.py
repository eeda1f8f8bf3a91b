"""Scores of predicted expression: correlations of genes and of spots, squared errors beside those of a mean, and what depth explains.

Truth and prediction are (n_obs, n_genes) each, in any mixture of scipy CSR or CSC matrices, arrays and memory maps, of any real dtype. They are
read in blocks: the memory needed beside them stays at some hundred megabytes, and two sparse matrices cost what their stored values do.

A value that is NaN or infinite makes the score of its gene (or spot) undefined, and so does a constant: a standard deviation of at most a millionth
of the root mean square, which is what arithmetic in single precision leaves of a constant. Undefined correlations are 0, and counted.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from stimg.metrics import _expression_kernels as kernels
from stimg.metrics._expression_blocks import Matrix, blocks, checked_pair, moments, weighted_sums
from stimg.metrics._expression_kernels import Lines

CHUNK = 4096
"""Most rows of a dense array in a block."""


class Scores(NamedTuple):
    """``values``, float64 (n,), one of each gene or spot, 0 where ``undefined``, bool (n,)."""

    values: np.ndarray
    undefined: np.ndarray

    @property
    def n_undefined(self) -> int:
        """Number of scores that are not defined and count as 0."""
        return int(self.undefined.sum())

    def mean(self) -> float:
        """Return the mean, undefined scores counted as 0."""
        return float(np.mean(self._any()))

    def median(self) -> float:
        """Return the median, undefined scores counted as 0."""
        return float(np.median(self._any()))

    def quantile(self, q: float) -> float:
        """Return the quantile ``q``, between 0 and 1, undefined scores counted as 0."""
        return float(np.quantile(self._any(), q))

    def _any(self) -> np.ndarray:
        if not len(self.values):
            raise ValueError("There are no scores to put together. Check that the truth has observations and genes.")
        return self.values


class RelativeError(NamedTuple):
    """Squared errors beside those of predicting a mean.

    Parameters
    ----------
    to_training_mean, to_test_mean
        float64 (n_genes,): mean squared error of the prediction over that of the training mean, and over that of the true mean of the
        scored observations. Below 1 is better than the mean.
    undefined
        bool (n_genes,), where one of the two is not defined; that one is 1, as if the mean had been predicted.
    pooled_to_training_mean, pooled_to_test_mean
        The ratios of the sums over genes, in which genes with large variance weigh most. A gene without a finite prediction counts as one
        whose mean was predicted; errors on genes that never vary count in full.
    """

    to_training_mean: np.ndarray
    to_test_mean: np.ndarray
    undefined: np.ndarray
    pooled_to_training_mean: float
    pooled_to_test_mean: float

    @property
    def n_undefined(self) -> int:
        """Number of genes with a ratio that is not defined and counts as 1."""
        return int(self.undefined.sum())


def _scores(r: np.ndarray) -> Scores:
    undefined = np.isnan(r)
    return Scores(np.where(undefined, 0.0, np.clip(r, -1.0, 1.0)), undefined)


@np.errstate(all="ignore")
def _varies(squares: Any, raw_squares: Any) -> Any:
    """Return where a sum of squares about the mean is more than rounding, and finite; ``raw_squares`` are those about zero."""
    return squares > kernels.FLAT**2 * raw_squares  # False for NaN


@np.errstate(all="ignore")
def _pearson(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, x_raw: np.ndarray, y_raw: np.ndarray) -> Scores:
    """Return r from sums of squares and products about the means, and of squares about zero, (n,) each."""
    defined = _varies(xx, x_raw) & _varies(yy, y_raw) & np.isfinite(xy)
    return _scores(np.where(defined, xy / (np.sqrt(xx) * np.sqrt(yy)), np.nan))


def _by_line(truth: Matrix, predicted: Matrix, axis: int, ranked: bool, chunk: int) -> Scores:
    x, y = checked_pair(truth, predicted)
    r = np.full(x.shape[axis], np.nan)
    n = x.shape[1 - axis]
    if n:
        for lines, a, b in blocks(x, y, axis=axis, chunk=chunk):
            if isinstance(a, Lines):
                kernels.sparse_lines(a, b, n, ranked, r[lines])
            else:
                kernels.dense_lines(a, b, ranked, r[lines])
    return _scores(r)


def per_gene_pearson(truth: Matrix, predicted: Matrix, *, chunk: int = CHUNK) -> Scores:
    r"""Return Pearson's r of each gene over the observations, (n_genes,).

    .. math:: r_g = \frac{\sum_i (x_{ig} - \bar x_g)(y_{ig} - \bar y_g)}
        {\sqrt{\sum_i (x_{ig} - \bar x_g)^2 \sum_i (y_{ig} - \bar y_g)^2}}

    Parameters
    ----------
    truth, predicted
        (n_obs, n_genes) each. A sparse matrix that is not canonical (entries unsorted or twice) is copied.
    chunk
        Most rows that are read at a time where one of the two is dense; the result does not depend on it.

    Raises
    ------
    ValueError
        For shapes that differ, or not two dimensions.
    TypeError
        For values that are not real numbers.

    Examples
    --------
    >>> r = per_gene_pearson(np.array([[0, 1], [2, 1], [4, 1.0]]), np.array([[1, 3], [2, 4], [3, 9.0]]))
    >>> r.values.round(3).tolist(), r.n_undefined
    ([1.0, 0.0], 1)
    """
    x, y = checked_pair(truth, predicted)
    if all(sp.issparse(m) and m.format == "csc" for m in (x, y)):  # gene by gene as they are, without a turn to rows
        return _by_line(x, y, 1, False, chunk)
    m = moments(x, y, chunk)
    return _pearson(m.xx, m.yy, m.xy, *m.raw())


def per_gene_spearman(truth: Matrix, predicted: Matrix, *, chunk: int = CHUNK) -> Scores:
    """Return Spearman's rank correlation of each gene over the observations, (n_genes,): Pearson's r of the ranks, ties sharing their mean.

    Arguments and errors are those of :func:`per_gene_pearson`; ``chunk`` is a number of genes here. Zeros that a sparse matrix does not store
    are one tie, which is not sorted. Genes are read in blocks: a memory map in C order, in which a gene is scattered, is read many times over.
    """
    return _by_line(truth, predicted, 1, True, chunk)


def per_spot_pearson(truth: Matrix, predicted: Matrix, *, chunk: int = CHUNK) -> Scores:
    """Return Pearson's r of each observation over the genes, (n_obs,). It flatters: the mean of every gene, predicted everywhere, scores high.

    Arguments and errors are those of :func:`per_gene_pearson`.
    """
    return _by_line(truth, predicted, 0, False, chunk)


def per_spot_spearman(truth: Matrix, predicted: Matrix, *, chunk: int = CHUNK) -> Scores:
    """Return Spearman's rank correlation of each observation over the genes, (n_obs,). It flatters as :func:`per_spot_pearson` does.

    Arguments and errors are those of :func:`per_gene_pearson`.
    """
    return _by_line(truth, predicted, 0, True, chunk)


@np.errstate(all="ignore")
def flattened_pearson(truth: Matrix, predicted: Matrix, *, chunk: int = CHUNK) -> float:
    """Return Pearson's r over all entries of the matrix, 0 where it is not defined (a constant, or a value that is not finite).

    It flatters: genes differ in their means, so that the mean of every gene, predicted everywhere, scores .4 to .97 on measured data. It
    is there for comparison with published numbers alone. Arguments and errors are those of :func:`per_gene_pearson`.
    """
    m = moments(*checked_pair(truth, predicted), chunk)
    between = [mean - mean.sum() / max(1, len(mean)) for mean in (m.x_mean, m.y_mean)]
    sums = [
        np.sum(within + m.n * a * b)
        for within, a, b in ((m.xx, between[0], between[0]), (m.yy, between[1], between[1]), (m.xy, between[0], between[1]))
    ]
    return float(_pearson(*np.atleast_1d(*sums, *(np.sum(raw) for raw in m.raw()))).values[0])


@np.errstate(all="ignore")
def relative_mse(truth: Matrix, predicted: Matrix, *, training_mean: np.ndarray, chunk: int = CHUNK) -> RelativeError:
    r"""Return the squared error of each gene over those of predicting the training mean and the true mean.

    .. math:: \frac{\sum_i (x_{ig} - y_{ig})^2}{\sum_i (x_{ig} - m_g)^2}

    with the truth x, the prediction y, and m the mean of the training observations or of the truth itself. With the latter it is
    :math:`1 - R^2` of scikit-learn.

    Parameters
    ----------
    truth, predicted, chunk
        As in :func:`per_gene_pearson`.
    training_mean
        (n_genes,), NaN for a gene that was not measured in training.

    Raises
    ------
    ValueError
        For shapes that do not fit.

    Notes
    -----
    A ratio is not defined where a value of the gene is not finite, and where the mean alone is without error (up to rounding): it then
    counts as 1. Whatever a prediction leaves out it neither gains nor loses by.

    Examples
    --------
    >>> truth = np.array([[0.0, 1.0], [2.0, 1.0]])
    >>> error = relative_mse(truth, np.array([[0.5, 1.0], [1.5, 1.0]]), training_mean=np.array([3.0, 0.0]))
    >>> error.to_training_mean.tolist(), error.to_test_mean.tolist(), error.undefined.tolist()
    ([0.05, 0.0], [0.25, 1.0], [False, True])
    """
    x, y = checked_pair(truth, predicted)
    mean = np.asarray(training_mean, dtype=np.float64)
    if mean.shape != x.shape[1:]:
        raise ValueError(f"training_mean has shape {mean.shape} for {x.shape[1]} genes; wanted one number for each gene.")
    m = moments(x, y, chunk)
    n = max(1, m.n)
    error = np.maximum((m.xx + m.yy - 2.0 * m.xy) / n + (m.x_mean - m.y_mean) ** 2, 0.0)
    ratios, pooled, undefined = [], [], np.zeros(len(mean), dtype=bool)
    for least in (m.xx / n + (m.x_mean - mean) ** 2, m.xx / n):
        defined = _varies(least, m.xx / n + m.x_mean**2) & np.isfinite(error)
        ratios.append(np.where(defined, error / least, 1.0))
        undefined |= ~defined
        known = np.where(np.isfinite(least), least, 0.0)
        total = known.sum()
        pooled.append(float(np.where(np.isfinite(error + least), error, known).sum() / total) if total > 0 else 1.0)
    return RelativeError(ratios[0], ratios[1], undefined, pooled[0], pooled[1])


@np.errstate(all="ignore")
def depth_residual_pearson(truth: Matrix, predicted: Matrix, depth: np.ndarray, *, chunk: int = CHUNK) -> Scores:
    r"""Return Pearson's r of each gene after a line on log depth is taken out of truth and prediction, (n_genes,).

    The partial correlation given :math:`\ell = \log` depth: r of the residuals of the least-squares lines with intercept,

    .. math:: \frac{S_{xy} - S_{x\ell} S_{y\ell} / S_{\ell\ell}}
        {\sqrt{(S_{xx} - S_{x\ell}^2 / S_{\ell\ell}) (S_{yy} - S_{y\ell}^2 / S_{\ell\ell})}}

    with S the sums of squares and products about the means. What a score owes to depth, that is to how many molecules were caught in
    a spot, is gone from it.

    Parameters
    ----------
    truth, predicted, chunk
        As in :func:`per_gene_pearson`.
    depth
        Total counts of each observation, (n_obs,), above zero. Where all are equal nothing is taken out.

    Raises
    ------
    ValueError
        For shapes that do not fit, or a depth that is zero, negative or not finite.

    Notes
    -----
    Not defined, hence 0, where truth or prediction is such a line up to rounding (residuals of at most a millionth of the root mean square).

    Examples
    --------
    >>> depth = np.array([10.0, 100.0, 1000.0, 100.0])
    >>> rest = np.array([0.0, 1.0, 0.0, -1.0])
    >>> truth = np.stack([np.log(depth) + rest, np.log(depth) + rest], axis=1)
    >>> predicted = np.stack([np.log(depth), np.log(depth) - rest], axis=1)
    >>> per_gene_pearson(truth, predicted).values.round(2).tolist()
    [0.92, 0.68]
    >>> depth_residual_pearson(truth, predicted, depth).values.round(2).tolist()
    [0.0, -1.0]
    """
    x, y = checked_pair(truth, predicted)
    depth = np.asarray(depth, dtype=np.float64)
    if depth.shape != x.shape[:1]:
        raise ValueError(f"depth has shape {depth.shape} for {x.shape[0]} observations; wanted one number for each observation.")
    wrong = int((~(np.isfinite(depth) & (depth > 0))).sum())
    if wrong:
        raise ValueError(f"depth is zero, negative or not finite for {wrong} of {len(depth)} observations. Leave them out.")
    m = moments(x, y, chunk)
    logs = np.log(depth)
    line = logs - logs.sum() / max(1, m.n)
    squares = float(line @ line)
    if not _varies(squares, logs @ logs):
        return _pearson(m.xx, m.yy, m.xy, *m.raw())
    xl, yl = weighted_sums(x, line, chunk), weighted_sums(y, line, chunk)
    xx, yy, xy = m.xx - xl**2 / squares, m.yy - yl**2 / squares, m.xy - xl * yl / squares
    return _pearson(xx, yy, xy, *m.raw())


def fraction_of_ceiling(scores: Scores | np.ndarray, ceiling: np.ndarray) -> float:
    """Return the mean score over the mean noise ceiling: how much of what could be predicted is.

    Parameters
    ----------
    scores
        Of each gene, :class:`Scores` or (n_genes,).
    ceiling
        Of each gene, (n_genes,), as :func:`stimg.metrics.noise_ceiling` gives it.

    Raises
    ------
    ValueError
        For lengths that differ, values that are not finite, or a mean ceiling that is not above 0: then nothing can be predicted.

    Notes
    -----
    A ratio of means, not a mean of ratios: genes whose ceiling is near 0 would rule the latter.

    Examples
    --------
    >>> fraction_of_ceiling(np.array([0.3, 0.1]), np.array([0.6, 0.2]))
    0.5
    """
    found = scores.values if isinstance(scores, Scores) else np.asarray(scores, dtype=np.float64)
    best = np.asarray(ceiling, dtype=np.float64)
    if found.shape != best.shape or found.ndim != 1 or not len(found):
        raise ValueError(f"There are scores of shape {found.shape} and ceilings of shape {best.shape}; wanted one of each per gene.")
    bad = int((~np.isfinite(found)).sum()), int((~np.isfinite(best)).sum())
    if any(bad):
        raise ValueError(f"{bad[0]} scores and {bad[1]} ceilings of {len(found)} are not finite. Put 0 where one is not defined.")
    if best.mean() <= 0:
        raise ValueError(f"The mean ceiling is {best.mean():g}; wanted one above 0. With a ceiling of 0 nothing can be predicted.")
    return float(found.mean() / best.mean())
