"""Bulk expression of samples (tumours on slides) from anything but their expression: sites and donors apart, correlated over all folds together."""

import base64
import io
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._core import keys, validate
from stimg.bench import sections as _sections
from stimg.bench.cohorts import COHORT, grouped, joined, read_cohort, samples, units
from stimg.bench.protocol import Fold, Hidden, Metric, Protocol, Scored, Task, add
from stimg.data.ledger import recall, remember
from stimg.data.slots import library_rows
from stimg.metrics import per_gene_pearson, per_spot_pearson
from stimg.metrics.sections import centred

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)
GROUPS = ("organ", "subtype")
"""Columns within whose values the score is given again."""
FEWEST = 3
"""Samples below which no correlation over samples is taken."""
ROUNDING = 1e-12
ALL = "all folds"
METRICS = (
    Metric("mean_r", "Pearson's r of each gene over all test samples, the mean of each fold taken out of both, mean over genes; undefined counts 0"),
    Metric("median_r", "the same, median over genes"),
    Metric("relative_mse", "squared error over that of predicting the mean of the fold's training, all genes together", more_is_better=False),
    Metric("spread", "standard deviation of predicted over true values within folds, median over genes; 0: collapsed"),
    Metric("raw_r", "r of each gene as published, folds pooled as they are: sites count as success, and the training mean falls below 0"),
    Metric("sample_r", "flatters: r over genes, mean over samples; gene means alone score high"),
    Metric("target_r", "mean r over genes between the true profiles of two samples: what sample_r gives for the profile of somebody else"),
    Metric("prediction_r", "the same between predicted profiles; far above target_r: collapsed to one profile", more_is_better=False),
)  # fmt: skip


