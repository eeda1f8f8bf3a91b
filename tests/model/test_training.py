import random
import signal

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from stimg.data.library import libraries
from stimg.data.module import CropDataModule
from stimg.data.slots import raster_libraries
from stimg.data.statistics import gene_statistics
from stimg.model import STMAE, _training
from stimg.model._record import STATISTICS
from stimg.model._split import split_observations
from stimg.nn.stmae import Offsets

FIT = {"validation_fraction": 0.25, "batch_size": 4, "lr": 5e-3, "rng": 0}


def weights(model):
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def curves(model):
    return {name: (table.index.tolist(), table[name].tolist()) for name, table in model.history.items()}


class Each(Callback):
    """Weights at the end of every epoch; fails after one of them where asked to."""

    def __init__(self, fail_after=None, error=RuntimeError):
        self.weights, self.fail_after, self.error, self.modes = [], fail_after, error, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.modes.append(all(m.training for m in pl_module.modules()))

    def on_train_epoch_end(self, trainer, pl_module):
        self.weights.append({k: v.detach().clone() for k, v in pl_module.module.state_dict().items()})

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.fail_after:
            raise self.error("stopped here")


class Fake(Callback):
    """Other validation losses than the true ones."""

    def __init__(self, losses):
        self.losses = losses

    def on_validation_epoch_end(self, trainer, pl_module):
        trainer.callback_metrics["validation_loss"].fill_(self.losses[trainer.current_epoch])


@pytest.fixture(scope="module")
def straight(make_slide, make_model):
    """Six epochs in one go."""
    model, each = make_model(make_slide()), Each()
    model.train(max_epochs=6, callbacks=[each], **FIT)
    return model, each


def held_out(adata, seed=0, fraction=0.25):
    return split_observations(
        raster_libraries(adata),
        adata.n_obs,
        validation="blocks",
        fraction=fraction,
        rng=np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,))),
    )


def test_history_and_indices(straight):
    model, each = straight
    assert model.epochs() == 6
    assert {"train_loss", "validation_loss"} <= set(model.history)
    for name, table in model.history.items():
        assert table.index.tolist() == list(range(6))
        assert table.index.name == "epoch"
        assert table.columns.tolist() == [name]
        assert table[name].dtype == np.float64
        assert np.isfinite(table[name]).all()
    assert not set(model.train_indices) & set(model.validation_indices)
    split = held_out(model.adata)
    np.testing.assert_array_equal(np.sort(model.validation_indices), np.flatnonzero(split.validation))
    np.testing.assert_array_equal(np.sort(model.train_indices), np.flatnonzero(split.train))
    assert not model.module.training
    assert len(each.weights) == 6


def test_training_improves(straight, make_slide, make_model):
    """Validation draws the same masks every time, so its losses can be compared. A small slide leaves nothing to gain over the PCA start."""
    model = make_model(make_slide(), init="random")
    model.train(max_epochs=4, **{**FIT, "lr": 2e-2})
    losses, from_pca = (m.history["validation_loss"]["validation_loss"] for m in (model, straight[0]))
    assert (np.diff(losses) < 0).all()
    assert losses.iloc[-1] < 0.8 * losses.iloc[0]
    assert from_pca.max() < losses.iloc[0]


