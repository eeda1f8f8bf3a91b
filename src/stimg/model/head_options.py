"""What an expression head is made of."""

from dataclasses import dataclass

from stimg._core import validate
from stimg.model._options import Options

KINDS = ("ridge", "axes", "retrieval", "trained")
FEATURES = "X_efficientnet_lite0"


@dataclass(frozen=True)
class ExpressionHeadOptions(Options):
    """What a head is made of.

    Parameters
    ----------
    kind
        ``"ridge"``: a ridge regression of every gene on image features. ``"axes"``: one of depth and of the axes along which expression varies in
        all donors, with a penalty for each, and back to genes; axes can be learnt from sections without an image, too. ``"retrieval"``: the average of the observations of the reference whose expression lies
        nearest to the image in a joint space. ``"trained"``: the expression decoder of a trained ``stimg.model.ImageGeneCLIP``.
    features
        Slots of ``obsm`` that are read, one or several; empty where a model reads the data.
    centre
        Whether features, and log values in the fit, are taken less the mean of their section: stain and depth of a section then do not matter,
        and neither does what its composition says of its mean.
    n_components
        Principal components of the standardised features that are regressed on; None: all columns.
    n_joint
        Axes of ``"axes"`` beside depth (0: depth alone), or principal components of expression that are the joint space of ``"retrieval"`` without a model.
    k, temperature
        Nearest observations of ``"retrieval"``, and the temperature of the softmax of their cosines that weighs them.
    """

    kind: str = "ridge"
    features: tuple[str, ...] = (FEATURES,)
    centre: bool = True
    n_components: int | None = 256
    n_joint: int = 16
    k: int = 50
    temperature: float = 0.3

    def __post_init__(self) -> None:
        validate.one_of(self.kind, KINDS, "kind")
        validate.whole(self.n_joint, "n_joint", least=0 if self.kind == "axes" else 1)
        validate.whole(self.k, "k")
        if self.n_components is not None:
            validate.whole(self.n_components, "n_components")
        validate.positive(self.temperature, "temperature")
