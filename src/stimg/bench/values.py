"""The scale of the tasks that hide a part of a section: log(1 + counts per 10,000) of the full library."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stimg.bench.expression import Target, dense_counts, depth_of

if TYPE_CHECKING:
    from anndata import AnnData


def log_values(adata: "AnnData", *, genes: Sequence[str]) -> np.ndarray:
    """Return log(1 + counts per 10,000 of all counts of ``adata``), float64 (n_obs, genes), NaN for genes that it does not list."""
    counts, measured = dense_counts(adata, genes)
    values = Target().values(counts, depth_of(adata)[:, None])
    values[:, ~measured] = np.nan
    return values
