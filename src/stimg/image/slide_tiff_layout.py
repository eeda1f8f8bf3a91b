"""Where the segments of a TIFF file's pyramid lie, and how they are decoded."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stimg._core.optional import need
from stimg.image.slide_mpp import tiff_mpp

WHOLE_BYTES = 1 << 30
"""Largest segment that is decoded: a file with one compressed strip is no file to read by windows."""
_JPEG = (6, 7, 34892, 33007)
_YCBCR_JPEG2000 = 33003
_AXES = {"YXS": (3, 4), "SYX": (3, 4), "CYX": (3,)}


@dataclass(frozen=True)
class Plane:
    """The segments of all channels or, in planar files, of one channel of a level.

    ``segment`` is (rows, columns) of a segment, ``across`` the number of segments in a row of them, ``first`` the number of the plane's first
    one as the decoder counts. ``mapped`` is the whole plane (y, x, channels) where the file holds plain pixels.
    """

    decode: Callable[..., Any]
    options: Mapping[str, Any]
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    first: int
    segment: tuple[int, int]
    across: int
    channels: int
    ycbcr: bool
    mapped: np.ndarray | None


@dataclass(frozen=True)
class TiffLayout:
    """Planes and (y, x) sizes of each level, finest first, and µm per pixel of the finest by what states it."""

    planes: list[list[Plane]]
    sizes: list[tuple[int, int]]
    mpp_sources: dict[str, float]


class _Refused(Exception):
    """A file that is visibly cut off, or sound and of no use here."""


def tiff_layout(path: Path) -> TiffLayout:
    """Return the layout of the largest image of a TIFF file; no pixel is decoded.

    Raises
    ------
    ImportError
        Where tifffile is not installed.
    ValueError
        For a file that is truncated or damaged, or holds no uint8 image of three channels.
    """
    tifffile = need("tifffile", extra="wsi", purpose="reading TIFF and SVS")
    try:
        with tifffile.TiffFile(path) as file:
            series = _largest(file, path)
            return TiffLayout([_planes(level, path) for level in series.levels], [_size(s) for s in series.levels], tiff_mpp(file, series))
    except _Refused as err:
        raise ValueError(str(err)) from None
    except (tifffile.TiffFileError, ValueError, struct.error, OSError, IndexError, KeyError, TypeError, NotImplementedError) as err:
        raise ValueError(f"{path} cannot be read as a TIFF file ({err}). Copy it again, or convert it to a tiled TIFF.") from err


def _largest(file: Any, path: Path) -> Any:
    """Return the series with the most pixels: thumbnails, labels and macros are smaller."""
    series = [each for each in file.series if {"Y", "X"} <= set(each.axes) and 0 not in each.shape]
    if not series:
        raise _Refused(f"{path} holds no image, or is truncated. Copy it again.")
    return max(series, key=lambda each: _size(each)[0] * _size(each)[1])


def _size(level: Any) -> tuple[int, int]:
    return int(level.shape[level.axes.index("Y")]), int(level.shape[level.axes.index("X")])


def _planes(level: Any, path: Path) -> list[Plane]:
    if level.axes not in _AXES or level.dtype != np.uint8 or level.shape[level.axes.index(level.axes.strip("YX"))] not in _AXES[level.axes]:
        raise _Refused(
            f"{path} holds an image with axes {level.axes!r}, shape {level.shape} and dtype {level.dtype}; wanted uint8 with red, green and blue. "
            "Convert it, for example with libvips or Bio-Formats, or pass the pixels as an array."
        )
    return [plane for page in level.pages for plane in _planes_of_page(page, level.keyframe, path)][:3]


def _planes_of_page(page: Any, keyframe: Any, path: Path) -> list[Plane]:
    """Return one plane of all channels, or where the file keeps them apart one plane for each."""
    height, width = int(keyframe.imagelength), int(keyframe.imagewidth)
    offsets, counts = tuple(page.dataoffsets), tuple(page.databytecounts)
    last, end = max((at + n for at, n in zip(offsets, counts, strict=True)), default=0), path.stat().st_size
    if last > end:
        raise _Refused(f"{path} is truncated: it has {end} bytes, and its directory names byte {last}. Copy it again.")
    rows, columns = (keyframe.tilelength, keyframe.tilewidth) if keyframe.is_tiled else (min(keyframe.rowsperstrip, height), width)
    apart = keyframe.planarconfig == 2
    separate, channels = (keyframe.samplesperpixel, 1) if apart else (1, keyframe.samplesperpixel)
    plain = bool(page.is_memmappable) and not keyframe.is_tiled
    if not plain and rows * columns * channels > WHOLE_BYTES:
        raise _Refused(
            f"{path} keeps {rows} x {columns} pixels in one compressed piece, which cannot be read by windows. Write it as a tiled TIFF, for example "
            "with libvips (`tiffsave` with `tile`)."
        )
    mapped = np.memmap(path, np.uint8, "r", offset=offsets[0], shape=(separate, height, width, channels)) if plain else None
    across, n = -(-width // columns), -(-width // columns) * -(-height // rows)
    options = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader} if keyframe.compression in _JPEG else {}
    return [
        Plane(
            decode=keyframe.decode,
            options=options,
            offsets=offsets[i * n : (i + 1) * n],
            counts=counts[i * n : (i + 1) * n],
            first=i * n,
            segment=(int(rows), int(columns)),
            across=across,
            channels=min(channels, 3),
            ycbcr=keyframe.compression == _YCBCR_JPEG2000,
            mapped=None if mapped is None else mapped[i],
        )
        for i in range(separate)
    ]
