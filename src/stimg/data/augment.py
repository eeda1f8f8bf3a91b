"""The symmetries of a lattice: what may be done to a crop without inventing data. Loads no torch."""

from functools import lru_cache

import numpy as np

from stimg.image.spec import HEX_ROW_STEP


@lru_cache(maxsize=32)
def square_symmetries(size: tuple[int, int]) -> np.ndarray:
    """Return, for every symmetry of a window, the old pixel that stands at each new pixel, int64 (n, height * width); the first is the identity.

    Eight for a square window (quarter turns, each with and without a flip), four for an oblong one (half turns, each with and without a flip).
    """
    grid = np.arange(size[0] * size[1], dtype=np.int64).reshape(size)
    turns = range(4) if size[0] == size[1] else (0, 2)
    moved = np.stack([np.rot90(start, k).ravel() for start in (grid, grid[:, ::-1]) for k in turns])
    moved.flags.writeable = False
    return moved


@lru_cache(maxsize=1)
def hex_symmetries() -> np.ndarray:
    """Return the 12 symmetries of the hexagon as matrices acting on (y, x), float64 (12, 2, 2); the first is the identity.

    Six turns by 60 degrees about the origin, each with and without a mirror. They map a hexagonal lattice with rows along x onto itself when
    the origin is one of its points.
    """
    angle = np.arange(6) * np.pi / 3
    turns = np.stack([np.stack([np.cos(angle), -np.sin(angle)], -1), np.stack([np.sin(angle), np.cos(angle)], -1)], -2)
    both = np.concatenate([turns, turns @ np.diag([1.0, -1.0])])
    both.flags.writeable = False
    return both


@lru_cache(maxsize=64)
def window_points(size: tuple[int, int], shifted: int) -> np.ndarray:
    """Return the lattice points (y, x) of a window about its centre in units of the pitch, float64 (height * width, 2).

    ``shifted`` is -1 for a square lattice; for a hexagonal one it is the parity (0 or 1) of the window's rows that are shifted right by half
    a step. The centre is the middle row and the middle column, half-way between shifted and unshifted rows, so that the two kinds of
    hexagonal windows are mirror images of each other.
    """
    y, x = np.meshgrid(np.arange(size[0]) - (size[0] - 1) / 2, np.arange(size[1]) - (size[1] - 1) / 2, indexing="ij")
    if shifted >= 0:
        x = x + np.where(np.arange(size[0]) % 2 == shifted, 0.25, -0.25)[:, None]
        y = y * HEX_ROW_STEP
    points = np.stack([y.ravel(), x.ravel()], axis=1)
    points.flags.writeable = False
    return points
