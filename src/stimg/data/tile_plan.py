"""Reading back what ``stimg.pp.plan_tiles`` wrote. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys, validate
from stimg.data.slides import slide_of
from stimg.data.slots import library_rows
from stimg.data.tables import is_spatialdata, table_of
from stimg.image.slide import Slide, open_slide
from stimg.image.spec import TileSpec

if TYPE_CHECKING:
    from anndata import AnnData

TODO = "Run `stimg.pp.plan_tiles` first."


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles of an AnnData lie.

    Parameters
    ----------
    spec
        What a tile is.
    centres
        (y, x) of each observation's tile in pixels of its image's finest level, float64 (n_obs, 2).
    outside
        Share of each field that lies outside the image, float64 (n_obs, n_fields).
    rows
        Rows of each library's observations.
    slides
        What is known of each library's image: ``source`` (what errors call it), ``path``, ``image_key`` (of a SpatialData), each ``"none"`` where
        it is none; ``mpp`` and ``mpp_source``, ``scale``, ``size`` (y, x), ``fingerprint``.
    """

    spec: TileSpec
    centres: np.ndarray
    outside: np.ndarray
    rows: dict[str, np.ndarray]
    slides: dict[str, dict[str, Any]]

    def side_px(self, library: str, field: float) -> float:
        """Return the side of a field in pixels of the finest level of a library's image."""
        return self.spec.tile_um * field / float(self.slides[library]["mpp"])


def tile_plan(adata: "AnnData", key: str = keys.TILES) -> TilePlan:
    """Return the plan that ``stimg.pp.plan_tiles`` wrote into ``uns["stimg"][key]`` and ``obsm["stimg_<key>"]``.

    Raises
    ------
    KeyError
        Where there is no plan, or it lacks a library of ``obs``.
    ValueError
        Where its parts do not fit together.
    """
    records = adata.uns.get(keys.UNS, {})
    if key not in records or "spec" not in records[key]:
        raise KeyError(f"adata.uns['{keys.UNS}'][{key!r}] holds no plan of tiles (found {sorted(records)}). {TODO}")
    record: Mapping[str, Any] = records[key]
    spec = TileSpec.from_dict(record["spec"])
    found = validate.obsm(adata, keys.tiles_key(key), columns=2 + len(spec.fields), todo=TODO).astype(np.float64)
    column = validate.obs(adata, str(record["library_key"]), todo=TODO)
    rows = library_rows(column)
    slides = {str(name): dict(each) for name, each in record["slides"].items()}
    missing = sorted(set(rows) - set(slides))
    if missing:
        raise KeyError(
            f"the plan of tiles knows no image of libraries {missing} (found {sorted(slides)}). Run `stimg.pp.plan_tiles` again."
        )
    return TilePlan(spec, found[:, :2], found[:, 2:], rows, slides)


def described(slide: Slide, scale: float, image_key: str | None = None) -> dict[str, Any]:
    """Return what a plan keeps of a slide; see :class:`TilePlan`."""
    size = slide.levels[0]
    return {
        "source": slide.name,
        "path": str(slide.path.resolve()) if slide.path else "none",
        "image_key": image_key or "none",
        "mpp": slide.require_mpp(),
        "mpp_source": slide.mpp_source,
        "scale": float(scale),
        "size": np.array([size.height, size.width]),
        "fingerprint": slide.fingerprint(),
    }


def plan_slide(
    data: Any,
    plan: TilePlan,
    library: str,
    *,
    slides: Mapping[str, Slide] | None = None,
    image: Any = None,
    library_key: str = keys.LIBRARY,
    table_key: str = "table",
) -> Slide:
    """Return the slide on which the tiles of a library were planned, opened again.

    Parameters
    ----------
    data
        The AnnData or SpatialData of the plan.
    plan, library
        The plan, and the library.
    slides
        Open slides by library.
    image
        As for :func:`stimg.data.slide_of`. None: the path, the image element or the image in ``uns`` that was planned on.
    library_key
        Column of ``obs`` with the library.
    table_key
        Table of a SpatialData.

    Raises
    ------
    KeyError
        Where the image was an array, which has to be passed again.
    ValueError
        Where it is not the image of the plan, or has changed since.
    """
    known, adata = plan.slides[library], table_of(data, table_key)
    mpp, path, image_key = float(known["mpp"]), Path(str(known["path"])), str(known["image_key"])
    if slides is not None:
        if library not in slides:
            raise KeyError(f"slides has nothing for library {library!r} (found {sorted(slides)}). Pass one for each library.")
        slide = slides[library].with_mpp(mpp)
    elif image is None and str(known["path"]) != "none" and path.is_file():
        slide = open_slide(path, mpp=mpp)
    elif image is None and is_spatialdata(data) and image_key in data.images:
        from stimg.data.slide_elements import bare_slide  # spatialdata is heavy

        slide = bare_slide(data, image_key).with_mpp(mpp)
    elif image is None and str(known["source"]).startswith("adata.uns"):
        slide, _ = slide_of(adata, library, image_key=None if image_key == "none" else image_key, mpp=mpp, library_key=library_key)
    elif image is None:
        raise KeyError(
            f"library {library!r}: the tiles were planned on {known['source']}, which is not here. Pass `image=` or `slides=` with it."
        )
    else:
        slide, _ = slide_of(adata, library, image=image, mpp=mpp, library_key=library_key)
    check_slide(plan, library, slide)
    return slide


def check_slide(plan: TilePlan, library: str, slide: Slide) -> None:
    """Raise a ValueError where a slide is not the one that the tiles of a library were planned on."""
    known, size = plan.slides[library], (slide.levels[0].height, slide.levels[0].width)
    planned = tuple(int(each) for each in known["size"])
    if size != planned:
        raise ValueError(
            f"library {library!r}: {slide.name} has {size} pixels (y, x), the tiles were planned on {planned}. Run `stimg.pp.plan_tiles` again with this "
            "image, or pass the image it was planned on."
        )
    if slide.fingerprint() != str(known["fingerprint"]):
        raise ValueError(
            f"library {library!r}: {slide.name} has changed since the tiles were planned. Run `stimg.pp.plan_tiles` again, or pass the image it "
            "was planned on."
        )
