"""What is kept of an image encoder, how it comes back, and what it has seen."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stimg._core import hashing
from stimg._core.ledger import Seen
from stimg.data.ledger import ids
from stimg.image.perceptual import CELLS, image_hash
from stimg.image.slide import Slide
from stimg.image.spec import TileSpec
from stimg.model import _kept, _mae_inference, _saving
from stimg.model.mae_options import ImageMAEOptions
from stimg.plan.steps import MONITOR

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.model.image_mae import ImageMAE

FIELDS = ("tiles",)
SETUP = ("tiles_key", "library_key", "donor_key")
THUMBNAIL_PX = 2000
"""Longest side of the reduced image that is hashed: that of the images in ``uns["spatial"]``."""


def contents(model: "ImageMAE") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the record of which a saved model consists."""
    return _kept.contents(
        model,
        model.module.state_dict(),
        monitor=MONITOR,
        setup={name: model._setup[name] for name in SETUP},
        tiles=model.spec.to_dict(),
    )


def load(cls: "type[ImageMAE]", path: Path, adata: "AnnData | None", device: torch.device) -> "ImageMAE":
    """Return the model saved at ``path``."""
    tensors, record = _saving.read(path, cls.__name__, FIELDS)
    options, spec = ImageMAEOptions.from_dict(record["options"]), TileSpec.from_dict(record["tiles"])
    model = cls(None, options=options, registry=record["registry"], spec=spec)
    _kept.restore(model, tensors, record, path)
    model.to_device(device)
    if adata is not None:
        cls.setup_anndata(adata, **record["setup"])
        _mae_inference.check(model, adata)
        model._adata = adata
        model._adata_manager = model._get_most_recent_anndata_manager(adata, required=True)
        model._register_manager_for_instance(model._adata_manager)
    return model


def hashes_of(slide: Slide, adata: "AnnData", library: str) -> list[int]:
    """Return perceptual hashes of a slide: of its reduced image, and of the one kept in ``uns["spatial"]``."""
    found = []
    kept = adata.uns.get("spatial", {}).get(library, {}).get("images", {}).get("hires")
    for picture in (slide.thumbnail(THUMBNAIL_PX)[0], *([] if kept is None else [np.asarray(kept)[..., :3]])):
        pixels = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8) if picture.dtype.kind == "f" else picture
        if min(pixels.shape[:2]) > CELLS:
            found.append(int(image_hash(pixels)))
    return found


def seen(model: "ImageMAE", rows: np.ndarray, images: list[int]) -> Seen:
    """Return the record of the observations around which tissue was read: by name, because no count was."""
    adata, own = model.adata, model.ledger[-1]
    part = adata.obs.iloc[np.flatnonzero(rows)]

    def names(key: str | None) -> tuple[str, ...]:
        return tuple(part[key].dropna().astype(str).unique()) if key is not None and key in part else ()

    return Seen(
        own.who,
        own.kind,
        ids=ids(adata, library_key=model._library_key)[rows],
        images=np.asarray(images, dtype=np.uint64),
        libraries=names(model._library_key),
        donors=names(model._donor_key),
    )


def identity(model: "ImageMAE", adata: "AnnData") -> dict[str, Any]:
    """Return what :meth:`stimg.model.ImageMAE.identity` says."""
    weights = np.concatenate([v.detach().cpu().float().numpy().ravel() for v in model.module.state_dict().values()])
    return {
        "model": type(model).__name__,
        "model_hash": hashing.of_array(weights),
        "n_obs_seen_in_training": int(np.isin(ids(adata, library_key=model._library_key), model.ledger[-1].ids).sum()),
    }
