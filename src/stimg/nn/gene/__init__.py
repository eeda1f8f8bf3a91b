"""Networks of expression, which stand beside those of images."""

from stimg.nn.gene.mlp import GeneMLP

__all__ = ["GeneMLP"]
