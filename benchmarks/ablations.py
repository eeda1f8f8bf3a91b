"""The paper's two claims as ablations on DLPFC: what crops add to single spots, and what the channel rule matters.

Protocol. DLPFC 151673; vocabulary: 512 highly variable genes of the section (no label is used). Every row trains
a model that differs from the first in the fields named, for the same number of passes over the section and with the same number of spots a
step; nothing is held out of the self-supervised training. Score: the probes of ``probes.py`` on the frozen embedding, (a) random 20 % of the
spots, (b) contiguous blocks with a margin; accuracy, mean and standard deviation over probe seeds and sections. Beside them: PCA-50 of the
same genes, and the same averaged over the neighbours.

    python benchmarks/ablations.py [--epochs 25] [--sections 151673,151674] [--seeds 5] [--quick]
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from common import save, table
from probes import block_split, log_values, probe, smooth
from sklearn.decomposition import PCA

import stimg

ROWS: dict[str, dict] = {
    "default (crops 16 x 16, all genes)": {},
    "single spots": {"crop_size": (1, 1)},
    "crops 4 x 4": {"crop_size": (4, 4)},
    "crops 8 x 8": {"crop_size": (8, 8)},
    "crops 24 x 24": {"crop_size": (24, 24)},
    "128 channels, variance-weighted": {"rule": "weighted", "n_channels": 128},
    "128 channels, uniform": {"rule": "uniform", "n_channels": 128},
    "128 channels, highest variance": {"rule": "variance", "n_channels": 128},
    "single spots, 128 channels, variance-weighted": {"crop_size": (1, 1), "rule": "weighted", "n_channels": 128},
    "masks per spot": {"mask_scope": "cell"},
    "masks per crop": {"mask_scope": "crop"},
    "random start": {"init": "random"},
    "50 axes": {"n_axes": 50},
    "spatial regulariser 0.001": {"smooth_weight": 0.001},
    "Poisson likelihood": {"likelihood": "poisson"},
    "released network, 128 channels": {
        "variant": "released",
        "rule": "weighted",
        "n_channels": 128,
        "n_latent": 64,
        "n_layers": 2,
        "n_decoder_layers": 1,
        "n_heads": 4,
    },
}


def report(rows: list[dict]) -> str:
    """Return a table: accuracy and ARI (mean and standard deviation over probe seeds), and the accuracy minus the first model's, seed by seed."""
    seeds = sorted({r["seed"] for r in rows})
    sections = {r["section"] for r in rows}

    def scores(name: str, split: str, what: str) -> np.ndarray:
        own = [r for r in rows if r["row"] == name and r["split"] == split]
        return np.array([np.mean([r[what] for r in own if r["seed"] == s]) for s in seeds])

    names = list(dict.fromkeys(r["row"] for r in rows))
    first = next((n for n in names if n in ROWS), names[0])
    lines = []
    for name in names:
        cells = []
        for split in ("random", "blocks"):
            accuracy, ari = scores(name, split, "accuracy"), scores(name, split, "ari")
            cells += [f"{v.mean():.3f} ± {v.std(ddof=1):.3f}" for v in (accuracy, ari)]
            difference = accuracy - scores(first, split, "accuracy")
            cells.append("" if name == first else f"{difference.mean():+.3f} ± {difference.std(ddof=1):.3f}")
        seconds = sum(r["seconds"] for r in rows if r["row"] == name and r["split"] == "blocks") / len(seeds) / len(sections)
        lines.append([name, *cells, f"{seconds:.0f}"])
    header = ["model", "random 20 %: accuracy", "ARI", "difference", "blocks 20 %: accuracy", "ARI", "difference", "seconds"]
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sections", default="151673")
    parser.add_argument("--rows", default="", help="numbers of the rows to run, such as 0,1,9")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--name", default="ablations")
    parser.add_argument("--report", default=None, help="a results file: print its table and train nothing")
    args = parser.parse_args()
    if args.report:
        print(report(json.loads(Path(args.report).read_text())["values"]))
        return
    if args.quick:
        args.epochs, args.seeds, args.sections = 2, 2, "151673"
    warnings.filterwarnings("ignore", module="lightning")
    chosen = list(ROWS) if not args.rows else [list(ROWS)[int(i)] for i in args.rows.split(",")]
    rows = []

    def score(name: str, section: str, adata, x: np.ndarray, y: np.ndarray, seconds: float) -> None:
        for seed in range(args.seeds):
            train = np.zeros(len(y), dtype=bool)
            train[np.random.default_rng(seed).choice(len(y), len(y) // 5, replace=False)] = True
            for split, (first, second) in {"random": (train, ~train), "blocks": block_split(adata, seed)}.items():
                accuracy, ari, _ = probe(x, y, first, second, seed)
                rows.append(
                    {"row": name, "section": section, "split": split, "seed": seed, "accuracy": accuracy, "ari": ari, "seconds": seconds}
                )
        own = [r for r in rows if r["row"] == name and r["section"] == section]
        print(
            section,
            name,
            {s: round(float(np.mean([r["accuracy"] for r in own if r["split"] == s])), 3) for s in ("random", "blocks")},
            f"{seconds:.0f} s",
            flush=True,
        )

    for section in args.sections.split(","):
        adata = stimg.datasets.dlpfc(section)
        stimg.pp.rasterize(adata)
        adata = adata[adata.obs["label"].notna().to_numpy()].copy()
        y = adata.obs["label"].astype(str).to_numpy()
        stimg.pp.select_genes(adata, rule="highly_variable", n=512)
        values = log_values(adata, adata.var_names[adata.var["stimg_channel"]].tolist())
        scores = PCA(50, random_state=0).fit_transform(values)
        score("PCA-50", section, adata, scores, y, 0.0)
        score("PCA-50, neighbours averaged", section, adata, smooth(adata, scores), y, 0.0)
        stimg.model.STMAE.setup_anndata(adata)
        for name in chosen:
            options = ROWS[name]
            model = stimg.model.STMAE(adata, **options)
            start = time.perf_counter()
            batch = max(1, round(8 * 256 / (model.crop.size[0] * model.crop.size[1])))
            model.train(args.epochs, validation=None, batch_size=batch, enable_progress_bar=False)
            score(name, section, adata, model.get_latent_representation(), y, time.perf_counter() - start)
    print(report(rows))
    print("written to", save(args.name, {"script": "benchmarks/ablations.py", "arguments": vars(args)}, rows))


if __name__ == "__main__":
    main()
