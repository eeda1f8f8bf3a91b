import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import stimg
from stimg._core import keys
from stimg.model import STMAE, STMAEOptions

FIT = {"max_epochs": 2, "validation": None, "batch_size": 4, "lr": 5e-3}


def loaded(trained, tmp_path):
    trained[1].save(tmp_path / "m")
    return STMAE.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("technology", "changes"),
    [
        ("visium", {"token": "mlp", "centre": False}),
        ("visium", {"likelihood": "poisson"}),
        ("visium", {"likelihood": "nb", "init": "random"}),
        ("visium", {"centre": False}),
        ("visium", {"sparse_above": 10}),
        ("visium", {"sparse_above": 10, "likelihood": "nb", "mask_scope": "cell"}),
        ("visium", {"sparse_above": 10, "token": "mlp", "centre": False}),
        ("visium", {"rule": "weighted", "n_channels": 12}),
        ("visium", {"smooth_weight": 0.1}),
        ("visium", {"n_layers": 2, "n_decoder_layers": 0}),
        ("st", {}),
        ("st", {"crop_size": (5, 8), "mask_scope": "crop"}),
        ("visium_hd", {"rule": "uniform", "n_channels": 12}),
    ],
)
def test_every_kind_trains_embeds_and_predicts(make_slide, make_model, tmp_path, technology, changes):
    adata = make_slide(technology)
    model = make_model(adata, **changes)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    model.train(**FIT)
    assert model.is_finite()
    moved = [k for k, v in model.module.named_parameters() if not torch.equal(v, before[k])]
    assert len(moved) >= 0.9 * len(list(model.module.parameters())), set(before) - set(moved)
    values = model.get_latent_representation()
    assert values.shape == (adata.n_obs, 8)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    predicted = model.impute_genes(genes=list(model.genes[:3]))
    assert predicted.shape == (adata.n_obs, 3)
    assert np.isfinite(predicted.to_numpy()).all()
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(STMAE.load(tmp_path / "m", adata.copy()).get_latent_representation(), values)


def test_the_released_variant_trains_and_embeds(make_slide, make_model, tmp_path):
    adata = make_slide()
    model = make_model(adata, variant="released", n_channels=16, n_hidden=16)
    model.train(**FIT)
    values = model.get_latent_representation()
    assert values.shape == (adata.n_obs, 8)
    assert np.isfinite(values).all()
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(STMAE.load(tmp_path / "m").get_latent_representation(adata), values)
    for call in (lambda: model.get_reconstruction(), lambda: model.impute_genes(genes=[model.genes[0]])):
        with pytest.raises(ValueError, match="variant='intended'"):
            call()


def test_crops_in_micrometres(make_slide, make_model, tmp_path):
    adata = make_slide()
    model = make_model(adata, crop_um=600.0)
    assert model.crop.size == (round(600 / (100 * np.sqrt(3) / 2)), 6)
    model.train(**FIT)
    model.save(tmp_path / "m")
    assert STMAE.load(tmp_path / "m").crop == model.crop
    square = make_model(make_slide("st"), crop_um=1000.0)
    assert square.crop.size == (5, 5)


def test_tiles_and_centred_windows_agree_where_a_window_holds_all(make_slide, make_model):
    """One window over the whole slide, or one around every spot that holds the whole slide, sees the same."""
    adata = make_slide("st", shape=(5, 5))
    model = make_model(adata, crop_size=(11, 11), min_occupied=1)
    model.train(**FIT)
    tiles, centred = (model.get_latent_representation(mode=mode) for mode in ("tiles", "centred"))
    np.testing.assert_allclose(tiles, centred, atol=1e-5)
    np.testing.assert_array_equal(tiles, model.get_latent_representation(batch_size=1))


def test_reconstruction_is_on_the_stated_scale(trained):
    adata, model = trained
    predicted = model.get_reconstruction(genes=list(model.genes[:5]))
    assert predicted.columns.tolist() == list(model.genes[:5])
    assert predicted.index.equals(adata.obs_names)
    counts = adata.X.toarray()
    truth = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))[:, :5]
    assert np.abs(predicted.to_numpy().mean(0) - truth.mean(0)).max() < 0.25
    np.testing.assert_allclose(predicted, model.get_reconstruction().iloc[:, :5], rtol=1e-5)


