"""STMAE: a masked autoencoder of ST images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField, LayerField, ObsmField
from torch import Tensor

from stimg._core import keys, validate
from stimg._core import rng as _rng
from stimg._core.ledger import Seen
from stimg.data.slots import raster_libraries
from stimg.data.statistics import GeneStatistics
from stimg.image.spec import CropSpec, RasterSpec
from stimg.model import _inference, _record, _training
from stimg.model._common import Common
from stimg.model._seeded import seeded
from stimg.model._vocabulary import chosen_by, vocabulary
from stimg.model.options import STMAEOptions
from stimg.nn import MaskSpec, ReleasedMAE, STMAEModule

if TYPE_CHECKING:
    from anndata import AnnData

LIMITS = (
    "It reads counts on the lattices and at the pitches that it was trained on, and no image.",
    "Values of genes that were not measured are predictions: they follow what such tissue looked like in the training data.",
    "It is no medical device.",
)
"""What the model card says that the model cannot do."""


class _RasterPosition(ObsmField):
    """The slot of row and column, whose columns have names that need no announcement."""

    def _setup_column_names(self, adata: "AnnData") -> list[str]:
        return ["row", "col"]


class STMAE(Common):
    """Masked autoencoder of ST images: learns from crops whose values are partly hidden (Zhu et al. 2026, arXiv 2603.13432).

    Parameters
    ----------
    adata
        Set up with :meth:`setup_anndata`, and on a raster (:func:`stimg.pp.rasterize`).
    genes
        Names of the genes the model knows: its vocabulary. None: the channels of :func:`stimg.pp.select_genes`, or all genes where none were
        selected. Control probes are no genes.
    options
        What the model is made of; see :class:`stimg.model.STMAEOptions`.
    **changes
        Fields of ``options`` to change, such as ``n_latent=128``.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(20, 20), n_genes=60, rng=0)
    >>> stimg.pp.rasterize(adata)
    >>> stimg.model.STMAE.setup_anndata(adata)
    >>> model = stimg.model.STMAE(adata, n_latent=16, n_layers=1)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.get_latent_representation().shape[1]
    16

    Notes
    -----
    A saved model has in addition the crop, lattices and pitches, and the gene statistics of the training data.
    """

    _setup_names = ("layer", "library_key")
    _record_fields = _record.FIELDS
    _limits = LIMITS

    def __init__(
        self,
        adata: "AnnData | None" = None,
        genes: Sequence[str] | None = None,
        *,
        options: STMAEOptions | None = None,
        registry: dict | None = None,
        **changes: Any,
    ) -> None:
        super().__init__(adata, registry)
        self.options = (options or STMAEOptions()).changed(**changes)
        self.genes = vocabulary(adata, genes)
        self.crop = CropSpec(self.options.crop_size, self.options.min_occupied, self.options.coverage)
        self.rasters: list[dict[str, Any]] = []
        if adata is not None:
            specs = [r.spec for r in raster_libraries(adata, library_key=self._library_key).values()]
            self._adopt(specs)
        self.module = self._make_module()
        own = Seen(type(self).__name__, "model", genes=tuple(self.genes))
        self.ledger: tuple[Seen, ...] = (*chosen_by(adata, genes), own)
        self.statistics: GeneStatistics | None = None
        self._model_summary_string = (
            f"STMAE ({self.options.variant}) with {len(self.genes)} genes, crops of {self.crop.size[0]} x {self.crop.size[1]}, "
            f"n_latent: {self.options.n_latent}, n_layers: {self.options.n_layers}, likelihood: {self.options.likelihood}"
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(cls, adata: "AnnData", *, layer: str | None = None, library_key: str = keys.LIBRARY) -> None:
        """Register counts, library and raster position of ``adata``.

        Parameters
        ----------
        adata
            Observations on a raster; ``X`` or ``layers[layer]`` holds raw counts.
        layer
            Layer with raw counts.
        library_key
            Column of ``obs`` that names the capture area.

        Raises
        ------
        KeyError
            Where a slot is missing.
        ValueError
            For values that are no counts, and for views.
        """
        validate.not_empty(adata)
        cls._refuse_view(adata)
        validate.counts(adata, layer)
        validate.unique_names(adata.var_names, "gene names", todo="Run `adata.var_names_make_unique()` or add up the duplicates.")
        raster_libraries(adata, library_key=library_key)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),  # the check is done above, on all values and without chance
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, library_key),
            _RasterPosition("raster_position", keys.RC),
        ]
        cls._register(adata, fields, layer=layer, library_key=library_key)

    def _adopt(self, specs: Sequence[RasterSpec]) -> None:
        """Remember the lattices, and turn ``crop_um`` into lattice steps."""
        for spec in specs:
            kind = {"lattice": spec.lattice, "pitch_um": round(spec.pitch_um, 4)}
            if kind not in self.rasters:
                self.rasters.append(kind)
        if self.options.crop_um is not None:
            self.crop = CropSpec.from_um(
                self.options.crop_um, specs[0], min_occupied=self.options.min_occupied, coverage=self.options.coverage
            )

    def _make_module(self) -> STMAEModule | ReleasedMAE:
        o, mask = self.options, MaskSpec(tuple(self.options.mask_ratios), self.options.mask_scope)
        sizes: dict[str, Any] = {
            "n_latent": o.n_latent,
            "n_layers": o.n_layers,
            "n_decoder_layers": o.n_decoder_layers,
            "n_heads": o.n_heads,
            "dropout": o.dropout,
            "mask": mask,
        }
        with seeded(0):
            if o.variant == "released":
                hidden = o.n_hidden or 4 * o.n_latent
                return ReleasedMAE(
                    len(self.genes), size=self.crop.size, n_channels=min(o.n_channels, len(self.genes)), n_hidden=hidden, **sizes
                )
            return STMAEModule(
                len(self.genes),
                n_hidden=o.n_hidden,
                token=o.token,
                likelihood=o.likelihood,
                centre=o.centre,
                smooth_weight=o.smooth_weight,
                sparse_above=o.sparse_above,
                **sizes,
            )

    def _rule(self) -> tuple[str, int | None]:
        """Channel rule of training crops and the width of their panel."""
        rule = self.options.rule
        if rule == "auto":
            rule = "all" if len(self.genes) <= 2048 and self.options.variant == "intended" else "weighted"
        if self.options.variant == "released":
            return rule, min(self.options.n_channels, len(self.genes))
        return rule, None if rule == "all" else min(self.options.n_channels, len(self.genes))

    def train(
        self,
        max_epochs: int | None = None,
        *,
        validation: str | Sequence[str] | None = "blocks",
        validation_fraction: float = 0.1,
        early_stopping: bool = True,
        patience: int = 20,
        batch_size: int = 16,
        lr: float = 5e-4,
        weight_decay: float = 0.1,
        rng: _rng.RngLike = 0,
        checkpoint_dir: str | Path | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train on random crops, masked at random; the weights of the best validation epoch are kept.

        Parameters
        ----------
        max_epochs
            Passes over the libraries; None: as many as make about 1,500 steps, at most 400.
        validation
            What the training is stopped by: ``"blocks"`` holds out a contiguous rectangle of every library, with a margin that nothing is
            learned from; a list of library names holds out those; None trains on everything. Never random spots: their neighbours give them away.
        validation_fraction
            Part of every library, for ``"blocks"``.
        early_stopping, patience
            Whether to stop after ``patience`` epochs without a better validation loss.
        batch_size
            Crops of a step, on each device.
        lr, weight_decay
            Of AdamW; see :class:`stimg.plan.MaskedPlan`.
        rng
            Where crops, masks, dropout and held-out blocks come from. The global random state of torch, numpy and Python is left as it was.
        checkpoint_dir
            Folder for a checkpoint at the end of every epoch. Where it holds one, training goes on from there; a finished training is not
            repeated. The arguments, options and data have to be the same as then.
        **trainer_kwargs
            For :class:`scvi.train.Trainer`, and through it Lightning's: ``accelerator``, ``devices``, ``strategy``, ``precision``
            (``"bf16-mixed"``), ``enable_progress_bar`` (by default as ``stimg.settings.progress`` says), ...; and for the data module: ``num_workers``, ``augment``, ``max_samples_per_epoch``.
            ``compile=True`` compiles the network.

        Raises
        ------
        ValueError
            Where the loss becomes infinite, a library is too small to hold a block out, or the checkpoint is damaged or of another training.

        Notes
        -----
        A training that fails or is interrupted leaves the model as it was; with ``checkpoint_dir``, the same call goes on from the last epoch.
        """
        _training.train(self, self._loop(locals()), **trainer_kwargs)

    def get_latent_representation(
        self, adata: "AnnData | None" = None, *, mode: str = "tiles", overlap: int | None = None, batch_size: int = 32
    ) -> np.ndarray:
        """Return the embedding of every observation, float32 (n_obs, n_latent).

        Parameters
        ----------
        adata
            Observations on a raster; their panel may lack genes of the vocabulary. None: what the model was made with.
        mode
            ``"tiles"``: overlapping windows, blended with weights that fall towards the edge. ``"centred"``: one window around each
            observation, slower.
        overlap
            Lattice steps by which tiles overlap; None: half a window.
        batch_size
            Windows at a time.
        """
        return _inference.read_out(self, adata, self.options.n_latent, self.module.embed, mode=mode, overlap=overlap, batch_size=batch_size)

    def get_reconstruction(
        self,
        adata: "AnnData | None" = None,
        *,
        genes: Sequence[str] | None = None,
        mode: str = "tiles",
        overlap: int | None = None,
        batch_size: int = 32,
    ) -> pd.DataFrame:
        """Return predicted log1p counts per 10,000 with every measured gene visible, (n_obs, genes); ``genes`` None: the whole vocabulary."""
        wanted = self.genes if genes is None else genes
        return _inference.predict(self, adata, wanted, mode=mode, overlap=overlap, batch_size=batch_size)

    def impute_genes(
        self,
        adata: "AnnData | None" = None,
        *,
        genes: Sequence[str] | None = None,
        mode: str = "tiles",
        overlap: int | None = None,
        batch_size: int = 32,
    ) -> pd.DataFrame:
        """Return predicted log1p counts per 10,000 of genes that the model must not see, (n_obs, genes).

        ``genes`` are taken out of ``adata`` before anything is read, library sizes included, whether it measured them or not. None: the genes
        of the vocabulary that ``adata`` did not measure.
        """
        wanted = _inference.hidden_genes(self, adata, genes)
        return _inference.predict(self, adata, wanted, hidden=wanted, mode=mode, overlap=overlap, batch_size=batch_size)

    def _contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, record = super()._contents()
        return {**tensors, **_record.tensors(self)}, record

    def _facts(self) -> dict[str, Any]:
        return {"crop": list(self.crop.size), "rasters": self.rasters}

    @classmethod
    def _from_record(cls, record: Mapping[str, Any], **options: Any) -> Self:
        model = cls(None, record["genes"], options=STMAEOptions.from_dict(record["options"]), registry=record["registry"], **options)
        model.crop = CropSpec((int(record["crop"][0]), int(record["crop"][1])), model.options.min_occupied, model.options.coverage)
        model.rasters = record["rasters"]
        model.module = model._make_module()
        return model

    def _restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any], path: Path) -> None:
        super()._restore(tensors, record, path)
        self.statistics = _record.statistics_of(self, tensors)

    def _accept(self, adata: "AnnData") -> None:
        _inference.read(self, adata)
