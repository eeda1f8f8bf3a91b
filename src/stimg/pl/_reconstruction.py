"""Truth, what a model was shown of it, and what it predicted, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stimg._core import keys, validate
from stimg.data.tables import table_of
from stimg.pl import _style
from stimg.pl._geometry import Box, bounding_box
from stimg.pl._raster import check_box
from stimg.pl._values import Shown, Transform, select_one, shown_genes


def reconstruction(
    data: Any,
    *,
    genes: str | Sequence[str],
    predicted: Any = "stimg_stmae",
    truth_layer: str | None = None,
    masked: str | np.ndarray | None = None,
    transform: Transform = None,
    predicted_transform: Transform = None,
    scores: str | Mapping[str, float] | None = None,
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
    """Draw truth, masked truth and prediction of genes in one library, one row for each gene, with one colour scale for the row.

    Nothing is computed: a score is written only where it is given.

    Parameters
    ----------
    data
        AnnData after :func:`stimg.pp.rasterize`, or SpatialData with such a table, with the truth.
    genes
        Names of the genes.
    predicted
        Name of the layer with the predictions, or an AnnData with the same observations (in any order) whose X holds them.
    truth_layer
        Layer with the truth; None for ``adata.X``.
    masked
        Column of ``adata.obs``, or array (n_obs,), that is True where the model was not shown the truth; those lattice points are
        grey in the middle panel. None leaves the middle panel out.
    transform, predicted_transform
        ``"log1p"`` draws log(1 + value) of the truth, and of the prediction: the two must be on one scale to share their colours.
    scores
        Column of ``adata.var``, or mapping from gene to number, written above the prediction as r.
    library_id, library_key
        The library; may be None where there is only one.
    table_key
        Table of a SpatialData.
    crop_um
        (top, left, height, width) in µm: draw this part only.
    cmap, vmin, vmax, percentile
        Colour map, and limits shared by the panels of one gene: where not given, the percentiles of the truth and the prediction.
    scale_bar, show, return_fig
        As in :func:`raster`.
    ax
        Axes to draw on, row by row.

    Returns
    -------
    A dict from (gene, ``"truth"`` | ``"masked"`` | ``"prediction"``) to Axes.

    Raises
    ------
    KeyError
        Where a slot, gene, layer, library, column or score is missing.
    ValueError
        Where the observations of ``predicted`` are not those of ``adata``, recorded units differ, the mask is not one boolean
        for each observation, or several libraries are there and none is named.
    """
    adata = table_of(data, table_key)
    names = [genes] if isinstance(genes, str) else list(genes)
    if not names:
        raise ValueError("genes is empty; wanted at least one gene.")
    cells = select_one(adata, library_id, library_key)
    if crop_um is not None:
        check_box(crop_um, [cells])
    truth = shown_genes(adata, names, truth_layer, transform)
    guess = _predicted(adata, names, predicted, predicted_transform)
    hidden = _mask(adata, masked)
    numbers = _scores(adata, names, scores)
    _same_unit(adata, truth_layer, predicted, transform, predicted_transform)
    kinds = ["truth", "masked", "prediction"] if hidden is not None else ["truth", "prediction"]
    box = crop_um or bounding_box(cells)
    fig, axes = _style.panels([box] * (len(names) * len(kinds)), len(kinds), ax, side=2.6, right=0.35)
    grid = iter(axes)
    out: dict[tuple[str, str], Axes] = {}
    for true, pred in zip(truth, guess, strict=True):
        values = {"truth": true.at(cells), "prediction": pred.at(cells)}
        norm = _style.limits(list(values.values()), vmin, vmax, percentile)
        if hidden is not None:
            values["masked"] = np.where(hidden[cells.first], np.nan, values["truth"])
        titles = {"truth": f"{true.name}, truth", "masked": "shown to the model", "prediction": "prediction"}
        if numbers is not None:
            titles["prediction"] += f", r = {numbers[true.name]:.2f}"
        for kind in kinds:
            panel = next(grid)
            artist = _style.draw(panel, cells, values[kind], cmap=cmap, norm=norm, alpha=None, box=crop_um)
            _style.finish_map(panel, box, title=titles[kind], scale_bar=scale_bar and kind == "truth")
            out[true.name, kind] = panel
        label = true.label if true.label == pred.label else f"{true.label} | {pred.label}"
        _style.color_bar(panel, artist, label=label, drawn=[values["truth"], values["prediction"]])
    return _style.give(fig, out, show=show, return_fig=return_fig)


def _predicted(adata: Any, names: Sequence[str], predicted: Any, transform: Transform) -> list[Shown]:
    if isinstance(predicted, str):
        validate.slot(adata.layers, "layers", predicted, todo="Run `stimg.tl.impute_genes` first, or pass the layer's name.")
        return shown_genes(adata, names, predicted, transform)
    if not hasattr(predicted, "obs_names"):
        raise TypeError(f"predicted is a {type(predicted).__name__}; wanted the name of a layer or an AnnData.")
    order = predicted.obs_names.get_indexer(adata.obs_names)
    if predicted.n_obs != adata.n_obs or (order < 0).any():
        raise ValueError(
            f"predicted has {predicted.n_obs} observations, and {int((order < 0).sum())} of the {adata.n_obs} of adata are not among them; wanted the same "
            "observations. Subset both to the same names."
        )
    things = shown_genes(predicted, names, None, transform)
    return [Shown(t.name, t.values[order], t.label, adds=True, transform=t.transform) for t in things]


def _mask(adata: Any, masked: str | np.ndarray | None) -> np.ndarray | None:
    if masked is None:
        return None
    if isinstance(masked, str):
        column = validate.obs(adata, masked, todo="Pass the boolean column that is True where the model was not shown the truth.")
        hidden, name = np.asarray(column), f"adata.obs[{masked!r}]"
    else:
        hidden, name = np.asarray(masked), "masked"
    if hidden.dtype.kind != "b" or hidden.shape != (adata.n_obs,):
        raise ValueError(
            f"{name} has dtype {hidden.dtype} and shape {hidden.shape}; wanted booleans of shape ({adata.n_obs},), True where hidden."
        )
    return hidden


def _scores(adata: Any, names: Sequence[str], scores: str | Mapping[str, float] | None) -> dict[str, float] | None:
    if scores is None:
        return None
    if isinstance(scores, str):
        column = validate.slot(adata.var, "var", scores, todo="Pass a column with one number for each gene, or a mapping.")
        return {name: float(column[name]) for name in names}
    missing = [name for name in names if name not in scores]
    if missing:
        raise KeyError(f"scores holds no number for {missing}. Add them, or leave the genes out.")
    return {name: float(scores[name]) for name in names}


def _same_unit(adata: Any, truth_layer: str | None, predicted: Any, transform: Transform, predicted_transform: Transform) -> None:
    """Raise where both units are recorded and differ: one colour scale would then compare what cannot be compared."""
    records = adata.uns.get(keys.UNS, {})
    true = records.get(truth_layer, {}).get("unit") if truth_layer is not None else None
    pred = records.get(predicted, {}).get("unit") if isinstance(predicted, str) else None
    if true is not None and pred is not None and (str(true), transform) != (str(pred), predicted_transform):
        raise ValueError(
            f"The truth is {true} (transform={transform!r}) and the prediction {pred} (transform={predicted_transform!r}); wanted one scale. "
            "Choose another `truth_layer=` or transform."
        )
