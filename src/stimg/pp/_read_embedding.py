"""Embeddings that another tool computed, brought to the observations they belong to."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._core import hashing, keys, provenance, validate
from stimg.data.ledger import remember
from stimg.data.slides import table_mpp
from stimg.data.slots import library_rows
from stimg.data.tables import table_of
from stimg.image.units import check_mpp, differ
from stimg.pp._embedding_layouts import LAYOUTS, Embeddings, read_embeddings

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg.zoo.card import ImageCard

logger = logging.getLogger(__name__)
SCALE_TODO = "Pass `slide_mpp=`, µm per full-resolution pixel of obsm['spatial']."


def read_embedding(
    data: "AnnData | SpatialData",
    path: str | Path | Mapping[str, str | Path],
    *,
    key_added: str,
    layout: str | None = None,
    encoder: str | None = None,
    features_key: str | None = None,
    mpp: float | None = None,
    tile_um: float | None = None,
    tolerance_um: float = 5.0,
    slide_mpp: float | Mapping[str, float] | None = None,
    scale: float = 1.0,
    library_key: str = keys.LIBRARY,
    table_key: str = "table",
) -> None:
    """Write ``obsm[key_added]`` (float32, n_obs x width): embeddings of tiles from a file of TRIDENT, HEST, LazySlide or AnnData.

    Each observation gets the tile of its own name where the file has names, else the tile whose centre lies nearest to it. Positions are checked in
    either case where the file has them.

    Parameters
    ----------
    data
        Observations with ``obsm["spatial"]`` in full-resolution pixels.
    path
        File or zarr folder of one slide; by library where there are several.
    key_added
        Slot to write, such as ``"X_uni"``.
    layout
        ``"trident"`` (HDF5 ``features``, ``coords``), ``"hest"`` (HDF5 ``embeddings``, ``barcodes``, ``coords``), ``"lazyslide"`` (SpatialData whose table
        annotates tiles), ``"anndata"`` (h5ad or zarr). None: what the file looks like.
    encoder
        What computed the embeddings, for the record. Where it is the name of a card (:func:`stimg.zoo.list`), width and scale are compared with it.
    features_key
        Dataset, ``obsm`` slot or table with the features, where it is not the usual one.
    mpp
        µm per pixel at which the tiles are wanted; another scale in the file, by more than 5 %, is an error. Recorded where the file says nothing.
    tile_um
        Side of the tiles in µm, in the same way. Needed to match by position where the file does not say it.
    tolerance_um
        Largest distance from an observation to the centre of its tile.
    slide_mpp
        µm per full-resolution pixel, by library where they differ. None: the raster, the scale factors in ``uns["spatial"]``,
        else what the file says.
    scale
        Pixels of the slide's level 0 per full-resolution pixel of ``obsm["spatial"]``.
    library_key
        Column of ``obs`` with the library; an object without it is one library.
    table_key
        Table of a SpatialData.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    KeyError
        Where a library has no file, or a file lacks a part of its layout.
    ValueError
        For a damaged file, NaN, duplicates, observations without a tile (the message counts them), one tile for several observations, positions that
        disagree with names, or another scale, size or width than stated.

    Notes
    -----
    TRIDENT writes nominal magnifications (20x is 0.5 µm per pixel). Where µm per pixel of the slide are known, the scale of its tiles is computed from
    them. Nothing is fitted here; on what an encoder was trained is its authors' knowledge.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(4, 4), n_genes=10, rng=0)
    >>> stimg.pp.read_embedding(adata, "slide.h5", key_added="X_uni", encoder="uni")  # doctest: +SKIP
    """
    adata = table_of(data, table_key)
    validate.positive(tolerance_um, "tolerance_um", "µm")
    validate.positive(scale, "scale")
    for value, name in ((mpp, "mpp"), (tile_um, "tile_um")):
        if value is not None:
            validate.positive(value, name, "µm")
    if layout is not None:
        validate.one_of(layout, LAYOUTS, "layout")
    xy = validate.obsm(adata, keys.SPATIAL, columns=2, todo="Coordinates in full-resolution pixels are needed.")
    card = _card(encoder)
    groups = (
        library_rows(validate.obs(adata, library_key, todo="Give every observation its library."))
        if library_key in adata.obs
        else {"": np.arange(adata.n_obs)}
    )
    out: np.ndarray | None = None
    records: dict[str, dict[str, Any]] = {}
    for library, rows in groups.items():
        file = _file(path, library, n=len(groups))
        found, layout_found = read_embeddings(file, layout, features_key=features_key)
        where = f"{file}: "
        _check_values(found, where)
        level0 = _slide_mpp(adata, library, slide_mpp, scale, found)
        stated = _check_scale(found, level0, mpp=mpp, tile_um=tile_um, card=card, where=where)
        at, how, worst = _match(found, adata.obs_names[rows], xy[rows] * scale, level0, stated["tile_um"], tolerance_um, where)
        if out is None:
            out = np.zeros((adata.n_obs, found.values.shape[1]), dtype=np.float32)
        if out.shape[1] != found.values.shape[1]:
            raise ValueError(
                f"{where}embeddings have width {found.values.shape[1]}, those before {out.shape[1]}. Pass files of one encoder."
            )
        out[rows] = found.values[at]
        records[library or "all"] = {
            "file": file.name,
            "layout": layout_found,
            "hash": hashing.of_array(found.values),
            "tiles": len(found.values),
            "matched_by": how,
            "largest_distance_um": worst,
            **stated,
        }
    assert out is not None  # an object has at least one library
    adata.obsm[key_added] = out
    provenance.record(
        adata,
        key_added,
        verb="stimg.pp.read_embedding",
        unit="embedding",
        encoder=encoder,
        licence=None if card is None else card.licence,
        libraries=records,
        tolerance_um=tolerance_um,
        library_key=library_key,
    )
    remember(adata, key_added)
    logger.info("Wrote adata.obsm[%r]: %d observations x %d from %d files", key_added, *out.shape, len(groups))


def _card(encoder: str | None) -> "ImageCard | None":
    from stimg.zoo.image import IMAGE

    return IMAGE[encoder] if encoder is not None and encoder in IMAGE else None


def _file(path: Any, library: str, *, n: int) -> Path:
    if isinstance(path, Mapping):
        if library not in path:
            raise KeyError(
                f"path has no file for library {library!r} (found {sorted(path)}). Pass one for each, or leave its observations out."
            )
        return Path(path[library])
    if n > 1:
        raise ValueError(f"One file for {n} libraries; a file holds the tiles of one slide. Pass a mapping from library to file.")
    return Path(path)


def _check_values(found: Embeddings, where: str) -> None:
    validate.finite(found.values, f"{where}the embedding", todo="Compute it again; a missing tile is not zero.")
    if found.names is not None:
        validate.unique_names(pd.Index(found.names), f"names in {where.rstrip(': ')}", todo="Keep one tile for each observation.")
    if found.corners is not None:
        validate.finite(found.corners, f"{where}the coordinates", todo="Write the file again.")
        again = len(found.corners) - len(np.unique(found.corners, axis=0))
        if again and found.names is None:
            raise ValueError(
                f"{where}{again} of {len(found.corners)} tiles stand at coordinates of another tile. Keep one tile for each position."
            )


def _slide_mpp(adata: "AnnData", library: str, stated: Any, scale: float, found: Embeddings) -> float | None:
    """Return µm per pixel of the slide's level 0, None where nothing says it."""
    value = stated.get(library) if isinstance(stated, Mapping) else stated
    known = [value / scale] if value is not None else list(table_mpp(adata, library, scale).values())
    if not known:
        return found.slide_mpp
    level0 = check_mpp(known[0] * scale, name="slide_mpp") / scale
    if found.slide_mpp is not None and differ(level0, found.slide_mpp):
        raise ValueError(
            f"the object has {level0:.4g} µm per pixel of level 0 (slide_mpp / scale), the file {found.slide_mpp:.4g}. Correct `slide_mpp=` or `scale=`, pixels "
            "of the slide per full-resolution pixel."
        )
    return level0


