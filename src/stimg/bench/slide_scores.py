"""Scores of slides: pairs of one fold are compared, donors are drawn again, donors' labels are permuted."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from stimg._core.rng import as_generator
from stimg._core.validate import whole

N_DRAWS = 1000
LEVEL = 0.95
MUTUAL = 2**0.5
"""By how much a standard deviation over test slides is too small where donors are trained on and tested in turn."""


@dataclass(frozen=True)
class Slides:
    """Test slides of all folds.

    Parameters
    ----------
    truth
        Class of each slide, integers (n,).
    predicted
        Probabilities, (n, n_classes).
    donor, fold
        Donor and fold of each slide, (n,).
    """

    truth: np.ndarray
    predicted: np.ndarray
    donor: np.ndarray
    fold: np.ndarray


class Pairs:
    """All pairs of slides of one cell (a fold, or a fold and a site), and which of the two has the higher score of each class.

    Parameters
    ----------
    predicted
        (n, n_classes). With two classes the second alone counts: it says the same as the first.
    cell
        (n,), integers.
    """

    def __init__(self, predicted: np.ndarray, cell: np.ndarray) -> None:
        self.classes = [1] if predicted.shape[1] == 2 else list(range(predicted.shape[1]))
        self.cells = [np.flatnonzero(cell == c) for c in np.unique(cell)]
        self.wins = [[_wins(predicted[rows, c]) for rows in self.cells] for c in self.classes]

    def auroc(self, truth: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """Return the mean over classes of the share of pairs (of the class, of another one) in which the first has the higher score.

        Parameters
        ----------
        truth
            (draws, n), classes of the slides.
        weight
            (draws, n), how often each slide is there.

        Returns
        -------
        float64 (draws,); a class without a pair counts .5.
        """
        w = np.ones(truth.shape) if weight is None else weight
        parts = []
        for c, wins in zip(self.classes, self.wins, strict=True):
            won, of = np.zeros(len(truth)), np.zeros(len(truth))
            for rows, above in zip(self.cells, wins, strict=True):
                own, other = w[:, rows] * (truth[:, rows] == c), w[:, rows] * (truth[:, rows] != c)
                won += ((own @ above) * other).sum(axis=1)
                of += own.sum(axis=1) * other.sum(axis=1)
            parts.append(np.divide(won, of, out=np.full(len(won), 0.5), where=of > 0))
        return np.mean(parts, axis=0)  # type: ignore[no-any-return]

    def number(self, truth: np.ndarray) -> int:
        """Return the number of pairs of slides with different classes."""
        return sum(int((truth[rows][:, None] != truth[rows][None]).sum()) // 2 for rows in self.cells)

    def undefined(self, truth: np.ndarray) -> int:
        """Return the number of classes without a pair."""
        return sum(not any(0 < (truth[rows] == c).sum() < len(rows) for rows in self.cells) for c in self.classes)


def _wins(score: np.ndarray) -> np.ndarray:
    """Return 1 where the row's score is above the column's, .5 where they are equal, (n, n)."""
    return (score[:, None] > score[None]) + 0.5 * (score[:, None] == score[None])  # type: ignore[no-any-return]


def scores(slides: Slides, within: np.ndarray | None = None, *, n: int = N_DRAWS) -> dict[str, Any]:
    """Return the metrics of :class:`stimg.bench.protocols.slides.SlideProtocol`.

    Parameters
    ----------
    slides
        The test slides of all folds.
    within
        (n_slides,), such as sites: only slides that agree are compared. None: all of a fold are.
    n
        Number of resamples and permutations.

    Notes
    -----
    Resamples and permutations take the answers as given. Those of different folds are not independent (Nadeau and Bengio 2003, doi
    10.1023/A:1024068626366): a chance likeness of two donors counts where the first is trained on and the second tested, and again the other way round.
    Where both count the same, as for the difference of class means, the variance without an effect is twice that of independent answers. The spread of
    both is therefore widened by the square root of 2 where there are several folds.
    """
    from sklearn.metrics import average_precision_score, recall_score

    n = whole(n, "n")
    fold = np.unique(slides.fold.astype(str), return_inverse=True)[1]
    cell = fold
    if within is not None:
        cell = np.unique(np.stack([fold, np.unique(within.astype(str), return_inverse=True)[1]]), axis=1, return_inverse=True)[1].ravel()
    pairs, truth = Pairs(slides.predicted, cell), slides.truth
    observed = float(pairs.auroc(truth[None])[0])
    donor = np.unique(slides.donor.astype(str), return_inverse=True)[1]
    k = int(donor.max()) + 1
    drawn = as_generator(0).multinomial(k, np.full(k, 1 / k), size=n)[:, donor]
    wider = MUTUAL if fold.max() else 1.0
    resampled = pairs.auroc(np.broadcast_to(truth, (n, len(truth))), drawn.astype(np.float64))
    ends = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = np.clip(observed + wider * (ends - observed), 0, 1)
    null = 0.5 + wider * (pairs.auroc(permuted(truth, donor, cell, n)) - 0.5)
    number = np.bincount(truth, minlength=slides.predicted.shape[1])
    rarest = int(max(range(len(number)), key=lambda c: (-number[c], c)))
    rank = np.empty(len(truth))
    for c in np.unique(cell):
        rows = cell == c
        rank[rows] = (rankdata(slides.predicted[rows, rarest]) - 0.5) / rows.sum()
    return {
        "n_obs": len(truth),
        "n_donors": k,
        "n_pairs": pairs.number(truth),
        "n_undefined": pairs.undefined(truth),
        "auroc": observed,
        "auroc_low": float(low),
        "auroc_high": float(high),
        "p": float((1 + (null >= observed - 1e-12).sum()) / (1 + n)),
        "auprc": float(average_precision_score(truth == rarest, rank)) if number[rarest] else 0.0,
        "auprc_chance": float(number[rarest] / len(truth)),
        "balanced_accuracy": float(
            recall_score(truth, slides.predicted.argmax(axis=1), labels=np.unique(truth), average="macro", zero_division=0.0)
        ),
    }


def permuted(truth: np.ndarray, donor: np.ndarray, cell: np.ndarray, n: int) -> np.ndarray:
    """Return ``n`` permutations of the labels, int64 (n, slides): donors with as many slides in the same cells change places, whole.

    A donor without another like it keeps its labels, which makes p larger.
    """
    rng = as_generator(1)
    alike: dict[tuple, list[np.ndarray]] = {}
    for d in np.unique(donor):
        rows = np.flatnonzero(donor == d)
        rows = rows[np.argsort(cell[rows], kind="stable")]
        alike.setdefault(tuple(cell[rows].tolist()), []).append(rows)
    out = np.tile(truth, (n, 1))
    for rows_of in (np.stack(group) for group in alike.values()):
        if len(rows_of) > 1:
            order = rng.permuted(np.tile(np.arange(len(rows_of)), (n, 1)), axis=1)
            out[:, rows_of.ravel()] = truth[rows_of[order]].reshape(n, -1)
    return out
