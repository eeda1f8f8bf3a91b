"""What ``pp.check_slide`` found: the slide with its observations, and the table of checks."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stimg._core import keys, validate
from stimg.data.tables import table_of
from stimg.pl import _style

MARKS = {"pass": ("✓", "#009E73"), "warn": ("!", "#B87A00"), "fail": ("✗", "#D55E00"), "skip": ("–", "#767676")}
"""Sign and colour of each status; the sign alone tells them apart."""
_TODO = "Run `stimg.pp.check_slide` first."
_LEFT, _RIGHT, _LINE = 4.6, 8.4, 0.165  # inches: picture, table, one line of text
_WIDE = 116  # letters in a line of the table


def check_slide(
    data: Any,
    *,
    key: str = keys.CHECK_SLIDE,
    library_id: str | Sequence[str] | None = None,
    table_key: str = "table",
    cmap: Any = "viridis",
    details: bool = False,
    show: bool | None = None,
) -> Figure | dict[str, Figure]:
    """Draw the examination of each library: its image with the observations coloured by depth, and every check with what to do.

    Reads ``uns["stimg"]["check_slide"]``; nothing is computed or written. The picture is the one that was examined, also where the data have been
    changed since.

    Parameters
    ----------
    data
        AnnData or SpatialData after :func:`stimg.pp.check_slide`.
    key
        The entry of ``uns["stimg"]`` that it wrote.
    library_id
        Libraries to draw, None for all of them.
    table_key
        Table of a SpatialData.
    cmap
        Colour map of the depth.
    details
        Write out what was found of every check, not only of those that warn or fail.
    show
        True calls ``matplotlib.pyplot.show()``; otherwise showing is left to the caller (notebooks show the figure by themselves).

    Returns
    -------
    The figure of a single library, or a dict from library to figure.

    Raises
    ------
    KeyError
        Where the examination or a library is missing.
    """
    adata = table_of(data, table_key)
    record = validate.slot(adata.uns.get(keys.UNS, {}), "uns['stimg']", key, todo=_TODO)
    if not isinstance(record, Mapping) or "libraries" not in record or "table" not in record:
        raise KeyError(f"adata.uns['stimg'][{key!r}] holds no examination of slides. {_TODO}")
    known = sorted(record["libraries"])
    wanted = known if library_id is None else validate.names(library_id)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise KeyError(f"libraries {unknown} were not examined (found {known}). {_TODO}")
    table, library_key = record["table"], str(record["library_key"])
    out = {name: _figure(name, record["libraries"][name], table[table[library_key].astype(str) == name], cmap, details) for name in wanted}
    if show:
        plt.show()
    return out[wanted[0]] if len(wanted) == 1 else out


def _figure(name: str, sketch: Mapping[str, Any], rows: pd.DataFrame, cmap: Any, details: bool) -> Figure:
    lines = [_words(row, details) for row in rows.itertuples()]
    height = max(4.6, 0.75 + _LINE * sum(len(text) + 0.45 for _, text in lines))
    fig = plt.figure(figsize=(_LEFT + _RIGHT, height))
    picture = fig.add_axes((0.15 / (_LEFT + _RIGHT), 0.45 / height, (_LEFT - 0.95) / (_LEFT + _RIGHT), 1 - 0.95 / height))
    _draw_slide(picture, sketch, cmap)
    counted = rows["status"].value_counts()
    picture.set_title(f"{name} · {int(sketch['n_obs'])} observations", fontsize=_style.TITLE, color=_style.INK, pad=6)
    side = fig.add_axes((_LEFT / (_LEFT + _RIGHT), 0.0, _RIGHT / (_LEFT + _RIGHT), 1.0))
    side.set_xlim(0, _RIGHT)
    side.set_ylim(height, 0)
    side.axis("off")
    x = 0.1
    for status, (mark, color) in MARKS.items():
        text = f"{mark} {counted.get(status, 0)} {status}"
        side.text(x, 0.3, text, fontsize=_style.TITLE, color=color, fontweight="bold", va="center")
        x += 1.15
    _draw_rows(side, lines)
    return fig


def _words(row: Any, details: bool) -> tuple[Any, list[tuple[str, bool]]]:
    """Return the row and its lines, each with whether it says what to do."""
    told = details or row.status in ("warn", "fail")
    if not told:
        return row, [(textwrap.shorten(str(row.found), _WIDE, placeholder=" …"), False)]
    lines = [(line, False) for line in textwrap.wrap(str(row.found), _WIDE)]
    return row, lines + [(line, True) for line in textwrap.wrap(f"→ {row.todo}", _WIDE) if row.todo]


def _draw_rows(ax: Axes, lines: Sequence[tuple[Any, list[tuple[str, bool]]]]) -> None:
    y = 0.65
    for row, text in lines:
        mark, color = MARKS[row.status]
        ax.text(0.1, y, mark, fontsize=_style.TITLE, color=color, fontweight="bold", va="center", ha="center")
        weight = "bold" if row.status in ("warn", "fail") else "normal"
        ax.text(0.3, y, row.check, fontsize=_style.TICK, color=_style.INK, fontweight=weight, va="center")
        for i, (line, todo) in enumerate(text):
            shade = _style.INK if todo or row.status in ("warn", "fail") else "#5a5a5a"
            ax.text(1.65, y + i * _LINE, line, fontsize=7.2, color=shade, va="center", style="italic" if todo else "normal")
        y += _LINE * (len(text) + 0.45)


def _draw_slide(ax: Axes, sketch: Mapping[str, Any], cmap: Any) -> None:
    xy, depth, mpp = np.asarray(sketch["xy"], dtype=float), np.asarray(sketch["depth"], dtype=float), float(sketch["mpp"])
    image = sketch.get("image")
    low, high = (xy.min(axis=0), xy.max(axis=0)) if len(xy) else (np.zeros(2), np.ones(2))
    if image is not None:
        ax.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), origin="upper", aspect="equal")
        low, high = np.minimum(low, 0), np.maximum(high, [image.shape[1], image.shape[0]])
    margin = 0.02 * (high - low).max()
    box = (low[1] - margin, low[0] - margin, high[1] - low[1] + 2 * margin, high[0] - low[0] + 2 * margin)
    ax.set_xlim(box[1], box[1] + box[3])
    ax.set_ylim(box[0] + box[2], box[0])
    ax.set_aspect("equal", anchor="N")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color("#b0b0b0")
    if not len(xy):
        ax.text(0.5, 0.5, "no coordinates", transform=ax.transAxes, ha="center", va="center", fontsize=_style.LABEL)
        return
    size = float(np.clip(12_000 / len(xy), 1.0, 22.0))
    points = ax.scatter(
        xy[:, 0], xy[:, 1], c=np.log10(depth + 1), s=size, cmap=cmap, linewidths=0.4, edgecolors="white", rasterized=len(xy) > 5000
    )
    bar = ax.get_figure().colorbar(points, cax=ax.inset_axes((1.03, 0.0, 0.035, 1.0)))  # type: ignore[union-attr]
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
    bar.set_label("log10(counts + 1)", fontsize=_style.LABEL, color=_style.INK)
    bar.ax.tick_params(labelsize=_style.TICK, width=0.6, length=2.5, colors=_style.INK)
    bar.outline.set_linewidth(0.5)
    if mpp > 0:
        _scale_bar(ax, box, mpp)
    else:
        ax.text(0.0, -0.03, "scale unknown", transform=ax.transAxes, fontsize=_style.TICK, color=MARKS["fail"][1], va="top")


def _scale_bar(ax: Axes, box: tuple[float, float, float, float], mpp: float) -> None:
    """Draw a bar below the picture, whose data are pixels of ``mpp`` µm."""
    length = _style.bar_length_um(box[3] * mpp)
    ax.plot(
        [box[1], box[1] + length / mpp],
        [-0.03, -0.03],
        transform=ax.get_xaxis_transform(),
        color=_style.INK,
        lw=2,
        clip_on=False,
        gid="scale bar",
    )
    ax.set_xlim(box[1], box[1] + box[3])
    ax.annotate(
        _style.length_text(length),
        (box[1] + length / mpp, -0.03),
        xycoords=ax.get_xaxis_transform(),
        xytext=(5, 0),
        textcoords="offset points",
        fontsize=_style.TICK,
        color=_style.INK,
        va="center",
        annotation_clip=False,
        gid="scale bar",
    )
