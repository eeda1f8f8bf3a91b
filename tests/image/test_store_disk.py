"""Raster stores in a folder: what comes back, what anndata reads, and what happens when writing or reading goes wrong."""

import errno
import json
import multiprocessing
import os
import pickle
import resource
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from stimg.image import DenseBuffer, RasterStore, store_disk

ROWS, COLS, GENES = 45, 52, 17


def counts(seed=0, fractional=False):
    """Return (CSR, rc, dense (row, col, gene), obs, var); observations are shuffled, two are off the raster, one point holds two."""
    rng = np.random.default_rng(seed)
    points = np.argwhere(rng.random((ROWS, COLS)) < 0.6)
    rng.shuffle(points)
    points = np.concatenate([points, points[:1], [[-1, -1], [-1, -1]]])
    values = (rng.integers(1, 400, (len(points), GENES)) * (rng.random((len(points), GENES)) < 0.2)).astype(np.float32)
    values *= 0.25 if fractional else 1
    dense = np.zeros((ROWS, COLS, GENES), np.float32)
    for (r, c), row in zip(points, values, strict=True):
        if r >= 0:
            dense[r, c] += row
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical(rng.choice(["a", "b", "ü"], len(points)), categories=["b", "ü", "a"], ordered=True),
            "in_tissue": rng.random(len(points)) < 0.5,
            "depth": values.sum(axis=1),
            "note": [f"n{i}" for i in range(len(points))],
        },
        index=[f"spot-{i}" for i in range(len(points))],
    )
    var = pd.DataFrame({"length": np.arange(GENES)}, index=[f"ENSG{i}" for i in range(GENES)])
    return sp.csr_matrix(values), points, dense, obs, var


@pytest.fixture
def made(tmp_path):
    matrix, rc, dense, obs, var = counts()
    store = RasterStore.from_csr(matrix, rc, (ROWS, COLS), block=16)
    path = tmp_path / "slide.zarr"
    spatial = np.random.default_rng(1).random((len(rc), 2))
    store.save(
        path, obs=obs, var=var, obsm={"spatial": spatial}, uns={"stimg": {"pitch_um": 8.0, "names": np.array(["x", "y"]), "unit": "counts"}}
    )
    return store, path, dense, obs, var, spatial


def windows_agree(store, dense):
    genes = np.array([16, 0, 5])
    padded = np.pad(dense, ((20, 20), (20, 20), (0, 0)))
    tops, lefts = np.array([-9, 0, 20, 40, 300]), np.array([-9, 3, 30, 45, 2])
    buffer = DenseBuffer()
    got = store.windows_dense(tops, lefts, 18, 18, genes, out=buffer, threads=2)
    for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        wanted = padded[max(0, top + 20) :, left + 20 :][:18, :18, genes].transpose(2, 0, 1) if top < 60 else np.zeros((3, 18, 18))
        np.testing.assert_array_equal(got[i], wanted)
        found = store.window(top, left, 18, 18, genes)
        flat = np.zeros((3, 18 * 18))
        flat[found.gene, found.pixel] = found.value
        np.testing.assert_array_equal(flat.reshape(3, 18, 18), wanted)


@pytest.mark.parametrize("mode", ["disk", "memory"])
@pytest.mark.parametrize("fractional", [False, True])
def test_a_store_comes_back(tmp_path, mode, fractional):
    matrix, rc, dense, *_ = counts(fractional=fractional)
    store = RasterStore.from_csr(matrix, rc, (ROWS, COLS), block=16)
    store.save(tmp_path / "s.zarr")
    back = RasterStore.open(tmp_path / "s.zarr", mode=mode)
    assert (back.shape, back.n_vars, back.nnz, back.dtype, back.block) == (store.shape, GENES, store.nnz, store.dtype, 16)
    assert (back.mode, back.max_value) == (mode, store.max_value)
    assert back.dtype == (np.float32 if fractional else np.uint16)
    windows_agree(back, dense)
    occupied = store.index >= 0
    np.testing.assert_array_equal(back.index[occupied], np.arange(back.n_obs))
    assert (back.index[~occupied] == -1).all()
    np.testing.assert_array_equal(back.source_rows, store.index[occupied])
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


