"""Damaged files, disks that are full, folders that cannot be written."""

import errno
import os
import re
import signal
from pathlib import Path

import pytest
from _kinds import Kinds, model_of, rastered, state, store, train, trained

import stimg
from stimg.image import RasterStore

kind = Kinds()


# ---- files and disks


@kind(FileNotFoundError, r"There is no store at .*nothing.zarr", r"Write one with `RasterStore.save`")
def missing_store(here):
    return here.folder, lambda: RasterStore.open(here.folder / "nothing.zarr")


@kind(ValueError, r"has \d+ bytes; wanted \d+: it was cut short or changed", r"Write the store again")
def truncated_store(here):
    chunks = (p for p in (store(here.folder) / "X" / "raster_blocks").rglob("*") if p.is_file() and p.name != "zarr.json")
    largest = max(chunks, key=lambda p: p.stat().st_size)
    with largest.open("r+b") as handle:
        handle.truncate(largest.stat().st_size - 1)
    return here.folder, lambda: RasterStore.open(here.folder / "store.zarr")


@kind(ValueError, r"store .* has version 99; this version of stimg reads 1", r"Write it again with `RasterStore.save`")
def store_of_another_version(here):
    path = store(here.folder) / "X" / "raster_blocks" / "zarr.json"
    path.write_text(re.sub(r'("stimg-raster-store": )\d+', r"\g<1>99", path.read_text()))
    return here.folder, lambda: RasterStore.open(here.folder / "store.zarr")


@kind(OSError, r"cannot write beside .*model \(.*file is no folder\)", r"Choose a folder you may write to, with free space")
def folder_that_cannot_be_written(here):
    (here.folder / "file").write_text("in the way")
    return here.folder, lambda: trained().save(here.folder / "file" / "model")


@kind(OSError, r"model could not be written \(No space left on device\); nothing was changed", r"a folder with more free space")
def full_disk_while_a_model_is_saved(here):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = trained()
    here.patch.setattr(Path, "write_bytes", full)
    return here.folder, lambda: model.save(here.folder / "model")


@kind(OSError, r"store.zarr could not be written \(No space left on device\); nothing was changed", r"a folder with more free space")
def full_disk_while_a_store_is_saved(here):
    import zarr

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    adata = rastered("st")
    made = RasterStore.from_csr(adata.X, adata.obsm["stimg_rc"], (8, 8))
    here.patch.setattr(zarr.Group, "create_array", full)
    return here.folder, lambda: made.save(here.folder / "store.zarr")


@kind(ValueError, r"is damaged or another file: (sha256|git blob sha1) \w+, expected \w+", r"Copy it again, or remove it")
def data_file_with_another_hash(here):
    from stimg.datasets.registry import FILES

    entry = next(e for e in FILES._entries.values() if e.mirror and (e.sha256 or e.git_sha1))
    (here.folder / entry.mirror).parent.mkdir(parents=True)
    (here.folder / entry.mirror).write_bytes(b"not it")
    here.patch.setenv("STIMG_DATA_MIRROR", str(here.folder))
    return here.folder, lambda: stimg.datasets.fetch_file(entry.name)


@kind(FileNotFoundError, r"STIMG_DATA_MIRROR names .*nowhere, which is not a folder", r"Correct the variable, or unset it")
def mirror_that_is_no_folder(here):
    here.patch.setenv("STIMG_DATA_MIRROR", str(here.folder / "nowhere"))
    return here.folder, lambda: stimg.datasets.fetch_file("her2st/counts/B1")


@pytest.mark.parametrize("name", list(kind))
def test_bad_input(name, tmp_path, monkeypatch):
    kind[name].check(tmp_path, monkeypatch)


def test_at_least_so_many_kinds():
    assert len(kind) >= 8


def test_a_system_that_refuses_to_write_more(tmp_path):
    resource = pytest.importorskip("resource", reason="the limit on the size of files is that of Unix")
    model = train(model_of(rastered(), n_latent=64))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        for name, call in {
            "model": lambda: model.save(tmp_path / "model"),
            "last.ckpt": lambda: train(model_of(rastered(), n_latent=64), checkpoint_dir=tmp_path / "checkpoints"),
        }.items():
            with pytest.raises(OSError, match=f"{name} could not be written .*; nothing was changed.*more free space") as caught:
                call()
            assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert state(tmp_path) == {}
