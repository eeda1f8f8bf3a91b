"""Compiled loops of the spatial autocorrelation: one pass over the stored values, spot by spot, for all genes at once."""

import functools
import threading

import numba
import numpy as np

CHUNKS = 16
"""Parts into which the spots are cut. Fixed, so that sums do not depend on the number of threads."""


@numba.njit(parallel=True, cache=True, nogil=True)
def _nothing(out: np.ndarray) -> None:
    for i in numba.prange(len(out)):
        out[i] = 0


@functools.cache
def start_threads() -> None:
    """Have numba start its threads, once, without touching the caller's OpenMP settings.

    Numba sets OpenMP's number of threads for the thread that makes the first parallel call, which is also that of torch: after it, torch
    would ignore ``OMP_NUM_THREADS`` and ``torch.set_num_threads``. So that call is made from a thread that ends at once.
    """
    starter = threading.Thread(target=_nothing, args=(np.empty(2),))
    starter.start()
    starter.join()


@numba.njit(parallel=True, cache=True, nogil=True)
def sums(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    row_of: np.ndarray,
    first: np.ndarray,
    partner: np.ndarray,
    weight: np.ndarray,
    degree: np.ndarray,
    n_vars: int,
    power: int,
) -> np.ndarray:
    """Return per gene (sum x, sum x^2, sum d_i x_i^power, sum_ij w_ij x_i x_j), float64 (n_vars, 4).

    ``indptr, indices, data`` are the CSR values; site ``i`` of the graph holds row ``row_of[i]``. ``first, partner, weight`` list each
    site's partners ``j >= i`` with ``w_ij + w_ji``, and ``degree`` is the row plus the column sum of the weights.
    The row of a site is laid out in a vector as long as the panel, which stays in the processor's cache; the rows of its partners are
    then read in order.
    """
    n = row_of.shape[0]
    parts = np.zeros((CHUNKS, n_vars, 4))
    for chunk in numba.prange(CHUNKS):
        out = parts[chunk]
        held = np.zeros(n_vars, data.dtype)
        for i in range(chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS):
            row = row_of[i]
            linear = degree[i] if power == 1 else 0.0
            square = 0.0 if power == 1 else degree[i]
            for k in range(indptr[row], indptr[row + 1]):
                gene = np.uint64(indices[k])  # unsigned: no test for negative positions in the loop
                held[gene] = data[k]
                x = np.float64(data[k])
                out[gene, 0] += x
                out[gene, 1] += x * x
                out[gene, 2] += x * (linear + square * x)
            for p in range(first[i], first[i + 1]):
                other = row_of[partner[p]]
                w = weight[p]
                for k in range(indptr[other], indptr[other + 1]):
                    gene = np.uint64(indices[k])  # a product with zero costs less than the branch that would avoid it
                    out[gene, 3] += w * np.float64(held[gene]) * np.float64(data[k])
            for k in range(indptr[row], indptr[row + 1]):
                held[np.uint64(indices[k])] = 0
    total = np.zeros((n_vars, 4))
    for chunk in range(CHUNKS):
        total += parts[chunk]
    return total


@numba.njit(parallel=True, cache=True, nogil=True)
def fourth_moment(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, row_of: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return sum_i (x_i - mean)^4 per gene, zeros included, float64 (n_vars,)."""
    n, n_vars = row_of.shape[0], mean.shape[0]
    parts = np.zeros((CHUNKS, n_vars, 2))
    for chunk in numba.prange(CHUNKS):
        out = parts[chunk]
        for i in range(chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS):
            for k in range(indptr[row_of[i]], indptr[row_of[i] + 1]):
                gene = np.uint64(indices[k])
                z = np.float64(data[k]) - mean[gene]
                out[gene, 0] += z * z * z * z
                out[gene, 1] += 1.0
    total = np.zeros(n_vars)
    stored = np.zeros(n_vars)
    for chunk in range(CHUNKS):
        total += parts[chunk, :, 0]
        stored += parts[chunk, :, 1]
    return total + (n - stored) * mean**4
