"""Squares of tissue against every pair of points."""

import numpy as np
import pytest

from stimg.data.random_places import MOST, Places, pitch_of, places_around


@pytest.fixture
def centres():
    return np.random.default_rng(0).uniform(0, 1000, (40, 2))


def test_squares_are_those_within_reach(centres):
    places = places_around(centres, 60.0)
    assert places.side == 7.5
    low, high = places.box()
    grid = np.stack(np.meshgrid(*(np.arange(lo - 75, hi + 75, 7.5) for lo, hi in zip(low, high, strict=True)), indexing="ij"), -1)
    corners = grid.reshape(-1, 2)
    distance = np.linalg.norm(corners[:, None] + 3.75 - centres, axis=2).min(1)
    wanted = corners[distance <= 60]
    assert {tuple(np.round(c, 6)) for c in places.corners} == {tuple(np.round(c, 6)) for c in wanted}
    assert len(np.unique(places.corners, axis=0)) == len(places.corners)
    assert places.area == pytest.approx(len(wanted) * 7.5**2)


def test_a_square_array_leaves_no_gap():
    y, x = np.mgrid[:6, :6] * 100.0
    places = places_around(np.stack([y, x], -1).reshape(-1, 2), 75.0)
    middles = np.random.default_rng(0).uniform(10, 490, (500, 2))
    hit = ((middles[:, None] >= places.corners) & (middles[:, None] < places.corners + places.side)).all(2).sum(1)
    assert (hit == 1).all()


def test_there_are_never_too_many_squares():
    far = np.array([[0.0, 0.0], [1e6, 1e6], [5e5, 1e5]])
    places = places_around(far, 50.0)
    assert places.side > 50 / 8
    assert places.side**2 * MOST == pytest.approx((1e6 + 100) ** 2)
    for point in far:  # coarse as they are, each observation's own place is there
        assert ((point >= places.corners - 1e-6) & (point <= places.corners + places.side + 1e-6)).all(1).any()


def test_apart_means_that_no_tiles_touch(centres):
    mine, others = places_around(centres[:30], 60.0), places_around(centres[30:], 60.0)
    kept = mine.apart_from(others, 50.0)
    assert 0 < len(kept.corners) < len(mine.corners)

    def gap(corner):
        """Largest over the axes of the distance between two squares, smallest over the others."""
        apart = np.maximum(corner - (others.corners + others.side), others.corners - (corner + mine.side))
        return apart.max(1).min()

    gaps = {tuple(corner): gap(corner) for corner in mine.corners}
    assert {tuple(c) for c in kept.corners} == {c for c, found in gaps.items() if found >= 50 - 1e-6}
    assert mine.apart_from(Places(np.empty((0, 2)), 1.0), 50.0) is mine


def test_pitch(centres):
    distance = np.linalg.norm(centres[:, None] - centres, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert pitch_of(centres) == pytest.approx(np.median(distance.min(1)))
    assert pitch_of(centres[:1]) == np.inf
