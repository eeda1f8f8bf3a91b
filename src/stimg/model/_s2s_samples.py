"""What an imputation network is trained on: a sparser map of a sparse one, drawn first and turned afterwards, as a batch of maps of genes and pictures."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from stimg._core import rng as _rng
from stimg.data.epochs import EpochDataModule, EpochSampler
from stimg.model import _s2s_base, _s2s_natural
from stimg.model._s2s_base import Base
from stimg.model._s2s_lattice import plane_of, rasterised, stride_of, surroundings, symmetries
from stimg.model._s2s_read import Section
from stimg.model.s2s_options import S2SImputerOptions
from stimg.nn.s2s import LatticeBatch

LEAST = 6
"""Spots that a sparser map must have, and that must be left to predict."""


@dataclass(frozen=True, eq=False)
class Field:
    """A map with holes, ready for any gene: where it is known, where it is asked for, and what the cascade starts from.

    Parameters
    ----------
    section
        The measured points of the window.
    steps
        All places of the window, int64 (P, 2).
    known, wanted
        Positions in ``section`` of the points that are shown, and of those that are to be predicted.
    known_at, wanted_at
        Their positions in ``steps``.
    base
        Fitted on the points that are shown, and on nothing else.
    guide
        Features of all places, float32 (P, D), NaN where there are none.
    """

    section: Section
    steps: np.ndarray
    known: np.ndarray
    wanted: np.ndarray
    known_at: np.ndarray
    wanted_at: np.ndarray
    base: Base
    guide: np.ndarray


def code_of(steps: np.ndarray, low: np.ndarray, width: int) -> np.ndarray:
    """Return one whole number for each step."""
    return (steps[:, 0] - low[0]) * width + steps[:, 1] - low[1]


def positions(steps: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the position of each of ``steps`` in ``among``, int64; -1 where it is not there."""
    every = np.concatenate([steps, among])
    low, width = every.min(axis=0), int(np.ptp(every[:, 1])) + 1
    codes = code_of(among, low, width)
    order = np.argsort(codes, kind="stable")
    found = np.minimum(np.searchsorted(codes[order], code_of(steps, low, width)), len(order) - 1)
    out = order[found]
    return np.where(codes[out] == code_of(steps, low, width), out, -1)


def field_of(
    section: Section,
    known: np.ndarray,
    wanted: np.ndarray,
    options: S2SImputerOptions,
    *,
    places: np.ndarray,
    factor: int = 1,
    guide: np.ndarray | None = None,
    axes: np.ndarray | None = None,
) -> Field:
    """Return the field of ``section`` whose points ``known`` are shown.

    ``places`` are the steps of the window, ``factor`` times finer than the section's; ``axes`` are components of other sections.
    """
    points = section.steps * factor
    shown = section.part(known)
    base = _s2s_base.fit(
        plane_of(section.hexagonal, shown.steps),
        shown.dense().astype(np.float64),
        shown.counts,
        plane_of(section.hexagonal, places) / factor,
        kind=options.base,
        n_components=options.n_components,
        count_aware=options.count_aware,
        standardise=options.standardise,
        axes=axes,
    )
    at = positions(points, places)
    if guide is None:
        guide = np.full((len(places), 0 if section.guide is None else section.guide.shape[1]), np.nan, dtype=np.float32)
        if section.guide is not None:
            guide[at[at >= 0]] = section.guide[at >= 0]
    return Field(section, places, known, wanted, at[known], at[wanted], base, guide)


def batch_of(
    field: Field,
    genes: np.ndarray,
    options: S2SImputerOptions,
    *,
    turn: np.ndarray | None = None,
    n_pictures: int = 0,
    rng: np.random.Generator | None = None,
) -> tuple[LatticeBatch, np.ndarray]:
    """Return the maps of ``genes``, and behind them ``n_pictures`` pictures, with the place of each point of the field in the flattened raster."""
    raster = rasterised(field.steps, turn)
    (rows, cols), n_genes, base = raster.shape, len(genes), field.base
    values = field.section.dense(genes)
    known, target = base.units(values[field.known], genes), base.units(values[field.wanted], genes)
    facts, maps = base.facts[genes], base.maps(known, genes)
    relative = _s2s_base.relative_depth(field.section.counts[field.wanted], float(np.median(field.section.counts[field.known])))
    noise = np.minimum(facts[:, 1:2], 0.95)
    weight = 1.0 / ((1.0 - noise) + noise / relative) if options.count_aware else np.ones_like(target)
    wanted_at = field.wanted_at
    n_all = n_genes + n_pictures
    shape = (n_all, rows * cols)
    out = {name: np.zeros(shape, dtype=np.float32) for name in ("measured", "target", "weight")}
    out["base"] = np.zeros((n_all, _s2s_base.N_MAPS, rows * cols), dtype=np.float32)
    shown_at = raster.at[field.known_at]
    out["measured"][:n_genes, shown_at] = known
    out["base"][:n_genes, :, raster.at] = maps
    out["target"][:n_genes, raster.at[wanted_at]] = target
    out["weight"][:n_genes, raster.at[wanted_at]] = weight
    if n_pictures:
        assert rng is not None
        clean, shown, about = _pictures(field, n_pictures, facts, options, rng)
        out["measured"][n_genes:, shown_at] = shown
        alone = base.alone(shown)
        out["base"][n_genes:, 0, raster.at] = alone
        out["target"][n_genes:, raster.at] = clean
        everywhere = np.ones(len(field.steps), dtype=np.float32)
        if options.score == "hidden":
            everywhere[field.known_at] = 0.0
        mean_weight = weight.sum(axis=1).mean() if weight.size else 1.0
        out["weight"][n_genes:, raster.at] = everywhere * mean_weight / max(float(everywhere.sum()), 1.0)
        facts = np.concatenate([facts, about])
    depth, far = np.ones(rows * cols, dtype=np.float32), np.zeros(rows * cols, dtype=np.float32)
    depth[shown_at], far[raster.at] = base.depth, base.variance
    mask = {name: np.zeros(rows * cols, dtype=bool) for name in ("known", "inside")}
    mask["known"][shown_at], mask["inside"][raster.at] = True, True
    guide = np.full((field.guide.shape[1], rows * cols), np.nan, dtype=np.float32)
    guide[:, raster.at] = field.guide.T
    arrays: dict[str, np.ndarray] = {**out, **mask, "depth": depth, "far": far, "guide": guide}
    tensors: dict[str, Any] = {name: torch.from_numpy(each.reshape(*each.shape[:-1], rows, cols)) for name, each in arrays.items()}
    return LatticeBatch(**tensors, facts=torch.from_numpy(np.ascontiguousarray(facts))), raster.at  # type: ignore[typeddict-item]


