"""Measured and imputed genes on the slide, with what is known of the error: truth, error at hidden spots, standard deviation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from stimg._core import keys, validate
from stimg.data.slots import raster_libraries
from stimg.data.tables import table_of
from stimg.metrics import per_gene_pearson
from stimg.pl import _style
from stimg.pl._filled import (
    INVENTED,
    MEASURED,
    STATUSES,
    UNIT,
    Hidden,
    hidden_of,
    layer_of,
    off_lattice,
    points_um,
    status_of,
    true_values,
    truth_table,
    values_of,
)
from stimg.pl._geometry import Box, Cells, bounding_box, grown, polygons_um
from stimg.pl._raster import check_box
from stimg.pl._scores import lettering, shortened
from stimg.pl._values import gene_columns, select_one

KINDS = ("measured", "imputed", "truth", "error", "sd")
ERROR_COLORS, SD_COLORS = "PuOr", "plasma"
DARK = "#9e9e9e"
"""Grey of invented places where nothing is drawn; :data:`stimg.pl._style.MISSING` is that of imputed ones."""
SIDE, BAR = 2.3, 0.75
"""Inches of a map, and of a colour bar beside it."""
MOST = 1500
"""Most edges around measured places, and most strokes, that are drawn in a map: more of them would hide it."""
STROKE = 0.29
"""Half the length of the stroke over an invented place, and the radius of a place beside the lattice, in pitches."""


@dataclass(frozen=True)
class _Slide:
    """One library of the table: lattice points, places beside the lattice (their rows and (y, x) in µm), and the status of every observation."""

    cells: Cells
    beside: np.ndarray
    beside_um: np.ndarray
    status: np.ndarray


def imputation(
    data: Any,
    *,
    genes: str | Sequence[str],
    truth: Any = None,
    key: str | None = None,
    kinds: Sequence[str] | None = None,
    truth_layer: str | None = None,
    library_id: str | None = None,
    library_key: str = keys.LIBRARY,
    table_key: str = "table_imputed",
    truth_table_key: str = "table",
    crop_um: Box | None = None,
    cmap: Any = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    percentile: tuple[float, float] = (0.0, 99.5),
    scale_bar: bool = True,
    legend: bool = True,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[tuple[str, str], Axes] | Figure:
    """Draw what was measured, what was imputed, and where it is known truth, error and standard deviation of genes, one row a gene.

    Measured, imputed and true values of a gene share one colour scale. In the second map measured spots, whose values are copied through, are outlined, and
    invented places are struck through. The colours of standard deviations go at least to that of the gene over measured spots, which is what
    its mean alone would have. Errors are prediction minus truth at hidden spots alone, and so is Pearson's r above them.

    Parameters
    ----------
    data
        What :func:`stimg.tl.impute` or :func:`stimg.tl.upsample` returned, or the SpatialData that they added a table to.
    genes
        Names of the genes.
    truth
        Raw counts of the hidden observations, the second object of :func:`stimg.pp.sparsify`; they are found by their places. None: no truth, no error.
    key
        Layer with the predictions; None where only one is recorded. Standard deviations are ``layers["<key>_sd"]``.
    kinds
        Maps to draw, of ``"measured"``, ``"imputed"``, ``"truth"``, ``"error"``, ``"sd"``; None: all that there is.
    truth_layer
        Layer of the truth with raw counts; None for ``X``. All genes that were counted have to be there, as their sum is the depth.
    library_id, library_key
        The library; may be None where there is only one.
    table_key, truth_table_key
        Tables, where ``data`` or ``truth`` is a SpatialData; what :func:`stimg.tl.upsample` adds is ``"table_upsampled"``.
    crop_um
        (top, left, height, width) in µm: draw this part only. r stays that of the whole library.
    cmap, vmin, vmax, percentile
        Colour map and limits of measured, imputed and true values; limits that are not given are percentiles of what is drawn.
    scale_bar, show, return_fig
        As in :func:`raster`.
    legend
        Say below what the marks are.
    ax
        Axes to draw on, row by row.

    Returns
    -------
    A dict from (gene, kind) to Axes.

    Raises
    ------
    KeyError
        Where the status, the layer, a gene, a library or standard deviations that were asked for are missing.
    ValueError
        Where several libraries or layers are there and none is named, where the truth is measured in ``data``, in another unit or at other places, or where
        ``kinds`` needs a truth that is not given.

    Notes
    -----
    Grey is no value; dark grey is an invented place. More than 1,500 outlines or strokes would hide the second map, and are left out: then the first map alone
    shows what was measured. Places beside the lattice are circles.
    """
    adata = table_of(data, table_key)
    status, layer = status_of(adata), layer_of(adata, key)
    names = validate.names(genes)
    if not names:
        raise ValueError("genes is empty; wanted at least one gene.")
    predicted = gene_columns(adata, names, layer)
    cells = select_one(adata, library_id, library_key)
    if crop_um is not None:
        check_box(crop_um, [cells])
    beside = off_lattice(adata, cells.name, library_key)
    library = raster_libraries(adata, library_key)[cells.name]
    slide = _Slide(cells, beside, points_um(adata, library, beside) if len(beside) else np.zeros((0, 2)), status)
    spread = values_of(adata, f"{layer}_sd", adata.var_names.get_indexer(names)) if f"{layer}_sd" in adata.layers else None
    hidden, true = None, np.full(predicted.shape, np.nan)
    if truth is not None:
        table = truth_table(truth, truth_table_key)
        hidden = hidden_of(adata, table, status, key=layer, libraries=[cells.name], library_key=library_key)
        true[hidden.rows] = true_values(table, names, truth_layer)[hidden.truth]
    wanted = _kinds(kinds, layer, truth=hidden is not None, spread=spread is not None)
    box = crop_um or _box(slide)
    bars = {k for k in wanted if k in ("error", "sd")} | set([k for k in wanted if k in KINDS[:3]][-1:])
    fig, axes = _panels(box, wanted, bars, len(names), ax)
    grid, out = iter(axes), {}
    for i, gene in enumerate(names):
        shown = _maps(predicted[:, i], true[:, i], status, None if spread is None else spread[:, i])
        norms = _norms(shown, wanted, slide, (vmin, vmax, percentile))
        titles = _titles(shown, hidden)
        for kind in wanted:
            panel = next(grid)
            out[gene, kind] = panel
            colors = {"error": ERROR_COLORS, "sd": SD_COLORS}.get(kind, cmap)
            artist = _draw(panel, slide, shown[kind], colors, norms[kind], crop_um)
            if kind in ("measured", "imputed"):
                _mark(panel, slide, box, outline=kind == "imputed")
            _style.finish_map(panel, box, scale_bar=scale_bar and kind == wanted[0])
            panel.set_title(
                f"{shortened(gene, 24)}\n{titles[kind]}" if kind == wanted[0] else titles[kind], **lettering(_style.LABEL), pad=4
            )
            if kind in bars:
                label = {"error": f"error ({UNIT})", "sd": f"sd ({UNIT})"}.get(kind, UNIT).replace("_", " ")
                drawn = [shown[kind]] if kind in ("error", "sd") else [shown[k] for k in wanted if k in KINDS[:3]]
                _style.color_bar(panel, artist, label=label, drawn=[_of(slide, each) for each in drawn])
    if legend and set(wanted) & {"measured", "imputed"}:
        _legend(fig, axes, slide, wanted, given=ax is not None)
    return _style.give(fig, out, show=show, return_fig=return_fig)


def _kinds(kinds: Sequence[str] | None, layer: str, *, truth: bool, spread: bool) -> list[str]:
    """Return the maps to draw: those asked for, which have to be there, or all that are."""
    if kinds is None:
        return [k for k in KINDS if (truth or k not in ("truth", "error")) and (spread or k != "sd")]
    wanted = validate.names(kinds)
    for kind in wanted:
        validate.one_of(kind, KINDS, "kinds")
    if not wanted:
        raise ValueError("kinds is empty; wanted at least one map, or None for all that there are.")
    if not truth and set(wanted) & {"truth", "error"}:
        raise ValueError(f"kinds={wanted} needs the truth. Pass `truth=`, the second object of `stimg.pp.sparsify`.")
    if not spread and "sd" in wanted:
        raise KeyError(
            f"adata.layers['{layer}_sd'] is missing. Run `stimg.tl.impute` with `uncertainty=True`, or leave 'sd' out of `kinds`."
        )
    return [k for k in KINDS if k in wanted]


def _maps(predicted: np.ndarray, true: np.ndarray, status: np.ndarray, spread: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return what each map shows, one value for every observation, NaN for grey; truth is that of hidden spots, and what was measured."""
    measured = np.where(status == MEASURED, predicted, np.nan)
    out = {"measured": measured, "imputed": predicted, "truth": np.where(np.isnan(true), measured, true), "error": predicted - true}
    return out if spread is None else out | {"sd": np.where(status == MEASURED, np.nan, spread)}


