"""How an imputation network is trained: what is held out, sparser maps, the loop, and what is learned from the held-out points at the end."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stimg._core import hashing
from stimg._core import rng as _rng
from stimg._core.ledger import merged
from stimg.data.ledger import seen_of
from stimg.data.slots import RasterLibrary, raster_libraries
from stimg.image.interpolate import axes_of_sections
from stimg.model import _fit, _kept
from stimg.model._fit import Loop
from stimg.model._s2s_calibration import calibrated, gated, judge
from stimg.model._s2s_fields import Field, field_of
from stimg.model._s2s_lattice import surroundings
from stimg.model._s2s_read import FEWEST, Section, helpers_of, sections
from stimg.model._s2s_samples import LEAST, HeldOutDataset, SparserDataset, SparserModule, compressed
from stimg.model._seeded import seeded
from stimg.model._split import Split, split_observations
from stimg.nn.s2s import S2SModule
from stimg.plan.callbacks import EpochHistory
from stimg.plan.steps import StepPlan

if TYPE_CHECKING:
    from stimg.model.s2s import S2SImputer

logger = logging.getLogger(__name__)
STEPS, STEPS_PER_EPOCH, MOST_EPOCHS = 240, 12, 40
MOST_POINTS = 1500
"""Points of a section, by chance, that the axes of donors are taken from."""
HELPING = "the genes that help S2SImputer"
_LOADER = ("num_workers", "multiprocessing_context", "pin_memory")


class SparserPlan(StepPlan):
    """One training step of an imputation network: predict the spots that a sparser map lacks; see :class:`stimg.plan.StepPlan`.

    Compiled, the network is so for every shape: a slide has few, one or two of a square lattice, and torch cannot compile it for all at once.
    """

    def __init__(self, module: S2SModule, *, compile: bool = False, **options: Any) -> None:
        super().__init__(module, **options)
        if compile:
            self._call = torch.compile(module.forward, dynamic=False)

    def terms(self, batch: Mapping[str, Tensor], stage: str) -> dict[str, Tensor]:
        """Return ``loss``, weighted by the importance of the batch, and for the validation ``error`` and ``base_error``."""
        found = self._call(batch)
        if stage == "val":
            return {"loss": found["error"], "base_loss": found["base_error"]}
        return {"loss": found["loss"] * batch["importance"]}

    def size(self, batch: Mapping[str, Tensor]) -> int:
        """Return the number of maps."""
        return len(batch["base"])


def divided(model: "S2SImputer", loop: Loop) -> Split:
    """Return what is trained on and what is held out; ``"spots"`` are single lattice points by chance, the task itself in small."""
    adata = model.adata
    rasters = raster_libraries(adata, library_key=model._library_key)
    rng = _rng.derive(loop.seed, 0)
    if loop.validation != "spots":
        return split_observations(rasters, adata.n_obs, validation=loop.validation, fraction=loop.validation_fraction, rng=rng)
    if not 0 < loop.validation_fraction <= 0.5:
        raise ValueError(f"validation_fraction={loop.validation_fraction} is outside (0, 0.5].")
    split = split_observations(rasters, adata.n_obs, validation=None, fraction=loop.validation_fraction, rng=rng)
    for library in rasters.values():
        held = _held_points(library, loop.validation_fraction, rng)
        split.validation[library.rows[held]] = True
        split.train[library.rows[held]] = False
    return split


def _held_points(library: RasterLibrary, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Return which observations of a library lie on lattice points drawn by chance, bool (n,)."""
    points, member = np.unique(library.rc, axis=0, return_inverse=True)
    n = round(fraction * len(points))
    if n < LEAST or len(points) - n < FEWEST + LEAST:
        raise ValueError(
            f"library {library.name!r} has {len(points)} measured points, too few to hold out {fraction:g} of them (wanted {LEAST} held out, "
            f"{FEWEST + LEAST} left). Pass `validation=None`, or another `validation_fraction`."
        )
    held = np.zeros(len(points), dtype=bool)
    held[rng.permutation(len(points))[:n]] = True
    return held[member.ravel()]


class Donors(NamedTuple):
    """Axes of expression, (k, genes and helpers) of the sections: of all donors, and for each donor those of the others; None where there are none."""

    every: np.ndarray | None
    without: dict[str, np.ndarray | None]


def axes_of(model: "S2SImputer", found: Sequence[Section], names: Sequence[str]) -> Donors:
    """Return the axes of the donors of ``found``, whose columns are ``names``; of a single donor those that the model has learned before from others, or None."""
    donors = sorted({each.donor for each in found})
    k = model.options.n_shared if model.options.base == "ensemble" else 0
    if len(donors) < 2 or not k:
        known = model.axes_for(names)
        return Donors(known, dict.fromkeys(donors, known))
    tables: list[tuple[str, tuple[np.ndarray, np.ndarray]]] = []
    for each in found:
        some = np.sort(_rng.derive(0, len(tables)).permutation(len(each.steps))[:MOST_POINTS])
        part = each.part(some)
        tables.append((each.donor, (part.dense().astype(np.float64), part.counts)))
    without = {donor: axes_of_sections([t for d, t in tables if d != donor], k) for donor in donors}
    return Donors(axes_of_sections([t for _, t in tables], k), dict(without))


