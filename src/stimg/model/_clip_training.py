"""How an alignment is trained: pairs in memory, statistics of the training pairs, and the loop."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stimg._core import hashing, validate
from stimg._core import rng as _rng
from stimg.data.pairs import PairDataModule, PairDataset
from stimg.data.tiles import TileDataset
from stimg.model import _clip_read as _read
from stimg.model import _fit, _kept
from stimg.model._clip_split import split_pairs
from stimg.model._clip_start import correlate
from stimg.model._fit import Loop
from stimg.model._split import Split
from stimg.nn.heads import Project, Standardise
from stimg.plan.contrastive import MONITORS, ContrastivePlan

if TYPE_CHECKING:
    from stimg.model.image_gene_clip import ImageGeneCLIP

logger = logging.getLogger(__name__)
STEPS, MOST_EPOCHS = 1000, 200
FLOOR = 0.05
"""Smallest scale of a column in units of the root mean square of all columns' scales: what hardly varies is not blown up."""
_DATA = ("num_workers", "multiprocessing_context", "pin_memory")


def train(model: "ImageGeneCLIP", loop: Loop, *, monitor: str, compile: bool = False, **kwargs: Any) -> None:
    """Train ``model`` in place; see :meth:`stimg.model.ImageGeneCLIP.train`."""
    validate.one_of(monitor, MONITORS, "monitor")
    if validate.whole(loop.batch_size, "batch_size") < 2:
        raise ValueError("batch_size=1 has no negatives; wanted at least 2, and better hundreds.")
    adata, o = model.adata, model.options
    split = split_pairs(
        adata,
        validation=loop.validation,
        fraction=loop.validation_fraction,
        library_key=model._library_key,
        donor_key=model._donor_key,
        rng=_rng.derive(loop.seed, 0),
    )
    pairs = Pairs(model, split, loop.seed)
    data_options = {name: kwargs.pop(name) for name in _DATA if name in kwargs}
    data = PairDataModule(pairs.train, pairs.val, batch_size=loop.batch_size, sampling=o.sampling, seed=loop.seed, **data_options)
    loop = loop.over(len(pairs.train), steps=STEPS, most=MOST_EPOCHS)
    hashes = _kept.observation_hashes(model, adata)
    record = {
        **o.to_dict(),
        "genes": hashing.of_strings(model.genes),
        "image": list(model.image_keys),
        "image features": pairs.image_hash() if loop.checkpoint_dir is not None else "",
        "training observations": hashing.of_array(hashes[split.train]),
        "validation observations": hashing.of_array(hashes[split.validation]),
        "monitor": monitor,
    }

    def make_plan() -> ContrastivePlan:
        if not model.is_trained_:
            initialise(model, pairs, loop.seed)
        return ContrastivePlan(
            model.module,
            loss=o.loss,
            normalise=o.normalise,
            smoothing=o.label_smoothing,
            within=o.does("within"),
            adversarial_weight=o.adversarial_weight,
            expression_weight=o.expression_weight,
            encoder_rate=o.encoder_rate,
            monitor=monitor,
            betas=(0.9, 0.999),
            compile=compile,
            **loop.of_plan(),
        )

    def keep(plan: Any, history: Any) -> None:
        rows = split.train | split.validation
        _fit.settle(model, plan, data, history, rows, library_key=model._library_key, donor_key=model._donor_key or "")
        model.monitor_ = monitor

    _fit.run(model, loop, data, make_plan, keep, record=record, attributes=("monitor_",), **kwargs)
    logger.info(
        "Trained on %d pairs of %d libraries, %d held out; best epoch %d of %d",
        data.n_train,
        len(np.unique(pairs.library[split.train])),
        data.n_val,
        model.best_epoch_,
        model.epochs(),
    )


