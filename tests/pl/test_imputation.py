"""The maps of what was measured, imputed, true and wrong, against arrays that are put together by hand."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PolyCollection

import stimg
from stimg.data.slots import raster_libraries
from stimg.image.spec import RasterSpec
from stimg.pl import _geometry, _imputation
from stimg.pl._geometry import cells_of

KINDS = ("measured", "imputed", "truth", "error", "sd")


def logs(adata, gene):
    counts = adata.X.toarray().astype(float)
    return np.log1p(1e4 * counts[:, adata.var_names.get_loc(gene)] / counts.sum(axis=1))


def where(adata):
    """(row, column) of every observation, as a tuple."""
    return [tuple(map(int, rc)) for rc in adata.obsm["stimg_rc"]]


def drawn(ax):
    """What the cells of a map show, by (row, column) of nothing but the order in which they were drawn: raster order."""
    artist = next(c for c in ax.collections if isinstance(c, PolyCollection) and c.get_gid() is None)
    return np.ma.filled(np.ma.asarray(artist.get_array(), dtype=float), np.nan), artist


def lines(ax, gid):
    return [c for c in ax.collections if isinstance(c, LineCollection) and c.get_gid() == gid]


@pytest.fixture(params=["hex", "square"])
def parts(section, request):
    """A whole section, a sparse one, the hidden part, and the sparse one filled by the means of neighbours."""
    whole = section(request.param, shape=(12, 12), keep=0.9)
    sparse, truth = stimg.pp.sparsify(whole, mask="random", rng=3)
    return whole, sparse, truth, stimg.tl.impute(sparse, targets=truth, method="k_nearest")


def test_every_map_shows_what_it_says(parts):
    _, sparse, truth, filled = parts
    panels = stimg.pl.imputation(filled, genes=["IGKC", "ERBB2"], truth=truth, percentile=(0, 100))
    assert list(panels) == [(gene, kind) for gene in ("IGKC", "ERBB2") for kind in KINDS]
    order = sorted(where(filled))
    here = dict(zip(where(filled), range(filled.n_obs), strict=True))
    for gene in ("IGKC", "ERBB2"):
        known = dict(zip(where(sparse), logs(sparse, gene), strict=True))
        hidden = dict(zip(where(truth), logs(truth, gene), strict=True))
        column = filled.var_names.get_loc(gene)
        guess = {rc: float(filled.layers["stimg_k_nearest"][here[rc], column]) for rc in hidden}
        spread = {rc: float(filled.layers["stimg_k_nearest_sd"][here[rc], column]) for rc in hidden}
        wanted = {
            "measured": [known.get(rc, np.nan) for rc in order],
            "imputed": [known[rc] if rc in known else guess[rc] for rc in order],
            "truth": [{**known, **hidden}[rc] for rc in order],
            "error": [guess[rc] - hidden[rc] if rc in hidden else np.nan for rc in order],
            "sd": [spread.get(rc, np.nan) for rc in order],
        }
        for kind in KINDS:
            np.testing.assert_allclose(drawn(panels[gene, kind])[0], wanted[kind], rtol=1e-5, atol=1e-6, err_msg=kind)
        norms = {kind: drawn(panels[gene, kind])[1].norm for kind in KINDS}
        for kind in ("measured", "imputed", "truth"):
            assert norms[kind].vmin == pytest.approx(min(wanted["imputed"] + wanted["truth"]), abs=1e-6)
            assert norms[kind].vmax == pytest.approx(max(wanted["imputed"] + wanted["truth"]))
        assert norms["error"].vmin == -norms["error"].vmax
        assert norms["error"].vmax == pytest.approx(np.nanpercentile(np.abs(wanted["error"]), 99.5), rel=1e-5)
        assert norms["sd"].vmin == 0
        assert norms["sd"].vmax == pytest.approx(max(np.nanpercentile(wanted["sd"], 99.5), np.std(list(known.values()))), rel=1e-5)
        r = np.corrcoef([guess[rc] for rc in hidden], [hidden[rc] for rc in hidden])[0, 1]
        title = panels[gene, "error"].get_title()
        assert title == f"imputed − truth, r = {r:.2f}\nof {truth.n_obs} hidden spots only".replace("-", "−")
    assert panels["IGKC", "measured"].get_title() == "IGKC\nmeasured"
    bars = [t.get_text() for ax in panels.values() for t in ax.texts if t.get_gid() == "scale bar"]
    assert bars == ["200 µm", "200 µm"]


def test_only_hidden_spots_enter_the_score(parts):
    _, _, truth, filled = parts
    before = stimg.pl.imputation(filled, genes="IGKC", truth=truth)["IGKC", "error"].get_title()
    other = filled.copy()
    measured = (other.obs["stimg_status"] == "measured").to_numpy()
    other.layers["stimg_k_nearest"][measured] = 7.0
    assert stimg.pl.imputation(other, genes="IGKC", truth=truth)["IGKC", "error"].get_title() == before


def test_the_truth_may_be_in_any_order_and_have_other_names(parts):
    _, _, truth, filled = parts
    mixed = truth[np.random.default_rng(0).permutation(truth.n_obs)].copy()
    mixed.obs_names = [f"x{i}" for i in range(mixed.n_obs)]
    a, b = (stimg.pl.imputation(filled, genes="IGKC", truth=each) for each in (truth, mixed))
    for kind in KINDS:
        np.testing.assert_array_equal(drawn(a["IGKC", kind])[0], drawn(b["IGKC", kind])[0])


def test_hidden_spots_that_were_not_predicted_are_counted(section):
    sparse, truth = stimg.pp.sparsify(section(shape=(12, 12), keep=0.9), mask="random", rng=3)
    left = truth[:20].copy()
    filled = stimg.tl.impute(sparse, targets=left, method="nearest")
    panel = stimg.pl.imputation(filled, genes="IGKC", truth=truth)["IGKC", "error"]
    assert f"of 20 of {truth.n_obs} hidden spots only" in panel.get_title()
    assert np.isfinite(drawn(panel)[0]).sum() == 20


def test_a_constant_prediction_has_no_r(section):
    sparse, truth = stimg.pp.sparsify(section(), mask="quarter")
    filled = stimg.tl.impute(sparse, targets=truth, method="mean")
    assert "r undefined" in stimg.pl.imputation(filled, genes="IGKC", truth=truth)["IGKC", "error"].get_title()


@pytest.mark.parametrize(("lattice", "sides"), [("hex", 6), ("square", 4)])
def test_measured_cells_are_outlined_where_they_meet_others(lattice, sides):
    """The edges of one cell in the middle of a full lattice, and none between cells that are alike, nor at the rim."""
    rc = np.argwhere(np.ones((5, 5)))
    spec = RasterSpec(lattice, (5, 5), 100.0, hex_parity=1 if lattice == "hex" else -1)
    cells = cells_of(stimg.data.slots.RasterLibrary("A", spec, np.arange(25), rc))
    inside = (cells.rc == (2, 2)).all(axis=1)
    edges = _imputation.border(cells, inside)
    assert len(edges) == sides
    corners = {tuple(np.round(p, 6)) for p in edges.reshape(-1, 2)}
    assert corners == {tuple(np.round(p, 6)) for p in _geometry.polygons_um(spec, np.array([[2, 2]]))[0]}
    assert len(_imputation.border(cells, np.ones(25, bool))) == 0
    # a column of cells at the left rim meets its neighbours on the right alone
    left = cells.rc[:, 1] == 0
    points = spec.lattice_points(cells.rc)
    near = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)) < 1.01
    assert len(_imputation.border(cells, left)) == near[left][:, ~left].sum()


def test_outlines_and_strokes_are_drawn_until_they_would_hide_the_map(section, monkeypatch):
    whole = section("square", shape=(14, 14), keep=1.0)
    sparse, truth = stimg.pp.sparsify(whole, mask="holes", radius_um=400.0, n_holes=1, rng=None)
    filled = stimg.tl.impute(sparse, targets=truth, method="nearest")
    invented = filled.obsm["stimg_rc"][(filled.obs["stimg_status"] == "invented").to_numpy()]
    assert len(invented)
    panels = stimg.pl.imputation(filled, genes="IGKC")
    (strokes,) = lines(panels["IGKC", "imputed"], "invented")
    middles = np.array([segment.mean(axis=0) for segment in strokes.get_segments()])
    np.testing.assert_allclose(np.sort(middles, axis=0), np.sort(100.0 * invented[:, ::-1], axis=0))
    assert len(lines(panels["IGKC", "imputed"], "measured")) == 2
    assert lines(panels["IGKC", "measured"], "measured") == []
    dark = panels["IGKC", "measured"].collections[1]
    assert len(dark.get_paths()) == len(invented)
    texts = [t.get_text() for t in panels["IGKC", "imputed"].get_figure().legends[0].get_texts()]
    assert texts[0] == f"measured, {sparse.n_obs}: outlined"
    assert texts[-1] == f"invented, {len(invented)}: struck through"
    monkeypatch.setattr(_imputation, "MOST", 3)
    panels = stimg.pl.imputation(filled, genes="IGKC")
    assert lines(panels["IGKC", "imputed"], "invented") == lines(panels["IGKC", "imputed"], "measured") == []
    assert "dark grey on the left" in panels["IGKC", "imputed"].get_figure().legends[0].get_texts()[-1].get_text()


def test_places_beside_the_lattice_are_circles(section):
    adata = section("square", shape=(10, 10), keep=1.0)
    (library,) = raster_libraries(adata).values()
    places = np.array([[2.5, 3.5], [6.3, 6.6]])  # (y, x) in pitches
    affine = np.asarray(library.spec.affine)
    targets = (places @ affine[:, :2].T + affine[:, 2])[:, ::-1]
    filled = stimg.tl.impute(adata, targets=targets, method="nearest")
    ax = stimg.pl.imputation(filled, genes="IGKC", kinds=["imputed"])["IGKC", "imputed"]
    circles = next(c for c in ax.collections if c.get_gid() == "beside the lattice")
    np.testing.assert_allclose([path.vertices[:-1].mean(axis=0) for path in circles.get_paths()], 100.0 * places[:, ::-1])
    column = filled.var_names.get_loc("IGKC")
    np.testing.assert_allclose(circles.get_array(), filled.layers["stimg_nearest"][adata.n_obs :, column], rtol=1e-6)
    assert len(lines(ax, "invented")[0].get_segments()) == 2


def test_a_finer_lattice_is_checked_at_the_measured_scale(section):
    """Hidden spots are points of the finer lattice: found here by their pixels, in the plot by two rasters."""
    sparse, truth = stimg.pp.sparsify(section("hex", shape=(12, 12), keep=1.0), mask="checkerboard")
    finer = stimg.tl.upsample(sparse, factor=2, method="nearest")
    column = finer.var_names.get_loc("IGKC")
    pixels = {tuple(np.round(xy, 3)): i for i, xy in enumerate(finer.obsm["spatial"])}
    pairs = [
        (pixels[tuple(xy)], v) for xy, v in zip(np.round(truth.obsm["spatial"], 3), logs(truth, "IGKC"), strict=True) if tuple(xy) in pixels
    ]
    assert len(pairs) > 50
    panel = stimg.pl.imputation(finer, genes="IGKC", truth=truth)["IGKC", "error"]
    found = drawn(panel)[0]
    wanted = sorted(float(finer.layers["stimg_nearest"][i, column]) - v for i, v in pairs)
    np.testing.assert_allclose(np.sort(found[np.isfinite(found)]), wanted, atol=1e-5)
    assert f"of {len(pairs)}" in panel.get_title()


def test_kinds_choose_and_keep_their_order(parts):
    _, _, truth, filled = parts
    assert list(stimg.pl.imputation(filled, genes="IGKC")) == [("IGKC", k) for k in ("measured", "imputed", "sd")]
    panels = stimg.pl.imputation(filled, genes="IGKC", truth=truth, kinds=["error", "imputed"], scale_bar=False, legend=False)
    assert list(panels) == [("IGKC", "imputed"), ("IGKC", "error")]
    figure = panels["IGKC", "error"].get_figure()
    assert figure.legends == []
    assert not [t for ax in panels.values() for t in ax.texts]
    _, axes = plt.subplots(1, 2)
    given = stimg.pl.imputation(filled, genes="IGKC", kinds=["measured", "sd"], ax=axes)
    assert given["IGKC", "sd"] is axes[1]
    assert axes[0].get_legend() is not None


def test_the_layer_is_found_by_its_record(parts):
    _, sparse, truth, filled = parts
    other = stimg.tl.impute(sparse, targets=truth, method="nearest")
    both = filled.copy()
    both.layers["stimg_nearest"] = other.layers["stimg_nearest"]
    both.layers["anything"] = other.layers["stimg_nearest"]
    assert len(stimg.pl.imputation(both, genes="IGKC")) == 3
    both.uns["stimg"]["stimg_nearest"] = other.uns["stimg"]["stimg_nearest"]
    with pytest.raises(
        ValueError, match=r"2 layers hold predictions: \['stimg_k_nearest', 'stimg_nearest'\]; wanted one\. Name it with `key=`"
    ):
        stimg.pl.imputation(both, genes="IGKC")
    named = stimg.pl.imputation(both, genes="IGKC", key="stimg_nearest")
    column = filled.var_names.get_loc("IGKC")
    order = sorted(range(both.n_obs), key=lambda i: where(both)[i])
    np.testing.assert_allclose(drawn(named["IGKC", "imputed"])[0], other.layers["stimg_nearest"][order, column], rtol=1e-6)


def test_a_spatialdata_gives_the_same_maps(section):
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    whole = section(shape=(12, 12), keep=0.9)
    whole.obs["region"], whole.obs["instance"] = pd.Categorical(["spots"] * whole.n_obs), np.arange(whole.n_obs)
    spots = ShapesModel.parse(whole.obsm["spatial"], geometry=0, radius=1.0, index=np.arange(whole.n_obs))
    table = TableModel.parse(whole, region="spots", region_key="region", instance_key="instance")
    sdata = SpatialData(shapes={"spots": spots}, tables={"cells": table})
    sparse, truth = stimg.pp.sparsify(sdata, mask="random", rng=3, table_key="cells")
    stimg.tl.impute(sparse, targets=truth.tables["cells"], method="nearest", table_key="cells")
    within = stimg.pl.imputation(sparse, genes="IGKC", truth=truth, table_key="cells_imputed", truth_table_key="cells")
    table = sparse.tables["cells_imputed"]
    alone = stimg.pl.imputation(table, genes="IGKC", truth=truth.tables["cells"])
    for kind in alone:
        np.testing.assert_array_equal(drawn(within[kind])[0], drawn(alone[kind])[0])


class TestErrors:
    @pytest.fixture
    def parts(self, section):
        sparse, truth = stimg.pp.sparsify(section(), mask="checkerboard")
        return sparse, truth, stimg.tl.impute(sparse, targets=truth, method="nearest")

    def test_of_the_table(self, parts):
        sparse, _, filled = parts
        with pytest.raises(KeyError, match=r"adata\.obs\['stimg_status'\] is missing .*Pass what `stimg\.tl\.impute` returned"):
            stimg.pl.imputation(sparse, genes="IGKC")
        wrong = filled.copy()
        wrong.obs["stimg_status"] = wrong.obs["stimg_status"].astype(str).replace("imputed", "guessed")
        with pytest.raises(ValueError, match=r"has \['guessed'\]; wanted \['measured', 'imputed', 'invented'\]"):
            stimg.pl.imputation(wrong, genes="IGKC")
        with pytest.raises(KeyError, match=r"adata\.layers\['nothing'\] is missing \(found \['stimg_nearest'"):
            stimg.pl.imputation(filled, genes="IGKC", key="nothing")
        bare = filled.copy()
        del bare.uns["stimg"]["stimg_nearest"]
        with pytest.raises(KeyError, match=r"No layer is recorded as written by `stimg\.tl\.impute` \(layers: \['stimg_nearest'"):
            stimg.pl.imputation(bare, genes="IGKC")
        with pytest.raises(TypeError, match="data is a ndarray; wanted an AnnData or a SpatialData"):
            stimg.pl.imputation(np.ones((3, 3)), genes="IGKC")

    def test_of_genes_and_libraries(self, parts, section, joined):
        _, truth, filled = parts
        with pytest.raises(KeyError, match=r"'igkc' is not a gene of this object .*Did you mean 'IGKC'"):
            stimg.pl.imputation(filled, genes="igkc")
        with pytest.raises(ValueError, match="genes is empty"):
            stimg.pl.imputation(filled, genes=[])
        with pytest.raises(KeyError, match="1 of 1 genes are not in the object"):
            stimg.pl.imputation(filled, genes="IGKC", truth=truth[:, ["ERBB2"]].copy())
        two = joined(section(), section(name="B", seed=1))
        sparse, hidden = stimg.pp.sparsify(two, mask="checkerboard")
        both = stimg.tl.impute(sparse, targets=hidden, method="nearest")
        with pytest.raises(ValueError, match=r"There are 2 libraries \('A', 'B'\); wanted one\. Name it with `library_id=`"):
            stimg.pl.imputation(both, genes="IGKC", truth=hidden)
        with pytest.raises(KeyError, match="There is no library 'C'"):
            stimg.pl.imputation(both, genes="IGKC", library_id="C")
        n = int((hidden.obs["library_id"] == "B").sum())
        title = stimg.pl.imputation(both, genes="IGKC", truth=hidden, library_id="B")["IGKC", "error"].get_title()
        assert f"of {n} hidden spots only" in title

    def test_of_the_truth(self, parts, section):
        sparse, truth, filled = parts
        with pytest.raises(ValueError, match=r"observations of truth stand where the table has a measurement; wanted hidden ones alone"):
            stimg.pl.imputation(filled, genes="IGKC", truth=sparse)
        other = section(name="B")
        with pytest.raises(
            ValueError, match=r"None of the \d+ observations of truth is at a place that was predicted, in the libraries \['A'\]"
        ):
            stimg.pl.imputation(filled, genes="IGKC", truth=other)
        moved = truth.copy()
        spec = dict(moved.uns["stimg"]["raster"]["A"])
        spec["affine"] = np.asarray(spec["affine"]) + np.array([[0, 0, 70.0], [0, 0, 70.0]])
        moved.uns["stimg"]["raster"]["A"] = spec
        with pytest.raises(ValueError, match="is at a place that was predicted"):
            stimg.pl.imputation(filled, genes="IGKC", truth=moved)
        with pytest.raises(TypeError, match="truth is a Sparsified of 2; wanted one object"):
            stimg.pl.imputation(filled, genes="IGKC", truth=stimg.pp.sparsify(section(), mask="checkerboard"))
        logged = truth.copy()
        logged.X = np.log1p(logged.X.toarray())
        with pytest.raises(ValueError, match="fractional values"):
            stimg.pl.imputation(filled, genes="IGKC", truth=logged)
        counted = filled.copy()
        counted.uns["stimg"]["stimg_nearest"]["unit"] = "counts"
        with pytest.raises(ValueError, match="is recorded in counts; wanted log1p_cp10k, the unit of the truth"):
            stimg.pl.imputation(counted, genes="IGKC", truth=truth)

    def test_of_what_is_drawn(self, parts):
        sparse, truth, filled = parts
        plain = stimg.tl.impute(sparse, targets=truth, method="nearest", uncertainty=False)
        assert ("IGKC", "sd") not in stimg.pl.imputation(plain, genes="IGKC")
        with pytest.raises(KeyError, match=r"adata\.layers\['stimg_nearest_sd'\] is missing.*`uncertainty=True`"):
            stimg.pl.imputation(plain, genes="IGKC", kinds=["sd"])
        with pytest.raises(ValueError, match=r"kinds=\['error'\] needs the truth"):
            stimg.pl.imputation(filled, genes="IGKC", kinds="error")
        with pytest.raises(ValueError, match="kinds='map' is not known"):
            stimg.pl.imputation(filled, genes="IGKC", kinds=["map"])
        with pytest.raises(ValueError, match="kinds is empty"):
            stimg.pl.imputation(filled, genes="IGKC", kinds=[])
        with pytest.raises(ValueError, match="ax holds 1 Axes for 3 panels"):
            stimg.pl.imputation(filled, genes="IGKC", ax=plt.subplots()[1])
        with pytest.raises(ValueError, match="holds no lattice point"):
            stimg.pl.imputation(filled, genes="IGKC", crop_um=(1e6, 1e6, 10, 10))
