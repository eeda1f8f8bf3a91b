"""Sections as SpatialData: one image and one set of circles a library, one table that annotates the circles."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._core import keys
from stimg.datasets.section import HIRES_PX, ImageChoice, Section, full, reduced

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_CHUNK = 1024


def _transformations(section: Section, pixel: float, alone: bool) -> dict[str, Any]:
    """Return the coordinate systems of an element whose unit is ``pixel`` full-resolution pixels."""
    from spatialdata.transformations import Identity, Scale

    def scaled(factor: float) -> Any:
        return Identity() if factor == 1 else Scale([factor, factor], axes=("x", "y"))

    systems = {section.library: scaled(pixel), f"{section.library}_um": scaled(pixel * section.mpp)}
    return {"global": scaled(pixel), "um": scaled(pixel * section.mpp), **systems} if alone else systems


def _image(section: Section, path: Path, image: ImageChoice, alone: bool) -> Any:
    from spatialdata.models import Image2DModel

    if image == "full":
        import dask.array as da
        from dask import delayed

        width, height = section.image_size
        pixels = da.from_delayed(delayed(full)(path, section.image_size), shape=(height, width, 3), dtype=np.uint8)
        cyx: Any = pixels.transpose(2, 0, 1).rechunk((3, _CHUNK, _CHUNK))
        scale = 1.0
    else:
        array, scale = reduced(path, section.image_size, HIRES_PX)
        cyx = np.ascontiguousarray(array.transpose(2, 0, 1))
    levels = [2] * max(0, int(np.log2(max(cyx.shape[1:]) / 512)))
    return Image2DModel.parse(
        cyx,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=levels or None,
        transformations=_transformations(section, 1 / (scale * section.image_scale), alone),
    )


def to_spatialdata(adata: "AnnData", sections: Sequence[Section], *, image: ImageChoice) -> "SpatialData":
    """Return images ``<library>_image``, circles ``<library>_spots`` and the table ``table``.

    Coordinate systems: ``<library>`` (full-resolution pixels) and ``<library>_um`` (micrometres); with one library also ``global`` and ``um``.
    """
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    alone = len(sections) == 1
    images, shapes = {}, {}
    table = adata.copy()
    library = table.obs[keys.LIBRARY].astype(str).to_numpy()
    for section in sections:
        rows = np.flatnonzero(library == section.library)
        shapes[f"{section.library}_spots"] = ShapesModel.parse(
            np.asarray(table.obsm[keys.SPATIAL])[rows],
            geometry=0,
            radius=section.spot_um / section.mpp / 2,
            index=table.obs_names[rows],
            transformations=_transformations(section, 1.0, alone),
        )
        if image != "none" and section.image is not None:
            images[f"{section.library}_image"] = _image(section, section.image, image, alone)
    table.obs["region"] = pd.Categorical([f"{lib}_spots" for lib in library])
    table.obs["spot_id"] = table.obs_names.to_numpy()
    table = TableModel.parse(table, region=[f"{s.library}_spots" for s in sections], region_key="region", instance_key="spot_id")
    return SpatialData(images=images, shapes=shapes, tables={"table": table})
