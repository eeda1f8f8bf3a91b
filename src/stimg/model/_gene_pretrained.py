"""Nicheformer and scFoundation as gene encoders: vocabulary, tokens and weights from a folder of the user."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from stimg._core import validate
from stimg.nn.gene import Nicheformer, ScFoundation
from stimg.nn.gene import nicheformer as _niche
from stimg.nn.gene import scfoundation as _scf
from stimg.nn.gene._weights import BRING
from stimg.nn.image.loaders import WEIGHTS, read_weights
from stimg.zoo.gene import GENE

SCF_GENES = "OS_scRNA_gene_index.19264.tsv"
SPATIAL = ("merfish", "cosmx", "xenium")


class NicheformerMap:
    """Counts of the vocabulary to embeddings by Nicheformer.

    Parameters
    ----------
    network
        With its weights.
    mean
        Mean counts of the technology by gene, see :func:`stimg.nn.gene.nicheformer.technology_mean`.
    words
        Tokens of species, assay and modality.
    pooling
        As for :meth:`stimg.nn.gene.Nicheformer.forward`.
    """

    def __init__(self, network: Nicheformer, mean: np.ndarray, words: tuple[int, int, int], pooling: str) -> None:
        self.network, self.mean, self.words, self.pooling = network, mean, words, pooling
        self.n_features = network.n_features

    def __call__(self, counts: sp.csr_matrix, *, batch_size: int, device: torch.device) -> np.ndarray:
        """Return embeddings, float32 (n_obs, width)."""
        words = torch.tensor(self.words, device=device)
        out = np.zeros((counts.shape[0], self.n_features), dtype=np.float32)
        for start in range(0, counts.shape[0], batch_size):
            part = slice(start, start + batch_size)
            tokens = _niche.rank_tokens(counts[part], self.mean, n_context=self.network.n_context - len(self.words))
            out[part] = self.network(torch.from_numpy(tokens).to(device), words, pooling=self.pooling).cpu().numpy()
        return out

    def arrays(self) -> dict[str, np.ndarray]:
        """Return weights and means by name."""
        return {"mean": self.mean, **{f"network.{k}": v.numpy() for k, v in self.network.state_dict().items()}}

    def facts(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs beside."""
        return {"words": list(self.words), "pooling": self.pooling, "n_heads": self.network.n_heads}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], path: Path) -> "NicheformerMap":
        """Return the map of :meth:`arrays` and :meth:`facts`."""
        network = Nicheformer.from_weights(_network(arrays), path=path, n_heads=int(facts["n_heads"]))
        first, second, third = facts["words"]
        return cls(network, arrays["mean"], (int(first), int(second), int(third)), str(facts["pooling"]))


