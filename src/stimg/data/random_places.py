"""Places drawn uniformly over tissue: the neighbourhood of observations, cut into small squares. Loads no torch."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

REACH = 0.75
"""How far tissue reaches around an observation by default, in pitches: the observations of a square array leave no gap (they need 0.71)."""
CELLS = 8
"""Squares along that distance."""
MOST = 1_000_000
"""Squares in the box around all observations."""


@dataclass(frozen=True)
class Places:
    """Tissue of one image as equal squares.

    Parameters
    ----------
    corners
        Upper left (y, x) of each square, float64 (n, 2).
    side
        Their side, in the same unit.
    """

    corners: np.ndarray
    side: float

    @property
    def area(self) -> float:
        """Area of all squares."""
        return len(self.corners) * self.side**2

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the smallest and the largest (y, x) of any place."""
        return self.corners.min(axis=0), self.corners.max(axis=0) + self.side

    def apart_from(self, other: "Places", distance: float) -> "Places":
        """Return the squares none of whose places is within ``distance`` of a place of ``other`` along both axes.

        With ``distance`` the side of a tile, no tile centred here shares a pixel with one centred there.
        """
        if not len(other.corners) or not len(self.corners):
            return self
        middles = self.corners + self.side / 2
        nearest = KDTree(other.corners + other.side / 2).query(middles, p=np.inf)[0]
        return Places(self.corners[nearest >= distance + (self.side + other.side) / 2 - 1e-9 * distance], self.side)


def pitch_of(centres: np.ndarray) -> float:
    """Return the median distance of each of the points (n, 2) to the next, infinite for a single one."""
    return float(np.median(KDTree(centres).query(centres, k=2)[0][:, 1])) if len(centres) > 1 else float("inf")


def places_around(centres: np.ndarray, reach: float) -> Places:
    """Return the squares whose middle lies within ``reach`` of one of the points (y, x), float64 (n, 2).

    Squares have a side of an eighth of ``reach``, or as coarse as it takes to have at most a million in the box around the points; the squares of the
    points themselves always count.

    Examples
    --------
    >>> places = places_around(np.array([[0.0, 0.0], [100.0, 0.0]]), reach=40.0)
    >>> places.side, round(places.area / (2 * np.pi * 40**2), 1)
    (5.0, 1.0)
    """
    low, high = centres.min(axis=0) - reach, centres.max(axis=0) + reach
    side = max(reach / CELLS, float(np.sqrt(np.prod(high - low) / MOST)))
    rows, columns = (math.ceil(n / side) for n in high - low)
    y, x = low[0] + side * np.arange(rows), low[1] + side * np.arange(columns)
    corners = np.stack(np.broadcast_arrays(y[:, None], x), axis=-1).reshape(-1, 2)
    within = max(reach, side / math.sqrt(2))
    near = np.isfinite(KDTree(centres).query(corners + side / 2, distance_upper_bound=within * (1 + 1e-9))[0])
    return Places(corners[near], side)
