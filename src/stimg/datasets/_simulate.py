"""A simulator of spatial transcriptomics: tissue, cells, gene programmes, counts, H&E and donors, all from one seed."""

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._core import keys, provenance, validate
from stimg._core.rng import RngLike, as_seed, derive
from stimg.datasets import _simulate_counts as _counts
from stimg.datasets._simulate_cells import Cells, capture, kinds, make_cells
from stimg.datasets._simulate_image import Slide, Texture
from stimg.datasets._simulate_layout import Layout, make_layout
from stimg.datasets._simulate_options import CountOptions, DonorOptions, GeneOptions, ImageOptions, TissueOptions
from stimg.datasets._simulate_tissue import Stream, Tissue, compositions, densities
from stimg.datasets._simulate_truth import Truth

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["CountOptions", "DonorOptions", "GeneOptions", "ImageOptions", "TissueOptions", "Truth", "simulate"]

logger = logging.getLogger(__name__)

PROPORTIONS = "stimg_truth_proportions"
_CHUNK = 1 << 17
_AMBIENT = 0.02
"""Cells' worth of ambient RNA under every capture area."""


def simulate(
    *,
    technology: str = "visium",
    shape: Sequence[int] | None = None,
    size_um: float | Sequence[float] | None = None,
    n_genes: int = 200,
    n_donors: int = 1,
    n_sections: int = 1,
    image: bool = False,
    mpp: float = 0.5,
    bin_um: float = 8.0,
    tissue: TissueOptions | None = None,
    genes: GeneOptions | None = None,
    counts: CountOptions | None = None,
    donors: DonorOptions | None = None,
    stain: ImageOptions | None = None,
    rng: RngLike = 0,
    as_sdata: bool = False,
    return_truth: bool = False,
) -> Any:
    """Return simulated sections as one AnnData (raw counts, CSR float32), or as SpatialData with images, shapes and molecules.

    A section is made of smooth random fields: domains, cells of types that depend on the domain, gradients. Every observation's RNA is a
    mixture of gene programmes (of the cell types under it, of its domain, of the gradients), and its counts are negative binomial.
    The same ``rng``, ``size_um`` and ``tissue`` give the same tissue and the same cells whatever the technology.

    Parameters
    ----------
    technology
        ``"st"`` (square lattice, 200 µm pitch, 100 µm spots), ``"visium"`` (hexagonal, 100 µm pitch, 55 µm spots), ``"visium_hd"``
        (square bins of ``bin_um``) or ``"xenium"`` (one observation per cell; molecules from :meth:`Truth.molecules`).
    shape
        (rows, columns) of the lattice; for Xenium in steps of 10 µm. None with ``size_um`` None: a small section.
    size_um
        Side, or (y, x), of the section in µm; instead of ``shape``.
    n_genes
        Number of genes (control probes come on top).
    n_donors, n_sections
        Number of donors, and of serial sections of each. Libraries are named ``"D1S1"``, ``"D1S2"``, ...
    image
        Draw the H&E image: its reduced copies go to ``uns["spatial"]``, the full one to the SpatialData (lazily) or :attr:`Truth.slides`.
        Counts do not depend on it.
    mpp
        µm per full-resolution pixel.
    bin_um
        Edge of the bins of Visium HD: 2, 8 or 16 µm.
    tissue, genes, counts, donors, stain
        Options; None takes their defaults.
    rng
        Seed. The result depends on it and on the arguments alone.
    as_sdata
        Return SpatialData: images ``"<library>_full_image"``, shapes ``"<library>"``, points ``"<library>_transcripts"``, table ``"table"``.
        Every library has a coordinate system of its name, in full-resolution pixels.
    return_truth
        Return also the :class:`Truth`.

    Returns
    -------
    AnnData or SpatialData, or a pair of it and the Truth. ``obs``: ``library_id``, ``donor``, ``section``, ``in_tissue``, ``domain`` and the
    same as ``label``, ``array_row`` and ``array_col`` (Visium: Space Ranger's, 2 * column + row parity) or ``cell_type``;
    ``obsm["spatial"]``: (x, y) in full-resolution pixels; ``obsm["stimg_truth_proportions"]``: cell-type proportions, a table;
    ``uns["spatial"][library]``; ``var``: ``feature_types``, ``category``, ``programme``, ``second_programme``.

    Raises
    ------
    ValueError
        For an unknown technology, a size without capture areas, or an outline that leaves none.

    Notes
    -----
    The mean of gene g in observation i is ``m_ig = d_i * sum_k a_ik * w_kg``. ``d_i`` is log-normal, times a smooth field, times the RNA
    under the capture area; ``a_ik`` are the programmes' shares; ``w_kg`` the loadings, after the library's per-gene shift.
    The variance is ``m_ig + dispersion_g * m_ig ** 2``. Time and memory grow with the observations and the counts, not with n_obs x n_vars.

    Examples
    --------
    >>> from stimg.datasets import simulate
    >>> adata = simulate(technology="visium", shape=(12, 12), n_genes=50, rng=0)
    >>> adata.shape
    (144, 50)
    """
    tissue, genes, counts = tissue or TissueOptions(), genes or GeneOptions(), counts or CountOptions()
    donors, stain = donors or DonorOptions(), stain or ImageOptions()
    for name, value in (("n_genes", n_genes), ("n_donors", n_donors), ("n_sections", n_sections)):
        if isinstance(value, bool) or int(value) != value or value < 1:
            raise ValueError(f"{name}={value!r} is not a whole number of at least 1.")
    validate.positive(mpp, "mpp", "µm per pixel")
    layout = make_layout(technology, shape, size_um, bin_um)
    seed = as_seed(rng)
    looks = kinds(tissue.n_types)
    programmes = _counts.make_programmes(genes, counts, [k.name for k in looks], tissue.n_domains, n_genes, seed=seed)
    depth = counts.depth if counts.depth is not None else layout.default_depth(n_genes)
    sections = [
        _Section(layout, tissue, genes, counts, donors, mpp=mpp, depth=depth, n_columns=len(programmes.var), seed=seed, donor=d, section=s)
        for d in range(n_donors)
        for s in range(n_sections)
    ]
    textures: dict[int, Texture] = {}
    for section in sections:
        section.slide = Slide(
            section.tissue, section.cells, section.composition, stain, donors,
            mpp=mpp, seed=seed, donor=section.donor, section=section.section, textures=textures,
        )  # fmt: skip
    truth = _truth(sections, programmes, counts, seed=seed, sparse=n_genes > _counts.SPARSE_FROM * depth)
    adata = _table(sections, programmes, truth, layout, [k.name for k in looks])
    from stimg.datasets import _simulate_output as output

    output.write_spatial(adata, sections, stain, image=image)
    provenance.record(
        adata, "simulate", technology=technology, shape=layout.shape, size_um=layout.size_um, mpp=mpp, seed=seed, unit="counts"
    )
    if technology == "xenium":
        output.keep_molecules(truth, adata, sections)
    logger.info("simulated %d observations x %d genes, %d counts stored, %d libraries", *adata.shape, adata.X.nnz, len(sections))
    result = output.to_sdata(adata, sections, truth, image=image) if as_sdata else adata
    return (result, truth) if return_truth else result


