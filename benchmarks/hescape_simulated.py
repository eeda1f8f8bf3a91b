"""What slides do to the alignment of images and expression where the batch effect is known: the simulator, with the effect switched on and off.

`stimg.datasets.simulate`: six donors with one Visium section each (16 x 16 spots, 300 genes, H&E at 1 um per pixel), tissues of their own. Two effects, each on or off, on the
same tissues and cells: *stain* (standard deviation .1 of the elements of the stain matrix and of the logarithm of its strength) and *chemistry* (standard deviation .3 of the
logarithm of each gene, .5 of that of depth). Donors differ in nothing else. D1-D4 train, D5 and D6 are the test; three replicates, each with tissues and weights of its own.

Images: 48 colour statistics. Expression: PCA of 250 genes. CLIP, with four ways to deal with slides (see `hescape_align.py`). Learning rate and epochs are chosen by leaving out
D4. Scored by `stimg.bench`: `hescape` (recall at 5 within the section; both directions), `her2st-strict` (ridge from raw and from aligned features) and `her2st-labels` (linear
probe of the domains, which cause expression and image alike), all with this split. Slides told: accuracy of a linear probe that tells D5 from D6,
neighbouring spots on both sides, chance 1/2. Intervals: bootstrap over replicates.

One thread: about 5 minutes (``--quick``: one replicate, less than 2).

    python benchmarks/hescape_simulated.py [--replicates 3] [--quick]
"""

import argparse
import logging
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from common import save, table
from hescape_align import Cell, Fold, Ridges, WithoutP, probed, raw_probe, retrieval, scores

import stimg
from stimg._core import keys
from stimg.bench import Method
from stimg.bench.factors import paired_difference
from stimg.bench.methods.retrieval import feature_encoders
from stimg.datasets import DonorOptions, simulate
from stimg.metrics import batch_effects

STAIN, CHEMISTRY = {"stain_sd": 0.1}, {"gene_sd": 0.3, "depth_sd": 0.5}
CONDITIONS = {"none": (False, False), "stain": (True, False), "chemistry": (False, True), "both": (True, True)}
"""Whether the stain and the chemistry differ between donors."""
TEST = ("D5", "D6")
IMAGES = {"colours": keys.COLOUR}
CELLS = [*(Cell("colours", batch=b) for b in ("none", "centre", "within", "adversary")), Cell("colours", trained=False)]
SIZE: dict[str, Any] = {"technology": "visium", "shape": (16, 16), "n_genes": 300, "n_donors": 6, "image": True, "mpp": 1.0}


def objects(seed: int) -> dict[str, AnnData]:
    """Return the sections of one replicate under each condition: counts with and without chemistry, colours with and without stain."""
    made = {}
    for on in (False, True):
        adata = simulate(**SIZE, donors=DonorOptions.none(**(STAIN | CHEMISTRY if on else {})), rng=seed)
        stimg.pp.rasterize(adata)
        stimg.pp.colour_statistics(adata)
        made[on] = adata
    if not np.array_equal(made[False].obs["domain"], made[True].obs["domain"]):
        raise RuntimeError("The effects have changed the tissue; wanted the same domains with and without them.")
    out = {}
    for name, (stain, chemistry) in CONDITIONS.items():
        out[name] = made[chemistry].copy()
        out[name].obsm[keys.COLOUR] = made[stain].obsm[keys.COLOUR]
        stimg.bench.remember(out[name], keys.COLOUR)
    return out


