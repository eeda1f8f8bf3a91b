"""Clusters of observations, and their agreement with labels: adjusted Rand index and normalised mutual information."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stimg._core.rng import RngLike, as_seed
from stimg._core.validate import finite, one_of, whole

METHODS = ("kmeans", "gmm")
COVARIANCES = ("tied", "full")


class Agreement(NamedTuple):
    """Adjusted Rand index and normalised mutual information over ``n`` labelled observations; ``n_missing`` more have no label."""

    ari: float
    nmi: float
    n: int
    n_missing: int


def cluster_agreement(labels: Sequence[Any] | np.ndarray, clusters: Sequence[Any] | np.ndarray) -> Agreement:
    """Return how well clusters agree with labels, over the observations that have a label.

    Parameters
    ----------
    labels
        (n,), the truth. None, NaN and empty strings are no label: such observations are not compared, and counted.
    clusters
        (n,), the cluster of every observation, in any coding.

    Raises
    ------
    ValueError
        For lengths that differ, no label at all, or observations without a cluster (leaving the hard ones out would flatter).

    Notes
    -----
    ARI: Hubert and Arabie (1985), J Classif 2, 193-218, 0 in expectation for random clusters. NMI: mutual information over the arithmetic
    mean of the entropies, not adjusted for chance, hence growing with the number of clusters. Both as in scikit-learn.

    Examples
    --------
    >>> cluster_agreement(["L1", "L1", "WM", "WM", None], [1, 1, 0, 0, 0])
    Agreement(ari=1.0, nmi=1.0, n=4, n_missing=1)
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    truth, found = as_labels(labels, "labels"), as_labels(clusters, "clusters")
    if len(truth) != len(found):
        raise ValueError(f"There are {len(truth)} labels and {len(found)} clusters; wanted one of each per observation.")
    without = int(missing(found).sum())
    if without:
        raise ValueError(f"clusters has {without} missing values of {len(found)}; wanted a cluster for every observation.")
    known = ~missing(truth)
    if not known.any():
        raise ValueError(f"None of the {len(truth)} observations has a label; there is nothing to compare. Pass the labels.")
    a, b = encode(truth[known])[1], encode(found[known])[1]
    return Agreement(
        float(adjusted_rand_score(a, b)), float(normalized_mutual_info_score(a, b)), int(known.sum()), int(len(known) - known.sum())
    )


def cluster(
    embedding: np.ndarray, k: int, *, method: str = "kmeans", covariance: str = "tied", rng: RngLike = 0, n_init: int = 10
) -> np.ndarray:
    """Return the cluster of each observation, int32 (n_obs,), from 0 to ``k - 1``.

    Parameters
    ----------
    embedding
        (n_obs, n_dims), finite, used as it is: scale it before.
    k
        Number of clusters. Taking the true number of labels for ``k`` tells the method something that it could not know, a leak in
        itself: state it beside the score, and compare with methods that were told the same.
    method
        ``"kmeans"``, or ``"gmm"`` for a mixture of Gaussians.
    covariance
        Of the mixture: ``"tied"``, one covariance for all clusters (the EEE model of mclust), or ``"full"``, one for each (VVV).
    rng
        Seed. The result does not depend on the order of the observations.
    n_init
        Starts, of which the best counts.

    Notes
    -----
    ``sklearn.cluster.KMeans`` and ``sklearn.mixture.GaussianMixture`` with 300 iterations at most and their defaults elsewhere, on the
    observations in sorted order. mclust starts from hierarchical clusters, scikit-learn from k-means. The warnings of scikit-learn (no
    convergence, fewer distinct observations than clusters) are passed on.

    Examples
    --------
    >>> cluster(np.array([[0.0], [5.1], [0.1], [5.0]]), 2).tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])
    True
    """
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    one_of(method, METHODS, "method")
    one_of(covariance, COVARIANCES, "covariance")
    x = np.asarray(embedding, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"embedding has shape {x.shape}; wanted (observations, dimensions).")
    finite(x, "embedding", todo="Remove or repair them.")
    k = whole(k, "k")
    if k > len(x):
        raise ValueError(f"k={k} clusters of {len(x)} observations; wanted at most as many clusters as observations.")
    model: Any
    if method == "kmeans":
        model = KMeans(k, n_init=n_init, max_iter=300, random_state=as_seed(rng))
    else:
        model = GaussianMixture(k, covariance_type=covariance, n_init=n_init, max_iter=300, random_state=as_seed(rng))
    order = np.argsort(row_keys(x))
    out = np.empty(len(x), dtype=np.int32)
    out[order] = model.fit_predict(x[order])
    return out


def row_keys(x: np.ndarray) -> np.ndarray:
    """Return the bytes of each row, (n,): sorted by them, rows are in an order that does not depend on how they were shuffled."""
    x = np.ascontiguousarray(x)
    return x.view(f"V{x.itemsize * x.shape[1]}").ravel()


def as_labels(labels: Sequence[Any] | np.ndarray, name: str) -> np.ndarray:
    """Return labels as an array of objects (n,)."""
    array = np.asarray(labels, dtype=object)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; wanted one label per observation, (n,).")
    return array


def missing(labels: np.ndarray) -> np.ndarray:
    """Return True where there is no label, bool (n,): None, NaN or an empty string."""
    out = np.asarray(pd.isna(labels))
    out[~out] = labels[~out] == ""  # pandas.NA cannot be compared
    return out


def encode(*labels: np.ndarray) -> tuple[Any, ...]:
    """Return the distinct labels of all arrays, sorted, as a list, and each array as codes, int64 (n,): positions in that list."""
    codes, classes = pd.factorize(np.concatenate(labels), sort=True)
    if len({isinstance(each, str) for each in classes}) > 1:
        raise TypeError(f"The labels mix strings and other types ({classes.tolist()[:12]}). Convert them all to one type.")
    return classes.tolist(), *np.split(codes.astype(np.int64), np.cumsum([len(each) for each in labels])[:-1])
