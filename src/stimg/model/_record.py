"""What is kept of an STMAE beside what is kept of any model: the statistics of its genes, and facts of its rasters and its crop."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stimg.data.statistics import GeneStatistics
from stimg.model._inference import need_trained

if TYPE_CHECKING:
    from stimg.model.stmae import STMAE

STATISTICS = ("pooled_mean", "pooled_composition", "spread")
FIELDS = ("crop", "rasters")
"""What the record of an STMAE has beside the fields of every model."""


def tensors(model: "STMAE") -> dict[str, Tensor]:
    """Return the gene statistics of a trained model as a saved model holds them."""
    statistics = need_trained(model)
    return {f"statistics.{n}": torch.from_numpy(np.ascontiguousarray(getattr(statistics, n))) for n in STATISTICS}


def statistics_of(model: "STMAE", saved: Mapping[str, Tensor]) -> GeneStatistics:
    """Return the gene statistics among the tensors that were ``saved``."""
    found = {n: saved[f"statistics.{n}"].numpy() for n in STATISTICS}
    empty = np.zeros((0, len(model.genes)), dtype=np.float32)
    return GeneStatistics(empty, empty, **found)
