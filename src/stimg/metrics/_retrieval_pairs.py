"""What the retrieval scores share: checked embeddings, partners and groups, and how the work is cut into jobs."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from threadpoolctl import threadpool_limits

from stimg.metrics import _retrieval_kernels as kernels
from stimg.metrics._arrays import same_width
from stimg.metrics.clusters import as_labels, encode, missing


class Pair:
    """Queries and gallery as they are multiplied: the rows with the scale of each, and which of them have a score at all."""

    def __init__(self, query: Any, gallery: Any, normalise: bool) -> None:
        q, g = _rows(query, "query"), _rows(gallery, "gallery")
        same_width(query=q, gallery=g)
        kind = np.result_type(q, g)
        q, g = q.astype(kind, copy=False), g.astype(kind, copy=False)
        self.n, self.m, self.d = len(q), len(g), q.shape[1]
        norm_q, norm_g = kernels.norms(q), kernels.norms(g)
        self.usable_q, self.usable_g = (np.isfinite(norm) & ((norm > 0) | (not normalise)) for norm in (norm_q, norm_g))
        # by the dot product, queries are unit vectors all the same, which moves no rank, and the longest item has the length 1
        unit = norm_g if normalise else np.full(self.m, norm_g[self.usable_g].max(initial=0.0))
        scale_q, scale_g = (1.0 / np.where(np.isfinite(norm) & (norm > 0), norm, 1.0) for norm in (norm_q, unit))
        self.vectors = kernels.Vectors(q, g, scale_q, scale_g, norm_g * scale_g)

    def queries(self, rows: np.ndarray) -> np.ndarray:
        """Return the queries ``rows`` as unit vectors, float64 (len(rows), d)."""
        return self.vectors.q[rows] * self.vectors.scale_q[rows, None]

    def items(self, rows: np.ndarray) -> np.ndarray:
        """Return the items ``rows`` of the gallery, scaled, float64 (len(rows), d); 0 for those without a score."""
        out = self.vectors.g[rows] * self.vectors.scale_g[rows, None]
        out[~self.usable_g[rows]] = 0.0
        return out


def _rows(values: Any, name: str) -> np.ndarray:
    """Return an embedding as rows of float32 or float64, one after the other in memory; it may hold NaN."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {array.dtype}; wanted real numbers.")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}; wanted (items, dimensions) with at least one of each.")
    return np.ascontiguousarray(array, dtype=np.float32 if array.dtype.kind == "f" and array.dtype.itemsize <= 4 else np.float64)


def partners(partner: Any, n: int, m: int) -> np.ndarray:
    """Return the position of each query's partner, int64 (n,), or raise."""
    if partner is None:
        if n != m:
            raise ValueError(f"There are {n} queries and {m} gallery items; wanted pairs, row by row. Pass `partner=` for anything else.")
        return np.arange(n)
    items = np.asarray(partner)
    if items.dtype.kind not in "iu":
        raise TypeError(f"partner has dtype {items.dtype}; wanted whole numbers, positions in the gallery.")
    if items.shape != (n,) or items.min() < 0 or items.max() >= m:
        span = f"from {items.min()} to {items.max()}" if items.size else "without values"
        raise ValueError(f"partner has shape {items.shape}, {span}; wanted ({n},), one position from 0 to {m - 1} for each query.")
    return items.astype(np.int64)


def groups(group: Any, gallery_group: Any, partner: Any, n: int, m: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the group of every query and of every item as codes, and the number of groups; one group where none are given."""
    if group is None and gallery_group is None:
        return np.zeros(n, dtype=np.int64), np.zeros(m, dtype=np.int64), 1
    if group is None or (gallery_group is None and partner is not None):
        raise ValueError("Only one of group and gallery_group was given; wanted both, or `group=` alone for pairs, row by row.")
    labels = [as_labels(group, "group"), as_labels(group if gallery_group is None else gallery_group, "gallery_group")]
    for each, name, length in zip(labels, ("group", "gallery_group"), (n, m), strict=True):
        if len(each) != length or missing(each).any():
            raise ValueError(f"{name} has {len(each)} labels, {int(missing(each).sum())} of them missing; wanted {length}, none missing.")
    names, own, home = encode(*labels)
    return own, home, len(names)


def chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Return ``rows`` in parts of ``size``."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def run(work: Callable[[Any], None], jobs: Iterable[Any]) -> None:
    """Do all jobs, on as many threads as numba has; each multiplies on one thread, so that none waits for another."""
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(numba.get_num_threads()) as pool:
        for _ in pool.map(work, jobs):
            pass
