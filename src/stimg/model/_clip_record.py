"""What is kept of an alignment, and how it comes back."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stimg.model import _clip_read as _read
from stimg.model import _kept, _saving
from stimg.model.clip_options import ImageGeneCLIPOptions

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.model.image_gene_clip import ImageGeneCLIP

FIELDS = ("facts",)
SETUP = ("image", "gene", "layer", "library_key", "donor_key", "batch_key")


def contents(model: "ImageGeneCLIP") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the record of which a saved model consists."""
    return _kept.contents(
        model,
        _kept.state_of(model.module),
        monitor=model.monitor_ or "",
        setup={name: model._setup[name] for name in SETUP},
        facts=model.facts,
        scores=model.scores_,
    )


def load(cls: "type[ImageGeneCLIP]", path: Path, adata: "AnnData | None", device: torch.device, **encoder: Any) -> "ImageGeneCLIP":
    """Return the model saved at ``path``."""
    tensors, record = _saving.read(path, cls.__name__, FIELDS)
    _kept.check_genes(record, path)
    options = ImageGeneCLIPOptions.from_dict(record["options"])
    model = cls(None, record["genes"], options=options, registry=record["registry"], facts=record["facts"], **encoder)
    _kept.restore(model, tensors, record, path)
    model.monitor_, model.scores_ = record["fit"]["monitor"] or None, record.get("scores", {})
    model.to_device(device)
    if adata is not None:
        cls.setup_anndata(adata, **record["setup"])
        _read.image_columns(model, adata)
        _read.gene_columns(model, adata)
        model._adata = adata
        model._adata_manager = model._get_most_recent_anndata_manager(adata, required=True)
        model._register_manager_for_instance(model._adata_manager)
    return model
