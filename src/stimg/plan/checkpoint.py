"""Checkpoints that are read without unpickling code."""

import os
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

WANTED = "Delete it to start again from the beginning, or pass another `checkpoint_dir`."


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, read with ``weights_only=True``: tensors and plain values alone, so a file from elsewhere cannot run code."""

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Return the checkpoint at ``path``; a damaged file is a ValueError that says which."""
        try:
            return torch.load(os.fspath(path), map_location=map_location, weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as err:
            raise ValueError(f"the checkpoint {path} cannot be read ({type(err).__name__}: {str(err).splitlines()[0]}). {WANTED}") from err
