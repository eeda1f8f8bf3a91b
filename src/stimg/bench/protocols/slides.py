"""One label for a slide (a mutation, a subtype) from its embedded tiles: donors apart, pairs of slides of one fold compared."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg._core import hashing, keys, validate
from stimg._core.panel import is_control
from stimg.bench import sections as _sections
from stimg.bench.protocol import Fold, Hidden, Metric, Protocol, Scored, Task, add, library_of
from stimg.bench.slide_scores import Slides, scores
from stimg.data.slots import library_rows

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)
SITE = "site"
ALL = "all folds"
EVERY, SAME_SITE = "all pairs", "pairs of one site"
METRICS = (
    Metric("auroc", "area under the ROC curve, from pairs of slides of one fold; mean over classes where there are more than two; .5 without a pair"),
    Metric("auroc_low", "lower end of its interval of 95 %, donors drawn again 1,000 times, widened for trainings that share donors"),
    Metric("auroc_high", "upper end of it"),
    Metric("p", "share of 1,000 permutations of the donors' labels within folds, widened likewise, with an AUROC as high (one-sided, never 0)", more_is_better=False),
    Metric("auprc", "average precision of the rarest class, slides ranked within their fold"),
    Metric("auprc_chance", "its share of the slides: what chance gives on average"),
    Metric("balanced_accuracy", "recall of each class by its largest probability, mean over classes"),
)  # fmt: skip


@dataclass(frozen=True)
class SlideProtocol(Protocol):
    """The label of a slide is predicted from what is embedded of it; all slides of a donor are in one fold.

    Data: observations (tiles, spots or cells) with ``library_id`` (the slide), ``donor``, the column named by ``labels=`` (one label a slide; slides
    without are left out), the slots of ``obsm`` named by ``features=``, and where known ``site``. Genes are optional: counts serve a null alone.

    A method returns for each test slide the probabilities of :attr:`Task.extra` ``["classes"]``, float (n_classes,), or with two classes that of the
    second. ``task.train`` holds training slides with ``obs["label"]``; ``task.extra["features"]`` names the slots.

    Parameters
    ----------
    n_folds
        Groups of donors; fewer where a class has fewer donors. Donors are dealt out by class, in an order that depends on their names alone.
    """

    n_folds: int = 5
    kind: str = "slides"
    metrics: tuple[Metric, ...] = METRICS
    strata: tuple[str, ...] = ("pairs",)

    def load(self, data: Any, **options: Any) -> tuple[list["AnnData"], dict[str, "AnnData"]]:
        """Return the objects behind ``data``, and one AnnData for each slide with a label, with what methods may read."""
        objects = _sections.read(data)
        labels, features = options.get("labels"), tuple(options.get("features", ()))
        if labels is None:
            raise ValueError(
                f'protocol {self.name!r} scores labels of slides: pass the column of obs that holds them, such as labels="label".'
            )
        if not features:
            raise ValueError(
                f'protocol {self.name!r} reads embedded tiles: pass the slots of obsm, such as features=["X_efficientnet_lite0"].'
            )
        validate.one_of(options.get("missing_donor", "error"), _sections.MISSING_DONOR, "missing_donor")
        found: dict[str, AnnData] = {}
        left_out = 0
        for adata in objects:
            for name, part in _slides(adata, {**options, "features": features}).items():
                if name in found:
                    raise ValueError(f"slide {name!r} occurs in two objects. Give every slide a name of its own.")
                found[name] = part
            left_out += adata.obs[options.get("library_key", keys.LIBRARY)].nunique()
        left_out -= len(found)
        widths = {key: {a.obsm[key].shape[1] for a in found.values()} for key in features}
        several = [key for key, w in widths.items() if len(w) > 1]
        if several:
            raise ValueError(
                f"obsm[{several[0]!r}] has {sorted(widths[several[0]])} columns in different slides; wanted one encoder for all."
            )
        if not found:
            raise ValueError(f"none of {left_out} slides has a label in obs[{labels!r}]; wanted at least two classes.")
        logger.info("%s: %d slides with a label, %d without", self.name, len(found), left_out)
        return objects, dict(sorted(found.items()))

    def folds(self, sections: Mapping[str, "AnnData"]) -> list[Fold]:
        """Return groups of donors with all classes in each."""
        names, labels = list(sections), [label_of(a) for a in sections.values()]
        parts = dealt([_sections.donor(a) for a in sections.values()], labels, self.n_folds)
        return [
            Fold(f"fold {i}", tuple(n for n in names if n not in part), tuple(n for n in names if n in part))
            for i, part in enumerate(([names[j] for j in group] for group in parts), 1)
        ]

    def task(self, sections: Mapping[str, "AnnData"], fold: Fold) -> tuple[Task, Hidden]:
        """Return training slides with their labels and test slides without."""
        train, test = (tuple(sections[name] for name in names) for names in (fold.train, fold.test))
        classes = tuple(sorted({label_of(a) for a in sections.values()}))
        first = next(iter(sections.values()))
        features = [key for key in first.obsm if key != keys.SPATIAL]
        said = _said_once((*train, *test))
        task = Task(
            self.name,
            self.kind,
            fold.name,
            train=said[: len(train)],
            test=tuple(_without_label(a) for a in said[len(train) :]),
            genes=(),
            target=partial(one_hot, classes=classes),
            extra={"features": features, "classes": classes},
        )
        truth = {library_of(a): one_hot(a, classes=classes) for a in test}
        about = {library_of(a): (_sections.donor(a), str(a.obs[SITE].iloc[0]) if SITE in a.obs else None) for a in test}
        return task, Hidden(truth=truth, sections=test, extra={"about": about})

    def check(self, task: Task, values: Mapping[str, Any], who: str) -> dict[str, Any]:
        """Return the probabilities as float64 (n_classes,) for each slide; raise where they are not what was asked for."""
        classes, out = task.extra["classes"], {}
        lacking = [name for name in task.asked() if name not in values]
        if lacking:
            raise ValueError(
                f"{who} gave nothing for {len(lacking)} slides, such as {lacking[:4]}; wanted probabilities of {list(classes)}."
            )
        for name in task.asked():
            found = np.asarray(values[name], dtype=np.float64)
            if found.size == 1 and len(classes) == 2:
                found = np.array([1 - found.item(), found.item()])
            if found.shape != (len(classes),):
                raise ValueError(
                    f"{who} gave values of shape {found.shape} for {name}; wanted ({len(classes)},): one for each of {list(classes)}."
                )
            if not (np.isfinite(found).all() and (found >= 0).all() and (found <= 1 + 1e-9).all()):
                raise ValueError(f"{who} gave {found.tolist()} for {name}; wanted probabilities between 0 and 1.")
            out[name] = found
        return out

    def score(self, task: Task, hidden: Hidden, values: Mapping[str, Any]) -> Scored:
        """Return what :meth:`pool` needs of this fold: scores are taken over all folds together."""
        about = hidden.extra["about"]
        rows = [
            {
                "slide": name,
                "donor": about[name][0],
                "site": about[name][1],
                "truth": int(np.argmax(hidden.truth[name])),
                "predicted": values[name].tolist(),
                "classes": list(task.extra["classes"]),
            }
            for name in task.asked()
        ]
        return Scored(rows)

    def pool(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the parts with the scores over all folds in the first of each method and seed, and nothing in the others."""
        together: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
        for part in parts:
            together.setdefault((part["method"], part["seed"]), []).extend({**row, "fold": part["fold"]} for row in part["rows"])
        pooled: dict[Any, Any] = {key: _pooled(rows) for key, rows in together.items()}
        out = []
        for part in parts:
            rows, details = pooled.pop((part["method"], part["seed"]), ([], pd.DataFrame()))
            out.append({**part, "rows": rows, "details": details.to_dict(orient="list")})
        return out


