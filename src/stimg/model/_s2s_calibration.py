"""What an imputation network learns of itself from held-out points: how much of it to use, and how wide its intervals have to be."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from stimg.model._s2s_fields import Field, batch_of
from stimg.model._s2s_lattice import spread_out

if TYPE_CHECKING:
    from stimg.model.s2s import S2SImputer

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


class Judged(NamedTuple):
    """What a network says of held-out points, in units of the spread, float32 (genes, points) each: base, prediction, sd and truth of some genes."""

    genes: np.ndarray
    start: np.ndarray
    found: np.ndarray
    sd: np.ndarray
    truth: np.ndarray


def judge(model: "S2SImputer", fields: Sequence[Field]) -> list[Judged]:
    """Return what the whole network, whatever its gate, says of the held-out points of ``fields``."""
    model.module.gate.fill_(1.0)
    out = []
    for field, genes in _chunks(fields):
        truth = field.base.units(field.section.dense(field.asked[genes])[field.wanted], genes)
        out.append(Judged(field.asked[genes], *raw(model, field, genes, field.wanted_at), truth))
    return out


def gated(model: "S2SImputer", judged: Sequence[Judged], *, choose: bool) -> None:
    r"""Set how much of the network's correction of its base is used; all of it where nothing was held out.

    With :math:`e = y - x_0` what the base misses and c the correction, the best part is :math:`b / a, \; b = \overline{ec}, \; a = \overline{c^2}`. As b comes
    from few points, it is shrunk by the positive part of :math:`1 - \mathrm{var}(b) / b^2`, the variance being that of a mean over points.
    """
    missed = [each.truth - each.start for each in judged]
    added = [each.found - each.start for each in judged]
    n = sum(each.size for each in missed)
    a = sum(float((c.astype(np.float64) ** 2).sum()) for c in added) / n
    points = _by_point(judged, [e * c for e, c in zip(missed, added, strict=True)]) / n
    b = float(points.sum())
    gate = 1.0
    if choose:
        variance = float(((points - b / len(points)) ** 2).sum()) * len(points) / max(len(points) - 1, 1)
        gate = 0.0 if b <= 0 or a <= 0 else float(np.clip(b / a * max(0.0, 1.0 - variance / b**2), 0.0, 1.0))
    model.module.gate.fill_(gate)
    base = sum(float((e.astype(np.float64) ** 2).sum()) for e in missed) / n
    model.judged_ = {"base": base, "network": base - 2 * b + a, "gate": gate, "used": base - 2 * gate * b + gate**2 * a}


def _by_point(judged: Sequence[Judged], values: Sequence[np.ndarray]) -> np.ndarray:
    """Return sums over genes for each held-out point, (points,); chunks of genes of one section follow each other, and the first of a section starts again."""
    sums: list[np.ndarray] = []
    last = np.inf
    for each, value in zip(judged, values, strict=True):
        total = value.astype(np.float64).sum(axis=0)
        if each.genes[0] > last:
            sums[-1] = sums[-1] + total
        else:
            sums.append(total)
        last = each.genes[-1]
    return np.concatenate(sums)


def calibrated(model: "S2SImputer", judged: Sequence[Judged]) -> None:
    """Set the factor of each gene's standard deviation: its own squared errors shrunk to the pooled ones, then 90 % of all held-out values inside."""
    n_genes, gate = len(model.genes), float(model.module.gate)
    square, number = np.zeros(n_genes), np.zeros(n_genes)
    scores: list[tuple[np.ndarray, np.ndarray]] = []
    for each in judged:
        z = (each.truth - each.start - gate * (each.found - each.start)) / each.sd
        np.add.at(square, each.genes, (z.astype(np.float64) ** 2).sum(axis=1))
        np.add.at(number, each.genes, z.shape[1])
        scores.append((each.genes, z))
    pooled = square.sum() / max(number.sum(), 1.0)
    factor = np.sqrt((PRIOR * pooled + square) / (PRIOR + number))
    every = np.concatenate([np.abs(z / factor[genes, None]).ravel() for genes, z in scores])
    model.calibration = (factor * np.quantile(every, LEVEL) / QUANTILE).astype(np.float32)


def _chunks(fields: Sequence[Field]) -> Any:
    for field in fields:
        n = len(field.asked)
        for start in range(0, n, CHUNK):
            yield field, np.arange(start, min(start + CHUNK, n))
