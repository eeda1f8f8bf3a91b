"""An alignment that reads tiles: frozen it is the alignment of features made before; tuned, the encoder learns and comes back."""

import sys
from dataclasses import replace
from types import ModuleType

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from torch import nn

import stimg
from stimg.model import ImageGeneCLIP, ImageGeneCLIPOptions
from stimg.nn.image import ImageEncoder

FIT = {"max_epochs": 8, "batch_size": 32, "validation": ["B"], "rng": 0, "lr": 5e-3, "enable_progress_bar": False}


class Small(nn.Module):
    """A convolution, a linear layer, and the mean over the tile."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.stem, self.linear = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 6)

    def forward(self, x):
        return self.linear(torch.relu(self.stem(x)).mean(dim=(2, 3)))


def encoder(seed=0):
    card = replace(stimg.zoo.get("uni"), name="small", title="Small", n_features=6, size_px=16, mpp=None, multiple_of=4)
    return ImageEncoder(card, Small(seed), source="a test").eval()


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Two sections of 8 x 8 spots in files; the counts follow the colour of the tile."""
    from PIL import Image

    folder, rng, parts = tmp_path_factory.mktemp("slides"), np.random.default_rng(0), []
    at = np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(-1, 2)
    for name in "AB":
        colours = rng.integers(40, 220, (8, 8, 3))
        picture = np.kron(colours, np.ones((40, 40, 1))) + rng.integers(-15, 15, (320, 320, 3))
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f"{name}.png")
        x, y = at.T
        rate = np.exp(3 * np.tile(colours[y, x] / 255, 4))
        obs = pd.DataFrame({"library_id": name, "donor": f"D{name}"}, index=[f"{name}{i}" for i in range(64)])
        part = ad.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs, obsm={"spatial": at * 40.0 + 20.0})
        parts.append(part)
    adata = ad.concat(parts)
    adata.var_names = [f"g{i}" for i in range(12)]
    adata.obs = adata.obs.astype("category")
    adata.uns["spatial"] = {
        k: {"images": {}, "scalefactors": {"microns_per_pixel": 1.0}, "metadata": {"source_image_path": str(folder / f"{k}.png")}}
        for k in "AB"
    }
    stimg.pp.plan_tiles(adata, tile_um=16.0, mpp=1.0, fields=(1.0, 2.0))
    return adata


def aligned(slides, *, image="tiles", setup=None, **options):
    adata = slides.copy()
    ImageGeneCLIP.setup_anndata(adata, image=image, **(setup or {}))
    given = {"encoder": encoder()} if image == "tiles" else {}
    return ImageGeneCLIP(adata, **{"n_dim": 4, "image_components": 6, "gene_components": 4, **given, **options})


@pytest.fixture
def peft(monkeypatch):
    """A stand-in for peft: every named linear layer gets an addition that starts at zero."""

    class Added(nn.Module):
        def __init__(self, base, rank, alpha):
            super().__init__()
            self.base_layer, self.scale = base, alpha / rank
            self.lora_A, self.lora_B = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
            nn.init.zeros_(self.lora_B.weight)

        def forward(self, x):
            return self.base_layer(x) + self.scale * self.lora_B(self.lora_A(x))

    def inject(config, network):
        for name in config["target_modules"]:
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, Added(network.get_submodule(name), config["r"], config["lora_alpha"]))

    module = ModuleType("peft")
    module.LoraConfig, module.inject_adapter_in_model = (lambda **options: options), inject
    monkeypatch.setitem(sys.modules, "peft", module)


