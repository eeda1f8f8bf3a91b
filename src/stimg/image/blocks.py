"""Counts of one library ordered by (block, gene, pixel): how they are made from CSR rows, and turned back."""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numba import njit

SMALLEST_SHIFT = 6
"""Blocks are at least 64 x 64 lattice steps: below that, looking up offsets costs more than passing over entries beside the window."""
TABLE_SHARE = 4
"""The offset tables have at most this fraction (1 / 4) of the number of non-zeros."""
LARGEST_SHIFT = 16
PIXEL16_SHIFT = 8
"""Up to 256 x 256 lattice steps a local pixel fits uint16."""


class Blocks(NamedTuple):
    """The arrays of a block-ordered store.

    ``block_map`` int32 (block rows, block columns): number of the block, -1 where it has no counts; ``start`` int64 (blocks + 1,): its
    first entry; ``table`` int32 (blocks, n_vars + 1): first entry of each gene, counted from ``start``; ``pixel`` uint16 or uint32 (nnz,):
    ``(y << shift) | x`` within the block, ascending within a gene; ``value`` (nnz,).
    """

    block_map: np.ndarray
    start: np.ndarray
    table: np.ndarray
    pixel: np.ndarray
    value: np.ndarray


def choose_shift(rc: np.ndarray, shape: tuple[int, int], nnz: int, n_vars: int) -> int:
    """Return log2 of the block edge: the smallest from 64 on whose offset tables have at most a quarter as many elements as non-zeros.

    ``rc`` (n, 2) are the lattice points with counts. Blocks grow until the tables fit, at worst to one block that covers the raster,
    whose table has ``n_vars + 1`` elements; so memory grows with non-zeros plus genes and never with rows x columns x genes.
    """
    for shift in range(SMALLEST_SHIFT, LARGEST_SHIFT):
        n_columns = (shape[1] >> shift) + 1
        blocks = np.unique((rc[:, 0].astype(np.int64) >> shift) * n_columns + (rc[:, 1] >> shift)).size
        if TABLE_SHARE * blocks * (n_vars + 1) <= nnz or max(shape) <= 1 << shift:
            return shift
    return LARGEST_SHIFT


def smallest_dtype(lowest: float, highest: float, whole: bool) -> np.dtype:
    """Return uint8, uint16 or uint32 for whole non-negative values that fit, else float32; ValueError where float32 would not be exact."""
    if whole and lowest >= 0:
        for dtype in (np.uint8, np.uint16, np.uint32):
            if highest <= np.iinfo(dtype).max:
                return np.dtype(dtype)
    if whole and max(-lowest, highest) > 2**24:
        raise ValueError(
            f"Whole numbers between {lowest:g} and {highest:g} cannot be stored exactly; wanted counts below 2**32. Rescale them."
        )
    return np.dtype(np.float32)


@njit(cache=True, nogil=True)
def _scatter(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, rows: np.ndarray, local: np.ndarray, block_ptr: np.ndarray,
    start: np.ndarray, table: np.ndarray, pixel: np.ndarray, value: np.ndarray,
) -> None:  # fmt: skip
    """Place each entry at its (block, gene); rows come in the order of their local pixels, which keeps pixels ascending within a gene."""
    for b in range(block_ptr.size - 1):
        for i in range(block_ptr[b], block_ptr[b + 1]):
            for e in range(indptr[rows[i]], indptr[rows[i] + 1]):
                table[b, indices[e] + 1] += 1
        total = 0
        for g in range(1, table.shape[1]):
            total, table[b, g] = total + table[b, g], total
        for i in range(block_ptr[b], block_ptr[b + 1]):
            for e in range(indptr[rows[i]], indptr[rows[i] + 1]):
                g = indices[e] + 1
                to = start[b] + table[b, g]
                table[b, g] += 1
                pixel[to] = local[i]
                value[to] = data[e]


@njit(cache=True, nogil=True)
def _merge(start: np.ndarray, table: np.ndarray, pixel: np.ndarray, value: np.ndarray) -> tuple[int, float, float, bool]:
    """Add up entries on one pixel and drop zeros, in place; return (entries left, lowest, highest, all whole)."""
    to, lowest, highest, whole = 0, 0.0, 0.0, True
    n_blocks, n_vars = table.shape[0], table.shape[1] - 1
    for b in range(n_blocks):
        base, begin = start[b], to
        head = 0
        for g in range(n_vars):
            tail = table[b, g + 1]
            i = head
            while i < tail:
                p = pixel[base + i]
                v = np.float64(value[base + i])
                i += 1
                while i < tail and pixel[base + i] == p:
                    v += value[base + i]
                    i += 1
                if v != 0:
                    pixel[to] = p
                    value[to] = v
                    to += 1
                    lowest, highest = min(lowest, v), max(highest, v)
                    whole = whole and v == np.floor(v)
            head = tail
            table[b, g + 1] = to - begin
        start[b] = begin
    start[n_blocks] = to
    return to, lowest, highest, whole


