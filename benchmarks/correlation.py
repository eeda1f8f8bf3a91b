"""Pearson's r of every gene over half a million spots: stimg beside straightforward numpy and scipy, each in a process of its own on the same data.

Run ``python benchmarks/correlation.py`` (500,000 spots × 18,000 genes, about 50 million stored values in truth and prediction each, a minute or
two, 5 GB of disk) or ``python benchmarks/correlation.py --quick``. Set NUMBA_NUM_THREADS for the number of cores. Peak memory is that of the
whole process, the matrices included, and is read from /proc, hence on Linux alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from common import save

from stimg.metrics import per_gene_pearson, per_gene_spearman, per_spot_pearson

GENES = 64
"""Genes that the numpy versions make dense at a time."""


def write_counts(folder: Path, name: str, n_obs: int, n_genes: int, density: float, seed: int) -> int:
    """Write random counts (CSR float32), genes differing in their means as measured ones do; return the number of stored values."""
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, n_genes + 1) ** 0.7
    cdf = np.cumsum(weight[np.random.default_rng(0).permutation(n_genes)])
    cdf /= cdf[-1]
    draws = round(1.05 * density * n_genes)
    parts = []
    for start in range(0, n_obs, 20_000):
        n = min(20_000, n_obs - start)
        genes = np.minimum(np.searchsorted(cdf, rng.random(n * draws)), n_genes - 1)
        part = sp.csr_matrix((np.ones(n * draws, np.float32), genes, np.arange(0, n * draws + 1, draws)), shape=(n, n_genes))
        part.sum_duplicates()
        parts.append(part)
    x = sp.vstack(parts, format="csr")
    for field in ("indptr", "indices", "data"):
        values = getattr(x, field)
        np.save(folder / f"{name}_{field}.npy", values.astype(np.int32) if field != "data" else values)
    return x.nnz


def write_map(folder: Path, n_obs: int, n_genes: int) -> None:
    """Write a dense prediction, float32 (n_obs, n_genes)."""
    rng = np.random.default_rng(3)
    x = np.lib.format.open_memmap(folder / "dense.npy", "w+", np.float32, (n_obs, n_genes))
    for start in range(0, n_obs, 2000):
        x[start : start + 2000] = rng.random((min(2000, n_obs - start), n_genes), dtype=np.float32)


def read(folder: Path, name: str, n_genes: int) -> sp.csr_matrix:
    data, indices, indptr = (np.load(folder / f"{name}_{field}.npy") for field in ("data", "indices", "indptr"))
    return sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_genes))


def dense_columns(x: Any, y: Any, genes: np.ndarray) -> np.ndarray:
    """Return Pearson's r of ``genes``, which are made dense some at a time, in double precision."""
    out = []
    for start in range(0, len(genes), GENES):
        here = genes[start : start + GENES]
        p, q = (np.asarray(m[:, here].toarray() if sp.issparse(m) else m[:, here], dtype=np.float64) for m in (x, y))
        p, q = p - p.mean(axis=0), q - q.mean(axis=0)
        out.append((p * q).sum(axis=0) / np.sqrt((p * p).sum(axis=0) * (q * q).sum(axis=0)))
    return np.concatenate(out)


def sums_of_products(x: sp.csr_matrix, y: sp.csr_matrix) -> np.ndarray:
    """Return Pearson's r of every gene from sums of element-wise products, in double precision."""
    n = x.shape[0]
    x, y = x.astype(np.float64), y.astype(np.float64)
    sx, sy, xx, yy, xy = (np.asarray(m.sum(axis=0)).ravel() for m in (x, y, x.multiply(x), y.multiply(y), x.multiply(y)))
    with np.errstate(invalid="ignore"):
        return (xy - sx * sy / n) / np.sqrt((xx - sx**2 / n) * (yy - sy**2 / n))


def timed(call: Callable[[], Any], repeats: int) -> tuple[Any, float, float]:
    """Return (result, median wall time, least processor time over all cores), in seconds."""
    seconds, processor = [], []
    for _ in range(repeats):
        start, begun = time.perf_counter(), time.process_time()
        out = call()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - begun)
    return out, statistics.median(seconds), min(processor)


