"""What the simulator knows and an experiment does not."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg._core.rng import RngLike, as_seed, derive
from stimg.datasets._simulate_counts import profiles, sample_counts
from stimg.datasets._simulate_image import Slide
from stimg.datasets._simulate_molecules import make_molecules
from stimg.datasets._simulate_tissue import Stream


@dataclass(frozen=True)
class Truth:
    """Rates, cells, donors' effects and pictures behind a simulation, in the order of the AnnData's observations.

    Parameters
    ----------
    programmes
        Names of the K programmes.
    activity
        float32 (n_obs, K): share of an observation's RNA from each programme; rows sum to 1.
    loadings
        float64 (K, n_vars): what each programme makes of each gene, before a section's shifts; rows sum to 1.
    gene_shift
        float64 (libraries, n_vars): natural-log shift of each gene in each library.
    depth
        float64 (n_obs,): expected total count, with capture efficiency.
    dispersion
        float64 (n_vars,): a in variance = mean + a * mean ** 2.
    dropout
        Probability that an entry was lost.
    library
        int64 (n_obs,): row of ``libraries``.
    libraries
        One row per library: donor, section, ``log_depth`` (natural-log shift of the depth) and the stain matrix (optical densities).
    slides
        One :class:`Slide` per library: draws any part of its H&E image.
    """

    programmes: list[str]
    activity: np.ndarray
    loadings: np.ndarray
    gene_shift: np.ndarray
    depth: np.ndarray
    dispersion: np.ndarray
    dropout: float
    library: np.ndarray
    libraries: pd.DataFrame
    slides: dict[str, Slide]
    seed: int
    sparse: bool
    _xenium: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def rate(self, rows: Any = None, genes: Any = None) -> np.ndarray:
        """Return the expected counts, float64 (rows, genes), of the chosen observations and genes (positions, or None for all).

        ``rate = (1 - dropout) * depth * activity @ profile``, with the profile of the observation's library.
        """
        n_obs, n_vars = len(self.depth), self.loadings.shape[1]
        chosen = np.arange(n_obs)[slice(None) if rows is None else rows].reshape(-1)
        columns = np.arange(n_vars)[slice(None) if genes is None else genes].reshape(-1)
        out = np.empty((len(chosen), len(columns)))
        for code in np.unique(self.library[chosen]):
            here = self.library[chosen] == code
            profile = profiles(self.loadings, self.gene_shift[code])[:, columns]
            out[here] = (self.activity[chosen[here]].astype(np.float64) @ profile) * self.depth[chosen[here], None]
        return out * (1 - self.dropout)

    def sample(self, rng: RngLike = None) -> sp.csr_matrix:
        """Return new counts, CSR float32 (n_obs, n_vars), drawn from the same rates: a technical replicate."""
        return self._draw(as_seed(rng), replicate=1)

    def _draw(self, seed: int, *, replicate: int) -> sp.csr_matrix:
        parts = []
        for code in range(len(self.libraries)):
            rows = slice(*np.searchsorted(self.library, [code, code + 1]))

            def rng_of(block: int, code: int = code) -> np.random.Generator:
                return derive(seed, Stream.COUNT, replicate, code, block)

            profile = profiles(self.loadings, self.gene_shift[code])
            parts.append(
                sample_counts(self.activity[rows], self.depth[rows], profile, self.dispersion, self.dropout, rng_of, sparse=self.sparse)
            )
        return parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")

    def molecules(self, library: str | None = None) -> pd.DataFrame:
        """Return the molecules of a Xenium library: ``x``, ``y`` (µm), ``feature_name``, ``cell_id``, ``overlaps_nucleus``, ``qv``.

        Each count of the cell table is one molecule; molecules outside cells have the cell id ``"UNASSIGNED"``.
        ``library`` may be left out where there is one.
        """
        if not self._xenium:
            raise ValueError('These data have no molecules; wanted technology="xenium".')
        library = self._name(library)
        code = list(self._xenium).index(library)
        return make_molecules(**self._xenium[library], rng=derive(self.seed, Stream.MOLECULE, code))

    def cells(self, library: str | None = None) -> pd.DataFrame:
        """Return every cell of a library, captured or not: ``x_um``, ``y_um``, ``type``, ``domain``.

        ``library`` may be left out where there is one. The rows of a Xenium library are its observations, in their order.
        """
        return self.slides[self._name(library)].cell_table()

    def _name(self, library: str | None) -> str:
        names = list(self.slides)
        if library is None and len(names) == 1:
            return names[0]
        if library not in self.slides:
            raise KeyError(f"There is no library {library!r}; pass one of {names}.")
        return library
