"""How a trained STMAE reads data: libraries that fit it, windows over them, and values blended back to observations."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stimg._core import validate
from stimg.data.inference import InferenceDataset
from stimg.data.library import Library, libraries
from stimg.data.slots import raster_libraries
from stimg.data.statistics import GeneStatistics, gene_statistics
from stimg.image.blend import Blend, taper
from stimg.nn import STMAEModule
from stimg.nn.stmae import Offsets

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.model.stmae import STMAE

PITCH_TOLERANCE = 0.05


def need_trained(model: "STMAE") -> GeneStatistics:
    """Return the gene statistics of the training data; a RuntimeError where there are none."""
    if not model.is_trained_ or model.statistics is None:
        raise RuntimeError("The model is not trained. Run `model.train()` first.")
    return model.statistics


def read(model: "STMAE", adata: "AnnData", *, rows: np.ndarray | None = None, hidden: Sequence[str] = ()) -> list[Library]:
    """Return the libraries of ``adata`` as ``model`` reads them, without the genes ``hidden``; a ValueError where a lattice does not fit."""
    if len(hidden):
        adata = adata[:, ~adata.var_names.isin(list(hidden))]
    for name, raster in raster_libraries(adata, library_key=model._library_key).items():
        spec = raster.spec
        if not any(k["lattice"] == spec.lattice and abs(spec.pitch_um / k["pitch_um"] - 1) <= PITCH_TOLERANCE for k in model.rasters):
            raise ValueError(
                f"library {name!r} lies on a {spec.lattice} lattice with a pitch of {spec.pitch_um:g} µm; the model knows {model.rasters}. "
                "Resample it (`stimg.pp.resample`), check its scale, or train a model on such data."
            )
    return libraries(adata, vocabulary=model.genes, layer=model._layer, library_key=model._library_key, rows=rows)


def offsets(model: "STMAE", found: Sequence[Library], device: torch.device | str = "cpu") -> Offsets:
    """Return what the network subtracts and multiplies for each of the libraries ``found``, on ``device``."""
    statistics = gene_statistics(found, len(model.genes), like=model.statistics)
    return Offsets(*(torch.from_numpy(a).to(device) for a in (statistics.mean, statistics.composition, statistics.coverage)))


def _windows(
    model: "STMAE", adata: "AnnData", mode: str, overlap: int | None, batch_size: int, hidden: Sequence[str]
) -> tuple[InferenceDataset, Offsets, Iterator[dict[str, Tensor]]]:
    """Return the windows over ``adata``, the offsets of its libraries, and the batches of windows on the model's device."""
    need_trained(model)
    validate.not_empty(adata)
    found = read(model, adata, hidden=hidden)
    rule, n_channels = ("variance", model._rule()[1]) if model.options.variant == "released" else ("all", None)
    step = min(model.crop.size) // 2 if overlap is None else overlap
    dataset = InferenceDataset(found, model.crop.size, mode=mode, overlap=step if mode == "tiles" else 0, rule=rule, n_channels=n_channels)

    def batches() -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(dataset), batch_size):
            batch = dataset.__getitems__(range(start, min(start + batch_size, len(dataset))))
            yield {k: v.to(model.device) for k, v in batch.items()}  # type: ignore[attr-defined]

    return dataset, offsets(model, found, model.device), batches()


@torch.inference_mode()
def read_out(
    model: "STMAE",
    adata: "AnnData | None",
    dim: int,
    what: Callable[[dict[str, Tensor], Offsets], Tensor],
    *,
    hidden: Sequence[str] = (),
    mode: str,
    overlap: int | None,
    batch_size: int,
) -> np.ndarray:
    """Return what ``what(batch, offsets)`` says of every pixel, blended over windows, float32 (n_obs, dim); NaN for observations off the raster."""
    batch_size = validate.whole(batch_size, "batch_size")
    adata = model.adata if adata is None else adata
    validate.not_empty(adata)
    blend, weight = Blend(adata.n_obs, dim), taper(model.crop.size, "centre" if mode == "centred" else "triangle")
    model.module.eval()
    dataset, own, batches = _windows(model, adata, mode, overlap, batch_size, hidden)
    for batch in batches:
        blend.add(batch["obs"].cpu().numpy(), what(batch, own).float().cpu().numpy(), weight)
    out = np.full((adata.n_obs, dim), np.nan, dtype=np.float32)
    out[dataset.rows] = blend.result(dataset.rows, at=dataset.at)
    return out


def hidden_genes(model: "STMAE", adata: "AnnData | None", genes: Sequence[str] | None) -> pd.Index:
    """Return the genes to hide and predict: ``genes``, or those of the vocabulary that ``adata`` did not measure."""
    names = (model.adata if adata is None else adata).var_names
    wanted = model.genes[~model.genes.isin(names)] if genes is None else pd.Index(validate.names(genes))
    if not len(wanted):
        raise ValueError(f"adata measured all {len(model.genes)} genes of the vocabulary; pass `genes` with those to hide and predict.")
    shared = names[names.isin(model.genes)]
    if len(shared) and shared.isin(wanted).all():
        raise ValueError(
            f"genes names all {len(shared)} genes that adata shares with the model, so nothing is left to predict them from. Leave some out."
        )
    return wanted


def predict(
    model: "STMAE",
    adata: "AnnData | None",
    genes: Sequence[str],
    *,
    hidden: Sequence[str] = (),
    mode: str,
    overlap: int | None,
    batch_size: int,
) -> pd.DataFrame:
    """Return predicted log1p counts per 10,000 of ``genes``, (n_obs, genes), with the genes ``hidden`` taken out of ``adata`` first."""
    module = model.module
    if not isinstance(module, STMAEModule):
        raise ValueError(
            "variant='released' has a positional output, so its values belong to no gene; wanted variant='intended' for predictions."
        )
    names = validate.names(genes)
    validate.unique_names(pd.Index(names), "genes asked for", todo="Name each gene once.")
    known = validate.genes(
        names, model.genes, what="genes asked for", todo="The model predicts genes of its vocabulary alone (`model.genes`)."
    )
    index = torch.from_numpy(known).to(model.device)

    def reconstruct(batch: dict[str, Tensor], own: Offsets) -> Tensor:
        return module.reconstruct(batch, own, index)

    values = read_out(model, adata, len(names), reconstruct, hidden=hidden, mode=mode, overlap=overlap, batch_size=batch_size)
    return pd.DataFrame(values, index=(model.adata if adata is None else adata).obs_names, columns=names)
