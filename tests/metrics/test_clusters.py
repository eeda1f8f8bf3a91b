"""Agreement of clusters with labels against pair counts and entropies; clusters against what they were drawn from."""

import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from stimg.metrics.clusters import cluster, cluster_agreement


def plain_ari(a, b):
    """Hubert and Arabie, from all pairs of observations."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    same_a, same_b = (np.array([v[i] == v[j] for i, j in pairs]) for v in (a, b))
    expected = same_a.sum() * same_b.sum() / len(pairs)
    return ((same_a & same_b).sum() - expected) / ((same_a.sum() + same_b.sum()) / 2 - expected)


def plain_nmi(a, b):
    def entropy(values):
        p = np.array([np.mean([v == u for v in values]) for u in set(values)])
        return -np.sum(p * np.log(p))

    joint = list(zip(a, b, strict=True))
    return 2 * (entropy(a) + entropy(b) - entropy(joint)) / (entropy(a) + entropy(b))


def test_agreement_is_that_of_pairs_and_entropies():
    rng = np.random.default_rng(0)
    labels = rng.choice(["L1", "L2", "WM"], 60)
    clusters = np.where(rng.random(60) < 0.6, np.unique(labels, return_inverse=True)[1], rng.integers(0, 4, 60))
    score = cluster_agreement(labels, clusters)
    assert score.ari == pytest.approx(plain_ari(list(labels), list(clusters)), abs=1e-12)
    assert score.nmi == pytest.approx(plain_nmi(list(labels), list(clusters)), abs=1e-12)
    assert (score.n, score.n_missing) == (60, 0)


def test_observations_without_a_label_are_counted_and_not_compared():
    rng = np.random.default_rng(1)
    labels, clusters = rng.choice(["L1", "L2", "WM"], 80).astype(object), rng.integers(0, 3, 80)
    gaps = labels.copy()
    gaps[[3, 17, 50, 61]] = [None, np.nan, "", pd.NA]
    keep = np.delete(np.arange(80), [3, 17, 50, 61])
    without = cluster_agreement(labels[keep], clusters[keep])
    for with_gaps in (gaps, pd.Series(gaps), pd.Categorical(pd.Series(gaps).replace("", None))):
        score = cluster_agreement(with_gaps, clusters)
        assert score[:2] == without[:2]
        assert (score.n, score.n_missing) == (76, 4)


def test_order_and_coding_do_not_matter_and_chance_is_zero():
    rng = np.random.default_rng(2)
    labels, clusters = rng.integers(0, 5, 2000), rng.integers(0, 5, 2000)
    score, mixed = cluster_agreement(labels, clusters), rng.permutation(2000)
    assert abs(score.ari) < 0.01
    assert cluster_agreement(labels[mixed], clusters[mixed])[:2] == pytest.approx(score[:2], abs=1e-9)
    assert cluster_agreement(labels, [f"c{9 - c}" for c in clusters])[:2] == pytest.approx(score[:2], abs=1e-9)
    assert cluster_agreement(labels, labels * -3)[:2] == pytest.approx((1.0, 1.0))
    assert cluster_agreement(labels, np.zeros(2000))[:2] == pytest.approx((0.0, 0.0))  # one cluster for everything


def test_bad_agreements_are_refused():
    with pytest.raises(ValueError, match="3 labels and 2 clusters"):
        cluster_agreement(["a", "b", "c"], [0, 1])
    with pytest.raises(ValueError, match="None of the 2 observations has a label"):
        cluster_agreement([None, np.nan], [0, 1])
    with pytest.raises(ValueError, match="clusters has 1 missing values of 2"):
        cluster_agreement(["a", "b"], [0, np.nan])
    with pytest.raises(ValueError, match=r"labels has shape \(2, 1\)"):
        cluster_agreement([["a"], ["b"]], [0, 1])
    with pytest.raises(TypeError, match="mix strings"):
        cluster_agreement(["a", 1], [0, 1])


def stretched(seed=0, n=600):
    """Three parallel clouds, longer than they are far apart: k-means cuts across them, a shared covariance follows them."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    return np.stack([rng.normal(0, 1.5, n), truth * 2.0 + rng.normal(0, 0.25, n)], axis=1), truth


