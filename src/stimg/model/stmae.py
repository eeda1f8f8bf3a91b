"""STMAE: a masked autoencoder of ST images."""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField, ObsmField
from scvi.model.base import BaseModelClass

from stimg._core import hashing, keys, validate
from stimg._core import rng as _rng
from stimg._core.panel import is_control
from stimg.data.inference import InferenceDataset
from stimg.data.library import Library, libraries
from stimg.data.slots import raster_libraries
from stimg.data.statistics import GeneStatistics, gene_statistics
from stimg.data.tables import table_of
from stimg.image.blend import Blend, taper
from stimg.image.spec import CropSpec, RasterSpec
from stimg.model import _saving, _training
from stimg.model.options import STMAEOptions
from stimg.nn import MaskSpec, ReleasedMAE, STMAEModule
from stimg.nn.stmae import Offsets

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
PITCH_TOLERANCE = 0.05


class _RasterPosition(ObsmField):
    """The slot of row and column, whose columns have names that need no announcement."""

    def _setup_column_names(self, adata: "AnnData") -> list[str]:
        return ["row", "col"]


class STMAE(BaseModelClass):
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
        if genes is None:
            if adata is None:
                raise ValueError("genes is None and there is no adata to take them from; pass the vocabulary.")
            genes = self._default_genes(adata)
        self.genes = pd.Index(validate.names(genes))
        validate.unique_names(self.genes, "genes in the vocabulary", todo="Pass every gene once.")
        if len(self.genes) < 2:
            raise ValueError(f"The vocabulary has {len(self.genes)} genes; wanted at least 2.")
        self.crop = CropSpec(self.options.crop_size, self.options.min_occupied, self.options.coverage)
        self.rasters: list[dict[str, Any]] = []
        if adata is not None:
            validate.genes(self.genes, adata.var_names, what="genes of the vocabulary", todo="Pass names of adata.var_names.")
            specs = [r.spec for r in raster_libraries(adata, library_key=self._library_key).values()]
            self._adopt(specs)
        self.module = self._make_module()
        self.seen = np.empty(0, dtype=np.uint64)
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

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.module.parameters()).device

    @property
    def _layer(self) -> str | None:
        return self.registry_["setup_args"]["layer"]

    @property
    def _library_key(self) -> str:
        return self.registry_["setup_args"]["library_key"]

    @staticmethod
    def _default_genes(adata: "AnnData") -> list[str]:
        gene = ~is_control(adata.var)
        if keys.CHANNEL in adata.var:
            order = adata.var[keys.CHANNEL_ORDER].to_numpy()
            chosen = np.flatnonzero(adata.var[keys.CHANNEL].to_numpy() & gene)
            return adata.var_names[chosen[np.argsort(order[chosen], kind="stable")]].tolist()
        return adata.var_names[gene].tolist()

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
                centre=o.centre and o.token == "linear",
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

    def _libraries(self, adata: "AnnData", rows: np.ndarray | None = None, hidden: Sequence[str] = ()) -> list[Library]:
        """Return the libraries of ``adata`` as this model reads them, without the genes ``hidden``."""
        if len(hidden):
            adata = adata[:, ~adata.var_names.isin(list(hidden))]
        for name, raster in raster_libraries(adata, library_key=self._library_key).items():
            spec = raster.spec
            if not any(k["lattice"] == spec.lattice and abs(spec.pitch_um / k["pitch_um"] - 1) <= PITCH_TOLERANCE for k in self.rasters):
                raise ValueError(
                    f"library {name!r} lies on a {spec.lattice} lattice with a pitch of {spec.pitch_um:g} µm; the model knows {self.rasters}. "
                    "Resample it (`stimg.pp.resample`), check its scale, or train a model on such data."
                )
        return libraries(adata, vocabulary=self.genes, layer=self._layer, library_key=self._library_key, rows=rows)

    def _need_trained(self) -> GeneStatistics:
        if not self.is_trained_ or self.statistics is None:
            raise RuntimeError("The model is not trained. Run `model.train()` first.")
        return self.statistics

    def _offsets(self, found: Sequence[Library], device: torch.device | None = None) -> Offsets:
        statistics = gene_statistics(found, len(self.genes), like=self._need_trained())
        device = device or self.device
        return Offsets(*(torch.from_numpy(a).to(device) for a in (statistics.mean, statistics.composition, statistics.coverage)))

    def _windows(
        self, adata: "AnnData | None", mode: str, overlap: int | None, batch_size: int, hidden: Sequence[str] = ()
    ) -> tuple[InferenceDataset, Offsets, Iterator[dict[str, torch.Tensor]]]:
        self._need_trained()
        adata = self.adata if adata is None else adata
        validate.not_empty(adata)
        found = self._libraries(adata, hidden=hidden)
        rule, n_channels = ("variance", self._rule()[1]) if self.options.variant == "released" else ("all", None)
        step = min(self.crop.size) // 2 if overlap is None else overlap
        dataset = InferenceDataset(
            found, self.crop.size, mode=mode, overlap=step if mode == "tiles" else 0, rule=rule, n_channels=n_channels
        )

        def batches() -> Iterator[dict[str, torch.Tensor]]:
            for start in range(0, len(dataset), batch_size):
                batch = dataset.__getitems__(range(start, min(start + batch_size, len(dataset))))
                yield {k: v.to(self.device) for k, v in batch.items()}  # type: ignore[attr-defined]

        return dataset, self._offsets(found), batches()

    @torch.inference_mode()
    def _read_out(
        self, adata: "AnnData | None", dim: int, mode: str, overlap: int | None, batch_size: int, what: Any, hidden: Sequence[str] = ()
    ) -> np.ndarray:
        """Return what ``what(batch, offsets)`` says of every pixel, blended over windows, float32 (n_obs, dim); NaN for observations off the raster."""
        batch_size = validate.whole(batch_size, "batch_size")
        validate.not_empty(self.adata if adata is None else adata)
        n_obs = (self.adata if adata is None else adata).n_obs
        blend, weight = Blend(n_obs, dim), taper(self.crop.size, "centre" if mode == "centred" else "triangle")
        self.module.eval()
        dataset, offsets, batches = self._windows(adata, mode, overlap, batch_size, hidden)
        for batch in batches:
            blend.add(batch["obs"].cpu().numpy(), what(batch, offsets).float().cpu().numpy(), weight)
        out = np.full((n_obs, dim), np.nan, dtype=np.float32)
        out[dataset.rows] = blend.result(dataset.rows, at=dataset.at)
        return out

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
        return self._read_out(adata, self.options.n_latent, mode, overlap, batch_size, self.module.embed)

    def _predict(
        self, adata: "AnnData | None", genes: Sequence[str], hidden: Sequence[str], mode: str, overlap: int | None, batch_size: int
    ) -> pd.DataFrame:
        if not isinstance(self.module, STMAEModule):
            raise ValueError(
                "variant='released' has a positional output, so its values belong to no gene; wanted variant='intended' for predictions."
            )
        module, names = self.module, validate.names(genes)
        validate.unique_names(pd.Index(names), "genes asked for", todo="Name each gene once.")
        index = torch.from_numpy(
            validate.genes(
                names, self.genes, what="genes asked for", todo="The model predicts genes of its vocabulary alone (`model.genes`)."
            )
        ).to(self.device)
        values = self._read_out(
            adata, len(names), mode, overlap, batch_size, lambda batch, offsets: module.reconstruct(batch, offsets, index), hidden
        )
        return pd.DataFrame(values, index=(self.adata if adata is None else adata).obs_names, columns=names)

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
        return self._predict(adata, self.genes if genes is None else genes, (), mode, overlap, batch_size)

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
        names = (self.adata if adata is None else adata).var_names
        wanted = self.genes[~self.genes.isin(names)] if genes is None else pd.Index(validate.names(genes))
        if not len(wanted):
            raise ValueError(f"adata measured all {len(self.genes)} genes of the vocabulary; pass `genes` with those to hide and predict.")
        shared = names[names.isin(self.genes)]
        if len(shared) and shared.isin(wanted).all():
            raise ValueError(
                f"genes names all {len(shared)} genes that adata shares with the model, so nothing is left to predict them from. Leave some out."
            )
        return self._predict(adata, wanted, wanted, mode, overlap, batch_size)

    def save(self, dir_path: str | Path, overwrite: bool = False) -> None:  # type: ignore[override]
        """Write ``model.safetensors`` and ``model.json`` into ``dir_path``, whole or not at all.

        Saved are weights, vocabulary, options, lattice and pitch, gene statistics, hashes of the training observations, and the history. The
        data are not saved. Under distributed training every rank may call it; the first one writes.
        """
        statistics = self._need_trained()
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
            return
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"statistics.{n}": torch.from_numpy(np.ascontiguousarray(getattr(statistics, n))) for n in _training.STATISTICS}
        tensors["seen"] = torch.from_numpy(self.seen.view(np.int64))
        import stimg

        record = {
            "class": type(self).__name__,
            "version": stimg.__version__,
            "options": self.options.to_dict(),
            "crop": list(self.crop.size),
            "genes": self.genes.tolist(),
            "genes_hash": hashing.of_strings(self.genes),
            "rasters": self.rasters,
            "setup": {"layer": self._layer, "library_key": self._library_key},
            "registry": self.registry_,
            "history": _training._curves(self),
            "fit": _training.fit_record(self),
        }
        _saving.write(Path(dir_path), tensors, record, overwrite=overwrite)
        logger.info("Saved %d genes, %d weights to %s", len(self.genes), sum(p.numel() for p in self.module.parameters()), dir_path)

    @classmethod
    def load(cls, dir_path: str | Path, adata: "AnnData | None" = None, *, device: str | torch.device = "cpu") -> "STMAE":  # type: ignore[override]
        """Return the model that :meth:`save` wrote; nothing is unpickled.

        ``adata``, where given, is set up as the training data were: it must share genes with the vocabulary and lie on such a lattice.
        Without it the model reads the objects passed to its methods.
        """
        tensors, record = _saving.read(Path(dir_path), cls.__name__)
        if hashing.of_strings(record["genes"]) != record["genes_hash"]:
            raise ValueError(f"{dir_path}: the list of genes does not match its hash; the file was changed. Save the model again.")
        model = cls(None, record["genes"], options=STMAEOptions.from_dict(record["options"]), registry=record["registry"])
        model.crop = CropSpec((int(record["crop"][0]), int(record["crop"][1])), model.options.min_occupied, model.options.coverage)
        model.rasters = record["rasters"]
        model.module = model._make_module()
        _training.restore(model, tensors, record, Path(dir_path))
        model.to_device(torch.device(device))
        if adata is not None:
            cls.setup_anndata(adata, **record["setup"])
            model._libraries(adata)
            model._adata = adata
            model._adata_manager = model._get_most_recent_anndata_manager(adata, required=True)
            model._register_manager_for_instance(model._adata_manager)
        return model

    def identity(self, adata: "AnnData") -> dict[str, Any]:
        """Return what a record of a result should say of this model: class, hashes of weights and vocabulary, and how many of the rows of ``adata`` it was trained on."""
        weights = np.concatenate([v.detach().cpu().float().numpy().ravel() for v in self.module.state_dict().values()])
        hashes = self._hashes(adata)
        return {
            "model": type(self).__name__,
            "model_hash": hashing.of_array(weights),
            "panel_hash": hashing.of_strings(self.genes),
            "n_shared_genes": int(self.genes.isin(adata.var_names).sum()),
            "n_obs_seen_in_training": int(np.isin(hashes, self.seen).sum()),
        }

    def _hashes(self, adata: "AnnData") -> np.ndarray:
        """Return one uint64 per observation that depends on its counts of the vocabulary's genes alone; 0 where there are none."""
        at = adata.var_names.get_indexer(self.genes)
        known = np.flatnonzero(at >= 0)
        picked = validate.counts(adata, self._layer)[:, at[known]]
        shape = (adata.n_obs, len(self.genes))
        return hashing.of_observations(sp.csr_matrix((picked.data, known[picked.indices], picked.indptr), shape=shape))

    def epochs(self) -> int:
        """Return the number of epochs trained."""
        return max((len(table) for table in (self.history_ or {}).values()), default=0)

    def is_finite(self) -> bool:
        """Return whether every weight is a finite number."""
        return all(math.isfinite(float(p.detach().abs().max())) for p in self.module.parameters())
