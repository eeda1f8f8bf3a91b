"""Random tiles of training and validation as a LightningDataModule, in the form that ``train(datamodule=...)`` of scvi-tools takes."""

from collections.abc import Iterator
from typing import Any

from stimg.data.epochs import EpochDataModule, EpochSampler
from stimg.data.random_tiles import RandomTileDataset
from stimg.data.tiles import collate


class RandomTileSampler(EpochSampler):
    """Items ``(epoch, index)`` of a :class:`stimg.data.RandomTileDataset` for one rank: rank r of n reads r, r + n, ....

    Tiles are drawn at random anyway, so their order is not; the last round is made whole by further tiles, and none comes twice.

    Parameters
    ----------
    dataset
        The tiles.
    **options
        ``num_replicas``, ``rank`` and ``fixed``, as for :class:`stimg.data.epochs.EpochSampler`.
    """

    def __init__(self, dataset: RandomTileDataset, **options: Any) -> None:
        super().__init__(dataset, seed=dataset.seed, **options)

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        epoch = self.current
        for turn in range(len(self)):
            yield epoch, turn * self.num_replicas + self.rank


class RandomTileModule(EpochDataModule):
    """Random tiles for training, the same tiles every epoch for validation.

    Parameters
    ----------
    train, val
        The tiles; ``val`` None for no validation.
    batch_size
        Tiles of a batch, on each rank.
    **loading
        ``num_workers``, ``multiprocessing_context`` and ``pin_memory``, as for :class:`stimg.data.epochs.EpochDataModule`.
    """

    def __init__(self, train: RandomTileDataset, val: RandomTileDataset | None = None, *, batch_size: int = 64, **loading: Any) -> None:
        val_idx = None if val is None else val.rows
        super().__init__(train, val, train_idx=train.rows, val_idx=val_idx, seed=train.seed, batch_size=batch_size, **loading)

    def _make_sampler(self, *, fixed: bool, num_replicas: int, rank: int) -> RandomTileSampler:
        return RandomTileSampler(self.val_dataset if fixed else self.train_dataset, num_replicas=num_replicas, rank=rank, fixed=fixed)

    def _batching(self, sampler: EpochSampler) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "collate_fn": collate}