def _check_scale(
    found: Embeddings, level0: float | None, *, mpp: float | None, tile_um: float | None, card: "ImageCard | None", where: str
) -> dict[str, float | None]:
    """Return side of a tile in µm and its µm per pixel, after comparing what the file says with what is wanted."""
    side = found.side_px * level0 if found.side_px and level0 else (found.tile_px * found.mpp if found.tile_px and found.mpp else None)
    pixel = side / found.tile_px if side and found.tile_px else found.mpp
    for value, wanted, name in ((side, tile_um, "tile_um"), (pixel, mpp, "mpp")):
        if value is not None and wanted is not None and differ(value, wanted):
            raise ValueError(
                f"{where}{name} is {value:.4g} µm, wanted {wanted:.4g} (more than 5 % apart). Correct the argument, or embed other tiles."
            )
    pixel, side = pixel if pixel is not None else mpp, side if side is not None else tile_um
    if card is not None:
        if found.values.shape[1] != card.n_features and card.n_features is not None:
            raise ValueError(f"{where}the width is {found.values.shape[1]}; {card.title} gives {card.n_features}. Correct `encoder=`.")
        if pixel is not None and mpp is None and not card.accepts_mpp(pixel):
            raise ValueError(
                f"{where}tiles have {pixel:.4g} µm per pixel; {card.title} expects {card.mpp:g}. Embed tiles of that scale, or pass `mpp={pixel:.3g}` to say that "
                "this one is meant."
            )
    return {"tile_um": side, "mpp": pixel}


