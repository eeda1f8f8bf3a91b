"""What an evaluation is: a protocol is a frozen, versioned, hashed object that makes folds, hides the truth, and scores predictions."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._core import keys
from stimg._core.ledger import Leak, Seen
from stimg._core.registry import Registry

if TYPE_CHECKING:
    from anndata import AnnData

PROTOCOLS = {
    "bulk": "bulk",
    "domains": "domains",
    "domains-random": "domains",
    "hescape": "hescape",
    "hescape-released": "hescape",
    "hest": "hest",
    "hest-no-pca": "hest",
    "her2st-clusters": "her2st_labels",
    "her2st-labels": "her2st_labels",
    "her2st-strict": "her2st_strict",
    "histogene": "histogene",
    "imputation": "imputation",
    "panel-completion": "panel_completion",
    "panel-completion-785": "panel_completion",
    "slides": "slides",
    "stem": "stem",
    "triplex": "triplex",
}
"""Name of each protocol and its module in ``stimg.bench.protocols``: the one line that a new protocol adds beside its file."""
WORST = 2
"""Genes with the worst and with the best score of a fold that are kept for maps."""


@dataclass(frozen=True)
class Metric:
    """One column of a report: what it is called, what it says, whether more is better, and how scored units are put together."""

    name: str
    what: str
    more_is_better: bool = True
    aggregate: str = "mean"


@dataclass(frozen=True)
class Fold:
    """One division of the sections: names of the libraries that a method may fit on, and of those that are scored."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """What a method is given: everything it may read, and nothing of the truth.

    Parameters
    ----------
    protocol, kind, fold
        Names.
    train
        Training sections, whole: raw counts in ``X``, ``obs`` with ``library_id`` and ``donor``, ``obsm["spatial"]``, ``obsm["stimg_rc"]``.
    test
        Test sections without what is to be predicted: no counts at all where expression is predicted from images, no hidden spots, no hidden genes.
    genes
        Genes to predict, in the order of the columns wanted.
    target
        Function from an AnnData with raw counts to the values to be predicted, float64 (n_obs, genes): for training.
    where
        For each test library the observations to predict, as an AnnData without counts, where they are not those of ``test`` (imputation).
    extra
        What else a kind of task gives.
    """

    protocol: str
    kind: str
    fold: str
    train: tuple["AnnData", ...]
    test: tuple["AnnData", ...]
    genes: tuple[str, ...]
    target: Callable[["AnnData"], np.ndarray]
    where: Mapping[str, "AnnData"] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def asked(self) -> dict[str, "AnnData"]:
        """Return, by library, the observations whose values are wanted, in order."""
        return {library_of(a): self.where.get(library_of(a), a) for a in self.test}


@dataclass(frozen=True)
class Hidden:
    """What methods never get: the truth, and what scoring needs. Audit nulls are given it, and are marked so in every report.

    Parameters
    ----------
    truth
        For each test library the values to be predicted, float64 (n, genes); NaN where a gene was not measured.
    depth
        For each test library the true depth of the observations, float64 (n,).
    ceiling
        For each test library the noise ceiling of each gene, float64 (genes,); empty where the protocol has none.
    sections
        Test sections, whole.
    training_mean
        Mean of the target over the training observations, float64 (genes,).
    seen
        What the protocol itself has read to set the task (gene lists, normalisers).
    leaks
        Leaks of the protocol itself that were found when the task was set, such as training labels beside those of the test.
    level
        What must not be shared in this fold, where it is not what the protocol says of all.
    extra
        What else scoring needs.
    """

    truth: Mapping[str, np.ndarray]
    depth: Mapping[str, np.ndarray] = field(default_factory=dict)
    ceiling: Mapping[str, np.ndarray] = field(default_factory=dict)
    sections: tuple["AnnData", ...] = ()
    training_mean: np.ndarray | None = None
    seen: tuple[Seen, ...] = ()
    leaks: tuple[Leak, ...] = ()
    level: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """Scores of one prediction: one row for each scored unit, and details (one row for each gene or class of a unit).

    ``rows`` have ``library`` and ``donor``, further keys of the protocol (``panel``, ``mask``), ``n_obs``, ``n_undefined`` and the metrics.
    """

    rows: list[dict[str, Any]]
    details: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Protocol(ABC):
    """An evaluation that always gives the same number for the same predictions on the same data.

    Parameters
    ----------
    name, version
        The version rises with every change that can move a number.
    title
        One line.
    source
        Where the protocol comes from.
    remarks
        What a reader must know before comparing: known leaks, choices that flatter.
    level
        What must not be shared between training and test: ``"donor"``, ``"section"`` or ``"observation"`` (and neighbours).
    nulls
        Registered methods that are always scored beside a model.
    """

    name: str
    version: str
    title: str
    source: str
    remarks: tuple[str, ...] = ()
    level: str = "donor"
    nulls: tuple[str, ...] = ()

    kind: str = "expression"
    """What is predicted; methods declare the kinds they can serve."""
    metrics: tuple[Metric, ...] = ()
    """The first one is the headline."""
    strata: tuple[str, ...] = ()
    """Keys of the rows that must never be averaged over, such as panel or mask."""

    @property
    def hash(self) -> str:
        """First 16 digits of the SHA-256 of everything that is fixed by the protocol."""
        text = json.dumps({"class": type(self).__name__, **_plain(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def load(self, data: Any, **options: Any) -> tuple[list["AnnData"], dict[str, "AnnData"]]:
        """Return the objects behind ``data``, and from them the sections; ``options`` are those of :func:`stimg.bench.load_sections`."""
        from stimg.bench import sections  # which needs the Fold of this module

        objects = sections.read(data)
        return objects, sections.load_sections(objects, **options)

    @abstractmethod
    def folds(self, sections: Mapping[str, "AnnData"]) -> list[Fold]:
        """Return the divisions of the sections; a ValueError where they do not suffice."""

    @abstractmethod
    def task(self, sections: Mapping[str, "AnnData"], fold: Fold) -> tuple[Task, Hidden]:
        """Return what a method is given, and what it is not."""

    @abstractmethod
    def score(self, task: Task, hidden: Hidden, values: Mapping[str, Any]) -> Scored:
        """Return the scores of ``values``, which a method has returned by library."""

    def check(self, task: Task, values: Mapping[str, Any], who: str) -> dict[str, Any]:
        """Return ``values`` as float64 arrays in the order of the task; raise where they are not what was asked for."""
        out = {}
        asked = task.asked()
        missing = [name for name in asked if name not in values]
        if missing:
            raise ValueError(f"{who} gave no values for {missing} (found {sorted(values)[:8]}); wanted an array for each of {list(asked)}.")
        for name, adata in asked.items():
            found = values[name]
            if isinstance(found, pd.DataFrame):
                lacking = [g for g in task.genes if g not in found.columns]
                if lacking:
                    raise ValueError(
                        f"{who} gave a table for {name} that lacks {len(lacking)} of {len(task.genes)} genes, such as {lacking[:3]}."
                    )
                if len(found) == adata.n_obs and set(found.index) == set(adata.obs_names):
                    found = found.loc[adata.obs_names]
                found = found[list(task.genes)]
            array = np.asarray(found, dtype=np.float64)
            if array.shape != (adata.n_obs, len(task.genes)):
                raise ValueError(
                    f"{who} gave {array.shape} values for {name}; wanted ({adata.n_obs}, {len(task.genes)}): observations x genes."
                )
            out[name] = array
        return out

    def significance(self, task: Task, hidden: Hidden, values: Mapping[str, Any], scored: Scored) -> list[dict[str, Any]]:
        """Return what is computed for models and rivals alone, such as permutation p-values, for each row of ``scored``; nothing by default."""
        return [{} for _ in scored.rows]

    def pool(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the parts of a run (the rows and details of each fold, method and seed) as they are reported: as they are.

        A protocol whose score needs the predictions of all folds together puts it in here.
        """
        return parts

    def maps(self, task: Task, hidden: Hidden, values: Mapping[str, Any], scored: Scored) -> list[dict[str, Any]]:
        """Return what a report draws as maps, worst cases first: the raster, truth and prediction of single genes in single sections.

        Empty where the protocol scores something else than values of genes by section.
        """
        table = scored.details
        if not {"library", "gene", "r"} <= set(table.columns):
            return []
        known = {library_of(a): a for a in task.asked().values()}
        table = table[table["library"].isin(list(known))].drop_duplicates(["library", "gene"]).sort_values("r", kind="stable")
        out = []
        for _, row in pd.concat([table.head(WORST), table.tail(WORST)]).drop_duplicates(["library", "gene"]).iterrows():
            library, at = str(row["library"]), task.genes.index(row["gene"])
            drawn = {"truth": hidden.truth[library][:, at], "predicted": np.asarray(values[library])[:, at]}
            out.append({"library": library, "gene": str(row["gene"]), "r": float(row["r"]), "raster": _raster(known[library]), **drawn})
        return out


