"""``pp.plan_tiles``: every observation, or every square of a grid, gets its tile of the slide."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys, provenance, validate
from stimg.data.slides import slide_of
from stimg.data.slots import library_rows
from stimg.data.tables import is_spatialdata, table_of
from stimg.data.tile_plan import described
from stimg.image.slide import Slide
from stimg.image.spec import TileSpec
from stimg.pp import _elements

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


def plan_tiles(
    data: "AnnData | SpatialData",
    *,
    tile_um: float,
    mpp: float,
    fields: Sequence[float] = (1.0,),
    around: str = "obs",
    step_um: float | None = None,
    image: Mapping[str, Any] | str | Path | np.ndarray | Slide | None = None,
    image_key: str | None = None,
    image_mpp: float | Mapping[str, float] | None = None,
    tissue_key: str | None = None,
    min_tissue: float = 0.0,
    upsample: bool = False,
    library_key: str = keys.LIBRARY,
    table_key: str = "table",
    coordinate_system: str | None = None,
    key_added: str = keys.TILES,
) -> None:
    """Write ``obsm["stimg_tiles"]`` (float64, n_obs x (2 + fields)) and ``uns["stimg"]["tiles"]``: where the tile of each observation lies.

    Columns are y and x of the tile's centre in pixels of the finest level of its library's image, then for each field the share that lies outside
    the image. No tile is read: that is what :class:`stimg.data.TileDataset`, ``stimg.tl.embed_image`` and ``stimg.pl.tiles`` do.

    Parameters
    ----------
    data
        AnnData with ``obsm["spatial"]`` in pixels of the full-resolution image, or SpatialData.
    tile_um, mpp
        Side of a tile on the slide in µm, and µm per pixel of the tile as it is delivered, so ``round(tile_um / mpp)`` pixels a side.
    fields
        Concentric fields in units of ``tile_um``: ``(1, 4)`` adds the surroundings four times as wide, with the same number of pixels.
    around
        ``"obs"``: one tile around each observation of the table. ``"grid"``, of a SpatialData alone: squares that cover an image, written as
        ``shapes["<image_key>_squares"]`` with the transformations of the image, and annotated by the new table ``tables["<image_key>_tiles"]`` (n x 0:
        no genes; ``obs["library_id"]``, ``obs["array_row"]``, ``obs["array_col"]``, ``obs["tissue"]``), which holds the slots above. So a slide
        without expression is a table like any other.
    step_um
        Distance between the centres of the grid in µm; ``tile_um`` where None.
    image
        Path, array or :class:`stimg.image.Slide` of the full-resolution image, by library where there are several. None: what the object names or
        holds, see :func:`stimg.data.slide_of`.
    image_key
        Image of ``uns["spatial"][library]["images"]`` or of a SpatialData to take. With ``around="grid"`` and ``image``, the name of what is written.
    image_mpp
        µm per pixel of the finest level of the image, for all libraries or by name. None: by the raster, the scale factors, coordinate systems in µm
        or the file, which have to agree within 5 %.
    tissue_key
        Grid: labels of the SpatialData that are above 0 on tissue.
    min_tissue
        Grid: least share of a tile that is tissue. Without ``tissue_key``, ``squidpy.experimental.im.detect_tissue`` finds it on a reduced image.
    upsample
        Interpolate where the image is more than 5 % coarser than a field wants, in place of an error.
    library_key
        Column of ``obs`` with the library.
    table_key, coordinate_system
        SpatialData: the table, and the coordinate system that it shares with the image; None chooses as :func:`stimg.pp.rasterize` does.
    key_added
        Name of the plan: ``obsm["stimg_<key_added>"]`` and ``uns["stimg"][key_added]``.

    Raises
    ------
    KeyError
        Where a library has no image, or a slot or element is missing.
    ValueError
        Where nothing states µm per pixel of the image, where it is too coarse, where a tile is larger than the image, where all tiles lie outside it,
        where no tile is left, or where a new name is taken.

    Notes
    -----
    Centres in a SpatialData go through its transformations, whatever these are; a tile stands upright in its image. Observations keep their tile even
    where it lies outside the image, which is white there: the columns say how much.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, image=True, rng=0)
    >>> stimg.pp.plan_tiles(adata, tile_um=56, mpp=0.5)
    >>> adata.obsm["stimg_tiles"].shape
    (64, 3)
    """
    validate.one_of(around, ("obs", "grid"), "around")
    spec = TileSpec(tile_um, mpp, tuple(fields), upsample)
    if around == "grid":
        from stimg.pp._tile_grid import plan_grid

        if not is_spatialdata(data):
            raise TypeError(
                f"data is a {type(data).__name__}; wanted a SpatialData for around='grid', which writes a new table. Pass `SpatialData()` and `image=`."
            )
        plan_grid(
            data,
            spec,
            step_um=step_um,
            image=image,
            image_key=image_key,
            image_mpp=image_mpp,
            tissue_key=tissue_key,
            min_tissue=min_tissue,
            library_key=library_key,
            table_key=table_key,
            coordinate_system=coordinate_system,
            key_added=key_added,
        )
        return
    given = [
        name for name, value in (("step_um", step_um), ("tissue_key", tissue_key), ("min_tissue", min_tissue or None)) if value is not None
    ]
    if given:
        raise ValueError(f"{given} go with around='grid': around='obs' keeps every observation. Leave them out, or select observations.")
    adata = table_of(data, table_key)
    libraries = library_rows(
        validate.obs(adata, library_key, todo="`stimg.pp.rasterize` writes it where there is one library; or name it.")
    )
    if not libraries:
        raise ValueError("adata has 0 observations; wanted at least one. Check the reader or the filter that made this object.")
    elements = is_spatialdata(data) and image is None
    out, slides = np.full((adata.n_obs, 2 + len(spec.fields)), np.nan), {}
    used: str | None
    if not elements:
        xy = validate.obsm(adata, keys.SPATIAL, columns=2, todo="Coordinates in pixels of the full-resolution image are needed.")
    for library, rows in libraries.items():
        if elements:
            slide, scale, centres, used = _from_elements(
                data, adata, library, rows, image_key, image_mpp, library_key=library_key, table_key=table_key, wanted=coordinate_system
            )
        else:
            slide, scale = slide_of(adata, library, image=image, image_key=image_key, library_key=library_key, mpp=image_mpp)
            centres, used = xy[rows, ::-1].astype(np.float64) * scale, image_key
        out[rows] = planned(slide, centres, spec, library)
        slides[library] = described(slide, scale, used)
    write_plan(adata, out, spec, slides, around="obs", library_key=library_key, key_added=key_added)
    outside = 100 * out[:, 2].mean()
    logger.info("plan_tiles: %d tiles of %d px at %g µm per pixel, %.2g %% outside", len(out), spec.size_px, spec.mpp, outside)


def write_plan(
    adata: "AnnData", tiles: np.ndarray, spec: TileSpec, slides: Mapping[str, Any], *, around: str, library_key: str, key_added: str
) -> None:
    """Write the slots of a plan."""
    adata.obsm[keys.tiles_key(key_added)] = tiles
    provenance.record(
        adata,
        key_added,
        verb="stimg.pp.plan_tiles",
        spec=spec.to_dict(),
        slides=slides,
        around=around,
        library_key=library_key,
        unit="pixels of the finest level of the image; shares of the fields",
    )


def planned(slide: Slide, centres: np.ndarray, spec: TileSpec, library: str) -> np.ndarray:
    """Return the (y, x) centres and the share of each field outside the image, float64 (n, 2 + fields), after all checks."""
    where, size = f"library {library!r}: ", slide.levels[0]
    if slide.mpp is None:
        raise ValueError(
            f"{where}nothing states how many µm a pixel of {slide.name} measures. Pass `image_mpp=`, or state it in the object, with "
            "`stimg.pp.rasterize` or in scalefactors['microns_per_pixel']."
        )
    validate.finite(centres, f"{where}the centres", todo="Remove these observations.")
    sides = [side / slide.mpp for side in spec.sides_um]
    slide.level_for(min(sides) / spec.size_px, upsample=spec.upsample)
    if min(sides) > max(size.height, size.width):
        raise ValueError(
            f"{where}a tile of {min(spec.sides_um):g} µm is larger than {slide.name}, {size.width * slide.mpp:.4g} x {size.height * slide.mpp:.4g} µm (x, y). "
            "Take a smaller tile, or check µm per pixel of the image."
        )
    outside = np.column_stack([slide.outside(centres, side) for side in sides])
    if len(centres) and (outside.min(axis=1) >= 1).all():
        raise ValueError(
            f"{where}all {len(centres)} tiles lie outside {slide.name} of {size.width} x {size.height} px (x, y); their centres reach from "
            f"{np.round(centres.min(0)[::-1], 1).tolist()} to {np.round(centres.max(0)[::-1], 1).tolist()}. Check that the coordinates are of this image's full resolution."
        )
    return np.column_stack([centres, outside])


def _from_elements(
    sdata: Any,
    table: "AnnData",
    library: str,
    rows: np.ndarray,
    image_key: str | None,
    image_mpp: float | Mapping[str, float] | None,
    *,
    library_key: str,
    table_key: str,
    wanted: str | None,
) -> tuple[Slide, float, np.ndarray, str]:
    """Return slide, scale, (y, x) centres in pixels of its finest level and name of the image element of a library of a SpatialData."""
    from stimg.data.slide_elements import image_affine, image_name

    name = image_name(sdata, library, image_key)
    system = wanted
    if system is None:
        region_key, _ = _elements.region_column(table, table_key=table_key)
        regions = sorted(set(table.obs[region_key].astype(str).iloc[rows]))
        shapes = {f"sdata.shapes[{region!r}]": sdata.shapes[region] for region in regions if region in sdata.shapes}
        system = _elements.system_of({**shapes, f"sdata.images[{name!r}]": sdata.images[name]}, library)
    slide, scale = slide_of(
        sdata, library, image_key=name, mpp=image_mpp, library_key=library_key, table_key=table_key, coordinate_system=system
    )
    yx, _ = _elements.centroids(sdata, table[rows], table_key=table_key, coordinate_system=system)
    back = np.linalg.inv(image_affine(sdata.images[name], system, name))
    return slide, scale, _elements.apply_xy(back, yx[:, ::-1])[:, ::-1].copy(), name
