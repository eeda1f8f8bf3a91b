"""Finer lattices against all points one by one, and what lies between measured points against polygons by shapely."""

import itertools

import numpy as np
import pytest
import shapely
from scipy.spatial import KDTree

from stimg.image.finer import corners, pixels, refined, within
from stimg.image.lattice import neighbours
from stimg.image.spec import RasterSpec

LATTICES = [("square", -1), ("hex", 0), ("hex", 1)]


def turned(lattice, parity, shape=(7, 6), pitch_px=40.0, mpp=2.5):
    """A raster that is turned by 20°."""
    c, s = pitch_px * np.cos(np.deg2rad(20)), pitch_px * np.sin(np.deg2rad(20))
    return RasterSpec(lattice, shape, pitch_px * mpp, parity, affine=((c, -s, 310.0), (s, c, 95.0)), mpp=mpp)


@pytest.mark.parametrize(("lattice", "parity"), LATTICES)
@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_refined_has_every_measured_point_and_is_a_full_lattice(lattice, parity, factor):
    spec = turned(lattice, parity)
    finer = refined(spec, factor)
    rc = np.argwhere(np.ones(finer.shape))
    tree = KDTree(finer.centres_px(rc))
    coarse = np.argwhere(np.ones(spec.shape))
    away, at = tree.query(spec.centres_px(coarse))
    assert away.max() < 1e-9
    np.testing.assert_array_equal(rc[at, 0], factor * coarse[:, 0])
    assert finer.pitch_um == pytest.approx(spec.pitch_um / factor)
    nearest = tree.query(tree.data, k=2)[0][:, 1] * finer.mpp
    np.testing.assert_allclose(nearest, spec.pitch_um / factor, rtol=1e-9)
    inner = rc[(rc > 0).all(axis=1) & (rc < np.array(finer.shape) - 1).all(axis=1)]
    n = 6 if lattice == "hex" else 4
    for point in inner[:: len(inner) // 5]:
        near = np.sort(np.linalg.norm(tree.data - finer.centres_px(point), axis=1))[1 : n + 1]
        np.testing.assert_allclose(near * finer.mpp, spec.pitch_um / factor, rtol=1e-9)


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_origin_is_the_array_index_of_the_first_point(parity, factor):
    """Half steps of Space Ranger: a point at x pitches has index 2 x, here with the first unshifted column at 14."""
    spec = RasterSpec("hex", (5, 6), 100.0, parity, origin=(9, 14 + (parity == 0)))
    finer = refined(spec, factor)
    x = finer.lattice_points(np.array([[0, 0]]))[0, 1]
    assert finer.origin == (9 * factor, 14 * factor + 2 * x)


@pytest.mark.parametrize(("lattice", "parity"), LATTICES)
def test_corners_are_neighbours_around_the_place(lattice, parity):
    spec = RasterSpec(lattice, (9, 9), 100.0, parity)
    places = np.random.default_rng(0).uniform(-3, 9, size=(500, 2))
    corner, weight = corners(spec, places)
    points = spec.lattice_points(corner.reshape(-1, 2)).reshape(*corner.shape[:2], 2)
    assert (weight >= -1e-12).all()
    np.testing.assert_allclose(weight.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose((weight[..., None] * points).sum(axis=1), places, atol=1e-9)
    for i, j in itertools.combinations(range(points.shape[1]), 2):
        apart = np.linalg.norm(points[:, i] - points[:, j], axis=1)
        assert (apart > 0.99).all()
        assert (apart < (1.01 if lattice == "hex" else 1.42)).all()


def polygons(spec, tissue):
    """All tissue: points, edges between neighbours, and the squares or triangles all of whose corners are tissue."""
    rc = np.argwhere(tissue)
    at = {tuple(p): spec.lattice_points(p)[0] for p in rc}
    parts = [shapely.Point(p) for p in at.values()]
    for p, q in itertools.combinations(at, 2):
        if np.linalg.norm(at[p] - at[q]) < 1.01:
            parts.append(shapely.LineString([at[p], at[q]]))
    for r, c in at:
        if spec.lattice == "square":
            ring = [(r, c), (r, c + 1), (r + 1, c + 1), (r + 1, c)]
            parts += [shapely.Polygon([at[p] for p in ring])] if all(p in at for p in ring) else []
            continue
        steps = neighbours(spec)[r % 2]
        for a, b in itertools.combinations([tuple(np.array([r, c]) + s) for s in steps], 2):
            if a in at and b in at and np.linalg.norm(at[a] - at[b]) < 1.01:
                parts.append(shapely.Polygon([at[a], at[b], at[r, c]]))
    return shapely.unary_union(parts)


@pytest.mark.parametrize(("lattice", "parity"), LATTICES)
@pytest.mark.parametrize("kind", [2, 3, "pixels"])
def test_within_is_what_polygons_hold(lattice, parity, kind, monkeypatch):
    monkeypatch.setattr("stimg.image.finer.CHUNK", 37)
    spec = turned(lattice, parity)
    tissue = np.random.default_rng(3).random(spec.shape) < 0.7
    other = pixels(spec, np.argwhere(tissue), 33.0) if kind == "pixels" else refined(spec, kind)
    found = within(spec, tissue, other)
    every = np.argwhere(np.ones(other.shape))
    affine = np.asarray(spec.affine)
    points = (other.centres_px(every) - affine[:, 2]) @ np.linalg.inv(affine[:, :2]).T
    away = shapely.distance(polygons(spec, tissue), shapely.points(points))
    lattice_away, _ = KDTree(spec.lattice_points(np.argwhere(np.ones(spec.shape)))).query(points)
    near = 0.02 * other.pitch_um / spec.pitch_um
    np.testing.assert_array_equal(found.rc, every[(away < 1e-5) | ((lattice_away < near) & (away < near))])
    on = found.on[:, 0] >= 0
    np.testing.assert_allclose(spec.lattice_points(found.on[on]), found.points[on])
    np.testing.assert_allclose(found.points, points[found.rc @ (other.shape[1], 1)], atol=near)
    assert {tuple(p) for p in found.on[on]} == (
        {tuple(p) for p in np.argwhere(tissue)} if kind != "pixels" else {tuple(p) for p in found.on[on]}
    )


@pytest.mark.parametrize(("shift", "on"), [(0.5, 16), (1.5, 0)])
def test_a_pixel_closer_than_a_fiftieth_is_on_the_point(shift, on):
    """Centres of pixels are at 25, 75, 125, ...; points at 125 - shift, 225 - shift, ..."""
    spec = RasterSpec("square", (4, 4), 100.0, affine=((100.0, 0.0, 125.0 - shift), (0.0, 100.0, 125.0 + shift)))
    rc = np.argwhere(np.ones((4, 4)))
    found = within(spec, np.ones((4, 4), dtype=bool), pixels(spec, rc, 50.0))
    at = found.on[:, 0] >= 0
    assert at.sum() == on
    np.testing.assert_array_equal(found.points[at], found.on[at])
    if on:
        np.testing.assert_array_equal(found.on[at], rc)


def test_pixels_have_the_edges_of_resample():
    spec = turned("hex", 1)
    rc = np.argwhere(np.ones(spec.shape))
    made = pixels(spec, rc, 60.0)
    step = 60.0 / spec.mpp
    centre = made.centres_px(np.argwhere(np.ones(made.shape)))
    np.testing.assert_allclose(centre / step % 1, 0.5, atol=1e-9)
    box = spec.centres_px(rc)
    every = [np.arange(-50, 200) * step + step / 2 for _ in range(2)]
    for axis in range(2):
        expected = [v for v in every[axis] if box[:, axis].min() <= v <= box[:, axis].max()]
        np.testing.assert_allclose(np.unique(centre[:, axis].round(6)), expected, atol=1e-5)
    assert made.pitch_um == pytest.approx(60.0)
    assert made.mpp == spec.mpp
    np.testing.assert_allclose((np.array(made.origin) + 0.5) * step, centre[0])
