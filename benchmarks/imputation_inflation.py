"""The same predictions of hidden spots, scored the honest way and in the ways that publications of imputation do.

HER2ST B1 B3 C1 C3 D1 D3 E1 E3 (4 donors); half of the spots hidden by chance (three draws) and all but a quarter grid; the 250 genes with most counts
on the *observed* spots; log(1 + counts per 10,000). Folds and truth are those of the protocol ``imputation``. Every scoring below is a function of one
section's truth and one prediction, so that nothing but the scoring differs between columns.

    python benchmarks/imputation_inflation.py

Takes a minute and a half of one core.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from common import save, table
from scipy.spatial import KDTree
from scipy.stats import rankdata, spearmanr

import stimg
from stimg.bench import sections as sections_of
from stimg.bench.methods.imputation import measured, places
from stimg.bench.protocol import Hidden, Task
from stimg.data.slots import raster_libraries
from stimg.image.interpolate import METHODS, Measured
from stimg.metrics import SpatialWeights, cluster_bootstrap, flattened_pearson, morans_i, per_gene_pearson, psnr, ssim

SECTIONS = ("B1", "B3", "C1", "C3", "D1", "D3", "E1", "E3")
MASKS = {"random 50 %": (0, 1, 2), "quarter grid": (0,)}
WINDOW, NEIGHBOURS, CHOSEN = 7, 4, 50
FITS, PART = 10, 0.8
"""Fits of one method that one may choose from, and the part of the observed spots that each of them reads."""
SMOOTH = 2.0
"""Standard deviation of the kernel of random maps, in pitches."""


# ---- one section under one mask


@dataclass(frozen=True)
class Case:
    """A section under a mask. ``truth`` (n_hidden, G), ``observed`` (n_observed, G), ``at`` (n, 2): lattice points as whole steps, hidden ones first."""

    section: str
    donor: str
    mask: str
    truth: np.ndarray
    observed: np.ndarray
    at: np.ndarray

    @classmethod
    def of(cls, task: Task, hidden: Hidden) -> "Case":
        """Return the case behind a task of the protocol and its truth."""
        ((name, asked),) = task.asked().items()
        (library,) = raster_libraries(task.test[0]).values()
        at = np.concatenate([asked.obsm["stimg_rc"], library.rc]).astype(np.int64)
        assert library.spec.lattice == "square"
        assert len(np.unique(at, axis=0)) == len(at)
        return cls(name, sections_of.donor(asked), hidden.extra["mask"], hidden.truth[name], hidden.extra["observed"], at)

    @cached_property
    def whole(self) -> np.ndarray:
        """The truth of all spots, hidden ones first."""
        return np.concatenate([self.truth, self.observed])

    def copied(self, predicted: np.ndarray) -> np.ndarray:
        """Return a prediction of all spots: the observed ones are copied through."""
        return np.concatenate([predicted, self.observed])

    def patch(self, values: np.ndarray) -> np.ndarray:
        """Return values of all spots, or of the hidden ones alone, as pictures (G, rows, columns): the bounding box and one ring more, 0 where no spot is."""
        steps = self.at - self.at.min(axis=0) + 1
        out = np.zeros((values.shape[1], *(steps.max(axis=0) + 2)))
        rows, cols = steps[: len(values)].T
        out[:, rows, cols] = values.T
        return out

    @cached_property
    def hidden_pixels(self) -> np.ndarray:
        """Which pixels of a patch are hidden spots, bool (rows, columns)."""
        return self.patch(np.ones((len(self.truth), 1)))[0] > 0

    def smoothed(self, among: np.ndarray) -> np.ndarray:
        """Return the truth of the hidden spots, each averaged with its neighbours (3 x 3) among the spots whose values are given, hidden ones first."""
        hidden = self.at[: len(self.truth)]
        near = KDTree(self.at[: len(among)]).query_ball_point(hidden, 1.5)
        return np.stack([among[each].mean(axis=0) for each in near])

    def smoothest(self, values: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Return the 50 genes with the highest Moran's I of ``values`` (n, G) at ``at``: neighbours are the four nearest spots."""
        near = KDTree(at).query(at, k=NEIGHBOURS + 1)[1][:, 1:]
        pairs = np.unique(np.sort(np.stack([np.repeat(np.arange(len(at)), NEIGHBOURS), near.ravel()], axis=1), axis=1), axis=0)
        found = np.nan_to_num(morans_i(values, SpatialWeights.from_pairs(pairs, len(at))), nan=-1.0)
        return np.argsort(-found, kind="stable")[:CHOSEN]


