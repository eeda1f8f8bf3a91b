"""Log counts that are dense only where they are asked for."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

PER = 1e4


@dataclass(frozen=True)
class LogCounts:
    """Log(1 + counts per 10,000) of some genes at some places, held as the counts themselves: many places fit in memory, a few of them are made dense at a time.

    Parameters
    ----------
    counts
        CSR (places, genes).
    depth
        (places,), counts of each place over all genes, also those that are not here.
    """

    counts: sp.csr_matrix
    depth: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Return the numbers of places and genes."""
        return self.counts.shape

    def __len__(self) -> int:
        return self.counts.shape[0]

    def places(self, rows: np.ndarray) -> "LogCounts":
        """Return some of the places, by mask or position."""
        return LogCounts(self.counts[rows], self.depth[rows])

    def genes(self, columns: np.ndarray) -> "LogCounts":
        """Return some of the genes, by position."""
        return LogCounts(self.counts[:, columns], self.depth)

    def dense(self) -> np.ndarray:
        """Return the values, float64 (places, genes); 0 where a place has no count at all."""
        scale = np.divide(PER, self.depth, out=np.zeros(len(self.depth)), where=self.depth > 0)
        found = self.counts.astype(np.float64)
        found.sum_duplicates()
        found.data = np.log1p(found.data * np.repeat(scale, np.diff(found.indptr)))
        return found.toarray()
