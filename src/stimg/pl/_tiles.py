"""A contact sheet of tiles: what a model of the image sees."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stimg._core import keys, validate
from stimg._core.rng import RngLike, as_generator
from stimg.data.tables import table_of
from stimg.data.tile_plan import TilePlan, plan_slide, tile_plan
from stimg.image.slide import Slide
from stimg.pl import _style

_SIDE, _WITHIN, _BETWEEN, _ABOVE, _BELOW, _EDGE, _TOP = 1.4, 0.06, 0.2, 0.2, 0.24, 0.08, 0.3
"""Inches: side of a panel, between the fields of a tile and between tiles, above and below a panel, around the sheet, and for its title."""
_LETTER = 0.062
"""Inches that a letter of a title takes."""


def tiles(
    data: Any,
    *,
    n: int = 12,
    obs_names: Sequence[str] | None = None,
    rng: RngLike = 0,
    key: str = keys.TILES,
    image: Any = None,
    slides: Mapping[str, Slide] | None = None,
    stain: Any = None,
    library_id: str | Sequence[str] | None = None,
    table_key: str = "table",
    ncols: int = 6,
    scale_bar: bool = True,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[tuple[str, float], Axes] | Figure:
    """Draw tiles as they are delivered, one panel for each field, with their size in µm.

    Panels of one field have one scale, whose bar stands below the first of them. In a wider field the outlines of the narrower ones are drawn.
    A title names the observation; where part of a field lies outside the image, words below say how much.

    Parameters
    ----------
    data
        AnnData that :func:`stimg.pp.plan_tiles` has seen, or SpatialData with such a table.
    n, rng
        Number of tiles that are drawn by chance, the libraries in turn, and the source of chance.
    obs_names
        Names of observations to draw instead.
    key
        Name of the plan.
    image, slides
        Where the pixels are; needed where the plan was made on an array. See :class:`stimg.data.TileDataset`.
    stain
        Normaliser of the stains (:func:`stimg.data.fit_stain`).
    library_id
        Libraries to draw, None for all.
    table_key
        Table of a SpatialData.
    ncols
        Tiles in a row.
    scale_bar
        Draw the scale bars.
    show
        True calls ``matplotlib.pyplot.show()``.
    return_fig
        Return the figure instead.

    Returns
    -------
    A dict from (observation, field) to Axes.

    Raises
    ------
    KeyError
        Where the plan, an image, an observation or a library is missing.
    ValueError
        Where the image is not the one of the plan.
    """
    adata = table_of(data, table_key)
    plan = tile_plan(adata, key)
    library_key = str(adata.uns[keys.UNS][key]["library_key"])
    rows = _rows(adata, plan, n, obs_names, library_id, as_generator(rng))
    libraries = adata.obs[library_key].astype(str).to_numpy()
    opened: dict[str, Slide] = {}
    for library in dict.fromkeys(libraries[rows]):
        opened[library] = plan_slide(data, plan, library, slides=slides, image=image, library_key=library_key, table_key=table_key)
    fields, several = plan.spec.fields, len(opened) > 1
    fig, panels = _sheet(len(rows), min(validate.whole(ncols, "ncols"), len(rows)), len(fields), lines=2 if several else 1)
    out: dict[tuple[str, float], Axes] = {}
    for i, row in enumerate(rows):
        name, library = str(adata.obs_names[row]), str(libraries[row])
        for ax, field, outside in zip(panels[i], fields, plan.outside[row], strict=True):
            side = plan.spec.tile_um * field
            pixels, _ = opened[library].tile(
                plan.centres[row], plan.side_px(library, field), plan.spec.size_px, upsample=plan.spec.upsample
            )
            ax.imshow(pixels if stain is None else stain.apply(pixels, library), extent=(0, side, side, 0), interpolation="antialiased")
            for low in [(side - plan.spec.tile_um * other) / 2 for other in fields if other < field]:
                ax.add_patch(Rectangle((low, low), side - 2 * low, side - 2 * low, fill=False, ec=_style.INK, lw=0.8))
            _style.finish_map(ax, (0.0, 0.0, side, side), scale_bar=scale_bar and i == 0)
            if outside > 0.005:
                ax.text(
                    1, -0.04, f"{100 * outside:.0f} % outside", transform=ax.transAxes, fontsize=7, color=_style.INK, ha="right", va="top"
                )
            out[name, field] = ax
        width = (_SIDE * len(fields) + _WITHIN * (len(fields) - 1) + _BETWEEN / 2) / _LETTER
        lines = [_short(name, int(width)), *([_short(library, int(width))] if several else [])]
        panels[i][0].set_title("\n".join(lines), fontsize=_style.TICK, color=_style.INK, pad=3, loc="left")
    sizes = " and ".join(_style.length_text(side) for side in plan.spec.sides_um)
    words = f"{sizes} wide, {plan.spec.size_px} px"
    fig.text(_EDGE / fig.get_figwidth(), 1 - 0.08 / fig.get_figheight(), words, fontsize=_style.LABEL, color=_style.INK, va="top")
    return _style.give(fig, out, show=show, return_fig=return_fig)


def _rows(
    adata: Any, plan: TilePlan, n: int, obs_names: Sequence[str] | None, library_id: str | Sequence[str] | None, rng: np.random.Generator
) -> np.ndarray:
    """Return the rows to draw: those named, or ``n`` drawn from the libraries in turn."""
    if obs_names is not None:
        wanted = validate.names(obs_names)
        at = adata.obs_names.get_indexer(wanted)
        if (at < 0).any() or not len(at):
            missing = [name for name, found in zip(wanted, at, strict=True) if found < 0]
            raise KeyError(
                f"adata has no observations {missing[:5]} (it has such as {list(adata.obs_names[:3])}). Pass names of adata.obs_names."
            )
        return at
    libraries = list(plan.rows) if library_id is None else validate.names(library_id)
    unknown = [name for name in libraries if name not in plan.rows]
    if unknown:
        raise KeyError(f"there is no library {unknown[0]!r} with tiles (found {list(plan.rows)}). Pass `library_id=` with one of these.")
    orders = [rng.permutation(plan.rows[name]) for name in libraries]
    turn = [order[i] for i in range(max(map(len, orders))) for order in orders if i < len(order)]
    return np.asarray(turn[: validate.whole(n, "n")])


def _sheet(n: int, ncols: int, fields: int, *, lines: int) -> tuple[Figure, list[list[Axes]]]:
    """Return the figure and the Axes of each tile, one for each field, with room for titles of so many lines."""
    wide, above = fields * _SIDE + (fields - 1) * _WITHIN, _ABOVE + 0.14 * (lines - 1)
    tall, nrows = above + _SIDE + _BELOW, -(-n // ncols)
    width, height = 2 * _EDGE + ncols * wide + (ncols - 1) * _BETWEEN, nrows * tall + _TOP + _EDGE
    fig = plt.figure(figsize=(max(width, 2.2), height))
    width = fig.get_figwidth()
    panels = []
    for i in range(n):
        left, top = _EDGE + (i % ncols) * (wide + _BETWEEN), _TOP + (i // ncols) * tall + above
        boxes = [((left + f * (_SIDE + _WITHIN)) / width, 1 - (top + _SIDE) / height, _SIDE / width, _SIDE / height) for f in range(fields)]
        panels.append([fig.add_axes(box) for box in boxes])
    return fig, panels


def _short(name: str, letters: int) -> str:
    """Return a name of at most so many letters, cut out of the middle."""
    half = max((letters - 1) // 2, 1)
    return name if len(name) <= letters else f"{name[:half]}…{name[-half:]}"