@dataclass(frozen=True)
class BulkProtocol(Protocol):
    """Bulk expression of samples is predicted, each site (or donor) left out.

    Data: an AnnData of samples (``X`` counts or TPM, ``obs`` with ``donor`` and, where known, ``site``, ``subtype``, ``organ``; ``obsm`` with
    features of slides), or of spots with ``library_id``, which are summed to one sample a library and whose features are averaged; or a folder:

    * ``cohort.csv``: one line a sample; columns ``sample``, ``donor``, and where known ``site``, ``subtype``, ``organ``, ``features``: the
      path, from the folder, of a ``.npy`` file with the features of its slide, (dim,) or (tiles, dim), which become ``obsm["X_slide"]``.
    * ``expression.csv`` (samples x genes, the first column names the sample) or ``expression.h5ad`` (``obs_names`` are the samples).

    Samples that share a donor or a site are never divided: a donor with samples at two sites ties these together. Where there are two sites
    or more each is left out once, else groups of donors are.

    Parameters
    ----------
    n_folds
        Groups of donors; each donor by itself where there are no more.
    total
        What the values of a sample are brought to before log(1 + x).
    """

    n_folds: int = 5
    total: float = 1e6
    kind: str = "bulk"
    metrics: tuple[Metric, ...] = METRICS
    strata: tuple[str, ...] = ("samples",)

    def load(self, data: Any, **options: Any) -> tuple[list["AnnData"], dict[str, "AnnData"]]:
        """Return all samples as one object, and as one object for each site (or donor) by name."""
        path = Path(data) if isinstance(data, str | Path) else None
        objects = [read_cohort(path)] if path is not None and (path / COHORT).is_file() else _sections.read(data)
        tables = [samples(a, **options) for a in objects]
        names = pd.Index([n for a in tables for n in a.obs_names])
        twice = names[names.duplicated()].unique().tolist()
        if twice:
            raise ValueError(f"{len(twice)} samples occur twice, such as {twice[:4]}; wanted a name of its own for each.")
        cohort = joined(tables)
        cohort.obs[options.get("library_key", keys.LIBRARY)] = cohort.obs[keys.LIBRARY] = units(cohort)
        for key in options.get("features", ()):
            records = [recall(a, only=[key]) for a in objects]
            if all(records):
                remember(cohort, key, *(seen for each in records for seen in each))
        logger.info("bulk: %d samples, %d genes, %d units", cohort.n_obs, cohort.n_vars, cohort.obs[keys.LIBRARY].nunique())
        bare = cohort.copy()
        bare.layers.clear()
        return [cohort], {name: bare[rows].copy() for name, rows in library_rows(bare.obs[keys.LIBRARY]).items()}

    def folds(self, sections: Mapping[str, "AnnData"]) -> list[Fold]:
        """Return one fold for each site or donor, or for each group of donors."""
        names = list(sections)
        if len(names) < 2:
            raise ValueError(
                f"All samples hang together through shared donors and sites ({names}); wanted at least two groups. Add samples of another donor, "
                "or take out the column `site` to leave donors out."
            )
        sited = all("site" in a.obs for a in sections.values()) and len({s for a in sections.values() for s in a.obs["site"]}) > 1
        size = {name: a.n_obs for name, a in sections.items()}
        parts = [[n] for n in names] if sited else grouped(size, self.n_folds)
        called = [part[0] if len(part) == 1 else f"group {i}" for i, part in enumerate(parts, 1)]
        return [Fold(c, tuple(n for n in names if n not in part), tuple(part)) for c, part in zip(called, parts, strict=True)]

    def truth(self, adata: "AnnData") -> np.ndarray:
        """Return log(1 + x) of values brought to a sum of a million, float64 (samples, genes)."""
        values = adata.X.toarray()
        return np.log1p(self.total * values / values.sum(axis=1, keepdims=True))

    def task(self, sections: Mapping[str, "AnnData"], fold: Fold) -> tuple[Task, Hidden]:
        """Return the training samples as one object, and the test samples by site (or donor) without expression and subtype."""
        train = joined([sections[n] for n in fold.train])
        whole = {n: sections[n] for n in fold.test}
        task = Task(
            self.name,
            self.kind,
            fold.name,
            train=(train,),
            test=tuple(_without_expression(a) for a in whole.values()),
            genes=tuple(train.var_names),
            target=self.truth,
        )
        hidden = Hidden(
            truth={n: self.truth(a) for n, a in whole.items()},
            sections=(joined(whole.values()),),
            training_mean=self.truth(train).mean(axis=0),
            extra={"obs": {n: a.obs for n, a in whole.items()}},
        )
        return task, hidden

    def check(self, task: Task, values: Mapping[str, Any], who: str) -> dict[str, Any]:
        """Return ``values`` as finite float64 arrays in the order of the task."""
        out = super().check(task, values, who)
        for name, array in out.items():
            validate.finite(array, f"what {who} gave for {name}", todo="Predict a number for every gene and sample.")
        return out

    def score(self, task: Task, hidden: Hidden, values: Mapping[str, Any]) -> Scored:
        """Return what :meth:`pool` needs of this fold: r over samples is taken over all folds together."""
        obs = pd.concat(list(hidden.extra["obs"].values()))
        arrays = {
            "truth": np.concatenate(list(hidden.truth.values())),
            "predicted": np.concatenate([values[n] for n in hidden.truth]),
            "mean": np.asarray(hidden.training_mean),
        }
        about = {c: [None if pd.isna(v) else str(v) for v in obs[c]] for c in (keys.DONOR, *GROUPS) if c in obs}
        return Scored([{"sample": obs.index.tolist(), "genes": list(task.genes), "about": about, "packed": _pack(arrays)}])

    def pool(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the parts with the scores over all folds in the first of each method and seed, and nothing in the others."""
        together: dict[Hashable, list[dict[str, Any]]] = {}
        for part in parts:
            together.setdefault((part["method"], part["seed"]), []).append(part)
        pooled = {key: self.pooled([row for part in each for row in part["rows"]]) for key, each in together.items()}
        out = []
        for part in parts:
            rows, details = pooled.pop((part["method"], part["seed"]), ([], pd.DataFrame()))
            out.append({**part, "rows": rows, "details": details.to_dict(orient="list")})
        return out

    def pooled(self, folds: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], pd.DataFrame]:
        """Return one row for all samples, one for each organ and subtype and one within these, and r of each gene over all samples."""
        arrays = [_unpack(each["packed"]) for each in folds]
        order = np.argsort([name for each in folds for name in each["sample"]])  # sums round by position
        fold = np.repeat(np.arange(len(folds)), [len(each["sample"]) for each in folds])[order]
        truth, predicted = (np.concatenate([a[k] for a in arrays])[order] for k in ("truth", "predicted"))
        mean = np.stack([a["mean"] for a in arrays])[fold]
        about = {c: np.array([v for each in folds for v in each["about"][c]], dtype=object)[order] for c in folds[0]["about"]}
        parts = {"all": (np.ones(len(fold), dtype=bool), fold)}
        for name in (c for c in GROUPS if c in about):
            values = sorted({v for v in about[name] if v is not None})
            if len(values) > 1:
                code = np.array([-1 if v is None else values.index(v) for v in about[name]])
                parts |= {f"{name} {value}": (code == i, fold) for i, value in enumerate(values)}
                parts[f"within {name}"] = (code >= 0, fold * len(values) + code)
        place, rows, table = {"fold": ALL, "library": "all"}, [], pd.DataFrame()
        for called, (which, cell) in parts.items():
            row, r = bulk_row(truth[which], predicted[which], mean[which], cell[which])
            rows.append({**place, "donor": "all", "samples": called, "n_donors": len(set(about[keys.DONOR][which])), **row})
            if called == "all":
                table = pd.DataFrame({**place, "samples": called, "gene": folds[0]["genes"], "r": r[0], "undefined": r[1]})
        return rows, table


def bulk_row(
    truth: np.ndarray, predicted: np.ndarray, mean: np.ndarray, cell: np.ndarray
) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray]]:
    """Return the metrics of some samples, and r of each gene with whether it is undefined.

    Parameters
    ----------
    truth, predicted, mean
        (samples, genes): the target, the prediction, and the mean of the training of each sample's fold.
    cell
        (samples,), the fold of each sample, or its fold and subtype: means of cells are taken out before r, so that nothing which is the same
        for all samples of a cell, such as any training mean, has an r. A sample that is alone in its cell says nothing.
    """
    alone = np.bincount(cell)[cell] < 2
    t, p = _less_cell_mean(truth[~alone], cell[~alone]), _less_cell_mean(predicted[~alone], cell[~alone])
    r = _correlation(t, p)
    error, yardstick = float(((truth - predicted) ** 2).sum()), float(((truth - mean) ** 2).sum())
    sd_t, sd_p = (np.sqrt((v**2).sum(axis=0)) for v in (t, p))
    varies = sd_t > 0
    row = {
        "n_obs": len(truth),
        "n_alone": int(alone.sum()),
        "n_undefined": int(r[1].sum()),
        "mean_r": float(r[0].mean()),
        "median_r": float(np.median(r[0])),
        "relative_mse": error / yardstick if yardstick > 0 else 0.0,
        "spread": float(np.median(sd_p[varies] / sd_t[varies])) if varies.any() else 0.0,
        "raw_r": float(_correlation(truth, predicted)[0].mean()),
        "sample_r": per_spot_pearson(truth, predicted).mean(),
        "target_r": pairwise_r(truth),
        "prediction_r": pairwise_r(predicted),
    }
    return row, r


def pairwise_r(values: np.ndarray) -> float:
    """Return the mean Pearson's r over genes between two different rows of ``values`` (samples, genes); 0 for a constant row or a single one."""
    n = len(values)
    z = values - values.mean(axis=1, keepdims=True)
    length = np.sqrt((z**2).sum(axis=1, keepdims=True))
    z = np.divide(z, length, out=np.zeros_like(z), where=length > 1e-12 * np.abs(values).max(axis=1, keepdims=True, initial=0))
    return float(((z.sum(axis=0) ** 2).sum() - (z**2).sum()) / (n * (n - 1))) if n > 1 else 0.0


def _correlation(t: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(t) < FEWEST:
        return np.zeros(t.shape[1]), np.ones(t.shape[1], dtype=bool)
    found = per_gene_pearson(t, p)
    return found.values, found.undefined


def _less_cell_mean(values: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Return ``values`` less the mean of their cell, exactly 0 where all of a cell agree but for rounding."""
    if len(values) == 0:
        return values
    out = centred(values, cell)
    out[np.abs(out) <= ROUNDING * np.abs(values)] = 0.0
    return out


def _pack(arrays: Mapping[str, np.ndarray]) -> str:
    """Return arrays as text that JSON can hold, float32."""
    buffer = io.BytesIO()
    small: dict[str, Any] = {k: v.astype(np.float32) for k, v in arrays.items()}
    np.savez_compressed(buffer, **small)
    return base64.b64encode(buffer.getvalue()).decode()


def _unpack(text: str) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(base64.b64decode(text))) as file:
        return {k: file[k].astype(np.float64) for k in file.files}


def _without_expression(adata: "AnnData") -> "AnnData":
    """Return samples with donor, site, organ and features of their slides, and neither expression nor subtype, which is read from it."""
    from anndata import AnnData

    return AnnData(None, obs=adata.obs.drop(columns="subtype", errors="ignore"), obsm=dict(adata.obsm.items()), uns=dict(adata.uns))


PROTOCOL = add(
    BulkProtocol(
        name="bulk",
        version="1.0",
        title="bulk expression of samples from their slides: sites (or donors) left out, r of each gene over all test samples",
        source="stimg, after HE2RNA (Schmauch et al. 2020), SEQUOIA (Pizurica et al. 2024) and BiTro (arXiv 2603.14897)",
        remarks=(
            "r over genes within a sample (`sample_r`) is near `target_r` for the profile of anybody else: it says nothing of the slide.",
            "r of each gene takes the mean of each fold out of truth and prediction: what tells sites (or groups of donors) apart does not count. "
            "A site with one sample adds nothing to it.",
            "Published r pools the folds as they are (`raw_r`): sites count as success there, and the training mean falls below 0.",
            "Several organs or subtypes together flatter: look at `within organ` and `within subtype`.",
            "All genes of the table are scored, and the million is taken over them: leave out what is hardly expressed before, and say so.",
            "Sums of spots of a handful of donors check the machinery and are no benchmark: the number of donors is the sample size.",
            "There is one pooled value a method, hence no interval over donors.",
        ),
        level="donor",
        nulls=("mean of training samples", "subtype mean", "site mean", "another sample", "slide features, ridge"),
    )
)
