"""Image and expression in their joint space, and how far true pairs stand out from shuffled ones."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stimg._core import keys, validate
from stimg._core.rng import derive
from stimg.data.tables import table_of
from stimg.pl import _style
from stimg.pl._scores import MUTED, finish, lettering, panels
from stimg.pl._values import shown_obs

IMAGE, GENES = "#0072B2", "#E69F00"
MOST_POINTS = 4000
TODO = "Run `stimg.tl.align` first, or pass `key=`."


def alignment(
    data: Any,
    *,
    key: str = "clip",
    color: str = keys.LIBRARY,
    bins: int = 40,
    table_key: str = "table",
    ax: Any = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure:
    """Draw both embeddings on their first two principal axes, coloured by modality and by library, and the scores of true and shuffled pairs.

    Both sides are drawn as directions (of unit length), since their cosine is the score. The axes are part of the drawing: they are found for both
    sides together and written nowhere.

    Parameters
    ----------
    data
        AnnData after :func:`stimg.tl.align`, or SpatialData with such a table.
    key
        The name that was given to the alignment.
    color
        Column of ``obs`` of the second panel.
    bins
        Bins of the histograms.
    table_key
        Table of a SpatialData.
    ax
        Three Axes to draw on.
    show, return_fig
        As in :func:`raster`.

    Returns
    -------
    A dict from ``"modality"``, the column, and ``"score"`` to Axes.

    Raises
    ------
    KeyError
        Where a slot is missing.
    ValueError
        Where fewer than three observations have both embeddings, or the number of Axes does not fit.

    Notes
    -----
    Of more than 4,000 observations that many are drawn as points, the same every time. A modality gap shows as two clouds in the first panel, a batch
    effect as one cloud for each library in the second.
    """
    adata = table_of(data, table_key)
    image, genes = (
        _directions(validate.slot(adata.obsm, "obsm", keys.embedding_key(f"{key}_{side}"), todo=TODO)) for side in ("image", "genes")
    )
    name = "stimg_pair_score" if key == "clip" else f"stimg_{key}_pair_score"
    score = np.asarray(validate.slot(adata.obs, "obs", name, todo=TODO), dtype=np.float64)
    shuffled = np.asarray(adata.uns.get(keys.UNS, {}).get(name, {}).get("shuffled", np.zeros(0)), dtype=np.float64)
    validate.slot(adata.obs, "obs", color, todo="Pass `color=`, a column of adata.obs.")
    groups = shown_obs(adata, color)
    bins = validate.whole(bins, "bins")
    rows = np.flatnonzero(np.isfinite(image).all(axis=1) & np.isfinite(genes).all(axis=1))
    if len(rows) < 3:
        raise ValueError(f"{len(rows)} observations have both embeddings; wanted at least 3. {TODO}")
    if len(rows) > MOST_POINTS:
        rows = np.sort(derive(0).choice(rows, size=MOST_POINTS, replace=False))
    points, share = _axes(np.concatenate([image[rows], genes[rows]]))
    fig, axes = panels([3.2] * 3, 3, ax)
    _scatter(axes[0], points, share, [np.arange(len(rows)), np.arange(len(rows), 2 * len(rows))], ["image", "expression"], [IMAGE, GENES])
    axes[0].set_title("modality", loc="left", **lettering(_style.TITLE))
    if groups.categories:
        codes = np.tile(groups.values[rows], 2)
        members = [np.flatnonzero(codes == i) for i in range(len(groups.categories))]
        _scatter(axes[1], points, share, members, list(groups.categories), list(groups.colors))
    else:
        drawn = axes[1].scatter(points[:, 0], points[:, 1], c=np.tile(groups.values[rows], 2), s=7, cmap="viridis", linewidths=0, alpha=0.8)
        _labels(axes[1], share)
        _style.color_bar(axes[1], drawn, label=groups.label, drawn=[groups.values[rows]])
    axes[1].set_title(color, loc="left", **lettering(_style.TITLE))
    _histogram(axes[2], score[np.isfinite(score)], shuffled, bins)
    return _style.give(fig, dict(zip(("modality", color, "score"), axes, strict=True)), show=show, return_fig=return_fig)


def _directions(values: Any) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _axes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores on the first two principal axes, (n, 2), and their shares of the variance; the sign makes the largest loading positive."""
    centred = x - x.mean(axis=0)
    variance, loadings = np.linalg.eigh(centred.T @ centred)
    variance, loadings = np.maximum(variance[::-1], 0.0), loadings[:, ::-1][:, :2]
    sign = np.sign(loadings[np.abs(loadings).argmax(axis=0), np.arange(loadings.shape[1])])
    scores = np.zeros((len(x), 2))
    scores[:, : loadings.shape[1]] = centred @ (loadings * sign)
    share = np.zeros(2)
    share[: len(variance[:2])] = variance[:2] / max(variance.sum(), 1e-300)
    return scores, share


def _scatter(ax: Axes, points: np.ndarray, share: np.ndarray, members: list[np.ndarray], names: list[str], colors: list[Any]) -> None:
    """Draw groups of points; points of all groups are mixed in depth, so that the last does not hide the first."""
    color = np.empty((len(points), 4))
    drawn = np.zeros(len(points), dtype=bool)
    for rows, each in zip(members, colors, strict=True):
        color[rows], drawn[rows] = _style.mpl.colors.to_rgba(each), True
    order = derive(1).permutation(np.flatnonzero(drawn))
    ax.scatter(points[order, 0], points[order, 1], c=color[order], s=7, linewidths=0, alpha=0.7, gid="points")
    _labels(ax, share)
    _style.legend(ax, names, colors)


def _labels(ax: Axes, share: np.ndarray) -> None:
    ax.set_xlabel(f"PC1, {100 * share[0]:.0f} % of variance", **lettering(_style.LABEL))
    ax.set_ylabel(f"PC2, {100 * share[1]:.0f} %", **lettering(_style.LABEL))
    ax.set_xticks([])
    ax.set_yticks([])
    finish(ax)


def _histogram(ax: Axes, score: np.ndarray, shuffled: np.ndarray, bins: int) -> None:
    """Draw the distribution of scores of true and of shuffled pairs, and how often a true one is the higher of two drawn at random."""
    both = np.concatenate([score, shuffled])
    edges = np.linspace(both.min(), both.max() + 1e-12, bins + 1).tolist()
    if len(shuffled):
        ax.hist(
            shuffled,
            edges,
            density=True,
            color=MUTED,
            alpha=0.55,
            label=f"shuffled within libraries (n = {len(shuffled):,})",
            gid="shuffled",
        )
    ax.hist(score, edges, density=True, histtype="step", lw=1.6, color=IMAGE, label=f"true pairs (n = {len(score):,})", gid="true")
    ax.set_xlabel("cosine of image and expression", **lettering(_style.LABEL))
    ax.set_ylabel("density", **lettering(_style.LABEL))
    finish(ax)
    title = "pair score"
    if len(shuffled):
        order = np.sort(shuffled)
        higher = (np.searchsorted(order, score, "left") + np.searchsorted(order, score, "right")) / (2 * len(order))
        title += f": true above shuffled in {100 * higher.mean():.0f} %"
    ax.set_title(title, loc="left", **lettering(_style.TITLE))
    ax.set_ylim(0, ax.get_ylim()[1] * 1.3)
    ax.legend(frameon=False, fontsize=_style.TICK, loc="upper left", handlelength=1.2, labelcolor=_style.INK)
