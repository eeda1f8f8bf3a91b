import builtins
import errno
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch

from stimg._core import hashing
from stimg.model import STMAE, _card, _record, _saving


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    trained[1].save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(saved, tmp_path / "model")


def change(folder, **fields):
    path = folder / _saving.RECORD
    record = json.loads(path.read_text())
    record.update(fields)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("with_data", [False, True])
def test_a_loaded_model_says_what_the_saved_one_said(trained, saved, with_data):
    adata, model = trained
    new = adata.copy()
    loaded = STMAE.load(saved, new) if with_data else STMAE.load(saved)
    asked = None if with_data else new
    np.testing.assert_array_equal(loaded.get_latent_representation(asked), model.get_latent_representation())
    np.testing.assert_array_equal(loaded.get_reconstruction(asked).to_numpy(), model.get_reconstruction().to_numpy())
    assert loaded.identity(new) == model.identity(adata)
    assert loaded.options == model.options
    assert loaded.best_epoch_ == model.best_epoch_
    assert loaded.genes.equals(model.genes)
    assert loaded.history.keys() == model.history.keys()
    for name, table in model.history.items():
        assert table.equals(loaded.history[name])
        assert table.index.equals(loaded.history[name].index)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, loaded.module.state_dict()[name]), name


def test_a_loaded_model_can_be_saved_and_trained_on(trained, saved, tmp_path):
    loaded = STMAE.load(saved, trained[0].copy())
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / _saving.TENSORS).read_bytes() == (saved / _saving.TENSORS).read_bytes()
    assert (tmp_path / "again" / _saving.RECORD).read_text() == (saved / _saving.RECORD).read_text()
    loaded.train(max_epochs=2, validation_fraction=0.25, rng=0)
    assert loaded.epochs() == 5
    assert loaded.history["train_loss"].index.tolist() == [0, 1, 2, 3, 4]
    assert loaded.history["train_loss"]["train_loss"].iloc[:3].equals(trained[1].history["train_loss"]["train_loss"])


def test_a_model_without_data_cannot_train(saved):
    loaded = STMAE.load(saved)
    with pytest.raises(ValueError, match="no adata"):
        loaded.train(max_epochs=1)


