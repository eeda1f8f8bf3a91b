"""Nulls and rivals for hidden genes of a panel: depth, co-expressed genes, principal components, all fitted on the training sections alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from stimg.bench.expression import depth_of
from stimg.bench.method import Prediction, method
from stimg.bench.protocol import Task, library_of
from stimg.bench.sections import donor
from stimg.bench.values import log_values
from stimg.data.slots import raster_libraries
from stimg.image.lattice import neighbour_pairs
from stimg.metrics import depth_line, neighbour_mean, per_gene_pearson

if TYPE_CHECKING:
    from anndata import AnnData

KINDS = ("completion",)
RANKS, PENALTIES = (5, 10, 15, 20, 30, 50), (1e-3, 1e-2, 1e-1, 1.0)
"""Numbers of components and penalties among which is chosen."""
UNTUNED = (50, 1e-3)
PARTNERS = 20


def _panel(adata: "AnnData", genes: Sequence[str]) -> "AnnData":
    """Return the section cut to ``genes``, so that depth is theirs, in training as in test sections."""
    return adata[:, [g for g in genes if g in adata.var_names]]


class Sections:
    """Values of some sections under each other: ``x`` of the genes that every section shows, ``depth`` of these, and the section of each row.

    Values are log(1 + counts per 10,000 of the genes that are shown), less their section's mean; a gene that a section does not list is 0.
    """

    def __init__(self, sections: Iterable["AnnData"], genes: Sequence[str]) -> None:
        self.sections = [_panel(a, genes) for a in sections]
        self.names = [library_of(a) for a in self.sections]
        self.x = _centred([np.nan_to_num(log_values(a, genes=genes)) for a in self.sections])
        self.depth = np.maximum(np.concatenate([depth_of(a) for a in self.sections]), 1)
        self.row = np.repeat(np.arange(len(self.sections)), [a.n_obs for a in self.sections])

    def around(self) -> np.ndarray:
        """Return the mean of each observation's neighbours on the lattice, of every gene, less the section's mean where it has none."""
        out = []
        for i, a in enumerate(self.sections):
            (library,) = raster_libraries(a).values()
            pairs = library.rows[neighbour_pairs(library.spec, library.rc, diagonal=library.spec.lattice == "square")]
            out.append(neighbour_mean(self.x[self.row == i], pairs))
        return np.concatenate(out)

    def split(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return the rows of each section by library."""
        return {name: values[self.row == i] for i, name in enumerate(self.names)}


