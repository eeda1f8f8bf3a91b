"""What is kept of a model: the content of its folder, its identity, and what it was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stimg._core import hashing, validate
from stimg._core.ledger import Seen
from stimg.data.statistics import GeneStatistics
from stimg.model._inference import need_trained
from stimg.plan.masked import MONITOR

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.model.stmae import STMAE

HASHES = ("ids", "contents", "images")
STATISTICS = ("pooled_mean", "pooled_composition", "spread")


def curves(model: "STMAE") -> dict[str, dict[str, list]]:
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


def contents(model: "STMAE") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the record of which a saved model consists."""
    import stimg

    statistics = need_trained(model)
    tensors = {f"module.{k}": v for k, v in model.module.state_dict().items()}
    tensors |= {f"statistics.{n}": torch.from_numpy(np.ascontiguousarray(getattr(statistics, n))) for n in STATISTICS}
    for i, seen in enumerate(model.ledger):
        for name in HASHES:
            tensors[f"ledger.{i}.{name}"] = torch.from_numpy(getattr(seen, name).view(np.int64))
    record = {
        "class": type(model).__name__,
        "version": stimg.__version__,
        "options": model.options.to_dict(),
        "crop": list(model.crop.size),
        "genes": model.genes.tolist(),
        "genes_hash": hashing.of_strings(model.genes),
        "rasters": model.rasters,
        "setup": {"layer": model._layer, "library_key": model._library_key},
        "registry": model.registry_,
        "history": curves(model),
        "ledger": [{k: v for k, v in seen.to_dict().items() if k not in HASHES} for seen in model.ledger],
        "fit": {"n_seen": len(model.ledger[-1]), "best_epoch": getattr(model, "best_epoch_", -1), "monitor": MONITOR},
    }
    return tensors, record


def restore(model: "STMAE", tensors: Mapping[str, Tensor], record: Mapping[str, Any], path: Path) -> None:
    """Fill a new model with what was saved."""
    state = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
    try:
        model.module.load_state_dict(state)
    except RuntimeError as err:
        raise ValueError(
            f"{path}: the weights do not fit the options saved beside them ({str(err).splitlines()[-1].strip()}). Save the model again."
        ) from err
    found = {n: tensors[f"statistics.{n}"].numpy() for n in STATISTICS}
    empty = np.zeros((0, len(model.genes)), dtype=np.float32)
    model.statistics = GeneStatistics(empty, empty, **found)
    model.ledger = tuple(
        Seen.from_dict({**seen, **{name: tensors[f"ledger.{i}.{name}"].numpy().view(np.uint64) for name in HASHES}})
        for i, seen in enumerate(record["ledger"])
    )
    model.history_ = tables(record["history"])
    model.best_epoch_ = int(record["fit"]["best_epoch"])
    model.is_trained_ = True
    model.module.eval()


def observation_hashes(model: "STMAE", adata: "AnnData") -> np.ndarray:
    """Return one uint64 per observation that depends on its counts of the vocabulary's genes alone; 0 where there are none."""
    at = adata.var_names.get_indexer(model.genes)
    known = at[at >= 0]
    return hashing.of_observations(validate.counts(adata, model._layer)[:, known], adata.var_names[known])


def identity(model: "STMAE", adata: "AnnData") -> dict[str, Any]:
    """Return what :meth:`stimg.model.STMAE.identity` says."""
    weights = np.concatenate([v.detach().cpu().float().numpy().ravel() for v in model.module.state_dict().values()])
    return {
        "model": type(model).__name__,
        "model_hash": hashing.of_array(weights),
        "panel_hash": hashing.of_strings(model.genes),
        "n_shared_genes": int(model.genes.isin(adata.var_names).sum()),
        "n_obs_seen_in_training": int(np.isin(observation_hashes(model, adata), model.ledger[-1].contents).sum()),
    }
