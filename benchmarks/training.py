"""Training samples per second of the sparse against the dense path, as the number of channels grows.

Protocol. One simulated Visium HD section (8 µm bins, about ten counts a bin), crops of 16 x 16 with all genes of the vocabulary, batches of 16,
the same network; forward, backward and optimiser step, batches already in memory; one thread, five steps after a warm-up, the two paths in
turn, and the median. Peak memory is that of the process, measured in a process of its own for each row.

    python benchmarks/training.py [--quick]
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
from common import save, table


def measure(n_genes: int, path: str, steps: int) -> dict:
    """Return samples per second and peak memory of one path."""
    import torch

    import stimg
    from stimg.data import CropDataset, libraries
    from stimg.data.statistics import gene_statistics
    from stimg.image import CropSpec
    from stimg.nn import MaskSpec, STMAEModule
    from stimg.nn.stmae import Offsets

    torch.set_num_threads(1)
    torch.manual_seed(0)
    adata = stimg.datasets.simulate(
        technology="visium_hd", shape=(96, 96), n_genes=n_genes, counts=stimg.datasets.CountOptions(depth=10.0), rng=0
    )
    stimg.pp.rasterize(adata)
    found = libraries(adata, vocabulary=adata.var_names)
    dataset = CropDataset(found, CropSpec((16, 16)), rule="all", seed=0)
    batches = [dataset.__getitems__([(0, 16 * i + j) for j in range(16)]) for i in range(2)]
    statistics = gene_statistics(found, n_genes)
    offsets = Offsets(torch.from_numpy(statistics.mean), torch.from_numpy(statistics.composition))
    module = STMAEModule(n_genes, n_latent=64, n_layers=2, mask=MaskSpec(scope="crop"), sparse_above=0 if path == "sparse" else 10**9)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for step in range(steps + 1):
        start = time.perf_counter()
        loss = module(batches[step % 2], offsets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return {
        "genes": n_genes,
        "path": path,
        "samples_per_second": 16 / float(np.median(seconds[1:])),
        "added_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "nonzeros_per_crop": len(batches[0]["value"]) / 16,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    steps = 2 if args.quick else 5
    if args.one:
        genes, path = args.one.split(",")
        print(json.dumps(measure(int(genes), path, steps)))
        return
    rows = []
    for genes in (128, 512) if args.quick else (128, 512, 2048, 8192, 18000):
        for path in ("dense", "sparse"):
            done = subprocess.run(
                [sys.executable, __file__, "--one", f"{genes},{path}", *(["--quick"] if args.quick else [])], capture_output=True, text=True
            )
            if done.returncode:
                rows.append(
                    {
                        "genes": genes,
                        "path": path,
                        "failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"ended with {done.returncode}",
                    }
                )
            else:
                rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(rows[-1], flush=True)
    by = {(r["genes"], r["path"]): r for r in rows}
    lines = []
    for genes in dict.fromkeys(r["genes"] for r in rows):
        dense, sparse = by[genes, "dense"], by[genes, "sparse"]
        if "failed" in dense or "failed" in sparse:
            lines.append([genes, dense.get("failed", "ran"), sparse.get("failed", "ran"), "", "", ""])
            continue
        ratio = sparse["samples_per_second"] / dense["samples_per_second"]
        lines.append(
            [
                genes,
                f"{dense['samples_per_second']:.1f}",
                f"{sparse['samples_per_second']:.1f}",
                f"{ratio:.2f}",
                f"{dense['added_mb']:.0f}",
                f"{sparse['added_mb']:.0f}",
            ]
        )
    print(table(["channels", "dense, crops/s", "sparse, crops/s", "ratio", "dense, added MB", "sparse, added MB"], lines))
    print("written to", save("training", {"script": "benchmarks/training.py", "arguments": vars(args)}, rows))


if __name__ == "__main__":
    main()