def replicate(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores of one replicate under all conditions, long, and how well sections are told."""
    parts, told = [], []
    for condition, adata in objects(seed).items():
        stimg.pp.split(adata, by="donor", test=list(TEST))
        manifest = stimg.data.SplitManifest.from_anndata(adata)
        place = {"condition": condition, "replicate": seed}
        hescape, strict = stimg.bench.get_protocol("hescape"), stimg.bench.get_protocol("her2st-strict")
        options = {"layer": None, "library_key": keys.LIBRARY, "donor_key": keys.DONOR, "missing_donor": "error", "labels": None}
        _, found = hescape.load(adata, features=[keys.COLOUR], **options)
        division = manifest.divisions[0]
        task, _ = hescape.task(found, stimg.bench.Fold(division.name, tuple(division.train), tuple(division.test)))
        case, train = Fold(task, found, IMAGES), frozenset(division.train)
        answers = {cell: {train: case.embed(cell, seed)} for cell in CELLS}
        ridges = Ridges()
        cca = Method(
            "CCA of colours", lambda task, rng: feature_encoders(task, keys.COLOUR), ("retrieval",), "rival", "", needs=(keys.COLOUR,)
        )
        runs = (
            (hescape, [cca, *(retrieval(c.name, f) for c, f in answers.items())], ("recall_5", "chance_5"), None, True),
            (
                WithoutP.of(strict, name="her2st-strict, HEG250", panels=strict.panels[:1], nulls=("depth line", "labels permuted")),
                [ridges.of_slot("raw colours", [keys.COLOUR]), *(ridges.of_cell(c.name, f) for c, f in answers.items())],
                ("mean_r",),
                None,
                True,
            ),
            (
                stimg.bench.get_protocol("her2st-labels"),
                [raw_probe("colours", keys.COLOUR), *(probed(c.name, f) for c, f in answers.items())],
                ("balanced_accuracy",),
                "domain",
                False,
            ),
        )
        for protocol, methods, metrics, labels, nulls in runs:
            report = stimg.bench.run(
                protocol,
                adata,
                methods={m.name: m for m in methods},
                features=[keys.COLOUR],
                labels=labels,
                manifest=manifest,
                seeds=1,
                nulls=nulls,
                progress=False,
            )
            frame = scores(report, lambda row: "D1-D4 -> D5, D6", metrics).assign(**place)
            parts.append(frame[frame["gallery"].isin(["section", "test set"])] if "gallery" in frame else frame)
        tests = list(division.test)
        section = np.concatenate([[n] * found[n].n_obs for n in tests])
        raw = np.concatenate([found[n].obsm[keys.COLOUR] for n in tests])
        told.append({**place, "method": "raw colours", "side": "image", "told": batch_effects(raw, section).probe_accuracy})
        for cell, each in answers.items():
            for side in ("image", "expression"):
                x = np.concatenate([each[train].values[n][side] for n in tests])
                told.append({**place, "method": cell.name, "side": side, "told": batch_effects(x, section).probe_accuracy})
    return pd.concat(parts, ignore_index=True), pd.DataFrame(told)


def differences(frame: pd.DataFrame, raw: str | None) -> dict[str, Any]:
    """Return what the effects cost, and what each way to deal with slides brings under each condition; with ``raw`` also aligned less raw."""
    plain, by = CELLS[0].name, ["replicate"]
    options = {"by": by, "cluster": "replicate"}
    found: dict[str, Any] = {}
    for name in CONDITIONS:
        if name != "none":
            one, other = ({"method": plain, "condition": c} for c in (name, "none"))
            found[f"nothing done: {name} - none"] = paired_difference(frame, one, other, **options)
        for cell in CELLS[1:4]:
            one, other = ({"method": m, "condition": name} for m in (cell.name, plain))
            found[f"{name}: {cell.batch} - nothing done"] = paired_difference(frame, one, other, **options)
        if raw is not None:
            one, other = ({"method": m, "condition": name} for m in (plain, raw))
            found[f"{name}: aligned - raw"] = paired_difference(frame, one, other, **options)
    for cell in CELLS[1:4]:
        one, other = {"method": cell.name, "condition": "both"}, {"method": plain, "condition": "none"}
        found[f"both, {cell.batch} - none, nothing done"] = paired_difference(frame, one, other, **options)
    return {name: each._asdict() for name, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one replicate; no intervals, nothing is saved")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    start, n = time.process_time(), 1 if args.quick else args.replicates
    both = [replicate(seed) for seed in range(n)]
    frame, told = (pd.concat(each, ignore_index=True) for each in zip(*both, strict=True))
    values: dict[str, Any] = {"tables": {}, "differences": {}}
    inside = frame[(frame["metric"] != "recall_5") | (frame["gallery"] == "section")]
    chosen = {m: inside[inside["metric"] == m] for m in ("recall_5", "mean_r", "balanced_accuracy")}
    chosen |= {"recall_5, test set": frame[(frame["metric"] == "recall_5") & (frame["gallery"] == "test set")]}
    chosen |= {f"slides told, {s}": told[told["side"] == s].rename(columns={"told": "value"}) for s in ("image", "expression")}
    for name, part in chosen.items():
        wide = part.groupby(["method", "condition"], sort=False)["value"].mean().unstack("condition")[list(CONDITIONS)]
        values["tables"][name] = wide.to_dict("index")
        print(
            f"## {name}\n\n{table(['', *CONDITIONS], [[m, *map(float, row)] for m, row in zip(wide.index, wide.to_numpy(), strict=True)])}\n"
        )
        raw = "raw colours" if name in ("mean_r", "balanced_accuracy") else None
        values["differences"][name] = differences(part, raw)
        for what, each in values["differences"][name].items():
            print(f"{what}: {each['value']:+.3f} [{each['low']:+.3f}, {each['high']:+.3f}]")
        print()
    values["processor_s"] = time.process_time() - start
    print(f"{values['processor_s']:.0f} s of processor")
    if not args.quick:
        print(save("hescape_simulated", {"stain": STAIN, "chemistry": CHEMISTRY, "replicates": n, "size": SIZE}, values))


if __name__ == "__main__":
    main()
