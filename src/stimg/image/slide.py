"""One slide at several resolutions, read window by window: whole files, pyramids, arrays."""

import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from stimg._core import validate
from stimg.image.area import area_mean
from stimg.image.slide_chunks import array_source
from stimg.image.slide_source import Level, PillowSource, Source
from stimg.image.units import check_mpp

WHITE = 255
"""What stands outside the image: the background of a slide."""
TOO_COARSE = 0.05
"""Up to this part coarser than wanted counts as the wanted resolution."""
SAME = 0.5
"""A window whose side is within this many pixels of the tile's is copied pixel by pixel."""
_STRIP_BYTES = 64 << 20
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OPENSLIDE = (".mrxs", ".vms", ".vmu")


class Slide:
    """A slide that is read window by window; :func:`open_slide` makes one.

    Pixel ``i`` of a level covers ``i`` to ``i + 1`` along its axis, and pixel ``i`` of a level with downsample ``d`` covers ``i * d`` to
    ``(i + 1) * d`` in pixels of level 0. Outside the image a slide is white.

    Parameters
    ----------
    source
        Where the pixels come from.
    mpp_sources
        µm per pixel of level 0 by what states it, the one to use first; what the source says comes after.
    """

    def __init__(self, source: Source, *, mpp_sources: Mapping[str, float] | None = None) -> None:
        self._source = source
        stated = {**(mpp_sources or {}), **source.mpp_sources}
        self.mpp_sources = {name: check_mpp(validate.number(value, "mpp", "µm per pixel")) for name, value in stated.items()}
        """µm per pixel of level 0 by everything that states it, the one in use first."""

    @property
    def mpp(self) -> float | None:
        """µm per pixel of level 0, None where nothing states it."""
        return next(iter(self.mpp_sources.values()), None)

    @property
    def mpp_source(self) -> str:
        """What states :attr:`mpp`; ``"none"`` where nothing does."""
        return next(iter(self.mpp_sources), "none")

    @property
    def name(self) -> str:
        """What errors call the slide: its path, or what kind of array it is."""
        return self._source.name

    @property
    def path(self) -> Path | None:
        """The file, None for arrays."""
        return getattr(self._source, "path", None)

    @property
    def levels(self) -> tuple[Level, ...]:
        """Sizes of the levels, finest first."""
        return self._source.levels

    def fingerprint(self) -> str:
        """Return a short text that changes where the pixels do: of a file its size and both its ends, of an array its shape and samples."""
        return self._source.fingerprint()

    def with_mpp(self, mpp: float | Mapping[str, float]) -> "Slide":
        """Return the same slide with another µm per pixel of level 0, or several by what states them; pixels and cache are shared."""
        return Slide(self._source, mpp_sources=mpp if isinstance(mpp, Mapping) else {"argument": mpp})

    def require_mpp(self) -> float:
        """Return µm per pixel of level 0; a ValueError says how to state it where nothing does."""
        if self.mpp is None:
            raise ValueError(f"{self.name} does not say how many µm a pixel measures. Pass `mpp=`, µm per pixel of its finest level.")
        return self.mpp

    def load(self) -> "Slide":
        """Decode what can only be decoded whole, now; returns the slide."""
        self._source.load()
        return self

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        self._source.close()

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{level.width} x {level.height}" for level in self.levels)
        return f"Slide({self.name}, {sizes}, mpp={self.mpp})"

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return a window of a level, uint8 (height, width, 3), white outside the image; possibly a view that must not be written to.

        Raises
        ------
        ValueError
            For a level that is not there, a window without pixels, or pixels that cannot be decoded.
        """
        if not 0 <= level < len(self.levels):
            raise ValueError(f"level={level}; {self.name} has levels 0 .. {len(self.levels) - 1}.")
        if height < 1 or width < 1:
            raise ValueError(f"a window of {height} x {width} pixels; wanted at least one row and column.")
        here = self.levels[level]
        y0, y1, x0, x1 = max(top, 0), min(top + height, here.height), max(left, 0), min(left + width, here.width)
        if y1 - y0 == height and x1 - x0 == width:
            return self._source.read(level, top, left, height, width)
        out = np.full((height, width, 3), WHITE, dtype=np.uint8)
        if y1 > y0 and x1 > x0:
            out[y0 - top : y1 - top, x0 - left : x1 - left] = self._source.read(level, y0, x0, y1 - y0, x1 - x0)
        return out

    def level_for(self, step: float, *, upsample: bool = False) -> int:
        """Return the coarsest level whose pixels are not coarser than ``step`` pixels of level 0 (by more than 1 %).

        Raises
        ------
        ValueError
            Where level 0 is coarser than wanted by more than 5 %, unless ``upsample``.
        """
        if step * (1 + TOO_COARSE) < 1 and not upsample:
            at = f" ({self.mpp:g} µm per pixel, wanted {self.mpp * step:g})" if self.mpp else ""
            raise ValueError(
                f"{self.name} is {1 / step:.3g} times coarser than the tile wanted{at}. Ask for a coarser mpp, pass `upsample=True` to "
                "interpolate, or give a finer image."
            )
        fits = [i for i, level in enumerate(self.levels) if level.downsample <= step * 1.01]
        return fits[-1] if fits else 0

    def tile(
        self, centre_yx: Sequence[float] | np.ndarray, side_px: float, size_px: int, *, upsample: bool = False
    ) -> tuple[np.ndarray, float]:
        """Return a square around a centre as uint8 (size_px, size_px, 3), and the share of it that lies outside the image.

        Parameters
        ----------
        centre_yx
            (y, x) of its centre in pixels of level 0.
        side_px
            Its side in pixels of level 0.
        size_px
            Rows and columns to deliver.
        upsample
            Interpolate where level 0 is more than 5 % coarser than ``side_px / size_px``, in place of an error.

        Raises
        ------
        ValueError
            For a centre that is not finite, sides that are not positive, or a level 0 that is too coarse.

        Notes
        -----
        Pixels come from the coarsest level that is fine enough. Each delivered pixel is the mean over exactly the area it covers, whatever
        fraction of a pixel the centre has. Where the pixels of the level are of the wanted size already, over the whole tile within half a
        pixel, they are copied, and the tile begins at pixel ``floor(centre - size / 2 + 1/2)`` along each axis.
        """
        out = np.empty((size_px, size_px, 3), dtype=np.uint8)
        self.fill(centre_yx, side_px, out, upsample=upsample)
        return out, self.outside(centre_yx, side_px)

    def fill(self, centre_yx: Sequence[float] | np.ndarray, side_px: float, out: np.ndarray, *, upsample: bool = False) -> None:
        """Fill ``out``, uint8 (size, size, 3), with the square of :meth:`tile`."""
        y, x, size = float(centre_yx[0]), float(centre_yx[1]), len(out)
        if not (math.isfinite(y) and math.isfinite(x)):
            raise ValueError(f"centre_yx=({y}, {x}) is not finite; wanted (y, x) in pixels of level 0.")
        if not (math.isfinite(side_px) and side_px > 0 and size >= 1):
            raise ValueError(f"side_px={side_px}, size_px={size}; wanted positive numbers.")
        which = self.level_for(side_px / size, upsample=upsample)
        down = self.levels[which].downsample
        side = side_px / down
        if abs(side - size) < SAME:
            out[...] = self.read(which, math.floor(y / down - size / 2 + 0.5), math.floor(x / down - size / 2 + 0.5), size, size)
        else:
            _resampled(self, which, y / down - side / 2, x / down - side / 2, side, out)

    def thumbnail(self, longest_px: int = 2048) -> tuple[np.ndarray, float]:
        """Return the whole slide reduced to at most ``longest_px`` rows and columns, uint8 (y, x, 3), and the pixels of level 0 along one of its own.

        It is read in strips, from the coarsest level that is fine enough. A slide that is smaller already comes as it is.
        """
        size = self.levels[0]
        step = max(max(size.height, size.width) / validate.whole(longest_px, "longest_px"), 1.0)
        out = np.empty((math.ceil(size.height / step - 1e-9), math.ceil(size.width / step - 1e-9), 3), dtype=np.uint8)
        which = self.level_for(step)
        own = step / self.levels[which].downsample
        width = math.ceil(len(out[0]) * own) + 1
        rows = max(1, int(_STRIP_BYTES / (3 * width * own)))
        for first in range(0, len(out), rows):
            part = out[first : first + rows]
            top = math.floor(first * own)
            window = self.read(which, top, 0, math.ceil((first + len(part)) * own) + 1 - top, width)
            area_mean(window, first * own - top, 0.0, own, part)
        return out, step

    def outside(self, centre_yx: Any, side_px: float) -> Any:
        """Return the share of squares of ``side_px`` around centres (..., 2), in pixels of level 0, that lies outside the image."""
        centre = np.asarray(centre_yx, dtype=np.float64)
        low, high = centre - side_px / 2, centre + side_px / 2
        size = np.array([self.levels[0].height, self.levels[0].width])
        inside = np.clip(np.minimum(high, size) - np.maximum(low, 0), 0, None) / side_px
        share = np.clip(1 - inside[..., 0] * inside[..., 1], 0, 1)
        return float(share) if share.ndim == 0 else share


def _resampled(slide: Slide, level: int, top: float, left: float, side: float, out: np.ndarray) -> None:
    """Fill ``out`` from a square of ``side`` pixels of a level."""
    n, step = len(out), side / len(out)
    reach = 0 if step * (1 + TOO_COARSE) >= 1 else 2  # pixels that interpolation looks at beyond the square
    y0, x0 = math.floor(top) - reach, math.floor(left) - reach
    height, width = math.ceil(top + side) + reach - y0, math.ceil(left + side) + reach - x0
    window = slide.read(level, y0, x0, max(height, 1), max(width, 1))
    if not reach:
        area_mean(window, top - y0, left - x0, step, out)
        return
    from PIL import Image

    box = (left - x0, top - y0, left - x0 + side, top - y0 + side)
    out[...] = np.asarray(Image.fromarray(np.ascontiguousarray(window)).resize((n, n), Image.Resampling.BILINEAR, box=box))


def open_slide(source: Any, *, mpp: float | None = None) -> Slide:
    """Return the slide of a file, an array or a pyramid of arrays; nothing is decoded before the first read.

    Parameters
    ----------
    source
        A path (TIFF, SVS and OME-TIFF tile by tile, jpg and png whole at the first read, what else OpenSlide reads where it is installed), an array
        uint8 (y, x, 3), a list of such arrays with the finest first, or anything that is sliced like an array (dask, zarr). A :class:`Slide`
        is returned as it is, with ``mpp`` where it is given.
    mpp
        µm per pixel of the finest level; None: what the file says, if anything.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    TypeError
        For pixels that are not uint8.
    ValueError
        For arrays that are not (y, x, 3), a file that is no image, is truncated or damaged, or an ``mpp`` out of bounds.
    ImportError
        For a file that only an optional package reads.

    Examples
    --------
    >>> import numpy as np
    >>> slide = open_slide(np.full((300, 200, 3), 200, dtype=np.uint8), mpp=0.5)
    >>> tile, outside = slide.tile((150, 0), side_px=100, size_px=50)
    >>> tile.shape, outside
    ((50, 50, 3), 0.5)
    """
    if isinstance(source, Slide):
        slide = source
    elif isinstance(source, str | os.PathLike):
        slide = Slide(_file(Path(source)))
    else:
        slide = Slide(array_source(source if isinstance(source, list | tuple) else [source]))
    return slide if mpp is None else slide.with_mpp(mpp)


def _file(path: Path) -> Source:
    """Return the source for a file: OpenSlide for its own formats, and where it is installed for what the others cannot read."""
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, not an image. Read a zarr store with `spatialdata.read_zarr`, and pass the object or its arrays."
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no image {path}. Check the path.")
    from stimg.image.slide_openslide import OpenSlideSource

    if path.suffix.lower() in _OPENSLIDE:
        return OpenSlideSource(path)
    with path.open("rb") as file:
        head = file.read(4)
    try:
        if head not in _TIFF:
            return PillowSource(path)
        from stimg.image.slide_tiff import TiffSource

        return TiffSource(path)
    except ValueError:
        if find_spec("openslide") is None:
            raise
        try:
            return OpenSlideSource(path)
        except (ValueError, ImportError):
            pass  # it cannot either: the first error says more
        raise
