"""Lattices: array indices to (row, column), neighbours on a raster, and the lattice on which free coordinates lie."""

from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from stimg.image.spec import HEX_ROW_STEP, RasterSpec

SAMPLE = 20_000
"""Observations whose neighbours are looked at to find a lattice; all are used to fit it."""
BOND = 1.25
"""Neighbours within this many median nearest-neighbour distances are bonds; the next shell begins at sqrt(2)."""
LEAST_ORDER = 0.6
"""Bond-orientational order above which coordinates are called a lattice (1: perfect, 0: none)."""


class Indices(NamedTuple):
    """Observations on a lattice: (row, column) from 0, int64 (n, 2); parity of the shifted rows (-1: square); index of (0, 0)."""

    rc: np.ndarray
    parity: int
    origin: tuple[int, int]


class FoundLattice(NamedTuple):
    """A lattice found from coordinates: ``"square"`` or ``"hex"``, its indices, and the bond order that speaks for it."""

    lattice: str
    rc: np.ndarray
    parity: int
    order: float


def staggered(array_row: np.ndarray, array_col: np.ndarray) -> bool:
    """Return whether row + column has the same parity everywhere, as on hexagonal arrays in Space Ranger's convention."""
    parity = (np.asarray(array_row, dtype=np.int64) + np.asarray(array_col, dtype=np.int64)) % 2
    return bool(parity.size == 0 or (parity == parity[0]).all())


def odd_r_from_array(array_row: np.ndarray, array_col: np.ndarray) -> tuple[np.ndarray, int]:
    """Return offset rows of a hexagonal array, int64 (n, 2) from (0, 0), and the parity of the rows shifted right by half a step.

    ``array_col`` counts half steps (Space Ranger: 2 x column + parity of the row), so that ``array_row + array_col`` has one parity.

    Raises
    ------
    ValueError
        Where ``array_row + array_col`` has both parities: the array is not hexagonal, or its columns are not half steps.
    """
    return hex_indices(array_row, array_col)[:2]


