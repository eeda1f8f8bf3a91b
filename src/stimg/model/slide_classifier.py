"""SlideClassifier: one label for a slide from the embeddings of its tiles."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField

from stimg._core import keys
from stimg._core import rng as _rng
from stimg._core.ledger import Seen
from stimg.data.bags import Bags, bags_of
from stimg.data.ledger import recall
from stimg.model import _slide_reading, _slide_training
from stimg.model._clip_read import check_source, source
from stimg.model._common import Common
from stimg.model._seeded import seeded
from stimg.model._slide_reading import SlideReading
from stimg.model.slide_options import SlideClassifierOptions
from stimg.nn.mil import MILModule

if TYPE_CHECKING:
    from anndata import AnnData


class SlideClassifier(Common):
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
    _setup_names = ("features", "label_key", "library_key", "donor_key")
    _record_fields = ("facts",)

    def __init__(
        self,
        adata: "AnnData | None" = None,
        *,
        options: SlideClassifierOptions | None = None,
        registry: dict | None = None,
        facts: dict | None = None,
        **changes: Any,
    ) -> None:
        if adata is None and facts is None:
            raise ValueError("There is no adata with slides. Pass adata, or load a model with `SlideClassifier.load`.")
        super().__init__(adata, registry)
        self.options = (options or SlideClassifierOptions()).changed(**changes)
        if facts is None:
            bags = self.bags(adata, labelled=True)
            key = self._setup["features"]
            classes = sorted({label for label in bags.labels if label is not None})
            facts = {"widths": {key: bags.width}, "sources": {key: source(adata, key)}, "classes": classes}
        self.facts: dict[str, Any] = facts
        self.classes: tuple[str, ...] = tuple(facts["classes"])
        if len(self.classes) < 2:
            raise ValueError(f"the labels of the slides are {list(self.classes)}; wanted at least two to tell apart.")
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
        cls._refuse_view(adata)
        bags_of(adata, features=features, library_key=library_key, donor_key=donor_key, label_key=label_key)
        fields = [CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, library_key)]
        cls._register(adata, fields, features=features, label_key=label_key, library_key=library_key, donor_key=donor_key)

    @property
    def width(self) -> int:
        """Number of features of a tile."""
        return int(self.facts["widths"][self._setup["features"]])

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
        with seeded(seed):
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
        lr: float = 1e-2,
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
            Of AdamW; see :class:`stimg.plan.StepPlan`. A cohort makes few steps: with ``lr=1e-3`` a hundred of them do not fit the training slides, with
            0.01 they do.
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
        _slide_training.train(self, self._loop(locals()), monitor=monitor, **trainer_kwargs)

    def read_slides(self, adata: "AnnData | None" = None) -> SlideReading:
        """Return probabilities, embeddings, attention and contributions at once; labels are not read.

        The slides are those of ``adata``, or of the data that the model was set up with. See the methods below for each.
        """
        self.need_trained()
        found = self.need_adata(adata)
        if not found.n_obs:
            raise ValueError("adata has no observations; wanted at least one.")
        return _slide_reading.read(self, found)

    def predict_proba(self, adata: "AnnData | None" = None) -> pd.DataFrame:
        """Return the probability of each class for each slide, (slides, classes), slides in sorted order.

        With ``class_weight="balanced"`` they are those of a cohort in which all classes are equally frequent.
        """
        return self.read_slides(adata).proba

    def get_attention(self, adata: "AnnData | None" = None) -> np.ndarray:
        """Return the weight of every observation in its slide, float32 (n_obs,); the weights of a slide sum to 1.

        It says which tiles the pooled slide is made of, not which class they speak for.
        """
        return self.read_slides(adata).attention

    def get_contribution(self, adata: "AnnData | None" = None) -> pd.DataFrame:
        """Return what every observation adds to the logits of its slide, less the mean over classes, float32 (n_obs, classes).

        Above zero the tile speaks for the class. The tiles of a slide and a constant of the class add up to what the softmax is taken of.
        """
        return self.read_slides(adata).contribution

    def get_slide_embedding(self, adata: "AnnData | None" = None) -> pd.DataFrame:
        """Return the pooled embedding of each slide, (slides, n_hidden), slides in sorted order."""
        return self.read_slides(adata).embedding

    def _facts(self) -> dict[str, Any]:
        return {"facts": self.facts}

    @classmethod
    def _from_record(cls, record: Mapping[str, Any], **options: Any) -> Self:
        made = SlideClassifierOptions.from_dict(record["options"])
        return cls(None, options=made, registry=record["registry"], facts=record["facts"], **options)

    def _accept(self, adata: "AnnData") -> None:
        self.bags(adata, labelled=True)

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
            """Attention over the tiles of a slide, learned together with the label."""
            read = [features] if features is not None else list(task.extra["features"])
            adata = _slide_reading.joined(task.train, read)
            cls.setup_anndata(adata, features=_slide_reading.JOINED, label_key="label")
            model = cls(adata, options=made)
            model.train(rng=int(rng.integers(2**31)), **trained)
            found = model.predict_proba(_slide_reading.joined(task.test, read)).reindex(columns=list(task.extra["classes"]), fill_value=0.0)
            return {str(name): row for name, row in zip(found.index, found.to_numpy(), strict=True)}

        return classify