# ---- scorings: each a function of a case and a prediction of its hidden spots


def honest(case: Case, predicted: np.ndarray) -> float:
    """Pearson's r of each gene over the hidden spots, mean over genes."""
    return float(per_gene_pearson(case.truth, predicted).values.mean())


def median_gene(case: Case, predicted: np.ndarray) -> float:
    """Pearson's r of each gene over the hidden spots, median over genes."""
    return float(np.median(per_gene_pearson(case.truth, predicted).values))


def relative_rmse(case: Case, predicted: np.ndarray) -> float:
    """Root of the squared error at hidden spots over that of their own true mean."""
    return float(np.sqrt(((case.truth - predicted) ** 2).sum() / ((case.truth - case.truth.mean(axis=0)) ** 2).sum()))


def tissue_ssim(case: Case, predicted: np.ndarray) -> float:
    """SSIM of the hidden pixels alone, range of the data from the observed spots."""
    ranges = np.ptp(case.observed, axis=0)
    pictures = (case.patch(values)[ranges > 0] for values in (case.truth, predicted))
    return float(np.mean(ssim(*pictures, data_range=ranges[ranges > 0], mask=case.hidden_pixels, window=WINDOW)))


def tissue_psnr(case: Case, predicted: np.ndarray) -> float:
    """PSNR of the hidden pixels alone, range of the data from the observed spots."""
    ranges = np.ptp(case.observed, axis=0)
    pictures = (case.patch(values)[ranges > 0] for values in (case.truth, predicted))
    return float(np.mean(psnr(*pictures, data_range=ranges[ranges > 0], mask=case.hidden_pixels)))


def copied_through(case: Case, predicted: np.ndarray) -> float:
    """Pearson's r of each gene over all spots, observed ones copied through (STAGE, DIST)."""
    return float(per_gene_pearson(case.whole, case.copied(predicted)).values.mean())


def with_background(case: Case, predicted: np.ndarray) -> float:
    """Pearson's r of each gene over all pixels of the patch: hidden, observed, and the zeros around the tissue (S2S-ST)."""
    pictures = (case.patch(values).reshape(case.truth.shape[1], -1).T for values in (case.whole, case.copied(predicted)))
    return float(per_gene_pearson(*pictures).values.mean())


def flattened(case: Case, predicted: np.ndarray) -> float:
    """Pearson's r over all entries of the matrix of hidden spots (SUICA)."""
    return float(flattened_pearson(case.truth, predicted))


def patch_psnr(case: Case, predicted: np.ndarray) -> float:
    """PSNR of the whole patch, range of the data from the true patch (S2S-ST)."""
    true, found = case.patch(case.whole), case.patch(case.copied(predicted))
    return float(np.mean(psnr(true, found, data_range=np.ptp(true, axis=(1, 2)))))


def patch_ssim(case: Case, predicted: np.ndarray) -> float:
    """SSIM of the whole patch, range of the data from the true patch (S2S-ST)."""
    true, found = case.patch(case.whole), case.patch(case.copied(predicted))
    return float(np.mean(ssim(true, found, data_range=np.ptp(true, axis=(1, 2)), window=WINDOW)))


def smoothed_truth(case: Case, predicted: np.ndarray) -> float:
    """Honest but for the truth, which is averaged over 3 x 3 spots of the full slide before (as TRIPLEX and M2OST do with labels)."""
    return float(per_gene_pearson(case.smoothed(case.whole), predicted).values.mean())


def smoothed_hidden(case: Case, predicted: np.ndarray) -> float:
    """Honest but for the truth, which is averaged over the hidden ones among 3 x 3 spots before."""
    return float(per_gene_pearson(case.smoothed(case.truth), predicted).values.mean())


