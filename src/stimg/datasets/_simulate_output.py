"""Simulated sections into the slots of AnnData and the elements of SpatialData."""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from stimg._core import keys
from stimg.datasets._simulate_cells import Cells, Kind
from stimg.datasets._simulate_image import BLOCK, Slide
from stimg.datasets._simulate_layout import Layout
from stimg.datasets._simulate_options import ImageOptions

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.datasets._simulate_truth import Truth


class Section(Protocol):
    """What is written of one library."""

    name: str
    layout: Layout
    mpp: float
    cells: Cells
    looks: list[Kind]
    slide: Slide
    index: np.ndarray


def write_spatial(adata: "AnnData", sections: list[Any], options: ImageOptions, *, image: bool) -> None:
    """Write ``uns["spatial"]``: the reduced images where wanted, and the scale factors."""
    space: dict[str, Any] = {}
    for section in sections:
        images: dict[str, np.ndarray] = {}
        factors = {"hires": 1.0, "lowres": 1.0}
        if image:
            images["hires"], factors["hires"] = section.slide.thumbnail(options.hires_px)
            images["lowres"], factors["lowres"] = _shrink(images["hires"], options.lowres_px, factors["hires"])
        space[section.name] = {
            "images": images,
            "scalefactors": {
                **{f"tissue_{name}_scalef": factor for name, factor in factors.items()},
                "spot_diameter_fullres": section.layout.diameter_um / section.mpp,
                "microns_per_pixel": section.mpp,
            },
            "metadata": {"chemistry_description": f"simulated {section.layout.technology}", "software_version": "stimg"},
        }
    adata.uns["spatial"] = space


def _shrink(image: np.ndarray, longest_px: int, scale: float) -> tuple[np.ndarray, float]:
    factor = -(-max(image.shape[:2]) // longest_px)
    if factor == 1:
        return image.copy(), scale
    padded = np.pad(image, [(0, -image.shape[0] % factor), (0, -image.shape[1] % factor), (0, 0)], mode="edge")
    blocks = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8), scale / factor


def keep_molecules(truth: "Truth", adata: "AnnData", sections: list[Any]) -> None:
    """Give the truth what it needs to place molecules."""
    for section in sections:
        rows = np.flatnonzero(adata.obs[keys.LIBRARY].to_numpy() == section.name)
        radius = np.array([k.radius_um for k in section.looks])
        truth._xenium[section.name] = {
            "counts": adata.X[rows[0] : rows[-1] + 1],
            "yx_um": section.yx_um,
            "radius_um": radius[section.cells.type.ravel()[section.index]],
            "cell_id": adata.obs_names[rows].to_numpy(),
            "genes": adata.var_names.to_numpy(),
            "size_um": section.layout.size_um,
        }


def to_sdata(adata: "AnnData", sections: list[Any], truth: "Truth", *, image: bool) -> Any:
    """Return SpatialData: shapes and images in full-resolution pixels, molecules in µm, one coordinate system per library."""
    import geopandas as gpd
    import shapely
    import spatialdata as sd
    from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    images, shapes, points = {}, {}, {}
    table = adata.copy()
    instance = np.empty(table.n_obs, dtype=np.int64)
    for section in sections:
        rows = np.flatnonzero(table.obs[keys.LIBRARY].to_numpy() == section.name)
        xy, half = table.obsm[keys.SPATIAL][rows], section.layout.diameter_um / 2 / section.mpp
        instance[rows] = np.arange(len(rows))
        to_library = {section.name: Identity()}
        if section.layout.square:
            boxes = shapely.box(xy[:, 0] - half, xy[:, 1] - half, xy[:, 0] + half, xy[:, 1] + half)
            shapes[section.name] = ShapesModel.parse(gpd.GeoDataFrame(geometry=boxes, index=instance[rows]), transformations=to_library)
        else:
            circles = gpd.GeoDataFrame({"radius": np.full(len(rows), half)}, geometry=gpd.points_from_xy(*xy.T), index=instance[rows])
            shapes[section.name] = ShapesModel.parse(circles, transformations=to_library)
        if image:
            images[f"{section.name}_full_image"] = Image2DModel.parse(
                _lazy(section.slide), dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=to_library
            )
        if section.layout.technology == "xenium":
            points[f"{section.name}_transcripts"] = PointsModel.parse(
                truth.molecules(section.name),
                coordinates={"x": "x", "y": "y"},
                feature_key="feature_name",
                instance_key="cell_id",
                transformations={section.name: Scale([1 / section.mpp, 1 / section.mpp], axes=("x", "y"))},
            )
    table.obs["region"] = pd.Categorical(table.obs[keys.LIBRARY])
    table.obs["instance_id"] = instance
    parsed = TableModel.parse(table, region=[s.name for s in sections], region_key="region", instance_key="instance_id")
    return sd.SpatialData(images=images, shapes=shapes, points=points, tables={"table": parsed})


def _lazy(slide: Slide) -> Any:
    """Return the image of ``slide`` as a dask array (3, rows, columns) that is drawn block by block."""
    import dask.array as da

    side = 4 * BLOCK
    chunks = tuple(tuple(min(side, n - start) for start in range(0, n, side)) for n in slide.shape)

    def draw(block_info: Any = None) -> np.ndarray:
        _, (top, bottom), (left, right) = block_info[None]["array-location"]
        return np.moveaxis(slide.render(top, left, bottom - top, right - left), -1, 0)

    return da.map_blocks(draw, chunks=((3,), *chunks), dtype=np.uint8, meta=np.empty((0, 0, 0), dtype=np.uint8))
