"""How every picture looks: panels, colours, colour bars, legends, scale bars and the background image."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Colormap, ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D, ScaledTranslation

from stimg.image.spec import RasterSpec
from stimg.pl._geometry import IMAGE_FROM, Box, Cells, grown, lattice_image, polygons_um

TITLE, LABEL, TICK = 10.0, 9.0, 8.0
INK, MISSING = "#262626", "#d4d4d4"
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#525252")
TOL_MUTED = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499")
RGB_COLORS = ((0.88, 0.32, 0.02), (0.02, 0.58, 0.38), (0.20, 0.22, 0.75))
"""Light of the three channels of a colour composite; vermilion, bluish green and blue are told apart with every common colour vision."""


def categorical_colors(n: int) -> list[str]:
    """Return ``n`` colours: Okabe and Ito's up to 8, then Tol's muted ones, then the same again mixed with white."""
    base = list(OKABE_ITO) if n <= len(OKABE_ITO) else [*OKABE_ITO, *TOL_MUTED]
    out: list[str] = []
    while len(out) < n:
        white = 1.0 - 0.6 ** (len(out) // len(base))
        out.extend(mpl.colors.to_hex(tuple(white + (1.0 - white) * np.asarray(to_rgb(c)))) for c in base)
    return out[:n]


def panels(
    boxes: Sequence[Box], ncols: int, ax: Axes | Sequence[Axes] | None, *, side: float = 3.0, right: float = 0.9
) -> tuple[Figure, list[Axes]]:
    """Return one Axes for each box: those given, or new ones ``side`` inches wide with ``right`` inches for what stands beside them."""
    n = len(boxes)
    if ncols < 1:
        raise ValueError(f"ncols={ncols}; wanted at least 1.")
    if ax is not None:
        found = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax)))
        if len(found) != n:
            raise ValueError(f"ax holds {len(found)} Axes for {n} panels; wanted {n}. Pass as many, or `ax=None` for a new figure.")
        return found[0].get_figure(), found  # type: ignore[call-overload, return-value]
    ncols = min(ncols, n)
    nrows = -(-n // ncols)
    aspect = max(box[2] / box[3] for box in boxes)
    wide = side / max(1.0, aspect / 1.6)
    fig = plt.figure(figsize=(ncols * (wide + right), nrows * (wide * aspect + 0.65)), layout="constrained")
    pad(fig, 0.08)
    return fig, [fig.add_subplot(nrows, ncols, i + 1) for i in range(n)]


def pad(fig: Figure, inches: float) -> None:
    """Set the space around each panel of a figure with constrained layout."""
    engine: Any = fig.get_layout_engine()
    engine.set(w_pad=inches, h_pad=inches)


def limits(values: Sequence[np.ndarray], vmin: float | None, vmax: float | None, percentile: tuple[float, float]) -> Normalize:
    """Return the colour limits of ``values`` (several panels share them): the given ones, else percentiles of the finite values."""
    low, high = percentile
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentile={percentile}; wanted (low, high) with 0 <= low < high <= 100.")
    drawn = np.concatenate([np.ravel(v) for v in values]) if len(values) else np.zeros(0)
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        drawn = np.zeros(1)
    bottom = float(np.percentile(drawn, low)) if vmin is None else float(vmin)
    top = float(np.percentile(drawn, high)) if vmax is None else float(vmax)
    if vmax is None and top <= bottom:  # a gene seen in fewer spots than the percentile leaves out, or a constant
        top = float(drawn.max())
    if vmin is None and vmax is None and top == bottom:
        top = bottom + 1.0
    if not top > bottom:
        raise ValueError(
            f"The colour limits are vmin={bottom:g} and vmax={top:g}; wanted vmin below vmax. Change the one given, or leave out both."
        )
    return Normalize(bottom, top)


def composite(values: np.ndarray, norms: Sequence[Normalize], colors: Any = None) -> np.ndarray:
    """Return the light of three channels as colours, (m, 3) in 0 to 1: each channel is scaled to its limits and its light is added."""
    low = np.array([norm.vmin for norm in norms], dtype=np.float64)
    high = np.array([norm.vmax for norm in norms], dtype=np.float64)
    light = np.clip((values - low) / (high - low), 0.0, 1.0)
    return light if colors is None else np.clip(light @ np.asarray(colors), 0.0, 1.0)


def category_scale(colors: Sequence[Any]) -> tuple[Colormap, Normalize]:
    """Return a colour map of ``colors`` and the limits that send code k to colour k."""
    return ListedColormap([to_rgb(c) for c in colors]), Normalize(-0.5, len(colors) - 0.5)


def draw(
    ax: Axes, cells: Cells, values: np.ndarray, *, cmap: Any, norm: Normalize, alpha: float | None, box: Box | None = None
) -> ScalarMappable:
    """Draw one number per lattice point as hexagons or squares with exact corners in µm, or as an image where they are very many.

    NaN is drawn in light grey. Returns the PolyCollection or AxesImage, whose array holds the values in raster order.
    """
    keep = cells.within(None if box is None else grown(box, cells.spec.pitch_um))
    rc, values = cells.rc[keep], values[keep]
    cmap = mpl.colormaps[cmap] if isinstance(cmap, str) else cmap
    artist: Any
    if len(rc) and as_image(cells.spec, rc):
        image, extent = lattice_image(cells.spec, rc, values)
        bad = np.isnan(values)
        smooth = "nearest" if isinstance(cmap, ListedColormap) and cmap.N < 128 else "auto"
        if bad.any():
            under, _ = lattice_image(cells.spec, rc[bad], np.ones(int(bad.sum())))
            _show(
                ax,
                under,
                lattice_image(cells.spec, rc[bad], bad[bad])[1],
                cmap=ListedColormap([MISSING]),
                alpha=alpha,
                interpolation="nearest",
            )
        artist = _show(ax, image, extent, cmap=cmap.with_extremes(bad=(0, 0, 0, 0)), norm=norm, alpha=alpha, interpolation=smooth)
    else:
        artist = PolyCollection(polygons_um(cells.spec, rc), cmap=cmap.with_extremes(bad=MISSING), norm=norm, **_edges(alpha))  # type: ignore[arg-type]
        artist.set_array(np.ma.masked_invalid(values))
        ax.add_collection(artist, autolim=False)
    return artist


def draw_rgb(ax: Axes, cells: Cells, rgb: np.ndarray, *, alpha: float | None = None, box: Box | None = None) -> Any:
    """Draw one colour per lattice point, ``rgb`` (m, 3) in 0 to 1; rows with NaN are light grey."""
    keep = cells.within(None if box is None else grown(box, cells.spec.pitch_um))
    rc, rgb = cells.rc[keep], np.array(rgb[keep], dtype=np.float64)
    rgb[~np.isfinite(rgb).all(axis=1)] = to_rgb(MISSING)
    if len(rc) and as_image(cells.spec, rc):
        rgba = np.concatenate([rgb, np.ones((len(rgb), 1))], axis=1)
        image, extent = lattice_image(cells.spec, rc, rgba, fill=0.0)
        return _show(ax, image, extent, alpha=alpha)
    artist = PolyCollection(polygons_um(cells.spec, rc), facecolors=rgb, **_edges(alpha))  # type: ignore[arg-type]
    ax.add_collection(artist, autolim=False)
    return artist


def as_image(spec: RasterSpec, rc: np.ndarray) -> bool:
    """Return whether so many lattice points are drawn as an image: square ones count the rectangle around them, hexagonal ones the points."""
    extent = np.prod(rc.max(axis=0) - rc.min(axis=0) + 1, dtype=np.float64) if spec.lattice == "square" else len(rc)
    return bool(extent >= IMAGE_FROM[spec.lattice])


def _edges(alpha: float | None) -> dict[str, Any]:
    """Thin edges in the colour of the face close the hairlines between neighbours; with transparency they would show as a net."""
    clear = alpha is None or alpha >= 1
    return {"edgecolors": "face" if clear else "none", "linewidths": 0.25 if clear else 0.0, "alpha": alpha}


def _show(ax: Axes, image: np.ndarray, box: Box, **options: Any) -> Any:
    return ax.imshow(image, extent=(box[1], box[1] + box[3], box[0] + box[2], box[0]), origin="upper", aspect="equal", **options)


def finish_map(ax: Axes, box: Box, *, title: str | None = None, scale_bar: bool = True) -> None:
    """Set µm limits with y downwards and equal axes, take ticks and frame away, write the title, and draw the scale bar."""
    ax.set_xlim(box[1], box[1] + box[3])
    ax.set_ylim(box[0] + box[2], box[0])
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title is not None:
        ax.set_title(title, fontsize=TITLE, color=INK, pad=5)
    if scale_bar:
        draw_scale_bar(ax, box)


def bar_length_um(width_um: float) -> float:
    """Return the longest of 1, 2 and 5 times a power of ten that is at most 0.3 of ``width_um``."""
    most = 0.3 * width_um
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(step for step in (1.0, 2.0, 5.0) if step * power <= most * (1 + 1e-9)) * power)


def length_text(length_um: float) -> str:
    """Return a length in mm from 1,000 µm on, in nm below 1 µm, else in µm."""
    if length_um >= 1000:
        return f"{length_um / 1000:g} mm"
    return f"{length_um:g} µm" if length_um >= 1 else f"{length_um * 1000:g} nm"


def draw_scale_bar(ax: Axes, box: Box) -> Line2D:
    """Draw a bar under the map, its length in data units (µm) and its words beside it; nothing of the tissue is covered."""
    length = bar_length_um(box[3])
    figure: Any = ax.get_figure()
    data: Any = ax.get_xaxis_transform()
    below = data + ScaledTranslation(0, -8 / 72, figure.dpi_scale_trans)
    bar = Line2D([box[1], box[1] + length], [0, 0], transform=below, color=INK, lw=2, solid_capstyle="butt", clip_on=False, gid="scale bar")
    ax.add_line(bar)
    beside = below + ScaledTranslation(5 / 72, 0, figure.dpi_scale_trans)
    ax.text(box[1] + length, 0, length_text(length), transform=beside, fontsize=TICK, color=INK, va="center", ha="left", gid="scale bar")
    return bar


def color_bar(ax: Axes, artist: Any, *, label: str, drawn: Sequence[np.ndarray]) -> Any:
    """Draw a colour bar as high as the map; its ends are pointed where drawn values lie outside the limits."""
    low, high = artist.norm.vmin, artist.norm.vmax
    below = any(np.nanmin(v, initial=np.inf) < low for v in drawn)
    above = any(np.nanmax(v, initial=-np.inf) > high for v in drawn)
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    mappable = ScalarMappable(norm=artist.norm, cmap=artist.cmap)  # the map's own alpha stays out of the bar
    bar = ax.get_figure().colorbar(mappable, cax=ax.inset_axes((1.03, 0.0, 0.04, 1.0)), extend=extend, extendfrac=0.03)  # type: ignore[union-attr]
    bar.set_label(label, fontsize=LABEL, color=INK, labelpad=4)
    bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    bar.ax.tick_params(labelsize=TICK, width=0.6, length=2.5, colors=INK)
    bar.outline.set_linewidth(0.5)
    return bar


def legend(ax: Axes, names: Sequence[str], colors: Sequence[Any], *, missing: bool = False) -> None:
    """Write the names of the categories beside the map, in columns of 16."""
    handles = [_patch(color) for color in colors] + ([_patch(MISSING)] if missing else [])
    texts = [*names, *(["missing"] if missing else [])]
    ax.legend(
        handles, texts, loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=TICK, labelcolor=INK,
        handlelength=0.9, handleheight=0.9, handletextpad=0.5, labelspacing=0.35, borderaxespad=0.2, ncols=-(-len(texts) // 16), columnspacing=1.0,
    )  # fmt: skip


def _patch(color: Any) -> mpl.patches.Patch:
    return mpl.patches.Patch(facecolor=color, edgecolor="none")


def draw_image(ax: Axes, adata: Any, cells: Cells, image_key: str) -> Any:
    """Draw the histology image of a library below its raster, through the inverse of ``spec.affine``, so that pixels and cells coincide."""
    found = adata.uns.get("spatial", {}).get(cells.name)
    if not isinstance(found, Mapping) or image_key not in found.get("images", {}):
        have = sorted(found.get("images", {})) if isinstance(found, Mapping) else sorted(adata.uns.get("spatial", {}))
        raise KeyError(
            f"adata.uns['spatial'][{cells.name!r}]['images'][{image_key!r}] is missing (found {have}). Read the section with its image, or pass `image=False`."
        )
    factor = f"tissue_{image_key}_scalef"
    scales = found.get("scalefactors", {})
    if factor not in scales:
        raise KeyError(
            f"adata.uns['spatial'][{cells.name!r}]['scalefactors'][{factor!r}] is missing (found {sorted(scales)}). "
            "Set it to image pixels per full-resolution pixel, or pass `image=False`."
        )
    image = np.asarray(found["images"][image_key])
    affine = np.asarray(cells.spec.affine, dtype=np.float64)[::-1][:, [1, 0, 2]]  # (x, y) for matplotlib
    to_px = Affine2D(np.vstack([affine, [0.0, 0.0, 1.0]]))
    to_um = Affine2D().scale(1.0 / float(scales[factor])) + to_px.inverted() + Affine2D().scale(cells.spec.pitch_um)
    options: dict[str, Any] = {"cmap": "gray"} if image.ndim == 2 else {}
    options |= {"origin": "upper", "transform": to_um + ax.transData, "zorder": 0, "aspect": "equal"}
    return ax.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), **options)


def give(fig: Figure, result: Any, *, show: bool | None, return_fig: bool) -> Any:
    """Show the figure where asked to, and return it or the Axes."""
    if show:
        plt.show()
    return fig if return_fig else result
