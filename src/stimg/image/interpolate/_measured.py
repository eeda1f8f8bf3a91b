"""What a method of imputation is given: the measured places of one section, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from stimg.image.interpolate._arrays import Interpolated


@dataclass(frozen=True)
class Measured:
    """Measured places of one section.

    Parameters
    ----------
    places
        (n, 2), (y, x) in pitches.
    values
        (n, genes): the genes that are asked for, and others that may help.
    columns
        Positions of the genes that are asked for in ``values``; None: all of them.
    depth
        (n,), counts of each place over all genes; None where not known.
    loadings
        (axes, genes), axes of expression from other donors; None where there are none.
    logs
        Whether ``values`` are log(1 + counts per 10,000), so that their counting noise is known.
    rows
        (n,), where each place stands in the table it came from.
    """

    places: np.ndarray
    values: np.ndarray
    columns: np.ndarray | None = None
    depth: np.ndarray | None = None
    loadings: np.ndarray | None = None
    logs: bool = True
    rows: np.ndarray | None = None

    @property
    def asked(self) -> np.ndarray:
        """Return the values of the genes that are asked for, one row a place."""
        return self.values if self.columns is None else self.values[:, self.columns]

    @property
    def noise(self) -> np.ndarray | None:
        """Return one over the counts of each place: the variance of its noise relative to the others."""
        return None if self.depth is None else 1.0 / np.maximum(self.depth, 1.0)

    def part(self, rows: np.ndarray) -> "Measured":
        """Return some of the places, by mask or position: nothing of the others is in it."""
        places, values, depth, at = (None if a is None else a[rows] for a in (self.places, self.values, self.depth, self.rows))
        assert places is not None
        assert values is not None
        return replace(self, places=places, values=values, depth=depth, rows=at)

    def with_values(self, values: np.ndarray) -> "Measured":
        """Return the same places with other values of the genes that are asked for, such as residuals."""
        return replace(self, values=values, columns=None, loadings=None, logs=False)


Interpolator = Callable[[Measured, np.ndarray], Interpolated]
"""From measured places and wanted ones (m, 2) to values of the genes that are asked for."""