@pytest.mark.filterwarnings("error")
def test_anndata_reads_the_same_folder(made):
    store, path, dense, obs, var, spatial = made
    adata = ad.read_zarr(path)
    rc = adata.obsm["stimg_rc"]
    assert rc.dtype == np.int32
    assert (np.diff(rc[:, 0].astype(int) * COLS + rc[:, 1]) > 0).all()
    assert isinstance(adata.X, sp.csr_matrix)
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), dense[rc[:, 0], rc[:, 1]])
    assert adata.shape == ((store.index >= 0).sum(), GENES)
    rows = RasterStore.open(path).source_rows
    pd.testing.assert_frame_equal(adata.obs, obs.iloc[rows], check_dtype=False, check_index_type=False)
    assert adata.obs["donor"].cat.categories.tolist() == ["b", "ü", "a"]
    assert adata.obs["donor"].cat.ordered
    pd.testing.assert_frame_equal(adata.var, var, check_index_type=False)
    np.testing.assert_array_equal(adata.obsm["spatial"], spatial[rows])
    assert adata.uns["stimg"]["pitch_um"] == 8.0
    assert adata.uns["stimg"]["names"].tolist() == ["x", "y"]
    assert adata.uns["stimg"]["unit"] == "counts"
    assert set(adata.uns) == {"stimg"}


def test_names_have_defaults_and_counts_keep_their_type(tmp_path):
    matrix = sp.csr_matrix(np.array([[0, 3], [2, 0]], dtype=np.int64))
    RasterStore.from_csr(matrix, np.array([[1, 0], [0, 1]]), (2, 2)).save(tmp_path / "s.zarr", var=["A", "B"])
    adata = ad.read_zarr(tmp_path / "s.zarr")
    assert adata.obs_names.tolist() == ["0_1", "1_0"]
    assert adata.var_names.tolist() == ["A", "B"]
    assert adata.X.dtype == np.int64
    assert adata.X.toarray().tolist() == [[2, 0], [0, 3]]


def test_a_disk_store_is_mapped_and_can_be_saved_again(made, tmp_path):
    _, path, dense, *_ = made
    store = RasterStore.open(path, mode="disk")
    assert all(isinstance(array.base, np.memmap) for array in (store._blocks.pixel, store._blocks.value, store._blocks.table))
    store.save(tmp_path / "again.zarr")
    again = RasterStore.open(tmp_path / "again.zarr")
    windows_agree(again, dense)
    np.testing.assert_array_equal(again.source_rows, store.source_rows)


