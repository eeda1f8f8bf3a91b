"""Pictures that an imputation network learns from beside genes: photographs that come with scikit-image, or a folder. Loads no torch."""

from functools import lru_cache
from pathlib import Path

import numpy as np

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "coins", "moon", "rocket", "grass", "gravel", "brick")
"""Names of functions of ``skimage.data`` whose files come with scikit-image."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
SMALLEST = 16
FINEST = 256
"""Longest side of the finest version of a picture: a raster of spots has few points, so the structures of a picture have to be few too."""


@lru_cache(maxsize=4)
def pictures(source: str) -> tuple[np.ndarray, ...]:
    """Return grey pictures in [0, 1], float32 (y, x) each, at several scales.

    Parameters
    ----------
    source
        ``"skimage"``, or the path of a folder.

    Raises
    ------
    FileNotFoundError
        Where there is no such folder, or it holds no picture.
    ValueError
        Where a file cannot be read, or is smaller than 16 pixels a side.
    """
    from skimage import data, transform

    if source == "skimage":
        found = {name: np.asarray(getattr(data, name)()) for name in PHOTOGRAPHS}
    else:
        folder = Path(source)
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
        if not paths:
            raise FileNotFoundError(
                f"{source!r} is not a folder with pictures ({', '.join(SUFFIXES)}). Pass another folder, natural='skimage', or natural=None."
            )
        found = {str(path): _read(path) for path in paths}
    out = []
    for name, pixels in found.items():
        grey = _grey(pixels)
        if min(grey.shape) < SMALLEST:
            raise ValueError(
                f"{name} has {grey.shape[0]} x {grey.shape[1]} pixels; wanted at least {SMALLEST} a side. Take it out of the folder."
            )
        for side in (FINEST, FINEST // 2, FINEST // 4):
            factor = side / max(grey.shape)
            if factor < 1 and factor * min(grey.shape) >= SMALLEST:
                small = transform.resize(grey, tuple(round(n * factor) for n in grey.shape), anti_aliasing=True)
                out.append(np.asarray(small, dtype=np.float32))
        if max(grey.shape) <= FINEST:
            out.append(grey)
    return tuple(out)


def _read(path: Path) -> np.ndarray:
    from skimage import io

    try:
        return np.asarray(io.imread(path))
    except Exception as err:
        raise ValueError(f"{path} cannot be read as a picture ({err}). Take it out of the folder.") from err


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Return a picture as grey in [0, 1], float32 (y, x), by the weights of BT.709."""
    top = 255.0 if pixels.dtype == np.uint8 else max(float(pixels.max()), 1e-6)
    scaled = np.asarray(pixels, dtype=np.float32) / top
    if scaled.ndim == 2:
        return scaled
    if scaled.ndim == 3 and scaled.shape[2] in (3, 4):
        return np.asarray(scaled[..., :3] @ np.array([0.2125, 0.7154, 0.0721], dtype=np.float32))
    raise ValueError(f"a picture has shape {pixels.shape}; wanted grey (y, x), or colour (y, x, 3).")


def sampled(source: str, plane: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return values of ``n`` random windows of pictures at points ``plane`` (m, 2) in pitches, float32 (n, m), each with mean 0 and variance 1.

    A pixel is one pitch; the window is turned at random. A picture smaller than the slide goes on mirrored.
    """
    from scipy.ndimage import map_coordinates

    every = pictures(source)
    out = np.empty((n, len(plane)), dtype=np.float32)
    centred = plane - plane.mean(axis=0)
    for i in range(n):
        picture = every[int(rng.integers(len(every)))]
        angle = rng.uniform(0, 2 * np.pi)
        turned = centred @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        at = turned + rng.uniform(0, 1, 2) * picture.shape
        values = map_coordinates(picture, at.T, order=1, mode="mirror")
        spread = values.std()
        out[i] = (values - values.mean()) / (spread if spread > 1e-6 else 1.0)
    return out
