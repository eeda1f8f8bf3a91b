"""How well the measured values of a gene can be predicted at all, from counts split into two halves."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from stimg._core import validate
from stimg._core.rng import RngLike, as_generator
from stimg.metrics._arrays import correlation

GENES = 64
"""Genes that are compared at a time."""
DRAWS = 1_000_000
"""Counts that are split at a time."""

Target = Callable[[np.ndarray, np.ndarray], np.ndarray]
Smooth = Callable[[np.ndarray], np.ndarray]


class Ceiling(NamedTuple):
    """``ceiling`` and ``reliability`` of each gene, float64 (genes,), and the number of genes without a correlation in some split (counted as 0)."""

    ceiling: np.ndarray
    reliability: np.ndarray
    n_undefined: int


def _halves(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return binomial(counts, 1/2): the number of ones among as many random bits, which is many times faster where 63 bits are enough."""
    out = np.empty(len(counts), dtype=np.int64)
    for start in range(0, len(counts), DRAWS):
        part = counts[start : start + DRAWS]
        bits = rng.integers(0, 2**63, size=len(part), dtype=np.uint64)
        below = (np.uint64(1) << np.minimum(part, 63).astype(np.uint64)) - np.uint64(1)
        half = np.bitwise_count(bits & below).astype(np.int64)
        many = part > 63
        half[many] = rng.binomial(part[many], 0.5)
        out[start : start + DRAWS] = half
    return out


def _log1p_cp10k(counts: np.ndarray, depth: np.ndarray) -> np.ndarray:
    return np.log1p(counts * np.divide(1e4, depth, out=np.zeros(depth.shape), where=depth > 0))


def _log1p(counts: np.ndarray, depth: np.ndarray) -> np.ndarray:
    return np.log1p(counts)


TARGETS: dict[str, Target] = {"log1p_cp10k": _log1p_cp10k, "log1p": _log1p}


def _sparse_correlation(a: np.ndarray, b: np.ndarray, column: np.ndarray, n: int, width: int) -> np.ndarray:
    """Return Pearson's r of each column from the stored values of two sparse matrices with the same places and ``n`` rows."""
    sums = [np.bincount(column, weights=v, minlength=width) for v in (a, b, a * a, b * b, a * b)]
    pp, qq = sums[2] - sums[0] ** 2 / n, sums[3] - sums[1] ** 2 / n
    defined = (pp > 1e-12 * sums[2]) & (qq > 1e-12 * sums[3])
    scale = np.sqrt(np.where(defined, pp * qq, 1.0))
    return np.where(defined, (sums[4] - sums[0] * sums[1] / n) / scale, np.nan)


def _checked(counts: Any, genes: Any, depth: Any) -> tuple[sp.csc_matrix, np.ndarray]:
    """Return the counts of the wanted genes, CSC int64, and what is left of each observation's library, int64 (n,)."""
    matrix = sp.csr_matrix(counts)
    if matrix.dtype.kind not in "biuf":
        raise TypeError(f"The counts have dtype {matrix.dtype}; wanted whole numbers.")
    wrong = ~(np.isfinite(matrix.data) & (matrix.data >= 0) & (matrix.data == np.rint(matrix.data)))
    if wrong.any():
        raise ValueError(f"{int(wrong.sum())} of {matrix.nnz} stored counts are negative, fractional or NaN; wanted raw counts.")
    n, n_vars = matrix.shape
    if n < 2:
        raise ValueError(f"The counts have {n} observations; wanted at least two to correlate over.")
    chosen = np.arange(n_vars) if genes is None else np.asarray(genes)
    if chosen.dtype == bool and chosen.shape == (n_vars,):
        chosen = np.flatnonzero(chosen)
    if chosen.dtype.kind not in "iu" or chosen.ndim != 1 or len(np.intersect1d(chosen, np.arange(n_vars))) < len(chosen):
        raise ValueError(
            f"genes is {chosen.dtype} of shape {chosen.shape}; wanted positions from 0 to {n_vars - 1}, each once, or a mask of {n_vars}."
        )
    wanted = sp.csc_matrix(matrix[:, chosen]).astype(np.int64)
    wanted.sum_duplicates()
    total = np.asarray(matrix.sum(axis=1, dtype=np.float64) if depth is None else depth, dtype=np.float64).reshape(-1)
    if len(total) != n:
        raise ValueError(f"depth has {len(total)} values for {n} observations. Pass one for each.")
    rest = total - np.bincount(wanted.indices, weights=wanted.data, minlength=n)
    wrong = ~((rest >= 0) & (rest == np.rint(rest)))
    if wrong.any():
        raise ValueError(
            f"depth is fractional, or below the counts of the wanted genes, for {int(wrong.sum())} of {n} observations; wanted the sum of raw counts over the full library."
        )
    return wanted, rest.astype(np.int64)


