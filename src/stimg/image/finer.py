"""Lattices that are finer than the measured one, and which of their points lie in the tissue."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from stimg.image.fill import ON
from stimg.image.lattice import axial_to_offset
from stimg.image.spec import HEX_ROW_STEP, RasterSpec

CHUNK = 500_000
"""Points that are looked at at a time."""
TOUCH = 1e-6
"""Weight below which a point does not lie on the side of a corner, but on the edge opposite."""


class Within(NamedTuple):
    """Points of another raster in the tissue.

    Parameters
    ----------
    rc
        Their (row, column) on the other raster, int64 (m, 2), in reading order.
    points
        (y, x) in pitches of the measured lattice, float64 (m, 2).
    on
        (row, column) of the point of the measured lattice that each of them is, int64 (m, 2); (-1, -1) between them.
    """

    rc: np.ndarray
    points: np.ndarray
    on: np.ndarray


def refined(spec: RasterSpec, factor: int) -> RasterSpec:
    """Return the lattice of the same kind that is ``factor`` times finer and has all points of ``spec``: row r is its row ``factor * r``.

    Examples
    --------
    >>> spec = refined(RasterSpec("hex", (3, 4), pitch_um=100.0, hex_parity=1), 2)
    >>> spec.shape, spec.pitch_um, spec.hex_parity
    ((5, 8), 50.0, 1)
    """
    rows, cols = spec.shape
    shape = (factor * (rows - 1) + 1, factor * (cols - 1) + 1)
    origin, parity = (factor * spec.origin[0], factor * spec.origin[1]), spec.hex_parity
    if spec.lattice == "hex":
        shape = (shape[0], shape[1] + factor // 2)  # half a step of a shifted row
        parity = spec.hex_parity if factor % 2 else 1
        first = origin[1] - factor * (spec.hex_parity == 0)  # in half steps, of a row that is not shifted
        origin = (origin[0], first + (parity == 0))
    return replace(
        spec, shape=shape, pitch_um=spec.pitch_um / factor, hex_parity=parity, origin=origin, affine=_scaled(spec.affine, 1.0 / factor)
    )


def pixels(spec: RasterSpec, rc: np.ndarray, pixel_um: float) -> RasterSpec:
    """Return upright square pixels of ``pixel_um`` whose centres lie in the box around the measured points ``rc``; edges as in ``stimg.pp.resample``."""
    step = pixel_um / spec.mpp
    yx = spec.centres_px(rc)
    first = np.ceil(yx.min(axis=0) / step - 0.5 - ON).astype(np.int64)
    size = np.maximum(np.floor(yx.max(axis=0) / step - 0.5 + ON).astype(np.int64) - first + 1, 1)
    return RasterSpec(
        "square",
        (int(size[0]), int(size[1])),
        float(pixel_um),
        origin=(int(first[0]), int(first[1])),
        affine=((step, 0.0, float(first[0] + 0.5) * step), (0.0, step, float(first[1] + 0.5) * step)),
        residual_um=spec.residual_um,
        mpp=spec.mpp,
        source="bins",
    )


def within(spec: RasterSpec, tissue: np.ndarray, other: RasterSpec) -> Within:
    """Return the points of another raster around which all points of the measured lattice are tissue.

    Parameters
    ----------
    spec
        The measured lattice.
    tissue
        bool (rows, columns) of ``spec``.
    other
        Any raster whose map goes to the same pixels as that of ``spec``.

    Notes
    -----
    The points around a place are the corners of the square, or of the triangle of a hexagonal lattice, that it lies in; the two ends where it lies on an edge.
    So no place lies outside the outermost tissue points. A place closer than 2 % of the smaller pitch to a lattice point is moved onto it.
    """
    near = ON * min(_pitch_px(other) / _pitch_px(spec), 1.0)
    affine = np.asarray(spec.affine)
    found: list[tuple[np.ndarray, ...]] = [(np.zeros((0, 2), dtype=np.int64), np.zeros((0, 2)), np.zeros((0, 2), dtype=np.int64))]
    for rc in _in_chunks(other.shape):
        points = np.linalg.solve(affine[:, :2], (other.centres_px(rc) - affine[:, 2]).T).T
        corner, weight = corners(spec, points)
        heaviest = corner[np.arange(len(rc)), weight.argmax(axis=1)]
        exact = spec.lattice_points(heaviest)
        on = np.hypot(*(exact - points).T) <= near
        here = _is_tissue(tissue, corner) | (weight <= TOUCH)
        kept = np.where(on, _is_tissue(tissue, heaviest), here.all(axis=1))
        found.append(
            (rc[kept], np.where(on[:, None], exact, points)[kept], np.where(on[:, None], heaviest, -1)[kept]),
        )
    return Within(*(np.concatenate(part) for part in zip(*found, strict=True)))


def corners(spec: RasterSpec, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lattice points around places and their weights: (row, column), int64 (n, k, 2), and float64 (n, k); k is 4, or 3 of a hexagonal lattice.

    The weights are those of linear interpolation: they sum to 1, and the weighted sum of the corners is the place. ``points`` are (y, x) in pitches.
    """
    y, x = np.asarray(points, dtype=np.float64).T
    if spec.lattice == "square":
        low = np.floor(points).astype(np.int64)
        part = points - low
        step = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        return low[:, None] + step, np.where(step[None] == 1, part[:, None], 1.0 - part[:, None]).prod(axis=2)
    r = y / HEX_ROW_STEP
    q = x - 0.5 * (spec.hex_parity == 0) - 0.5 * r
    low = np.stack([np.floor(q), np.floor(r)], axis=1).astype(np.int64)
    right, down = q - low[:, 0], r - low[:, 1]
    upper = right + down > 1.0  # the triangle at the other end of the rhombus
    axial = low[:, None] + np.array([[0, 0], [1, 0], [0, 1]])
    axial[upper, 0] += 1
    weight = np.stack([1.0 - right - down, right, down], axis=1)
    weight[upper] = np.stack([right + down - 1.0, 1.0 - down, 1.0 - right], axis=1)[upper]
    return axial_to_offset(axial.reshape(-1, 2), spec.hex_parity).reshape(axial.shape), weight


def _is_tissue(tissue: np.ndarray, rc: np.ndarray) -> np.ndarray:
    there = np.asarray(((rc >= 0) & (rc < np.asarray(tissue.shape))).all(axis=-1))
    inside = np.where(there[..., None], rc, 0)
    return there & tissue[inside[..., 0], inside[..., 1]]


def _in_chunks(shape: tuple[int, int]) -> Iterator[np.ndarray]:
    rows = max(CHUNK // shape[1], 1)
    for top in range(0, shape[0], rows):
        row, col = np.meshgrid(np.arange(top, min(top + rows, shape[0])), np.arange(shape[1]), indexing="ij")
        yield np.stack([row.ravel(), col.ravel()], axis=1).astype(np.int64)


def _pitch_px(spec: RasterSpec) -> float:
    return float(np.sqrt(abs(np.linalg.det(np.asarray(spec.affine)[:, :2]))))


def _scaled(affine: tuple, by: float) -> tuple:
    return tuple((a * by, b * by, shift) for a, b, shift in affine)
