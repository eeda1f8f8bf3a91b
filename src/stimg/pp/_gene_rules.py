"""The rules by which genes become channels, each one function from counts to genes in order of rank."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import scipy.sparse as sp
import scipy.stats

from stimg._core.optional import need
from stimg._core.registry import Registry
from stimg.metrics.spatial import SpatialWeights, morans_i

TARGET = 1e4
"""Counts per observation after normalisation."""
DEFAULT_N = 512
"""Channels of the published models."""


@dataclass(frozen=True)
class Fit:
    """What a rule sees: the chosen observations and the genes that may become channels, and nothing else.

    Parameters
    ----------
    counts
        Raw counts, CSR (n_obs, n_genes).
    depth
        float64 (n_obs,), counts of all genes of each observation, control probes left out.
    library
        int64 (n_obs,), number of each observation's library.
    names
        Name of each gene.
    n
        Channels asked for; None leaves the number to the rule.
    weights
        Spatial weights of each library over the rows of ``counts``; called by rules that look at positions.
    markers
        The fixed list of genes, where one was given.
    min_fraction
        Least fraction of observations in which a gene is detected.
    rng
        The source of chance.
    """

    counts: sp.csr_matrix
    depth: np.ndarray
    library: np.ndarray
    names: pd.Index
    n: int | None
    weights: Callable[[], Mapping[str, SpatialWeights]] = dict
    markers: Sequence[str] | None = None
    min_fraction: float = 0.05
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def log_normalised(self) -> sp.csr_matrix:
        """Return log(1 + counts per 10,000), CSR; zeros stay zeros, and so do observations without counts."""
        factor = np.divide(TARGET, self.depth, out=np.zeros(len(self.depth)), where=self.depth > 0)
        data = np.log1p(self.counts.data * np.repeat(factor, np.diff(self.counts.indptr)))
        return sp.csr_matrix((data, self.counts.indices, self.counts.indptr), shape=self.counts.shape)

    def top(self, score: np.ndarray) -> np.ndarray:
        """Return the genes with the largest scores, best first; equal scores in the order of the genes, NaN last."""
        order = np.argsort(-np.where(np.isnan(score), -np.inf, score), kind="stable")
        return order[: DEFAULT_N if self.n is None else self.n]


@dataclass(frozen=True)
class Rule:
    """A way to choose channels.

    Parameters
    ----------
    rank
        Function from a :class:`Fit` to positions of genes in order of rank.
    reads
        Whether it reads counts: its genes must be detected in the chosen observations, and their hashes are recorded.
    """

    rank: Callable[[Fit], np.ndarray]
    reads: bool = True


RULES: Registry[Rule] = Registry("channel rule")


def _rule(name: str, *, reads: bool = True) -> Callable[[Callable[[Fit], np.ndarray]], Callable[[Fit], np.ndarray]]:
    def add(rank: Callable[[Fit], np.ndarray]) -> Callable[[Fit], np.ndarray]:
        RULES.add(name, Rule(rank, reads))
        return rank

    return add


def _scanpy_table(fit: Fit, values: sp.csr_matrix, flavor: str) -> pd.DataFrame:
    """Return scanpy's table of highly variable genes, batch by library where there are several."""
    anndata, scanpy = need("anndata"), need("scanpy", purpose="highly variable genes")
    number = np.unique(fit.library, return_counts=True)[1]
    if number.min() < 3:
        raise ValueError(
            f"{int((number < 3).sum())} libraries have fewer than 3 of the chosen observations; wanted at least 3 in each. Leave them out."
        )
    table = anndata.AnnData(
        values,
        var=pd.DataFrame(index=fit.names),
        obs=pd.DataFrame({"library": pd.Categorical(fit.library.astype(str))}, index=np.arange(len(fit.library)).astype(str)),
    )
    n = min(DEFAULT_N if fit.n is None else fit.n, len(fit.names))
    found = scanpy.pp.highly_variable_genes(
        table, flavor=flavor, n_top_genes=n, batch_key="library" if len(number) > 1 else None, inplace=False
    )
    return found.loc[fit.names]


