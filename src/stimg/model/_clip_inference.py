"""What a trained alignment says of tables: embeddings, similarities, retrieval, expression, uncertainty."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stimg._core import rng as _rng
from stimg._core import validate
from stimg.model import _clip_read as _read
from stimg.model._seeded import seeded

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.model.image_gene_clip import ImageGeneCLIP

DIRECTIONS = ("image to expression", "expression to image", "image to image", "expression to expression")
HEADS = ("trained", "retrieval")
KINDS = ("entropy", "dropout")


@dataclass(frozen=True)
class Retrieved:
    """The best of a gallery for each query: ``index`` int64 (n, k), rows of the reference, and ``score`` float32 (n, k), cosines, falling."""

    index: np.ndarray
    score: np.ndarray


def unit(values: np.ndarray) -> np.ndarray:
    """Return rows at unit length; a row of zeros stays one."""
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _parts(n: int, size: int) -> Iterator[np.ndarray]:
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))


@torch.inference_mode()
def embed(model: "ImageGeneCLIP", adata: "AnnData | None", side: str, *, batch_size: int, normalise: bool | None) -> np.ndarray:
    """Return the embedding of one ``side``, ``"image"`` or ``"gene"``, float32 (n_obs, n_dim)."""
    model.need_trained()
    adata = model.need_adata(adata)
    if adata.n_obs == 0:
        raise ValueError("adata has no observation; wanted at least one.")
    size = validate.whole(batch_size, "batch_size")
    columns = _read.side(model, adata, side)
    call: Callable[[Tensor], Tensor] = model.module.embed_image if side == "image" else model.module.embed_gene
    model.module.eval()
    out = np.empty((adata.n_obs, model.options.n_dim), dtype=np.float32)
    for rows in _parts(adata.n_obs, size):
        out[rows] = call(torch.from_numpy(columns(rows)).to(model.device)).float().cpu().numpy()
    return unit(out) if (model.options.normalise if normalise is None else normalise) else out


def score_pairs(model: "ImageGeneCLIP", adata: "AnnData | None", *, batch_size: int) -> np.ndarray:
    """Return the cosine of the two embeddings of each observation, float32 (n_obs,)."""
    image, gene = (embed(model, adata, side, batch_size=batch_size, normalise=True) for side in ("image", "gene"))
    return np.einsum("ij,ij->i", image, gene)


def _best(query: np.ndarray, gallery: np.ndarray, k: int, size: int = 1024) -> Retrieved:
    """Return the ``k`` rows of ``gallery`` with the largest dot product, equal ones in the order of the gallery."""
    index, score = np.empty((len(query), k), dtype=np.int64), np.empty((len(query), k), dtype=np.float32)
    for rows in _parts(len(query), size):
        scores = query[rows] @ gallery.T
        if k < len(gallery):
            kept = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
        else:
            kept = np.broadcast_to(np.arange(k), scores.shape)
        found = np.take_along_axis(scores, kept, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        index[rows], score[rows] = np.take_along_axis(kept, order, axis=1), np.take_along_axis(found, order, axis=1)
    return Retrieved(index, score)


def retrieve(
    model: "ImageGeneCLIP", query: "AnnData", reference: "AnnData | None", *, direction: str, k: int, batch_size: int
) -> Retrieved:
    """Return the best of ``reference`` for each observation of ``query``."""
    validate.one_of(direction, DIRECTIONS, "direction")
    reference = model.need_adata(reference)
    k = validate.whole(k, "k")
    if k > reference.n_obs:
        raise ValueError(f"k={k} of a reference of {reference.n_obs} observations; wanted at most {reference.n_obs}.")
    sides = [{"image": "image", "expression": "gene"}[name] for name in direction.split(" to ")]
    left, right = (embed(model, a, side, batch_size=batch_size, normalise=True) for a, side in zip((query, reference), sides, strict=True))
    return _best(left, right, k)


def predict(
    model: "ImageGeneCLIP",
    adata: "AnnData | None",
    *,
    genes: Sequence[str] | None,
    head: str | None,
    reference: "AnnData | None",
    by: str,
    k: int,
    batch_size: int,
) -> pd.DataFrame:
    """Return predicted log1p counts per 10,000, (n_obs, genes)."""
    model.need_trained()
    own = model.need_adata(adata)
    head = ("trained" if model.module.decoder is not None else "retrieval") if head is None else head
    validate.one_of(head, HEADS, "head")
    names = list(model.genes) if genes is None else validate.names(genes)
    validate.unique_names(pd.Index(names), "genes asked for", todo="Name each gene once.")
    if head == "trained":
        at = validate.genes(
            names, model.genes, what="genes asked for", todo="The trained head predicts genes of the model alone (`model.genes`)."
        )
        values = _decoded(model, own, batch_size)[:, at]
    else:
        values = _averaged(model, own, model.need_adata(reference), names, by, k, batch_size)
    return pd.DataFrame(values, index=own.obs_names, columns=names)


@torch.inference_mode()
def _decoded(model: "ImageGeneCLIP", adata: "AnnData", batch_size: int) -> np.ndarray:
    if model.module.decoder is None or model.module.expression_in is None:
        raise ValueError(
            "head='trained' needs a model with expression_weight above 0; this one has 0. Train one with `expression_weight=1`, or pass head='retrieval'."
        )
    raw = torch.from_numpy(embed(model, adata, "image", batch_size=batch_size, normalise=False))
    out = np.empty((adata.n_obs, len(model.genes)), dtype=np.float32)
    for rows in _parts(adata.n_obs, validate.whole(batch_size, "batch_size")):
        out[rows] = model.module.expression_in.invert(model.module.decode(raw[rows].to(model.device))).float().cpu().numpy()
    return np.maximum(out, 0.0)


def _averaged(
    model: "ImageGeneCLIP", adata: "AnnData", reference: "AnnData", genes: list[str], by: str, k: int, batch_size: int
) -> np.ndarray:
    validate.one_of(by, ("image", "expression"), "by")
    found = retrieve(model, adata, reference, direction=f"image to {by}", k=k, batch_size=batch_size)
    weights = _softmax(found.score * model.scale)
    values = _read.expression(reference, pd.Index(genes), model._layer)(np.arange(reference.n_obs))
    out = np.empty((adata.n_obs, len(genes)), dtype=np.float32)
    for rows in _parts(adata.n_obs, 1024):
        out[rows] = np.einsum("nk,nkg->ng", weights[rows], values[found.index[rows]])
    return out


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def uncertainty(
    model: "ImageGeneCLIP",
    adata: "AnnData | None",
    *,
    kind: str,
    reference: "AnnData | None",
    n_samples: int,
    rng: _rng.RngLike,
    batch_size: int,
) -> np.ndarray:
    """Return one number per observation, float32 (n_obs,); larger is less certain."""
    validate.one_of(kind, KINDS, "kind")
    own = model.need_adata(adata)
    if kind == "dropout":
        return _spread(model, own, validate.whole(n_samples, "n_samples", least=2), _rng.as_seed(rng), batch_size)
    gallery = embed(model, model.need_adata(reference), "gene", batch_size=batch_size, normalise=True)
    if len(gallery) < 2:
        raise ValueError(f"the reference has {len(gallery)} observations; wanted at least 2.")
    image = embed(model, own, "image", batch_size=batch_size, normalise=True)
    out = np.empty(own.n_obs, dtype=np.float32)
    for rows in _parts(own.n_obs, 1024):
        share = _softmax((image[rows] @ gallery.T) * model.scale)
        out[rows] = -(share * np.log(np.maximum(share, 1e-30))).sum(axis=1) / np.log(len(gallery))
    return out


@torch.inference_mode()
def _spread(model: "ImageGeneCLIP", adata: "AnnData", n_samples: int, seed: int, batch_size: int) -> np.ndarray:
    model.need_trained()
    if not any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.module.image_head.modules()):
        raise ValueError("kind='dropout' needs a model with dropout above 0 in its image head. Pass kind='entropy'.")
    columns = _read.side(model, adata, "image")
    out = np.empty(adata.n_obs, dtype=np.float32)
    model.module.eval()
    dropouts = [m for m in model.module.image_head.modules() if isinstance(m, nn.Dropout)]
    try:
        for m in dropouts:
            m.train()
        with seeded(seed):
            for rows in _parts(adata.n_obs, validate.whole(batch_size, "batch_size")):
                x = torch.from_numpy(columns(rows)).to(model.device)
                drawn = torch.stack([nn.functional.normalize(model.module.embed_image(x).float(), dim=1) for _ in range(n_samples)])
                out[rows] = (1.0 - drawn.mean(dim=0).norm(dim=1)).cpu().numpy()
    finally:
        model.module.eval()
    return out
