"""The plan of bags: its area under the curve against scikit-learn, and which epoch is kept."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader

from stimg.plan import BagPlan
from stimg.plan.bags import auroc


def test_the_area_is_that_of_each_class_against_the_others():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    scores = rng.random((40, 3)) + np.eye(3)[labels] * 0.3
    scores /= scores.sum(1, keepdims=True)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr", average="macro"))
    two = scores[:, :2] / scores[:, :2].sum(1, keepdims=True)
    assert auroc(two, labels == 1) == pytest.approx(roc_auc_score(labels == 1, two[:, 1]))
    assert auroc(two, np.zeros(40, dtype=int)) == 0.5


class Toy(nn.Module):
    """Answers that are right in the second epoch alone, while the loss falls for ever."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.epoch = 0

    def forward(self, batch):
        sign = 1.0 if self.epoch == 1 else -1.0
        score = sign * batch["label"].float()
        return {"logits": torch.stack([-score, score], 1), "loss": (self.weight - 10).square()}


@pytest.mark.parametrize(("monitor", "best"), [("validation_auroc", 1), ("validation_loss", 3)])
def test_the_best_epoch_is_that_of_the_monitor(monitor, best):
    toy = Toy()
    plan = BagPlan(toy, max_epochs=4, steps_per_epoch=2, lr=0.1, weight_decay=0.0, monitor=monitor)

    def count():
        toy.epoch = plan.current_epoch

    plan.on_train_epoch_start = count
    batches = [{"label": torch.tensor([0, 1])}, {"label": torch.tensor([1, 0, 1])}]
    trainer = Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(plan, DataLoader(batches, batch_size=None), DataLoader(batches, batch_size=None))
    assert plan.best_epoch == best
