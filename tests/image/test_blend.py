import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stimg.image.blend import TAPERS, Blend, taper, tile_windows


@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    dy=st.integers(0, 11),
    dx=st.integers(0, 11),
)
@settings(max_examples=200, deadline=None)
def test_tiles_cover_every_point_and_stay_inside(rows, cols, height, width, dy, dx):
    overlap = (min(dy, height - 1), min(dx, width - 1))
    count = np.zeros((rows, cols), dtype=int)
    corners = tile_windows((rows, cols), (height, width), overlap)
    for top, left in corners:
        for y in range(height):
            for x in range(width):
                if 0 <= top + y < rows and 0 <= left + x < cols:
                    count[top + y, left + x] += 1
        assert (0 <= top and top + height <= rows) or (top <= 0 and top + height >= rows)
        assert (0 <= left and left + width <= cols) or (left <= 0 and left + width >= cols)
    assert count.min() >= 1
    assert len(np.unique(corners, axis=0)) == len(corners)
    tops = np.unique(corners[:, 0])
    assert (np.diff(tops) <= height - overlap[0]).all()


def test_tiles_without_overlap_are_a_partition_where_they_fit():
    assert tile_windows((6, 4), (3, 2)).tolist() == [[0, 0], [0, 2], [3, 0], [3, 2]]
    assert tile_windows((3, 5), (6, 5)).tolist() == [[-1, 0]]


@pytest.mark.parametrize("overlap", [4, -1, (0, 4)])
def test_an_overlap_as_large_as_the_window_raises(overlap):
    with pytest.raises(ValueError, match="overlap"):
        tile_windows((10, 10), (4, 4), overlap)


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (1, 1)])
def test_tapers(size):
    triangle = taper(size, "triangle")
    assert (triangle > 0).all()
    assert np.array_equal(triangle, triangle[::-1, ::-1])
    assert triangle.max() == triangle[size[0] // 2, size[1] // 2]
    assert (taper(size, "uniform") == 1).all()
    centre = taper(size, "centre")
    assert centre.sum() == 1
    assert centre[size[0] // 2, size[1] // 2] == 1
    with pytest.raises(ValueError, match="hann"):
        taper(size, "hann")


@pytest.mark.parametrize("kind", TAPERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blend_equals_a_naive_weighted_mean(kind, dtype):
    rng = np.random.default_rng(0)
    n, dim, weight = 30, 3, taper((4, 5), kind)
    blend, top, bottom = Blend(n, dim, dtype=dtype), np.zeros((n, dim)), np.zeros(n)
    for _ in range(12):
        obs = np.where(rng.random((2, 4, 5)) < 0.3, -1, rng.integers(0, n, (2, 4, 5)))
        values = rng.normal(size=(2, 4, 5, dim)).astype(dtype)
        blend.add(obs, values, weight)
        for b, y, x in np.argwhere(obs >= 0):
            top[obs[b, y, x]] += weight[y, x] * values[b, y, x].astype(np.float64)
            bottom[obs[b, y, x]] += weight[y, x]
    rows = np.flatnonzero(bottom > 0)
    found = blend.result(rows)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, top[rows] / bottom[rows, None], rtol=0, atol=1e-12 if dtype == np.float64 else 1e-5)


def test_a_constant_and_a_single_cover_come_back_exactly():
    blend = Blend(3, 2)
    constant = np.array([[0.1, 1e9 / 3], [7.0, -0.3], [0, 1e-30]], dtype=np.float32)
    for weight in (0.3, 0.7, 1e-3):
        blend.add(np.array([[0, 1]]), constant[None, :2], np.array([weight, weight]))
    blend.add(np.array([[2, -1]]), np.stack([constant[2], [np.nan, np.nan]])[None], np.array([0.1, 1.0]))
    assert np.array_equal(blend.result(), constant)


def test_an_uncovered_observation_raises_and_names_it():
    blend = Blend(4, 1)
    blend.add(np.array([[0, 2]]), np.ones((1, 2, 1)), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"3 of 4 .* row 1\b"):
        blend.result()
    with pytest.raises(ValueError, match=r"1 of 2 .* row 3\b"):
        blend.result(np.array([0, 3]), at=np.array([0, 2]))
    assert blend.result(np.array([3, 0]), at=np.array([0, 0])).tolist() == [[1.0], [1.0]]


def test_wrong_input_raises():
    blend = Blend(2, 3)
    with pytest.raises(ValueError, match=r"\(1, 2, 3\)"):
        blend.add(np.array([[0, 1]]), np.ones((1, 2, 2)))
    with pytest.raises(ValueError, match="row 5"):
        blend.add(np.array([[0, 5]]), np.ones((1, 2, 3)))
    with pytest.raises(ValueError, match="weight"):
        blend.add(np.array([[0, 1]]), np.ones((1, 2, 3)), np.array([-1.0, 1.0]))
    with pytest.raises(ValueError, match="at least 1"):
        Blend(0, 3)
