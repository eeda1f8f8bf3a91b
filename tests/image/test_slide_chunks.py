"""Arrays of dask, zarr and xarray against the array they were made of."""

import pickle

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from xarray import DataArray

from stimg.image import open_slide
from stimg.image.slide_chunks import ChannelsLast, array_source


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (203, 310, 3), dtype=np.uint8)


def stored(image, folder, chunks=(3, 64, 50)):
    array = zarr.create_array(store=str(folder / "a.zarr"), shape=(3, *image.shape[:2]), chunks=chunks, dtype=np.uint8)
    array[:] = np.moveaxis(image, -1, 0)
    return zarr.open_array(str(folder / "a.zarr"), mode="r")


KINDS = {
    "dask": lambda image, folder: da.from_array(image, chunks=((100, 3, 100), (310,), 3)),
    "dask, channels apart": lambda image, folder: DataArray(
        da.from_array(np.moveaxis(image, -1, 0), chunks=(1, 70, 70)), dims=("c", "y", "x")
    ),
    "zarr": lambda image, folder: zarr.array(image, chunks=(64, 50, 3)),
    "dask of zarr": lambda image, folder: DataArray(da.from_zarr(stored(image, folder)), dims=("c", "y", "x")),
    "dask of zarr, changed": lambda image, folder: DataArray(255 - da.from_zarr(stored(255 - image, folder)), dims=("c", "y", "x")),
    "xarray in memory": lambda image, folder: DataArray(np.moveaxis(image, -1, 0), dims=("c", "y", "x")),
    "xarray, channels last": lambda image, folder: DataArray(da.from_array(image, chunks=80), dims=("y", "x", "c")),
    "rechunked": lambda image, folder: da.from_array(image, chunks=(203, 310, 3)).rechunk((50, 50, 3)),
    "computed": lambda image, folder: da.from_delayed(dask.delayed(np.copy)(image), image.shape, np.uint8).rechunk((64, 64, 3)),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_windows_are_those_of_the_array(image, tmp_path, kind):
    slide = open_slide(KINDS[kind](image, tmp_path))
    assert slide.levels[0][:2] == (203, 310)
    for top, left, height, width in ((0, 0, 203, 310), (60, 45, 10, 10), (99, 0, 5, 310), (200, 300, 3, 10), (64, 50, 64, 50)):
        np.testing.assert_array_equal(slide.read(0, top, left, height, width), image[top : top + height, left : left + width])
    assert slide.fingerprint() == open_slide(image).fingerprint()
    if kind != "computed":  # a closure of dask
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(slide)).read(0, 60, 45, 10, 10), image[60:70, 45:55])


def test_a_stored_array_is_read_without_dask(image, tmp_path):
    array = da.from_zarr(stored(image, tmp_path))
    assert isinstance(array_source([DataArray(array, dims=("c", "y", "x"))])._arrays[0], ChannelsLast)
    for other in (array + 0, array[:, 1:], array.rechunk((3, 100, 100))):
        assert not isinstance(array_source([DataArray(other, dims=("c", "y", "x"))])._arrays[0], ChannelsLast)


def test_chunks_are_computed_once(image):
    calls = []

    def chunk(block, block_info=None):
        calls.append(block_info[0]["chunk-location"])
        return block

    lazy = da.from_array(image, chunks=(100, 100, 3)).map_blocks(chunk, dtype=np.uint8, meta=np.zeros((0, 0, 3), np.uint8))
    calls.clear()
    slide = open_slide(lazy)
    assert not calls
    for _ in range(3):
        slide.read(0, 90, 10, 20, 20)
    assert sorted(calls) == [(0, 0, 0), (1, 0, 0)]
    slide.close()
    slide.read(0, 0, 0, 5, 5)
    assert len(calls) == 3


def test_what_can_only_be_computed_whole_is_computed_once(image, monkeypatch):
    calls = []
    whole = dask.delayed(lambda: calls.append(1) or image)()
    lazy = da.from_delayed(whole, image.shape, np.uint8).rechunk((50, 50, 3))
    slide = open_slide(lazy)
    for at in range(0, 200, 20):
        slide.read(0, at, at, 40, 40)
    assert len(calls) == 1
    monkeypatch.setattr("stimg.image.slide_chunks.LARGEST", 1000)
    with pytest.raises(ValueError, match=r"can only be computed whole. Write it to disk first"):
        open_slide(lazy).read(0, 0, 0, 5, 5)


def test_damaged_chunks_are_named(image, tmp_path):
    array = stored(image, tmp_path)
    (tmp_path / "a.zarr" / "c" / "0" / "1" / "2").write_bytes(b"damaged")
    slide = open_slide(DataArray(da.from_zarr(array), dims=("c", "y", "x")))
    slide.read(0, 0, 0, 60, 50)
    with pytest.raises(ValueError, match="is damaged: rows 64 to 128 of level 0 cannot be read"):
        slide.read(0, 70, 110, 10, 10)


@pytest.mark.parametrize(
    ("dtype", "channels", "error", "words"), [(np.uint16, 3, TypeError, "wanted uint8"), (np.uint8, 1, ValueError, r"wanted \(y, x, 3\)")]
)
def test_lazy_arrays_that_are_no_images(dtype, channels, error, words):
    with pytest.raises(error, match=words):
        open_slide(da.zeros((50, 60, channels), dtype=dtype, chunks=20))
