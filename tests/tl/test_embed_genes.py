"""The verb against the encoders that it calls; what it leaves in the table; the way into an alignment."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import stimg
from stimg._core.ledger import LeakageError
from stimg.model import STMAE, GeneEncoder, ImageGeneCLIP
from stimg.nn.gene import Nicheformer

FIT = {"n_features": 4}


@pytest.fixture
def train(slide):
    return (slide.obs["library_id"] == "D1S1").to_numpy()


def test_what_is_written_and_recorded(slide, train, caplog):
    with caplog.at_level(logging.INFO, logger="stimg"):
        stimg.tl.embed_genes(slide, fit=train, **FIT)
    encoder = GeneEncoder.fit(slide, rows=train, **FIT)
    np.testing.assert_array_equal(slide.obsm["X_genes_pca"], encoder.transform(slide))
    assert slide.obsm["X_genes_pca"].dtype == np.float32
    record = dict(slide.uns["stimg"]["X_genes_pca"])
    assert record.pop("seen")["0"]["who"] == "PCA-4 of the counts"
    told = encoder.identity()
    assert record == {"version": stimg.__version__, "verb": "stimg.tl.embed_genes", "unit": "embedding", "layer": "none", **told}
    assert (told["encoder"], told["n_features"], told["n_genes"], told["n_fitted"]) == ("pca", 4, 30, train.sum())
    assert caplog.messages == [f"Wrote adata.obsm['X_genes_pca']: {slide.n_obs} observations x 4 by PCA"]


@pytest.mark.parametrize("how", ["mask", "series", "names", "positions", "table", "encoder", "path"])
def test_ways_to_say_what_it_is_fitted_on(slide, train, how, tmp_path):
    encoder = GeneEncoder.fit(slide, rows=train, **FIT)
    encoder.save(tmp_path / "e")
    options = {
        "mask": {"fit": train, **FIT},
        "series": {"fit": pd.Series(train, index=slide.obs_names), **FIT},
        "names": {"fit": slide.obs_names[train], **FIT},
        "positions": {"fit": np.flatnonzero(train), **FIT},
        "table": {"fit": slide[train].copy(), **FIT},
        "encoder": {"encoder": encoder},
        "path": {"path": tmp_path / "e"},
    }[how]
    stimg.tl.embed_genes(slide, key_added="X_mine", **options)
    np.testing.assert_allclose(slide.obsm["X_mine"], encoder.transform(slide), atol=1e-6)
    assert "X_genes_pca" not in slide.obsm
    with pytest.raises(LeakageError, match=r"the PCA 'PCA-4 of the counts' has seen 100 of 100 test observations"):
        stimg.bench.check_leakage(slide, stimg.bench.recall(slide, only=["X_mine"]), test=train, level="observation")
    assert not stimg.bench.check_leakage(slide, stimg.bench.recall(slide, only=["X_mine"]), test=~train, level="section")


def test_fitted_on_everything_says_so(slide, train):
    stimg.tl.embed_genes(slide, **FIT)
    with pytest.raises(LeakageError, match="has seen 100 of 100 test observations"):
        stimg.bench.check_leakage(slide, stimg.bench.recall(slide), test=~train)


def test_held_out_rows_change_nothing_but_themselves(slide, train):
    other = slide.copy()
    other.X = other.X.tocsr()
    counts = other.X.toarray()
    counts[~train] = np.random.default_rng(0).poisson(9, counts[~train].shape)
    other.X = type(other.X)(counts)
    for each in (slide, other):
        stimg.tl.embed_genes(each, fit=train, **FIT)
        stimg.tl.embed_genes(each, encoder="scvi", fit=train, n_features=3, max_epochs=1, device="cpu")
    for key in ("X_genes_pca", "X_genes_scvi"):
        np.testing.assert_array_equal(slide.obsm[key][train], other.obsm[key][train])
        assert np.abs(slide.obsm[key][~train] - other.obsm[key][~train]).max() > 1e-2
        assert slide.uns["stimg"][key]["model_hash"] == other.uns["stimg"][key]["model_hash"]


def test_scvi(slide, train):
    options = {"n_features": 3, "max_epochs": 1, "device": "cpu", "genes": list(slide.var_names[:20])}
    slide.obs["half"] = np.where(np.arange(slide.n_obs) % 2, "odd", "even")
    slide.layers["raw"], slide.X = slide.X.copy(), slide.X * 0.5
    stimg.tl.embed_genes(slide, encoder="scvi", fit=train, batch_key="half", layer="raw", rng=2, batch_size=50, **options)
    encoder = GeneEncoder.fit(slide, "scvi", rows=train, batch_key="half", layer="raw", rng=2, **options)
    np.testing.assert_allclose(slide.obsm["X_genes_scvi"], encoder.transform(slide, layer="raw"), atol=1e-6)
    record = slide.uns["stimg"]["X_genes_scvi"]
    assert (record["layer"], record["batch_key"], record["model_hash"]) == ("raw", "half", encoder.identity()["model_hash"])


def test_a_trained_stmae(slide, model, tmp_path):
    stimg.tl.embed_genes(slide, encoder=model)
    found = slide.obsm["X_genes_stmae"]
    np.testing.assert_array_equal(found, model.get_latent_representation(slide))
    record = slide.uns["stimg"]["X_genes_stmae"]
    assert (record["encoder"], record["n_features"], record["model"]) == ("stmae", found.shape[1], "STMAE")
    assert record["n_obs_seen_in_training"] > 0
    with pytest.raises(LeakageError, match="the model 'STMAE' has seen"):
        stimg.bench.check_leakage(slide, stimg.bench.recall(slide, only=["X_genes_stmae"]), test=slide.obs["library_id"] == "D1S1")
    model.save(tmp_path / "m")
    stimg.tl.embed_genes(slide, encoder="stmae", path=tmp_path / "m", batch_size=3, key_added="X_again")
    np.testing.assert_allclose(slide.obsm["X_again"], found, atol=1e-5)


def test_nicheformer_from_a_folder(slide, tmp_path):
    with torch.random.fork_rng(devices=[]):
        network = Nicheformer(n_tokens=70, dim=16, n_layers=1, n_heads=16, n_hidden=8, n_context=40)
    torch.save(network.state_dict(), tmp_path / "a.ckpt")
    slide.var["gene_ids"] = [f"E{i}" for i in range(slide.n_vars)]
    ad.AnnData(np.zeros((1, 30)), var=pd.DataFrame(index=slide.var["gene_ids"][::-1])).write_h5ad(tmp_path / "model.h5ad")
    np.save(tmp_path / "cosmx_mean_script.npy", np.ones(30))
    stimg.tl.embed_genes(slide, encoder="nicheformer", path=tmp_path, technology="cosmx", gene_key="gene_ids", batch_size=64, device="cpu")
    encoder = GeneEncoder.pretrained("nicheformer", tmp_path, technology="cosmx")
    np.testing.assert_allclose(slide.obsm["X_genes_nicheformer"], encoder.transform(slide, gene_key="gene_ids"), atol=1e-5)
    record = slide.uns["stimg"]["X_genes_nicheformer"]
    assert (record["technology"], record["commercial"], record["words"].tolist()) == ("cosmx", False, [5, 8, 4])
    assert stimg.bench.recall(slide, only=["X_genes_nicheformer"]) == []  # nothing of this table was seen
    with torch.no_grad():
        network.embeddings.weight[31] = torch.nan
    torch.save(network.state_dict(), tmp_path / "a.ckpt")
    with pytest.raises(
        ValueError, match=r"the embedding by Nicheformer has \d+ rows of 200 with NaN or infinite values, .* Check the weights"
    ):
        stimg.tl.embed_genes(slide, encoder="nicheformer", path=tmp_path, technology="cosmx", gene_key="gene_ids", key_added="X_bad")
    assert "X_bad" not in slide.obsm


def test_the_table_of_a_spatialdata(sdata, tmp_path):
    adata = sdata.tables["table"].copy()
    stimg.tl.embed_genes(adata, **FIT)
    stimg.tl.embed_genes(sdata, **FIT)
    np.testing.assert_array_equal(sdata.tables["table"].obsm["X_genes_pca"], adata.obsm["X_genes_pca"])
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    assert len(stimg.bench.recall(back, only=["X_genes_pca"])[0]) == adata.n_obs
    with pytest.raises(KeyError, match=r"sdata.tables\['cells'\] is missing"):
        stimg.tl.embed_genes(sdata, table_key="cells")


def test_into_an_alignment(slide, train):
    """What the embedding was fitted on is what the alignment has seen, even where the alignment never saw it."""
    image = np.random.default_rng(0).normal(size=(slide.n_obs, 6))
    slide.obsm["X_image"] = image.astype(np.float32)
    stimg.tl.embed_genes(slide, fit=train, **FIT)
    own = slide[~train].copy()  # the alignment is trained on the other section alone
    ImageGeneCLIP.setup_anndata(own, image="X_image", gene="X_genes_pca")
    model = ImageGeneCLIP(own, n_dim=4)
    model.train(max_epochs=2, validation=None, batch_size=50, accelerator="cpu", enable_progress_bar=False)
    assert model.module.gene_encoder is None
    assert [(s.who, s.libraries) for s in model.ledger] == [("PCA-4 of the counts", ("D1S1",)), ("ImageGeneCLIP", ("D1S2",))]
    values = model.get_gene_embedding(slide)
    assert values.shape == (slide.n_obs, 4)
    assert np.isfinite(values).all()
    stimg.tl.align(slide, model=model)
    seen = [s.who for s in stimg.bench.recall(slide)]
    assert seen.count("PCA-4 of the counts") > 1
    with pytest.raises(LeakageError, match=r"the PCA 'PCA-4 of the counts' has seen 100 of 100 test observations"):
        stimg.bench.check_leakage(slide, model, test=train, level="section")
    stimg.tl.embed_genes(slide, fit=~train, **FIT)
    with pytest.raises(
        ValueError, match=r"adata.obsm\['X_genes_pca'\] is not the embedding that the model was trained with: model_hash was"
    ):
        model.get_gene_embedding(slide)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"encoder": "mlp"}, ValueError, "MLP is trained with the alignment, not before it"),
        ({"encoder": "scv"}, ValueError, r"no gene encoder named 'scv'. Did you mean 'scvi'\?"),
        ({"encoder": 3}, TypeError, r"encoder is a int; wanted the name of a card"),
        (
            {"encoder": "stmae"},
            ValueError,
            r"encoder='stmae' needs `path=`. It is the folder of a saved `stimg.model.STMAE`; or pass a trained one",
        ),
        (
            {"encoder": "scfoundation"},
            ValueError,
            r"encoder='scfoundation' needs `path=`. It is the folder with the published files .*read_embedding",
        ),
        (
            {"technology": "xenium"},
            ValueError,
            r"encoder='pca' does not read \['technology'\]; it reads \['fit', 'genes', 'layer', 'n_features'\]",
        ),
        ({"max_epochs": 3, "batch_key": "donor"}, ValueError, r"does not read \['batch_key', 'max_epochs'\]"),
        ({"path": "x", "fit": [0, 1]}, ValueError, r"encoder='pca' from a folder does not read \['fit'\]"),
        ({"encoder": "nicheformer", "path": "x", "n_features": 3}, ValueError, r"encoder='nicheformer' does not read \['n_features'\]"),
        (
            {"encoder": "scfoundation", "path": "nowhere"},
            FileNotFoundError,
            r"path='nowhere' does not exist. Pass a folder with the files of scFound",
        ),
        ({"path": "nowhere"}, FileNotFoundError, r"nowhere.*model.json is missing"),
        ({"fit": [True]}, ValueError, r"rows is a mask of 1 values; wanted 200"),
        ({"n_features": 31}, ValueError, r"n_features=31 is more than the 30 axes"),
    ],
)
def test_bad_arguments(slide, options, error, message):
    before = set(slide.obsm), set(slide.uns["stimg"])
    with pytest.raises(error, match=message):
        stimg.tl.embed_genes(slide, **options)
    assert (set(slide.obsm), set(slide.uns["stimg"])) == before


def test_encoders_that_are_given_read_no_more(slide, model, tmp_path):
    encoder = GeneEncoder.fit(slide, **FIT)
    with pytest.raises(ValueError, match=r"the fitted PCA encoder does not read \['fit', 'n_features'\]"):
        stimg.tl.embed_genes(slide, encoder=encoder, fit=[0, 1], n_features=3)
    with pytest.raises(ValueError, match=r"a trained STMAE does not read \['layer'\]; it reads \['batch_size'\]"):
        stimg.tl.embed_genes(slide, encoder=model, layer="raw")
    encoder.save(tmp_path / "e")
    with pytest.raises(ValueError, match=r"holds a 'pca' encoder; wanted 'scvi'. Pass encoder='pca', or another folder"):
        stimg.tl.embed_genes(slide, encoder="scvi", path=tmp_path / "e")
    with pytest.raises(ValueError, match=r"holds a GeneEncoder; wanted a STMAE"):
        stimg.tl.embed_genes(slide, encoder="stmae", path=tmp_path / "e")
    assert isinstance(model, STMAE)