def genes_of_observed(case: Case, predicted: np.ndarray) -> float:
    """Mean of the 50 genes with the highest Moran's I on the observed spots."""
    genes = case.smoothest(case.observed, case.at[len(case.truth) :])
    return float(per_gene_pearson(case.truth, predicted).values[genes].mean())


def genes_of_whole(case: Case, predicted: np.ndarray) -> float:
    """Mean of the 50 genes with the highest Moran's I on the full slide."""
    genes = case.smoothest(case.whole, case.at)
    return float(per_gene_pearson(case.truth, predicted).values[genes].mean())


def genes_by_score(case: Case, predicted: np.ndarray) -> float:
    """Mean of the 50 genes with the best score."""
    return float(np.sort(per_gene_pearson(case.truth, predicted).values)[-CHOSEN:].mean())


SCORINGS: dict[str, Callable[[Case, np.ndarray], float]] = {
    "r, hidden spots": honest,
    "median gene": median_gene,
    "relative RMSE": relative_rmse,
    "SSIM, hidden": tissue_ssim,
    "PSNR, hidden": tissue_psnr,
    "copied through": copied_through,
    "and background": with_background,
    "flattened": flattened,
    "PSNR, patch": patch_psnr,
    "SSIM, patch": patch_ssim,
    "smoothed truth": smoothed_truth,
    "smoothed, hidden alone": smoothed_hidden,
    "50 genes, observed": genes_of_observed,
    "50 genes, full slide": genes_of_whole,
    "50 genes, by score": genes_by_score,
}
SPLIT = 10
"""Scorings in the first of two tables: other spots or pixels are counted. In the second it is another truth, or other genes."""
LESS = ("relative RMSE",)
"""Scorings of which less is better."""


def chosen_fits(case: Case, fits: list[np.ndarray]) -> dict[str, float]:
    """Return the score of an average fit, of the best for the section, and with the best for each gene, the truth being what they are chosen on."""
    r = np.stack([per_gene_pearson(case.truth, each).values for each in fits])
    return {
        "one of ten": float(r.mean()),
        "best for the section": float(r.mean(axis=1).max()),
        "best for each gene": float(r.max(axis=0).mean()),
    }


# ---- predictions


