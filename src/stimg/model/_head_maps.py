"""From image features to log expression: a ridge regression, or the average of the observations of a reference that are nearest."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from stimg.metrics import RidgePath, embedding_ridge, nearest
from stimg.metrics.sections import section_means
from stimg.model._head_reference import Groups

GENES = 512
"""Genes whose values are dense at a time."""
MOST_JUDGED = 1000
"""Most genes by which a penalty is chosen: those that vary most."""
ROWS = 4096
"""Observations that are predicted at a time."""


def gene_chunks(n_genes: int) -> Iterator[slice]:
    """Yield slices of at most ``GENES`` genes."""
    for start in range(0, n_genes, GENES):
        yield slice(start, min(start + GENES, n_genes))


def within(values: np.ndarray, section: np.ndarray, *, centre: bool) -> np.ndarray:
    """Return ``values`` (n, columns) less the mean of their section, or as they are."""
    return values - section_means(values, section) if centre else values


def most_variable(values: sp.csr_matrix, most: int) -> np.ndarray:
    """Return the columns of the ``most`` largest variances, ascending; all of them where there are no more."""
    if values.shape[1] <= most:
        return np.arange(values.shape[1])
    mean = np.asarray(values.mean(axis=0), dtype=np.float64).ravel()
    square = np.asarray(values.multiply(values).mean(axis=0), dtype=np.float64).ravel()
    return np.sort(np.argsort(-(square - mean**2), kind="stable")[:most])


def axes_of(z: np.ndarray, n_components: int | None) -> np.ndarray:
    """Return the principal axes of the columns of ``z``, float64 (columns, components); None: the columns themselves."""
    n, p = z.shape
    if n_components is None:
        return np.eye(p)
    most = min(n, p)
    top = [max(most - min(n_components, n, p), 0), most - 1]
    squares, vectors = scipy.linalg.eigh(z.T @ z if p <= n else z @ z.T, subset_by_index=top)
    kept = squares > 1e-12 * max(squares.max(), 1.0)
    return vectors[:, kept] if p <= n else z.T @ vectors[:, kept] / np.sqrt(squares[kept])


@dataclass(frozen=True)
class RidgeMap:
    r"""A regression on features: ``coefficients`` float32 (columns, genes) and ``intercept`` float32 (genes,).

    ``mean`` float32 (genes,) is that of the values it was fitted on, ``penalty`` that of the fit, and ``gain`` what differences from the mean were
    multiplied by after it. A penalty that is chosen by correlation says nothing of the scale, and the largest differences shrink to nothing.
    """

    coefficients: np.ndarray
    intercept: np.ndarray
    mean: np.ndarray
    penalty: float
    gain: float = 1.0

    @classmethod
    def fit(cls, x: np.ndarray, y: Any, groups: Groups, section: np.ndarray, *, centre: bool, n_components: int | None) -> "RidgeMap":
        """Return the regression of ``y`` (n, genes), sparse or dense, on ``x`` (n, columns).

        As :func:`stimg.metrics.embedding_ridge`, with its coefficients. ``x`` is centred already where ``centre`` is True; ``y`` is not.
        The penalty is chosen by the genes that vary most, at most 1,000.
        """
        y = sp.csr_matrix(y)
        judged = y[:, most_variable(y, MOST_JUDGED)].toarray()
        own, first = (section, section[:1]) if centre else (None, None)
        penalty = embedding_ridge(
            x, judged, x[:1], train_group=groups.label, train_section=own, test_section=first, n_components=n_components
        ).penalty
        path = RidgePath(x, n_components)
        coefficients = np.zeros((x.shape[1], y.shape[1]), dtype=np.float32)
        intercept, middle = np.zeros((2, y.shape[1]), dtype=np.float32)
        for part in gene_chunks(y.shape[1]):
            dense = y[:, part].toarray().astype(np.float64)
            line = path.linear(path.targets(within(dense, section, centre=centre)), penalty)
            coefficients[:, part] = line.coefficients
            intercept[part] = line.intercept + (dense.mean(axis=0) if centre else 0.0)
            middle[part] = dense.mean(axis=0)
        return cls(coefficients, intercept, middle, penalty)

    def scaled(self, gain: float) -> "RidgeMap":
        """Return the map whose differences from the mean are ``gain`` times as large."""
        coefficients = self.coefficients * np.float32(gain)
        return RidgeMap(
            coefficients, self.mean + np.float32(gain) * (self.intercept - self.mean), self.mean, self.penalty, self.gain * gain
        )

    def prepare(self, x: np.ndarray) -> np.ndarray:
        """Return what :meth:`values` needs of features (n, columns)."""
        return x

    def values(self, prepared: np.ndarray, genes: slice | np.ndarray) -> np.ndarray:
        """Return the predictions of some genes, float32 (n, genes)."""
        return (prepared @ self.coefficients[:, genes].astype(np.float64) + self.intercept[genes]).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is saved; :meth:`from_arrays` is the inverse."""
        arrays = {name: getattr(self, name) for name in ("coefficients", "intercept", "mean")}
        return {**arrays, "penalty_gain": np.array([self.penalty, self.gain])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "RidgeMap":
        """Return the map of :meth:`arrays`."""
        penalty, gain = arrays["penalty_gain"].tolist()
        return cls(arrays["coefficients"], arrays["intercept"], arrays["mean"], penalty, gain)


@dataclass(frozen=True)
class RetrievalMap:
    r"""The average of the observations of a reference whose expression lies nearest to an image in a joint space.

    .. math:: \hat y = \bar y + \sum_{i \in N_k} w_i (y_i - \bar y_{s(i)}), \quad w_i \propto \exp(\cos(a, b_i) / t)

    over the k items of largest cosine, with a the embedding of the image and b those of the reference's expression. ``values_`` are the log values
    of the reference, CSR (m, genes); ``means`` (sections, genes) those taken off by ``section`` (m,) and ``overall`` (genes,) the one put back.
    ``image_map`` leads from features to the joint space; None where embeddings are given.
    """

    gallery: np.ndarray
    values_: sp.csr_matrix
    section: np.ndarray
    means: np.ndarray
    overall: np.ndarray
    k: int
    temperature: float
    image_map: RidgeMap | None = None

    @classmethod
    def of(
        cls,
        gallery: np.ndarray,
        values: sp.csr_matrix,
        section: np.ndarray,
        *,
        centre: bool,
        k: int,
        temperature: float,
        image_map: RidgeMap | None = None,
    ) -> "RetrievalMap":
        """Return the map to the observations ``values`` (m, genes), whose embeddings are ``gallery`` (m, d)."""
        overall = np.asarray(values.mean(axis=0), dtype=np.float32).ravel()
        if centre:
            names, code = np.unique(section, return_inverse=True)
            member = sp.csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))), shape=(len(names), len(code)))
            means = (np.asarray((member @ values).todense()) / np.bincount(code)[:, None]).astype(np.float32)
        else:
            code, means = np.zeros(values.shape[0], dtype=np.int64), overall[None]
        return cls(gallery.astype(np.float32), values, code.astype(np.int64), means, overall, int(k), float(temperature), image_map)

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        y: sp.csr_matrix,
        groups: Groups,
        section: np.ndarray,
        *,
        centre: bool,
        n_components: int | None,
        n_joint: int,
        k: int,
        temperature: float,
    ) -> "RetrievalMap":
        """Return the map whose joint space are ``n_joint`` principal components of expression, which a ridge regression reads from features.

        Components keep the scale that they have in expression, so that large ones decide.
        """
        judged = within(y[:, most_variable(y, MOST_JUDGED)].toarray().astype(np.float64), section, centre=centre)
        judged -= judged.mean(axis=0)
        scores = judged @ axes_of(judged, n_joint)
        if scores.shape[1] == 0:
            raise ValueError("the log values of the reference do not vary; wanted genes with counts that differ between observations.")
        lead = RidgeMap.fit(x, scores, groups, section, centre=centre, n_components=n_components)
        return cls.of(scores, y, section, centre=centre, k=k, temperature=temperature, image_map=lead)

    def prepare(self, x: np.ndarray) -> sp.csr_matrix:
        """Return the weights of the reference's observations, CSR (n, m), of sum 1; ``x`` are features, or embeddings where there is no map."""
        query: np.ndarray = x if self.image_map is None else self.image_map.values(x, slice(None))
        found = nearest(query, self.gallery, k=min(self.k, len(self.gallery)))
        score = np.where(found.index >= 0, found.score, -np.inf)
        best = np.where(np.isfinite(score[:, :1]), score[:, :1], 0.0)
        weight = np.exp((score - best) / self.temperature)
        total = weight.sum(axis=1, keepdims=True)
        weight = np.divide(
            weight, total, out=np.zeros_like(weight), where=total > 0
        )  # without a direction there is no item, and the mean is left
        rows = np.repeat(np.arange(len(weight)), weight.shape[1])
        kept = found.index.ravel() >= 0
        parts = (weight.ravel()[kept], (rows[kept], found.index.ravel()[kept]))
        return sp.csr_matrix(parts, shape=(len(weight), len(self.gallery)))

    def values(self, prepared: sp.csr_matrix, genes: slice | np.ndarray) -> np.ndarray:
        """Return the predictions of some genes, float32 (n, genes)."""
        m = len(self.section)
        member = sp.csr_matrix((np.ones(m), (np.arange(m), self.section)), shape=(m, len(self.means)))
        taken = (prepared @ member) @ self.means[:, genes]
        return np.asarray((prepared @ self.values_[:, genes]).todense() - taken + self.overall[genes], dtype=np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is saved; :meth:`from_arrays` is the inverse."""
        out = {name: getattr(self, name) for name in ("gallery", "section", "means", "overall")}
        out |= {"data": self.values_.data, "indices": self.values_.indices.astype(np.int64), "indptr": self.values_.indptr.astype(np.int64)}
        out["k_temperature"] = np.array([self.k, self.temperature], dtype=np.float64)
        if self.image_map is not None:
            out |= {f"image_map.{name}": each for name, each in self.image_map.arrays().items()}
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "RetrievalMap":
        """Return the map of :meth:`arrays`."""
        lead = {name.removeprefix("image_map."): each for name, each in arrays.items() if name.startswith("image_map.")}
        shape = (len(arrays["gallery"]), len(arrays["overall"]))
        k, temperature = arrays["k_temperature"].tolist()
        return cls(
            arrays["gallery"],
            sp.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape),
            arrays["section"],
            arrays["means"],
            arrays["overall"],
            int(k),
            temperature,
            RidgeMap.from_arrays(lead) if lead else None,
        )
