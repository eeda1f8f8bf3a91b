"""Likelihoods of counts against scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import nbinom, poisson

from stimg.nn.losses import negative_binomial_nll, poisson_nll


def tensors(*values):
    return [torch.tensor(v, dtype=torch.float64) for v in values]


@given(st.integers(0, 500), st.floats(-8, 8))
def test_poisson(count, log_rate):
    got = poisson_nll(*tensors(count, log_rate)).item()
    np.testing.assert_allclose(got, -poisson.logpmf(count, np.exp(log_rate)), rtol=1e-8, atol=1e-8)


@given(st.integers(0, 500), st.floats(-8, 8), st.floats(-6, 8))
def test_negative_binomial(count, log_rate, log_theta):
    theta, mean = np.exp(log_theta), np.exp(log_rate)
    got = negative_binomial_nll(*tensors(count, log_rate, log_theta)).item()
    np.testing.assert_allclose(got, -nbinom.logpmf(count, theta, theta / (theta + mean)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("log_rate", "log_theta"), [(1.0, 0.5), (-1.0, 2.0), (2.5, -0.5)])
def test_mean_and_variance(log_rate, log_theta):
    count = torch.arange(4000, dtype=torch.float64)
    p = (-negative_binomial_nll(count, *tensors(log_rate, log_theta))).exp().numpy()
    n, mean, theta = count.numpy(), np.exp(log_rate), np.exp(log_theta)
    np.testing.assert_allclose(p.sum(), 1, atol=1e-8)
    np.testing.assert_allclose((p * n).sum(), mean, rtol=1e-6)
    np.testing.assert_allclose((p * (n - mean) ** 2).sum(), mean + mean**2 / theta, rtol=1e-6)


def test_large_inverse_dispersion_is_poisson():
    count, log_rate = torch.arange(20, dtype=torch.float64), torch.tensor(1.2, dtype=torch.float64)
    got = negative_binomial_nll(count, log_rate, torch.tensor(18.0, dtype=torch.float64))
    np.testing.assert_allclose(got, poisson_nll(count, log_rate), atol=1e-4)


def test_broadcast():
    count, log_rate, log_theta = torch.arange(6.0).view(2, 3, 1), torch.tensor([[0.1], [0.2], [0.3]]), torch.tensor([0.0, 1.0])
    got = negative_binomial_nll(count, log_rate, log_theta)
    assert got.shape == (2, 3, 2)
    for i, j, k in np.ndindex(2, 3, 2):
        theta, mean = np.exp(log_theta[k].item()), np.exp(log_rate[j, 0].item())
        np.testing.assert_allclose(got[i, j, k], -nbinom.logpmf(count[i, j, 0], theta, theta / (theta + mean)), rtol=1e-4)


@pytest.mark.parametrize("log_rate", [-20.0, 0.0, 12.0])
@pytest.mark.parametrize("log_theta", [-10.0, 0.0, 10.0])
def test_single_precision_is_finite_with_gradients(log_rate, log_theta):
    rate, theta = torch.tensor(log_rate, requires_grad=True), torch.tensor(log_theta, requires_grad=True)
    loss = negative_binomial_nll(torch.tensor([0.0, 1.0, 5000.0]), rate, theta).sum() + poisson_nll(torch.tensor(3.0), rate)
    loss.backward()
    assert torch.isfinite(torch.stack([loss, rate.grad, theta.grad])).all()
