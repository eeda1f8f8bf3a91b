"""Where the pixels of a slide come from: arrays, and files that are decoded whole."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

_SAMPLE = 32
_ENDS = 1 << 16


class Level(NamedTuple):
    """Size of one level of a slide, and the number of pixels of level 0 along the side of one of its pixels."""

    height: int
    width: int
    downsample: float


class Source(Protocol):
    """What a slide needs from its pixels. ``read`` is only asked for windows that lie inside a level."""

    name: str
    levels: tuple[Level, ...]
    mpp_sources: dict[str, float]

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return pixels, uint8 (height, width, 3)."""

    def fingerprint(self) -> str:
        """Return a text that changes where the pixels do."""

    def load(self) -> None:
        """Decode what can only be decoded whole."""

    def close(self) -> None:
        """Close files."""


def levels_of(sizes: Sequence[tuple[int, int]], name: str) -> tuple[Level, ...]:
    """Return the levels of (height, width) sizes, finest first.

    Where the ratio is a whole number up to the rounding of the sizes it is that number; otherwise the mean of both axes' ratios.

    Raises
    ------
    ValueError
        For levels without pixels, that do not shrink, or that are not the same picture's.
    """
    if not sizes or min(min(size) for size in sizes) < 1:
        raise ValueError(f"{name} has levels of {list(sizes)} pixels (y, x); wanted at least one, none of them empty.")
    out = [Level(*sizes[0], 1.0)]
    for height, width in sizes[1:]:
        ratios = sizes[0][0] / height, sizes[0][1] / width
        mean = (ratios[0] + ratios[1]) / 2
        near = [n for n in (round(mean), round(mean) - 1, round(mean) + 1) if n >= 1 and _is(sizes[0], (height, width), n)]
        down = float(near[0]) if near else mean
        allowed = (1.01 + 2 / min(height, width)) ** 2
        if down <= out[-1].downsample or max(ratios) > allowed * min(ratios):
            raise ValueError(
                f"{name} has levels of {list(sizes)} pixels (y, x); wanted the finest first, each smaller than the one before, all of one picture."
            )
        out.append(Level(height, width, down))
    return tuple(out)


def _is(full: tuple[int, int], size: tuple[int, int], n: int) -> bool:
    return all(have in (whole // n, -(-whole // n)) for whole, have in zip(full, size, strict=True))


def check_pixels(array: Any, name: str) -> None:
    """Raise where an array is not uint8 (y, x, 3)."""
    shape, dtype = tuple(getattr(array, "shape", ())), getattr(array, "dtype", None)
    if dtype is None:
        raise TypeError(
            f"{name} is a {type(array).__name__}; wanted a path, an array uint8 (y, x, 3), or a list of arrays with the finest first."
        )
    if len(shape) != 3 or shape[2] != 3:
        alpha = " Drop an alpha channel with image[..., :3]." if len(shape) == 3 and shape[2] == 4 else ""
        first = " Move the channels to the end with np.moveaxis(image, 0, -1)." if len(shape) == 3 and shape[0] == 3 else ""
        raise ValueError(f"{name} has shape {shape}; wanted (y, x, 3): red, green, blue.{alpha}{first}")
    if dtype != np.uint8:
        raise TypeError(f"{name} has dtype {dtype}; wanted uint8, 255 for white. Scale it to 0 .. 255 and convert it.")


class ArraySource:
    """Arrays uint8 (y, x, 3) in memory or memory-mapped, the finest first."""

    def __init__(self, arrays: Sequence[np.ndarray], *, name: str = "the image", mpp_sources: Mapping[str, float] | None = None) -> None:
        if not len(arrays):
            raise ValueError(f"{name} is an empty list; wanted arrays uint8 (y, x, 3), the finest first.")
        for i, each in enumerate(arrays):
            check_pixels(each, name if len(arrays) == 1 else f"level {i} of {name}")
        self.name, self.mpp_sources, self._arrays = name, dict(mpp_sources or {}), list(arrays)
        self.levels = levels_of([(int(a.shape[0]), int(a.shape[1])) for a in arrays], name)

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return pixels, uint8 (height, width, 3), as a view."""
        return self._arrays[level][top : top + height, left : left + width]

    def fingerprint(self) -> str:
        """Return the hash of the sizes and of nine small windows."""
        return sampled_fingerprint(self)

    def load(self) -> None:
        """Do nothing: the arrays are there."""

    def close(self) -> None:
        """Do nothing: there is no file of its own."""


def sampled_fingerprint(source: "Source") -> str:
    """Return the hash of a source's sizes and of nine small windows of its finest level."""
    full = source.levels[0]
    found, size = hashlib.sha256(repr(source.levels).encode()), (min(_SAMPLE, full.height), min(_SAMPLE, full.width))
    for y in np.linspace(0, full.height - size[0], 3).astype(int):
        for x in np.linspace(0, full.width - size[1], 3).astype(int):
            found.update(np.ascontiguousarray(source.read(0, int(y), int(x), *size)).tobytes())
    return found.hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """Return the hash of a file's size and of its first and last 64 KB."""
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        found.update(file.read(_ENDS))
        file.seek(max(size - _ENDS, 0))
        found.update(file.read(_ENDS))
    return found.hexdigest()[:16]


class PillowSource:
    """A file that Pillow reads, such as jpg and png: decoded whole at the first read, and again in each worker process."""

    def __init__(self, path: Path) -> None:
        from stimg.image.pixels import image_size

        self.path, self.name = path, str(path)
        self.mpp_sources: dict[str, float] = {}
        self.levels = levels_of([image_size(path)], self.name)
        self._pixels: np.ndarray | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_pixels", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pixels=None, _lock=threading.Lock())

    def load(self) -> None:
        """Decode the file, if that has not happened yet."""
        from stimg.image.pixels import read_rgb

        with self._lock:
            if self._pixels is None:
                pixels = read_rgb(self.path)
                if pixels.shape[:2] != self.levels[0][:2]:
                    raise ValueError(
                        f"{self.path} has {pixels.shape[:2]} pixels (y, x) and had {self.levels[0][:2]} when it was opened. Open it again."
                    )
                self._pixels = pixels

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return pixels, uint8 (height, width, 3), as a view."""
        if self._pixels is None:
            self.load()
        assert self._pixels is not None  # for the type checker
        return self._pixels[top : top + height, left : left + width]

    def fingerprint(self) -> str:
        """Return the hash of the file's size and ends."""
        return file_fingerprint(self.path)

    def close(self) -> None:
        """Forget the pixels."""
        self._pixels = None
