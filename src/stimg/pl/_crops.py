"""Crops of a raster: where they lie on the section, and what is in them."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse as sp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Stroke, withStroke

from stimg._core import keys
from stimg._core.rng import RngLike, as_generator
from stimg.data.tables import table_of
from stimg.image.spec import CropSpec
from stimg.pl import _style
from stimg.pl._geometry import Box, Cells, bounding_box, window_box
from stimg.pl._values import Shown, Transform, select_cells, shown_genes

Crop = tuple[str, int, int]
"""(library, top, left) in lattice steps."""
_EMPTY = {1: "#f2f2f2", 3: "#d4d4d4"}
"""Where nothing was measured; a composite has its own white and black."""


def crops(
    data: Any,
    *,
    genes: str | Sequence[str],
    crops: Sequence[Crop] | None = None,
    spec: CropSpec | None = None,
    n: int = 6,
    rng: RngLike = 0,
    layer: str | None = None,
    transform: Transform = "log1p",
    library_id: str | Sequence[str] | None = None,
    library_key: str = keys.LIBRARY,
    table_key: str = "table",
    cmap: Any = "viridis",
    percentile: tuple[float, float] | None = None,
    ncols: int = 3,
    scale_bar: bool = True,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str | Crop, Axes] | Figure:
    """Draw each section with the outlines of its crops, and the crops enlarged beside it.

    One gene is drawn with a colour map, three genes as a colour composite: each gene is scaled to its own limits over all drawn
    libraries, gives light of its own colour (vermilion, bluish green, blue), and the light is added; black is no expression.

    Parameters
    ----------
    data
        AnnData after :func:`stimg.pp.rasterize`, or SpatialData with such a table.
    genes
        One gene, or three.
    crops
        (library, top, left) of each crop in lattice steps; None to draw ``n`` of them by chance.
    spec
        Size of the crops and fewest occupied lattice points of one drawn by chance; by default 16 x 16, and a tenth of them.
    n, rng
        Number of crops drawn by chance over all libraries, and the source of chance. The libraries take turns, and a window that
        overlaps an earlier one is taken only where no other is left. This is for the eye, not the sampler of the models.
    layer, transform
        Layer with the values (None for ``adata.X``); ``"log1p"`` draws log(1 + value).
    library_id, library_key
        Libraries to draw, None for all (with ``crops`` given: those named there).
    table_key
        Table of a SpatialData.
    cmap, percentile
        Colour map of a single gene; percentiles of the drawn values that become the colour limits, by default (0, 99.5) for one
        gene and (5, 99.5) for three, whose sum would otherwise be white where all are expressed everywhere.
    ncols
        Crops in a row.
    scale_bar
        Draw the scale bars.
    ax
        Axes to draw on: for each library its section and then its crops.
    show, return_fig
        As in :func:`raster`.

    Returns
    -------
    A dict from the library's name to the Axes of its section, and from (library, top, left) to the Axes of each crop.

    Raises
    ------
    KeyError
        Where a slot, gene, layer or library is missing.
    ValueError
        Where neither one nor three genes are given, a window holds no occupied lattice point, no window is full enough, or the
        number of Axes does not fit.
    """
    adata = table_of(data, table_key)
    spec = spec if spec is not None else CropSpec()
    names = [genes] if isinstance(genes, str) else list(genes)
    if len(names) not in (1, 3):
        raise ValueError(f"{len(names)} genes given; wanted one (colour map) or three (colour composite).")
    if crops is not None and not len(crops):
        raise ValueError("crops is empty; wanted (library, top, left) of each crop, or None to draw them by chance.")
    if crops is not None and library_id is None:
        library_id = list(dict.fromkeys(str(c[0]) for c in crops))
    libraries = {cells.name: cells for cells in select_cells(adata, library_id, library_key)}
    things = shown_genes(adata, names, layer, transform)
    if crops is None:
        chosen = _by_chance(list(libraries.values()), spec, n, as_generator(rng))
    else:
        chosen = [_checked(libraries, (str(c[0]), int(c[1]), int(c[2])), spec) for c in crops]
    groups = {name: [c for c in chosen if c[0] == name] for name in libraries}
    groups = {name: found for name, found in groups.items() if found}
    fig, axes = _layout(libraries, groups, spec, ncols, ax)
    share = percentile if percentile is not None else (0.0, 99.5) if len(things) == 1 else (5.0, 99.5)
    paint = _Paint([libraries[name] for name in groups], things, cmap, share)
    out: dict[str | Crop, Axes] = {}
    number = 0
    for name, found in groups.items():
        cells = libraries[name]
        overview = axes.pop(0)
        artist = paint(overview, cells, None)
        _style.finish_map(overview, bounding_box(cells), title=name, scale_bar=scale_bar)
        paint.key(overview, artist)
        if len(things) == 3:
            overview.set_facecolor(_EMPTY[3])
        out[name] = overview
        for i, crop in enumerate(found):
            number += 1
            box = window_box(cells.spec, crop[1], crop[2], *spec.size)
            _outline(overview, box, number)
            panel = axes.pop(0)
            paint(panel, cells, box, window=(crop[1], crop[2], *spec.size))
            _style.finish_map(panel, box, scale_bar=scale_bar and i == 0)
            panel.set_title(str(number), loc="left", fontsize=_style.LABEL, weight="bold", color=_style.INK, pad=4)
            panel.set_title(f"row {crop[1]}, column {crop[2]}", loc="right", fontsize=_style.TICK, color=_style.INK, pad=4)
            panel.set_facecolor(_EMPTY[len(things)])
            out[crop] = panel
    return _style.give(fig, out, show=show, return_fig=return_fig)


class _Paint:
    """Draws the genes of one picture with limits shared by all its panels."""

    def __init__(self, libraries: Sequence[Cells], things: Sequence[Shown], cmap: Any, percentile: tuple[float, float]) -> None:
        self.things, self.cmap = things, cmap
        self.values = {cells.name: np.stack([t.at(cells) for t in things], axis=1) for cells in libraries}
        self.norms = [_style.limits([v[:, k] for v in self.values.values()], None, None, percentile) for k in range(len(things))]

    def __call__(self, ax: Axes, cells: Cells, box: Box | None, window: tuple[int, int, int, int] | None = None) -> Any:
        values = self.values[cells.name]
        if window is not None:
            top, left, height, width = window
            row, col = cells.rc.T
            inside = (row >= top) & (row < top + height) & (col >= left) & (col < left + width)
            cells = Cells(cells.name, cells.spec, cells.rc[inside], cells.first[inside], cells.rows, cells.point)
            values = values[inside]
        if len(self.things) == 1:
            return _style.draw(ax, cells, values[:, 0], cmap=self.cmap, norm=self.norms[0], alpha=None)
        return _style.draw_rgb(ax, cells, _style.composite(values, self.norms, _style.RGB_COLORS))

    def key(self, ax: Axes, artist: Any) -> None:
        """Write the colour bar, or the colours of the three genes with the value that is full light."""
        label = self.things[0].label
        if len(self.things) == 1:
            _style.color_bar(ax, artist, label=f"{self.things[0].name}, {label}", drawn=[v[:, 0] for v in self.values.values()])
            return
        handles = [Patch(facecolor=color) for color in _style.RGB_COLORS]
        texts = [f"{t.name}  {norm.vmin:.3g} to {norm.vmax:.3g}" for t, norm in zip(self.things, self.norms, strict=True)]
        ax.legend(
            handles, texts, title=label, loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=_style.TICK,
            title_fontsize=_style.TICK, alignment="left", labelcolor=_style.INK, handlelength=0.9, handleheight=0.9, handletextpad=0.5,
        )  # fmt: skip


def _checked(libraries: dict[str, Cells], crop: Crop, spec: CropSpec) -> Crop:
    if crop[0] not in libraries:
        raise KeyError(f"Crop {crop} lies in a library that is not drawn (drawn: {list(libraries)}). Add it to `library_id=`.")
    cells = libraries[crop[0]]
    row, col = cells.rc[:, 0] - crop[1], cells.rc[:, 1] - crop[2]
    if not ((row >= 0) & (row < spec.size[0]) & (col >= 0) & (col < spec.size[1])).any():
        raise ValueError(
            f"Crop {crop} of {spec.size[0]} x {spec.size[1]} holds no occupied lattice point; rows {cells.rc[:, 0].min()} to {cells.rc[:, 0].max()} and "
            f"columns {cells.rc[:, 1].min()} to {cells.rc[:, 1].max()} of library {crop[0]!r} are occupied."
        )
    return crop


def _by_chance(libraries: Sequence[Cells], spec: CropSpec, n: int, rng: np.random.Generator) -> list[Crop]:
    """Return ``n`` windows with enough occupied lattice points, in the order of the libraries, then from top to bottom."""
    if n < 1:
        raise ValueError(f"n={n}; wanted at least one crop.")
    height, width = spec.size
    place, candidates = [], []
    for k, cells in enumerate(libraries):
        rows, cols = (max(side, size) for side, size in zip(cells.spec.shape, spec.size, strict=True))
        occupied = sp.csr_matrix((np.ones(len(cells.rc), np.int64), (cells.rc[:, 0], cells.rc[:, 1])), shape=(rows, cols)).toarray()
        total = np.pad(occupied.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        inside = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
        corner = np.argwhere(inside >= spec.fewest)
        candidates.append(corner)
        place.append(np.full(len(corner), k))
    corners, library = np.concatenate(candidates), np.concatenate(place)
    if len(corners) < n:
        raise ValueError(
            f"{len(corners)} windows of {height} x {width} hold at least {spec.fewest} occupied lattice points; wanted n={n}. "
            "Choose smaller crops, a smaller `min_occupied`, or fewer crops."
        )
    free = np.ones(len(corners), dtype=bool)
    used = np.zeros(len(corners), dtype=bool)
    for i in range(n):
        turn = library == i % len(libraries)
        pool = np.flatnonzero(next(some for some in (free & turn, free, ~used & turn, ~used) if some.any()))
        pick = int(pool[rng.integers(len(pool))])
        used[pick] = True
        near = (np.abs(corners - corners[pick]) < np.asarray(spec.size)).all(axis=1) & (library == library[pick])
        free &= ~near
    order = sorted(np.flatnonzero(used), key=lambda i: (library[i], *corners[i]))
    return [(libraries[library[i]].name, int(corners[i, 0]), int(corners[i, 1])) for i in order]


def _layout(
    libraries: dict[str, Cells], groups: dict[str, list[Crop]], spec: CropSpec, ncols: int, ax: Sequence[Axes] | None
) -> tuple[Figure, list[Axes]]:
    """Return the Axes of each library's section (on the left, as high as its crops together) and of its crops."""
    n_axes = sum(1 + len(found) for found in groups.values())
    if ax is not None:
        return _style.panels([(0, 0, 1, 1)] * n_axes, ncols, ax)
    if ncols < 1:
        raise ValueError(f"ncols={ncols}; wanted at least 1.")
    ncols = min(ncols, max(map(len, groups.values())))
    rows = -(-max(map(len, groups.values())) // ncols)
    one = next(iter(libraries.values()))
    box = window_box(one.spec, 0, 0, *spec.size)
    side = 1.75
    height = max(rows * (side * box[2] / box[3] + 0.5), 2.6)
    aspects = [bounding_box(libraries[name])[2] / bounding_box(libraries[name])[3] for name in groups]
    wide = min(4.5, max((height - 0.55) / aspect for aspect in aspects))
    fig = plt.figure(figsize=(wide + 1.3 + ncols * (side + 0.25), len(groups) * height), layout="constrained")
    _style.pad(fig, 0.06)
    outer = fig.add_gridspec(len(groups), 2, width_ratios=[wide + 1.3, ncols * (side + 0.25)])
    axes = []
    for i, found in enumerate(groups.values()):
        axes.append(fig.add_subplot(outer[i, 0], anchor="W"))
        inner = outer[i, 1].subgridspec(rows, ncols)
        axes.extend(fig.add_subplot(inner[j // ncols, j % ncols]) for j in range(len(found)))
    return fig, axes


def _outline(ax: Axes, box: Box, number: int) -> None:
    """Draw a white frame with a dark rim, seen on every colour, and the number of the crop in its corner."""
    rim = [Stroke(linewidth=2.6, foreground=_style.INK), withStroke(linewidth=0)]
    ax.add_patch(
        Rectangle((box[1], box[0]), box[3], box[2], fill=False, edgecolor="white", linewidth=1.2, path_effects=rim, zorder=4, clip_on=False)
    )
    ax.annotate(
        str(number), (box[1], box[0]), xytext=(3, -3), textcoords="offset points", fontsize=_style.LABEL, color="white", va="top", ha="left",
        weight="bold", path_effects=[withStroke(linewidth=2.2, foreground=_style.INK)], zorder=5,
    )  # fmt: skip