def _pooled(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Return one row for all pairs of slides, one for pairs of one site where there are any, and one detail for each slide."""
    rows = sorted(rows, key=lambda r: r["slide"])
    classes = rows[0]["classes"]
    slides = Slides(
        truth=np.array([r["truth"] for r in rows]),
        predicted=np.array([r["predicted"] for r in rows], dtype=np.float64),
        donor=np.array([r["donor"] for r in rows], dtype=object),
        fold=np.array([r["fold"] for r in rows], dtype=object),
    )
    place = {"fold": ALL, "library": "all", "donor": "all"}
    out = [{**place, "pairs": EVERY, **scores(slides)}]
    sites = [r["site"] for r in rows]
    if None not in sites and len(set(sites)) > 1:
        within = scores(slides, within=np.array(sites, dtype=object))
        out += [{**place, "pairs": SAME_SITE, **within}] if within["n_pairs"] else []
    table = {
        "fold": [r["fold"] for r in rows],
        "library": [r["slide"] for r in rows],
        "donor": [r["donor"] for r in rows],
        "label": [classes[r["truth"]] for r in rows],
        **{f"p_{name}": slides.predicted[:, i] for i, name in enumerate(classes)},
    }
    return out, pd.DataFrame(table)


def dealt(donors: Sequence[str], labels: Sequence[str], n: int) -> list[list[int]]:
    """Return positions of slides in at most ``n`` groups of whole donors with about equal numbers of donors of each kind.

    A donor's kind is the set of its slides' labels. Groups are as many as the rarest class has donors, where these are fewer.

    Raises
    ------
    ValueError
        For one class, and for a class with one donor.
    """
    kinds: dict[str, set[str]] = {}
    for donor, label in zip(donors, labels, strict=True):
        kinds.setdefault(donor, set()).add(label)
    number = {label: sum(label in kind for kind in kinds.values()) for label in sorted(set(labels))}
    if len(number) < 2:
        raise ValueError(f"all slides have the label {list(number)}; wanted at least two classes.")
    rare = {label: k for label, k in number.items() if k < 2}
    if rare:
        raise ValueError(
            f"classes {list(rare)} have one donor; wanted two at least, to train on and to test on. Leave them out or join them."
        )
    order = dict(zip(kinds, hashing.of_names(kinds).tolist(), strict=True))
    turn = sorted(kinds, key=lambda d: (sorted(kinds[d]), order[d], d))
    n = min(n, *number.values())
    group = {donor: i % n for i, donor in enumerate(turn)}
    return [[i for i, donor in enumerate(donors) if group[donor] == g] for g in range(n)]


def label_of(adata: "AnnData") -> str:
    """Return the label of a slide."""
    return str(adata.obs["label"].iloc[0])


def one_hot(adata: "AnnData", *, classes: Sequence[str]) -> np.ndarray:
    """Return the label of a slide as float64 (n_classes,)."""
    return np.array([name == label_of(adata) for name in classes], dtype=np.float64)


def _slides(adata: "AnnData", options: Mapping[str, Any]) -> dict[str, "AnnData"]:
    """Return one AnnData for each slide of ``adata`` with a label: counts where there are any, features, coordinates, library, donor, site, label."""
    from anndata import AnnData

    features, label_key = options["features"], options["labels"]
    if not adata.n_obs:
        raise ValueError("an object has no observations; wanted at least one. Check the reader.")
    library = validate.obs(adata, options.get("library_key", keys.LIBRARY), todo="Name the slide of every observation.").astype(str)
    donors = _sections._donors(adata, library, options.get("donor_key", keys.DONOR), options.get("missing_donor", "error"))
    label = validate.slot(adata.obs, "obs", label_key, todo="Name the column with the label of each slide.")
    counts, genes = sp.csr_matrix((adata.n_obs, 0), dtype=np.float32), adata.var[[]].iloc[:0]
    if adata.n_vars and (adata.X is not None or options.get("layer") is not None):
        real = np.flatnonzero(~is_control(adata.var))
        counts = sp.csr_matrix(validate.counts(adata, options.get("layer"))[:, real], dtype=np.float32)
        genes = adata.var[[]].iloc[real]
    arrays: dict[str, np.ndarray] = {}
    for key in features:
        arrays[key] = np.asarray(validate.slot(adata.obsm, "obsm", key, todo="Compute it first, or leave it out of `features`."))
        if arrays[key].ndim != 2:
            raise ValueError(f"adata.obsm[{key!r}] has shape {arrays[key].shape}; wanted ({adata.n_obs}, features).")
        validate.finite(arrays[key], f"adata.obsm[{key!r}]", todo="Leave out the tiles without an image.")
    if keys.SPATIAL in adata.obsm:
        arrays[keys.SPATIAL] = np.asarray(adata.obsm[keys.SPATIAL])
    records = {k: v for k, v in adata.uns.get(keys.UNS, {}).items() if k in features}
    missing = label.isna().to_numpy()
    out = {}
    for name, rows in library_rows(library).items():
        if missing[rows].all():
            continue
        given = sorted({str(v) for v in label.iloc[rows].dropna()})
        if missing[rows].any() or len(given) > 1:
            raise ValueError(
                f"slide {name!r} has the labels {given[:4]} and {int(missing[rows].sum())} observations without one; wanted one label for the whole slide."
            )
        about = {keys.LIBRARY: name, keys.DONOR: donors[name], "label": given[0], **_site(adata, rows, name)}
        obs = pd.DataFrame({k: pd.Categorical([v] * len(rows)) for k, v in about.items()}, index=adata.obs_names[rows])
        part = AnnData(counts[rows], obs=obs, var=genes, obsm={k: v[rows] for k, v in arrays.items()})
        part.uns[keys.UNS] = dict(records)
        out[name] = part
    return out


def _site(adata: "AnnData", rows: np.ndarray, name: str) -> dict[str, str]:
    if SITE not in adata.obs:
        return {}
    found = adata.obs[SITE].iloc[rows].astype(object).unique()
    if len(found) > 1 or pd.isna(found[0]):
        raise ValueError(f"slide {name!r} has the sites {list(found)[:4]}; wanted one for the whole slide, or no column {SITE!r}.")
    return {SITE: str(found[0])}


def _said_once(slides: Sequence["AnnData"]) -> tuple["AnnData", ...]:
    """Return the slides with what their features remember on the first of each table alone: hundreds of slides share one record."""
    from anndata import AnnData

    known: set[int] = set()
    out = []
    for a in slides:
        records = dict(a.uns[keys.UNS])
        for key, record in records.items():
            if isinstance(record, Mapping) and record.get("seen"):
                if id(record["seen"]) in known:
                    records[key] = {**record, "seen": {}}
                known.add(id(record["seen"]))
        out.append(AnnData(a.X, obs=a.obs, var=a.var, obsm=dict(a.obsm.items()), uns={**a.uns, keys.UNS: records}))
    return tuple(out)


def _without_label(adata: "AnnData") -> "AnnData":
    from anndata import AnnData

    return AnnData(adata.X, obs=adata.obs.drop(columns="label"), var=adata.var.copy(), obsm=dict(adata.obsm.items()), uns=dict(adata.uns))


PROTOCOL = add(
    SlideProtocol(
        name="slides",
        version="1.0",
        title="one label for each slide (a mutation, a subtype) from its embedded tiles, donors left out in groups",
        source="stimg; attention-based multiple-instance learning after Ilse et al. 2018",
        remarks=(
            "The number of donors is the sample size, not that of slides or tiles: with 60 donors the interval of an AUROC around .7 is about .4 wide.",
            "The trainings of the folds share donors, so their scores are not independent. Interval and p are widened for it, by the square root of "
            "2; without, one in ten cohorts without any effect would have p below .05.",
            "The ceiling is not known: nobody says how much of a mutation can be seen, and labels err. An AUROC of 1 may not be there to reach.",
            "Only slides of one fold are compared with each other, so that levels of probability need not agree between trainings; pooling them as "
            "they are pulls a constant answer below .5.",
            "Sites differ in stain, scanner and patients. Where the label goes with the site, `site of the slide` scores high, and so does anything that "
            "can tell sites apart: look at `pairs of one site`. These rows are missing where no site has slides of two labels in one fold; then nothing "
            "can be concluded.",
            "One division into folds is scored; another one may move the AUROC by several hundredths in small cohorts.",
        ),
        level="donor",
        nulls=(
            "class frequencies",
            "number of tiles",
            "depth of the slide",
            "site of the slide",
            "mean colour of the slide",
            "donors' labels permuted",
            "mean of tiles, logistic",
        ),
    )
)
