"""The frozen parameter set of ImageGeneCLIP."""

from dataclasses import dataclass

from stimg._core import validate
from stimg.model._options import Options

WAYS = ("centre", "adversarial", "within")


@dataclass(frozen=True)
class ImageGeneCLIPOptions(Options):
    """What an alignment of image and expression is made of. Changing one field gives another model.

    Parameters
    ----------
    n_dim
        Width of the joint space; HESCAPE's is 128.
    image_head, gene_head
        ``"linear"``, ``"mlp"`` (one hidden layer) or ``"residual"`` (their sum, the hidden layer starting at zero); see :class:`stimg.nn.Head`.
    gene_encoder
        What reads expression before its head: ``"pca"`` (principal axes of the standardised log values of the training observations, fixed),
        ``"mlp"`` (:class:`stimg.nn.gene.GeneMLP`) or ``"linear"`` (nothing: the head reads log values). Not read where the gene side is a
        finished embedding.
    image_components
        Most principal axes of the standardised image features that the image head reads, fixed; None: the features themselves. Features are
        wide and a few thousand pairs are few: without, the head learns the training pairs by heart.
    gene_components
        Most principal axes for ``gene_encoder="pca"``.
    init
        Where the heads start: ``"random"``, or ``"cca"``: at the canonical correlation of the two sides of the training pairs, with linear or
        residual heads and a gene side that is finished or has ``gene_encoder="pca"``. Short trainings, or none to speak of, then do.
    init_components
        Most directions of ``init="cca"``; the other columns of the joint space are zero on both sides, and stay so with linear heads.
    init_penalty
        Ridge on each side of ``init="cca"``, in units of the mean variance of its columns.
    n_hidden, n_layers
        Width of hidden layers, and their number in the gene encoder.
    dropout
        In hidden layers of both sides, and of the input of linear heads.
    loss
        ``"clip"`` (:func:`stimg.nn.losses.clip_loss`) or ``"siglip"`` (:func:`stimg.nn.losses.siglip_loss`).
    normalise
        Whether embeddings have unit length in the loss. False is what the released code of HESCAPE trains with.
    temperature
        At the start; learned from there. HESCAPE's is 0.07. The scale is one over it, and is kept in [1, 100].
    siglip_bias
        Bias of ``loss="siglip"`` at the start.
    label_smoothing
        Share of the target of ``loss="clip"`` that is spread over all pairs of the batch: near-duplicates among the negatives cost less.
    batch
        How batches (libraries, or the groups of ``batch_key``) are dealt with, one or several of: ``"none"``; ``"centre"``: both sides are
        centred within each batch, in training and in use; ``"adversarial"``: a classifier of batches on both embeddings whose gradient is
        reversed; ``"within"``: pairs of other batches are no negatives.
    adversarial_weight
        Weight of that classifier's loss.
    sampling
        Of which pairs a mini-batch consists: ``"mixed"`` (all alike), ``"balanced"`` (as many of each batch) or ``"within"`` (one batch alone).
    expression_weight
        Weight of an auxiliary loss: the mean squared error of standardised log values, read out of the image embedding. 0: no such loss, and
        no trained head to predict expression with.
    decoder
        Its read-out, ``"linear"`` or ``"mlp"``.
    depth
        Whether log(1 + total counts) is one more input of the gene side.
    encoder
        Name of the image encoder (``stimg.zoo.list("image")``) where tiles are read; not read where the image side is a finished embedding.
    tuning
        Of that encoder: ``"frozen"``, ``"lora"`` (low-rank additions to linear layers and 1 x 1 convolutions) or ``"full"``.
    lora_rank, lora_alpha, lora_dropout
        Of the additions; HESCAPE's are 8, 16 and 0.1.
    encoder_rate
        Learning rate of the encoder in units of that of the heads.
    augment
        Whether training tiles are flipped and turned; not with ``tuning="frozen"``, whose features are made once.
    """

    n_dim: int = 128
    image_head: str = "linear"
    gene_head: str = "linear"
    gene_encoder: str = "pca"
    image_components: int | None = 64
    gene_components: int = 50
    init: str = "random"
    init_components: int = 8
    init_penalty: float = 1.0
    n_hidden: int = 256
    n_layers: int = 1
    dropout: float = 0.2
    loss: str = "clip"
    normalise: bool = True
    temperature: float = 0.2
    siglip_bias: float = -10.0
    label_smoothing: float = 0.0
    batch: str | tuple[str, ...] = "none"
    adversarial_weight: float = 0.1
    sampling: str = "mixed"
    expression_weight: float = 0.0
    decoder: str = "linear"
    depth: bool = False
    encoder: str = "efficientnet_lite0"
    tuning: str = "frozen"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.1
    encoder_rate: float = 0.1
    augment: bool = False

    def __post_init__(self) -> None:
        for name in ("image_head", "gene_head"):
            validate.one_of(getattr(self, name), ("linear", "mlp", "residual"), name)
        validate.one_of(self.gene_encoder, ("mlp", "pca", "linear"), "gene_encoder")
        validate.one_of(self.decoder, ("linear", "mlp"), "decoder")
        validate.one_of(self.loss, ("clip", "siglip"), "loss")
        validate.one_of(self.sampling, ("mixed", "balanced", "within"), "sampling")
        validate.one_of(self.tuning, ("frozen", "lora", "full"), "tuning")
        validate.one_of(self.init, ("random", "cca"), "init")
        for name in ("n_dim", "gene_components", "init_components", "n_hidden", "lora_rank"):
            validate.whole(getattr(self, name), name)
        validate.whole(self.n_layers, "n_layers", least=0)
        if self.image_components is not None:
            validate.whole(self.image_components, "image_components")
        for name in ("temperature", "lora_alpha", "encoder_rate", "adversarial_weight", "init_penalty"):
            validate.positive(getattr(self, name), name)
        if not 0.01 <= self.temperature <= 1:
            raise ValueError(f"temperature={self.temperature} is not in [0.01, 1], where it is kept in training. 0.07 to 0.2 is usual.")
        for name in ("dropout", "label_smoothing", "lora_dropout"):
            if not 0 <= validate.number(getattr(self, name), name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, 1).")
        if not validate.number(self.expression_weight, "expression_weight") >= 0:
            raise ValueError(f"expression_weight={self.expression_weight} is not a weight; wanted zero or a positive number.")
        if self.label_smoothing and self.loss != "clip":
            raise ValueError(f"label_smoothing={self.label_smoothing} goes with loss='clip' alone, not with {self.loss!r}. Pass 0.")
        if self.augment and self.tuning == "frozen":
            raise ValueError(
                "augment=True does not go with tuning='frozen', whose features are made once. Pass tuning='lora' or 'full', or augment=False."
            )
        if self.init == "cca" and "mlp" in (self.image_head, self.gene_head):
            raise ValueError(
                f"init='cca' starts linear maps, and image_head={self.image_head!r}, gene_head={self.gene_head!r} have none. Pass 'linear' or 'residual' for both."
            )
        self._check_batch()
        validate.number(self.siglip_bias, "siglip_bias")

    def _check_batch(self) -> None:
        ways = (self.batch,) if isinstance(self.batch, str) else tuple(self.batch)
        for way in ways:
            validate.one_of(way, ("none", *WAYS), "batch")
        if len(set(ways)) != len(ways) or not ways or ("none" in ways and len(ways) > 1):
            raise ValueError(f"batch={self.batch!r} contradicts itself; wanted 'none', or different ones of {list(WAYS)}.")
        object.__setattr__(
            self, "batch", ways[0] if len(ways) == 1 else tuple(sorted(ways))
        )  # one spelling, so that equal models are equal

    def does(self, way: str) -> bool:
        """Return whether ``batch`` is, or has among others, ``way``."""
        return way in ((self.batch,) if isinstance(self.batch, str) else self.batch)
