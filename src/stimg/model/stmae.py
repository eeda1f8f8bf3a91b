"""STMAE: a masked autoencoder of ST images."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField, ObsmField
from scvi.model.base import BaseModelClass

from stimg._core import keys, validate
from stimg._core import rng as _rng
from stimg._core.ledger import Seen
from stimg.data.slots import raster_libraries
from stimg.data.statistics import GeneStatistics
from stimg.data.tables import table_of
from stimg.image.spec import CropSpec, RasterSpec
from stimg.model import _card, _inference, _kept, _record, _saving, _training
from stimg.model._common import Common
from stimg.model._vocabulary import chosen_by, vocabulary
from stimg.model.options import STMAEOptions
from stimg.nn import MaskSpec, ReleasedMAE, STMAEModule

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
PITCH_TOLERANCE = 0.05
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


class STMAE(Common, BaseModelClass):
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
    """

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
        if adata.is_view:
            raise ValueError("adata is a view of another object; set up `adata.copy()` instead.")
        validate.counts(adata, layer)
        validate.unique_names(adata.var_names, "gene names", todo="Run `adata.var_names_make_unique()` or add up the duplicates.")
        raster_libraries(adata, library_key=library_key)
        arguments = cls._get_setup_method_args(cls=cls, adata=adata, layer=layer, library_key=library_key)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),  # the check is done above, on all values and without chance
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, library_key),
            _RasterPosition("raster_position", keys.RC),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=arguments)
        manager.register_fields(adata)
        cls.register_manager(manager)

    @classmethod
    def setup_spatialdata(
        cls, sdata: "SpatialData", *, table_key: str = "table", layer: str | None = None, library_key: str = keys.LIBRARY
    ) -> None:
        """Do :meth:`setup_anndata` for the table ``sdata.tables[table_key]``, which is then the ``adata`` of the model."""
        cls.setup_anndata(table_of(sdata, table_key), layer=layer, library_key=library_key)

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
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs too
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
        if self.adata is None:
            raise ValueError("The model has no adata to train on. Load it with `STMAE.load(path, adata)`.")
        _training.train(
            self,
            max_epochs=max_epochs,
            validation=validation,
            validation_fraction=validation_fraction,
            early_stopping=early_stopping,
            patience=patience,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            seed=_rng.as_seed(rng),
            checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir),
            **trainer_kwargs,
        )

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

    def save(self, dir_path: str | Path, overwrite: bool = False) -> None:  # type: ignore[override]
        """Write ``model.safetensors``, ``model.json`` and a model card, ``README.md``, into ``dir_path``, whole or not at all.

        Saved are weights, vocabulary, options, lattice and pitch, gene statistics, hashes of the training observations, and the history. The
        data are not saved. Under distributed training every rank may call it; the first one writes.
        """
        _inference.need_trained(self)
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
            return
        tensors, record = _record.contents(self)
        texts = {_card.NAME: _card.card(self, record, limits=LIMITS)}
        _saving.write(Path(dir_path), tensors, record, overwrite=overwrite, texts=texts)
        logger.info("Saved %d genes, %d weights to %s", len(self.genes), sum(p.numel() for p in self.module.parameters()), dir_path)

    @classmethod
    def load(cls, dir_path: str | Path, adata: "AnnData | None" = None, *, device: str | torch.device = "cpu") -> "STMAE":  # type: ignore[override]
        """Return the model that :meth:`save` wrote; nothing is unpickled.

        ``adata``, where given, is set up as the training data were: it must share genes with the vocabulary and lie on such a lattice.
        Without it the model reads the objects passed to its methods.
        """
        tensors, record = _saving.read(Path(dir_path), cls.__name__, _record.FIELDS)
        _kept.check_genes(record, Path(dir_path))
        model = cls(None, record["genes"], options=STMAEOptions.from_dict(record["options"]), registry=record["registry"])
        model.crop = CropSpec((int(record["crop"][0]), int(record["crop"][1])), model.options.min_occupied, model.options.coverage)
        model.rasters = record["rasters"]
        model.module = model._make_module()
        _record.restore(model, tensors, record, Path(dir_path))
        model.to_device(torch.device(device))
        if adata is not None:
            cls.setup_anndata(adata, **record["setup"])
            _inference.read(model, adata)
            model._adata = adata
            model._adata_manager = model._get_most_recent_anndata_manager(adata, required=True)
            model._register_manager_for_instance(model._adata_manager)
        return model
