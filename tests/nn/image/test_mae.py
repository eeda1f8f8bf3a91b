"""The masked autoencoder of tiles against loops, and against a full forward pass in which the hidden patches are switched off."""

import math

import numpy as np
import pytest
import torch

import stimg
from stimg.image.colour import OPTICAL_DENSITY
from stimg.nn.image import ImageEncoder, MAEFeatures, MAEModule
from stimg.nn.image.mae import FLOOR, grid_points, patchify, random_keep, sin_cos, unpatchify

SMALL = {"patch": 4, "n_latent": 16, "n_layers": 2, "n_heads": 2, "n_decoder": 8, "n_decoder_layers": 1}


def make(seed=0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = MAEModule(**{**SMALL, **changes})
        module.mean.copy_(torch.tensor([0.2, 0.3, 0.1]))
        module.scale.copy_(torch.tensor([0.2, 0.25, 0.1]))
    return module.eval()


def tiles(n=3, height=16, width=16, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8))


def keep_of(n, n_patches, seed=0, ratio=0.75):
    return random_keep(n, n_patches, ratio, torch.device("cpu"), torch.Generator().manual_seed(seed))


class TestPatches:
    @pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12)])
    def test_against_a_loop(self, height, width):
        x = torch.randn(2, height, width, 3)
        found = patchify(x, 4)
        k = 0
        for i in range(0, height, 4):
            for j in range(0, width, 4):
                for b in range(2):
                    flat = [x[b, i + r, j + c, ch] for r in range(4) for c in range(4) for ch in range(3)]
                    assert torch.equal(found[b, k], torch.stack(flat))
                k += 1
        assert found.shape == (2, k, 48)
        assert torch.equal(unpatchify(found, 4, (height, width)), x)

    def test_points_lie_where_the_patches_are(self):
        y, x = torch.meshgrid(torch.arange(12.0), torch.arange(8.0), indexing="ij")
        where = torch.stack([y, x, y], dim=-1)[None]  # each pixel holds its place
        middle = patchify(where, 4).view(6, 16, 3).mean(1)[:, :2]
        assert torch.allclose(grid_points(3, 2), (middle - torch.tensor([5.5, 3.5])) / 4)

    def test_sines_against_a_loop(self):
        points = torch.tensor([[0.5, -1.5], [3.0, 0.0]])
        found = sin_cos(points, 12)
        for t, (y, x) in enumerate(points.tolist()):
            omega = [10000 ** (-k / 3) for k in range(3)]
            wanted = [f(w * v) for v in (y, x) for f in (math.sin, math.cos) for w in omega]
            np.testing.assert_allclose(found[t].numpy(), wanted, atol=1e-6)

    def test_what_stays_visible(self):
        for n_patches, ratio, visible in ((16, 0.75, 4), (100, 0.29, 71), (64, 0.75, 16), (10, 0.99, 1)):
            keep = keep_of(50, n_patches, ratio=ratio)
            assert keep.shape == (50, visible)
            assert (keep[:, 1:] > keep[:, :-1]).all()
            assert keep.min() >= 0
            assert keep.max() < n_patches
        counts = torch.bincount(keep_of(8000, 16).flatten(), minlength=16).numpy()
        expected = 8000 * 4 / 16
        assert ((counts - expected) ** 2 / (expected * 0.75)).sum() < 40  # chi-square with 15 degrees of freedom: p < 0.001 beyond 37.7
        assert torch.equal(keep_of(5, 16, seed=3), keep_of(5, 16, seed=3))


