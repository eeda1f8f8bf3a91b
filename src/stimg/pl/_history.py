"""Training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stimg._core import validate
from stimg.pl import _style

_PARTS = ("train", "validation", "test")
_LINES = {"train": {"color": "#0072B2", "ls": "-"}, "validation": {"color": "#D55E00", "ls": "-"}, "test": {"color": "#525252", "ls": "--"}}


def history(
    history: Any,
    *,
    keys: str | Sequence[str] | None = None,
    monitor: str | None = None,
    mode: str = "min",
    log: bool = False,
    ncols: int = 3,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure:
    """Draw training and validation curves, one panel for each quantity, with a line at the best epoch.

    Parameters
    ----------
    history
        Mapping from names to DataFrames with the epoch as index and one column, as scvi-tools' models keep it, or a model with such
        a ``history``.
    keys
        Quantities to draw, without the words train, validation and test: ``"loss"`` draws ``train_loss`` and ``validation_loss``,
        ``"elbo"`` draws ``elbo_train`` and ``elbo_validation``. By default all that have a value per epoch.
    monitor
        Curve whose best epoch is marked in every panel; by default ``validation_loss``, else ``elbo_validation``, where there.
    mode
        ``"min"`` or ``"max"``: which value of ``monitor`` is the best.
    log
        Logarithmic vertical axes.
    ncols, ax, show, return_fig
        As in :func:`raster`.

    Returns
    -------
    The Axes of a single panel, or a dict from quantity to Axes.

    Raises
    ------
    KeyError
        Where a quantity or ``monitor`` is not in the history.
    TypeError
        Where ``history`` is neither a mapping nor a model that was trained.
    ValueError
        Where the history is empty, or the number of Axes does not fit.
    """
    validate.one_of(mode, ("min", "max"), "mode")
    curves = _curves(history)
    groups: dict[str, dict[str, pd.Series]] = {}
    for name, curve in curves.items():
        quantity, part = _split(name)
        groups.setdefault(quantity, {})[part] = curve
    if keys is None:
        wanted = [q for q in groups if not q.endswith("_step")] or list(groups)
    else:
        wanted = [keys] if isinstance(keys, str) else list(keys)
    unknown = [q for q in wanted if q not in groups]
    if unknown or not wanted:
        raise KeyError(f"{unknown} are not quantities of this history; it has {sorted(groups)}.")
    best = _best(curves, monitor, mode)
    fig, axes = _panels(len(wanted), ncols, ax)
    out: dict[str, Axes] = {}
    for quantity, panel in zip(wanted, axes, strict=True):
        for part, curve in sorted(groups[quantity].items(), key=lambda item: (*_PARTS, "").index(item[0])):
            look = _LINES.get(part, {"color": "#0072B2", "ls": "-"})
            few = {"marker": "o", "ms": 3} if np.isfinite(curve).sum() < 3 else {}
            panel.plot(curve.index, curve, label=part or quantity, lw=1.5, **look, **few)  # type: ignore[arg-type]
        if best is not None:
            panel.axvline(best, color=_style.INK, lw=0.9, ls=(0, (3, 2)), zorder=1, label=f"best epoch, {best:g}", gid="best epoch")
        _finish(panel, quantity, log, "epoch" if not quantity.endswith("_step") else "step")
        out[quantity] = panel
    return _style.give(fig, axes[0] if len(axes) == 1 else out, show=show, return_fig=return_fig)


def _curves(history: Any) -> dict[str, pd.Series]:
    found = history if isinstance(history, Mapping) else getattr(history, "history", None)
    if not isinstance(found, Mapping):
        raise TypeError(
            f"history is a {type(history).__name__} without a history of training; wanted a mapping of DataFrames or a trained model. Train it first."
        )
    if not found:
        raise ValueError("The history is empty; wanted at least one curve. Train the model first, with its default logger.")
    out = {}
    for name, table in found.items():
        table = table if isinstance(table, (pd.DataFrame, pd.Series)) else pd.Series(np.asarray(table))
        values = table.iloc[:, 0] if isinstance(table, pd.DataFrame) else table
        out[str(name)] = pd.Series([float(v) for v in values], index=np.asarray(table.index, dtype=np.float64), dtype=np.float64).dropna()
    return out


def _split(name: str) -> tuple[str, str]:
    """Return (quantity, part) of a name such as ``train_loss``, ``elbo_validation`` or ``train_loss_epoch``."""
    words = name.split("_")
    for part in _PARTS:
        if part in words:
            words.remove(part)
            rest = [w for w in words if w != "epoch"] or words
            return "_".join(rest), part
    return name, ""


def _best(curves: Mapping[str, pd.Series], monitor: str | None, mode: str) -> float | None:
    if monitor is None:
        monitor = next((name for name in ("validation_loss", "elbo_validation") if len(curves.get(name, ()))), None)
    elif monitor not in curves:
        raise KeyError(f"monitor={monitor!r} is not in the history; it has {sorted(curves)}.")
    if monitor is None or not len(curves[monitor]):
        return None
    return float(curves[monitor].idxmin() if mode == "min" else curves[monitor].idxmax())


def _panels(n: int, ncols: int, ax: Axes | Sequence[Axes] | None) -> tuple[Figure, list[Axes]]:
    if ax is not None:
        return _style.panels([(0, 0, 1, 1)] * n, ncols, ax)
    if ncols < 1:
        raise ValueError(f"ncols={ncols}; wanted at least 1.")
    ncols = min(n, ncols)
    nrows = -(-n // ncols)
    fig = plt.figure(figsize=(3.6 * ncols, 2.7 * nrows), layout="constrained")
    return fig, [fig.add_subplot(nrows, ncols, i + 1) for i in range(n)]


def _finish(ax: Axes, quantity: str, log: bool, x: str) -> None:
    if log:
        ax.set_yscale("log")
    ax.set_title(quantity.replace("_", " "), fontsize=_style.TITLE, color=_style.INK)
    ax.set_xlabel(x, fontsize=_style.LABEL, color=_style.INK)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.tick_params(labelsize=_style.TICK, width=0.6, length=3, colors=_style.INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_linewidth(0.6)
    ax.legend(frameon=False, fontsize=_style.TICK, labelcolor=_style.INK, handlelength=1.6)
