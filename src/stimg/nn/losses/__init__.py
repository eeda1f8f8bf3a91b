"""One loss per module: its equation, its shapes, and a test against a naive loop."""

from stimg.nn.losses.contrastive import clip_loss, siglip_loss
from stimg.nn.losses.counts import negative_binomial_nll, poisson_nll
from stimg.nn.losses.smoothness import smoothness
from stimg.nn.losses.weighted import weighted_mean

__all__ = ["clip_loss", "negative_binomial_nll", "poisson_nll", "siglip_loss", "smoothness", "weighted_mean"]
