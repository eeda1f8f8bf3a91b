"""Changing the colours and the orientation of tiles: linear maps of their optical density, stains, flips and quarter turns."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit

from stimg._core import validate
from stimg.image.colour import OPTICAL_DENSITY

_STEPS = 1 << 14
_DENSEST = 8.0
_COLOUR_OF = np.clip(np.rint(256 * 10 ** -np.linspace(0, _DENSEST, _STEPS + 1) - 1), 0, 255).astype(np.uint8)
"""Value of a pixel by its optical density, in steps of 0.0005; the inverse of ``OPTICAL_DENSITY``."""


@dataclass(frozen=True)
class TileAugmentation:
    """What training does to tiles.

    Parameters
    ----------
    scale
        Each of haematoxylin, eosin and residual is multiplied by a uniform number from ``1 - scale`` to ``1 + scale``.
    shift
        And a uniform number from ``-shift`` to ``shift`` is added, in optical density.
    turns
        Whether a tile is turned and flipped, by one of the eight symmetries of the square.
    """

    scale: float = 0.15
    shift: float = 0.03
    turns: bool = True

    def __post_init__(self) -> None:
        for name in ("scale", "shift"):
            value = validate.number(getattr(self, name), name)
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value:g}; wanted a number from 0 to below 1.")


@cache
def hed_matrix() -> np.ndarray:
    """Return the 3 x 3 matrix whose rows are the colours, in optical density, of haematoxylin, eosin and residual, as scikit-image has them."""
    from skimage.color import rgb_from_hed

    return np.asarray(rgb_from_hed, dtype=np.float64)


def map_density(
    tiles: np.ndarray, matrix: np.ndarray, shift: np.ndarray | None = None, *, symmetry: int = 0, out: np.ndarray | None = None
) -> np.ndarray:
    r"""Return tiles whose optical density went through an affine map, uint8 of the same shape.

    .. math:: d' = M d + b, \quad d = -\log_{10} \frac{v + 1}{256}

    Parameters
    ----------
    tiles
        uint8 (..., 3).
    matrix
        3 x 3, from the densities of red, green and blue to the new ones.
    shift
        (3,), added; none by default.
    symmetry
        Turn and flip squares (..., n, n, 3) on the way, as :func:`turned` does.
    out
        Contiguous array to fill, which must not be ``tiles``.

    Notes
    -----
    White stays white where there is no shift. A density below zero, brighter than white, becomes white.

    Examples
    --------
    >>> import numpy as np
    >>> tile = np.array([[[255, 127, 15]]], dtype=np.uint8)
    >>> map_density(tile, 0.5 * np.eye(3)).tolist()  # half the density: the square root of the light let through
    [[[255, 180, 63]]]
    """
    if tiles.dtype != np.uint8 or tiles.shape[-1] != 3:
        raise TypeError(f"tiles have dtype {tiles.dtype} and shape {tiles.shape}; wanted uint8 (..., 3).")
    if symmetry and (tiles.ndim < 3 or tiles.shape[-2] != tiles.shape[-3]):
        raise ValueError(f"tiles have shape {tiles.shape}; wanted squares (..., n, n, 3) to turn them.")
    out = np.empty(tiles.shape, dtype=np.uint8) if out is None else out
    added = np.zeros(3) if shift is None else np.asarray(shift, dtype=np.float64)
    # the map of each colour's part is added from three tables: 768 numbers in place of a logarithm and nine products
    parts = OPTICAL_DENSITY[None, :, None] * np.asarray(matrix, dtype=np.float64).T[:, None, :]
    parts[0] += added
    parts = ((parts * _STEPS / _DENSEST) + [[[0.5]], [[0.0]], [[0.0]]]).astype(np.float32)
    rows, side = tiles.shape[:-2], tiles.shape[-2]
    height = rows[-1] if rows else 1
    shape = (tiles.size // (max(height * side, 1) * 3), height, side, 3)
    _apply(np.ascontiguousarray(tiles).reshape(shape), parts, _COLOUR_OF, symmetry, out.reshape(shape))
    return out


@njit(cache=True, nogil=True)
def _apply(tiles: np.ndarray, parts: np.ndarray, colour: np.ndarray, symmetry: int, out: np.ndarray) -> None:
    n, height, width = tiles.shape[:3]
    top, turns = np.float32(len(colour) - 1), symmetry % 4
    # where a pixel (y, x) of the turned tile comes from: row r0 + ry * y + rx * x, column c0 + cy * y + cx * x
    ry, rx, r0 = (1, 0, -1, 0)[turns], (0, 1, 0, -1)[turns], (0, 0, height - 1, height - 1)[turns]
    cy, cx, c0 = (0, -1, 0, 1)[turns], (1, 0, -1, 0)[turns], (0, width - 1, width - 1, 0)[turns]
    if symmetry >= 4:  # of the mirror image
        cy, cx, c0 = -cy, -cx, width - 1 - c0
    for t in range(n):
        for y in range(height):
            for x in range(width):
                pixel, into = tiles[t, r0 + ry * y + rx * x, c0 + cy * y + cx * x], out[t, y, x]
                red, green, blue = parts[0, pixel[0]], parts[1, pixel[1]], parts[2, pixel[2]]
                for c in range(3):
                    into[c] = colour[np.int32(min(max(red[c] + green[c] + blue[c], np.float32(0)), top))]


def stain_map(factors: np.ndarray, shifts: np.ndarray, stains: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return matrix and shift for :func:`map_density` that multiply each stain by a factor and add a shift, in optical density.

    ``stains`` is 3 x 3, the colour of each stain as a row, by default :func:`hed_matrix`. The amounts of the stains are the density times its
    inverse; they are changed, and mixed again.
    """
    rows = hed_matrix() if stains is None else np.asarray(stains, dtype=np.float64)
    apart = np.linalg.inv(rows)
    return (apart @ np.diag(factors) @ rows).T, np.asarray(shifts, dtype=np.float64) @ rows


def turned(tiles: np.ndarray, symmetry: int) -> np.ndarray:
    """Return a view of tiles (..., y, x, c) under one of the eight symmetries of the square: quarter turns 0 to 3, then the same of the mirror image."""
    first, second = tiles.ndim - 3, tiles.ndim - 2
    if symmetry >= 4:
        tiles = np.flip(tiles, axis=second)
    return np.rot90(tiles, k=symmetry % 4, axes=(first, second))


def augmented(tiles: np.ndarray, how: TileAugmentation, rng: np.random.Generator) -> np.ndarray:
    """Return the tiles (..., n, n, 3), uint8, of one observation under one draw of ``rng``: all its fields the same way."""
    factors, shifts, symmetry = rng.uniform(-1, 1, 3), rng.uniform(-1, 1, 3), int(rng.integers(8))
    symmetry = symmetry if how.turns else 0
    if how.scale or how.shift:
        return map_density(tiles, *stain_map(1 + how.scale * factors, how.shift * shifts), symmetry=symmetry)
    return np.ascontiguousarray(turned(tiles, symmetry))
