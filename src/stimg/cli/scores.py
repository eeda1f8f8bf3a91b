"""The few numbers on the page of results."""

from typing import Any

import numpy as np

from stimg._core import keys
from stimg._core.rng import as_generator

HIDDEN_SHARE = 0.2
"""Share of the channels that the model is not shown when it completes the panel."""


def hidden_genes(adata: Any, seed: int) -> list[str]:
    """Return the channels that the model is not shown when it completes the panel: a random share, in the order of ``var``."""
    channels = adata.var_names[adata.var[keys.CHANNEL].to_numpy(dtype=bool)]
    n = max(1, round(HIDDEN_SHARE * len(channels)))
    chosen = np.sort(as_generator(seed).choice(len(channels), size=n, replace=False))
    return [str(name) for name in channels[chosen]]


def score_genes(truth: np.ndarray, predicted: np.ndarray, names: list[str]) -> dict[str, float]:
    """Return Pearson's correlation over observations for each gene (column), best first; a gene that is constant in either has none."""
    from stimg.metrics import per_gene_pearson

    r = per_gene_pearson(truth, predicted)
    found = {name: float(value) for name, value, undefined in zip(names, r.values, r.undefined, strict=True) if not undefined}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def log_normalised(adata: Any, names: list[str], layer: str | None) -> np.ndarray:
    """Return log(1 + 10,000 × count / total of the observation) of some genes, dense (n_obs, len(names))."""
    matrix = adata.X if layer is None else adata.layers[layer]
    totals = np.asarray(matrix.sum(axis=1), dtype=np.float64).reshape(-1, 1)
    wanted = matrix[:, adata.var_names.get_indexer(names)]
    dense = wanted.toarray() if hasattr(wanted, "toarray") else np.asarray(wanted)
    return np.log1p(1e4 * dense / np.maximum(totals, 1))


def cluster_agreement(embedding: np.ndarray, labels: Any, seed: int) -> tuple[float, int]:
    """Return the adjusted Rand index between k-means clusters of an embedding and labels, and the number of labelled observations.

    k is the number of labels; observations without a label are clustered but not compared.
    """
    from stimg import metrics

    found = metrics.cluster_agreement(labels, metrics.cluster(embedding, labels.nunique(), rng=seed))
    return float(found.ari), int(found.n)
