"""Known regions read from embeddings made without them: clusters, and probes between blocks, sections and donors; and between random neighbours."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._core import validate
from stimg._core.ledger import Leak, Seen
from stimg._core.rng import as_generator
from stimg.bench import sections as _sections
from stimg.bench.protocol import Fold, Hidden, Metric, Protocol, Scored, Task, add, library_of
from stimg.data.ledger import find_leaks, ids
from stimg.data.slots import raster_libraries
from stimg.image.split import TOUCH, balanced_blocks, distance_to
from stimg.metrics import Classification, classification, cluster, cluster_agreement
from stimg.metrics.clusters import missing, row_keys
from stimg.metrics.probes import probe

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)
SPLITS = {"blocks": "blocks", "random": "random 20 %"}
"""How a section is divided for its probe, and what the rows of that division are called."""
WHOLE, NEAR, FAR = "whole section", "section to section", "donor to donor"
CLUSTERINGS = {"kmeans": "k-means", "gmm": "Gaussian mixture"}
FEWEST = 2
"""Regions of a section, and regions that two sections share, below which there is nothing to tell apart."""
PROBED = (
    Metric("accuracy", "share of right answers of the probe"),
    Metric("macro_f1", "F1 of each region in the test, mean over regions; one that is never found counts 0"),
    Metric("balanced_accuracy", "recall of each region in the test, mean over regions"),
    Metric("auroc", "area under the ROC curve of each region against the others, mean over regions"),
    Metric("chance_accuracy", "accuracy of always answering with the commonest training region"),
)
AGREEMENT = (
    Metric("ari", "adjusted Rand index between regions and clusters (median over starts) or answers of the probe"),
    Metric("nmi", "normalised mutual information of the same two; not adjusted for chance"),
)


@dataclass(frozen=True)
class EmbeddingTask(Task):
    """A task whose answer is an embedding of every section, training sections included.

    Labels are nowhere in it. Without training sections an embedding is fitted on the counts of the sections that it embeds.
    """

    def asked(self) -> dict[str, "AnnData"]:
        """Return all sections by library."""
        return {library_of(a): a for a in (*self.train, *self.test)}

    @property
    def fitted_on(self) -> tuple["AnnData", ...]:
        """The sections that a method may fit on: the training sections, or where there are none those of the test."""
        return self.train or self.test


@dataclass(frozen=True)
class LabelProtocol(Protocol):
    """Regions of tissue that experts have drawn are read from embeddings that were made without them.

    A method returns an embedding, float (n_obs, dim), for each section of :meth:`EmbeddingTask.asked`. Observations without a region stay in
    the sections, as neighbours and in the clustering, and are not scored.

    Parameters
    ----------
    divided
        How the observations of a section are divided for its probe: ``"blocks"`` or ``"random"``.
    n_blocks, n_training_blocks, margin
        Rectangles with nearly equal numbers of observations into which a section is cut, how many of them train the probe, and the width in
        pitches of the strip around those that is left out.
    share
        Share of each region that trains the probe, where the division is random.
    n_draws
        Divisions of a section; also starts of clusterings and of the MLP.
    transfer
        Whether a probe is also trained on other sections of the donor, and on those of other donors, where they share regions.
    clusterings, probes
        What reads the embedding.
    n_components
        Embeddings with more dimensions are reduced to this number of principal components before they are clustered.
    no_region
        Labels that say that there is none.
    """

    divided: str = "blocks"
    n_blocks: int = 10
    n_training_blocks: int = 2
    margin: float = 1.5
    share: float = 0.2
    n_draws: int = 5
    transfer: bool = True
    clusterings: tuple[str, ...] = ("kmeans", "gmm")
    probes: tuple[str, ...] = ("linear", "knn", "mlp")
    n_components: int = 50
    no_region: tuple[str, ...] = ("undetermined",)
    level: str = "observation"
    kind: str = "labels"
    metrics: tuple[Metric, ...] = (*AGREEMENT, *PROBED)
    strata: tuple[str, ...] = ("split", "reader")

    def __post_init__(self) -> None:
        validate.one_of(self.divided, SPLITS, "divided")

    def regions(self, adata: "AnnData") -> np.ndarray:
        """Return the region of each observation, object (n_obs,), None where there is none."""
        if "label" not in adata.obs:
            raise ValueError(
                f"section {library_of(adata)!r} comes without known regions; protocol {self.name!r} scores against them. "
                'Pass the column of obs that holds them: labels="label".'
            )
        values = adata.obs["label"].to_numpy(dtype=object)
        without = missing(values)
        out = np.array([None if no else str(v) for v, no in zip(values, without, strict=True)], dtype=object)
        out[np.isin(out.astype(str), self.no_region)] = None
        return out

    def folds(self, sections: Mapping[str, "AnnData"]) -> list[Fold]:
        """Return one fold for each section with regions; one more for each that shares some with others of its donor; and one for each such donor."""
        found = {name: self.regions(a) for name, a in sections.items()}
        known = {name: set(y[~missing(y)]) for name, y in found.items() if not missing(y).all()}
        if not known:
            raise ValueError(
                f"None of {len(sections)} sections has a known region (labels that count as none: {list(self.no_region)}). Pass another column as `labels`."
            )
        logger.info("%s: %d of %d sections have regions", self.name, len(known), len(sections))
        for name, regions in known.items():
            n = int((~missing(found[name])).sum())
            if len(regions) < FEWEST:
                raise ValueError(f"section {name!r} has one region, {min(regions)!r}; wanted at least two. Leave the section out.")
            if n < self.n_blocks:
                raise ValueError(f"section {name!r} has {n} observations with a region; wanted at least {self.n_blocks}. Leave it out.")
        folds = [Fold(name, (), (name,)) for name in known]
        if not self.transfer:
            return folds
        donors = {name: _sections.donor(sections[name]) for name in known}

        def related(one: str, *, same: bool) -> tuple[str, ...]:
            return tuple(o for o in known if o != one and (donors[o] == donors[one]) == same and len(known[o] & known[one]) >= FEWEST)

        folds += [Fold(f"{name} from its donor", near, (name,)) for name in known if (near := related(name, same=True))]
        for donor in sorted(set(donors.values())):
            held = tuple(name for name in known if donors[name] == donor and related(name, same=False))
            far = tuple(dict.fromkeys(other for name in held for other in related(name, same=False)))
            folds += [Fold(f"{donor} from other donors", far, held)] if held else []
        return folds

    def task(self, sections: Mapping[str, "AnnData"], fold: Fold) -> tuple[EmbeddingTask, Hidden]:
        """Return the sections without their regions, and the regions.

        Within a section only regions are hidden: counts may be read, and only what trains the probe is compared with what tests it.
        Between sections and donors nothing may have read the counts of the test.
        """
        train, test = (tuple(sections[name] for name in names) for names in (fold.train, fold.test))
        task = EmbeddingTask(
            self.name,
            self.kind,
            fold.name,
            train=tuple(without_regions(a) for a in train),
            test=tuple(without_regions(a) for a in test),
            genes=(),
            target=no_target,
        )
        truth = {library_of(a): self.regions(a) for a in (*train, *test)}
        donors = {library_of(a): _sections.donor(a) for a in (*train, *test)}
        if not train:
            draws = {library_of(a): list(self.draws(a)) for a in test}
            found = tuple(leak for a in test for leak in _leaks(a, draws[library_of(a)]))
            return task, Hidden(truth=truth, leaks=found, extra={"donors": donors, "draws": draws})
        near = {donors[n] for n in fold.train} == {donors[n] for n in fold.test}
        return task, Hidden(
            truth=truth, sections=test, level="section" if near else "donor", extra={"donors": donors, "split": NEAR if near else FAR}
        )

    def draws(self, adata: "AnnData") -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield masks (n_obs,) of the observations that train and that test the probe, whatever the order of the observations."""
        y = self.regions(adata)
        (library,) = raster_libraries(adata).values()
        inside = ~missing(y[library.rows])
        order = np.lexsort(library.rc[inside].T[::-1])
        rows, rc = library.rows[inside][order], library.rc[inside][order]
        centres = library.spec.centres_um(rc)
        blocks = balanced_blocks(centres, self.n_blocks) if self.divided == "blocks" else np.zeros(0)
        for draw in range(self.n_draws):
            rng, train, test = as_generator(draw), np.zeros(adata.n_obs, dtype=bool), np.zeros(adata.n_obs, dtype=bool)
            if self.divided == "blocks":
                here = np.isin(blocks, rng.choice(self.n_blocks, self.n_training_blocks, replace=False))
                away = distance_to(centres, here) > self.margin * library.spec.pitch_um * (1 + TOUCH)
                train[rows[here]], test[rows[away]] = True, True
            else:
                for region in sorted(set(y[rows])):
                    own = rows[y[rows] == region]
                    train[rng.permutation(own)[: max(1, round(self.share * len(own)))]] = True
                test[rows] = ~train[rows]
            if not test.any():
                raise ValueError(
                    f"section {library_of(adata)!r} is too small: of {len(rows)} observations with a region none is left to test the probe on "
                    f"({SPLITS[self.divided]}, margin {self.margin} pitches). Leave it out."
                )
            yield train, test

    def check(self, task: Task, values: Mapping[str, Any], who: str) -> dict[str, Any]:
        """Return the embeddings as float64 arrays in the order of the task; raise where they are not what was asked for."""
        asked, out = task.asked(), {}
        lacking = [name for name in asked if name not in values]
        if lacking:
            raise ValueError(f"{who} gave no embedding of {lacking} (found {sorted(values)[:8]}); wanted one of each of {list(asked)}.")
        for name, adata in asked.items():
            found = values[name]
            if isinstance(found, pd.DataFrame) and set(found.index) == set(adata.obs_names):
                found = found.loc[adata.obs_names]
            array = np.asarray(found, dtype=np.float64)
            if array.ndim != 2 or len(array) != adata.n_obs or array.shape[1] == 0:
                raise ValueError(f"{who} gave an embedding of shape {array.shape} for {name}; wanted ({adata.n_obs}, dimensions).")
            bad = int((~np.isfinite(array).all(axis=1)).sum())
            if bad:
                raise ValueError(
                    f"{who} gave values that are not finite for {bad} of {adata.n_obs} observations of {name}; wanted an embedding of every one."
                )
            out[name] = array
        widths = {name: array.shape[1] for name, array in out.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"{who} gave embeddings of different numbers of dimensions: {widths}; wanted one space for all sections.")
        return out

    def score(self, task: Task, hidden: Hidden, values: Mapping[str, Any]) -> Scored:
        """Return rows by section, division of the observations, and reader (a clustering or a probe); details hold each start of a clustering."""
        rows: list[dict[str, Any]] = []
        starts: list[pd.DataFrame] = []
        for name in (library_of(a) for a in task.test):
            place = {"library": name, "donor": hidden.extra["donors"][name]}
            x, y = values[name], hidden.truth[name]
            if task.train:
                others = [library_of(a) for a in task.train]
                both = np.concatenate([*(values[o] for o in others), x])
                labels = np.concatenate([*(hidden.truth[o] for o in others), y])
                inside, first = ~missing(labels), np.arange(len(labels)) < len(labels) - len(y)
                draws = [(inside & first, inside & ~first)] * self.n_draws
                rows += self._probe(both, labels, draws, {**place, "split": hidden.extra["split"]}, fixed=True)
                continue
            for method in self.clusterings:
                row, table = self._cluster(x, y, method)
                rows.append({**place, "split": WHOLE, "reader": CLUSTERINGS[method], **row})
                starts.append(table.assign(**place, reader=CLUSTERINGS[method]))
            rows += self._probe(x, y, hidden.extra["draws"][name], {**place, "split": SPLITS[self.divided]}, fixed=False)
        return Scored(rows, pd.concat(starts, ignore_index=True) if starts else pd.DataFrame())

    def _cluster(self, x: np.ndarray, y: np.ndarray, method: str) -> tuple[dict[str, Any], pd.DataFrame]:
        """Return the median agreement over starts, and that of each start. All observations are clustered, those with a region are compared."""
        k = len(set(y[~missing(y)]))
        reduced = _components(x, self.n_components) if x.shape[1] > self.n_components else x
        found = [cluster_agreement(y, cluster(reduced, k, method=method, rng=start)) for start in range(self.n_draws)]
        table = pd.DataFrame({"start": range(self.n_draws), "ari": [f.ari for f in found], "nmi": [f.nmi for f in found]})
        return {
            "n_obs": found[0].n,
            "n_undefined": 0,
            "k": k,
            "ari": float(table["ari"].median()),
            "nmi": float(table["nmi"].median()),
        }, table

    def _probe(
        self, x: np.ndarray, y: np.ndarray, draws: list[tuple[np.ndarray, np.ndarray]], place: Mapping[str, str], *, fixed: bool
    ) -> list[dict[str, Any]]:
        """Return one row for each probe and draw; where the division is always the same, only the MLP differs between draws."""
        rows = []
        for kind in self.probes:
            for draw, (train, test) in enumerate(draws[:1] if fixed and kind != "mlp" else draws):
                found = _read(x, y, train, test, kind, draw)
                scores = {m.name: getattr(found, m.name) for m in self.metrics}
                counted = {"n_obs": found.n_test, "n_undefined": found.n_undefined, "n_unseen": found.n_unseen, "n_train": int(train.sum())}
                rows.append({**place, "reader": f"{kind} probe", "draw": draw, **counted, **scores})
        return rows