class ScFoundationMap:
    """Counts of the vocabulary to embeddings by scFoundation.

    Parameters
    ----------
    network
        With its weights.
    target
        Wanted depth, log10.
    pooling
        As for :meth:`stimg.nn.gene.ScFoundation.forward`.
    """

    def __init__(self, network: ScFoundation, target: float, pooling: str) -> None:
        self.network, self.target, self.pooling = network, target, pooling
        self.n_features = network.n_features * (4 if pooling == "all" else 1)

    def __call__(self, counts: sp.csr_matrix, *, batch_size: int, device: torch.device) -> np.ndarray:
        """Return embeddings, float32 (n_obs, width)."""
        out = np.zeros((counts.shape[0], self.n_features), dtype=np.float32)
        for start in range(0, counts.shape[0], batch_size):
            part = slice(start, start + batch_size)
            tokens = (torch.from_numpy(each).to(device) for each in _scf.value_tokens(counts[part], target=self.target))
            out[part] = self.network(*tokens, pooling=self.pooling).cpu().numpy()
        return out

    def arrays(self) -> dict[str, np.ndarray]:
        """Return weights by name."""
        return {f"network.{k}": v.numpy() for k, v in self.network.state_dict().items()}

    def facts(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs beside."""
        own = self.network
        return {"target": self.target, "pooling": self.pooling, "n_heads": own.n_heads, "alpha": own.token_emb.alpha}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], path: Path) -> "ScFoundationMap":
        """Return the map of :meth:`arrays` and :meth:`facts`."""
        network = ScFoundation.from_weights(_network(arrays), path=path, n_heads=int(facts["n_heads"]), alpha=float(facts["alpha"]))
        return cls(network, float(facts["target"]), str(facts["pooling"]))


def _network(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("network."): torch.from_numpy(np.array(v)) for k, v in arrays.items() if k.startswith("network.")}


def read_nicheformer(
    path: Path, *, technology: str | None, species: str, modality: str, pooling: str | None, round_mean: bool = False
) -> tuple[NicheformerMap, pd.Index]:
    """Return the map and the vocabulary of a folder with checkpoint, ``model.h5ad`` and ``<technology>_mean_script.npy``."""
    import anndata as ad

    title = GENE["nicheformer"].title
    if technology is None:
        raise ValueError(
            f"technology is None; {title} has to be told it: one of {sorted(_niche.ASSAYS)}. It has no word for Visium or legacy ST."
        )
    for name, value, known in (
        ("technology", technology, _niche.ASSAYS),
        ("species", species, _niche.SPECIES),
        ("modality", modality, _niche.MODALITIES),
        ("pooling", pooling or "positions", _niche.POOLING),
    ):
        validate.one_of(value, known, name)
    _folder(path, title, "the checkpoint, model.h5ad (the order of the genes) and <technology>_mean_script.npy")
    mean_file = path / f"{technology if technology in SPATIAL else 'dissociated'}_mean_script.npy"
    genes = pd.Index(ad.read_h5ad(_file(path / "model.h5ad", title)).var_names.astype(str))
    try:
        mean = np.load(_file(mean_file, title), allow_pickle=False)
    except ValueError as err:
        raise ValueError(f"{mean_file} holds no array of numbers ({err}). Copy it again from the repository of {title}.") from err
    if mean.shape != (len(genes),):
        raise ValueError(f"{mean_file} has shape {mean.shape}; wanted one mean for each of the {len(genes)} genes of model.h5ad.")
    mean = _niche.technology_mean(mean, rounded=round_mean)
    network = Nicheformer.from_weights(read_weights(_checkpoint(path, title)), path=path)
    if len(genes) + _niche.N_RESERVED > network.embeddings.num_embeddings:
        raise ValueError(
            f"{path}: model.h5ad has {len(genes)} genes and the checkpoint {network.embeddings.num_embeddings} tokens, {_niche.N_RESERVED} of them reserved. "
            "Take both from one release."
        )
    words = (_niche.SPECIES[species], _niche.ASSAYS[technology], _niche.MODALITIES[modality])
    return NicheformerMap(network, mean, words, pooling or "positions"), genes


def read_scfoundation(path: Path, *, target: float, pooling: str | None) -> tuple[ScFoundationMap, pd.Index]:
    """Return the map and the vocabulary of a folder with ``models.ckpt`` and the list of genes."""
    title = GENE["scfoundation"].title
    validate.one_of(pooling or "all", _scf.POOLING, "pooling")
    validate.positive(target, "target_depth")
    _folder(path, title, f"models.ckpt and {SCF_GENES}")
    table = pd.read_csv(_file(path / SCF_GENES, title), sep="\t")
    if "gene_name" not in table:
        raise ValueError(
            f"{path / SCF_GENES} has columns {list(table.columns)}; wanted gene_name. Copy it again from the repository of {title}."
        )
    genes = pd.Index(table["gene_name"].astype(str))
    weights, config = _scf.read_checkpoint(_checkpoint(path, title))
    settings = config.get("encoder", {})
    network = ScFoundation.from_weights(
        weights, path=path, n_heads=int(settings.get("heads", _scf.N_HEADS)), alpha=float(config.get("bin_alpha", 1.0))
    )
    places = network.pos_emb.num_embeddings - _scf.N_DEPTH - 1
    if len(genes) != places:
        raise ValueError(f"{path / SCF_GENES} lists {len(genes)} genes and the checkpoint knows {places}. Take both from one release.")
    return ScFoundationMap(network, float(target), pooling or "all"), genes


def _folder(path: Path, title: str, wanted: str) -> None:
    if not path.exists():
        raise FileNotFoundError(f"path={str(path)!r} does not exist. Pass a folder with the files of {title}: {wanted}. {BRING}")
    if not path.is_dir():
        raise NotADirectoryError(f"path={str(path)!r} is a file; {title} needs a folder with {wanted}. {BRING}")


def _file(path: Path, title: str) -> Path:
    if not path.is_file():
        found = sorted(p.name for p in path.parent.iterdir())
        raise FileNotFoundError(f"{path} is missing (found {found}). Copy it from the repository of {title}. {BRING}")
    return path


def _checkpoint(path: Path, title: str) -> Path:
    found = sorted(p for p in path.iterdir() if p.suffix in WEIGHTS)
    if len(found) != 1:
        raise FileNotFoundError(
            f"{path} holds {len(found)} files of weights ({[p.name for p in found]}); wanted one, with the ending {' or '.join(WEIGHTS)}, of {title}. {BRING}"
        )
    return found[0]
