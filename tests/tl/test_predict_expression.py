"""Predicted genes in AnnData and SpatialData, against what the head says of the same observations."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats

import stimg
from stimg.model import ExpressionHead

KEY = "stimg_ridge"


@pytest.fixture(scope="module")
def cohort():
    adata = stimg.datasets.simulate(technology="visium", shape=(9, 9), n_genes=25, n_donors=4, rng=0)
    rng = np.random.default_rng(0)
    proportions = np.asarray(adata.obsm["stimg_truth_proportions"], dtype=np.float32)
    noise = 0.1 * rng.standard_normal((adata.n_obs, 6))
    adata.obsm["X_some"] = (np.pad(proportions, ((0, 0), (0, 6)))[:, :6] + noise).astype(np.float32)
    return adata


@pytest.fixture
def parts(cohort):
    new = cohort.obs["donor"] == "D4"
    return cohort[~new].copy(), cohort[new].copy()


@pytest.fixture(scope="module")
def clip(cohort):
    own = cohort[cohort.obs["donor"].isin(["D1", "D2"])].copy()
    stimg.model.ImageGeneCLIP.setup_anndata(own, image="X_some")
    model = stimg.model.ImageGeneCLIP(own, n_dim=6, n_hidden=16, expression_weight=1.0)
    model.train(max_epochs=3, validation=None, enable_progress_bar=False)
    return model


def logs(adata):
    """Log values of the full libraries, dense."""
    counts = adata.X.toarray().astype(np.float64)
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def test_a_layer_for_genes_that_were_measured(parts):
    reference, new = parts
    genes = list(new.var_names[[7, 2]])
    before = new.X.copy()
    assert stimg.tl.predict_expression(new, reference=reference, features="X_some", genes=genes, coverage=0.8) is None
    head = ExpressionHead.fit(reference, features="X_some", genes=genes)
    wanted = head.predict(new, coverage=0.8)
    at = new.var_names.get_indexer(genes)
    for name, values in ((KEY, wanted.values), (f"{KEY}_lower", wanted.lower), (f"{KEY}_upper", wanted.upper)):
        assert new.layers[name].dtype == np.float32
        np.testing.assert_array_equal(new.layers[name][:, at], values)
        assert np.isnan(np.delete(new.layers[name], at, axis=1)).all()
    worth = new.var[f"{KEY}_predictability"]
    np.testing.assert_allclose(worth.iloc[at], head.predictability, rtol=1e-6)
    assert worth.drop(genes).isna().all()
    assert (new.X != before).nnz == 0
    record = new.uns["stimg"][KEY]
    assert record["unit"] == "log1p_cp10k"
    assert record["verb"] == "stimg.tl.predict_expression"
    assert record["genes"].tolist() == genes
    assert record["calibration_level"] == "donor"
    assert record["coverage"] == 0.8
    stimg.tl.predict_expression(new, reference=reference, features="X_some", genes=genes, coverage=None)
    assert not {f"{KEY}_lower", f"{KEY}_upper"} & set(new.layers)  # bounds of other values are not left behind


def test_the_values_are_worth_something(parts):
    reference, new = parts
    stimg.tl.predict_expression(new, reference=[reference], features="X_some")
    truth = logs(new)
    found = new.layers[KEY]
    asked = np.flatnonzero(~np.isnan(found).any(axis=0))
    r = np.array([scipy.stats.pearsonr(truth[:, i], found[:, i])[0] for i in asked])
    worth = new.var[f"{KEY}_predictability"].to_numpy()[asked]
    assert len(asked) == new.n_vars
    assert np.mean(r) > 0.2
    assert scipy.stats.spearmanr(r, worth)[0] > 0.5  # what was learnt on other donors holds for a new one
    inside = (new.layers[f"{KEY}_lower"] <= truth) & (truth <= new.layers[f"{KEY}_upper"])
    assert 0.8 < inside.mean() < 0.97


def test_a_saved_head_and_a_head_made_now_are_one(parts, tmp_path):
    reference, new = parts
    stimg.tl.predict_expression(new, reference=reference, features="X_some", head="retrieval", k=9)
    ExpressionHead.fit(reference, features="X_some", kind="retrieval", k=9).save(tmp_path / "head")
    again = stimg.tl.predict_expression(new, model=ExpressionHead.load(tmp_path / "head"), copy=True)
    np.testing.assert_array_equal(again.X, new.layers["stimg_retrieval"][:, new.var_names.get_indexer(again.var_names)])


def test_genes_are_those_that_both_measured(parts):
    reference, new = parts
    few = new[:, 5:15].copy()
    few.var_names = [*few.var_names[:9], "of nobody"]
    stimg.tl.predict_expression(few, reference=reference, features="X_some")
    assert few.uns["stimg"][KEY]["genes"].tolist() == few.var_names[:9].tolist()
    assert np.isnan(few.layers[KEY][:, 9]).all()
    model = ExpressionHead.fit(reference, features="X_some")
    stimg.tl.predict_expression(few, model=model, key_added="mine", coverage=None)
    assert few.uns["stimg"]["mine"]["genes"].tolist() == few.var_names[:9].tolist()


def test_a_copy_for_genes_that_were_not_measured(parts, tmp_path):
    reference, new = parts
    genes = list(reference.var_names[:3])
    blind = ad.AnnData(obs=new.obs.copy(), obsm={"X_some": new.obsm["X_some"], "spatial": new.obsm["spatial"]})
    blind.uns["stimg"] = {"tiles": {"spec": {"tile_um": 100.0}}}
    blind.obsm["stimg_tiles"] = np.ones((blind.n_obs, 3))
    with pytest.raises(ValueError, match=r"3 of the genes to predict are not in adata\.var_names.*Pass `copy=True`"):
        stimg.tl.predict_expression(blind, reference=reference, features="X_some", genes=genes)
    found = stimg.tl.predict_expression(blind, reference=reference, features="X_some", genes=genes, copy=True)
    np.testing.assert_array_equal(found.X, ExpressionHead.fit(reference, features="X_some", genes=genes).predict(new).values)
    assert found.var_names.tolist() == genes
    assert set(found.layers) - {None} == {f"{KEY}_lower", f"{KEY}_upper"}
    assert {"spatial", "stimg_tiles"} <= set(found.obsm)
    pd.testing.assert_frame_equal(found.obs, blind.obs)
    assert set(blind.layers) - {None} == set()
    found.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    assert back.uns["stimg"][KEY]["genes"].tolist() == genes
    everything = stimg.tl.predict_expression(blind, reference=reference, features="X_some", copy=True)  # it measured none: all of them
    assert everything.n_vars == reference.n_vars


def test_spatialdata_without_expression_gets_a_table(parts, tmp_path):
    import shapely
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData, get_element_annotators, read_zarr
    from spatialdata.models import ShapesModel, TableModel

    reference, new = parts
    xy = new.obsm["spatial"]
    squares = ShapesModel.parse(GeoDataFrame({"geometry": [shapely.box(x - 5, y - 5, x + 5, y + 5) for x, y in xy]}))
    obs = new.obs[["library_id"]].assign(region=pd.Categorical(["tiles"] * new.n_obs), instance_id=np.arange(new.n_obs))
    table = ad.AnnData(obs=obs, obsm={"X_some": new.obsm["X_some"], "spatial": xy})
    table.X = sp.csr_matrix((new.n_obs, 0), dtype=np.float32)
    parsed = TableModel.parse(table, region="tiles", region_key="region", instance_key="instance_id")
    sdata = SpatialData(shapes={"tiles": squares}, tables={"slide": parsed})
    genes = list(reference.var_names[:4])
    assert stimg.tl.predict_expression(sdata, reference=reference, features="X_some", genes=genes, table_key="slide") is None
    found = sdata.tables["ridge_slide"]
    np.testing.assert_array_equal(found.X, ExpressionHead.fit(reference, features="X_some", genes=genes).predict(new).values)
    sdata.write(tmp_path / "s.zarr")
    back = read_zarr(tmp_path / "s.zarr")
    assert {"slide", "ridge_slide"} <= get_element_annotators(back, "tiles")
    np.testing.assert_array_equal(back.tables["ridge_slide"].X, found.X)
    assert back.tables["ridge_slide"].uns["stimg"][KEY]["unit"] == "log1p_cp10k"
    stimg.tl.predict_expression(sdata, reference=reference, features="X_some", genes=genes, table_key="slide", key_added="mine")
    assert "mine" in sdata.tables


def test_scoring_a_section_that_the_head_has_seen_raises(cohort, tmp_path):
    """The record of the prediction is asked, whoever made it and wherever it was kept in between."""
    everything = cohort.copy()
    stimg.pp.rasterize(everything)
    stimg.tl.predict_expression(everything, reference=cohort, features="X_some")
    genes = list(everything.var_names)
    folder = tmp_path / "data"
    folder.mkdir()
    for name in everything.obs["library_id"].cat.categories:
        one = everything[everything.obs["library_id"] == name].copy()
        one.uns["spatial"] = {name: one.uns["spatial"][name]}
        one.uns["stimg"]["raster"] = {name: one.uns["stimg"]["raster"][name]}
        one.write_h5ad(folder / f"{name}.h5ad")
    with pytest.raises(ValueError, match=r"Leakage: .*'ridge head' has seen"):
        stimg.bench.run("her2st-strict", str(folder), predictions={KEY: KEY}, nulls=False, out=tmp_path / "out")
    one = everything[everything.obs["donor"] == "D4"].copy()
    with pytest.raises(ValueError, match="'ridge head' has seen 81 of 81"):
        stimg.bench.check_leakage(one, one)
    clean = cohort[cohort.obs["donor"] == "D4"].copy()
    stimg.tl.predict_expression(clean, reference=cohort[cohort.obs["donor"] != "D4"].copy(), features="X_some", genes=genes)
    assert stimg.bench.check_leakage(clean, clean) == []


class TestModel:
    def test_its_decoder(self, parts, clip):
        _, new = parts
        with pytest.raises(ValueError, match="the head has no residuals of observations that it has not seen"):
            stimg.tl.predict_expression(new, model=clip)
        stimg.tl.predict_expression(new, model=clip, coverage=None)
        wanted = clip.predict_expression(new, head="trained")
        found = pd.DataFrame(new.layers["stimg_imagegeneclip"], columns=new.var_names)[wanted.columns]
        np.testing.assert_allclose(found, np.maximum(wanted, 0), rtol=1e-6)
        assert new.var["stimg_imagegeneclip_predictability"].isna().all()
        with pytest.raises(ValueError, match="Leakage: the model 'ImageGeneCLIP' has seen"):
            stimg.bench.check_leakage(clip.adata, new)

    def test_its_decoder_calibrated_on_a_donor_it_has_not_seen(self, cohort, parts, clip):
        _, new = parts
        third = cohort[cohort.obs["donor"] == "D3"].copy()
        stimg.tl.predict_expression(new, model=clip, reference=third)
        truth = logs(third)
        wanted = clip.predict_expression(third, head="trained")
        for gene in new.var_names[:5]:
            r = scipy.stats.pearsonr(truth[:, third.var_names.get_loc(gene)], wanted[gene])[0]
            assert new.var.loc[gene, "stimg_imagegeneclip_predictability"] == pytest.approx(r, abs=1e-4)
        assert np.isfinite(new.layers["stimg_imagegeneclip_upper"]).all()
        with pytest.raises(ValueError, match="the model has seen observations of the reference"):
            stimg.tl.predict_expression(new, model=clip, reference=clip.adata)

    def test_its_space(self, cohort, parts, clip, tmp_path):
        _, new = parts
        third = cohort[cohort.obs["donor"] == "D3"].copy()
        found = stimg.tl.predict_expression(new, model=clip, reference=third, head="retrieval", k=8, centre=False, copy=True)
        wanted = clip.predict_expression(new, genes=found.var_names, head="retrieval", reference=third, k=8)
        np.testing.assert_allclose(found.X, wanted, atol=2e-3)
        stimg.tl.predict_expression(new, model=clip, reference=clip.adata, head="retrieval", coverage=None)
        assert new.var["stimg_retrieval_predictability"].isna().all()  # it has seen them, so nothing can be learnt from them
        head = ExpressionHead.fit(third, model=clip, kind="retrieval", k=8, centre=False)
        head.save(tmp_path / "head")
        np.testing.assert_allclose(ExpressionHead.load(tmp_path / "head").predict(new).values, head.predict(new).values, rtol=1e-5)


def test_errors(parts):
    reference, new = parts
    with pytest.raises(ValueError, match="Nothing says how images and genes go together"):
        stimg.tl.predict_expression(new)
    with pytest.raises(TypeError, match="model is a dict"):
        stimg.tl.predict_expression(new, model={})
    with pytest.raises(ValueError, match="head='forest' is not known"):
        stimg.tl.predict_expression(new, reference=reference, features="X_some", head="forest")
    with pytest.raises(KeyError, match="X_efficientnet_lite0"):
        stimg.tl.predict_expression(new, reference=reference)
    with pytest.raises(TypeError, match="wanted an AnnData or a SpatialData"):
        stimg.tl.predict_expression(None, reference=reference)
    head = ExpressionHead.fit(reference, features="X_some")
    with pytest.raises(ValueError, match="model is a fitted head"):
        stimg.tl.predict_expression(new, model=head, reference=reference)
    with pytest.raises(ValueError, match="model is a fitted head"):
        stimg.tl.predict_expression(new, model=head, head="retrieval")
    with pytest.raises(ValueError, match="no observation"):
        stimg.tl.predict_expression(new[:0].copy(), model=head)
    with pytest.raises(ValueError, match="0 observations"):
        stimg.tl.predict_expression(new, reference=reference[:0].copy(), features="X_some")
    broken = new.copy()
    broken.obsm["X_some"][5] = np.inf
    with pytest.raises(ValueError, match="1 rows of 81 with NaN or infinite values, the first is row 5"):
        stimg.tl.predict_expression(broken, model=head)
    assert KEY not in broken.layers
    assert KEY not in broken.uns["stimg"]
