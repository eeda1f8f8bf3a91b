import numpy as np
import pytest

from stimg.data.augment import hex_symmetries, square_symmetries, window_points
from stimg.image.spec import RasterSpec


@pytest.mark.parametrize(("size", "n"), [((4, 4), 8), ((5, 5), 8), ((3, 4), 4), ((2, 5), 4)])
def test_square_symmetries_are_all_and_keep_neighbours(size, n):
    moved = square_symmetries(size)
    assert moved.shape == (n, size[0] * size[1])
    assert np.array_equal(moved[0], np.arange(size[0] * size[1]))
    assert len({tuple(m) for m in moved.tolist()}) == n
    where = np.stack(np.unravel_index(np.arange(size[0] * size[1]), size), 1)
    for m in moved:
        assert sorted(m.tolist()) == list(range(size[0] * size[1]))
        before, after = where[m], where
        assert np.array_equal(np.abs(before[:, None] - before[None]).sum(-1), np.abs(after[:, None] - after[None]).sum(-1))


def test_hex_symmetries_are_the_12_that_map_the_lattice_onto_itself():
    symmetries = hex_symmetries()
    spec = RasterSpec("hex", (13, 13), 55.0, hex_parity=1)
    points = spec.lattice_points(np.argwhere(np.ones((13, 13))))
    points = points - spec.lattice_points([[6, 6]])
    inner = points[np.linalg.norm(points, axis=1) < 5]
    assert np.array_equal(symmetries[0], np.eye(2))
    assert len(np.unique(symmetries.round(9), axis=0)) == 12
    for matrix in symmetries:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(2), atol=1e-12)
        distance = np.linalg.norm((inner @ matrix.T)[:, None] - inner[None], axis=-1)
        assert distance.min(1).max() < 1e-9
    assert (np.linalg.det(symmetries) > 0).sum() == 6


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("top", [0, 1, 6, -3])
@pytest.mark.parametrize("size", [(4, 5), (5, 4)])
def test_window_points_are_the_lattice_points_about_the_centre(parity, top, size):
    spec = RasterSpec("hex", (40, 40), 55.0, hex_parity=parity)
    rc = np.argwhere(np.ones(size))
    whole = spec.lattice_points(rc + np.array([top, 7]))
    found = window_points(size, (parity - top) % 2)
    np.testing.assert_allclose(found - found[0], whole - whole[0], atol=1e-12)
    assert abs(found[:, 0].mean()) < 1e-12
    other = window_points(size, (parity - top + 1) % 2)
    mirrored = {tuple(p) for p in (other * [1, -1]).round(9).tolist()}
    assert {tuple(p) for p in found.round(9).tolist()} == mirrored


def test_square_window_points():
    found = window_points((2, 3), -1)
    assert found.tolist() == [[-0.5, -1], [-0.5, 0], [-0.5, 1], [0.5, -1], [0.5, 0], [0.5, 1]]
