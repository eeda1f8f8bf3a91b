"""How the genes of a protocol are chosen: one registered function a rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from stimg._core.registry import Registry
from stimg.bench.sections import shared_genes

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class Panel:
    """How the genes of a protocol are chosen.

    Parameters
    ----------
    name
        As it appears in reports.
    rule
        A registered gene rule (``GENE_RULES``).
    n
        Number of genes wanted.
    seen
        ``"train"``: the rule reads training sections alone; ``"all"``: test sections too, as published, which leaks.
    argument
        What else the rule needs, such as the name of a published list.
    """

    name: str
    rule: str
    n: int
    seen: str = "train"
    argument: str = ""


GeneRule = Callable[[Mapping[str, "AnnData"], Panel], list[str]]
GENE_RULES: Registry[GeneRule] = Registry("gene rule")


def _pooled(found: Mapping[str, "AnnData"], genes: Sequence[str]) -> tuple[sp.csr_matrix, np.ndarray]:
    """Return the counts of ``genes`` in all sections under each other, CSR, and their full depth."""
    parts = [a[:, list(genes)].X for a in found.values()]
    return sp.vstack(parts, format="csr"), np.concatenate([np.asarray(a.X.sum(axis=1), dtype=np.float64).ravel() for a in found.values()])


def _first(score: np.ndarray, n: int, genes: Sequence[str]) -> list[str]:
    """Return the ``n`` genes with the largest score, best first; equal ones in the order of the genes."""
    return [genes[i] for i in np.argsort(-score, kind="stable")[:n]]


@GENE_RULES.register("highest mean")
def _highest_mean(found: Mapping[str, "AnnData"], panel: Panel) -> list[str]:
    """Genes with most counts over all observations."""
    genes = shared_genes(found)
    counts, _ = _pooled(found, genes)
    return _first(np.asarray(counts.sum(axis=0)).ravel(), panel.n, genes)


@GENE_RULES.register("residual variance")
def _residual_variance(found: Mapping[str, "AnnData"], panel: Panel) -> list[str]:
    """Genes whose log variance lies most above a parabola through log mean, of log(1 + counts per 10,000); detected in over 10 % of observations."""
    names = shared_genes(found)
    counts, depth = _pooled(found, names)
    mean, variance = _moments(np.log1p(1e4 * counts.data / np.repeat(depth, np.diff(counts.indptr))), counts)
    often = np.flatnonzero(np.bincount(counts.indices, minlength=len(names)) > 0.1 * counts.shape[0])
    x, y = (np.log10(np.maximum(v[often], 1e-12)) for v in (mean, variance))
    trend = np.polynomial.Polynomial.fit(x, y, 2)(x) if len(often) > 3 else np.zeros(len(often))
    return _first(y - trend, panel.n, [names[i] for i in often])


def _moments(data: np.ndarray, counts: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of each column of a sparse matrix that has ``data`` in the places of ``counts``."""
    n, width = counts.shape
    mean = np.bincount(counts.indices, weights=data, minlength=width) / n
    return mean, np.bincount(counts.indices, weights=data * data, minlength=width) / n - mean**2


@GENE_RULES.register("published list")
def _published_list(found: Mapping[str, "AnnData"], panel: Panel) -> list[str]:
    """Take a list of ``stimg.datasets.gene_list``, cut to the genes that all sections have."""
    from stimg import datasets

    have = set(shared_genes(found))
    return [g for g in datasets.gene_list(panel.argument) if g in have]


@GENE_RULES.register("detected everywhere")
def _detected_everywhere(found: Mapping[str, "AnnData"], panel: Panel) -> list[str]:
    """Genes detected in at least 10 % of the observations of every section, with most counts first."""
    genes = shared_genes(found)
    often = np.ones(len(genes), dtype=bool)
    for a in found.values():
        often &= np.asarray((a[:, genes].X > 0).mean(axis=0)).ravel() >= 0.1
    kept = np.asarray(genes)[often].tolist()
    if not kept:
        raise ValueError(f"None of {len(genes)} shared genes is detected in 10 % of the observations of all {len(found)} sections.")
    return _first(np.asarray(_pooled(found, kept)[0].sum(axis=0)).ravel(), panel.n, kept)


@GENE_RULES.register("variance of logs")
def _variance_of_logs(found: Mapping[str, "AnnData"], panel: Panel) -> list[str]:
    """Genes with the largest variance of log(1 + counts) over all observations."""
    genes = shared_genes(found)
    counts, _ = _pooled(found, genes)
    return _first(_moments(np.log1p(counts.data.astype(np.float64)), counts)[1], panel.n, genes)


@GENE_RULES.register("mean and spread")
def _mean_and_spread(found: Mapping[str, "AnnData"], panel: Panel) -> list[str]:
    """Genes among the first k both by mean and by standard deviation of log2(1 + counts), k the smallest that gives enough.

    Candidates are the union of the 2,000 most variable genes of each section.
    """
    import scanpy

    genes = shared_genes(found)
    union: set[str] = set()
    for a in found.values():
        part = a[:, genes].copy()
        scanpy.pp.filter_genes(part, min_cells=1)
        scanpy.pp.normalize_total(part, target_sum=1e4)
        scanpy.pp.log1p(part)
        variable = scanpy.pp.highly_variable_genes(part, n_top_genes=min(2000, part.n_vars), inplace=False)["highly_variable"].to_numpy()
        union |= set(part.var_names[variable])
    candidates = [g for g in genes if g in union]
    counts, _ = _pooled(found, candidates)
    mean, spread = _moments(np.log2(1.0 + counts.data), counts)
    place = np.empty((2, len(candidates)), dtype=np.int64)
    for i, score in enumerate((mean, spread)):
        place[i, np.argsort(-score, kind="stable")] = np.arange(len(candidates))
    worst = place.max(axis=0)  # a gene is in both lists from the k on that is its worse place
    return [candidates[i] for i in np.argsort(worst, kind="stable")[: panel.n]]
