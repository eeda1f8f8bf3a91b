"""A grid of tiles over an image as squares and a table of a SpatialData."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stimg._core import keys, validate
from stimg.data.slide_elements import image_affine, image_name, image_system
from stimg.data.slides import slide_of
from stimg.data.tile_plan import described
from stimg.image.slide import Slide, open_slide
from stimg.image.spec import TileSpec
from stimg.image.tiling import grid_centres, mask_share
from stimg.pp import _tissue
from stimg.pp._plan_tiles import planned, write_plan

logger = logging.getLogger(__name__)
HIRES_PX = 1000
"""Rows or columns of the reduced image that goes into the table, for plots."""


def plan_grid(
    sdata: Any,
    spec: TileSpec,
    *,
    step_um: float | None,
    image: Any,
    image_key: str | None,
    image_mpp: float | Mapping[str, float] | None,
    tissue_key: str | None,
    min_tissue: float,
    library_key: str,
    table_key: str,
    coordinate_system: str | None,
    key_added: str,
) -> None:
    """Write the shapes ``<image_key>_squares`` and the table ``<image_key>_tiles``; see :func:`stimg.pp.plan_tiles`, whose arguments these are."""
    from spatialdata.transformations import Identity, get_transformation

    if not 0 <= validate.number(min_tissue, "min_tissue") <= 1:
        raise ValueError(f"min_tissue={min_tissue}; wanted a share from 0 to 1.")
    if step_um is not None:
        validate.positive(step_um, "step_um", "µm")
    slide, name = _slide(sdata, image, image_key, image_mpp, library_key, table_key, coordinate_system)
    new, squares = f"{name}_tiles", f"{name}_squares"  # SpatialData wants different names
    for taken in (new, squares):
        if any(taken == other for _, other, _ in sdata.gen_elements()):
            raise ValueError(f"sdata has an element named {taken!r} already. Remove it, or plan with another `image_key=`.")
    planned(slide, np.zeros((0, 2)), spec, name)  # the checks, before anything is computed
    mpp, full = slide.require_mpp(), slide.levels[0]
    side, step = spec.tile_um / mpp, (step_um or spec.tile_um) / mpp
    centres, index = grid_centres((full.height, full.width), side, step)
    tissue = None
    if tissue_key is not None or min_tissue > 0:
        system = coordinate_system or (image_system(sdata.images[name], None, name) if image is None else "global")
        affine = image_affine(sdata.images[name], system, name) if image is None else np.eye(3)
        tissue = _share(slide, centres - side / 2, side, sdata, tissue_key, affine, system)
        kept = tissue >= min_tissue
        if not kept.any():
            raise ValueError(
                f"none of the {len(kept)} tiles of {slide.name} is tissue to {min_tissue:g} or more; the most is {tissue.max():.3g}. Lower `min_tissue=`, or "
                "look at the tissue mask."
            )
        centres, index, tissue = centres[kept], index[kept], tissue[kept]
    tiles = planned(slide, centres, spec, name)
    transformations = {"global": Identity()} if image is not None else dict(get_transformation(sdata.images[name], get_all=True))
    shapes = _squares(centres, side, transformations)
    table = _table(tiles[:, :2], index, tissue, region=squares, library=name, slide=slide, tile_px=side, step_um=step_um or spec.tile_um)
    slides = {name: described(slide, 1.0, name if image is None else None)}
    write_plan(table, tiles, spec, slides, around="grid", library_key=keys.LIBRARY, key_added=key_added)
    sdata.shapes[squares], sdata.tables[new] = shapes, table
    logger.info("plan_tiles: %d tiles of %d px at %g µm per pixel on %s", len(tiles), spec.size_px, spec.mpp, slide.name)


def _slide(
    sdata: Any, image: Any, image_key: str | None, image_mpp: Any, library_key: str, table_key: str, coordinate_system: str | None
) -> tuple[Slide, str]:
    """Return the slide of the grid, and the name of its image."""
    if image is None:
        if not len(sdata.images):
            raise KeyError("sdata has no image. Pass `image=` with a path or an array (y, x, 3).")
        name = image_name(sdata, None, image_key)
        mpp = image_mpp.get(name) if isinstance(image_mpp, Mapping) else image_mpp
        options: dict[str, Any] = {"library_key": library_key, "table_key": table_key, "coordinate_system": coordinate_system}
        return slide_of(sdata, None, image_key=name, mpp=mpp, **options)[0], name
    if isinstance(image, Mapping):
        if len(image) != 1:
            raise ValueError(f"image has {len(image)} entries; wanted one, for around='grid' plans one image at a time.")
        image_key, image = next(iter(image.items()))
    path = image if isinstance(image, str | Path) else getattr(image, "path", None)
    if image_key is None and path is None:
        raise ValueError("an array has no name. Pass `image_key=`, which names the new shapes and table.")
    name = image_key or re.sub(r"[^0-9A-Za-z_.-]+", "_", Path(str(path)).stem)
    mpp = image_mpp.get(name) if isinstance(image_mpp, Mapping) else image_mpp
    return open_slide(image, mpp=mpp), name


def _share(
    slide: Slide, corners: np.ndarray, side: float, sdata: Any, tissue_key: str | None, affine: np.ndarray, system: str
) -> np.ndarray:
    """Return the share of tissue in squares of ``side`` pixels of the image with these (y, x) corners."""
    if tissue_key is None:
        mask, step = _tissue.detected(slide)
        origin = np.zeros(2)
    else:
        mask, origin, step = _tissue.labelled(sdata, tissue_key, affine, system, finest=side / 32)
    return mask_share(mask, (corners - origin) / step, side / step)


def _squares(centres: np.ndarray, side: float, transformations: Mapping[str, Any]) -> Any:
    import geopandas
    import shapely
    from spatialdata.models import ShapesModel

    (top, left), (bottom, right) = (centres - side / 2).T, (centres + side / 2).T
    frame = geopandas.GeoDataFrame(geometry=shapely.box(left, top, right, bottom))
    return ShapesModel.parse(frame, transformations=dict(transformations))


def _table(
    centres: np.ndarray,
    index: np.ndarray,
    tissue: np.ndarray | None,
    *,
    region: str,
    library: str,
    slide: Slide,
    tile_px: float,
    step_um: float,
) -> Any:
    """Return the table (n x 0) of the tiles."""
    from anndata import AnnData
    from spatialdata.models import TableModel

    obs = pd.DataFrame(
        {
            keys.LIBRARY: pd.Categorical([library] * len(centres)),
            "array_row": index[:, 0],
            "array_col": index[:, 1],
            "region": pd.Categorical([region] * len(centres)),
            "instance_id": np.arange(len(centres)),
        },
        index=pd.Index([f"{library}_{row}x{column}" for row, column in index.tolist()]),
    )
    if tissue is not None:
        obs["tissue"] = tissue
    adata = AnnData(obs=obs)
    adata.obsm[keys.SPATIAL] = centres[:, ::-1].copy()
    pixels, step = slide.thumbnail(HIRES_PX)
    adata.uns["spatial"] = {
        library: {
            "images": {"hires": pixels},
            "scalefactors": {
                "tissue_hires_scalef": 1 / step,
                "microns_per_pixel": slide.require_mpp(),
                "bin_size_um": float(step_um),
                "spot_diameter_fullres": min(tile_px, step_um / slide.require_mpp()),  # overlapping tiles are drawn beside each other
            },
            "metadata": {"source_image_path": str(slide.path.resolve())} if slide.path else {},
        }
    }
    return TableModel.parse(adata, region=region, region_key="region", instance_key="instance_id")
