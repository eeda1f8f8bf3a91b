"""Panel completion: a fifth of a panel's genes is taken out of the sections of a donor that nothing was fitted on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._core import validate
from stimg._core.ledger import Seen
from stimg.bench import sections as _sections
from stimg.bench.expression import depth_of, expression_row
from stimg.bench.gene_rules import GENE_RULES, Panel
from stimg.bench.protocol import Fold, Hidden, Metric, Protocol, Scored, Task, add, leave_one_out, library_of
from stimg.bench.values import log_values
from stimg.data.ledger import ids
from stimg.metrics import noise_ceiling

if TYPE_CHECKING:
    from anndata import AnnData

VARIABLE = Panel("HVG785", "residual variance", 785)
FEWEST_GENES = 10
"""Genes that a panel must have, so that some are hidden and more are left."""
METRICS = (
    Metric("mean_r", "Pearson's r of each hidden gene over the observations of a section, mean over genes; undefined counts 0"),
    Metric("median_r", "the same, median over genes"),
    Metric("fraction_of_ceiling", "mean_r divided by the mean noise ceiling of the hidden genes"),
    Metric("depth_residual_r", "mean over genes of r after a line on log depth is taken out of truth and prediction"),
    Metric("relative_mse", "squared error over that of predicting the training mean, all hidden genes together", more_is_better=False),
    Metric("relative_mse_test", "squared error over that of predicting the true mean of the test section", more_is_better=False),
    Metric("ceiling", "mean noise ceiling of the hidden genes: what no method can exceed"),
    Metric("selected_r", "flatters: mean r of the 50 genes with the best r on the test section itself"),
    Metric("defined_r", "flatters: mean over those genes alone whose r is defined"),
)


@dataclass(frozen=True)
class PanelCompletionProtocol(Protocol):
    """Hidden genes of test donors are predicted from the other genes of a panel.

    The test sections are those of a platform that measures the panel without the hidden genes: nothing else is in the object, so that the
    depth that a method can see is that of these genes. Training sections are whole. ``task.extra["panel"]`` names the whole panel in order.

    Parameters
    ----------
    panel
        How the genes are chosen; fewer where the sections have fewer that the rule admits. Each fold chooses its own.
    hidden_share
        Share of the panel that is hidden, drawn at random.
    draw
        Seed of that draw.
    ceiling_splits
        Random splits behind the noise ceiling.
    """

    panel: Panel = VARIABLE
    hidden_share: float = 0.2
    draw: int = 0
    ceiling_splits: int = 10
    kind: str = "completion"
    metrics: tuple[Metric, ...] = METRICS

    def __post_init__(self) -> None:
        if not 0 < validate.number(self.hidden_share, "hidden_share") < 1:
            raise ValueError(f"hidden_share={self.hidden_share} is not between 0 and 1, both excluded; wanted the share of genes to hide.")

    def folds(self, sections: Mapping[str, "AnnData"]) -> list[Fold]:
        """Return one fold for each donor."""
        return leave_one_out(_sections.groups(sections, "donor"), "donor")

    def genes(self, sections: Mapping[str, "AnnData"], fold: Fold) -> tuple[list[str], list[str], Seen]:
        """Return the panel, its hidden genes, and what the choice of the panel has read."""
        visible = {name: sections[name] for name in (fold.train if self.panel.seen == "train" else sections)}
        panel = GENE_RULES[self.panel.rule](visible, self.panel)
        if len(panel) < FEWEST_GENES:
            raise ValueError(
                f"protocol {self.name!r}: the panel {self.panel.name!r} has {len(panel)} genes in these sections; wanted at least {FEWEST_GENES}. Take sections "
                "that share more genes, or a protocol with another panel (`dataclasses.replace(protocol, panel=...)`)."
            )
        n = min(max(round(self.hidden_share * len(panel)), 1), len(panel) - 1)
        drawn = np.sort(np.random.default_rng(self.draw).choice(len(panel), n, replace=False))
        seen = Seen(
            f"{self.panel.name} of protocol {self.name}",
            "gene list",
            ids=np.concatenate([ids(a) for a in visible.values()]),
            libraries=tuple(visible),
            donors=tuple(_sections.donor(a) for a in visible.values()),
        )
        return panel, [panel[i] for i in drawn], seen

    def task(self, sections: Mapping[str, "AnnData"], fold: Fold) -> tuple[Task, Hidden]:
        """Return the training sections whole, the test sections with the genes that are left of the panel, and apart from them the truth."""
        panel, genes, seen = self.genes(sections, fold)
        left = [g for g in panel if g not in set(genes)]
        target = partial(log_values, genes=genes)
        train = tuple(sections[name] for name in fold.train)
        whole = tuple(sections[name] for name in fold.test)
        task = Task(
            self.name,
            self.kind,
            fold.name,
            train=train,
            test=tuple(a[:, [g for g in left if g in a.var_names]].copy() for a in whole),
            genes=tuple(genes),
            target=target,
            extra={"panel": tuple(panel)},
        )
        hidden = Hidden(
            truth={library_of(a): target(a) for a in whole},
            depth={library_of(a): depth_of(a) for a in whole},
            ceiling={library_of(a): self._ceiling(a, genes) for a in whole},
            sections=whole,
            training_mean=np.nan_to_num(np.concatenate([target(a) for a in train])).mean(axis=0),
            seen=(seen,),
        )
        return task, hidden

    def _ceiling(self, adata: "AnnData", genes: list[str]) -> np.ndarray:
        """Return the noise ceiling of each gene in a section, 0 for genes that it does not list."""
        at = adata.var_names.get_indexer(genes)
        out = np.zeros(len(at))
        out[at >= 0] = noise_ceiling(adata.X, genes=at[at >= 0], n_splits=self.ceiling_splits, rng=0).ceiling
        return out

    def score(self, task: Task, hidden: Hidden, values: Mapping[str, Any]) -> Scored:
        """Return one row for each test section, and Pearson's r of each hidden gene."""
        rows, details = [], []
        mean = hidden.training_mean if hidden.training_mean is not None else np.zeros(len(task.genes))
        for whole in hidden.sections:
            name = library_of(whole)
            row, r = expression_row(hidden.truth[name], values[name], hidden.depth[name], mean, hidden.ceiling[name])
            place = {"library": name, "donor": _sections.donor(whole)}
            rows.append({**place, **row})
            table = {**place, "gene": task.genes, "r": r.values, "undefined": r.undefined, "ceiling": hidden.ceiling[name]}
            details.append(pd.DataFrame(table))
        return Scored(rows, pd.concat(details, ignore_index=True))


