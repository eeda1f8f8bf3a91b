"""The weighted mean against numpy."""

import numpy as np
import pytest
import torch

from stimg.nn.losses import weighted_mean


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 1, 5), (1, 4, 1)])
def test_is_the_average(shape):
    rng = np.random.default_rng(0)
    values, weight = rng.normal(size=(3, 4, 5)), rng.random(shape)
    got = weighted_mean(torch.from_numpy(values), torch.from_numpy(weight))
    np.testing.assert_allclose(got, np.average(values, weights=np.broadcast_to(weight, values.shape)), rtol=1e-12)


def test_mask():
    rng = np.random.default_rng(1)
    values, mask = rng.normal(size=(6, 7)), rng.random((6, 7)) < 0.4
    np.testing.assert_allclose(weighted_mean(torch.from_numpy(values), torch.from_numpy(mask)), values[mask].mean(), rtol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_without_weight_do_not_count(bad):
    values = torch.tensor([1.0, bad, 3.0], requires_grad=True)
    loss = weighted_mean(values, torch.tensor([True, False, True]))
    loss.backward()
    assert loss == 2
    assert values.grad.tolist() == [0.5, 0, 0.5]


def test_no_weight_is_zero():
    assert weighted_mean(torch.ones(3), torch.zeros(3)) == 0
