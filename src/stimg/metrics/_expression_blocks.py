"""Two matrices of any layout, sparse, dense or memory-mapped, read side by side in blocks of rows or of columns, and their moments."""

import itertools
import mmap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse as sp

from stimg._core.validate import whole
from stimg.metrics import _expression_kernels as kernels
from stimg.metrics._expression_kernels import Lines
from stimg.metrics._spatial_kernels import start_threads

STORED = 2**23
"""Stored values of both sparse matrices in a block."""
ENTRIES = 2**24
"""Entries of a dense block."""

Matrix: TypeAlias = np.ndarray | sp.spmatrix | sp.sparray


class Moments(NamedTuple):
    """Number of observations, and of each gene the means and the sums of squares and products about them, float64 (n_genes,)."""

    n: int
    x_mean: np.ndarray
    y_mean: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray

    def raw(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of squares about zero."""
        return self.xx + self.n * self.x_mean**2, self.yy + self.n * self.y_mean**2


def checked(values: Any, name: str) -> Any:
    """Return a matrix of real numbers: canonical CSR or CSC, or an array of two dimensions, a memory map left where it is."""
    if sp.issparse(values):
        matrix = values if values.format in ("csr", "csc") else sp.csr_matrix(values)
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
    else:
        matrix = np.asarray(values)
    if matrix.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {matrix.dtype}; wanted real numbers, as an array or a scipy CSR or CSC matrix.")
    if matrix.ndim != 2:
        raise ValueError(f"{name} has shape {matrix.shape}; wanted two dimensions, (observations, genes).")
    return matrix.astype(np.float64) if sp.issparse(matrix) and matrix.dtype == np.longdouble else matrix


def checked_pair(truth: Any, predicted: Any) -> tuple[Any, Any]:
    """Return both as :func:`checked` does; a ValueError where their shapes differ."""
    x, y = checked(truth, "truth"), checked(predicted, "predicted")
    if x.shape != y.shape:
        raise ValueError(f"truth has shape {x.shape} and predicted {y.shape}; wanted the same observations and genes in both.")
    return x, y


def _compressed_along(matrix: Any, axis: int) -> bool:
    return (matrix.format == "csr") == (axis == 0)


def _stored(matrix: Any, axis: int) -> np.ndarray:
    """Return the number of stored values of each row (or column)."""
    if _compressed_along(matrix, axis):
        return np.diff(matrix.indptr)
    parts = (matrix.indices[start : start + STORED] for start in range(0, matrix.nnz, STORED))
    return sum((np.bincount(part, minlength=matrix.shape[axis]) for part in parts), np.zeros(matrix.shape[axis], dtype=np.int64))


def _parts(matrices: Sequence[Any], axis: int, chunk: int) -> list[slice]:
    """Return the rows (or columns) of each block: few enough that it is small, whatever the layouts."""
    n = matrices[0].shape[axis]
    if all(sp.issparse(m) for m in matrices):
        group = np.cumsum(sum(_stored(m, axis) for m in matrices)) // STORED
    else:
        group = np.arange(n) // min(chunk, max(1, ENTRIES // max(1, matrices[0].shape[1 - axis])))
    edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), n] if n else []
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def _lines(matrix: Any, axis: int, parts: Sequence[slice], dtype: type) -> Iterator[Lines]:
    """Yield blocks of rows (or columns) of a sparse matrix; nothing is copied that is larger than a block."""
    first, index, value = matrix.indptr, matrix.indices, matrix.data
    along = _compressed_along(matrix, axis)
    pointer = first[:-1].astype(np.int64)
    for part in parts:
        if along:
            low, high = first[part.start], first[part.stop]
            block = Lines(first[part.start : part.stop + 1].astype(np.int64) - low, index[low:high], value[low:high])
        else:
            block = Lines(*kernels.take(first, index, value, pointer, part.start, part.stop))
        yield Lines(block.first, np.require(block.minor, np.int32, "W"), np.require(block.value, dtype, "W"))


def _dense(matrix: Any, axis: int, parts: Sequence[slice], dtype: type) -> Iterator[np.ndarray]:
    """Yield blocks of rows (or columns, transposed) as C-ordered arrays, (rows of the block, length)."""
    if sp.issparse(matrix):
        for first, index, value in _lines(matrix, axis, parts, dtype):
            yield sp.csr_matrix((value, index, first), shape=(len(first) - 1, matrix.shape[1 - axis])).toarray()
        return
    pages = _pages(matrix)
    for part in parts:
        block = matrix[part] if axis == 0 else matrix[:, part].T
        yield np.require(block, dtype, ["C", "W"])  # writeable: for a read-only array all loops would be compiled once more
        if pages is not None:
            pages.madvise(mmap.MADV_DONTNEED)


def _pages(array: Any) -> mmap.mmap | None:
    """Return the map behind a memory-mapped array, whose pages would otherwise stay in memory once read; None where it has changes of its own."""
    while array is not None:
        if isinstance(array, np.memmap) and array.mode == "c":
            return None
        if isinstance(array, mmap.mmap):
            return array if hasattr(mmap, "MADV_DONTNEED") else None
        array = getattr(array, "base", None)
    return None


def blocks(*matrices: Any, axis: int, chunk: int) -> Iterator[tuple[Any, ...]]:
    """Yield (slice of rows or columns, that part of each matrix): :class:`Lines` where all are sparse, else C-ordered arrays.

    The values are float32 where that is exact for all, else float64. A dense block has at most ``chunk`` rows (or columns).
    """
    start_threads()
    dtype = np.float32 if all(np.can_cast(m.dtype, np.float32, "safe") for m in matrices) else np.float64
    parts = _parts(matrices, axis, whole(chunk, "chunk"))
    read: Any = _lines if all(sp.issparse(m) for m in matrices) else _dense
    yield from zip(parts, *(read(m, axis, parts, dtype) for m in matrices), strict=True)


def _mean(block: Any, n_genes: int) -> np.ndarray:
    if isinstance(block, Lines):
        return np.bincount(block.minor, weights=block.value, minlength=n_genes) / (len(block.first) - 1)
    return block.mean(axis=0, dtype=np.float64)


@np.errstate(all="ignore")
def moments(x: Any, y: Any, chunk: int) -> Moments:
    """Return the moments of every gene, not finite where the values of the gene are not.

    Values are shifted by the mean of the first block, and summed as float64 in one pass. With a share f of the rows in that block, the shift
    misses the mean by at most some sqrt(1 / f) standard deviations, so that at most the leading digits of 1 / f are lost.
    """
    n, n_genes = x.shape
    sparse = sp.issparse(x) and sp.issparse(y)
    sums = np.zeros((kernels.PARTS, n_genes, 8) if sparse else (5, n_genes))
    x_shift, y_shift = np.zeros(n_genes), np.zeros(n_genes)
    for rows, a, b in blocks(x, y, axis=0, chunk=chunk):
        if rows.start == 0:
            x_shift, y_shift = _mean(a, n_genes), _mean(b, n_genes)
        if sparse:
            kernels.add_sparse(a, b, x_shift, y_shift, sums)
        else:
            kernels.add_dense(a, b, x_shift, y_shift, sums)
    if sparse:
        x_n, u, uu, y_n, v, vv, uv, u_of_y = sums.sum(axis=0).T
        u, uu = u - (n - x_n) * x_shift, uu + (n - x_n) * x_shift**2
        v, vv = v - (n - y_n) * y_shift, vv + (n - y_n) * y_shift**2
        uv = uv - y_shift * (u - u_of_y)
    else:
        u, uu, v, vv, uv = sums
    count = max(n, 1)
    xx, yy = np.maximum(uu - u**2 / count, 0.0), np.maximum(vv - v**2 / count, 0.0)
    return Moments(n, x_shift + u / count, y_shift + v / count, xx, yy, uv - u * v / count)


def weighted_sums(matrix: Any, weights: np.ndarray, chunk: int) -> np.ndarray:
    """Return ``weights @ matrix``, float64 (n_genes,), block by block."""
    out = np.zeros(matrix.shape[1])
    for rows, a in blocks(matrix, axis=0, chunk=chunk):
        if isinstance(a, Lines):
            at = np.repeat(weights[rows], np.diff(a.first))
            out += np.bincount(a.minor, weights=at * a.value, minlength=len(out))
        else:
            out += weights[rows] @ a
    return out
