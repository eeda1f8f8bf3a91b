"""The slide image of a library: a file, an array, or what an AnnData or SpatialData holds. Loads no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys, validate
from stimg.data.tables import is_spatialdata, table_of
from stimg.image.slide import Slide, open_slide
from stimg.image.slide_source import ArraySource
from stimg.image.units import differ

if TYPE_CHECKING:
    from anndata import AnnData

SETTLED = "stimg.pp.set_mpp"
TODO = "Pass `image=` with a path or an array (y, x, 3) for each library."


def slide_of(
    data: Any,
    library: str | None = None,
    *,
    image: Any = None,
    image_key: str | None = None,
    library_key: str = keys.LIBRARY,
    mpp: float | Mapping[str, float] | None = None,
    table_key: str = "table",
    coordinate_system: str | None = None,
) -> tuple[Slide, float]:
    """Return the slide of a library, and the pixels of its finest level per full-resolution pixel of ``obsm["spatial"]``.

    Parameters
    ----------
    data
        AnnData, or SpatialData.
    library
        Its library; may be left out where there is one.
    image
        A path, an array, a list of arrays or a :class:`stimg.image.Slide` in full resolution; by library where there are several. None: the
        file named in ``uns["spatial"][library]["metadata"]["source_image_path"]`` where it exists, else the ``"hires"`` image kept there; of a
        SpatialData the image element.
    image_key
        Name of an image in ``uns["spatial"][library]["images"]`` to take instead; of a SpatialData the name of the image element, which may be
        left out where there is one, or one that has the library's name in it.
    library_key
        Column of ``obs`` with the library.
    mpp
        µm per pixel of the image's finest level, for all libraries or by name. None: from the raster, ``uns`` or the file; those that are there
        must agree.
    table_key, coordinate_system
        SpatialData: the table, and the coordinate system that image and table share (``"global"`` where there is one). The scale returned is
        in pixels per unit of that system.

    Raises
    ------
    KeyError
        Where a library has no image.
    FileNotFoundError
        Where a path leads nowhere.
    ValueError
        For an image that cannot be read, one image for several libraries, or sources of the scale that differ by more than 5 %.
    """
    if is_spatialdata(data) and image is None:
        from stimg.data.slide_elements import element_slide  # spatialdata is heavy

        given = mpp.get(str(library)) if isinstance(mpp, Mapping) else mpp
        return element_slide(
            data, library, image_key=image_key, mpp=given, library_key=library_key, table_key=table_key, coordinate_system=coordinate_system
        )
    adata = table_of(data, table_key)
    names = library_names(adata, library_key)
    if library is None:
        if len(names) != 1:
            raise ValueError(f"The object has {len(names)} libraries ({names}); wanted the name of one. Pass `library=`.")
        library = names[0]
    if isinstance(image, Mapping):
        if library not in image:
            raise KeyError(f"image has nothing for library {library!r} (found {sorted(image)}). {TODO}")
        image = image[library]
    elif image is not None and len(names) > 1:
        raise ValueError(f"One image for several libraries; wanted one for each. {TODO}")
    given = mpp.get(library) if isinstance(mpp, Mapping) else mpp
    slide, scale = (open_slide(image), 1.0) if image is not None else _kept(adata, library, image_key)
    return with_table_mpp(slide, table_mpp(adata, library, scale), library, given), scale


def library_names(adata: "AnnData", library_key: str = keys.LIBRARY) -> list[str]:
    """Return the libraries of ``obs``, or of ``uns["spatial"]`` where there is no such column."""
    if library_key in adata.obs:
        return sorted(validate.obs(adata, library_key, todo="Name the library of every observation.").astype(str).unique())
    return sorted(map(str, adata.uns.get("spatial", {})))


def _kept(adata: "AnnData", library: str, image_key: str | None) -> tuple[Slide, float]:
    """Return what ``uns["spatial"][library]`` names or holds."""
    entry = adata.uns.get("spatial", {}).get(library, {})
    factors, images, metadata = (entry.get(part, {}) for part in ("scalefactors", "images", "metadata"))
    path = Path(str(metadata.get("source_image_path", "")))
    if image_key is None and path.is_file():
        return open_slide(path), float(metadata.get("source_image_scale", 1.0))
    key = image_key or "hires"
    if key not in images or f"tissue_{key}_scalef" not in factors:
        raise KeyError(f"adata.uns['spatial'][{library!r}] names no image file that exists and holds no {key!r} image. {TODO}")
    name = f"adata.uns['spatial'][{library!r}]['images'][{key!r}]"
    return Slide(ArraySource([as_bytes(np.asarray(images[key]), name)], name=name)), float(factors[f"tissue_{key}_scalef"])


def as_bytes(pixels: np.ndarray, name: str) -> np.ndarray:
    """Return an image kept in ``uns`` as uint8 (y, x, channels): values 0 to 1 are scaled, an alpha channel is left out."""
    if pixels.dtype.kind == "f" and pixels.size:
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):  # NaN too
            raise ValueError(
                f"{name} has {pixels.dtype} values from {low:g} to {high:g}; wanted 0 to 1, or uint8. Scale it, or convert it to uint8."
            )
        pixels = np.round(255 * pixels).astype(np.uint8)
    return pixels[..., :3] if pixels.ndim == 3 and pixels.shape[2] == 4 else pixels


def with_table_mpp(slide: Slide, stated: Mapping[str, float], library: str, given: float | None) -> Slide:
    """Return the slide with µm per pixel as given, else as the table and the file say; these must agree, unless ``pp.set_mpp`` trusted one."""
    if given is not None:
        return slide.with_mpp(given)
    every = {**stated, **slide.mpp_sources}
    if not every:
        return slide
    first = next(iter(every))
    for other, value in every.items():
        if differ(every[first], value) and first != SETTLED:
            raise ValueError(
                f"library {library!r}: {first} says {every[first]:.4g} µm per pixel of {slide.name}, {other} says {value:.4g} (more than 5 % apart). "
                "Correct the wrong one, or trust one explicitly with `stimg.pp.set_mpp`, or by passing µm per pixel of the image."
            )
    return slide.with_mpp(every)


def table_mpp(adata: "AnnData", library: str, scale: float, *, raster: bool = True) -> dict[str, float]:
    """Return µm per pixel of an image, ``scale`` pixels per unit of the coordinates, by what the table states.

    A scale that :func:`stimg.pp.set_mpp` has settled comes first; then the raster, unless left out, and the scale factors.
    """
    found = {}
    factor = adata.uns.get("spatial", {}).get(library, {}).get("scalefactors", {}).get("microns_per_pixel")
    records = adata.uns.get(keys.UNS, {})
    if factor is not None and library in records.get("set_mpp", {}).get("used", {}):
        return {SETTLED: float(factor) / scale}
    own = records.get(keys.RASTER, {}).get(library)
    if own is not None and raster:
        found["the raster"] = raster_mpp(own) / scale
    if factor is not None:
        found["scalefactors['microns_per_pixel']"] = float(factor) / scale
    return found


def raster_mpp(spec: Mapping[str, Any]) -> float:
    """Return µm per unit of the coordinates on which a raster was fitted, from its pitch as measured."""
    return float(spec["pitch_um"]) / float(np.sqrt(abs(np.linalg.det(np.asarray(spec["affine"], dtype=np.float64)[:, :2]))))
