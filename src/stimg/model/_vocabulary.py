"""Which genes a model knows where nobody says it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg._core import keys, validate
from stimg._core.ledger import Seen
from stimg._core.panel import is_control
from stimg.data.ledger import recall

if TYPE_CHECKING:
    from anndata import AnnData


def default_genes(adata: "AnnData") -> list[str]:
    """Return the channels of ``pp.select_genes`` in their order, or all genes where none were selected; control probes are no genes."""
    gene = ~is_control(adata.var)
    if keys.CHANNEL in adata.var:
        order = adata.var[keys.CHANNEL_ORDER].to_numpy()
        chosen = np.flatnonzero(adata.var[keys.CHANNEL].to_numpy() & gene)
        return adata.var_names[chosen[np.argsort(order[chosen], kind="stable")]].tolist()
    return adata.var_names[gene].tolist()


def vocabulary(adata: "AnnData | None", genes: Sequence[str] | None, *, least: int = 2) -> pd.Index:
    """Return the vocabulary of a model made with ``adata`` and ``genes``; a ValueError where it is too small or names a gene twice."""
    if genes is None:
        if adata is None:
            raise ValueError("genes is None and there is no adata to take them from; pass the vocabulary.")
        genes = default_genes(adata)
    found = pd.Index(validate.names(genes))
    validate.unique_names(found, "genes in the vocabulary", todo="Pass every gene once.")
    if len(found) < least:
        raise ValueError(f"The vocabulary has {len(found)} genes; wanted at least {least}.")
    if adata is not None:
        validate.genes(found, adata.var_names, what="genes of the vocabulary", todo="Pass names of adata.var_names.")
    return found


def chosen_by(adata: "AnnData | None", genes: Sequence[str] | None) -> list[Seen]:
    """Return what the selection of genes has seen, where the vocabulary comes from it."""
    return recall(adata, only=[keys.CHANNELS]) if adata is not None and genes is None and keys.CHANNEL in adata.var else []
