import subprocess
import sys
import time

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.image import AxesImage

import stimg
from stimg.image.spec import RasterSpec
from stimg.pl import _geometry


def cells_in(ax):
    return next(c for c in ax.collections if isinstance(c, PolyCollection))


def naive_order(adata, library):
    """Rows of one library that are on the raster, row by row, column by column."""
    rc = adata.obsm["stimg_rc"]
    rows = [i for i in range(adata.n_obs) if adata.obs["library_id"].iloc[i] == library and rc[i, 0] >= 0]
    return sorted(rows, key=lambda i: tuple(rc[i]))


def bar_of(ax):
    return next(line for line in ax.lines if line.get_gid() == "scale bar")


@pytest.mark.parametrize("lattice", ["hex", "square"])
def test_values_and_polygons_are_drawn_in_raster_order(section, lattice):
    adata = section(lattice)
    adata.obsm["stimg_rc"][:3] = -1
    ax = stimg.pl.raster(adata, color="IGKC")
    order = naive_order(adata, "A")
    drawn = cells_in(ax)
    np.testing.assert_array_equal(drawn.get_array(), adata.X.toarray()[order, 2])
    spec = RasterSpec.from_dict(adata.uns["stimg"]["raster"]["A"])
    centres = [p.vertices[:-1].mean(axis=0) for p in drawn.get_paths()]
    np.testing.assert_allclose(centres, spec.centres_um(adata.obsm["stimg_rc"][order])[:, ::-1], atol=1e-9)
    assert len(drawn.get_paths()[0].vertices) - 1 == (6 if lattice == "hex" else 4)


def test_the_map_is_in_micrometres_with_rows_downwards_and_a_true_scale_bar(section):
    adata = section("hex", shape=(30, 40), keep=1.0)
    ax = stimg.pl.raster(adata, color="depth")
    bottom, top = ax.get_ylim()
    assert bottom > top
    assert ax.get_aspect() == 1.0
    assert ax.get_xlim() == pytest.approx((-50.0, 4000.0))
    x = bar_of(ax).get_xdata()
    assert x[1] - x[0] == 1000.0
    assert [t.get_text() for t in ax.texts if t.get_gid() == "scale bar"] == ["1 mm"]
    ax.figure.canvas.draw()
    pixels = np.diff(bar_of(ax).get_transform().transform(np.column_stack([x, [0, 0]]))[:, 0])[0]
    assert pixels / ax.get_window_extent().width == pytest.approx(1000.0 / 4050.0, rel=1e-6)
    assert not stimg.pl.raster(adata, color="depth", scale_bar=False).lines


def test_log1p_is_drawn_and_said(section):
    adata = section()
    ax = stimg.pl.raster(adata, color="ERBB2", transform="log1p")
    np.testing.assert_allclose(cells_in(ax).get_array(), np.log1p(adata.X.toarray()[naive_order(adata, "A"), 0]))
    assert ax.child_axes[0].get_ylabel() == "log1p(counts)"
    adata.uns["stimg"]["log"] = {"unit": "log1p_cp10k"}
    assert stimg.pl.raster(adata, color="ERBB2", layer="log").child_axes[0].get_ylabel() == "log1p_cp10k"
    with pytest.raises(ValueError, match="transform='sqrt' is not known"):
        stimg.pl.raster(adata, color="ERBB2", transform="sqrt")
    adata.layers["scaled"] = adata.X.toarray() - 3
    with pytest.raises(ValueError, match="log1p"):
        stimg.pl.raster(adata, color="ERBB2", layer="scaled", transform="log1p")


def test_libraries_of_one_gene_share_their_limits_and_their_scale(section, joined):
    first, second = section(name="A"), section("square", name="B", shape=(7, 10), seed=4)
    second.X = second.X * 3
    adata = joined(first, second)
    panels = stimg.pl.raster(adata, color=["ERBB2", "IGKC"], percentile=(0, 100))
    assert set(panels) == {(lib, g) for lib in "AB" for g in ("ERBB2", "IGKC")}
    for gene, column in (("ERBB2", 0), ("IGKC", 2)):
        values = adata.X.toarray()[:, column]
        for lib in "AB":
            drawn = cells_in(panels[lib, gene])
            assert (drawn.norm.vmin, drawn.norm.vmax) == (values.min(), values.max())
            np.testing.assert_array_equal(drawn.get_array(), values[naive_order(adata, lib)])
            assert panels[lib, gene].get_title() == f"{gene} · {lib}"
    spans = [np.ptp(panels[lib, "ERBB2"].get_xlim()) for lib in "AB"]
    assert spans[0] == pytest.approx(spans[1])
    assert list(stimg.pl.raster(adata, color=["ERBB2", "depth"], library_id="B")) == [("B", "ERBB2"), ("B", "depth")]


