"""A report: one JSON file with a stable schema, from which every table and the page are made."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stimg._core import files
from stimg.bench.method import Method
from stimg.bench.protocol import Fold, Protocol
from stimg.metrics import cluster_bootstrap, seed_spread

SCHEMA = 1
REPORT, PAGE = "report.json", "report.html"
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "protocol": dict,
    "split": dict,
    "sections": list,
    "software": dict,
    "machine": dict,
    "stamps": list,
    "methods": list,
    "metrics": list,
    "scores": list,
    "summary": list,
    "ledger": list,
    "cost": list,
    "maps": list,
    "details": dict,
}
"""Keys of a report and the types of their values."""
FIELDS = {
    "protocol": ("name", "version", "hash", "title", "source", "remarks", "kind", "level", "strata"),
    "split": ("hash", "folds"),
    "methods": ("name", "role", "what", "seeds"),
    "metrics": ("name", "what", "more_is_better", "aggregate"),
    "scores": ("fold", "method", "seed", "library", "donor", "n_obs", "n_undefined"),
    "summary": ("method", "metric", "stratum", "value", "low", "high", "n_donors", "seed_sd", "n_seeds", "by_donor", "by_fold"),
    "ledger": ("fold", "method", "seed", "declared", "silent", "leaks"),
    "cost": ("fold", "method", "seed", "seconds", "processor_seconds", "peak_mb"),
}
"""Keys of each entry."""
LEVEL = 0.95


class Report:
    """The scores of a run, with everything that is needed to read them.

    Parameters
    ----------
    data
        The content of ``report.json``; checked against the schema.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        validate_report(data)
        self.data = dict(data)

    def __repr__(self) -> str:
        p = self.data["protocol"]
        stamps = f", stamped: {'; '.join(self.data['stamps'])}" if self.data["stamps"] else ""
        return f"Report({p['name']} {p['version']}, {len(self.data['methods'])} methods, {len(self.data['sections'])} sections{stamps})"

    @property
    def headline(self) -> str:
        """Name of the first metric."""
        return str(self.data["metrics"][0]["name"])

    def scores(self) -> pd.DataFrame:
        """Return one row for each fold, method, seed and scored unit."""
        return pd.DataFrame(self.data["scores"])

    def details(self) -> pd.DataFrame:
        """Return one row for each gene (or class) of each scored unit, method and seed."""
        return pd.DataFrame(self.data["details"])

    def summary(self) -> pd.DataFrame:
        """Return value, interval and seed spread, indexed by method, metric and stratum."""
        table = pd.DataFrame(self.data["summary"]).drop(columns=["by_donor", "by_fold"])
        return table.set_index(["method", "metric", "stratum"])

    def by_donor(self, metric: str | None = None) -> pd.DataFrame:
        """Return a table of methods (and strata) by donors for one metric, the headline where None."""
        wanted = metric or self.headline
        rows = {(s["method"], s["stratum"]): s["by_donor"] for s in self.data["summary"] if s["metric"] == wanted}
        if not rows:
            known = [m["name"] for m in self.data["metrics"]]
            raise ValueError(f"metric={wanted!r} is not in the report; wanted one of {known}.")
        return pd.DataFrame(rows).T.rename_axis(["method", "stratum"])

    def markdown(self, metrics: Sequence[str] | None = None) -> str:
        """Return the summary as a Markdown table: methods by metrics, value with its interval, seed spread where there are seeds."""
        from stimg.bench.tables import markdown

        return markdown(self, metrics)

    def save(self, folder: str | Path) -> None:
        """Write ``report.json``, ``scores.csv``, ``summary.csv``, ``details.csv`` and ``report.html`` into ``folder``, each whole or not at all."""
        from stimg.bench.page import page

        out = Path(folder)
        texts = {
            REPORT: json.dumps(self.data, indent=1, allow_nan=False),
            "scores.csv": self.scores().to_csv(index=False),
            "summary.csv": self.summary().to_csv(),
            "details.csv": self.details().to_csv(index=False),
            PAGE: page(self),
        }
        for name, text in texts.items():
            with files.replacing(out / name, overwrite=True) as temporary:
                temporary.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Return the report in ``path``: a folder, or a ``report.json``."""
        file = Path(path) / REPORT if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing. Pass the folder that `stimg.bench.run` wrote; a run that was interrupted has none yet."
            )
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as err:
            raise ValueError(f"{file} is damaged ({err}). Run it again.") from err
        return cls(data)


def validate_report(data: Any) -> None:
    """Raise a ValueError that names the first place where ``data`` is not a report of this schema."""
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"This is no report of schema {SCHEMA} (found {found!r}). Make it with `stimg.bench.run` of this version.")
    for key, kind in REQUIRED.items():
        if not isinstance(data.get(key), kind):
            raise ValueError(
                f"report[{key!r}] is a {type(data.get(key)).__name__}; wanted a {kind.__name__ if isinstance(kind, type) else kind}."
            )
    for key, names in FIELDS.items():
        entries = [data[key]] if isinstance(data[key], Mapping) else data[key]
        for i, entry in enumerate(entries):
            missing = [n for n in names if n not in entry]
            if missing:
                raise ValueError(f"report[{key!r}][{i}] lacks {missing} (found {sorted(entry)}).")
    lengths = {len(v) for v in data["details"].values()}
    if len(lengths) > 1:
        raise ValueError(f"report['details'] has columns of different lengths: {sorted(lengths)}.")


def stratum_of(row: Mapping[str, Any], strata: Sequence[str]) -> str:
    """Return the stratum of a row as one name, empty where the protocol has none."""
    return ", ".join(str(row[s]) for s in strata)


def assemble(
    protocol: Protocol,
    *,
    folds: Sequence[Fold],
    sections: Sequence[Mapping[str, Any]],
    split: str,
    methods: Sequence[Method],
    seeds: Sequence[int],
    parts: Sequence[Mapping[str, Any]],
    software: Mapping[str, str],
    machine: Mapping[str, str],
) -> Report:
    """Return the report of finished parts; the same parts always give the same report."""
    where = ("fold", "method", "seed")
    scores = [{**{k: part[k] for k in where}, **row} for part in parts for row in part["rows"]]
    frames = [pd.DataFrame({**{k: part[k] for k in where}, **part["details"]}) for part in parts if part["details"]]
    details = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    ledger = [{**{k: part[k] for k in where}, **part["ledger"]} for part in parts]
    return Report(
        {
            "schema": SCHEMA,
            "protocol": {
                **{k: getattr(protocol, k) for k in ("name", "version", "hash", "title", "source", "kind", "level")},
                "remarks": list(protocol.remarks),
                "strata": list(protocol.strata),
            },
            "split": {"hash": split, "folds": [asdict(f) | {"train": list(f.train), "test": list(f.test)} for f in folds]},
            "sections": list(sections),
            "software": dict(software),
            "machine": dict(machine),
            "stamps": _stamps(ledger),
            "methods": [
                {"name": m.name, "role": m.role, "what": m.what, "seeds": list(seeds) if m.seeded else list(seeds[:1])} for m in methods
            ],
            "metrics": [asdict(m) for m in protocol.metrics],
            "scores": scores,
            "summary": summarise(scores, protocol, [m.name for m in methods]),
            "ledger": ledger,
            "cost": [{**{k: part[k] for k in where}, **part["cost"]} for part in parts],
            "maps": [{**{k: part[k] for k in where}, **each} for part in parts for each in part["maps"]],
            "details": {k: [_bare(v) for v in column.tolist()] for k, column in details.items()},
            "notes": [{**{k: part[k] for k in where}, "notes": part["notes"]} for part in parts if part["notes"]],
        }
    )


def _bare(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _stamps(ledger: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what must stand over every table: leaks that were allowed, and predictions that do not say what they have seen."""
    leaks = sorted({leak for entry in ledger for leak in entry["leaks"]})
    silent = sorted({name for entry in ledger for name in entry["silent"]})
    out = [f"LEAKAGE ALLOWED: {leak}" for leak in leaks]
    return out + [f"NOT CHECKED: {name} does not say what it has seen" for name in silent]


