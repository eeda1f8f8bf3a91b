"""What a reader of windows is asked for, checked once (places, size and genes), and what it returns."""

from typing import Any, NamedTuple

import numpy as np

from stimg.image import gather


class SparseWindow(NamedTuple):
    """The non-zeros of one window: ``pixel`` int32 (``y * width + x`` in the window), ``gene`` int32 (position in ``genes``), ``value``."""

    pixel: np.ndarray
    gene: np.ndarray
    value: np.ndarray


class SparseWindows(NamedTuple):
    """The non-zeros of several windows, one after another; those of window ``i`` stand at ``indptr[i]:indptr[i + 1]`` (int64)."""

    indptr: np.ndarray
    pixel: np.ndarray
    gene: np.ndarray
    value: np.ndarray


class Request(NamedTuple):
    """Windows that were checked: tops and lefts int64 (n,), and the genes of window ``i``, ``genes[gene_from[i]:gene_to[i]]``."""

    tops: np.ndarray
    lefts: np.ndarray
    height: int
    width: int
    genes: np.ndarray
    gene_from: np.ndarray
    gene_to: np.ndarray


def check(tops: Any, lefts: Any, height: int, width: int, genes: Any, n_vars: int) -> Request:
    """Return the windows that were asked for; ``genes`` is None, one list for all windows, or one list per window.

    Raises
    ------
    TypeError
        Where a place or a gene is not an integer.
    ValueError
        Where a window is empty, lengths contradict each other, or a gene is out of range or named twice in one window.
    """
    if height < 1 or width < 1 or height * width >= 2**31:
        raise ValueError(f"A window of {height} x {width} cannot be read; wanted at least 1 x 1 and fewer than 2**31 lattice points.")
    top, left = integers(tops, "tops", 1), integers(lefts, "lefts", 1)
    if top.shape != left.shape:
        raise ValueError(f"tops and lefts have lengths {top.size} and {left.size}; wanted one of each per window.")
    n = top.size
    if genes is None:
        flat, begin, end = np.arange(n_vars, dtype=np.int64), np.zeros(n, np.int64), np.full(n, n_vars, np.int64)
        return Request(top, left, int(height), int(width), flat, begin, end)
    if isinstance(genes, np.ndarray) or not len(genes) or np.ndim(genes[0]) == 0:
        flat = integers(genes, "genes", None)
        shared = flat.ndim == 1
        if not shared and flat.shape[0] != n:
            raise ValueError(f"genes has {flat.shape[0]} lists for {n} windows; wanted one list for all or one per window.")
        size = flat.shape[-1]
        begin = np.zeros(n, np.int64) if shared else np.arange(n, dtype=np.int64) * size
        flat, end = flat.reshape(-1), begin + size
        lists = 1 if shared else n
        edges = np.arange(lists + 1, dtype=np.int64) * size
    else:
        pieces = [integers(piece, "genes", 1) for piece in genes]
        if len(pieces) != n:
            raise ValueError(f"genes has {len(pieces)} lists for {n} windows; wanted one list for all or one per window.")
        edges = np.concatenate([np.zeros(1, np.int64), np.cumsum([piece.size for piece in pieces], dtype=np.int64)])
        flat = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        begin, end = edges[:-1], edges[1:]
    wrong = gather.check_genes(flat, edges, n_vars)
    if wrong >= 0:
        what = "stands there twice" if 0 <= flat[wrong] < n_vars else f"is not one of the store's {n_vars} genes"
        raise ValueError(f"genes holds {flat[wrong]}, which {what}; wanted distinct positions from 0 to {n_vars - 1}.")
    return Request(top, left, int(height), int(width), flat, begin, end)


def integers(values: Any, name: str, ndim: int | None) -> np.ndarray:
    """Return ``values`` as int64 with ``ndim`` dimensions (None: 1 or 2)."""
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} are {array.dtype}; wanted integers.")
    if array.ndim not in ((ndim,) if ndim is not None else (1, 2)):
        raise ValueError(f"{name} has {array.ndim} dimensions; wanted {ndim or '1 or 2'}.")
    return np.ascontiguousarray(array, dtype=np.int64)
