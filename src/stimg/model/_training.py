"""How STMAE is trained, and what of a training is kept."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from scvi.train import TrainRunner
from torch import Tensor

from stimg._core import hashing, validate
from stimg._core import rng as _rng
from stimg.data.module import CropDataModule
from stimg.data.slots import raster_libraries
from stimg.data.statistics import GeneStatistics, gene_statistics, principal_axes
from stimg.model._split import split_observations
from stimg.nn import STMAEModule
from stimg.nn.stmae import Offsets
from stimg.plan import MaskedPlan, SafeCheckpointIO
from stimg.plan.masked import MONITOR

if TYPE_CHECKING:
    from stimg.model.stmae import STMAE

logger = logging.getLogger(__name__)
STATISTICS = ("pooled_mean", "pooled_composition", "spread")
STEPS, MOST_EPOCHS = 1500, 400
CHECKPOINT = "last.ckpt"
_DATA = ("num_workers", "augment", "max_samples_per_epoch", "max_val_samples", "multiprocessing_context", "pin_memory")


class _StopAtEnd(Callback):
    """Early stopping that works under several devices: the validation loss is the same on all of them."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking and trainer.current_epoch - pl_module.best_epoch >= self.patience:
            trainer.should_stop = True


class _KeepCheckpoint(Callback):
    """A checkpoint at the end of every epoch, replacing the one before when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.path)


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
    adata = model.adata
    split = split_observations(
        raster_libraries(adata, library_key=model._library_key),
        adata.n_obs,
        validation=validation,
        fraction=validation_fraction,
        rng=_rng.derive(seed, 0),
    )
    train_libraries = model._libraries(adata, rows=split.train)
    val_libraries = model._libraries(adata, rows=split.validation) if split.validation.any() else None
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
    n_genes = len(model.genes)
    if model.statistics is None:
        model.statistics = gene_statistics(train_libraries, n_genes)
        if isinstance(model.module, STMAEModule):
            _initialise(model, train_libraries)
    steps = math.ceil(len(data.train_dataset) / batch_size)
    if max_epochs is None:
        max_epochs = min(MOST_EPOCHS, math.ceil(STEPS / steps))
    validate.positive(max_epochs, "max_epochs")

    def offsets(found: Any) -> Offsets:
        statistics = gene_statistics(found, n_genes, like=model.statistics)
        return Offsets(torch.from_numpy(statistics.mean), torch.from_numpy(statistics.composition))

    network = model.module
    plan = MaskedPlan(
        torch.compile(network, dynamic=True) if compile else network,
        train_offsets=offsets(train_libraries),
        val_offsets=offsets(val_libraries) if val_libraries else None,
        max_epochs=max_epochs,
        steps_per_epoch=steps,
        lr=lr,
        weight_decay=weight_decay,
        seed=seed,
    )
    callbacks: list[Callback] = list(kwargs.pop("callbacks", []))
    if early_stopping and val_libraries:
        callbacks.append(_StopAtEnd(patience))
    resume = None
    if checkpoint_dir is not None:
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
        callbacks.append(_KeepCheckpoint(checkpoint_dir / CHECKPOINT))
        kwargs["plugins"] = [*kwargs.pop("plugins", []), SafeCheckpointIO()]
        resume = checkpoint_dir / CHECKPOINT if (checkpoint_dir / CHECKPOINT).is_file() else None
    settings: dict[str, Any] = {
        "callbacks": callbacks,
        "gradient_clip_val": 1.0,
        "check_val_every_n_epoch": 1 if val_libraries else None,
        "enable_checkpointing": False,
        "log_every_n_steps": max(1, min(10, steps)),
        "devices": 1,
        "accelerator": "auto",
        "use_distributed_sampler": False,
    }
    settings.update(kwargs)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        runner = TrainRunner(model, plan, data, max_epochs=max_epochs, ckpt_path=None if resume is None else str(resume), **settings)
        runner()
    _keep(model, plan, data, hashes=hashing.of_observations(validate.counts(adata, model._layer)[split.train | split.validation]))
    logger.info(
        "Trained on %d observations of %d libraries, %d held out; best epoch %d of %d",
        data.n_train,
        len(train_libraries),
        data.n_val,
        plan.best_epoch,
        model.epochs(),
    )


def _initialise(model: "STMAE", train_libraries: Sequence[Any]) -> None:
    statistics, module = model.statistics, model.module
    assert statistics is not None and isinstance(module, STMAEModule)
    parts: dict[str, Any] = {}
    if model.options.init == "pca":
        axes, shrinkage = principal_axes(train_libraries, statistics, min(model.options.n_axes, model.options.n_latent))
        parts = {"loadings": torch.from_numpy(axes.copy()), "shrinkage": torch.from_numpy(shrinkage.copy())}
    tensors = {
        name: torch.from_numpy(np.array(getattr(statistics, field)))
        for name, field in zip(("mean", "composition", "spread"), STATISTICS, strict=True)
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module.initialise(**tensors, **parts)


def _keep(model: "STMAE", plan: MaskedPlan, data: CropDataModule, hashes: np.ndarray) -> None:
    """Put the best weights back, and remember what was seen."""
    if plan.best is not None:
        device = model.device
        state = {k.removeprefix("_orig_mod."): v for k, v in plan.best.items()}
        model.module.load_state_dict(state)
        model.module.to(device)
    model.seen = np.union1d(model.seen, hashes)
    model.best_epoch_ = plan.best_epoch
    model.is_trained_ = True
    model.module.eval()
    model.train_indices_, model.validation_indices_, model.test_indices_ = data.train_idx, data.val_idx, np.empty(0, dtype=np.int64)


def fit_record(model: "STMAE") -> dict[str, Any]:
    """Return what ``model.json`` says of the training."""
    return {"n_seen": len(model.seen), "best_epoch": getattr(model, "best_epoch_", -1), "monitor": MONITOR}


def restore(model: "STMAE", tensors: Mapping[str, Tensor], record: Mapping[str, Any], path: Path) -> None:
    """Fill a new model with what was saved."""
    state = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
    try:
        model.module.load_state_dict(state)
    except RuntimeError as err:
        raise ValueError(
            f"{path}: the weights do not fit the options saved beside them ({str(err).splitlines()[-1].strip()}). Save the model again."
        ) from err
    found = {n: tensors[f"statistics.{n}"].numpy() for n in STATISTICS}
    empty = np.zeros((0, len(model.genes)), dtype=np.float32)
    model.statistics = GeneStatistics(empty, empty, **found)
    model.seen = tensors["seen"].numpy().view(np.uint64)
    model.history_ = {
        name: pd.DataFrame({name: values}, index=pd.RangeIndex(len(values), name="epoch")) for name, values in record["history"].items()
    }
    model.best_epoch_ = int(record["fit"]["best_epoch"])
    model.is_trained_ = True
    model.module.eval()