def without_regions(adata: "AnnData") -> "AnnData":
    """Return the section without its known regions; counts are shared."""
    from anndata import AnnData

    obs = adata.obs.drop(columns="label")
    return AnnData(adata.X, obs=obs, var=adata.var.copy(), obsm=dict(adata.obsm.items()), uns=dict(adata.uns))


def no_target(adata: "AnnData") -> np.ndarray:
    """Raise: regions are for scoring, and no embedding may be fitted to them."""
    raise ValueError("A task of known regions has no target that a method could fit; wanted an embedding made without them.")


def _leaks(adata: "AnnData", draws: list[tuple[np.ndarray, np.ndarray]]) -> list[Leak]:
    """Return what the regions that train a probe give away of those that test it, over all divisions of a section."""
    named, out = ids(adata), []
    for train, test in draws:
        seen = Seen("training observations of the probe", "model", ids=named[train])
        out += find_leaks(adata, seen, test=test, level="observation")
    return out


def _components(x: np.ndarray, n: int) -> np.ndarray:
    """Return at most ``n`` principal components, the same to the last bit whatever the order of the rows: clusterings tell bits apart."""
    from sklearn.decomposition import PCA

    order, out = np.argsort(row_keys(x)), np.empty((len(x), min(n, *x.shape)))
    out[order] = PCA(out.shape[1], svd_solver="full").fit_transform(x[order])
    return out


