"""Retrieval between images and expression (HESCAPE): over whole sections and test sets, exactly; and inside mini-batches, as published."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys, validate
from stimg._core.rng import derive
from stimg.bench import sections as _sections
from stimg.bench.expression import without_counts
from stimg.bench.gene_rules import GENE_RULES, Panel
from stimg.bench.protocol import Fold, Hidden, Metric, Protocol, Scored, Task, add, leave_one_out, library_of
from stimg.bench.values import log_values
from stimg.data.slots import raster_libraries
from stimg.metrics import Retrieval, retrieve, retrieve_in_batches

if TYPE_CHECKING:
    from anndata import AnnData

SIDES = ("image", "expression")
GALLERIES = ("section", "section, near ones left out", "test set", "batches of 64, shuffled", "batches of 64, consecutive")
KS = (1, 5, 10, 50)
METRICS = (
    Metric("recall_5", "share of queries whose partner is among the 5 nearest; equal similarities are broken by chance"),
    *(Metric(f"recall_{k}", f"the same for {k}") for k in KS if k != 5),
    *(Metric(f"chance_{k}", f"recall at {k} of a random order") for k in (5, 10)),
    Metric("median_rank", "median rank of the partner over the size of the gallery", more_is_better=False, aggregate="median"),
)
HEG250 = Panel("HEG250", "highest mean", 250)
Encoder = Callable[["AnnData"], np.ndarray]


@dataclass(frozen=True)
class RetrievalProtocol(Protocol):
    """Pairs of images and expression profiles are found again among others.

    A method returns two encoders, ``{"image": function, "expression": function}``. The first is called with test sections that hold no
    counts, the second with their counts in an order of its own and without coordinates or images; so neither can know the pairs. Finished embeddings are
    taken by library as ``{"image": (n, dim), "expression": (n, dim)}``.

    Parameters
    ----------
    galleries
        Among what the partner is looked for.
    normalise
        Whether embeddings are brought to unit length (cosine); False is the dot product.
    folds_by
        ``"donor"`` or ``"section"``, each left out once.
    exclude_um
        Observations within this distance of the partner count neither as right nor as wrong, in the gallery "section, near ones left out".
    panel
        Genes of the task.
    batch
        Pairs in a mini-batch.
    """

    galleries: tuple[str, ...] = GALLERIES[:4]
    normalise: bool = True
    folds_by: str = "donor"
    exclude_um: float = 200.0
    panel: Panel = HEG250
    batch: int = 64
    kind: str = "retrieval"
    metrics: tuple[Metric, ...] = METRICS
    strata: tuple[str, ...] = ("gallery", "direction")

    def __post_init__(self) -> None:
        for gallery in self.galleries:
            validate.one_of(gallery, GALLERIES, "gallery")

    def folds(self, sections: Mapping[str, "AnnData"]) -> list[Fold]:
        """Return one fold for each donor or section."""
        return leave_one_out(_sections.groups(sections, self.folds_by), self.folds_by)

    def task(self, sections: Mapping[str, "AnnData"], fold: Fold) -> tuple[Task, Hidden]:
        """Return whole training sections, and test sections without counts; their counts are shown to the expression encoder alone."""
        train = {name: sections[name] for name in fold.train}
        visible = train if self.panel.seen == "train" else dict(sections)
        genes = tuple(GENE_RULES[self.panel.rule](visible, self.panel))
        whole = tuple(sections[name] for name in fold.test)
        order = {library_of(a): derive(0, i).permutation(a.n_obs) for i, a in enumerate(whole)}
        task = Task(
            self.name,
            self.kind,
            fold.name,
            train=tuple(train.values()),
            test=tuple(without_counts(a) for a in whole),
            genes=genes,
            target=lambda adata: np.nan_to_num(log_values(adata, genes=genes)),
        )
        seen = _sections.seen_together(visible, who=f"{self.panel.name} of protocol {self.name}", kind="gene list")
        return task, Hidden(truth={}, sections=whole, seen=(seen,), extra={"order": order})

    def check(self, task: Task, values: Mapping[str, Any], who: str) -> dict[str, Any]:
        """Return two encoders, or embeddings by library."""
        if set(values) == set(SIDES) and all(callable(values[s]) for s in SIDES):
            return {"encoders": dict(values), "who": who}
        for a in task.test:
            found = values.get(library_of(a))
            if not isinstance(found, Mapping) or set(found) != set(SIDES):
                raise ValueError(
                    f"{who} gave {type(found).__name__} for {library_of(a)}; wanted two encoders, {{'image': function, 'expression': function}}, "
                    "or the two embeddings of every test section under these names."
                )
        return {"arrays": dict(values), "who": who}

    def score(self, task: Task, hidden: Hidden, values: Mapping[str, Any]) -> Scored:
        """Return recall and ranks for each test section (or the test set), gallery and direction."""
        pairs = {library_of(a): self._pair(a, hidden, values) for a in hidden.sections}
        donors = {library_of(a): _sections.donor(a) for a in hidden.sections}
        places = {library_of(a): _places(a) for a in hidden.sections}
        rows = []
        for gallery in self.galleries:
            if gallery == "test set" and len(pairs) == 1 and "section" in self.galleries:
                continue  # the same pairs again
            units = [(name,) for name in pairs] if gallery != "test set" else [tuple(pairs)]
            for names in units:
                both = [np.concatenate([pairs[n][side] for n in names]) for side in SIDES]
                for direction, (query, target) in (("image to expression", both), ("expression to image", both[::-1])):
                    near = np.concatenate([places[n] for n in names])
                    found = self._find(gallery, query, target, near)
                    rows.append(
                        {
                            "library": names[0] if len(names) == 1 else "all",
                            "donor": "+".join(sorted({donors[n] for n in names})),
                            "gallery": gallery,
                            "direction": direction,
                            "n_obs": len(query),
                            "n_undefined": int(found.undefined.sum()),
                            **{f"recall_{k}": found.recall(k) for k in KS},
                            **{f"chance_{k}": found.chance(k) for k in (5, 10)},
                            "median_rank": found.relative_median_rank(),
                        }
                    )
        return Scored(rows)

    def _find(self, gallery: str, query: np.ndarray, target: np.ndarray, near: np.ndarray) -> Retrieval:
        if gallery.startswith("batches"):
            shuffle = 0 if gallery.endswith("shuffled") else None
            return retrieve_in_batches(query, target, batch_size=self.batch, shuffle=shuffle, normalise=self.normalise)
        if gallery == "section, near ones left out":
            return retrieve(query, target, normalise=self.normalise, query_um=near, gallery_um=near, exclude_um=self.exclude_um)
        return retrieve(query, target, normalise=self.normalise)

    def _pair(self, adata: "AnnData", hidden: Hidden, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the two embeddings of a section, rows in the order of the section."""
        name = library_of(adata)
        if "arrays" in values:
            found = {side: np.asarray(values["arrays"][name][side]) for side in SIDES}
        else:
            order = hidden.extra["order"][name]
            shuffled = np.asarray(values["encoders"]["expression"](only_counts(adata, order)))
            expression = np.empty_like(shuffled)
            expression[order[: len(shuffled)]] = shuffled
            found = {"image": np.asarray(values["encoders"]["image"](without_counts(adata))), "expression": expression}
        for side in SIDES:
            if found[side].ndim != 2 or len(found[side]) != adata.n_obs or found[side].shape[1] != found["image"].shape[1]:
                raise ValueError(
                    f"{values['who']} gave {side} embeddings of shape {found[side].shape} for {name}; wanted ({adata.n_obs}, dim), dim the same on both sides."
                )
        return found


