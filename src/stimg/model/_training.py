"""How STMAE is trained, and what of a training is kept."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stimg._core import hashing
from stimg._core import rng as _rng
from stimg.data.module import CropDataModule
from stimg.data.slots import raster_libraries
from stimg.data.statistics import gene_statistics, principal_axes
from stimg.model import _fit, _inference, _kept, _record
from stimg.model._fit import CHECKPOINT, Loop
from stimg.model._seeded import seeded
from stimg.model._split import split_observations
from stimg.nn import STMAEModule
from stimg.plan import MaskedPlan

if TYPE_CHECKING:
    from stimg.model.stmae import STMAE

__all__ = ["CHECKPOINT", "MOST_EPOCHS", "STEPS", "train"]

logger = logging.getLogger(__name__)
STEPS, MOST_EPOCHS = 1500, 400
_DATA = ("num_workers", "augment", "max_samples_per_epoch", "max_val_samples", "multiprocessing_context", "pin_memory")
_DRAWS = ("augment", "max_samples_per_epoch", "max_val_samples")


def train(model: "STMAE", loop: Loop, *, compile: bool = False, **kwargs: Any) -> None:
    """Train ``model`` in place; see :meth:`stimg.model.STMAE.train`."""
    adata = model.adata
    split = split_observations(
        raster_libraries(adata, library_key=model._library_key),
        adata.n_obs,
        validation=loop.validation,
        fraction=loop.validation_fraction,
        rng=_rng.derive(loop.seed, 0),
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
        batch_size=loop.batch_size,
        seed=loop.seed,
        **data_options,
    )
    loop = loop.over(len(data.train_dataset), steps=STEPS, most=MOST_EPOCHS)
    hashes = _kept.observation_hashes(model, adata)
    record = {
        **model.options.to_dict(),
        "genes": hashing.of_strings(model.genes),
        "training observations": hashing.of_array(hashes[split.train]),
        "validation observations": hashing.of_array(hashes[split.validation]),
        **{name: data_options.get(name) for name in _DRAWS},
    }

    def make_plan() -> MaskedPlan:
        if model.statistics is None:
            model.statistics = gene_statistics(train_libraries, len(model.genes))
            if isinstance(model.module, STMAEModule):
                _initialise(model, train_libraries)
        return MaskedPlan(
            model.module,
            train_offsets=_inference.offsets(model, train_libraries),
            val_offsets=_inference.offsets(model, val_libraries) if val_libraries else None,
            compile=compile,
            **loop.of_plan(),
        )

    rows = split.train | split.validation
    _fit.run(
        model,
        loop,
        data,
        make_plan,
        lambda plan, history: _fit.settle(model, plan, data, history, rows, library_key=model._library_key),
        record=record,
        attributes=("statistics",),
        **kwargs,
    )
    logger.info(
        "Trained on %d observations of %d libraries, %d held out; best epoch %d of %d",
        data.n_train,
        len(train_libraries),
        data.n_val,
        model.best_epoch_,
        model.epochs(),
    )


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
    with seeded(0):
        module.initialise(**tensors, **parts)