def test_nothing_is_unpickled(saved, monkeypatch):
    assert sorted(p.name for p in saved.iterdir()) == [_card.NAME, _saving.RECORD, _saving.TENSORS]

    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for owner, name in ((pickle, "Unpickler"), (pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(builtins, "eval", refuse)
    STMAE.load(saved)


def test_the_files_are_plain(saved):
    from safetensors.numpy import load_file

    record = json.loads((saved / _saving.RECORD).read_text())
    assert record["format"] == _saving.FORMAT
    assert record["genes_hash"] == hashing.of_strings(record["genes"])
    assert all(np.isfinite(v).all() for v in load_file(saved / _saving.TENSORS).values() if v.dtype.kind == "f")


@pytest.mark.parametrize("name", [_saving.RECORD, _saving.TENSORS])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        STMAE.load(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        STMAE.load(tmp_path / "nothing")


@pytest.mark.parametrize("how", ["empty", "truncated", "half", "flipped", "noise", "pickle"])
def test_damaged_tensors(folder, how):
    path = folder / _saving.TENSORS
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[-5] ^= 0x10
    made = {
        "empty": b"",
        "truncated": data[:-1],
        "half": data[: len(data) // 2],
        "flipped": data,
        "noise": b"\xff" * 100,
        "pickle": pickle.dumps({"a": 1}),
    }
    path.write_bytes(bytes(made[how]))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        STMAE.load(folder)


def test_damaged_tensors_with_the_right_hash(folder):
    import hashlib

    path = folder / _saving.TENSORS
    path.write_bytes(path.read_bytes()[:-1])
    change(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        STMAE.load(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null"])
def test_damaged_record(folder, text):
    (folder / _saving.RECORD).write_bytes(text)
    with pytest.raises(ValueError, match=r"model\.json"):
        STMAE.load(folder)


def test_record_that_lacks_something(folder):
    path = folder / _saving.RECORD
    record = json.loads(path.read_text())
    for name in (*_saving.FIELDS, *_record.FIELDS):
        path.write_text(json.dumps({k: v for k, v in record.items() if k != name}))
        with pytest.raises(ValueError, match=name):
            STMAE.load(folder)


def test_other_format(folder):
    change(folder, format=99, version="7.0")
    with pytest.raises(ValueError, match=r"format 99.*7\.0"):
        STMAE.load(folder)


def test_other_class(folder):
    change(folder, **{"class": "STOther"})
    with pytest.raises(ValueError, match="holds a STOther; wanted a STMAE"):
        STMAE.load(folder)


@pytest.mark.parametrize("how", ["renamed", "swapped", "dropped"])
def test_changed_genes(folder, how):
    genes = json.loads((folder / _saving.RECORD).read_text())["genes"]
    made = {"renamed": ["other", *genes[1:]], "swapped": [genes[1], genes[0], *genes[2:]], "dropped": genes[1:]}
    change(folder, genes=made[how])
    with pytest.raises(ValueError, match="does not match its hash"):
        STMAE.load(folder)


def test_options_that_do_not_fit_the_weights(folder):
    options = json.loads((folder / _saving.RECORD).read_text())["options"]
    change(folder, options={**options, "n_latent": 16})
    with pytest.raises(ValueError, match="do not fit the options"):
        STMAE.load(folder)
    change(folder, options={**options, "n_something": 16})
    with pytest.raises(TypeError, match="n_something"):
        STMAE.load(folder)


def test_an_untrained_model_is_not_saved(make_slide, make_model, tmp_path):
    with pytest.raises(RuntimeError, match="not trained"):
        make_model(make_slide()).save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_overwriting_has_to_be_asked_for(trained, folder):
    before = (folder / _saving.TENSORS).stat().st_ino
    with pytest.raises(FileExistsError, match="overwrite=True"):
        trained[1].save(folder)
    assert (folder / _saving.TENSORS).stat().st_ino == before
    (folder / "old").write_text("left over")
    trained[1].save(folder, overwrite=True)
    assert sorted(p.name for p in folder.iterdir()) == [_card.NAME, _saving.RECORD, _saving.TENSORS]
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_mistyped_argument_is_not_swallowed(trained, saved, tmp_path):
    with pytest.raises(TypeError):
        trained[1].save(tmp_path / "m", overwite=True)
    with pytest.raises(TypeError):
        STMAE.load(saved, devise="cpu")


@pytest.mark.parametrize("stage", ["tensors", "record", "move"])
def test_a_full_disk_leaves_the_old_model(trained, folder, monkeypatch, stage):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    if stage == "tensors":

        def half(path, data):
            with open(path, "wb") as file:
                file.write(bytes(data)[:100])
            full()

        monkeypatch.setattr(type(folder), "write_bytes", half)
    elif stage == "record":
        monkeypatch.setattr(_saving.json, "dumps", full)
    else:
        real = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: full() if str(b) == str(folder) and "replaced" not in str(a) else real(a, b))
    with pytest.raises(OSError, match="space") as caught:
        trained[1].save(folder, overwrite=True)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    STMAE.load(folder)


def test_a_folder_that_may_not_be_written(trained, tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    if os.access(closed, os.W_OK):  # the superuser may write everywhere

        def denied(*args, **kwargs):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr("tempfile.mkdtemp", denied)
    try:
        with pytest.raises(OSError, match=r"cannot write beside .*closed"):
            trained[1].save(closed / "model")
        assert not list(closed.iterdir())
    finally:
        closed.chmod(0o700)


def test_only_the_first_rank_writes(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    trained[1].save(tmp_path / "m")
    assert not (tmp_path / "m").exists()
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    trained[1].save(tmp_path / "m")
    assert (tmp_path / "m" / _saving.RECORD).is_file()
