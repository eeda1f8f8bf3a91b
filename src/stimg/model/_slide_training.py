"""How a classifier of slides is trained: donors apart, statistics of the training tiles, and the loop."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stimg._core import hashing, validate
from stimg._core import rng as _rng
from stimg._core.ledger import Seen, merged
from stimg.data.bags import BagDataset, Bags, hold_out_donors
from stimg.data.ledger import ids
from stimg.data.pairs import PairDataModule
from stimg.model import _fit, _kept
from stimg.plan.bags import MONITORS, BagPlan
from stimg.plan.callbacks import EpochHistory
from stimg.plan.steps import StepPlan

if TYPE_CHECKING:
    from stimg.model.slide_classifier import SlideClassifier

logger = logging.getLogger(__name__)
STEPS, MOST_EPOCHS = 600, 200
FLOOR = 0.05
"""Smallest scale of a feature in units of the root mean square of all scales: what hardly varies is not blown up."""
_DATA = ("num_workers", "multiprocessing_context", "pin_memory")


def train(
    model: "SlideClassifier",
    *,
    max_epochs: int | None,
    validation: str | Sequence[str] | None,
    validation_fraction: float,
    early_stopping: bool,
    monitor: str,
    patience: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seed: int,
    checkpoint_dir: Path | None,
    compile: bool = False,
    **kwargs: Any,
) -> None:
    """Train ``model`` in place; see :meth:`stimg.model.SlideClassifier.train`."""
    _fit.check(patience=patience, batch_size=batch_size, lr=lr, weight_decay=weight_decay)
    validate.whole(batch_size, "batch_size")
    validate.one_of(monitor, MONITORS, "monitor")
    bags = model.bags(model.adata, labelled=True)
    masks = hold_out_donors(bags, validation=validation, fraction=validation_fraction, rng=_rng.derive(seed, 0))
    train_bags, val_bags = (bags.chosen(mask) for mask in masks)
    short = [name for name in model.classes if name not in train_bags.labels]
    if short:
        raise ValueError(f"there is no training slide of {short}; wanted some of each of {list(model.classes)}. Hold out other donors.")
    o = model.options
    dataset = BagDataset(train_bags, model.classes, max_tiles=o.max_tiles, seed=seed)
    val = BagDataset(val_bags, model.classes) if len(val_bags) else None
    data = PairDataModule(dataset, val, batch_size=batch_size, seed=seed, **{name: kwargs.pop(name) for name in _DATA if name in kwargs})
    steps = math.ceil(len(dataset) / batch_size)
    if max_epochs is None:
        max_epochs = min(MOST_EPOCHS, math.ceil(STEPS / steps))
    names = ids(model.adata, library_key=model._library_key)
    rows = np.sort(np.concatenate([data.train_idx, data.val_idx]))
    record = {
        **o.to_dict(),
        "features": "" if checkpoint_dir is None else hashing.of_array(np.asarray(bags.features[rows], dtype=np.float32)),
        "labels": hashing.of_strings(f"{name}={label}" for name, label in zip(bags.names, bags.labels, strict=True)),
        "training observations": hashing.of_array(names[data.train_idx]),
        "validation observations": hashing.of_array(names[data.val_idx]),
        **{"max_epochs": max_epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "rng": seed, "monitor": monitor},
    }

    def make_plan() -> BagPlan:
        if not model.is_trained_:
            initialise(model, train_bags, seed)
        options: dict[str, Any] = {"max_epochs": max_epochs, "steps_per_epoch": steps, "seed": seed, "compile": compile, "monitor": monitor}
        return BagPlan(model.module, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.999), **options)

    def keep(plan: StepPlan, history: EpochHistory) -> None:
        if plan.best is not None:
            _kept.put(model.module, plan.best)
        own = model.ledger[-1]
        used = [*train_bags.donors, *val_bags.donors]
        new = Seen(own.who, own.kind, ids=names[rows], libraries=(*train_bags.names, *val_bags.names), donors=tuple(used))
        model.ledger = (*model.ledger[:-1], merged([own, new], who=own.who, kind=own.kind))
        model.history_ = _kept.tables(history.curves)
        model.best_epoch_ = history.first + plan.best_epoch if plan.best_epoch >= 0 else -1
        model.is_trained_, model.monitor_ = True, monitor if val is not None else None
        model.module.eval()
        model.train_indices_, model.validation_indices_, model.test_indices_ = data.train_idx, data.val_idx, np.empty(0, dtype=np.int64)

    _fit.fit(
        model,
        data,
        make_plan,
        keep,
        max_epochs=max_epochs,
        steps=steps,
        validated=val is not None,
        early_stopping=early_stopping,
        patience=patience,
        seed=seed,
        checkpoint_dir=checkpoint_dir,
        record=record,
        attributes=("monitor_",),
        **kwargs,
    )
    logger.info(
        "Trained on %d slides of %d donors, %d held out, %d without a label; best epoch %d of %d",
        len(train_bags),
        len(set(train_bags.donors)),
        len(val_bags),
        sum(label is None for label in bags.labels),
        model.best_epoch_,
        model.epochs(),
    )


@torch.no_grad()
def initialise(model: "SlideClassifier", bags: Bags, seed: int) -> None:
    """Draw the weights; take means and scales of the features from the training tiles, slides alike, and class weights from the slides."""
    module = model.module
    module.load_state_dict(model._make_module(seed).state_dict())
    first, second = np.zeros(bags.width), np.zeros(bags.width)
    for rows in bags.rows:
        tiles = np.asarray(bags.features[rows], dtype=np.float64)
        first += tiles.mean(axis=0) / len(bags)
        second += (tiles**2).mean(axis=0) / len(bags)
    scale = np.sqrt(np.maximum(second - first**2, 0.0))
    typical = float(np.sqrt(np.mean(scale**2)))
    if typical == 0:
        raise ValueError("all training tiles have the same features; wanted an embedding that tells tiles apart.")
    module.standardise.mean.copy_(torch.from_numpy(first))
    module.standardise.scale.copy_(torch.from_numpy(np.maximum(scale, FLOOR * typical)))
    if model.options.class_weight == "balanced":
        number = np.array([bags.labels.count(name) for name in model.classes], dtype=np.float64)
        module.class_weight.copy_(torch.from_numpy(len(bags) / (len(number) * number)))
