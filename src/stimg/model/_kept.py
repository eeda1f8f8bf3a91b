"""What is kept of any model: its weights, history and ledger, as tensors and plain values, and what it says of itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stimg._core import hashing, validate
from stimg._core.ledger import Seen
from stimg.data.ledger import ids

if TYPE_CHECKING:
    from anndata import AnnData

HASHES = ("ids", "contents", "images")


class Model(Protocol):
    """What the functions here ask of a model."""

    module: nn.Module
    genes: pd.Index
    options: Any
    ledger: tuple[Seen, ...]
    history_: Any
    is_trained_: bool
    best_epoch_: int
    registry_: dict

    @property
    def _layer(self) -> str | None: ...

    @property
    def _library_key(self) -> str: ...


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights that are a network's own: all, or those that its ``kept_state`` says where a frozen encoder is a part of it."""
    return getattr(module, "kept_state", module.state_dict)()  # type: ignore[no-any-return]


def put(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put back what :func:`state_of` gave."""
    own = state_of(module)
    rest = {name: value for name, value in module.state_dict().items() if name not in own}
    module.load_state_dict({**rest, **weights})


def curves(model: Any) -> dict[str, dict[str, list]]:
    """Return the history as plain values."""
    found = model.history_ or {}
    return {name: {"epoch": table.index.tolist(), "value": table.iloc[:, 0].astype(float).tolist()} for name, table in found.items()}


def tables(curves: Mapping[str, Mapping[str, list]]) -> dict[str, pd.DataFrame]:
    """Return the history as scvi-tools keeps it: one table for each quantity."""
    return {
        name: pd.DataFrame(
            {name: np.asarray(curve["value"], dtype=np.float64)}, index=pd.Index(curve["epoch"], name="epoch", dtype=np.int64)
        )
        for name, curve in curves.items()
    }


def ledger_arrays(ledger: Sequence[Seen]) -> dict[str, np.ndarray]:
    """Return the hashes of a ledger as int64 arrays, by the names under which files hold them; :func:`ledger_of` is the inverse."""
    return {f"ledger.{i}.{name}": getattr(seen, name).view(np.int64) for i, seen in enumerate(ledger) for name in HASHES}


def ledger_of(record: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[Seen, ...]:
    """Return the ledger of a record and of the tensors or arrays beside it; a KeyError that names what is missing."""
    return tuple(
        Seen.from_dict({**seen, **{name: np.asarray(arrays[f"ledger.{i}.{name}"]).view(np.uint64) for name in HASHES}})
        for i, seen in enumerate(record["ledger"])
    )


def record_of(
    fitted: Any,
    *,
    options: Mapping[str, Any],
    fit: Mapping[str, Any],
    setup: Mapping[str, Any] = {},
    registry: Mapping[str, Any] = {},
    history: Mapping[str, Any] = {},
    **facts: Any,
) -> dict[str, Any]:
    """Return the record of a fitted thing with ``genes`` and a ``ledger``; ``facts`` are what its class adds."""
    import stimg

    return {
        "class": type(fitted).__name__,
        "version": stimg.__version__,
        "options": dict(options),
        "genes": fitted.genes.tolist(),
        "genes_hash": hashing.of_strings(fitted.genes),
        **facts,
        "setup": dict(setup),
        "registry": registry,
        "history": history,
        "ledger": [{k: v for k, v in seen.to_dict().items() if k not in HASHES} for seen in fitted.ledger],
        "fit": dict(fit),
    }


def contents(
    model: Model, state: Mapping[str, Tensor], *, monitor: str, setup: Mapping[str, Any], **facts: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the record of which a saved model consists; ``facts`` are what its class adds to the record."""
    tensors = {f"module.{k}": v for k, v in state.items()}
    tensors |= {name: torch.from_numpy(each) for name, each in ledger_arrays(model.ledger).items()}
    fit = {"n_seen": len(model.ledger[-1]), "best_epoch": getattr(model, "best_epoch_", -1), "monitor": monitor}
    kept: dict[str, Any] = {"options": model.options.to_dict(), "setup": setup, "registry": model.registry_, "history": curves(model)}
    return tensors, record_of(model, **kept, fit=fit, **facts)


def restore(model: Any, tensors: Mapping[str, Tensor], record: Mapping[str, Any], path: Path) -> None:
    """Fill a new model with the weights, ledger and history that were saved."""
    try:
        put(model.module, {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
    except RuntimeError as err:
        raise ValueError(
            f"{path}: the weights do not fit the options saved beside them ({str(err).splitlines()[-1].strip()}). Save the model again."
        ) from err
    model.ledger = ledger_of(record, tensors)
    model.history_ = tables(record["history"])
    model.best_epoch_ = int(record["fit"]["best_epoch"])
    model.is_trained_ = True
    model.module.eval()


def check_genes(record: Mapping[str, Any], path: Path) -> None:
    """Raise a ValueError where the list of genes in a record is not the one that was saved."""
    if hashing.of_strings(record["genes"]) != record["genes_hash"]:
        raise ValueError(f"{path}: the list of genes does not match its hash; the file was changed. Save the model again.")


def observation_hashes(model: Model, adata: "AnnData") -> np.ndarray:
    """Return one uint64 per observation that depends on its counts of the vocabulary's genes alone; 0 where there are none."""
    at = adata.var_names.get_indexer(model.genes)
    known = at[at >= 0]
    if not len(known):
        return np.zeros(adata.n_obs, dtype=np.uint64)
    return hashing.of_observations(validate.counts(adata, model._layer)[:, known], adata.var_names[known])


def identity(model: Model, adata: "AnnData") -> dict[str, Any]:
    """Return what a record of a result says of the model: class, hashes of weights and vocabulary, and how many rows it was trained on.

    Rows are known again by their counts, and those of a model that reads no counts by library and name.
    """
    weights = np.concatenate([v.detach().cpu().float().numpy().ravel() for v in state_of(model.module).values()])
    found: dict[str, Any] = {"model": type(model).__name__, "model_hash": hashing.of_array(weights)}
    if len(model.genes):
        found |= {"panel_hash": hashing.of_strings(model.genes), "n_shared_genes": int(model.genes.isin(adata.var_names).sum())}
        seen = np.isin(observation_hashes(model, adata), model.ledger[-1].contents)
    else:
        seen = np.isin(ids(adata, library_key=model._library_key), model.ledger[-1].ids)
    return {**found, "n_obs_seen_in_training": int(seen.sum())}
