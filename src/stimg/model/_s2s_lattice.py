"""The lattice as whole steps: where there is tissue, what may be done to a map, and how points become a raster. Loads no torch."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.spatial import KDTree

from stimg.image.lattice import axial_to_offset, offset_to_axial
from stimg.image.spec import HEX_ROW_STEP, RasterSpec

REACH = 1.5
"""Pitches from a measured spot within which a network looks; in units of the measured lattice."""
AROUND = 2.3
"""Pitches within which measured spots have to surround a place that is called tissue."""
CHUNK = 50_000
"""Places whose neighbours are in memory at a time."""


def steps_of(spec: RasterSpec, rc: np.ndarray) -> np.ndarray:
    """Return the steps of raster (row, column) pairs, int64 (n, 2): the same on a square lattice; (row, axial column) on a hexagonal one."""
    rc = np.asarray(rc, dtype=np.int64).reshape(-1, 2)
    return rc if spec.lattice == "square" else offset_to_axial(rc, spec.hex_parity)[:, ::-1].copy()


def raster_of(spec: RasterSpec, steps: np.ndarray) -> np.ndarray:
    """Return the inverse of :func:`steps_of`."""
    return steps if spec.lattice == "square" else axial_to_offset(steps[:, ::-1], spec.hex_parity)


def plane_of(hexagonal: bool, steps: np.ndarray) -> np.ndarray:
    """Return the (y, x) of steps in pitches, float64 (n, 2), up to a shift."""
    steps = np.asarray(steps, dtype=np.float64)
    return np.stack([steps[:, 0] * HEX_ROW_STEP, steps[:, 1] + 0.5 * steps[:, 0]], axis=1) if hexagonal else steps


def points_of(spec: RasterSpec, steps: np.ndarray, factor: int = 1) -> np.ndarray:
    """Return the lattice points (y, x) of ``spec``, in its pitches, of steps of a lattice that is ``factor`` times finer, float64 (n, 2)."""
    hexagonal = spec.lattice == "hex"
    return plane_of(hexagonal, steps) / factor + np.array([0.0, 0.5 if hexagonal and spec.hex_parity == 0 else 0.0])


def stride_of(steps: np.ndarray) -> int:
    """Return 4 or 2 where all steps are of one of the sub-lattices of every fourth or second row and column, else 1."""
    for stride in (4, 2):
        if len(steps) and (steps % stride == steps[0] % stride).all():
            return stride
    return 1


def code_of(steps: np.ndarray, low: np.ndarray, width: int) -> np.ndarray:
    """Return one whole number for each step."""
    return (steps[:, 0] - low[0]) * width + steps[:, 1] - low[1]


def positions(steps: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the position of each of ``steps`` in ``among``, int64; -1 where it is not there."""
    every = np.concatenate([steps, among])
    low, width = every.min(axis=0), int(np.ptp(every[:, 1])) + 1
    codes = code_of(among, low, width)
    order = np.argsort(codes, kind="stable")
    found = np.minimum(np.searchsorted(codes[order], code_of(steps, low, width)), len(order) - 1)
    out = order[found]
    return np.where(codes[out] == code_of(steps, low, width), out, -1)


@lru_cache(maxsize=2)
def symmetries(hexagonal: bool) -> np.ndarray:
    """Return the symmetries of the lattice about a point as matrices acting on steps, int64 (8 or 12, 2, 2); the first is the identity.

    A turn by 60° of axial steps (r, q) is (r + q, -r); a quarter turn of a square lattice is (c, -r).
    """
    turn = np.array([[1, 1], [-1, 0]] if hexagonal else [[0, 1], [-1, 0]])
    mirror = np.array([[0, 1], [1, 0]])
    found = [np.eye(2, dtype=np.int64)]
    for _ in range(5 if hexagonal else 3):
        found.append(turn @ found[-1])
    out = np.stack(found + [each @ mirror for each in found])
    out.flags.writeable = False
    return out


