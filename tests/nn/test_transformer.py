"""Attention over spots against the written equation in loops, and its symmetries."""

import numpy as np
import pytest
import torch

from stimg.nn import SpatialTransformer
from stimg.nn.transformer import DistanceAttention, SpatialBlock


def numbers(parameter):
    return parameter.detach().numpy()


def naive_attention(layer, x, yx, seen):
    """Attention, one query, one head and one key at a time; in rows that are not seen, NaN."""
    n, _, dim = x.shape
    width = dim // layer.n_heads
    weight, bias = numbers(layer.qkv.weight), numbers(layer.qkv.bias)
    out = np.full_like(x, np.nan)
    for b in range(n):
        for i in np.flatnonzero(seen[b]):
            row = np.zeros(dim)
            for h in range(layer.n_heads):
                part = slice(h * width, (h + 1) * width)
                wq, wk, wv = (weight[k * dim : (k + 1) * dim][part] for k in range(3))
                bq, bk, bv = (bias[k * dim : (k + 1) * dim][part] for k in range(3))
                logits, values = [], []
                for j in np.flatnonzero(seen[b]):
                    distance = np.sqrt(((yx[b, i] - yx[b, j]) ** 2).sum())
                    logit = (wq @ x[b, i] + bq) @ (wk @ x[b, j] + bk) / np.sqrt(width)
                    logit -= np.log1p(np.exp(numbers(layer.slope)[h])) * distance
                    logits.append(logit + (numbers(layer.own)[h] if i == j else 0.0))
                    values.append(wv @ x[b, j] + bv)
                share = np.exp(logits - np.max(logits))
                row[part] = (share / share.sum()) @ np.array(values)
            out[b, i] = numbers(layer.out.weight) @ row + numbers(layer.out.bias)
    return out


def spots(seed=0, n=2, n_spots=7, dim=8):
    rng = np.random.default_rng(seed)
    seen = rng.random((n, n_spots)) < 0.7
    seen[:, 0] = True
    return rng.normal(size=(n, n_spots, dim)), rng.normal(size=(n, n_spots, 2)) * 2, seen


def stack(n_layers=2, dim=8, heads=2, seed=0):
    torch.manual_seed(seed)
    made = SpatialTransformer(dim, n_layers, heads, 12, 0.1).double().eval()
    for block in made.blocks:
        torch.nn.init.normal_(block.attention.own)
    return made


def run(module, x, yx, seen):
    return module(torch.from_numpy(x), torch.from_numpy(yx), torch.from_numpy(seen)).detach().numpy()


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_the_written_equation(heads):
    torch.manual_seed(heads)
    layer = DistanceAttention(8, heads, 0.0).double()
    torch.nn.init.normal_(layer.own)
    x, yx, seen = spots()
    distance = torch.cdist(torch.from_numpy(yx), torch.from_numpy(yx))
    got = layer(torch.from_numpy(x), distance, torch.from_numpy(seen)).detach().numpy()
    np.testing.assert_allclose(got[seen], naive_attention(layer, x, yx, seen)[seen], atol=1e-10)


def test_block_adds_to_its_input():
    block = stack(1).blocks[0]
    x, yx, seen = spots()

    def norm(values, layer):
        centred = values - values.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * numbers(layer.weight) + numbers(layer.bias)

    middle = x + naive_attention(block.attention, norm(x, block.norm_attention), yx, seen)
    hidden = norm(middle, block.norm_feed) @ numbers(block.feed[0].weight).T + numbers(block.feed[0].bias)
    hidden = torch.nn.functional.gelu(torch.from_numpy(hidden)).numpy()
    wanted = middle + hidden @ numbers(block.feed[3].weight).T + numbers(block.feed[3].bias)
    np.testing.assert_allclose(run(stack(1), x, yx, seen)[seen], wanted[seen], atol=1e-9)


@pytest.mark.parametrize("angle", [np.pi / 3, np.pi / 2, 1.234])
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_moved_turned_mirrored_tissue(angle, mirror):
    x, yx, seen = spots(seed=1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([1.0, mirror])
    got = run(stack(), x, yx @ turn.T + [5.0, -3.0], seen)
    np.testing.assert_allclose(got[seen], run(stack(), x, yx, seen)[seen], atol=1e-9)
    assert np.abs(run(stack(), x, yx * 1.5, seen) - run(stack(), x, yx, seen))[seen].max() > 1e-4


def test_unseen_spots_have_no_influence():
    x, yx, seen = spots(seed=2)
    assert not seen.all()
    other_x, other_yx = x.copy(), yx.copy()
    other_x[~seen] = 1e3
    other_yx[~seen] += 7.0
    np.testing.assert_array_equal(run(stack(), other_x, other_yx, seen)[seen], run(stack(), x, yx, seen)[seen])


def test_a_seen_spot_has_influence():
    x, yx, seen = spots(seed=2)
    seen[:] = True
    other = x.copy()
    other[:, 3, 0] += 3.0
    assert np.abs(run(stack(), other, yx, seen) - run(stack(), x, yx, seen))[:, 0].max() > 1e-4


def test_a_spot_alone():
    x, yx, seen = spots(seed=3)
    seen[:] = False
    seen[:, 2] = True
    among = run(stack(), x, yx, seen)[:, 2]
    alone = run(stack(), x[:, 2:3], yx[:, 2:3], seen[:, 2:3])[:, 0]
    np.testing.assert_allclose(among, alone, atol=1e-12)


def test_order_of_spots_and_crop_size():
    x, yx, seen = spots(seed=4)
    order = np.random.default_rng(0).permutation(7)
    got = run(stack(), x[:, order], yx[:, order], seen[:, order])
    np.testing.assert_allclose(got[seen[:, order]], run(stack(), x, yx, seen)[:, order][seen[:, order]], atol=1e-10)
    wider = [np.concatenate([a, np.zeros_like(a)], 1) for a in (x, yx, seen)]
    np.testing.assert_allclose(run(stack(), *wider)[:, :7][seen], run(stack(), x, yx, seen)[seen], atol=1e-10)


def test_crop_without_spots_is_finite():
    x, yx, seen = spots()
    seen[1] = False
    assert np.isfinite(run(stack(), x, yx, seen)).all()


def test_steep_slopes_turn_attention_into_own_value():
    module = stack(1)
    torch.nn.init.constant_(module.blocks[0].attention.slope, 500.0)
    x, yx, seen = spots(seed=5)
    among, alone = run(module, x, yx, seen), run(module, x.reshape(-1, 1, 8), yx.reshape(-1, 1, 2), seen.reshape(-1, 1))
    np.testing.assert_allclose(among[seen], alone.reshape(2, 7, 8)[seen], atol=1e-10)


def test_without_layers_is_the_identity():
    x, yx, seen = spots()
    np.testing.assert_array_equal(run(stack(0), x, yx, seen), x)


def test_damped_block_is_nearer_to_the_identity():
    x, yx, seen = spots()
    module = stack(1)
    before = np.abs(run(module, x, yx, seen) - x)[seen].max()
    block = module.blocks[0]
    assert isinstance(block, SpatialBlock)
    block.damp(1e-6)
    assert np.abs(run(module, x, yx, seen) - x)[seen].max() < 1e-5 * before


def test_dropout_only_in_training():
    x, yx, seen = spots()
    module = stack()
    np.testing.assert_array_equal(run(module, x, yx, seen), run(module, x, yx, seen))
    module.train()
    assert np.abs(run(module, x, yx, seen) - run(module, x, yx, seen)).max() > 1e-3


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="10 hidden units"):
        SpatialTransformer(10, 1, 4, 8, 0.0)