def test_several_libraries_are_read_apart(make_slide, make_model):
    adata = make_slide(n_sections=2)
    model = make_model(adata)
    model.train(**FIT)
    together = model.get_latent_representation()
    for name in ("D1S1", "D1S2"):
        rows = (adata.obs["library_id"] == name).to_numpy()
        alone = model.get_latent_representation(adata[rows].copy())
        np.testing.assert_allclose(together[rows], alone, atol=1e-6)


def test_genes_in_another_order(trained):
    adata, model = trained
    order = np.random.default_rng(0).permutation(adata.n_vars)
    other = adata[:, order].copy()
    np.testing.assert_array_equal(model.get_latent_representation(other), model.get_latent_representation())
    genes = list(model.genes[3:6])
    pd.testing.assert_frame_equal(model.impute_genes(other, genes=genes), model.impute_genes(genes=genes))
    assert model.identity(other) == model.identity(adata)
    assert model.identity(adata)["n_obs_seen_in_training"] == len(model.train_indices) + len(model.validation_indices)


def test_observations_of_another_slide_were_not_seen(trained, make_slide):
    assert trained[1].identity(make_slide(rng=5))["n_obs_seen_in_training"] == 0


def test_dense_counts_and_a_layer(trained, make_slide, make_model):
    adata, model = trained
    other = adata.copy()
    other.X = other.X.toarray()
    np.testing.assert_array_equal(model.get_latent_representation(other), model.get_latent_representation())
    layered = make_slide()
    layered.layers["counts"] = layered.X.copy()
    layered.X = sp.csr_matrix(layered.shape, dtype=np.float32)
    STMAE.setup_anndata(layered, layer="counts")
    again = STMAE(layered, options=model.options)
    again.train(max_epochs=3, validation_fraction=0.25, lr=5e-3, rng=0)
    np.testing.assert_array_equal(again.get_latent_representation(), model.get_latent_representation())


def test_hidden_genes_play_no_part(trained):
    """Neither their counts nor their share of the library size."""
    adata, model = trained
    hidden = list(model.genes[[2, 7, 20]])
    poisoned = adata.copy()
    counts = poisoned.X.tolil()
    counts[:, adata.var_names.get_indexer(hidden)] = np.random.default_rng(0).poisson(300, size=(adata.n_obs, 3))
    poisoned.X = counts.tocsr()
    clean = model.impute_genes(genes=hidden)
    pd.testing.assert_frame_equal(model.impute_genes(poisoned, genes=hidden), clean, check_exact=True)
    without = adata[:, ~adata.var_names.isin(hidden)].copy()
    pd.testing.assert_frame_equal(model.impute_genes(without, genes=hidden), clean, check_exact=True)
    pd.testing.assert_frame_equal(model.impute_genes(without)[hidden], clean, check_exact=True)
    assert not np.allclose(model.get_reconstruction(poisoned, genes=hidden), clean)


def test_a_gene_that_was_not_hidden_does_count(trained):
    adata, model = trained
    poisoned = adata.copy()
    counts = poisoned.X.tolil()
    counts[:, 5] = np.random.default_rng(0).poisson(300, size=(adata.n_obs, 1))
    poisoned.X = counts.tocsr()
    genes = list(model.genes[[2, 7]])
    assert not np.allclose(model.impute_genes(poisoned, genes=genes), model.impute_genes(genes=genes))


def test_control_probes_change_nothing(trained, make_model):
    adata, model = trained
    probes = ad.AnnData(
        sp.csr_matrix(np.random.default_rng(0).poisson(20, size=(adata.n_obs, 3)).astype(np.float32)),
        obs=adata.obs,
        var=pd.DataFrame(index=["NegControlProbe_1", "BLANK_2", "antisense_3"]),
    )
    other = ad.concat([adata[:, :20], probes, adata[:, 20:]], axis=1, merge="first")
    other.obsm[keys.RC], other.uns[keys.UNS] = adata.obsm[keys.RC], adata.uns[keys.UNS]
    np.testing.assert_array_equal(model.get_latent_representation(other), model.get_latent_representation())
    pd.testing.assert_frame_equal(model.impute_genes(other, genes=list(model.genes[:2])), model.impute_genes(genes=list(model.genes[:2])))
    assert make_model(other).genes.tolist() == adata.var_names.tolist()


