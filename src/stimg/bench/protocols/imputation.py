"""Imputation within one section: a part of its observations is hidden, and only that part is scored."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._core.ledger import Seen
from stimg.bench import sections as _sections
from stimg.bench.expression import depth_of, expression_row, without_counts
from stimg.bench.gene_rules import GENE_RULES, Panel
from stimg.bench.masks import hidden_spots
from stimg.bench.protocol import Fold, Hidden, Metric, Protocol, Scored, Task, add
from stimg.bench.values import log_values
from stimg.data.ledger import ids
from stimg.data.slots import raster_libraries
from stimg.metrics import coverage, noise_ceiling, per_gene_pearson, ssim

if TYPE_CHECKING:
    from anndata import AnnData

HIGHEST = Panel("HEG250", "highest mean", 250)
FEWEST = 5
"""Observations that must be hidden, and that must be left."""
LEVEL, QUANTILE = 0.9, 1.6448536269514722
"""Claimed coverage of the interval, and its half width in standard deviations of a Gaussian."""
WINDOW = 7
"""Side of the window of SSIM in pixels; less on rasters that are narrower."""
GENES = 64
"""Genes whose rasters are in memory at a time."""
METRICS = (
    Metric("mean_r", "Pearson's r of each gene over the hidden observations of a section, mean over genes; undefined counts 0"),
    Metric("median_r", "the same, median over genes"),
    Metric(
        "relative_rmse",
        "root of the squared error over that of the true mean of the hidden observations, all genes together",
        more_is_better=False,
    ),
    Metric("fraction_of_ceiling", "mean_r divided by the mean noise ceiling of the genes on the hidden observations"),
    Metric("ssim", "structural similarity of the hidden pixels alone, range of the data from the observed ones, mean over genes"),
    Metric("depth_residual_r", "mean over genes of r after a line on log depth is taken out of truth and prediction"),
    Metric(
        "relative_mse", "squared error over that of predicting the mean of the observed spots, all genes together", more_is_better=False
    ),
    Metric("coverage_90", "share of hidden values inside mean ± 1.645 sd, wanted .90; where a method gives sd"),
    Metric("width_90", "mean width of these intervals: at the same coverage the narrower one knows more", more_is_better=False),
    Metric("inflated_r", "flatters: mean over genes of r over all observations, the observed ones copied through"),
)


@dataclass(frozen=True)
class ImputationProtocol(Protocol):
    """Hidden observations of a section are predicted from the others.

    A fold is a section and a mask. The section that a method gets does not contain the hidden observations; their names, coordinates and
    features are in ``task.where``. ``task.train`` has the sections of *other donors*, whole: a method that reads them answers another
    question than one that reads the section alone, and has to say so in the notes of its :class:`stimg.bench.Prediction`
    (``notes={"regime": "other donors"}``), as the rivals do that have "other donors" in their names.

    A method returns for each library an array, or a mapping with ``"mean"`` and ``"sd"``, both (hidden observations, genes): the interval
    mean ± 1.645 sd is then scored by its coverage. A finished prediction may be a table that has the observed observations too.

    Observations that are on no lattice point of the raster are neither given nor scored.

    Parameters
    ----------
    masks
        Names of ``stimg.bench.masks.MASKS``.
    panel
        The genes; the rule reads the observed observations of the section alone.
    mask_seed
        For masks that are drawn.
    ceiling_splits
        Random splits behind the noise ceiling.
    """

    masks: tuple[str, ...] = ("random 50 %", "checkerboard", "quarter grid", "hole", "right half")
    panel: Panel = HIGHEST
    mask_seed: int = 0
    ceiling_splits: int = 10
    level: str = "observation"
    kind: str = "imputation"
    metrics: tuple[Metric, ...] = METRICS
    strata: tuple[str, ...] = ("mask",)

    def divided(self, adata: "AnnData", mask: str) -> tuple["AnnData", "AnnData"]:
        """Return the observed and the hidden observations of a section as two objects, neither of which refers to the other."""
        (library,) = raster_libraries(adata).values()
        hidden = hidden_spots(mask, library.spec, library.rc, seed=self.mask_seed)
        if min(hidden.sum(), (~hidden).sum()) < FEWEST:
            raise ValueError(
                f"mask {mask!r} hides {int(hidden.sum())} of {len(hidden)} observations of library {library.name!r}; wanted at least {FEWEST} hidden and "
                f"{FEWEST} left. Leave the section out, or take a protocol with other masks (`dataclasses.replace(protocol, masks=...)`)."
            )
        return adata[library.rows[~hidden]].copy(), adata[library.rows[hidden]].copy()

    def folds(self, sections: Mapping[str, "AnnData"]) -> list[Fold]:
        """Return one fold for each section and mask; sections of other donors may train."""
        out = []
        for name, adata in sections.items():
            others = tuple(n for n, other in sections.items() if _sections.donor(other) != _sections.donor(adata))
            out += [Fold(f"{name} {mask}", others, (name,)) for mask in self.masks]
        return out

    def task(self, sections: Mapping[str, "AnnData"], fold: Fold) -> tuple[Task, Hidden]:
        """Return the section with its observed observations alone, and apart from it the hidden ones."""
        (name,) = fold.test
        mask = fold.name.removeprefix(f"{name} ")
        observed, held = self.divided(sections[name], mask)
        genes = tuple(GENE_RULES[self.panel.rule]({name: observed}, self.panel))
        target = partial(log_values, genes=genes)
        task = Task(
            self.name,
            self.kind,
            fold.name,
            train=tuple(sections[n] for n in fold.train),
            test=(observed,),
            genes=genes,
            target=target,
            where={name: without_counts(held)},
            extra={"mask": mask},
        )
        ceiling = noise_ceiling(held.X, genes=held.var_names.get_indexer(list(genes)), n_splits=self.ceiling_splits, rng=0).ceiling
        values = target(observed)
        hidden = Hidden(
            truth={name: target(held)},
            depth={name: depth_of(held)},
            ceiling={name: ceiling},
            sections=(held,),  # what no method may have seen: the observed part of the section is there to be fitted on
            training_mean=values.mean(axis=0),
            # by name alone: observations of few counts are equal by chance
            seen=(Seen(f"{self.panel.name} of protocol {self.name}", "gene list", ids=ids(observed)),),
            extra={"mask": mask, "observed": values},
        )
        return task, hidden

    def check(self, task: Task, values: Mapping[str, Any], who: str) -> dict[str, Any]:
        """Return the values as arrays in the order of the task, standard deviations under :func:`sd_key`."""
        means, deviations = dict(values), {}
        for name, adata in task.asked().items():
            found = means.get(name)
            if isinstance(found, Mapping):
                if set(found) != {"mean", "sd"}:
                    raise ValueError(f"{who} gave a mapping with {sorted(found)} for {name}; wanted 'mean' and 'sd', or an array.")
                means[name], deviations[name] = found["mean"], found["sd"]
            elif isinstance(found, pd.DataFrame) and adata.obs_names.isin(found.index).all():
                means[name] = found.loc[adata.obs_names]
        out = super().check(task, means, who)
        if deviations:
            spread = super().check(task, {**out, **deviations}, f"{who} (sd)")
            negative = {name: int((spread[name] < 0).sum()) for name in deviations if (spread[name] < 0).any()}
            if negative:
                raise ValueError(
                    f"{who} gave negative sd, by library {negative}; wanted standard deviations. Did you pass their logarithm?"
                )
            out |= {sd_key(name): spread[name] for name in deviations}
        return out

    def score(self, task: Task, hidden: Hidden, values: Mapping[str, Any]) -> Scored:
        """Return one row for the section under its mask, and Pearson's r of each gene."""
        ((name, adata),) = task.asked().items()
        truth, predicted, observed = hidden.truth[name], values[name], hidden.extra["observed"]
        mean = hidden.training_mean if hidden.training_mean is not None else observed.mean(axis=0)
        row, r = expression_row(truth, predicted, hidden.depth[name], mean, hidden.ceiling[name])
        row["relative_rmse"] = float(np.sqrt(row["relative_mse_test"]))
        row["ssim"] = float(_ssim(adata, truth, predicted, np.ptp(observed, axis=0)).mean())
        row["inflated_r"] = per_gene_pearson(np.concatenate([observed, truth]), np.concatenate([observed, predicted])).mean()
        if sd_key(name) in values:
            reach = QUANTILE * values[sd_key(name)]
            found = coverage(truth, predicted - reach, predicted + reach, level=LEVEL)
            row["coverage_90"], row["width_90"] = found.coverage, found.mean_width
        place = {"library": name, "donor": _sections.donor(adata), "mask": hidden.extra["mask"]}
        table = pd.DataFrame({**place, "gene": task.genes, "r": r.values, "undefined": r.undefined, "ceiling": hidden.ceiling[name]})
        return Scored([{**place, **row}], table)

    def maps(self, task: Task, hidden: Hidden, values: Mapping[str, Any], scored: Scored) -> list[dict[str, Any]]:
        """Return the maps of the first mask; those of the others would show the same genes again."""
        return super().maps(task, hidden, values, scored) if hidden.extra["mask"] == self.masks[0] else []


