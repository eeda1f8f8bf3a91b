"""Retrieval between image and expression: how often the partner is found, and what was found for single observations."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from stimg._core import hashing, keys, validate
from stimg._core.rng import RngLike, as_generator
from stimg.data.slots import library_rows
from stimg.data.tables import table_of
from stimg.pl import _style
from stimg.pl._geometry import Cells, bounding_box
from stimg.pl._scores import MUTED, finish, lettering, shortened
from stimg.pl._tile_reader import TileReader, has_tiles
from stimg.pl._values import select_cells

KINDS = ("recall", "queries")
QUERY, TRUE = "#D55E00", "#009E73"
OTHERS = "#e4e4e4"
TODO = "Run `stimg.tl.retrieve` first, or pass `key=`."


def retrieval(
    data: Any,
    *,
    kind: str = "recall",
    key: str = "stimg_retrieval",
    reference: Any = None,
    queries: Sequence[str] | Sequence[int] | int = 3,
    k: int = 5,
    tiles: bool | None = None,
    library_id: str | Sequence[str] | None = None,
    library_key: str = keys.LIBRARY,
    table_key: str = "table",
    rng: RngLike = 0,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | dict[tuple[str, str], Axes] | Figure:
    """Draw the recall of partners beside chance, or single queries and what was found for them, on the slide.

    Parameters
    ----------
    data
        AnnData after :func:`stimg.tl.retrieve`, or SpatialData with such a table.
    kind
        ``"recall"``: the share of queries whose partner is among the first k, over k, one line a library, and what chance gives; needs ranks, so
        the reference was the data itself. ``"queries"``: one row a query: its section and that of its best items, with the query and the items marked, and
        their tiles where they are planned.
    key
        Name under which the result was written.
    reference
        The reference of ``kind="queries"``; None: the data itself.
    queries
        Names or rows of observations to show; a number draws as many by chance, from ``rng``.
    k
        Items that are shown.
    tiles
        Whether to read and show image tiles; None: where :func:`stimg.pp.plan_tiles` planned them.
    library_id, library_key
        Libraries whose queries are shown; the column of ``obs`` with the library.
    table_key
        Table of a SpatialData.
    rng
        Which queries are drawn.
    ax
        Axes for ``kind="recall"``.
    show, return_fig
        As in :func:`raster`.

    Returns
    -------
    The Axes of ``"recall"``, or a dict from (observation, ``"map"`` | ``"query"`` | ``"1"`` ... ) to Axes.

    Raises
    ------
    KeyError
        Where a slot or a library is missing.
    ValueError
        Where there are no ranks, or the reference is not the one that was searched.
    """
    adata = table_of(data, table_key)
    validate.one_of(kind, KINDS, "kind")
    if kind == "recall":
        return _recall(adata, key, library_id, library_key, ax, show, return_fig)
    found = np.asarray(validate.slot(adata.obsm, "obsm", key, todo=TODO))
    scores = np.asarray(validate.slot(adata.obsm, "obsm", f"{key}_score", todo=TODO))
    other = adata if reference is None else table_of(reference, table_key)
    record = adata.uns.get(keys.UNS, {}).get(key, {})
    if record.get("reference_hash", hashing.of_strings(other.obs_names)) != hashing.of_strings(other.obs_names):
        raise ValueError(
            f"adata.obsm[{key!r}] holds rows of an object with {record.get('n_reference')} observations, which is not the reference given ({other.n_obs}). "
            "Pass the `reference=` of `stimg.tl.retrieve`."
        )
    k = min(validate.whole(k, "k"), found.shape[1])
    rows = _queries(adata, queries, library_id, library_key, rng)
    with_tiles = (has_tiles(adata) and has_tiles(other)) if tiles is None else tiles
    readers = None
    if with_tiles:
        readers = TileReader(data, table_key=table_key), TileReader(data if other is adata else reference, table_key=table_key)
    return _draw_queries(adata, other, rows, found[:, :k], scores[:, :k], library_key, readers, show, return_fig, itself=other is adata)


def _recall(adata: Any, key: str, library_id: Any, library_key: str, ax: Any, show: bool | None, return_fig: bool) -> Axes | Figure:
    todo = "Ranks need the reference to be the data itself: run `stimg.tl.retrieve` without `reference=`."
    rank, gallery = (
        np.asarray(validate.slot(adata.obs, "obs", f"{key}_{name}", todo=todo), dtype=np.float64) for name in ("rank", "gallery")
    )
    parts = _libraries(adata, library_id, library_key)
    if ax is None:
        fig: Any = plt.figure(figsize=(3.6, 3.0), layout="constrained")
        panel = fig.add_subplot()
    else:
        panel = ax if isinstance(ax, Axes) else np.ravel(np.asarray(ax))[0]
        fig = panel.get_figure()
    every = np.concatenate(list(parts.values()))
    ks = np.unique(np.round(np.geomspace(1, gallery[every].max(), 60)).astype(int))
    colors = _style.categorical_colors(len(parts))
    for (name, rows), color in zip(parts.items(), colors, strict=True):
        panel.plot(
            ks,
            [(rank[rows] <= k).mean() for k in ks],
            "-",
            lw=1.6,
            color=color,
            label=f"{shortened(name, 20)} (n = {len(rows):,})",
            gid="recall",
        )
    chance = [np.minimum(k / gallery[every], 1.0).mean() for k in ks]
    panel.plot(ks, chance, "--", lw=1.2, color=MUTED, label="chance", gid="chance")
    panel.set_xscale("log")
    panel.set_xlim(1, ks[-1])
    panel.set_ylim(0, 1)
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.set_xlabel("k", **lettering(_style.LABEL))
    panel.set_ylabel("partner among the first k", **lettering(_style.LABEL))
    finish(panel)
    panel.legend(frameon=False, fontsize=_style.TICK, loc="upper left", handlelength=1.6, labelcolor=_style.INK)
    return _style.give(fig, panel, show=show, return_fig=return_fig)


def _libraries(adata: Any, library_id: Any, library_key: str) -> dict[str, np.ndarray]:
    known = library_rows(validate.obs(adata, library_key, todo="Pass `library_key=`."))
    wanted = list(known) if library_id is None else validate.names(library_id)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise KeyError(f"There is no library {unknown[0]!r}. Known: {', '.join(map(repr, known))}.")
    return {name: known[name] for name in wanted}


def _queries(adata: Any, queries: Any, library_id: Any, library_key: str, rng: RngLike) -> np.ndarray:
    if isinstance(queries, int | np.integer) and not isinstance(queries, bool):
        allowed = np.sort(np.concatenate(list(_libraries(adata, library_id, library_key).values())))
        n = min(validate.whole(queries, "queries"), len(allowed))
        return np.sort(as_generator(rng).choice(allowed, size=n, replace=False))
    wanted = np.asarray([queries] if isinstance(queries, str) else list(queries))
    if wanted.dtype.kind in "iu":
        if len(wanted) == 0 or wanted.min() < 0 or wanted.max() >= adata.n_obs:
            raise ValueError(f"queries={wanted.tolist()}; wanted rows from 0 to {adata.n_obs - 1}.")
        return wanted.astype(np.int64)
    return validate.genes([str(q) for q in wanted], adata.obs_names, what="queries", todo="Pass names of adata.obs_names.")


def _draw_queries(
    adata: Any,
    other: Any,
    rows: np.ndarray,
    found: np.ndarray,
    scores: np.ndarray,
    library_key: str,
    readers: tuple[TileReader, TileReader] | None,
    show: bool | None,
    return_fig: bool,
    *,
    itself: bool,
) -> dict[tuple[str, str], Axes] | Figure:
    here = {c.name: c for c in select_cells(adata, None, library_key)}
    there = here if itself else {c.name: c for c in select_cells(other, None, library_key)}
    k, out = found.shape[1], {}
    maps = ("map",) if itself else ("map", "reference")
    columns = len(maps) + ((1 + k) if readers else 0)
    sizes = [2.1] * len(maps) + [1.05] * (columns - len(maps))
    fig, axes = plt.subplots(
        len(rows), columns, figsize=(sum(sizes) + 0.3, 2.35 * len(rows)), width_ratios=sizes, layout="constrained", squeeze=False
    )
    _style.pad(fig, 0.04)
    shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, k))
    for line, row in zip(axes, rows, strict=True):
        name, own = str(adata.obs_names[row]), str(adata.obs[library_key].iloc[row])
        items = found[row][found[row] >= 0]
        best = str(other.obs[library_key].iloc[items[0]]) if len(items) else own
        for what, panel in zip(maps, line, strict=False):
            cells = there.get(best) if what == "reference" else here.get(own)
            if cells is None:
                raise KeyError(f"library {best if what == 'reference' else own!r} lies on no raster. Run `stimg.pp.rasterize` first.")
            _map(panel, cells, row if what == "map" else None, items if what == "reference" or itself else items[:0], shades)
            title = f"{shortened(name, 18)} · {shortened(own, 10)}" if what == "map" else f"best of {shortened(best, 14)}"
            panel.set_title(title, **lettering(_style.TICK), pad=3)
            out[name, what] = panel
        if readers is None:
            continue
        tiles = line[len(maps) :]
        _tile(tiles[0], readers[0](row), "query", QUERY)
        out[name, "query"] = tiles[0]
        for place, panel in enumerate(tiles[1:]):
            out[name, str(place + 1)] = panel
            if place >= len(items):
                panel.set_axis_off()
                continue
            true = itself and items[place] == row
            text = f"{place + 1}: {scores[row, place]:.2f}" + (" (partner)" if true else "")
            _tile(panel, readers[1](int(items[place])), text, TRUE if true else shades[place])
    _legend(fig, shades, k)
    return _style.give(fig, out, show=show, return_fig=return_fig)


def _map(ax: Axes, cells: Cells, query: int | None, items: np.ndarray, shades: np.ndarray) -> None:
    """Draw a section in light grey, the items in the colour of their rank, the query as a ring."""
    box = bounding_box(cells)
    colors = np.tile(plt.matplotlib.colors.to_rgb(OTHERS), (len(cells.rc), 1))
    place = {int(r): int(p) for r, p in zip(cells.rows, cells.point, strict=True)}
    for rank in range(len(items) - 1, -1, -1):
        if int(items[rank]) in place:
            colors[place[int(items[rank])]] = shades[rank][:3]
    _style.draw_rgb(ax, cells, colors)
    if query is not None:
        y, x = cells.spec.centres_um(cells.rc[[place[int(query)]]])[0]
        ax.plot([x], [y], "o", mfc="none", mec=QUERY, mew=1.8, ms=9, gid="query", zorder=5)
    _style.finish_map(ax, box)


def _tile(ax: Axes, pixels: np.ndarray, title: str, color: Any) -> None:
    ax.imshow(pixels)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(visible=True, edgecolor=color, linewidth=2.0)
    ax.set_title(title, **lettering(_style.TICK), pad=3)


def _legend(fig: Figure, shades: np.ndarray, k: int) -> None:
    ring = Line2D([], [], marker="o", ls="", mfc="none", mec=QUERY, mew=1.6, ms=7)
    first = Line2D([], [], marker="s", ls="", color=shades[0], ms=6)
    handles, texts = [ring, first], ["query", "best" if k > 1 else "found"]
    if k > 1:
        handles.append(Line2D([], [], marker="s", ls="", color=shades[-1], ms=6))
        texts.append(f"{k}th" if k > 3 else {2: "2nd", 3: "3rd"}[k])
    fig.legend(
        handles, texts, loc="outside lower left", ncols=3, frameon=False, fontsize=_style.TICK, labelcolor=_style.INK, handletextpad=0.3
    )
