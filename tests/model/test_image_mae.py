"""ImageMAE end to end on small pictures: trains, embeds, comes back from disk and from a checkpoint, and knows what it has seen."""

import json
import random

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

import stimg
from stimg.data import RandomTileDataset
from stimg.data.tiles import TileDataset
from stimg.model import ImageMAE, ImageMAEOptions, _mae_training

SMALL = {"size_px": 16, "patch": 4, "n_latent": 16, "n_layers": 1, "n_heads": 2, "n_decoder": 8}
FIT = {"max_epochs": 2, "tiles_per_epoch": 96, "batch_size": 32, "validation_fraction": 0.25, "rng": 0}


def picture(seed):
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(60, 230, (45, 45, 3)), np.ones((20, 20, 1)))
    return np.clip(coarse + rng.integers(-20, 20, coarse.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    for i, name in enumerate("ABC"):
        Image.fromarray(picture(i)).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in "ABC"}


def make(paths, names="AB", *, counts=True, tile_um=16.0, mpp=1.0, fields=(1.0, 2.0)):
    """Arrays of 10 x 10 spots, 80 px (40 µm) apart, one donor each."""
    row, col = np.divmod(np.arange(100), 10)
    n = len(names)
    library = np.repeat(list(names), 100)
    index = [f"{lib}{i}" for lib, i in zip(library, np.tile(np.arange(100), n), strict=True)]
    obs = pd.DataFrame({"library_id": pd.Categorical(library), "donor": pd.Categorical([f"D{k}" for k in library])}, index=index)
    rng = np.random.default_rng(0)
    x = sp.csr_matrix(rng.poisson(1.0, (100 * n, 4)).astype(np.float32)) if counts else sp.csr_matrix((100 * n, 0), dtype=np.float32)
    adata = ad.AnnData(x, obs=obs)
    adata.obsm["spatial"] = np.tile(np.stack([col, row], axis=1) * 80.0 + 90.0, (n, 1))
    adata.uns["spatial"] = {
        k: {"images": {}, "scalefactors": {"microns_per_pixel": 0.5}, "metadata": {"source_image_path": str(paths[k])}} for k in names
    }
    stimg.pp.plan_tiles(adata, tile_um=tile_um, mpp=mpp, fields=fields)
    return adata


def model_of(adata, **changes):
    ImageMAE.setup_anndata(adata)
    return ImageMAE(adata, **{**SMALL, **changes})


def trained_on(adata, callbacks=(), changes=(), **fit):
    model = model_of(adata, **dict(changes))
    model.train(**{**FIT, **fit}, callbacks=list(callbacks), enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def adata(paths):
    return make(paths)


@pytest.fixture(scope="module")
def trained(adata):
    """To be read, not to be changed."""
    return trained_on(adata)


def weights(model):
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Fails(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("stopped here")


class TestTraining:
    def test_history_and_indices(self, trained, adata):
        assert set(trained.history) == {"train_loss", "validation_loss"}
        assert trained.epochs() == 2
        assert trained.is_finite()
        losses = trained.history["validation_loss"]["validation_loss"]
        assert trained.best_epoch_ == int(losses.argmin())
        train, val = trained.train_indices_, trained.validation_indices_
        assert not np.intersect1d(train, val).size
        assert set(adata.obs["library_id"].iloc[val]) == {"A", "B"}
        assert 0.2 < len(val) / adata.n_obs < 0.3

    def test_colours_are_standardised_by_training_tiles(self, adata):
        model = trained_on(adata, max_epochs=1, validation=None, lr=1e-12)
        tiles = RandomTileDataset(adata, size_px=16, n_tiles=_mae_training.SAMPLE, augment=True)
        values = tiles.__getitems__(range(_mae_training.SAMPLE))["image"].numpy().reshape(-1, 3)
        density = -np.log10((values + 1.0) / 256)
        np.testing.assert_allclose(model.module.mean.numpy(), density.mean(0), rtol=1e-4)
        np.testing.assert_allclose(model.module.scale.numpy(), density.std(0), rtol=1e-3)

    def test_it_gets_better(self, adata):
        model = trained_on(adata, max_epochs=8, tiles_per_epoch=256, lr=5e-3)
        losses = model.history["validation_loss"]["validation_loss"].to_numpy()
        assert losses[-1] < losses[0] - 0.02

    @pytest.mark.parametrize(
        ("validation", "held"), [(None, set()), ("donors", {"D"}), (["B"], {"B"}), (["DA"], {"A"}), ("libraries", {"L"})]
    )
    def test_what_stops_it(self, adata, validation, held):
        model = trained_on(adata, max_epochs=1, tiles_per_epoch=32, validation=validation)
        found = set(adata.obs["library_id"].iloc[model.validation_indices_])
        assert len(found) == len(held)
        if held <= {"A", "B"}:
            assert found == held
        assert set(model.ledger[-1].libraries) == {"A", "B"}

    def test_pixels_of_the_held_out_block_are_not_learned_from(self, paths, adata, trained, tmp_path):
        """Other pixels around the validation observations: the losses of training stay as they are to the last bit."""
        mpp_px, changed = 2, {}
        for name in "AB":
            pixels = picture("ABC".index(name))
            rows = trained.validation_indices_[adata.obs["library_id"].iloc[trained.validation_indices_] == name]
            for x, y in adata.obsm["spatial"][rows].astype(int):
                pixels[max(y - 20 * mpp_px, 0) : y + 20 * mpp_px, max(x - 20 * mpp_px, 0) : x + 20 * mpp_px] = 7
            Image.fromarray(pixels).save(tmp_path / f"{name}.png")
            changed[name] = tmp_path / f"{name}.png"
        other = trained_on(make(changed))
        wanted, found = (m.history["train_loss"]["train_loss"].tolist() for m in (trained, other))
        assert found == wanted
        assert (
            other.history["validation_loss"]["validation_loss"].tolist() != trained.history["validation_loss"]["validation_loss"].tolist()
        )

    def test_the_same_rng_gives_the_same_weights_whatever_the_workers(self, adata, trained):
        assert same(weights(trained_on(adata, num_workers=2)), weights(trained))
        assert not same(weights(trained_on(adata, rng=1)), weights(trained))

    def test_the_global_random_state_stays(self, adata):
        before = torch.get_rng_state(), random.getstate()
        trained_on(adata, max_epochs=1, tiles_per_epoch=32)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == random.getstate()

    @pytest.mark.slow
    def test_a_stopped_training_goes_on(self, adata, trained, tmp_path):
        model = model_of(adata)
        before = weights(model)
        fit = {**FIT, "checkpoint_dir": tmp_path, "enable_progress_bar": False}
        with pytest.raises(RuntimeError, match="stopped here"):
            model.train(**fit, callbacks=[Fails(1)])
        assert same(weights(model), before)
        assert not model.is_trained_
        model.train(**fit)
        assert same(weights(model), weights(trained))
        assert model.history["train_loss"].equals(trained.history["train_loss"])
        with pytest.raises(ValueError, match=r"belongs to another training: .*lr was 0.001 and is 0.01"):
            model_of(adata).train(**fit, lr=0.01)
        with pytest.raises(ValueError, match=r"belongs to another training: .*patch was 4 and is 8"):
            model_of(adata, patch=8).train(**fit)

    def test_the_default_length(self, adata, monkeypatch):
        monkeypatch.setattr(_mae_training, "STEPS", 7)
        model = trained_on(adata, max_epochs=None, tiles_per_epoch=64)
        assert model.epochs() == 4  # two steps an epoch

    def test_lazily_read_slides_train_too(self, adata):
        assert trained_on(adata, max_epochs=1, tiles_per_epoch=32, in_memory=False).is_finite()

    def test_a_loss_that_is_no_number(self, adata):
        with pytest.raises(ValueError, match=r"training loss is (nan|inf).*Lower `lr`"):
            trained_on(adata, lr=1e30, gradient_clip_val=None, validation=None)


class TestEmbedding:
    def test_it_is_that_of_the_planned_tiles(self, adata, trained):
        found = trained.get_latent_representation(batch_size=7)
        tiles = TileDataset(adata)
        assert found.shape == (200, 64)
        assert found.dtype == np.float32
        for i in (0, 57, 199):
            with torch.inference_mode():
                wanted = trained.module.embed(tiles[i]["image"])
            np.testing.assert_allclose(found[i], wanted.flatten().numpy(), atol=1e-5)

    def test_the_verb_gives_the_same_and_remembers(self, adata, trained, tmp_path):
        other = adata.copy()
        stimg.tl.embed_image(other, encoder=trained)
        np.testing.assert_allclose(other.obsm["X_image_mae"], trained.get_latent_representation(), atol=1e-5)
        assert [seen.who for seen in stimg.bench.recall(other, only=["X_image_mae"])] == ["ImageMAE"]
        trained.save(tmp_path / "m")
        stimg.tl.embed_image(other, encoder="image_mae", path=tmp_path / "m", key_added="X_again")
        np.testing.assert_array_equal(other.obsm["X_again"], other.obsm["X_image_mae"])

    def test_larger_tiles_and_slides_without_counts(self, paths, trained):
        other = make(paths, "C", counts=False, tile_um=32.0, fields=(1.0,))
        assert trained.get_latent_representation(other).shape == (100, 32)

    def test_the_card(self, trained):
        encoder = trained.get_image_encoder()
        card = encoder.card
        assert (card.name, card.n_features, card.size_px, card.multiple_of, card.mpp, card.other_mpp) == (
            "image_mae",
            32,
            16,
            4,
            1.0,
            (2.0,),
        )
        assert encoder.ledger == list(trained.ledger)

    def test_reconstruction(self, trained):
        found = trained.get_reconstruction(rows=[3, 150], rng=1)
        assert all(part.shape == (2, 16, 16, 3) and part.dtype == np.uint8 for part in found)
        grey = (found.masked == 128).all(axis=-1)
        assert grey.mean() == pytest.approx(0.75, abs=0.02)
        visible = (found.masked == found.tiles).all(axis=-1)
        assert (found.predicted[visible] == found.tiles[visible]).all()
        assert (found.predicted != found.tiles).any()
        np.testing.assert_array_equal(found.tiles[1], TileDataset(trained.adata)[150]["image"][0].numpy())
        again = trained.get_reconstruction(rows=[3, 150], rng=1)
        assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


class TestLedger:
    def test_what_was_seen(self, adata, trained, paths):
        own = trained.ledger[-1]
        assert own.kind == "encoder"
        assert own.libraries == ("A", "B")
        assert own.donors == ("DA", "DB")
        assert own.contents.size == 0  # no count was read
        read = np.concatenate([trained.train_indices_, trained.validation_indices_])
        assert len(own.ids) == len(read)
        assert set(own.images) == {stimg.image.image_hash(picture(i)) for i in range(2)}
        assert trained.identity(adata)["n_obs_seen_in_training"] == len(read)
        assert trained.identity(make(paths, "C"))["n_obs_seen_in_training"] == 0

    def test_leaks_are_found_by_name_image_and_donor(self, adata, trained, paths):
        with pytest.raises(stimg.bench.LeakageError, match="the encoder 'ImageMAE' has seen"):
            stimg.bench.check_leakage(adata, trained)
        renamed = make(paths, "A")
        renamed.obs_names = [f"x{i}" for i in range(100)]
        renamed.obs["library_id"], renamed.obs["donor"] = pd.Categorical(["Z"] * 100), pd.Categorical(["Y"] * 100)
        assert stimg.bench.check_leakage(renamed, trained) == []
        with pytest.raises(stimg.bench.LeakageError, match="1 of 1 test images"):
            stimg.bench.check_leakage(renamed, trained, images=[int(stimg.image.image_hash(picture(0)))])
        assert stimg.bench.check_leakage(make(paths, "C"), trained) == []

    def test_a_second_training_adds_to_it(self, adata, paths, tmp_path):
        model = trained_on(adata, max_epochs=1, tiles_per_epoch=32, validation=None)
        model.save(tmp_path / "m")
        again = ImageMAE.load(tmp_path / "m", make(paths, "C"))
        again.train(max_epochs=1, tiles_per_epoch=32, validation=None, enable_progress_bar=False)
        assert again.ledger[-1].libraries == ("A", "B", "C")
        assert again.epochs() == 2
        assert not same(weights(again), weights(model))
        assert torch.equal(again.module.mean, model.module.mean)  # the scale of the input is part of the encoder


class TestFiles:
    def test_what_is_saved_comes_back(self, adata, trained, tmp_path):
        trained.save(tmp_path / "m")
        for back in (ImageMAE.load(tmp_path / "m"), ImageMAE.load(tmp_path / "m", adata.copy())):
            np.testing.assert_array_equal(back.get_latent_representation(adata), trained.get_latent_representation())
            assert back.options == trained.options
            assert back.spec == trained.spec
            assert back.history["train_loss"].equals(trained.history["train_loss"])
            assert back.ledger[-1].to_dict().keys() == trained.ledger[-1].to_dict().keys()
            assert np.array_equal(back.ledger[-1].images, trained.ledger[-1].images)
            assert back.identity(adata) == trained.identity(adata)
        with pytest.raises(ValueError, match="no adata to train on"):
            ImageMAE.load(tmp_path / "m").train()
        with pytest.raises(ValueError, match="loaded without data"):
            ImageMAE.load(tmp_path / "m").get_latent_representation()
        record = json.loads((tmp_path / "m" / "model.json").read_text())
        assert record["tiles"]["fields"] == [1.0, 2.0]
        with pytest.raises(FileExistsError, match="overwrite=True"):
            trained.save(tmp_path / "m")

    def test_another_class_is_refused(self, trained, tmp_path):
        trained.save(tmp_path / "m")
        with pytest.raises(ValueError, match="holds a ImageMAE; wanted a STMAE"):
            stimg.model.STMAE.load(tmp_path / "m")


class TestBadInput:
    def test_not_trained(self, adata):
        model = model_of(adata)
        for call in (
            model.get_latent_representation,
            model.get_reconstruction,
            model.get_image_encoder,
            lambda: stimg.tl.embed_image(adata.copy(), encoder=model),
        ):
            with pytest.raises(RuntimeError, match=r"not trained. Run `model.train\(\)` first"):
                call()

    def test_other_scales_and_sizes(self, paths, trained):
        with pytest.raises(
            ValueError, match=r"planned at 1.5 µm per pixel; the model was trained at 1, 2. Run `stimg.pp.plan_tiles\(..., mpp=1\)`"
        ):
            trained.get_latent_representation(make(paths, "C", mpp=1.5, tile_um=24.0))
        with pytest.raises(ValueError, match=r"planned with 18 px; the model cuts tiles into patches of 4 px. Run .*tile_um=16, mpp=1"):
            trained.get_latent_representation(make(paths, "C", tile_um=18.0))
        with pytest.raises(ValueError, match=r"planned at 1.5 µm per pixel; Image MAE of stimg expects 1"):
            stimg.tl.embed_image(make(paths, "C", mpp=1.5, tile_um=24.0), encoder=trained)

    def test_a_plan_that_was_changed_after_the_model_was_made(self, adata):
        other = adata.copy()
        model = model_of(other)
        stimg.pp.plan_tiles(other, tile_um=32.0, mpp=2.0)
        with pytest.raises(ValueError, match=r"planned at 2 µm per pixel.*made for 1"):
            model.train(max_epochs=1)

    def test_no_plan_and_views(self, adata):
        bare = adata.copy()
        del bare.uns["stimg"]["tiles"]
        with pytest.raises(KeyError, match="plan_tiles"):
            ImageMAE.setup_anndata(bare)
        with pytest.raises(ValueError, match="view of another object"):
            ImageMAE.setup_anndata(adata[:10])
        with pytest.raises(KeyError, match="slide"):
            ImageMAE.setup_anndata(adata.copy(), library_key="slide")
        with pytest.raises(ValueError, match="no adata with planned tiles"):
            ImageMAE()

    @pytest.mark.parametrize(
        ("fit", "message"),
        [
            ({"lr": 0.0}, "lr=0.0 is not above zero"),
            ({"weight_decay": -1.0}, "weight_decay=-1.0"),
            ({"batch_size": 0}, "batch_size=0"),
            ({"max_epochs": 0}, "max_epochs=0"),
            ({"tiles_per_epoch": 0}, "n_tiles"),
            ({"validation": "spots"}, "validation='spots' is not known"),
            ({"validation": ["A", "B"]}, "holds out every library"),
            ({"validation_fraction": 0.9}, r"validation_fraction=0.9 is outside \(0, 0.5\]"),
            ({"reach_um": 0.0}, "reach_um=0.0"),
        ],
    )
    def test_arguments_of_the_training(self, adata, fit, message):
        with pytest.raises(ValueError, match=message):
            trained_on(adata, **fit)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"size_px": 60, "patch": 8}, "size_px=60 is not a multiple of patch=8; take size_px=56 or size_px=64"),
            ({"n_latent": 20, "n_heads": 8}, "n_latent=20 is not a multiple of n_heads=8"),
            ({"n_decoder": 6, "n_heads": 2}, "n_decoder=6 is not a multiple of 4"),
            ({"mask_ratio": 0.0}, "mask_ratio=0.0 hides 0 of 64"),
            ({"mask_ratio": 1.0}, "mask_ratio=1.0 hides 64 of 64"),
            ({"dropout": 1.0}, "dropout=1.0"),
            ({"space": "lab"}, "space='lab' is not known"),
            ({"pooling": "max"}, "pooling='max' is not known"),
            ({"turns": 3}, "turns=3 is not known"),
            ({"n_layers": 0}, "n_layers"),
            ({"n_hidden": 0}, "n_hidden"),
        ],
    )
    def test_options(self, changes, message):
        with pytest.raises(ValueError, match=message):
            ImageMAEOptions(**changes)

    def test_unknown_options(self):
        with pytest.raises(TypeError, match=r"ImageMAE has no option \['width'\]; it has \['size_px'"):
            ImageMAEOptions().changed(width=3)


def test_options_come_back():
    options = ImageMAEOptions(n_latent=64, space="rgb")
    assert ImageMAEOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options


def test_a_model_is_set_up_on_the_table_of_a_spatialdata():
    sdata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=10, image=True, as_sdata=True, rng=0)
    key = next(iter(sdata.images))
    stimg.pp.plan_tiles(sdata, tile_um=16, mpp=1.0, image_key=key)
    ImageMAE.setup_spatialdata(sdata)
    model = ImageMAE(sdata.tables["table"], **SMALL)
    assert model.adata is sdata.tables["table"]
    library = str(model.adata.obs["library_id"].iloc[0])
    slides = {library: stimg.data.slide_of(sdata, library, image_key=key)[0]}
    model.train(max_epochs=1, tiles_per_epoch=32, validation=None, slides=slides, enable_progress_bar=False)
    found = model.get_latent_representation(slides=slides)
    assert found.shape == (64, 32)
    stimg.tl.embed_image(sdata, encoder=model, image=slides)
    np.testing.assert_allclose(sdata.tables["table"].obsm["X_image_mae"], found, atol=1e-5)
