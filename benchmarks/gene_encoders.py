"""Seconds of a processor to fit a gene encoder on one donor of HER2ST, and to encode the sections of another.

Protocol. Fitted on C1-C5, encoded are B1-B6; genes of both donors; the 1,000 most variable genes of donor C, and for PCA once all genes. PCA with 50
axes, scVI with 30 dimensions and stimg's number of epochs, STMAE with its defaults and 15 epochs. One thread; time of the process, so that others on the machine do not
count, after a first fit on one section that warms up.

    python benchmarks/gene_encoders.py [--quick]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from common import save, table

import stimg
from stimg.model import STMAE, GeneEncoder
from stimg.model._gene_latent import n_epochs

TRAIN, OTHER = ("C1", "C2", "C3", "C4", "C5"), ("B1", "B2", "B3", "B4", "B5", "B6")


def stmae(adata: Any, epochs: int) -> Any:
    """Return a trained STMAE."""
    STMAE.setup_anndata(adata)
    model = STMAE(adata)
    model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False)
    return model


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of ``call``, and the seconds of a processor that it took."""
    start = time.process_time()
    return call(), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two epochs of training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    both = stimg.datasets.her2st([*TRAIN, *OTHER])
    stimg.pp.rasterize(both)
    train, other = (both[both.obs["library_id"].isin(names)].copy() for names in (TRAIN, OTHER))
    every = list(train.var_names)
    stimg.pp.select_genes(train, rule="variance", n=1000)
    scvi_epochs, mae_epochs = (2, 2) if args.quick else (n_epochs(train.n_obs), 15)
    some = train[train.obs["library_id"] == "C1"].copy()
    fits = {
        "PCA": lambda a, _: GeneEncoder.fit(a),
        "PCA, all genes": lambda a, _: GeneEncoder.fit(a, genes=every),
        "scVI": lambda a, warm: GeneEncoder.fit(a, "scvi", device="cpu", max_epochs=2 if warm else scvi_epochs),
        "STMAE": lambda a, warm: stmae(a, 1 if warm else mae_epochs),
    }
    values = []
    for name, fit in fits.items():
        stimg.tl.embed_genes(some, encoder=fit(some, True))
        encoder, seconds = timed(lambda fit=fit: fit(train, False))
        _, encoding = timed(lambda encoder=encoder: stimg.tl.embed_genes(other, encoder=encoder, key_added="X"))
        values.append(
            {"encoder": name, "genes": len(encoder.genes), "width": other.obsm["X"].shape[1], "fit_s": seconds, "encode_s": encoding}
        )
    protocol = {"train": TRAIN, "spots": train.n_obs, "encoded": OTHER, "spots_encoded": other.n_obs, "scvi_epochs": scvi_epochs, "stmae_epochs": mae_epochs}  # fmt: skip
    print(protocol)
    print(table(["encoder", "genes", "width", "fit, s", "encode, s"], [list(row.values()) for row in values]))
    if not args.quick:
        save("gene_encoders", protocol, values)


if __name__ == "__main__":
    main()
