"""Whether imputed values are as far off as their standard deviations say, on hidden observations."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stimg._core import keys, validate
from stimg.data.tables import table_of
from stimg.metrics import Coverage, coverage, error_by_sd
from stimg.pl import _style
from stimg.pl._filled import IMPUTED, INVENTED, STATUSES, Hidden, hidden_of, layer_of, status_of, true_values, truth_table, values_of
from stimg.pl._scores import MUTED, figure_number, finish, lettering
from stimg.pl._values import select_cells

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
TOLD = 0.9
"""Level whose coverage is written in words."""
POOLED = "#0072B2"
BY_STATUS = {IMPUTED: ("#009E73", (0, (4, 2))), INVENTED: ("#D55E00", (0, (1, 1.2)))}


def calibration(
    data: Any,
    truth: Any,
    *,
    genes: str | Sequence[str] | None = None,
    key: str | None = None,
    n_bins: int = 10,
    truth_layer: str | None = None,
    library_id: str | Sequence[str] | None = None,
    library_key: str = keys.LIBRARY,
    table_key: str = "table_imputed",
    truth_table_key: str = "table",
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure:
    """Draw how many hidden values lie in central intervals of each level, and how large errors are where a small or a large sd was predicted.

    Left: nominal against observed coverage of mean ± z sd, levels .05 to .99, all values together and the range of the middle 80 % of genes; the diagonal is
    right, below it intervals are too narrow. Where some hidden places were imputed and others invented, each has its line. Right: root mean square of
    the errors in bins of the predicted sd with equally many values; on the diagonal an sd is as large as the errors are.

    Parameters
    ----------
    data
        What :func:`stimg.tl.impute` returned, or the SpatialData that it added a table to.
    truth
        Raw counts of the hidden observations, the second object of :func:`stimg.pp.sparsify`; they are found by their places.
    genes
        Genes; None: all that were predicted.
    key
        Layer with the predictions; None where only one is recorded. Standard deviations are ``layers["<key>_sd"]``.
    n_bins
        Bins of the sd.
    truth_layer
        Layer of the truth with raw counts; None for ``X``.
    library_id, library_key
        Libraries, None for all of them together.
    table_key, truth_table_key
        Tables, where ``data`` or ``truth`` is a SpatialData.
    ax
        Two Axes to draw on.
    show, return_fig
        As in :func:`raster`.

    Returns
    -------
    A dict from ``"coverage"`` and ``"error"`` to Axes.

    Raises
    ------
    KeyError
        Where the status, the layer, its standard deviations, a gene or a library is missing.
    ValueError
        Where the truth is measured in ``data``, in another unit or at other places, or no hidden value has a standard deviation.

    Notes
    -----
    The intervals are those of a Gaussian, log(1 + counts per 10,000) are not: few counts give many zeros, and central intervals of a low level
    may hold more or less than they say. The numbers come from :func:`stimg.metrics.coverage` and :func:`stimg.metrics.error_by_sd`.
    """
    adata = table_of(data, table_key)
    status, layer = status_of(adata), layer_of(adata, key)
    validate.slot(adata.layers, "layers", f"{layer}_sd", todo="Run `stimg.tl.impute` with `uncertainty=True`.")
    names = list(adata.var_names) if genes is None else validate.names(genes)
    if not names:
        raise ValueError("genes is empty; wanted at least one gene, or None for all that were predicted.")
    columns = validate.genes(names, adata.var_names, what="genes", todo="Pass `genes=` that were predicted.")
    libraries = [cells.name for cells in select_cells(adata, library_id, library_key)]
    table = truth_table(truth, truth_table_key)
    hidden = hidden_of(adata, table, status, key=layer, libraries=libraries, library_key=library_key)
    x = true_values(table, names, truth_layer)[hidden.truth]
    mean, sd = (values_of(adata, each, columns)[hidden.rows] for each in (layer, f"{layer}_sd"))
    if not np.isfinite(sd).any():
        raise ValueError(
            f"None of the {sd.size} hidden values has a standard deviation in adata.layers['{layer}_sd']. Take a method that has one, or `uncertainty=True`."
        )
    fig, axes = _panels(ax)
    _coverage(axes[0], x, mean, sd, status[hidden.rows], hidden)
    _error(axes[1], x, mean, sd, validate.whole(n_bins, "n_bins"))
    return _style.give(fig, dict(zip(("coverage", "error"), axes, strict=True)), show=show, return_fig=return_fig)


def _panels(ax: Sequence[Axes] | None) -> tuple[Figure, list[Axes]]:
    if ax is not None:
        return _style.panels([(0.0, 0.0, 1.0, 1.0)] * 2, 2, ax)
    fig, axes = plt.subplots(1, 2, figsize=(8.4, 4.1), layout="constrained")
    _style.pad(fig, 0.08)
    return fig, list(axes)


def intervals(x: np.ndarray, mean: np.ndarray, sd: np.ndarray, level: float) -> Coverage:
    """Return the coverage of the central Gaussian intervals of a level."""
    half = scipy.stats.norm.ppf((1 + level) / 2) * sd
    return coverage(x, mean - half, mean + half, level=level)


def _coverage(ax: Axes, x: np.ndarray, mean: np.ndarray, sd: np.ndarray, status: np.ndarray, hidden: Hidden) -> None:
    found = [intervals(x, mean, sd, level) for level in LEVELS]
    ax.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls=":", label="as claimed", gid="diagonal")
    if x.shape[1] > 1:
        low, high = np.quantile([each.per_gene for each in found], [0.1, 0.9], axis=1)
        ax.fill_between(LEVELS, low, high, color=POOLED, alpha=0.18, lw=0, label=f"10 to 90 % of {x.shape[1]:,} genes", gid="genes")
    there = [code for code in BY_STATUS if (status == code).any()]
    for code in there if len(there) > 1 else []:
        at, (color, dashes) = status == code, BY_STATUS[code]
        observed = [intervals(x[at], mean[at], sd[at], level).coverage for level in LEVELS]
        text = f"{STATUSES[code]}: {figure_number(observed[LEVELS.index(TOLD)])} at {figure_number(TOLD, 2)} (n = {x[at].size:,})"
        ax.plot(LEVELS, observed, color=color, lw=1.3, ls=dashes, label=text, gid=STATUSES[code])
    ax.plot(LEVELS, [each.coverage for each in found], "o-", color=POOLED, lw=1.4, ms=3.5, label="all values", gid="pooled")
    at90 = found[LEVELS.index(TOLD)]
    ax.set_title(
        f"{100 * TOLD:.0f} % intervals hold {100 * at90.coverage:.1f} % of {x.size:,} values\n"
        f"of {hidden.count} hidden spots; mean width {at90.mean_width:.2f} log1p cp10k",
        loc="left", **lettering(_style.LABEL),
    )  # fmt: skip
    ax.set_xlabel("claimed coverage", **lettering(_style.LABEL))
    ax.set_ylabel("share of hidden values inside", **lettering(_style.LABEL))
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    _finish(ax)


def _error(ax: Axes, x: np.ndarray, mean: np.ndarray, sd: np.ndarray, n_bins: int) -> None:
    found = error_by_sd(x, mean, sd, n_bins=n_bins)
    ax.axline((0.0, 0.0), slope=1.0, color=MUTED, lw=0.9, ls=":", label="as claimed", gid="diagonal")
    each = f"{found.n.min():,}" if found.n.min() == found.n.max() else f"{found.n.min():,} to {found.n.max():,}"
    ax.plot(found.sd, found.rmse, "o-", color=POOLED, lw=1.0, ms=4.5, label=f"{len(found.n)} bins of {each} values", gid="bins")
    top = 1.08 * max(float(found.sd.max()), float(found.rmse.max()))
    ax.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    ax.set_title(
        f"errors differ by {100 * found.error:.0f} % from their sd,\nmean over bins; above the line sd is too small",
        loc="left",
        **lettering(_style.LABEL),
    )
    ax.set_xlabel("predicted sd (log1p cp10k)", **lettering(_style.LABEL))
    ax.set_ylabel("root mean squared error", **lettering(_style.LABEL))
    _finish(ax)


def _finish(ax: Axes) -> None:
    finish(ax)
    ax.legend(frameon=False, fontsize=_style.TICK, labelcolor=_style.INK, loc="upper left", handlelength=1.6, labelspacing=0.35)
