"""What an imputation network is trained on: a sparser map of a sparse one, drawn first and turned afterwards, as a batch of maps of genes and pictures."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from stimg._core import rng as _rng
from stimg.data.epochs import EpochDataModule, EpochSampler
from stimg.model._s2s_fields import Field, batch_of, field_of, pictures_of
from stimg.model._s2s_lattice import positions, stride_of, surroundings, symmetries
from stimg.model._s2s_read import Section
from stimg.model.s2s_options import S2SImputerOptions

LEAST = 6
"""Spots that a sparser map must have, and that must be left to predict."""
GENES = 250
"""Genes, by chance, of one sparser map, and those that a look at the held-out points reads: what a training costs does not grow with their number."""
PICTURES = 16
"""Pictures of one sparser map."""


def compressed(section: Section) -> Section:
    """Return a section of which every second or fourth row and column alone is measured on that lattice, as if it were the finest.

    A map that is made sparser on it then looks to the network as the section itself does on the finer lattice that is to be filled.
    """
    stride = stride_of(section.steps)
    if stride == 1:
        return section
    shape = (-(-section.spec.shape[0] // stride) + 1, -(-section.spec.shape[1] // stride) + 1)
    spec = replace(section.spec, shape=shape, pitch_um=section.spec.pitch_um * stride)
    return replace(section, spec=spec, steps=section.steps // stride)


def is_full(steps: np.ndarray) -> bool:
    """Return whether three in four points have a next one in their row: such a map will be refined, or is a lattice of a finer one."""
    return bool((positions(steps + np.array([0, 1]), steps) >= 0).mean() > 0.75)


def sparser(section: Section, options: S2SImputerOptions, rng: np.random.Generator) -> np.ndarray:
    """Return which points of ``section`` a sparser map keeps, bool (n,), by ``options.sampling``."""
    n, kind = len(section.steps), options.sampling
    if kind == "auto":
        kind = "lattice" if is_full(section.steps) and rng.random() < 0.5 else "random"
    if kind == "lattice":
        for phase in rng.permutation(4):
            kept = ((section.steps + np.array(divmod(int(phase), 2))) % 2 == 0).all(axis=1)
            if min(kept.sum(), n - kept.sum()) >= LEAST:
                return kept
    low, high = options.keep
    n_kept = int(np.clip(round(rng.uniform(low, high) * n), min(LEAST, n // 2), n - min(LEAST, n // 2)))
    out = np.zeros(n, dtype=bool)
    out[rng.permutation(n)[:n_kept]] = True
    return out


class SparserDataset(Dataset):
    """Batches ``(epoch, index)`` of sparser maps; index counts through the libraries.

    Parameters
    ----------
    sections
        The training points of each library.
    options
        Of the model.
    n_maps
        Maps of a batch, genes and pictures together.
    n_items
        Batches of an epoch.
    seed
        Where all chance comes from.
    axes
        Axes of expression of the other donors, for each donor.
    """

    def __init__(
        self,
        sections: list[Section],
        options: S2SImputerOptions,
        *,
        n_maps: int,
        n_items: int,
        seed: int,
        axes: Mapping[str, np.ndarray | None] | None = None,
    ) -> None:
        self.sections, self.options, self.n_maps, self.n_items, self.seed = sections, options, n_maps, n_items, seed
        self.axes = axes or {}
        self.tasks = {False: [compressed(each) for each in sections], True: sections}
        self.places = {dense: [surroundings(each.spec, each.steps)[0] for each in tasks] for dense, tasks in self.tasks.items()}
        self._kept: OrderedDict[tuple[int, int, bool], Field] = OrderedDict()

    def __len__(self) -> int:
        return self.n_items

    def field(self, which: int, sample: int, *, dense: bool = False) -> Field:
        """Return sample ``sample`` of library ``which``; ``dense``: all points are shown, and asked for, on the lattice that is to be filled."""
        key = (which, sample, dense)
        if key in self._kept:
            return self._kept[key]
        rng = _rng.derive(self.seed, 1, which, sample)
        section, places = self.tasks[dense][which], self.places[dense][which]
        extent = np.ptp(places, axis=0)
        if (extent >= self.options.crop).any():
            section, places = self._window(section, places, rng)
        n = len(section.steps)
        if dense:
            known = wanted = np.arange(n)
        else:
            kept = sparser(section, self.options, rng)
            known, wanted = np.flatnonzero(kept), np.arange(n) if self.options.score == "all" else np.flatnonzero(~kept)
        asked = np.sort(rng.permutation(section.n_genes)[:GENES])
        found = field_of(section, known, wanted, self.options, places=places, asked=asked, axes=self.axes.get(section.donor))
        if self.options.natural is not None and self.options.natural_fraction > 0:
            found = replace(found, pictures=pictures_of(found, PICTURES, self.options, rng))
        self._kept[key] = found
        while len(self._kept) > max(4, 2 * self.options.n_samples * len(self.sections)) or len(self._kept) > 128:
            self._kept.popitem(last=False)
        return found

    def _window(self, section: Section, places: np.ndarray, rng: np.random.Generator) -> tuple[Section, np.ndarray]:
        """Return the points and the places of a window that holds a randomly chosen point, and enough others."""
        side = self.options.crop
        for _ in range(20):
            corner = section.steps[int(rng.integers(len(section.steps)))] - rng.integers(side, size=2)
            inside = ((section.steps >= corner) & (section.steps < corner + side)).all(axis=1)
            if inside.sum() >= 3 * LEAST:
                break
        here = ((places >= corner) & (places < corner + side)).all(axis=1)
        return section.part(np.flatnonzero(inside)), places[here]

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        epoch, index = item
        options, n_libraries = self.options, len(self.sections)
        rng = _rng.derive(self.seed, 2, epoch, index)
        which = index % n_libraries
        dense = options.cycle_weight > 0 and index // n_libraries % 2 == 1
        field = self.field(which, int(rng.integers(options.n_samples)), dense=dense)
        n_pictures = 0 if field.pictures is None else min(self.n_maps - 1, round(options.natural_fraction * self.n_maps))
        genes = np.sort(rng.permutation(len(field.asked))[: self.n_maps - n_pictures])
        pictures = rng.integers(PICTURES, size=n_pictures)
        every = symmetries(field.section.hexagonal)
        turn = every[int(rng.integers(len(every)))] if options.augment else None
        batch, _ = batch_of(field, genes, options, turn=turn, pictures=pictures)
        return {**batch, "importance": torch.tensor(options.cycle_weight if dense else 1.0)}


class HeldOutDataset(Dataset):
    """Batches ``(0, index)`` of validation: held-out points from the training points, all genes in turn, or some evenly among many."""

    def __init__(self, fields: list[Field], options: S2SImputerOptions, *, n_maps: int) -> None:
        self.fields, self.options = fields, options
        self.items = []
        for which, field in enumerate(fields):
            n = len(field.asked)
            some = np.unique(np.linspace(0, n - 1, min(n, GENES)).astype(np.int64))
            self.items += [(which, some[start : start + n_maps]) for start in range(0, len(some), n_maps)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        which, genes = self.items[item[1]]
        return {**batch_of(self.fields[which], genes, self.options)[0], "importance": torch.tensor(1.0)}


class ItemSampler(EpochSampler):
    """Items ``(epoch, index)`` for one rank: rank r of n reads r, r + n, ..., the last round made whole from the start."""

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        epoch, n = self.current, len(self.dataset)  # type: ignore[arg-type]
        for turn in range(len(self)):
            yield epoch, (turn * self.num_replicas + self.rank) % n


class SparserModule(EpochDataModule):
    """Sparser maps for training, and the same held-out points every epoch; each item is a batch."""

    def _make_sampler(self, *, fixed: bool, num_replicas: int, rank: int) -> ItemSampler:
        dataset = self.val_dataset if fixed else self.train_dataset
        return ItemSampler(dataset, seed=self.seed, num_replicas=num_replicas, rank=rank, fixed=fixed)

    def _batching(self, sampler: EpochSampler) -> dict[str, Any]:
        return {"batch_size": None}
