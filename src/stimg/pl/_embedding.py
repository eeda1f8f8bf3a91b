"""An embedding in space: its first principal components as colours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stimg._core import keys, validate
from stimg.data.tables import table_of
from stimg.pl import _style
from stimg.pl._geometry import Box, Cells, bounding_box, same_scale
from stimg.pl._raster import check_box
from stimg.pl._values import select_cells


def embedding_map(
    data: Any,
    *,
    obsm_key: str = keys.embedding_key("stmae"),
    components: bool = False,
    library_id: str | Sequence[str] | None = None,
    library_key: str = keys.LIBRARY,
    table_key: str = "table",
    crop_um: Box | None = None,
    percentile: tuple[float, float] = (1.0, 99.0),
    cmap: Any = "cividis",
    ncols: int = 4,
    scale_bar: bool = True,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | dict[tuple[str, str], Axes] | Figure:
    """Draw the first three principal components of an embedding as red, green and blue on the raster.

    The components are part of the drawing: they are found for the drawn observations, all libraries together, written nowhere, and
    always the same for the same input (the loading of largest size is positive). Similar colours are similar embeddings;
    a colour has no meaning beyond the picture.

    Parameters
    ----------
    data
        AnnData after :func:`stimg.pp.rasterize`, or SpatialData with such a table.
    obsm_key
        Slot with the embedding, (n_obs, dim), dim at least 3. Rows with NaN are left out and drawn grey.
    components
        Also draw each of the three components in a panel of its own, with its share of the variance.
    library_id, library_key
        Libraries to draw, None for all of them; the column of ``adata.obs`` that names them.
    table_key
        Table of a SpatialData.
    crop_um
        (top, left, height, width) in µm: draw this part only.
    percentile
        Each component is scaled from these percentiles to 0 and 1, so that a few extreme spots do not take all the contrast.
    cmap
        Colour map of the single components.
    ncols, scale_bar, ax, show, return_fig
        As in :func:`raster`.

    Returns
    -------
    The Axes of a single panel, or a dict from (library, ``"RGB"`` | ``"PC1"`` | ``"PC2"`` | ``"PC3"``) to Axes.

    Raises
    ------
    KeyError
        Where the slot or a library is missing.
    ValueError
        Where the embedding has fewer than three columns, or fewer than four complete rows, or the number of Axes does not fit.
    """
    adata = table_of(data, table_key)
    libraries = select_cells(adata, library_id, library_key)
    found = validate.slot(adata.obsm, "obsm", obsm_key, todo="Run `stimg.tl.embed` first, or pass `obsm_key=`.")
    embedding = np.asarray(found, dtype=np.float64)
    if embedding.ndim != 2 or embedding.shape[1] < 3:
        raise ValueError(f"adata.obsm[{obsm_key!r}] has shape {embedding.shape}; wanted (n_obs, dim) with dim at least 3.")
    if crop_um is not None:
        check_box(crop_um, libraries)
    scores, share = principal_components(embedding, np.concatenate([cells.first for cells in libraries]), obsm_key)
    norms = [_style.limits([scores[cells.first, k] for cells in libraries], None, None, percentile) for k in range(3)]
    kinds = ["RGB", "PC1", "PC2", "PC3"] if components else ["RGB"]
    layout = [(cells, kind) for cells in libraries for kind in kinds]
    boxes = same_scale([crop_um or bounding_box(cells) for cells, _ in layout])
    fig, axes = _style.panels(boxes, len(kinds) if components and ncols >= len(kinds) else ncols, ax, right=0.8 if components else 0.3)
    out: dict[tuple[str, str], Axes] = {}
    for (cells, kind), box, panel in zip(layout, boxes, axes, strict=True):
        _one(panel, cells, kind, scores, norms, cmap, crop_um)
        title = "PC1, PC2, PC3 as RGB" if kind == "RGB" else f"{kind}, {100 * share[int(kind[2]) - 1]:.0f} % of variance"
        _style.finish_map(panel, box, title=title if len(libraries) == 1 else f"{cells.name} · {title}", scale_bar=scale_bar)
        out[cells.name, kind] = panel
    return _style.give(fig, axes[0] if len(axes) == 1 else out, show=show, return_fig=return_fig)


def principal_components(embedding: np.ndarray, rows: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of the first three components, (n_obs, 3), NaN where a row is not finite or not in ``rows``, and their shares of the variance."""
    used = np.zeros(len(embedding), dtype=bool)
    used[rows] = True
    used &= np.isfinite(embedding).all(axis=1)
    if used.sum() < 4:
        raise ValueError(f"adata.obsm[{name!r}] has {int(used.sum())} complete rows among the drawn observations; wanted at least 4.")
    centred = embedding[used] - embedding[used].mean(axis=0)
    variance, loadings = np.linalg.eigh(centred.T @ centred)
    variance, loadings = np.maximum(variance[::-1], 0.0), loadings[:, ::-1][:, :3]
    sign = np.sign(loadings[np.abs(loadings).argmax(axis=0), np.arange(3)])
    scores = np.full((len(embedding), 3), np.nan)
    scores[used] = centred @ (loadings * sign)
    total = variance.sum()
    return scores, variance[:3] / total if total > 0 else np.zeros(3)


def _one(ax: Axes, cells: Cells, kind: str, scores: np.ndarray, norms: Sequence[Any], cmap: Any, box: Box | None) -> None:
    values = scores[cells.first]
    if kind == "RGB":
        _style.draw_rgb(ax, cells, _style.composite(values, norms), box=box)
        return
    k = int(kind[2]) - 1
    artist = _style.draw(ax, cells, values[:, k], cmap=cmap, norm=norms[k], alpha=None, box=box)
    _style.color_bar(ax, artist, label="", drawn=[values[:, k]])
