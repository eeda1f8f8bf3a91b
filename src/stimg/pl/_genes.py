"""Predicted genes: truth beside prediction beside the width of the interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stimg._core import keys, validate
from stimg._core.panel import is_control
from stimg.data.tables import table_of
from stimg.metrics import per_gene_pearson
from stimg.pl import _style
from stimg.pl._geometry import Box, Cells, bounding_box, grown
from stimg.pl._raster import check_box
from stimg.pl._scores import lettering, shortened
from stimg.pl._values import gene_columns, select_one

UNIT = "log1p cp10k"
LEAST = 0.1
WIDTH_COLORS = "cividis"


def genes(
    data: Any,
    *,
    genes: str | Sequence[str] | None = None,
    n: int = 3,
    predicted: str = "stimg_ridge",
    truth: bool = True,
    interval: bool = True,
    min_predictability: float | None = LEAST,
    layer: str | None = None,
    image: bool = False,
    image_key: str = "hires",
    library_id: str | None = None,
    library_key: str = keys.LIBRARY,
    table_key: str = "table",
    crop_um: Box | None = None,
    cmap: Any = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    percentile: tuple[float, float] = (0.0, 99.5),
    scale_bar: bool = True,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[tuple[str, str], Axes] | Figure:
    """Draw truth, prediction and width of the interval of genes on the slide, one row a gene; a gene that is hardly predictable is left grey.

    Truth and prediction of a gene share one colour scale, log(1 + counts per 10,000). Above the prediction stands Pearson's r over the n
    observations that are drawn.

    Parameters
    ----------
    data
        AnnData after :func:`stimg.tl.predict_expression`, on a raster (:func:`stimg.pp.rasterize`), or SpatialData with such a table. Either the
        measured table, with the predictions in a layer, or the table of predictions itself (``table_key="ridge_table"``), which has no truth.
    genes
        Names of genes; None: the ``n`` most predictable ones.
    n
        How many where ``genes`` is None.
    predicted
        Layer with the predictions; in a table of predictions the name under which they are recorded.
    truth
        Whether to draw the measured values, where the table has them.
    interval
        Whether to draw the width of the intervals, where they were written.
    min_predictability
        Genes whose ``var["<predicted>_predictability"]`` is lower are not shown: their panels are grey and say so. None shows everything.
        Genes whose predictability is not known are shown.
    layer
        Layer with raw counts.
    image, image_key
        Whether to draw ``uns["spatial"][library]["images"][image_key]`` as the first panel of each row.
    library_id, library_key
        The library; may be None where there is only one.
    table_key
        Table of a SpatialData.
    crop_um
        (top, left, height, width) in µm: draw this part only.
    cmap, vmin, vmax, percentile
        Colour map, and limits shared by truth and prediction of a gene: where not given, their percentiles.
    scale_bar, show, return_fig
        As in :func:`raster`.
    ax
        Axes to draw on, row by row.

    Returns
    -------
    A dict from (gene, ``"image"`` | ``"truth"`` | ``"prediction"`` | ``"interval"``) to Axes.

    Raises
    ------
    KeyError
        Where the prediction, a gene, a library or the image is missing.
    ValueError
        Where several libraries are there and none is named, or no gene is left to draw.
    """
    adata = table_of(data, table_key)
    cells = select_one(adata, library_id, library_key)
    if crop_um is not None:
        check_box(crop_um, [cells])
    own_table = predicted not in adata.layers
    if own_table and (predicted not in adata.uns.get(keys.UNS, {}) or adata.X is None):
        validate.slot(adata.layers, "layers", predicted, todo="Run `stimg.tl.predict_expression` first, or pass `predicted=`.")
    worth = adata.var.get(f"{predicted}_predictability", pd.Series(np.nan, index=adata.var_names)).astype(np.float64)
    names = _chosen(adata, genes, n, worth, None if own_table else predicted)
    values = gene_columns(adata, names, None if own_table else predicted)
    true = _truth(adata, names, layer) if truth and not own_table else None
    bounds = [f"{predicted}_{side}" for side in ("lower", "upper")]
    width = None
    if interval and all(name in adata.layers for name in bounds):
        low, high = (gene_columns(adata, names, name) for name in bounds)
        width = np.where(np.isfinite(high - low), high - low, np.nan)
    level = adata.uns.get(keys.UNS, {}).get(predicted, {}).get("calibration_level", "observation")
    kinds = [
        k for k, there in (("image", image), ("truth", true is not None), ("prediction", True), ("interval", width is not None)) if there
    ]
    box = crop_um or grown(bounding_box(cells), 0.5 * cells.spec.pitch_um if image else 0.0)
    fig, axes = _style.panels([box] * (len(names) * len(kinds)), len(kinds), ax, side=2.4, right=0.85)
    grid, out = iter(axes), {}
    for i, gene in enumerate(names):
        shown = {"prediction": _at(cells, values[:, i])}
        if true is not None:
            shown["truth"] = _at(cells, true[:, i])
        masked = min_predictability is not None and worth[gene] < min_predictability  # unknown is NaN, which is not smaller
        norm = _style.limits(list(shown.values()) if not masked else [shown.get("truth", shown["prediction"])], vmin, vmax, percentile)
        titles = _titles(gene, shown, adata, cells, level=level)
        for kind in kinds:
            panel = next(grid)
            out[gene, kind] = panel
            hidden = masked and kind in ("prediction", "interval")
            if kind == "image":
                _style.draw_image(panel, adata, cells, image_key)
            elif kind == "interval":
                wide = _at(cells, width[:, i])  # type: ignore[index]
                artist = _panel(panel, cells, wide, WIDTH_COLORS, _style.limits([wide], None, None, percentile), crop_um, hidden)
                if not hidden:
                    _style.color_bar(panel, artist, label=f"width ({UNIT})", drawn=[wide])
            else:
                artist = _panel(panel, cells, shown[kind], cmap, norm, crop_um, hidden)
                if not hidden and kind == ("prediction" if not masked else "truth"):
                    _style.color_bar(panel, artist, label=UNIT, drawn=list(shown.values()))
            _style.finish_map(panel, box, scale_bar=scale_bar and kind == kinds[0])
            panel.set_title(titles[kind], **lettering(_style.LABEL), pad=4)
            if hidden:
                text = f"not shown:\nr = {worth[gene]:.2f} where a\n{level} was left out"
                panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", **lettering(_style.TICK))
    return _style.give(fig, out, show=show, return_fig=return_fig)


def _chosen(adata: Any, genes: str | Sequence[str] | None, n: int, worth: pd.Series, layer: str | None) -> list[str]:
    """Return the genes asked for, or the most predictable ones of those that were predicted."""
    if genes is not None:
        names = validate.names(genes)
        if not names:
            raise ValueError("genes is empty; wanted at least one gene, or None for the most predictable ones.")
        if layer is not None:
            missing = np.isnan(gene_columns(adata, names, layer)).all(axis=0)
            if missing.any():
                raise ValueError(f"{[g for g, m in zip(names, missing, strict=True) if m]} were not predicted in adata.layers[{layer!r}].")
        return names
    there = np.ones(adata.n_vars, dtype=bool) if layer is None else ~np.isnan(np.asarray(adata.layers[layer])).all(axis=0)
    rank = np.where(np.isnan(worth), -np.inf, worth)
    order = [i for i in np.argsort(-rank, kind="stable") if there[i]]
    if not order:
        raise ValueError("No gene was predicted; wanted at least one. Run `stimg.tl.predict_expression` again.")
    return [str(adata.var_names[i]) for i in order[: validate.whole(n, "n")]]


def _truth(adata: Any, names: Sequence[str], layer: str | None) -> np.ndarray:
    """Return log(1 + counts per 10,000 of all genes but control probes), (n_obs, genes)."""
    counts = validate.counts(adata, layer)
    depth = np.asarray(counts[:, np.flatnonzero(~is_control(adata.var))].sum(axis=1), dtype=np.float64).reshape(-1, 1)
    return np.log1p(1e4 * gene_columns(adata, names, layer) / np.maximum(depth, 1))


def _at(cells: Cells, values: np.ndarray) -> np.ndarray:
    return values[cells.first]


def _titles(gene: str, shown: dict[str, np.ndarray], adata: Any, cells: Cells, *, level: str) -> dict[str, str]:
    out = {
        "image": f"{shortened(cells.name, 24)}",
        "truth": f"{shortened(gene, 16)}, measured",
        "prediction": "predicted",
        "interval": "interval width",
    }
    if "truth" in shown:
        kept = np.isfinite(shown["truth"]) & np.isfinite(shown["prediction"])
        r = per_gene_pearson(shown["truth"][kept, None], shown["prediction"][kept, None])
        out["prediction"] += f", r = {r.values[0]:.2f} (n = {int(kept.sum()):,})"
    else:
        out["prediction"] = f"{shortened(gene, 16)}, predicted"
    return out


def _panel(ax: Axes, cells: Cells, values: np.ndarray, cmap: Any, norm: Any, box: Box | None, hidden: bool) -> Any:
    drawn = np.full(len(values), np.nan) if hidden else values
    return _style.draw(ax, cells, drawn, cmap=cmap, norm=norm, alpha=None, box=box)
