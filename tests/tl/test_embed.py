import anndata as ad
import numpy as np
import pytest

import stimg
from stimg._core import hashing, keys
from stimg.data.ledger import recall
from stimg.model import STMAE

KEY = "X_stimg_stmae"


def test_slot_and_record(slide, model):
    before = {part: set(getattr(slide, part).keys()) for part in ("obs", "var", "obsm", "layers", "uns")}
    assert stimg.tl.embed(slide, model=model) is None
    values = slide.obsm[KEY]
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, model.get_latent_representation(slide))
    assert {part: set(getattr(slide, part).keys()) for part in before} == {**before, "obsm": before["obsm"] | {KEY}}
    record = slide.uns[keys.UNS][KEY]
    assert record["verb"] == "stimg.tl.embed"
    assert record["version"] == stimg.__version__
    assert (record["model"], record["unit"], record["mode"], record["overlap"]) == ("STMAE", "embedding", "tiles", "none")
    assert record["panel_hash"] == hashing.of_strings(model.genes)
    assert record["n_shared_genes"] == 30
    assert record["n_obs_seen_in_training"] == slide.n_obs
    assert record["model_hash"] == model.identity(slide)["model_hash"]


def test_the_record_tells_models_apart(slide, model):
    own = slide.copy()
    STMAE.setup_anndata(own)
    other = STMAE(own, n_latent=8, n_layers=1, crop_size=(6, 6))
    other.train(max_epochs=2, validation=["D1S2"], lr=5e-3, rng=1)
    stimg.tl.embed(slide, model=model)
    stimg.tl.embed(slide, model=other, key_added="other")
    assert slide.uns[keys.UNS][KEY]["model_hash"] != slide.uns[keys.UNS]["other"]["model_hash"]
    assert not np.allclose(slide.obsm[KEY], slide.obsm["other"])


@pytest.mark.parametrize("options", [{"mode": "centred"}, {"overlap": 4}, {"batch_size": 1}, {"key_added": "mine"}])
def test_options_reach_the_model(slide, model, options):
    stimg.tl.embed(slide, model=model, **options)
    key = options.pop("key_added", KEY)
    np.testing.assert_array_equal(slide.obsm[key], model.get_latent_representation(slide, **options))
    if "overlap" in options:
        assert slide.uns[keys.UNS][key]["overlap"] == 4
        assert not np.array_equal(slide.obsm[key], model.get_latent_representation(slide))


def test_everything_is_written_and_read_back(slide, model, tmp_path):
    stimg.tl.embed(slide, model=model)
    stimg.tl.impute_genes(slide, model=model, genes=list(model.genes[:3]))
    slide.write_h5ad(tmp_path / "a.h5ad")
    slide.write_zarr(tmp_path / "a.zarr")
    for back in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        np.testing.assert_array_equal(back.obsm[KEY], slide.obsm[KEY])
        np.testing.assert_array_equal(back.layers["stimg_stmae"], slide.layers["stimg_stmae"])
        for key in (KEY, "stimg_stmae"):
            found, wanted = back.uns[keys.UNS][key], slide.uns[keys.UNS][key]
            assert found.keys() == wanted.keys()
            assert all(np.array_equal(found[k], wanted[k]) for k in wanted if k != "seen")
            again = recall(back, only=[key])
            assert [(s.who, s.kind, s.genes, s.libraries) for s in again] == [(s.who, s.kind, s.genes, s.libraries) for s in model.ledger]
            np.testing.assert_array_equal(again[-1].contents, model.ledger[-1].contents)
        np.testing.assert_array_equal(model.get_latent_representation(back), slide.obsm[KEY])


def test_spatialdata(sdata, slide, model, tmp_path):
    stimg.tl.embed(sdata, model=model)
    stimg.tl.embed(slide, model=model)
    np.testing.assert_array_equal(sdata.tables["table"].obsm[KEY], slide.obsm[KEY])
    sdata.tables["second"] = sdata.tables["table"].copy()
    stimg.tl.embed(sdata, model=model, table_key="second", key_added="mine")
    assert "mine" not in sdata.tables["table"].obsm
    assert "mine" in sdata.tables["second"].obsm


def test_errors(slide, sdata, model):
    with pytest.raises(KeyError, match=r"sdata\.tables\['none'\] is missing"):
        stimg.tl.embed(sdata, model=model, table_key="none")
    with pytest.raises(TypeError, match="wanted an AnnData"):
        stimg.tl.embed(slide.X, model=model)
    with pytest.raises(ValueError, match="mode='all'"):
        stimg.tl.embed(slide, model=model, mode="all")
    bare = slide.copy()
    del bare.obsm[keys.RC]
    with pytest.raises(KeyError, match="rasterize"):
        stimg.tl.embed(bare, model=model)
    STMAE.setup_anndata(slide)
    with pytest.raises(RuntimeError, match="not trained"):
        stimg.tl.embed(slide, model=STMAE(slide, n_latent=8, n_layers=1, crop_size=(6, 6)))
    for data in (slide, bare):
        assert KEY not in data.obsm
        assert KEY not in data.uns[keys.UNS]
