"""A sparse slide holds nothing of what is hidden: by names, by bytes, and by poisoned values."""

import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stimg
from stimg._core import keys
from stimg.image.masks import hide

MASKS = [
    ("random", {"fraction": 0.3}), ("checkerboard", {"phase": 1}), ("quarter", {"phase": 2}), ("holes", {"n_holes": 2, "radius_um": 250.0}),
    ("half", {"side": "left"}), ("rows", {"every": 3}),
]  # fmt: skip
MARK = 987_654.0


@pytest.fixture(params=["st", "visium"])
def slide(request):
    adata = stimg.datasets.simulate(technology=request.param, shape=(14, 13), n_genes=30, n_sections=2, rng=1)
    stimg.pp.rasterize(adata)
    keep = np.random.default_rng(0).permutation(adata.n_obs)[: int(0.9 * adata.n_obs)]
    return adata[keep].copy()


def poisoned(adata, names):
    other = adata.copy()
    dense = other.X.toarray()
    dense[other.obs_names.get_indexer(names)] = MARK
    other.X = sp.csr_matrix(dense)
    return other


@pytest.mark.parametrize(("mask", "options"), MASKS)
def test_observed_and_truth_are_the_two_parts_of_every_library(slide, mask, options):
    before = slide.copy()
    observed, truth = stimg.pp.sparsify(slide, mask=mask, **options, rng=5)
    assert not set(observed.obs_names) & set(truth.obs_names)
    assert set(observed.obs_names) | set(truth.obs_names) == set(slide.obs_names)
    for part in (observed, truth):
        assert not part.is_view
        assert isinstance(part.X, sp.csr_matrix)
        np.testing.assert_array_equal(part.X.toarray(), slide[part.obs_names].X.toarray())
        np.testing.assert_array_equal(part.obsm["spatial"], slide[part.obs_names].obsm["spatial"])
        stimg.data.slots.raster_libraries(part)
        assert part.uns["stimg"]["sparsify"]["n_hidden"] == truth.n_obs
    generator = np.random.default_rng(5)
    for name in ("D1S1", "D1S2"):
        mine = slide[slide.obs["library_id"] == name]
        spec = stimg.data.slots.raster_libraries(mine)[name].spec
        given = {"n": 2, "radius": 250.0 / spec.pitch_um} if mask == "holes" else options
        hidden = hide(mask, spec, mine.obsm["stimg_rc"], **given, **({"rng": generator} if mask in ("random", "holes") else {}))
        assert set(mine.obs_names[hidden]) == set(truth.obs_names) & set(mine.obs_names)
    assert (slide.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(slide.obs, before.obs)
    assert "sparsify" not in slide.uns["stimg"]


@pytest.mark.parametrize(("mask", "options"), MASKS)
def test_poisoned_hidden_values_change_nothing_in_the_sparse_slide(slide, mask, options):
    observed, truth = stimg.pp.sparsify(slide, mask=mask, **options)
    again, other = stimg.pp.sparsify(poisoned(slide, truth.obs_names), mask=mask, **options)
    text = pickle.dumps(again)
    assert text == pickle.dumps(observed)
    assert np.float32(MARK).tobytes() not in text
    assert np.float32(MARK).tobytes() in pickle.dumps(other)


def test_what_was_computed_stays_behind_unless_it_is_named(slide):
    slide.obs["leiden"] = pd.Categorical(["a"] * slide.n_obs)
    slide.var["mean_counts"] = np.asarray(slide.X.mean(axis=0)).ravel()
    slide.obsm["X_pca"] = np.ones((slide.n_obs, 3))
    slide.obsm["X_image"] = np.arange(2.0 * slide.n_obs).reshape(-1, 2)
    slide.layers["smooth"] = slide.X.copy()
    slide.obsp["distances"] = sp.eye_array(slide.n_obs, format="csr")
    stimg.pp.spatial_autocorr(slide)
    observed, truth = stimg.pp.sparsify(slide, mask="checkerboard", keep=["X_image", "mean_counts"])
    assert set(observed.obsm) == {"spatial", "stimg_rc", "X_image"}
    np.testing.assert_array_equal(observed.obsm["X_image"], slide[observed.obs_names].obsm["X_image"])
    assert "leiden" not in observed.obs
    assert "mean_counts" in observed.var
    assert not [key for key in observed.layers if key is not None]
    assert not observed.obsp
    assert set(observed.uns) == {"spatial", "stimg"}
    assert set(observed.uns["stimg"]) <= {"raster", "rasterize", "sparsify"}
    assert {"library_id", "donor", "array_row", "array_col", "label"} <= set(observed.obs) | {"label"}
    observed.uns["stimg"]["raster"]["D1S1"]["pitch_um"] = 1.0  # nothing is shared
    assert slide.uns["stimg"]["raster"]["D1S1"]["pitch_um"] > 1
    assert truth.uns["stimg"]["raster"]["D1S1"]["pitch_um"] > 1
    with pytest.raises(KeyError, match=r"keep names \['nothing'\], which are in none of obs, var and obsm"):
        stimg.pp.sparsify(slide, keep="nothing")


def test_a_layer_becomes_x_and_categories_of_the_hidden_are_gone(slide):
    slide.layers["counts"], slide.X = slide.X, sp.csr_matrix(slide.X / 3)
    side = np.where(np.asarray(slide.obsm["spatial"])[:, 0] > 1e9, "far", "near").astype(object)
    observed, truth = stimg.pp.sparsify(slide, mask="half", layer="counts")
    side[slide.obs_names.isin(truth.obs_names)] = "hidden only"
    slide.obs["label"] = pd.Categorical(side)
    observed, _ = stimg.pp.sparsify(slide, mask="half", layer="counts")
    np.testing.assert_array_equal(observed.X.toarray(), slide[observed.obs_names].layers["counts"].toarray())
    assert observed.obs["label"].cat.categories.tolist() == ["near"]
    with pytest.raises(ValueError, match="fractional values"):
        stimg.pp.sparsify(slide, mask="half")


def test_observations_off_the_raster_are_in_neither(slide):
    slide.obsm["stimg_rc"][:4] = -1
    observed, truth = stimg.pp.sparsify(slide, mask="random")
    assert observed.n_obs + truth.n_obs == slide.n_obs - 4


def test_rng(slide):
    names = [stimg.pp.sparsify(slide, mask="random", rng=r).truth.obs_names.tolist() for r in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    still = [stimg.pp.sparsify(slide, mask="holes", rng=None).truth.obs_names.tolist() for _ in range(2)]
    assert still[0] == still[1]


def test_written_and_read_back(slide, tmp_path):
    for name, part in zip(("a", "b"), stimg.pp.sparsify(slide, mask="quarter", phase=1), strict=True):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
        back = ad.read_h5ad(tmp_path / f"{name}.h5ad")
        np.testing.assert_array_equal(back.X.toarray(), part.X.toarray())
        assert back.uns["stimg"]["sparsify"]["phase"] == 1
        stimg.data.slots.raster_libraries(back)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "checkers"}, r"no mask named 'checkers'"),
        ({"mask": "random", "phase": 1}, r"mask='random' has no option \['phase'\]; it has \['fraction'\]"),
        ({"mask": "half", "radius_um": 3.0, "every": 2}, r"mask='half' has no option \['every', 'radius_um'\]"),
        ({"mask": "holes", "radius_um": 0.0}, r"radius_um=0.0 is not above zero"),
        (
            {"mask": "holes", "radius_um": 1e6},
            r"mask='holes' hides \d+ of the \d+ observations of library 'D1S1'; wanted some hidden and some left",
        ),
        ({"mask": "random", "fraction": 1e-4}, r"mask='random' hides 0 of the"),
    ],
)
def test_bad_options(slide, options, message):
    with pytest.raises(ValueError, match=message):
        stimg.pp.sparsify(slide, **options)


