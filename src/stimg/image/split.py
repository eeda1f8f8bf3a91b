"""Spatial blocks: contiguous parts of a section, and holding some of them out with a buffer that nothing is learned from."""

from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

TOUCH = 1e-9
"""Relative slack when a distance is compared with a buffer, so that a lattice step of exactly the buffer's width lies inside it."""


class HoldOut(NamedTuple):
    """Three masks, bool (n,) each, of which exactly one is True for every observation."""

    train: np.ndarray
    test: np.ndarray
    buffer: np.ndarray


def _centres(centres_um: np.ndarray) -> np.ndarray:
    centres = np.asarray(centres_um, dtype=np.float64)
    if centres.ndim != 2 or centres.shape[1] != 2:
        raise ValueError(f"centres_um has shape {centres.shape}; wanted (n, 2), (y, x) in µm.")
    if not np.isfinite(centres).all():
        raise ValueError(f"centres_um has {int((~np.isfinite(centres).all(axis=1)).sum())} rows with NaN or infinite values. Remove them.")
    return centres


def square_blocks(centres_um: np.ndarray, block_um: float) -> np.ndarray:
    """Return the block of each observation, int32 (n,): squares of ``block_um``, numbered from 0 in reading order, without gaps.

    The squares tile the bounding box of the observations, with equal margins on opposite sides; squares without observations get no number.
    """
    centres = _centres(centres_um)
    if not (np.isfinite(block_um) and block_um > 0):
        raise ValueError(f"block_um={block_um} is not above zero; wanted a positive number of µm.")
    if len(centres) == 0:
        return np.zeros(0, dtype=np.int32)
    low, extent = centres.min(axis=0), np.ptp(centres, axis=0)
    tiles = np.maximum(np.ceil(extent / block_um * (1 - TOUCH)), 1)
    start = low - (tiles * block_um - extent) / 2
    tile = np.clip(np.floor((centres - start) / block_um), 0, tiles - 1).astype(np.int64)
    return np.unique(tile[:, 0] * int(tiles[1]) + tile[:, 1], return_inverse=True)[1].astype(np.int32)


def balanced_blocks(centres_um: np.ndarray, n_blocks: int) -> np.ndarray:
    """Return the block of each observation, int32 (n,): ``n_blocks`` rectangles with nearly equal numbers of observations.

    The observations are cut in two across their longer side, in proportion to the blocks that each part still has to give, until every part
    is one block. A cut falls between two rows or columns of observations where there are enough of them, so that no row is broken.
    """
    centres = _centres(centres_um)
    if not 1 <= n_blocks <= max(len(centres), 1):
        raise ValueError(f"n_blocks={n_blocks} of {len(centres)} observations; wanted 1 to {len(centres)}.")
    blocks = np.zeros(len(centres), dtype=np.int32)
    parts = [(np.arange(len(centres)), 0, n_blocks)]
    while parts:
        members, number, count = parts.pop()
        if count == 1:
            blocks[members] = number
            continue
        points = centres[members]
        axis = int(np.argmax(np.ptp(points, axis=0)))  # the rows (y) where both sides are equal
        order = np.lexsort((points[:, 1 - axis], points[:, axis]))
        along = points[order, axis]
        left = count // 2
        fewest, most = left, len(members) - (count - left)
        wanted = len(members) * left / count
        step = max(np.ptp(along), 1.0) * TOUCH
        cuts = np.flatnonzero(np.diff(along) > step) + 1
        cuts = cuts[(cuts >= fewest) & (cuts <= most)]
        cut = int(cuts[np.argmin(np.abs(cuts - wanted))]) if len(cuts) else min(max(round(wanted), fewest), most)
        parts.append((members[order[:cut]], number, left))
        parts.append((members[order[cut:]], number + left, count - left))
    return blocks


def distance_to(centres_um: np.ndarray, targets: np.ndarray, library: np.ndarray | None = None) -> np.ndarray:
    """Return each observation's distance in µm to the nearest observation of the mask ``targets`` in its library; inf where there is none."""
    centres = _centres(centres_um)
    library = np.zeros(len(centres), dtype=np.int64) if library is None else np.unique(np.asarray(library), return_inverse=True)[1]
    out = np.full(len(centres), np.inf)
    for code in np.unique(library):
        here = library == code
        near = here & targets
        if near.any():
            out[here] = KDTree(centres[near]).query(centres[here])[0]
    return out


def near_border(block_ids: np.ndarray, centres_um: np.ndarray, buffer_um: float, library: np.ndarray | None = None) -> np.ndarray:
    """Return True where an observation of another block of the same library lies within ``buffer_um``, bool (n,)."""
    block_ids, out = np.asarray(block_ids), np.zeros(len(block_ids), dtype=bool)
    centres = _centres(centres_um)
    codes = np.zeros(len(centres), dtype=np.int64) if library is None else np.unique(np.asarray(library), return_inverse=True)[1]
    for code in np.unique(codes):
        here = np.flatnonzero(codes == code)
        for block in np.unique(block_ids[here]):
            inside = here[block_ids[here] == block]
            outside = here[block_ids[here] != block]
            if len(outside):
                out[inside] = KDTree(centres[outside]).query(centres[inside])[0] <= buffer_um * (1 + TOUCH)
    return out


def hold_out(
    block_ids: np.ndarray,
    held: np.ndarray | list | tuple,
    centres_um: np.ndarray,
    buffer_um: float = 0.0,
    *,
    library: np.ndarray | None = None,
) -> HoldOut:
    """Return the masks of training, held-out and buffer observations.

    Parameters
    ----------
    block_ids
        (n,), the block of each observation.
    held
        The blocks to hold out.
    centres_um
        (n, 2), (y, x) of each observation in µm.
    buffer_um
        Observations of other blocks within this distance of a held-out observation (the distance itself included) are in neither set. A crop
        of ``h`` µm that has seen training observations reaches no held-out one where the buffer is at least its diagonal.
    library
        (n,), the library of each observation: coordinates of different libraries are never compared.

    Raises
    ------
    ValueError
        For blocks that do not exist, none to hold out, arrays that differ in length, a negative buffer, or nothing left to train on.
    """
    block_ids, centres, held = np.asarray(block_ids), _centres(centres_um), np.unique(np.asarray(held))
    lengths = {"block_ids": len(block_ids), "centres_um": len(centres)} | ({} if library is None else {"library": len(library)})
    if len(set(lengths.values())) != 1:
        raise ValueError(f"The arrays have different numbers of observations: {lengths}. Pass one row per observation in each.")
    if not (np.isfinite(buffer_um) and buffer_um >= 0):
        raise ValueError(f"buffer_um={buffer_um} is not a distance; wanted zero or a positive number of µm.")
    unknown = np.setdiff1d(held, block_ids)
    if len(held) == 0 or len(unknown):
        raise ValueError(
            f"Blocks to hold out: {held.tolist()}, of which {unknown.tolist()} do not exist; wanted some of {np.unique(block_ids).tolist()}."
        )
    test = np.isin(block_ids, held)
    buffer = np.zeros(len(test), dtype=bool)
    if buffer_um > 0:
        buffer = ~test & (distance_to(centres, test, library) <= buffer_um * (1 + TOUCH))
    train = ~test & ~buffer
    if not train.any():
        raise ValueError(
            f"Nothing is left to train on: {int(test.sum())} observations are held out and {int(buffer.sum())} are in the buffer of {buffer_um:g} µm. Hold out fewer blocks or narrow the buffer."
        )
    return HoldOut(train, test, buffer)
