"""Agreement of spatial structure: whether predicted genes are as smooth in space as the true ones."""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import scipy.stats

from stimg.metrics.spatial import Weights, morans_i

DECIMALS = 10
"""Moran's I to this many decimals is what is ranked: genes with the same pattern tie, whatever their rounding."""


class MoranAgreement(NamedTuple):
    """Moran's I of the true and of the predicted values of each gene, and how the two agree over the genes.

    Parameters
    ----------
    truth, predicted
        float64 (n_genes,), Moran's I; 0 where it is undefined.
    pearson, spearman
        Correlation over the genes; 0 where one side has one value throughout, which includes a single gene.
    mean_absolute_difference
        Mean over the genes.
    n_undefined
        Values of I, of the truth and of the prediction together, that are undefined since the gene is constant.
    """

    truth: np.ndarray
    predicted: np.ndarray
    pearson: float
    spearman: float
    mean_absolute_difference: float
    n_undefined: int


def moran_agreement(
    truth: np.ndarray | sp.spmatrix | sp.sparray, predicted: np.ndarray | sp.spmatrix | sp.sparray, weights: Weights
) -> MoranAgreement:
    """Return Moran's I of truth and prediction for every gene, and their agreement.

    Parameters
    ----------
    truth, predicted
        (n_obs, n_genes), dense or sparse, finite.
    weights
        As in :func:`~stimg.metrics.morans_i`, for the observations that are scored: held-out ones alone, where others were seen.

    Raises
    ------
    ValueError
        For shapes that differ, values that are not finite, or no neighbours at all.

    Notes
    -----
    Predictions are often smoother than data: I is then higher throughout, which the mean absolute difference shows and a correlation does
    not. Measurement noise lowers the I of the truth, so that a perfect prediction of the mean does not reach a difference of 0. Agreement
    in I says nothing of where a gene is expressed; read it beside a correlation per gene.

    Examples
    --------
    >>> x = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    >>> result = moran_agreement(x, x[:, ::-1], np.array([[0, 1], [1, 2], [2, 3]]))
    >>> result.truth.round(3).tolist(), round(result.pearson, 3), round(result.mean_absolute_difference, 3)
    ([0.333, -1.0], -1.0, 1.333)
    """
    if np.shape(truth) != np.shape(predicted):
        raise ValueError(f"truth has shape {np.shape(truth)} and predicted {np.shape(predicted)}; wanted the same observations and genes.")
    scores = np.stack([morans_i(truth, weights), morans_i(predicted, weights)])
    undefined = np.isnan(scores)
    scores[undefined] = 0.0
    rounded = scores.round(DECIMALS)
    pearson = spearman = 0.0
    if scores.shape[1] > 1 and (np.ptp(rounded, axis=1) > 0).all():
        pearson = float(scipy.stats.pearsonr(*scores).statistic)
        spearman = float(scipy.stats.spearmanr(*rounded).statistic)
    return MoranAgreement(scores[0], scores[1], pearson, spearman, float(np.abs(scores[0] - scores[1]).mean()), int(undefined.sum()))
