"""What the numbers of a report say, in words: each method against the best null, audit and rival, donor by donor."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stimg.bench.report import LEVEL, Report, stratum_of
from stimg.bench.tables import number
from stimg.metrics import cluster_bootstrap

AGAINST = ("null", "audit", "rival")
"""Roles that a model is held against."""
WORSE, EVEN, BETTER, ABOVE = "is worse than", "cannot be told from", "is better than", "is above the noise ceiling"
LOWER, HIGHER = "scores worse, without an interval, than", "scores better, without an interval, than"
"""What is said of a method; the last two where there is one donor, or all are pooled."""
ALONE = "stands alone: there is nothing to hold it against"
FEW = 6
"""Donors below which an interval over donors is rough: that all of five agree happens by chance in one case of sixteen."""
PICTURED = ("expression", "retrieval")
"""Kinds of tasks in which models look at images, and nulls and audits do not."""


@dataclass(frozen=True)
class Comparison:
    """One method against another on the same sections.

    Parameters
    ----------
    method, other, role
        Names, and the role of the other.
    value, other_value
        Their scores, as in the summary.
    difference, low, high
        Mean (or median, as the metric says) of the differences of single sections, method minus other, and its interval over donors; NaN
        where there is one donor.
    ahead, n_donors
        Donors on which the method is better, and all donors.
    better
        True or False where the whole interval is on one side of 0, and with fewer than ``FEW`` donors the difference of each of them too;
        None where not, or where there is no interval.
    """

    method: str
    other: str
    role: str
    value: float
    other_value: float
    difference: float
    low: float
    high: float
    ahead: int
    n_donors: int
    better: bool | None

    @property
    def words(self) -> str:
        """What is said of the two."""
        if self.n_donors < 2 and self.difference:
            return HIGHER if self.ahead else LOWER
        return EVEN if self.better is None else BETTER if self.better else WORSE


@dataclass(frozen=True)
class Verdict:
    """Where a method stands in one stratum.

    Parameters
    ----------
    method, stratum, value
        Whose, where, and its score.
    clauses
        Pairs such as ``("is worse than", "the audit 'depth line' (.280), which sees no pixel")``; what is worse comes first.
    remarks
        Further sentences.
    comparisons
        What both rest on.
    """

    method: str
    stratum: str
    value: float
    clauses: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    def __str__(self) -> str:
        said = "; it ".join(f"{words} {text}" for words, text in self.clauses)
        return f"{self.method!r} ({shown(self.value)}) {said or ALONE}."


def shown(value: float | None) -> str:
    """Return a number as the tables print it, with a minus sign."""
    return number(value).replace("-", "−")


def subjects(report: Report) -> list[str]:
    """Return the names of the models of a report, of its rivals where it has no model; none where it has nulls and audits alone."""
    for role in ("model", "rival"):
        found = [m["name"] for m in report.data["methods"] if m["role"] == role]
        if found:
            return found
    return []


def pictured(report: Report) -> bool:
    """Return whether models look at images in this protocol, and its nulls and audits do not."""
    return report.data["protocol"]["kind"] in PICTURED


def values(report: Report, metric: str, stratum: str) -> dict[str, float]:
    """Return the score of each method, best first."""
    found = {s["method"]: s["value"] for s in report.data["summary"] if (s["metric"], s["stratum"]) == (metric, stratum)}
    more = _facts(report, metric)["more_is_better"]
    return dict(sorted(((k, v) for k, v in found.items() if v is not None), key=lambda item: item[1], reverse=more))


def compare(report: Report, method: str, other: str, *, metric: str, stratum: str) -> Comparison:
    """Return how ``method`` does against ``other`` on the sections that both have a score for, seeds averaged, donors resampled."""
    facts, keys = _facts(report, metric), report.data["protocol"]["strata"]
    rows = [
        r for r in report.data["scores"] if r["method"] in (method, other) and r.get(metric) is not None and stratum_of(r, keys) == stratum
    ]
    units = pd.DataFrame(rows).groupby(["fold", "library", "donor", "method"])[metric].mean().unstack("method").dropna()
    donors = units.index.get_level_values("donor").to_numpy()
    differences = (units[method] - units[other]).to_numpy(dtype=np.float64)
    by_donor = pd.Series(differences).groupby(donors).agg(facts["aggregate"])
    interval = cluster_bootstrap(differences, donors, level=LEVEL, statistic=facts["aggregate"], rng=0)
    low, high = float(interval.low), float(interval.high)
    way = 1.0 if facts["more_is_better"] else -1.0
    found = values(report, metric, stratum)
    agree = len(by_donor) >= FEW or bool((by_donor > 0).all() or (by_donor < 0).all())
    return Comparison(
        method=method,
        other=other,
        role=next(m["role"] for m in report.data["methods"] if m["name"] == other),
        value=found[method],
        other_value=found[other],
        difference=float(interval.value),
        low=low,
        high=high,
        ahead=int((way * by_donor > 0).sum()),
        n_donors=len(by_donor),
        better=bool(way * (low + high) > 0) if low * high > 0 and agree else None,
    )


def verdicts(report: Report, metric: str, stratum: str) -> list[Verdict]:
    """Return where each model (each rival, where there is no model) stands, in the order of their scores.

    Each is held against the best null, every audit and the best rival.
    """
    wanted = set(subjects(report))
    roles = {m["name"]: m["role"] for m in report.data["methods"]}
    scored = values(report, metric, stratum)
    others = []
    for role in AGAINST:
        of_role = [n for n in scored if roles[n] == role and n not in wanted]
        others += of_role if role == "audit" else of_role[:1]
    ceiling = mean_of(report, "ceiling", stratum) if metric == "mean_r" else None
    out = []
    for name in (n for n in scored if n in wanted):
        found = tuple(compare(report, name, other, metric=metric, stratum=stratum) for other in others)
        clauses = tuple(_clauses(found, blind=pictured(report)))
        if ceiling is not None and scored[name] > ceiling:
            clauses = ((ABOVE, f"({shown(ceiling)}), which nothing is that has not seen the noise of these very counts"), *clauses)
        out.append(Verdict(name, stratum, scored[name], clauses, tuple(_remarks(report, name, metric, stratum)), found))
    return out


def of_the_rest(report: Report, metric: str, stratum: str) -> list[str]:
    """Return what the nulls and audits say by themselves: alone where there is no model and no rival, and where one is above the noise ceiling."""
    found, out = values(report, metric, stratum), []
    roles = {m["name"]: m["role"] for m in report.data["methods"]}
    ceiling = mean_of(report, "ceiling", stratum) if metric == "mean_r" else None
    if not subjects(report):
        best = {role: next((n for n in found if roles[n] == role), None) for role in ("null", "audit")}
        said = [
            f"the {what} {name!r} scores {shown(found[name])}"
            for what, name in zip(("best null", "strongest audit"), best.values(), strict=True)
            if name
        ]
        said += [f"the noise ceiling is {shown(ceiling)}"] if ceiling is not None else []
        out.append(
            f"Without any model, {_and(said)}. A model that is not above the nulls has not been shown to see anything; a high audit is what the protocol gives away."
        )
    above = [name for name, value in found.items() if ceiling is not None and roles[name] == "audit" and value > ceiling]
    if above:
        are = "is" if len(above) == 1 else "are"
        out.append(
            f"{_and([repr(n) for n in above])} {are} above the noise ceiling: the values that an audit reads share their noise with the truth."
        )
    return out


def _clauses(found: Sequence[Comparison], *, blind: bool) -> Iterator[tuple[str, str]]:
    """Yield what a method is worse than, what it cannot be told from, and what it is better than, in this order."""
    for words in (WORSE, LOWER, EVEN, HIGHER, BETTER):
        items, unseeing = [], 0
        for role in AGAINST:
            listed = [f"{c.other!r} ({shown(c.other_value)})" for c in found if c.role == role and c.words == words]
            if listed:
                what = f"the best {role}" if role != "audit" else "the audit" if len(listed) == 1 else "the audits"
                items.append(f"{what} {_and(listed)}")
                unseeing += len(listed) if role != "rival" else 0
            if role == "audit" and unseeing and blind and words not in (HIGHER, BETTER):
                items[-1] += f", which {'sees' if unseeing == 1 else 'see'} no pixel"
        if items:
            yield words, " and ".join(items)


def _remarks(report: Report, name: str, metric: str, stratum: str) -> list[str]:
    out = []
    entries = {(s["method"], s["metric"]): s for s in report.data["summary"] if s["stratum"] == stratum}
    share = entries.get((name, "fraction_of_ceiling"))
    ceiling = mean_of(report, "ceiling", stratum)
    if share and share["value"] is not None and ceiling is not None and share["value"] <= 1:
        reached = f"{share['value']:.0%}".replace("%", " %") if share["value"] >= 0.005 else "nothing"
        out.append(f"It reaches {reached} of the noise ceiling ({shown(ceiling)}).")
    undefined, of = _undefined(report, name, stratum)
    if undefined:
        out.append(
            f"{undefined:,} of its {of:,} single scores are undefined and count 0."
            if of
            else f"{undefined:,} of its single scores are undefined."
        )
    entry = entries[name, metric]
    if entry["by_donor"] and len(entry["by_donor"]) > 1:
        known = {k: v for k, v in entry["by_donor"].items() if v is not None}
        worst = (min if _facts(report, metric)["more_is_better"] else max)(known, key=lambda k: known[k])
        out.append(f"Its worst donor is {worst} ({shown(known[worst])}).")
    if entry["n_seeds"] > 1 and entry["seed_sd"] is not None:
        out.append(f"Over {entry['n_seeds']} seeds its score has a standard deviation of {shown(entry['seed_sd'])}.")
    return out


def mean_of(report: Report, column: str, stratum: str) -> float | None:
    """Return the mean over sections of a column that is the same for every method; None where the report has none."""
    units = {
        (r["fold"], r["library"], r["donor"]): r[column]
        for r in report.data["scores"]
        if r.get(column) is not None and stratum_of(r, report.data["protocol"]["strata"]) == stratum
    }
    return float(np.mean(list(units.values()))) if units else None


def _undefined(report: Report, name: str, stratum: str) -> tuple[int, int]:
    """Return the number of undefined scores of a method, and of all its scores where the rows tell (0 where not)."""
    rows = [r for r in report.data["scores"] if r["method"] == name and stratum_of(r, report.data["protocol"]["strata"]) == stratum]
    return sum(r["n_undefined"] or 0 for r in rows), sum(r.get("n_genes") or 0 for r in rows)


def _facts(report: Report, metric: str) -> Mapping[str, Any]:
    return next(m for m in report.data["metrics"] if m["name"] == metric)


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
