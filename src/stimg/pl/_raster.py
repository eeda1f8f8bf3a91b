"""Genes and columns of obs as images on the raster of each library."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stimg._core import keys, validate
from stimg.data.tables import table_of
from stimg.pl import _style
from stimg.pl._geometry import Box, Cells, bounding_box, grown, same_scale
from stimg.pl._values import Shown, Transform, select_cells, shown


def raster(
    data: Any,
    *,
    color: str | Sequence[str],
    layer: str | None = None,
    transform: Transform = None,
    library_id: str | Sequence[str] | None = None,
    library_key: str = keys.LIBRARY,
    table_key: str = "table",
    crop_um: Box | None = None,
    image: bool = False,
    image_key: str = "hires",
    alpha: float | None = None,
    cmap: Any = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    percentile: tuple[float, float] = (0.0, 99.5),
    ncols: int = 4,
    scale_bar: bool = True,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | dict[tuple[str, str], Axes] | Figure:
    """Draw genes or columns of ``adata.obs`` on the raster, one panel for each library and colour.

    Every panel is in µm, row 0 at the top, with a scale bar below. Lattice points are hexagons or squares with their exact corners;
    from 20,000 lattice points on, a square raster is drawn as an image (from 50,000 points on, a hexagonal one as an image of
    bricks). Reads ``obsm["stimg_rc"]`` and ``uns["stimg"]["raster"]``; nothing is computed or written.

    Parameters
    ----------
    data
        AnnData after :func:`stimg.pp.rasterize`, or SpatialData with such a table.
    color
        Names of genes or columns of ``adata.obs``. Categories take ``adata.uns[f"{name}_colors"]`` where it is there.
    layer
        Layer with the values of the genes; None for ``adata.X``.
    transform
        ``"log1p"`` draws log(1 + value) of the genes, and says so at the colour bar.
    library_id, library_key
        Libraries to draw, None for all of them; the column of ``adata.obs`` that names them.
    table_key
        Table of a SpatialData.
    crop_um
        (top, left, height, width) in µm: draw this part only. Row 0, column 0 has its centre at (0, 0).
    image, image_key, alpha
        Draw ``uns["spatial"][library]["images"][image_key]`` below, placed by the raster's affine map. ``alpha`` is the opacity of
        the raster, by default 1, and 0.6 over an image.
    cmap
        Colour map of numbers.
    vmin, vmax, percentile
        Colour limits. Where one is not given it is that percentile of the drawn values; the end of the colour bar is pointed where
        values lie beyond it. The libraries of one gene share their limits.
    ncols
        Panels in a row.
    scale_bar
        Draw the scale bar.
    ax
        Axes to draw on, as many as panels.
    show
        True calls ``matplotlib.pyplot.show()``; otherwise showing is left to the caller (notebooks show the figure by themselves).
    return_fig
        Return the figure instead.

    Returns
    -------
    The Axes of a single panel, or a dict from (library, color) to Axes.

    Raises
    ------
    KeyError
        Where a slot, gene, column, library, layer or image is missing.
    ValueError
        Where a name is both gene and column, the number of Axes does not fit, or limits or transform cannot be used.

    Notes
    -----
    Where several observations share a lattice point (``collision="sum"``), the values of genes are added, as everywhere in stimg, and
    a column of obs shows its first observation. An image of a large raster averages colours where it has more points than the screen.
    """
    adata = table_of(data, table_key)
    libraries = select_cells(adata, library_id, library_key)
    things = shown(adata, color, layer, transform)
    if crop_um is not None:
        check_box(crop_um, libraries)
    layout = [(cells, thing) for thing in things for cells in libraries] if len(libraries) > 1 else [(libraries[0], t) for t in things]
    boxes = [crop_um or grown(bounding_box(cells), 2.0 * cells.spec.pitch_um if image else 0.0) for cells, _ in layout]
    boxes = same_scale(boxes)
    right = max(_legend_width(thing) for thing in things)
    fig, axes = _style.panels(boxes, ncols if len(libraries) == 1 else _columns(len(libraries), ncols), ax, right=right)
    opacity = alpha if alpha is not None else 0.6 if image else None
    drawn = {t.name: [t.at(c) for c in libraries] for t in things}
    scales = {t.name: scale_of(t, drawn[t.name], cmap, vmin, vmax, percentile) for t in things}
    out: dict[tuple[str, str], Axes] = {}
    for (cells, thing), box, panel in zip(layout, boxes, axes, strict=True):
        if image:
            _style.draw_image(panel, adata, cells, image_key)
        colors, norm = scales[thing.name]
        values = thing.at(cells)
        artist = _style.draw(panel, cells, values, cmap=colors, norm=norm, alpha=opacity, box=crop_um)
        title = thing.name if len(libraries) == 1 else f"{thing.name} · {cells.name}"
        _style.finish_map(panel, box, title=title, scale_bar=scale_bar)
        if thing.categories:
            _style.legend(panel, thing.categories, thing.colors, missing=bool(np.isnan(values).any()))
        else:
            _style.color_bar(panel, artist, label=thing.label if thing.label != thing.name else "", drawn=drawn[thing.name])
        out[cells.name, thing.name] = panel
    return _style.give(fig, axes[0] if len(axes) == 1 else out, show=show, return_fig=return_fig)


def scale_of(
    thing: Shown, drawn: Sequence[np.ndarray], cmap: Any, vmin: float | None, vmax: float | None, percentile: tuple[float, float]
) -> tuple[Any, Any]:
    """Return the colour map and the limits of one thing, shared by all panels that show it."""
    if thing.categories:
        return _style.category_scale(thing.colors)
    return cmap, _style.limits(drawn, vmin, vmax, percentile)


def check_box(box: Box, libraries: Sequence[Cells]) -> None:
    """Raise where a box in µm has no size or holds no lattice point of a library."""
    if isinstance(box, Mapping) or len(box) != 4:
        raise ValueError(f"crop_um={box!r}; wanted (top, left, height, width) in µm.")
    validate.positive(box[2], "height of crop_um", "µm")
    validate.positive(box[3], "width of crop_um", "µm")
    for cells in libraries:
        if not cells.within(box).any():
            y, x, h, w = bounding_box(cells)
            raise ValueError(
                f"crop_um={tuple(box)} holds no lattice point of library {cells.name!r}, which spans y {y:g} to {y + h:g} and x {x:g} to {x + w:g} µm."
            )


def _columns(n_libraries: int, ncols: int) -> int:
    """Return a number of columns that keeps the libraries of one gene in one row where they fit."""
    return n_libraries * max(1, ncols // n_libraries) if n_libraries <= ncols else ncols


def _legend_width(thing: Shown) -> float:
    """Return the inches that a colour bar or a legend needs."""
    if not thing.categories:
        return 0.9
    columns = -(-len(thing.categories) // 16)
    return 0.25 + columns * (0.25 + 0.075 * min(40, max(len(c) for c in thing.categories)))
