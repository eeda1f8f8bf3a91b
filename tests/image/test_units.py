"""Scale and axes: every pair of sources, and every wrong unit with its measured value."""

import numpy as np
import pytest

from stimg.image.units import Metadata, check_extent, check_mpp, px_to_um, resolve_scale, to_xy, to_yx, um_to_px


def test_axes_and_units():
    xy = np.array([[1, 2], [3, 4]])
    assert to_yx(xy).tolist() == [[2.0, 1.0], [4.0, 3.0]]
    assert (to_xy(to_yx(xy)) == xy).all()
    assert px_to_um(200, 0.5) == 100.0
    assert um_to_px(px_to_um(7.0, 0.3), 0.3) == pytest.approx(7.0)
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        to_yx(np.zeros((3, 3)))


@pytest.mark.parametrize("value", [0.0099, 50.1, 0.0, -1.0, np.nan, np.inf])
def test_mpp_outside_limits(value):
    with pytest.raises(ValueError, match=r"wanted 0.01 .. 50"):
        check_mpp(value)


def test_every_source():
    assert resolve_scale(138.0, pitch_default=100.0).mpp == pytest.approx(100 / 138)
    measured = resolve_scale(138.0, Metadata(mpp=0.7))
    assert (measured.pitch_um, measured.pitch_source) == (pytest.approx(96.6), "measured")
    assert resolve_scale(138.0, Metadata(mpp=0.72), pitch_default=100.0).pitch_um == pytest.approx(99.36)
    assert resolve_scale(138.0, Metadata(pitch_um=8.0)).mpp == pytest.approx(8 / 138)
    stated = resolve_scale(None, mpp=0.5, pitch_um=8.0)
    assert (stated.mpp, stated.pitch_um, stated.mpp_source, stated.pitch_source) == (0.5, 8.0, "argument", "argument")


@pytest.mark.parametrize(
    ("pitch_px", "metadata", "arguments", "message"),
    [
        (138.0, {}, {}, "Pass `mpp=`"),
        (None, {}, {"mpp": 0.5}, "Pass `pitch_um=`"),
        (None, {}, {"pitch_um": 100.0}, "Pass `mpp=`"),
        (138.0, {"mpp": 0.7}, {"mpp": 0.75}, "0.75 was passed, but .* is 0.7 "),
        (138.0, {"pitch_um": 8.0}, {"pitch_um": 16.0}, "16 was passed, but .* is 8 "),
        (138.0, {"mpp": 0.5}, {"pitch_default": 100.0}, "0.7246 µm per pixel, but .* says 0.5"),
        (100.0, {"mpp": 0.5}, {"pitch_default": 100.0}, "look like µm"),
        (
            138.0 * 0.15,
            {"mpp": 100 / 138, "hires_scale": 0.15},
            {"pitch_default": 100.0},
            "pixels of the hires image: divide them by .* 0.15",
        ),
        (138.0 * 0.05, {"mpp": 100 / 138, "lowres_scale": 0.05}, {"pitch_default": 100.0}, "pixels of the lowres image"),
        (1.0, {}, {"pitch_um": 200.0}, "array indices"),
    ],
)
def test_contradictions_state_the_value(pitch_px, metadata, arguments, message):
    with pytest.raises(ValueError, match=message):
        resolve_scale(pitch_px, Metadata(**metadata), **arguments)


def test_five_percent_is_the_border():
    assert resolve_scale(100.0, Metadata(mpp=1.0), pitch_um=104.9).mpp == 1.0
    with pytest.raises(ValueError, match=r"1.051"):
        resolve_scale(100.0, Metadata(mpp=1.0), pitch_um=105.1)


def test_metadata_from_uns():
    entry = {
        "images": {"lowres": np.zeros((300, 600, 3))},
        "scalefactors": {"tissue_lowres_scalef": 0.05, "spot_diameter_fullres": 90, "microns_per_pixel": 0.5, "bin_size_um": 8},
    }
    found = Metadata.from_uns(entry)
    assert found.image_size == (6000.0, 12000.0)
    assert (found.mpp, found.pitch_um, found.spot_diameter_px) == (0.5, 8.0, 90.0)
    assert Metadata.from_uns(None) == Metadata() == Metadata.from_uns({})
    with pytest.raises(ValueError, match="microns_per_pixel"):
        Metadata.from_uns({"scalefactors": {"microns_per_pixel": -1}})


def test_extent():
    image = Metadata(image_size=(1000.0, 2000.0), hires_scale=0.1)
    inside = np.array([[10.0, 10.0], [900.0, 1900.0]])
    check_extent(inside, image, pitch_px=10.0)
    with pytest.raises(ValueError, match=r"1 of 2 observations lie outside the image .* swapped"):
        check_extent(inside[:, ::-1], image, pitch_px=10.0)
    with pytest.raises(ValueError, match="not of this image's"):
        check_extent(inside * 3, image, pitch_px=10.0)
    with pytest.raises(ValueError, match="fill the hires image of 200 x 100"):
        check_extent(inside * 0.1, image, pitch_px=1.0)
    check_extent(inside * 0.1, image, pitch_px=1.0, confirmed=True)
    with pytest.raises(ValueError, match=r"0.2 of scalefactors"):
        check_extent(inside * 0.1, Metadata(spot_diameter_px=50.0), pitch_px=10.0)