def _norms(shown: dict[str, np.ndarray], wanted: Sequence[str], slide: _Slide, given: tuple[Any, Any, Any]) -> dict[str, Normalize]:
    """Return the limits of every map: one for values, one that is symmetric about 0 for errors, one for standard deviations."""
    values = [_of(slide, shown[k]) for k in wanted if k in KINDS[:3]]
    common = _style.limits(values, *given)
    errors = _of(slide, shown["error"])
    errors = np.abs(errors[np.isfinite(errors)])
    widest = float(np.percentile(errors, 99.5)) if errors.any() else 1.0
    out = dict.fromkeys(KINDS[:3], common) | {"error": Normalize(-widest, widest)}
    if "sd" in shown:  # at least to the spread of the gene itself, where no more is known than its mean
        drawn = [each[np.isfinite(each)] for each in (_of(slide, shown["sd"]), _of(slide, shown["measured"]))]
        top = max(float(np.percentile(drawn[0], 99.5)) if len(drawn[0]) else 0.0, float(np.std(drawn[1])) if len(drawn[1]) else 0.0)
        out["sd"] = Normalize(0.0, top or 1.0)
    return out


def _of(slide: _Slide, values: np.ndarray) -> np.ndarray:
    """Return the values of the library that are drawn."""
    return values[np.concatenate([slide.cells.first, slide.beside])]


