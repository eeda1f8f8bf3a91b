"""Batches that differ from epoch to epoch: the sampler and the LightningDataModule that those of crops, tiles and pairs are made from."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from stimg._core import validate


class EpochSampler(DistributedSampler):
    """The order of a dataset for one rank, which depends on the epoch; subclasses yield items ``(epoch, ...)`` for :attr:`current`.

    Being a ``DistributedSampler`` keeps Lightning from wrapping it in another one; Lightning calls ``set_epoch`` at the start of every epoch.

    Parameters
    ----------
    dataset
        The items.
    seed
        Where all chance comes from.
    num_replicas, rank
        Number of ranks, and which one this is.
    fixed
        Whether every epoch is epoch 0: for validation.
    """

    def __init__(self, dataset: Dataset, *, seed: int, num_replicas: int = 1, rank: int = 0, fixed: bool = False) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False, seed=seed, drop_last=False)
        self.fixed = fixed

    @property
    def current(self) -> int:
        """Number of the epoch whose items come."""
        return 0 if self.fixed else int(self.epoch)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.num_replicas)  # type: ignore[arg-type]


class EpochDataModule(LightningDataModule, ABC):
    """Loaders of training and validation, in the form that ``train(datamodule=...)`` of scvi-tools takes.

    Parameters
    ----------
    train, val
        The datasets; ``val`` None for no validation.
    train_idx, val_idx
        Rows of the table that they read.
    seed
        What the training items are drawn from.
    batch_size
        Items of a batch, on each rank.
    num_workers
        Processes that read items. Batches do not depend on it.
    multiprocessing_context
        ``"fork"``, ``"spawn"`` or ``"forkserver"``; None for the default of the platform.
    pin_memory
        Whether batches are put into page-locked memory, for a faster way to the GPU.

    Attributes
    ----------
    n_obs, n_train, n_val
        Number of observations, of training and of validation.
    train_idx, val_idx
        Their rows; ``val_idx`` is empty without validation.

    Notes
    -----
    Under distributed training number and rank are taken from ``torch.distributed`` when a loader is made. Lightning leaves the sampler alone
    whatever ``use_distributed_sampler`` says. ``state_dict`` holds the epoch: a trainer that starts from a checkpoint goes on with the next one.
    """

    def __init__(
        self,
        train: Any,
        val: Any,
        *,
        train_idx: np.ndarray,
        val_idx: np.ndarray | None,
        seed: int,
        batch_size: int,
        num_workers: int = 0,
        multiprocessing_context: str | None = None,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        self.train_dataset, self.val_dataset, self.seed = train, val, seed
        self.batch_size, self.num_workers = validate.whole(batch_size, "batch_size"), validate.whole(num_workers, "num_workers", least=0)
        self.multiprocessing_context, self.pin_memory = multiprocessing_context, pin_memory
        self.train_idx, self.val_idx = train_idx, np.empty(0, dtype=np.int64) if val_idx is None else val_idx
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)
        self.n_obs = self.n_train + self.n_val
        self._epoch = 0
        self._sampler: EpochSampler | None = None

    @abstractmethod
    def _make_sampler(self, *, fixed: bool, num_replicas: int, rank: int) -> EpochSampler:
        """Return the sampler of training, or where ``fixed`` that of validation."""

    @abstractmethod
    def _batching(self, sampler: EpochSampler) -> dict[str, Any]:
        """Return how the items of ``sampler`` become batches, as arguments of a ``DataLoader``."""

    def _loader(self, dataset: Any, *, fixed: bool) -> DataLoader:
        ranks, rank = 1, 0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        sampler = self._make_sampler(fixed=fixed, num_replicas=ranks, rank=rank)
        if not fixed:
            sampler.set_epoch(self._epoch)
            self._sampler = sampler
        return DataLoader(
            dataset,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            multiprocessing_context=self.multiprocessing_context if self.num_workers else None,
            pin_memory=self.pin_memory,
            **self._batching(sampler),
        )

    def train_dataloader(self) -> DataLoader:
        """Return the loader of training; ``loader.sampler.set_epoch`` chooses the epoch (Lightning calls it)."""
        return self._loader(self.train_dataset, fixed=False)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the loader of validation, the same every time; an empty list, as Lightning has it, without any."""
        return [] if self.val_dataset is None else self._loader(self.val_dataset, fixed=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch that was last read, and the seed that goes with it."""
        return {"epoch": self._epoch if self._sampler is None else int(self._sampler.epoch), "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the epoch of ``state_dict``; a state of another seed is a ValueError, because what it read was other."""
        if int(state_dict["seed"]) != self.seed:
            raise ValueError(
                f"The checkpoint was made with seed={state_dict['seed']}, this data module with {self.seed}. Pass the same seed."
            )
        self._epoch = int(state_dict["epoch"])
        if self._sampler is not None:
            self._sampler.set_epoch(self._epoch)
