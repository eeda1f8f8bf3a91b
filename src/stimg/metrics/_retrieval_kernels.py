"""Compiled loops of the retrieval scores. Their sums run in a fixed order, so that no result depends on chunks or threads."""

from typing import NamedTuple

import numba
import numpy as np

TIE = 1e-12
"""Scores closer than this, in units of the product of the norms, are equal: what remains is rounding."""
BLOCK = 256
"""Scores that are counted at a time, before those near the partner's are looked at one by one."""


class Vectors(NamedTuple):
    """Queries (n, d) and gallery (m, d), what each row is multiplied by, and the length of the gallery's rows after that."""

    q: np.ndarray
    g: np.ndarray
    scale_q: np.ndarray
    scale_g: np.ndarray
    weight: np.ndarray


@numba.njit(cache=True, nogil=True)
def norms(x: np.ndarray) -> np.ndarray:
    """Return the Euclidean norm of each row, float64 (n,)."""
    out = np.empty(x.shape[0])
    for i in range(x.shape[0]):
        total = 0.0
        for k in range(x.shape[1]):
            total += np.float64(x[i, k]) * np.float64(x[i, k])
        out[i] = np.sqrt(total)
    return out


@numba.njit(cache=True, nogil=True)
def _score(v: Vectors, row: int, item: int) -> float:
    """Return the score of one query with one item, from four sums that the processor can run side by side."""
    a, b = v.q[row], v.g[item]
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    whole = len(a) - len(a) % 4
    for k in range(0, whole, 4):
        s0 += np.float64(a[k]) * np.float64(b[k])
        s1 += np.float64(a[k + 1]) * np.float64(b[k + 1])
        s2 += np.float64(a[k + 2]) * np.float64(b[k + 2])
        s3 += np.float64(a[k + 3]) * np.float64(b[k + 3])
    for k in range(whole, len(a)):
        s0 += np.float64(a[k]) * np.float64(b[k])
    return ((s0 + s1) + (s2 + s3)) * v.scale_q[row] * v.scale_g[item]


@numba.njit(cache=True, nogil=True)
def scores(v: Vectors, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return the score of query ``rows[i]`` with item ``items[i]``, float64 (len(rows),)."""
    out = np.empty(len(rows))
    for i in range(len(rows)):
        out[i] = _score(v, rows[i], items[i])
    return out


@numba.njit(cache=True, nogil=True)
def count(
    screen: np.ndarray,
    high: np.ndarray,
    low: np.ndarray,
    slack: np.ndarray,
    v: Vectors,
    rows: np.ndarray,
    items: np.ndarray,
    partner: np.ndarray,
    target: np.ndarray,
    reach: np.ndarray,
    better: np.ndarray,
    ties: np.ndarray,
) -> None:
    """Add to ``better`` and ``ties`` of query ``rows[i]`` the items whose score exceeds ``target[i]``, that of its partner, or equals it.

    ``screen`` (rows, items) holds the scores in float32. Those that exceed ``high`` by more than ``slack`` are above and those that fall
    short of ``low`` by more than that below, whatever was rounded; the others are computed anew in float64. ``reach`` is the distance of
    an item from the centre of the gallery: where those of two items add up to less than counts as equal, so do their scores.
    """
    for i in range(len(rows)):
        own, above, equal = partner[rows[i]], 0, 0
        for start in range(0, len(items), BLOCK):
            part, room = screen[i, start : start + BLOCK], slack[start : start + BLOCK]
            surely, perhaps = np.int32(0), np.int32(0)  # int32, and no branch: as many at a time as the processor can
            for j in range(len(part)):
                surely = np.int32(surely + np.int32(part[j] - room[j] > high[i]))
                perhaps = np.int32(perhaps + np.int32(part[j] + room[j] >= low[i]))
            above += int(surely)
            if perhaps == surely:
                continue
            for j in range(len(part)):
                item = items[start + j]
                if item == own or part[j] - room[j] > high[i] or part[j] + room[j] < low[i]:
                    continue
                if reach[item] + reach[own] <= 0.5 * TIE * v.weight[own]:
                    equal += 1
                    continue
                difference = _score(v, rows[i], item) - target[i]
                limit = TIE * max(v.weight[item], v.weight[own])
                above += difference > limit
                equal += abs(difference) <= limit
        better[rows[i]] += above
        ties[rows[i]] += equal


@numba.njit(cache=True, nogil=True)
def forget(v: Vectors, rows: np.ndarray, items: np.ndarray, partner: np.ndarray, better: np.ndarray, ties: np.ndarray) -> None:
    """Take item ``items[i]`` out of the counts of query ``rows[i]``, for all ``i``."""
    for i in range(len(rows)):
        own = partner[rows[i]]
        difference = _score(v, rows[i], items[i]) - _score(v, rows[i], own)
        limit = TIE * max(v.weight[items[i]], v.weight[own])
        better[rows[i]] -= difference > limit
        ties[rows[i]] -= abs(difference) <= limit


@numba.njit(cache=True, nogil=True)
def mark(bits: np.ndarray, held: np.ndarray, wanted: np.ndarray) -> None:
    """Write to the last bit of score (i, j), given as int64, whether ``held[j]`` is ``wanted[i]``: it stays with the score when sorted."""
    for i in range(len(wanted)):
        for j in range(len(held)):
            bits[i, j] = (bits[i, j] & np.int64(-2)) | np.int64(held[j] == wanted[i])


@numba.njit(cache=True, nogil=True)
def average_precision(ascending: np.ndarray, bits: np.ndarray, n: int) -> float:
    """Return the average precision of the ``n`` first of marked and sorted scores, equal ones in one step, or NaN with nothing relevant."""
    seen, found, new, area = 0, 0, 0, 0.0
    for at in range(n - 1, -1, -1):
        seen += 1
        new += bits[at] & 1
        if new > 0 and (at == 0 or ascending[at] - ascending[at - 1] > TIE):
            found += new
            area += new * found / seen
            new = 0
    return area / found if found > 0 else np.nan
