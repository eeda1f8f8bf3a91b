"""What is written about slides: the model's answers at the right rows, on the planted tiles, remembered, and nothing where something is wrong."""

import anndata as ad
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import stimg

KEYS = {"slide": ("slide_attention", "slide_contribution"), "stimg_slide": ("stimg_slide_attention", "stimg_slide_contribution")}


def cohort(rng):
    return stimg.datasets.simulate_cohort(n_donors=30, n_tiles=(30, 50), n_features=8, effect=6.0, rng=rng)


@pytest.fixture(scope="module")
def halves():
    """A trained model, and the slides of donors that it has not seen."""
    adata = cohort(1)
    first = adata.obs["donor"].isin([f"D{i:02d}" for i in range(1, 21)]).to_numpy()
    train, test = adata[first].copy(), adata[~first].copy()
    stimg.model.SlideClassifier.setup_anndata(train, features="X_simulated", label_key="label")
    model = stimg.model.SlideClassifier(train, n_hidden=16, n_attention=8)
    model.train(max_epochs=60, enable_progress_bar=False)
    return model, test


@pytest.mark.parametrize("key", list(KEYS))
def test_the_planted_tiles_get_the_weight_and_speak_for_the_label(halves, key):
    model, test = halves[0], halves[1].copy()
    stimg.tl.classify_slides(test, model=model, key_added=key)
    attention, contribution = test.obs[KEYS[key][0]], test.obsm[KEYS[key][1]]
    table = test.uns["stimg"][key]["table"]
    planted, slide = test.obs["informative"].to_numpy(), test.obs["library_id"].astype(str).to_numpy()
    for name in np.unique(slide[planted]):
        here = slide == name
        assert roc_auc_score(planted[here], attention[here]) > 0.85, name
        assert roc_auc_score(planted[here], contribution["positive"][here]) > 0.85, name
        assert planted[here][np.argmax(attention[here])], name
    label = test.obs.groupby("library_id", observed=True)["label"].first()
    assert roc_auc_score(label[table.index] == "positive", table["positive"]) > 0.9


def test_rows_slides_and_the_ledger_are_the_models(halves, tmp_path):
    model, test = halves[0], halves[1][np.random.default_rng(0).permutation(halves[1].n_obs)].copy()
    del test.obs["label"], test.obs["donor"]
    stimg.tl.classify_slides(test, model=model)
    np.testing.assert_array_equal(test.obs["stimg_slide_attention"], model.get_attention(test))
    np.testing.assert_array_equal(test.obsm["stimg_slide_contribution"], model.get_contribution(test))
    record = test.uns["stimg"]["stimg_slide"]
    np.testing.assert_array_equal(record["table"], model.predict_proba(test))
    sums = test.obs["stimg_slide_attention"].groupby(test.obs["library_id"], observed=True).sum()
    np.testing.assert_allclose(sums, 1, rtol=1e-5)
    bias = model.module.classify[1].bias.detach().numpy()
    logits = test.obsm["stimg_slide_contribution"].groupby(test.obs["library_id"].to_numpy()).sum() + bias
    odds = np.exp(logits.sub(logits.max(axis=1), axis=0))
    np.testing.assert_allclose(odds.div(odds.sum(axis=1), axis=0), record["table"], rtol=1e-4, atol=1e-6)
    assert record["n_obs_seen_in_training"] == 0
    assert [seen.who for seen in stimg.bench.recall(test, only=["stimg_slide"])] == ["SlideClassifier"]
    test.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.obsm["stimg_slide_contribution"], test.obsm["stimg_slide_contribution"])
    np.testing.assert_array_equal(back.uns["stimg"]["stimg_slide"]["table"], record["table"])


def test_the_table_of_a_spatialdata_is_written(halves):
    from spatialdata import SpatialData

    model, test = halves
    sdata = SpatialData(tables={"tiles": test.copy()})
    assert stimg.tl.classify_slides(sdata, model=model, table_key="tiles") is None
    np.testing.assert_array_equal(sdata.tables["tiles"].obs["stimg_slide_attention"], model.get_attention(test))
    with pytest.raises(KeyError, match=r"sdata\.tables\['table'\] is missing"):
        stimg.tl.classify_slides(sdata, model=model)


def narrow(adata):
    adata.obsm["X_simulated"] = adata.obsm["X_simulated"][:, :5]


def not_finite(adata):
    adata.obsm["X_simulated"][7, 2] = np.nan


def unnamed(adata):
    adata.obs["library_id"] = adata.obs["library_id"].where(np.arange(adata.n_obs) > 3)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (narrow, ValueError, "has 5 columns; the model was made for 8"),
        (not_finite, ValueError, "1 rows of .* with NaN or infinite values"),
        (lambda a: a.obsm.pop("X_simulated"), KeyError, r"adata.obsm\['X_simulated'\] is missing"),
        (lambda a: a.obs.pop("library_id"), KeyError, r"adata.obs\['library_id'\] is missing"),
        (unnamed, ValueError, "library_id.* missing|missing.*library_id"),
    ],
)
def test_nothing_is_written_where_the_slides_are_not_usable(halves, spoil, error, message):
    model, test = halves[0], halves[1].copy()
    spoil(test)
    before = (set(test.obs), set(test.obsm), set(test.uns["stimg"]))
    with pytest.raises(error, match=message):
        stimg.tl.classify_slides(test, model=model)
    assert (set(test.obs), set(test.obsm), set(test.uns["stimg"])) == before


def test_other_models_and_untrained_ones_are_refused(halves):
    model, test = halves
    with pytest.raises(TypeError, match=r"model is a dict; wanted a trained stimg\.model\.SlideClassifier"):
        stimg.tl.classify_slides(test, model={})
    with pytest.raises(RuntimeError, match="not trained"):
        stimg.tl.classify_slides(test, model=stimg.model.SlideClassifier(model.adata))
    with pytest.raises(ValueError, match="no observations"):
        stimg.tl.classify_slides(test[:0].copy(), model=model)
