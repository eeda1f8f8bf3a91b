"""TIFF, SVS and OME-TIFF files against tifffile reading them whole; damage; what files say of their scale."""

import pickle
import sys
import types

import numpy as np
import pytest
import tifffile
from PIL import Image

from stimg.image import open_slide
from stimg.image.slide_cache import PieceCache
from stimg.image.slide_tiff_layout import tiff_layout


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 256, (50, 61, 3)), np.ones((10, 10, 1))).astype(np.uint8)[:491, :603]


LAYOUTS = {
    "tiles": {"tile": (64, 96)},
    "deflate": {"tile": (128, 128), "compression": "zlib", "predictor": True},
    "jpeg": {"tile": (64, 64), "compression": "jpeg"},
    "jpeg2000": {"tile": (128, 128), "compression": "jpeg2000"},
    "strips": {"rowsperstrip": 37, "compression": "lzw"},
    "one strip, plain": {},
    "planar": {"tile": (64, 64), "planarconfig": "separate", "compression": "zlib"},
    "planar strips": {"planarconfig": "separate", "rowsperstrip": 50, "compression": "zlib"},
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_windows_are_those_of_the_whole_image(image, tmp_path, layout):
    options, pixels = LAYOUTS[layout], image
    if options.get("planarconfig"):
        pixels = np.moveaxis(image, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **options)
    whole = tifffile.imread(tmp_path / "a.tif")
    whole = np.moveaxis(whole, 0, -1) if options.get("planarconfig") else whole
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.levels[0][:2] == (491, 603)
        for top, left, height, width in ((0, 0, 491, 603), (60, 90, 10, 10), (63, 95, 130, 200), (480, 600, 11, 3)):
            np.testing.assert_array_equal(slide.read(0, top, left, height, width), whole[top : top + height, left : left + width])
        again = pickle.loads(pickle.dumps(slide))
    np.testing.assert_array_equal(again.read(0, 5, 6, 100, 100), whole[5:105, 6:106])


def pyramid(path, image, **options):
    with tifffile.TiffWriter(path, ome=options.pop("ome", None)) as file:
        file.write(image, tile=(64, 64), photometric="rgb", subifds=2, compression="zlib", **options)
        for level in (1, 2):
            file.write(image[:: 2**level, :: 2**level], tile=(64, 64), photometric="rgb", subfiletype=1, compression="zlib")


@pytest.mark.parametrize("ome", [False, True])
def test_levels_of_a_pyramid(image, tmp_path, ome):
    path = tmp_path / ("a.ome.tif" if ome else "a.tif")
    pyramid(
        path,
        image,
        ome=ome,
        metadata={"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
        if ome
        else None,
    )
    slide = open_slide(path)
    assert [level.downsample for level in slide.levels] == [1, 2, 4]
    for level in range(3):
        np.testing.assert_array_equal(slide.read(level, 10, 20, 70, 80), image[:: 2**level, :: 2**level][10:80, 20:100])
    assert slide.mpp_sources == ({"OME-XML": 0.25} if ome else {})


def test_pages_of_falling_size_are_levels(image, tmp_path):
    """The way of libvips: further pages, marked as reduced."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for level in range(3):
            file.write(image[:: 2**level, :: 2**level], tile=(64, 64), photometric="rgb", subfiletype=int(level > 0), metadata=None)
    slide = open_slide(tmp_path / "a.tif")
    assert [level.downsample for level in slide.levels] == [1, 2, 4]


def test_three_pages_of_an_ome_file_are_channels(image, tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", np.moveaxis(image, -1, 0), metadata={"axes": "CYX"}, tile=(64, 64), photometric="minisblack")
    np.testing.assert_array_equal(open_slide(tmp_path / "a.ome.tif").read(0, 40, 50, 90, 100), image[40:130, 50:150])


def test_only_pieces_below_a_window_are_decoded(image, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(64, 64), compression="zlib")
    slide = open_slide(tmp_path / "a.tif")
    cache = slide._source._cache
    slide.read(0, 70, 70, 20, 20)
    assert len(cache) == 1
    slide.read(0, 60, 60, 20, 20)
    assert len(cache) == 4
    assert cache.nbytes == 4 * 64 * 64 * 3
    slide.close()
    assert len(cache) == cache.nbytes == 0


def test_a_cache_forgets_what_was_used_longest_ago():
    cache = PieceCache(limit=300)
    made = []
    for key in (1, 2, 3, 1, 4, 1, 2):
        cache.get(key, lambda key=key: made.append(key) or np.zeros(100, np.uint8))
    assert made == [1, 2, 3, 4, 2]
    assert cache.nbytes == 300
    assert len(pickle.loads(pickle.dumps(cache))) == 0
    big = PieceCache(limit=10)
    assert big.get("a", lambda: np.zeros(100, np.uint8)).size == 100
    assert len(big) == 1


def test_empty_pieces_of_a_sparse_file_are_white(image, tmp_path):
    tiles = (None if i % 2 else np.full((64, 64, 3), i, np.uint8) for i in range(4))
    options = {"shape": (128, 128, 3), "dtype": np.uint8, "tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", tiles, **options)
    found = open_slide(tmp_path / "a.tif").read(0, 0, 0, 128, 128)
    assert [int(found[y, x, 0]) for y in (5, 70) for x in (5, 70)] == [0, 255, 2, 255]


def test_pixels_that_are_luminance_and_two_colours_become_rgb(image, tmp_path):
    """Compression 33003 of Aperio, whose codestream does not say that it holds YCbCr."""
    options = {"photometric": "rgb", "compressionargs": {"mct": False, "reversible": True, "level": 0}}
    tifffile.imwrite(tmp_path / "a.tif", np.asarray(Image.fromarray(image).convert("YCbCr")), tile=(64, 64), compression=33003, **options)
    found = open_slide(tmp_path / "a.tif").read(0, 0, 0, 491, 603)
    assert np.abs(found.astype(int) - image).max() <= 3  # the way there was rounded


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, {"resolution tags": 0.5}),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, {"resolution tags": 0.5}),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, {}),  # what programs write where they know nothing
        ({"resolution": (2, 2), "resolutionunit": "NONE"}, {}),
        ({"description": "Aperio Image Library v11|AppMag = 20|MPP = 0.4990|Left = 3"}, {"Aperio description": 0.499}),
        ({"description": "Aperio Image Library v11|AppMag = 20"}, {}),
        ({"description": "another scanner|MPP = 0.4990"}, {}),
        (
            {"description": "Aperio |MPP = 0.25", "resolution": (40000, 40000), "resolutionunit": "CENTIMETER"},
            {"Aperio description": 0.25, "resolution tags": 0.25},
        ),
    ],
)
def test_what_a_file_says_of_its_scale(image, tmp_path, options, wanted):
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", metadata=None, **options)
    found = open_slide(tmp_path / "a.tif").mpp_sources
    assert found.keys() == wanted.keys()
    assert list(found.values()) == pytest.approx(list(wanted.values()))


@pytest.mark.parametrize(("unit", "size", "wanted"), [("nm", 250.0, 0.25), ("mm", 0.0005, 0.5), ("pixel", 1.0, None)])
def test_units_of_ome(image, tmp_path, unit, size, wanted):
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size, "PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(tmp_path / "a.ome.tif", image, photometric="rgb", metadata=metadata)
    assert open_slide(tmp_path / "a.ome.tif").mpp == (pytest.approx(wanted) if wanted else None)


def test_pixels_that_are_no_squares(image, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", resolution=(20000, 10000), resolutionunit="CENTIMETER")
    with pytest.raises(ValueError, match=r"says 0\.5 x 1 µm per pixel \(x, y\), which are no squares"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("pixels", "options", "words"),
    [
        (np.zeros((50, 60, 3), np.uint16), {"photometric": "rgb"}, "dtype uint16; wanted uint8"),
        (np.zeros((50, 60), np.uint8), {"photometric": "minisblack"}, "axes 'YX'.*wanted uint8 with red"),
        (np.zeros((50, 60, 3), np.float32), {"photometric": "rgb"}, "dtype float32"),
        (np.zeros((5, 50, 60), np.uint8), {"photometric": "minisblack", "metadata": {"axes": "CYX"}}, "wanted uint8 with red"),
    ],
)
def test_tiffs_without_colours(tmp_path, pixels, options, words):
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, **options)
    with pytest.raises(ValueError, match=words):
        open_slide(tmp_path / "a.ome.tif")


def test_cut_off_files(image, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(64, 64), compression="zlib")
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"is truncated: it has .* bytes, and its directory names byte"):
        open_slide(tmp_path / "b.tif")
    for n in (4, 8, 100):
        (tmp_path / "c.tif").write_bytes(whole[:n])
        with pytest.raises(ValueError, match=r"c\.tif (cannot be read as a TIFF file|is truncated|holds no image)"):
            open_slide(tmp_path / "c.tif")


@pytest.mark.parametrize("compression", ["zlib", "jpeg", "jpeg2000"])
def test_damaged_pieces_are_named(image, tmp_path, compression):
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(64, 64), compression=compression)
    plane = tiff_layout(tmp_path / "a.tif").planes[0][0]
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(plane.offsets[11])
        file.write(bytes(plane.counts[11]))
    slide = open_slide(tmp_path / "a.tif")
    slide.read(0, 0, 0, 60, 60)
    with pytest.raises(ValueError, match=r"is damaged: piece 11 cannot be decoded"):
        slide.read(0, 70, 70, 60, 60)


def test_a_missing_codec_is_named(image, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(64, 64), compression="zlib")
    slide = open_slide(tmp_path / "a.tif")

    def decode(*args, **options):
        raise ValueError("<COMPRESSION.JPEG: 7> requires the 'imagecodecs' package")

    plane = slide._source._planes[0][0]
    object.__setattr__(plane, "decode", decode)
    with pytest.raises(ImportError, match=r"pip install 'stimg\[wsi\]'"):
        slide.read(0, 0, 0, 5, 5)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImportError, match=r"tifffile is needed \(reading TIFF and SVS\).*stimg\[wsi\]"):
        open_slide(tmp_path / "a.tif")


def test_one_huge_compressed_strip_is_refused(image, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", rowsperstrip=491, compression="zlib")
    monkeypatch.setattr("stimg.image.slide_tiff_layout.WHOLE_BYTES", 100_000)
    with pytest.raises(ValueError, match=r"keeps 491 x 603 pixels in one compressed piece.*tiled TIFF"):
        open_slide(tmp_path / "a.tif")


class FakeOpenSlide:
    """Two levels of an image with a transparent corner, read the way OpenSlide does: places in pixels of level 0."""

    level_dimensions = ((200, 120), (100, 60))
    level_downsamples = (1.0, 2.0)

    def __init__(self, path):
        self.properties = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.2502"}
        if "bad" in path:
            raise FakeError("Unsupported format")

    def read_region(self, place, level, size):
        x, y = np.meshgrid(place[0] + np.arange(size[0]) * 2**level, place[1] + np.arange(size[1]) * 2**level)
        return np.stack([x % 256, y % 256, 0 * x + level, np.where((x < 10) & (y < 10), 0, 255)], axis=-1).astype(np.uint8)

    def close(self):
        pass


class FakeError(Exception):
    pass


@pytest.fixture
def fake(monkeypatch):
    module = types.ModuleType("openslide")
    module.OpenSlide, module.OpenSlideError, module.__spec__ = FakeOpenSlide, FakeError, types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "openslide", module)
    return module


def test_openslide_reads_its_own_formats(fake, tmp_path):
    (tmp_path / "a.mrxs").write_bytes(b"anything")
    slide = open_slide(tmp_path / "a.mrxs")
    assert [tuple(level) for level in slide.levels] == [(120, 200, 1.0), (60, 100, 2.0)]
    assert slide.mpp == pytest.approx(0.2501)
    assert slide.mpp_source == "openslide.mpp-x"
    found = slide.read(1, 10, 20, 5, 6)
    np.testing.assert_array_equal(found[..., 0], np.tile(40 + 2 * np.arange(6), (5, 1)))
    np.testing.assert_array_equal(found[:, 0, 1], 20 + 2 * np.arange(5))
    assert (slide.read(0, 0, 0, 5, 5) == 255).all()  # transparent is white
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(slide)).read(1, 10, 20, 5, 6), found)
    (tmp_path / "bad.mrxs").write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"cannot be read as a slide.*all the files that belong to it"):
        open_slide(tmp_path / "bad.mrxs")


def test_openslide_is_asked_where_the_others_cannot_read(fake, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((50, 60, 3), np.uint16), photometric="rgb")
    assert open_slide(tmp_path / "a.tif").mpp_source == "openslide.mpp-x"
    tifffile.imwrite(tmp_path / "bad.tif", np.zeros((50, 60, 3), np.uint16), photometric="rgb")
    with pytest.raises(ValueError, match="wanted uint8"):  # the first error says more
        open_slide(tmp_path / "bad.tif")


def test_openslide_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "a.mrxs").write_bytes(b"anything")
    with pytest.raises(ImportError, match=r"OpenSlide is needed \(reading a\.mrxs\).*pip install openslide-python openslide-bin"):
        open_slide(tmp_path / "a.mrxs")


@pytest.mark.data
def test_real_slides(mirror):
    """An Aperio slide in JPEG that states 0.499 µm, and one in JPEG 2000 with two levels that states nothing."""
    slide = open_slide(mirror / "wsi" / "CMU-1-Small-Region.svs")
    assert slide.mpp_sources == {"Aperio description": 0.499}
    whole = tifffile.imread(slide.path)
    np.testing.assert_array_equal(slide.read(0, 1000, 700, 500, 600), whole[1000:1500, 700:1300])
    slide = open_slide(mirror / "wsi" / "tcga-cr-7395-01a-01-ts1.svs")
    assert [tuple(level) for level in slide.levels] == [(3567, 4443, 1.0), (1783, 2221, 2.0)]
    with pytest.raises(ValueError, match=r"does not say how many µm a pixel measures. Pass `mpp=`"):
        slide.require_mpp()
    coarse, _ = slide.tile((1800.0, 2200.0), 800, 200)
    fine, _ = open_slide(slide.read(0, 1300, 1700, 1000, 1000)).tile((500.0, 500.0), 800, 200)
    assert np.abs(coarse.astype(int) - fine).mean() < 6  # the scanner's own reduction
    moved, _ = open_slide(slide.read(0, 1300, 1700, 1000, 1000)).tile((500.0, 504.0), 800, 200)
    assert np.abs(coarse.astype(int) - moved).mean() > 2 * np.abs(coarse.astype(int) - fine).mean()
