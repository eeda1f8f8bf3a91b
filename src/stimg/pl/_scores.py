"""Scores of a report of :func:`stimg.bench.run`: every method beside nulls, audits and the noise ceiling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from stimg._core import validate
from stimg.pl import _style

MUTED, CEILING = "#737373", "#009E73"
ROLES: dict[str, dict[str, Any]] = {
    "model": {"color": "#0072B2", "marker": "o", "mfc": "#0072B2"},
    "rival": {"color": "#D55E00", "marker": "s", "mfc": "#D55E00"},
    "null": {"color": MUTED, "marker": "o", "mfc": MUTED},
    "audit": {"color": MUTED, "marker": "D", "mfc": "white"},
}
"""How each role is drawn: told apart by shape and filling as well as by colour."""
CEILING_OF = {"mean_r": "ceiling"}
CHANCE_OF = {f"recall_{k}": f"chance_{k}" for k in (1, 5, 10, 50)} | {"accuracy": "chance_accuracy"}
"""Columns of the scores that hold, for a metric, what no method can exceed, and what a random answer gets."""
LONGEST = 38
"""Letters of a name that fit above its row."""


@dataclass(frozen=True)
class _Row:
    name: str
    role: str
    value: float
    low: float
    high: float
    donors: np.ndarray
    seeds: np.ndarray


def scores(
    report: Any,
    *,
    metric: str | None = None,
    stratum: str | Sequence[str] | None = None,
    legend: bool = True,
    ncols: int = 2,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure:
    """Draw every method of a report as a dot with its interval over donors, best first, beside nulls, audits and the noise ceiling.

    Small open circles are single donors, small bars single seeds. Nulls and audits are grey; an audit has read the truth. Where the report has
    them, the noise ceiling is a dashed line (its range over donors a band), and what chance gives a dotted one. One panel for each stratum,
    such as a panel of genes; strata are never averaged.

    Parameters
    ----------
    report
        A :class:`stimg.bench.Report`, or the content of its ``report.json``.
    metric
        Name of a metric; None for the first one of the report, its headline.
    stratum
        Strata to draw; None for all.
    legend
        Say below each panel what the marks are.
    ncols, ax, show, return_fig
        As in :func:`raster`.

    Returns
    -------
    The Axes of a single panel, or a dict from stratum to Axes.

    Raises
    ------
    TypeError
        Where ``report`` is no report.
    ValueError
        Where it has no such metric or stratum, or the number of Axes does not fit.
    """
    data = content(report)
    wanted = metric or str(data["metrics"][0]["name"])
    validate.one_of(wanted, [m["name"] for m in data["metrics"]], "metric")
    facts = next(m for m in data["metrics"] if m["name"] == wanted)
    names = strata_of(data, stratum, [s["stratum"] for s in data["summary"] if s["metric"] == wanted])
    rows = {name: _rows(data, facts, name) for name in names}
    lines = {name: {kind: _level(data, where.get(wanted), name) for kind, where in _LINES.items()} for name in names}
    spans = _shared({name: _span(rows[name], lines[name]) for name in names})
    fig, axes = panels([0.43 * len(rows[n]) + (1.6 if legend else 0.95) for n in names], ncols, ax)
    for name, panel in zip(names, axes, strict=True):
        _draw_rows(panel, rows[name], lines[name], spans[name])
        if legend:
            _key(panel, rows[name], lines[name])
        panel.set_xlabel(f"{wanted} ({'more' if facts.get('more_is_better', True) else 'less'} is better)", **lettering(_style.LABEL))
        if name:
            panel.set_title(shortened(name, 60), loc="left", **lettering(_style.TITLE, weight="bold"))
    return _style.give(fig, axes[0] if len(axes) == 1 else dict(zip(names, axes, strict=True)), show=show, return_fig=return_fig)


_LINES = {"noise ceiling": CEILING_OF, "chance": CHANCE_OF}


def content(report: Any) -> Mapping[str, Any]:
    """Return the content of a report; a TypeError where it is none."""
    data = getattr(report, "data", report)
    if not isinstance(data, Mapping) or not {"metrics", "methods", "scores", "summary", "details", "maps"} <= set(data):
        raise TypeError(
            f"report is a {type(report).__name__} without the entries of a report; wanted what `stimg.bench.run` returns or "
            "`stimg.bench.Report.load` reads."
        )
    return data


def strata_of(data: Mapping[str, Any], stratum: str | Sequence[str] | None, found: Sequence[str]) -> list[str]:
    """Return the strata to draw, of those that are found."""
    known = list(dict.fromkeys(found))
    wanted = known if stratum is None else [stratum] if isinstance(stratum, str) else list(stratum)
    for name in wanted:
        validate.one_of(name, known, "stratum")
    if not wanted:
        raise ValueError("There is no stratum to draw; wanted at least one. Pass `stratum=None` for all of the report.")
    return wanted


def rows_of(data: Mapping[str, Any], rows: pd.DataFrame, stratum: str) -> pd.DataFrame:
    """Return the rows of a table of the report that belong to the stratum."""
    keys = list(data["protocol"]["strata"])
    if not keys or not len(rows):
        return rows
    first, *others = (rows[key].astype(str) for key in keys)
    return rows[first.str.cat(others, sep=", ") == stratum]


def _rows(data: Mapping[str, Any], metric: Mapping[str, Any], stratum: str) -> list[_Row]:
    """Return what is drawn of each method, best first."""
    role = {m["name"]: m["role"] for m in data["methods"]}
    table = rows_of(data, pd.DataFrame(data["scores"]), stratum)
    out = []
    for entry in data["summary"]:
        if entry["metric"] != metric["name"] or entry["stratum"] != stratum or entry["value"] is None:
            continue
        own = table[table["method"] == entry["method"]]
        seeds = own.groupby("seed")[metric["name"]].agg(metric.get("aggregate", "mean")).to_numpy(dtype=np.float64)
        low, high = (np.nan if entry[k] is None else float(entry[k]) for k in ("low", "high"))
        donors = np.array([v for v in entry["by_donor"].values() if v is not None], dtype=np.float64)
        out.append(_Row(entry["method"], role[entry["method"]], float(entry["value"]), low, high, donors, seeds))
    return sorted(out, key=lambda r: r.value, reverse=metric.get("more_is_better", True))


def _level(data: Mapping[str, Any], column: str | None, stratum: str) -> tuple[float, float, float] | None:
    """Return (mean, least donor, greatest donor) of a column that is the same for every method; None where the report has none."""
    table = rows_of(data, pd.DataFrame(data["scores"]), stratum)
    if column not in table or table[column].isna().all():
        return None
    units = table.drop_duplicates(["fold", "library", "donor"])
    donors = units.groupby("donor")[column].mean()
    return float(units[column].mean()), float(donors.min()), float(donors.max())


def _span(rows: Sequence[_Row], lines: Mapping[str, tuple[float, float, float] | None]) -> tuple[float, float]:
    """Return the range of everything that is drawn, and of 0."""
    drawn = [np.array([0.0]), *(np.array(line) for line in lines.values() if line is not None)]
    drawn += [np.r_[r.value, r.low, r.high, r.donors, r.seeds] for r in rows]
    values = np.concatenate(drawn)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return (low, high) if high > low else (low, low + 1.0)


def _shared(spans: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Return one range for all strata, so that they can be compared; each its own where one would be too small to see."""
    low, high = min(s[0] for s in spans.values()), max(s[1] for s in spans.values())
    if high - low > 2 * min(s[1] - s[0] for s in spans.values()):
        return dict(spans)
    return dict.fromkeys(spans, (low, high))