def random_map(given: Measured, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return maps that know nothing but the mean and the spread of each gene: noise averaged with a Gaussian kernel of 2 pitches."""
    near = np.exp(-0.5 * (np.linalg.norm(wanted[:, None] - wanted[None], axis=2) / SMOOTH) ** 2)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    return given.asked.mean(axis=0) + given.asked.std(axis=0) * (near @ rng.normal(size=(len(wanted), given.asked.shape[1])))


def _named(name: str) -> Callable[[Measured, np.ndarray, np.random.Generator], np.ndarray]:
    return lambda given, wanted, rng: METHODS[name](given, wanted).values


PREDICTIONS = {
    "constant": _named("mean"),
    "random smooth map": random_map,
    "nearest": _named("nearest"),
    "linear": _named("linear"),
    "cubic": _named("cubic"),
    "k-NN 8": _named("k_nearest"),
    "PCA-20 + kriging": _named("pca_kriging"),
    "default ensemble": _named("ensemble"),
}
BEST = "default ensemble"


def scored(task: Task, hidden: Hidden, seed: int) -> list[dict]:
    """Return one row for each prediction: the section, and every scoring."""
    case = Case.of(task, hidden)
    given, wanted = measured(task, task.test[0]), places(task.asked()[case.section])
    out = []
    for number, (name, predict) in enumerate(PREDICTIONS.items()):
        rng = np.random.default_rng([seed, number])
        predicted = predict(given, wanted, rng)
        row = {"section": case.section, "donor": case.donor, "mask": case.mask, "seed": seed, "prediction": name}
        row |= {scoring: score(case, predicted) for scoring, score in SCORINGS.items()}
        parts = [np.sort(rng.permutation(len(given.places))[: int(PART * len(given.places))]) for _ in range(FITS)]
        out.append(row | chosen_fits(case, [predict(given.part(rows), wanted, rng) for rows in parts]))
    return out


# ---- tables


def by_prediction(found: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return means over sections (draws of a section first), predictions by scorings."""
    each = found.groupby(["prediction", "section"], sort=False)[columns].mean()
    return each.groupby("prediction", sort=False).mean().loc[list(PREDICTIONS)]


def ranks(means: pd.Series) -> np.ndarray:
    """Return the rank of each prediction, 1 the best."""
    return rankdata(means.round(6) if means.name in LESS else -means.round(6), method="min").astype(int)


def turned(means: pd.DataFrame, scoring: str) -> list[str]:
    """Return the pairs whose order is another under a scoring than at the hidden spots: 'worse over better'."""
    r, score = means["r, hidden spots"], means[scoring] * (-1 if scoring in LESS else 1)
    return [f"{b} over {a}" for a in means.index for b in means.index if r[a] - r[b] > 0.005 and score[b] - score[a] > 1e-6]


def less(found: pd.DataFrame, scoring: str, other: str) -> str:
    """Return the default ensemble less another prediction, with the 95 % interval over donors."""
    each = found.groupby(["prediction", "section", "donor"])[scoring].mean()
    gap = (each[BEST] - each[other]).reset_index()
    low, high = cluster_bootstrap(gap[scoring].to_numpy(), gap["donor"].to_numpy())[1:3]
    return f"{gap[scoring].mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def report(found: pd.DataFrame, mask: str) -> Mapping[str, object]:
    """Print and return the tables of one mask."""
    part = found[found["mask"] == mask]
    fits = ["one of ten", "best for the section", "best for each gene"]
    means = by_prediction(part, [*SCORINGS, *fits])
    place = {scoring: ranks(means[scoring]) for scoring in SCORINGS}
    print(f"\n{mask}: mean over sections (rank)\n")
    for columns in (list(SCORINGS)[:SPLIT], ["r, hidden spots", *list(SCORINGS)[SPLIT:]]):
        rows = [[name, *(f"{means[s][name]:.3f} ({place[s][i]})" for s in columns)] for i, name in enumerate(PREDICTIONS)]
        print(table(["prediction", *columns], rows), "\n")
    print(table(["prediction", *fits], [[name, *means.loc[name, fits].tolist()] for name in PREDICTIONS]), "\n")
    others = [name for name in PREDICTIONS if name != BEST]
    gaps = [[s, *(less(part, s, other) for other in others)] for s in SCORINGS]
    print(table([f"{BEST} less", *others], gaps), "\n")
    informed = means.drop(index=["constant", "random smooth map"])
    turns = [
        [s, float(spearmanr(informed["r, hidden spots"], informed[s] * (-1 if s in LESS else 1))[0]), "; ".join(turned(means, s)) or "none"]
        for s in SCORINGS
    ]
    print(table(["scoring", "rank correlation with r at hidden spots, six interpolations", "order turned round"], turns), flush=True)
    return {"means": means.to_dict(), "gaps": gaps, "turned": turns}


def main() -> None:
    """Predict once, score in every way, print, save."""
    data = sections_of.load_sections([stimg.datasets.her2st(name) for name in SECTIONS])
    rows = []
    for mask, seeds in MASKS.items():
        for seed in seeds:
            protocol = replace(stimg.bench.get_protocol("imputation"), masks=(mask,), mask_seed=seed)
            for fold in protocol.folds(data):
                rows += scored(*protocol.task(data, fold), seed)
    found = pd.DataFrame(rows)
    tables = {mask: report(found, mask) for mask in MASKS}
    filled = [len(data[n]) / np.prod(np.ptp(data[n].obsm["stimg_rc"], axis=0) + 3) for n in SECTIONS]
    print(f"\npart of a patch that is tissue: {np.mean(filled):.2f}")
    facts = {"sections": SECTIONS, "masks": MASKS, "fits": FITS, "part": PART, "tissue": float(np.mean(filled))}
    save("imputation_inflation", {**facts, "scorings": {s: f.__doc__ for s, f in SCORINGS.items()}}, tables)


if __name__ == "__main__":
    main()
