"""Colour statistics of nested windows of an H&E image: optical density of each channel around each spot, exact, in one pass."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from stimg._core import validate
from stimg.image.slide_source import check_pixels
from stimg.image.units import check_mpp

WINDOWS_UM = (50.0, 100.0, 200.0, 400.0)
"""Sides of the windows: from about a spot's own tissue to its surroundings."""
CHANNELS = ("red", "green", "blue")
STATISTICS = ("mean", "sd", "p10", "p90")
OPTICAL_DENSITY = -np.log10((np.arange(256) + 1) / 256)
"""Of each value of a pixel: 0 for white (255), 2.4 for black."""


class ColourStatistics(NamedTuple):
    """Statistics of the windows around each spot.

    ``values`` float32 (n_spots, windows × channels × statistics), ``names`` of its columns (``"400um_red_p10"``: the windows in the order
    given, in each the channels, in each the statistics), and ``padded`` float64 (n_spots,), the share of the largest window that lies
    outside the image.
    """

    values: np.ndarray
    names: list[str]
    padded: np.ndarray


@njit(cache=True, nogil=True)
def _count(image: np.ndarray, y0: int, y1: int, x0: int, x1: int, by: int, hist: np.ndarray) -> None:
    red, green, blue = hist[0], hist[1], hist[2]
    for y in range(y0, y1):
        for x in range(x0, x1):
            red[image[y, x, 0]] += by
            green[image[y, x, 1]] += by
            blue[image[y, x, 2]] += by


@njit(cache=True, nogil=True)
def _count_outside(image: np.ndarray, window: np.ndarray, other: np.ndarray, by: int, hist: np.ndarray) -> None:
    """Add ``by`` to the histogram for each pixel of ``window`` that is not in ``other``; both are (y0, y1, x0, x1)."""
    y0, y1, x0, x1 = window
    top, bottom = min(max(other[0], y0), y1), max(min(other[1], y1), y0)
    left, right = min(max(other[2], x0), x1), max(min(other[3], x1), x0)
    if top >= bottom or left >= right:
        _count(image, y0, y1, x0, x1, by, hist)
        return
    _count(image, y0, top, x0, x1, by, hist)
    _count(image, top, bottom, x0, left, by, hist)
    _count(image, top, bottom, right, x1, by, hist)
    _count(image, bottom, y1, x0, x1, by, hist)


@njit(cache=True, nogil=True)
def _percentile(hist: np.ndarray, density: np.ndarray, n: int, q: float) -> float:
    """Return the percentile of the densities, which fall as values rise, interpolated as by ``np.percentile(method="linear")``."""
    position = q * (n - 1)
    first = int(np.floor(position))
    v, seen = 255, hist[255]
    while seen <= first:
        v -= 1
        seen += hist[v]
    low = density[v]
    while seen <= min(first + 1, n - 1):
        v -= 1
        seen += hist[v]
    return low + (density[v] - low) * (position - first)


@njit(cache=True, nogil=True)
def _statistics(image: np.ndarray, windows: np.ndarray, order: np.ndarray, density: np.ndarray, out: np.ndarray) -> None:
    """Fill ``out`` (n, windows, channels, 4) from the windows (n, windows, 4) of each spot, visited in ``order``.

    A spot's histograms come from those of the spot before it, by the pixels that enter and leave each window, where these are fewer than
    the pixels of the largest window, which is otherwise counted once, ring by ring. Both count exactly, so the order changes no value.
    """
    n, k = windows.shape[:2]
    hist = np.zeros((k, 3, 256), np.int32)
    for turn in range(n):
        here = windows[order[turn]]
        before = windows[order[max(turn - 1, 0)]]
        moved = 0
        for w in range(k):
            height, width = here[w, 1] - here[w, 0], here[w, 3] - here[w, 2]
            rows = max(0, min(here[w, 1], before[w, 1]) - max(here[w, 0], before[w, 0]))
            columns = max(0, min(here[w, 3], before[w, 3]) - max(here[w, 2], before[w, 2]))
            moved += height * width + (before[w, 1] - before[w, 0]) * (before[w, 3] - before[w, 2]) - 2 * rows * columns
        if turn > 0 and moved < (here[k - 1, 1] - here[k - 1, 0]) * (here[k - 1, 3] - here[k - 1, 2]):
            for w in range(k):
                _count_outside(image, here[w], before[w], 1, hist[w])
                _count_outside(image, before[w], here[w], -1, hist[w])
        else:
            hist[0] = 0
            _count(image, here[0, 0], here[0, 1], here[0, 2], here[0, 3], 1, hist[0])
            for w in range(1, k):
                hist[w] = hist[w - 1]
                _count_outside(image, here[w], here[w - 1], 1, hist[w])
        for w in range(k):
            pixels = (here[w, 1] - here[w, 0]) * (here[w, 3] - here[w, 2])
            for c in range(3):
                total, squares = 0.0, 0.0
                for v in range(256):
                    total += hist[w, c, v] * density[v]
                mean = total / pixels
                for v in range(256):
                    squares += hist[w, c, v] * (density[v] - mean) ** 2
                row = out[order[turn], w, c]
                row[0] = mean
                row[1] = np.sqrt(squares / pixels)
                row[2] = _percentile(hist[w, c], density, pixels, 0.1)
                row[3] = _percentile(hist[w, c], density, pixels, 0.9)


