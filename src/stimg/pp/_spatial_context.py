"""Features of the surroundings: what lies in rings around each observation."""

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from stimg._core import keys, provenance, validate
from stimg.data.ledger import recall, remember
from stimg.data.slots import raster_libraries
from stimg.data.tables import table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
COLUMNS = 256
"""Columns that are averaged at a time."""


def spatial_context(
    data: "AnnData | SpatialData",
    *,
    key: str,
    rings: Sequence[int] = (1,),
    library_key: str = keys.LIBRARY,
    key_added: str | None = None,
    table_key: str = "table",
) -> None:
    """Write ``obsm["<key>_context"]`` (float32, n_obs x (rings x columns)): the mean of ``obsm[key]`` over rings around each observation.

    Parameters
    ----------
    data
        Observations on a raster (:func:`stimg.pp.rasterize`).
    key
        Slot of ``obsm`` with numbers, (n_obs, columns).
    rings
        Whole numbers from 1, rising. Ring r holds the observations of the same library whose centres are more than r - 1/2 and at most r + 1/2
        pitches away: the neighbours for 1.
    library_key
        Column of ``obs`` with the library.
    key_added
        Slot to write.
    table_key
        Table of a SpatialData.

    Raises
    ------
    KeyError
        Where a slot is missing.
    ValueError
        For NaN, or rings that are no whole numbers from 1, rising.

    Notes
    -----
    An observation with an empty ring, at a border or alone, gets its own values there: what is known of the place. Only rows of the same
    library are read, and of them only ``obsm[key]``.

    Examples
    --------
    >>> import numpy as np, stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(6, 6), n_genes=20, rng=0)
    >>> stimg.pp.rasterize(adata)
    >>> adata.obsm["X_ones"] = np.ones((adata.n_obs, 1), dtype="float32")
    >>> stimg.pp.spatial_context(adata, key="X_ones", rings=(1, 2))
    >>> adata.obsm["X_ones_context"].shape[1]
    2
    """
    adata = table_of(data, table_key)
    wanted = [int(r) for r in rings]
    if not wanted or wanted[0] < 1 or any(a >= b for a, b in pairwise(wanted)) or wanted != list(rings):
        raise ValueError(f"rings={tuple(rings)}; wanted whole numbers from 1, rising, such as (1, 2).")
    values = np.asarray(validate.slot(adata.obsm, "obsm", key, todo="Compute it first, such as with `stimg.tl.embed_image`."))
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise ValueError(f"adata.obsm[{key!r}] has shape {values.shape} and dtype {values.dtype}; wanted numbers, (n_obs, columns).")
    validate.finite(values, f"adata.obsm[{key!r}]", todo="Remove these observations, or compute the slot again.")
    out = np.tile(values.astype(np.float32), len(wanted))
    for library in raster_libraries(adata, library_key).values():
        centres = library.spec.lattice_points(library.rc)
        for i, mean in enumerate(ring_means(centres, wanted)):
            here = np.flatnonzero(np.diff(mean.indptr))
            for start in range(0, values.shape[1], COLUMNS):
                part = values[library.rows, start : start + COLUMNS].astype(np.float64)
                at = slice(i * values.shape[1] + start, i * values.shape[1] + start + part.shape[1])
                out[library.rows[here], at] = (mean @ part)[here]
    name = key_added or f"{key}_context"
    adata.obsm[name] = out
    provenance.record(
        adata, name, verb="stimg.pp.spatial_context", source=key, rings=wanted, library_key=library_key, unit="mean of the slot"
    )
    remember(adata, name, *recall(adata, only=[key]))
    logger.info("Wrote adata.obsm[%r]: %d observations x %d", name, *out.shape)


def ring_means(centres: np.ndarray, rings: Sequence[int]) -> list[sp.csr_matrix]:
    """Return for each ring the operator (n, n) that averages over it, CSR; ``centres`` (n, 2) are in pitches, rows of empty rings are empty."""
    n, tree = len(centres), cKDTree(centres)
    pairs = tree.query_pairs(max(rings) + 0.5 + 1e-6, output_type="ndarray")
    distance = np.linalg.norm(centres[pairs[:, 0]] - centres[pairs[:, 1]], axis=1)
    out = []
    for ring in rings:
        i, j = pairs[(distance > ring - 0.5 + 1e-6) & (distance <= ring + 0.5 + 1e-6)].T
        member = sp.csr_matrix((np.ones(2 * len(i)), (np.r_[i, j], np.r_[j, i])), shape=(n, n))
        count = np.diff(member.indptr)
        member.data /= np.repeat(count, count)
        out.append(member)
    return out
