"""What an imputation network learns of itself from held-out points: how much of it to use, and how wide its intervals have to be."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stimg.model._s2s_lattice import spread_out
from stimg.model._s2s_samples import Field, batch_of

if TYPE_CHECKING:
    from stimg.model.s2s import S2SImputer

GATES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Parts of the network's correction of its base among which is chosen."""
PRIOR = 20.0
"""Held-out values that the pooled variance counts as, beside a gene's own."""
LEVEL, QUANTILE = 0.9, 1.6448536269514722
CHUNK = 64


def on_device(batch: Any, device: torch.device) -> Any:
    """Return a batch of tensors on ``device``."""
    return {name: each.to(device) for name, each in batch.items()}


def raw(model: "S2SImputer", field: Field, genes: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, prediction and standard deviation at the places ``at`` of a field, in units of the spread, float32 (genes, places) each.

    Predictions are means over the symmetries that the options ask for.
    """
    turns = spread_out(model.options.turns, field.section.hexagonal)
    start = np.zeros((len(genes), len(at)), dtype=np.float32)
    found, deviation = np.zeros_like(start), np.zeros_like(start)
    for turn in turns:
        batch, places = batch_of(field, genes, model.options, turn=turn)
        batch = on_device(batch, model.device)
        mean, sd = model.module.predict(batch)
        here = torch.from_numpy(places[at]).to(model.device)
        found += mean.flatten(1)[:, here].cpu().numpy()
        deviation += sd.flatten(1)[:, here].cpu().numpy()
        start = batch["base"][:, 0].flatten(1)[:, here].cpu().numpy()
    return start, found / len(turns), deviation / len(turns)


def gated(model: "S2SImputer", fields: Sequence[Field], *, choose: bool) -> None:
    """Set how much of the network's correction is used: what fits held-out points best; all of it where nothing was held out."""
    model.module.gate.fill_(1.0)
    errors, weights = np.zeros(len(GATES)), 0.0
    for field, genes in _chunks(fields):
        start, found, _ = raw(model, field, genes, field.wanted_at)
        truth = field.base.units(field.section.dense(genes)[field.wanted], genes)
        for i, gate in enumerate(GATES):
            errors[i] += float(((start + gate * (found - start) - truth) ** 2).sum())
        weights += truth.size
    errors /= max(weights, 1.0)
    gate = GATES[int(errors.argmin())] if choose else 1.0
    model.module.gate.fill_(gate)
    model.judged_ = {"base": float(errors[0]), "network": float(errors[-1]), "gate": gate, "used": float(errors[GATES.index(gate)])}


def calibrated(model: "S2SImputer", fields: Sequence[Field]) -> None:
    """Set the factor of each gene's standard deviation: its own squared errors shrunk to the pooled ones, then 90 % of all held-out values inside."""
    n_genes = len(model.genes)
    square, number = np.zeros(n_genes), np.zeros(n_genes)
    scores: list[tuple[np.ndarray, np.ndarray]] = []
    for field, genes in _chunks(fields):
        _, found, sd = raw(model, field, genes, field.wanted_at)
        z = (field.base.units(field.section.dense(genes)[field.wanted], genes) - found) / sd
        np.add.at(square, genes, (z.astype(np.float64) ** 2).sum(axis=1))
        np.add.at(number, genes, z.shape[1])
        scores.append((genes, z))
    pooled = square.sum() / max(number.sum(), 1.0)
    factor = np.sqrt((PRIOR * pooled + square) / (PRIOR + number))
    every = np.concatenate([np.abs(z / factor[genes, None]).ravel() for genes, z in scores])
    model.calibration = (factor * np.quantile(every, LEVEL) / QUANTILE).astype(np.float32)


def _chunks(fields: Sequence[Field]) -> Any:
    for field in fields:
        n = field.section.values.shape[1]
        for start in range(0, n, CHUNK):
            yield field, np.arange(start, min(start + CHUNK, n))
