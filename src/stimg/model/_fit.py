"""One training loop for all models: what Lightning is told, what a failure leaves behind, and what is kept at the end."""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from scvi.train import TrainRunner

from stimg._core import progress as _progress
from stimg._core import rng as _rng
from stimg._core import validate
from stimg._core.ledger import Seen, merged
from stimg.data.epochs import EpochDataModule
from stimg.data.ledger import seen_of
from stimg.model import _kept, _saving
from stimg.model._quiet import quiet
from stimg.plan import EpochHistory, KeepCheckpoint, SafeCheckpointIO, StepPlan, StopWhenStale

CHECKPOINT = "last.ckpt"


@dataclass(frozen=True)
class Loop:
    """What a caller of ``train`` asks of the loop, the same for all models.

    Parameters
    ----------
    max_epochs
        Epochs; None: as many as the model takes where nothing is said.
    validation, validation_fraction
        What is held out.
    early_stopping, patience
        Whether to stop after ``patience`` epochs without a better validation.
    batch_size, lr, weight_decay
        Of a step.
    seed
        Where all chance comes from.
    checkpoint_dir
        Folder of the checkpoint.
    steps
        Steps of an epoch on one device; 0 until the data are known, see :meth:`over`.

    Raises
    ------
    ValueError
        For values that make no sense.
    """

    max_epochs: int | None
    validation: str | Sequence[str] | None
    validation_fraction: float
    early_stopping: bool
    patience: int
    batch_size: int
    lr: float
    weight_decay: float
    seed: int
    checkpoint_dir: Path | None
    steps: int = 0

    def __post_init__(self) -> None:
        for name in ("patience", "batch_size", "lr"):
            validate.positive(getattr(self, name), name)
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay={self.weight_decay} is not a weight; wanted zero or a positive number.")

    @classmethod
    def asked(cls, arguments: Mapping[str, Any]) -> "Loop":
        """Return what the arguments of a ``train``, given as its ``locals()``, ask for; others among them are passed over."""
        folder = arguments["checkpoint_dir"]
        turned: dict[str, Any] = {
            "seed": _rng.as_seed(arguments["rng"]),
            "checkpoint_dir": None if folder is None else Path(folder),
            "steps": 0,
        }
        return cls(**{f.name: turned[f.name] if f.name in turned else arguments[f.name] for f in fields(cls)})

    def over(self, n_items: int, *, steps: int, most: int) -> "Loop":
        """Return the same over epochs of ``n_items``: where no epochs are named, as many as make about ``steps``, at most ``most``."""
        each = math.ceil(n_items / self.batch_size)
        epochs = min(most, math.ceil(steps / each)) if self.max_epochs is None else self.max_epochs
        return replace(self, steps=each, max_epochs=epochs)

    def of_plan(self) -> dict[str, Any]:
        """Return what a :class:`stimg.plan.StepPlan` is told."""
        rates = {"lr": self.lr, "weight_decay": self.weight_decay}
        return {"max_epochs": self.max_epochs, "steps_per_epoch": self.steps, **rates, "seed": self.seed}

    def of_record(self) -> dict[str, Any]:
        """Return what a checkpoint remembers, and what a training that goes on from it has to share."""
        rates = {"lr": self.lr, "weight_decay": self.weight_decay}
        return {"max_epochs": self.max_epochs, "batch_size": self.batch_size, **rates, "rng": self.seed}


