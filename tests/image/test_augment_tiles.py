"""Maps of optical density against the formula, and against scikit-image's stains."""

import numpy as np
import pytest
from skimage.color import hed_from_rgb, rgb_from_hed

from stimg.image.augment_tiles import TileAugmentation, augmented, map_density, stain_map, turned


@pytest.fixture
def tiles():
    return np.random.default_rng(0).integers(0, 256, (2, 31, 31, 3), dtype=np.uint8)


def density(tiles):
    return -np.log10((tiles.astype(float) + 1) / 256)


def light(values):
    return np.clip(np.rint(256 * 10**-values - 1), 0, 255)


def test_a_map_of_density_is_the_formula(tiles):
    matrix, shift = np.random.default_rng(1).normal(0, 0.2, (3, 3)) + np.eye(3), np.array([0.05, -0.02, 0.0])
    wanted = light(density(tiles) @ matrix.T + shift)
    found = map_density(tiles, matrix, shift)
    assert found.dtype == np.uint8
    assert np.abs(found - wanted).max() <= 1
    assert (found == wanted).mean() > 0.9
    np.testing.assert_array_equal(map_density(tiles, np.eye(3)), tiles)


def test_stains_are_those_of_scikit_image(tiles):
    """Factors and shifts act on the amounts of haematoxylin, eosin and residual that its matrices give."""
    factors, shifts = np.array([1.2, 0.8, 1.05]), np.array([0.03, -0.02, 0.01])
    amounts = density(tiles) @ hed_from_rgb
    wanted = light((amounts * factors + shifts) @ rgb_from_hed)
    assert np.abs(map_density(tiles, *stain_map(factors, shifts)) - wanted).max() <= 1


def test_only_the_stain_that_is_scaled_changes():
    eosin = light(0.6 * rgb_from_hed[1]).astype(np.uint8)[None, None]
    assert np.abs(map_density(eosin, *stain_map(np.array([1.5, 1.0, 1.0]), np.zeros(3))).astype(int) - eosin).max() <= 2
    more = map_density(eosin, *stain_map(np.array([1.0, 1.5, 1.0]), np.zeros(3)))
    np.testing.assert_allclose(density(more), 1.5 * density(eosin), atol=0.03)


def test_white_stays_white_without_a_shift():
    white = np.full((1, 4, 4, 3), 255, np.uint8)
    assert (map_density(white, *stain_map(np.array([1.3, 0.7, 1.1]), np.zeros(3))) == 255).all()


def test_the_eight_symmetries_are_different_and_keep_the_pixels(tiles):
    views = [turned(tiles, k) for k in range(8)]
    assert len({each.tobytes() for each in map(np.ascontiguousarray, views)}) == 8
    for view in views:
        np.testing.assert_array_equal(np.sort(view.reshape(2, -1, 3), axis=1), np.sort(tiles.reshape(2, -1, 3), axis=1))
    np.testing.assert_array_equal(views[1], np.rot90(tiles, axes=(1, 2)))
    np.testing.assert_array_equal(views[4], tiles[:, :, ::-1])


@pytest.mark.parametrize("symmetry", range(8))
def test_turns_on_the_way_are_turns(tiles, symmetry):
    matrix = np.diag([1.1, 0.9, 1.0])
    np.testing.assert_array_equal(map_density(tiles, matrix, symmetry=symmetry), turned(map_density(tiles, matrix), symmetry))
    out = np.empty_like(tiles)
    assert map_density(tiles, matrix, symmetry=symmetry, out=out) is out
    np.testing.assert_array_equal(out, map_density(tiles, matrix, symmetry=symmetry))
    with pytest.raises(ValueError, match="wanted squares"):
        map_density(tiles[:, 1:], matrix, symmetry=1)


def test_fields_of_one_observation_are_changed_alike(tiles):
    same = np.stack([tiles[0], tiles[0]])
    out = augmented(same, TileAugmentation(), np.random.default_rng(3))
    np.testing.assert_array_equal(out[0], out[1])
    assert (out != same).any()
    np.testing.assert_array_equal(out, augmented(same, TileAugmentation(), np.random.default_rng(3)))
    still = augmented(same, TileAugmentation(scale=0, shift=0, turns=False), np.random.default_rng(3))
    np.testing.assert_array_equal(still, same)


def test_draws_span_the_range_and_no_more():
    grey = light(0.5 * rgb_from_hed.sum(0) / 3).astype(np.uint8)[None, None, None].repeat(2, axis=0)
    amounts = []
    for seed in range(300):
        out = augmented(grey, TileAugmentation(scale=0.2, shift=0.0, turns=False), np.random.default_rng(seed))
        amounts.append(density(out[0, 0, 0]) @ hed_from_rgb / (density(grey[0, 0, 0]) @ hed_from_rgb))
    amounts = np.array(amounts)
    assert (np.abs(amounts - 1) < 0.2 + 0.12).all()  # bytes are rounded
    assert (amounts.min(0) < 0.87).all()
    assert (amounts.max(0) > 1.13).all()


@pytest.mark.parametrize("options", [{"scale": 1.0}, {"shift": -0.1}, {"scale": float("nan")}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match="wanted a number from 0 to below 1"):
        TileAugmentation(**options)


def test_floats_are_refused():
    with pytest.raises(TypeError, match="wanted uint8"):
        map_density(np.zeros((2, 2, 3)), np.eye(3))