def tight_and_wide(seed=0, n=600):
    """A tight cloud within the reach of a wide one: a covariance for each tells them apart."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    return rng.normal(0, 1, (n, 2)) * np.where(truth, 2.0, 0.2)[:, None] + np.outer(truth, [2.5, 0]), truth


KINDS = [("kmeans", "tied"), ("gmm", "tied"), ("gmm", "full")]


@pytest.mark.parametrize(("method", "covariance"), KINDS)
def test_clusters_find_what_is_there(method, covariance):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 300)
    found = cluster(
        rng.normal(0, 0.3, (300, 2)) + np.array([[0, 0], [4, 0], [0, 4], [4, 4]])[truth], 4, method=method, covariance=covariance
    )
    assert found.dtype == np.int32
    assert cluster_agreement(truth, found).ari == 1.0


def test_each_kind_of_cluster_has_the_shape_it_should():
    x, truth = stretched()
    assert cluster_agreement(truth, cluster(x, 3)).ari < 0.6
    assert cluster_agreement(truth, cluster(x, 3, method="gmm")).ari > 0.99
    x, truth = tight_and_wide()
    assert cluster_agreement(truth, cluster(x, 2, method="gmm")).ari < 0.6
    assert cluster_agreement(truth, cluster(x, 2, method="gmm", covariance="full")).ari > 0.8


def test_clusters_are_as_good_as_those_of_scikit_learn():
    x = stretched(1)[0]
    found = cluster(x, 5, rng=4)
    inertia = sum(((x[found == c] - x[found == c].mean(axis=0)) ** 2).sum() for c in range(5))
    assert inertia == pytest.approx(KMeans(5, n_init=10, random_state=0).fit(x).inertia_, rel=0.02)
    for covariance, x, k in (("tied", stretched(1)[0], 3), ("full", tight_and_wide(1)[0], 2)):
        expected = GaussianMixture(k, covariance_type=covariance, n_init=10, random_state=0).fit_predict(x)
        assert cluster_agreement(expected, cluster(x, k, method="gmm", covariance=covariance)).ari > 0.95


@pytest.mark.parametrize(("method", "covariance"), KINDS)
def test_clusters_do_not_depend_on_the_order(method, covariance):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 3))  # nothing to find: the starts decide
    x[:4] = x[4]
    mixed = rng.permutation(200)
    here = cluster(x, 5, method=method, covariance=covariance, rng=1, n_init=2)
    np.testing.assert_array_equal(cluster(x[mixed], 5, method=method, covariance=covariance, rng=1, n_init=2), here[mixed])
    np.testing.assert_array_equal(cluster(np.asfortranarray(x), 5, method=method, covariance=covariance, rng=1, n_init=2), here)
    assert (cluster(x, 5, method=method, covariance=covariance, rng=2, n_init=2) != here).any()


def test_bad_clusters_are_refused_and_warnings_pass():
    x = np.random.default_rng(0).normal(size=(10, 2))
    with pytest.raises(ValueError, match="method='louvain'"):
        cluster(x, 2, method="louvain")
    with pytest.raises(ValueError, match="covariance='diag'"):
        cluster(x, 2, method="gmm", covariance="diag")
    with pytest.raises(ValueError, match=r"embedding has shape \(10,\)"):
        cluster(x[:, 0], 2)
    with pytest.raises(ValueError, match="k=11 clusters of 10"):
        cluster(x, 11)
    with pytest.raises(ValueError, match="k=0"):
        cluster(x, 0)
    with pytest.raises(ValueError, match="embedding has 1 rows of 10"):
        cluster(np.where(x == x.max(), np.nan, x), 2)
    assert (cluster(x, 1) == 0).all()
    with pytest.warns(ConvergenceWarning, match="distinct clusters"):
        cluster(np.zeros((10, 2)), 2)
