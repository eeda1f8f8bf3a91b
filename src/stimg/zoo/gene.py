"""The gene encoders that stimg can use."""

from stimg.zoo.card import GENE

__all__ = ["GENE"]
