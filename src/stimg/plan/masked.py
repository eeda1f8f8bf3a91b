"""The training of masked autoencoders of ST images."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from stimg._core import rng as _rng
from stimg.nn.stmae import Offsets

MONITOR = "validation_loss"


class MaskedPlan(LightningModule):
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
        super().__init__()
        self.module = module
        self._call: Callable[..., dict[str, Tensor]] = torch.compile(module.forward, dynamic=True) if compile else module.forward
        self.lr, self.weight_decay, self.warmup, self.seed = lr, weight_decay, warmup, seed
        self.max_epochs, self.steps_per_epoch = max_epochs, steps_per_epoch
        self.total_steps = max(1, max_epochs * steps_per_epoch)
        for name, offsets in (("train", train_offsets), ("val", val_offsets or train_offsets)):
            self.register_buffer(f"{name}_mean", offsets.mean, persistent=False)
            self.register_buffer(f"{name}_composition", offsets.composition, persistent=False)
            coverage = torch.ones(len(offsets.mean)) if offsets.coverage is None else offsets.coverage
            self.register_buffer(f"{name}_coverage", coverage, persistent=False)
        self.best: dict[str, Tensor] | None = None
        self.best_loss, self.best_epoch = math.inf, -1
        self.n_obs_training, self.n_obs_validation = 0, 0
        self._state: Tensor | None = None

    def _offsets(self, name: str) -> Offsets:
        return Offsets(*(getattr(self, f"{name}_{part}") for part in ("mean", "composition", "coverage")))

    def setup(self, stage: str) -> None:
        """Count the steps, of which several devices and accumulated gradients need fewer."""
        at_once = self.trainer.world_size * self.trainer.accumulate_grad_batches
        self.total_steps = max(1, self.max_epochs * math.ceil(self.steps_per_epoch / at_once))

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch. Its masks and dropout depend on seed, epoch, batch and rank alone."""
        torch.manual_seed(int(_rng.derive(self.seed, self.current_epoch, batch_idx, self.global_rank).integers(2**63)))
        terms = self._call(batch, self._offsets("train"))
        self._log("train", terms, len(batch["panel"]))
        return terms["loss"]

    def on_validation_epoch_start(self) -> None:
        """Draw the same masks in every validation."""
        self._state = torch.get_rng_state()
        torch.manual_seed(self.seed)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log the loss of one batch."""
        self._log("validation", self._call(batch, self._offsets("val")), len(batch["panel"]))

    def on_validation_epoch_end(self) -> None:
        """Keep the weights of the best epoch."""
        if self._state is not None:
            torch.set_rng_state(self._state)
            self._state = None
        if self.trainer.sanity_checking or MONITOR not in self.trainer.callback_metrics:
            return
        loss = float(self.trainer.callback_metrics[MONITOR])
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.current_epoch
            self.best = {k: v.detach().cpu().clone() for k, v in self.module.state_dict().items()}

    def on_train_epoch_end(self) -> None:
        """Stop where the loss is no number any more."""
        loss = self.trainer.callback_metrics.get("train_loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise ValueError(
                f"The training loss is {float(loss)} in epoch {self.current_epoch} (learning rate {self.lr:g}). Lower `lr`, or look for libraries "
                "with a depth of zero; with reduced precision try `precision='32-true'`."
            )

    def _log(self, stage: str, terms: Mapping[str, Tensor], n_crops: int) -> None:
        named = {f"{stage}_{name}": value.detach() for name, value in terms.items()}
        self.log_dict(named, on_step=False, on_epoch=True, sync_dist=True, batch_size=n_crops)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the best weights so far."""
        checkpoint["best"] = {"state": self.best or {}, "loss": self.best_loss, "epoch": self.best_epoch}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the best weights so far."""
        best = checkpoint["best"]
        self.best, self.best_loss, self.best_epoch = best["state"] or None, best["loss"], best["epoch"]

    def _rate(self, step: int) -> float:
        rise = max(1, int(self.warmup * self.total_steps))
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, self.total_steps - rise))
        return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and its schedule."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
