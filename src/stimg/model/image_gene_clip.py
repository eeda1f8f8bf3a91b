"""ImageGeneCLIP: image and expression of the same place, in one space."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch

from stimg._core import rng as _rng
from stimg.model import _clip_export, _clip_inference, _clip_read, _clip_training
from stimg.model._clip_base import ClipBase
from stimg.model._clip_inference import Retrieved
from stimg.model.clip_options import ImageGeneCLIPOptions

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.nn.image.encoder import ImageEncoder

LIMITS = (
    "It reads images at the scale and through the encoder named above; others are refused where their record says so, and mislead where they have none.",
    "Expression predicted from an image is what such tissue expressed in the training data. What the image does not show is not predicted.",
    "Retrieval depends on the gallery: compare it with chance in the same gallery.",
    "It is no medical device.",
)
"""What the model card says that the model cannot do."""


class ImageGeneCLIP(ClipBase):
    """Contrastive alignment of image and expression: both sides of an observation get embeddings in one space.

    After HESCAPE (Gindra et al. 2025, arXiv 2508.01490) and CLIP (Radford et al. 2021, arXiv 2103.00020).

    Parameters
    ----------
    adata
        Set up with :meth:`setup_anndata`.
    genes
        Names of the genes that are read: the vocabulary. None: the channels of :func:`stimg.pp.select_genes`, or all genes where none were
        selected. Control probes are no genes.
    options
        What the model is made of; see :class:`stimg.model.ImageGeneCLIPOptions`.
    encoder, encoder_path
        Of a model that reads tiles: the name of an encoder, or a loaded :class:`stimg.nn.image.ImageEncoder`, which becomes a part of the model; and
        where the weights are. None: that of ``options.encoder``, as :func:`stimg.nn.image.load_image_encoder` finds it.
    **changes
        Fields of ``options`` to change, such as ``loss="siglip"``.

    Examples
    --------
    >>> import numpy as np, stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(12, 12), n_genes=30, rng=0)
    >>> adata.obsm["X_features"] = np.random.default_rng(0).normal(size=(adata.n_obs, 16)).astype(np.float32)
    >>> stimg.model.ImageGeneCLIP.setup_anndata(adata, image="X_features")
    >>> model = stimg.model.ImageGeneCLIP(adata, n_dim=8)
    >>> model.train(max_epochs=1, validation=None, enable_progress_bar=False)
    >>> model.get_image_embedding().shape[1]
    8

    Notes
    -----
    What ``model.scores_`` holds, a dict of scores by protocol, is written on the card of a saved model.
    """

    _setup_names = ("image", "gene", "layer", "library_key", "donor_key", "batch_key")
    _record_fields = ("facts",)
    _limits = LIMITS

    def train(
        self,
        max_epochs: int | None = None,
        *,
        validation: str | Sequence[str] | None = "auto",
        validation_fraction: float = 0.1,
        early_stopping: bool = True,
        monitor: str = "validation_loss",
        patience: int = 20,
        batch_size: int = 256,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        rng: _rng.RngLike = 0,
        checkpoint_dir: str | Path | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train on pairs; the weights of the best validation epoch are kept.

        Parameters
        ----------
        max_epochs
            Passes over the pairs; None: as many as make about 1,000 steps, at most 200.
        validation
            What the training is stopped by: ``"donors"`` holds out one donor, ``"libraries"`` one library, ``"blocks"`` a contiguous rectangle of every
            library with a margin that nothing is learned from. ``"auto"``: a donor where there are at least three, else a library where
            there are three, else blocks; the log says which. A list names libraries or donors. None trains on everything. Never random
            observations: their neighbours give them away.
        validation_fraction
            Part of every library, for ``"blocks"``.
        early_stopping, patience
            Whether to stop after ``patience`` epochs without a better validation.
        monitor
            What is better: ``"validation_loss"``, ``"validation_rank"`` or ``"validation_recall"``, see :class:`stimg.plan.ContrastivePlan`.
        batch_size
            Pairs of a step, on each device: all others of a batch are the negatives of a pair.
        lr, weight_decay
            Of AdamW; see :class:`stimg.plan.StepPlan`.
        rng
            Where weights, mini-batches, dropout and what is held out come from. The global random state of torch, numpy and Python is left as it was.
        checkpoint_dir
            Folder for a checkpoint at the end of every epoch. Where it holds one, training goes on from there; a finished training is not
            repeated. The arguments, options and data have to be the same as then.
        **trainer_kwargs
            For :class:`scvi.train.Trainer`, and through it Lightning's: ``accelerator``, ``devices``, ``strategy``, ``precision``
            (``"bf16-mixed"``), ``enable_progress_bar`` (by default as ``stimg.settings.progress`` says), ...; and for the data module:
            ``num_workers``. ``compile=True`` compiles the network.

        Raises
        ------
        ValueError
            Where the loss becomes infinite, there is nothing to hold out, or the checkpoint is damaged or of another training.

        Notes
        -----
        A training that fails or is interrupted leaves the model as it was; with ``checkpoint_dir``, the same call goes on from the last epoch.
        """
        _clip_training.train(self, self._loop(locals()), monitor=monitor, **trainer_kwargs)

    def get_image_embedding(self, adata: "AnnData | None" = None, *, normalise: bool | None = None, batch_size: int = 4096) -> np.ndarray:
        """Return the embedding of the image of every observation, float32 (n_obs, n_dim); ``adata`` needs no counts and no genes.

        Parameters
        ----------
        adata
            With the image features that the model knows. None: what the model was made with.
        normalise
            Whether rows have unit length; None: as in training.
        batch_size
            Observations at a time.
        """
        return _clip_inference.embed(self, adata, "image", normalise=normalise, batch_size=batch_size)

    def get_gene_embedding(self, adata: "AnnData | None" = None, *, normalise: bool | None = None, batch_size: int = 4096) -> np.ndarray:
        """Return the embedding of the expression of every observation, float32 (n_obs, n_dim); ``adata`` needs no image.

        Genes are found by name, in any order; all genes of the model must be there. Arguments as for :meth:`get_image_embedding`.
        """
        return _clip_inference.embed(self, adata, "gene", normalise=normalise, batch_size=batch_size)

    def score_pairs(self, adata: "AnnData | None" = None, *, batch_size: int = 4096) -> np.ndarray:
        """Return the cosine of the image's and the expression's embedding of each observation, float32 (n_obs,)."""
        return _clip_inference.score_pairs(self, adata, batch_size=batch_size)

    def retrieve(
        self,
        adata: "AnnData",
        reference: "AnnData | None" = None,
        *,
        direction: str = "image to expression",
        k: int = 10,
        batch_size: int = 4096,
    ) -> Retrieved:
        """Return the ``k`` observations of ``reference`` most similar to each of ``adata``: ``index`` and ``score``, (n_obs, k) each.

        Parameters
        ----------
        adata
            The queries.
        reference
            The gallery. None: what the model was made with.
        direction
            ``"image to expression"``, ``"expression to image"``, ``"image to image"`` or ``"expression to expression"``: side of the query, side
            of the gallery.
        k
            Number of items.
        batch_size
            Observations at a time.
        """
        return _clip_inference.retrieve(self, adata, reference, direction=direction, k=k, batch_size=batch_size)

    def predict_expression(
        self,
        adata: "AnnData | None" = None,
        *,
        genes: Sequence[str] | None = None,
        head: str | None = None,
        reference: "AnnData | None" = None,
        by: str = "expression",
        k: int = 50,
        batch_size: int = 4096,
    ) -> pd.DataFrame:
        """Return log1p counts per 10,000 predicted from the image, (n_obs, genes); ``adata`` needs no counts and no genes.

        Parameters
        ----------
        adata
            With the image features that the model knows. None: what the model was made with.
        genes
            Names; None: the model's genes.
        head
            ``"trained"``: the read-out that was trained with ``expression_weight``. ``"retrieval"``: the mean over the ``k`` most similar
            observations of ``reference``, with weights that are the softmax of their similarities over the temperature. None: the trained one
            where there is one.
        reference
            Observations with counts, for ``"retrieval"``. None: what the model was made with.
        by
            Side of the reference that the image is compared with, ``"expression"`` or ``"image"``.
        k
            Number of observations.
        batch_size
            Observations at a time.

        Raises
        ------
        KeyError
            For genes that the model, or the reference, does not know.
        ValueError
            For the trained head where there is none, or features of another width or encoder.
        """
        return _clip_inference.predict(self, adata, genes=genes, head=head, reference=reference, by=by, k=k, batch_size=batch_size)

    def get_uncertainty(
        self,
        adata: "AnnData | None" = None,
        *,
        kind: str = "entropy",
        reference: "AnnData | None" = None,
        n_samples: int = 20,
        rng: _rng.RngLike = 0,
        batch_size: int = 4096,
    ) -> np.ndarray:
        """Return how unsure the model is of each image, float32 (n_obs,) in [0, 1]; larger is less sure. It is no probability of an error.

        Parameters
        ----------
        adata
            With the image features that the model knows. None: what the model was made with.
        kind
            ``"entropy"``: of the softmax of the image's similarities to the expression of ``reference`` over the temperature, in units of its
            largest value: 1 where all are equally similar. ``"dropout"``: one minus the length of the mean of ``n_samples`` unit embeddings drawn
            with dropout in the image head: 0 where all are the same.
        reference
            For ``"entropy"``. None: what the model was made with.
        n_samples, rng
            For ``"dropout"``.
        batch_size
            Observations at a time.
        """
        return _clip_inference.uncertainty(self, adata, kind=kind, reference=reference, n_samples=n_samples, rng=rng, batch_size=batch_size)

    def export(self, path: str | Path, *, format: str = "torch", overwrite: bool = False) -> None:
        """Write the image side into one file: from features (n, columns), or tiles uint8 (n, fields, y, x, 3), to the embedding, and to expression.

        The outputs are the embedding, float32 (n, n_dim), of unit length where ``options.normalise``, and, of a model with
        ``expression_weight``, log1p counts per 10,000, float32 (n, genes).

        Parameters
        ----------
        path
            The file; ``.pt2`` and ``.onnx`` are usual.
        format
            ``"torch"``: read with ``torch.export.load(path).module()``. ``"onnx"``: needs the packages onnx and onnxscript.
        overwrite
            Whether to replace a file that is there.

        Raises
        ------
        ImportError
            Where the packages for ONNX are missing.

        Notes
        -----
        With ``batch="centre"`` the mean of each section has to be taken off the features before they go in.
        """
        _clip_export.export(self, Path(path), format, overwrite=overwrite)

    def to_lazyslide(self, name: str, *, head: str | None = None, reference: "AnnData | None" = None) -> Any:
        """Register the model with LazySlide under ``name``, for ``lazyslide.tl.feature_prediction(wsi, name)``, and return what was registered.

        Parameters
        ----------
        name
            Name in LazySlide's registry, for this session.
        head, reference
            As for :meth:`predict_expression`.

        Raises
        ------
        ImportError
            Where LazySlide's models are not installed.
        ValueError
            Where the name is taken, the model centres its features, or reads more than one slot of ``obsm``.
        """
        return _clip_export.to_lazyslide(self, name, head, reference)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        dir_path: str | Path,
        adata: "AnnData | None" = None,
        *,
        device: str | torch.device = "cpu",
        encoder: "ImageEncoder | None" = None,
        encoder_path: str | Path | None = None,
    ) -> Self:
        """Return the model that :meth:`save` wrote; nothing is unpickled.

        Parameters
        ----------
        dir_path
            The folder.
        adata
            Set up as the training data were, and checked to be such data. None: the model reads the objects passed to its methods.
        device
            Where the weights go.
        encoder, encoder_path
            Of a model that reads tiles: the encoder it was trained with, or where its weights are. What was trained of it is in the folder.
        """
        return super().load(dir_path, adata, device=device, encoder=encoder, encoder_path=encoder_path)

    def _facts(self) -> dict[str, Any]:
        return {"facts": self.facts, "scores": self.scores_}

    @classmethod
    def _from_record(cls, record: Mapping[str, Any], **options: Any) -> Self:
        made = ImageGeneCLIPOptions.from_dict(record["options"])
        model = cls(None, record["genes"], options=made, registry=record["registry"], facts=record["facts"], **options)
        model.scores_ = record.get("scores", {})
        return model

    def _accept(self, adata: "AnnData") -> None:
        _clip_read.image_columns(self, adata)
        _clip_read.gene_columns(self, adata)