def _visiting_order(centres: np.ndarray) -> np.ndarray:
    """Return the spots strip by strip, up one and down the next: each lies near the one before, and windows move along whole rows of pixels."""
    extent = np.ptp(centres, axis=0)
    strip = np.sqrt(max(extent[0] * extent[1], 1.0) / len(centres))
    number = np.floor((centres[:, 1] - centres[:, 1].min()) / strip)
    return np.lexsort((np.where(number % 2 == 0, centres[:, 0], -centres[:, 0]), number))


def colour_statistics(
    image: np.ndarray, centres_px: np.ndarray, *, mpp: float, windows_um: Sequence[float] = WINDOWS_UM
) -> ColourStatistics:
    r"""Return mean, standard deviation, 10th and 90th percentile of each channel's optical density in square windows around each spot.

    .. math:: \mathrm{OD} = -\log_{10} \frac{v + 1}{256}

    Parameters
    ----------
    image
        uint8 (y, x, 3), red, green, blue; a memory-mapped array is read where the windows lie and nowhere else.
    centres_px
        (n_spots, 2), (y, x) in pixels of ``image``, where pixel ``i`` covers ``i`` to ``i + 1``.
    mpp
        µm per pixel of ``image``.
    windows_um
        Sides of the windows in µm, rising.

    Raises
    ------
    TypeError
        For an image that is not uint8.
    ValueError
        For an image that is not (y, x, 3), centres that are not finite (n, 2), sides that do not rise or are below half a pixel, an ``mpp``
        out of bounds, or spots without any pixel in their smallest window.

    Notes
    -----
    A window of ``w`` µm has a side of ``s = round(w / mpp)`` pixels and begins at pixel ``floor(centre - s / 2 + 1/2)`` along each axis.
    Pixels outside the image do not count; ``padded`` says how many of the largest window's these are. The standard deviation divides by
    the number of pixels, and percentiles are those of ``np.percentile(method="linear")``.

    White is 255 in every image: another background adds a constant to the mean and the percentiles, which centring within a section
    removes. Time follows the pixels that enter and leave the windows from one spot to the next, and memory the number of spots.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.full((60, 60, 3), 255, dtype=np.uint8)
    >>> image[:, :30, 1] = 24
    >>> colours = colour_statistics(image, np.array([[30.0, 30.0]]), mpp=1.0, windows_um=(20, 40))
    >>> colours.names[4:6], [round(float(v), 2) for v in colours.values[0, 4:6]]
    (['20um_green_mean', '20um_green_sd'], [0.51, 0.51])
    """
    image = np.asarray(image)
    check_pixels(image, "The image")
    centres = np.asarray(centres_px, dtype=np.float64)
    if centres.ndim != 2 or centres.shape[1] != 2:
        raise ValueError(f"centres_px has shape {centres.shape}; wanted (n_spots, 2), (y, x) in pixels.")
    validate.finite(centres, "centres_px", todo="Remove these spots.")
    mpp = check_mpp(mpp)
    sides_um = np.array([validate.number(w, "windows_um", "µm") for w in windows_um])
    sides = np.rint(sides_um / mpp)
    if len(sides) == 0 or not np.isfinite(sides).all() or sides[0] < 1 or (np.diff(sides_um) <= 0).any():
        raise ValueError(
            f"windows_um={tuple(windows_um)} at {mpp:g} µm per pixel; wanted rising numbers of µm, the first at least half a pixel."
        )
    names = [f"{w:g}um_{channel}_{statistic}" for w in sides_um for channel in CHANNELS for statistic in STATISTICS]
    values = np.empty((len(centres), len(sides), len(CHANNELS), len(STATISTICS)), dtype=np.float32)
    if len(centres) == 0:
        return ColourStatistics(values.reshape(0, len(names)), names, np.empty(0))
    windows = np.empty((len(centres), len(sides), 4), dtype=np.int64)
    for axis, length in enumerate(image.shape[:2]):
        first = np.floor(centres[:, axis, None] - sides / 2 + 0.5)
        windows[:, :, 2 * axis] = np.clip(first, 0, length)
        windows[:, :, 2 * axis + 1] = np.clip(first + sides, 0, length)
    area = (windows[:, :, 1] - windows[:, :, 0]) * (windows[:, :, 3] - windows[:, :, 2])
    empty = area[:, 0] == 0
    if empty.any():
        raise ValueError(
            f"{int(empty.sum())} of {len(centres)} spots, the first is row {int(np.argmax(empty))}, have no pixel of the image of {image.shape[1]} × "
            f"{image.shape[0]} px (x, y) in their window of {sides_um[0]:g} µm. Check that centres_px is (y, x) in pixels of this image, or remove them."
        )
    _statistics(image, windows, _visiting_order(centres), OPTICAL_DENSITY, values)
    return ColourStatistics(values.reshape(len(centres), len(names)), names, 1 - area[:, -1] / sides[-1] ** 2)
