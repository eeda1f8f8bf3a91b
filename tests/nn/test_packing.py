"""Packing against a scatter one value at a time."""

import numpy as np
import pytest
import torch

from stimg.nn import pack


def check(batch, counts_image, n_genes):
    packed = pack(batch)
    image = counts_image(batch, n_genes)
    n, height, width = batch["seen"].shape
    n_spots = int(batch["seen"].reshape(n, -1).sum(1).max())
    assert packed.shape == (n, max(n_spots, 1), batch["panel"].shape[1])
    dense = packed.dense()
    for b in range(n):
        t = 0
        for y in range(height):
            for x in range(width):
                if not batch["seen"][b, y, x]:
                    assert packed.where[b, y, x] == -1
                    continue
                assert packed.where[b, y, x] == b * packed.shape[1] + t
                assert packed.seen[b, t]
                assert packed.depth[b, t] == batch["depth"][b, y, x]
                assert torch.equal(packed.yx[b, t], batch["yx"][b, y, x])
                for c, g in enumerate(batch["panel"][b].tolist()):
                    assert dense[b, t, c] == (image[b, y, x, g] if g >= 0 else 0)
                t += 1
        assert not packed.seen[b, t:].any()
        assert not dense[b, t:].any()
        assert not packed.depth[b, t:].any()
    assert float(dense.sum()) == float(batch["value"].sum())
    crop = packed.cell // packed.shape[1]
    assert torch.equal(packed.panel[crop, packed.column], packed.channel)
    return packed


@pytest.mark.parametrize("seed", range(4))
def test_random_crops(make_batch, counts_image, seed):
    check(make_batch(seed=seed, hexagonal=seed % 2 == 1), counts_image, 11)


@pytest.mark.parametrize("technology", ["visium", "st"])
@pytest.mark.parametrize(("rule", "n_channels"), [("all", None), ("weighted", 9), ("weighted", 30)])
def test_crops_of_the_dataset(simulated, counts_image, technology, rule, n_channels):
    batch, n_genes = simulated(technology, rule=rule, n_channels=n_channels)
    assert len(batch["value"]) > 50
    assert batch["seen"].sum((1, 2)).unique().numel() > 1
    packed = check(batch, counts_image, n_genes)
    assert packed.shape[2] == (n_channels or n_genes)
    # the sparse loss looks hidden values up by bisection
    key = packed.cell * packed.shape[2] + packed.column
    assert (key.diff() > 0).all()


def test_without_any_spot(make_batch, counts_image):
    batch = make_batch(widths=(4, 6), filled=(0.0, 0.0))
    packed = check(batch, counts_image, 11)
    assert packed.shape == (2, 1, 6)
    assert not packed.dense().any()


def test_panel_of_padding_alone(make_batch):
    batch = make_batch(widths=(4, 1), filled=(0.5, 0.5))
    batch["panel"][1] = -1
    keep = batch["pixel"] < 12
    batch.update({key: batch[key][keep] for key in ("pixel", "channel", "value")})
    dense = pack(batch).dense()
    assert dense[0].any()
    assert not dense[1].any()


def test_to_grid(make_batch):
    batch = make_batch()
    packed = pack(batch)
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(size=(3, packed.shape[1], 2)).astype(np.float32))
    grid = packed.to_grid(values, fill=-7.0)
    assert grid.shape == (3, 3, 4, 2)
    order = np.zeros(3, dtype=int)
    for b, y, x in np.ndindex(3, 3, 4):
        if batch["seen"][b, y, x]:
            assert torch.equal(grid[b, y, x], values[b, order[b]])
            order[b] += 1
        else:
            assert (grid[b, y, x] == -7).all()
    again = packed.to_grid(packed.depth[..., None])[..., 0]
    assert torch.equal(again, batch["depth"])