def test_the_weights_kept_are_those_of_the_best_epoch(make_slide, make_model):
    """Recompute the validation loss from crops of the held-out block, with a fresh loader and plain torch."""

    class Spoil(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                pl_module.module.beta.data.add_(5.0)

    adata = make_slide()
    model, each = make_model(adata, init="random"), Each()
    model.train(max_epochs=5, callbacks=[each, Spoil()], **{**FIT, "lr": 2e-2})
    history = model.history["validation_loss"]["validation_loss"]
    best = int(history.idxmin())
    assert model.best_epoch_ == best
    assert best == 2  # better from epoch to epoch until it was spoiled
    assert same(weights(model), each.weights[best])
    assert not same(weights(model), each.weights[-1])
    split = held_out(adata)
    found = [libraries(adata, vocabulary=model.genes, rows=rows) for rows in (split.train, split.validation)]
    data = CropDataModule(*found, crop=model.crop, val_crop=type(model.crop)(model.crop.size, 1), rule="all", batch_size=4, seed=0)
    statistics = gene_statistics(found[1], len(model.genes), like=model.statistics)
    offsets = Offsets(torch.from_numpy(statistics.mean), torch.from_numpy(statistics.composition))
    total = number = 0
    batches = list(data.val_dataloader())  # a loader draws a number when it starts
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for batch in batches:
            total += float(model.module(batch, offsets)["loss"]) * len(batch["panel"])
            number += len(batch["panel"])
    assert total / number == pytest.approx(history.min(), rel=1e-5)


def test_early_stopping_stops(make_slide, make_model):
    model = make_model(make_slide())
    losses = [3.0, 1.0, 2.0, 2.0, 1.0, 2.0, 0.5, 0.4]
    model.train(max_epochs=8, patience=3, callbacks=[Fake(losses)], **FIT)
    assert model.epochs() == 5  # epoch 1 is the best, and 4 is the third without a better one
    assert model.best_epoch_ == 1
    model = make_model(make_slide())
    model.train(max_epochs=8, patience=3, early_stopping=False, callbacks=[Fake(losses)], **FIT)
    assert model.epochs() == 8
    assert model.best_epoch_ == 7


def test_the_default_number_of_epochs_makes_the_stated_number_of_steps(make_slide, make_model, monkeypatch):
    monkeypatch.setattr(_training, "STEPS", 7)
    model = make_model(make_slide())
    model.train(batch_size=3, validation=None)
    steps = -(-model.crop.n_crops((12, 12)) // 3)
    assert model.epochs() == -(-7 // steps)


@pytest.mark.parametrize("validation", [None, ["D1S2"]])
def test_other_validation(make_slide, make_model, validation):
    adata = make_slide(n_sections=2)
    model, each = make_model(adata), Each()
    model.train(max_epochs=2, validation=validation, callbacks=[each], batch_size=8)
    held = np.isin(adata.obs["library_id"], validation or [])
    np.testing.assert_array_equal(np.sort(model.validation_indices), np.flatnonzero(held))
    np.testing.assert_array_equal(np.sort(model.train_indices), np.flatnonzero(~held))
    if validation is None:
        assert "validation_loss" not in model.history
        assert model.best_epoch_ == -1
        assert same(weights(model), each.weights[-1])


def poison(adata, rows):
    counts = adata.X.tolil()
    counts[rows] = np.random.default_rng(1).poisson(50, size=(len(rows), adata.n_vars))
    adata.X = counts.tocsr()
    return adata


def test_what_is_held_out_is_not_learned_from(make_slide, make_model, straight):
    adata = make_slide()
    rows = np.flatnonzero(held_out(adata).validation)
    assert len(rows) > 10
    model, each = make_model(poison(adata, rows)), Each()
    model.train(max_epochs=6, callbacks=[each], **FIT)
    assert curves(model)["train_loss"] == curves(straight[0])["train_loss"]
    assert all(same(a, b) for a, b in zip(each.weights, straight[1].weights, strict=True))
    assert curves(model)["validation_loss"] != curves(straight[0])["validation_loss"]
    for name in STATISTICS:
        np.testing.assert_array_equal(getattr(model.statistics, name), getattr(straight[0].statistics, name))


def test_the_margin_plays_no_part_at_all(make_slide, make_model, straight):
    adata = make_slide()
    split = held_out(adata)
    rows = np.flatnonzero(~split.train & ~split.validation)
    assert len(rows) > 3
    model = make_model(poison(adata, rows))
    model.train(max_epochs=6, **FIT)
    assert curves(model) == curves(straight[0])
    assert same(weights(model), weights(straight[0]))


def test_a_training_observation_does_count(make_slide, make_model, straight):
    adata = make_slide()
    model = make_model(poison(adata, np.flatnonzero(held_out(adata).train)[:1]))
    model.train(max_epochs=1, **FIT)
    assert curves(model)["train_loss"][1][0] != curves(straight[0])["train_loss"][1][0]


def test_the_same_rng_gives_the_same_weights_whatever_the_workers(make_slide, make_model, straight):
    model = make_model(make_slide())
    model.train(max_epochs=6, num_workers=2, multiprocessing_context="fork", **FIT)
    assert curves(model) == curves(straight[0])
    assert same(weights(model), weights(straight[0]))
    other = make_model(make_slide())
    other.train(max_epochs=6, **{**FIT, "rng": 1})
    assert not same(weights(other), weights(straight[0]))


def test_the_global_random_state_stays(make_slide, make_model):
    adata = make_slide()
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        model = make_model(adata)
        model.train(max_epochs=2, **FIT)
        model.get_latent_representation()
        model.impute_genes(genes=list(model.genes[:2]))
        after = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        assert before[0] == after[0]
        assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))
        assert torch.equal(before[2], after[2])
        if seed == 1:
            first = weights(model)
    assert same(first, weights(model))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_stopped_training_goes_on(make_slide, make_model, straight, tmp_path, error):
    handler = signal.getsignal(signal.SIGINT)
    model = make_model(make_slide())
    before = weights(model)
    with pytest.raises(error):
        model.train(max_epochs=6, checkpoint_dir=tmp_path, callbacks=[Each(3, error)], **FIT)
    assert signal.getsignal(signal.SIGINT) is handler
    assert same(weights(model), before)
    assert not model.is_trained_
    assert model.statistics is None
    assert not model.history
    assert [p.name for p in tmp_path.iterdir()] == [_training.CHECKPOINT]
    for again in (model, make_model(make_slide())):  # the same object, and another one as in a new process
        each = Each()
        again.train(max_epochs=6, checkpoint_dir=tmp_path, callbacks=[each], **FIT)
        assert len(each.weights) == (3 if again is model else 0)  # a finished training is not repeated
        assert curves(again) == curves(straight[0])
        assert same(weights(again), weights(straight[0]))
        assert again.best_epoch_ == straight[0].best_epoch_
        np.testing.assert_array_equal(again.ledger[-1].contents, straight[0].ledger[-1].contents)


def test_a_training_that_was_stopped_early_is_not_repeated(make_slide, make_model, tmp_path):
    losses = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    model = make_model(make_slide())
    model.train(max_epochs=6, patience=2, checkpoint_dir=tmp_path, callbacks=[Fake(losses)], **FIT)
    assert model.epochs() == 4
    again, each = make_model(make_slide()), Each()
    again.train(max_epochs=6, patience=2, checkpoint_dir=tmp_path, callbacks=[each], **FIT)
    assert not each.weights
    assert curves(again) == curves(model)
    assert same(weights(again), weights(model))


@pytest.mark.parametrize("how", ["empty", "truncated", "noise", "foreign", "code"])
def test_a_damaged_checkpoint(make_slide, make_model, tmp_path, how):
    path = tmp_path / _training.CHECKPOINT
    if how in ("truncated",):
        make_model(make_slide()).train(max_epochs=1, checkpoint_dir=tmp_path, **FIT)
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "foreign":
        torch.save({"state_dict": {}}, path)
    elif how == "code":
        torch.save({"a": Each()}, path)
    else:
        path.write_bytes({"empty": b"", "noise": b"\x00\x01" * 100}[how])
    model = make_model(make_slide())
    with pytest.raises(ValueError, match=r"last\.ckpt.*(cannot be read|is no checkpoint of stimg)"):
        model.train(max_epochs=2, checkpoint_dir=tmp_path, **FIT)


@pytest.mark.slow
def test_a_checkpoint_of_another_training(make_slide, make_model, tmp_path):
    make_model(make_slide()).train(max_epochs=1, checkpoint_dir=tmp_path, **FIT)
    for options, arguments, names in (
        ({"n_latent": 16}, {}, "n_latent was 8 and is 16"),
        ({"dropout": 0.2}, {"lr": 1e-3}, "dropout was 0.1 and is 0.2; lr was 0.005 and is 0.001"),
        ({}, {"max_epochs": 2}, "max_epochs was 1 and is 2"),
        ({}, {"rng": 3}, "rng was 0 and is 3"),
        ({}, {"validation": None}, "observations was"),
    ):
        model = make_model(make_slide(), **options)
        with pytest.raises(ValueError, match=names):
            model.train(**{"max_epochs": 1, "checkpoint_dir": tmp_path, **FIT, **arguments})
    other = make_model(make_slide()[:, :-1].copy())
    with pytest.raises(ValueError, match="genes was"):
        other.train(max_epochs=1, checkpoint_dir=tmp_path, **FIT)


def test_training_again_goes_on_from_the_weights(make_slide, make_model):
    model = make_model(make_slide())
    model.train(max_epochs=2, **FIT)
    kept, seen = weights(model), model.ledger[-1]
    assert len(seen.contents)
    each = Each()
    model.train(max_epochs=3, callbacks=[each], **{**FIT, "lr": 1e-9})
    assert model.epochs() == 5
    assert model.history["train_loss"].index.tolist() == list(range(5))
    assert 2 <= model.best_epoch_ < 5
    assert all(torch.allclose(kept[k], v, atol=1e-6) for k, v in weights(model).items())
    assert all(each.modes)  # dropout works in the second training too
    np.testing.assert_array_equal(seen.contents, model.ledger[-1].contents)


def test_a_second_training_that_fails_changes_nothing(make_slide, make_model):
    model = make_model(make_slide())
    model.train(max_epochs=2, **FIT)
    kept, told = weights(model), curves(model)
    with pytest.raises(RuntimeError):
        model.train(max_epochs=3, callbacks=[Each(2)], **FIT)
    assert model.is_trained_
    assert same(weights(model), kept)
    assert curves(model) == told


def test_a_loss_that_is_no_number(make_slide, make_model, tmp_path):
    class Spoil(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 1:
                pl_module.module.beta.data.fill_(float("nan"))

    model = make_model(make_slide())
    with pytest.raises(ValueError, match="training loss is nan in epoch 1"):
        model.train(max_epochs=4, checkpoint_dir=tmp_path, callbacks=[Spoil()], **FIT)
    assert model.is_finite()
    found = torch.load(tmp_path / _training.CHECKPOINT, weights_only=True)
    assert all(torch.isfinite(v).all() for v in found["state_dict"].values())


def test_an_untrained_model_says_so(make_slide, make_model):
    model = make_model(make_slide())
    with pytest.raises(RuntimeError, match="not trained"):
        model.get_latent_representation()


def test_reduced_precision_trains(make_slide, make_model):
    model = make_model(make_slide())
    model.train(max_epochs=2, precision="bf16-mixed", accelerator="cpu", **FIT)
    assert model.is_finite()
    assert all(v.dtype == torch.float32 for v in weights(model).values() if v.is_floating_point())
    assert np.isfinite(model.get_latent_representation()).all()


def test_the_learning_rate_ends_where_it_should(make_slide, make_model):
    """Steps are counted with accumulated gradients: the last rate is near a hundredth of the first."""

    class Rates(Callback):
        def __init__(self):
            self.seen = []

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.seen.append(optimizer.param_groups[0]["lr"])

    for accumulate in (1, 2):
        rates = Rates()
        make_model(make_slide()).train(
            max_epochs=10, validation=None, batch_size=2, lr=1.0e-3, accumulate_grad_batches=accumulate, callbacks=[rates]
        )
        assert max(rates.seen) == pytest.approx(1e-3, rel=0.02)
        assert rates.seen[-1] < 3e-5
        assert len(rates.seen) == 10 * (4 // accumulate)


def test_a_logger_of_the_user_is_fed_and_the_history_stays(make_slide, make_model, straight, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    model = make_model(make_slide())
    model.train(max_epochs=6, logger=CSVLogger(tmp_path), **FIT)
    assert curves(model) == curves(straight[0])
    assert "validation_loss" in next(tmp_path.rglob("metrics.csv")).read_text()


@pytest.mark.slow
def test_a_compiled_network_trains_and_resumes_plainly(make_slide, make_model, straight, tmp_path):
    model = make_model(make_slide())
    with pytest.raises(RuntimeError):
        model.train(max_epochs=6, compile=True, checkpoint_dir=tmp_path, callbacks=[Each(2)], **FIT)
    model.train(max_epochs=6, checkpoint_dir=tmp_path, **FIT)
    assert weights(model).keys() == weights(straight[0]).keys()
    a, b = (m.history["train_loss"]["train_loss"] for m in (model, straight[0]))
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a.iloc[0], b.iloc[0], rtol=0.5)
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(STMAE.load(tmp_path / "m", make_slide()).get_latent_representation(), model.get_latent_representation())