def test_observations_off_the_raster(trained, tmp_path):
    adata, model = trained
    other = adata.copy()
    rc = other.obsm[keys.RC].copy()
    rc[[4, 9]] = -1
    other.obsm[keys.RC] = rc
    values = model.get_latent_representation(other)
    assert np.flatnonzero(np.isnan(values).any(1)).tolist() == [4, 9]
    assert np.isnan(values[[4, 9]]).all()
    assert np.isnan(model.impute_genes(other, genes=[model.genes[0]]).to_numpy()[[4, 9]]).all()
    kept = np.setdiff1d(np.arange(adata.n_obs), [4, 9])
    np.testing.assert_allclose(values[kept], model.get_latent_representation(adata[kept].copy()), atol=1e-6)
    STMAE.setup_anndata(other)
    again = STMAE(other, options=model.options)
    again.train(**FIT)
    assert not np.isin([4, 9], again.train_indices).any()


def test_no_shared_gene(trained):
    adata, model = trained
    other = adata.copy()
    other.var_names = [f"ENSG{i}" for i in range(other.n_vars)]
    with pytest.raises(ValueError, match=r"None of the 40 genes of the vocabulary"):
        model.get_latent_representation(other)
    with pytest.raises(ValueError, match="nothing is left to predict them from"):
        model.impute_genes(adata, genes=list(model.genes))


def test_another_lattice_or_pitch(trained, make_slide, tmp_path):
    adata, model = trained
    with pytest.raises(ValueError, match="lies on a square lattice"):
        model.get_latent_representation(make_slide("st"))
    for pitch, wrong in ((94.0, True), (96.0, False), (104.0, False), (106.0, True)):
        other = adata.copy()
        other.uns[keys.UNS][keys.RASTER] = {k: {**v, "pitch_um": pitch} for k, v in other.uns[keys.UNS][keys.RASTER].items()}
        if wrong:
            with pytest.raises(ValueError, match=f"pitch of {pitch:g} µm"):
                model.get_latent_representation(other)
            with pytest.raises(ValueError, match=f"pitch of {pitch:g} µm"):
                loaded(trained, tmp_path / str(pitch)).load(tmp_path / str(pitch) / "m", other)
        else:
            model.get_latent_representation(other)


def test_unknown_genes_are_named(trained, make_slide):
    model = trained[1]
    for call in (model.get_reconstruction, model.impute_genes):
        with pytest.raises(KeyError, match=r"2 of 3 .*'nothing', 'nobody'"):
            call(genes=["nothing", model.genes[0], "nobody"])
    slide = make_slide()
    STMAE.setup_anndata(slide)
    with pytest.raises(KeyError, match="nothing"):
        STMAE(slide, ["nothing", *slide.var_names[:3]])


def test_all_genes_measured_and_none_named(trained):
    with pytest.raises(ValueError, match="measured all 40 genes"):
        trained[1].impute_genes()


def test_the_vocabulary(make_slide):
    adata = make_slide()
    STMAE.setup_anndata(adata)
    stimg.pp.select_genes(adata, rule="variance", n=7)
    order = adata.var[keys.CHANNEL_ORDER]
    assert STMAE(adata).genes.tolist() == order[order >= 0].sort_values().index.tolist()
    assert STMAE(adata, list(adata.var_names[[3, 1]])).genes.tolist() == adata.var_names[[3, 1]].tolist()
    for genes, match in ((["a"], "wanted at least 2"), ([adata.var_names[0]] * 2, "duplicated")):
        with pytest.raises(ValueError, match=match):
            STMAE(adata, genes)
    with pytest.raises(ValueError, match="must be provided"):
        STMAE()


def test_setup_says_what_is_missing(make_slide):
    adata = make_slide()
    with pytest.raises(ValueError, match="view"):
        STMAE.setup_anndata(adata[:20])
    with pytest.raises(KeyError, match="counts"):
        STMAE.setup_anndata(adata, layer="counts")
    with pytest.raises(KeyError, match="section_id"):
        STMAE.setup_anndata(adata, library_key="section_id")
    bare = adata.copy()
    del bare.obsm[keys.RC]
    with pytest.raises(KeyError, match=r"stimg\.pp\.rasterize"):
        STMAE.setup_anndata(bare)
    normalised = adata.copy()
    normalised.X = normalised.X * 0.3
    with pytest.raises(ValueError, match="fractional"):
        STMAE.setup_anndata(normalised)