def _centred(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([v - v.mean(axis=0) for v in parts])


def given(task: Task) -> tuple[Sections, np.ndarray, np.ndarray, Sections]:
    """Return the training sections, the hidden genes there (less each section's mean), the mean of these over all, and the test sections."""
    genes = [g for g in task.extra["panel"] if g not in set(task.genes)]
    values = [np.nan_to_num(task.target(a)) for a in task.train]
    return Sections(task.train, genes), _centred(values), np.concatenate(values).mean(axis=0), Sections(task.test, genes)


@method("observed depth line", kinds=KINDS, role="null")
def observed_depth(task: Task, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Line on the log depth of the genes that are shown, fitted within the training sections."""
    train, y, mean, test = given(task)
    return test.split(depth_line(y, train.depth, test.depth, train_section=train.row) + mean)


def _partners(task: Task, k: int) -> dict[str, np.ndarray]:
    """Return each hidden gene's line on the mean of its ``k`` most correlated genes, each divided by its spread in the training sections."""
    train, y, mean, test = given(task)
    spread, k = train.x.std(axis=0) + 1e-9, min(k, train.x.shape[1])
    z = train.x / spread
    correlation = z.T @ (y / (y.std(axis=0) + 1e-9))
    best = np.argsort(-correlation, axis=0, kind="stable")[:k]
    choose = np.zeros_like(correlation)
    np.put_along_axis(choose, best, 1 / k, axis=0)
    together = z @ choose
    squares = (together**2).sum(axis=0)
    slope = np.divide((together * y).sum(axis=0), squares, out=np.zeros_like(squares), where=squares > 0)
    return test.split((test.x / spread) @ choose * slope + mean)


@method("best co-expressed gene", kinds=KINDS, role="null")
def best_partner(task: Task, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Line on the one gene that goes best with the hidden one in the training sections."""
    return _partners(task, 1)


@method("mean of 20 co-expressed genes", kinds=KINDS, role="null")
def mean_of_partners(task: Task, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Line on the mean of the 20 genes that go best with the hidden one in the training sections."""
    return _partners(task, PARTNERS)


class _Components:
    """Ridge regressions of ``y`` on the first components of ``x``, or on these and their mean over neighbours, for all ranks and penalties."""

    def __init__(self, x: np.ndarray, around: np.ndarray | None, y: np.ndarray, most: int) -> None:
        top = min(most, *x.shape)
        self.axes = scipy.linalg.eigh(x.T @ x, subset_by_index=[x.shape[1] - top, x.shape[1] - 1])[1][:, ::-1]
        features = self._features(x, around)
        self.gram, self.cross = features.T @ features, features.T @ y

    def _features(self, x: np.ndarray, around: np.ndarray | None) -> np.ndarray:
        return np.concatenate([v @ self.axes for v in (x, around) if v is not None], axis=1)

    def predict(self, x: np.ndarray, around: np.ndarray | None, choices: Iterable[tuple[int, float]]) -> Iterator[np.ndarray]:
        """Yield the predictions with each (rank, penalty); the penalty is in units of the mean sum of squares of the features."""
        features, most = self._features(x, around), self.axes.shape[1]
        for rank, penalty in choices:
            at = np.flatnonzero(np.arange(features.shape[1]) % most < rank)
            gram = self.gram[np.ix_(at, at)]
            strength = penalty * np.trace(gram) / len(gram)
            yield features[:, at] @ scipy.linalg.solve(gram + strength * np.eye(len(gram)), self.cross[at], assume_a="pos")


def _tuned(x: np.ndarray, around: np.ndarray | None, y: np.ndarray, section: np.ndarray, group: np.ndarray) -> tuple[int, float]:
    """Return rank and penalty with the best mean r over sections when each group in turn is predicted from the others."""
    choices = [(rank, penalty) for rank in RANKS for penalty in PENALTIES]
    scores = []
    for name in np.unique(group):
        held = group == name
        inner = _Components(x[~held], None if around is None else around[~held], y[~held], max(RANKS))
        rows = [section[held] == s for s in np.unique(section[held])]
        found = inner.predict(x[held], None if around is None else around[held], choices)
        scores.append([[per_gene_pearson(y[held][at], p[at]).mean() for at in rows] for p in found])
    mean = np.concatenate(scores, axis=1).mean(axis=1)
    return max(zip(mean.tolist(), choices, strict=True))[1]


def _pca_ridge(task: Task, *, spatial: bool, tune: bool) -> Prediction:
    train, y, mean, test = given(task)
    donors = np.array([donor(a) for a in task.train])
    group = (donors if len(set(donors)) > 1 else np.array(train.names))[train.row]
    around, test_around = (train.around(), test.around()) if spatial else (None, None)
    rank, penalty = UNTUNED if not tune or len(set(group)) < 2 else _tuned(train.x, around, y, train.row, group)
    predicted = next(_Components(train.x, around, y, rank).predict(test.x, test_around, [(rank, penalty)]))
    return Prediction(test.split(predicted + mean), notes={"rank": rank, "penalty": penalty})


@method("PCA-50 + ridge", kinds=KINDS, role="rival")
def pca_ridge(task: Task, rng: np.random.Generator) -> Prediction:
    """Ridge regression on 50 principal components of the genes that are shown."""
    return _pca_ridge(task, spatial=False, tune=False)


@method("PCA + ridge, tuned", kinds=KINDS, role="rival")
def pca_ridge_tuned(task: Task, rng: np.random.Generator) -> Prediction:
    """Ridge regression on principal components, rank and penalty chosen by leaving out training donors (sections where there is one donor)."""
    return _pca_ridge(task, spatial=False, tune=True)


@method("PCA + neighbours + ridge, tuned", kinds=KINDS, role="rival")
def pca_neighbours_ridge_tuned(task: Task, rng: np.random.Generator) -> Prediction:
    """Ridge regression on principal components and their mean over the neighbours of each observation, chosen likewise."""
    return _pca_ridge(task, spatial=True, tune=True)