def test_categories_take_their_colours_from_uns(section):
    adata = section()
    adata.uns["region_colors"] = ["#112233", "#aabbcc"]
    adata.obs.loc[adata.obs_names[0], "region"] = np.nan
    ax = stimg.pl.raster(adata, color="region")
    drawn = cells_in(ax)
    drawn.update_scalarmappable()
    want = {"lower": "#112233", "upper": "#aabbcc"}
    for face, label in zip(drawn.get_facecolors(), adata.obs["region"].iloc[naive_order(adata, "A")], strict=True):
        np.testing.assert_allclose(face[:3], to_rgb(want.get(label, "#d4d4d4")), atol=1e-6)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["lower", "upper", "missing"]
    adata.uns["region_colors"] = ["#112233"]
    with pytest.raises(ValueError, match="1 colours for the 2 categories"):
        stimg.pl.raster(adata, color="region")


@pytest.mark.parametrize("kind", ["bool", "str", "Int64"])
def test_columns_of_every_kind_are_drawn(section, kind):
    adata = section()
    whole = adata.obs["depth"].to_numpy().astype(int)
    if kind == "Int64":
        adata.obs["x"] = pd.array(whole, dtype="Int64")
        adata.obs.loc[adata.obs_names[1], "x"] = pd.NA
    else:
        adata.obs["x"] = whole > 11 if kind == "bool" else np.where(whole > 11, "True", "False")
    ax = stimg.pl.raster(adata, color="x")
    order = naive_order(adata, "A")
    drawn = cells_in(ax).get_array()
    if kind == "Int64":
        np.testing.assert_array_equal(drawn.mask, [i == 1 for i in order])
        np.testing.assert_array_equal(drawn.compressed(), [whole[i] for i in order if i != 1])
    else:
        np.testing.assert_array_equal(drawn, whole[order] > 11)
        assert [t.get_text() for t in ax.get_legend().get_texts()] == ["False", "True"]


def test_observations_on_one_lattice_point_add_their_counts(section):
    adata = section("square", keep=0.5)
    adata.obsm["stimg_rc"][1] = adata.obsm["stimg_rc"][0]
    ax = stimg.pl.raster(adata, color="ERBB2", transform="log1p")
    sums = {}
    for point, value in zip(map(tuple, adata.obsm["stimg_rc"].tolist()), adata.X.toarray()[:, 0], strict=True):
        sums[point] = sums.get(point, 0.0) + value
    np.testing.assert_allclose(cells_in(ax).get_array(), np.log1p([sums[p] for p in sorted(sums)]))


def test_the_histology_lies_where_the_affine_map_puts_it(section):
    adata = section("hex")
    ax = stimg.pl.raster(adata, color="ERBB2", image=True)
    picture = next(a for a in ax.images if isinstance(a, AxesImage))
    to_data = picture.get_transform() - ax.transData
    in_image = adata.obsm["spatial"] * 0.02  # (x, y) in pixels of the hires image
    spec = RasterSpec.from_dict(adata.uns["stimg"]["raster"]["A"])
    np.testing.assert_allclose(to_data.transform(in_image), spec.centres_um(adata.obsm["stimg_rc"])[:, ::-1], atol=1e-6)
    np.testing.assert_array_equal(picture.get_array(), adata.uns["spatial"]["A"]["images"]["hires"])
    assert cells_in(ax).get_alpha() == 0.6
    assert picture.get_zorder() < cells_in(ax).get_zorder()
    ax.figure.canvas.draw()
    with pytest.raises(KeyError, match=r"'lowres'.*hires"):
        stimg.pl.raster(adata, color="ERBB2", image=True, image_key="lowres")
    del adata.uns["spatial"]["A"]["scalefactors"]["tissue_hires_scalef"]
    with pytest.raises(KeyError, match="tissue_hires_scalef"):
        stimg.pl.raster(adata, color="ERBB2", image=True)


def test_a_crop_in_micrometres_shows_that_part(section):
    adata = section("square", keep=1.0)
    ax = stimg.pl.raster(adata, color="ERBB2", crop_um=(250.0, 150.0, 400.0, 300.0))
    assert ax.get_xlim() == (150.0, 450.0)
    assert ax.get_ylim() == (650.0, 250.0)
    corners = np.array([p.vertices[:4] for p in cells_in(ax).get_paths()]).reshape(-1, 2)
    assert corners.min(axis=0).tolist() <= [150.0, 250.0]
    assert (corners.max(axis=0) >= [450.0, 650.0]).all()
    with pytest.raises(ValueError, match="holds no lattice point of library 'A'"):
        stimg.pl.raster(adata, color="ERBB2", crop_um=(9000.0, 0.0, 100.0, 100.0))
    with pytest.raises(ValueError, match="above zero"):
        stimg.pl.raster(adata, color="ERBB2", crop_um=(0.0, 0.0, -1.0, 100.0))