def _draw_rows(ax: Axes, rows: Sequence[_Row], lines: Mapping[str, tuple[float, float, float] | None], span: tuple[float, float]) -> None:
    glow = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    across = ax.get_yaxis_transform()
    for kind, line in lines.items():
        if line is not None:
            look = {"color": CEILING, "ls": (0, (4, 2))} if kind == "noise ceiling" else {"color": MUTED, "ls": ":"}
            ax.axvspan(line[1], line[2], color=look["color"], alpha=0.12, lw=0, zorder=0)
            ax.axvline(line[0], lw=1.3, zorder=1, gid=kind, **look)  # type: ignore[arg-type]
    ax.axvline(0.0, color="#bdbdbd", lw=0.8, zorder=0)
    for i, row in enumerate(rows):
        look = ROLES[row.role]
        ink = _style.INK if row.role in ("model", "rival") else MUTED
        ax.axhline(i, color="#ececec", lw=0.8, zorder=0)
        ax.plot(
            row.donors, np.full(len(row.donors), i), "o", ms=3.4, mfc="none", mec=look["color"], mew=0.7, alpha=0.75, zorder=2, gid="donors"
        )
        if np.isfinite([row.low, row.high]).all():
            ax.plot([row.low, row.high], [i, i], "-", color=look["color"], lw=2.2, solid_capstyle="butt", zorder=3, gid="interval")
        if len(row.seeds) > 1:
            ax.plot(row.seeds, np.full(len(row.seeds), i + 0.17), "|", ms=5, mew=0.9, color=look["color"], zorder=3, gid="seeds")
        ax.plot([row.value], [i], ls="none", ms=7, mec=look["color"], mew=1.4, zorder=4, gid=f"value of {row.name}", **look)
        name = shortened(row.name) + (f"  ({row.role})" if row.role != "model" else "")
        numbers = figure_number(row.value) + (f" [{figure_number(row.low)}, {figure_number(row.high)}]" if np.isfinite(row.low) else "")
        for x, side, text in ((0.0, "left", name), (1.0, "right", numbers)):
            weight = "bold" if row.role == "model" and side == "left" else "normal"
            ax.text(
                x, i - 0.24, text, transform=across, ha=side, va="bottom", path_effects=glow, zorder=5,
                **lettering(_style.TICK + 0.5, ink, weight),
            )  # fmt: skip
    margin = 0.04 * (span[1] - span[0])
    ax.set_xlim(span[0] - margin, span[1] + margin)
    ax.set_ylim(len(rows) - 0.55, -0.85)
    ax.set_yticks([])
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    finish(ax, left=False)


