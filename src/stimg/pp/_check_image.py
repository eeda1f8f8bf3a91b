"""The image of one library, reduced to what the checks of a slide need, and where its observations lie on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stimg.data.slides import as_bytes
from stimg.data.tables import is_spatialdata
from stimg.image.pixels import open_image
from stimg.image.slide import Slide, open_slide
from stimg.pp import _elements
from stimg.pp._check_view import View

STEP_PX = 8.0
"""Pixels between neighbouring observations that are enough."""
LONGEST = (400, 1000)
"""Pixels of the longer side that are at least and at most kept."""
_NONE = "the library has no image; pass `image=`"


@dataclass(frozen=True)
class Picture:
    """A reduced image, and where positions lie on it.

    Parameters
    ----------
    pixels
        uint8 (y, x, 3).
    affine
        From the library's (y, x) to pixels of the picture, (2, 3).
    name
        What it is, in words.
    size
        (height, width) of the whole image in full-resolution pixels.
    """

    pixels: np.ndarray
    affine: np.ndarray
    name: str
    size: tuple[float, float]

    def place(self, yx: np.ndarray) -> np.ndarray:
        """Return positions in pixels of the picture, float64 (n, 2)."""
        return np.asarray(yx, dtype=np.float64) @ self.affine[:, :2].T + self.affine[:, 2]

    @property
    def scale(self) -> float:
        """Pixels of the picture along a full-resolution pixel."""
        return float(np.sqrt(abs(np.linalg.det(self.affine[:, :2]))))


def picture(data: Any, view: View, *, image: Any, image_key: Any, pitch_px: float | None) -> Picture | str:
    """Return the picture of a library, or in words why there is none.

    Parameters
    ----------
    data
        AnnData or SpatialData.
    view
        The library.
    image
        Full-resolution image or path, or these by library; None: the one the object has.
    image_key
        Which of the object's images, or these by library.
    pitch_px
        Pitch of the observations in full-resolution pixels.
    """
    key = image_key.get(view.name) if isinstance(image_key, Mapping) else image_key
    if isinstance(image, Mapping):
        if view.name not in image:
            return "no image was passed for this library"
        image = image[view.name]
    if image is not None:
        return _from_slide(open_slide(image), 1.0, pitch_px)
    if is_spatialdata(data):
        return _from_element(data, view, key, pitch_px)
    images, factors = view.entry.get("images", {}), view.entry.get("scalefactors", {})
    for name in (key,) if key is not None else ("hires", "lowres"):
        if name in images and f"tissue_{name}_scalef" in factors:
            pixels = np.asarray(images[name])
            if pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
                return f"the {name} image has shape {pixels.shape} and not (y, x, 3)"
            what = f"adata.uns['spatial'][{view.name!r}]['images'][{name!r}]"
            return _from_slide(open_slide(as_bytes(pixels, what)), float(factors[f"tissue_{name}_scalef"]), pitch_px, name=f"{name} image")
    if key is not None:
        raise KeyError(
            f"adata.uns['spatial'][{view.name!r}] has no image {key!r} with its scale factor 'tissue_{key}_scalef' (found {sorted(images)}). "
            "Pass another `image_key=`, or `image=`."
        )
    about = view.entry.get("metadata", {})
    path = Path(str(about.get("source_image_path", ""))) if isinstance(about, Mapping) else Path()
    if path.is_file():
        return _from_slide(open_slide(path), float(about.get("source_image_scale", 1.0)), pitch_px)
    return _NONE


def _longest(size: tuple[int, int], step_px: float | None) -> int:
    wanted = max(size) * STEP_PX / step_px if step_px else LONGEST[1]
    return int(min(max(size), np.clip(wanted, *LONGEST)))


def _from_slide(slide: Slide, scale: float, pitch_px: float | None, *, name: str | None = None) -> Picture:
    height, width = slide.levels[0].height, slide.levels[0].width
    longest = _longest((height, width), pitch_px * scale if pitch_px else None)
    path = Path(slide.name)
    drafted = _drafted(path, longest) if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file() else None
    if drafted is None:
        level = slide.level_for(max(height, width) / longest)
        here = slide.levels[level]
        drafted = slide.read(level, 0, 0, here.height, here.width)
    pixels, factors = reduce(drafted, longest, (height, width))
    affine = np.column_stack([np.diag([factors[0] * scale, factors[1] * scale]), np.zeros(2)])
    return Picture(pixels, affine, name or slide.name, (height / scale, width / scale))


def _drafted(path: Path, longest: int) -> np.ndarray:
    """Return a jpg decoded at 1/2, 1/4 or 1/8 of its size, whichever is still large enough."""
    with open_image(path) as image:
        width, height = image.size
        shrink = longest / max(width, height)
        image.draft("RGB", (max(1, round(width * shrink)), max(1, round(height * shrink))))
        return np.asarray(image.convert("RGB"))


def reduce(pixels: np.ndarray, longest: int, size: tuple[int, int]) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the image with ``longest`` pixels on its longer side, each the mean over what it covers, and its pixels per pixel of ``size``."""
    from PIL import Image

    shrink = min(1.0, longest / max(pixels.shape[:2]))
    height, width = (max(1, round(n * shrink)) for n in pixels.shape[:2])
    if (height, width) != pixels.shape[:2]:
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BOX))
    return np.ascontiguousarray(pixels), (height / size[0], width / size[1])


