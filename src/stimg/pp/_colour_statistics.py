"""Colour of the image around each observation: the simplest thing that sees pixels."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys, provenance, validate
from stimg.data.ledger import remember
from stimg.data.slides import slide_of
from stimg.data.slots import library_rows, raster_libraries
from stimg.data.tables import table_of
from stimg.image.colour import WINDOWS_UM
from stimg.image.colour import colour_statistics as statistics
from stimg.image.pixels import LARGEST
from stimg.image.slide import Slide

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


def colour_statistics(
    data: "AnnData | SpatialData",
    *,
    image: Mapping[str, Any] | str | Path | np.ndarray | None = None,
    windows_um: Sequence[float] = WINDOWS_UM,
    library_key: str = keys.LIBRARY,
    key_added: str = keys.COLOUR,
    table_key: str = "table",
) -> None:
    """Write ``obsm["X_stimg_colour"]`` (float32, n_obs x 48): optical density of red, green and blue in windows around each observation.

    Mean, standard deviation, 10th and 90th percentile of three channels in four windows: what any model of the image has to beat.

    Parameters
    ----------
    data
        Observations on a raster (:func:`stimg.pp.rasterize`) with ``obsm["spatial"]`` in pixels of the full-resolution image.
    image
        Full-resolution image of each library: a path or uint8 (y, x, 3), by library where there are several. None: the file named in
        ``uns["spatial"][library]["metadata"]["source_image_path"]`` where it exists, else the ``"hires"`` image kept there.
    windows_um
        Sides of the square windows in µm, rising.
    library_key
        Column of ``obs`` with the library.
    key_added
        Slot to write.
    table_key
        Table of a SpatialData.

    Raises
    ------
    KeyError
        Where the raster is missing, or a library has no image.
    ValueError
        For an image that cannot be read, or observations whose smallest window has no pixel.

    Notes
    -----
    Nothing is fitted, and no count is read. ``uns["stimg"]["X_stimg_colour"]`` names the columns and says how large a part of the largest
    window lies outside the image.
    """
    adata = table_of(data, table_key)
    rasters = raster_libraries(adata, library_key)
    xy = validate.obsm(adata, keys.SPATIAL, columns=2, todo="Coordinates in pixels of the full-resolution image are needed.")
    out: np.ndarray | None = None
    names: list[str] = []
    padded = np.zeros(adata.n_obs)
    for library, rows in library_rows(adata.obs[library_key]).items():
        slide, scale = slide_of(adata, library, image=image, library_key=library_key)
        affine = np.asarray(rasters[library].spec.affine, dtype=np.float64)[:, :2]
        mpp = rasters[library].spec.pitch_um / float(np.sqrt(abs(np.linalg.det(affine))))
        found = statistics(_pixels(slide), xy[rows, ::-1] * scale, mpp=mpp / scale, windows_um=windows_um)
        if out is None:
            out, names = np.zeros((adata.n_obs, found.values.shape[1]), dtype=np.float32), list(found.names)
        out[rows], padded[rows] = found.values, found.padded
    adata.obsm[key_added] = out
    provenance.record(
        adata,
        key_added,
        verb="stimg.pp.colour_statistics",
        columns=names,
        windows_um=list(windows_um),
        padded=float(padded.mean()),
        library_key=library_key,
        unit="optical density",
    )
    remember(adata, key_added)
    logger.info("Wrote adata.obsm[%r]: %d observations x %d, %.1f %% of the windows outside", key_added, *out.shape, 100 * padded.mean())  # type: ignore[union-attr]


def _pixels(slide: Slide) -> np.ndarray:
    """Return all pixels of the finest level."""
    height, width, _ = slide.levels[0]
    if height * width > LARGEST:
        raise ValueError(
            f"{slide.name} has {width} x {height} pixels (x, y); wanted at most {LARGEST:.0e}, which are read whole. Pass a reduced image as an array."
        )
    return slide.read(0, 0, 0, height, width)
