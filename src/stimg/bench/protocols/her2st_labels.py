"""Known regions from frozen embeddings by a linear probe, donors (or sections of a donor) held out, region by region."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._core import validate
from stimg.bench import sections as _sections
from stimg.bench.protocol import Fold, Hidden, Metric, Scored, Task, add, library_of
from stimg.bench.protocols.domains import FAR, FEWEST, NEAR, LabelProtocol
from stimg.metrics import classification
from stimg.metrics.clusters import missing, row_keys

if TYPE_CHECKING:
    from anndata import AnnData

APART = ("donor", "section")
METRICS = (
    Metric("balanced_accuracy", "recall of each region in the test, mean over regions; 1 / regions for one answer throughout"),
    Metric("macro_f1", "F1 of each region in the test, mean over regions; one that is never found counts 0"),
    Metric("auroc", "area under the ROC curve of each region against the others, mean over regions"),
    Metric("accuracy", "share of right answers"),
    Metric("chance_accuracy", "accuracy of always answering with the commonest training region"),
)


@dataclass(frozen=True)
class LabelProbeProtocol(LabelProtocol):
    """A linear probe is trained on embeddings and regions of other donors, and read out on the sections of a donor that nothing has seen.

    A method returns an embedding of every section, made without regions, as for :class:`stimg.bench.protocols.domains.LabelProtocol`; finished
    embeddings go in as ``predictions={"name": {library: array}}``. Observations of regions that the training sections lack are not scored, and are
    counted (``n_unseen``); a region that the test lacks stays a possible, wrong answer.

    Parameters
    ----------
    apart
        ``"donor"``: training sections are those of other donors; ``"section"``: other sections of the same donor.
    """

    apart: str = "donor"
    divided: str = "blocks"
    probes: tuple[str, ...] = ("linear",)
    clusterings: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = METRICS
    strata: tuple[str, ...] = ("split",)

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.one_of(self.apart, APART, "apart")

    def folds(self, sections: Mapping[str, "AnnData"]) -> list[Fold]:
        """Return one fold for each donor (or section) that shares at least two regions with the sections to train on."""
        known = {name: {v for v in self.regions(a) if v is not None} for name, a in sections.items()}
        known = {name: regions for name, regions in known.items() if regions}
        donors = {name: _sections.donor(sections[name]) for name in known}
        folds = []
        for group in sorted(set(donors.values())) if self.apart == "donor" else list(known):
            held = [n for n in known if (donors[n] if self.apart == "donor" else n) == group]
            others = [n for n in known if n not in held and (self.apart == "donor" or donors[n] == donors[group])]
            pool = {region for n in others for region in known[n]}
            test = tuple(n for n in held if len(known[n] & pool) >= FEWEST)
            if test:
                folds.append(Fold(f"{group} from {'other donors' if self.apart == 'donor' else 'its donor'}", tuple(others), test))
        if not folds:
            raise ValueError(
                f"no section shares {FEWEST} regions with sections of {'other donors' if self.apart == 'donor' else 'its donor'} "
                f"(sections with regions: { {n: donors[n] for n in known} }). Add such sections, or pass another column as `labels`."
            )
        return folds

    def score(self, task: Task, hidden: Hidden, values: Mapping[str, Any]) -> Scored:
        """Return one row a test section, and details for each of its regions."""
        train = [library_of(a) for a in task.train]
        x = np.concatenate([values[n] for n in train])
        y = np.concatenate([hidden.truth[n] for n in train])
        inside = ~missing(y)
        tests = [library_of(a) for a in task.test]
        answers = _answers(x[inside], y[inside].astype(str), [values[n] for n in tests])
        rows, details = [], []
        for name, (classes, chances) in zip(tests, answers, strict=True):
            truth = hidden.truth[name]
            scored = np.isin(truth, classes)
            first = (chances >= chances.max(axis=1, keepdims=True) - EQUAL).argmax(axis=1)
            said, place = classes[first], {"library": name, "donor": hidden.extra["donors"][name]}
            common = pd.Series(y[inside]).value_counts(sort=False).sort_index().idxmax()
            found = classification(
                truth[scored], said[scored].astype(object), probabilities=chances[scored], classes=classes.astype(object), commonest=common
            )
            counted = {
                "n_obs": found.n_test,
                "n_undefined": found.n_undefined,
                "n_unseen": int((~missing(truth) & ~scored).sum()),
                "n_train": int(inside.sum()),
                "n_regions": len(set(truth[scored])),
            }
            split = FAR if self.apart == "donor" else NEAR
            rows.append({**place, "split": split, **counted, **{m.name: getattr(found, m.name) for m in self.metrics}})
            details.append(_by_region(truth[scored].astype(str), said[scored], chances[scored], classes).assign(**place))
        return Scored(rows, pd.concat(details, ignore_index=True))


def _answers(x: np.ndarray, y: np.ndarray, tests: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the classes of a linear probe, sorted, and their probabilities (n, classes) in each test; its settings are those of :func:`stimg.metrics.probes.probe`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    codes = np.unique(y, return_inverse=True)[1]
    order = np.argsort(row_keys(np.column_stack([x, codes])))  # sums round by position
    scaler = StandardScaler().fit(x[order])
    model = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(x[order]), y[order])
    return [(model.classes_, model.predict_proba(scaler.transform(test))) for test in tests]


def _by_region(truth: np.ndarray, said: np.ndarray, chances: np.ndarray, classes: np.ndarray) -> pd.DataFrame:
    """Return number, AUROC, recall, precision and F1 of each region that the test holds."""
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    here = np.unique(truth)
    precision, recall, f1, _ = precision_recall_fscore_support(truth, said, labels=here, zero_division=0.0)
    auroc = [
        float(roc_auc_score(truth == name, chances[:, int(np.flatnonzero(classes == name)[0])])) if len(here) > 1 else 0.0 for name in here
    ]
    number = [int((truth == name).sum()) for name in here]
    return pd.DataFrame({"region": here, "n": number, "auroc": auroc, "recall": recall, "precision": precision, "f1": f1})


EQUAL = 1e-9
"""Probabilities this near are equal, and the first of them in the order of the names is answered: the same as for the commonest training region."""
NULLS = (
    "commonest region",
    "row and column",
    "library depth",
    "colour of the spot",
    "regions permuted",
    "PCA-50",
    "PCA-50, neighbours averaged",
)
LABELS = LabelProbeProtocol(
    name="her2st-labels",
    version="1.0",
    title="regions drawn by a pathologist from frozen embeddings by a linear probe, donors held out",
    source="stimg, on the annotations of Andersson et al. 2021 (one section of each of four donors at hand)",
    remarks=(
        "Each donor's section has a set of regions of its own; observations of regions that no training section has are not scored and are counted (`n_unseen`). "
        "The protocol `domains` counts them as wrong.",
        "With four donors there are four test sections: the interval is that of four numbers, and too narrow.",
        "The drawing is coarse: a spot takes the region of the outline in which it lies, and the pathologist saw the image and not the counts.",
        "The probe is not told how frequent regions are in the test; accuracy suffers from that more than balanced accuracy and AUROC.",
    ),
    level="donor",
    nulls=NULLS,
    apart="donor",
)
CLUSTERS = replace(
    LABELS,
    name="her2st-clusters",
    title="weak surrogate of regions: authors' expression clusters from frozen embeddings by a linear probe, sections of a donor held out",
    source='stimg, on the clusters of Andersson et al. 2021 (pass labels="cluster")',
    remarks=(
        "The labels are clusters of expression, made by the authors with all sections of the donor together: they are no judgement of a pathologist, and an "
        "embedding of expression has an advantage by construction. Use them to compare embeddings of images with each other.",
        "Clusters are numbered for each donor: only sections of one donor can be compared, and these are serial. Coordinates alone score high.",
    ),
    level="section",
    apart="section",
)
for each in (LABELS, CLUSTERS):
    add(each)
