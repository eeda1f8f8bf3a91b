"""Sharing out groups, such as donors, so that each part gets the share that it should have, as closely as whole groups allow."""

import numpy as np

EVERY_WAY = 1 << 16
"""Up to so many assignments are all tried."""
STARTS = 10
"""Beyond, from so many starts moves and exchanges lead to an assignment that none of them improves."""
PARTNERS = 200
"""Groups with which an exchange is tried at a time."""
EQUAL = 1e-12
"""Costs that differ by less are equal."""


def assign(weights: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the part of each group, int64 (n_groups,), with no part empty.

    Parameters
    ----------
    weights
        (n_groups, n_columns), the share of each group: of all observations in the first column, of those with one label in each other.
    targets
        (n_parts, n_columns), the share wanted for each part; NaN where any will do.
    rng
        Decides between assignments that are equally close.

    Raises
    ------
    ValueError
        Where there are fewer groups than parts.

    Notes
    -----
    The cost is the sum over parts of (share - wanted)² of the first column, plus the mean of the same over the other columns. Up to 65,536
    assignments are all tried; beyond, the result is one that no move of a group and no exchange of two (of 200 drawn) improves.
    """
    n, k = len(weights), len(targets)
    if n < k:
        raise ValueError(f"{n} groups for {k} parts; wanted at least one group a part.")
    if k == 1:
        return np.zeros(n, dtype=np.int64)
    columns = np.r_[1.0, np.full(weights.shape[1] - 1, 1 / max(weights.shape[1] - 1, 1))]
    if k**n > EVERY_WAY:
        found = [_search(weights, targets, columns, rng) for _ in range(STARTS)]
        return min(found, key=lambda parts: _total(weights, targets, columns, parts))
    ways = np.stack([axis.ravel() for axis in np.indices((k,) * n)], axis=1)
    ways = ways[np.all([(ways == part).any(axis=1) for part in range(k)], axis=0)]
    cost = sum(_cost((ways == part) @ weights, targets[part], columns) for part in range(k))
    return ways[rng.choice(np.flatnonzero(cost <= np.min(cost) + EQUAL))]


def _cost(shares: np.ndarray, target: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the cost of one part whose shares are (..., n_columns)."""
    return np.nansum((shares - target) ** 2 * columns, axis=-1)


def _total(weights: np.ndarray, targets: np.ndarray, columns: np.ndarray, parts: np.ndarray) -> float:
    return float(sum(_cost(weights[parts == part].sum(axis=0), targets[part], columns) for part in range(len(targets))))


def _search(weights: np.ndarray, targets: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an assignment that no move of a group and no exchange with one of ``PARTNERS`` others improves."""
    n, k = len(weights), len(targets)
    parts = rng.permutation(np.r_[np.arange(k), rng.integers(k, size=n - k)])
    shares = np.stack([weights[parts == part].sum(axis=0) for part in range(k)])
    better = True
    while better:
        better = False
        for i in rng.permutation(n):
            own, cost = parts[i], _cost(shares, targets, columns)
            others = np.flatnonzero(parts != own)
            others = others if len(others) <= PARTNERS else rng.choice(others, PARTNERS, replace=False)
            theirs, change = parts[others], weights[others] - weights[i]
            swap = _cost(shares[own] + change, targets[own], columns) + _cost(shares[theirs] - change, targets[theirs], columns)
            swap -= cost[own] + cost[theirs]
            move = _cost(shares[own] - weights[i], targets[own], columns) + _cost(shares + weights[i], targets, columns) - cost[own] - cost
            move[own] = np.inf
            if (parts == own).sum() == 1:
                move[:] = np.inf  # no part is left empty
            best = int(np.argmin(np.r_[move, swap]))
            if np.r_[move, swap][best] >= -EQUAL:
                continue
            better = True
            if best >= k:
                j = others[best - k]
                parts[j] = own
                shares[own] += weights[j]
                shares[theirs[best - k]] -= weights[j]
            parts[i] = best if best < k else theirs[best - k]
            shares[own] -= weights[i]
            shares[parts[i]] += weights[i]
    return parts
