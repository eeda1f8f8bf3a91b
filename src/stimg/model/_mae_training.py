"""How an image encoder is trained: random tiles of the tissue, what is held out, and the loop."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stimg._core import hashing
from stimg._core import rng as _rng
from stimg.data.ledger import ids
from stimg.data.random_tile_module import RandomTileModule
from stimg.data.random_tiles import RandomTileDataset
from stimg.data.tile_plan import plan_slide, tile_plan
from stimg.image.augment_tiles import TileAugmentation
from stimg.model import _fit, _mae_record
from stimg.model._clip_split import split_pairs
from stimg.model._fit import Loop
from stimg.plan.callbacks import EpochHistory
from stimg.plan.masked_tiles import MaskedTilePlan
from stimg.plan.steps import StepPlan

if TYPE_CHECKING:
    from stimg.image.slide import Slide
    from stimg.model.image_mae import ImageMAE

logger = logging.getLogger(__name__)
STEPS, MOST_EPOCHS = 4000, 400
FEWEST = 64
"""Fewest validation tiles of an epoch."""
SAMPLE = 512
"""Tiles from which mean and spread of the colours are taken."""
_LOADER = ("num_workers", "multiprocessing_context", "pin_memory")
_TILES = ("reach_um", "in_memory")


def train(
    model: "ImageMAE",
    loop: Loop,
    *,
    tiles_per_epoch: int | None,
    augment: bool | TileAugmentation,
    image: Any,
    slides: "Mapping[str, Slide] | None",
    compile: bool = False,
    **kwargs: Any,
) -> None:
    """Train ``model`` in place; see :meth:`stimg.model.ImageMAE.train`."""
    adata = model.adata
    spec = tile_plan(adata, model._tiles_key).spec
    if spec.mpp != model.spec.mpp or spec.fields != model.spec.fields:
        raise ValueError(
            f"the tiles are planned at {spec.mpp:g} µm per pixel with fields {spec.fields}; the model was made for {model.spec.mpp:g} with {model.spec.fields}. "
            "Plan such tiles, or make a new model."
        )
    split = split_pairs(
        adata,
        validation=loop.validation,
        fraction=loop.validation_fraction,
        library_key=model._library_key,
        donor_key=model._donor_key,
        rng=_rng.derive(loop.seed, 0),
    )
    opened = _opened(model, split.train | split.validation, image, slides)
    shared: dict[str, Any] = {"size_px": model.options.size_px, "slides": opened, "key": model._tiles_key, "seed": loop.seed}
    shared |= {name: kwargs.pop(name) for name in _TILES if name in kwargs}
    avoid = split.validation if split.validation.any() else None
    tiles = RandomTileDataset(adata, rows=split.train, avoid=avoid, n_tiles=tiles_per_epoch, augment=augment, **shared)
    val = None
    if avoid is not None:
        val = RandomTileDataset(adata, rows=split.validation, coverage=2.0, **shared)
        val.n_tiles = max(val.n_tiles, FEWEST)
    images = [each for name, slide in opened.items() for each in _mae_record.hashes_of(slide, adata, name)]
    if slides is None:
        for slide in opened.values():
            if tiles.in_memory:
                slide.close()  # what was decoded whole is not needed any more
    data = RandomTileModule(tiles, val, batch_size=loop.batch_size, **{name: kwargs.pop(name) for name in _LOADER if name in kwargs})
    loop = loop.over(len(tiles), steps=STEPS, most=MOST_EPOCHS)
    names = ids(adata, library_key=model._library_key)
    record = {
        **model.options.to_dict(),
        "tiles": spec.to_dict(),
        "images": sorted(images),
        "training observations": hashing.of_array(names[split.train]),
        "validation observations": hashing.of_array(names[split.validation]),
        "augment": str(augment),
        "tiles_per_epoch": len(tiles),
        "reach_um": shared.get("reach_um"),
    }

    def make_plan() -> MaskedTilePlan:
        if not model.is_trained_:
            initialise(model, tiles, loop.seed)
        return MaskedTilePlan(model.module, compile=compile, **loop.of_plan())

    def keep(plan: StepPlan, history: EpochHistory) -> None:
        _fit.finish(model, plan, data, history, _mae_record.seen(model, split.train | split.validation, images))

    try:
        _fit.run(model, loop, data, make_plan, keep, record=record, **kwargs)
    finally:
        for each in (tiles, *([] if val is None else [val])):
            each.release()  # the trainer, and with it the model, holds on to them
    logger.info(
        "Trained on %.1f mm² of tissue of %d libraries, %d tiles an epoch; best epoch %d of %d",
        tiles.area_um2 / 1e6,
        len(tiles.libraries),
        len(tiles),
        model.best_epoch_,
        model.epochs(),
    )


def _opened(model: "ImageMAE", rows: np.ndarray, image: Any, slides: "Mapping[str, Slide] | None") -> "dict[str, Slide]":
    """Return the slides of the libraries that are read, each opened once."""
    adata, key = model.adata, model._tiles_key
    plan = tile_plan(adata, key)
    wanted = [name for name, members in plan.rows.items() if rows[members].any()]
    return {name: plan_slide(adata, plan, name, image=image, slides=slides, library_key=model._library_key) for name in wanted}


@torch.no_grad()
def initialise(model: "ImageMAE", tiles: RandomTileDataset, seed: int) -> None:
    """Draw the weights, and take mean and spread of the colours from training tiles."""
    module = model.module
    module.load_state_dict(model._make_module(seed).state_dict())
    sample = tiles.__getitems__([(0, i) for i in range(SAMPLE)])["image"]
    colours = module.colours(sample.to(model.device)).flatten(0, 2).double()
    module.mean.copy_(colours.mean(dim=0))
    module.scale.copy_(colours.std(dim=0).clamp_min(1e-3))
