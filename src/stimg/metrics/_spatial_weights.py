"""Who is whose neighbour, and with what weight: from a raster, from pairs, or from any graph."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from stimg.image.lattice import neighbour_pairs
from stimg.image.spec import RasterSpec


@dataclass(frozen=True)
class SpatialWeights:
    """A matrix of spatial weights W (n × n), kept as its symmetric part and its sums.

    Parameters
    ----------
    rows
        int64 (n,), row of the values that belongs to each site.
    n_rows
        Number of rows that the values must have.
    first, partner, weight
        For site ``i``, ``partner[first[i]:first[i + 1]]`` are the sites ``j >= i`` and ``weight`` holds ``w_ij + w_ji`` (``w_ii`` on the
        diagonal); int64 (n + 1,), int32 (m,), float64 (m,).
    degree
        float64 (n,), row sum plus column sum of W.
    s0, s1, s2
        Sum of W; half the sum of ``(w_ij + w_ji)^2``; sum of ``degree^2`` (Cliff and Ord 1981).
    """

    rows: np.ndarray
    n_rows: int
    first: np.ndarray
    partner: np.ndarray
    weight: np.ndarray
    degree: np.ndarray
    s0: float
    s1: float
    s2: float

    @property
    def n(self) -> int:
        """Number of sites."""
        return len(self.rows)

    @classmethod
    def _from_upper(cls, rows: np.ndarray, n_rows: int, upper: sp.csr_matrix, degree: np.ndarray) -> "SpatialWeights":
        diagonal = np.repeat(np.arange(upper.shape[0]), np.diff(upper.indptr)) == upper.indices
        s1 = float(np.sum(upper.data**2 * np.where(diagonal, 2.0, 1.0)))
        first, partner = upper.indptr.astype(np.int64), upper.indices.astype(np.int32, copy=False)
        data = np.asarray(upper.data, dtype=np.float64)
        return cls(
            np.asarray(rows, dtype=np.int64), n_rows, first, partner, data, degree, float(degree.sum() / 2), s1, float((degree**2).sum())
        )

    @classmethod
    def from_graph(cls, graph: sp.spmatrix | sp.sparray) -> "SpatialWeights":
        """Return the weights of a sparse matrix (n × n), symmetric or not, as it is (squidpy normalises rows, scanpy does not)."""
        if not sp.issparse(graph) or graph.shape[0] != graph.shape[1]:
            raise ValueError(
                f"The graph has shape {getattr(graph, 'shape', None)} ({type(graph).__name__}); wanted a square scipy sparse matrix."
            )
        matrix = sp.csr_matrix(graph, dtype=np.float64)
        if not np.isfinite(matrix.data).all():
            raise ValueError(f"The graph has {int((~np.isfinite(matrix.data)).sum())} NaN or infinite weights; wanted finite ones.")
        n = matrix.shape[0]
        degree = np.asarray(matrix.sum(axis=0)).ravel() + np.asarray(matrix.sum(axis=1)).ravel()
        upper = sp.csr_matrix(sp.triu(matrix + matrix.T, k=1) + sp.diags(matrix.diagonal()), dtype=np.float64)
        upper.eliminate_zeros()
        upper.sort_indices()
        return cls._from_upper(np.arange(n), n, upper, degree)

    @classmethod
    def from_pairs(
        cls, pairs: np.ndarray, n: int, *, row_standardise: bool = False, rows: np.ndarray | None = None, n_rows: int | None = None
    ) -> "SpatialWeights":
        """Return binary weights of undirected ``pairs`` (m, 2) between ``n`` sites, or ones whose rows sum to 1.

        A site without neighbours has a row of zeros in either case. ``rows`` says which row of the values each site holds (default: its own).
        """
        pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        if len(pairs) and (pairs.min() < 0 or pairs.max() >= n):
            raise ValueError(f"The pairs name sites {pairs.min()} to {pairs.max()}; wanted 0 to {n - 1}.")
        key = np.sort(pairs.min(axis=1) * n + pairs.max(axis=1))
        low, high = key // max(n, 1), key % max(n, 1)
        if (low == high).any() or (key[1:] == key[:-1]).any():
            raise ValueError("Some pairs join a site to itself or stand twice; wanted each pair of neighbours once.")
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(low, minlength=n))])
        count = np.bincount(low, minlength=n) + np.bincount(high, minlength=n)
        degree: np.ndarray
        if row_standardise:
            share = 1.0 / np.maximum(count, 1)
            weight = share[low] + share[high]
            degree = (count > 0) + np.bincount(low, weights=share[high], minlength=n) + np.bincount(high, weights=share[low], minlength=n)
        else:
            weight = np.full(len(key), 2.0)
            degree = count * 2.0
        upper = sp.csr_matrix((weight, high.astype(np.int32), first), shape=(n, n))
        sites = np.arange(n) if rows is None else np.asarray(rows, dtype=np.int64)
        return cls._from_upper(sites, n if n_rows is None else n_rows, upper, np.asarray(degree, dtype=np.float64))

    @classmethod
    def from_raster(
        cls,
        spec: RasterSpec,
        rc: np.ndarray,
        *,
        diagonal: bool = False,
        row_standardise: bool = False,
        rows: np.ndarray | None = None,
        n_rows: int | None = None,
    ) -> "SpatialWeights":
        """Return the weights of adjacent observations on a raster.

        Parameters
        ----------
        spec
            The raster: 6 neighbours on a hexagonal lattice, 4 on a square one.
        rc
            (row, column) of every observation, int (n, 2), all on the raster. Where several share a lattice point, each is a neighbour of those on
            the adjacent points, and not of its own company.
        diagonal
            8 neighbours on a square lattice.
        row_standardise
            Divide each row of the weights by its sum, as squidpy does by default.
        rows, n_rows
            Row of the values that each observation holds (default: its own), and the number of rows of the values.
        """
        rc = np.asarray(rc, dtype=np.int64).reshape(-1, 2)
        if (rc < 0).any():
            raise ValueError(
                f"{int((rc < 0).any(axis=1).sum())} of {len(rc)} observations are not on the raster (negative row). Leave them out."
            )
        if diagonal and spec.lattice == "hex":
            raise ValueError("diagonal=True does not go with a hexagonal lattice, where all 6 neighbours are alike. Leave it out.")
        order = np.lexsort((rc[:, 1], rc[:, 0]))  # raster order, so that neighbours are near in memory
        sites = order if rows is None else np.asarray(rows, dtype=np.int64)[order]
        pairs = neighbour_pairs(spec, rc[order], diagonal=diagonal)
        return cls.from_pairs(pairs, len(rc), row_standardise=row_standardise, rows=sites, n_rows=len(rc) if n_rows is None else n_rows)

    @classmethod
    def concatenate(cls, parts: Sequence["SpatialWeights"]) -> "SpatialWeights":
        """Return the block-diagonal weights of several libraries whose sites hold rows of the same values."""
        if not parts or len({p.n_rows for p in parts}) != 1:
            raise ValueError(
                f"{len(parts)} weights over {sorted({p.n_rows for p in parts})} rows; wanted at least one, all over the same rows."
            )
        sizes = np.cumsum([0] + [p.n for p in parts])
        ends = np.cumsum([0] + [len(p.partner) for p in parts])
        return cls(
            rows=np.concatenate([p.rows for p in parts]),
            n_rows=parts[0].n_rows,
            first=np.concatenate([p.first[:-1] + e for p, e in zip(parts, ends[:-1], strict=True)] + [ends[-1:]]),
            partner=np.concatenate([p.partner + np.int32(s) for p, s in zip(parts, sizes[:-1], strict=True)]),
            weight=np.concatenate([p.weight for p in parts]),
            degree=np.concatenate([p.degree for p in parts]),
            s0=sum(p.s0 for p in parts),
            s1=sum(p.s1 for p in parts),
            s2=sum(p.s2 for p in parts),
        )

    def upper(self) -> sp.csr_matrix:
        """Return the matrix U (n × n) with ``x' W x = x' U x``."""
        return sp.csr_matrix((self.weight, self.partner, self.first), shape=(self.n, self.n))
