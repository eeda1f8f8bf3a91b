"""Lattices against brute force: KD-trees, naive loops, and lattices made from known indices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree

from stimg.image import lattice as lat
from stimg.image.spec import RasterSpec


def spec_of(lattice, shape, parity=-1):
    return RasterSpec(lattice, shape, 1.0, hex_parity=parity)


def brute_pairs(spec, rc, diagonal=False):
    """Pairs at distance 1 (and sqrt 2) of the lattice points, by KD-tree, without those on one point."""
    on = np.flatnonzero(rc[:, 0] >= 0)
    if not len(on):
        return set()
    points = spec.lattice_points(rc[on])
    found = KDTree(points).query_pairs(1.01 if not diagonal else 1.45)
    return {tuple(sorted((int(on[i]), int(on[j])))) for i, j in found if np.abs(points[i] - points[j]).max() > 0.1}


@st.composite
def rasters(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    lattice = draw(st.sampled_from(["square", "hex"]))
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    n = draw(st.integers(0, 60))
    rc = np.stack([rng.integers(0, shape[0], n), rng.integers(0, shape[1], n)], axis=1)
    if draw(st.booleans()):
        rc = np.unique(rc, axis=0)
        rc = rc[rng.permutation(len(rc))]
    rc[rng.random(len(rc)) < 0.1] = -1
    return spec_of(lattice, shape, draw(st.integers(0, 1)) if lattice == "hex" else -1), rc


@settings(max_examples=150, deadline=None)
@given(rasters(), st.booleans())
def test_neighbour_pairs_are_those_of_a_kd_tree(raster, diagonal):
    spec, rc = raster
    pairs = lat.neighbour_pairs(spec, rc, diagonal=diagonal)
    assert pairs.dtype == np.int64
    assert pairs.shape[1] == 2
    assert (pairs[:, 0] < pairs[:, 1]).all()
    as_set = {tuple(map(int, pair)) for pair in pairs}
    assert len(as_set) == len(pairs)  # each once
    assert as_set == brute_pairs(spec, rc, diagonal and spec.lattice == "square")


def test_neighbour_pairs_without_a_lookup_map(monkeypatch):
    rng = np.random.default_rng(0)
    wide = spec_of("hex", (3000, 3000), 1)
    rc = np.unique(rng.integers(1000, 1012, (60, 2)), axis=0)  # 9 M lattice points for 60 observations: searched, not looked up
    assert {tuple(map(int, p)) for p in lat.neighbour_pairs(wide, rc)} == brute_pairs(wide, rc)


def test_neighbour_pairs_refuse_indices_outside():
    with pytest.raises(ValueError, match="3 x 3"):
        lat.neighbour_pairs(spec_of("square", (3, 3)), np.array([[0, 0], [0, 3]]))


@pytest.mark.parametrize("parity", [0, 1])
def test_neighbour_steps_are_one_pitch_long(parity):
    spec = spec_of("hex", (9, 9), parity)
    for row, steps in ((4, lat.neighbours(spec)[0]), (5, lat.neighbours(spec)[1])):
        here = np.array([[row, 4]])
        distance = np.linalg.norm(spec.lattice_points(here + steps) - spec.lattice_points(here), axis=1)
        assert np.allclose(distance, 1.0)
        assert len({tuple(s) for s in steps.tolist()}) == 6


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=30), st.integers(0, 1))
def test_axial_round_trip_and_distance(cells, parity):
    rc = np.array(cells)
    qr = lat.offset_to_axial(rc, parity)
    assert (lat.axial_to_offset(qr, parity) == rc).all()
    points = spec_of("hex", (1, 1), parity).lattice_points(rc)
    straight = np.stack([qr[:, 1] * np.sqrt(3) / 2, qr[:, 0] + qr[:, 1] / 2], axis=1)  # q along the row, r at 60°
    assert np.allclose(points - points[0], straight - straight[0])


@given(st.integers(0, 1), st.integers(0, 3), st.integers(0, 5), st.integers(0, 2**31))
def test_odd_r_from_array_keeps_geometry(stagger, first_row, first_col, seed):
    rng = np.random.default_rng(seed)
    row = rng.integers(first_row, first_row + 7, 25)
    col = 2 * rng.integers(first_col, first_col + 6, 25) + (row + stagger) % 2
    rc, parity = lat.odd_r_from_array(row, col)
    assert rc.min(axis=0).tolist() == [0, 0]
    truth = np.stack([row * np.sqrt(3) / 2, col / 2], axis=1)
    points = spec_of("hex", (1, 1), parity).lattice_points(rc)
    assert np.allclose(points - points[0], truth - truth[0])
    indices = lat.hex_indices(row, col)
    back_row = indices.origin[0] + rc[:, 0]  # origin is the array index of raster (0, 0)
    assert (back_row == row).all()
    shift = (rc[:, 0] % 2 == parity).astype(int)
    assert (indices.origin[1] - int(parity == 0) + 2 * rc[:, 1] + shift == col).all()


def test_odd_r_refuses_square_indices():
    with pytest.raises(ValueError, match="odd for 2 and even for 2"):
        lat.odd_r_from_array(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))


def test_diagonal_indices_make_neighbours_adjacent():
    row, col = np.nonzero((np.add.outer(np.arange(9), np.arange(12)) % 2) == 1)
    indices = lat.diagonal_indices(row, col)
    rc = indices.rc
    assert len(np.unique(rc, axis=0)) == len(rc)
    pairs = KDTree(np.stack([row, col], axis=1)).query_pairs(1.5)
    step = {tuple(np.abs(rc[i] - rc[j]).tolist()) for i, j in pairs}
    assert step == {(0, 1), (1, 0)}
    affine, full = lat.fit_affine(rc, np.stack([row, col], axis=1))
    assert full
    assert np.linalg.det(affine[:, :2]) > 0
    assert np.allclose(affine[:, 2], indices.origin)


def test_fit_affine_full_line_and_point():
    rng = np.random.default_rng(1)
    points, true = rng.normal(size=(20, 2)), rng.normal(size=(2, 3))
    affine, full = lat.fit_affine(points, points @ true[:, :2].T + true[:, 2])
    assert full
    assert np.allclose(affine, true)
    turn = 3.0 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    line = np.stack([np.arange(4.0), 2 * np.arange(4.0)], axis=1)
    affine, full = lat.fit_affine(line, line @ turn.T + [5, 6])
    assert not full
    assert np.allclose(affine, np.c_[turn, [5, 6]])
    affine, full = lat.fit_affine(np.zeros((1, 2)), np.array([[3.0, 4.0]]))
    assert not full
    assert np.isnan(affine[:, :2]).all()
    assert affine[:, 2].tolist() == [3.0, 4.0]


@st.composite
def lattices(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["square", "hex"]))
    rows, cols = draw(st.integers(6, 14)), draw(st.integers(6, 14))
    parity = draw(st.integers(0, 1)) if kind == "hex" else -1
    rc = np.stack(np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij"), axis=-1).reshape(-1, 2)
    rc = rc[rng.random(len(rc)) > draw(st.sampled_from([0.0, 0.1, 0.3]))]  # holes
    angle = np.radians(draw(st.floats(-20, 20)))
    pitch = draw(st.floats(0.5, 500))
    points = spec_of(kind, (rows, cols), parity).lattice_points(rc)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    yx = (
        pitch * points @ turn.T
        + rng.uniform(-1e4, 1e4, 2)
        + rng.normal(scale=draw(st.sampled_from([0.0, 0.05])) * pitch, size=points.shape)
    )
    return kind, pitch, points, yx


@settings(max_examples=80, deadline=None)
@given(lattices())
def test_find_lattice_recovers_every_step(made):
    kind, pitch, points, yx = made
    found = lat.find_lattice(yx)
    assert found.lattice == kind
    assert found.rc.min(axis=0).tolist() == [0, 0]
    again = spec_of(kind, (1, 1), found.parity).lattice_points(found.rc)
    assert np.allclose(again - again[0], points - points[0])  # within ±20° the axes are the same
    assert np.isclose(np.sqrt(abs(np.linalg.det(lat.fit_affine(again, yx)[0][:, :2]))), pitch, rtol=0.02)


def test_find_lattice_across_a_gap_and_at_any_angle():
    rng = np.random.default_rng(2)
    rc = np.array([(r, c) for r in range(60) for c in range(60) if not 20 < c < 44])
    for angle in np.radians([0, 29, 45, 90, 200]):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        yx = 37.0 * rc @ turn.T + rng.normal(scale=2.0, size=rc.shape)
        found = lat.find_lattice(yx)
        pairs = KDTree(rc).query_pairs(1.1)
        assert {tuple(sorted(map(int, p))) for p in lat.neighbour_pairs(spec_of("square", tuple(found.rc.max(0) + 1)), found.rc)} == pairs


def test_find_lattice_adds_up_no_error_along_a_strip():
    rng = np.random.default_rng(0)
    rc = np.array([(r, c) for r in range(3) for c in range(500)])
    found = lat.find_lattice(40.0 * rc + rng.normal(scale=3.5, size=rc.shape))
    assert (found.rc == rc).all()


def test_find_lattice_takes_the_nearest_hexagonal_point():
    rc = np.array([(r, c) for r in range(15) for c in range(15)])
    points = spec_of("hex", (15, 15), 1).lattice_points(rc)
    yx = 100.0 * points
    column, row = np.array([0.0, 1.0]), np.array([np.sqrt(3) / 2, 0.5])
    inner = 7 * 15 + 7
    yx[inner] += 100 * (0.53 * column - 0.26 * row)  # 0.46 pitches off, more than half a column step
    found = lat.find_lattice(yx)
    again = spec_of("hex", (1, 1), found.parity).lattice_points(found.rc)
    distance = KDTree(100.0 * points).query(yx)
    assert distance[1][inner] == inner  # by brute force it is nearest to its own point
    assert np.allclose(again - again[0], points - points[0])


@pytest.mark.parametrize(
    ("yx", "message"),
    [
        (np.zeros((1, 2)), "1 observations are too few"),
        (np.zeros((9, 2)), "same coordinates"),
        (np.c_[np.arange(9.0), np.zeros(9)], "one direction only"),
        (np.random.default_rng(0).uniform(size=(500, 2)), "do not lie on a lattice: bond order"),
    ],
)
def test_find_lattice_refuses(yx, message):
    with pytest.raises(ValueError, match=message):
        lat.find_lattice(yx)


def test_find_lattice_refuses_two_kinds():
    rc = np.stack(np.meshgrid(np.arange(12), np.arange(12), indexing="ij"), axis=-1).reshape(-1, 2)
    both = np.concatenate(
        [spec_of("square", (12, 12)).lattice_points(rc), spec_of("hex", (12, 12), 1).lattice_points(rc) + np.array([0, 40])]
    )
    with pytest.raises(ValueError, match="two kinds of lattice"):
        lat.find_lattice(100 * both)