PROTOCOL = PanelCompletionProtocol(
    name="panel-completion",
    version="1.0",
    title="a fifth of a panel is hidden in each donor in turn; panel of 785 variable genes chosen on the other donors, full library, no smoothing",
    source="stimg; the task of STMAE and of gene imputation without a reference",
    remarks=(
        "The panel: genes detected in over 10 % of the training observations whose log variance lies most above the trend; all of them where there are fewer than 785.",
        "Which genes are hidden is drawn once, with the seed that the protocol fixes.",
        "The test object holds the rest of the panel alone: the depth that a method sees is that of these genes, the target that of all.",
    ),
    nulls=(
        "observed depth line",
        "best co-expressed gene",
        "mean of 20 co-expressed genes",
        "PCA-50 + ridge",
        "PCA + ridge, tuned",
        "PCA + neighbours + ridge, tuned",
        "hidden values permuted",
    ),
)
PUBLISHED = replace(
    PROTOCOL,
    name="panel-completion-785",
    title="a fifth of a published list of 785 genes is hidden in each donor in turn, full library, no smoothing",
    remarks=(
        "The list of genes was chosen by its authors with all sections, test sections included; a run has to allow that leak.",
        *PROTOCOL.remarks[1:],
    ),
    panel=Panel("785", "published list", 785, seen="all", argument="her_hvg_cut_1000"),
)
for each in (PROTOCOL, PUBLISHED):
    add(each)
