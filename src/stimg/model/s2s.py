"""S2SImputer: fills the holes of a sparsely measured slide, and refines its lattice."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField, LayerField
from torch import Tensor

from stimg._core import keys, validate
from stimg._core import rng as _rng
from stimg._core.ledger import Seen
from stimg.data.ledger import recall
from stimg.data.slots import raster_libraries
from stimg.image.spec import RasterSpec
from stimg.model import _s2s_inference, _s2s_training
from stimg.model._common import Common
from stimg.model._s2s_base import FACTS
from stimg.model._s2s_inference import Imputed
from stimg.model._s2s_read import features
from stimg.model._seeded import seeded
from stimg.model._vocabulary import chosen_by, vocabulary
from stimg.model.s2s_options import S2SImputerOptions
from stimg.nn.s2s import S2SModule

if TYPE_CHECKING:
    from anndata import AnnData

LIMITS = (
    "A value where nothing was measured is an estimate from the spots around it; what is smaller than their distance cannot be known.",
    "Values on a lattice finer than the measured one are invented: they are smooth, and no measurement was made at that scale.",
    "It is no medical device.",
)
_SIZES = (
    "n_stages", "n_hidden", "n_blocks", "n_dense", "growth", "n_attention", "n_heads", "window", "ratio", "branch", "consistency", "context",
    "guide_dim", "loss",
)  # fmt: skip


class S2SImputer(Common):
    """Imputation of sparsely measured slides: learns from a slide made sparser, and from pictures (S2S-ST, arXiv 2507.16886).

    From the measured spots some are left out, and a cascade of small networks learns to predict them; with all measured spots it then predicts
    places where nothing was measured. All genes share one network. It starts from kriging, and learns what kriging leaves.

    Parameters
    ----------
    adata
        Set up with :meth:`setup_anndata`, on a raster (:func:`stimg.pp.rasterize`): the measured spots alone. One library is the regime "this section
        only"; several, or :meth:`impute` of another object, is the regime "other donors".
    genes
        Names of the genes to learn from. None: the channels of :func:`stimg.pp.select_genes`, or all genes.
    options
        What the model is made of; see :class:`stimg.model.S2SImputerOptions`.
    **changes
        Fields of ``options`` to change, such as ``n_stages=3``.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="st", shape=(12, 12), n_genes=30, rng=0)
    >>> stimg.pp.rasterize(adata)
    >>> measured = adata[::2].copy()
    >>> stimg.model.S2SImputer.setup_anndata(measured)
    >>> model = stimg.model.S2SImputer(measured, n_samples=4, turns=1)
    >>> model.train(max_epochs=1, steps_per_epoch=2, batch_size=8, enable_progress_bar=False)
    >>> values, sd = model.impute(targets=adata.obsm["stimg_rc"][1::2])
    >>> values.shape == sd.shape == (72, 30)
    True

    Notes
    -----
    Departures from the paper: one network for all genes; turns and flips after the sparser map was drawn, so that they reveal no spot that it lacks; weights are chosen
    on held-out measured spots; no value of a spot that was not given can be reached. :meth:`S2SImputerOptions.released` is the released design.
    """

    module: S2SModule
    _setup_names = ("layer", "library_key", "donor_key", "guide")
    _record_fields = ("lattice", "n_guide")
    _limits = LIMITS

    def __init__(
        self,
        adata: "AnnData | None" = None,
        genes: Sequence[str] | None = None,
        *,
        options: S2SImputerOptions | None = None,
        registry: dict | None = None,
        lattice: str | None = None,
        n_guide: int = 0,
        **changes: Any,
    ) -> None:
        super().__init__(adata, registry)
        self.options = (options or S2SImputerOptions()).changed(**changes)
        self.genes = vocabulary(adata, genes, least=1)
        self.lattice, self.n_guide = lattice or "square", n_guide
        if adata is not None:
            found = {r.spec.lattice for r in raster_libraries(adata, library_key=self._library_key).values()}
            if len(found) != 1:
                raise ValueError(f"adata has libraries on {sorted(found)} lattices; wanted one kind. Make a model for each.")
            (self.lattice,) = found
            self.n_guide = 0 if self._guide_key is None else features(adata, self._guide_key).shape[1]
        self.module = self._make_module()
        self.calibration = np.ones(len(self.genes), dtype=np.float32)
        """Factor of each gene's standard deviation, learned on held-out spots."""
        self.axes: pd.DataFrame | None = None
        """Axes of expression of the training sections, whose columns are genes; None of one donor."""
        self.judged_: dict[str, float] = {}
        """Squared errors on held-out spots in units of the spread: of the base, of the network, and of what is used."""
        guided = [] if adata is None or self._guide_key is None else recall(adata, only=[self._guide_key])
        self.ledger: tuple[Seen, ...] = (*chosen_by(adata, genes), *guided, Seen(type(self).__name__, "model", genes=tuple(self.genes)))
        o = self.options
        self._model_summary_string = (
            f"S2SImputer of {len(self.genes)} genes on a {self.lattice} lattice, base: {o.base}, n_stages: {o.n_stages}, n_hidden: {o.n_hidden}, "
            f"consistency: {o.consistency}, weights: {sum(p.numel() for p in self.module.parameters())}"
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: "AnnData",
        *,
        layer: str | None = None,
        library_key: str = keys.LIBRARY,
        donor_key: str | None = keys.DONOR,
        guide: str | None = None,
    ) -> None:
        """Register counts, library and raster position of ``adata``.

        Parameters
        ----------
        adata
            The measured spots, on a raster; ``X`` or ``layers[layer]`` holds raw counts.
        layer
            Layer with raw counts.
        library_key, donor_key
            Columns of ``obs`` with the capture area and the donor; ``donor_key`` may be missing there.
        guide
            Name in ``obsm`` of features that are known where nothing was measured too, such as embeddings of image tiles.

        Raises
        ------
        KeyError
            Where a slot is missing.
        ValueError
            For values that are no counts, guides that are not finite, and views.
        """
        validate.not_empty(adata)
        cls._refuse_view(adata)
        validate.counts(adata, layer)
        validate.unique_names(adata.var_names, "gene names", todo="Run `adata.var_names_make_unique()` or add up the duplicates.")
        raster_libraries(adata, library_key=library_key)
        if guide is not None:
            features(adata, guide)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),  # checked above, on all values and without chance
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, library_key),
        ]
        cls._register(adata, fields, layer=layer, library_key=library_key, donor_key=donor_key, guide=guide)

    @property
    def _guide_key(self) -> str | None:
        return self._setup.get("guide")

    def _reading(self) -> dict[str, Any]:
        return {"layer": self._layer, "library_key": self._library_key, "donor_key": self._donor_key, "guide_key": self._guide_key}

    def _make_module(self, seed: int = 0) -> S2SModule:
        sizes = {name: getattr(self.options, name) for name in _SIZES}
        with seeded(seed):
            return S2SModule(hexagonal=self.lattice == "hex", n_facts=len(FACTS), n_guide=self.n_guide, **sizes)

    def train(
        self,
        max_epochs: int | None = None,
        *,
        validation: str | Sequence[str] | None = "spots",
        validation_fraction: float = 0.15,
        early_stopping: bool = True,
        patience: int = 8,
        batch_size: int = 24,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        steps_per_epoch: int = _s2s_training.STEPS_PER_EPOCH,
        rng: _rng.RngLike = 0,
        checkpoint_dir: str | Path | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train on sparser maps; the weights of the best validation epoch are kept, and as much of the network as held-out spots bear out.

        Parameters
        ----------
        max_epochs
            Epochs of ``steps_per_epoch`` steps; None: as many as make about 240 steps, at most 40.
        validation
            What the training is stopped by. ``"spots"``: measured spots drawn by chance, which are then neither shown nor asked for in training: the
            task in small. ``"blocks"``, a list of libraries, None: as for :meth:`stimg.model.STMAE.train`.
        validation_fraction
            Part of the measured spots of every library.
        early_stopping, patience
            Whether to stop after ``patience`` epochs without a better validation loss.
        batch_size
            Maps of a step, genes and pictures together.
        lr, weight_decay
            Of AdamW; see :class:`stimg.plan.StepPlan`.
        steps_per_epoch
            Steps between two looks at the held-out spots. The time of a training does not depend on the number of genes.
        rng
            Where weights, sparser maps, genes of a step, pictures and held-out spots come from. The global random state of torch, numpy and Python is left as it was.
        checkpoint_dir
            Folder for a checkpoint at the end of every epoch. Where it holds one, training goes on from there; a finished training is not
            repeated. The arguments, options and data have to be the same as then.
        **trainer_kwargs
            For :class:`scvi.train.Trainer`, and through it Lightning's: ``accelerator``, ``devices``, ``strategy``, ``precision``
            (``"bf16-mixed"``), ``enable_progress_bar`` (by default as ``stimg.settings.progress`` says), ...; and for the loader:
            ``num_workers``. ``compile=True`` compiles the network.

        Raises
        ------
        ValueError
            Where the loss becomes infinite, a library is too small to hold spots out, or the checkpoint is damaged or of another training.

        Notes
        -----
        A training that fails or is interrupted leaves the model as it was; with ``checkpoint_dir``, the same call goes on from the last epoch.
        A trained model that is loaded with another ``adata`` and trained again is fine-tuned to it.
        """
        validate.whole(steps_per_epoch, "steps_per_epoch")
        _s2s_training.train(self, self._loop(locals()), steps_per_epoch=steps_per_epoch, **trainer_kwargs)

    def impute(
        self,
        adata: "AnnData | None" = None,
        targets: Any = None,
        *,
        genes: Sequence[str] | None = None,
        batch_size: int = 64,
    ) -> Imputed:
        """Return values and standard deviations at places without a measurement, log1p counts per 10,000, float32 (places, genes) each.

        Parameters
        ----------
        adata
            The measured spots. None: what the model was made with.
        targets
            None: the holes of the raster, empty lattice points between measured spots (:meth:`places` lists them). 2 or 4: the points that a lattice as
            many times finer has beside the measured ones. Whole (row, column) of the raster, (n, 2), where there is one library. An AnnData with
            ``obsm["stimg_rc"]``, the library in ``obs``, and the guide where the model has one; its counts are not read.
        genes
            Names in ``adata.var_names``, also others than the model was trained on: the network does not know genes by name. None: those of the model.
        batch_size
            Genes at a time.

        Notes
        -----
        The standard deviation is that of a new measurement with a typical number of counts, noise of counting included. On a four times finer lattice
        the network is used twice, and the standard deviation of the first time is added as far as it is larger.
        """
        self.need_trained()
        adata = self.need_adata(adata)
        wanted = list(self.genes) if genes is None else validate.names(genes)
        return _s2s_inference.impute(self, adata, targets, wanted, batch_size=validate.whole(batch_size, "batch_size"))

    def places(self, adata: "AnnData | None" = None, targets: int | None = None) -> pd.DataFrame:
        """Return the places behind ``targets`` None, 2 or 4 of :meth:`impute`, in its order.

        Columns are the library, row and column on the (finer) raster, and ``y``, ``x`` in full-resolution pixels.
        """
        return _s2s_inference.table(self, self.need_adata(adata), 1 if targets is None else int(targets))

    def _calibration_of(self, genes: Sequence[str]) -> np.ndarray:
        """Return the factors of ``genes``, and the median one for genes that the model was not trained on."""
        at = self.genes.get_indexer(list(genes))
        return np.where(at >= 0, self.calibration[at], np.median(self.calibration)).astype(np.float32)

    def axes_for(self, names: Sequence[str]) -> np.ndarray | None:
        """Return :attr:`axes` for the genes ``names``, (k, genes): 0 for genes that they do not have. None where there are none."""
        return None if self.axes is None else self.axes.reindex(columns=list(names), fill_value=0.0).to_numpy()

    def _check_lattices(self, specs: Sequence[RasterSpec]) -> None:
        other = sorted({spec.lattice for spec in specs} - {self.lattice})
        if other:
            raise ValueError(
                f"adata lies on a {other[0]} lattice; the model was made for a {self.lattice} one. Train a model on such data."
            )

    def _facts(self) -> dict[str, Any]:
        names = None if self.axes is None else list(self.axes.columns)
        return {"lattice": self.lattice, "n_guide": self.n_guide, "judged": self.judged_, "axes_genes": names}

    def _contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, record = super()._contents()
        if self.axes is not None:
            tensors["axes"] = torch.from_numpy(self.axes.to_numpy().copy())
        return {**tensors, "calibration": torch.from_numpy(self.calibration)}, record

    @classmethod
    def _from_record(cls, record: Mapping[str, Any], **options: Any) -> Self:
        made = S2SImputerOptions.from_dict(record["options"])
        kept = {"lattice": record["lattice"], "n_guide": int(record["n_guide"])}
        return cls(None, record["genes"], options=made, registry=record["registry"], **kept, **options)

    def _restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any], path: Path) -> None:
        super()._restore(tensors, record, path)
        if "calibration" not in tensors or tensors["calibration"].shape != (len(self.genes),):
            raise ValueError(f"{path}: the calibration of the genes is missing or damaged. Save the model again.")
        self.calibration = tensors["calibration"].numpy()
        names = record.get("axes_genes")
        if (names is None) != ("axes" not in tensors) or (names is not None and tensors["axes"].shape[1] != len(names)):
            raise ValueError(f"{path}: the axes of other donors are missing or damaged. Save the model again.")
        self.axes = None if names is None else pd.DataFrame(tensors["axes"].numpy(), columns=names)
        self.judged_ = dict(record.get("judged", {}))

    def _accept(self, adata: "AnnData") -> None:
        self._check_lattices([r.spec for r in raster_libraries(adata, library_key=self._library_key).values()])
        validate.genes(self.genes, adata.var_names, what="genes of the model", todo="Pass data with these genes.")
        if self._guide_key is not None and features(adata, self._guide_key).shape[1] != self.n_guide:
            raise ValueError(f"adata.obsm['{self._guide_key}'] has another width than the {self.n_guide} that the model reads.")
