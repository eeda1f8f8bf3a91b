"""Between the units of a raster and the pixels of ``obsm["spatial"]``: they differ in a SpatialData whose elements are transformed."""

from typing import TYPE_CHECKING

import numpy as np

from stimg._core import keys
from stimg.data.slots import RasterLibrary

if TYPE_CHECKING:
    from anndata import AnnData

SAME = 0.75
"""Farthest that an observation stands from its raster point, in pitches, where the units are the same."""
SAME_AFFINE = np.eye(2, 3)


def to_pixels(adata: "AnnData", library: RasterLibrary) -> np.ndarray:
    """Return the affine map (2, 3) from (y, x) in units of the raster's coordinate system to those of ``obsm["spatial"]``, by least squares.

    The identity where they agree, where there are no coordinates, and where the observations are too few to tell.
    """
    if keys.SPATIAL not in adata.obsm:
        return SAME_AFFINE
    yx = np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)[library.rows, ::-1]
    units = library.spec.centres_px(library.rc)
    if np.hypot(*(yx - units).T).max(initial=0.0) <= SAME * library.spec.pitch_um / library.spec.mpp:
        return SAME_AFFINE
    found, _, rank, _ = np.linalg.lstsq(np.column_stack([units, np.ones(len(units))]), yx, rcond=None)
    return SAME_AFFINE if rank < 3 else found.T


def applied(affine: np.ndarray, yx: np.ndarray) -> np.ndarray:
    """Return (y, x) after an affine map (2, 3)."""
    return yx @ affine[:, :2].T + affine[:, 2]


def inverse(affine: np.ndarray) -> np.ndarray:
    """Return the inverse of an affine map (2, 3)."""
    linear = np.linalg.inv(affine[:, :2])
    return np.column_stack([linear, -linear @ affine[:, 2]])
