"""Slides of arrays: levels, padding, sub-pixel places, bad input; the reference is a supersampled image."""

import pickle

import numpy as np
import pytest
from PIL import Image

from stimg.image import Level, Slide, TileSpec, open_slide
from stimg.image.slide_source import levels_of


def ramp(height, width):
    """Red rises with y, green with x, blue with both; linear, so that a mean over a square is the value at its centre."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.stack([y * 200 / height + 20, x * 200 / width + 20, (y / height + x / width) * 100 + 20], axis=-1)


def halved(image, times):
    for _ in range(times):
        image = image[: len(image) // 2 * 2, : image.shape[1] // 2 * 2].reshape(len(image) // 2, 2, image.shape[1] // 2, 2, 3).mean((1, 3))
    return image


def as_bytes(image):
    return np.rint(image).astype(np.uint8)


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (180, 210, 3), dtype=np.uint8)


def test_windows_are_slices_and_white_outside(noise):
    slide = open_slide(noise)
    assert slide.levels == (Level(180, 210, 1.0),)
    np.testing.assert_array_equal(slide.read(0, 20, 30, 50, 60), noise[20:70, 30:90])
    wide = np.pad(noise, ((40, 40), (40, 40), (0, 0)), constant_values=255)
    for top, left in ((-10, -20), (150, 190), (-40, 100), (175, -35)):
        np.testing.assert_array_equal(slide.read(0, top, left, 40, 35), wide[top + 40 : top + 80, left + 40 : left + 75])
    assert (slide.read(0, 500, 500, 3, 4) == 255).all()


@pytest.mark.parametrize("centre", [(90.0, 100.0), (90.5, 100.25), (77.31, 90.99), (3.2, 5.7), (178.0, 300.0)])
@pytest.mark.parametrize(("side", "size"), [(40.0, 16), (33.3, 31), (64.0, 7), (30.0, 30), (30.0, 31)])
def test_a_tile_is_a_supersampled_square(noise, centre, side, size):
    """Each delivered pixel is the mean of the square it covers, at any fraction of a pixel; at the same size it is a copy on the pixel grid."""
    tile, outside = open_slide(noise).tile(centre, side, size)
    step, fine = side / size, 40
    if abs(side - size) < 0.5:
        top, left = (int(np.floor(c - size / 2 + 0.5)) for c in centre)
        wide = np.pad(noise, ((250, 250), (250, 250), (0, 0)), constant_values=255)
        np.testing.assert_array_equal(tile, wide[top + 250 : top + 250 + size, left + 250 : left + 250 + size])
    else:
        offsets = (np.arange(size * fine) + 0.5) / fine * step - side / 2
        y, x = (np.floor(c + offsets).astype(int) for c in centre)
        wide = np.pad(noise, ((400, 400), (400, 400), (0, 0)), constant_values=255)
        samples = wide[np.ix_(y + 400, x + 400)].astype(float)
        wanted = samples.reshape(size, fine, size, fine, 3).mean((1, 3))
        assert np.abs(tile - wanted).max() < 0.5 + 255 * 2.5 / fine  # the samples' own grain
        assert np.abs(tile - wanted).mean() < 1.0
    at = [(centre[a] - side / 2 + (np.arange(2000) + 0.5) / 2000 * side) for a in (0, 1)]
    inside = np.mean((at[0] >= 0) & (at[0] < 180)) * np.mean((at[1] >= 0) & (at[1] < 210))
    assert outside == pytest.approx(1 - inside, abs=2e-3)


def test_a_linear_ramp_keeps_its_values_at_the_centres():
    image = ramp(400, 400)
    slide = open_slide(as_bytes(image))
    for centre, side, size in (((200.0, 200.0), 150.0, 50), ((173.37, 220.81), 140.0, 32), ((200.25, 199.5), 220.0, 100)):
        tile, _ = slide.tile(centre, side, size)
        at = (np.arange(size) + 0.5) * side / size - side / 2
        y, x = np.meshgrid(centre[0] + at, centre[1] + at, indexing="ij")
        wanted = np.stack([y / 2 + 20, x / 2 + 20, (y + x) / 4 + 20], axis=-1)
        assert np.abs(tile - wanted).max() < 1.01  # two roundings to bytes


def test_levels_show_the_same_place():
    """A pyramid, read at the resolution of each of its levels, gives what the finest level gives alone."""
    image = ramp(512, 640)
    image += 25 * np.sin(np.mgrid[:512, :640][0] / 40)[..., None]
    pyramid = [as_bytes(halved(image, k)) for k in range(4)]
    slide, alone = open_slide(pyramid), open_slide(pyramid[0])
    assert [level.downsample for level in slide.levels] == [1, 2, 4, 8]
    for step, which in ((1.0, 0), (1.5, 0), (2.0, 1), (3.9, 1), (4.0, 2), (9.0, 3)):
        assert slide.level_for(step) == which
        tile, _ = slide.tile((250.7, 300.2), 24 * step, 24)
        finest, _ = alone.tile((250.7, 300.2), 24 * step, 24)
        moved = step if abs(24 * step / slide.levels[which].downsample - 24) < 0.5 else 0  # on the pixel grid of its level
        assert np.abs(tile.astype(int) - finest).max() <= 2 + 1.1 * moved


def test_a_level_is_never_coarser_than_wanted():
    slide = open_slide([np.zeros((s, s, 3), np.uint8) for s in (800, 400, 100)])
    assert [slide.level_for(step) for step in (0.96, 1.0, 1.97, 1.99, 2.0, 7.9, 7.95, 100.0)] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_coarser_slide_is_an_error_unless_interpolated():
    image = as_bytes(ramp(200, 200))
    slide = open_slide(image, mpp=1.0)
    with pytest.raises(ValueError, match=r"2 times coarser than the tile wanted \(1 µm per pixel, wanted 0\.5\).*upsample=True"):
        slide.tile((100, 100), 50, 100)
    slide.tile((100, 100), 96, 100)  # 4 % is the same
    tile, _ = slide.tile((100.3, 99.6), 50, 100, upsample=True)
    y, x = np.meshgrid(*(c + (np.arange(100) + 0.5) / 2 - 25 for c in (100.3, 99.6)), indexing="ij")
    assert np.abs(tile - np.stack([y + 20, x + 20, (y + x) / 2 + 20], axis=-1)).max() < 1.51
    edge, outside = slide.tile((0, 0), 50, 100, upsample=True)
    assert outside == 0.75
    assert (edge[:45, :45] == 255).all()


def test_the_share_outside_is_exact():
    slide = open_slide(np.zeros((100, 80, 3), np.uint8))
    np.testing.assert_allclose(slide.outside([[50, 40], [0, 0], [50, -10], [-200, 0], [95, 75]], 20), [0, 0.75, 1, 1, 1 - 15 * 15 / 400])
    assert slide.outside((50, 40), 200) == 1 - 8000 / 40000


def test_a_thumbnail_is_the_whole_slide(monkeypatch):
    image = as_bytes(ramp(300, 410))
    small, step = open_slide(image).thumbnail(100)
    assert step == pytest.approx(4.1)
    assert small.shape == (74, 100, 3)
    y, x = np.meshgrid((np.arange(73) + 0.5) * step, (np.arange(100) + 0.5) * step, indexing="ij")
    assert np.abs(small[:73, :, 0] - (y * 200 / 300 + 20)).max() < 1.01
    assert np.abs(small[:73, :, 1] - (x * 200 / 410 + 20)).max() < 1.01
    monkeypatch.setattr("stimg.image.slide._STRIP_BYTES", 20_000)  # many strips
    np.testing.assert_array_equal(open_slide(image).thumbnail(100)[0], small)
    np.testing.assert_array_equal(open_slide(image).thumbnail(1000)[0], image)


def test_levels_are_told_from_their_sizes():
    assert [level.downsample for level in levels_of([(3567, 4443), (1783, 2221)], "x")] == [1, 2]  # rounded down
    assert [level.downsample for level in levels_of([(101, 77), (51, 39), (26, 20)], "x")] == [1, 2, 4]  # rounded up
    assert levels_of([(1000, 1000), (300, 300)], "x")[1].downsample == pytest.approx(10 / 3)
    for sizes in ([(50, 50), (100, 100)], [(100, 100), (100, 100)], [(100, 200), (50, 60)]):
        with pytest.raises(ValueError, match="wanted the finest first"):
            levels_of(sizes, "x")
    with pytest.raises(ValueError, match="none of them empty"):
        levels_of([(0, 4)], "x")


def test_mpp_is_what_was_said_and_by_whom(noise):
    slide = open_slide(noise)
    assert slide.mpp is None
    assert slide.mpp_source == "none"
    with pytest.raises(ValueError, match="does not say how many µm"):
        slide.require_mpp()
    told = slide.with_mpp({"the user": 0.5, "another": 0.6})
    assert (told.mpp, told.mpp_source, told.mpp_sources) == (0.5, "the user", {"the user": 0.5, "another": 0.6})
    assert open_slide(told) is told
    assert open_slide(told, mpp=0.25).mpp_sources == {"argument": 0.25}
    with pytest.raises(ValueError, match=r"mpp is 1000 µm per pixel; wanted 0\.01"):
        open_slide(noise, mpp=1000)
    with pytest.raises(TypeError, match="wanted a number"):
        open_slide(noise, mpp="0.5")


def test_fingerprints_follow_the_pixels(noise, tmp_path):
    other = noise.copy()
    other[90, 105] += 1
    assert open_slide(noise).fingerprint() == open_slide(noise.copy()).fingerprint() != open_slide(other).fingerprint()
    Image.fromarray(noise).save(tmp_path / "a.png")
    before = open_slide(tmp_path / "a.png").fingerprint()
    assert before == open_slide(tmp_path / "a.png").fingerprint()
    Image.fromarray(other).save(tmp_path / "a.png")
    assert before != open_slide(tmp_path / "a.png").fingerprint()


def test_png_and_jpg_are_decoded_once_and_reopened_after_pickling(noise, tmp_path, monkeypatch):
    Image.fromarray(noise).save(tmp_path / "a.png")
    from stimg.image import pixels

    calls = []
    plain = pixels.read_rgb
    monkeypatch.setattr(pixels, "read_rgb", lambda path: calls.append(path) or plain(path))
    slide = open_slide(str(tmp_path / "a.png"))
    assert slide.levels[0] == Level(180, 210, 1.0)
    assert not calls
    for _ in range(3):
        np.testing.assert_array_equal(slide.read(0, 10, 10, 20, 20), noise[10:30, 10:30])
    assert len(calls) == 1
    text = pickle.dumps(slide)
    assert len(text) < 2000
    np.testing.assert_array_equal(pickle.loads(text).read(0, 0, 0, 180, 210), noise)
    assert len(calls) == 2
    Image.fromarray(noise[:100]).save(tmp_path / "a.png")
    with slide as again:
        assert again.read(0, 0, 0, 5, 5).shape == (5, 5, 3)  # kept
    with pytest.raises(ValueError, match="when it was opened"):
        slide.read(0, 0, 0, 5, 5)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (np.zeros((5, 5), np.uint8), ValueError, r"wanted \(y, x, 3\)"),
        (np.zeros((5, 5, 4), np.uint8), ValueError, "Drop an alpha channel"),
        (np.zeros((3, 5, 6), np.uint8), ValueError, "Move the channels to the end"),
        (np.zeros((5, 5, 3), np.uint16), TypeError, "uint16; wanted uint8"),
        (np.full((5, 5, 3), 200.0), TypeError, "float64; wanted uint8"),
        ([], ValueError, "empty list"),
        ([np.zeros((5, 5, 3), np.uint8), np.zeros((3, 3), np.uint8)], ValueError, "level 1 of the image"),
        (object(), TypeError, "wanted a path, an array"),
        ("/nowhere/slide.svs", FileNotFoundError, "there is no image"),
    ],
)
def test_what_is_no_slide(source, error, words):
    with pytest.raises(error, match=words):
        open_slide(source)


def test_files_that_are_no_images(tmp_path, noise):
    with pytest.raises(ValueError, match=r"is a folder, not an image\. Read a zarr store"):
        open_slide(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no image at all")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        open_slide(tmp_path / "a.png")
    Image.fromarray(noise).save(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    slide = open_slide(tmp_path / "b.png")  # the header is there
    with pytest.raises(ValueError, match="cannot be read as an image"):
        slide.read(0, 0, 0, 10, 10)


def test_windows_and_tiles_that_cannot_be(noise):
    slide = open_slide(noise)
    with pytest.raises(ValueError, match=r"has levels 0 \.\. 0"):
        slide.read(1, 0, 0, 5, 5)
    with pytest.raises(ValueError, match="at least one row"):
        slide.read(0, 0, 0, 0, 5)
    with pytest.raises(ValueError, match="is not finite"):
        slide.tile((float("nan"), 3), 10, 10)
    with pytest.raises(ValueError, match="wanted positive numbers"):
        slide.tile((5, 3), -10, 10)


def test_a_slide_says_what_it_is(noise):
    assert repr(open_slide([noise, noise[::2, ::2]], mpp=0.5)) == "Slide(the image, 210 x 180, 105 x 90, mpp=0.5)"
    assert isinstance(open_slide(noise), Slide)


class TestTileSpec:
    def test_numbers(self):
        spec = TileSpec(tile_um=112, mpp=0.7, fields=(1, 2.5))
        assert spec.size_px == 160
        assert spec.sides_um == (112.0, 280.0)
        assert TileSpec.from_dict(spec.to_dict()) == spec

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"tile_um": 0.0, "mpp": 0.5}, "tile_um=0.0 is not above zero"),
            ({"tile_um": 100, "mpp": 80}, "wanted 0.01"),
            ({"tile_um": 0.2, "mpp": 0.5}, "less than one pixel"),
            ({"tile_um": 100, "mpp": 0.5, "fields": ()}, "at least one number"),
            ({"tile_um": 100, "mpp": 0.5, "fields": (1, 1.0)}, "names a field twice"),
            ({"tile_um": 100, "mpp": 0.5, "fields": (1, -2)}, "fields=-2 is not above zero"),
        ],
    )
    def test_nonsense(self, options, words):
        with pytest.raises(ValueError, match=words):
            TileSpec(**options)
