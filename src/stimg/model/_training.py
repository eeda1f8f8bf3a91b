"""How STMAE is trained, and what of a training is kept."""

import logging
import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from scvi.train import TrainRunner

from stimg._core import hashing, validate
from stimg._core import progress as _progress
from stimg._core import rng as _rng
from stimg._core.ledger import merged
from stimg.data.ledger import seen_of
from stimg.data.module import CropDataModule
from stimg.data.slots import raster_libraries
from stimg.data.statistics import gene_statistics, principal_axes
from stimg.model import _inference, _record, _saving
from stimg.model._quiet import quiet
from stimg.model._split import split_observations
from stimg.nn import STMAEModule
from stimg.plan import EpochHistory, KeepCheckpoint, MaskedPlan, SafeCheckpointIO, StopWhenStale

if TYPE_CHECKING:
    from stimg.model.stmae import STMAE

logger = logging.getLogger(__name__)
STEPS, MOST_EPOCHS = 1500, 400
CHECKPOINT = "last.ckpt"
_DATA = ("num_workers", "augment", "max_samples_per_epoch", "max_val_samples", "multiprocessing_context", "pin_memory")
_DRAWS = ("augment", "max_samples_per_epoch", "max_val_samples")


def train(
    model: "STMAE",
    *,
    max_epochs: int | None,
    validation: str | Sequence[str] | None,
    validation_fraction: float,
    early_stopping: bool,
    patience: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seed: int,
    checkpoint_dir: Path | None,
    compile: bool = False,
    **kwargs: Any,
) -> None:
    """Train ``model`` in place; see :meth:`stimg.model.STMAE.train`."""
    for name, value in (("patience", patience), ("batch_size", batch_size), ("lr", lr)):
        validate.positive(value, name)
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay={weight_decay} is not a weight; wanted zero or a positive number.")
    adata = model.adata
    split = split_observations(
        raster_libraries(adata, library_key=model._library_key),
        adata.n_obs,
        validation=validation,
        fraction=validation_fraction,
        rng=_rng.derive(seed, 0),
    )
    train_libraries = _inference.read(model, adata, rows=split.train)
    if not any(library.store.nnz for library in train_libraries):
        raise ValueError(
            f"The {int(split.train.sum())} training observations have no count of the {len(model.genes)} genes of the model. Check the layer and the genes."
        )
    val_libraries = _inference.read(model, adata, rows=split.validation) if split.validation.any() else None
    rule, n_channels = model._rule()
    data_options = {name: kwargs.pop(name) for name in _DATA if name in kwargs}
    data = CropDataModule(
        train_libraries,
        val_libraries,
        crop=model.crop,
        val_crop=replace(model.crop, min_occupied=1),
        rule=rule,
        n_channels=n_channels,
        batch_size=batch_size,
        seed=seed,
        **data_options,
    )
    steps = math.ceil(len(data.train_dataset) / batch_size)
    if max_epochs is None:
        max_epochs = min(MOST_EPOCHS, math.ceil(STEPS / steps))
    validate.positive(max_epochs, "max_epochs")
    hashes = _record.observation_hashes(model, adata)
    history = EpochHistory(_record.curves(model))
    callbacks: list[Callback] = [*kwargs.pop("callbacks", []), history]
    if early_stopping and val_libraries:
        callbacks.append(StopWhenStale(patience, history))
    resume = None
    if checkpoint_dir is not None:
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
        callbacks.append(KeepCheckpoint(checkpoint_dir / CHECKPOINT))
        record = {
            **model.options.to_dict(),
            "genes": hashing.of_strings(model.genes),
            "training observations": hashing.of_array(hashes[split.train]),
            "validation observations": hashing.of_array(hashes[split.validation]),
            **{"max_epochs": max_epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "rng": seed},
            **{name: data_options.get(name) for name in _DRAWS},
        }
        kwargs["plugins"] = [*kwargs.pop("plugins", []), SafeCheckpointIO(_saving.jsonable(record))]
        resume = checkpoint_dir / CHECKPOINT if (checkpoint_dir / CHECKPOINT).is_file() else None
    settings: dict[str, Any] = {
        "callbacks": callbacks,
        "logger": False,
        "gradient_clip_val": 1.0,
        "check_val_every_n_epoch": 1 if val_libraries else None,
        "enable_checkpointing": False,
        "enable_progress_bar": _progress.wanted(),
        "log_every_n_steps": max(1, min(10, steps)),
        "devices": 1,
        "accelerator": "auto",
        "use_distributed_sampler": False,
    }
    settings.update(kwargs)
    with _all_or_nothing(model), quiet(), torch.random.fork_rng(devices=_cuda()):
        torch.manual_seed(seed)
        if model.statistics is None:
            model.statistics = gene_statistics(train_libraries, len(model.genes))
            if isinstance(model.module, STMAEModule):
                _initialise(model, train_libraries)
        plan = MaskedPlan(
            model.module,
            train_offsets=_inference.offsets(model, train_libraries),
            val_offsets=_inference.offsets(model, val_libraries) if val_libraries else None,
            max_epochs=max_epochs,
            steps_per_epoch=steps,
            lr=lr,
            weight_decay=weight_decay,
            seed=seed,
            compile=compile,
        )
        model.module.train()  # a model that was trained or loaded before is in eval mode, and Lightning leaves it there
        runner = TrainRunner(model, plan, data, max_epochs=max_epochs, ckpt_path=None if resume is None else str(resume), **settings)
        runner()
        _keep(model, plan, data, history, split.train | split.validation)
    logger.info(
        "Trained on %d observations of %d libraries, %d held out; best epoch %d of %d",
        data.n_train,
        len(train_libraries),
        data.n_val,
        model.best_epoch_,
        model.epochs(),
    )