def summarise(scores: Sequence[Mapping[str, Any]], protocol: Protocol, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each method, stratum and metric: the value, its interval over donors, the spread over seeds, and the values of donors and folds.

    Scores of one unit are averaged over seeds, and then the units are averaged (or their median is taken, where the metric says so). The
    interval is a bootstrap of donors on the averages over seeds; the spread is that of the values of single seeds.
    """
    table = pd.DataFrame(scores)
    table["stratum"] = [stratum_of(row, protocol.strata) for row in scores]
    out = []
    for method in methods:
        own = table[table["method"] == method]
        for stratum in dict.fromkeys(own["stratum"]):
            part = own[own["stratum"] == stratum]
            for metric in protocol.metrics:
                if metric.name not in part or part[metric.name].isna().all():
                    continue
                put_together = np.median if metric.aggregate == "median" else np.mean
                units = part.groupby(["fold", "library", "donor"], sort=True)[metric.name].mean().dropna().reset_index()
                by_seed = part.groupby("seed")[metric.name].agg(metric.aggregate).to_numpy(dtype=np.float64)
                values = units[metric.name].to_numpy(dtype=np.float64)
                interval = cluster_bootstrap(values, units["donor"].to_numpy(), level=LEVEL, statistic=metric.aggregate, rng=0)
                spread = seed_spread(by_seed)
                out.append(
                    {
                        "method": method,
                        "metric": metric.name,
                        "stratum": stratum,
                        "value": _bare(float(put_together(values))),
                        "low": _bare(float(interval.low)),
                        "high": _bare(float(interval.high)),
                        "n_donors": int(interval.n_clusters),
                        "seed_sd": _bare(float(spread.sd)),
                        "n_seeds": len(by_seed),
                        "by_donor": {str(k): _bare(float(v)) for k, v in units.groupby("donor")[metric.name].agg(metric.aggregate).items()},
                        "by_fold": {str(k): _bare(float(v)) for k, v in units.groupby("fold")[metric.name].agg(metric.aggregate).items()},
                    }
                )
    return out
