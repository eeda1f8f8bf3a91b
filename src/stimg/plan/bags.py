"""The training of classifiers of bags."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stimg.nn.mil import MILModule
from stimg.plan.steps import MONITOR, StepPlan

MONITORS = {"validation_auroc": True, MONITOR: False}
"""Validation metrics that a training can be stopped by, and whether more is better."""


class BagPlan(StepPlan):
    """One training step of a classifier of bags: pool, classify, cross-entropy. Everything but the loss is as in :class:`stimg.plan.StepPlan`.

    Parameters
    ----------
    module
        The network.
    **options
        For :class:`stimg.plan.StepPlan`; ``monitor`` is ``validation_loss`` or ``validation_auroc``, the mean over classes of the area under the ROC
        curve of each against the others.
    """

    module: MILModule

    def __init__(self, module: MILModule, **options: Any) -> None:
        monitor = options.setdefault("monitor", MONITOR)
        super().__init__(module, more_is_better=MONITORS[monitor], **options)
        self._seen: list[tuple[Tensor, Tensor]] = []

    def terms(self, batch: Mapping[str, Tensor], stage: str) -> dict[str, Tensor]:
        """Return the loss of one batch of bags."""
        found = self._call(batch)
        if stage == "val":
            self._seen.append((found["logits"].detach().float().cpu(), batch["label"].cpu()))
        return {"loss": found["loss"]}

    def size(self, batch: Mapping[str, Tensor]) -> int:
        """Return the number of bags."""
        return len(batch["label"])

    def on_validation_epoch_start(self) -> None:
        """Begin to collect answers."""
        super().on_validation_epoch_start()
        self._seen = []

    def validation_metrics(self) -> dict[str, float]:
        """Return the loss and the area under the ROC curve."""
        scores: dict[str, float] = {}
        if self._seen:
            logits, labels = (torch.cat(parts).numpy() for parts in zip(*self._seen, strict=True))
            scores = {"validation_auroc": auroc(torch.softmax(torch.from_numpy(logits), dim=1).numpy(), labels)}
            self.log_dict(scores)
        return {**super().validation_metrics(), **scores}


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over classes of the area under the ROC curve of each against the others, .5 for a class that is all or nothing of the labels.

    ``scores`` (n, n_classes), ``labels`` integers (n,).
    """
    from sklearn.metrics import roc_auc_score

    parts = [(labels == c, scores[:, c]) for c in range(scores.shape[1])]
    return float(np.mean([roc_auc_score(own, score) if 0 < own.sum() < len(own) else 0.5 for own, score in parts]))
