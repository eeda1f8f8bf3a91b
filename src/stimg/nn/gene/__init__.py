"""Networks of expression, which stand beside those of images."""

from stimg.nn.gene.mlp import GeneMLP
from stimg.nn.gene.nicheformer import Nicheformer
from stimg.nn.gene.scfoundation import ScFoundation

__all__ = ["GeneMLP", "Nicheformer", "ScFoundation"]
