"""The classifier of slides: its answers from its weights, what it finds in simulated cohorts, what it remembers, what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import stimg
from stimg._core.rng import derive
from stimg.data.ledger import find_leaks
from stimg.data.pairs import mini_batches
from stimg.model import SlideClassifier, SlideClassifierOptions

QUIET = {"enable_progress_bar": False}
SETUP = {"features": "X_simulated", "label_key": "label"}


def cohort(n_donors=16, rng=0, **options):
    return stimg.datasets.simulate_cohort(n_donors=n_donors, **{"n_tiles": (15, 30), "n_features": 8, "rng": rng, **options})


def make(adata, **options):
    SlideClassifier.setup_anndata(adata, **SETUP)
    return SlideClassifier(adata, **{"n_hidden": 16, "n_attention": 8, **options})


@pytest.fixture(scope="module")
def trained():
    adata = cohort(effect=6.0)
    model = make(adata)
    model.train(max_epochs=20, rng=3, **QUIET)
    return adata, model


def labels_of(adata):
    return adata.obs.groupby("library_id", observed=True)["label"].first()


def auroc_of(adata, proba):
    return roc_auc_score(labels_of(adata)[proba.index] == "positive", proba["positive"])


def attention_auroc(adata, attention):
    """How well attention tells the tiles that carry the label, mean over positive slides."""
    found = []
    for slide in adata.obs["library_id"][adata.obs["informative"]].unique():
        here = (adata.obs["library_id"] == slide).to_numpy()
        found.append(roc_auc_score(adata.obs["informative"].to_numpy()[here], attention[here]))
    return np.mean(found)


def test_probabilities_and_attention_are_those_of_the_weights(trained):
    adata, model = trained
    w = {k: v.double().numpy() for k, v in model.module.state_dict().items()}
    proba, attention, embedding = model.predict_proba(), model.get_attention(), model.get_slide_embedding()
    assert attention.dtype == np.float32
    assert list(proba.columns) == ["negative", "positive"]
    for slide in proba.index:
        here = (adata.obs["library_id"] == slide).to_numpy()
        x = (adata.obsm["X_simulated"][here] - w["standardise.mean"]) / w["standardise.scale"]
        h = np.maximum(x @ w["embed.0.weight"].T + w["embed.0.bias"], 0)
        gate = 1 / (1 + np.exp(-(h @ w["attention.gate.weight"].T + w["attention.gate.bias"])))
        score = (np.tanh(h @ w["attention.what.weight"].T + w["attention.what.bias"]) * gate) @ w["attention.weight.weight"][0]
        a = np.exp(score) / np.exp(score).sum()
        logits = w["classify.1.weight"] @ (a @ h) + w["classify.1.bias"]
        np.testing.assert_allclose(attention[here], a, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(embedding.loc[slide], a @ h, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(proba.loc[slide], np.exp(logits) / np.exp(logits).sum(), rtol=1e-4)


def test_features_are_scaled_by_the_training_slides_alike(trained):
    adata, model = trained
    x, slide = adata.obsm["X_simulated"].astype(float), adata.obs["library_id"].to_numpy()
    slides = [x[slide == s] for s in np.unique(slide)]
    mean = np.mean([s.mean(0) for s in slides], axis=0)
    scale = np.sqrt(np.mean([((s - mean) ** 2).mean(0) for s in slides], axis=0))
    np.testing.assert_allclose(model.module.standardise.mean.numpy(), mean, atol=1e-5)
    np.testing.assert_allclose(model.module.standardise.scale.numpy(), scale, rtol=1e-4)


def test_the_order_of_tiles_and_the_labels_are_not_read(trained):
    adata, model = trained
    order = np.random.default_rng(0).permutation(adata.n_obs)
    other = adata[order].copy()
    del other.obs["label"], other.obs["donor"]
    np.testing.assert_allclose(model.predict_proba(other).to_numpy(), model.predict_proba().to_numpy(), rtol=1e-5)
    np.testing.assert_allclose(model.get_attention(other), model.get_attention()[order], rtol=1e-5)
    some = adata[(adata.obs["library_id"] == "D03S1").to_numpy()].copy()
    np.testing.assert_allclose(model.predict_proba(some).loc["D03S1"], model.predict_proba().loc["D03S1"], rtol=1e-5)


@pytest.fixture(scope="module", params=range(3))
def halves(request):
    """Training and test donors of one cohort, and a model of the first."""
    adata = cohort(60, rng=request.param, effect=6.0, n_tiles=(40, 60))
    first = adata.obs["donor"].isin([f"D{i:02d}" for i in range(1, 31)]).to_numpy()
    train, test = adata[first].copy(), adata[~first].copy()
    model = make(train)
    model.train(max_epochs=60, rng=request.param, **QUIET)
    return train, test, model


def mean_pool(adata):
    return np.stack([adata.obsm["X_simulated"][(adata.obs["library_id"] == s).to_numpy()].mean(0) for s in labels_of(adata).index])


def test_it_finds_the_tiles_that_carry_the_label_and_beats_averaging(halves):
    train, test, model = halves
    proba = model.predict_proba(test)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(mean_pool(train), labels_of(train))
    averaged = roc_auc_score(labels_of(test) == "positive", logistic.predict_proba(mean_pool(test))[:, 1])
    assert auroc_of(test, proba) > 0.9
    assert auroc_of(test, proba) > averaged + 0.1
    assert attention_auroc(test, model.get_attention(test)) > 0.9
    assert attention_auroc(test, model.get_contribution(test)["positive"].to_numpy()) > 0.9


def test_training_is_that_of_a_plain_loop():
    """AdamW on the cross-entropy of slides pooled one by one, without anything of the training code but the order of the slides."""
    adata = cohort(12, effect=6.0)
    model = make(adata, dropout=0.0)
    weights = {}

    class Keep(Callback):
        def on_train_start(self, trainer, pl_module):
            weights.update({k: v.double().clone() for k, v in pl_module.module.state_dict().items()})

    model.train(max_epochs=5, batch_size=4, lr=0.02, weight_decay=0.1, rng=5, callbacks=[Keep()], **QUIET)
    slides, label = adata.obs["library_id"].to_numpy(), labels_of(adata)
    x = [torch.from_numpy(adata.obsm["X_simulated"][slides == s]).double() for s in label.index]
    y = torch.tensor((label == "positive").to_numpy().astype(int))
    w = {k: v.requires_grad_() for k, v in weights.items() if k.split(".")[0] in ("embed", "attention", "classify")}

    def logits(tiles):
        h = torch.relu((tiles - weights["standardise.mean"]) / weights["standardise.scale"] @ w["embed.0.weight"].T + w["embed.0.bias"])
        gate = torch.sigmoid(h @ w["attention.gate.weight"].T + w["attention.gate.bias"])
        score = (torch.tanh(h @ w["attention.what.weight"].T + w["attention.what.bias"]) * gate) @ w["attention.weight.weight"][0]
        return w["classify.1.weight"] @ (torch.softmax(score, 0) @ h) + w["classify.1.bias"]

    groups = [{"params": [v for v in w.values() if (v.ndim > 1) == many], "weight_decay": 0.1 * many} for many in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.999))
    step, total = 0, 5 * 3
    for epoch in range(5):
        for part in mini_batches(np.zeros(12), 4, "mixed", derive(5, epoch)):
            rate = 1.0 if step < 1 else 0.01 + 0.495 * (1 + np.cos(np.pi * (step - 1) / (total - 1)))
            for group in optimizer.param_groups:
                group["lr"] = 0.02 * rate
            optimizer.zero_grad()
            loss = sum(-torch.log_softmax(logits(x[i]), 0)[y[i]] for i in part) / len(part)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(w.values()), 1.0)
            optimizer.step()
            step += 1
    for name, value in w.items():
        torch.testing.assert_close(model.module.state_dict()[name].double(), value.detach(), rtol=1e-3, atol=1e-4)
        moved = (value.detach() - model._make_module(5).state_dict()[name].double()).abs().max()
        assert moved > (0.01 if value.ndim > 1 else 0), name


def test_without_an_effect_held_out_donors_are_at_chance():
    found = []
    for seed in range(4):
        adata = cohort(60, rng=seed, effect=0.0, donor_sd=1.0)
        first = adata.obs["donor"].isin([f"D{i:02d}" for i in range(1, 31)]).to_numpy()
        train, test = adata[first].copy(), adata[~first].copy()
        model = make(train)
        model.train(max_epochs=20, **QUIET)
        found.append(auroc_of(test, model.predict_proba(test)))
        assert auroc_of(train, model.predict_proba(train)) > 0.75  # it learns its donors by heart all the same
    assert abs(np.mean(found) - 0.5) < 0.13  # two standard errors of four cohorts with 30 test donors


def test_mean_pooling_weighs_all_tiles_alike():
    adata = cohort(8)
    model = make(adata, pooling="mean")
    model.train(max_epochs=1, **QUIET)
    size = adata.obs["library_id"].value_counts()
    np.testing.assert_allclose(model.get_attention(), 1 / size[adata.obs["library_id"]].to_numpy(), rtol=1e-5)


def test_more_than_two_classes():
    adata = cohort(36, effect=6.0)
    number = adata.obs["donor"].cat.codes.to_numpy()
    third = ((number % 3 == 0) & (adata.obs["label"] == "negative")).to_numpy()
    adata.obs["label"] = np.where(third, "another", adata.obs["label"].astype(str))
    adata.obsm["X_simulated"][third & (np.arange(adata.n_obs) % 5 == 0), 2] -= 9
    held = number % 4 == 1
    train, test = adata[~held].copy(), adata[held].copy()
    model = make(train)
    model.train(max_epochs=100, **QUIET)
    proba, known = model.predict_proba(test), labels_of(test)
    assert list(proba.columns) == ["another", "negative", "positive"]
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-6)
    assert (proba.idxmax(axis=1) == known[proba.index]).mean() >= 7 / 9


def test_classes_of_unequal_size_weigh_the_same():
    adata = cohort(20, prevalence=0.2)
    for how, wanted in (("balanced", [20 / 2 / 16, 20 / 2 / 4]), ("none", [1.0, 1.0])):
        model = make(adata, class_weight=how)
        model.train(max_epochs=1, **QUIET)
        np.testing.assert_allclose(model.module.class_weight.numpy(), wanted)


def test_the_same_seed_gives_the_same_and_global_chance_is_left_alone(trained):
    adata, model = trained
    torch.manual_seed(11)
    state, other = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = make(adata.copy())
    again.train(max_epochs=20, rng=3, **QUIET)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(other, np.random.get_state()[1])  # noqa: NPY002
    another = make(adata.copy())
    another.train(max_epochs=20, rng=4, **QUIET)
    assert not torch.equal(another.module.embed[0].weight, again.module.embed[0].weight)


def test_validation_donors_are_not_learned_from_and_the_best_epoch_is_kept():
    adata = cohort(24, n_slides=2)
    model = make(adata)
    model.train(max_epochs=8, validation="donors", validation_fraction=0.25, **QUIET)
    held, used = (set(adata.obs["donor"].iloc[i]) for i in (model.validation_indices_, model.train_indices_))
    assert len(held) == 6
    assert not held & used
    curve = model.history["validation_auroc"]["validation_auroc"].to_numpy()
    assert model.best_epoch_ == int(np.argmax(curve))
    known = labels_of(adata)
    of = adata.obs.groupby("library_id", observed=True)["donor"].first()
    proba = model.predict_proba()
    own = [s for s in proba.index if of[s] in held]
    assert roc_auc_score(known[own] == "positive", proba.loc[own, "positive"]) == pytest.approx(curve.max())
    assert set(model.ledger[-1].donors) == held | used


def test_slides_without_a_label_are_predicted_and_not_learned_from():
    adata = cohort(10)
    adata.obs["label"] = adata.obs["label"].astype(object)
    adata.obs.loc[adata.obs["library_id"] == "D04S1", "label"] = None
    model = make(adata)
    model.train(max_epochs=1, **QUIET)
    assert "D04S1" in model.predict_proba().index
    assert "D04S1" not in model.ledger[-1].libraries
    assert not (adata.obs["library_id"].iloc[model.train_indices_] == "D04S1").any()


def test_the_ledger_knows_tiles_slides_and_donors(trained):
    adata, model = trained
    (leak,) = find_leaks(adata, model, level="donor")
    assert (leak.by, leak.n) == ("names", adata.n_obs)
    other = cohort(rng=9, n_slides=2)
    other.obs["library_id"] = other.obs["library_id"].astype(str) + "x"
    other.obs_names = other.obs_names + "x"
    found = find_leaks(other, model, level="donor")
    assert {leak.by for leak in found} == {"donor"}
    assert model.identity(adata)["n_obs_seen_in_training"] == adata.n_obs
    assert model.identity(other)["n_obs_seen_in_training"] == 0


@pytest.mark.parametrize("with_data", [False, True])
def test_a_loaded_model_says_what_the_saved_one_said(trained, tmp_path, with_data):
    adata, model = trained
    model.save(tmp_path / "model")
    loaded = SlideClassifier.load(tmp_path / "model", adata.copy()) if with_data else SlideClassifier.load(tmp_path / "model")
    asked = None if with_data else adata
    np.testing.assert_array_equal(loaded.predict_proba(asked).to_numpy(), model.predict_proba().to_numpy())
    np.testing.assert_array_equal(loaded.get_attention(asked), model.get_attention())
    assert loaded.classes == model.classes
    assert loaded.options == model.options
    assert loaded.identity(adata) == model.identity(adata)
    np.testing.assert_array_equal(loaded.ledger[-1].ids, model.ledger[-1].ids)
    assert loaded.history.keys() == model.history.keys()
    if with_data:
        loaded.train(max_epochs=1, **QUIET)
        assert loaded.epochs() == 21
    else:
        with pytest.raises(ValueError, match="no adata to train on"):
            loaded.train(max_epochs=1)
        with pytest.raises(ValueError, match="loaded without data"):
            loaded.predict_proba()
    with pytest.raises(ValueError, match="holds a SlideClassifier; wanted a STMAE"):
        stimg.model.STMAE.load(tmp_path / "model")


def test_an_interrupted_training_goes_on(trained, tmp_path):
    adata = trained[0]

    def fresh():
        return make(adata.copy())

    whole, part = fresh(), fresh()
    whole.train(max_epochs=4, rng=1, **QUIET)

    class Stop(RuntimeError):
        pass

    class Bomb(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise Stop

    before = {k: v.clone() for k, v in part.module.state_dict().items()}
    with pytest.raises(Stop):
        part.train(max_epochs=4, rng=1, checkpoint_dir=tmp_path, callbacks=[Bomb()], **QUIET)
    assert all(torch.equal(v, part.module.state_dict()[k]) for k, v in before.items())
    part.train(max_epochs=4, rng=1, checkpoint_dir=tmp_path, **QUIET)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, part.module.state_dict()[name]), name
    adata.obs["label"] = adata.obs["label"].astype(str)
    other = adata.copy()
    other.obsm["X_simulated"] = other.obsm["X_simulated"] + 1
    with pytest.raises(ValueError, match="belongs to another training: features was"):
        make(other).train(max_epochs=4, rng=1, checkpoint_dir=tmp_path, **QUIET)


def test_a_spatialdata_table_is_read(trained):
    from spatialdata import SpatialData

    sdata = SpatialData(tables={"tiles": trained[0].copy()})
    SlideClassifier.setup_spatialdata(sdata, table_key="tiles", **SETUP)
    model = SlideClassifier(sdata.tables["tiles"], n_hidden=4)
    model.train(max_epochs=1, **QUIET)
    assert len(model.predict_proba()) == 16


def test_under_the_protocol_it_is_scored_beside_averaged_tiles():
    adata = cohort(30, effect=6.0, n_tiles=(30, 40))
    method = SlideClassifier.as_method(max_epochs=30, n_hidden=16)
    report = stimg.bench.run("slides", adata, methods={"attention": method}, labels="label", features=["X_simulated"], seeds=1)
    value = report.summary()["value"]
    assert value["attention", "auroc", "all pairs"] > value["mean of tiles, logistic", "auroc", "all pairs"]
    assert not report.data["stamps"]
    with pytest.raises(TypeError, match="SlideClassifier has no option"):
        SlideClassifierOptions().changed(width=3)
    with pytest.raises(KeyError, match="Pass it as `features` of the run"):
        stimg.bench.run(
            "slides",
            adata,
            methods={"a": SlideClassifier.as_method(features="X_uni")},
            labels="label",
            features=["X_simulated"],
            nulls=False,
        )


def narrow(adata):
    adata.obsm["X_simulated"] = adata.obsm["X_simulated"][:, :5]


def elsewhere(adata):
    adata.uns["stimg"]["X_simulated"]["encoder"] = "uni"


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (narrow, ValueError, "has 5 columns; the model was made for 8"),
        (lambda a: a.obsm.pop("X_simulated"), KeyError, r"adata.obsm\['X_simulated'\] is missing"),
        (lambda a: a.obs.pop("library_id"), KeyError, "library_id"),
    ],
)
def test_other_data_are_refused(trained, spoil, error, message):
    adata, model = trained[0].copy(), trained[1]
    spoil(adata)
    with pytest.raises(error, match=message):
        model.predict_proba(adata)


def test_another_encoder_is_refused():
    adata = cohort(8)
    adata.uns["stimg"]["X_simulated"]["encoder"] = "conch"
    model = make(adata)
    model.train(max_epochs=1, **QUIET)
    other = adata.copy()
    elsewhere(other)
    with pytest.raises(ValueError, match="encoder was 'conch' and is 'uni'"):
        model.predict_proba(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling='max' is not known"),
        ({"n_hidden": 0}, "n_hidden=0 is not usable"),
        ({"dropout": 1.0}, r"dropout=1.0 is not in \[0, 1\)"),
        ({"class_weight": "equal"}, "class_weight='equal' is not known"),
        ({"max_tiles": 0}, "max_tiles=0 is not usable"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SlideClassifierOptions(**options)


def test_bad_calls(trained):
    adata = cohort(8)
    with pytest.raises(ValueError, match="is a view"):
        SlideClassifier.setup_anndata(adata[:20], **SETUP)
    with pytest.raises(ValueError, match="no observations"):
        SlideClassifier.setup_anndata(adata[:0].copy(), **SETUP)
    with pytest.raises(ValueError, match="no adata with slides"):
        SlideClassifier()
    model = make(adata)
    with pytest.raises(RuntimeError, match="not trained"):
        model.predict_proba()
    with pytest.raises(RuntimeError, match="not trained"):
        model.save("nowhere")
    for options, message in (
        ({"lr": 0}, "lr=0 is not above zero"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"weight_decay": -1}, "weight_decay=-1 is not a weight"),
        ({"monitor": "loss"}, "monitor='loss' is not known"),
        ({"validation": ["D9"]}, "names donors without a labelled slide"),
        ({"validation": ["D1S1"]}, "names donors without a labelled slide"),  # a slide: its donor would be on both sides
    ):
        with pytest.raises(ValueError, match=message):
            model.train(max_epochs=1, **options)
    adata.obs["label"] = "positive"
    SlideClassifier.setup_anndata(adata, **SETUP)
    with pytest.raises(ValueError, match=r"the labels of the slides are \['positive'\]; wanted at least two"):
        SlideClassifier(adata)
    adata.obs["label"] = None
    SlideClassifier.setup_anndata(adata, **SETUP)
    with pytest.raises(ValueError, match=r"the labels of the slides are \[\]; wanted at least two"):
        SlideClassifier(adata)
    same = cohort(8)
    same.obsm["X_simulated"] = np.ones_like(same.obsm["X_simulated"])
    with pytest.raises(ValueError, match="all training tiles have the same features"):
        make(same).train(max_epochs=1, **QUIET)


def nan(adata):
    adata.obsm["X_simulated"][5, 3] = np.nan


def mixed_label(adata):
    adata.obs.loc[adata.obs_names[0], "label"] = "negative" if adata.obs["label"].iloc[0] == "positive" else "positive"


def half_label(adata):
    adata.obs.loc[adata.obs_names[0], "label"] = None


def two_donors(adata):
    adata.obs.loc[adata.obs_names[0], "donor"] = "D2"


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (nan, ValueError, "1 rows of .* with NaN or infinite values"),
        (mixed_label, ValueError, "slide 'D1S1' has 2 labels"),
        (half_label, ValueError, "slide 'D1S1' has no label in 1 of its"),
        (two_donors, ValueError, "slide 'D1S1' has 2 donors"),
        (lambda a: a.obs.pop("label"), KeyError, r"adata.obs\['label'\] is missing"),
        (lambda a: a.obs.pop("donor"), KeyError, r"adata.obs\['donor'\] is missing"),
        (lambda a: a.obsm.pop("X_simulated"), KeyError, r"adata.obsm\['X_simulated'\] is missing"),
    ],
)
def test_bad_slides_are_refused_at_setup(spoil, error, message):
    adata = cohort(8)
    spoil(adata)
    with pytest.raises(error, match=message):
        SlideClassifier.setup_anndata(adata, **SETUP)


def test_a_slide_without_tiles_is_no_slide():
    adata = cohort(8)
    adata = adata[(adata.obs["library_id"] != "D3S1").to_numpy()].copy()
    adata.obs["library_id"] = pd.Categorical(adata.obs["library_id"].astype(str), [f"D{i}S1" for i in range(1, 9)])
    model = make(adata)
    model.train(max_epochs=1, **QUIET)
    assert model.predict_proba().index.tolist() == [f"D{i}S1" for i in range(1, 9) if i != 3]
    with pytest.raises(ValueError, match="no observations"):
        model.predict_proba(adata[:0].copy())


def test_options_survive_json():
    options = SlideClassifierOptions(max_tiles=7, pooling="mean")
    assert SlideClassifierOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
