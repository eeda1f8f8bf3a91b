"""SlideClassifier: one label for a slide from the embeddings of its tiles."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField
from scvi.model.base import BaseModelClass

from stimg._core import hashing, keys, validate
from stimg._core import rng as _rng
from stimg._core.ledger import Seen
from stimg.data.bags import Bags, bags_of, batch_of
from stimg.data.ledger import ids, recall
from stimg.data.tables import table_of
from stimg.model import _kept, _saving, _slide_training
from stimg.model._clip_read import check_source, source
from stimg.model._common import Common
from stimg.model.slide_options import SlideClassifierOptions
from stimg.nn.mil import MILModule

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
SETUP = ("features", "label_key", "library_key", "donor_key")
FIELDS = ("facts",)


class SlideClassifier(Common, BaseModelClass):
    """Attention-based multiple-instance learning (Ilse et al. 2018, arXiv 1802.04712): a mutation, a subtype, any label of a whole slide.

    A slide is a bag of embedded tiles (or spots). Which tiles carry the label is not known; the model learns weights of the tiles together with the
    label. Read its scores beside those of averaged tiles with a logistic regression: ``stimg.bench.run("slides", ...)`` always does.

    Parameters
    ----------
    adata
        Set up with :meth:`setup_anndata`.
    options
        What the model is made of; see :class:`stimg.model.SlideClassifierOptions`.
    **changes
        Fields of ``options`` to change, such as ``pooling="mean"``.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate_cohort(n_donors=12, n_tiles=30, rng=0)
    >>> stimg.model.SlideClassifier.setup_anndata(adata, features="X_simulated", label_key="label")
    >>> model = stimg.model.SlideClassifier(adata, n_hidden=16)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.predict_proba().shape, model.get_attention().shape
    ((12, 2), (360,))
    """

    module: MILModule

    def __init__(
        self,
        adata: "AnnData | None" = None,
        *,
        options: SlideClassifierOptions | None = None,
        registry: dict | None = None,
        facts: dict | None = None,
        **changes: Any,
    ) -> None:
        super().__init__(adata, registry)
        self.options = (options or SlideClassifierOptions()).changed(**changes)
        if facts is None:
            if adata is None:
                raise ValueError("There is no adata with slides. Pass adata, or load a model with `SlideClassifier.load`.")
            bags = self.bags(adata, labelled=True)
            key = self._setup["features"]
            classes = sorted({label for label in bags.labels if label is not None})
            facts = {"widths": {key: bags.width}, "sources": {key: source(adata, key)}, "classes": classes}
        self.facts: dict[str, Any] = facts
        self.classes: tuple[str, ...] = tuple(facts["classes"])
        if len(self.classes) < 2:
            raise ValueError(f"the slides have {len(self.classes)} label {list(self.classes)}; wanted at least two to tell apart.")
        self.module = self._make_module()
        self.genes = pd.Index([], dtype=str)
        before = [] if adata is None else recall(adata, only=[self._setup["features"]])
        self.ledger: tuple[Seen, ...] = (*before, Seen(type(self).__name__, "model"))
        self.monitor_: str | None = None
        self._model_summary_string = f"SlideClassifier of {self._setup['features']} ({self.width} features) into {', '.join(self.classes)}, pooling: {self.options.pooling}"
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: "AnnData",
        *,
        features: str,
        label_key: str,
        library_key: str = keys.LIBRARY,
        donor_key: str = keys.DONOR,
    ) -> None:
        """Register the slides of ``adata``; no count is read.

        Parameters
        ----------
        adata
            Observations (tiles, spots or cells), all slides in one table.
        features
            Slot of ``obsm`` with their embedding.
        label_key
            Column of ``obs`` with the label of the slide: one for all its observations. Slides whose label is missing are predicted, and not
            learned from.
        library_key, donor_key
            Columns of ``obs`` with the slide and the donor. Donors are never divided between training and validation.

        Raises
        ------
        KeyError
            Where a slot is missing.
        ValueError
            For features that are not finite, slides with several labels or donors, and views.
        """
        if adata.is_view:
            raise ValueError("adata is a view of another object; set up `adata.copy()` instead.")
        if not adata.n_obs:
            raise ValueError("adata has no observations; wanted at least one.")
        bags_of(adata, features=features, library_key=library_key, donor_key=donor_key, label_key=label_key)
        arguments = cls._get_setup_method_args(
            cls=cls, adata=adata, features=features, label_key=label_key, library_key=library_key, donor_key=donor_key
        )
        manager = AnnDataManager(fields=[CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, library_key)], setup_method_args=arguments)
        manager.register_fields(adata)
        cls.register_manager(manager)

    @classmethod
    def setup_spatialdata(cls, sdata: "SpatialData", *, table_key: str = "table", **options: Any) -> None:
        """Do :meth:`setup_anndata` for the table ``sdata.tables[table_key]``, which is then the ``adata`` of the model."""
        cls.setup_anndata(table_of(sdata, table_key), **options)

    @property
    def width(self) -> int:
        """Number of features of a tile."""
        return int(self.facts["widths"][self._setup["features"]])

    @property
    def _setup(self) -> dict[str, Any]:
        return self.registry_["setup_args"]

    @property
    def _layer(self) -> str | None:
        return None

    def bags(self, adata: "AnnData", *, labelled: bool = False) -> Bags:
        """Return the slides of ``adata`` as the model reads them, with their labels where ``labelled``."""
        known = self._setup
        found = bags_of(
            adata,
            features=known["features"],
            library_key=known["library_key"],
            donor_key=known["donor_key"],
            label_key=known["label_key"] if labelled else None,
        )
        if hasattr(self, "facts"):
            if found.width != self.width:
                raise ValueError(
                    f"adata.obsm[{known['features']!r}] has {found.width} columns; the model was made for {self.width}. Use the same encoder and fields."
                )
            check_source(self.facts["sources"].get(known["features"], {}), adata, known["features"])
        return found

    def _make_module(self, seed: int = 0) -> MILModule:
        o = self.options
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
            return MILModule(
                self.width,
                len(self.classes),
                n_hidden=o.n_hidden,
                n_attention=o.n_attention,
                dropout=o.dropout,
                pooling=o.pooling,
            )

    def train(
        self,
        max_epochs: int | None = None,
        *,
        validation: str | Sequence[str] | None = None,
        validation_fraction: float = 0.2,
        early_stopping: bool = True,
        monitor: str = "validation_auroc",
        patience: int = 50,
        batch_size: int = 16,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        rng: _rng.RngLike = 0,
        checkpoint_dir: str | Path | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train on slides; the last weights are kept, or with validation those of its best epoch.

        Parameters
        ----------
        max_epochs
            Passes over the slides; None: as many as make about 600 steps, at most 200.
        validation
            What the training is stopped by: ``"donors"`` holds out some donors of each class, a list those that it names, None nothing: a handful of
            donors is a bad judge of when to stop, and is missed in the training. Hold some out where there are hundreds.
        validation_fraction
            Share of the donors of each class, at least one.
        early_stopping, patience
            Whether to stop after ``patience`` epochs without a better validation.
        monitor
            What is better: ``"validation_auroc"`` or ``"validation_loss"``, see :class:`stimg.plan.BagPlan`. The loss rises with the confidence of
            wrong answers while the order of the slides still improves.
        batch_size
            Slides of a step, on each device.
        lr, weight_decay
            Of AdamW; see :class:`stimg.plan.StepPlan`.
        rng
            Where weights, batches, tiles, dropout and held-out donors come from. The global random state of torch, numpy and Python is left as it was.
        checkpoint_dir
            Folder for a checkpoint at the end of every epoch. Where it holds one, training goes on from there; a finished training is not
            repeated. The arguments, options and data have to be the same as then.
        **trainer_kwargs
            For :class:`scvi.train.Trainer`, and through it Lightning's: ``accelerator``, ``devices``, ``enable_progress_bar``, ...; and for the data:
            ``num_workers``. ``compile=True`` compiles the network.

        Raises
        ------
        ValueError
            Where the loss becomes infinite, a class has one donor alone, or the checkpoint is damaged or of another training.
        """
        if self.adata is None:
            raise ValueError("The model has no adata to train on. Load it with `SlideClassifier.load(path, adata)`.")
        _slide_training.train(
            self,
            max_epochs=max_epochs,
            validation=validation,
            validation_fraction=validation_fraction,
            early_stopping=early_stopping,
            monitor=monitor,
            patience=patience,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            seed=_rng.as_seed(rng),
            checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir),
            **trainer_kwargs,
        )

    @torch.inference_mode()
    def _read(self, adata: "AnnData | None") -> tuple[Bags, list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Return the slides, probabilities and embedding of each, and the weight of every observation; one slide at a time."""
        if not self.is_trained_:
            raise RuntimeError("The model is not trained. Run `model.train()` first.")
        found = self.adata if adata is None else adata
        if found is None:
            raise ValueError("The model was loaded without data. Pass `adata`, or load it with `SlideClassifier.load(path, adata)`.")
        bags = self.bags(found)
        self.module.eval()
        weights = np.zeros(found.n_obs, dtype=np.float32)
        answers, pooled = [], []
        for rows in bags.rows:
            batch = {name: value.to(self.device) for name, value in batch_of(bags.features, [rows]).items()}
            slide, weight = self.module.pool(batch["items"], batch["bag"], 1)
            answers.append(torch.softmax(self.module.classify(slide).double(), dim=1)[0].cpu().numpy())
            pooled.append(slide[0].float().cpu().numpy())
            weights[rows] = weight.float().cpu().numpy()
        return bags, answers, pooled, weights

    def predict_proba(self, adata: "AnnData | None" = None) -> pd.DataFrame:
        """Return the probability of each class for each slide, (slides, classes), slides in sorted order; labels are not read.

        With ``class_weight="balanced"`` they are those of a cohort in which all classes are equally frequent.
        """
        bags, answers, _, _ = self._read(adata)
        return pd.DataFrame(np.stack(answers), index=pd.Index(bags.names, name=self._library_key), columns=list(self.classes))

    def get_attention(self, adata: "AnnData | None" = None) -> np.ndarray:
        """Return the weight of every observation in its slide, float32 (n_obs,); the weights of a slide sum to 1.

        It says which tiles the pooled slide is made of, not which class they speak for.
        """
        return self._read(adata)[3]

    def get_slide_embedding(self, adata: "AnnData | None" = None) -> pd.DataFrame:
        """Return the pooled embedding of each slide, (slides, n_hidden), slides in sorted order."""
        bags, _, pooled, _ = self._read(adata)
        return pd.DataFrame(np.stack(pooled), index=pd.Index(bags.names, name=self._library_key))

    def identity(self, adata: "AnnData") -> dict[str, Any]:
        """Return what a record of a result should say of this model: class, hash of the weights, and how many of the rows of ``adata`` it was trained on."""
        weights = np.concatenate([v.detach().cpu().float().numpy().ravel() for v in self.module.state_dict().values()])
        return {
            "model": type(self).__name__,
            "model_hash": hashing.of_array(weights),
            "n_obs_seen_in_training": int(np.isin(ids(adata, library_key=self._library_key), self.ledger[-1].ids).sum()),
        }

    def save(self, dir_path: str | Path, overwrite: bool = False) -> None:  # type: ignore[override]
        """Write ``model.safetensors`` and ``model.json`` into ``dir_path``, whole or not at all; the data are not saved."""
        if not self.is_trained_:
            raise RuntimeError("The model is not trained. Run `model.train()` first.")
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
            return
        setup = {name: self._setup[name] for name in SETUP}
        tensors, record = _kept.contents(self, self.module.state_dict(), monitor=self.monitor_ or "", setup=setup, facts=self.facts)
        _saving.write(Path(dir_path), tensors, record, overwrite=overwrite)
        logger.info("Saved %d classes, %d weights to %s", len(self.classes), sum(p.numel() for p in self.module.parameters()), dir_path)

    @classmethod
    def load(  # type: ignore[override]
        cls, dir_path: str | Path, adata: "AnnData | None" = None, *, device: str | torch.device = "cpu"
    ) -> "SlideClassifier":
        """Return the model that :meth:`save` wrote; nothing is unpickled. ``adata``, where given, is set up as the training data were."""
        path = Path(dir_path)
        tensors, record = _saving.read(path, cls.__name__, FIELDS)
        options = SlideClassifierOptions.from_dict(record["options"])
        model = cls(None, options=options, registry=record["registry"], facts=record["facts"])
        _kept.restore(model, tensors, record, path)
        model.monitor_ = record["fit"]["monitor"] or None
        model.to_device(torch.device(device))
        if adata is not None:
            cls.setup_anndata(adata, **record["setup"])
            model.bags(adata, labelled=True)
            model._adata = adata
            model._adata_manager = model._get_most_recent_anndata_manager(adata, required=True)
            model._register_manager_for_instance(model._adata_manager)
        return model

    @classmethod
    def as_method(cls, *, features: str | None = None, **options: Any) -> Callable[[Any, np.random.Generator], dict[str, np.ndarray]]:
        """Return this model as a method of the protocol ``"slides"``: ``stimg.bench.run("slides", ..., methods={"attention": ...})``.

        Parameters
        ----------
        features
            One of the slots that the run may read; None: all of them beside each other.
        **options
            Fields of :class:`stimg.model.SlideClassifierOptions`, and arguments of :meth:`train`.
        """
        own = {f.name for f in fields(SlideClassifierOptions)}
        made = SlideClassifierOptions().changed(**{k: v for k, v in options.items() if k in own})
        trained = {"enable_progress_bar": False, **{k: v for k, v in options.items() if k not in own}}

        def classify(task: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
            """Attention over the tiles of a slide, trained with some of the training donors held out."""
            read = [features] if features is not None else list(task.extra["features"])
            adata = _joined(task.train, read)
            cls.setup_anndata(adata, features=_JOINED, label_key="label")
            model = cls(adata, options=made)
            model.train(rng=int(rng.integers(2**31)), **trained)
            found = model.predict_proba(_joined(task.test, read)).reindex(columns=list(task.extra["classes"]), fill_value=0.0)
            return {str(name): row for name, row in zip(found.index, found.to_numpy(), strict=True)}

        return classify


_JOINED = "X_joined"


def _joined(sections: Sequence["AnnData"], features: Sequence[str]) -> "AnnData":
    """Return the observations of several slides under each other, their features beside each other."""
    from anndata import AnnData

    obs = pd.concat([a.obs for a in sections])
    obs.index = [f"{library}/{name}" for library, name in zip(obs[keys.LIBRARY], obs.index, strict=True)]
    values = np.concatenate(
        [
            np.concatenate([validate.slot(a.obsm, "obsm", f, todo="Pass it as `features` of the run.") for f in features], axis=1)
            for a in sections
        ]
    )
    return AnnData(None, obs=obs, obsm={_JOINED: values})
