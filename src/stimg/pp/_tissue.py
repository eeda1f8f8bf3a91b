"""Tissue on a slide, by squidpy. Its functions are experimental: this is the one place that calls them."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core.optional import need
from stimg.data.slide_elements import image_affine, levels

if TYPE_CHECKING:
    from stimg.image.slide import Slide

LONGEST_PX = 1700
"""Most rows or columns of the reduced slide on which tissue is looked for; squidpy itself reduces what has more than 5 million pixels."""
FINEST_UM = 4.0
"""Finest pixels of it: what is smaller than a cell is no tissue of its own."""
MARGIN = 0.125
"""White added on each side, as a part of it, so that a slide full of tissue has a background too."""
BLANK = 0.92
"""Grey, 1 for white, above which what was found is the background of an empty slide."""


def detected(slide: "Slide", **options: Any) -> tuple[np.ndarray, float]:
    """Return where ``squidpy.experimental.im.detect_tissue`` finds tissue, bool (y, x), and the pixels of level 0 along a pixel of it.

    Raises
    ------
    ImportError
        Where this squidpy has no ``detect_tissue``.
    """
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    im = need("squidpy.experimental.im", purpose="finding tissue")
    if not hasattr(im, "detect_tissue"):
        raise ImportError(
            "squidpy.experimental.im has no detect_tissue in this version. Run `pip install 'squidpy>=1.8.2'`, or pass `tissue_key=`."
        )
    longest = max(slide.levels[0].height, slide.levels[0].width)
    coarse = LONGEST_PX if slide.mpp is None else min(LONGEST_PX, max(int(longest * slide.mpp / FINEST_UM), 64))
    pixels, step = slide.thumbnail(coarse)
    margin = int(np.ceil(MARGIN * max(pixels.shape[:2])))
    wider = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)
    element = Image2DModel.parse(np.ascontiguousarray(np.moveaxis(wider, -1, 0)), dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    told = logging.getLogger("spatialdata._logging")  # squidpy tells each of its steps there
    level = told.level
    told.setLevel(logging.WARNING)
    try:
        # by default squidpy takes the corners for background: where tissue reaches one, it gives the background
        options = {"corners_are_background": False, **options}
        found = im.detect_tissue(SpatialData(images={"slide": element}), "slide", inplace=False, **options)
    finally:
        told.setLevel(level)
    mask = np.asarray(found)[margin:-margin, margin:-margin] > 0
    if mask.any() and pixels[mask].mean() > 255 * BLANK:
        mask[:] = False
    return mask, step


def labelled(
    sdata: Any, tissue_key: str, image_affine_xy: np.ndarray, system: str, *, finest: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return a labels element as a mask, bool (y, x), the (y, x) of its corner in pixels of the image, and the image's pixels along one of its own.

    Parameters
    ----------
    sdata, tissue_key
        Where the labels are; everything above 0 is tissue.
    image_affine_xy
        3 x 3, from the image's pixels to ``system``.
    system
        Coordinate system that both have.
    finest
        Pixels of the image below which a level of the labels is finer than needed.

    Raises
    ------
    KeyError
        For labels or a transformation that is not there.
    ValueError
        For labels that are turned against the image, or whose pixels are no squares in it.
    """
    if tissue_key not in sdata.labels:
        raise KeyError(
            f"sdata.labels[{tissue_key!r}] is missing (found {sorted(sdata.labels)}). Pass `tissue_key=`, or leave it out to find tissue."
        )
    element = sdata.labels[tissue_key]
    arrays = levels(element)
    to_image = np.linalg.inv(image_affine_xy) @ image_affine(element, system, tissue_key, kind="labels")
    scale = to_image[0, 0]
    if scale <= 0 or not np.allclose(to_image[:2, :2], scale * np.eye(2), atol=1e-3 * abs(scale)):
        raise ValueError(
            f"sdata.labels[{tissue_key!r}] is turned, mirrored or stretched against the image; wanted a shift and one scale. Transform the labels to the image's "
            "pixels (`spatialdata.transform`), or leave out `tissue_key=`."
        )
    full = arrays[0].sizes["y"]
    each = [scale * full / array.sizes["y"] for array in arrays]
    chosen = max((i for i, side in enumerate(each) if side <= finest), default=0)
    side = scale * round(full / arrays[chosen].sizes["y"]) if chosen else scale
    return np.asarray(arrays[chosen].data) > 0, to_image[:2, 2][::-1].copy(), float(side)
