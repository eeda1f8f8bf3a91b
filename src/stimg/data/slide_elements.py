"""Image elements of a SpatialData as slides: their pyramids, their place in a coordinate system, their scale. Loads no torch."""

from typing import Any

import numpy as np

from stimg._core import keys
from stimg.data.slides import SETTLED, library_names, raster_mpp, table_mpp, with_table_mpp
from stimg.image.slide import Slide
from stimg.image.slide_chunks import array_source
from stimg.image.units import differ

MICRONS = ("um", "µm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres")
"""Names of coordinate systems in µm; also behind a library's name, as in ``A1_um``."""


def element_slide(
    sdata: Any,
    library: str | None = None,
    *,
    image_key: str | None = None,
    mpp: float | None = None,
    library_key: str = keys.LIBRARY,
    table_key: str = "table",
    coordinate_system: str | None = None,
) -> tuple[Slide, float]:
    """Return the slide of an image element, and its pixels per unit of a coordinate system; see :func:`stimg.data.slide_of`.

    µm per pixel comes from ``mpp``, else from a coordinate system in µm (``"um"``, ``"<library>_um"``), the table's raster, and its scale factors,
    which are in units of the shapes that the table annotates.

    Raises
    ------
    KeyError
        For an image or coordinate system that is not there.
    ValueError
        For an image that is not uint8 with three channels, pixels that are no squares, or sources of the scale that differ.
    """
    table = sdata.tables[table_key] if table_key in sdata.tables else None
    if library is None and table is not None:
        names = library_names(table, library_key)
        found = names if len(names) == 1 else [each for each in names if each in str(image_key)]
        library = found[0] if len(found) == 1 else None
    name = image_name(sdata, library, image_key)
    element = sdata.images[name]
    system = coordinate_system or image_system(element, library, name)
    unit = pixel_side(image_affine(element, system, name), name, system)
    slide = bare_slide(sdata, name)
    stated = micron_systems(element, library, name)
    if table is not None and library is not None:
        rows = table.obs[library_key].astype(str).to_numpy() == library if library_key in table.obs else np.ones(table.n_obs, dtype=bool)
        own = _shape_unit(sdata, table, rows, system)  # the table's numbers are in units of its shapes
        said = table_mpp(table, library, own / unit, raster=False)
        stated = said if SETTLED in said else {**stated, **_by_raster(table, library, element, name), **said}
    return with_table_mpp(slide, stated, library or name, mpp), 1 / unit


def bare_slide(sdata: Any, name: str) -> Slide:
    """Return the slide of an image element without its place and scale."""
    return Slide(array_source(levels(sdata.images[name]), name=f"sdata.images[{name!r}]"))


def _shape_unit(sdata: Any, table: Any, rows: np.ndarray, system: str) -> float:
    """Return the length in a coordinate system of one unit of the shapes that some rows of a table annotate, 1 where that is not known."""
    attrs = table.uns.get("spatialdata_attrs", {})
    regions = set(table.obs[attrs["region_key"]].astype(str)[rows]) if attrs.get("region_key") in table.obs else set()
    for region in sorted(regions & set(sdata.shapes)):
        found = _transformations(sdata.shapes[region])
        if system in found:
            return float(np.sqrt(abs(np.linalg.det(found[system].to_affine_matrix(("x", "y"), ("x", "y"))[:2, :2]))))
    return 1.0


def _by_raster(table: Any, library: str, element: Any, name: str) -> dict[str, float]:
    """Return µm per pixel of an image by the raster of its library, which was fitted in one of its coordinate systems."""
    records = table.uns.get(keys.UNS, {})
    spec = records.get(keys.RASTER, {}).get(library)
    systems = records.get("rasterize", {}).get("coordinate_system", {})
    system = systems.get(library) if hasattr(systems, "get") else None
    if spec is None or system not in _transformations(element):
        return {}
    return {"the raster": raster_mpp(spec) * pixel_side(image_affine(element, str(system), name), name, str(system))}


def image_name(sdata: Any, library: str | None, image_key: str | None) -> str:
    """Return the name of the image element: the one asked for, the only one, or the only one with the library's name in it."""
    found = sorted(sdata.images)
    if image_key is not None:
        if image_key not in found:
            raise KeyError(f"sdata.images[{image_key!r}] is missing (found {found}). Pass `image_key=`.")
        return image_key
    if len(found) == 1:
        return found[0]
    named = [f"{library}_image"] if f"{library}_image" in found else [each for each in found if library is not None and library in each]
    if len(named) != 1:
        raise KeyError(f"library {library!r} could be on any of the images {found}; wanted one. Pass `image_key=`.")
    return named[0]


def levels(element: Any) -> list[Any]:
    """Return the levels of an image element, finest first: DataArrays with three channels (c, y, x)."""
    from spatialdata import get_pyramid_levels

    arrays = list(get_pyramid_levels(element)) if hasattr(element, "children") else [element]
    return [each.isel(c=slice(0, 3)) if each.sizes.get("c") == 4 else each for each in arrays]


def _transformations(element: Any) -> dict[str, Any]:
    from spatialdata.transformations import get_transformation

    return dict(get_transformation(element, get_all=True))


def image_system(element: Any, library: str | None, name: str) -> str:
    """Return the coordinate system where none was asked for: ``"global"``, else the library's, else the only one."""
    found = sorted(_transformations(element))
    for each in ("global", library):
        if each in found:
            return str(each)
    if len(found) == 1:
        return found[0]
    raise KeyError(
        f"sdata.images[{name!r}] has the coordinate systems {found}, none of them 'global' or {library!r}. Pass `coordinate_system=`."
    )


def image_affine(element: Any, system: str, name: str, kind: str = "images") -> np.ndarray:
    """Return the 3 x 3 affine from (x, y) in pixels of the finest level to (x, y) of a coordinate system."""
    found = _transformations(element)
    if system not in found:
        raise KeyError(f"sdata.{kind}[{name!r}] has no transformation to {system!r} (found {sorted(found)}). Pass `coordinate_system=`.")
    return np.asarray(found[system].to_affine_matrix(("x", "y"), ("x", "y")), dtype=np.float64)


def pixel_side(affine: np.ndarray, name: str, system: str) -> float:
    """Return the side of a pixel in units of a coordinate system; a ValueError where its pixels are no squares there."""
    columns = np.linalg.norm(affine[:2, :2], axis=0)
    area = abs(np.linalg.det(affine[:2, :2]))
    if not columns.min() > 0 or differ(columns[0], columns[1]) or differ(area, columns[0] * columns[1]):
        raise ValueError(
            f"sdata.images[{name!r}] has pixels of {columns[0]:.4g} x {columns[1]:.4g} in {system!r}, which are no squares there. Resample it, or pass a "
            "coordinate system in which they are."
        )
    return float(np.sqrt(area))


def micron_systems(element: Any, library: str | None, name: str) -> dict[str, float]:
    """Return µm per pixel by the coordinate systems in µm that an image has."""
    wanted = {*MICRONS, *(f"{library}_{each}" for each in MICRONS)}
    found = {system: image_affine(element, system, name) for system in _transformations(element) if system in wanted}
    return {f"coordinate system {system!r}": pixel_side(affine, name, system) for system, affine in found.items()}
