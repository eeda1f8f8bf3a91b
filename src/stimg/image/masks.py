"""Which lattice points of a section are hidden: masks as pure functions of a raster and its points, square and hexagonal."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from stimg._core import validate
from stimg._core.registry import Registry
from stimg._core.rng import RngLike, as_generator
from stimg.image.lattice import offset_to_axial
from stimg.image.spec import RasterSpec

MASKS: Registry[Callable[..., np.ndarray]] = Registry("mask")
"""Functions of (raster, distinct (row, column) in reading order, options) that return which lattice points are hidden, bool (n,)."""
HOLE = 4.0
"""Radius of a contiguous hole, in pitches."""
NEAR = 1e-9
"""Relative difference below which two distances are equal."""
SIDES = ("left", "right", "top", "bottom")


def hide(mask: str, spec: RasterSpec, rc: np.ndarray, **options: Any) -> np.ndarray:
    """Return which observations the mask hides, bool (n,).

    Parameters
    ----------
    mask
        A name of ``MASKS``: ``"random"`` (:func:`random_points`), ``"checkerboard"`` (:func:`checkerboard`), ``"quarter"`` (:func:`quarter_grid`),
        ``"holes"`` (:func:`holes`), ``"half"`` (:func:`half`), ``"rows"`` (:func:`rows`).
    spec
        The raster.
    rc
        (row, column) of every observation, (n, 2), none of them off the raster. Observations on one lattice point are hidden together, and no
        mask depends on the order of the observations.
    options
        Those of the mask.

    Raises
    ------
    ValueError
        For an unknown mask, or an option out of range.

    Examples
    --------
    >>> spec = RasterSpec("square", (4, 4), pitch_um=200.0)
    >>> hide("quarter", spec, np.argwhere(np.ones((4, 4)))).reshape(4, 4).astype(int)
    array([[0, 1, 0, 1],
           [1, 1, 1, 1],
           [0, 1, 0, 1],
           [1, 1, 1, 1]])
    """
    points, member = np.unique(np.asarray(rc, dtype=np.int64).reshape(-1, 2), axis=0, return_inverse=True)
    return MASKS[mask](spec, points, **options)[member.ravel()]


@MASKS.register("random")
def random_points(spec: RasterSpec, rc: np.ndarray, *, fraction: float = 0.5, rng: RngLike = 0) -> np.ndarray:
    """Hide ``fraction`` of the points (rounded down), drawn with ``rng``."""
    if not 0 < validate.number(fraction, "fraction") < 1:
        raise ValueError(f"fraction={fraction} is not between 0 and 1, both excluded; wanted the share of the lattice points to hide.")
    out = np.zeros(len(rc), dtype=bool)
    out[as_generator(rng).permutation(len(rc))[: int(len(rc) * fraction + NEAR)]] = True
    return out


@MASKS.register("checkerboard")
def checkerboard(spec: RasterSpec, rc: np.ndarray, *, phase: int = 0) -> np.ndarray:
    """Hide the points whose row + column + ``phase`` is odd.

    A hexagonal lattice has no checkerboard: in its offset rows 4 of the 6 neighbours of a hidden point are kept.
    """
    _phase(phase, 2)
    return (rc.sum(axis=1) + phase) % 2 == 1


@MASKS.register("quarter")
def quarter_grid(spec: RasterSpec, rc: np.ndarray, *, phase: int = 0) -> np.ndarray:
    """Hide all but every second point of every second lattice line; what is kept is the same lattice with twice the pitch.

    The four phases 0 to 3 keep four disjoint quarters: ``phase // 2`` is the first line that is kept, ``phase % 2`` the first point on it. On
    a hexagonal lattice the lines run along its axes, 60° apart.
    """
    _phase(phase, 4)
    steps = offset_to_axial(rc, spec.hex_parity) if spec.lattice == "hex" else rc
    order = steps[:, ::-1] if spec.lattice == "hex" else steps  # axial steps are (column, row)
    return (order % 2 != (phase // 2, phase % 2)).any(axis=1)


@MASKS.register("holes")
def holes(spec: RasterSpec, rc: np.ndarray, *, n: int = 1, radius: float = HOLE, rng: RngLike = None) -> np.ndarray:
    """Hide ``n`` discs with a radius in pitches that do not overlap.

    Without ``rng`` each disc is the fullest that is left: of equally full ones the nearest to the centre of the section, and then the first in
    reading order. With ``rng`` centres are drawn.
    """
    n = validate.whole(n, "n")
    validate.positive(radius, "radius", "pitches")
    points, reach = spec.lattice_points(rc), radius * (1 + NEAR)
    tree, out = KDTree(points), np.zeros(len(rc), dtype=bool)
    free = np.ones(len(rc), dtype=bool)
    away = np.round(np.hypot(*(points - points.mean(axis=0)).T), 6)
    held = tree.query_ball_point(points, reach, return_length=True)
    generator = None if rng is None else as_generator(rng)
    for found in range(n):
        left = np.flatnonzero(free)
        if not len(left):
            raise ValueError(
                f"n={n} holes of radius {radius:g} pitches do not fit beside each other; {found} do. Ask for fewer or smaller ones."
            )
        centre = left[np.lexsort((left, away[left], -held[left]))[0]] if generator is None else generator.choice(left)
        out[tree.query_ball_point(points[centre], reach)] = True
        free[tree.query_ball_point(points[centre], 2 * reach)] = False
    return out


@MASKS.register("half")
def half(spec: RasterSpec, rc: np.ndarray, *, side: str = "right") -> np.ndarray:
    """Hide what lies beyond the median on one side: ``"left"``, ``"right"``, ``"top"`` or ``"bottom"`` of the raster."""
    validate.one_of(side, SIDES, "side")
    along = spec.lattice_points(rc)[:, 1 if side in ("left", "right") else 0]
    return along > np.median(along) if side in ("right", "bottom") else along < np.median(along)


@MASKS.register("rows")
def rows(spec: RasterSpec, rc: np.ndarray, *, every: int = 2, phase: int = 0) -> np.ndarray:
    """Hide all rows but each ``every``-th, the first that is kept being ``phase``."""
    every = validate.whole(every, "every", least=2)
    _phase(phase, every)
    return rc[:, 0] % every != phase


def _phase(phase: int, n: int) -> None:
    if not 0 <= validate.number(phase, "phase") < n or phase != int(phase):
        raise ValueError(f"phase={phase} is not known; wanted a whole number from 0 to {n - 1}.")
