"""Which observations of a section are hidden: masks on lattice points, square and hexagonal."""

from collections.abc import Callable

import numpy as np
from scipy.spatial import KDTree

from stimg._core.registry import Registry
from stimg._core.rng import as_generator
from stimg.image.lattice import offset_to_axial
from stimg.image.spec import RasterSpec

Mask = Callable[[RasterSpec, np.ndarray, int], np.ndarray]
MASKS: Registry[Mask] = Registry("mask")
"""Functions of (raster, distinct (row, column) in reading order, seed) that return which lattice points are hidden."""
HOLE = 4.0
"""Radius of the contiguous hole, in pitches."""
NEAR = 1e-9
"""Relative difference below which two distances are equal."""


def hidden_spots(name: str, spec: RasterSpec, rc: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return which observations the mask ``name`` hides, bool (n,).

    Parameters
    ----------
    name
        ``"random 50 %"``: half of the lattice points, drawn with ``seed``. ``"checkerboard"``: row + column is odd; a hexagonal lattice has
        no checkerboard, and in its offset rows 4 of the 6 neighbours of a hidden point are kept. ``"quarter grid"``: all but every second
        point of every second lattice line, so that the kept points are the same lattice with twice the pitch. ``"hole"``: a disc with a
        radius of 4 pitches, around the point where it holds most observed points. ``"right half"``: everything right of the median.
    spec
        The raster.
    rc
        (row, column) of every observation, (n, 2), none of them off the raster. Observations on one lattice point are hidden together.
    seed
        For masks that are drawn; the draw does not depend on the order of the observations.

    Raises
    ------
    ValueError
        For an unknown mask.
    """
    points, member = np.unique(np.asarray(rc, dtype=np.int64), axis=0, return_inverse=True)
    return MASKS[name](spec, points, seed)[member.ravel()]


@MASKS.register("random 50 %")
def _random(spec: RasterSpec, rc: np.ndarray, seed: int) -> np.ndarray:
    out = np.zeros(len(rc), dtype=bool)
    out[as_generator(seed).permutation(len(rc))[: len(rc) // 2]] = True
    return out


@MASKS.register("checkerboard")
def _checkerboard(spec: RasterSpec, rc: np.ndarray, seed: int) -> np.ndarray:
    return rc.sum(axis=1) % 2 == 1


@MASKS.register("quarter grid")
def _quarter(spec: RasterSpec, rc: np.ndarray, seed: int) -> np.ndarray:
    steps = offset_to_axial(rc, spec.hex_parity) if spec.lattice == "hex" else rc
    return (steps % 2 != 0).any(axis=1)


@MASKS.register("hole")
def _hole(spec: RasterSpec, rc: np.ndarray, seed: int) -> np.ndarray:
    """Equally full discs: the one nearest to the centre of the section, and then the first in reading order."""
    points = spec.lattice_points(rc)
    tree = KDTree(points)
    radius = HOLE * (1 + NEAR)
    held = tree.query_ball_point(points, radius, return_length=True)
    away = np.hypot(*(points - points.mean(axis=0)).T)
    centre = np.lexsort((np.arange(len(rc)), np.round(away, 6), -held))[0]
    out = np.zeros(len(rc), dtype=bool)
    out[tree.query_ball_point(points[centre], radius)] = True
    return out


@MASKS.register("right half")
def _right_half(spec: RasterSpec, rc: np.ndarray, seed: int) -> np.ndarray:
    x = spec.lattice_points(rc)[:, 1]
    return x > np.median(x)
