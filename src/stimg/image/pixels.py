"""Reading the pixels of an image file that is larger than Pillow takes for safe."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = 1_000_000_000
"""Pixels of the largest image that is read whole where its size is not known beforehand: 3 GB."""
_PILLOW = threading.Lock()


@contextmanager
def open_image(path: Path, size: tuple[int, int] | None = None) -> Iterator[Any]:
    """Open an image of known size (width, height), or of at most ``LARGEST`` pixels; Pillow's own limit is restored afterwards.

    Pillow keeps that limit in one global; a lock keeps two threads of stimg from restoring each other's.
    """
    from PIL import Image

    with _PILLOW:
        before = Image.MAX_IMAGE_PIXELS
        try:
            if before is not None:
                Image.MAX_IMAGE_PIXELS = max(before, size[0] * size[1] if size else LARGEST)
            with Image.open(path) as image:
                if size is not None and image.size != size:
                    raise ValueError(f"{path} has {image.size} pixels (width, height), expected {size}. Copy the file again.")
                yield image
        finally:
            Image.MAX_IMAGE_PIXELS = before


def image_size(path: Path) -> tuple[int, int]:
    """Return (rows, columns) of an image file from its header; the errors are those of :func:`read_rgb`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with open_image(Path(path)) as image:
            return int(image.size[1]), int(image.size[0])
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as err:
        raise ValueError(f"{path} cannot be read as an image ({err}). Copy it again, or pass the pixels as an array.") from err


def read_rgb(path: Path) -> np.ndarray:
    """Return the whole image, uint8 (y, x, 3).

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        Where it is no image, is damaged, or is larger than ``LARGEST`` pixels.
    """
    from PIL import Image, UnidentifiedImageError

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no image {path}. Check the path.")
    try:
        with open_image(Path(path)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as err:
        raise ValueError(f"{path} cannot be read as an image ({err}). Copy it again, or pass the pixels as an array.") from err
