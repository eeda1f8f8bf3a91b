"""What predictions of left-out observations say about a head: how well it predicts each gene, and how far off it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stimg._core import validate
from stimg.metrics import per_gene_pearson

LEVELS = tuple(round(0.01 * i, 2) for i in range(50, 100))
"""Coverages whose quantiles are kept; one between two of them is answered by the larger."""
NARROW, WIDE = 0.25, 4.0
"""Least and most of the spread in units of a gene's mean absolute residual."""
ARRAYS = ("predictability", "offset", "slope", "scale", "quantiles")


@dataclass(frozen=True)
class Calibration:
    r"""Predictability and conformal intervals of every gene, learnt on observations that were left out.

    With residuals r and predictions p of the left-out observations, the spread of a gene is a line, :math:`s(p) = a + b p`, fitted to abs(r) and kept
    between a quarter of and four times the mean of abs(r). The interval about a prediction is :math:`p \pm q\, s(p)`, q the
    :math:`\lceil (n + 1)\, c \rceil`-th smallest of the n values abs(r) / s(p), for coverage c. Source: Lei et al. (2018), J. Am. Stat. Assoc. 113,
    1094-1111, section 5.2 (locally weighted split conformal), with the residuals of cross-validation in place of those of one split.

    Parameters
    ----------
    predictability
        Pearson's r of left-out observations, mean over the sections of a group, then over groups, float32 (genes,); undefined ones count 0.
    offset, slope, scale
        a, b and the mean of abs(r), float32 (genes,).
    quantiles
        q for each of ``LEVELS``, float32 (levels, genes); infinite where there are too few observations for the level.
    level
        What was left out in turn: ``"donor"``, ``"section"`` or ``"block"``.
    n_obs, n_groups
        Left-out observations, and groups of them.
    """

    predictability: np.ndarray
    offset: np.ndarray
    slope: np.ndarray
    scale: np.ndarray
    quantiles: np.ndarray
    level: str
    n_obs: int
    n_groups: int

    def spread(self, predicted: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return s of predictions (n, genes), the columns ``genes`` of all, float64."""
        offset, slope, scale = (each[genes].astype(np.float64) for each in (self.offset, self.slope, self.scale))
        return np.clip(offset + slope * predicted, NARROW * scale, WIDE * scale)

    def intervals(self, predicted: np.ndarray, genes: np.ndarray, coverage: float) -> tuple[np.ndarray, np.ndarray]:
        """Return lower and upper bounds, float32 (n, genes); log values are never below 0, so that bounds are not either."""
        at = level_of(coverage)
        q = self.quantiles[at][genes].astype(np.float64)
        half = self.spread(predicted, genes)
        half = np.where(half > 0, q * half, np.where(np.isinf(q), q, 0.0))
        return np.maximum(predicted - half, 0.0).astype(np.float32), np.maximum(predicted + half, 0.0).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is saved as tensors."""
        return {name: getattr(self, name) for name in ARRAYS}

    def facts(self) -> dict[str, str | int]:
        """Return what is saved as plain values."""
        return {"level": self.level, "n_obs": self.n_obs, "n_groups": self.n_groups}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, str | int]) -> "Calibration":
        """Return the calibration of :meth:`arrays` and :meth:`facts`."""
        return cls(
            **{name: arrays[name] for name in ARRAYS}, level=str(facts["level"]), n_obs=int(facts["n_obs"]), n_groups=int(facts["n_groups"])
        )


def level_of(coverage: float) -> int:
    """Return the position in ``LEVELS`` of the smallest level that is at least ``coverage``."""
    if not LEVELS[0] <= validate.number(coverage, "coverage") <= LEVELS[-1]:
        raise ValueError(
            f"coverage={coverage} is not between {LEVELS[0]} and {LEVELS[-1]}; wanted the share of true values that intervals should hold."
        )
    return int(np.searchsorted(np.asarray(LEVELS), coverage - 1e-9))


def calibrate(truth: np.ndarray, predicted: np.ndarray, group: np.ndarray, section: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of a :class:`Calibration` for some genes from truth and predictions of left-out observations, (n, genes)."""
    truth, predicted = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    scores = []
    for name in np.unique(group):
        rows = group == name
        each = [per_gene_pearson(truth[part], predicted[part]).values for part in _parts(rows, section)]
        scores.append(np.mean(each, axis=0))
    off = np.abs(truth - predicted)
    scale = off.mean(axis=0)
    centred = predicted - predicted.mean(axis=0)
    squares = (centred**2).sum(axis=0)
    flat = squares <= 1e-20 * np.maximum((predicted**2).sum(axis=0), 1e-300)
    slope = np.where(flat, 0.0, (centred * off).sum(axis=0) / np.where(flat, 1.0, squares))
    offset = scale - slope * predicted.mean(axis=0)
    spread = np.clip(offset + slope * predicted, NARROW * scale, WIDE * scale)
    ratio = np.sort(np.divide(off, spread, out=np.zeros_like(off), where=spread > 0), axis=0)
    n = len(ratio)
    place = np.ceil((n + 1) * np.asarray(LEVELS) - 1e-9).astype(int)
    quantiles = np.where((place <= n)[:, None], ratio[np.minimum(place, n) - 1], np.inf)
    found = (np.mean(scores, axis=0), offset, slope, scale, quantiles)
    return {name: each.astype(np.float32) for name, each in zip(ARRAYS, found, strict=True)}


def _parts(rows: np.ndarray, section: np.ndarray) -> list[np.ndarray]:
    return [rows & (section == name) for name in np.unique(section[rows])]


def join(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of several sets of genes, one after the other."""
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in ARRAYS}
