"""Masks: how much they hide, and of what."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from stimg.nn import MaskSpec, draw_mask, pack
from stimg.nn.masking import panel_values, see_all


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def hidden_counts(packed, sight):
    """Number of measured channels hidden, (B, rows of the mask), counted one by one; padding must not be visible."""
    n, rows, n_channels = sight.mask.shape
    out = np.zeros((n, rows), dtype=int)
    for b in range(n):
        for t in range(rows):
            for c in range(n_channels):
                if packed.panel[b, c] < 0:
                    assert not sight.mask[b, t, c]
                else:
                    out[b, t] += not sight.mask[b, t, c]
    return out


def check_entries(packed, sight):
    n_spots = packed.shape[1]
    for i, (cell, gene) in enumerate(zip(packed.cell.tolist(), packed.channel.tolist(), strict=True)):
        b, t = divmod(cell, n_spots)
        column = packed.panel[b].tolist().index(gene)
        assert sight.entry[i] == sight.mask[b, t if sight.mask.shape[1] > 1 else 0, column]


@pytest.mark.parametrize(("scope", "dense"), [("cell", True), ("crop", True), ("crop", False)])
def test_floor_of_ratio_times_measured_channels(make_batch, scope, dense):
    packed = pack(make_batch(widths=(8, 5, 1)))
    ratios, found = (0.25, 0.5, 0.75), set()
    for seed in range(20):
        sight = draw_mask(packed, MaskSpec(ratios, scope), dense=dense, generator=generator(seed))
        counts = hidden_counts(packed, sight)
        assert counts.shape == (3, packed.shape[1] if scope == "cell" else 1)
        for (b, t), count in np.ndenumerate(counts):
            ratio = float(sight.ratio[b, t])
            assert ratio in ratios
            assert count == int(ratio * (8, 5, 1)[b])
            found.add((b, count))
        check_entries(packed, sight)
    assert found == {(0, 2), (0, 4), (0, 6), (1, 1), (1, 2), (1, 3), (2, 0)}


@pytest.mark.parametrize(("percent", "n_channels"), [(29, 100), (58, 50), (7, 100), (99, 100), (1, 100), (1, 99)])
def test_floor_is_not_one_short(make_batch, percent, n_channels):
    packed = pack(make_batch(size=(1, 2), n_genes=n_channels, widths=(n_channels,), filled=(1.0,)))
    sight = draw_mask(packed, MaskSpec((percent / 100,), "cell"), dense=True, generator=generator())
    assert (hidden_counts(packed, sight) == int(Fraction(percent, 100) * n_channels)).all()


def test_keys_that_tie(make_batch, monkeypatch):
    packed = pack(make_batch(size=(1, 2), widths=(8,), filled=(1.0,)))
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 0.5))
    sight = draw_mask(packed, MaskSpec((0.5,), "cell"), dense=True)
    assert (hidden_counts(packed, sight) == 4).all()


def test_every_channel_is_hidden_equally_often(make_batch):
    packed = pack(make_batch(widths=(8, 5), filled=(1.0, 1.0), size=(4, 5)))
    shown = torch.zeros(2, 8)
    for seed in range(60):
        shown += draw_mask(packed, MaskSpec((0.5,), "cell"), dense=True, generator=generator(seed)).mask.float().mean(1)
    # 1200 draws each; the standard error of a fraction is 0.014
    np.testing.assert_allclose(shown[0] / 60, 0.5, atol=0.06)
    np.testing.assert_allclose(shown[1, :5] / 60, 0.6, atol=0.06)


def test_mixed_is_one_or_the_other_for_every_crop(make_batch):
    packed = pack(make_batch(widths=(8,) * 6, filled=(1.0,) * 6))
    whole = 0
    for seed in range(20):
        sight = draw_mask(packed, MaskSpec((0.5,), "mixed"), dense=True, generator=generator(seed))
        check_entries(packed, sight)
        assert (hidden_counts(packed, sight) == 4).all()
        same = [bool((sight.mask[b] == sight.mask[b, :1]).all()) for b in range(6)]
        whole += sum(same)
        for b in range(6):
            if not same[b]:
                assert len({tuple(row) for row in sight.mask[b].tolist()}) > 6
    assert 40 <= whole <= 80


def test_sparse_mixed_is_one_kind_for_the_batch(make_batch):
    packed = pack(make_batch())
    kinds = [draw_mask(packed, MaskSpec(), dense=False, generator=generator(seed)).mask is None for seed in range(40)]
    assert 8 <= sum(kinds) <= 32


def test_sparse_cell_scope(make_batch):
    packed = pack(make_batch(size=(8, 8), widths=(11, 11), filled=(1.0, 1.0), rate=5.0))
    hits = {0.25: [0, 0], 0.75: [0, 0]}
    for seed in range(10):
        sight = draw_mask(packed, MaskSpec((0.25, 0.75), "cell"), dense=False, generator=generator(seed))
        assert sight.mask is None
        for i, cell in enumerate(packed.cell.tolist()):
            tally = hits[float(sight.ratio[cell // 64, cell % 64])]
            tally[0] += not bool(sight.entry[i])
            tally[1] += 1
    for ratio, (hidden, total) in hits.items():
        assert total > 3000
        assert abs(hidden / total - ratio) < 5 * (ratio * (1 - ratio) / total) ** 0.5


@pytest.mark.parametrize("scope", ["cell", "crop", "mixed"])
@pytest.mark.parametrize("dense", [True, False])
def test_the_generator_alone_decides(make_batch, scope, dense):
    packed = pack(make_batch())
    draws = []
    for seed, noise in ((5, 0), (5, 1), (6, 0)):
        torch.manual_seed(noise)
        draws.append(draw_mask(packed, MaskSpec(scope=scope), dense=dense, generator=generator(seed)))
    assert torch.equal(draws[0].entry, draws[1].entry)
    assert torch.equal(draws[0].ratio, draws[1].ratio)
    assert not torch.equal(draws[0].entry, draws[2].entry)


def test_see_all(make_batch):
    packed = pack(make_batch())
    sight = see_all(packed)
    assert sight.entry.all()
    assert not hidden_counts(packed, sight).any()
    check_entries(packed, sight)


def test_weigh(make_batch):
    packed = pack(make_batch())
    weight = torch.arange(1.0, 12.0)
    for scope in ("cell", "crop"):
        sight = draw_mask(packed, MaskSpec(scope=scope), dense=True, generator=generator())
        got = sight.weigh(packed, weight)
        for b, t in np.ndindex(*got.shape):
            shown = [g for c, g in enumerate(packed.panel[b].tolist()) if g >= 0 and sight.mask[b, t, c]]
            assert got[b, t] == sum(g + 1 for g in shown)
    sight = draw_mask(packed, MaskSpec((0.25,), "cell"), dense=False, generator=generator())
    for b, t in np.ndindex(3, packed.shape[1]):
        assert sight.weigh(packed, weight)[b, t] == 0.75 * sum(g + 1 for g in packed.panel[b].tolist() if g >= 0)


def test_panel_values():
    panel = torch.tensor([[0, 2, -1], [1, -1, -1]])
    assert panel_values(panel, torch.tensor([5.0, 6.0, 7.0])).tolist() == [[5, 7, 0], [6, 0, 0]]
    assert panel_values(panel, torch.tensor([[5.0, 6.0, 7.0], [1.0, 2.0, 3.0]])).tolist() == [[5, 7, 0], [2, 0, 0]]


@pytest.mark.parametrize("ratios", [(), (0.0,), (1.0,), (0.5, 1.2)])
def test_ratios_outside(ratios):
    with pytest.raises(ValueError, match="fractions of the channels"):
        MaskSpec(ratios)


def test_unknown_scope():
    with pytest.raises(ValueError, match="'slide' is not known"):
        MaskSpec(scope="slide")
