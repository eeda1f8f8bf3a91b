"""Random tiles of training and validation as a LightningDataModule, in the form that ``train(datamodule=...)`` of scvi-tools takes."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from stimg._core import validate
from stimg.data.random_tiles import RandomTileDataset
from stimg.data.tiles import collate


class RandomTileSampler(DistributedSampler):
    """Items ``(epoch, index)`` of a :class:`stimg.data.RandomTileDataset` for one rank: rank r of n reads r, r + n, ....

    Tiles are drawn at random anyway, so their order is not; the last round is made whole by further tiles, and none comes twice.

    Parameters
    ----------
    dataset
        The tiles.
    num_replicas, rank
        Number of ranks, and which one this is.
    fixed
        Whether every epoch is epoch 0: for validation.
    """

    dataset: RandomTileDataset

    def __init__(self, dataset: RandomTileDataset, *, num_replicas: int = 1, rank: int = 0, fixed: bool = False) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False, seed=dataset.seed, drop_last=False)
        self.fixed = fixed

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.num_replicas)

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        epoch = 0 if self.fixed else int(self.epoch)
        for turn in range(len(self)):
            yield epoch, turn * self.num_replicas + self.rank


class RandomTileModule(LightningDataModule):
    """Random tiles for training, the same tiles every epoch for validation.

    Parameters
    ----------
    train, val
        The tiles; ``val`` None for no validation.
    batch_size
        Tiles of a batch, on each rank.
    num_workers
        Processes that read tiles. Batches do not depend on it.
    multiprocessing_context
        ``"fork"``, ``"spawn"`` or ``"forkserver"``; None for the default of the platform.
    pin_memory
        Whether batches are put into page-locked memory, for a faster way to the GPU.
    """

    def __init__(
        self,
        train: RandomTileDataset,
        val: RandomTileDataset | None = None,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        multiprocessing_context: str | None = None,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        self.train_dataset, self.val_dataset = train, val
        self.batch_size, self.num_workers = validate.whole(batch_size, "batch_size"), validate.whole(num_workers, "num_workers", least=0)
        self.multiprocessing_context, self.pin_memory = multiprocessing_context, pin_memory
        self.train_idx = train.rows
        self.val_idx = train.rows[:0] if val is None else val.rows
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)
        self.n_obs = self.n_train + self.n_val
        self._epoch = 0
        self._sampler: RandomTileSampler | None = None

    def _loader(self, dataset: RandomTileDataset, *, fixed: bool) -> DataLoader:
        ranks, rank = 1, 0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        sampler = RandomTileSampler(dataset, num_replicas=ranks, rank=rank, fixed=fixed)
        if not fixed:
            sampler.set_epoch(self._epoch)
            self._sampler = sampler
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            multiprocessing_context=self.multiprocessing_context if self.num_workers else None,
            pin_memory=self.pin_memory,
        )

    def train_dataloader(self) -> DataLoader:
        """Return the loader of training tiles; ``loader.sampler.set_epoch`` chooses the epoch (Lightning calls it)."""
        return self._loader(self.train_dataset, fixed=False)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the loader of validation tiles, the same every time; an empty list, as Lightning has it, without any."""
        return [] if self.val_dataset is None else self._loader(self.val_dataset, fixed=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch whose tiles were last read, and the seed that goes with it."""
        return {"epoch": self._epoch if self._sampler is None else int(self._sampler.epoch), "seed": self.train_dataset.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the epoch of ``state_dict``; a state of another seed is a ValueError, because its tiles were others."""
        if int(state_dict["seed"]) != self.train_dataset.seed:
            raise ValueError(
                f"The checkpoint was made with seed={state_dict['seed']}, this data module with {self.train_dataset.seed}. Pass the same seed."
            )
        self._epoch = int(state_dict["epoch"])
        if self._sampler is not None:
            self._sampler.set_epoch(self._epoch)
