"""Retrieval over all pairs of two large embeddings: stimg, numpy, and the matrix product alone, each in a process of its own.

The embeddings are normal, the gallery one half of it that of the queries: of 100,000 pairs the median partner is the 13th of its gallery.

* stimg: ``retrieve``, exact ranks with equal scores counted.
* numpy, count by chunks: float32 products of 1,024 queries and the whole gallery, and how many of them exceed the partner's. Whatever a
  product is rounded to decides, so ranks may be off.
* numpy, sort by chunks: argsort of the same products. On a share of the queries; time is multiplied.
* numpy, whole matrix: all products at once and one argsort, on fewer pairs; time is multiplied by the square of the ratio.
* sgemm alone: the float32 products in the blocks and on the threads that stimg uses, discarded. Nothing that multiplies can be faster.

Times are the least of several runs in turn. Processor time, over all threads, is the one to compare on a machine that does other work too.

    python benchmarks/retrieval.py [--pairs 100000] [--dimensions 128] [--sorted 1024] [--whole 10000] [--quick]
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numba
import numpy as np
from common import save, table

from stimg.metrics import retrieval, retrieve
from stimg.metrics._retrieval_pairs import chunks, run

CHUNK = 1024


def embeddings(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 embeddings of queries and gallery, (n, d) each."""
    rng = np.random.default_rng(0)
    query = rng.standard_normal((n, d), dtype=np.float32)
    noise = rng.standard_normal((n, d), dtype=np.float32)
    noise *= 3.0
    noise += query
    return query, noise


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def stimg_ranks(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    return retrieve(query, gallery).rank


def count_by_chunks(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    q, g, out = unit(query), unit(gallery), np.empty(len(query))
    for start in range(0, len(q), CHUNK):
        scores = q[start : start + CHUNK] @ g.T
        rows = np.arange(len(scores))
        out[start : start + CHUNK] = 1 + (scores > scores[rows, start + rows, None]).sum(axis=1)
    return out


def sort_by_chunks(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    q, g, out = unit(query), unit(gallery), np.empty(len(query))
    for start in range(0, len(q), CHUNK):
        order = np.argsort(-(q[start : start + CHUNK] @ g.T), axis=1)
        out[start : start + CHUNK] = 1 + np.argmax(order == start + np.arange(len(order))[:, None], axis=1)
    return out


def whole_matrix(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    order = np.argsort(-(unit(query) @ unit(gallery).T), axis=1)
    return 1.0 + np.argmax(order == np.arange(len(order))[:, None], axis=1)


def sgemm(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    q, g, columns = unit(query), unit(gallery), retrieval.COLUMNS

    def work(rows: np.ndarray) -> None:
        buffer = np.empty(len(rows) * columns, dtype=np.float32)
        for at in range(0, len(g), columns):
            block = g[at : at + columns]
            np.matmul(rows, block.T, out=buffer[: len(rows) * len(block)].reshape(len(rows), len(block)))

    run(work, chunks(q, CHUNK))
    return np.empty(0)


WAYS = {
    "stimg": stimg_ranks,
    "numpy, count by chunks": count_by_chunks,
    "numpy, sort by chunks": sort_by_chunks,
    "numpy, whole matrix": whole_matrix,
    "sgemm alone": sgemm,
}


def measured(name: str, n_queries: int, n_gallery: int, d: int) -> dict[str, object]:
    """Run one way in this process and return its figures, and a summary of its ranks."""
    query, gallery = embeddings(n_gallery, d)
    if name == "stimg":
        retrieve(query[:64], gallery[:64])  # compiles the loops, or reads them from the cache
    before, cpu, wall = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), time.perf_counter()
    rank = WAYS[name](query[:n_queries], gallery)
    figures = {
        "wall_s": time.perf_counter() - wall,
        "processor_s": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "before_mb": before / 1000,
        "n_queries": n_queries,
        "n_gallery": n_gallery,
    }
    return {**figures, "ranks": {"median": float(np.median(rank)), "recall@5": float(np.mean(rank <= 5))} if len(rank) else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--sorted", type=int, default=1024, help="queries given to numpy's sort by chunks")
    parser.add_argument("--whole", type=int, default=10_000, help="pairs given to numpy's whole matrix")
    parser.add_argument("--repeats", type=int, default=3, help="of stimg, the count by chunks and sgemm alone, in turn")
    parser.add_argument("--quick", action="store_true", help="10,000 pairs")
    parser.add_argument("--only", nargs=3, metavar=("WAY", "QUERIES", "GALLERY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        name, n_queries, n_gallery = options.only
        print(json.dumps(measured(name, int(n_queries), int(n_gallery), options.dimensions)))
        return
    n = 10_000 if options.quick else options.pairs
    some, few = min(options.sorted, n), min(options.whole, n)
    sizes = {"numpy, sort by chunks": (some, n, n / some), "numpy, whole matrix": (few, few, (n / few) ** 2)}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for repeat in range(options.repeats):
        for name in WAYS:
            if repeat and name in sizes:
                continue
            n_queries, n_gallery, _ = sizes.get(name, (n, n, 1.0))
            command = [sys.executable, __file__, "--only", name, str(n_queries), str(n_gallery), "--dimensions", str(options.dimensions)]
            runs[name].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))

    factors = {name: sizes.get(name, (n, n, 1.0))[2] for name in WAYS}
    wall, processor = ({name: factors[name] * min(each[key] for each in runs[name]) for name in WAYS} for key in ("wall_s", "processor_s"))
    rows = []
    for name, (first, *_) in runs.items():
        taken = "" if factors[name] == 1 else f", {first['n_queries']:,} × {first['n_gallery']:,} taken {factors[name]:,.0f} times"
        times = [f"{wall[name]:.1f}", f"{processor[name]:.1f}", f"{max(each['peak_mb'] for each in runs[name]):.0f}"]
        rows.append([name + taken, *times, f"{wall[name] / wall['stimg']:.2f}", f"{processor[name] / processor['stimg']:.2f}"])
    print(f"{n:,} × {n:,} pairs, {options.dimensions} dimensions, {numba.get_num_threads()} threads\n")
    print(table(["", "wall, s", "processor, s", "peak memory, MB", "wall, to stimg", "processor, to stimg"], rows))
    share = {"wall": wall["sgemm alone"] / wall["stimg"], "processor": processor["sgemm alone"] / processor["stimg"]}
    print(f"\nThe product alone takes {share['wall']:.0%} of stimg's wall time and {share['processor']:.0%} of its processor time.")
    print(f"ranks: { ({name: each[0]['ranks'] for name, each in runs.items() if each[0]['ranks']}) }")
    protocol = {"pairs": n, "dimensions": options.dimensions, "threads": numba.get_num_threads(), "repeats": options.repeats}
    print(save("retrieval", protocol, {"runs": runs, "wall_s": wall, "processor_s": processor, "share_of_product": share}))


if __name__ == "__main__":
    main()
