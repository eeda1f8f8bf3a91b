"""Genes of a report of :func:`stimg.bench.run`: each against its noise ceiling or another method, and the worst cases as maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stimg._core import validate
from stimg.data.slots import RasterLibrary
from stimg.image.spec import RasterSpec
from stimg.pl import _style
from stimg.pl._geometry import Cells, bounding_box, cells_of
from stimg.pl._scores import CEILING, MUTED, content, figure_number, finish, lettering, panels, rows_of, shortened, strata_of

MARKS = "#0072B2"
NOISE = "noise ceiling"
"""What a gene's r is held against where it is not another method's."""


def gene_scores(
    report: Any,
    *,
    method: str,
    against: str = NOISE,
    stratum: str | Sequence[str] | None = None,
    label: int = 3,
    ncols: int = 2,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure:
    """Draw Pearson's r of each gene against its noise ceiling, or against another method's r for the same gene; on the diagonal both are equal.

    The r of a gene is its mean over seeds and sections. A gene whose r is undefined in every section (a constant prediction or truth) counts 0
    and is drawn as a grey cross.

    Parameters
    ----------
    report
        As for :func:`scores`; of a protocol that scores genes.
    method
        Name of a method of the report.
    against
        ``"noise ceiling"``, or the name of another method.
    stratum, ncols, ax, show, return_fig
        As for :func:`scores`.
    label
        Number of genes with the highest, and with the lowest r, whose names are written.

    Returns
    -------
    The Axes of a single panel, or a dict from stratum to Axes.

    Raises
    ------
    ValueError
        Where the report has no genes, no such method or stratum, no genes of the method there, or no noise ceiling.
    """
    data = content(report)
    names = strata_of(data, stratum, [s["stratum"] for s in data["summary"]])
    tables = {name: gene_table(data, method, against, name) for name in names}
    fig, axes = panels([4.2] * len(names), ncols, ax)
    for name, panel in zip(names, axes, strict=True):
        _draw_genes(panel, tables[name], method, against, label)
        panel.set_title(shortened(name or method, 60), loc="left", **lettering(_style.TITLE, weight="bold"))
    return _style.give(fig, axes[0] if len(axes) == 1 else dict(zip(names, axes, strict=True)), show=show, return_fig=return_fig)


def gene_table(data: Mapping[str, Any], method: str, against: str, stratum: str) -> pd.DataFrame:
    """Return ``r``, ``against`` and ``undefined`` (in every section) of each gene, means over seeds and sections."""
    details = pd.DataFrame(data["details"])
    if not {"gene", "r"} <= set(details):
        raise ValueError("The report has no genes (its protocol scores something else); wanted one with `details` by gene.")
    validate.one_of(method, [m["name"] for m in data["methods"]], "method")
    if against != NOISE:
        validate.one_of(against, [m["name"] for m in data["methods"]], "against")
    elif "ceiling" not in details:
        raise ValueError("The report has no noise ceiling of genes. Pass the name of another method as `against=`.")
    details = rows_of(data, details, stratum)
    details = details.assign(r=details["r"].astype(np.float64).fillna(0.0))
    own = details[details["method"] == method]
    other = own if against == NOISE else details[details["method"] == against]
    if own.empty or other.empty:
        raise ValueError(f"There are no genes of {method!r} and {against!r} in stratum {stratum!r}; wanted some of both.")
    out = own.groupby("gene").agg(r=("r", "mean"), undefined=("undefined", "all"))
    return out.assign(against=other.groupby("gene")["ceiling" if against == NOISE else "r"].mean()).dropna()


def _draw_genes(ax: Axes, table: pd.DataFrame, method: str, against: str, label: int) -> None:
    ceiling = against == NOISE
    x, y, dead = table["against"].to_numpy(), table["r"].to_numpy(), table["undefined"].to_numpy(dtype=bool)
    low = min(0.0, y.min(), 0.0 if ceiling else x.min())
    high = max(x.max(), y.max(), 0.1)
    left, margin = (0.0 if ceiling else low), 0.04 * (high - low)
    ax.axhline(0.0, color="#bdbdbd", lw=0.8, zorder=0)
    ax.plot([low, high], [low, high], color=CEILING if ceiling else MUTED, lw=1.2, ls=(0, (4, 2)), zorder=1, gid="equal")
    ax.plot(x[~dead], y[~dead], "o", ms=4, mfc=MARKS, mec="white", mew=0.3, alpha=0.7, zorder=2, gid="genes")
    ax.plot(x[dead], y[dead], "x", ms=4, mew=0.9, color=MUTED, zorder=2, gid="undefined")
    ax.set_xlim(left - margin, high + margin)
    ax.set_ylim(low - margin, high + margin)
    ax.set_aspect("equal")
    ax.set_xlabel("noise ceiling of r" if ceiling else f"r of {shortened(against)}", **lettering(_style.LABEL))
    ax.set_ylabel(f"r of {shortened(method)}", **lettering(_style.LABEL))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    finish(ax)
    order = np.argsort(y, kind="stable")
    step = 0.05 * (high - low)
    n = min(label, len(order) // 2)
    for chosen, way in ((order[::-1][:n], -1.0), (order[:n], 1.0)):
        at = np.inf * -way
        for i in chosen:
            at = float(min(y[i], at - step) if way < 0 else max(y[i], at + step))
            inside = x[i] > left + 0.7 * (high - left)
            to = x[i] + (-1 if inside else 1) * step / 2
            ax.plot([x[i], to], [y[i], at], "-", lw=0.5, color=MUTED, zorder=3, gid="leader")
            ax.text(
                to, at, shortened(str(table.index[i]), 16), ha="right" if inside else "left", va="center", zorder=4,
                path_effects=[patheffects.withStroke(linewidth=2.0, foreground="white")], **lettering(_style.TICK),
            )  # fmt: skip


def score_maps(
    report: Any,
    *,
    method: str,
    n: int = 3,
    best: bool = False,
    cmap: Any = "viridis",
    percentile: tuple[float, float] = (0.0, 99.5),
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[tuple[str, str, str], Axes] | Figure:
    """Draw truth and prediction of the genes with the lowest r of a method as maps in µm, one row a case, one colour scale a row.

    A report keeps a few such cases of each fold; these are the lowest among them.

    Parameters
    ----------
    report
        As for :func:`scores`.
    method
        Name of a method of the report; maps are kept of models and rivals.
    n
        Number of cases.
    best
        The highest r in place of the lowest.
    cmap, percentile
        Colour map, and the percentiles of truth and prediction together that are its limits.
    ax
        Axes to draw on, two for each case.
    show, return_fig
        As in :func:`raster`.

    Returns
    -------
    A dict from (library, gene, ``"truth"`` | ``"prediction"``) to Axes; in place of the library stands the fold where a fold is a part of one.

    Raises
    ------
    ValueError
        Where the report keeps no maps of the method, or the number of Axes does not fit.
    """
    cases = worst_cases(content(report), method, n, best=best)
    found = [_cells(case) for case in cases]
    boxes = [bounding_box(cells) for cells, _ in found for _ in range(2)]
    fig, axes = _style.panels(boxes, 2, ax, side=1.9, right=0.35)
    grid, out = iter(axes), {}
    for case, (cells, keep) in zip(cases, found, strict=True):
        values = {k: np.array(case[w], dtype=np.float64)[keep][cells.first] for k, w in (("truth", "truth"), ("prediction", "predicted"))}
        norm = _style.limits(list(values.values()), None, None, percentile)
        place = case["fold"] if str(case["fold"]).startswith(case["library"]) else case["library"]
        titles = {
            "truth": f"{shortened(case['gene'], 16)} · {shortened(place, 20)}",
            "prediction": f"predicted, r = {figure_number(case['r'], 2)}",
        }
        for kind, title in titles.items():
            panel = next(grid)
            box = bounding_box(cells)
            artist = _style.draw(panel, cells, values[kind], cmap=cmap, norm=norm, alpha=None)
            _style.finish_map(panel, box, scale_bar=kind == "truth")
            panel.set_title(title, **lettering(_style.LABEL), pad=4)
            out[place, case["gene"], kind] = panel
        _style.color_bar(panel, artist, label="", drawn=list(values.values()))
    return _style.give(fig, out, show=show, return_fig=return_fig)


def worst_cases(data: Mapping[str, Any], method: str, n: int, *, best: bool) -> list[Mapping[str, Any]]:
    """Return the maps with the lowest (or highest) r, each gene of a section once."""
    own = sorted((m for m in data["maps"] if m["method"] == method and m["r"] is not None), key=lambda m: m["r"], reverse=best)
    if not own:
        raise ValueError(f"The report keeps no maps of method={method!r} (it has those of {sorted({m['method'] for m in data['maps']})}).")
    once = {(m["fold"], m["library"], m["gene"]): m for m in reversed(own)}
    return [m for m in own if once[m["fold"], m["library"], m["gene"]] is m][: validate.whole(n, "n")]


def _cells(case: Mapping[str, Any]) -> tuple[Cells, np.ndarray]:
    """Return the cells of a map, and which of its observations are on the raster."""
    rc = np.asarray(case["raster"]["rc"], dtype=np.int32).reshape(-1, 2)
    keep = np.asarray((rc >= 0).all(axis=1))
    spec = RasterSpec.from_dict(case["raster"]["spec"])
    return cells_of(RasterLibrary(str(case["library"]), spec, np.arange(int(keep.sum())), rc[keep])), keep
