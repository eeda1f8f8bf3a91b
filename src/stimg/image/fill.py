"""Where a lattice is empty: its points in the gaps between measured ones, and where free coordinates lie on it."""

from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from stimg.image.spec import HEX_ROW_STEP, RasterSpec

REACH = 3.0
"""Widest gap that is filled by default, relative to :func:`spacing`."""
ON = 0.02
"""Distance from a lattice point, in pitches, within which a place is on it, beyond what the measured ones themselves are away."""
SLACK = 1e-9


class Snapped(NamedTuple):
    """``points`` float64 (n, 2), lattice points (y, x) in pitches, and ``rc`` int64 (n, 2), (-1, -1) for places beside the lattice or its raster."""

    points: np.ndarray
    rc: np.ndarray


def spacing(places: np.ndarray) -> float:
    """Return the distance to the nearest other place that 95 % of the places have at most, in pitches: 1 for a full lattice."""
    if len(places) < 2:
        return 1.0
    return float(np.quantile(KDTree(places).query(places, k=2)[0][:, 1], 0.95, method="higher"))


def inside(spec: RasterSpec, known: np.ndarray, places: np.ndarray, *, gap: float | None = None) -> np.ndarray:
    """Return which places lie among the known ones, bool (n,): in no gap wider than ``gap``, and not outside.

    Parameters
    ----------
    spec
        The raster.
    known
        (row, column) of the measured points.
    places
        (y, x) in pitches, on or off the lattice.
    gap
        Diameter in pitches; default: three times the :func:`spacing` of the known points, 3 for a full lattice, 6 for every second line.

    Notes
    -----
    A morphological closing by a disc (Serra 1982, Image Analysis and Mathematical Morphology): a place is outside where it lies in a disc that has the diameter
    ``gap`` and holds no known point, more than half the spacing from its rim, as a known point stands for its surroundings to there. Centres of discs are
    tried on the lattice.
    """
    points = spec.lattice_points(known)
    apart = spacing(points)
    radius = (REACH * apart if gap is None else gap) / 2
    depth = max(radius - apart / 2, 0.0)
    margin = int(np.ceil(2 * radius / HEX_ROW_STEP)) + 2
    rows, cols = spec.shape
    row, col = np.meshgrid(np.arange(-margin, rows + margin), np.arange(-margin, cols + margin), indexing="ij")
    centres = spec.lattice_points(np.stack([row.ravel(), col.ravel()], axis=1))
    empty = centres[KDTree(points).query(centres)[0] > radius * (1 + SLACK)]
    return KDTree(empty).query(places)[0] > depth * (1 + SLACK) if len(empty) else np.ones(len(places), dtype=bool)


def empty_points(spec: RasterSpec, known: np.ndarray, *, gap: float | None = None) -> np.ndarray:
    """Return (row, column) of the raster's points that are not among ``known`` but lie :func:`inside`, int64 (n, 2), in reading order.

    Examples
    --------
    >>> spec = RasterSpec("square", (3, 3), pitch_um=200.0)
    >>> empty_points(spec, np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1], [2, 2]]))
    array([[1, 1]])
    """
    known = np.asarray(known, dtype=np.int64).reshape(-1, 2)
    free = np.ones(spec.shape, dtype=bool)
    free[known[:, 0], known[:, 1]] = False
    rc = np.argwhere(free)
    return rc[inside(spec, known, spec.lattice_points(rc), gap=gap)] if len(rc) and len(known) else rc[:0]


def snap(spec: RasterSpec, yx: np.ndarray) -> Snapped:
    """Return where (y, x) in the units of the raster's map, (n, 2), lie on the lattice; those on one of its points are moved onto it."""
    affine = np.asarray(spec.affine)
    places = np.linalg.solve(affine[:, :2], (np.asarray(yx, dtype=np.float64) - affine[:, 2]).T).T
    hexagonal = spec.lattice == "hex"
    row = np.rint(places[:, 0] / (HEX_ROW_STEP if hexagonal else 1.0))
    shift = 0.5 * (np.mod(row, 2) == spec.hex_parity) if hexagonal else 0.0
    rc = np.stack([row, np.rint(places[:, 1] - shift)], axis=1).astype(np.int64)
    points = spec.lattice_points(rc)
    on = np.sqrt(((points - places) ** 2).sum(axis=1)) <= ON + spec.residual_um / spec.pitch_um
    on &= (rc >= 0).all(axis=1) & (rc < np.asarray(spec.shape)).all(axis=1)
    return Snapped(np.where(on[:, None], points, places), np.where(on[:, None], rc, -1))
