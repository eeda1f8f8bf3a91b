"""How a trained ImageMAE reads tiles."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stimg._core import rng as _rng
from stimg._core import validate
from stimg.data.tile_plan import tile_plan
from stimg.data.tiles import TileDataset
from stimg.nn.image.mae import patchify, random_keep, unpatchify

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.image.slide import Slide
    from stimg.model.image_mae import ImageMAE

TOLERANCE = 0.05
"""Largest relative difference between the scale of tiles and that of the training."""
GREY = 128


class MaskedTiles(NamedTuple):
    """Tiles, the same with hidden patches in grey, and with predictions there; uint8 (n, size, size, 3) each."""

    tiles: np.ndarray
    masked: np.ndarray
    predicted: np.ndarray


def read(
    model: "ImageMAE", adata: "AnnData | None", *, rows: Any = None, image: Any = None, slides: "Mapping[str, Slide] | None" = None
) -> TileDataset:
    """Return the planned tiles of ``adata``; a ValueError where their scale or size is not one that the model reads."""
    adata = model.need_adata(adata)
    check(model, adata)
    return TileDataset(adata, rows=rows, image=image, slides=slides, key=model._tiles_key)


def check(model: "ImageMAE", adata: "AnnData") -> None:
    """Raise a ValueError where the planned tiles of ``adata`` are not such as the model reads."""
    spec, patch = tile_plan(adata, model._tiles_key).spec, model.options.patch
    known = [model.spec.mpp * field for field in model.spec.fields]
    if not any(abs(spec.mpp - mpp) <= TOLERANCE * mpp for mpp in known):
        raise ValueError(
            f"the tiles are planned at {spec.mpp:g} µm per pixel; the model was trained at {', '.join(f'{mpp:g}' for mpp in known)}. Run "
            f"`stimg.pp.plan_tiles(..., mpp={known[0]:g})`, or train a model at the scale of these tiles."
        )
    if spec.size_px % patch:
        raise ValueError(
            f"the tiles are planned with {spec.size_px} px; the model cuts tiles into patches of {patch} px. Run "
            f"`stimg.pp.plan_tiles(..., tile_um={max(1, round(spec.size_px / patch)) * patch * spec.mpp:g}, mpp={spec.mpp:g})`."
        )


@torch.inference_mode()
def embed(model: "ImageMAE", adata: "AnnData | None", *, image: Any, slides: "Mapping[str, Slide] | None", batch_size: int) -> np.ndarray:
    """Return the embedding of every observation's tiles, float32 (n_obs, fields x features)."""
    model.need_trained()
    batch_size = validate.whole(batch_size, "batch_size")
    tiles = read(model, adata, image=image, slides=slides)
    model.module.eval()
    out = []
    for start in range(0, len(tiles), batch_size):
        batch: Tensor = tiles.__getitems__(range(start, min(start + batch_size, len(tiles))))["image"].to(model.device)
        out.append(model.module.embed(batch.flatten(0, 1)).float().cpu().view(len(batch), -1).numpy())
    return np.concatenate(out)


def reconstruct(
    model: "ImageMAE", adata: "AnnData | None", *, rows: Any, image: Any, slides: "Mapping[str, Slide] | None", rng: _rng.RngLike
) -> MaskedTiles:
    """Return tiles of the first field with what the model makes of a part of them."""
    model.need_trained()
    found = read(model, adata, rows=rows, image=image, slides=slides)
    tiles: Tensor = found.__getitems__(range(len(found)))["image"][:, 0]
    patch, shape = model.options.patch, (found.spec.size_px, found.spec.size_px)
    chance = torch.Generator().manual_seed(_rng.as_seed(rng))
    n_patches = (shape[0] // patch) ** 2
    keep = random_keep(len(tiles), n_patches, model.options.mask_ratio, torch.device("cpu"), chance)
    visible = torch.zeros(len(tiles), n_patches, dtype=torch.bool).scatter(1, keep, value=True)
    masked = unpatchify(torch.where(visible[..., None], patchify(tiles, patch), torch.tensor(GREY, dtype=torch.uint8)), patch, shape)
    predicted = model.module.reconstruct(tiles.to(model.device), keep.to(model.device)).cpu()
    return MaskedTiles(tiles.numpy(), masked.numpy(), predicted.numpy())
