"""Floor 2: networks. Tensors in, tensors out; nothing here knows a table."""

from stimg.nn.clip import CLIPModule
from stimg.nn.heads import Head
from stimg.nn.masking import MaskSpec, draw_mask
from stimg.nn.mil import GatedAttention, MILModule
from stimg.nn.packing import Packed, pack
from stimg.nn.released import ReleasedMAE
from stimg.nn.s2s import S2SModule
from stimg.nn.stmae import STMAEModule
from stimg.nn.tokens import GeneTokens
from stimg.nn.transformer import SpatialTransformer

__all__ = [
    "CLIPModule",
    "GatedAttention",
    "GeneTokens",
    "Head",
    "MILModule",
    "MaskSpec",
    "Packed",
    "ReleasedMAE",
    "S2SModule",
    "STMAEModule",
    "SpatialTransformer",
    "draw_mask",
    "pack",
]
