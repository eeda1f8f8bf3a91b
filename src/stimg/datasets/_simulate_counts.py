"""Gene programmes, and exact negative-binomial counts of a programme mixture without a dense table."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg._core.rng import derive
from stimg.datasets._simulate_options import CountOptions, DonorOptions, GeneOptions
from stimg.datasets._simulate_tissue import Stream

DENSE_ROWS = 128
SPARSE_EVENTS = 1 << 20
SPARSE_FROM = 6
"""The sparse sampler is used where the number of genes is more than this many times the mean depth."""


@dataclass(frozen=True)
class Programmes:
    """``loadings`` float64 (programmes, genes + controls), rows sum to 1; ``names`` of the programmes; ``dispersion`` float64 per column; ``var``."""

    names: list[str]
    loadings: np.ndarray
    dispersion: np.ndarray
    var: pd.DataFrame


def make_programmes(genes: GeneOptions, counts: CountOptions, types: list[str], n_domains: int, n_genes: int, *, seed: int) -> Programmes:
    """Return the programmes: one per cell type, per domain and per gradient, and a baseline, in this order."""
    rng = derive(seed, Stream.GENE)
    names = [f"type:{t}" for t in types] + [f"domain:{d}" for d in range(n_domains)]
    names += [f"gradient:{g}" for g in range(genes.n_gradients)] + ["baseline"]
    groups = {"marker": (0, len(types)), "domain": (len(types), n_domains), "gradient": (len(types) + n_domains, genes.n_gradients)}
    shares = {
        "marker": genes.marker_fraction,
        "domain": genes.domain_fraction,
        "gradient": genes.gradient_fraction,
        "housekeeping": genes.housekeeping_fraction,
    }
    bounds = np.floor(np.cumsum(list(shares.values())) * n_genes + 0.5).astype(int)
    order = rng.permutation(n_genes)
    category = np.full(n_genes, "background", dtype="<U12")
    member = np.full(n_genes, -1)
    for label, start, stop in zip(shares, [0, *bounds[:-1]], bounds, strict=True):
        chosen = order[start:stop]
        if label == "housekeeping":
            category[chosen] = label
        elif groups[label][1]:
            category[chosen] = label
            member[chosen] = groups[label][0] + np.arange(len(chosen)) % groups[label][1]
    abundance = rng.normal(0.0, genes.abundance_sd, size=n_genes)
    abundance += 1.5 * (category == "housekeeping") - 0.5 * (category == "background")
    change = np.abs(rng.normal(genes.log_fold_change, 0.2 * genes.log_fold_change, size=n_genes))
    second = np.where((member >= 0) & (rng.random(n_genes) < genes.second_programme), rng.integers(len(names) - 1, size=n_genes), -1)
    log_rate = np.tile(abundance, (len(names), 1))
    columns = np.arange(n_genes)
    has = second >= 0
    log_rate[second[has], columns[has]] += change[has] / 2
    has = member >= 0
    log_rate[member[has], columns[has]] = abundance[has] + change[has]
    loadings = np.exp(log_rate)
    loadings /= loadings.sum(axis=1, keepdims=True)
    if genes.n_controls:
        level = rng.dirichlet(np.full(genes.n_controls, 5.0)) * genes.control_fraction
        loadings = np.hstack([loadings * (1 - genes.control_fraction), np.tile(level, (len(names), 1))])
    n_all = n_genes + genes.n_controls
    dispersion = counts.dispersion * np.exp(counts.dispersion_sd * rng.standard_normal(n_all))
    labels = np.array([*names, ""], dtype=object)
    none = [""] * genes.n_controls
    var = pd.DataFrame(
        {
            "feature_types": pd.Categorical(["Gene Expression"] * n_genes + ["Negative Control Probe"] * genes.n_controls),
            "category": pd.Categorical([*category.tolist(), *["control"] * genes.n_controls]),
            "programme": [*labels[member].tolist(), *none],
            "second_programme": [*np.where(second == member, "", labels[second]).tolist(), *none],
        },
        index=[f"Gene{g:05d}" for g in range(n_genes)] + [f"NegControlProbe_{g:05d}" for g in range(genes.n_controls)],
    )
    return Programmes(names, loadings, dispersion, var)


def activity(genes: GeneOptions, rna: np.ndarray, membership: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Return the share of an observation's RNA from each programme, float32 (n, programmes), rows sum to 1."""
    parts = [genes.type_weight * rna / rna.sum(axis=1, keepdims=True), genes.domain_weight * membership]
    if gradients.shape[1]:
        parts.append(genes.gradient_weight * gradients / gradients.shape[1])
    used = np.concatenate(parts, axis=1)
    return np.concatenate([used, np.clip(1 - used.sum(axis=1, keepdims=True), 0, None)], axis=1).astype(np.float32)


def shifts(donors: DonorOptions, n_columns: int, *, seed: int, donor: int, section: int) -> tuple[np.ndarray, float]:
    """Return (per-gene natural-log shift (columns,), natural-log shift of the depth) of one section: its donor's plus its own.

    The first donor, and the first section of each donor, are not shifted.
    """
    gene, depth = np.zeros(n_columns), 0.0
    if donor:
        rng = derive(seed, Stream.SHIFT, donor)
        gene += donors.gene_sd * rng.standard_normal(n_columns)
        depth += donors.depth_sd * float(rng.standard_normal())
    if section:
        rng = derive(seed, Stream.SHIFT, donor, section)
        gene += donors.section_gene_sd * rng.standard_normal(n_columns)
        depth += donors.section_depth_sd * float(rng.standard_normal())
    return gene, depth