def test_no_raster(slide):
    del slide.obsm[keys.RC]
    with pytest.raises(KeyError, match=r"stimg_rc.*Run `stimg.pp.rasterize` first"):
        stimg.pp.sparsify(slide)


def test_spatialdata_loses_points_other_tables_and_the_shapes_of_hidden_places(tmp_path):
    import geopandas
    from spatialdata import get_element_annotators, read_zarr
    from spatialdata.models import PointsModel, ShapesModel
    from spatialdata.transformations import get_transformation

    sdata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, n_sections=2, image=True, mpp=8.0, rng=0, as_sdata=True)
    stimg.pp.rasterize(sdata.tables["table"])
    sdata.points["molecules"] = PointsModel.parse(np.random.default_rng(0).uniform(0, 9, (30, 2)))
    sdata.tables["other"] = ad.AnnData(np.ones((3, 2), dtype=np.float32))
    outline = geopandas.GeoDataFrame({"counts": [5.0]}, geometry=geopandas.points_from_xy([0], [0]).buffer(3))
    sdata.shapes["outline"] = ShapesModel.parse(outline)
    observed, truth = stimg.pp.sparsify(sdata, mask="checkerboard")
    whole = sdata.tables["table"]
    alone = stimg.pp.sparsify(whole, mask="checkerboard")
    for part, table in zip((observed, truth), alone, strict=True):
        np.testing.assert_array_equal(part.tables["table"].X.toarray(), table.X.toarray())
        assert set(part.tables) == {"table"}
        assert not part.points
        for name in ("D1S1", "D1S2"):
            mine = table.obs[table.uns["spatialdata_attrs"]["region_key"]] == name
            assert part.shapes[name].index.tolist() == table.obs[table.uns["spatialdata_attrs"]["instance_key"]][mine].tolist()
            assert get_element_annotators(part, name) == {"table"}
            assert set(get_transformation(part.shapes[name], get_all=True)) == set(get_transformation(sdata.shapes[name], get_all=True))
    assert set(observed.images) == set(sdata.images)
    assert not truth.images
    assert observed.shapes["outline"].columns.tolist() == ["geometry"]
    assert "outline" not in truth.shapes
    assert len(sdata.shapes["D1S1"]) == 64
    assert set(sdata.tables) == {"table", "other"}
    observed.write(tmp_path / "s.zarr")
    back = read_zarr(tmp_path / "s.zarr")
    np.testing.assert_array_equal(back.tables["table"].X.toarray(), alone.observed.X.toarray())