def _raster(adata: "AnnData") -> dict[str, Any]:
    """Return the raster of a section as plain values, with the places of its observations."""
    spec = next(iter(adata.uns[keys.UNS][keys.RASTER].values()))
    return {"spec": {k: np.asarray(v).tolist() for k, v in spec.items()}, "rc": np.asarray(adata.obsm[keys.RC])}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name not in ("title", "source", "remarks", "nulls")}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def library_of(adata: "AnnData") -> str:
    """Return the name of the one library of a section."""
    return str(adata.obs["library_id"].iloc[0])


_LOADED: Registry[Protocol] = Registry("protocol")


def add(protocol: Protocol) -> Protocol:
    """Register a protocol; its module calls this."""
    return _LOADED.add(protocol.name, protocol)


def get(name: "str | Protocol") -> Protocol:
    """Return the protocol of that name; an unknown name is a ValueError that lists the known ones."""
    if isinstance(name, Protocol):
        return name
    if name in PROTOCOLS and name not in _LOADED:
        import_module(f"stimg.bench.protocols.{PROTOCOLS[name]}")
    if name not in _LOADED:
        for known in PROTOCOLS:
            get(known) if known not in _LOADED else None
    return _LOADED[name]


def listing() -> pd.DataFrame:
    """Return one row a protocol: title, kind, level, headline, version, hash, source."""
    rows = [get(name) for name in PROTOCOLS]
    table = [
        {
            "name": p.name,
            "title": p.title,
            "kind": p.kind,
            "level": p.level,
            "headline": p.metrics[0].name,
            "version": p.version,
            "hash": p.hash,
            "source": p.source,
        }
        for p in rows
    ]
    return pd.DataFrame(table).set_index("name")


def leave_one_out(groups: Mapping[str, str], what: str) -> list[Fold]:
    """Return one fold for each group of libraries: ``groups`` names the group of each library."""
    names: Sequence[str] = sorted(set(groups.values()))
    if len(names) < 2:
        raise ValueError(
            f"There is one {what} ({names}); leaving one out needs at least two. Add sections of another {what}, or take a protocol that "
            "splits within a section (`domains`, `imputation`)."
        )
    return [
        Fold(name, tuple(lib for lib, g in groups.items() if g != name), tuple(lib for lib, g in groups.items() if g == name))
        for name in names
    ]
