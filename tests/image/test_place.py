"""Placing arrays without tables: the fitted map against scipy's, gates at their borders, and collision rules against loops."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from stimg.image import place
from stimg.image.spec import RasterSpec
from stimg.image.units import Metadata


def grid(rows=9, cols=8):
    row, col = np.divmod(np.arange(rows * cols), cols)
    return row, col


def names(n):
    return [f"b{i}" for i in range(n)]


def lay(row, col, yx, **options):
    return place.place_array(row, col, yx, names=names(len(row)), metadata=Metadata(), **{"pitch_um": 200.0, **options})


def test_affine_and_residual_are_the_least_squares_ones():
    rng = np.random.default_rng(0)
    row, col = grid()
    yx = np.stack([row, col], axis=1) * 290.0 + rng.normal(scale=20, size=(len(row), 2))
    placed = lay(row, col, yx)

    def error(p):
        return (np.stack([row, col], axis=1) @ p[:4].reshape(2, 2).T + p[4:] - yx).ravel()

    p = least_squares(error, np.array([290.0, 0, 0, 290, 0, 0])).x
    assert np.allclose(placed.spec.affine, np.c_[p[:4].reshape(2, 2), p[4:]], atol=1e-3)
    far = np.linalg.norm(error(p).reshape(-1, 2), axis=1)
    assert placed.spec.residual_um == pytest.approx(far.max() * placed.spec.mpp, rel=1e-4)
    assert placed.spec.mpp == pytest.approx(200 / np.sqrt(abs(np.linalg.det(p[:4].reshape(2, 2)))), rel=1e-6)


@pytest.mark.parametrize(("away", "fails"), [(0.9, False), (1.2, True)])
def test_one_observation_off_the_lattice(away, fails):
    row, col = grid(20, 20)
    yx = np.stack([row, col], axis=1) * 290.0
    yx[37, 1] += away * 290
    if fails:
        with pytest.raises(ValueError, match=r"largest 1\.\d+ .* at 'b37'; pitch 290"):
            lay(row, col, yx)
    else:
        assert lay(row, col, yx).spec.residual_um == pytest.approx(away * 200, rel=0.02)


@pytest.mark.parametrize(("stretch", "fails"), [(1.35, False), (1.45, True)])
def test_stretch_gate(stretch, fails):
    row, col = grid()
    yx = np.stack([row * stretch, col], axis=1) * 100.0
    if fails:
        with pytest.raises(ValueError, match=r"by a factor of 1\.45"):
            lay(row, col, yx)
    else:
        assert lay(row, col, yx).spec.pitch_um == 200.0


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("ratio", [1.0, 1.12, np.sqrt(3)])
def test_checkerboard_or_hex_is_told_by_the_coordinates(offset, ratio):
    row, col = np.nonzero((np.add.outer(np.arange(8), np.arange(9)) + offset) % 2)
    yx = np.stack([row * ratio, col], axis=1) * 50.0
    placed = lay(row, col, yx, pitch_um=100.0)
    assert placed.spec.lattice == ("hex" if ratio > 1.5 else "square")
    assert np.allclose(placed.spec.centres_px(placed.rc), yx)
    assert len(np.unique(placed.rc, axis=0)) == len(row)


@pytest.mark.parametrize("lattice", ["square", "hex"])
@pytest.mark.parametrize("collision", ["nearest", "sum"])
def test_collisions_against_a_loop(lattice, collision):
    rng = np.random.default_rng(5)
    row, col = rng.integers(0, 5, 80), rng.integers(0, 5, 80)
    if lattice == "hex":
        col = 2 * col + row % 2
    points = np.stack([row * np.sqrt(3) / 2, col / 2], axis=1) if lattice == "hex" else np.stack([row, col], axis=1)
    yx = 100.0 * points + rng.uniform(-15, 15, (80, 2))
    placed = lay(row, col, yx, lattice=lattice, collision=collision, pitch_um=100.0)
    spec = placed.spec
    assert spec.collision == collision
    if collision == "sum":
        assert (placed.rc >= 0).all()
        assert np.linalg.norm(spec.centres_px(placed.rc) - yx, axis=1).max() * spec.mpp == pytest.approx(spec.residual_um)
        return
    first_fit = np.linalg.lstsq(np.c_[points, np.ones(80)], yx, rcond=None)[0]
    distance = np.linalg.norm(np.c_[points, np.ones(80)] @ first_fit - yx, axis=1)
    kept = {}
    for i in range(80):
        key = (row[i], col[i])
        if key not in kept or distance[i] < distance[kept[key]]:
            kept[key] = i
    assert set(np.flatnonzero(placed.rc[:, 0] >= 0)) == set(kept.values())


def test_cells_align_with_multiples_of_the_pixel():
    yx = np.array([[5.0, 5.0], [31.0, -1.0], [19.99, 20.0]])
    placed = place.place_cells(yx, pixel_um=10.0, mpp=0.5, names=names(3), metadata=Metadata(), collision="error")
    assert placed.spec.origin == (0, -1)
    assert placed.rc.tolist() == [[0, 1], [1, 0], [0, 2]]
    assert isinstance(placed.spec, RasterSpec)
    assert np.allclose(placed.spec.centres_px(placed.rc), [[10, 10], [30, -10], [10, 30]])


def test_free_coordinates_of_two_sections_in_one_library():
    row, col = grid(10, 10)
    yx = np.stack([row, col], axis=1) * 100.0
    both = np.concatenate([yx, yx + np.array([3, 1050.0])])  # the second is half a step off
    placed = place.place_coordinates(both, names=names(200), metadata=Metadata(), pitch_um=100.0)
    assert placed.spec.residual_um > 20  # stated, not hidden
    angle = np.radians(25)
    turned = yx @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) + [0, 2000]
    with pytest.raises(ValueError, match="lattice"):
        place.place_coordinates(np.concatenate([yx, turned]), names=names(200), metadata=Metadata(), pitch_um=100.0)
