"""The paper's two claims as ablations on DLPFC: what crops add to single spots, and what the channel rule matters.

Vocabulary: 512 highly variable genes of the section (no label is used). Every row trains a model that differs from the first in the fields named,
for the same number of passes over the section and with the same number of spots a step; nothing is held out of the self-supervised training. Score:
the MLP probe of the protocols ``domains-random`` (a random 20 % of the spots, which leaks, as the report says) and ``domains`` (contiguous blocks
with a margin) through ``stimg.bench.run``; mean and standard deviation over divisions of the section. Beside them: PCA-50 of the same genes, and the
same averaged over the neighbours.

    python benchmarks/ablations.py [--epochs 25] [--sections 151673,151674] [--seeds 5] [--quick]
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from common import RESULTS, table
from sklearn.decomposition import PCA

import stimg
from stimg.bench import Prediction, Report
from stimg.bench.methods.labels import N_SHOWN, RADIUS, neighbourhood, ranked_genes
from stimg.bench.protocols.domains import EmbeddingTask
from stimg.bench.values import log_values

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


Embedding = Callable[[EmbeddingTask, np.random.Generator], Any]


def components(task: EmbeddingTask, *, averaged: bool) -> dict[str, np.ndarray]:
    """Principal components of the 512 genes, or their mean over the neighbours."""
    (adata,) = task.test
    scores = PCA(50, svd_solver="covariance_eigh").fit_transform(log_values(adata, genes=ranked_genes(task)[:N_SHOWN]))
    return {task.fold: neighbourhood(adata, RADIUS) @ scores if averaged else scores}


def stmae(options: dict[str, Any], epochs: int) -> Embedding:
    """Return a method that trains STMAE with these options once for each section, for both protocols."""
    trained: dict[str, Prediction] = {}

    def embed(task: EmbeddingTask, rng: np.random.Generator) -> Prediction:
        if task.fold not in trained:
            (adata,) = task.test
            stimg.model.STMAE.setup_anndata(adata)
            model = stimg.model.STMAE(adata, ranked_genes(task)[:N_SHOWN], **options)
            batch = max(1, round(8 * 256 / (model.crop.size[0] * model.crop.size[1])))
            model.train(epochs, validation=None, batch_size=batch, enable_progress_bar=False)
            trained[task.fold] = Prediction({task.fold: model.get_latent_representation()}, (model,))
        return trained[task.fold]

    return embed


def summary(reports: dict[str, Report], names: Sequence[str], first: str) -> str:
    """Return a table: accuracy and ARI (mean and standard deviation over divisions), and the accuracy minus the first model's, draw by draw."""
    scores = {split: r.scores().groupby(["method", "draw"])[["accuracy", "ari"]].mean() for split, r in reports.items()}
    costs = [c for r in reports.values() for c in r.data["cost"]]
    lines = []
    for name in names:
        cells = []
        for found in scores.values():
            difference = found.loc[name, "accuracy"] - found.loc[first, "accuracy"]
            cells += [f"{v.mean():.3f} ± {v.std():.3f}" for v in (found.loc[name, "accuracy"], found.loc[name, "ari"])]
            cells.append("" if name == first else f"{difference.mean():+.3f} ± {difference.std():.3f}")
        lines.append([name, *cells, f"{max(c['seconds'] for c in costs if c['method'] == name):.0f}"])
    return table(["model", *(f"{split}: {c}" for split in scores for c in ("accuracy", "ARI", "difference")), "seconds"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=5, help="divisions of each section")
    parser.add_argument("--sections", default="151673")
    parser.add_argument("--rows", default="", help="numbers of the rows to run, such as 0,1,9")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--name", default="ablations", help="folder in benchmarks/results; a run that was interrupted goes on")
    args = parser.parse_args()
    if args.quick:
        args.epochs, args.seeds, args.sections = 2, 2, "151673"
    warnings.filterwarnings("ignore", module="lightning")
    chosen = list(ROWS) if not args.rows else [list(ROWS)[int(i)] for i in args.rows.split(",")]
    methods: dict[str, Embedding] = {
        "PCA-50": lambda task, rng: components(task, averaged=False),
        "PCA-50, neighbours averaged": lambda task, rng: components(task, averaged=True),
        **{name: stmae(ROWS[name], args.epochs) for name in chosen},
    }
    data = [stimg.datasets.dlpfc(section) for section in args.sections.split(",")]
    reports = {}
    for split, name in {"random 20 %": "domains-random", "blocks 20 %": "domains"}.items():
        protocol = replace(stimg.bench.get_protocol(name), n_draws=args.seeds, probes=("mlp",), clusterings=(), transfer=False)
        reports[split] = stimg.bench.run(
            protocol,
            data,
            methods=methods,
            nulls=False,
            labels="label",
            seeds=1,
            out=RESULTS / f"{args.name}_{name}",
            allow_leakage=name == "domains-random",
            overwrite=True,
        )
    print(summary(reports, list(methods), chosen[0]))


if __name__ == "__main__":
    main()
