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
    centred = [array - array.mean(axis=0) for array in (np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64))]
    norms = [np.sqrt((array**2).sum(axis=0)) for array in centred]
    usable = (norms[0] > 0) & (norms[1] > 0)
    r = (centred[0] * centred[1]).sum(axis=0)[usable] / (norms[0] * norms[1])[usable]
    found = {name: float(value) for name, value in zip(np.asarray(names)[usable].tolist(), r, strict=True)}
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
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    codes = np.asarray(labels.astype("category").cat.codes)
    known = codes >= 0
    clusters = KMeans(n_clusters=len(np.unique(codes[known])), n_init=10, random_state=seed).fit_predict(embedding)
    return float(adjusted_rand_score(codes[known], clusters[known])), int(known.sum())