class TestForward:
    def test_reading_the_visible_alone_is_reading_all_with_the_hidden_switched_off(self):
        module, x = make(), tiles()
        patches, points = module.patches(module.standardise(module.colours(x)))
        keep = keep_of(3, 16)
        found = module.encode(patches, points, keep)
        seen = torch.zeros(3, 16, dtype=torch.bool).scatter(1, keep, value=True)
        every = module.embed_patch(patches) + sin_cos(points, 16)
        full = module.norm(module.encoder(every, points.expand(3, 16, 2), seen))
        for b in range(3):
            torch.testing.assert_close(found[b], full[b][seen[b]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            module.encode(patches, points), module.encode(patches, points, torch.arange(16).expand(3, 16)), rtol=1e-4, atol=1e-5
        )

    def test_hidden_pixels_are_not_read(self):
        module, x, keep = make(), tiles(), keep_of(3, 16)
        patches, points = module.patches(module.standardise(module.colours(x)))
        hidden = torch.ones(3, 16, dtype=torch.bool).scatter(1, keep, value=False)
        other = torch.where(hidden[..., None], torch.randn_like(patches), patches)
        before = module.decode(module.encode(patches, points, keep), points, keep)
        assert torch.equal(module.decode(module.encode(other, points, keep), points, keep), before)
        assert not torch.equal(module.encode(other, points), module.encode(patches, points))

    @pytest.mark.parametrize("patch_norm", [True, False])
    @pytest.mark.parametrize("space", ["od", "rgb"])
    def test_the_loss_against_a_loop(self, patch_norm, space):
        module, x, keep = make(patch_norm=patch_norm, space=space), tiles(), keep_of(3, 16)
        values = x.numpy()
        colours = OPTICAL_DENSITY[values] if space == "od" else values / 255
        standard = (colours - module.mean.numpy()) / module.scale.numpy()
        patches, points = module.patches(torch.from_numpy(standard).float())
        predicted = module.decode(module.encode(patches, points, keep), points, keep).detach().numpy()
        errors = []
        for b in range(3):
            for t in set(range(16)) - set(keep[b].tolist()):
                row, column = divmod(t, 4)
                cut = standard[b, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                if patch_norm:
                    cut = (cut - cut.mean(axis=(0, 1))) / np.sqrt(cut.var(axis=(0, 1)) + FLOOR)
                errors.append(np.mean((predicted[b, t] - cut.ravel()) ** 2))
        assert len(errors) == 36
        assert float(module(x, keep)["loss"].detach()) == pytest.approx(np.mean(errors), rel=1e-4)

    def test_masks_come_from_the_random_state(self):
        module, x = make(), tiles()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            first = module(x)["loss"]
            second = module(x)["loss"]
            torch.manual_seed(5)
            assert torch.equal(module(x)["loss"], first)
        assert not torch.equal(first, second)

    def test_every_weight_gets_a_gradient(self):
        module = make().train()
        module(tiles(), keep_of(3, 16))["loss"].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())

    def test_it_learns_stripes(self):
        """Stripes of two directions: hidden patches follow from the visible ones, and their mean error falls to well below their variance of 1."""
        y, x = np.mgrid[:16, :16]
        pictures = np.stack([(x if i % 2 else y) % 4 < 2 for i in range(8)])[..., None]
        stripes = torch.from_numpy(np.where(pictures, 230, 40).repeat(3, -1).astype(np.uint8))
        module = make(mask_ratio=0.5).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
            losses = []
            for _ in range(60):
                loss = module(stripes)["loss"]
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(float(loss.detach()))
        assert losses[0] > 0.8
        assert np.mean(losses[-5:]) < 0.1

    def test_reduced_precision(self):
        module = make()
        with torch.autocast("cpu", torch.bfloat16):
            low = module(tiles(), keep_of(3, 16))["loss"]
        assert float(low.detach()) == pytest.approx(float(module(tiles(), keep_of(3, 16))["loss"].detach()), rel=0.02)


class TestEmbedding:
    def test_pooling_against_numpy(self):
        x = tiles()
        for pooling, n in (("mean", 16), ("mean_sd", 32)):
            module = make(pooling=pooling, turns=1)
            tokens = module.tokens(x).detach().numpy()
            wanted = np.hstack([tokens.mean(1), tokens.std(1)])[:, :n]
            assert module.n_features == n
            np.testing.assert_allclose(module.embed(x).detach().numpy(), wanted, atol=1e-5)

    def test_four_turns_make_it_indifferent_to_how_the_tissue_lies(self):
        x = tiles()
        module, single = make(turns=4), make(turns=1)
        for k in (1, 2, 3):
            torch.testing.assert_close(module.embed(torch.rot90(x, k, (1, 2))), module.embed(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(single.embed(torch.rot90(x, 1, (1, 2))), single.embed(x), atol=1e-3)
        mean = sum(single.embed(torch.rot90(x, k, (1, 2))) for k in range(4)) / 4
        torch.testing.assert_close(module.embed(x), mean)

    def test_tiles_of_other_sizes(self):
        module = make()
        assert module.embed(tiles(2, 24, 32)).shape == (2, 32)
        with pytest.raises(ValueError, match=r"tiles have 18 x 16 px; wanted multiples of 4"):
            module.embed(tiles(2, 18, 16))

    def test_as_an_encoder_with_a_card(self):
        from dataclasses import replace

        module = make()
        card = replace(
            stimg.zoo.get("image_mae"), n_features=32, size_px=16, multiple_of=4, mpp=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        )
        encoder = ImageEncoder(card, MAEFeatures(module)).eval()
        torch.testing.assert_close(encoder(tiles()), module.embed(tiles()), rtol=1e-4, atol=1e-5)


class TestReconstruction:
    @pytest.mark.parametrize("patch_norm", [True, False])
    @pytest.mark.parametrize("space", ["od", "rgb"])
    def test_visible_patches_stay_and_hidden_ones_are_predicted(self, patch_norm, space):
        module, x, keep = make(patch_norm=patch_norm, space=space), tiles(), keep_of(3, 16)
        out = module.reconstruct(x, keep)
        assert out.dtype == torch.uint8
        before, after = patchify(x, 4), patchify(out, 4)
        for b in range(3):
            assert torch.equal(before[b, keep[b]], after[b, keep[b]])
        b, t = 1, next(t for t in range(16) if t not in keep[1].tolist())
        patches, points = module.patches(module.standardise(module.colours(x)))
        predicted = module.decode(module.encode(patches, points, keep), points, keep)[b, t].detach().numpy().reshape(16, 3)
        if patch_norm:
            own = patches[b, t].numpy().reshape(16, 3)
            predicted = predicted * np.sqrt(own.var(0) + FLOOR) + own.mean(0)
        colours = predicted * module.scale.numpy() + module.mean.numpy()
        values = 256 * 10.0**-colours - 1 if space == "od" else 255 * colours
        np.testing.assert_allclose(after[b, t].numpy().reshape(16, 3), np.clip(values, 0, 255), atol=0.51)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": "hsv"}, "space='hsv' is not known"),
        ({"pooling": "max"}, "pooling='max' is not known"),
        ({"turns": 2}, "turns=2 is not known"),
        ({"n_latent": 18}, "n_latent=18; wanted a multiple of 4"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(ValueError, match=message):
        MAEModule(**{**SMALL, **changes})