@pytest.mark.parametrize("options", [{}, {"batch": "centre"}])
def test_frozen_tiles_are_features_made_before(slides, options):
    table = slides.copy()
    stimg.tl.embed_image(table, encoder=encoder())
    before = aligned(table, image="X_small", **options)
    tiles = aligned(slides, **options)
    assert tiles.options.encoder == "small"
    for model in (before, tiles):
        model.train(**FIT)
    a, b = before.module.state_dict(), tiles.module.state_dict()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    np.testing.assert_allclose(tiles.get_image_embedding(slides), before.get_image_embedding(table), atol=1e-3)
    np.testing.assert_array_equal(tiles.get_gene_embedding(slides) > 0, before.get_gene_embedding(table) > 0)
    for name, value in encoder().state_dict().items():
        torch.testing.assert_close(b[f"encoder.{name}"], value)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_tuned_encoder_learns_and_comes_back(slides, tmp_path, peft, tuning):
    model = aligned(slides, tuning=tuning, augment=True, encoder_rate=1.0, lora_rank=2)
    model.train(**FIT)
    state, fresh = model.module.encoder.state_dict(), encoder().state_dict()
    if tuning == "full":
        assert all((state[name] - value).abs().max() > 1e-5 for name, value in fresh.items())
    else:
        torch.testing.assert_close(state["network.linear.base_layer.weight"], fresh["network.linear.weight"])
        torch.testing.assert_close(state["network.stem.weight"], fresh["network.stem.weight"])
        assert state["network.linear.lora_B.weight"].abs().max() > 1e-4
    loss = model.history["train_loss"].to_numpy().ravel()
    assert loss[-1] < loss[0]
    wanted = model.get_image_embedding(slides)
    model.save(tmp_path / "m")
    again = ImageGeneCLIP.load(tmp_path / "m", encoder=encoder())
    np.testing.assert_allclose(again.get_image_embedding(slides), wanted, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"the weights of 'small' have the hash \w+; the model was trained with \w+. Pass the same weights"
    ):
        ImageGeneCLIP.load(tmp_path / "m", encoder=encoder(seed=1))


def test_the_exported_image_side_reads_tiles(slides, tmp_path):
    model = aligned(slides, expression_weight=1.0)
    model.train(**FIT)
    model.export(tmp_path / "image.pt2")
    tiles = torch.stack([stimg.data.TileDataset(slides)[i]["image"] for i in range(5)])
    embedding, expression = torch.export.load(tmp_path / "image.pt2").module()(tiles)
    np.testing.assert_allclose(embedding.detach(), model.get_image_embedding(slides[:5].copy()), atol=1e-5)
    np.testing.assert_allclose(expression.detach(), model.predict_expression(slides[:5].copy(), head="trained"), atol=1e-4)


def test_what_does_not_go(slides):
    adata = slides.copy()
    with pytest.raises(ValueError, match=r"tiles are read alone. Write their features with `stimg.tl.embed_image`"):
        ImageGeneCLIP.setup_anndata(adata, image=("tiles", "spatial"))
    with pytest.raises(KeyError, match="holds no plan of tiles"):
        ImageGeneCLIP.setup_anndata(ad.AnnData(slides.X, obs=slides.obs), image="tiles")
    with pytest.raises(TypeError, match=r"encoder is a Small; wanted a stimg.nn.image.ImageEncoder, or the name of a card"):
        aligned(slides, encoder=Small())
    with pytest.raises(ValueError, match=r"the encoder given is 'small', the options name 'uni'. Pass `options="):
        aligned(slides, options=ImageGeneCLIPOptions(encoder="uni"))
    with pytest.raises(ValueError, match="no image encoder named 'efficientnet'"):
        aligned(slides, encoder="efficientnet")
    with pytest.raises(ValueError, match=r"batch='centre' needs features that do not change. Pass tuning='frozen'"):
        aligned(slides, tuning="full", batch="centre")
    table = slides.copy()
    table.obsm["X_some"] = np.ones((table.n_obs, 2))
    with pytest.raises(ValueError, match="encoder= goes with setup_anndata"):
        aligned(table, image="X_some", encoder=encoder())
    other = slides.copy()
    stimg.pp.plan_tiles(other, tile_um=18.0, mpp=1.0)
    with pytest.raises(ValueError, match=r"planned with 18 px; Small takes 16. Plan them with `tile_um=16 \* mpp`"):
        aligned(other)
    model = aligned(slides)
    with pytest.raises(RuntimeError, match="The model is not trained"):
        model.get_image_embedding(slides)
    model.train(**{**FIT, "max_epochs": 1})
    stimg.pp.plan_tiles(other, tile_um=16.0, mpp=1.0)
    with pytest.raises(ValueError, match=r"the tiles of adata have 1 fields; the model was trained with 2"):
        model.get_image_embedding(other)
    stimg.pp.plan_tiles(other, tile_um=32.0, mpp=2.0, fields=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"is not the embedding that the model was trained with: .*mpp was 1.0 and is 2.0"):
        model.get_image_embedding(other)


def test_tiles_find_their_counts_in_a_section_that_was_held_out(slides):
    table = slides.copy()
    model = aligned(slides)
    model.train(**{**FIT, "max_epochs": 60, "lr": 0.02})
    stimg.tl.retrieve(table, model=model, within_library=True)
    median = table.obs.groupby("library_id", observed=True)["stimg_retrieval_rank"].median()
    assert median["A"] < 16, median  # of 64
    assert median["B"] < 24, median
