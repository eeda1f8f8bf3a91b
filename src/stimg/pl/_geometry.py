"""Where a lattice point is drawn: exact cells in µm, and the image that replaces them where there are too many."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stimg.data.slots import RasterLibrary
from stimg.image.spec import HEX_ROW_STEP, RasterSpec

IMAGE_FROM = {"square": 20_000, "hex": 50_000}
"""Number of lattice points in view from which an image is drawn instead of one polygon for each of them."""

_SQUARE = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
_THIRD = 1.0 / np.sqrt(3.0)
_HEXAGON = np.array([[0.0, -_THIRD], [0.5, -_THIRD / 2], [0.5, _THIRD / 2], [0.0, _THIRD], [-0.5, _THIRD / 2], [-0.5, -_THIRD / 2]])

Box = tuple[float, float, float, float]
"""(top, left, height, width) in µm, in the frame of the raster."""


@dataclass(frozen=True)
class Cells:
    """The occupied lattice points of one library, in raster order (row by row), and the observations on them.

    ``rc`` is (m, 2); ``first`` (m,) holds the row in the AnnData of the first observation of each point; ``rows`` (n,) all
    observations and ``point`` (n,) the position in ``rc`` of each.
    """

    name: str
    spec: RasterSpec
    rc: np.ndarray
    first: np.ndarray
    rows: np.ndarray
    point: np.ndarray

    def added(self, values: np.ndarray) -> np.ndarray:
        """Return one value per lattice point, (m,), from one per observation of the AnnData; observations on one point are added."""
        values = np.asarray(values, dtype=np.float64)
        if len(self.rows) == len(self.rc):
            return values[self.first]
        return np.bincount(self.point, weights=values[self.rows], minlength=len(self.rc))

    def within(self, box: Box | None) -> np.ndarray:
        """Return bool (m,): whether the centre lies in ``box``."""
        if box is None:
            return np.ones(len(self.rc), dtype=bool)
        y, x = self.spec.centres_um(self.rc).T
        return (y >= box[0]) & (y <= box[0] + box[2]) & (x >= box[1]) & (x <= box[1] + box[3])


def cells_of(library: RasterLibrary) -> Cells:
    """Return the cells of a library; several observations on one lattice point become one cell."""
    flat = library.rc[:, 0].astype(np.int64) * library.spec.shape[1] + library.rc[:, 1]
    points, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    rc = np.stack(np.divmod(points, library.spec.shape[1]), axis=1)
    return Cells(library.name, library.spec, rc, library.rows[first], library.rows, inverse.ravel())


def polygons_um(spec: RasterSpec, rc: np.ndarray) -> np.ndarray:
    """Return the corners of the lattice cells as (x, y) in µm, float64 (n, corners, 2): hexagons that share edges, or squares."""
    corners = _HEXAGON if spec.lattice == "hex" else _SQUARE
    return (spec.lattice_points(rc)[:, None, ::-1] + corners[None]) * spec.pitch_um


def window_box(spec: RasterSpec, top: int, left: int, height: int, width: int) -> Box:
    """Return the box in µm around the cells of a window, given in lattice steps."""
    if spec.lattice == "square":
        box = (top - 0.5, left - 0.5, float(height), float(width))
    else:
        shift = 0.5 if height > 1 else 0.5 * (top % 2 == spec.hex_parity)
        first = 0.0 if height > 1 else shift
        box = (top * HEX_ROW_STEP - _THIRD, left - 0.5 + first, (height - 1) * HEX_ROW_STEP + 2 * _THIRD, width + shift - first)
    return box[0] * spec.pitch_um, box[1] * spec.pitch_um, box[2] * spec.pitch_um, box[3] * spec.pitch_um


def bounding_box(cells: Cells) -> Box:
    """Return the box in µm around all cells of a library."""
    low, high = cells.rc.min(axis=0), cells.rc.max(axis=0)
    return window_box(cells.spec, int(low[0]), int(low[1]), int(high[0] - low[0] + 1), int(high[1] - low[1] + 1))


def grown(box: Box, by_um: float) -> Box:
    """Return the box with ``by_um`` more on every side."""
    return box[0] - by_um, box[1] - by_um, box[2] + 2 * by_um, box[3] + 2 * by_um


def same_scale(boxes: Sequence[Box]) -> list[Box]:
    """Return the boxes grown to one common size about their centres, so that a µm is as long in every panel.

    Boxes whose sizes differ by more than a factor of two stay as they are: the smaller section would be too small to see.
    """
    height, width = max(b[2] for b in boxes), max(b[3] for b in boxes)
    if height > 2 * min(b[2] for b in boxes) or width > 2 * min(b[3] for b in boxes):
        return list(boxes)
    return [(b[0] - (height - b[2]) / 2, b[1] - (width - b[3]) / 2, height, width) for b in boxes]


def lattice_image(spec: RasterSpec, rc: np.ndarray, values: np.ndarray, *, fill: float = np.nan) -> tuple[np.ndarray, Box]:
    """Return (image, box in µm): ``values`` (n,) or (n, channels) laid on the lattice points between the first and last row and column.

    A hexagonal lattice becomes bricks: every cell is two half-steps wide, as wide and as far from the next row as its hexagon.
    """
    (top, left), (bottom, right) = rc.min(axis=0), rc.max(axis=0)
    height, width = int(bottom - top + 1), int(right - left + 1)
    tail = values.shape[1:]
    row, col = rc[:, 0] - top, rc[:, 1] - left
    if spec.lattice == "square":
        image = np.full((height, width, *tail), fill, dtype=np.float32)
        image[row, col] = values
        return image, window_box(spec, int(top), int(left), height, width)
    image = np.full((height, 2 * width + 1, *tail), fill, dtype=np.float32)
    half = 2 * col + (np.mod(rc[:, 0], 2) == spec.hex_parity)
    image[row, half] = values
    image[row, half + 1] = values
    pitch = spec.pitch_um
    return image, ((top - 0.5) * HEX_ROW_STEP * pitch, (left - 0.5) * pitch, height * HEX_ROW_STEP * pitch, (width + 0.5) * pitch)
