"""Protocols in which expression is predicted: which genes, on which scale, smoothed or not, averaged how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg._core import validate
from stimg._core.ledger import Seen
from stimg.bench import sections as _sections
from stimg.bench.gene_rules import GENE_RULES, Panel
from stimg.bench.protocol import Fold, Hidden, Metric, Protocol, Scored, Task, leave_one_out, library_of
from stimg.data.slots import raster_libraries
from stimg.image.lattice import neighbour_pairs
from stimg.image.split import square_blocks
from stimg.metrics import (
    Scores,
    block_permutation_p,
    depth_residual_pearson,
    flattened_pearson,
    noise_ceiling,
    per_gene_pearson,
    per_spot_pearson,
    relative_mse,
)

if TYPE_CHECKING:
    from anndata import AnnData

TRANSFORMS = ("log1p_cp10k", "log1p", "log2p", "scprep")
LIBRARIES = ("full", "panel", "none")
MOST_SELECTED = 50
"""Genes of the column that is selected by its own test score, as many publications do."""
FEWEST_GENES = 2
BLOCK, PERMUTATIONS = 5, 99
"""Side of the blocks of the permutation test in lattice steps, and how often they are laid elsewhere."""
METRICS = (
    Metric("mean_r", "Pearson's r of each gene over the observations of a section, mean over genes; undefined counts 0"),
    Metric("median_r", "the same, median over genes, then median over sections", aggregate="median"),
    Metric("fraction_of_ceiling", "mean_r divided by the mean noise ceiling of the genes"),
    Metric("depth_residual_r", "mean over genes of r after a line on log depth is taken out of truth and prediction"),
    Metric("relative_mse", "squared error over that of predicting the training mean, all genes together", more_is_better=False),
    Metric("relative_mse_test", "squared error over that of predicting the true mean of the test section", more_is_better=False),
    Metric(
        "p_block",
        f"p-value of mean_r when blocks of {BLOCK} x {BLOCK} observations of the prediction are laid elsewhere; models and rivals; median over sections",
        more_is_better=False,
        aggregate="median",
    ),
    Metric("selected_r", f"flatters: mean r of the {MOST_SELECTED} genes with the best r on the test section itself"),
    Metric("defined_r", "flatters: mean over those genes alone whose r is defined"),
    Metric("spot_r", "flatters: r over genes, mean over observations; gene means alone score high"),
    Metric("flat_r", "flatters: r over all entries of the matrix; gene means alone score high"),
)


@dataclass(frozen=True)
class Target:
    """The scale of the values.

    Parameters
    ----------
    transform
        ``"log1p_cp10k"``: log(1 + counts per 10,000); ``"log1p"``: log(1 + counts); ``"log2p"``: log2(1 + counts); ``"scprep"``: log10(1 + counts
        scaled to the section's median library).
    library
        What counts are divided by: ``"full"`` (all genes), ``"panel"`` (the genes of the panel alone, which ties them to each other), ``"none"``.
    smooth
        Whether values are averaged with those of the neighbours on the lattice (3 x 3), in test sections too.
    """

    transform: str = "log1p_cp10k"
    library: str = "full"
    smooth: bool = False

    def __post_init__(self) -> None:
        validate.one_of(self.transform, TRANSFORMS, "transform")
        validate.one_of(self.library, LIBRARIES, "library")
        if (self.library == "none") != (self.transform in ("log1p", "log2p")):
            raise ValueError(
                f"transform={self.transform!r} with library={self.library!r}; raw logs have no library, and the others need one."
            )

    def values(self, counts: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Return the values of ``counts`` (n, genes), divided by ``depth`` (n, 1) where the target has a library."""
        if self.transform == "log1p":
            return np.log1p(counts)
        if self.transform == "log2p":
            return np.log2(1.0 + counts)
        share = np.divide(counts, depth, out=np.zeros(np.broadcast_shapes(counts.shape, depth.shape)), where=depth > 0)
        if self.transform == "scprep":
            return np.log10(1.0 + share * np.median(depth))
        return np.log1p(1e4 * share)


def depth_of(adata: "AnnData") -> np.ndarray:
    """Return the counts of all genes of each observation, float64 (n_obs,)."""
    return np.asarray(adata.X.sum(axis=1), dtype=np.float64).ravel()


def dense_counts(adata: "AnnData", genes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of ``genes``, float64 (n_obs, genes), 0 where not measured, and which are measured, bool (genes,)."""
    at = adata.var_names.get_indexer(list(genes))
    out = np.zeros((adata.n_obs, len(at)))
    out[:, at >= 0] = adata.X[:, at[at >= 0]].toarray()
    return out, at >= 0


def lattice_mean(adata: "AnnData") -> sp.csr_matrix:
    """Return the matrix (n_obs, n_obs) that averages each observation with its neighbours on the lattice: 3 x 3, or the hexagon around it."""
    rows, columns = [np.arange(adata.n_obs)], [np.arange(adata.n_obs)]
    for library in raster_libraries(adata).values():
        pairs = library.rows[neighbour_pairs(library.spec, library.rc, diagonal=library.spec.lattice == "square")]
        rows += [pairs[:, 0], pairs[:, 1]]
        columns += [pairs[:, 1], pairs[:, 0]]
    found = (np.concatenate(rows), np.concatenate(columns))
    weights = sp.csr_matrix((np.ones(len(found[0])), found), shape=(adata.n_obs, adata.n_obs))
    return sp.csr_matrix(sp.diags_array(1.0 / np.asarray(weights.sum(axis=1)).ravel()) @ weights)


@dataclass(frozen=True)
class ExpressionProtocol(Protocol):
    """Expression of test sections is predicted from anything but their counts.

    Parameters
    ----------
    panels
        The genes, one choice or several; where there are several the target must not depend on the panel.
    target
        The scale.
    folds_by
        ``"donor"`` or ``"section"`` (each left out once), or ``"one section"`` (B1 of HER2ST, else the first in alphabetical order).
    average
        ``"section"``: r over the observations of a section, mean over genes, mean over sections; ``"fold"``: r over all test observations
        of a fold together, so that differences between sections count.
    ceiling_splits
        Random splits behind the noise ceiling.
    n_components
        Principal components between an embedding and the ridge regression; None: none.
    """

    panels: tuple[Panel, ...] = ()
    target: Target = Target()
    folds_by: str = "donor"
    average: str = "section"
    ceiling_splits: int = 10
    n_components: int | None = 256
    metrics: tuple[Metric, ...] = METRICS
    strata: tuple[str, ...] = ("panel",)

    def __post_init__(self) -> None:
        validate.one_of(self.folds_by, ("donor", "section", "one section"), "folds_by")
        validate.one_of(self.average, ("section", "fold"), "average")
        if len(self.panels) > 1 and self.target.library == "panel":
            raise ValueError("Several panels with library='panel'; wanted one panel, as its values depend on which genes it has.")

    def folds(self, sections: Mapping[str, "AnnData"]) -> list[Fold]:
        """Return one fold for each donor or section, or one in all."""
        if self.folds_by == "one section":
            held = "B1" if "B1" in sections else min(sections)
            others = tuple(name for name in sections if name != held)
            if not others:
                raise ValueError(f"There is one section ({held}); wanted at least two.")
            return [Fold(held, others, (held,))]
        return leave_one_out(_sections.groups(sections, self.folds_by), self.folds_by)

    def genes(self, sections: Mapping[str, "AnnData"], fold: Fold) -> tuple[dict[str, list[str]], list[Seen]]:
        """Return the genes of each panel, and what the choice has read."""
        chosen: dict[str, list[str]] = {}
        seen: list[Seen] = []
        records: dict[str, Seen] = {}
        for panel in self.panels:
            visible = {name: sections[name] for name in (fold.train if panel.seen == "train" else sections)}
            chosen[panel.name] = GENE_RULES[panel.rule](visible, panel)
            if len(chosen[panel.name]) < FEWEST_GENES:
                raise ValueError(
                    f"protocol {self.name!r}: panel {panel.name!r} has {len(chosen[panel.name])} genes in these sections; wanted at least {FEWEST_GENES}. "
                    "Take sections that share more genes, or another protocol."
                )
            if panel.seen not in records:
                records[panel.seen] = _sections.seen_together(visible, who=self.name, kind="gene list")
            seen.append(records[panel.seen].renamed(f"{panel.name} of protocol {self.name}", "gene list"))
        return chosen, seen

    def truth(self, adata: "AnnData", genes: Sequence[str]) -> np.ndarray:
        """Return the target of a section, float64 (n_obs, genes), NaN for genes that it does not list."""
        counts, measured = dense_counts(adata, genes)
        values = self.target.values(counts, (counts.sum(axis=1) if self.target.library == "panel" else depth_of(adata))[:, None])
        if self.target.smooth:
            values = lattice_mean(adata) @ values
        values[:, ~measured] = np.nan
        return values

    def ceiling(self, adata: "AnnData", genes: Sequence[str]) -> np.ndarray:
        """Return the noise ceiling of each gene in a section; 0 for genes that it does not list."""
        at = adata.var_names.get_indexer(list(genes))
        weights = lattice_mean(adata) if self.target.smooth else None
        shortcut = self.target.transform in ("log1p_cp10k", "log1p")
        found = noise_ceiling(
            adata.X[:, at[at >= 0]] if self.target.library == "panel" else adata.X,
            genes=None if self.target.library == "panel" else at[at >= 0],
            target=self.target.transform if shortcut else self.target.values,
            smooth=None if weights is None else lambda v: weights @ v,
            n_splits=self.ceiling_splits,
            rng=0,
        )
        out = np.zeros(len(at))
        out[at >= 0] = found.ceiling
        return out

    def task(self, sections: Mapping[str, "AnnData"], fold: Fold) -> tuple[Task, Hidden]:
        """Return the training sections whole, the test sections without any count, and apart from them the truth."""
        chosen, seen = self.genes(sections, fold)
        genes = tuple(dict.fromkeys(g for names in chosen.values() for g in names))
        train = tuple(sections[name] for name in fold.train)
        whole = tuple(sections[name] for name in fold.test)
        task = Task(
            self.name,
            self.kind,
            fold.name,
            train=train,
            test=tuple(without_counts(a) for a in whole),
            genes=genes,
            target=lambda adata: self.truth(adata, genes),
            extra={"n_components": self.n_components},
        )
        training = np.concatenate([task.target(a) for a in train])
        hidden = Hidden(
            truth={library_of(a): self.truth(a, genes) for a in whole},
            depth={library_of(a): depth_of(a) for a in whole},
            ceiling={library_of(a): self.ceiling(a, genes) for a in whole} if self.ceiling_splits else {},
            sections=whole,
            training_mean=np.nan_to_num(np.nanmean(training, axis=0)) if len(training) else np.zeros(len(genes)),
            seen=tuple(seen),
            extra={"panels": chosen},
        )
        return task, hidden

    def significance(self, task: Task, hidden: Hidden, values: Mapping[str, Any], scored: Scored) -> list[dict[str, Any]]:
        """Return ``p_block`` for the rows of single sections (see :func:`stimg.metrics.block_permutation_p`)."""
        rasters = {library_of(a): next(iter(raster_libraries(a).values())) for a in hidden.sections}
        out: list[dict[str, Any]] = [{} for _ in scored.rows]
        for row, more in zip(scored.rows, out, strict=True):
            if row["library"] not in rasters:
                continue
            name, raster = row["library"], rasters[row["library"]]
            at = [task.genes.index(g) for g in hidden.extra["panels"][row["panel"]]]
            blocks = square_blocks(raster.spec.centres_um(raster.rc), BLOCK * raster.spec.pitch_um)
            if len(np.unique(blocks)) > 1:
                truth, predicted = (np.nan_to_num(part[name][raster.rows][:, at]) for part in (hidden.truth, values))
                more["p_block"] = block_permutation_p(truth, predicted, blocks, n=PERMUTATIONS, rng=0, rc=raster.rc).p
        return out

    def score(self, task: Task, hidden: Hidden, values: Mapping[str, Any]) -> Scored:
        """Return one row for each test section (or fold) and panel, and Pearson's r of each gene."""
        rows: list[dict[str, Any]] = []
        details: list[pd.DataFrame] = []
        donors = {library_of(a): _sections.donor(a) for a in hidden.sections}
        units: list[tuple[tuple[str, ...], str, str]] = [((name,), name, donors[name]) for name in hidden.truth]
        if self.average == "fold":
            units = [(tuple(hidden.truth), "all", "+".join(sorted(set(donors.values()))))]
        for names, unit, donor in units:
            truth, predicted = (np.concatenate([part[n] for n in names]) for part in (hidden.truth, values))
            depth = np.concatenate([hidden.depth[n] for n in names])
            ceiling = np.mean([hidden.ceiling[n] for n in names], axis=0) if hidden.ceiling else None
            mean = hidden.training_mean if hidden.training_mean is not None else np.zeros(len(task.genes))
            for panel, genes in hidden.extra["panels"].items():
                at = [task.genes.index(g) for g in genes]
                row, r = expression_row(truth[:, at], predicted[:, at], depth, mean[at], None if ceiling is None else ceiling[at])
                place = {"library": unit, "donor": donor, "panel": panel}
                rows.append({**place, **row})
                table = pd.DataFrame({**place, "gene": genes, "r": r.values, "undefined": r.undefined})
                details.append(table if ceiling is None else table.assign(ceiling=ceiling[at]))
        return Scored(rows, pd.concat(details, ignore_index=True))


def without_counts(adata: "AnnData") -> "AnnData":
    """Return the section with its names, coordinates, images and features, and neither counts nor genes."""
    from anndata import AnnData

    return AnnData(None, obs=adata.obs.copy(), obsm=dict(adata.obsm.items()), uns=dict(adata.uns))


def expression_row(
    truth: np.ndarray, predicted: np.ndarray, depth: np.ndarray, training_mean: np.ndarray, ceiling: np.ndarray | None
) -> tuple[dict[str, Any], Scores]:
    """Return the metrics of one section, and Pearson's r of each gene."""
    r = per_gene_pearson(truth, predicted)
    error = relative_mse(truth, predicted, training_mean=training_mean)
    filled = np.isfinite(truth).all(axis=0) & np.isfinite(predicted).all(axis=0)
    residual = depth_residual_pearson(truth, predicted, np.maximum(depth, 1))
    best = np.sort(r.values)[::-1][: min(MOST_SELECTED, len(r.values))]
    row: dict[str, Any] = {
        "n_obs": len(truth),
        "n_genes": truth.shape[1],
        "n_undefined": r.n_undefined,
        "mean_r": r.mean(),
        "median_r": r.median(),
        **{f"q{q}_r": r.quantile(q / 100) for q in (10, 25, 75, 90)},
        "depth_residual_r": residual.mean(),
        "relative_mse": error.pooled_to_training_mean,
        "relative_mse_test": error.pooled_to_test_mean,
        "selected_r": float(best.mean()),
        "defined_r": float(r.values[~r.undefined].mean()) if r.n_undefined < len(r.values) else 0.0,
        "spot_r": per_spot_pearson(truth[:, filled], predicted[:, filled]).mean(),
        "flat_r": flattened_pearson(truth[:, filled], predicted[:, filled]),
    }
    if ceiling is not None:
        row["ceiling"] = float(ceiling.mean())
        row["fraction_of_ceiling"] = r.mean() / max(float(ceiling.mean()), 1e-9)
    return row, r
