"""Slides in the formats of scanner makers, through OpenSlide where it is installed."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from stimg.image.slide_mpp import believed
from stimg.image.slide_source import file_fingerprint, levels_of


def _openslide(path: Path) -> Any:
    try:
        import openslide
    except ImportError as err:
        raise ImportError(
            f"OpenSlide is needed (reading {path.name}) but could not be imported: {err}. Run `pip install openslide-python openslide-bin`, or convert "
            "the slide to a tiled TIFF."
        ) from err
    return openslide


class OpenSlideSource:
    """A slide that OpenSlide reads, such as mrxs or vms; each process opens it for itself.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ImportError
        Where OpenSlide is not installed.
    ValueError
        For a file that OpenSlide cannot read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._slide: Any = None
        self._pid = 0
        slide = self._opened()
        self.levels = levels_of([(int(height), int(width)) for width, height in slide.level_dimensions], self.name)
        found = {k: slide.properties.get(f"openslide.mpp-{k}") for k in "yx"}
        stated = {"openslide.mpp-x": (float(found["y"]), float(found["x"]))} if all(found.values()) else {}
        self.mpp_sources = believed(stated, self.name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_slide": None, "_pid": 0}

    def _opened(self) -> Any:
        if self._slide is None or self._pid != os.getpid():
            openslide = _openslide(self.path)
            try:
                self._slide, self._pid = openslide.OpenSlide(str(self.path)), os.getpid()
            except (openslide.OpenSlideError, OSError) as err:
                raise ValueError(
                    f"{self.path} cannot be read as a slide ({err}). Copy it again, with all the files that belong to it."
                ) from err
        return self._slide

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return pixels, uint8 (height, width, 3), white where the scanner saw nothing."""
        slide = self._opened()
        down = slide.level_downsamples[level]  # OpenSlide's own: 2.0005 for a level whose last row was dropped
        try:
            rgba = np.asarray(slide.read_region((round(left * down), round(top * down)), level, (width, height)), dtype=np.uint16)
        except Exception as err:  # OpenSlideError, whose class is only known once the package is there
            raise ValueError(f"{self.path} is damaged: a window of level {level} cannot be decoded ({err}). Copy it again.") from err
        alpha = rgba[..., 3:]
        return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)

    def fingerprint(self) -> str:
        """Return the hash of the file's size and ends."""
        return file_fingerprint(self.path)

    def load(self) -> None:
        """Do nothing: windows are decoded when they are read."""

    def close(self) -> None:
        """Close the slide; the next read opens it again."""
        if self._slide is not None and self._pid == os.getpid():
            self._slide.close()
        self._slide = None
