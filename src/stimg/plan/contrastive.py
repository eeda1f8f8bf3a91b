"""The training of alignments of image and expression."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stimg.nn.clip import CLIPModule
from stimg.nn.losses.contrastive import LARGEST_LOG_SCALE, clip_loss, siglip_loss
from stimg.plan.steps import MONITOR, StepPlan

MONITORS = {MONITOR: False, "validation_rank": False, "validation_recall": True}
"""Validation metrics that a training can be stopped by, and whether more is better."""
K = 5
CHUNK = 1024


class ContrastivePlan(StepPlan):
    """One training step of an alignment: embed both sides, pull pairs together, and what the options add.

    Everything but the losses is as in :class:`stimg.plan.StepPlan`; the logarithm of the scale is kept in [0, log 100] after every step.

    Parameters
    ----------
    module
        The network.
    loss
        ``"clip"`` or ``"siglip"``.
    normalise, smoothing
        Of the loss.
    within
        Whether pairs of other batches are no negatives.
    adversarial_weight, expression_weight
        Of the further terms, where the network has an adversary and a decoder.
    encoder_rate
        Learning rate of ``module.encoder`` in units of ``lr``.
    **options
        For :class:`stimg.plan.StepPlan`; ``monitor`` is one of ``validation_loss``, ``validation_rank`` (the geometric mean of rank / gallery of
        the partner, both directions, within each library) and ``validation_recall`` (the share of partners among the first 5).
    """

    module: CLIPModule

    def __init__(
        self,
        module: CLIPModule,
        *,
        loss: str = "clip",
        normalise: bool = True,
        smoothing: float = 0.0,
        within: bool = False,
        adversarial_weight: float = 0.0,
        expression_weight: float = 0.0,
        encoder_rate: float = 1.0,
        **options: Any,
    ) -> None:
        monitor = options.setdefault("monitor", MONITOR)
        super().__init__(module, more_is_better=MONITORS[monitor], **options)
        self.loss, self.normalise, self.smoothing, self.within = loss, normalise, smoothing, within
        self.adversarial_weight, self.expression_weight, self.encoder_rate = adversarial_weight, expression_weight, encoder_rate
        self._seen: list[dict[str, Tensor]] = []
        self._scores: dict[str, float] = {}

    def terms(self, batch: Mapping[str, Tensor], stage: str) -> dict[str, Tensor]:
        """Return ``loss`` and what it is the sum of."""
        out = self._call(batch)
        own: dict[str, Any] = {
            "normalise": self.normalise,
            "group": batch["batch"] if self.within else None,
            "gathered": stage == "train",
        }
        if self.loss == "clip":
            contrastive = clip_loss(out["image"], out["gene"], self.module.log_scale, smoothing=self.smoothing, **own)
        else:
            assert self.module.bias is not None
            contrastive = siglip_loss(out["image"], out["gene"], self.module.log_scale, self.module.bias, **own)
        found = {"loss": contrastive, "contrastive": contrastive}
        if "expression" in out and self.module.expression_in is not None:
            wanted = self.module.expression_in(batch["expression"])
            found["expression"] = (out["expression"].float() - wanted).square().mean()
            found["loss"] = found["loss"] + self.expression_weight * found["expression"]
        if "batch" in out and stage == "train":
            found["adversary"] = F.cross_entropy(out["batch"].float(), batch["batch"].repeat(2))
            found["loss"] = found["loss"] + self.adversarial_weight * found["adversary"]
        if stage == "val":
            self._seen.append({"image": out["image"].float(), "gene": out["gene"].float(), "library": batch["library"]})
        return found

    def size(self, batch: Mapping[str, Tensor]) -> int:
        """Return the number of pairs."""
        return len(batch["gene"])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the scale between 1 and 100."""
        with torch.no_grad():
            self.module.log_scale.clamp_(0.0, LARGEST_LOG_SCALE)

    def on_validation_epoch_start(self) -> None:
        """Begin to collect embeddings."""
        super().on_validation_epoch_start()
        self._seen = []

    def validation_metrics(self) -> dict[str, float]:
        """Return the losses, and where the partners ranked."""
        if self._seen:
            joint = {key: torch.cat([part[key] for part in self._seen]) for key in self._seen[0]}
            self._seen = []
            rank, recall = ranks(joint["image"], joint["gene"], joint["library"], normalise=self.normalise)
            self._scores = {"validation_rank": rank, "validation_recall": recall}
            self.log_dict(self._scores, sync_dist=True)
        return {**super().validation_metrics(), **self._scores}

    def groups(self) -> list[tuple[list[torch.nn.Parameter], float]]:
        """Return the parameters of heads and encoder with the factors of their learning rates."""
        named = [(name.startswith("encoder."), p) for name, p in self.module.named_parameters() if p.requires_grad]
        heads, encoder = ([p for inside, p in named if inside == which] for which in (False, True))
        return [(heads, 1.0), *([(encoder, self.encoder_rate)] if encoder else [])]


@torch.no_grad()
def ranks(image: Tensor, gene: Tensor, library: Tensor, *, normalise: bool = True) -> tuple[float, float]:
    """Return the geometric mean of rank / gallery, and the share of partners among the first 5, both directions within each library.

    ``image`` and ``gene`` (n, dim), ``library`` integers (n,). Items with the score of the partner count half.
    """
    if normalise:
        image, gene = F.normalize(image, dim=1), F.normalize(gene, dim=1)
    logs, hits = [], []
    for name in torch.unique(library):
        here = library == name
        x, y = image[here], gene[here]
        for query, gallery in ((x, y), (y, x)):
            for start in range(0, len(query), CHUNK):
                part = query[start : start + CHUNK]
                scores = part @ gallery.T
                own = scores[torch.arange(len(part)), torch.arange(start, start + len(part))][:, None]
                rank = 0.5 + (scores > own).sum(1) + (scores == own).sum(1) / 2
                logs.append(torch.log(rank / len(gallery)))
                hits.append((rank <= K).float())
    return float(torch.exp(torch.cat(logs).mean())), float(torch.cat(hits).mean())
