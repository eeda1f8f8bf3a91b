"""Bad options and arguments, data that do not fit a model, and trainings that end early."""

import json

import numpy as np
import pytest
from _kinds import Kinds, model_of, rastered, slide, train, trained

import stimg
from stimg import pp
from stimg.image import CropSpec

kind = Kinds()


# ---- validation


@kind(ValueError, r"names libraries that are not there: \['D9S9'\]", r"the libraries are \['D1S1'\]")
def unknown_library_for_validation(here):
    model = model_of(rastered())
    return model.adata, lambda: train(model, validation=["D9S9"])


@kind(ValueError, r"validation=\[\] names no library", r"wanted some of \['D1S1'\], 'blocks', or None")
def no_library_for_validation(here):
    model = model_of(rastered())
    return model.adata, lambda: train(model, validation=[])


@kind(ValueError, r"validation=\['D1S1'\] holds out every library", r"Leave one out of the list, or pass `validation='blocks'`")
def every_library_held_out(here):
    model = model_of(rastered())
    return model.adata, lambda: train(model, validation=["D1S1"])


@kind(
    ValueError,
    r"library 'D1S1' has 20 observations, too few to hold out one of 10 blocks",
    r"Pass `validation=\[...\]` .*`validation=None`",
)
def library_too_small_for_blocks(here):
    model = model_of(rastered("st", (4, 5)))
    return model.adata, lambda: train(model, validation="blocks")


# ---- crops, masks, options


@kind(
    ValueError,
    r"no window of 20 x 20 with 400 occupied lattice points; the best one holds 64",
    r"Lower `min_occupied`, take a smaller window",
)
def crop_larger_than_the_section(here):
    model = model_of(rastered(), crop_size=(20, 20), min_occupied=400)
    return model.adata, lambda: train(model)


@kind(ValueError, r"min_occupied=17 is outside 1 .. 16", r"Pass one of these, or None for a tenth")
def min_occupied_out_of_range(here):
    return None, lambda: CropSpec((4, 4), min_occupied=17)


@kind(ValueError, r"mask ratios \(0.0,\) are not all between 0 and 1", r"such as \(0.25, 0.5, 0.75\)")
def mask_ratio_of_zero(here):
    adata = rastered()
    stimg.model.STMAE.setup_anndata(adata)
    return adata, lambda: stimg.model.STMAE(adata, mask_ratios=(0.0,))


@kind(ValueError, r"mask ratios \(0.5, 1.0\) are not all between 0 and 1", r"wanted fractions of the channels")
def mask_ratio_of_one(here):
    return None, lambda: stimg.nn.MaskSpec((0.5, 1.0))


@kind(ValueError, r"n_latent=10 is not a multiple of n_heads=4", r"Take n_latent=8 or n_latent=12, or another n_heads")
def latent_not_a_multiple_of_heads(here):
    adata = rastered()
    stimg.model.STMAE.setup_anndata(adata)
    return adata, lambda: stimg.model.STMAE(adata, n_latent=10, n_heads=4)


@kind(TypeError, r"crop_size=16 is one number", r"wanted several, such as \(16, 16\)")
def one_number_for_a_window(here):
    return None, lambda: stimg.model.STMAEOptions(crop_size=16)


@kind(ValueError, r"n_layers=-1 is not usable", r"wanted a whole number of at least 1")
def layers_below_zero(here):
    return None, lambda: stimg.model.STMAEOptions(n_layers=-1)


@kind(ValueError, r"token='mlp' is not linear, .* but centre=True", r"Pass `centre=False`, or token='linear'")
def centred_mlp_tokens(here):
    return None, lambda: stimg.model.STMAEOptions(token="mlp")


@kind(ValueError, r"batch_size=0 is not usable", r"wanted a whole number of at least 1")
def batch_of_nothing(here):
    adata = rastered()
    return adata, lambda: stimg.tl.embed(adata, model=trained(), batch_size=0)


@kind(TypeError, r"no option \['n_latents'\]", r"it has \[.*'n_latent'")
def unknown_option(here):
    adata = rastered()
    stimg.model.STMAE.setup_anndata(adata)
    return adata, lambda: stimg.model.STMAE(adata, n_latents=8)


@kind(TypeError, r"rng is a legacy numpy RandomState", r"pass an integer seed or numpy.random.default_rng\(seed\)")
def legacy_random_state(here):
    adata = rastered()
    legacy = np.random.RandomState(0)
    return adata, lambda: pp.select_genes(adata, rule="uniform", n=3, rng=legacy)


@kind(TypeError, r"rng='seven' is a str", r"wanted an integer seed, a numpy Generator")
def text_for_seed(here):
    adata = rastered()
    return adata, lambda: pp.select_genes(adata, rule="uniform", n=3, rng="seven")


