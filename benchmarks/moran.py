"""Moran's I of all genes of a Visium HD sized area: stimg, scipy's shifted products, and scanpy, in one run on the same data.

Run ``python benchmarks/moran.py`` (720 × 720 bins × 18,000 genes, about 52 million stored values, 6 GB of memory, some two minutes) or
``python benchmarks/moran.py --quick`` (180 × 180 × 4,000). Set NUMBA_NUM_THREADS for the number of cores.
"""

import argparse
import statistics
import time

import numba
import numpy as np
import scipy.sparse as sp

from stimg.image.spec import RasterSpec
from stimg.metrics.spatial import SpatialWeights, autocorrelation, gearys_c, morans_i


def section(side: int, n_vars: int, draws: int, seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray]:
    """Return counts (bins × genes, CSR float32, raster order) of a tissue with holes and eight regions, and (row, column) of the bins."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    tissue = np.sin(9 * x + 4 * y) + np.cos(7 * y - 3 * x) > -1.75
    rc = np.argwhere(tissue)
    seeds = rng.random((8, 2))
    region = np.argmin(((rc[:, None] / side - seeds) ** 2).sum(axis=-1), axis=1)
    base = rng.permutation(1 / np.arange(1, n_vars + 1) ** 0.7)
    cdf = np.cumsum(base * rng.lognormal(0, 0.7, (8, n_vars)), axis=1)
    cdf /= cdf[:, -1:]
    parts = []
    for start in range(0, len(rc), 40_000):
        here = region[start : start + 40_000]
        genes = np.empty((len(here), draws), dtype=np.int32)
        for r in range(8):
            members = here == r
            genes[members] = np.searchsorted(cdf[r], rng.random((int(members.sum()), draws)))
        indptr = np.arange(0, genes.size + 1, draws)
        block = sp.csr_matrix((np.ones(genes.size, np.float32), np.minimum(genes.ravel(), n_vars - 1), indptr), shape=(len(here), n_vars))
        block.sum_duplicates()
        parts.append(block)
    return sp.vstack(parts, format="csr"), rc


def shifted_products(x: sp.csr_matrix, rc: np.ndarray, side: int) -> np.ndarray:
    """Moran's I from two shifted element-wise products of sparse matrices (float64): the formula without compiled loops of its own."""
    index = np.full((side + 1, side + 1), -1)
    index[rc[:, 0], rc[:, 1]] = np.arange(len(rc))
    cross, degree = np.zeros(x.shape[1]), np.zeros(len(rc))
    for dy, dx in ((0, 1), (1, 0)):
        other = index[rc[:, 0] + dy, rc[:, 1] + dx]
        a = np.flatnonzero(other >= 0)
        b = other[a]
        cross += np.asarray(x[a].multiply(x[b]).sum(axis=0)).ravel()
        degree += np.bincount(np.concatenate([a, b]), minlength=len(rc))
    n, s0 = len(rc), degree.sum()
    mean = np.asarray(x.sum(axis=0)).ravel() / n
    squares = np.asarray(x.multiply(x).sum(axis=0)).ravel() - n * mean**2
    return n / s0 * (2 * cross - 2 * mean * (degree @ x) + mean**2 * s0) / np.where(squares > 0, squares, np.nan)


def timed(call, repeats: int):
    """Return (result, median wall time, least wall time, least processor time over all cores), in seconds."""
    seconds, processor = [], []
    for _ in range(repeats):
        start, begun = time.perf_counter(), time.process_time()
        out = call()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - begun)
    return out, statistics.median(seconds), min(seconds), min(processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small section")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scanpy-genes", type=int, default=100, help="genes given to scanpy; its time is extrapolated to all genes")
    options = parser.parse_args()
    side, n_vars, draws = (180, 4000, 110) if options.quick else (720, 18_000, 112)

    import scanpy as sc

    x, rc = section(side, n_vars, draws)
    spec = RasterSpec("square", (side, side), 8.0)
    small, small_rc = section(24, 50, 20)  # compiles every loop before the clock runs
    for values in (small, small.tocsc()):
        morans_i(values, SpatialWeights.from_raster(RasterSpec("square", (24, 24), 8.0), small_rc))
    gearys_c(small, SpatialWeights.from_raster(RasterSpec("square", (24, 24), 8.0), small_rc))
    pairs = np.array([[0, 1]])
    graph = sp.csr_matrix(([1.0, 1.0], ([0, 1], [1, 0])), shape=(len(small_rc), len(small_rc)))
    sc.metrics.morans_i(graph, small.T.tocsr().astype(np.float64)[:2])
    autocorrelation(small, pairs, n_perms=1)

    print(
        f"{side} x {side} bins, {len(rc)} of them tissue; {n_vars} genes; {x.nnz / 1e6:.1f} million values; {numba.get_num_threads()} threads"
    )
    weights, *neighbours = timed(lambda: SpatialWeights.from_raster(spec, rc), options.repeats)
    ours, *by_spot = timed(lambda: morans_i(x, SpatialWeights.from_raster(spec, rc)), options.repeats)
    rows = [("stimg, counts by spot (CSR), neighbours included", by_spot), ("  of which neighbours", neighbours)]
    by_gene = x.tocsc()
    few = min(options.repeats, 3)
    rows.append(
        (
            "stimg, counts by gene (CSC), transposition included",
            timed(lambda: morans_i(by_gene, SpatialWeights.from_raster(spec, rc)), few)[1:],
        )
    )
    rows.append(("stimg, Geary's C, neighbours given", timed(lambda: gearys_c(x, weights), few)[1:]))
    order = np.random.default_rng(0).permutation(len(rc))
    shuffled = SpatialWeights.from_pairs(weights_pairs(weights), len(rc), rows=order)
    rows.append(("stimg, one permutation of the bins", timed(lambda: morans_i(x, shuffled), few)[1:]))

    double = x.astype(np.float64)
    reference, *shifts = timed(lambda: shifted_products(double, rc, side), 1)
    rows.append(("scipy, shifted products", shifts))
    worst = np.nanmax(np.abs(reference - ours))

    chosen = np.sort(np.random.default_rng(0).choice(n_vars, min(options.scanpy_genes, n_vars), replace=False))
    upper = weights.upper()
    graph = ((upper + upper.T) * 0.5).tocsr()
    by_row = double[:, chosen].T.tocsr()
    theirs, *loops = timed(lambda: sc.metrics.morans_i(graph, by_row), 1)
    scale = n_vars / len(chosen)
    rows.append((f"scanpy, extrapolated from {len(chosen)} genes ({loops[0]:.2f} s)", [t * scale for t in loops]))
    difference = np.nanmax(np.abs(theirs - ours[chosen]))

    print(f"{'':58s}{'median s':>10s}{'least s':>10s}{'cpu s':>10s}{'wall, to the first row':>24s}")
    for name, (median, least, processor) in rows:
        print(f"{name:58s}{median:10.3f}{least:10.3f}{processor:10.3f}{median / by_spot[0]:23.1f}x")
    print(f"largest difference in I: {worst:.1e} to scipy, {difference:.1e} to scanpy")


def weights_pairs(weights: SpatialWeights) -> np.ndarray:
    """Return the pairs (m, 2) of binary weights."""
    return np.stack([np.repeat(np.arange(weights.n), np.diff(weights.first)), weights.partner], axis=1)


if __name__ == "__main__":
    main()
