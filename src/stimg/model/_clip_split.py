"""Which observations an alignment is stopped by: a donor, a library, or a block of every library."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import KDTree

from stimg._core import keys, validate
from stimg.data.slots import library_rows
from stimg.model._split import Area, Split, hold_out_blocks, hold_out_named

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)
WAYS = ("auto", "donors", "libraries", "blocks")
FEWEST = 3
"""Donors, or libraries, of which one can be spared without being asked."""


def split_pairs(
    adata: "AnnData",
    *,
    validation: str | Sequence[str] | None,
    fraction: float,
    library_key: str,
    donor_key: str | None,
    rng: np.random.Generator,
) -> Split:
    """Return training and validation observations; see :meth:`stimg.model.ImageGeneCLIP.train`."""
    libraries = library_rows(validate.obs(adata, library_key, todo="Pass `library_key=` to `setup_anndata`."))
    donors = {} if donor_key is None or donor_key not in adata.obs else library_rows(adata.obs[donor_key])
    split = Split(np.ones(adata.n_obs, dtype=bool), np.zeros(adata.n_obs, dtype=bool))
    if validation is None:
        return split
    if not isinstance(validation, str):
        return _named(split, [str(v) for v in validation], libraries, donors)
    validate.one_of(validation, WAYS, "validation")
    if validation == "auto":
        validation = "donors" if len(donors) >= FEWEST else "libraries" if len(libraries) >= FEWEST else "blocks"
    if validation == "blocks":
        areas = {name: _area(adata, rows) for name, rows in libraries.items()}
        hold_out_blocks(areas, split, fraction, rng)
        logger.info("Held out a block of each of %d libraries", len(areas))
        return split
    groups, what = (donors, "donor") if validation == "donors" else (libraries, "library")
    if len(groups) < 2:
        found = f"adata.obs[{donor_key!r}] names {list(donors)}" if what == "donor" else f"the only library is {list(libraries)}"
        raise ValueError(
            f"validation={validation!r} leaves out one {what} of at least two, but {found}. Pass validation='blocks', "
            f"validation='libraries' or a list of some of {list(libraries)}, or validation=None."
        )
    chosen = sorted(groups)[int(rng.integers(len(groups)))]
    hold_out_named(groups, split, [chosen])
    logger.info("Held out the %s %s, %d observations", what, chosen, int(split.validation.sum()))
    return split


def _named(split: Split, names: list[str], libraries: dict[str, np.ndarray], donors: dict[str, np.ndarray]) -> Split:
    """Hold out libraries and donors by name; a name of both means the library."""
    wanted: list[str] = []
    for name in names:
        if name in libraries or name not in donors:
            wanted.append(name)
        else:
            wanted += [key for key, rows in libraries.items() if np.isin(rows, donors[name]).all()]
    hold_out_named(libraries, split, wanted)
    return split


def _area(adata: "AnnData", rows: np.ndarray) -> Area:
    """Return where the observations of a library lie, (y, x) in pixels."""
    todo = "Blocks are cut by coordinates; without them pass validation='donors', a list of libraries, or None."
    yx = validate.obsm(adata, keys.SPATIAL, columns=2, todo=todo)[rows][:, ::-1].astype(np.float64)
    return Area(rows, yx, float(np.median(KDTree(yx).query(yx, k=2)[0][:, 1])) if len(rows) > 1 else 1.0)
