"""What is kept of an STMAE beside what is kept of any model: the statistics of its genes, its rasters and its crop."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stimg.data.statistics import GeneStatistics
from stimg.model import _kept
from stimg.model._inference import need_trained
from stimg.model._kept import curves, identity, observation_hashes, tables
from stimg.plan.masked import MONITOR

if TYPE_CHECKING:
    from stimg.model.stmae import STMAE

__all__ = ["FIELDS", "STATISTICS", "contents", "curves", "identity", "observation_hashes", "restore", "tables"]

STATISTICS = ("pooled_mean", "pooled_composition", "spread")
FIELDS = ("crop", "rasters")
"""What the record of an STMAE has beside the fields of every model."""


def contents(model: "STMAE") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the record of which a saved model consists."""
    statistics = need_trained(model)
    tensors, record = _kept.contents(
        model,
        _kept.state_of(model.module),
        monitor=MONITOR,
        setup={"layer": model._layer, "library_key": model._library_key},
        crop=list(model.crop.size),
        rasters=model.rasters,
    )
    tensors |= {f"statistics.{n}": torch.from_numpy(np.ascontiguousarray(getattr(statistics, n))) for n in STATISTICS}
    return tensors, record


def restore(model: "STMAE", tensors: Mapping[str, Tensor], record: Mapping[str, Any], path: Path) -> None:
    """Fill a new model with what was saved."""
    _kept.restore(model, tensors, record, path)
    found = {n: tensors[f"statistics.{n}"].numpy() for n in STATISTICS}
    empty = np.zeros((0, len(model.genes)), dtype=np.float32)
    model.statistics = GeneStatistics(empty, empty, **found)