def hex_indices(array_row: np.ndarray, array_col: np.ndarray) -> Indices:
    """Return :func:`odd_r_from_array` with the array index of raster (0, 0)."""
    row, col = np.asarray(array_row, dtype=np.int64), np.asarray(array_col, dtype=np.int64)
    if not staggered(row, col):
        odd = int(((row + col) % 2).sum())
        raise ValueError(
            f"array_row + array_col is odd for {odd} and even for {len(row) - odd} observations; wanted one parity on a hexagonal array "
            "(columns count half steps). Pass `lattice='square'`, or correct the indices."
        )
    stagger = int(row[0] + col[0]) % 2
    first_row, first_col = int(row.min()), int(col.min()) // 2
    parity = (1 - stagger - first_row) % 2
    rc = np.stack([row - first_row, col // 2 - first_col], axis=1)
    return Indices(rc, parity, (first_row, 2 * first_col + (parity == 0)))


def square_indices(array_row: np.ndarray, array_col: np.ndarray) -> Indices:
    """Return (row, column) of an upright square array, from (0, 0)."""
    rc = np.stack([np.asarray(array_row, dtype=np.int64), np.asarray(array_col, dtype=np.int64)], axis=1)
    first = rc.min(axis=0)
    return Indices(rc - first, -1, (int(first[0]), int(first[1])))


def diagonal_indices(array_row: np.ndarray, array_col: np.ndarray) -> Indices:
    """Return (row, column) of a checkerboard array (every second point of a square one) on its own square lattice, turned by 45°.

    Rows run along (+row, +col) and columns along (-row, +col) of the array, so the handedness is kept and neighbours are adjacent.
    """
    row, col = np.asarray(array_row, dtype=np.int64), np.asarray(array_col, dtype=np.int64)
    stagger = int(row[0] + col[0]) % 2
    rc = np.stack([(row + col - stagger) // 2, (col - row - stagger) // 2], axis=1)
    first = rc.min(axis=0)
    return Indices(rc - first, -1, (int(first[0] - first[1]), int(first[0] + first[1] + stagger)))


def offset_to_axial(rc: np.ndarray, parity: int) -> np.ndarray:
    """Return axial (q, r) of offset (row, column), int64 (n, 2); one step of q is one column, one step of r is one row down and half right."""
    row, col = np.asarray(rc, dtype=np.int64).T
    odd = row & 1
    return np.stack([col - (row - odd) // 2 if parity == 1 else col - (row + odd) // 2, row], axis=1)


def axial_to_offset(qr: np.ndarray, parity: int) -> np.ndarray:
    """Return offset (row, column) of axial (q, r), int64 (n, 2); the inverse of :func:`offset_to_axial`."""
    q, r = np.asarray(qr, dtype=np.int64).T
    odd = r & 1
    return np.stack([r, q + (r - odd) // 2 if parity == 1 else q + (r + odd) // 2], axis=1)


def neighbours(spec: RasterSpec, *, diagonal: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the (row, column) steps to the neighbours of a lattice point in an even and in an odd row, int64 (k, 2) each.

    A hexagonal lattice has 6; a square one 4, or 8 with ``diagonal``.
    """
    if spec.lattice == "hex":
        right = np.array([[0, -1], [0, 1], [-1, 0], [-1, 1], [1, 0], [1, 1]])  # from a row that is shifted right
        left = np.array([[0, -1], [0, 1], [-1, -1], [-1, 0], [1, -1], [1, 0]])
        return (right, left) if spec.hex_parity == 0 else (left, right)
    steps = [(-1, 0), (0, -1), (0, 1), (1, 0)]
    if diagonal:
        steps += [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    array = np.array(steps)
    return array, array


def neighbour_pairs(spec: RasterSpec, rc: np.ndarray, *, diagonal: bool = False) -> np.ndarray:
    """Return the pairs of observations on adjacent lattice points, int64 (m, 2) with i < j, each pair once.

    Parameters
    ----------
    spec
        The raster.
    rc
        (row, column) of every observation, (n, 2); observations with a negative row are on no lattice point and have no neighbours. Where several
        observations share a lattice point, each is paired with each observation of an adjacent point, and not with those of its own.
    diagonal
        On a square lattice, whether the 4 diagonal neighbours count too.

    Notes
    -----
    Time and memory O(n), after one sort of the lattice points.
    """
    rc = np.asarray(rc, dtype=np.int64).reshape(-1, 2)
    rows, cols = spec.shape
    on = np.flatnonzero(rc[:, 0] >= 0)
    row, col = rc[on].T
    if on.size and (row.max() >= rows or col.min() < 0 or col.max() >= cols):
        raise ValueError(
            f"rc reaches row {row.max()} and columns {col.min()} .. {col.max()}; wanted indices inside the raster of {rows} x {cols}."
        )
    code = row * cols + col
    order = np.argsort(code, kind="stable")
    points, start, count = np.unique(code[order], return_index=True, return_counts=True)
    lookup = None
    if rows * cols <= 16 * on.size + 1_000_000:
        lookup = np.full(rows * cols, -1, dtype=np.int64)
        lookup[points] = np.arange(points.size)
    p_row, p_col = points // cols, points % cols
    here, there = [], []
    for parity, steps in enumerate(neighbours(spec, diagonal=diagonal)):
        members = np.flatnonzero(p_row % 2 == parity)
        for d_row, d_col in steps:
            if (d_row, d_col) < (0, 0):  # the other half of the neighbours finds these pairs
                continue
            to_row, to_col = p_row[members] + d_row, p_col[members] + d_col
            inside = (to_row < rows) & (to_col >= 0) & (to_col < cols)
            source, target = members[inside], to_row[inside] * cols + to_col[inside]
            if lookup is not None:
                found = lookup[target]
            else:
                found = np.minimum(np.searchsorted(points, target), points.size - 1)
                found = np.where(points[found] == target, found, -1)
            here.append(source[found >= 0])
            there.append(found[found >= 0])
    a, b = np.concatenate(here), np.concatenate(there)
    if (count > 1).any():  # every observation of a with every observation of b
        times = count[a] * count[b]
        edge = np.repeat(np.arange(a.size), times)
        within = np.arange(edge.size) - np.repeat(np.cumsum(times) - times, times)
        a, b = start[a[edge]] + within // count[b[edge]], start[b[edge]] + within % count[b[edge]]
    else:
        a, b = start[a], start[b]
    i, j = on[order[a]], on[order[b]]
    return np.stack([np.minimum(i, j), np.maximum(i, j)], axis=1)


def fit_affine(points: np.ndarray, yx: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the least-squares map from lattice points to (y, x), 2 x 3, and whether all six numbers are determined.

    Points on one line determine a rotation, a scale and a shift only (no mirror, no shear): these are fitted then. One point, or coinciding
    ones, determine a shift alone, and the linear part is NaN.
    """
    points, yx = np.asarray(points, dtype=np.float64), np.asarray(yx, dtype=np.float64)
    p_mean, c_mean = points.mean(axis=0), yx.mean(axis=0)
    p, c = points - p_mean, yx - c_mean
    strength = np.linalg.svd(p, compute_uv=False) if len(p) > 1 else np.zeros(2)
    full = bool(len(strength) == 2 and strength[1] > 1e-9 * max(strength[0], 1.0))
    if full:
        linear = np.linalg.lstsq(p, c, rcond=None)[0].T
    elif strength[0] > 1e-9:
        square = (p**2).sum()
        same, turned = (p * c).sum() / square, (p[:, 0] * c[:, 1] - p[:, 1] * c[:, 0]).sum() / square
        linear = np.array([[same, -turned], [turned, same]])
    else:
        linear = np.full((2, 2), np.nan)
    return np.concatenate([linear, (c_mean - np.nan_to_num(linear) @ p_mean)[:, None]], axis=1), full


def _bonds(yx: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the vectors to near neighbours, (n, 2), of at most ``SAMPLE`` observations, and the median nearest-neighbour distance."""
    chosen = np.unique(np.linspace(0, len(yx) - 1, min(len(yx), SAMPLE)).astype(np.int64))
    distance, index = KDTree(yx).query(yx[chosen], k=min(10, len(yx)))
    distance = np.where(distance > 0, distance, np.inf)
    nearest = distance.min(axis=1)
    if not np.isfinite(nearest).any():
        raise ValueError(f"all {len(yx)} observations have the same coordinates. Pass array indices, or check obsm['spatial'].")
    near = float(np.median(nearest[np.isfinite(nearest)]))
    who, which = np.nonzero(distance <= BOND * near)
    return yx[index[who, which]] - yx[chosen[who]], near


def nearest_distance(yx: np.ndarray) -> float:
    """Return the median distance to the nearest other observation, over at most ``SAMPLE`` of them, in the units of ``yx``."""
    return _bonds(np.asarray(yx, dtype=np.float64))[1]


def count_kinds(yx: np.ndarray) -> tuple[int, int]:
    """Return how many observations have a square and how many a hexagonal neighbourhood (3 near neighbours or more; at most ``SAMPLE``)."""
    chosen = np.unique(np.linspace(0, len(yx) - 1, min(len(yx), SAMPLE)).astype(np.int64))
    distance, index = KDTree(yx).query(yx[chosen], k=min(10, len(yx)))
    distance = np.where(distance > 0, distance, np.inf)
    near = distance <= BOND * distance.min(axis=1, keepdims=True)
    vector = yx[index] - yx[chosen][:, None]
    angle = np.arctan2(vector[..., 0], vector[..., 1])
    neighbour_count = near.sum(axis=1)
    enough = (neighbour_count >= 3) & np.isfinite(distance.min(axis=1))
    order = [np.abs((np.exp(1j * fold * angle) * near).sum(axis=1)) / np.maximum(neighbour_count, 1) for fold in (4, 6)]
    return int((enough & (order[0] > 0.85)).sum()), int((enough & (order[1] > 0.85)).sum())


def mixed(square: int, hexagonal: int) -> bool:
    """Return whether the counts of :func:`count_kinds` are those of two lattices in one: more than 4 of each, and more than a tenth."""
    return min(square, hexagonal) > max(4, 0.1 * (square + hexagonal))


def find_lattice(yx: np.ndarray, *, lattice: str = "auto") -> FoundLattice:
    """Return the lattice on which free coordinates lie, possibly turned, stretched or sheared a little.

    The pitch starts as the median nearest-neighbour distance; the bonds (vectors to neighbours within ``BOND`` of it) give the type and the
    orientation through the bond-orientational order ``|mean exp(i k angle)|``, k = 4 for square and 6 for hexagonal; mean bonds give the two
    steps. Indices are then rounded and the steps refitted on a growing disc, so that no error adds up across the slide. Rows are those within
    45° (hexagonal: 30°) of the x axis, counted towards larger y.

    Parameters
    ----------
    yx
        (y, x) of every observation, (n, 2), n >= 4.
    lattice
        ``"square"``, ``"hex"``, or ``"auto"``: the type with the larger order.

    Raises
    ------
    ValueError
        Where there are fewer than 4 observations, all lie on one line, two kinds of lattice are mixed, or there is no lattice.
    """
    yx = np.asarray(yx, dtype=np.float64)
    if len(yx) < 4:
        raise ValueError(
            f"{len(yx)} observations are too few to find a lattice from coordinates; wanted 4 or more. Give array indices "
            "(obs['array_row'], obs['array_col']) and `pitch_um=`."
        )
    square, hexagonal = count_kinds(yx)
    if mixed(square, hexagonal):
        raise ValueError(
            f"{square} observations have square and {hexagonal} hexagonal neighbourhoods: two kinds of lattice in one library. Split them with "
            "obs['library_id']."
        )
    bond, near = _bonds(yx)
    angle = np.arctan2(bond[:, 0], bond[:, 1])
    orders = {kind: complex(np.exp(1j * fold * angle).mean()) for kind, fold in (("square", 4), ("hex", 6))}
    kind = max(orders, key=lambda name: abs(orders[name])) if lattice == "auto" else lattice
    if abs(orders[kind]) < LEAST_ORDER:
        raise ValueError(
            f"the coordinates do not lie on a {'' if lattice == 'auto' else lattice + ' '}lattice: bond order {abs(orders['square']):.2f} (square) and "
            f"{abs(orders['hex']):.2f} (hexagonal), wanted {LEAST_ORDER} or more; median nearest-neighbour distance {near:.4g}. "
            "For cells pass `source='cells'` with `pixel_um=`."
        )
    fold, opening = (4, np.pi / 2) if kind == "square" else (6, np.pi / 3)
    tilt = float(np.angle(orders[kind])) / fold
    steps = []
    for direction in (tilt + opening, tilt):  # the row step, then the column step
        turn = (angle - direction + np.pi) % (2 * np.pi) - np.pi
        sign = np.where(np.abs(turn) < opening / 2, 1.0, np.where(np.abs(turn) > np.pi - opening / 2, -1.0, 0.0))
        if not sign.any():
            raise ValueError(
                f"the {len(yx)} observations have neighbours in one direction only, which does not determine a lattice. Give array indices and `pitch_um=`."
            )
        steps.append((bond * sign[:, None]).sum(axis=0) / np.abs(sign).sum())
    index = _grow(yx, np.stack(steps, axis=1), near, hexagonal=kind == "hex")
    if kind == "square":
        return FoundLattice(kind, index - index.min(axis=0), -1, abs(orders[kind]))
    r0 = int(index[:, 0].min())
    rc = axial_to_offset(np.stack([index[:, 1], index[:, 0] - r0], axis=1), 1)
    return FoundLattice(kind, rc - [0, rc[:, 1].min()], 1, abs(orders[kind]))


def _nearest(steps: np.ndarray, *, hexagonal: bool) -> np.ndarray:
    """Return the nearest lattice point, float64 (n, 2), of fractional steps (row, column); hexagonal steps are 60° apart."""
    index = np.rint(steps)
    if hexagonal:  # cube coordinates: r + q + s = 0, and the worst rounded of the three follows from the others
        third = -steps.sum(axis=1)
        error = np.abs(index - steps)
        s = np.rint(third)
        s_error = np.abs(s - third)
        worst = np.argmax(np.column_stack([error, s_error]), axis=1)
        off = index.sum(axis=1) + s
        index[:, 0] -= np.where(worst == 0, off, 0.0)
        index[:, 1] -= np.where(worst == 1, off, 0.0)
    return index


def _grow(yx: np.ndarray, basis: np.ndarray, near: float, *, hexagonal: bool) -> np.ndarray:
    """Return integer steps along the columns of ``basis`` (2 x 2), int64 (n, 2), refitting basis and shift on a growing disc."""
    seed = int(np.argmin(((yx - np.median(yx, axis=0)) ** 2).sum(axis=1)))
    shift = yx[seed].copy()
    away = np.sqrt(((yx - yx[seed]) ** 2).sum(axis=1))
    radius, reach = 4.0 * near, float(away.max())
    for turn in range(100):
        disc = np.flatnonzero(away <= radius)
        index = _nearest(np.linalg.solve(basis, (yx[disc] - shift).T).T, hexagonal=hexagonal)
        design = np.concatenate([index, np.ones((len(disc), 1))], axis=1)
        error = yx[disc] - design @ np.concatenate([basis, shift[:, None]], axis=1).T
        change = np.linalg.lstsq(design, error, rcond=None)[0]  # the smallest change: undetermined directions stay as they are
        basis, shift = basis + change[:2].T, shift + change[2]
        if radius >= reach and (turn > 90 or np.abs(change).max() < 1e-9 * near):
            break
        radius = min(radius * 2.0, max(reach, near))
    return _nearest(np.linalg.solve(basis, (yx - shift).T).T, hexagonal=hexagonal).astype(np.int64)


__all__ = [
    "HEX_ROW_STEP",
    "FoundLattice",
    "Indices",
    "axial_to_offset",
    "count_kinds",
    "diagonal_indices",
    "find_lattice",
    "fit_affine",
    "hex_indices",
    "mixed",
    "nearest_distance",
    "neighbour_pairs",
    "neighbours",
    "odd_r_from_array",
    "offset_to_axial",
    "square_indices",
    "staggered",
]