def _from_element(sdata: Any, view: View, key: str | None, pitch_px: float | None) -> Picture | str:
    if not len(sdata.images):
        return _NONE
    name = _element_name(sdata, view, key)
    if name is None:
        return f"no image has a transformation to {view.system!r}; pass `image_key=` or `image=`"
    element = sdata.images[name]
    levels = [element] if not hasattr(element, "children") else [next(iter(child.values())) for child in element.children.values()]
    whole = _yx(levels[0], view, name)
    sizes = [dict(zip(level.dims, level.shape, strict=True)) for level in levels]
    if sizes[0].get("c") not in (3, 4):
        return f"sdata.images[{name!r}] has {sizes[0].get('c')} channels and not red, green, blue"
    longest = _longest((sizes[0]["y"], sizes[0]["x"]), pitch_px / _size(whole) if pitch_px else None)
    fits = [i for i, size in enumerate(sizes) if max(size["y"], size["x"]) >= longest]
    level = levels[fits[-1]]
    pixels = as_bytes(np.asarray(level.transpose("y", "x", "c").data[..., :3]), f"sdata.images[{name!r}]")
    reduced, factors = reduce(pixels, longest, pixels.shape[:2])
    back = np.linalg.inv(np.vstack([_yx(level, view, name), [0, 0, 1]]))[:2]
    size = (sizes[0]["y"] * _size(whole), sizes[0]["x"] * _size(whole))
    return Picture(reduced, back * np.array(factors)[:, None], f"sdata.images[{name!r}]", size)


def _size(affine: np.ndarray) -> float:
    return float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))


def _yx(level: Any, view: View, name: str) -> np.ndarray:
    """Return the affine from (y, x) pixels of an image to (y, x) of the library's coordinate system, (2, 3)."""
    xy = _elements.affine_xy(level, str(view.system), what=f"sdata.images[{name!r}]")
    return xy[[1, 0]][:, [1, 0, 2]]


def _element_name(sdata: Any, view: View, key: str | None) -> str | None:
    """Return the image of a library: the one asked for, the only one in its coordinate system, or the one whose name begins with the library's."""
    from spatialdata.transformations import get_transformation

    if key is not None:
        if key not in sdata.images:
            raise KeyError(f"sdata.images[{key!r}] is missing (found {sorted(sdata.images)}). Pass `image_key=`.")
        return key
    fits = [name for name, element in sdata.images.items() if view.system in get_transformation(element, get_all=True)]
    own = [name for name in fits if name.startswith(view.name)] or fits
    own = [name for name in own if "lowres" not in name] or own
    own = [name for name in own if "hires" in name] or own
    if len(own) > 1:
        raise ValueError(
            f"library {view.name!r}: {len(own)} images have the coordinate system {view.system!r} ({sorted(own)}). Pass `image_key=`."
        )
    return own[0] if own else None
