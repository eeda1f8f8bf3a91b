"""The spatial regulariser against a loop over pairs."""

import numpy as np
import pytest
import torch

from stimg.nn import pack
from stimg.nn.losses import smoothness


@pytest.mark.parametrize("hexagonal", [False, True])
def test_loop_over_pairs(make_batch, hexagonal):
    batch = make_batch(size=(4, 5), filled=(0.9, 0.5, 0.0), hexagonal=hexagonal)
    packed = pack(batch)
    values = np.random.default_rng(0).normal(size=(*packed.shape[:2], 3))
    n, height, width = packed.where.shape
    terms, per_spot = [], {}
    for b in range(n):
        for y in range(height):
            for x in range(width):
                right = (y + 1, x) if not hexagonal else (y + 1, x + (y % 2))
                left = None if not hexagonal else (y + 1, x - 1 + (y % 2))
                for other in [(y, x + 1), right, left]:
                    if other is None or not (0 <= other[0] < height and 0 <= other[1] < width):
                        continue
                    i, j = int(packed.where[b, y, x]), int(packed.where[b, *other])
                    if i < 0 or j < 0:
                        continue
                    terms.append((values.reshape(-1, 3)[i] - values.reshape(-1, 3)[j]) ** 2)
                    for k in (i, j):
                        per_spot[k] = per_spot.get(k, 0) + 1
    assert max(per_spot.values()) == (6 if hexagonal else 4)
    got = smoothness(torch.from_numpy(values), packed.yx, packed.seen)
    np.testing.assert_allclose(got, np.mean(terms), rtol=1e-10)


def test_constant_is_smooth(make_batch):
    packed = pack(make_batch())
    assert smoothness(torch.ones(*packed.shape[:2], 2), packed.yx, packed.seen) == 0


def test_unseen_do_not_count(make_batch):
    packed = pack(make_batch())
    values = torch.rand(*packed.shape[:2], 2)
    other = torch.where(packed.seen[..., None], values, torch.full_like(values, 99.0))
    assert smoothness(other, packed.yx, packed.seen) == smoothness(values, packed.yx, packed.seen) > 0


def test_without_pairs_is_zero_with_a_gradient(make_batch):
    packed = pack(make_batch(filled=(0.0, 0.0, 0.0)))
    values = torch.rand(*packed.shape[:2], 2, requires_grad=True)
    loss = smoothness(values, packed.yx, packed.seen)
    loss.backward()
    assert loss == 0
    assert not values.grad.any()