def test_a_million_bins_are_an_image_and_quick():
    rng = np.random.default_rng(0)
    side = 1000
    rc = np.argwhere(rng.random((side, side)) < 0.9).astype(np.int32)
    rc = rc[rng.permutation(len(rc))]
    counts = sp.random(len(rc), 2, density=0.3, format="csr", rng=rng, dtype=np.float32)
    adata = ad.AnnData(
        counts, obs=pd.DataFrame({"library_id": "HD"}, index=pd.RangeIndex(len(rc)).astype(str)), var=pd.DataFrame(index=["a", "b"])
    )
    adata.obsm["stimg_rc"] = rc
    adata.uns["stimg"] = {"raster": {"HD": RasterSpec("square", (side, side), 8.0).to_dict()}}
    start = time.perf_counter()
    ax = stimg.pl.raster(adata, color="b")
    ax.figure.canvas.draw()
    assert time.perf_counter() - start < 30
    assert not ax.collections
    dense = np.full((side, side), np.nan, dtype=np.float32)
    dense[rc[:, 0], rc[:, 1]] = counts.toarray()[:, 1]
    np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), dense)
    assert ax.images[0].get_extent() == [-4.0, 7996.0, 7996.0, -4.0]


@pytest.mark.parametrize("lattice", ["hex", "square"])
def test_the_image_route_draws_the_same_limits_and_greys_what_is_missing(section, monkeypatch, lattice):
    adata = section(lattice)
    adata.obs.loc[adata.obs_names[:5], "depth"] = np.nan
    exact = stimg.pl.raster(adata, color="depth")
    monkeypatch.setitem(_geometry.IMAGE_FROM, lattice, 1)
    fast = stimg.pl.raster(adata, color="depth")
    grey, values = fast.images
    assert values.norm.vmax == cells_in(exact).norm.vmax
    wide = 2 if lattice == "hex" else 1
    assert np.isfinite(grey.get_array().filled(np.nan)).sum() == 5 * wide
    assert np.isfinite(values.get_array().filled(np.nan)).sum() == (adata.n_obs - 5) * wide
    assert stimg.pl.raster(adata, color="region").images[0].get_interpolation() == "nearest"
    fast.figure.canvas.draw()


def test_nothing_is_written(section):
    adata = section()
    before = adata.copy()
    stimg.pl.raster(adata, color=["ERBB2", "region"], image=True)
    assert list(adata.obs) == list(before.obs)
    assert set(adata.obsm) == set(before.obsm)
    assert set(adata.uns) == set(before.uns)
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())


def test_axes_given_are_used_and_the_figure_can_be_asked_for(section, monkeypatch):
    adata = section()
    fig, axes = plt.subplots(1, 2)
    out = stimg.pl.raster(adata, color=["ERBB2", "depth"], ax=axes)
    assert list(out.values()) == list(axes)
    assert stimg.pl.raster(adata, color="ERBB2", ax=axes[0]) is axes[0]
    assert stimg.pl.raster(adata, color="ERBB2", ax=axes[1], return_fig=True) is fig
    with pytest.raises(ValueError, match="2 Axes for 1 panels"):
        stimg.pl.raster(adata, color="ERBB2", ax=axes)
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(1))
    stimg.pl.raster(adata, color="ERBB2")
    assert not calls
    stimg.pl.raster(adata, color="ERBB2", show=True)
    assert calls


def test_errors_say_what_is_there_and_what_to_do(section):
    adata = section()
    with pytest.raises(KeyError, match=r"Did you mean 'ERBB2'"):
        stimg.pl.raster(adata, color="Erbb2")
    with pytest.raises(KeyError, match=r"neither a gene nor a column.*Did you mean 'region'"):
        stimg.pl.raster(adata, color="regoin")
    with pytest.raises(KeyError, match=r"no library 'B'.*Known: 'A'"):
        stimg.pl.raster(adata, color="ERBB2", library_id="B")
    with pytest.raises(KeyError, match="nothere"):
        stimg.pl.raster(adata, color="ERBB2", layer="nothere")
    with pytest.raises(ValueError, match="color is empty"):
        stimg.pl.raster(adata, color=[])
    adata.obs["ERBB2"] = 1
    with pytest.raises(ValueError, match="both a gene and a column"):
        stimg.pl.raster(adata, color="ERBB2")
    del adata.obsm["stimg_rc"]
    with pytest.raises(KeyError, match=r"stimg\.pp\.rasterize"):
        stimg.pl.raster(adata, color="IGKC")


def test_a_library_with_nothing_on_the_raster_is_refused(section):
    adata = section()
    adata.obsm["stimg_rc"][:] = -1
    with pytest.raises(ValueError, match="no observation on its raster"):
        stimg.pl.raster(adata, color="IGKC")


def test_importing_pl_loads_no_matplotlib_and_drawing_needs_no_display(tmp_path):
    code = "import sys, stimg; stimg.pl; assert 'matplotlib' not in sys.modules; assert 'torch' not in sys.modules; stimg.pl.history; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import stimg, sys; f = stimg.pl.history({'train_loss': [3, 2, 1]}, return_fig=True); f.savefig(sys.argv[1])"
    env = {"PATH": "/usr/bin:/bin", "MPLCONFIGDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.png")], check=True, env=env)
    assert (tmp_path / "x.png").stat().st_size > 2000