class Pairs:
    """Training and validation pairs of a model's data.

    Parameters
    ----------
    model
        The model, with its data.
    split
        Which observations are for what.
    seed
        Of the augmentation of tiles.
    """

    def __init__(self, model: "ImageGeneCLIP", split: Split, seed: int) -> None:
        adata, o = model.adata, model.options
        self.batch, _ = _read.codes_of(adata, model._batch_key)
        self.library, _ = _read.codes_of(adata, model._library_key)
        image, gene = _read.image_columns(model, adata), _read.gene_columns(model, adata)
        live = model.reads_tiles and o.tuning != "frozen"
        if model.reads_tiles and not live:
            image = image.held(adata.n_obs)  # the encoder does not learn, so every tile goes through it once
        wanted = _read.expression(adata, model.genes, model._layer) if o.expression_weight else None
        self.level = np.zeros(len(model.genes), dtype=np.float32)
        if o.does("centre"):
            image, gene = (each.centre(self.batch, split.train) for each in (image, gene))
            if wanted is not None:
                self.level = wanted(np.flatnonzero(split.train)).mean(axis=0)
                wanted = wanted.centre(self.batch, split.train)
        parts = []
        for mask, augment in ((split.train, o.augment), (split.validation, False)):
            rows = np.flatnonzero(mask)
            arrays = {
                "gene": gene(rows),
                "batch": self.batch[rows],
                "library": self.library[rows],
            }
            if wanted is not None:
                arrays["expression"] = wanted(rows) + self.level
            tiles = None
            if not live:
                arrays["image"] = image(rows)
            elif len(rows):
                tiles = TileDataset(adata, rows=rows, augment=augment, seed=seed)
            parts.append(PairDataset(arrays, rows, tiles) if len(rows) else None)
        self._image = image
        assert parts[0] is not None
        self.train, self.val = parts[0], parts[1]
        if not bool(self.train.arrays["gene"].any()):
            raise ValueError(
                f"The {len(self.train)} training observations have no count of the {len(model.genes)} genes of the model. Check the layer and the genes."
            )

    def image_hash(self) -> str:
        """Return a hash of the image features in memory; of tiles, which are known by their plan, nothing."""
        return hashing.of_array(self.train.arrays["image"].numpy()) if "image" in self.train.arrays else ""

    def features(self) -> np.ndarray:
        """Return the features of the training tiles with the encoder as it is, float32 (n, columns)."""
        return self._image(self.train.rows)


def _set(layer: Standardise, values: Tensor) -> None:
    mean, scale = values.double().mean(dim=0), values.double().std(dim=0, unbiased=False)
    typical = float(scale.square().mean().sqrt())
    layer.mean.copy_(mean)
    layer.scale.copy_(torch.where(scale > 0, scale.clamp_min(FLOOR * typical), torch.ones_like(scale)))


def _axes(values: Tensor, n: int, what: str) -> Tensor:
    """Return the first ``n`` principal axes of standardised values, scaled so that the scores' mean square is 1, float32 (columns, n)."""
    if n > min(len(values) - 1, values.shape[1]):
        raise ValueError(
            f"{what}={n} axes of {len(values)} training observations x {values.shape[1]} columns; wanted at most {min(len(values) - 1, values.shape[1])}."
        )
    x = values.double()
    wide = x.shape[1] > len(x)
    squares, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)  # of the smaller product: far faster than all singular vectors
    squares, vectors = squares[-n:].flip(0), vectors[:, -n:].flip(1)
    axes = torch.nn.functional.normalize(x.T @ vectors, dim=0) if wide else vectors
    axes = axes * torch.sign(axes[axes.abs().argmax(0), torch.arange(n)])
    return (axes / (squares.mean() / len(x)).sqrt()).float()


def initialise(model: "ImageGeneCLIP", pairs: Pairs, seed: int) -> None:
    """Draw the weights, and set means, scales and axes from the training pairs."""
    module, arrays = model.module, pairs.train.arrays
    _kept.put(module, {**_kept.state_of(module), **model._make_module(seed).state_dict()})
    image = arrays["image"] if "image" in arrays else torch.from_numpy(pairs.features())
    _set(module.image_in, image)
    _set(module.gene_in, arrays["gene"])
    if isinstance(module.image_axes, Project):
        module.image_axes.axes.copy_(_axes(module.image_in(image), module.image_axes.axes.shape[1], "image_components"))
    if isinstance(module.gene_encoder, Project):
        module.gene_encoder.axes.copy_(_axes(module.gene_in(arrays["gene"]), module.gene_encoder.axes.shape[1], "gene_components"))
    if module.expression_in is not None:
        _set(module.expression_in, arrays["expression"])
    if model.options.init == "cca":
        correlate(module, image, arrays["gene"], model.options.init_components, model.options.init_penalty)
