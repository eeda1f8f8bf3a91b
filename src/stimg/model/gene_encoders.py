"""Encoders of expression: from the counts of an observation to a vector, fitted once and applied to any slide."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from stimg._core import hashing, keys, validate
from stimg._core import rng as _rng
from stimg._core.ledger import Seen
from stimg.data.ledger import seen_of
from stimg.model import _gene_read
from stimg.model._gene_latent import LatentMap, fit_latent
from stimg.model._gene_maps import PCAMap, fit_pca
from stimg.model._gene_pretrained import NicheformerMap, ScFoundationMap, read_nicheformer, read_scfoundation
from stimg.model._head_reference import log_values
from stimg.model._vocabulary import chosen_by, vocabulary
from stimg.zoo.gene import GENE

if TYPE_CHECKING:
    from anndata import AnnData

FITTED = tuple(_gene_read.DEFAULT)
"""Encoders that are fitted here."""
PRETRAINED = ("nicheformer", "scfoundation")
"""Encoders whose weights come from a folder."""
N_BATCH = {"nicheformer": 8, "scfoundation": 1}
"""Observations at a time, where nothing is said: attention over thousands of genes needs gigabytes."""
Map: TypeAlias = PCAMap | LatentMap | NicheformerMap | ScFoundationMap


class GeneEncoder:
    """From counts to a vector of each observation; made by :meth:`fit`, :meth:`pretrained` or :meth:`load`, applied by :func:`stimg.tl.embed_genes`.

    Attributes
    ----------
    name
        Name of its card (:func:`stimg.zoo.list`).
    genes
        Genes that it reads, in its order.
    n_features
        Width of the embedding.
    map
        What was fitted or loaded.
    settings
        How, as plain values.
    ledger
        What has been seen on the way (:class:`stimg.bench.Seen`); empty for weights of others.
    """

    def __init__(
        self, name: str, genes: pd.Index, n_features: int, map: Map, *, settings: Mapping[str, Any], ledger: Sequence[Seen] = ()
    ) -> None:
        self.name, self.genes, self.n_features, self.map = name, pd.Index(genes), int(n_features), map
        self.settings, self.ledger = dict(settings), tuple(ledger)

    @classmethod
    def fit(
        cls,
        adata: "AnnData",
        encoder: str = "pca",
        *,
        rows: Any = None,
        genes: Sequence[str] | None = None,
        n_features: int | None = None,
        layer: str | None = None,
        scale: bool = False,
        batch_key: str | None = None,
        max_epochs: int | None = None,
        device: str | None = None,
        rng: _rng.RngLike = 0,
        library_key: str = keys.LIBRARY,
        donor_key: str = keys.DONOR,
    ) -> "GeneEncoder":
        """Return an encoder fitted on observations of ``adata``, and on no others.

        Parameters
        ----------
        adata
            Raw counts in ``X`` or ``layers[layer]``.
        encoder
            ``"pca"``, ``"scvi"`` or ``"drvi"``.
        rows
            Training observations: a mask (n_obs,), positions, names, or None for all. Those without counts are left out.
        genes
            Genes to read. None: the channels of :func:`stimg.pp.select_genes`, or all but control probes where none were selected.
        n_features
            Width. None: 50 principal axes (or as many as there are), 30 dimensions of scVI, 32 of DRVI.
        layer
            Layer with raw counts.
        scale
            Whether ``"pca"`` gives every gene the same variance: rare genes then count as much as common ones.
        batch_key
            Column of ``obs`` with a batch, such as the donor, that the decoder of ``"scvi"`` and ``"drvi"`` is told, so that the embedding need not
            hold it. None: it is told nothing. New batches can be embedded.
        max_epochs
            Of ``"scvi"`` and ``"drvi"``; None: 8 million observations seen, at most 400 epochs.
        device
            Where ``"scvi"`` and ``"drvi"`` are trained, as torch names it; None: a GPU where there is one.
        rng
            Of weights, order and noise. The global random state is left as it was.
        library_key, donor_key
            Columns of ``obs`` for the ledger.

        Raises
        ------
        KeyError
            For genes, names or columns that are not there.
        ValueError
            For values that are no counts, duplicated genes, too few observations for the width, an encoder that is not fitted here, an argument
            that the encoder does not read.
        ImportError
            Where DRVI is not installed.

        Notes
        -----
        ``"pca"`` reads log(1 + counts per 10,000 of all genes but control probes), less the mean of each gene. scVI has a negative binomial
        likelihood, no validation set (random spots of a section give each other away) and else the defaults of scvi-tools.

        Examples
        --------
        >>> import stimg
        >>> adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, n_donors=2, rng=0)
        >>> encoder = stimg.model.GeneEncoder.fit(adata, "pca", rows=adata.obs["donor"] == "D1", n_features=4)
        >>> encoder.transform(adata).shape
        (128, 4)
        """
        fitted_here(encoder)
        if encoder == "pca" and (batch_key is not None or max_epochs is not None):
            raise ValueError(
                "batch_key and max_epochs are for 'scvi' and 'drvi'; 'pca' has no decoder to be told a batch, and no epochs. Leave them out."
            )
        if encoder != "pca" and scale:
            raise ValueError(f"scale=True is for 'pca'; {encoder!r} reads counts. Leave it out.")
        counts = _gene_read.counts(adata, layer)
        chosen = vocabulary(adata, genes)
        at = _gene_read.rows(adata, rows)
        own = counts[:, adata.var_names.get_indexer(chosen)]
        at = at[np.asarray(own[at].sum(axis=1)).ravel() > 0]
        width = _gene_read.width(encoder, n_features, len(at), len(chosen))
        if max_epochs is not None:
            max_epochs = validate.whole(max_epochs, "max_epochs")
        batch = None
        if batch_key is not None:
            todo = "Pass `batch_key=` with a column that is complete for the training observations, or None."
            batch = validate.obs(adata[at], batch_key, todo=todo).astype(str).to_numpy()
        settings: dict[str, Any] = {"n_fitted": len(at)}
        found: PCAMap | LatentMap
        if encoder == "pca":
            values = sp.csr_matrix(log_values(adata[at], list(chosen), layer), dtype=np.float64)
            found = fit_pca(values, width, scale=scale, rng=_rng.derive(_rng.as_seed(rng)), fewer=n_features is None)
            width = found.axes.shape[1]
            settings["scale"] = bool(scale)
        else:
            found = fit_latent(encoder, own[at], chosen, width, batch=batch, max_epochs=max_epochs, seed=_rng.as_seed(rng), device=device)
            settings["batch_key"] = batch_key
        who = f"{GENE[encoder].title}-{width} of the counts"
        kind = "PCA" if encoder == "pca" else "encoder"
        seen = seen_of(adata, who=who, kind=kind, rows=at, genes=list(chosen), layer=layer, library_key=library_key, donor_key=donor_key)
        return cls(encoder, chosen, width, found, settings=settings, ledger=[*chosen_by(adata, genes), seen])

    @classmethod
    def pretrained(
        cls,
        encoder: str,
        path: str | os.PathLike,
        *,
        technology: str | None = None,
        species: str = "human",
        modality: str = "spatial",
        round_mean: bool = False,
        target_depth: float = 4.0,
        pooling: str | None = None,
    ) -> "GeneEncoder":
        """Return an encoder with the weights of its authors, read from a folder.

        Parameters
        ----------
        encoder
            ``"nicheformer"`` or ``"scfoundation"``.
        path
            Folder. For Nicheformer the checkpoint, ``model.h5ad`` and ``<technology>_mean_script.npy``; for scFoundation ``models.ckpt`` (or its part
            ``"cell"`` as safetensors) and ``OS_scRNA_gene_index.19264.tsv``. Nothing is downloaded and nothing is unpickled.
        technology, species, modality
            The first words of Nicheformer; see ``stimg.nn.gene.nicheformer.ASSAYS``.
        round_mean
            Whether Nicheformer's mean of the technology is rounded to whole counts; see ``stimg.nn.gene.nicheformer.technology_mean``.
        target_depth
            Token T of scFoundation, log10 of the counts that are wanted.
        pooling
            ``"positions"`` (as published) or ``"genes"`` of Nicheformer; ``"all"`` (as published) or ``"max"`` of scFoundation.

        Raises
        ------
        FileNotFoundError, NotADirectoryError
            For a folder or a file that is missing.
        ValueError
            For weights of another network, files of different releases, an unknown technology.
        """
        if encoder not in PRETRAINED:
            raise ValueError(
                f"encoder={encoder!r} has no weights in a folder; wanted one of {list(PRETRAINED)}. Fit it with `GeneEncoder.fit`."
            )
        found: NicheformerMap | ScFoundationMap
        if encoder == "nicheformer":
            found, genes = read_nicheformer(
                Path(path), technology=technology, species=species, modality=modality, pooling=pooling, round_mean=round_mean
            )
        else:
            found, genes = read_scfoundation(Path(path), target=target_depth, pooling=pooling)
        validate.unique_names(genes, f"genes of the vocabulary in {path}", todo="Copy the files again.")
        told: dict[str, Any] = {}
        if encoder == "nicheformer":
            told = {"technology": technology, "species": species, "modality": modality, "round_mean": bool(round_mean)}
        return cls(encoder, genes, found.n_features, found, settings={**told, **found.facts()})

    def transform(
        self,
        adata: "AnnData",
        *,
        layer: str | None = None,
        gene_key: str | None = None,
        batch_size: int | None = None,
        device: str | None = None,
    ) -> np.ndarray:
        """Return the embedding of every observation, float32 (n_obs, n_features).

        Parameters
        ----------
        adata
            Raw counts. Encoders that were fitted need all their genes, in any order; those with a vocabulary of others need some of it.
        layer
            Layer with raw counts.
        gene_key
            Column of ``var`` with the names by which the vocabulary calls the genes, such as Ensembl identifiers; None: ``var_names``.
        batch_size
            Observations at a time; None: 512, 8 for Nicheformer, 1 for scFoundation.
        device
            Of Nicheformer and scFoundation, as torch names it; None: a GPU where there is one.

        Raises
        ------
        KeyError
            For genes or columns that are not there.
        ValueError
            For values that are no counts, duplicated genes, or no gene of the vocabulary.

        Notes
        -----
        An observation without counts gets the embedding of an empty profile; scFoundation, which reads the depth, refuses it.
        """
        size = None if batch_size is None else validate.whole(batch_size, "batch_size")
        counts = _gene_read.counts(adata, layer)
        names = _gene_read.names(adata, gene_key)
        if isinstance(self.map, NicheformerMap | ScFoundationMap):
            return self._by_network(self.map, counts, names, size or N_BATCH[self.name], device)
        at = validate.genes(
            self.genes, names, what=f"genes of the {GENE[self.name].title} encoder", todo="Fit it on genes that all slides have (`genes=`)."
        )
        if isinstance(self.map, LatentMap):
            return self.map(counts[:, at], self.genes, batch_size=size or 512)
        return self.map(sp.csr_matrix(log_values(adata, list(adata.var_names[at]), layer), dtype=np.float64))

    def _by_network(
        self, map: NicheformerMap | ScFoundationMap, counts: sp.csr_matrix, names: pd.Index, size: int, device: str | None
    ) -> np.ndarray:
        """Return embeddings of the counts, put in the order of the vocabulary; what was not measured has no token."""
        place = self.genes.get_indexer(names)
        if not (place >= 0).any():
            raise ValueError(
                f"none of the {len(names)} genes (such as {str(names[0])!r}) is among the {len(self.genes)} of {GENE[self.name].title} (such as {self.genes[0]!r}). "
                "Pass `gene_key=`, the column of adata.var with such names."
            )
        known = np.flatnonzero(place >= 0)
        ordered = sp.coo_matrix(counts[:, known])
        shape = (counts.shape[0], len(self.genes))
        wide = sp.csr_matrix((ordered.data, (ordered.row, place[known][ordered.col])), shape=shape, dtype=np.float64)
        wide.sort_indices()
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        map.network.to(where)
        try:
            with torch.inference_mode():
                return map(wide, batch_size=size, device=where)
        finally:
            map.network.to("cpu")

    def identity(self) -> dict[str, Any]:
        """Return what a record of an embedding says of the encoder."""
        arrays = self.map.arrays()
        parts = [name + hashing.of_array(np.asarray(arrays[name])) for name in sorted(arrays)]
        card = GENE[self.name]
        return {
            "encoder": self.name,
            "model_hash": hashing.of_strings(parts),
            "panel_hash": hashing.of_strings(self.genes),
            "n_genes": len(self.genes),
            "n_features": self.n_features,
            "licence": card.licence,
            "commercial": card.commercial,
            **self.settings,
        }

    def save(self, directory: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Write the encoder into a folder, whole or not at all: numbers as safetensors, all else as JSON."""
        from stimg.model._gene_files import save

        save(self, Path(directory), overwrite=overwrite)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "GeneEncoder":
        """Return the encoder that :meth:`save` wrote; nothing is unpickled.

        Raises
        ------
        FileNotFoundError, ValueError
            For a folder that is none, is damaged, holds something else, or was written with another version of scvi-tools that it does not fit.
        """
        from stimg.model._gene_files import load

        return load(Path(directory))


def fitted_here(encoder: str) -> None:
    """Raise a ValueError that says where an encoder comes from which is not fitted here."""
    if encoder in FITTED:
        return
    card = GENE[encoder]
    if encoder == "mlp":
        raise ValueError(
            "MLP is trained with the alignment, not before it. Pass gene_encoder='mlp' to `stimg.model.ImageGeneCLIP`, and read `get_gene_embedding`."
        )
    if encoder == "stmae":
        raise ValueError("STMAE is a model of its own. Train a `stimg.model.STMAE`, and pass it as `encoder=` of `stimg.tl.embed_genes`.")
    if encoder in PRETRAINED:
        raise ValueError(f"{card.title} is not fitted; its weights come from a folder. Use `GeneEncoder.pretrained({encoder!r}, path)`.")
    raise ValueError(f"{card.title} is not fitted here; wanted one of {list(FITTED)}.")
