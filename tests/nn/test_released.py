"""The released network against loops, and its published defect."""

import numpy as np
import pytest
import torch

from stimg.nn import MaskSpec, ReleasedMAE, STMAEModule, draw_mask, pack
from stimg.nn import released as source
from stimg.nn.stmae import Offsets

V, SIZE, C = 11, (3, 4), 6
OFFSETS = Offsets(torch.zeros(2, V), torch.full((2, V), 1 / V))
SMALL = {"size": SIZE, "n_channels": C, "n_latent": 8, "n_layers": 1, "n_decoder_layers": 1, "n_heads": 2, "n_hidden": 12}


def make(seed=0, **options):
    torch.manual_seed(seed)
    return ReleasedMAE(V, **{**SMALL, **options}).eval()


def batch_of(make_batch, **options):
    return make_batch(**{"size": SIZE, "widths": (C, C, 4), "filled": (1.0, 0.6, 0.4), **options})


def naive_tokens(module, batch, counts, hidden):
    """Tokens of every lattice point by loops over points and channels, each channel through the whole value network."""
    first, second = ([p.detach().numpy() for p in (layer.weight, layer.bias)] for layer in (module.value_in, module.value_out))
    gene, position = module.gene.detach().numpy(), module.position.detach().numpy()
    n, (height, width) = len(counts), SIZE
    z = np.zeros((n, height * width, gene.shape[1]), dtype=np.float32)
    for b, y, x in np.ndindex(n, height, width):
        token, total = position[y * width + x].copy(), 0.0
        for c in range(C):
            g = int(batch["panel"][b, c])
            value = 0.0
            if g >= 0:
                token += gene[g]
                if batch["seen"][b, y, x] and not hidden[b, y, x, c]:
                    value = np.log1p(1e4 * counts[b, y, x, g] / batch["depth"][b, y, x].item())
            total += value
            token += second[0] @ np.maximum(first[0][:, 0] * value + first[1], 0.0) + second[1]
        z[b, y * width + x] = token * (total > 0)
    return z


def test_embedding_is_the_loop(make_batch, counts_image):
    batch, module = batch_of(make_batch), make()
    z = naive_tokens(module, batch, counts_image(batch, V), np.zeros((3, *SIZE, C), dtype=bool))
    wanted = module.encoder(torch.from_numpy(z)).view(3, *SIZE, -1) * batch["seen"][..., None]
    torch.testing.assert_close(module.embed(batch, OFFSETS), wanted, atol=1e-4, rtol=1e-4)


def test_loss_is_the_loop(make_batch, counts_image, monkeypatch):
    batch, module = batch_of(make_batch), make()
    packed, counts = pack(batch), counts_image(batch, V)
    sight = draw_mask(packed, MaskSpec((0.5,), "cell"), dense=True, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(source, "draw_mask", lambda *_, **__: sight)
    hidden = np.zeros((3, *SIZE, C), dtype=bool)
    for b, y, x, c in np.ndindex(*hidden.shape):
        at = int(packed.where[b, y, x])
        hidden[b, y, x, c] = at >= 0 and batch["panel"][b, c] >= 0 and not sight.mask[b, at % packed.shape[1], c]
    out = module.head(module.decoder(module.encoder(torch.from_numpy(naive_tokens(module, batch, counts, hidden))))).detach().numpy()
    torch.manual_seed(5)
    order = torch.rand(3, C).argsort(1).numpy()
    errors, zero = [], []
    for b, y, x, c in zip(*hidden.nonzero(), strict=True):
        count = counts[b, y, x, int(batch["panel"][b, c])]
        target = np.log1p(1e4 * count / batch["depth"][b, y, x].item())
        errors.append((out[b, y * SIZE[1] + x, order[b, c]] - target) ** 2)
        zero.append(count == 0)
    errors, zero = np.array(errors), np.array(zero)
    torch.manual_seed(5)
    terms = module(batch, OFFSETS)
    np.testing.assert_allclose(terms["loss"].item(), errors.mean(), rtol=1e-4)
    np.testing.assert_allclose(terms["zeros"].item(), errors[zero].mean(), rtol=1e-4)
    np.testing.assert_allclose(terms["nonzeros"].item(), errors[~zero].mean(), rtol=1e-4)


def test_output_is_never_negative(make_batch):
    module = make()
    assert [type(layer).__name__ for layer in module.head] == ["Linear", "ReLU"] * 4
    out = module.head(torch.randn(500, 8) * 10)
    assert (out >= 0).all()
    assert (out > 0).any()


def test_gene_and_value_are_not_bound(make_batch):
    """Giving the values of a spot to other genes changes nothing here, and changes the embedding of the network that mends it."""
    batch, module = batch_of(make_batch, rate=4.0), make()
    swapped = dict(batch, value=batch["value"].clone())
    spots = [batch["pixel"] == p for p in range(12)]
    point = next(p for p in spots if not torch.equal(batch["value"][p], batch["value"][p].flip(0)))
    swapped["value"][point] = batch["value"][point].flip(0)
    assert not torch.equal(swapped["value"], batch["value"])
    torch.testing.assert_close(module.embed(swapped, OFFSETS), module.embed(batch, OFFSETS), atol=1e-5, rtol=1e-5)
    torch.manual_seed(0)
    mended = STMAEModule(V, n_latent=8, n_layers=1, n_heads=2).eval()
    assert (mended.embed(swapped, OFFSETS) - mended.embed(batch, OFFSETS)).abs().max() > 0.01


def test_position_is_absolute(make_batch):
    """Unlike the network that mends it, this one notices that a crop was mirrored."""
    batch, module = batch_of(make_batch, filled=(1.0, 1.0, 1.0)), make()
    pixel = batch["pixel"] // 4 * 4 + 3 - batch["pixel"] % 4
    order = pixel.argsort(stable=True)
    other = {**batch, **{k: batch[k].flip(2) for k in ("seen", "depth")}}
    other.update(pixel=pixel[order], channel=batch["channel"][order], value=batch["value"][order])
    assert (module.embed(other, OFFSETS).flip(2) - module.embed(batch, OFFSETS)).abs().max() > 1e-3


def test_hidden_counts_do_not_reach_the_encoder(make_batch, monkeypatch):
    batch, module = batch_of(make_batch), make()
    packed, seen = pack(batch), []
    sight = draw_mask(packed, MaskSpec((0.5,), "cell"), dense=True, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(source, "draw_mask", lambda *_, **__: sight)
    module.encoder.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    module(batch, OFFSETS)
    module(dict(batch, value=torch.where(sight.entry, batch["value"], batch["value"] + 1000.0)), OFFSETS)
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


def test_mask_ratios_alone_are_taken_from_the_mask():
    assert make(mask=MaskSpec((0.3,), "crop")).mask == MaskSpec((0.3,), "cell")


def test_every_parameter_gets_a_gradient(make_batch):
    module = make().train()
    module(batch_of(make_batch), OFFSETS)["loss"].backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("size", "widths"), [((4, 4), (C, C, C)), (SIZE, (5, 5, 5))])
def test_other_crops_are_refused(make_batch, size, widths):
    with pytest.raises(ValueError, match=r"bound to \(3, 4\) with 6"):
        make().embed(batch_of(make_batch, size=size, widths=widths), OFFSETS)