def peak_mb(*, reset: bool = False) -> float:
    """Return the peak resident memory of this process so far, or begin anew and return what is resident now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def chosen(n_genes: int, n: int) -> np.ndarray:
    return np.sort(np.random.default_rng(0).choice(n_genes, min(n, n_genes), replace=False))


def measure(case: str, folder: Path, n_genes: int, n_chosen: int, repeats: int) -> dict[str, Any]:
    """Return wall and processor time in seconds, peak memory in MB, and r of the chosen genes."""
    genes = chosen(n_genes, n_chosen)
    x = read(folder, "truth", n_genes)
    if "map" in case:
        y: Any = np.load(folder / "dense.npy", mmap_mode="r")
        x = x[: len(y)]
    else:
        y = read(folder, "predicted", n_genes)
    few_x, few_y = x[:50], y[:50]
    if "columns" in case:
        x, y, few_x, few_y = (m.tocsc() for m in (x, y, few_x, few_y))
    before = peak_mb(reset=True)
    extra = {}
    if case.startswith("stimg"):
        score = {"spearman": per_gene_spearman, "spots": per_spot_pearson}.get(case.split()[-1], per_gene_pearson)
        score(few_x, few_y)  # compiles
        out, wall, processor = timed(lambda: score(x, y), repeats)
        r = out.values[genes] if score is per_gene_pearson else None
    elif case.startswith("scipy"):
        out, wall, processor = timed(lambda: np.nan_to_num(sums_of_products(x, y)), 1)
        r = out[genes]
    else:
        (x, y), wall, processor = timed(lambda: tuple(m.tocsc() if sp.issparse(m) else m for m in (x, y)), 1)
        r, dense_wall, dense_processor = timed(lambda: np.nan_to_num(dense_columns(x, y, genes)), 1)
        extra = {"measured_wall_s": wall + dense_wall}
        scale = n_genes / len(genes)
        wall, processor = wall + scale * dense_wall, processor + scale * dense_processor
    return {
        "case": case,
        "wall_s": wall,
        "processor_s": processor,
        "peak_mb": peak_mb(),
        "before_mb": before,
        "r": None if r is None else r.tolist(),
        **extra,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 spots and 2,000 genes")
    parser.add_argument("--n-obs", type=int, default=500_000)
    parser.add_argument("--n-genes", type=int, default=18_000)
    parser.add_argument("--density", type=float, default=50e6 / (500_000 * 18_000), help="share of stored values")
    parser.add_argument("--map-obs", type=int, default=50_000, help="spots of the dense, memory-mapped prediction; 0: leave it out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--numpy-genes", type=int, default=256, help="genes given to numpy; its time is extrapolated to all genes")
    parser.add_argument("--folder", type=Path, help="where the matrices are written (default: a temporary folder)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.folder, options.n_genes, options.numpy_genes, options.repeats)))
        return
    if options.quick:
        options.n_obs, options.n_genes, options.map_obs, options.numpy_genes = 20_000, 2000, 5000, 128
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        stored = [
            write_counts(folder, which, options.n_obs, options.n_genes, options.density, i)
            for i, which in enumerate(("truth", "predicted"), 1)
        ]
        cases = ["stimg", "stimg columns", "stimg spearman", "stimg spots", "scipy", "numpy"]
        if options.map_obs:
            write_map(folder, options.map_obs, options.n_genes)
            cases += ["stimg map", "numpy map"]
        given = [f"--{k.replace('_', '-')}={getattr(options, k)}" for k in ("n_genes", "numpy_genes", "repeats")]
        found = {}
        for case in cases:
            command = [sys.executable, __file__, f"--case={case}", f"--folder={folder}", *given]
            found[case] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    worst = {
        case: float(np.max(np.abs(np.subtract(found[case]["r"], found["numpy map" if "map" in case else "numpy"]["r"]))))
        for case in ("stimg", "stimg columns", "scipy", "stimg map")
        if case in found
    }
    few = min(options.numpy_genes, options.n_genes)
    what = {
        "stimg": "per_gene_pearson, rows (CSR) in both",
        "stimg columns": "per_gene_pearson, columns (CSC) in both",
        "stimg spearman": "per_gene_spearman, rows (CSR) in both",
        "stimg spots": "per_spot_pearson, rows (CSR) in both",
        "scipy": "scipy, sums of element-wise products",
        "numpy": f"numpy, {GENES} dense columns at a time, extrapolated from {few} genes",
        "stimg map": f"per_gene_pearson, CSR and dense float32 map, {options.map_obs:,} spots",
        "numpy map": f"numpy on the same, {GENES} columns at a time, extrapolated from {few} genes",
    }
    print(
        f"{options.n_obs:,} spots x {options.n_genes:,} genes; {stored[0] / 1e6:.1f} and {stored[1] / 1e6:.1f} million stored values; peaks with the matrices\n"
    )
    print("| | wall, s | processor, s | ratio of wall times | peak, MB | of which matrices, MB |\n|---|---:|---:|---:|---:|---:|")
    for case, row in found.items():
        ratio = row["wall_s"] / found["stimg map" if "map" in case else "stimg"]["wall_s"]
        print(
            f"| {what[case]} | {row['wall_s']:.2f} | {row['processor_s']:.2f} | {ratio:.1f} | {row['peak_mb']:.0f} | {row['before_mb']:.0f} |"
        )
    print(f"\nlargest differences in r of {few} genes to numpy: " + ", ".join(f"{case} {v:.1e}" for case, v in worst.items()))
    protocol = {k: v for k, v in vars(options).items() if k not in ("case", "folder")} | {"stored": stored}
    values = {case: {k: v for k, v in row.items() if k not in ("r", "case")} for case, row in found.items()}
    save("correlation", protocol, {"cases": values, "largest_difference": worst})


if __name__ == "__main__":
    main()
