"""How a classifier of slides is trained: donors apart, statistics of the training tiles, and the loop."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stimg._core import hashing, validate
from stimg._core import rng as _rng
from stimg._core.ledger import Seen
from stimg.data.bags import BagDataset, Bags, hold_out_donors
from stimg.data.ledger import ids
from stimg.data.pairs import PairDataModule
from stimg.model import _fit
from stimg.model._fit import Loop
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


def train(model: "SlideClassifier", loop: Loop, *, monitor: str, compile: bool = False, **kwargs: Any) -> None:
    """Train ``model`` in place; see :meth:`stimg.model.SlideClassifier.train`."""
    validate.whole(loop.batch_size, "batch_size")
    validate.one_of(monitor, MONITORS, "monitor")
    bags = model.bags(model.adata, labelled=True)
    masks = hold_out_donors(bags, validation=loop.validation, fraction=loop.validation_fraction, rng=_rng.derive(loop.seed, 0))
    train_bags, val_bags = (bags.chosen(mask) for mask in masks)
    short = [name for name in model.classes if name not in train_bags.labels]
    if short:
        raise ValueError(f"there is no training slide of {short}; wanted some of each of {list(model.classes)}. Hold out other donors.")
    o = model.options
    dataset = BagDataset(train_bags, model.classes, max_tiles=o.max_tiles, seed=loop.seed)
    val = BagDataset(val_bags, model.classes) if len(val_bags) else None
    data = PairDataModule(
        dataset, val, batch_size=loop.batch_size, seed=loop.seed, **{name: kwargs.pop(name) for name in _DATA if name in kwargs}
    )
    loop = loop.over(len(dataset), steps=STEPS, most=MOST_EPOCHS)
    names = ids(model.adata, library_key=model._library_key)
    rows = np.sort(np.concatenate([data.train_idx, data.val_idx]))
    record = {
        **o.to_dict(),
        "features": "" if loop.checkpoint_dir is None else hashing.of_array(np.asarray(bags.features[rows], dtype=np.float32)),
        "labels": hashing.of_strings(f"{name}={label}" for name, label in zip(bags.names, bags.labels, strict=True)),
        "training observations": hashing.of_array(names[data.train_idx]),
        "validation observations": hashing.of_array(names[data.val_idx]),
        "monitor": monitor,
    }

    def make_plan() -> BagPlan:
        if not model.is_trained_:
            initialise(model, train_bags, loop.seed)
        return BagPlan(model.module, betas=(0.9, 0.999), monitor=monitor, compile=compile, **loop.of_plan())

    def keep(plan: StepPlan, history: EpochHistory) -> None:
        own, used = model.ledger[-1], [*train_bags.donors, *val_bags.donors]
        new = Seen(own.who, own.kind, ids=names[rows], libraries=(*train_bags.names, *val_bags.names), donors=tuple(used))
        _fit.finish(model, plan, data, history, new)
        model.monitor_ = monitor if val is not None else None

    _fit.run(model, loop, data, make_plan, keep, record=record, attributes=("monitor_",), **kwargs)
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
