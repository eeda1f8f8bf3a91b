"""Embeddings for protocols of known regions: coordinates, chance, depth, genes and their principal components. None sees a region, but for the audit."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.spatial import KDTree

from stimg._core import keys
from stimg.bench.expression import depth_of
from stimg.bench.method import method
from stimg.bench.protocol import Hidden, library_of
from stimg.bench.protocols.domains import EmbeddingTask
from stimg.bench.sections import shared_genes
from stimg.bench.values import log_values
from stimg.data.slots import raster_libraries
from stimg.metrics import permute_labels, random_embedding

if TYPE_CHECKING:
    from anndata import AnnData

KINDS = ("labels",)
N_GENES, N_SHOWN, N_COMPONENTS = 1000, 512, 50
RADIUS = 2.5
"""In pitches: 19 observations on a hexagonal lattice, 21 on a square one."""
Embedding = Callable[[EmbeddingTask, np.random.Generator], Mapping[str, np.ndarray]]


def in_reading_order(function: Embedding) -> Embedding:
    """Return ``function`` on sections whose observations stand in reading order, its answer in theirs: sums round by position, clusterings by sums."""

    @wraps(function)
    def ordered(task: EmbeddingTask, rng: np.random.Generator) -> dict[str, np.ndarray]:
        order = {name: np.lexsort(a.obsm[keys.RC].T[::-1]) for name, a in task.asked().items()}
        train, test = (tuple(a[order[library_of(a)]] for a in sections) for sections in (task.train, task.test))
        return {name: values[np.argsort(order[name])] for name, values in function(replace(task, train=train, test=test), rng).items()}

    return ordered


@method("row and column", kinds=KINDS, role="null")
def row_and_column(task: EmbeddingTask, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Row and column on the lattice, no gene: what being near is worth."""
    return {name: np.asarray(a.obsm[keys.RC], dtype=np.float64) for name, a in task.asked().items()}


@method("library depth", kinds=KINDS, role="null")
def library_depth(task: EmbeddingTask, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Log of the counts of all genes together, one number: regions differ in depth, whatever is expressed."""
    return {name: np.log1p(depth_of(a))[:, None] for name, a in task.asked().items()}


@method("random embedding", kinds=KINDS, role="null", seeded=True)
def random(task: EmbeddingTask, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Fifty random numbers an observation: chance."""
    return {name: random_embedding(a.n_obs, N_COMPONENTS, rng=rng) for name, a in task.asked().items()}


@method("512 HVG", kinds=KINDS, role="rival")
@in_reading_order
def variable_genes(task: EmbeddingTask, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Log(1 + counts per 10,000) of the 512 most variable genes."""
    genes = ranked_genes(task)[:N_SHOWN]
    return {name: log_values(a, genes=genes) for name, a in task.asked().items()}


@method("PCA-50", kinds=KINDS, role="rival")
@in_reading_order
def components(task: EmbeddingTask, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Fifty principal components of the 1,000 most variable genes, less the mean of the section."""
    from sklearn.decomposition import PCA

    genes = ranked_genes(task)
    fitted = np.concatenate([_centred(log_values(a, genes=genes)) for a in task.fitted_on])
    pca = PCA(min(N_COMPONENTS, len(genes), len(fitted)), svd_solver="covariance_eigh").fit(fitted)
    return {name: pca.transform(_centred(log_values(a, genes=genes))) for name, a in task.asked().items()}


@method("PCA-50, neighbours averaged", kinds=KINDS, role="rival")
@in_reading_order
def averaged_components(task: EmbeddingTask, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Fifty principal components, averaged over the observations within 2.5 pitches."""
    asked = task.asked()
    return {name: neighbourhood(asked[name], RADIUS) @ values for name, values in components(task, rng).items()}


@method("regions permuted", kinds=KINDS, role="audit", seeded=True)
def regions_permuted(task: EmbeddingTask, rng: np.random.Generator, hidden: Hidden) -> Mapping[str, np.ndarray]:
    """Regions of each section in random order, one column for each: chance that knows how frequent they are."""
    known = sorted({y for values in hidden.truth.values() for y in values if y is not None})
    truth = {name: np.stack([hidden.truth[name] == region for region in known], axis=1) for name in task.asked()}
    return {name: permute_labels(values.astype(np.float64), rng=rng) for name, values in truth.items()}


def ranked_genes(task: EmbeddingTask) -> list[str]:
    """Return at most 1,000 genes that all sections list, the most variable first, chosen where the task allows fitting."""
    import anndata

    from stimg import pp

    genes = shared_genes(task.asked())
    fit = anndata.concat([a[:, genes] for a in task.fitted_on], index_unique="-")
    fit.obs[keys.LIBRARY] = fit.obs[keys.LIBRARY].astype("category")
    detected = int((np.asarray((fit.X > 0).sum(axis=0)).ravel() > 0).sum())
    pp.select_genes(fit, rule="highly_variable", n=min(N_GENES, detected))
    order = fit.var[keys.CHANNEL_ORDER]
    return [str(g) for g in order[order >= 0].sort_values().index]


def neighbourhood(adata: "AnnData", radius: float) -> sp.csr_matrix:
    """Return the matrix (n_obs, n_obs) that averages over the observations within ``radius`` pitches, itself included."""
    rows, columns = [], []
    for library in raster_libraries(adata).values():
        points = library.spec.lattice_points(library.rc)
        near = KDTree(points).query_ball_point(points, radius)
        rows.append(np.repeat(library.rows, [len(group) for group in near]))
        columns.append(library.rows[np.concatenate(near).astype(np.int64)])
    found = (np.concatenate(rows), np.concatenate(columns))
    weights = sp.csr_matrix((np.ones(len(found[0])), found), shape=(adata.n_obs, adata.n_obs))
    return sp.csr_matrix(sp.diags_array(1.0 / np.maximum(np.asarray(weights.sum(axis=1)).ravel(), 1.0)) @ weights)


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=0)
