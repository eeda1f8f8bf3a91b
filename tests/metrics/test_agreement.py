"""Moran agreement against loops over a dense graph and the correlations of numpy."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.ndimage import gaussian_filter

from stimg.image.spec import RasterSpec
from stimg.metrics.agreement import moran_agreement
from stimg.metrics.spatial import SpatialWeights

HEIGHT, WIDTH = 9, 8


def plain_moran(x, pairs):
    z = x - x.mean()
    if np.ptp(x) == 0:
        return 0.0
    return len(x) / (2 * len(pairs)) * sum(2 * z[i] * z[j] for i, j in pairs) / (z**2).sum()


def ranks(values):
    return np.array([np.mean([sum(v < u for v in values), sum(v <= u for v in values) - 1]) for u in values])


def lattice():
    rc = np.argwhere(np.ones((HEIGHT, WIDTH), dtype=bool))
    pairs = [(i, j) for i in range(len(rc)) for j in range(i + 1, len(rc)) if np.abs(rc[i] - rc[j]).sum() == 1]
    return rc, np.array(pairs)


def genes(seed=0, n=7):
    """True genes from rough to smooth, predicted a little smoother; gene 2 is constant in the truth, genes 4 and 5 in the prediction."""
    rng = np.random.default_rng(seed)
    rasters = [gaussian_filter(rng.normal(size=(HEIGHT, WIDTH)), s) * 5 for s in np.linspace(0, 1.5, n)]
    truth = np.stack([r.ravel() for r in rasters], axis=1)
    predicted = np.stack([gaussian_filter(r + 0.3 * rng.normal(size=r.shape), 0.5).ravel() for r in rasters], axis=1)
    truth[:, 2] = 3.0
    predicted[:, [4, 5]] = 0.1
    return truth, predicted


def test_agreement_is_that_of_a_loop():
    (rc, pairs), (truth, predicted) = lattice(), genes()
    expected = np.array([[plain_moran(x, pairs) for x in values.T] for values in (truth, predicted)])
    result = moran_agreement(truth, predicted, SpatialWeights.from_raster(RasterSpec("square", (HEIGHT, WIDTH), 100.0), rc))
    np.testing.assert_allclose([result.truth, result.predicted], expected, rtol=0, atol=1e-12)
    assert result.truth.dtype == result.predicted.dtype == np.float64
    assert result.pearson == pytest.approx(np.corrcoef(*expected)[0, 1], abs=1e-12)
    assert result.spearman == pytest.approx(np.corrcoef([ranks(e) for e in expected])[0, 1], abs=1e-12)
    assert result.mean_absolute_difference == pytest.approx(np.abs(expected[0] - expected[1]).mean(), abs=1e-12)
    assert result.n_undefined == 3


def test_every_form_of_values_and_weights_gives_the_same():
    (rc, pairs), (truth, predicted) = lattice(), genes(1)
    graph = np.zeros((len(rc), len(rc)))
    graph[pairs[:, 0], pairs[:, 1]] = graph[pairs[:, 1], pairs[:, 0]] = 1
    first = moran_agreement(truth, predicted, pairs)
    mixed = np.random.default_rng(0).permutation(len(rc))
    for other in (
        moran_agreement(sp.csr_matrix(truth), predicted, sp.csr_matrix(graph)),
        moran_agreement(truth, sp.csc_matrix(predicted), SpatialWeights.from_pairs(pairs, len(rc))),
        moran_agreement(truth[mixed], predicted[mixed], sp.csr_matrix(graph[mixed][:, mixed])),
        moran_agreement(truth * 7 + 1, predicted / 3, pairs),
    ):
        np.testing.assert_allclose(other.truth, first.truth, rtol=0, atol=1e-9)
        np.testing.assert_allclose(other.predicted, first.predicted, rtol=0, atol=1e-9)
        assert other[2:] == pytest.approx(first[2:], abs=1e-9)


def test_perfect_predictions_agree_and_shuffled_ones_do_not():
    _, pairs = lattice()
    rng = np.random.default_rng(2)
    truth = np.stack([gaussian_filter(rng.normal(size=(HEIGHT, WIDTH)), s).ravel() for s in np.linspace(0, 2, 60)], axis=1)
    best = moran_agreement(truth, truth, pairs)
    assert best[2:] == pytest.approx((1.0, 1.0, 0.0, 0))
    worst = moran_agreement(truth, rng.permuted(truth, axis=0), pairs)
    assert abs(worst.pearson) < 0.3
    assert worst.mean_absolute_difference > 0.2


def test_no_correlation_where_one_side_has_one_value():
    _, pairs = lattice()
    truth, predicted = genes(3)
    flat = moran_agreement(truth, np.zeros_like(predicted), pairs)
    assert (flat.pearson, flat.spearman, flat.n_undefined) == (0.0, 0.0, 8)
    one = moran_agreement(truth[:, :1], predicted[:, :1], pairs)
    assert (one.pearson, one.spearman, one.n_undefined) == (0.0, 0.0, 0)
    vector = moran_agreement(truth[:, 0], predicted[:, 0], pairs)
    assert vector.truth.tolist() == one.truth.tolist()
    copies = moran_agreement(truth, truth[:, [0]] * np.arange(1.0, 8.0) / 3, pairs)  # the same I but for rounding
    assert (copies.pearson, copies.spearman) == (0.0, 0.0)


def test_bad_input_is_refused():
    _, pairs = lattice()
    truth, predicted = genes()
    with pytest.raises(ValueError, match=r"truth has shape \(72, 7\) and predicted \(72, 6\)"):
        moran_agreement(truth, predicted[:, :6], pairs)
    with pytest.raises(ValueError, match="504 NaN"):
        moran_agreement(truth, predicted * np.nan, pairs)
    with pytest.raises(ValueError, match="no neighbours"):
        moran_agreement(truth, predicted, sp.csr_matrix((72, 72)))
