"""Arrays that are computed or decoded chunk by chunk, such as those of dask, zarr and SpatialData."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from stimg.image.pixels import LARGEST
from stimg.image.slide_cache import PieceCache
from stimg.image.slide_source import ArraySource, Source, check_pixels, levels_of, sampled_fingerprint


def array_source(arrays: Sequence[Any], *, name: str = "the image", mpp_sources: Mapping[str, float] | None = None) -> Source:
    """Return the source for arrays with the finest first: chunks are kept where there are any, else the arrays are sliced."""
    plain = [_plain(each) for each in arrays]
    if any(hasattr(each, "chunks") and not isinstance(each, np.ndarray) for each in plain):
        return ChunkedSource(plain, name=name, mpp_sources=mpp_sources)
    return ArraySource(plain, name=name, mpp_sources=mpp_sources)


def _plain(array: Any) -> Any:
    """Return what is inside an xarray, with the channels last; anything else as it is."""
    if not (hasattr(array, "dims") and hasattr(array, "data")):
        return array
    if tuple(array.dims) == ("c", "y", "x"):
        stored = _stored(array.data)
        return ChannelsLast(stored) if stored is not None else array.transpose("y", "x", "c").data
    return array.data


def _stored(array: Any) -> Any:
    """Return the zarr array that a dask array reads without changing anything, None for any other: dask adds half to the time of a chunk."""
    layers = getattr(getattr(array, "dask", None), "layers", {})
    if set(layers) != {array.name, f"original-{array.name}"} if layers else True:
        return None
    (inside,) = dict(layers[f"original-{array.name}"]).values()
    same = all(getattr(inside, name, None) == getattr(array, name) for name in ("shape", "dtype"))
    return inside if same and array.name.startswith("from-zarr") and isinstance(getattr(inside, "chunks", None), tuple) else None


class ChannelsLast:
    """A stored array (c, y, x), sliced as (y, x, c)."""

    def __init__(self, array: Any) -> None:
        self._array, self.dtype = array, array.dtype
        self.shape = (*array.shape[1:], array.shape[0])
        self.chunks = (*array.chunks[1:], array.chunks[0])

    def __getitem__(self, where: tuple[slice, slice]) -> np.ndarray:
        return np.moveaxis(np.asarray(self._array[(slice(None), *where)]), 0, -1)


class ChunkedSource:
    """Arrays uint8 (y, x, 3) in chunks: a window is put together from whole chunks, of which those used last are kept.

    A dask array that is rechunked from something larger, such as one delayed image, is computed whole at its first read: chunk by chunk it
    would compute that something again and again.
    """

    def __init__(self, arrays: Sequence[Any], *, name: str = "the image", mpp_sources: Mapping[str, float] | None = None) -> None:
        for i, each in enumerate(arrays):
            check_pixels(each, name if len(arrays) == 1 else f"level {i} of {name}")
        self.name, self.mpp_sources, self._arrays = name, dict(mpp_sources or {}), list(arrays)
        self.levels = levels_of([(int(a.shape[0]), int(a.shape[1])) for a in arrays], name)
        self._edges = [tuple(_edges(a.chunks[axis], a.shape[axis]) for axis in (0, 1)) if hasattr(a, "chunks") else None for a in arrays]
        self._cache = PieceCache()

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return pixels, uint8 (height, width, 3)."""
        if _rechunked(self._arrays[level]):
            self._compute(level)
        edges, array = self._edges[level], self._arrays[level]
        if edges is None:
            return np.asarray(array[top : top + height, left : left + width])
        out = np.empty((height, width, 3), dtype=np.uint8)
        rows, columns = edges
        for r in range(np.searchsorted(rows, top, "right") - 1, np.searchsorted(rows, top + height, "left")):
            y0, y1 = max(top, rows[r]), min(top + height, rows[r + 1])
            for c in range(np.searchsorted(columns, left, "right") - 1, np.searchsorted(columns, left + width, "left")):
                x0, x1 = max(left, columns[c]), min(left + width, columns[c + 1])
                piece = self._cache.get((level, r, c), partial(self._chunk, level, r, c))
                part = piece[y0 - rows[r] : y1 - rows[r], x0 - columns[c] : x1 - columns[c]]
                into = out[y0 - top : y1 - top, x0 - left : x1 - left]
                for channel in range(3):  # three times faster than all at once where the channels are apart in memory
                    into[..., channel] = part[..., channel]
        return out

    def _chunk(self, level: int, r: int, c: int) -> np.ndarray:
        array, edges = self._arrays[level], self._edges[level]
        assert edges is not None  # for the type checker
        where = tuple(slice(int(e[i]), int(e[i + 1])) for e, i in zip(edges, (r, c), strict=True))
        try:
            part = array[where]
            # one thread: a pool of threads does not survive being forked
            found = part.compute(scheduler="sync") if hasattr(part, "compute") else part
        except (OSError, RuntimeError, ValueError, KeyError) as err:
            raise ValueError(
                f"{self.name} is damaged: rows {where[0].start} to {where[0].stop} of level {level} cannot be read ({err})."
            ) from err
        return np.asarray(found)  # channels first in memory, where the array has them so: only windows are turned

    def _compute(self, level: int) -> None:
        array = self._arrays[level]
        if array.shape[0] * array.shape[1] > LARGEST:
            raise ValueError(
                f"{self.name} has {array.shape[0]} x {array.shape[1]} pixels (y, x) and can only be computed whole. Write it to disk first "
                "(`sdata.write`), and read it from there."
            )
        self._arrays[level], self._edges[level] = np.ascontiguousarray(array.compute(scheduler="sync")), None

    def fingerprint(self) -> str:
        """Return the hash of the sizes and of nine small windows."""
        return sampled_fingerprint(self)

    def load(self) -> None:
        """Compute what can only be computed whole."""
        for level, array in enumerate(self._arrays):
            if _rechunked(array):
                self._compute(level)

    def close(self) -> None:
        """Forget the chunks."""
        self._cache.clear()


def _edges(chunks: Any, length: int) -> np.ndarray:
    """Return where chunks begin and end along an axis: dask gives all sizes, zarr one."""
    sizes = chunks if isinstance(chunks, tuple) else (chunks,) * -(-length // chunks)
    return np.minimum(np.concatenate([[0], np.cumsum(sizes)]), length)


def _rechunked(array: Any) -> bool:
    layers = getattr(getattr(array, "dask", None), "layers", None)
    return layers is not None and any(str(name).startswith("rechunk") for name in layers)
