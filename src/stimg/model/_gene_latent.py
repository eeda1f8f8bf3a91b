"""scVI and DRVI as gene encoders: trained on the training observations alone, with seeds of their own, kept without pickles."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from stimg._core import progress as _progress
from stimg._core.optional import need

BATCH = "batch"
N_BATCH = 128
SETTINGS: dict[str, dict[str, Any]] = {"scvi": {"gene_likelihood": "nb"}, "drvi": {}}
"""Arguments of the model classes beside the width."""


def model_class(name: str) -> Any:
    """Return the class of scvi-tools, or of drvi-py where the installed scvi-tools has no DRVI.

    Raises
    ------
    ImportError
        Where neither package has DRVI.
    """
    import scvi  # takes seconds, and principal axes do without

    if name == "scvi":
        return scvi.model.SCVI
    if hasattr(scvi.external, "DRVI"):
        return scvi.external.DRVI
    return need(
        "drvi.model", extra="drvi", purpose=f"for DRVI, which scvi-tools has from version 1.5 on, and {scvi.__version__} has not"
    ).DRVI


@contextmanager
def _apart(seed: int | None = None) -> Iterator[None]:
    """Put the global random state of torch and numpy aside; scvi-tools draws from both, from numpy's to look whether values are counts.

    ``seed`` is that of a training; None: there is none.
    """
    from stimg.model._quiet import quiet

    devices = range(torch.cuda.device_count() if seed is not None and torch.cuda.is_available() else 0)
    before = np.random.get_state()  # noqa: NPY002
    try:
        with quiet(), torch.random.fork_rng(devices=devices):
            if seed is not None:
                torch.manual_seed(seed)
            else:  # nothing is trained, so that any number of observations will do
                warnings.filterwarnings("ignore", message=".*fewer than 3 cells")
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def n_epochs(n_obs: int) -> int:
    """Return the number of epochs where none is given: 8 million observations seen, at most 400 times each."""
    return max(1, min(round(20_000 / n_obs * 400), 400))


class LatentMap:
    """A trained model of scvi-tools, whose posterior mean is the embedding.

    Parameters
    ----------
    name
        ``"scvi"`` or ``"drvi"``.
    model
        The model.
    batches
        Names of the batches that its decoder is told; one for all where there are none.
    """

    def __init__(self, name: str, model: Any, batches: Sequence[str]) -> None:
        self.name, self.model, self.batches = name, model, list(batches)

    def __call__(self, counts: sp.csr_matrix, genes: pd.Index, *, batch_size: int) -> np.ndarray:
        """Return posterior means, float32 (n_obs, n). The encoder is not told the batch, so new ones do not matter."""
        table = _table(counts, genes, np.repeat(self.batches[:1], counts.shape[0]), self.batches)
        with _apart():
            self.model.module.eval()
            try:
                return np.asarray(self.model.get_latent_representation(table, batch_size=batch_size), dtype=np.float32)
            finally:
                _forget(self.model, table)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights by name."""
        return {name: value.detach().cpu().numpy() for name, value in self.model.module.state_dict().items()}

    @classmethod
    def restore(cls, name: str, arrays: Mapping[str, np.ndarray], genes: pd.Index, n: int, batches: Sequence[str]) -> "LatentMap":
        """Return the map of :meth:`arrays`; a RuntimeError of torch where they do not fit the installed version."""
        made = model_class(name)
        with _apart():
            one_each = sp.csr_matrix(np.ones((len(batches), len(genes)), dtype=np.float32))
            model = _made(made, name, _table(one_each, genes, np.asarray(batches, dtype=str), batches), n)
            model.module.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in arrays.items()})
            model.is_trained_ = True
        return cls(name, model, batches)


def fit_latent(
    name: str,
    counts: sp.csr_matrix,
    genes: pd.Index,
    n: int,
    *,
    batch: np.ndarray | None,
    max_epochs: int | None,
    seed: int,
    device: str | None,
) -> LatentMap:
    """Return a trained model, which does not hold the counts any more.

    Parameters
    ----------
    name
        ``"scvi"`` or ``"drvi"``.
    counts
        (n_obs, genes), every row with a count.
    n
        Dimensions.
    batch
        Batch of each observation, of which the decoder is told; None: nothing.
    max_epochs
        Epochs; None: :func:`n_epochs`.
    seed
        Of weights, order and noise. The global random state is left as it was.
    device
        As torch names it; None: what Lightning chooses.
    """
    labels = np.repeat("all", counts.shape[0]) if batch is None else np.asarray(batch, dtype=str)
    batches = sorted(set(labels.tolist()))
    size = N_BATCH
    while 0 < counts.shape[0] % size < 3:  # a last batch of one cannot be normalised, and scvi-tools warns of two
        size -= 1
    made = model_class(name)  # imported before its messages are silenced
    table = _table(counts, genes, labels, batches)
    with _apart(seed):
        model = _made(made, name, table, n)
        model.train(
            max_epochs=max_epochs or n_epochs(counts.shape[0]),
            **_where(device),
            train_size=1.0,
            shuffle_set_split=False,
            batch_size=size,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=_progress.wanted(),
        )
    _forget(model, table)
    return LatentMap.restore(name, LatentMap(name, model, batches).arrays(), genes, n, batches)


def _where(device: str | None) -> dict[str, Any]:
    """Return a device of torch as Lightning calls it."""
    if device is None:
        return {"accelerator": "auto", "devices": 1}
    kind, _, index = device.partition(":")
    return {"accelerator": "gpu" if kind == "cuda" else kind, "devices": [int(index)] if index else 1}


def _made(made: Any, name: str, table: ad.AnnData, n: int) -> Any:
    made.setup_anndata(table, batch_key=BATCH)
    return made(table, n_latent=n, **SETTINGS[name])


def _forget(model: Any, table: ad.AnnData) -> None:
    """Let go of a table, which the class of a model would hold for as long as the process lives."""
    uuid = table.uns["_scvi_uuid"]
    type(model)._setup_adata_manager_store.pop(uuid, None)
    type(model)._per_instance_manager_store.get(model.id, {}).pop(uuid, None)


def _table(counts: sp.csr_matrix, genes: pd.Index, labels: np.ndarray, batches: Sequence[str]) -> ad.AnnData:
    """Return a table of its own, so that scvi-tools leaves no trace in the caller's."""
    names = [str(i) for i in range(counts.shape[0])]
    obs = pd.DataFrame({BATCH: pd.Categorical(labels, categories=list(batches))}, index=names)
    return ad.AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=obs, var=pd.DataFrame(index=pd.Index(genes)))
