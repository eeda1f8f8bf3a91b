"""Area means against weights worked out pixel by pixel, and against a supersampled image."""

import numpy as np
import pytest

from stimg.image.area import area_mean


def weights(start, step, n, length):
    """Share of each source pixel in each step, by definition."""
    out = np.zeros((n, length))
    for i in range(n):
        for k in range(length):
            out[i, k] = max(0.0, min(start + (i + 1) * step, k + 1) - max(start + i * step, k)) / step
    return out


@pytest.mark.parametrize(
    ("step", "top", "left", "shape"),
    [
        (1.02, 0.3, 0.7, (20, 20)),
        (2.0, 0.0, 0.0, (20, 20)),
        (2.37, 1.25, 3.5, (20, 9)),
        (5.3, 2.1, 0.4, (9, 10)),
        (0.97, 3.3, 2.2, (30, 12)),
        (16.0, 1, 2, (2, 3)),
    ],
)
def test_every_pixel_is_the_mean_of_what_it_covers(step, top, left, shape):
    image = np.random.default_rng(1).integers(0, 256, (60, 61, 3), dtype=np.uint8)
    out = np.empty((*shape, 3), np.uint8)
    area_mean(image, top, left, step, out)
    wanted = np.einsum("ik,jl,klc->ijc", weights(top, step, shape[0], 60), weights(left, step, shape[1], 61), image.astype(float))
    assert np.abs(out - wanted).max() < 0.5 + 1e-3  # rounded


def test_a_supersampled_checkerboard_agrees():
    image = np.kron(np.indices((20, 20)).sum(0) % 2, np.ones((3, 3))).astype(np.uint8)[..., None].repeat(3, axis=2) * 255
    fine = np.kron(image[..., 0].astype(float), np.ones((10, 10)))  # 10 x 10 samples a pixel
    out = np.empty((12, 12, 3), np.uint8)
    area_mean(image, 2.3, 1.7, 4.5, out)
    for i in range(12):
        for j in range(12):
            y, x = round((2.3 + 4.5 * i) * 10), round((1.7 + 4.5 * j) * 10)
            assert out[i, j, 0] == pytest.approx(fine[y : y + 45, x : x + 45].mean(), abs=0.51)


def test_windows_of_larger_and_planar_images_are_read_alike():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    planar = np.moveaxis(np.ascontiguousarray(np.moveaxis(image, -1, 0)), 0, -1)
    found = [np.empty((8, 8, 3), np.uint8) for _ in range(3)]
    for out, source in zip(found, (image[5:40, 7:50], planar[5:40, 7:50], image[5:40, 7:50].copy()), strict=True):
        area_mean(source, 0.5, 1.5, 3.3, out)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_white_and_black_stay_what_they_are():
    for value in (0, 255):
        out = np.empty((7, 7, 3), np.uint8)
        area_mean(np.full((40, 40, 3), value, np.uint8), 0.3, 0.9, 4.7, out)
        assert (out == value).all()