def only_counts(adata: "AnnData", order: np.ndarray) -> "AnnData":
    """Return the counts and the library of a section in another order, without names, coordinates and images."""
    from anndata import AnnData

    obs = adata.obs[[keys.LIBRARY, keys.DONOR]].iloc[order].reset_index(drop=True)
    obs.index = obs.index.astype(str)
    return AnnData(adata.X[order], obs=obs, var=adata.var.copy())


def _places(adata: "AnnData") -> np.ndarray:
    """Return (y, x) of each observation in µm."""
    out = np.full((adata.n_obs, 2), np.nan)
    for library in raster_libraries(adata).values():
        out[library.rows] = library.spec.centres_um(library.rc)
    return out


CORRECTED = RetrievalProtocol(
    name="hescape",
    version="1.0",
    title="image to expression and back: over the whole section, the whole test set, and shuffled batches of 64; cosine; donors apart",
    source="after Gindra et al. 2025 (HESCAPE, arXiv 2508.01490), corrected: stimg's documentation lists the changes",
    remarks=("Recall depends on the size of the gallery: compare it with its chance, and never across galleries.",),
    nulls=("random encoders", "coordinates CCA", "colour CCA", "colour ridge, retrieval"),
)
RELEASED = replace(
    CORRECTED,
    name="hescape-released",
    title="recall inside consecutive batches of 64, embeddings not normalised, sections apart",
    source="Gindra et al. 2025 (HESCAPE, arXiv 2508.01490) and its code",
    remarks=(
        "The gallery is a mini-batch of 64: recall at 5 is .078 by chance, and consecutive pairs are neighbours in the tissue.",
        "Embeddings are not brought to unit length; the last batch is smaller and easier.",
        "The published splits hold out samples; whether their donors are apart is not stated for all of them.",
        "The released test transform crops at random; a method scored here should not.",
    ),
    level="section",
    galleries=("batches of 64, consecutive",),
    normalise=False,
    folds_by="section",
)
for each in (CORRECTED, RELEASED):
    add(each)