class _Section:
    """One library while it is made: its tissue and cells, its observations, their activities and depths."""

    slide: Slide

    def __init__(
        self,
        layout: Layout,
        options: TissueOptions,
        genes: GeneOptions,
        counts: CountOptions,
        donors: DonorOptions,
        *,
        mpp: float,
        depth: float,
        n_columns: int,
        seed: int,
        donor: int,
        section: int,
    ) -> None:
        self.layout, self.mpp, self.donor, self.section = layout, mpp, donor, section
        self.name, self.donor_name = f"D{donor + 1}S{section + 1}", f"D{donor + 1}"
        self.tissue = Tissue(options, donors, layout.size_um, genes.n_gradients, seed=seed, donor=donor, section=section)
        self.composition = compositions(options, donors, seed=seed, donor=donor)
        self.cells: Cells = make_cells(
            self.tissue, self.composition, densities(options, seed=seed), seed=seed, donor=donor, section=section
        )
        self.looks = kinds(options.n_types)
        self.gene_shift, self.log_depth = _counts.shifts(donors, n_columns, seed=seed, donor=donor, section=section)
        self._observe(genes, counts, depth, derive(seed, Stream.DEPTH, donor, section))

    def _observe(self, genes: GeneOptions, counts: CountOptions, depth: float, rng: np.random.Generator) -> None:
        """Fill ``index``, ``yx_um``, ``domain``, ``proportions``, ``activity`` and ``depth`` of the observations inside the tissue."""
        xenium = self.layout.technology == "xenium"
        everything = self.cells.index if xenium else np.arange(math.prod(self.layout.shape))
        content = np.array([k.rna for k in self.looks], dtype=np.float32)
        parts: list[tuple[np.ndarray, ...]] = []
        for start in range(0, len(everything), _CHUNK):
            index = everything[start : start + _CHUNK]
            yx = self.cells.yx_um.reshape(-1, 2)[index].astype(np.float64) if xenium else self.layout.centres_um(index)
            membership, gradients, field, margin = self.tissue.read(yx)
            inside = margin >= 0
            if not inside.all():
                index, yx, membership, gradients, field = (part[inside] for part in (index, yx, membership, gradients, field))
            expected = (membership @ self.composition).astype(np.float32)
            if xenium:
                seen = np.eye(len(content), dtype=np.float32)[self.cells.type.ravel()[index]]
                proportions, present = seen, seen
            else:
                seen = capture(self.cells, yx, self.layout.diameter_um / 2, len(content), square=self.layout.square)
                present = seen + _AMBIENT * expected
                proportions = present / present.sum(axis=1, keepdims=True)
            rna = present * content
            shares = _counts.activity(genes, rna, membership, gradients)
            parts.append((index, yx, membership.argmax(axis=1), proportions, shares, rna.sum(axis=1), field))
        if not sum(len(part[0]) for part in parts):
            raise ValueError(
                f"no capture area of library {self.name} lies on tissue (shape {self.layout.shape}). "
                "Pass a larger shape or size_um, or TissueOptions without outline and holes."
            )
        self.index, self.yx_um, self.domain, self.proportions, self.activity, rna_total, field = (
            np.concatenate([part[i] for part in parts]) for i in range(7)
        )
        del parts
        noise = rng.standard_normal(len(self.index))
        log_depth = counts.density_effect * np.log(rna_total / rna_total.mean()) + counts.depth_spatial_sd * field + counts.depth_sd * noise
        log_depth += math.log(depth * counts.capture) + self.log_depth - (counts.depth_sd**2 + counts.depth_spatial_sd**2) / 2
        self.depth = np.exp(log_depth)


