"""The training of masked autoencoders of ST images."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stimg.nn.stmae import Offsets
from stimg.plan.steps import MONITOR, StepPlan

__all__ = ["MONITOR", "MaskedPlan"]


class MaskedPlan(StepPlan):
    """One training step of a masked autoencoder: hide, reconstruct, score what was hidden.

    AdamW without decay of biases, norms and one-dimensional parameters; the learning rate rises linearly for a part of all steps (counted
    over the whole training) and falls along a cosine to a hundredth. The weights of the best validation epoch are kept in memory.

    Parameters
    ----------
    module
        A network whose ``forward(batch, offsets)`` returns a dict with ``loss``.
    train_offsets, val_offsets
        Gene means and shares of the libraries of the training and validation loaders.
    max_epochs, steps_per_epoch
        Length of the training on one device without accumulated gradients, for the schedule.
    lr, weight_decay
        Of AdamW.
    warmup
        Part of all steps in which the learning rate rises.
    seed
        Every batch of every epoch and rank draws masks and dropout from this and its numbers, so neither the number of workers nor a stop
        between epochs changes a training.
    compile
        Whether to run the network compiled. Names of weights do not depend on it.
    """

    advice = "Lower `lr`, or look for libraries with a depth of zero; with reduced precision try `precision='32-true'`."

    def __init__(
        self,
        module: nn.Module,
        *,
        train_offsets: Offsets,
        val_offsets: Offsets | None,
        max_epochs: int,
        steps_per_epoch: int,
        lr: float = 3e-4,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__(
            module,
            max_epochs=max_epochs,
            steps_per_epoch=steps_per_epoch,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            seed=seed,
            compile=compile,
        )
        for name, offsets in (("train", train_offsets), ("val", val_offsets or train_offsets)):
            self.register_buffer(f"{name}_mean", offsets.mean, persistent=False)
            self.register_buffer(f"{name}_composition", offsets.composition, persistent=False)
            coverage = torch.ones(len(offsets.mean)) if offsets.coverage is None else offsets.coverage
            self.register_buffer(f"{name}_coverage", coverage, persistent=False)

    def terms(self, batch: Mapping[str, Tensor], stage: str) -> dict[str, Tensor]:
        """Return the losses of one batch of crops, with the offsets of its libraries."""
        return self._call(batch, Offsets(*(getattr(self, f"{stage}_{part}") for part in ("mean", "composition", "coverage"))))

    def size(self, batch: Mapping[str, Tensor]) -> int:
        """Return the number of crops."""
        return len(batch["panel"])
