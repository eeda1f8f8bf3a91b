"""Tables of a report as text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stimg.bench.report import Report

SHOWN = 5
"""Metrics that a table shows where none are named."""


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as the tables of stimg print it: ``.123``, ``-.045``, ``1.200``; a dash where there is none."""
    if value is None or value != value:
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def cell(entry: dict) -> str:
    """Return value, interval over donors, and spread over seeds."""
    text = number(entry["value"])
    if entry["low"] is not None:
        text += f" [{number(entry['low'])}, {number(entry['high'])}]"
    if entry["n_seeds"] > 1 and entry["seed_sd"] is not None:
        text += f" ± {number(entry['seed_sd'])}"
    return text


def markdown(report: "Report", metrics: Sequence[str] | None = None) -> str:
    """Return methods by metrics as a Markdown table, one for each stratum, stamps above."""
    known = [m["name"] for m in report.data["metrics"]]
    wanted = list(metrics) if metrics is not None else known[:SHOWN]
    unknown = [m for m in wanted if m not in known]
    if unknown:
        raise ValueError(f"metrics={unknown} are not in the report; wanted some of {known}.")
    entries = {(s["method"], s["stratum"], s["metric"]): s for s in report.data["summary"]}
    strata = list(dict.fromkeys(s["stratum"] for s in report.data["summary"]))
    role = {m["name"]: m["role"] for m in report.data["methods"]}
    lines = [f"**{stamp}**\n" for stamp in report.data["stamps"]]
    for stratum in strata:
        if stratum:
            lines.append(f"**{stratum}**\n")
        lines.append("| method | role | " + " | ".join(wanted) + " |")
        lines.append("|---|---|" + "---|" * len(wanted))
        for method in role:
            found = [entries.get((method, stratum, m)) for m in wanted]
            if any(found):
                lines.append(f"| {method} | {role[method]} | " + " | ".join(cell(f) if f else "–" for f in found) + " |")
        lines.append("")
    return "\n".join(lines)