def test_a_small_slide_sets_up(make_slide):
    """Without the check of scvi-tools, which draws 20 random rows."""
    adata = make_slide()[:8].copy()
    before = np.random.get_state()  # noqa: NPY002
    STMAE.setup_anndata(adata)
    STMAE(adata, n_latent=8)
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_load_checks_the_data(trained, make_slide, tmp_path):
    loaded(trained, tmp_path)
    with pytest.raises(ValueError, match="square lattice"):
        STMAE.load(tmp_path / "m", make_slide("st"))
    reordered = trained[0][:, ::-1].copy()
    model = STMAE.load(tmp_path / "m", reordered)
    np.testing.assert_array_equal(model.get_latent_representation(), trained[1].get_latent_representation())


def test_a_panel_that_lacks_genes(trained, tmp_path):
    adata, model = trained
    half = adata[:, ::2].copy()
    values = model.get_latent_representation(half)
    assert np.isfinite(values).all()
    missing = model.impute_genes(half)
    assert missing.columns.tolist() == [g for g in model.genes if g not in half.var_names]
    assert np.corrcoef(values.ravel(), model.get_latent_representation().ravel())[0, 1] > 0.5


def test_training_and_setup_are_silent(make_slide, make_model, capfd, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    model = make_model(make_slide())
    model.train(max_epochs=2, validation_fraction=0.25, checkpoint_dir=tmp_path / "c")
    model.train(max_epochs=1, validation_fraction=0.25)
    model.get_latent_representation()
    model.save(tmp_path / "m")
    STMAE.load(tmp_path / "m", make_slide())
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert not [str(w.message) for w in recwarn if "script_method" not in str(w.message)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "m"]


def test_levels_of_loggers_come_back_and_a_chosen_one_stays(make_slide, make_model):
    names = ("lightning.pytorch", "lightning.fabric", "scvi")
    before = {n: logging.getLogger(n).level for n in names}
    inside = {}

    class Look(__import__("lightning").pytorch.Callback):
        def on_train_start(self, trainer, pl_module):
            inside.update({n: logging.getLogger(n).level for n in names})

    logging.getLogger("scvi").setLevel(logging.DEBUG)
    try:
        make_model(make_slide()).train(**{**FIT, "max_epochs": 1}, callbacks=[Look()])
        assert inside == {"lightning.pytorch": logging.WARNING, "lightning.fabric": logging.WARNING, "scvi": logging.DEBUG}
        assert logging.getLogger("scvi").level == logging.DEBUG
    finally:
        logging.getLogger("scvi").setLevel(before["scvi"])
    assert {n: logging.getLogger(n).level for n in names} == before


def test_the_progress_bar_follows_the_settings(make_slide, make_model, monkeypatch, capfd):
    for progress, shown in ((True, True), (False, False), (None, False)):
        monkeypatch.setattr(stimg.settings, "progress", progress)
        make_model(make_slide()).train(**{**FIT, "max_epochs": 1})
        assert ("Epoch" in "".join(capfd.readouterr())) == shown


def test_options(make_slide, make_model):
    assert STMAEOptions.from_dict(STMAEOptions(crop_size=(3, 4), crop_um=5.0).to_dict()) == STMAEOptions(crop_size=(3, 4), crop_um=5.0)
    model = make_model(make_slide(), options=STMAEOptions(dropout=0.3), n_heads=2)
    assert (model.options.dropout, model.options.n_heads, model.options.n_latent) == (0.3, 2, 8)
    with pytest.raises(TypeError, match=r"no option \['n_latnet'\]"):
        make_model(make_slide(), n_latnet=8)


def test_the_summary_names_the_model(trained):
    assert "STMAE (intended) with 40 genes, crops of 6 x 6" in trained[1]._model_summary_string


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"max_epochs": 0}, "max_epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"patience": 0}, "patience"),
        ({"rng": -1}, "rng"),
        ({"validation": "spots"}, "validation='spots'"),
        ({"validation": ["nowhere"]}, "nowhere"),
        ({"validation": []}, "validation"),
        ({"validation": ["D1S1"]}, "nothing is left"),
        ({"validation_fraction": 0.7}, "validation_fraction"),
        ({"validation_fraction": 0.005}, "too few"),
    ],
)
def test_arguments_that_make_no_sense(make_slide, make_model, arguments, match):
    model = make_model(make_slide())
    with pytest.raises(ValueError, match=match):
        model.train(**{"max_epochs": 1, **arguments})
    assert not model.is_trained_


def test_a_mistyped_argument_is_not_swallowed(make_slide, make_model):
    model = make_model(make_slide())
    with pytest.raises(TypeError, match="early_stoping"):
        model.train(max_epochs=1, early_stoping=True)
