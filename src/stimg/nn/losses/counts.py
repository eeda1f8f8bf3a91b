"""Likelihoods of counts."""

import torch
from torch import Tensor


def poisson_nll(count: Tensor, log_rate: Tensor) -> Tensor:
    r"""Return :math:`\lambda - y \log \lambda + \log y!` elementwise, with :math:`\log\lambda` = ``log_rate``."""
    return log_rate.exp() - count * log_rate + torch.lgamma(count + 1.0)


def negative_binomial_nll(count: Tensor, log_rate: Tensor, log_inverse_dispersion: Tensor) -> Tensor:
    r"""Return the negative log-likelihood of a negative binomial with mean :math:`\mu` and variance :math:`\mu + \mu^2/\theta`, elementwise.

    .. math:: -\log \frac{\Gamma(y + \theta)}{\Gamma(\theta)\, y!} - \theta \log \frac{\theta}{\theta + \mu} - y \log \frac{\mu}{\theta + \mu}

    ``log_rate`` is :math:`\log\mu`, ``log_inverse_dispersion`` is :math:`\log\theta`; both broadcast to ``count``.
    """
    theta = log_inverse_dispersion.exp()
    log_sum = torch.logaddexp(log_rate, log_inverse_dispersion)
    combinations = torch.lgamma(count + theta) - torch.lgamma(theta) - torch.lgamma(count + 1.0)
    return -combinations - theta * (log_inverse_dispersion - log_sum) - count * (log_rate - log_sum)
