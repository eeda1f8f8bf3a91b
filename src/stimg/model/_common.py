"""What all models are made from: what of setting up, saving, loading and being asked does not depend on what is learned."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd
import torch
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass
from torch import Tensor

from stimg._core.ledger import Seen
from stimg.data.tables import table_of
from stimg.model import _card, _kept, _saving
from stimg.model._fit import Loop
from stimg.plan.steps import MONITOR

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


class Common(BaseModelClass):
    """Base of the model classes.

    A subclass has ``options``, ``module``, ``genes`` (empty where no count is read) and ``ledger``, whose last record is its own. It says what a
    saved model holds beside that (:attr:`_setup_names`, :meth:`_facts`), how such a model is made again (:meth:`_from_record`), and which data
    it can read (:meth:`_accept`).
    """

    module: Any
    options: Any
    genes: pd.Index
    ledger: tuple[Seen, ...]
    history_: Any
    monitor_: str | None = MONITOR
    """What its training is stopped by."""

    _setup_names: ClassVar[tuple[str, ...]] = ()
    """Arguments of ``setup_anndata`` with which a loaded model sets up other data."""
    _record_fields: ClassVar[tuple[str, ...]] = ()
    """Names of :meth:`_facts` without which a saved model is damaged."""
    _limits: ClassVar[tuple[str, ...]] = ()
    """What the model card says that the model cannot do; a class without limits writes no card."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.module.parameters()).device  # type: ignore[no-any-return]

    @property
    def _setup(self) -> dict[str, Any]:
        return self.registry_["setup_args"]  # type: ignore[no-any-return]

    @property
    def _layer(self) -> str | None:
        return self._setup.get("layer")

    @property
    def _library_key(self) -> str:
        return self._setup["library_key"]  # type: ignore[no-any-return]

    @property
    def _donor_key(self) -> str | None:
        return self._setup.get("donor_key")

    @staticmethod
    def _refuse_view(adata: "AnnData") -> None:
        """Raise a ValueError where ``adata`` is a view, or has no observations."""
        if adata.is_view:
            raise ValueError("adata is a view of another object; set up `adata.copy()` instead.")
        if not adata.n_obs:
            raise ValueError("adata has no observations; wanted at least one.")

    @classmethod
    def _register(cls, adata: "AnnData", fields: Sequence[Any], **setup: Any) -> None:
        """Register ``fields`` of ``adata`` with scvi-tools; ``setup`` are the arguments of ``setup_anndata``."""
        manager = AnnDataManager(fields=list(fields), setup_method_args=cls._get_setup_method_args(cls=cls, adata=adata, **setup))
        manager.register_fields(adata)
        cls.register_manager(manager)

    @classmethod
    def setup_spatialdata(cls, sdata: "SpatialData", *, table_key: str = "table", **options: Any) -> None:
        """Do :meth:`setup_anndata`, with ``options``, for the table ``sdata.tables[table_key]``, which is then the ``adata`` of the model.

        Images that are elements of ``sdata`` are not reached from the table; a model that reads images takes them as ``image=`` or ``slides=``.
        """
        cls.setup_anndata(table_of(sdata, table_key), **options)

    def _loop(self, arguments: Mapping[str, Any]) -> Loop:
        """Return what ``train``, whose arguments are given as its ``locals()``, asks of the loop; a ValueError where there are no data."""
        if self.adata is None:
            raise ValueError(f"The model has no adata to train on. Load it with `{type(self).__name__}.load(path, adata)`.")
        return Loop.asked(arguments)

    def need_adata(self, adata: "AnnData | None") -> "AnnData":
        """Return ``adata``, or what the model was made with; a ValueError where there is neither."""
        found = self.adata if adata is None else adata
        if found is None:
            raise ValueError(f"The model was loaded without data. Pass `adata`, or load it with `{type(self).__name__}.load(path, adata)`.")
        return found

    def need_trained(self) -> None:
        """Raise a RuntimeError where the model is not trained."""
        if not self.is_trained_:
            raise RuntimeError("The model is not trained. Run `model.train()` first.")

    def save(self, dir_path: str | Path, overwrite: bool = False) -> None:  # type: ignore[override]
        """Write ``model.safetensors`` and ``model.json`` into ``dir_path``, whole or not at all; of most models also a card, ``README.md``.

        Saved are weights, options, names of the genes, what was learned of the training data, the ledger (names and hashes of the training
        observations), and the history. The data are not saved. Under distributed training every rank may call it; the first one writes.

        Raises
        ------
        RuntimeError
            Where the model is not trained.
        FileExistsError
            Where there is something at ``dir_path`` and ``overwrite`` is False.
        """
        self.need_trained()
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
            return
        tensors, record = self._contents()
        texts = {_card.NAME: _card.card(self, record, limits=self._limits)} if self._limits else None
        _saving.write(Path(dir_path), tensors, record, overwrite=overwrite, texts=texts)
        genes = f"{len(self.genes)} genes, " if len(self.genes) else ""
        n_weights = sum(p.numel() for p in self.module.parameters())
        logging.getLogger(type(self).__module__).info("Saved %s%d weights to %s", genes, n_weights, dir_path)

    @classmethod
    def load(  # type: ignore[override]
        cls, dir_path: str | Path, adata: "AnnData | None" = None, *, device: str | torch.device = "cpu", **options: Any
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
        **options
            What the class needs beside the folder; most need nothing.

        Raises
        ------
        FileNotFoundError
            Where a file is missing.
        ValueError
            Where a file is damaged or of another model, or ``adata`` does not fit.
        """
        path = Path(dir_path)
        tensors, record = _saving.read(path, cls.__name__, cls._record_fields)
        _kept.check_genes(record, path)
        model = cls._from_record(record, **options)
        model._restore(tensors, record, path)
        model.to_device(torch.device(device))
        if adata is not None:
            cls.setup_anndata(adata, **record["setup"])
            model._accept(adata)
            model._adata = adata
            model._adata_manager = model._get_most_recent_anndata_manager(adata, required=True)
            model._register_manager_for_instance(model._adata_manager)
        return model

    def _facts(self) -> dict[str, Any]:
        """Return what the record of a saved model has beside what it has of any."""
        return {}

    def _contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the record of which a saved model consists."""
        setup = {name: self._setup[name] for name in self._setup_names}
        return _kept.contents(self, _kept.state_of(self.module), monitor=self.monitor_ or "", setup=setup, **self._facts())

    @classmethod
    def _from_record(cls, record: Mapping[str, Any], **options: Any) -> Self:
        """Return a new model of the kind that a record tells of, without its weights."""
        raise NotImplementedError

    def _restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any], path: Path) -> None:
        """Fill a new model with what was saved."""
        _kept.restore(self, tensors, record, path)
        self.monitor_ = record["fit"]["monitor"] or None

    def _accept(self, adata: "AnnData") -> None:
        """Raise an error where ``adata``, which is set up, is not such as the model reads."""
        raise NotImplementedError

    def identity(self, adata: "AnnData") -> dict[str, Any]:
        """Return what a record of a result should say of this model: class, hash of the weights, and how many of the rows of ``adata`` it was trained on.

        A model that reads counts adds the hash of its genes, and how many of them ``adata`` has.
        """
        return _kept.identity(self, adata)

    def epochs(self) -> int:
        """Return the number of epochs trained."""
        return max((len(table) for table in (self.history_ or {}).values()), default=0)

    def is_finite(self) -> bool:
        """Return whether every weight is a finite number."""
        return all(math.isfinite(float(p.detach().abs().max())) for p in self.module.parameters())
