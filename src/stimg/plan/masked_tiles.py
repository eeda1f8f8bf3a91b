"""The training of masked autoencoders of image tiles."""

from collections.abc import Mapping

from torch import Tensor

from stimg.plan.steps import StepPlan


class MaskedTilePlan(StepPlan):
    """One training step of a masked autoencoder of tiles: hide patches, predict them, score what was hidden; see :class:`stimg.plan.StepPlan`."""

    def terms(self, batch: Mapping[str, Tensor], stage: str) -> dict[str, Tensor]:
        """Return ``loss``."""
        return self._call(batch["image"])

    def size(self, batch: Mapping[str, Tensor]) -> int:
        """Return the number of tiles."""
        return len(batch["image"])
