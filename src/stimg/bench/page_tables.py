"""Tables and words of the page of a report."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stimg.bench.html import Html, fold, join, table, tag
from stimg.bench.report import Report
from stimg.bench.verdict import shown

ROLES = {
    "model": "what is evaluated",
    "rival": "a simple method with the same inputs, or the usual one",
    "null": "sees no pixel, and nothing of what is to be predicted",
    "audit": "is given a part of the truth, to show what that part alone is worth; never a result",
}
OPEN_STRATA, OPEN_DONORS = 4, 12
"""Strata that are open from the start, and the most donors of a table that is."""


def metrics(report: Report, strata: Sequence[str]) -> Html:
    """Return methods by metrics for each stratum, and what the metrics are."""
    d = report.data
    entries = {(s["method"], s["stratum"], s["metric"]): s for s in d["summary"]}
    tables = []
    for stratum in strata:
        used = [m for m in d["metrics"] if any((each["name"], stratum, m["name"]) in entries for each in d["methods"])]
        head = ["", *(tag("th", _broken(m["name"]), "" if m["more_is_better"] else " ↓", scope="col", **_look(m)) for m in used)]
        rows = []
        for each in d["methods"]:
            found = [(entries.get((each["name"], stratum, m["name"])), _look(m)) for m in used]
            if any(entry for entry, _ in found):
                rows.append([join(each["name"], " ", role_tag(each["role"])), *(_cell(entry, look) for entry, look in found)])
        tables.append(join(tag("h3", stratum) if stratum else "", table(head, rows, class_="grid")))
    flat = tag("span", "flatters", class_="tag flatters")
    told = [[join(m["name"], " ", flat if flatters(m) else ""), str(m["what"]).removeprefix("flatters: ")] for m in d["metrics"]]
    return join(
        tag("h2", "All metrics"),
        *tables[:OPEN_STRATA],
        the_rest(tables, strata),
        tag("p", "Small: interval over donors. ↓: less is better. Hatched: flatters, and is never to be quoted alone.", class_="soft"),
        fold("what the metrics are", table(("metric", "what it is"), told)),
    )


def _cell(entry: Mapping[str, Any] | None, look: Mapping[str, str]) -> Html:
    if entry is None:
        return tag("td", "–", **look)
    small = tag("small", f"[{shown(entry['low'])}, {shown(entry['high'])}]") if entry["low"] is not None else ""
    return tag("td", shown(entry["value"]), small, **look)


def _look(metric: Mapping[str, Any]) -> dict[str, str]:
    return {"class_": "flatters"} if flatters(metric) else {}


def flatters(metric: Mapping[str, Any]) -> bool:
    """Return whether a metric says of itself that it flatters."""
    return str(metric["what"]).startswith("flatters")


def donors(report: Report, strata: Sequence[str]) -> Html:
    """Return the headline by donor, and by fold where folds are not the donors."""
    parts: list[Html] = []
    for stratum in strata:
        entries = [s for s in report.data["summary"] if (s["metric"], s["stratum"]) == (report.headline, stratum)]
        of_donors = {unit for s in entries for unit in s["by_donor"]}
        for key in ("by_donor", "by_fold"):
            units = list(dict.fromkeys(unit for s in entries for unit in s[key]))
            if len(units) < 2 or (key == "by_fold" and set(units) == of_donors):
                continue
            most = max((abs(v) for s in entries for v in s[key].values() if v is not None), default=0.0) or 1.0
            rows = [[unit, *(_tinted(s[key].get(unit), most) for s in entries)] for unit in units]
            title = key.replace("_", " ") + (f", {stratum}" if stratum else "") + f" ({len(units)})"
            grid = table([key[3:], *(s["method"] for s in entries)], rows, class_="grid")
            parts.append(fold(title, grid, open_=not parts and len(units) <= OPEN_DONORS))
    return join(tag("h2", f"{report.headline} of single donors"), *parts) if parts else Html()


def _tinted(value: float | None, most: float) -> Html:
    if value is None:
        return tag("td", "–")
    return tag("td", shown(value), class_="tint minus" if value < 0 else "tint", style=f"--t:{abs(value) / most:.2f}")


def methods(d: Mapping[str, Any]) -> Html:
    """Return what each method does."""
    rows = [[join(m["name"], " ", role_tag(m["role"])), m["what"], plural(len(m["seeds"]), "seed")] for m in d["methods"]]
    used = [role for role in ROLES if any(m["role"] == role for m in d["methods"])]
    return join(
        tag("h2", "Methods"),
        tag("ul", *(tag("li", role_tag(role), f" {ROLES[role]}") for role in used)),
        table(("method", "what it does", "run for"), rows),
    )


def ledger(d: Mapping[str, Any]) -> Html:
    """Return what each method is known to have seen, and what does not say it."""
    rows = []
    for m in d["methods"]:
        own = [e for e in d["ledger"] if e["method"] == m["name"]]
        leaks: dict[str, list[str]] = {}
        for entry in own:
            for leak in entry["leaks"]:
                leaks.setdefault(leak, []).append(entry["fold"])
        seen = [tag("li", f"{leak} (fold {listed(dict.fromkeys(folds))})") for leak, folds in leaks.items()]
        silent = sorted({name for e in own for name in e["silent"]})
        rows.append([m["name"], listed(silent) or "–", tag("ul", *seen) if seen else "none"])
    return fold("what each method has seen", table(("method", "does not say what it has seen", "test data seen"), rows))


def cost(d: Mapping[str, Any]) -> Html:
    """Return time and memory of each method."""
    rows = []
    for m in d["methods"]:
        own = [c for c in d["cost"] if c["method"] == m["name"]]
        wall, cpu = (sum(c[key] for c in own) for key in ("seconds", "processor_seconds"))
        peak = max((c["peak_mb"] for c in own if c["peak_mb"] is not None), default=None)
        memory = "–" if peak is None else f"{peak:,.0f} MB"
        rows.append([m["name"], str(len(own)), duration(wall), duration(wall / max(len(own), 1)), duration(cpu), memory])
    head = ("method", "runs", "time", "time a run", "processor time", "peak memory")
    note = (
        "Time to fit and predict, without scoring. Memory is the most that the whole process had taken by the end of the method's last run: "
        "what an earlier method took is in it."
    )
    return fold("time and memory", table(head, rows), tag("p", note, class_="soft"))


def data(d: Mapping[str, Any]) -> Html:
    """Return sections, folds, and what the methods noted."""
    sections = [[s["library"], s["donor"], f"{s['n_obs']:,}", f"{s['n_genes']:,}", tag("code", str(s["content"]))] for s in d["sections"]]
    folds = [[f["name"], ", ".join(f["train"]) or "–", ", ".join(f["test"])] for f in d["split"]["folds"]]
    notes: dict[tuple[str, str], list[str]] = {}
    for each in d.get("notes", ()):
        where = f"{each['fold']} (seed {each['seed']})"
        notes.setdefault((each["method"], json.dumps(each["notes"], ensure_ascii=False)), []).append(where)
    noted = [[method, ", ".join(where), tag("code", text)] for (method, text), where in notes.items()]
    return join(
        fold(plural(len(sections), "section"), table(("section", "donor", "observations", "genes", "hash of its counts"), sections)),
        fold(plural(len(folds), "fold"), table(("fold", "trained on", "tested on"), folds)),
        fold("what the methods noted", table(("method", "fold", "note"), noted)) if noted else "",
    )


def repeat(d: Mapping[str, Any]) -> Html:
    """Return the call that gives the same numbers, and the software and machine that gave these."""
    seeds = max((m["seeds"] for m in d["methods"]), key=len, default=[0])
    models = [m["name"] for m in d["methods"] if m["role"] == "model"]
    given = ["data", *([f"methods={{{', '.join(f'{m!r}: ...' for m in models)}}}"] if models else []), f"seeds={list(seeds)}"]
    given += ["allow_leakage=True"] if any(s.startswith("LEAKAGE") for s in d["stamps"]) else []
    lines = [
        "import stimg\n",
        f"report = stimg.bench.run({d['protocol']['name']!r}, {', '.join(given)})",
        *(f"assert report.data[{key!r}]['hash'] == {d[key]['hash']!r}" for key in ("protocol", "split")),
    ]
    note = "The same protocol hash, split hash and seeds give the same numbers. `data` are the sections above; all numbers behind this page are in `report.json`."
    versions = [[name, str(value)] for name, value in {**d["software"], **d["machine"]}.items()]
    return join(
        tag("h2", "How to repeat it"),
        tag("p", coded(note)),
        tag("pre", tag("code", "\n".join(lines))),
        fold("software and machine", table(("what", "which"), versions)),
    )


def the_rest(parts: Sequence[Html], strata: Sequence[str]) -> Html:
    """Return the parts of the strata that are closed from the start."""
    left = parts[OPEN_STRATA:]
    return fold(f"{len(left)} more: {'; '.join(strata[OPEN_STRATA:])}", *left) if left else Html()


def _broken(name: str) -> Html:
    """Return a name that may be broken after its underscores."""
    return Html("_<wbr>".join(join(word) for word in name.split("_")))


def coded(text: str) -> Html:
    """Return a text whose words between backticks are code."""
    return join(*(tag("code", part) if i % 2 else part for i, part in enumerate(text.split("`"))))


def role_tag(role: str) -> Html:
    """Return the mark of a role."""
    return tag("span", role, class_=f"tag {role}")


def signed(value: float) -> str:
    """Return a difference with its sign."""
    text = shown(value)
    return f"+{text}" if value > 0 else text


def duration(seconds: float) -> str:
    """Return a time in the unit in which it is read."""
    for least, unit, name in ((7200.0, 3600.0, "h"), (120.0, 60.0, "min")):
        if seconds >= least:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def plural(n: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def listed(names: Iterable[str]) -> str:
    """Return names with commas and "and"; empty where there are none."""
    *first, last = [*names] or [""]
    return f"{', '.join(first)} and {last}" if first else last
