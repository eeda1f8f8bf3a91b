"""Rates of reading crops: the store of ``stimg.image`` against other layouts, in one run on one made-up slide.

``python benchmarks/crops.py`` takes a slide of 2400 x 2400 bins with 18,000 genes (about 52 million non-zeros, 3 GB of memory); ``--quick`` a small
one. Prints a table and writes ``benchmarks/results/crops.json``. Rates are of random windows with caches warm; ratios are within the run.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import scipy.sparse as sp
from numba import njit

from stimg.image import DenseBuffer, RasterStore, Workspace

CHILD = "--disk-child"


@njit(cache=True)
def _slide(rng, side, n_genes, mean, cumulative):
    """Draw one row of CSR per bin: Poisson counts with a smooth depth, genes from one of two spatially varying profiles."""
    room = int(side * side * mean * 1.3) + 1000
    indices, data = np.empty(room, np.int32), np.empty(room, np.float32)
    indptr = np.zeros(side * side + 1, np.int64)
    n = 0
    bag = np.empty(4096, np.int32)
    for r in range(side):
        for c in range(side):
            wave = np.sin(r / side * 9.0) * np.cos(c / side * 7.0)
            count = min(rng.poisson(mean * (1.0 + 0.6 * wave)), 4000)
            for i in range(count):
                profile = 1 if rng.random() < 0.5 + 0.5 * wave else 0
                bag[i] = np.searchsorted(cumulative[profile], rng.random() * cumulative[profile, n_genes - 1])
            ordered = np.sort(bag[:count])
            for i in range(count):
                if i and ordered[i] == ordered[i - 1]:
                    data[n - 1] += 1
                else:
                    indices[n], data[n] = ordered[i], 1
                    n += 1
            indptr[r * side + c + 1] = n
    return indices[:n].copy(), data[:n].copy(), indptr


def slide(side: int, n_genes: int, mean: float, seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray]:
    """Return counts of a side x side slide in raster order, and the (row, column) of each bin."""
    rng = np.random.default_rng(seed)
    abundance = np.exp(rng.normal(0, 1.8, n_genes))
    profiles = np.stack([abundance * np.exp(rng.normal(0, 0.7, n_genes)) for _ in range(2)])
    indices, data, indptr = _slide(rng, side, n_genes, mean, np.cumsum(profiles, axis=1))
    matrix = sp.csr_matrix((data, indices, indptr.astype(np.int32)), shape=(side * side, n_genes))
    matrix.has_canonical_format = True
    return matrix, np.stack(np.divmod(np.arange(side * side), side), axis=1)


@njit(cache=True, nogil=True)
def _scan(indptr, indices, data, side, top, left, height, width, lookup, out_pixel, out_gene, out_value):
    """Bin-major reading: every non-zero of every bin of the window is looked up in a table of wanted genes."""
    n = 0
    for y in range(height):
        for x in range(width):
            row = (top + y) * side + left + x
            for e in range(indptr[row], indptr[row + 1]):
                k = lookup[indices[e]]
                if k >= 0:
                    out_pixel[n], out_gene[n], out_value[n] = y * width + x, k, data[e]
                    n += 1
    return n


@njit(cache=True, nogil=True)
def _scan_dense(indptr, indices, data, side, top, left, height, width, lookup, out):
    for y in range(height):
        for x in range(width):
            row = (top + y) * side + left + x
            for e in range(indptr[row], indptr[row + 1]):
                k = lookup[indices[e]]
                if k >= 0:
                    out[k, y, x] = data[e]


class Rate(NamedTuple):
    """Crops per second of wall time, and per second of processor time (which other programs on the machine disturb less)."""

    wall: float
    core: float


def rate(read: Callable[[int], int], seconds: float) -> Rate:
    """Return the rate of ``read(i)``, which reads some crops and returns how many; the first calls are not timed."""
    for i in range(3):
        read(i)
    begin, used, done, i = time.perf_counter(), time.process_time(), 0, 3
    while time.perf_counter() - begin < seconds:
        done += read(i)
        i += 1
    return Rate(done / (time.perf_counter() - begin), done / (time.process_time() - used))


def once(read: Callable[[int], int]) -> Rate:
    """Return the rate of one single call."""
    begin, used = time.perf_counter(), time.process_time()
    done = read(0)
    return Rate(done / (time.perf_counter() - begin), done / (time.process_time() - used))


def places(side: int, crop: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, side - crop + 1, n), rng.integers(0, side - crop + 1, n)


def rates_of_store(store: RasterStore, crop: int, genes: np.ndarray, seconds: float, threads: int, batch: int = 32) -> dict[str, Rate]:
    """Return crops per second of the store, sparse and dense."""
    tops, lefts = places(store.shape[0], crop, 20_000, 1)
    spaces, buffers = Workspace(), DenseBuffer(np.float32)
    bytes_, few = DenseBuffer(np.uint8), min(batch, 8)

    def pick(i: int, n: int) -> slice:
        return slice(i * n % (len(tops) - n), i * n % (len(tops) - n) + n)

    def sparse(i: int) -> int:
        at = pick(i, batch)
        store.windows(tops[at], lefts[at], crop, crop, genes, threads=threads, workspace=spaces)
        return batch

    def by_pixel(i: int) -> int:
        at = pick(i, batch)
        store.windows(tops[at], lefts[at], crop, crop, genes, threads=threads, workspace=spaces, order="pixel")
        return batch

    def dense(i: int) -> int:
        at = pick(i, few)
        store.windows_dense(tops[at], lefts[at], crop, crop, genes, out=buffers, threads=threads)
        return few

    def dense_bytes(i: int) -> int:
        at = pick(i, few)
        store.windows_dense(tops[at], lefts[at], crop, crop, genes, out=bytes_, clip=True, threads=threads)
        return few

    def single(i: int) -> int:
        store.window(int(tops[i % len(tops)]), int(lefts[i % len(tops)]), crop, crop, genes, workspace=spaces)
        return 1

    found = {"sparse": rate(sparse, seconds), "sparse, by pixel": rate(by_pixel, seconds)}
    found |= {"dense float32": rate(dense, seconds), "dense uint8": rate(dense_bytes, seconds)}
    if threads == 1:
        found["sparse, one window a call"] = rate(single, seconds)
    return found


def rates_of_others(matrix: sp.csr_matrix, side: int, crop: int, genes: np.ndarray, seconds: float) -> dict[str, Rate]:
    """Return crops per second, on one core, of the layouts that the store is compared with."""
    tops, lefts = places(side, crop, 20_000, 1)
    lookup = np.full(matrix.shape[1], -1, np.int32)
    lookup[genes] = np.arange(genes.size)
    room = crop * crop * genes.size
    pixel, gene, value = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.float32)
    dense = np.zeros((genes.size, crop, crop), np.float32)
    csr = (matrix.indptr, matrix.indices, matrix.data)
    planes = matrix[:, genes].tocsc()

    def scan(i: int) -> int:
        _scan(*csr, side, tops[i], lefts[i], crop, crop, lookup, pixel, gene, value)
        return 1

    def scan_dense(i: int) -> int:
        dense[...] = 0
        _scan_dense(*csr, side, tops[i], lefts[i], crop, crop, lookup, dense)
        return 1

    def rows_then_columns(i: int) -> int:
        rows = ((tops[i] + np.arange(crop)) * side)[:, None] + lefts[i] + np.arange(crop)
        matrix[rows.reshape(-1)][:, genes]
        return 1

    def whole_planes(i: int) -> int:
        for k in range(genes.size):
            plane = np.zeros(side * side, np.float32)
            head, tail = planes.indptr[k], planes.indptr[k + 1]
            plane[planes.indices[head:tail]] = planes.data[head:tail]
            dense[k] = plane.reshape(side, side)[tops[i] : tops[i] + crop, lefts[i] : lefts[i] + crop]
        return 1

    def fill(i: int) -> int:
        dense[...] = 0
        return 1

    found = {"bin-major scan, sparse": rate(scan, seconds), "bin-major scan, dense": rate(scan_dense, seconds)}
    found["scipy rows then columns"] = rate(rows_then_columns, seconds)
    found["one plane per gene (rasterize_bins)"] = once(whole_planes)
    found["zero-filling the dense array alone"] = rate(fill, seconds)
    return found


def disk_child(path: str, crop: int, panels: str, seconds: float) -> None:
    """Print the rates and the resident memory of a process that opens the store from disk and does nothing else."""
    process = psutil.Process()
    before = process.memory_info().rss
    begin = time.perf_counter()
    store = RasterStore.open(path, verify=False)
    opened = time.perf_counter() - begin
    begin = time.perf_counter()
    RasterStore.open(path)
    found: dict[str, object] = {"open, s": opened, "open with checksums, s": time.perf_counter() - begin}
    for name, genes in json.loads(panels).items():
        found[name] = rates_of_store(store, crop, np.asarray(genes), seconds, threads=2)
    memory = process.memory_info()
    found |= {"resident MB": memory.rss / 1e6, "resident MB before opening": before / 1e6, "shared MB (mapped file)": memory.shared / 1e6}
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a 400 x 400 slide with 3,000 genes, and short timings")
    parser.add_argument("--blocks", type=int, nargs="*", default=[], help="also measure these block edges")
    parser.add_argument("--seconds", type=float, default=None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "crops.json")
    parser.add_argument(CHILD, nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    side, n_genes, crop, chosen = (400, 3000, 64, 100) if options.quick else (2400, 18_000, 112, 300)
    seconds = options.seconds or (0.2 if options.quick else 2.0)
    if options.disk_child:
        disk_child(options.disk_child[0], crop, Path(options.disk_child[1]).read_text(), seconds)
        return
    matrix, rc = slide(side, n_genes, 10.0)
    total = np.asarray(matrix.sum(axis=0)).ravel()
    panels = {
        f"{chosen} random genes": np.random.default_rng(2).choice(n_genes, chosen, replace=False),
        f"{chosen} highest genes": np.argsort(-total)[:chosen].copy(),
    }
    begin = time.perf_counter()
    store = RasterStore.from_csr(matrix, rc, (side, side))
    built = time.perf_counter() - begin
    report: dict[str, object] = {
        "slide": {"side": side, "genes": n_genes, "non-zeros": matrix.nnz, "counts per bin": float(matrix.sum() / side**2), "crop": crop},
        "machine": {"cpu": platform.processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "store": {"block": store.block, "build s": built, "memory MB": store.nbytes / 1e6, "csr MB": (matrix.nnz * 8 + side**2 * 4) / 1e6},
    }
    rates: dict[str, dict[str, Rate]] = {}
    for name, genes in panels.items():
        found = {f"store, {k}, 1 thread": v for k, v in rates_of_store(store, crop, genes, seconds, 1).items()}
        found |= {f"store, {k}, 2 threads": v for k, v in rates_of_store(store, crop, genes, seconds, 2).items()}
        found |= {f"{k}, 1 thread": v for k, v in rates_of_others(matrix, side, crop, genes, seconds).items()}
        for block in options.blocks:
            other = RasterStore.from_csr(matrix, rc, (side, side), block=block)
            more = rates_of_store(other, crop, genes, seconds, 1)
            found |= {f"store, {k}, 1 thread, block {block} ({other.nbytes / 1e6:.0f} MB)": v for k, v in more.items()}
        rates[name] = found
    report["crops per second"] = rates
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "slide.zarr")
        begin = time.perf_counter()
        store.save(path)
        report["save s"] = time.perf_counter() - begin
        listed = Path(folder) / "panels.json"
        listed.write_text(json.dumps({name: genes.tolist() for name, genes in panels.items()}))
        command = [sys.executable, __file__, CHILD, path, str(listed), "--seconds", str(seconds), *(["--quick"] if options.quick else [])]
        report["disk"] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    for name, found in rates.items():
        base = found["bin-major scan, sparse, 1 thread"].core
        sys.stdout.write(f"\n{name:62s}{'wall':>12s}{'per core':>14s}\n")
        sys.stdout.writelines(f"  {k:60s}{v.wall:11,.0f}/s{v.core:12,.0f}/s {v.core / base:8.2f} x scan\n" for k, v in found.items())
    sys.stdout.write("\n" + json.dumps({k: v for k, v in report.items() if k != "crops per second"}, indent=1) + "\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
