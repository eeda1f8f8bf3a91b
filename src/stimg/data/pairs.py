"""Pairs of image and expression as batches of tensors: which pairs come together, in which order, and on which process."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stimg._core import rng as _rng
from stimg._core import validate
from stimg.data.epochs import EpochDataModule, EpochSampler

SAMPLING = ("mixed", "balanced", "within")


class PairDataset(Dataset):
    """Pairs, of which an item ``(epoch, positions)`` is a whole batch: rows of arrays in memory, and tiles where there are any.

    Parameters
    ----------
    arrays
        What a batch holds, each (n, ...): ``gene``, ``batch`` (int64), ``library`` (int64), and ``image`` where features are finished.
    rows
        Rows of the table that the pairs come from, int64 (n,).
    tiles
        A :class:`stimg.data.TileDataset` with one item for each pair, where tiles are read: ``image`` is then uint8 (B, fields, H, W, 3).
    """

    def __init__(self, arrays: Mapping[str, np.ndarray | Tensor], rows: np.ndarray, tiles: Any = None) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)
        self.arrays = {name: torch.as_tensor(values) for name, values in arrays.items()}
        lengths = {name: len(values) for name, values in self.arrays.items()} | {"rows": len(self.rows)}
        lengths |= {} if tiles is None else {"tiles": len(tiles)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"The arrays have different numbers of pairs: {lengths}. Pass one row per pair in each.")
        if "batch" not in self.arrays:
            raise ValueError(f"The arrays lack 'batch' (found {sorted(self.arrays)}). Pass integers (n,), the library of each pair.")
        self.tiles = tiles

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def groups(self) -> np.ndarray:
        """Batch of each pair, int64 (n,)."""
        return self.arrays["batch"].numpy()

    def __getitem__(self, item: tuple[int, Sequence[int]]) -> dict[str, Tensor]:
        epoch, positions = item
        at = torch.as_tensor(np.asarray(positions, dtype=np.int64))
        batch = {name: values[at] for name, values in self.arrays.items()}
        if self.tiles is not None:
            batch["image"] = torch.stack([self.tiles[(int(epoch), int(i))]["image"] for i in positions])
        return batch


def mini_batches(groups: np.ndarray, batch_size: int, sampling: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the mini-batches of one epoch, int64 positions; none holds a pair twice, and their sizes differ little.

    Parameters
    ----------
    groups
        Batch (library) of each pair, integers (n,).
    batch_size
        Most pairs of a mini-batch.
    sampling
        ``"mixed"``: every pair once, in random order. ``"balanced"``: as many pairs of each group as of any other, fewer only where a group
        has no more; pairs of small groups come several times in an epoch, pairs of large ones perhaps not. ``"within"``: every pair once,
        each mini-batch of one group.
    rng
        Chance.
    """
    n = len(groups)
    many = -(-n // batch_size)
    if sampling == "mixed":
        return np.array_split(rng.permutation(n), many)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    if sampling == "within":
        parts = [part for m in members for part in np.array_split(rng.permutation(m), -(-len(m) // batch_size))]
        return [parts[i] for i in rng.permutation(len(parts))]
    streams = [_Stream(m, rng) for m in members]
    sizes = [len(part) for part in np.array_split(np.arange(n), many)]
    found = []
    for number, size in enumerate(sizes):
        quota = _quota(size, np.array([len(m) for m in members]), number)
        taken = [stream.take(int(q)) for stream, q in zip(streams, quota, strict=True)]
        found.append(rng.permutation(np.concatenate(taken)))
    return found


def _quota(size: int, available: np.ndarray, first: int) -> np.ndarray:
    """Return how many of each group make ``size``, as equal as ``available`` allows; who gets the odd ones goes round."""
    quota = np.zeros(len(available), dtype=np.int64)
    size = min(size, int(available.sum()))
    while (left := size - int(quota.sum())) > 0:
        open_ = np.flatnonzero(quota < available)
        if left < len(open_):
            quota[np.roll(open_, -(first % len(open_)))[:left]] += 1
        else:
            quota[open_] += np.minimum(left // len(open_), available[open_] - quota[open_])
    return quota


class _Stream:
    """Members of a group in random order, again and again; never one twice in a take."""

    def __init__(self, members: np.ndarray, rng: np.random.Generator) -> None:
        self.members, self.rng = members, rng
        self.rest = rng.permutation(members)

    def take(self, n: int) -> np.ndarray:
        if n <= len(self.rest):
            taken, self.rest = self.rest[:n], self.rest[n:]
            return taken
        again = self.rng.permutation(self.members)
        fresh = again[~np.isin(again, self.rest)][: n - len(self.rest)]
        taken = np.concatenate([self.rest, fresh])
        self.rest = again[~np.isin(again, fresh)]
        return taken


class PairSampler(EpochSampler):
    """Items of a :class:`PairDataset` for one rank: new mini-batches every epoch, from (seed, epoch) alone.

    All ranks draw the same mini-batches of ``batch_size * num_replicas`` pairs, and rank r takes each r-th pair, so that every rank has as many
    mini-batches, and as many pairs in each, as any other. At most ``num_replicas - 1`` pairs of a mini-batch are left out for this, other
    ones every epoch.

    Parameters
    ----------
    dataset
        The pairs.
    batch_size
        Most pairs of a mini-batch, on each rank.
    sampling
        As for :func:`mini_batches`.
    seed, **options
        ``seed``, ``num_replicas``, ``rank`` and ``fixed``, as for :class:`stimg.data.epochs.EpochSampler`.
    """

    dataset: PairDataset

    def __init__(self, dataset: PairDataset, batch_size: int, *, sampling: str = "mixed", seed: int = 0, **options: Any) -> None:
        super().__init__(dataset, seed=seed, **options)
        validate.one_of(sampling, SAMPLING, "sampling")
        self.batch_size, self.sampling = validate.whole(batch_size, "batch_size"), sampling

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        n = self.num_replicas
        parts = mini_batches(self.dataset.groups, self.batch_size * n, self.sampling, _rng.derive(self.seed, epoch))
        return [part[: len(part) // n * n][self.rank :: n] for part in parts if len(part) >= n]

    def __len__(self) -> int:
        return len(self._epoch(0))  # the number of mini-batches, of any epoch

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:  # type: ignore[override]
        epoch = self.current
        for part in self._epoch(epoch):
            yield epoch, part.tolist()


class PairDataModule(EpochDataModule):
    """Training and validation pairs, in the form that ``train(datamodule=...)`` of scvi-tools takes.

    Parameters
    ----------
    train, val
        The pairs; ``val`` None for no validation. Every rank reads all validation pairs, in the same mini-batches every time.
    batch_size, sampling, seed
        As for :class:`PairSampler`. Validation pairs come in mini-batches of one group where training pairs do, and mixed otherwise.
    **loading
        ``num_workers``, ``multiprocessing_context`` and ``pin_memory``, as for :class:`stimg.data.epochs.EpochDataModule`. Arrays in memory need
        no processes.
    """

    def __init__(
        self,
        train: PairDataset,
        val: PairDataset | None = None,
        *,
        batch_size: int = 256,
        sampling: str = "mixed",
        seed: int = 0,
        **loading: Any,
    ) -> None:
        val_idx = None if val is None else val.rows
        super().__init__(train, val, train_idx=train.rows, val_idx=val_idx, seed=_rng.as_seed(seed), batch_size=batch_size, **loading)
        self.sampling = sampling

    def _make_sampler(self, *, fixed: bool, num_replicas: int, rank: int) -> PairSampler:
        if not fixed:
            ranks = {"num_replicas": num_replicas, "rank": rank}
            return PairSampler(self.train_dataset, self.batch_size, sampling=self.sampling, seed=self.seed, **ranks)
        sampling = "within" if self.sampling == "within" else "mixed"
        return PairSampler(self.val_dataset, self.batch_size, sampling=sampling, seed=self.seed, fixed=True)

    def _batching(self, sampler: EpochSampler) -> dict[str, Any]:
        return {"batch_size": None}  # an item of the sampler is a whole batch