def spread_out(n: int, hexagonal: bool) -> np.ndarray:
    """Return ``n`` of the symmetries, or all where there are fewer, the identity first and the others evenly among them."""
    every = symmetries(hexagonal)
    return every[np.unique(np.linspace(0, len(every), min(n, len(every)), endpoint=False).astype(np.int64))]


@dataclass(frozen=True)
class Raster:
    """Points as pixels: (rows, columns), and the place of each point in the flattened raster, int64 (n,)."""

    shape: tuple[int, int]
    at: np.ndarray


def rasterised(steps: np.ndarray, turn: np.ndarray | None = None) -> Raster:
    """Return the smallest raster of ``steps``, after the symmetry ``turn`` (2, 2)."""
    moved = steps if turn is None else steps @ turn.T
    moved = moved - moved.min(axis=0)
    rows, cols = (int(n) + 1 for n in moved.max(axis=0))
    return Raster((rows, cols), moved[:, 0] * cols + moved[:, 1])


def surroundings(spec: RasterSpec, measured: np.ndarray, factor: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps near measured ones on a lattice ``factor`` times finer, int64 (m, 2), and which of them lie between measured ones, bool (m,).

    Near is within ``REACH`` pitches of a measured spot; between is where the measured spots within ``AROUND`` pitches leave no half plane free. Where
    every second or fourth row and column alone is measured, both are as many times farther. Measured points themselves are near and between. Only
    points of the raster of ``spec``, up to its last row and column, are returned, in reading order of the steps.
    """
    hexagonal, stride = spec.lattice == "hex", stride_of(measured)
    known = plane_of(hexagonal, measured)
    tree = KDTree(known)
    low, high = measured.min(axis=0) * factor - 2 * stride * factor, measured.max(axis=0) * factor + 2 * stride * factor
    rows, cols = np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)), indexing="ij")
    steps = np.stack([rows.ravel(), cols.ravel()], axis=1)
    apart = tree.query(plane_of(hexagonal, steps) / factor, distance_upper_bound=REACH * stride * (1 + 1e-9))[0]
    steps, apart = steps[np.isfinite(apart)], apart[np.isfinite(apart)]
    points = points_of(spec, steps, factor) / (HEX_ROW_STEP if hexagonal else 1.0, 1.0)
    inside = (points > -1e-9).all(axis=1) & (points[:, 0] <= spec.shape[0] - 1 + 1e-9)
    inside &= points[:, 1] <= spec.shape[1] - (0.5 if hexagonal else 1) + 1e-9
    steps, apart = steps[inside], apart[inside]
    between = apart < 1e-9
    free = np.flatnonzero(~between)
    for start in range(0, len(free), CHUNK):
        some = free[start : start + CHUNK]
        between[some] = widest_gap(tree, plane_of(hexagonal, steps[some]) / factor, AROUND * stride) <= np.pi + 1e-6
    return steps, between


def widest_gap(tree: KDTree, places: np.ndarray, radius: float) -> np.ndarray:
    """Return the widest angle at each place (m, 2) in which ``tree`` has no point within ``radius``; a full turn around a single one, and 0 around none."""
    near = tree.query_ball_point(places, radius)
    who = np.repeat(np.arange(len(places)), [len(each) for each in near])
    which = np.concatenate([np.asarray(each, dtype=np.int64) for each in near])
    away = tree.data[which] - places[who]
    angle = np.arctan2(away[:, 0], away[:, 1])
    order = np.lexsort([angle, who])
    who, angle = who[order], angle[order]
    first = np.r_[True, who[1:] != who[:-1]]
    last = np.r_[first[1:], True]
    gap = np.zeros(len(places))
    np.maximum.at(gap, who[1:][~first[1:]], np.diff(angle)[~first[1:]])
    np.maximum.at(gap, who[last], angle[first] + 2 * np.pi - angle[last])
    return gap
