"""What goes with a tile: expression, neighbours, and the crop of the ST image around the observation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial import KDTree

from stimg._core import keys, panel, validate

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.data.crops import Batch
    from stimg.image.spec import CropSpec


def positions(rows: Any, n_obs: int) -> np.ndarray:
    """Return positions from a mask, positions, or None for all, int64; a ValueError where they are not usable."""
    if rows is None:
        return np.arange(n_obs, dtype=np.int64)
    found = np.asarray(rows)
    if found.dtype == bool:
        if found.shape != (n_obs,):
            raise ValueError(f"rows is a mask of shape {found.shape}; wanted ({n_obs},), one value per observation.")
        found = np.flatnonzero(found)
    if found.ndim != 1 or not len(found) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"rows has dtype {found.dtype} and shape {found.shape}; wanted positions of at least one observation, or a mask.")
    if found.min() < 0 or found.max() >= n_obs:
        raise ValueError(f"rows has values from {found.min()} to {found.max()}; wanted positions in 0 .. {n_obs - 1}.")
    return found.astype(np.int64)


class LogExpression:
    """log(1 + counts per 10,000) of some genes; a call returns it for some of the observations. Kept sparse."""

    def __init__(self, adata: "AnnData", genes: Sequence[str], layer: str | None, rows: np.ndarray) -> None:
        counts = validate.counts(adata, layer)
        at = validate.genes(genes, adata.var_names, what="genes", todo="Pass names of adata.var_names.")
        total = np.asarray(counts @ (~panel.is_control(adata.var)).astype(np.float64)).ravel()[rows]
        if (total == 0).any():
            raise ValueError(
                f"{int((total == 0).sum())} of {len(rows)} observations have no counts, the first is {adata.obs_names[rows[np.argmax(total == 0)]]!r}. "
                "Leave them out with `rows=`."
            )
        scaled = sp.diags_array(1e4 / total) @ counts[rows][:, at]
        self._values = sp.csr_matrix(scaled.log1p(), dtype=np.float32)

    def __call__(self, at: Sequence[int]) -> np.ndarray:
        """Return float32 (n, genes) of positions in the dataset."""
        return self._values[at].toarray()


def nearest_rows(adata: "AnnData", rows: np.ndarray, which: np.ndarray, k: int) -> np.ndarray:
    """Return for each of ``rows`` the ``k`` nearest others of them in the same library, int64 (n, k), nearest first, -1 where there are fewer."""
    xy = validate.obsm(adata, keys.SPATIAL, columns=2, todo="Neighbours are found by coordinates.").astype(np.float64)[rows]
    out = np.full((len(rows), k), -1, dtype=np.int64)
    for library in np.unique(which):
        mine = np.flatnonzero(which == library)
        near = min(k + 1, len(mine))
        found = KDTree(xy[mine]).query(xy[mine], k=range(1, near + 1))[1]
        itself = found == np.arange(len(mine))[:, None]
        itself[~itself.any(axis=1), -1] = True  # among more observations at one place than are looked at
        out[mine, : near - 1] = rows[mine[found[~itself].reshape(len(mine), near - 1)]]
    return out


class CentredCrops:
    """The crop of the ST image around each observation; a call returns it for some of them."""

    def __init__(
        self, adata: "AnnData", crop: "CropSpec", genes: Sequence[str], rows: np.ndarray, *, layer: str | None, library_key: str
    ) -> None:
        from stimg.data.crops import CropReader
        from stimg.data.library import libraries

        found = libraries(adata, vocabulary=genes, layer=layer, library_key=library_key, rows=np.unique(rows))
        self._reader = CropReader(found, crop.size, rule="all")
        self._window = np.full((adata.n_obs, 3), -1, dtype=np.int64)
        half = np.array([crop.size[0] // 2, crop.size[1] // 2])
        for number, library in enumerate(found):
            self._window[library.rows, 0], self._window[library.rows, 1:] = number, library.points - half
        self._window = self._window[rows]
        lost = int((self._window[:, 0] < 0).sum())
        if lost:
            raise ValueError(
                f"{lost} of {len(rows)} observations are not on the raster, so there is no crop around them. Leave them out with `rows=`."
            )

    def __call__(self, at: Sequence[int]) -> "Batch":
        """Return the crops of positions in the dataset as one batch."""
        rng = np.random.default_rng(0)  # the rule "all" draws nothing
        return self._reader.read([(int(w), int(top), int(left), 0, rng) for w, top, left in self._window[list(at)]])
