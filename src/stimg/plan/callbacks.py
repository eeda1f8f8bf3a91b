"""What is done at the end of every epoch: note the losses, stop, keep a checkpoint."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

VALIDATION = "validation_"
Curve = dict[str, list]


class EpochHistory(Callback):
    """The losses of every epoch, the same on every rank, and part of every checkpoint.

    Parameters
    ----------
    before
        Curves of an earlier training, ``{name: {"epoch": [...], "value": [...]}}``; the epochs are counted on from there.
    """

    def __init__(self, before: Mapping[str, Curve] | None = None) -> None:
        self.curves: dict[str, Curve] = {
            name: {key: list(values) for key, values in curve.items()} for name, curve in (before or {}).items()
        }
        self.first = 1 + max((max(c["epoch"]) for c in self.curves.values() if c["epoch"]), default=-1)
        self.done = 0

    def _note(self, trainer: Any, *, validation: bool) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith(VALIDATION) == validation:
                curve = self.curves.setdefault(name, {"epoch": [], "value": []})
                curve["epoch"].append(self.first + trainer.current_epoch)
                curve["value"].append(float(value))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note the validation losses."""
        if not trainer.sanity_checking:
            self._note(trainer, validation=True)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Note the training losses."""
        self._note(trainer, validation=False)
        self.done = trainer.current_epoch + 1

    def state_dict(self) -> dict[str, Any]:
        """Return the curves as plain values."""
        return {"curves": self.curves, "first": self.first, "done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the curves of a checkpoint."""
        self.curves, self.first, self.done = state_dict["curves"], state_dict["first"], state_dict["done"]


class StopWhenStale(Callback):
    """Stops after ``patience`` epochs without a better validation loss, under several devices too: they all know the same loss.

    Parameters
    ----------
    patience
        Number of epochs.
    history
        The history of the same training, which knows how many epochs a checkpoint has behind it.
    """

    def __init__(self, patience: int, history: EpochHistory) -> None:
        self.patience, self.history = patience, history

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Do not go on with a training that had been stopped."""
        if self.history.done - 1 - pl_module.best_epoch >= self.patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop where the best epoch is long ago."""
        if not trainer.sanity_checking and trainer.current_epoch - pl_module.best_epoch >= self.patience:
            trainer.should_stop = True


class KeepCheckpoint(Callback):
    """A checkpoint at the end of every epoch, in the place of the one before; none where the loss is no number any more.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the checkpoint."""
        if math.isfinite(float(trainer.callback_metrics.get("train_loss", 0.0))):
            trainer.save_checkpoint(self.path)
