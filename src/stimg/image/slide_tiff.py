"""Tiled and striped TIFF files, SVS and OME-TIFF among them: only the segments below a window are decoded."""

import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stimg.image.slide_cache import PieceCache
from stimg.image.slide_source import file_fingerprint, levels_of
from stimg.image.slide_tiff_layout import Plane, tiff_layout

_FROM_YCBCR = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]], dtype=np.float32)


class TiffSource:
    """A TIFF file, read segment by segment; each process opens it for itself.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ImportError
        Where tifffile, or the codec of its compression, is not installed.
    ValueError
        For a file that is truncated or damaged, or holds no uint8 image of three channels.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        layout = tiff_layout(path)
        self.levels, self.mpp_sources = levels_of(layout.sizes, self.name), layout.mpp_sources
        self._start(layout.planes)

    def _start(self, planes: list[list[Plane]]) -> None:
        self._planes = planes
        self._file: Any = None
        self._pid = 0
        self._lock = threading.RLock()
        self._cache = PieceCache()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "name": self.name, "levels": self.levels, "mpp_sources": self.mpp_sources}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start([])

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return pixels, uint8 (height, width, 3)."""
        if not self._planes:
            self._planes = tiff_layout(self.path).planes
        planes = self._planes[level]
        if len(planes) == 1 and planes[0].mapped is not None:
            return np.asarray(planes[0].mapped[top : top + height, left : left + width, :3])
        out = np.empty((height, width, 3), dtype=np.uint8)
        for p, plane in enumerate(planes):
            into = out if len(planes) == 1 else out[:, :, p : p + 1]
            if plane.mapped is not None:
                into[...] = plane.mapped[top : top + height, left : left + width]
                continue
            rows, columns = plane.segment
            for r in range(top // rows, (top + height - 1) // rows + 1):
                y0, y1 = max(top, r * rows), min(top + height, (r + 1) * rows)
                for c in range(left // columns, (left + width - 1) // columns + 1):
                    x0, x1 = max(left, c * columns), min(left + width, (c + 1) * columns)
                    index = r * plane.across + c
                    piece = self._cache.get((level, p, index), partial(self._decoded, plane, index))
                    into[y0 - top : y1 - top, x0 - left : x1 - left] = piece[
                        y0 - r * rows : y1 - r * rows, x0 - c * columns : x1 - c * columns
                    ]
        return out

    def _decoded(self, plane: Plane, index: int) -> np.ndarray:
        if not plane.counts[index]:  # a sparse file leaves out what is empty
            return np.full((*plane.segment, plane.channels), 255, dtype=np.uint8)
        try:
            piece = plane.decode(self._bytes(plane.offsets[index], plane.counts[index]), plane.first + index, **plane.options)[0][0]
        except Exception as err:  # codecs raise errors of their own, without a common base
            if "imagecodecs" in str(err) and "require" in str(err):
                raise ImportError(f"{self.path} needs a codec that is not installed ({err}). Run `pip install 'stimg[wsi]'`.") from err
            raise ValueError(f"{self.path} is damaged: piece {index} cannot be decoded ({err}). Copy it again.") from err
        return rgb_of_ycbcr(piece) if plane.ycbcr else np.asarray(piece)[..., : plane.channels]

    def _bytes(self, offset: int, count: int) -> bytes:
        with self._lock:
            if self._file is None or self._pid != os.getpid():  # a forked worker shares its parent's position in the file
                self._file, self._pid = self.path.open("rb"), os.getpid()
            self._file.seek(offset)
            return self._file.read(count)

    def fingerprint(self) -> str:
        """Return the hash of the file's size and ends."""
        return file_fingerprint(self.path)

    def load(self) -> None:
        """Do nothing: windows are decoded when they are read."""

    def close(self) -> None:
        """Close the file and forget decoded segments."""
        with self._lock:
            if self._file is not None and self._pid == os.getpid():
                self._file.close()
            self._file = None
        self._cache.clear()


def rgb_of_ycbcr(ycbcr: np.ndarray) -> np.ndarray:
    """Return full-range YCbCr (ITU-R BT.601, as JFIF has it) as red, green and blue, uint8."""
    values = ycbcr[..., :3].astype(np.float32) - np.array([0, 128, 128], dtype=np.float32)
    return np.clip(np.rint(values @ _FROM_YCBCR.T), 0, 255).astype(np.uint8)
