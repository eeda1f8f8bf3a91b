"""Floor 2: networks. Tensors in, tensors out; nothing here knows a table."""

from stimg.nn.masking import MaskSpec, draw_mask
from stimg.nn.packing import Packed, pack
from stimg.nn.released import ReleasedMAE
from stimg.nn.stmae import STMAEModule
from stimg.nn.tokens import GeneTokens
from stimg.nn.transformer import SpatialTransformer

__all__ = ["GeneTokens", "MaskSpec", "Packed", "ReleasedMAE", "STMAEModule", "SpatialTransformer", "draw_mask", "pack"]