def _key(ax: Axes, rows: Sequence[_Row], lines: Mapping[str, Any]) -> None:
    """Write below the panel what the marks are."""
    roles = [role for role in ROLES if any(r.role == role for r in rows)]
    told = {"audit": "audit: reads the truth"}
    handles: list[Any] = [Line2D([], [], ls="none", ms=6, mec=ROLES[r]["color"], mew=1.3, **ROLES[r]) for r in roles]
    names = [told.get(r, r) for r in roles]
    if any(np.isfinite(r.low) for r in rows):
        handles.append(Line2D([], [], color=_style.INK, lw=2.2))
        names.append("95 % interval over donors")
    if any(len(r.donors) > 1 for r in rows):
        handles.append(Line2D([], [], ls="none", marker="o", ms=3.4, mfc="none", mec=_style.INK, mew=0.7))
        names.append("one donor")
    if any(len(r.seeds) > 1 for r in rows):
        handles.append(Line2D([], [], ls="none", marker="|", ms=5, mew=0.9, color=_style.INK))
        names.append("one seed")
    if lines.get("noise ceiling") is not None:
        handles.append((Patch(color=CEILING, alpha=0.15, lw=0), Line2D([], [], color=CEILING, lw=1.3, ls=(0, (4, 2)))))
        names.append("noise ceiling, range of donors")
    if lines.get("chance") is not None:
        handles.append(Line2D([], [], color=MUTED, lw=1.3, ls=":"))
        names.append("chance")
    figure: Any = ax.get_figure()
    below = ax.transAxes + ScaledTranslation(0, -36 / 72, figure.dpi_scale_trans)
    ax.legend(
        handles, names, loc="upper left", bbox_to_anchor=(0.0, 0.0), bbox_transform=below, ncols=2, frameon=False, fontsize=_style.TICK,
        labelcolor=_style.INK, handlelength=1.6, handletextpad=0.5, labelspacing=0.3, columnspacing=1.2, borderaxespad=0.0, borderpad=0.0,
    )  # fmt: skip


def shortened(name: str, most: int = LONGEST) -> str:
    """Return a name of at most ``most`` letters, in one line."""
    line = " ".join(str(name).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def panels(heights: Sequence[float], ncols: int, ax: Axes | Sequence[Axes] | None) -> tuple[Figure, list[Axes]]:
    """Return Axes: those given, or new ones 4.6 inches wide and of the heights."""
    if ax is not None or ncols < 1:
        return _style.panels([(0, 0, 1, 1)] * len(heights), ncols, ax)
    ncols = min(ncols, len(heights))
    rows = [max(heights[i : i + ncols]) for i in range(0, len(heights), ncols)]
    fig = plt.figure(figsize=(4.6 * ncols, sum(rows)), layout="constrained")
    _style.pad(fig, 0.06)
    grid = fig.add_gridspec(len(rows), ncols, height_ratios=rows)
    return fig, [fig.add_subplot(grid[i // ncols, i % ncols]) for i in range(len(heights))]


def finish(ax: Axes, *, left: bool = True) -> None:
    """Give an Axes small ticks, and take away the lines of its frame that carry none."""
    ax.tick_params(labelsize=_style.TICK, width=0.6, length=3, colors=_style.INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines["left"].set_visible(left)
    ax.spines[["left", "bottom"]].set_linewidth(0.6)


def figure_number(value: float, digits: int = 3) -> str:
    """Return a number as the tables of a report print it, with a minus sign: ``.123``, ``−.045``, ``1.200``."""
    text = f"{abs(value):.{digits}f}"
    return ("−" if value < 0 and float(text) else "") + text.removeprefix("0")


def lettering(size: float, color: str = _style.INK, weight: str = "normal") -> dict[str, Any]:
    """Return the options of a text; names are drawn as they are, dollars included."""
    return {"fontsize": size, "color": color, "fontweight": weight, "parse_math": False}