def held_out(model: "S2SImputer", split: Split, helpers: Sequence[str], donors: Donors) -> list[Field]:
    """Return the fields whose shown points are training points and whose wanted points are validation points, by library, as in training."""
    out = []
    for section in sections(model.adata, model.genes, helpers=helpers, rows=split.train | split.validation, **model._reading()):
        held = split.validation[section.rows]
        if not held.any():
            continue
        section = compressed(section)
        if held.all():  # a whole library: half of its points are shown
            held = _rng.derive(0, len(held)).permutation(len(held)) < len(held) // 2
        places = surroundings(section.spec, section.steps)[0]
        axes = donors.without.get(section.donor, donors.every)
        out.append(field_of(section, np.flatnonzero(~held), np.flatnonzero(held), model.options, places=places, axes=axes))
    return out


def train(model: "S2SImputer", loop: Loop, *, steps_per_epoch: int, compile: bool = False, **kwargs: Any) -> None:
    """Train ``model`` in place; see :meth:`stimg.model.S2SImputer.train`."""
    adata = model.adata
    split = divided(model, loop)
    helpers = helpers_of(adata, model.genes, layer=model._layer, rows=split.train)
    train_sections = sections(adata, model.genes, helpers=helpers, rows=split.train, **model._reading())
    donors = axes_of(model, train_sections, [*model.genes, *helpers])
    dataset = SparserDataset(
        train_sections, model.options, n_maps=loop.batch_size, n_items=steps_per_epoch, seed=loop.seed, axes=donors.without
    )
    fields = held_out(model, split, helpers, donors) if split.validation.any() else []
    val = HeldOutDataset(fields, model.options, n_maps=loop.batch_size) if fields else None
    data = SparserModule(
        dataset,
        val,
        train_idx=np.flatnonzero(split.train),
        val_idx=np.flatnonzero(split.validation) if fields else None,
        seed=loop.seed,
        batch_size=loop.batch_size,
        **{name: kwargs.pop(name) for name in _LOADER if name in kwargs},
    )
    epochs = min(MOST_EPOCHS, -(-STEPS // steps_per_epoch)) if loop.max_epochs is None else loop.max_epochs
    loop = replace(loop, steps=steps_per_epoch, max_epochs=epochs)
    hashes = _kept.observation_hashes(model, adata)
    record = {
        **model.options.to_dict(),
        "genes": hashing.of_strings(model.genes),
        "training observations": hashing.of_array(hashes[split.train]),
        "validation observations": hashing.of_array(hashes[split.validation]),
        "steps_per_epoch": steps_per_epoch,
    }

    def make_plan() -> SparserPlan:
        if not model.is_trained_:
            with seeded(loop.seed):
                model.module.load_state_dict(model._make_module(loop.seed).state_dict())
            _look_at_guide(model, train_sections)
        model.module.gate.fill_(1.0)
        return SparserPlan(model.module, compile=compile, **loop.of_plan())

    def keep(plan: StepPlan, history: EpochHistory) -> None:
        rows = split.train | split.validation
        model.axes = None if donors.every is None else pd.DataFrame(donors.every, columns=[*model.genes, *helpers])
        if helpers:
            remember_helpers(model, rows, helpers)
        _fit.settle(model, plan, data, history, rows, library_key=model._library_key)
        judged = judge(model, fields or [dataset.field(i, 0) for i in range(len(train_sections))])
        gated(model, judged, choose=bool(fields))
        calibrated(model, judged)

    _fit.run(model, loop, data, make_plan, keep, record=record, attributes=("calibration", "judged_", "axes", "ledger"), **kwargs)
    logger.info(
        "Trained on %d points of %d libraries, %d held out; best epoch %d of %d, part of the network that is used %.2f",
        data.n_train,
        len(train_sections),
        data.n_val,
        model.best_epoch_,
        model.epochs(),
        float(model.module.gate),
    )


def remember_helpers(model: "S2SImputer", rows: np.ndarray, helpers: Sequence[str]) -> None:
    """Write into the ledger, before the model's own record, that counts of helping genes were read."""
    new = seen_of(model.adata, who=HELPING, kind="PCA", rows=rows, genes=helpers, layer=model._layer, library_key=model._library_key)
    *others, own = model.ledger
    before = [each for each in others if each.who == HELPING]
    kept = [each for each in others if each.who != HELPING]
    model.ledger = (*kept, merged([*before, new], who=HELPING, kind="PCA"), own)


@torch.no_grad()
def _look_at_guide(model: "S2SImputer", found: Sequence[Section]) -> None:
    """Take mean and spread of the guide features from the training points."""
    if model.module.guide is None:
        return
    every = torch.from_numpy(np.concatenate([each.guide for each in found if each.guide is not None])).double()
    model.module.guide_mean.copy_(every.mean(dim=0))
    model.module.guide_scale.copy_(every.std(dim=0).clamp_min(1e-6))
