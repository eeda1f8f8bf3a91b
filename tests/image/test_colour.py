"""Colour statistics against numpy's own mean, standard deviation and percentiles of every window, cut out one by one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stimg.image import colour
from stimg.image.colour import colour_statistics


def plain(image, centres, mpp, windows_um):
    """Cut out each window, turn it into optical densities, and ask numpy."""
    height, width = image.shape[:2]
    rows, padded = [], []
    for y, x in centres:
        row = []
        for um in windows_um:
            side = round(um / mpp)
            y0, x0 = math.floor(y - side / 2 + 0.5), math.floor(x - side / 2 + 0.5)
            window = image[max(y0, 0) : max(min(y0 + side, height), 0), max(x0, 0) : max(min(x0 + side, width), 0)]
            density = -np.log10((window.astype(float) + 1) / 256)
            for channel in range(3):
                d = density[..., channel]
                row += [d.mean(), d.std(), np.percentile(d, 10), np.percentile(d, 90)]
        rows.append(row)
        padded.append(1 - window.shape[0] * window.shape[1] / side**2)
    return np.array(rows), np.array(padded)


def picture(rng, shape):
    """Values of all kinds: plain white, noise, a few levels."""
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    image[: shape[0] // 3] = 255
    image[:, : shape[1] // 4] = rng.choice([0, 17, 240], (shape[0], shape[1] // 4, 3)).astype(np.uint8)
    return image


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 60), st.integers(1, 60), st.integers(1, 12), st.floats(0.3, 2.0), st.integers(1, 4))
def test_any_windows_of_small_images(seed, height, width, n, mpp, k):
    rng = np.random.default_rng(seed)
    image = picture(rng, (height, width))
    centres = rng.random((n, 2)) * np.array([height, width])
    windows_um = np.cumsum(rng.uniform(2.1 * mpp, 12 * mpp, k))
    got = colour_statistics(image, centres, mpp=mpp, windows_um=windows_um)
    expected, padded = plain(image, centres, mpp, windows_um)
    assert got.values.dtype == np.float32
    assert got.values.shape == (n, 12 * k)
    np.testing.assert_allclose(got.values, expected, rtol=2e-6, atol=2e-7)
    np.testing.assert_allclose(got.padded, padded, atol=1e-12)


@pytest.mark.parametrize("step", [1.0, 3.7, 12.0, 60.0])
def test_sliding_counts_what_counting_again_counts(step):
    """From dense bins, whose windows share most pixels, to spots far apart; in any order; each spot as if it were alone."""
    rng = np.random.default_rng(0)
    image = picture(rng, (130, 140))
    grid = np.stack(np.meshgrid(np.arange(2, 128, step), np.arange(3, 138, step), indexing="ij"), axis=-1).reshape(-1, 2)
    centres = grid[rng.permutation(len(grid))[:400]] + rng.uniform(-0.4, 0.4, (min(len(grid), 400), 2))
    got = colour_statistics(image, centres, mpp=0.5, windows_um=(3, 7.5, 20))
    few = rng.permutation(len(centres))[:12]
    np.testing.assert_allclose(got.values[few], plain(image, centres[few], 0.5, (3, 7.5, 20))[0], rtol=2e-6, atol=2e-7)
    order = rng.permutation(len(centres))
    np.testing.assert_array_equal(colour_statistics(image, centres[order], mpp=0.5, windows_um=(3, 7.5, 20)).values, got.values[order])
    alone = [colour_statistics(image, centres[i : i + 1], mpp=0.5, windows_um=(3, 7.5, 20)).values[0] for i in few]
    np.testing.assert_array_equal(alone, got.values[few])


def test_dense_bins_do_slide(monkeypatch):
    """A bin's histograms come from its neighbour's: the count of a whole window is needed once a strip at most."""
    calls = []
    rings = colour._count_outside.py_func

    def counted(image, window, other, by, hist):
        before = hist.sum()
        rings(image, window, other, by, hist)
        calls.append(abs(int(hist.sum() - before)))

    monkeypatch.setattr(colour, "_count", colour._count.py_func)
    monkeypatch.setattr(colour, "_count_outside", counted)
    centres = np.stack([np.arange(20, 60, 2.0), np.full(20, 40.0)], axis=1)
    image = picture(np.random.default_rng(1), (80, 80))
    out = np.empty((20, 1, 3, 4), dtype=np.float32)
    windows = np.array([[[y - 15, y + 15, 25, 55]] for y in np.arange(20, 60, 2)])
    colour._statistics.py_func(image, windows, np.arange(20), colour.OPTICAL_DENSITY, out)
    assert len(calls) == 2 * 19
    assert max(calls) == 2 * 30 * 3
    np.testing.assert_allclose(out.reshape(20, 12), plain(image, centres, 1.0, (30,))[0], rtol=2e-6, atol=2e-7)


def test_names_say_what_the_columns_hold():
    image = np.full((50, 50, 3), 255, dtype=np.uint8)
    image[..., 2] = 25
    image[20:30, 20:30, 0] = 99
    got = colour_statistics(image, [[25, 25]], mpp=1, windows_um=(10, 20.5))
    assert got.names[0] == "10um_red_mean"
    assert got.names[-1] == "20.5um_blue_p90"
    assert len(set(got.names)) == len(got.names) == got.values.shape[1]
    column = dict(zip(got.names, got.values[0], strict=True))
    red, blue = -math.log10(100 / 256), -math.log10(26 / 256)
    assert column["10um_red_mean"] == pytest.approx(red)
    assert column["20.5um_red_mean"] == pytest.approx(red / 4)
    assert column["20.5um_red_sd"] == pytest.approx(red * math.sqrt(3) / 4)
    assert column["20.5um_red_p10"] == 0
    assert column["10um_blue_p10"] == pytest.approx(blue)
    assert column["10um_green_mean"] == 0
    assert len(colour_statistics(image, [[25, 25]], mpp=1).names) == 48


def test_whole_pixel_shifts_move_the_windows_and_mpp_scales_them():
    rng = np.random.default_rng(2)
    image = picture(rng, (90, 90))
    centres = rng.uniform(40, 50, (30, 2))
    one = colour_statistics(image, centres, mpp=0.5, windows_um=(4, 9))
    shifted = colour_statistics(np.roll(image, (7, -11), axis=(0, 1)), centres + np.array([7, -11]), mpp=0.5, windows_um=(4, 9))
    np.testing.assert_array_equal(shifted.values, one.values)
    np.testing.assert_array_equal(colour_statistics(image, centres, mpp=2.0, windows_um=(16, 36)).values, one.values)


@pytest.mark.parametrize("form", ["memmap", "read-only", "reversed", "fortran", "part"])
def test_any_form_of_the_array(form, tmp_path):
    rng = np.random.default_rng(3)
    image = picture(rng, (40, 50))
    centres = rng.uniform(5, 35, (10, 2))
    expected = colour_statistics(image, centres, mpp=1, windows_um=(5, 11)).values
    if form == "memmap":
        np.save(tmp_path / "image.npy", image)
        given_ = np.load(tmp_path / "image.npy", mmap_mode="r")
    elif form == "read-only":
        given_ = image.copy()
        given_.flags.writeable = False
    elif form == "reversed":
        given_ = image[::-1, ::-1].copy()[::-1, ::-1]
    elif form == "fortran":
        given_ = np.asfortranarray(image)
    else:
        given_ = np.concatenate([image, image[..., :1]], axis=2)[..., :3]
    np.testing.assert_array_equal(colour_statistics(given_, centres, mpp=1, windows_um=(5, 11)).values, expected)


def test_no_spots_and_spots_beyond_the_border():
    image = picture(np.random.default_rng(4), (30, 30))
    none = colour_statistics(image, np.empty((0, 2)), mpp=1)
    assert none.values.shape == (0, 48)
    assert none.padded.shape == (0,)
    corner = colour_statistics(image, [[-3.0, 32.0]], mpp=1, windows_um=(10, 20))
    assert corner.padded[0] == pytest.approx(1 - 7 * 8 / 400)
    np.testing.assert_allclose(corner.values, plain(image, [[-3.0, 32.0]], 1, (10, 20))[0], rtol=2e-6, atol=2e-7)


GREY = np.zeros((20, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "centres", "options", "error", "match"),
    [
        (GREY[..., 0], [[5, 5]], {}, ValueError, r"shape \(20, 20\)"),
        (np.zeros((20, 20, 4), np.uint8), [[5, 5]], {}, ValueError, "alpha"),
        (GREY.astype(float), [[5, 5]], {}, TypeError, "float64"),
        (GREY, [5, 5], {}, ValueError, r"shape \(2,\)"),
        (GREY, [[5, np.nan]], {}, ValueError, "1 rows of 1"),
        (GREY, [[5, 5]], {"mpp": 0}, ValueError, "mpp"),
        (GREY, [[5, 5]], {"windows_um": ()}, ValueError, "rising"),
        (GREY, [[5, 5]], {"windows_um": (9, 9)}, ValueError, "rising"),
        (GREY, [[5, 5]], {"windows_um": (0.3, 9)}, ValueError, "half a pixel"),
        (GREY, [[5, 5]], {"windows_um": (3, math.inf)}, ValueError, "rising"),
        (GREY, [[5, 5]], {"windows_um": ("a",)}, TypeError, "windows_um='a'"),
        (GREY, [[5, 5], [25, 5], [5, -4]], {"windows_um": (4, 40)}, ValueError, "2 of 3 spots, the first is row 1"),
        (np.zeros((0, 20, 3), np.uint8), [[5, 5]], {}, ValueError, "1 of 1 spots"),
    ],
)
def test_errors_say_what_was_found(image, centres, options, error, match):
    with pytest.raises(error, match=match):
        colour_statistics(image, centres, **{"mpp": 1.0, **options})


@pytest.mark.data
def test_spots_of_a_measured_section(mirror):
    from stimg.datasets import fetch_file, her2st
    from stimg.datasets.registry import FILES
    from stimg.datasets.section import full

    adata, entry = her2st("C2"), FILES["her2st/image/C2"]
    image = full(fetch_file(entry.name), (entry.width, entry.height))
    mpp = adata.uns["spatial"]["C2"]["scalefactors"]["microns_per_pixel"]
    centres = adata.obsm["spatial"][:, ::-1]
    got = colour_statistics(image, centres, mpp=mpp)
    assert got.padded.max() == 0
    few = [0, 60, 150]
    np.testing.assert_allclose(got.values[few], plain(image, centres[few], mpp, colour.WINDOWS_UM)[0], rtol=1e-5, atol=1e-6)
