"""The frozen parameter set of SlideClassifier."""

from dataclasses import dataclass

from stimg._core import validate
from stimg.model._options import Options


@dataclass(frozen=True)
class SlideClassifierOptions(Options):
    """What a classifier of slides is made of. Changing one field gives another model.

    Parameters
    ----------
    pooling
        ``"attention"``: gated attention (:class:`stimg.nn.GatedAttention`); ``"mean"``: all tiles weigh the same, which is what attention has
        to be better than.
    n_hidden
        Width of the embedded tiles.
    n_attention
        Hidden width of the attention.
    dropout
        Of the embedded tiles and of the pooled slide.
    class_weight
        ``"balanced"``: a slide weighs as the inverse of the number of training slides of its class; ``"none"``: all weigh the same.
    max_tiles
        Most tiles of a slide in a training step, drawn anew in every epoch; None: all. Predictions read all tiles.
    """

    pooling: str = "attention"
    n_hidden: int = 64
    n_attention: int = 64
    dropout: float = 0.5
    class_weight: str = "balanced"
    max_tiles: int | None = None

    def __post_init__(self) -> None:
        validate.one_of(self.pooling, ("attention", "mean"), "pooling")
        validate.one_of(self.class_weight, ("balanced", "none"), "class_weight")
        for name in ("n_hidden", "n_attention"):
            validate.whole(getattr(self, name), name)
        if not 0 <= validate.number(self.dropout, "dropout") < 1:
            raise ValueError(f"dropout={self.dropout} is not in [0, 1).")
        if self.max_tiles is not None:
            validate.whole(self.max_tiles, "max_tiles")