def _truth(sections: list[_Section], programmes: _counts.Programmes, counts: CountOptions, *, seed: int, sparse: bool) -> Truth:
    stains = [s.slide.stains for s in sections]
    libraries = pd.DataFrame(
        {
            keys.DONOR: [s.donor_name for s in sections],
            "section": [s.section for s in sections],
            "log_depth": [s.log_depth for s in sections],
            **{
                f"{stain}_{colour}": [m[i, j] for m in stains]
                for i, stain in enumerate(("haematoxylin", "eosin"))
                for j, colour in enumerate("rgb")
            },
        },
        index=[s.name for s in sections],
    )
    single = len(sections) == 1
    return Truth(
        programmes=programmes.names,
        activity=sections[0].activity if single else np.concatenate([s.activity for s in sections]),
        loadings=programmes.loadings,
        gene_shift=np.stack([s.gene_shift for s in sections]),
        depth=np.concatenate([s.depth for s in sections]),
        dispersion=programmes.dispersion,
        dropout=counts.dropout,
        library=np.repeat(np.arange(len(sections)), [len(s.index) for s in sections]),
        libraries=libraries,
        slides={s.name: s.slide for s in sections},
        seed=seed,
        sparse=sparse,
    )


def _table(sections: list[_Section], programmes: _counts.Programmes, truth: Truth, layout: Layout, types: list[str]) -> "AnnData":
    from anndata import AnnData

    code = truth.library
    domains = [f"domain_{d}" for d in range(sections[0].tissue.options.n_domains)]
    domain = pd.Categorical.from_codes(np.concatenate([s.domain for s in sections]), categories=domains)
    columns: dict[str, Any] = {
        keys.LIBRARY: pd.Categorical.from_codes(code, categories=[s.name for s in sections]),
        keys.DONOR: pd.Categorical([s.donor_name for s in sections])[code],
        "section": np.array([s.section for s in sections])[code],
        "in_tissue": np.ones(len(code), dtype=np.int32),
    }
    index = np.concatenate([s.index for s in sections])
    if layout.technology == "xenium":
        kind = np.concatenate([s.cells.type.ravel()[s.index] for s in sections])
        columns["cell_type"] = pd.Categorical.from_codes(kind, categories=types)
        names = [f"{s.name}_cell{i:07d}" for s in sections for i in range(len(s.index))]
    else:
        columns["array_row"], columns["array_col"] = layout.array_index(index)
        names = [f"{s.name}_{name}" for s in sections for name in layout.names(s.index)]
    obs = pd.DataFrame({**columns, "domain": domain, "label": domain}, index=names)
    adata = AnnData(X=truth._draw(truth.seed, replicate=0), obs=obs, var=programmes.var)
    adata.obsm[keys.SPATIAL] = np.concatenate([s.yx_um[:, ::-1] for s in sections]) / sections[0].mpp
    proportions = np.concatenate([s.proportions for s in sections])
    adata.obsm[PROPORTIONS] = pd.DataFrame(proportions, index=adata.obs_names, columns=types)
    return adata
