"""Whole images from files, larger than Pillow takes for safe, and what is no image."""

import numpy as np
import pytest
from PIL import Image

from stimg.image import pixels
from stimg.image.pixels import open_image, read_rgb


@pytest.fixture
def picture(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    return array, tmp_path / "a.png"


def test_pixels_are_those_of_the_file_and_pillows_limit_stays(picture, monkeypatch):
    array, path = picture
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(read_rgb(path), array)
    with open_image(path, (50, 40)) as image:
        assert image.size == (50, 40)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(ValueError, match=r"has \(50, 40\) pixels \(width, height\), expected \(40, 50\)"), open_image(path, (40, 50)):
        pass
    assert Image.MAX_IMAGE_PIXELS == 100


def test_grey_and_transparent_images_become_rgb(tmp_path):
    Image.fromarray(np.full((9, 8), 7, dtype=np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((9, 8, 4), 7, dtype=np.uint8)).save(tmp_path / "clear.png")
    for name in ("grey.png", "clear.png"):
        assert read_rgb(tmp_path / name).shape == (9, 8, 3)


def test_what_is_no_image_is_refused(picture, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"there is no image .*b\.png"):
        read_rgb(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"c\.png cannot be read as an image"):
        read_rgb(tmp_path / "c.png")
    (tmp_path / "d.png").write_bytes(picture[1].read_bytes()[:900])
    with pytest.raises(ValueError, match=r"d\.png cannot be read as an image"):
        read_rgb(tmp_path / "d.png")
    monkeypatch.setattr(pixels, "LARGEST", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
        read_rgb(picture[1])