@njit(cache=True, nogil=True)
def _to_csr(
    block_map: np.ndarray, start: np.ndarray, table: np.ndarray, pixel: np.ndarray, value: np.ndarray, shift: int, rank: np.ndarray,
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray,
) -> None:  # fmt: skip
    mask = (1 << shift) - 1
    n_vars = table.shape[1] - 1
    for fill in range(2):
        for by in range(block_map.shape[0]):
            for bx in range(block_map.shape[1]):
                b = block_map[by, bx]
                if b < 0:
                    continue
                for g in range(n_vars):
                    for i in range(start[b] + table[b, g], start[b] + table[b, g + 1]):
                        p = np.int64(pixel[i])
                        row = rank[(by << shift) + (p >> shift), (bx << shift) + (p & mask)]
                        if fill:
                            indices[indptr[row]] = g
                            data[indptr[row]] = value[i]
                        indptr[row + 1 - fill] += 1
        if fill == 0:
            for r in range(1, indptr.size):
                indptr[r] += indptr[r - 1]
    for r in range(indptr.size - 1, 0, -1):
        indptr[r] = indptr[r - 1]
    indptr[0] = 0


def from_csr(matrix: sp.csr_matrix, rc: np.ndarray, shape: tuple[int, int], shift: int | None = None) -> tuple[Blocks, int]:
    """Return the blocks and log2 of their edge for the rows of ``matrix`` at lattice points ``rc`` (n, 2); -1 is off the raster.

    Rows on one lattice point and repeated entries add up; entries that are zero are left out.
    """
    indptr = matrix.indptr.astype(np.int64)
    length = np.diff(indptr)
    filled = np.flatnonzero((length > 0) & (rc[:, 0] >= 0))
    rc = rc[filled].astype(np.int64)
    if shift is None:
        shift = choose_shift(rc, shape, int(length[filled].sum()), matrix.shape[1])
    mask = (1 << shift) - 1
    n_rows, n_columns = ((extent + mask) >> shift for extent in shape)
    block = (rc[:, 0] >> shift) * n_columns + (rc[:, 1] >> shift)
    local = ((rc[:, 0] & mask) << shift) | (rc[:, 1] & mask)
    order = np.lexsort((local, block))
    block, local, rows = block[order], local[order], filled[order]
    numbers, block_ptr = np.unique(block, return_index=True)
    sizes = np.add.reduceat(length[rows], block_ptr) if rows.size else np.zeros(0, np.int64)
    if sizes.size and sizes.max() >= 2**31:
        raise ValueError(
            f"A block of {1 << shift} x {1 << shift} lattice points holds {sizes.max()} values; at most 2**31 - 1 fit. Pass a smaller `block`."
        )
    block_map = np.full((n_rows, n_columns), -1, dtype=np.int32)
    block_map.reshape(-1)[numbers] = np.arange(numbers.size, dtype=np.int32)
    start = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
    table = np.zeros((numbers.size, matrix.shape[1] + 1), dtype=np.int32)
    pixel = np.empty(int(start[-1]), dtype=np.uint16 if shift <= PIXEL16_SHIFT else np.uint32)
    repeated = bool((np.diff(block) == 0)[np.diff(local) == 0].any()) or not matrix.has_canonical_format
    value = np.empty(pixel.size, dtype=np.float32 if matrix.dtype == np.float32 and not repeated else np.float64)
    block_ptr = np.append(block_ptr, rows.size).astype(np.int64)
    _scatter(indptr, matrix.indices, matrix.data, rows, local, block_ptr, start, table, pixel, value)
    n, lowest, highest, whole = _merge(start, table, pixel, value)
    if n < pixel.size:
        pixel, value = pixel[:n].copy(), value[:n]
    return Blocks(block_map, start, table, pixel, value.astype(smallest_dtype(lowest, highest, whole))), shift


def to_csr(blocks: Blocks, shift: int, rank: np.ndarray, n_obs: int, dtype: np.dtype) -> sp.csr_matrix:
    """Return CSR (n_obs, n_vars) whose row ``rank[r, c]`` holds the values at lattice point (r, c)."""
    indptr = np.zeros(n_obs + 1, dtype=np.int64)
    indices = np.empty(blocks.pixel.size, dtype=np.int32)
    data = np.empty(blocks.pixel.size, dtype=dtype)
    _to_csr(*blocks, shift, rank, indptr, indices, data)
    if blocks.pixel.size < 2**31:
        indptr = indptr.astype(np.int32)
    return sp.csr_matrix((data, indices, indptr), shape=(n_obs, blocks.table.shape[1] - 1))