@pytest.mark.parametrize("mode", ["disk", "memory"])
def test_arrays_that_somebody_compressed_are_still_read(made, mode):
    _, path, dense, *_ = made
    group = zarr.open_group(str(path), mode="a")["X/raster_blocks"]
    for name in ("table", "pixel", "value"):
        array = group[name][...]
        group.create_array(name, data=array, chunks=tuple(max(1, n // 3) for n in array.shape), overwrite=True)
    store = RasterStore.open(path, mode=mode)
    windows_agree(store, dense)
    windows_agree(pickle.loads(pickle.dumps(store)), dense)
    assert store.to_csr()[0].sum() == dense.sum()
    shutil.rmtree(path / "X" / "raster_blocks" / "pixel" / "c")
    with pytest.raises(ValueError, match="was changed"):
        RasterStore.open(path, mode=mode, verify=False)


def damage(path, how):
    inner = path / "X" / "raster_blocks"
    chunk = {"pixel": inner / "pixel" / "c" / "0", "table": inner / "table" / "c" / "0" / "0"}
    if how == "cut short":
        os.truncate(chunk["pixel"], chunk["pixel"].stat().st_size - 3)
    elif how == "empty":
        os.truncate(chunk["table"], 0)
    elif how == "grown":
        with chunk["table"].open("ab") as stream:
            stream.write(b"\0\0\0\0")
    elif how == "chunk gone":
        chunk["table"].unlink()
    elif how == "array gone":
        shutil.rmtree(inner / "value")
    elif how == "group gone":
        shutil.rmtree(inner)
    elif how == "changed":
        data = bytearray(chunk["pixel"].read_bytes())
        data[len(data) // 2] ^= 4
        chunk["pixel"].write_bytes(data)
    elif how in ("version", "shape", "description", "not json"):
        file = inner / "zarr.json"
        values = json.loads(file.read_text())
        if how == "version":
            values["attributes"]["stimg-raster-store"] = 99
        elif how == "shape":
            values["attributes"]["arrays"]["value"]["shape"] = [7]
        elif how == "description":
            del values["attributes"]["arrays"]["start"]
        file.write_text("{" if how == "not json" else json.dumps(values))


@pytest.mark.parametrize("mode", ["disk", "memory"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut short", "bytes; wanted .* cut short"),
        ("empty", "has 0 bytes"),
        ("grown", "bytes; wanted"),
        ("chunk gone", "has 0 bytes"),
        ("array gone", "value is missing or unreadable"),
        ("group gone", "holds no raster store"),
        ("changed", "was changed \\(checksum\\)"),
        ("version", "has version 99; this version of stimg reads 1"),
        ("shape", "wanted uint16 \\(7,\\)"),
        ("description", "incomplete"),
        ("not json", "holds no raster store"),
    ],
)
def test_a_damaged_store_is_an_error(made, mode, how, message):
    _, path, *_ = made
    damage(path, how)
    with pytest.raises(ValueError, match=message):
        RasterStore.open(path, mode=mode)


def test_no_store_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no store at"):
        RasterStore.open(tmp_path / "none.zarr")
    zarr.open_group(str(tmp_path / "plain.zarr"), mode="w", zarr_format=3).create_group("X")
    with pytest.raises(ValueError, match="holds no raster store"):
        RasterStore.open(tmp_path / "plain.zarr")
    with pytest.raises(ValueError, match="mode='lazy'"):
        RasterStore.open(tmp_path / "plain.zarr", mode="lazy")


def snapshot(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_what_was_there(made, tmp_path, monkeypatch, error):
    store, path, *_ = made
    before = snapshot(tmp_path)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(store_disk, "_crc", fail)
    for target, overwrite in ((path, True), (tmp_path / "new.zarr", False)):
        with pytest.raises(type(error)):
            store.save(target, overwrite=overwrite)
        assert snapshot(tmp_path) == before
        assert [p.name for p in tmp_path.iterdir()] == ["slide.zarr"]


def test_a_write_that_the_system_refuses_leaves_nothing(made, tmp_path):
    store, *_ = made
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
        with pytest.raises(OSError, match="File too large"):
            store.save(tmp_path / "new.zarr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["slide.zarr"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write beside"):
        store.save(tmp_path / "file" / "new.zarr")


def test_nothing_is_replaced_unasked(made):
    store, path, dense, *_ = made
    before = snapshot(path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        store.save(path)
    assert snapshot(path) == before
    old = pickle.dumps(RasterStore.open(path))
    windows_agree(pickle.loads(old), dense)
    store.save(path, overwrite=True)
    windows_agree(RasterStore.open(path), dense)
    with pytest.raises(ValueError, match="was replaced by another store"):
        pickle.loads(old)


def test_tables_that_do_not_fit_are_an_error(made, tmp_path):
    store, _, _, obs, *_ = made
    with pytest.raises(ValueError, match="obs has 3 rows"):
        store.save(tmp_path / "new.zarr", obs=["a", "b", "c"])
    with pytest.raises(ValueError, match="missing values in \\['note'\\]"):
        store.save(tmp_path / "new.zarr", obs=obs.assign(note=[None, *obs["note"][1:]]))
    with pytest.raises(ValueError, match="obsm\\['spatial'\\] has shape"):
        store.save(tmp_path / "new.zarr", obsm={"spatial": np.zeros((3, 2))})
    with pytest.raises(TypeError, match="/uns/odd is"):
        store.save(tmp_path / "new.zarr", uns={"odd": {1, 2}})
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_a_store_they_are_given(made, method):
    memory, path, *_ = made
    disk = RasterStore.open(path)
    assert len(pickle.dumps(disk)) < 1000
    asked = ([0, 10], [0, 10], 20, 20)
    wanted = memory.windows(*asked, threads=2)
    with multiprocessing.get_context(method).Pool(2) as pool:
        given = [pool.apply_async(RasterStore.windows, (store, *asked), {"threads": 2}) for store in (disk, memory, disk)]
        for found in given:
            for got, array in zip(found.get(timeout=120), wanted, strict=True):
                np.testing.assert_array_equal(got, array)