def _read(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, kind: str, draw: int) -> Classification:
    """Return the scores of a probe; where all that trains it is of one region, that is its answer throughout."""
    known = sorted(set(y[train]))
    if len(known) > 1:
        return probe(x, y, train, test, kind=kind, rng=draw)
    n = int(test.sum())
    return classification(y[test], known * n, probabilities=np.ones((n, 1)), classes=known, commonest=known[0])


DOMAINS = LabelProtocol(
    name="domains",
    version="1.0",
    title="known regions from embeddings: clusters of each section, and probes between blocks, sections and donors",
    source="stimg; clusters as usual on DLPFC (Maynard et al. 2021), probes on contiguous blocks with a margin",
    remarks=(
        "Clusterings are told the true number of regions, which nobody knows who looks for them.",
        "Within a section embeddings may be fitted on the counts of all its observations, as is usual; regions they never see.",
        "Observations without a region are clustered with the others and then not scored; many publications remove them before, which is easier.",
        "No labels are smoothed over neighbours afterwards; many published clusterings are.",
        "With two training blocks of ten many a region is not in the training at all: every answer to it is wrong.",
    ),
    nulls=(
        "row and column",
        "library depth",
        "random embedding",
        "512 HVG",
        "PCA-50",
        "PCA-50, neighbours averaged",
        "regions permuted",
    ),
)
RANDOM = replace(
    DOMAINS,
    name="domains-random",
    title="known regions of 80 % of the observations from those of a random 20 % among them",
    source="the code of Spatial Transcriptomics as Images (arXiv 2603.13432), with a smaller probe",
    remarks=(
        "Most observations in the test touch one of the training, mostly of the same region: row and column alone reach .83 on DLPFC.",
        "A run stops with a LeakageError that says so; allow_leakage=True goes on and stamps the report.",
        "The published probe has three layers of 512, 256 and 128 units with dropout; here it has one of 128.",
    ),
    divided="random",
    transfer=False,
    clusterings=(),
    metrics=(*PROBED, *AGREEMENT),
)
for each in (DOMAINS, RANDOM):
    add(each)
