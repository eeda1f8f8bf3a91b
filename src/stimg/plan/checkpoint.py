"""Checkpoints that are written whole or not at all, read without unpickling code, and know which training they belong to."""

import io
import os
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from stimg._core import files

RECORD = "stimg"
WANTED = "Delete it to start again from the beginning, or pass another `checkpoint_dir`."


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, read with ``weights_only=True``: tensors and plain values alone, so a file from elsewhere cannot run code.

    Parameters
    ----------
    record
        Plain values that say which training this is. They are written into every checkpoint, and a checkpoint with others is not read.
    """

    def __init__(self, record: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.record = dict(record or {})

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` beside ``path`` and move it there when it is whole."""
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options!r} does not go with checkpoints on a local disk. Leave it out.")
        with files.replacing(os.fspath(path), overwrite=True) as temporary:
            buffer = io.BytesIO()  # torch hides the reason where it cannot write
            torch.save({**checkpoint, RECORD: self.record}, buffer)
            temporary.write_bytes(buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Return the checkpoint at ``path``; a damaged file, or that of another training, is a ValueError that says so."""
        try:
            found = torch.load(os.fspath(path), map_location=map_location, weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as err:
            raise ValueError(
                f"the checkpoint {path} cannot be read ({type(err).__name__}: {str(err).splitlines()[0] if str(err) else ''}). {WANTED}"
            ) from err
        if not isinstance(found, dict) or RECORD not in found:
            raise ValueError(f"{path} is no checkpoint of stimg. {WANTED}")
        theirs = found[RECORD]
        differ = [k for k in dict.fromkeys([*self.record, *theirs]) if self.record.get(k) != theirs.get(k)]
        if differ:
            told = "; ".join(f"{k} was {theirs.get(k)!r} and is {self.record.get(k)!r}" for k in differ)
            raise ValueError(f"the checkpoint {path} belongs to another training: {told}. Pass the same arguments as then. {WANTED}")
        return found
