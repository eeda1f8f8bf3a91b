"""Training and validation crops as a LightningDataModule, in the form that ``train(datamodule=...)`` of scvi-tools takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stimg.data.crops import CropDataset, CropSampler, collate
from stimg.data.epochs import EpochDataModule, EpochSampler
from stimg.data.library import Library
from stimg.image.spec import CropSpec


class CropDataModule(EpochDataModule):
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
    max_samples_per_epoch, max_val_samples
        Most training and validation crops of one epoch, over all ranks.
    drop_last
        Whether to leave out the last training batch where it is not full.
    **loading
        ``num_workers``, ``multiprocessing_context`` and ``pin_memory``, as for :class:`stimg.data.epochs.EpochDataModule`.

    Attributes
    ----------
    n_obs, n_train, n_val
        Number of observations, of training and of validation.
    train_idx, val_idx
        Their rows in the AnnData, the libraries one after the other; ``val_idx`` is empty without validation.

    Notes
    -----
    Under distributed training each rank reads its own part of one sequence (:class:`stimg.data.CropSampler`).
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
        augment: bool = True,
        max_samples_per_epoch: int | None = None,
        max_val_samples: int | None = None,
        drop_last: bool = False,
        **loading: Any,
    ) -> None:
        options: dict[str, Any] = {"rule": rule, "n_channels": n_channels, "channels": channels, "seed": seed}
        dataset = CropDataset(train, crop, augment=augment, max_samples=max_samples_per_epoch, **options)
        super().__init__(
            dataset,
            CropDataset(val, val_crop or crop, augment=False, max_samples=max_val_samples, **options) if val else None,
            train_idx=np.concatenate([library.rows for library in train]),
            val_idx=np.concatenate([library.rows for library in val]) if val else None,
            seed=dataset.seed,
            batch_size=batch_size,
            **loading,
        )
        self.drop_last = drop_last

    def _make_sampler(self, *, fixed: bool, num_replicas: int, rank: int) -> CropSampler:
        return CropSampler(self.val_dataset if fixed else self.train_dataset, num_replicas=num_replicas, rank=rank, fixed=fixed)

    def _batching(self, sampler: EpochSampler) -> dict[str, Any]:
        drop_last = self.drop_last and not sampler.fixed
        if drop_last and len(sampler) < self.batch_size:
            raise ValueError(
                f"drop_last leaves no batch: an epoch has {len(sampler)} crops a rank, a batch {self.batch_size}. Lower batch_size."
            )
        return {"batch_size": self.batch_size, "collate_fn": collate, "drop_last": drop_last}