@kind(ValueError, r"technology='merfish' is not known", r"wanted one of \['st', 'visium'")
def unknown_technology(here):
    return None, lambda: stimg.datasets.simulate(technology="merfish")


@kind(TypeError, r"data is a ndarray", r"wanted an AnnData or a SpatialData")
def an_array_for_a_table(here):
    return None, lambda: pp.rasterize(np.ones((3, 2)))


# ---- models


@kind(ValueError, r"library 'D1S1' lies on a square lattice with a pitch of 200 µm; the model knows .*'hex'.*100", r"`stimg.pp.resample`")
def raster_of_another_lattice(here):
    adata = rastered("st")
    return adata, lambda: stimg.tl.embed(adata, model=trained())


@kind(ValueError, r"hex lattice with a pitch of 120 µm; the model knows .*100", r"check its scale")
def raster_of_another_pitch(here):
    adata = slide()
    adata.uns["spatial"]["D1S1"]["scalefactors"]["microns_per_pixel"] = 0.6
    pp.rasterize(adata, pitch_um=120.0)
    return adata, lambda: stimg.tl.embed(adata, model=trained())


@kind(RuntimeError, r"The model is not trained", r"Run `model.train\(\)` first")
def untrained_model(here):
    adata = rastered()
    model = model_of(adata.copy())
    return adata, lambda: stimg.tl.embed(adata, model=model)


@kind(RuntimeError, r"The model is not trained", r"Run `model.train\(\)` first")
def untrained_model_saved(here):
    model = model_of(rastered())
    return here.folder, lambda: model.save(here.folder / "model")


@kind(ValueError, r"training loss is (nan|inf) in epoch \d+ \(learning rate 1e\+30\)", r"Lower `lr`")
def loss_that_is_no_number(here):
    model = model_of(rastered(), init="random")
    return model.adata, lambda: train(model, lr=1e30, max_epochs=5)


@kind(FileNotFoundError, r"model.json is missing \(found no such folder\)", r"Pass the folder that `save` wrote")
def no_saved_model(here):
    return here.folder, lambda: stimg.model.STMAE.load(here.folder / "model")


@kind(ValueError, r"model.safetensors is damaged", r"Save the model again")
def truncated_weights(here):
    trained().save(here.folder / "model")
    path = here.folder / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return here.folder, lambda: stimg.model.STMAE.load(here.folder / "model")


@kind(ValueError, r"model.json is damaged", r"Save the model again")
def truncated_record(here):
    trained().save(here.folder / "model")
    path = here.folder / "model" / "model.json"
    path.write_text(path.read_text()[:-10])
    return here.folder, lambda: stimg.model.STMAE.load(here.folder / "model")


@kind(ValueError, r"list of genes does not match its hash", r"Save the model again")
def renamed_gene_in_record(here):
    trained().save(here.folder / "model")
    path = here.folder / "model" / "model.json"
    record = json.loads(path.read_text())
    record["genes"][0] = "other"
    path.write_text(json.dumps(record))
    return here.folder, lambda: stimg.model.STMAE.load(here.folder / "model")


@kind(ValueError, r"has format 99; this version of stimg reads 2", r"Install the version that wrote it")
def model_of_another_version(here):
    trained().save(here.folder / "model")
    path = here.folder / "model" / "model.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 99'))
    return here.folder, lambda: stimg.model.STMAE.load(here.folder / "model")


@kind(FileExistsError, r"model exists already", r"Pass `overwrite=True`")
def saving_over_a_model(here):
    trained().save(here.folder / "model")
    return here.folder, lambda: trained().save(here.folder / "model")


@kind(ValueError, r"the checkpoint .*last.ckpt cannot be read", r"Delete it to start again|pass another `checkpoint_dir`")
def truncated_checkpoint(here):
    train(model_of(rastered()), checkpoint_dir=here.folder)
    path = here.folder / "last.ckpt"
    path.write_bytes(path.read_bytes()[:500])
    return here.folder, lambda: train(model_of(rastered()), checkpoint_dir=here.folder, max_epochs=2)


@pytest.mark.parametrize("name", list(kind))
def test_bad_input(name, tmp_path, monkeypatch):
    kind[name].check(tmp_path, monkeypatch)


def test_at_least_so_many_kinds():
    assert len(kind) >= 30


class Killed(BaseException):
    """What a batch system sends."""


def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path):
    from lightning.pytorch.callbacks import Callback

    class Kill(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise Killed

    whole = train(model_of(rastered()), max_epochs=4)
    with pytest.raises(Killed):
        train(model_of(rastered()), max_epochs=4, checkpoint_dir=tmp_path, callbacks=[Kill()])
    resumed = train(model_of(rastered()), max_epochs=4, checkpoint_dir=tmp_path)
    assert resumed.epochs() == whole.epochs() == 4
    for name, value in whole.module.state_dict().items():
        assert (resumed.module.state_dict()[name] == value).all(), name
