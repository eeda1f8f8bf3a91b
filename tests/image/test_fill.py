"""Gaps of a lattice against a morphological closing by scipy, and snapping against all lattice points."""

import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from stimg.image.fill import empty_points, inside, snap, spacing
from stimg.image.spec import RasterSpec


def disc(radius):
    side = int(radius) + 1
    y, x = np.mgrid[-side : side + 1, -side : side + 1]
    return np.hypot(y, x) <= radius + 1e-9


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gap", [2.0, 3.0, 5.0])
def test_empty_points_are_those_of_a_closing(seed, gap):
    grid = np.random.default_rng(seed).random((20, 18)) < 0.4
    grid[8:12, 5:14] = False
    found = empty_points(RasterSpec("square", grid.shape, pitch_um=100.0), np.argwhere(grid), gap=gap)
    margin = 10
    half = spacing(np.argwhere(grid).astype(float)) / 2
    assert 0.5 <= half <= 1
    wide = binary_dilation(np.pad(grid, margin), disc(gap / 2))
    closed = binary_erosion(wide, disc(max(gap / 2 - half, 0)))[margin:-margin, margin:-margin]
    np.testing.assert_array_equal(found, np.argwhere(closed & ~grid))


def test_spacing_goes_with_what_was_measured():
    full = np.argwhere(np.ones((10, 10))).astype(float)
    assert spacing(full) == pytest.approx(1.0)
    assert spacing(2 * full) == pytest.approx(2.0)
    assert spacing(full[:1]) == pytest.approx(1.0)


def test_gaps_in_the_outline_of_one_point_are_filled_and_the_next_row_is_not():
    spec = RasterSpec("square", (8, 8), pitch_um=100.0)
    rc = np.argwhere(np.ones((8, 8)))
    lacking = [(0, 4), (7, 0), (3, 3)]
    known = np.array([p for p in rc if tuple(p) not in lacking and p[1] < 7])
    assert {tuple(p) for p in empty_points(spec, known)} == set(lacking)


@pytest.mark.parametrize(("lattice", "parity"), [("square", -1), ("hex", 0), ("hex", 1)])
def test_a_quarter_grid_is_filled_and_the_outside_is_not(lattice, parity):
    from stimg.image.masks import hide

    spec = RasterSpec(lattice, (20, 20), pitch_um=100.0, hex_parity=parity)
    rc = np.argwhere(np.ones((20, 20)))
    y, x = spec.lattice_points(rc).T
    tissue = np.hypot(y - y.mean(), x - x.mean()) < 7
    kept = tissue & ~hide("quarter", spec, rc)
    found = {tuple(p) for p in empty_points(spec, rc[kept])}
    middle = {tuple(p) for p in rc[~kept & (np.hypot(y - y.mean(), x - x.mean()) < 4.5)]}
    assert middle <= found
    far = {tuple(p) for p in rc[np.hypot(y - y.mean(), x - x.mean()) > 8.5]}
    assert not far & found
    hole = tissue & ~(np.hypot(y - y.mean(), x - x.mean()) < 3.5)
    assert not {tuple(p) for p in empty_points(spec, rc[hole])} & {tuple(p) for p in rc[np.hypot(y - y.mean(), x - x.mean()) < 1]}


def test_places_off_the_lattice():
    spec = RasterSpec("square", (5, 5), pitch_um=100.0)
    rc = np.argwhere(np.ones((5, 5)))
    found = inside(spec, rc, np.array([[1.5, 2.5], [4.0, 4.0], [-1.2, 2.0], [4.4, 7.0]]))
    assert found.tolist() == [True, True, False, False]
    assert empty_points(spec, rc).shape == (0, 2)


@pytest.mark.parametrize(("lattice", "parity"), [("square", -1), ("hex", 0), ("hex", 1)])
def test_snap_finds_the_lattice_point_at_a_place(lattice, parity):
    angle = 0.2
    affine = ((80 * math.cos(angle), -80 * math.sin(angle), 13.0), (80 * math.sin(angle), 80 * math.cos(angle), -4.0))
    spec = RasterSpec(lattice, (9, 8), pitch_um=100.0, hex_parity=parity, affine=affine, mpp=1.25)
    rc = np.argwhere(np.ones((9, 8)))
    found = snap(spec, spec.centres_px(rc) + 0.5)
    np.testing.assert_array_equal(found.rc, rc)
    np.testing.assert_allclose(found.points, spec.lattice_points(rc))
    rng = np.random.default_rng(0)
    places = rng.uniform(-100, 800, (300, 2))
    got = snap(spec, places)
    centres = spec.centres_px(rc)
    gap = np.sqrt(((places[:, None] - centres) ** 2).sum(-1)) / 80
    near = gap.argmin(axis=1)
    on = gap.min(axis=1) <= 0.02
    np.testing.assert_array_equal(got.rc[on], rc[near[on]])
    assert (got.rc[~on] == -1).all()
    back = got.points[~on] @ np.asarray(affine)[:, :2].T + np.asarray(affine)[:, 2]
    np.testing.assert_allclose(back, places[~on], atol=1e-9)