def sd_key(library: str) -> str:
    """Return the name under which the standard deviations of a library stand beside its values."""
    return f"sd of {library}"


def _ssim(adata: "AnnData", truth: np.ndarray, predicted: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """Return the SSIM of each gene over the hidden pixels, 0 where it is not defined (no range, values that are not finite).

    Observations on one lattice point are averaged; a hexagonal lattice is taken as the raster of its offset rows.
    """
    (library,) = raster_libraries(adata).values()
    rows, cols = library.spec.shape
    code = library.rc[:, 0].astype(np.int64) * cols + library.rc[:, 1]
    on, place, count = np.unique(code, return_inverse=True, return_counts=True)
    mask = np.zeros(rows * cols, dtype=bool)
    mask[on] = True
    side = min(WINDOW, rows, cols)
    out = np.zeros(truth.shape[1])
    usable = np.flatnonzero(np.isfinite(truth).all(axis=0) & np.isfinite(predicted).all(axis=0) & (ranges > 0))
    for start in range(0, len(usable), GENES):
        at = usable[start : start + GENES]
        stacks = []
        for values in (truth, predicted):
            pixels = np.zeros((len(on), len(at)))
            np.add.at(pixels, place, values[:, at])
            stack = np.zeros((len(at), rows * cols))
            stack[:, on] = (pixels / count[:, None]).T
            stacks.append(stack.reshape(-1, rows, cols))
        out[at] = ssim(*stacks, data_range=ranges[at], mask=mask.reshape(rows, cols), window=side - (side % 2 == 0))
    return out


PROTOCOL = add(
    ImputationProtocol(
        name="imputation",
        version="1.0",
        title="a part of each section is hidden under five masks, genes chosen on the observed rest, scored on hidden observations alone",
        source="stimg; the masks are those of STAGE, DIST, stEnTrans and S2S-ST, with a hole and a half section",
        remarks=(
            "Only hidden observations are scored; published figures of this task often copy the observed ones through (`inflated_r`), with which a constant scores high.",
            "Sections of other donors are in the task; methods that read them belong to another regime, say so in their notes, and are left out where there is one donor.",
            "Each mask is a stratum of its own and is never averaged with another.",
            "`ssim` favours predictions as rough as a measurement, so that it does not order methods as r and the squared error do.",
        ),
        nulls=(
            "section mean",
            "nearest",
            "linear",
            "cubic",
            "k-NN 8",
            "inverse distance 8",
            "Gaussian",
            "graph Laplacian",
            "kriging",
            "kriging per gene",
            "kriging averaged",
            "kriging by depth",
            "PCA-20 + kriging",
            "PCA-20 + kriging by depth",
            "factors + kriging by depth",
            "kriging ensemble",
            "kriging ensemble, colours",
            "other donors' axes + kriging",
            "krigings by depth, other donors",
            "kriging ensemble, other donors",
            "true neighbours",
            "hidden values permuted",
        ),
    )
)
