"""What all trainings share: the seed of a step, the schedule, the best weights, and when a loss is no number any more."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from stimg._core import rng as _rng

MONITOR = "validation_loss"


class StepPlan(LightningModule):
    """A training whose chance depends on (seed, epoch, batch, rank) alone, and which keeps the weights of its best validation epoch in memory.

    AdamW without decay of biases, norms and one-dimensional parameters; the learning rate rises linearly for a part of all steps (counted
    over the whole training) and falls along a cosine to a hundredth. A subclass says what a step is: ``terms(batch, stage)`` returns a dict
    with ``loss``, and ``size(batch)`` the number of samples.

    Parameters
    ----------
    module
        A network.
    max_epochs, steps_per_epoch
        Length of the training on one device without accumulated gradients, for the schedule.
    lr, weight_decay, betas
        Of AdamW.
    warmup
        Part of all steps in which the learning rate rises.
    seed
        Every batch of every epoch and rank draws from this and its numbers, so neither the number of workers nor a stop between epochs
        changes a training.
    compile
        Whether to run the network compiled. Names of weights do not depend on it.
    monitor
        The validation metric whose best epoch is kept.
    more_is_better
        Whether that metric is to be large.
    """

    advice = "Lower `lr`; with reduced precision try `precision='32-true'`."
    """What to do where the loss is no number."""

    def __init__(
        self,
        module: nn.Module,
        *,
        max_epochs: int,
        steps_per_epoch: int,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup: float = 0.1,
        seed: int = 0,
        compile: bool = False,
        monitor: str = MONITOR,
        more_is_better: bool = False,
    ) -> None:
        super().__init__()
        self.module = module
        self._call: Callable[..., dict[str, Tensor]] = torch.compile(module.forward, dynamic=True) if compile else module.forward
        self.lr, self.weight_decay, self.betas, self.warmup, self.seed = lr, weight_decay, betas, warmup, seed
        self.monitor, self.sign = monitor, -1.0 if more_is_better else 1.0
        self.max_epochs, self.steps_per_epoch = max_epochs, steps_per_epoch
        self.total_steps = max(1, max_epochs * steps_per_epoch)
        self.best: dict[str, Tensor] | None = None
        self.best_loss, self.best_epoch = math.inf, -1
        self.n_obs_training, self.n_obs_validation = 0, 0
        self._state: Tensor | None = None

    def terms(self, batch: Mapping[str, Tensor], stage: str) -> dict[str, Tensor]:
        """Return the losses of one batch; ``stage`` is ``"train"`` or ``"val"``."""
        raise NotImplementedError

    def size(self, batch: Mapping[str, Tensor]) -> int:
        """Return the number of samples of a batch."""
        raise NotImplementedError

    def kept_state(self) -> Mapping[str, Tensor]:
        """Return the weights that are kept of the best epoch: all, or those that ``module.kept_state()`` says are its own."""
        return getattr(self.module, "kept_state", self.module.state_dict)()  # type: ignore[no-any-return]

    def setup(self, stage: str) -> None:
        """Count the steps, of which several devices and accumulated gradients need fewer."""
        at_once = self.trainer.world_size * self.trainer.accumulate_grad_batches
        self.total_steps = max(1, self.max_epochs * math.ceil(self.steps_per_epoch / at_once))

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch. Its masks and dropout depend on seed, epoch, batch and rank alone."""
        self._seed(int(_rng.derive(self.seed, self.current_epoch, batch_idx, self.global_rank).integers(2**63)))
        terms = self.terms(batch, "train")
        self._log("train", terms, self.size(batch))
        return terms["loss"]

    def _seed(self, seed: int) -> None:
        """Seed the CPU and the device in use; ``torch.manual_seed`` asks every kind of device, which takes as long as a step of a small network."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def on_validation_epoch_start(self) -> None:
        """Draw the same in every validation."""
        self._state = torch.get_rng_state()
        self._seed(self.seed)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log the loss of one batch."""
        self._log("validation", self.terms(batch, "val"), self.size(batch))

    def validation_metrics(self) -> dict[str, float]:
        """Return what is known of the validation when it ends; the losses where a subclass adds nothing."""
        return {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    def on_validation_epoch_end(self) -> None:
        """Keep the weights of the best epoch."""
        if self._state is not None:
            torch.set_rng_state(self._state)
            self._state = None
        found = self.validation_metrics()
        if self.trainer.sanity_checking or self.monitor not in found:
            return
        loss = self.sign * found[self.monitor]
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.current_epoch
            self.best = {k: v.detach().cpu().clone() for k, v in self.kept_state().items()}

    def on_train_epoch_end(self) -> None:
        """Stop where the loss is no number any more."""
        loss = self.trainer.callback_metrics.get("train_loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise ValueError(f"The training loss is {float(loss)} in epoch {self.current_epoch} (learning rate {self.lr:g}). {self.advice}")

    def _log(self, stage: str, terms: Mapping[str, Tensor], n: int) -> None:
        named = {f"{stage}_{name}": value.detach() for name, value in terms.items()}
        self.log_dict(named, on_step=False, on_epoch=True, sync_dist=True, batch_size=n)

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

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return the parameters with the factors of their learning rates."""
        return [([p for p in self.module.parameters() if p.requires_grad], 1.0)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and its schedule."""
        groups = []
        for parameters, factor in self.groups():
            for many, decay in ((True, self.weight_decay), (False, 0.0)):
                chosen = [p for p in parameters if (p.ndim >= 2) == many]
                groups.append({"params": chosen, "weight_decay": decay, "lr": factor * self.lr})
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
