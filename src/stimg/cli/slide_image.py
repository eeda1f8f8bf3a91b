"""A slide file as a lazy multi-scale image of SpatialData."""

import math
from typing import Any

import numpy as np

from stimg.image.area import area_mean
from stimg.image.slide import Slide

CHUNK = 1024
"""Rows and columns of a chunk."""
SMALLEST = 1024
"""The coarsest scale has at most twice as many rows and columns."""
STRIP_BYTES = 16 << 20
"""Pixels that are read at a time where a coarse scale is made of fine pixels."""


class LazyScale:
    """A slide with pixels of ``step`` pixels of its finest level, sliced like an array (channels, y, x), uint8, and read when it is asked for."""

    dtype, ndim = np.dtype(np.uint8), 3

    def __init__(self, slide: Slide, step: float) -> None:
        self.slide, self.step = slide, step
        self.level = slide.level_for(step)
        full = slide.levels[0]
        self.shape = (3, max(math.floor(full.height / step + 1e-9), 1), max(math.floor(full.width / step + 1e-9), 1))

    def __getitem__(self, where: tuple[slice, slice, slice]) -> np.ndarray:
        channels, ys, xs = (slice(*each.indices(n)) for each, n in zip(where, self.shape, strict=True))
        height, width = ys.stop - ys.start, xs.stop - xs.start
        own = self.step / self.slide.levels[self.level].downsample
        if abs(own - 1) < 1e-6:
            pixels = self.slide.read(self.level, ys.start, xs.start, height, width)
        else:
            pixels = np.empty((height, width, 3), dtype=np.uint8)
            left, across = math.floor(xs.start * own), math.ceil(width * own) + 2
            rows = max(int(STRIP_BYTES / (3 * across * own)), 1)
            for first in range(0, height, rows):
                part = pixels[first : first + rows]
                start = (ys.start + first) * own
                top = math.floor(start)
                window = self.slide.read(self.level, top, left, math.ceil(len(part) * own) + 2, across)
                area_mean(window, start - top, xs.start * own - left, own, part)
        return np.ascontiguousarray(np.moveaxis(pixels[..., channels], -1, 0))


def image_element(slide: Slide, mpp: float | None) -> Any:
    """Return the slide as an image element in the frame of its finest level, of several scales where it is large; nothing is read yet.

    Each scale is half as fine as the one before and comes from the coarsest level of the slide that is fine enough, never from another scale, so
    that no scale is kept in memory to make the next.

    Parameters
    ----------
    slide
        The slide.
    mpp
        µm per pixel that are fine enough: the coarsest level of the slide that is, is the finest scale. None: the finest level.
    """
    import dask.array as da
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale
    from xarray import DataTree

    finest = 1.0 if mpp is None else slide.levels[slide.level_for(max(mpp / slide.require_mpp(), 1.0))].downsample
    scales: list[Any] = []
    factor = 1
    while True:
        lazy = LazyScale(slide, finest * factor)
        pixels = da.from_array(lazy, chunks=(3, CHUNK, CHUNK), name=False, asarray=False)
        whole = {"global": Scale([lazy.step, lazy.step], axes=("y", "x"))}
        image = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=whole)
        y, x = ((np.arange(n) + 0.5) * factor for n in lazy.shape[1:])
        scales.append(image.assign_coords(y=y, x=x))
        if max(lazy.shape[1:]) <= 2 * SMALLEST:
            break
        factor *= 2
    if len(scales) == 1:
        return scales[0]
    tree = DataTree.from_dict({f"scale{i}": each.to_dataset(name="image") for i, each in enumerate(scales)})
    Image2DModel().validate(tree)
    return tree
