"""How a gene encoder reads a table: counts, names of genes, training observations, width."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg._core import validate

if TYPE_CHECKING:
    from anndata import AnnData

DEFAULT = {"pca": 50, "scvi": 30, "drvi": 32}
"""Width of the encoders that are fitted here, where none is given."""


def counts(adata: "AnnData", layer: str | None) -> sp.csr_matrix:
    """Return raw counts of a table that is not empty and whose genes have names of their own."""
    validate.not_empty(adata)
    validate.unique_names(adata.var_names, "gene names", todo="Run `adata.var_names_make_unique()` or add up the duplicates.")
    return validate.counts(adata, layer)


def names(adata: "AnnData", gene_key: str | None) -> pd.Index:
    """Return the names of the genes, unique but for missing ones."""
    if gene_key is None:
        return adata.var_names
    column = validate.slot(adata.var, "var", gene_key, todo="Pass the column with the names of the vocabulary, or None.")
    found = pd.Index(column.astype(object).where(column.notna(), "").astype(str))
    validate.unique_names(found[found != ""], f"names in adata.var[{gene_key!r}]", todo="Add up the duplicates.")
    return found


def rows(adata: "AnnData", given: Any) -> np.ndarray:
    """Return positions of training observations from a mask, positions, names, or None for all."""
    if given is None:
        return np.arange(adata.n_obs)
    given = np.asarray(given)
    if given.ndim != 1:
        raise ValueError(f"rows has shape {given.shape}; wanted a mask ({adata.n_obs},), positions or names.")
    if given.dtype == bool:
        if len(given) != adata.n_obs:
            raise ValueError(f"rows is a mask of {len(given)} values; wanted {adata.n_obs}, one for each observation.")
        return np.flatnonzero(given)
    if given.dtype.kind in "iu":
        if len(given) and not (0 <= given.min() and given.max() < adata.n_obs):
            raise ValueError(f"rows has positions of {given.min()} to {given.max()}; wanted 0 to {adata.n_obs - 1}.")
        return np.unique(given.astype(np.int64))
    validate.unique_names(adata.obs_names, "observation names", todo="Run `adata.obs_names_make_unique()`, or pass a mask.")
    found = validate.genes(given.astype(str), adata.obs_names, what="training observations", todo="Pass names of adata.obs_names.")
    return np.unique(found)


def width(encoder: str, n_features: int | None, n_obs: int, n_genes: int) -> int:
    """Return the width of an encoder that is fitted on ``n_obs`` observations of ``n_genes`` genes."""
    if n_obs < 2:
        raise ValueError(
            f"{n_obs} training observations have counts of the {n_genes} genes; wanted at least 2. Check `fit=` (or `rows=`), genes and layer."
        )
    most = min(n_obs - 1, n_genes)
    if n_features is None:
        return min(DEFAULT[encoder], most) if encoder == "pca" else DEFAULT[encoder]
    wanted = validate.whole(n_features, "n_features")
    if encoder == "pca" and wanted > most:
        raise ValueError(
            f"n_features={wanted} is more than the {most} axes that {n_obs} observations of {n_genes} genes have. Ask for fewer."
        )
    return wanted
