"""Grids against a count by hand, shares of masks against supersampling."""

import numpy as np
import pytest

from stimg.image.tiling import grid_centres, mask_share


@pytest.mark.parametrize(
    ("size", "side", "step"), [((100, 250), 100, 100), ((101, 99), 50, 25), ((30, 40), 50, 50), ((1000, 700), 33.3, 33.3)]
)
def test_squares_cover_the_image_and_none_is_needless(size, side, step):
    centres, index = grid_centres(size, side, step)
    assert len(centres) == len(index) == len(np.unique(index, axis=0))
    np.testing.assert_allclose(centres, index * step + side / 2)
    for axis in (0, 1):
        ends = np.unique(centres[:, axis]) + side / 2
        assert ends[0] == side
        assert ends[-1] >= size[axis] - 1e-6
        assert len(ends) == 1 or ends[-2] < size[axis] - 1e-6


def test_shares_are_those_of_a_supersampled_mask():
    rng = np.random.default_rng(0)
    mask = rng.random((23, 31)) < 0.4
    fine = np.pad(np.kron(mask, np.ones((20, 20))), 400)  # 20 x 20 samples a pixel, nothing outside
    corners = np.round(rng.uniform(-6, 28, (40, 2)) * 20) / 20
    found = mask_share(mask, corners, 7.35)
    for (y, x), share in zip(np.rint(corners * 20).astype(int) + 400, found, strict=True):
        assert share == pytest.approx(fine[y : y + 147, x : x + 147].mean(), abs=1e-9)


def test_full_empty_and_outside():
    corners = np.array([[2.5, 3.5], [-20.0, 0.0], [100.0, 100.0]])
    np.testing.assert_allclose(mask_share(np.ones((20, 20), bool), corners, 8.0), [1, 0, 0], atol=1e-12)
    assert not mask_share(np.zeros((20, 20), bool), corners, 8.0).any()
