"""Training and validation crops as a LightningDataModule, in the form that ``train(datamodule=...)`` of scvi-tools takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from stimg.data.crops import CropDataset, CropSampler, collate
from stimg.data.library import Library
from stimg.image.spec import CropSpec


class CropDataModule(LightningDataModule):
    """Random crops for training, the same crops every epoch for validation.

    Parameters
    ----------
    train
        Libraries to train on.
    val
        Libraries to validate on; None for no validation. Their crops are those of epoch 0, always, and are not augmented.
    crop, rule, n_channels, channels, augment, seed
        As for :class:`stimg.data.CropDataset`.
    val_crop
        Another window or occupancy for validation, where the held-out parts are smaller than a crop; None: ``crop``.
    batch_size
        Crops of a batch, on each rank. The last batch of an epoch is smaller, unless ``drop_last``.
    num_workers
        Processes that read crops. Batches do not depend on it.
    max_samples_per_epoch, max_val_samples
        Most training and validation crops of one epoch, over all ranks.
    drop_last
        Whether to leave out the last training batch where it is not full.
    multiprocessing_context
        ``"fork"``, ``"spawn"`` or ``"forkserver"``; None for the default of the platform.
    pin_memory
        Whether batches are put into page-locked memory, for a faster way to the GPU.

    Attributes
    ----------
    n_obs, n_train, n_val
        Number of observations, of training and of validation.
    train_idx, val_idx
        Their rows in the AnnData, the libraries one after the other; ``val_idx`` is empty without validation.

    Notes
    -----
    Under distributed training each rank reads its own part of one sequence (:class:`stimg.data.CropSampler`); number and rank are taken from
    ``torch.distributed`` when a loader is made. Lightning leaves the sampler alone whatever ``use_distributed_sampler`` says.

    ``state_dict`` holds the epoch. A trainer that starts from a checkpoint goes on with the crops of the next epoch.
    """

    def __init__(
        self,
        train: Sequence[Library],
        val: Sequence[Library] | None = None,
        *,
        crop: CropSpec,
        val_crop: CropSpec | None = None,
        rule: str = "weighted",
        n_channels: int | None = None,
        channels: Sequence[int] | None = None,
        batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
        augment: bool = True,
        max_samples_per_epoch: int | None = None,
        max_val_samples: int | None = None,
        drop_last: bool = False,
        multiprocessing_context: str | None = None,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is less than one crop.")
        options: dict[str, Any] = {"rule": rule, "n_channels": n_channels, "channels": channels, "seed": seed}
        self.train_dataset = CropDataset(train, crop, augment=augment, max_samples=max_samples_per_epoch, **options)
        self.val_dataset = CropDataset(val, val_crop or crop, augment=False, max_samples=max_val_samples, **options) if val else None
        self.batch_size, self.num_workers, self.drop_last = batch_size, num_workers, drop_last
        self.multiprocessing_context, self.pin_memory = multiprocessing_context, pin_memory
        self.train_idx = np.concatenate([library.rows for library in train])
        self.val_idx = np.concatenate([library.rows for library in val]) if val else np.empty(0, dtype=np.int64)
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)
        self.n_obs = self.n_train + self.n_val
        self._epoch = 0
        self._sampler: CropSampler | None = None

    def _loader(self, dataset: CropDataset, *, fixed: bool) -> DataLoader:
        ranks, rank = 1, 0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        sampler = CropSampler(dataset, num_replicas=ranks, rank=rank, fixed=fixed)
        if not fixed:
            sampler.set_epoch(self._epoch)
            self._sampler = sampler
        if self.drop_last and not fixed and len(sampler) < self.batch_size:
            raise ValueError(
                f"drop_last leaves no batch: an epoch has {len(sampler)} crops a rank, a batch {self.batch_size}. Lower batch_size."
            )
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            multiprocessing_context=self.multiprocessing_context if self.num_workers else None,
            pin_memory=self.pin_memory,
            drop_last=self.drop_last and not fixed,
        )

    def train_dataloader(self) -> DataLoader:
        """Return the loader of training crops; ``loader.sampler.set_epoch`` chooses the epoch (Lightning calls it)."""
        return self._loader(self.train_dataset, fixed=False)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the loader of validation crops, the same every time; an empty list, as Lightning has it, without validation libraries."""
        return [] if self.val_dataset is None else self._loader(self.val_dataset, fixed=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch whose crops were last read, and the seed that goes with it."""
        return {"epoch": self._epoch if self._sampler is None else int(self._sampler.epoch), "seed": self.train_dataset.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the epoch of ``state_dict``; a state of another seed is a ValueError, because its crops were others."""
        if int(state_dict["seed"]) != self.train_dataset.seed:
            raise ValueError(
                f"The checkpoint was made with seed={state_dict['seed']}, this data module with {self.train_dataset.seed}. Pass the same seed."
            )
        self._epoch = int(state_dict["epoch"])
        if self._sampler is not None:
            self._sampler.set_epoch(self._epoch)