def run(
    model: Any,
    loop: Loop,
    data: EpochDataModule,
    make_plan: Callable[[], StepPlan],
    keep: Callable[[StepPlan, EpochHistory], None],
    *,
    record: Mapping[str, Any],
    attributes: Sequence[str] = (),
    **kwargs: Any,
) -> None:
    """Train ``model`` in place.

    Parameters
    ----------
    model, data
        The model and its batches.
    loop
        What is asked, over the training items of ``data``.
    make_plan, keep
        Called before and after the training, with the global random state put aside; what they change is undone where the training fails.
    record
        Plain values that say, beside what ``loop`` asks, which training a checkpoint belongs to.
    attributes
        Names of attributes of ``model`` that a failure puts back, beside weights and history.
    **kwargs
        For Lightning.
    """
    validate.positive(loop.max_epochs or 0, "max_epochs")
    checkpoint_dir, validated = loop.checkpoint_dir, data.val_dataset is not None
    history = EpochHistory(_kept.curves(model))
    callbacks: list[Callback] = [*kwargs.pop("callbacks", []), history]
    if loop.early_stopping and validated:
        callbacks.append(StopWhenStale(loop.patience, history))
    resume = None
    if checkpoint_dir is not None:
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
        callbacks.append(KeepCheckpoint(checkpoint_dir / CHECKPOINT))
        kwargs["plugins"] = [*kwargs.pop("plugins", []), SafeCheckpointIO(_saving.jsonable({**record, **loop.of_record()}))]
        resume = checkpoint_dir / CHECKPOINT if (checkpoint_dir / CHECKPOINT).is_file() else None
    settings: dict[str, Any] = {
        "callbacks": callbacks,
        "logger": False,
        "gradient_clip_val": 1.0,
        "check_val_every_n_epoch": 1 if validated else None,
        "enable_checkpointing": False,
        "enable_progress_bar": _progress.wanted(),
        "log_every_n_steps": max(1, min(10, loop.steps)),
        "devices": 1,
        "accelerator": "auto",
        "use_distributed_sampler": False,
    }
    settings.update(kwargs)
    with all_or_nothing(model, attributes), quiet(), torch.random.fork_rng(devices=_cuda()):
        torch.manual_seed(loop.seed)
        plan = make_plan()
        model.module.train()  # a model that was trained or loaded before is in eval mode, and Lightning leaves it there
        TrainRunner(model, plan, data, max_epochs=loop.max_epochs, ckpt_path=None if resume is None else str(resume), **settings)()
        keep(plan, history)


def _cuda() -> range:
    return range(torch.cuda.device_count() if torch.cuda.is_available() else 0)


@contextmanager
def all_or_nothing(model: Any, attributes: Sequence[str] = ()) -> Iterator[None]:
    """Leave ``model`` as it was where the training fails; an interrupt, which Lightning turns into SystemExit, becomes one again."""
    weights = {name: value.detach().cpu().clone() for name, value in _kept.state_of(model.module).items()}
    before = {name: getattr(model, name) for name in (*attributes, "history_")}
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except BaseException as error:
        _kept.put(model.module, weights)
        for name, value in before.items():
            setattr(model, name, value)
        model.module.eval()
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from None
        raise


def settle(model: Any, plan: StepPlan, data: Any, history: EpochHistory, rows: np.ndarray, **seen: Any) -> None:
    """Do :func:`finish` for a model that has read the counts of ``rows``, which were trained on or stopped by."""
    own = model.ledger[-1]
    new = seen_of(model.adata, who=own.who, kind=own.kind, rows=rows, genes=model.genes, layer=model._layer, **seen)
    finish(model, plan, data, history, new)


def finish(model: Any, plan: StepPlan, data: Any, history: EpochHistory, new: Seen) -> None:
    """Put the best weights back, and remember the history and what was seen, which is added to the model's own record."""
    if plan.best is not None:
        _kept.put(model.module, plan.best)
    model.history_ = _kept.tables(history.curves)
    own = model.ledger[-1]
    model.ledger = (*model.ledger[:-1], merged([own, new], who=own.who, kind=own.kind))
    model.best_epoch_ = history.first + plan.best_epoch if plan.best_epoch >= 0 else -1
    model.is_trained_ = True
    model.module.eval()
    model.train_indices_, model.validation_indices_, model.test_indices_ = data.train_idx, data.val_idx, np.empty(0, dtype=np.int64)