@_rule("highly_variable")
def highly_variable(fit: Fit) -> np.ndarray:
    """Normalised dispersion of log counts (scanpy, flavour seurat); with several libraries, first the number of libraries that agree."""
    found = _scanpy_table(fit, fit.log_normalised(), "seurat")
    votes = found["highly_variable_nbatches"].to_numpy() if "highly_variable_nbatches" in found else np.zeros(len(found))
    dispersion = found["dispersions_norm"].to_numpy(dtype=np.float64)
    order = np.lexsort((np.arange(len(found)), -np.where(np.isnan(dispersion), -np.inf, dispersion), -votes))
    return order[: DEFAULT_N if fit.n is None else fit.n]


@_rule("highly_variable_v3")
def highly_variable_v3(fit: Fit) -> np.ndarray:
    """Variance of standardised raw counts (scanpy, flavour seurat_v3; needs scikit-misc), by median rank over the libraries."""
    need("skmisc", purpose="the rule 'highly_variable_v3'")
    found = _scanpy_table(fit, sp.csr_matrix(fit.counts, dtype=np.float64), "seurat_v3")
    rank = found["highly_variable_rank"].to_numpy(dtype=np.float64)
    votes = found["highly_variable_nbatches"].to_numpy() if "highly_variable_nbatches" in found else np.zeros(len(found))
    order = np.lexsort((np.arange(len(found)), -votes, np.where(np.isnan(rank), np.inf, rank)))
    return order[: DEFAULT_N if fit.n is None else fit.n]


@_rule("spatially_variable")
def spatially_variable(fit: Fit) -> np.ndarray:
    """Moran's I of log counts in each library, ranks averaged over the libraries; a gene that is constant in a library is last there."""
    values = fit.log_normalised()
    ranks = []
    for weights in fit.weights().values():
        score = morans_i(values, weights)
        ranks.append(scipy.stats.rankdata(np.where(np.isnan(score), np.inf, -score)))
    return fit.top(-np.mean(ranks, axis=0))


@_rule("variance")
def variance(fit: Fit) -> np.ndarray:
    """Variance of log counts over all chosen observations."""
    values, n = fit.log_normalised(), len(fit.depth)
    total = np.bincount(values.indices, weights=values.data, minlength=values.shape[1])
    square = np.bincount(values.indices, weights=values.data**2, minlength=values.shape[1])
    return fit.top(square / n - (total / n) ** 2)


@_rule("detected")
def detected(fit: Fit) -> np.ndarray:
    """Genes detected in at least ``min_fraction`` of the chosen observations, most often first; ``n`` keeps the first n of them."""
    fraction = np.bincount(fit.counts.indices[fit.counts.data > 0], minlength=len(fit.names)) / len(fit.depth)
    enough = int((fraction >= fit.min_fraction).sum())
    if enough < (1 if fit.n is None else fit.n):
        raise ValueError(
            f"{enough} genes are detected in at least {fit.min_fraction:.3g} of {len(fit.depth)} observations; wanted {fit.n or 'at least 1'}. Lower `min_fraction` or `n`."
        )
    return np.argsort(-fraction, kind="stable")[: enough if fit.n is None else fit.n]


@_rule("uniform", reads=False)
def uniform(fit: Fit) -> np.ndarray:
    """Genes at random, each with the same chance, in the order of the table."""
    return np.sort(fit.rng.choice(len(fit.names), size=DEFAULT_N if fit.n is None else fit.n, replace=False))


@_rule("markers", reads=False)
@_rule("panel", reads=False)
def markers(fit: Fit) -> np.ndarray:
    """Take the genes of ``markers`` in their order; the verb has checked that they are there."""
    return fit.names.get_indexer(pd.Index(list(fit.markers or ())))