def _match(
    found: Embeddings, names: pd.Index, xy: np.ndarray, level0: float | None, tile_um: float | None, tolerance_um: float, where: str
) -> tuple[np.ndarray, str, float | None]:
    """Return the tile of each observation, (n,), how it was found, and the largest distance in µm where positions are known."""
    side = found.side_px or (tile_um / level0 if tile_um and level0 else None)
    if found.names is None:
        if found.corners is None:
            raise ValueError(f"{where}has neither names nor coordinates; nothing says which tile belongs to which observation.")
        if level0 is None:
            raise ValueError(f"{where}tiles are matched by position, which needs µm per pixel. {SCALE_TODO}")
        if side is None:
            raise ValueError(f"{where}the file does not say how large its tiles are, so their centres are not known. Pass `tile_um=`.")
        return (*_nearest(found.corners + side / 2, xy, tolerance_um / level0, level0, where),)
    at = pd.Index(found.names).get_indexer(pd.Index(names.astype(str)))
    lost = np.flatnonzero(at < 0)
    if len(lost):
        raise ValueError(
            f"{where}{len(lost)} of {len(names)} observations have no embedding, the first is {names[lost[0]]!r} (the file has {len(found.names)} names, such as "
            f"{found.names[0]!r}). Bring the names to one form, or leave those observations out."
        )
    if found.corners is None or level0 is None:
        return at, "name", None
    offset = xy - found.corners[at]
    # without a stated size the corner of every tile still lies at one offset from its observation
    expected = np.full(2, side / 2) if side is not None else np.median(offset, axis=0)
    distance = np.linalg.norm(offset - expected, axis=1) * level0
    far = int((distance > tolerance_um).sum())
    if far:
        raise ValueError(
            f"{where}names match, but {far} of {len(names)} tiles do not lie where their observations do (up to {distance.max():.4g} µm away, tolerance "
            f"{tolerance_um:g}). The file is of another slide, scale or size of tiles: check `scale=`, `slide_mpp=` and `tile_um=`."
        )
    return at, "name", float(distance.max())


def _nearest(centres: np.ndarray, xy: np.ndarray, reach: float, level0: float, where: str) -> tuple[np.ndarray, str, float]:
    """Return for each observation the nearest centre within ``reach`` pixels, one to one."""
    from scipy.spatial import KDTree

    tree = KDTree(centres)
    distance, at = tree.query(xy)
    lost = distance > reach
    if lost.any():
        hint = ""
        if (tree.query(xy[:, ::-1])[0] <= reach).all():
            hint = " With x and y swapped all have one: obsm['spatial'] must be (x, y)."
        raise ValueError(
            f"{where}{int(lost.sum())} of {len(xy)} observations have no tile within {reach * level0:g} µm (the nearest are up to {distance.max() * level0:.4g} µm away)."
            f"{hint} Check `scale=` and `slide_mpp=`, raise `tolerance_um=`, or embed tiles around the observations (`stimg.tl.embed_image`)."
        )
    shared = len(at) - len(np.unique(at))
    if shared:
        raise ValueError(
            f"{where}{shared} of {len(xy)} observations share a tile with another. Lower `tolerance_um=`, or embed a tile for each observation."
        )
    return at, "position", float(distance.max() * level0)