def profiles(loadings: np.ndarray, gene_shift: np.ndarray) -> np.ndarray:
    """Return the loadings of one section (programmes, columns), rows sum to 1."""
    shifted = loadings * np.exp(gene_shift)
    return shifted / shifted.sum(axis=1, keepdims=True)


def sample_counts(
    activity: np.ndarray,
    depth: np.ndarray,
    profile: np.ndarray,
    dispersion: np.ndarray,
    dropout: float,
    rng_of: Callable[[int], np.random.Generator],
    *,
    sparse: bool,
    block_rows: int | None = None,
) -> sp.csr_matrix:
    """Return counts, CSR float32 (n, columns), with mean ``m = depth * activity @ profile`` and variance ``m + dispersion * m ** 2``.

    Parameters
    ----------
    activity
        (n, programmes), non-negative.
    depth
        (n,) expected total counts.
    profile
        (programmes, columns), rows sum to 1.
    dispersion
        (columns,); 0 is Poisson.
    dropout
        Probability that a non-zero entry is lost.
    rng_of
        Generator of a block of rows by its number. Blocks have a fixed number of rows, so nothing else decides the result.
    sparse
        Draw molecules instead of table entries: time and memory then grow with the counts and not with n x columns.

    Notes
    -----
    The sparse sampler is exact. A negative binomial of size r is a Poisson number, of mean ``r log(1 + m / r)``, of clusters whose sizes
    are logarithmic with ``p = m / (m + r)`` (Quenouille 1949, Biometrics 5, 162). Candidate clusters are drawn at the linear
    rate m (programme by programme, then the gene), and kept with probability ``r log(1 + m / r) / m``.
    """
    if block_rows is None:
        block_rows = block_size(float(depth.mean()) if len(depth) else 0.0, sparse=sparse)
    draw = _sparse_block if sparse else _dense_block
    data, indices, lengths = [], [], [np.zeros(1, dtype=np.int64)]
    for number, start in enumerate(range(0, len(depth), block_rows)):
        rows = slice(start, start + block_rows)
        rng = rng_of(number)
        row, column, value = draw(activity[rows].astype(np.float64), depth[rows], profile, dispersion, rng)
        if dropout > 0:
            kept = rng.random(len(value)) >= dropout
            row, column, value = row[kept], column[kept], value[kept]
        data.append(value.astype(np.float32))
        indices.append(column.astype(np.int32))
        lengths.append(np.bincount(row, minlength=len(depth[rows])))
    indptr = np.cumsum(np.concatenate(lengths))
    if indptr[-1] < 2**31:
        indptr = indptr.astype(np.int32)
    shape = (len(depth), profile.shape[1])
    if not data:
        return sp.csr_matrix(shape, dtype=np.float32)
    out = sp.csr_matrix((np.concatenate(data), np.concatenate(indices), indptr), shape=shape)
    out.has_sorted_indices = out.has_canonical_format = True
    return out


def block_size(mean_depth: float, *, sparse: bool) -> int:
    """Return the number of rows that share a generator: a power of two set by the depth alone."""
    if not sparse:
        return DENSE_ROWS
    return 1 << max(6, min(17, int(np.log2(SPARSE_EVENTS / max(mean_depth, 1.0)))))


def _dense_block(
    activity: np.ndarray, depth: np.ndarray, profile: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean = (activity @ profile) * depth[:, None]
    over = dispersion > 0
    if over.all():
        mean *= rng.standard_gamma(1 / dispersion, size=mean.shape) * dispersion
    elif over.any():
        mean[:, over] *= rng.standard_gamma(1 / dispersion[over], size=(len(mean), int(over.sum()))) * dispersion[over]
    counts = rng.poisson(mean)
    row, column = np.nonzero(counts)
    return row, column, counts[row, column]


def _sparse_block(
    activity: np.ndarray, depth: np.ndarray, profile: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, n_columns = len(depth), profile.shape[1]
    rows, columns = [], []
    for k in range(profile.shape[0]):
        events = rng.poisson(depth * activity[:, k])
        row = np.repeat(np.arange(n), events)
        cumulative = np.cumsum(profile[k])
        rows.append(row)
        columns.append(np.searchsorted(cumulative[:-1], rng.random(len(row)) * cumulative[-1], side="right"))
    row, column = np.concatenate(rows), np.concatenate(columns)
    rates = np.ascontiguousarray(profile.T)
    mean = np.einsum("ek,ek->e", activity[row], rates[column]) * depth[row]
    a = dispersion[column]
    excess = a * mean
    with np.errstate(divide="ignore", invalid="ignore"):
        keep_rate = np.where(excess > 0, np.log1p(excess) / excess, 1.0)
    kept = rng.random(len(row)) < keep_rate
    row, column, excess = row[kept], column[kept], excess[kept]
    size = np.ones(len(row), dtype=np.int64)
    over = excess > 1e-12
    size[over] = rng.logseries(excess[over] / (1 + excess[over]))
    key = row.astype(np.int64) * n_columns + column
    bits = int(size.max(initial=1)).bit_length()
    packed = np.sort((key << bits) | size)
    key = packed >> bits
    first = np.flatnonzero(np.diff(key, prepend=-1))
    value = np.add.reduceat(packed & ((1 << bits) - 1), first) if len(first) else np.empty(0, dtype=np.int64)
    row, column = np.divmod(key[first], n_columns)
    return row, column, value