def _cuda() -> range:
    return range(torch.cuda.device_count() if torch.cuda.is_available() else 0)


@contextmanager
def _all_or_nothing(model: "STMAE") -> Iterator[None]:
    """Leave ``model`` as it was where the training fails; an interrupt, which Lightning turns into SystemExit, becomes one again."""
    weights = {name: value.detach().cpu().clone() for name, value in model.module.state_dict().items()}
    before = model.statistics, model.history_
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except BaseException as error:
        model.module.load_state_dict(weights)
        model.statistics, model.history_ = before
        model.module.eval()
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from None
        raise


def _initialise(model: "STMAE", train_libraries: Sequence[Any]) -> None:
    statistics, module = model.statistics, model.module
    assert statistics is not None
    assert isinstance(module, STMAEModule)
    parts: dict[str, Any] = {}
    if model.options.init == "pca":
        axes, shrinkage = principal_axes(train_libraries, statistics, min(model.options.n_axes, model.options.n_latent))
        parts = {"loadings": torch.from_numpy(axes.copy()), "shrinkage": torch.from_numpy(shrinkage.copy())}
    tensors = {
        name: torch.from_numpy(np.array(getattr(statistics, field)))
        for name, field in zip(("mean", "composition", "spread"), _record.STATISTICS, strict=True)
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs too
        module.initialise(**tensors, **parts)


def _keep(model: "STMAE", plan: MaskedPlan, data: CropDataModule, history: EpochHistory, rows: np.ndarray) -> None:
    """Put the best weights back, and remember what was seen: the rows that were trained on or stopped by."""
    if plan.best is not None:
        model.module.load_state_dict(plan.best)
    model.history_ = _record.tables(history.curves)
    own = model.ledger[-1]
    new = seen_of(model.adata, who=own.who, kind=own.kind, rows=rows, genes=model.genes, layer=model._layer, library_key=model._library_key)
    model.ledger = (*model.ledger[:-1], merged([own, new], who=own.who, kind=own.kind))
    model.best_epoch_ = history.first + plan.best_epoch if plan.best_epoch >= 0 else -1
    model.is_trained_ = True
    model.module.eval()
    model.train_indices_, model.validation_indices_, model.test_indices_ = data.train_idx, data.val_idx, np.empty(0, dtype=np.int64)
