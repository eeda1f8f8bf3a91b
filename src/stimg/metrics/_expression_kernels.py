"""Compiled loops of the correlations: moments of all genes in one pass over the rows, and correlations line by line, of values or ranks."""

from typing import NamedTuple

import numba
import numpy as np

FLAT = 1e-6
"""A standard deviation below this share of the root mean square is what rounding in single precision leaves of a constant."""
PARTS = 16
"""Parts into which the rows of a block are cut. Fixed, so that sums do not depend on the number of threads."""
WIDTH = 64
"""Genes that a thread sums at a time, so that their sums stay in the innermost cache."""


class Lines(NamedTuple):
    """Compressed rows (or columns): ``first`` int64 (n + 1,), where each begins, and the ``value`` and the place in its line, ``minor`` int32, of each entry."""

    first: np.ndarray
    minor: np.ndarray
    value: np.ndarray


@numba.njit(cache=True, nogil=True)
def take(
    first: np.ndarray, index: np.ndarray, value: np.ndarray, pointer: np.ndarray, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lines ``start`` to ``stop`` of the other axis of a compressed matrix, compressed along that axis.

    ``pointer`` holds the first entry of every line that has not been taken yet, and moves on: blocks are taken in order.
    """
    out_first = np.zeros(stop - start + 1, np.int64)
    for i in range(len(pointer)):
        k = pointer[i]
        while k < first[i + 1] and index[k] < stop:
            out_first[index[k] - start + 1] += 1
            k += 1
    for line in range(stop - start):
        out_first[line + 1] += out_first[line]
    place = out_first.copy()
    out_index = np.empty(out_first[-1], np.int32)
    out_value = np.empty(out_first[-1], value.dtype)
    for i in range(len(pointer)):
        k = pointer[i]
        while k < first[i + 1] and index[k] < stop:
            line = index[k] - start
            out_index[place[line]] = i
            out_value[place[line]] = value[k]
            place[line] += 1
            k += 1
        pointer[i] = k
    return out_first, out_index, out_value


@numba.njit(parallel=True, cache=True, nogil=True)
def add_sparse(x: Lines, y: Lines, x_shift: np.ndarray, y_shift: np.ndarray, sums: np.ndarray) -> None:
    """Add a block of rows to ``sums``, float64 (PARTS, n_genes, 8), a cache line for each gene.

    With u and v the values of x and y less their shifts: number, sum of u and of u^2 over the stored x, the same of v over the stored y, and
    the sums of u v and of u over the stored y.
    """
    x_first, x_index, x_value = x
    y_first, y_index, y_value = y
    n, n_genes = len(x_first) - 1, len(x_shift)
    for part in numba.prange(PARTS):
        out = sums[part]
        held = np.zeros(n_genes, x_value.dtype)
        for i in range(part * n // PARTS, (part + 1) * n // PARTS):
            for k in range(x_first[i], x_first[i + 1]):
                gene = np.uint32(x_index[k])  # unsigned: no test for negative positions in the loop
                held[gene] = x_value[k]
                u = np.float64(x_value[k]) - x_shift[gene]
                out[gene, 0] += 1.0
                out[gene, 1] += u
                out[gene, 2] += u * u
            for k in range(y_first[i], y_first[i + 1]):
                gene = np.uint32(y_index[k])
                u = np.float64(held[gene]) - x_shift[gene]
                v = np.float64(y_value[k]) - y_shift[gene]
                out[gene, 3] += 1.0
                out[gene, 4] += v
                out[gene, 5] += v * v
                out[gene, 6] += u * v
                out[gene, 7] += u
            for k in range(x_first[i], x_first[i + 1]):
                held[np.uint32(x_index[k])] = 0


@numba.njit(parallel=True, cache=True, nogil=True)
def add_dense(x: np.ndarray, y: np.ndarray, x_shift: np.ndarray, y_shift: np.ndarray, sums: np.ndarray) -> None:
    """Add a block of rows to ``sums``, float64 (5, n_genes): u, u^2, v, v^2 and u v, with u and v the values less their shifts."""
    n, n_genes = x.shape
    for block in numba.prange((n_genes + WIDTH - 1) // WIDTH):
        low, high = block * WIDTH, min((block + 1) * WIDTH, n_genes)
        own = np.zeros((5, WIDTH))
        su, suu, sv, svv, suv = own[0], own[1], own[2], own[3], own[4]
        for i in range(n):
            xs, ys, x_less, y_less = x[i, low:high], y[i, low:high], x_shift[low:high], y_shift[low:high]
            for gene in range(high - low):
                u = np.float64(xs[gene]) - x_less[gene]
                v = np.float64(ys[gene]) - y_less[gene]
                su[gene] += u
                suu[gene] += u * u
                sv[gene] += v
                svv[gene] += v * v
                suv[gene] += u * v
        sums[:, low:high] += own[:, : high - low]


@numba.njit(cache=True, nogil=True)
def _moments(value: np.ndarray, rest: float, n: int) -> tuple[float, float]:
    """Return mean and sum of squares about it of ``n`` values, of which those not in ``value`` equal ``rest``."""
    more = n - len(value)
    total = rest * more
    for k in range(len(value)):
        total += np.float64(value[k])
    mean = total / n
    squares = more * (rest - mean) ** 2
    for k in range(len(value)):
        squares += (np.float64(value[k]) - mean) ** 2
    return mean, squares


@numba.njit(cache=True, nogil=True)
def _varies(value: np.ndarray, n: int) -> bool:
    """Return whether ``n`` values, those not in ``value`` being zero, are finite and not constant."""
    mean, squares = _moments(value, 0.0, n)
    return squares > FLAT**2 * (squares + n * mean**2)  # False for NaN


@numba.njit(cache=True, nogil=True)
def _ranks(value: np.ndarray, n: int) -> tuple[np.ndarray, float]:
    """Return the ranks of ``value`` among ``n`` values and that of the others, zeros; ties share their mean, and all ranks sum to 0."""
    order = np.argsort(value)
    zeros, middle = n - len(value), (n + 1) / 2
    out = np.empty(len(value))
    below, of_zero, i = 0, np.nan, 0
    while i < len(value):
        x = value[order[i]]
        if x > 0 and np.isnan(of_zero):
            of_zero = below + (zeros + 1) / 2 - middle
            below += zeros
        j = i
        while j < len(value) and value[order[j]] == x:
            j += 1
        size = j - i + (zeros if x == 0 else 0)
        rank = below + (size + 1) / 2 - middle
        if x == 0:
            of_zero = rank
        for k in range(i, j):
            out[order[k]] = rank
        below += size
        i = j
    return out, below + (zeros + 1) / 2 - middle if np.isnan(of_zero) else of_zero


@numba.njit(cache=True, nogil=True)
def _sparse_r(x: np.ndarray, x_index: np.ndarray, x_rest: float, y: np.ndarray, y_index: np.ndarray, y_rest: float, n: int) -> float:
    x_mean, xx = _moments(x, x_rest, n)
    y_mean, yy = _moments(y, y_rest, n)
    a, b, both, cross = 0, 0, 0, 0.0
    while a < len(x) or b < len(y):
        if b == len(y) or (a < len(x) and x_index[a] < y_index[b]):
            cross += (x[a] - x_mean) * (y_rest - y_mean)
            a += 1
        elif a == len(x) or y_index[b] < x_index[a]:
            cross += (x_rest - x_mean) * (y[b] - y_mean)
            b += 1
        else:
            cross += (x[a] - x_mean) * (y[b] - y_mean)
            a, b, both = a + 1, b + 1, both + 1
    cross += (n - len(x) - len(y) + both) * (x_rest - x_mean) * (y_rest - y_mean)
    return cross / (np.sqrt(xx) * np.sqrt(yy))


@numba.njit(parallel=True, cache=True, nogil=True)
def sparse_lines(x: Lines, y: Lines, n: int, ranked: bool, out: np.ndarray) -> None:
    """Write the correlation of each line of ``n`` values, or of their ranks, to ``out``; NaN where one is constant or not finite."""
    x_first, x_index, x_value = x
    y_first, y_index, y_value = y
    for i in numba.prange(len(out)):
        u, u_index = x_value[x_first[i] : x_first[i + 1]], x_index[x_first[i] : x_first[i + 1]]
        v, v_index = y_value[y_first[i] : y_first[i + 1]], y_index[y_first[i] : y_first[i + 1]]
        if not (_varies(u, n) and _varies(v, n)):
            out[i] = np.nan
        elif ranked:
            u_rank, u_rest = _ranks(u, n)
            v_rank, v_rest = _ranks(v, n)
            out[i] = _sparse_r(u_rank, u_index, u_rest, v_rank, v_index, v_rest, n)
        else:
            out[i] = _sparse_r(u, u_index, 0.0, v, v_index, 0.0, n)


@numba.njit(cache=True, nogil=True)
def _dense_r(x: np.ndarray, y: np.ndarray) -> float:
    x_mean, xx = _moments(x, 0.0, len(x))
    y_mean, yy = _moments(y, 0.0, len(y))
    cross = 0.0
    for k in range(len(x)):
        cross += (x[k] - x_mean) * (y[k] - y_mean)
    return cross / (np.sqrt(xx) * np.sqrt(yy))


@numba.njit(parallel=True, cache=True, nogil=True)
def dense_lines(x: np.ndarray, y: np.ndarray, ranked: bool, out: np.ndarray) -> None:
    """Write the correlation of each row of two arrays, or of their ranks, to ``out``; NaN where one is constant or not finite."""
    n = x.shape[1]
    for i in numba.prange(len(out)):
        if not (_varies(x[i], n) and _varies(y[i], n)):
            out[i] = np.nan
        elif ranked:
            out[i] = _dense_r(_ranks(x[i], n)[0], _ranks(y[i], n)[0])
        else:
            out[i] = _dense_r(x[i], y[i])
