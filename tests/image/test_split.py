"""Spatial blocks against brute-force distances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from stimg.image.spec import RasterSpec
from stimg.image.split import balanced_blocks, distance_to, hold_out, near_border, square_blocks


def distances(points: np.ndarray) -> np.ndarray:
    return np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=-1))


def hex_centres(height, width, pitch=100.0):
    return RasterSpec("hex", (height, width), pitch, 1).centres_um(np.argwhere(np.ones((height, width), bool)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(5, 60), st.sampled_from([0.0, 60.0, 100.0, 130.0, 1000.0]), st.booleans())
def test_hold_out_agrees_with_all_distances(seed, n, buffer_um, several):
    rng = np.random.default_rng(seed)
    centres = rng.permutation(hex_centres(9, 9))[:n]  # steps of exactly 100 µm: the buffer's border is hit
    block = rng.integers(0, 4, n)
    library = rng.integers(0, 2, n) if several else None
    held = [int(block[0])]
    near = distances(centres) <= buffer_um + 1e-6
    if several:
        near &= library[:, None] == library[None]
    test = block == held[0]
    buffer = ~test & near[:, test].any(axis=1) if buffer_um else np.zeros(n, bool)
    if (test | buffer).all():
        with pytest.raises(ValueError, match="Nothing is left"):
            hold_out(block, held, centres, buffer_um, library=library)
        return
    got = hold_out(block, held, centres, buffer_um, library=library)
    np.testing.assert_array_equal(got.test, test)
    np.testing.assert_array_equal(got.buffer, buffer)
    np.testing.assert_array_equal(got.train.astype(int) + got.test + got.buffer, 1)


def test_border_and_distance_agree_with_all_distances():
    rng = np.random.default_rng(0)
    centres, block, library = rng.uniform(0, 500, (80, 2)), rng.integers(0, 3, 80), np.repeat(["a", "b"], 40)
    every = distances(centres)
    every[library[:, None] != library[None]] = np.inf
    other = block[:, None] != block[None]
    np.testing.assert_array_equal(near_border(block, centres, 50.0, library), (other & (every <= 50)).any(axis=1))
    np.testing.assert_allclose(distance_to(centres, block == 1, library), every[:, block == 1].min(axis=1))
    assert np.isinf(distance_to(centres, (block == 1) & (library == "a"), library)[40:]).all()


def test_square_blocks_are_squares_of_the_stated_size():
    centres = hex_centres(40, 30)
    block = square_blocks(centres, 800.0)
    assert block.dtype == np.int32
    np.testing.assert_array_equal(np.unique(block), np.arange(block.max() + 1))
    for b in range(block.max() + 1):
        assert np.ptp(centres[block == b], axis=0).max() <= 800.0
    extent = np.ptp(centres, axis=0)
    assert block.max() + 1 == np.prod(np.ceil(extent / 800.0))
    assert (square_blocks(centres, 1e6) == 0).all()
    assert len(np.unique(square_blocks(centres, 1.0))) == len(centres)
    moved = square_blocks(centres + np.array([12345.0, -777.0]), 800.0)
    np.testing.assert_array_equal(moved, block)


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 5, 8, 13])
def test_balanced_blocks_are_contiguous_equal_and_indifferent_to_order(n_blocks):
    centres = hex_centres(26, 30)
    block = balanced_blocks(centres, n_blocks)
    size = np.bincount(block, minlength=n_blocks)
    assert len(size) == n_blocks
    assert size.min() > 0.6 * len(centres) / n_blocks
    assert size.max() < 1.5 * len(centres) / n_blocks
    near = distances(centres) < 110
    for b in range(n_blocks):
        assert connected_components(near[np.ix_(block == b, block == b)])[0] == 1
    order = np.random.default_rng(0).permutation(len(centres))
    np.testing.assert_array_equal(balanced_blocks(centres[order], n_blocks), block[order])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 30), st.data())
def test_balanced_blocks_always_give_the_number_asked_for(seed, n, data):
    centres = np.random.default_rng(seed).integers(0, 4, (n, 2)).astype(float)  # many observations in one place
    n_blocks = data.draw(st.integers(1, n))
    np.testing.assert_array_equal(np.unique(balanced_blocks(centres, n_blocks)), np.arange(n_blocks))


def test_errors_say_what_was_found():
    centres = hex_centres(4, 4)
    block = np.arange(16) // 8
    for call, match in [
        (lambda: square_blocks(centres, 0), "block_um=0"),
        (lambda: balanced_blocks(centres, 17), "n_blocks=17 of 16"),
        (lambda: square_blocks(centres[:, :1], 1), r"shape \(16, 1\)"),
        (lambda: square_blocks(np.full((3, 2), np.nan), 1), "3 rows with NaN"),
        (lambda: hold_out(block, [5], centres), r"\[5\] do not exist"),
        (lambda: hold_out(block, [], centres), "Blocks to hold out"),
        (lambda: hold_out(block, [0], centres, -1), "buffer_um=-1"),
        (lambda: hold_out(block[:-1], [0], centres), "different numbers"),
        (lambda: hold_out(block, [0], centres, 1e9), "Nothing is left"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