def _correlations(
    wanted: sp.csc_matrix, halves: Sequence[tuple[np.ndarray, np.ndarray]], target: str | Target, smooth: Smooth | None
) -> np.ndarray:
    """Return the correlation of each gene between two halves: (the half of each stored count, library of each observation) twice."""
    n, n_genes = wanted.shape
    r = np.empty(n_genes)
    for begin in range(0, n_genes, GENES):
        end = min(begin + GENES, n_genes)
        place = slice(wanted.indptr[begin], wanted.indptr[end])
        row, column = wanted.indices[place], np.repeat(np.arange(end - begin), np.diff(wanted.indptr[begin : end + 1]))
        if smooth is None and isinstance(target, str):
            a, b = (TARGETS[target](half[place], library[row]) for half, library in halves)
            r[begin:end] = _sparse_correlation(a, b, column, n, end - begin)
            continue
        dense = []
        for half, library in halves:
            block = np.zeros((n, end - begin))
            block[row, column] = half[place]
            block = np.asarray((TARGETS[target] if isinstance(target, str) else target)(block, library[:, None]))
            dense.append(block if smooth is None else np.asarray(smooth(block)))
            if dense[-1].shape != (n, end - begin):
                raise ValueError(
                    f"target or smooth turned values of shape {(n, end - begin)} into {dense[-1].shape}; wanted the same shape."
                )
        r[begin:end] = correlation(dense[0], dense[1])
    return r


def noise_ceiling(
    counts: sp.spmatrix | sp.sparray | np.ndarray,
    *,
    genes: np.ndarray | Sequence[int] | None = None,
    depth: np.ndarray | None = None,
    target: str | Target = "log1p_cp10k",
    smooth: Smooth | None = None,
    n_splits: int = 10,
    rng: RngLike = 0,
) -> Ceiling:
    r"""Return the correlation that a perfect predictor of a section's expected values could reach, of each gene.

    The counts are split into two halves by chance, each half goes through the target's transformation, and the correlation :math:`r` between
    them gives the reliability of the whole and its square root, the ceiling:

    .. math:: c_1 \sim \mathrm{Binomial}(c, 1/2),\; c_2 = c - c_1, \qquad \rho = \frac{2 r}{1 + r}, \qquad \mathrm{ceiling} = \sqrt{\rho}

    Parameters
    ----------
    counts
        Raw counts of one section, (n, n_vars), all genes of the library, sparse or dense.
    genes
        Positions of the wanted genes, or a mask; default: all. The other genes enter through their sum alone.
    depth
        Counts of the full library of each observation, whole numbers (n,), where ``counts`` lacks some of its genes.
    target
        ``"log1p_cp10k"``: log(1 + counts per 10,000 of the half's own library); ``"log1p"``; or a function from the counts of one half
        (n, some genes) and its library (n, 1) to values (n, the same genes).
    smooth
        Function applied to the values of each half, (n, some genes) to the same, gene by gene: smoothed protocols have their own ceiling.
    n_splits
        Splits whose correlations are averaged, an undefined one (a gene constant in one half) as 0; a negative average counts as 0.
    rng
        Source of chance.

    Raises
    ------
    ValueError
        For counts that are not whole and at least 0, genes that are not columns or stand twice, a ``depth`` below the counts of the wanted
        genes, or fewer than two observations.

    Notes
    -----
    The doubling is that of Spearman (1910), Br. J. Psychol. 3, 271-295, and Brown (1910), ibid. 296-322. It is exact for means of
    independent halves; logarithms of normalised counts are not linear, so the ceiling is an estimate. Time and memory follow the stored counts
    of the wanted genes, except with ``smooth`` or a function as ``target``, where 64 genes at a time are dense.
    """
    if isinstance(target, str):
        validate.one_of(target, TARGETS, "target")
    n_splits, generator = validate.whole(n_splits, "n_splits"), as_generator(rng)
    wanted, rest = _checked(counts, genes, depth)
    r = np.empty((n_splits, wanted.shape[1]))
    for split in range(n_splits):
        first, rest_first = _halves(wanted.data, generator), _halves(rest, generator)
        halves = []
        for half, others in ((first, rest_first), (wanted.data - first, rest - rest_first)):
            halves.append((half, others + np.bincount(wanted.indices, weights=half, minlength=len(rest))))
        r[split] = _correlations(wanted, halves, target, smooth)
    undefined = np.isnan(r)
    average = np.maximum(np.where(undefined, 0.0, r).mean(axis=0), 0.0)
    reliability = 2 * average / (1 + average)
    return Ceiling(np.sqrt(reliability), reliability, int(undefined.any(axis=0).sum()))
