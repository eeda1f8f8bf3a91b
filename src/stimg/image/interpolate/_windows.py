"""Methods in overlapping windows: time and memory that grow with the number of places, not its square or cube."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stimg.image.interpolate._arrays import Interpolated
from stimg.image.interpolate._measured import Interpolator, Measured
from stimg.image.split import balanced_blocks

MOST, HALO = 1200, 6.0
"""Known places of a window, and how far it reaches beyond the places it answers for, in pitches."""
LARGE = 4800
"""Known places above which windows are half as large: in half the time, r at hidden bins of simulated slides stayed within .002."""
FEWEST = 64
"""Known places that a window has at least, the nearest ones where fewer lie in it."""


class Window(NamedTuple):
    """A window: what it reads, and what it answers for.

    Parameters
    ----------
    near, core
        Positions of the known places that it reads, and of those in it, int64.
    wanted
        Positions of the wanted places in it and, up to half as far as it reads, around it, int64.
    weight
        How much it has to say of these, float64: 1 well inside, 1/2 on its edge, 0 at the rim of what it answers for.
    """

    near: np.ndarray
    core: np.ndarray
    wanted: np.ndarray
    weight: np.ndarray


class Part(NamedTuple):
    """Values at some wanted places: their positions, int64 (k,), their share in the answer, float64 (k,), and what was found there.

    The shares of all parts add up to 1 at every place.
    """

    at: np.ndarray
    share: np.ndarray
    found: Interpolated


def cut(known: np.ndarray, wanted: np.ndarray, *, most: int, halo: float) -> Iterator[Window]:
    """Yield windows with at most about ``most`` known places in each; every place is in one of them, and answered for by that and its neighbours."""
    n, places, reach = len(known), np.concatenate([known, wanted]), halo / 2
    block = balanced_blocks(places, int(np.ceil(n / most)))
    order = np.argsort(block, kind="stable")
    by_row = np.argsort(wanted[:, 0], kind="stable")
    rows = wanted[by_row, 0]
    for members in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
        inside = places[members]
        low, high = inside.min(axis=0), inside.max(axis=0)
        near = np.flatnonzero(((known >= low - halo) & (known <= high + halo)).all(axis=1))
        if len(near) < FEWEST:
            away = ((known - inside.mean(axis=0)) ** 2).sum(axis=1)
            near = np.union1d(near, np.argsort(away, kind="stable")[:FEWEST])
        some = by_row[np.searchsorted(rows, low[0] - reach) : np.searchsorted(rows, high[0] + reach, side="right")]
        depth = np.minimum(wanted[some] - low, high - wanted[some]).min(axis=1)  # how far within the box; negative outside
        weight = np.ones(len(some)) if reach == 0 else np.clip((depth + reach) / (2 * reach), 0.0, 1.0)
        weight[depth < -reach] = 0.0
        said = weight > 0
        at = np.argsort(some[said])
        yield Window(near, members[members < n], some[said][at], weight[said][at])


@dataclass(frozen=True)
class Windowed:
    """A method applied in overlapping windows; see :func:`in_windows`."""

    method: Interpolator
    most: int | None = None
    halo: float = HALO

    def size(self, n: int) -> int:
        """Return how many of ``n`` known places a window has at most, about."""
        return self.most or (MOST if n <= LARGE else MOST // 2)

    def windows(self, known: np.ndarray, wanted: np.ndarray) -> Iterator[Window]:
        """Yield the windows that answer for wanted places, or for known ones where none are wanted."""
        for window in cut(known, wanted, most=self.size(len(known)), halo=self.halo):
            if len(window.wanted) or not len(wanted):
                yield window

    def parts(self, measured: Measured, wanted: np.ndarray) -> Iterator[Part]:
        """Yield values window by window, so that no more than one of them is in memory; where windows meet, each has a share that falls to 0 beyond its edge."""
        n = len(measured.places)
        if n <= self.size(n) or not len(wanted):
            yield Part(np.arange(len(wanted)), np.ones(len(wanted)), self.method(measured.dense(), wanted))
            return
        windows = list(self.windows(measured.places, wanted))
        total = np.zeros(len(wanted))
        for window in windows:
            total[window.wanted] += window.weight
        for window in windows:
            at = window.wanted
            yield Part(at, window.weight / total[at], self.method(measured.part(window.near).dense(), wanted[at]))

    def __call__(self, measured: Measured, wanted: np.ndarray) -> Interpolated:
        """Return the values at all wanted places."""
        values = np.zeros((len(wanted), measured.n_asked))
        variance: np.ndarray | None = np.zeros(values.shape)
        for at, share, found in self.parts(measured, wanted):
            values[at] += share[:, None] * found.values
            if variance is not None and found.variance is not None:
                variance[at] += share[:, None] * found.variance
            else:
                variance = None
        return Interpolated(values, variance)


def in_windows(method: Interpolator, *, most: int | None = None, halo: float = HALO) -> Windowed:
    """Return the method applied in overlapping windows where there are more than ``most`` known places: 1,200 by default, 600 where there are more than 4,800.

    The section is cut into blocks with at most about ``most`` known places; the places of a block, and those up to half of ``halo`` around it, are predicted from the known
    ones in it and up to ``halo`` pitches around it. Where blocks meet the answer goes over from one to the other, without a seam. Time and memory then grow with the number of places, not its square or cube; of :class:`LogCounts`, one window's are dense at a time.
    """
    return Windowed(method, most, halo)


def windowed(method: Interpolator) -> Windowed | None:
    """Return a method's windows; None where it works on the section as a whole."""
    found = method if isinstance(method, Windowed) else getattr(method, "function", None)
    return found if isinstance(found, Windowed) else None


def in_parts(method: Interpolator, measured: Measured, wanted: np.ndarray) -> Iterator[Part]:
    """Yield values by window where the method has windows, else all at once."""
    parts = getattr(method, "parts", None)
    if parts is None:
        yield Part(np.arange(len(wanted)), np.ones(len(wanted)), method(measured, wanted))
    else:
        yield from parts(measured, wanted)
