"""What a method of imputation is given: the measured places of one section, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from stimg.image.interpolate._arrays import Interpolated
from stimg.image.interpolate._counts import LogCounts

TOUCH = 1e-6
"""Distance in pitches within which two places are one."""


@dataclass(frozen=True)
class Guide:
    """Features of places, measured or not, such as embeddings of the H&E image around them.

    Parameters
    ----------
    places
        (k, 2), (y, x) in pitches.
    features
        (k, d).
    """

    places: np.ndarray
    features: np.ndarray

    def at(self, places: np.ndarray) -> np.ndarray:
        """Return the features of ``places``, one row a place; a ValueError where there are none."""
        away, found = self._tree.query(places)
        if (away > TOUCH).any():
            raise ValueError(
                f"{int((away > TOUCH).sum())} of {len(places)} places have no features; wanted features of every place. Give theirs too."
            )
        return self.features[found]

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self.places)


class _Values:
    """The field ``values``: set to an array or to :class:`LogCounts`, read as an array, which is made each time."""

    def __get__(self, measured: Any, owner: type | None = None) -> np.ndarray:
        if measured is None:
            raise AttributeError("values")  # for dataclasses: there is no default
        stored = measured.stored
        return stored.dense() if isinstance(stored, LogCounts) else stored

    def __set__(self, measured: Any, values: np.ndarray | LogCounts) -> None:
        measured.__dict__["values"] = values


@dataclass(frozen=True)
class Measured:
    """Measured places of one section.

    Parameters
    ----------
    places
        (n, 2), (y, x) in pitches.
    values
        (n, genes): the genes that are asked for, and others that may help; or :class:`LogCounts` of them, which are made dense each time they are read
        (see :meth:`dense`).
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
    guide
        Features of these and of the wanted places; None where there are none.
    """

    places: np.ndarray
    values: _Values = _Values()
    columns: np.ndarray | None = None
    depth: np.ndarray | None = None
    loadings: np.ndarray | None = None
    logs: bool = True
    rows: np.ndarray | None = None
    guide: Guide | None = None

    @property
    def asked(self) -> np.ndarray:
        """Return the values of the genes that are asked for, one row a place; the others are not made dense for it."""
        stored = self.stored
        if self.columns is None:
            return self.values
        return stored.genes(self.columns).dense() if isinstance(stored, LogCounts) else stored[:, self.columns]

    @property
    def n_asked(self) -> int:
        """Return how many genes are asked for."""
        return self.stored.shape[1] if self.columns is None else len(self.columns)

    @property
    def stored(self) -> np.ndarray | LogCounts:
        """Return the values as they were given."""
        return self.__dict__["values"]

    def dense(self) -> "Measured":
        """Return the same with values as an array, made once."""
        return replace(self, values=self.values)

    @property
    def noise(self) -> np.ndarray | None:
        """Return one over the counts of each place: the variance of its noise relative to the others."""
        return None if self.depth is None else 1.0 / np.maximum(self.depth, 1.0)

    def features(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the features of the measured and of the ``wanted`` places; None where there is no guide."""
        return None if self.guide is None else (self.guide.at(self.places), self.guide.at(wanted))

    def part(self, rows: np.ndarray) -> "Measured":
        """Return some of the places, by mask or position: nothing of the others is in it."""
        stored = self.stored
        values = stored.places(rows) if isinstance(stored, LogCounts) else stored[rows]
        depth, at = (None if a is None else a[rows] for a in (self.depth, self.rows))
        return replace(self, places=self.places[rows], values=values, depth=depth, rows=at)

    def with_values(self, values: np.ndarray) -> "Measured":
        """Return the same places with other values of the genes that are asked for, such as residuals."""
        return replace(self, values=values, columns=None, loadings=None, logs=False)


Interpolator = Callable[[Measured, np.ndarray], Interpolated]
"""From measured places and wanted ones (m, 2) to values of the genes that are asked for."""
