"""An alignment that reads tiles: its image encoder, and the features of tiles."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from stimg._core import keys
from stimg.data.tile_plan import tile_plan
from stimg.data.tiles import TileDataset
from stimg.model._clip_read import Columns
from stimg.model._seeded import seeded
from stimg.model.clip_options import ImageGeneCLIPOptions
from stimg.nn.image.encoder import ImageEncoder, load_image_encoder
from stimg.nn.lora import add_lora

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.image.spec import TileSpec
    from stimg.model.image_gene_clip import ImageGeneCLIP

AT_ONCE = 32
"""Observations whose tiles go through the encoder at a time."""


def load_encoder(options: ImageGeneCLIPOptions, encoder: ImageEncoder | None, path: str | Path | None) -> ImageEncoder:
    """Return the encoder that ``options`` name; a TypeError or ValueError where ``encoder`` is another one."""
    if encoder is None:
        return load_image_encoder(options.encoder, path=path)
    if name_of(encoder) != options.encoder:
        raise ValueError(
            f"the encoder given is {encoder.card.name!r}, the options name {options.encoder!r}. Pass `options=ImageGeneCLIPOptions(encoder={encoder.card.name!r})`."
        )
    return encoder


def name_of(encoder: object) -> str:
    """Return the name on the card of an encoder; a TypeError for anything else."""
    if not isinstance(encoder, ImageEncoder):
        raise TypeError(f"encoder is a {type(encoder).__name__}; wanted a stimg.nn.image.ImageEncoder, or the name of a card.")
    return encoder.card.name


def check_spec(encoder: ImageEncoder, spec: "TileSpec") -> None:
    """Raise a ValueError where tiles have another scale or size than the encoder expects."""
    card = encoder.card
    if not card.accepts_mpp(spec.mpp):
        raise ValueError(
            f"the tiles are planned at {spec.mpp:g} µm per pixel; {card.title} expects {card.mpp:g}. Plan them at that scale with `stimg.pp.plan_tiles`."
        )
    if not card.accepts_size(spec.size_px):
        raise ValueError(
            f"the tiles are planned with {spec.size_px} px; {card.title} takes {card.size_px}. Plan them with `tile_um={card.size_px} * mpp`."
        )


def adapt(encoder: ImageEncoder, options: ImageGeneCLIPOptions, size_px: int) -> ImageEncoder:
    """Return ``encoder`` with the weights that are to learn, in place: none, low-rank additions, or all that its features depend on."""
    for parameter in encoder.parameters():
        parameter.requires_grad_(options.tuning != "frozen")
    if options.tuning == "frozen":
        return encoder.eval()
    encoder.eval()
    with seeded(0):
        device = next(encoder.parameters()).device
        encoder.features(torch.randn(1, 3, size_px, size_px, device=device)).sum().backward()
        for parameter in encoder.parameters():  # a classifier behind the features would stay without a gradient
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        if options.tuning == "lora":
            add_lora(encoder, rank=options.lora_rank, alpha=options.lora_alpha, dropout=options.lora_dropout)
    return encoder


def describe(encoder: ImageEncoder) -> dict[str, Any]:
    """Return what says which encoder it is, taken before it is adapted."""
    return {"encoder": encoder.card.name, "weights_hash": encoder.weights_hash()}


def check_weights(model: "ImageGeneCLIP", encoder: ImageEncoder) -> None:
    """Raise a ValueError where an encoder's weights are others than those the model was trained with."""
    known, found = model.facts["sources"][keys.TILES]["weights_hash"], encoder.weights_hash()
    if known != found:
        raise ValueError(
            f"the weights of {encoder.card.name!r} have the hash {found}; the model was trained with {known}. Pass the same weights with `encoder_path=`."
        )


@torch.no_grad()
def encode(module: nn.Module, dataset: TileDataset, at: np.ndarray, device: torch.device) -> np.ndarray:
    """Return the features of the items ``at`` of ``dataset``, float32 (len(at), fields x width)."""
    parts = []
    for start in range(0, len(at), AT_ONCE):
        tiles = torch.stack([dataset[int(i)]["image"] for i in at[start : start + AT_ONCE]])
        parts.append(module.features(tiles.to(device)).float().cpu().numpy())  # type: ignore[operator]
    return np.concatenate(parts)


def columns(model: "ImageGeneCLIP", adata: "AnnData") -> Columns:
    """Return the features of the tiles of ``adata``, made when they are asked for."""
    spec = tile_plan(adata).spec
    known = model.facts["widths"][keys.TILES]
    fields = known // model.facts["encoder_width"]
    if len(spec.fields) != fields:
        raise ValueError(
            f"the tiles of adata have {len(spec.fields)} fields; the model was trained with {fields}. Plan them as for the training data."
        )
    dataset = TileDataset(adata)

    def read(rows: np.ndarray) -> np.ndarray:
        training = model.module.training
        model.module.eval()
        try:
            return encode(model.module, dataset, rows, model.device)
        finally:
            model.module.train(training)

    return Columns(read, known)
