"""Memory that is used again from one window to the next, and the threads that read windows side by side."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stimg.image import gather

_POOLS: dict[int, tuple[int, ThreadPoolExecutor]] = {}
_SMALL = 1024


def run_lanes(work: Callable[[int, int, int], None], n: int, threads: int) -> int:
    """Call ``work(lane, first, last)`` for equal shares of ``range(n)``, one thread each; return the number of lanes.

    The calling thread does the first share. The pool belongs to the process: after a fork the child makes its own.
    """
    lanes = max(1, min(threads, n))
    edges = [n * lane // lanes for lane in range(lanes + 1)]
    if lanes == 1:
        work(0, 0, n)
        return 1
    size, pool = _POOLS.get(os.getpid(), (0, None))
    if pool is None or size < lanes - 1:
        if pool is not None:
            pool.shutdown(wait=False)
        pool = ThreadPoolExecutor(lanes - 1, thread_name_prefix="stimg")
        _POOLS[os.getpid()] = (lanes - 1, pool)
    others = [pool.submit(work, lane, edges[lane], edges[lane + 1]) for lane in range(1, lanes)]
    try:
        work(0, 0, edges[1])
    finally:
        for other in others:
            other.exception()
    for other in others:
        other.result()
    return lanes


class Lane:
    """Scratch arrays of one thread. ``runs`` and ``entries`` make room and keep what the outputs hold already."""

    def __init__(self, dtype: np.dtype) -> None:
        self.lo = self.hi = self.inside = np.empty(0, np.int64)
        self.count = np.empty(0, np.int64)
        self.pixel, self.gene, self.value = np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, dtype)
        self.tmp_pixel, self.tmp_gene, self.tmp_value = np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, dtype)
        self.end = np.empty(0, np.int64)
        self.touched = np.empty(0, np.int64)
        self.n_touched = 0

    def runs(self, room: int) -> None:
        """Make room for the runs of one window."""
        if self.lo.size < room:
            self.lo, self.hi, self.inside = (np.empty(room + _SMALL, np.int64) for _ in range(3))

    def entries(self, room: int, used: int) -> None:
        """Make room for ``room`` entries, of which the first ``used`` stay."""
        if self.pixel.size < room or self.tmp_pixel.size < room - used:
            room = room + room // 2 + _SMALL
            for name in ("pixel", "gene", "value"):
                old = getattr(self, name)
                new = np.empty(room, old.dtype)
                new[:used] = old[:used]
                setattr(self, name, new)
                setattr(self, f"tmp_{name}", np.empty(room, old.dtype))

    def places(self, room: int) -> None:
        """Make room for ``room`` touched places, of which those of the windows already read stay."""
        room = room + room // 2 + _SMALL if room else 0
        if self.touched.size < room:
            new = np.empty(room, np.int64)
            new[: self.n_touched] = self.touched[: self.n_touched]
            self.touched = new
        if self.tmp_pixel.size < room:
            self.tmp_pixel, self.tmp_gene = np.empty(room, np.int32), np.empty(room, np.int32)
            self.tmp_value = np.empty(room, self.tmp_value.dtype)


class Workspace:
    """Scratch memory and recycled outputs for sparse windows, for one caller at a time.

    Arrays returned by a read with a workspace are views that the next read with it overwrites.
    """

    def __init__(self) -> None:
        self._lanes: list[Lane] = []
        self._dtype: np.dtype | None = None
        self._joined: tuple[np.ndarray, ...] = ()

    def lanes(self, n: int, dtype: np.dtype) -> list[Lane]:
        """Return ``n`` lanes for values of ``dtype``."""
        if self._dtype != dtype:
            self._lanes, self._dtype, self._joined = [], dtype, ()
        while len(self._lanes) < n:
            self._lanes.append(Lane(dtype))
        return self._lanes

    def joined(self, room: int) -> tuple[np.ndarray, ...]:
        """Return (pixel, gene, value) outputs with at least ``room`` places."""
        if not self._joined or self._joined[0].size < room:
            room = room + room // 2
            self._joined = (np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, self._dtype))
        return self._joined


class DenseBuffer:
    """A dense array that is used again and again: before each read only the places that the last one wrote are set to zero.

    Parameters
    ----------
    dtype
        Of the array: any of numpy's integer types, float32 or float64.

    Notes
    -----
    The array that a read returns is a view which the next read overwrites. Whoever writes to it where it was zero calls :meth:`reset`
    before the next read; changing non-zeros in place (a logarithm, a scaling) is fine.
    """

    def __init__(self, dtype: np.typing.DTypeLike = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype.kind not in "iu" and self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(f"dtype={self.dtype} cannot hold windows; wanted an integer type, float32 or float64.")
        self._flat = np.zeros(0, self.dtype)
        self._lanes: list[Lane] = []
        self._split: tuple[int, ...] = ()

    @classmethod
    def around(cls, array: np.ndarray) -> "DenseBuffer":
        """Return a buffer over ``array`` (C-contiguous), which is set to zero."""
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError("out is not a writable C-contiguous array; pass one made by numpy.empty, or a DenseBuffer.")
        buffer = cls(array.dtype)
        array[...] = 0
        buffer._flat = array.reshape(-1)
        return buffer

    def reset(self) -> None:
        """Set everything to zero."""
        self._flat[...] = 0
        for lane in self._lanes:
            lane.n_touched = 0

    def prepare(self, shape: tuple[int, ...], lanes: int, source: np.dtype) -> tuple[np.ndarray, list[Lane], bool]:
        """Return (flat array with room for ``shape``, lanes for values of dtype ``source``, whether each lane must still clear its own places)."""
        size = int(np.prod(shape, dtype=np.int64))
        while len(self._lanes) < lanes:
            self._lanes.append(Lane(source))
        for lane in self._lanes:
            lane.tmp_value = lane.tmp_value.astype(source, copy=False)
        touched = sum(lane.n_touched for lane in self._lanes)
        split = (*shape, lanes)
        pending = False
        if size > self._flat.size:
            self._flat = np.zeros(size, self.dtype)
            for lane in self._lanes:
                lane.n_touched = 0
        elif touched * 8 > self._flat.size:
            self.reset()
        elif split == self._split:
            pending = True
        else:
            self.clear()
        self._split = split
        return self._flat, self._lanes, pending

    def clear(self, lane: Lane | None = None) -> None:
        """Set the places that ``lane`` (None: that all lanes) wrote to zero."""
        for each in self._lanes if lane is None else [lane]:
            gather.clear(self._flat, each.touched, each.n_touched)
            each.n_touched = 0


def as_buffer(out: DenseBuffer | np.ndarray | None, dtype: np.typing.DTypeLike | None, shape: tuple[int, ...]) -> DenseBuffer:
    """Return the buffer to write to: ``out`` itself, one around the array ``out``, or a new one of ``dtype`` (None: float32)."""
    if out is None:
        return DenseBuffer(np.float32 if dtype is None else dtype)
    if dtype is not None and np.dtype(dtype) != out.dtype:
        raise ValueError(f"dtype={np.dtype(dtype)} and out of {out.dtype} contradict each other. Pass one of them.")
    if isinstance(out, DenseBuffer):
        return out
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}; wanted {shape}, (window, gene, y, x).")
    return DenseBuffer.around(out)


def limit_of(dtype: np.dtype, source: np.dtype, max_value: float) -> tuple[bool, int]:
    """Return whether some value up to ``max_value``, of dtype ``source``, does not fit ``dtype``, and the highest whole number that does."""
    if source.kind == "f":
        if dtype.kind != "f":
            raise ValueError(
                f"The store holds fractional or negative values (float32), which dtype={dtype} cannot hold; wanted float32 or float64."
            )
        return False, 0
    limit = int(np.iinfo(dtype).max) if dtype.kind in "iu" else 2 ** (24 if dtype.itemsize == 4 else 53)
    return max_value > limit, min(limit, 2**62)
