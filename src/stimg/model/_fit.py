"""One training loop for all models: what Lightning is told, what a failure leaves behind, and what is kept at the end."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from scvi.train import TrainRunner

from stimg._core import progress as _progress
from stimg._core import validate
from stimg._core.ledger import merged
from stimg.data.ledger import seen_of
from stimg.model import _kept, _saving
from stimg.model._quiet import quiet
from stimg.plan import EpochHistory, KeepCheckpoint, SafeCheckpointIO, StepPlan, StopWhenStale

CHECKPOINT = "last.ckpt"


def check(*, patience: int, batch_size: int, lr: float, weight_decay: float) -> None:
    """Raise a ValueError for arguments of a training that make no sense."""
    for name, value in (("patience", patience), ("batch_size", batch_size), ("lr", lr)):
        validate.positive(value, name)
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay={weight_decay} is not a weight; wanted zero or a positive number.")


def fit(
    model: Any,
    data: LightningDataModule,
    make_plan: Callable[[], StepPlan],
    keep: Callable[[StepPlan, EpochHistory], None],
    *,
    max_epochs: int,
    steps: int,
    validated: bool,
    early_stopping: bool,
    patience: int,
    seed: int,
    checkpoint_dir: Path | None,
    record: Mapping[str, Any],
    attributes: Sequence[str] = (),
    **kwargs: Any,
) -> None:
    """Train ``model`` in place.

    Parameters
    ----------
    model, data
        The model and its batches.
    make_plan, keep
        Called before and after the training, with the global random state put aside; what they change is undone where the training fails.
    max_epochs, steps
        Epochs, and steps of each on one device.
    validated, early_stopping, patience
        Whether there is validation, and whether to stop after ``patience`` epochs without a better one.
    seed
        Of torch's random state inside.
    checkpoint_dir, record
        Folder of the checkpoint, and the plain values that say which training it belongs to.
    attributes
        Names of attributes of ``model`` that a failure puts back, beside weights and history.
    **kwargs
        For Lightning.
    """
    validate.positive(max_epochs, "max_epochs")
    history = EpochHistory(_kept.curves(model))
    callbacks: list[Callback] = [*kwargs.pop("callbacks", []), history]
    if early_stopping and validated:
        callbacks.append(StopWhenStale(patience, history))
    resume = None
    if checkpoint_dir is not None:
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
        callbacks.append(KeepCheckpoint(checkpoint_dir / CHECKPOINT))
        kwargs["plugins"] = [*kwargs.pop("plugins", []), SafeCheckpointIO(_saving.jsonable(record))]
        resume = checkpoint_dir / CHECKPOINT if (checkpoint_dir / CHECKPOINT).is_file() else None
    settings: dict[str, Any] = {
        "callbacks": callbacks,
        "logger": False,
        "gradient_clip_val": 1.0,
        "check_val_every_n_epoch": 1 if validated else None,
        "enable_checkpointing": False,
        "enable_progress_bar": _progress.wanted(),
        "log_every_n_steps": max(1, min(10, steps)),
        "devices": 1,
        "accelerator": "auto",
        "use_distributed_sampler": False,
    }
    settings.update(kwargs)
    with all_or_nothing(model, attributes), quiet(), torch.random.fork_rng(devices=_cuda()):
        torch.manual_seed(seed)
        plan = make_plan()
        model.module.train()  # a model that was trained or loaded before is in eval mode, and Lightning leaves it there
        TrainRunner(model, plan, data, max_epochs=max_epochs, ckpt_path=None if resume is None else str(resume), **settings)()
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
    """Put the best weights back, and remember what was seen: the ``rows`` that were trained on or stopped by."""
    if plan.best is not None:
        _kept.put(model.module, plan.best)
    model.history_ = _kept.tables(history.curves)
    own = model.ledger[-1]
    new = seen_of(model.adata, who=own.who, kind=own.kind, rows=rows, genes=model.genes, layer=model._layer, **seen)
    model.ledger = (*model.ledger[:-1], merged([own, new], who=own.who, kind=own.kind))
    model.best_epoch_ = history.first + plan.best_epoch if plan.best_epoch >= 0 else -1
    model.is_trained_ = True
    model.module.eval()
    model.train_indices_, model.validation_indices_, model.test_indices_ = data.train_idx, data.val_idx, np.empty(0, dtype=np.int64)
