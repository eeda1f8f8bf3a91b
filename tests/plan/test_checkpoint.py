import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stimg.plan import KeepCheckpoint, SafeCheckpointIO


class Code:
    """Something that only unpickling of code could bring back."""


def test_round_trip(tmp_path):
    path = tmp_path / "a.ckpt"
    io = SafeCheckpointIO({"lr": 0.1, "sizes": [1, 2], "none": None})
    io.save_checkpoint({"state": {"w": torch.arange(3)}, "epoch": 4}, path)
    found = SafeCheckpointIO({"lr": 0.1, "sizes": [1, 2], "none": None}).load_checkpoint(path)
    assert torch.equal(found["state"]["w"], torch.arange(3))
    assert found["epoch"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_another_training_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    SafeCheckpointIO({"lr": 0.1, "old": 1}).save_checkpoint({}, path)
    with pytest.raises(ValueError, match=r"lr was 0\.1 and is 0\.2; new was None and is 3; old was 1 and is None"):
        SafeCheckpointIO({"lr": 0.2, "new": 3}).load_checkpoint(path)


def test_code_is_not_run(tmp_path):
    path = tmp_path / "a.ckpt"
    SafeCheckpointIO().save_checkpoint({"a": Code()}, path)
    with pytest.raises(ValueError, match=r"a\.ckpt cannot be read \(UnpicklingError"):
        SafeCheckpointIO().load_checkpoint(path, weights_only=False)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        SafeCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")
    for value in ([1], {"a": 1}):
        torch.save(value, tmp_path / "f.ckpt")
        with pytest.raises(ValueError, match="is no checkpoint of stimg"):
            SafeCheckpointIO().load_checkpoint(tmp_path / "f.ckpt")
    for size in range(0, 900, 90):
        SafeCheckpointIO().save_checkpoint({"a": torch.zeros(100)}, tmp_path / "t.ckpt")
        (tmp_path / "t.ckpt").write_bytes((tmp_path / "t.ckpt").read_bytes()[:size])
        with pytest.raises(ValueError, match="cannot be read"):
            SafeCheckpointIO().load_checkpoint(tmp_path / "t.ckpt")


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path, io = tmp_path / "a.ckpt", SafeCheckpointIO()
    io.save_checkpoint({"epoch": 1}, path)

    def full(target, data):
        with open(target, "wb") as file:
            file.write(bytes(data)[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint({"epoch": 2}, path)
    monkeypatch.undo()
    assert io.load_checkpoint(path)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_options_of_remote_storage_are_refused(tmp_path):
    with pytest.raises(TypeError, match="storage_options"):
        SafeCheckpointIO().save_checkpoint({}, tmp_path / "a", storage_options={})


@pytest.mark.parametrize(("loss", "kept"), [(1.0, True), (float("nan"), False), (float("inf"), False)])
def test_no_checkpoint_of_a_broken_epoch(tmp_path, loss, kept):
    saved = []
    trainer = SimpleNamespace(callback_metrics={"train_loss": torch.tensor(loss)}, save_checkpoint=saved.append)
    KeepCheckpoint(tmp_path / "a").on_train_epoch_end(trainer, None)
    assert saved == ([tmp_path / "a"] if kept else [])