def _pictures(
    field: Field, n: int, facts: np.ndarray, options: S2SImputerOptions, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return clean values of pictures at all places (n, P), what is shown of them at the known points (n, k), and their facts (n, F).

    With noise, a picture has the part of noise and the facts of a gene drawn from the batch; depth makes some spots noisier, as it does for genes.
    """
    assert options.natural is not None
    clean = _s2s_natural.sampled(options.natural, plane_of(field.section.hexagonal, field.steps), n, rng)
    if not options.standardise:
        clean = (0.5 + 0.2 * clean).clip(0, 1)
    about = facts[rng.integers(len(facts), size=n)].copy()
    if not options.natural_noise:
        about[:, 1:] = np.array([0.0, 1.0, 1.0, 1.0])
        return clean, clean[:, field.known_at], about
    explained = np.clip(about[:, 3], 0.02, 0.9)[:, None]
    clean = clean * np.sqrt(explained)
    noise = rng.normal(size=(n, len(field.known_at))) * np.sqrt((1.0 - explained) / field.base.depth)
    return clean, (clean[:, field.known_at] + noise).astype(np.float32), about


def sparser(section: Section, options: S2SImputerOptions, rng: np.random.Generator) -> np.ndarray:
    """Return which points of ``section`` a sparser map keeps, bool (n,), by ``options.sampling``."""
    n, stride = len(section.steps), stride_of(section.steps)
    kind = options.sampling
    if kind == "auto":
        kind = "lattice" if rng.random() < (0.25 if stride == 1 else 0.5) else "random"
    if kind == "lattice":
        grid = section.steps // stride
        for phase in rng.permutation(4):
            kept = ((grid + np.array(divmod(int(phase), 2))) % 2 == 0).all(axis=1)
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
        Components of other donors for each donor.
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
        self.places = [surroundings(each.spec, each.steps)[0] for each in sections]
        self._kept: OrderedDict[tuple[int, int, bool], Field] = OrderedDict()

    def __len__(self) -> int:
        return self.n_items

    def field(self, which: int, sample: int, *, dense: bool = False) -> Field:
        """Return sample ``sample`` of library ``which``; ``dense``: all points are shown, and asked for."""
        key = (which, sample, dense)
        if key in self._kept:
            return self._kept[key]
        rng = _rng.derive(self.seed, 1, which, sample)
        section, places = self.sections[which], self.places[which]
        extent = np.ptp(places, axis=0)
        if (extent >= self.options.crop).any():
            section, places = self._window(section, places, rng)
        n = len(section.steps)
        if dense:
            known = wanted = np.arange(n)
        else:
            kept = sparser(section, self.options, rng)
            known, wanted = np.flatnonzero(kept), np.arange(n) if self.options.score == "all" else np.flatnonzero(~kept)
        found = field_of(section, known, wanted, self.options, places=places, axes=self.axes.get(section.donor))
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
        n_genes = field.section.values.shape[1]
        n_pictures = 0 if options.natural is None or dense else min(self.n_maps - 1, round(options.natural_fraction * self.n_maps))
        genes = np.sort(rng.permutation(n_genes)[: self.n_maps - n_pictures])
        every = symmetries(field.section.hexagonal)
        turn = every[int(rng.integers(len(every)))] if options.augment else None
        batch, _ = batch_of(field, genes, options, turn=turn, n_pictures=n_pictures, rng=rng)
        return {**batch, "importance": torch.tensor(options.cycle_weight if dense else 1.0)}


class HeldOutDataset(Dataset):
    """Batches ``(0, index)`` of validation: held-out points from the training points, all genes in turn."""

    def __init__(self, fields: list[Field], options: S2SImputerOptions, *, n_maps: int) -> None:
        self.fields, self.options = fields, options
        self.items = [
            (which, np.arange(start, min(start + n_maps, field.section.values.shape[1])))
            for which, field in enumerate(fields)
            for start in range(0, field.section.values.shape[1], n_maps)
        ]

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