def _titles(shown: dict[str, np.ndarray], hidden: Hidden | None) -> dict[str, str]:
    out = {"measured": "measured", "imputed": "measured and imputed", "truth": "truth", "sd": "sd of a new measurement"}
    if hidden is not None:
        error, guess = shown["error"][hidden.rows], shown["imputed"][hidden.rows]
        r = per_gene_pearson((guess - error)[:, None], guess[:, None])
        text = "r undefined" if r.n_undefined else f"r = {r.values[0]:.2f}".replace("-", "−")
        out["error"] = f"imputed − truth, {text}\nof {hidden.count} hidden spots only"
    return out


def _box(slide: _Slide) -> Box:
    """Return the box in µm around lattice points and places beside the lattice."""
    box = bounding_box(slide.cells)
    if not len(slide.beside):
        return box
    reach = STROKE * slide.cells.spec.pitch_um
    low = np.minimum((box[0], box[1]), slide.beside_um.min(axis=0) - reach)
    high = np.maximum((box[0] + box[2], box[1] + box[3]), slide.beside_um.max(axis=0) + reach)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])


def _panels(box: Box, wanted: Sequence[str], bars: set[str], n_rows: int, ax: Sequence[Axes] | None) -> tuple[Figure, list[Axes]]:
    """Return Axes row by row: those given, or new ones with room for a colour bar where there is one."""
    n = len(wanted) * n_rows
    if ax is not None:
        return _style.panels([box] * n, len(wanted), ax)
    aspect = box[2] / box[3]
    wide = SIDE / max(1.0, aspect / 1.4)
    width = sum(wide + (BAR if kind in bars else 0.12) for kind in wanted)
    fig = plt.figure(figsize=(max(width, 4.5), n_rows * (wide * aspect + 0.72) + 0.3), layout="constrained")
    _style.pad(fig, 0.05)
    grid = fig.add_gridspec(n_rows, len(wanted))  # the maps become equally wide, whether a bar stands beside them or not
    return fig, [fig.add_subplot(grid[i // len(wanted), i % len(wanted)]) for i in range(n)]


def _draw(ax: Axes, slide: _Slide, values: np.ndarray, cmap: Any, norm: Normalize, box: Box | None) -> Any:
    """Draw one map: lattice points with their exact corners, places beside the lattice as circles."""
    if len(slide.beside):
        turn = np.linspace(0, 2 * np.pi, 17)[:-1]
        rim = STROKE * slide.cells.spec.pitch_um * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        colors = _style.mpl.colormaps[cmap] if isinstance(cmap, str) else cmap
        circles = PolyCollection(
            slide.beside_um[:, None, ::-1] + rim[None],  # type: ignore[arg-type]
            cmap=colors.with_extremes(bad=_style.MISSING), norm=norm, edgecolors=_style.INK, linewidths=0.3, zorder=3, gid="beside the lattice",
        )  # fmt: skip
        circles.set_array(np.ma.masked_invalid(values[slide.beside]))
        ax.add_collection(circles, autolim=False)
    return _style.draw(ax, slide.cells, values[slide.cells.first], cmap=cmap, norm=norm, alpha=None, box=box)


def _mark(ax: Axes, slide: _Slide, box: Box, *, outline: bool) -> None:
    """Outline what was measured and strike through what was invented; in the map of measured values invented places are dark grey instead of light."""
    spec, pitch = slide.cells.spec, slide.cells.spec.pitch_um
    near = grown(box, pitch)
    cells = _part(slide.cells, slide.cells.within(near))
    status = slide.status[cells.first]
    if not outline and (status == INVENTED).any():
        dark = _part(cells, status == INVENTED)
        _style.draw(ax, dark, np.zeros(len(dark.rc)), cmap=ListedColormap([DARK]), norm=Normalize(0, 1), alpha=None)
    if len(cells.rc) and _style.as_image(spec, cells.rc):
        return
    thin = float(np.clip(0.12 * SIDE * 72 * pitch / box[3], 0.3, 0.8))  # points, an eighth of a cell at most
    beside = slide.beside_um[slide.status[slide.beside] == INVENTED]
    points = np.concatenate([spec.centres_um(cells.rc[status == INVENTED]), beside])
    if 0 < len(points) <= MOST:
        arm = STROKE * pitch * np.array([[-0.5, np.sqrt(0.75)], [0.5, -np.sqrt(0.75)]])
        strokes = points[:, None, ::-1] + arm[None]
        ax.add_collection(LineCollection(strokes, colors="white", linewidths=thin, zorder=4, gid="invented"), autolim=False)  # type: ignore[arg-type]
    edges = border(cells, status == MEASURED)
    if outline and 0 < len(edges) <= MOST:
        for color, width in ((_style.INK, 2.1 * thin), ("white", thin)):  # told from dark and from light
            lines = LineCollection(edges, colors=color, linewidths=width, capstyle="round", zorder=4, gid="measured")  # type: ignore[arg-type]
            ax.add_collection(lines, autolim=False)


def _part(cells: Cells, keep: np.ndarray) -> Cells:
    """Return the lattice points that are kept, each with its first observation."""
    first = cells.first[keep]
    return Cells(cells.name, cells.spec, cells.rc[keep], first, first, np.arange(len(first)))


def border(cells: Cells, inside: np.ndarray) -> np.ndarray:
    """Return the edges between lattice points that are ``inside`` and those that are not, as ((x, y), (x, y)) in µm, float64 (n, 2, 2).

    Edges towards empty lattice points belong to no two cells, and are left out.
    """
    corners = polygons_um(cells.spec, cells.rc)
    edges = np.stack([corners, np.roll(corners, -1, axis=1)], axis=2)  # cells, edges, ends, (x, y)
    middle = np.rint(edges.mean(axis=2) / (1e-3 * cells.spec.pitch_um)).astype(np.int64).reshape(-1, 2)
    _, member = np.unique(middle, axis=0, return_inverse=True)
    member = member.ravel()
    mine = np.repeat(inside, corners.shape[1])
    shared = (np.bincount(member, mine) == 1) & (np.bincount(member) == 2)
    return edges.reshape(-1, 2, 2)[mine & shared[member]]


def _legend(fig: Figure, axes: Sequence[Axes], slide: _Slide, wanted: Sequence[str], *, given: bool) -> None:
    """Write below the maps how many places are measured, imputed and invented, and how they are marked."""
    rows = np.concatenate([slide.cells.first, slide.beside])
    count = np.bincount(slide.status[rows], minlength=3)
    marks = {str(artist.get_gid()) for ax in axes for artist in ax.collections}
    told = [
        ": outlined" if "measured" in marks else ": in colour on the left",
        ": grey on the left",
        ": struck through" if "invented" in marks else ": dark grey on the left",
    ]
    if wanted[0] != "measured":
        told = [text if "left" not in text else "" for text in told]
    looks: list[Any] = [
        Patch(facecolor="#21918c", edgecolor=_style.INK if "measured" in marks else "none", lw=0.9),
        Patch(facecolor=_style.MISSING),
        Patch(facecolor=DARK, edgecolor="white", lw=0, hatch="////" if "invented" in marks else None),
    ]
    handles = [look for look, n in zip(looks, count, strict=True) if n]
    texts = [f"{name}, {n:,}{text}" for name, n, text in zip(STATUSES, count, told, strict=True) if n]
    options: dict[str, Any] = {
        "frameon": False,
        "fontsize": _style.TICK,
        "labelcolor": _style.INK,
        "handlelength": 1.0,
        "handleheight": 1.0,
        "ncols": 3,
    }
    if given:
        axes[0].legend(handles, texts, loc="upper left", bbox_to_anchor=(0.0, -0.1), borderaxespad=0.0, **options)
    else:
        fig.legend(handles, texts, loc="outside lower left", **options)
