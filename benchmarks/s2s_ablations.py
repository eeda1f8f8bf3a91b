"""What the parts of S2SImputer do on real sections, scored on hidden spots alone; the published claims among them.

HER2ST B1 and C1 (two donors), half of the spots hidden by chance and all but a quarter grid, the 250 genes with most counts on the *observed* spots, log(1 + counts
per 10,000); folds and truth are those of the protocol ``imputation``. C1, D1 and, early, E1 were looked at while the defaults were chosen, B1 was not. Every training
has 120 steps over 12 sparser maps of a section and holds 15 % of the observed spots out; predictions are not averaged over turns. Of each network two predictions are scored: all of its correction, and the part that the model uses
by itself.

The part "guide" reads 48 colour statistics of the H&E image around measured and hidden spots, on B4 and C2, sections whose image is at hand.

    python benchmarks/s2s_ablations.py [--part variants|genes|donors|guide|released]

About half an hour on one core; the parts can be run apart.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import torch
from common import RESULTS, save, table

import stimg
from stimg.bench import sections as sections_of
from stimg.bench.methods.imputation import measured, places
from stimg.bench.protocol import Hidden, Task
from stimg.image.interpolate import METHODS
from stimg.metrics import per_gene_pearson
from stimg.model import S2SImputer, S2SImputerOptions

SECTIONS = ("B1", "C1")
MASKS = ("random 50 %", "quarter grid")
EPOCHS = 10
VARIANTS: dict[str, dict[str, Any]] = {
    "as by default": {},
    "direct: shown spots are scored too": {"score": "all"},
    "no pictures": {"natural": None},
    "one network": {"n_stages": 1},
    "three networks": {"n_stages": 3},
    "hard consistency": {"consistency": "hard"},
    "no consistency": {"consistency": "none"},
    "from the nearest value": {"base": "nearest"},
}
SEEDS = {"as by default": (0, 1)}
SMALL: dict[str, Any] = {"n_samples": 12, "turns": 1}
N_SINGLE = 5
STEPS = 200
DONORS = ("B1", "D1")
OTHERS = ("C1", "E1")
GUIDED = ("B4", "C2")
COLOUR = "X_stimg_colour"


class Case(NamedTuple):
    """A section under a mask: what a method gets, and the truth."""

    section: str
    mask: str
    task: Task
    hidden: Hidden


class Trained(NamedTuple):
    """A model, and what its training took in seconds of this process."""

    model: S2SImputer
    seconds: float


def cases(names: tuple[str, ...], masks: tuple[str, ...] = MASKS, *, colours: bool = False) -> Iterator[Case]:
    """Return sections under masks; with the colours of the image around every spot where these are asked for."""
    parts = [stimg.datasets.her2st(name, image="hires" if colours else "none") for name in names]
    for part in parts if colours else ():
        stimg.pp.rasterize(part)
        stimg.pp.colour_statistics(part)
    data = sections_of.load_sections(parts, **({"features": [COLOUR]} if colours else {}))
    protocol = replace(stimg.bench.get_protocol("imputation"), masks=masks, ceiling_splits=1)
    for fold in protocol.folds(data):
        task, hidden = protocol.task(data, fold)
        yield Case(fold.test[0], hidden.extra["mask"], task, hidden)


def scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return the mean of r over genes, and the root of the squared error over that of the true mean."""
    square = ((truth - predicted) ** 2).sum() / ((truth - truth.mean(axis=0)) ** 2).sum()
    return {"r": float(np.nan_to_num(per_gene_pearson(truth, predicted).values).mean()), "rrmse": float(np.sqrt(square))}


def trained(
    adata: ad.AnnData, genes: list[str], *, rng: int = 0, options: S2SImputerOptions | None = None, guide: str | None = None, **changes: Any
) -> Trained:
    """Return a model that was trained on ``adata``."""
    adata = adata.copy()
    S2SImputer.setup_anndata(adata, guide=guide)
    model = S2SImputer(adata, genes, options=options, **changes)
    start = time.process_time()
    model.train(max_epochs=EPOCHS, early_stopping=False, rng=rng, enable_progress_bar=False)
    return Trained(model, time.process_time() - start)


def both(model: S2SImputer, adata: ad.AnnData, targets: ad.AnnData, genes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return what the whole network says of the targets, and what the model says."""
    gate = model.module.gate.clone()
    used = model.impute(adata, targets, genes=genes).values
    model.module.gate.fill_(1.0)
    whole = model.impute(adata, targets, genes=genes).values
    model.module.gate.copy_(gate)
    return whole, used


def variants() -> list[dict[str, Any]]:
    """Return the scores of every variant on every section and mask, by seed."""
    rows = []
    for case in cases(SECTIONS):
        (observed,), targets = case.task.test, case.task.where[case.section]
        truth, genes, where = case.hidden.truth[case.section], list(case.task.genes), {"section": case.section, "mask": case.mask}
        for name, method in (("base alone: tl.impute", "ensemble"), ("nearest value", "nearest"), ("cubic", "cubic")):
            found = METHODS[method](measured(case.task, observed), places(targets)).values
            rows.append({**where, "variant": name, "seed": 0, **{f"used_{k}": v for k, v in scores(truth, found).items()}})
        for name, changes in VARIANTS.items():
            for seed in SEEDS.get(name, (0,)):
                made = trained(observed, genes, rng=seed, **SMALL, **changes)
                whole, used = (scores(truth, each) for each in both(made.model, observed, targets, genes))
                parts = {f"{p}_{k}": v for p, each in (("whole", whole), ("used", used)) for k, v in each.items()}
                rows.append({**where, "variant": name, "seed": seed, **parts, "gate": made.model.judged_["gate"], "seconds": made.seconds})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def genes() -> list[dict[str, Any]]:
    """Return the scores of five genes by one network for all 250 genes, and by a network for each."""
    rows = []
    for case in cases(("C1", "D1"), MASKS[:1]):
        (observed,), targets, every = case.task.test, case.task.where[case.section], list(case.task.genes)
        at = np.linspace(0, len(every) - 1, N_SINGLE).astype(int)
        some, truth = [every[i] for i in at], case.hidden.truth[case.section][:, at]
        shared = trained(observed, every, **SMALL)
        single = [trained(observed, [gene], **SMALL) for gene in some]
        base = METHODS["ensemble"](measured(case.task, observed), places(targets)).values[:, at]
        pairs = [both(each.model, observed, targets, [gene]) for each, gene in zip(single, some, strict=True)]
        for name, found, seconds in (
            ("base alone: tl.impute", (base, base), 0.0),
            ("one network for 250 genes", both(shared.model, observed, targets, some), shared.seconds),
            (
                "a network for each gene",
                tuple(np.concatenate(parts, axis=1) for parts in zip(*pairs, strict=True)),
                sum(e.seconds for e in single),
            ),
        ):
            whole, used = (scores(truth, each) for each in found)
            parts = {f"{p}_{k}": v for p, each in (("whole", whole), ("used", used)) for k, v in each.items()}
            rows.append({"section": case.section, "variant": name, **parts, "seconds": seconds})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def donors() -> list[dict[str, Any]]:
    """Return the scores of a model that was trained on sections of two other donors, on sections that it imputes without training on them."""
    parts = [stimg.datasets.her2st(name) for name in DONORS]
    joined = ad.concat(parts, join="inner", merge="first")
    joined.uns["spatial"] = {name: part.uns["spatial"][name] for name, part in zip(DONORS, parts, strict=True)}
    joined.obs_names_make_unique()
    stimg.pp.rasterize(joined)
    rows = []
    tasks = list(cases(OTHERS))
    shared = [g for g in tasks[0].task.genes if g in joined.var_names]
    made = trained(joined, shared, keep=(0.2, 0.7), **SMALL)
    for case in tasks:
        (observed,), targets = case.task.test, case.task.where[case.section]
        genes = [g for g in case.task.genes if g in joined.var_names]
        at = [list(case.task.genes).index(g) for g in genes]
        truth = case.hidden.truth[case.section][:, at]
        base = METHODS["ensemble"](measured(case.task, observed), places(targets)).values[:, at]
        gate = made.model.module.gate.clone()
        made.model.module.gate.fill_(0.0)
        without = made.model.impute(observed, targets, genes=genes).values
        made.model.module.gate.copy_(gate)
        whole, used = both(made.model, observed, targets, genes)
        for name, found in (
            ("base alone: tl.impute", base),
            ("base with their axes", without),
            ("network, all of it", whole),
            ("network, as used", used),
        ):
            rows.append(
                {
                    "section": case.section,
                    "mask": case.mask,
                    "variant": name,
                    **scores(truth, found),
                    "gate": float(gate),
                    "seconds": made.seconds,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def guide() -> list[dict[str, Any]]:
    """Return the scores of a model that reads colours, of one that does not, and of `tl.impute` with and without them."""
    rows = []
    for case in cases(GUIDED, colours=True):
        (observed,), targets = case.task.test, case.task.where[case.section]
        truth, genes, where = case.hidden.truth[case.section], list(case.task.genes), {"section": case.section, "mask": case.mask}
        for name, key in (("base alone: tl.impute", None), ("tl.impute with colours", COLOUR)):
            found = METHODS["ensemble"](measured(case.task, observed, guide=key), places(targets)).values
            rows.append({**where, "variant": name, "seed": 0, **{f"used_{k}": v for k, v in scores(truth, found).items()}})
        for name, key in (("network", None), ("network with colours", COLOUR)):
            for seed in (0, 1):
                made = trained(observed, genes, rng=seed, guide=key, **SMALL)
                whole, used = (scores(truth, each) for each in both(made.model, observed, targets, genes))
                parts = {f"{p}_{k}": v for p, each in (("whole", whole), ("used", used)) for k, v in each.items()}
                rows.append({**where, "variant": name, "seed": seed, **parts, "gate": made.model.judged_["gate"], "seconds": made.seconds})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def released() -> list[dict[str, Any]]:
    """Return what a step of the released design takes, one gene and one picture, and how far few steps get; 3,000 epochs of one step each are extrapolated."""
    (case,) = cases(("C1",), MASKS[1:])
    (observed,), targets = case.task.test, case.task.where[case.section]
    gene, adata = case.task.genes[0], observed.copy()
    truth = case.hidden.truth[case.section][:, :1]
    S2SImputer.setup_anndata(adata)
    model = S2SImputer(adata, [gene], options=S2SImputerOptions.released())
    start = time.process_time()
    model.train(
        max_epochs=STEPS // 20, steps_per_epoch=20, batch_size=2, lr=1e-4, weight_decay=0.0, validation=None, enable_progress_bar=False
    )
    seconds = time.process_time() - start
    row = {
        "gene": gene,
        "weights": sum(p.numel() for p in model.module.stages.parameters()),
        "seconds_a_step_of_2_maps": seconds / STEPS,
        "days_for_250_genes": seconds / STEPS * 3000 * 250 / 86400,
        f"after_{STEPS}_steps": scores(truth, model.impute(targets=targets).values),
        "nearest": scores(truth, METHODS["nearest"](measured(case.task, observed), places(targets)).values[:, :1]),
        "ensemble": scores(truth, METHODS["ensemble"](measured(case.task, observed), places(targets)).values[:, :1]),
    }
    print(json.dumps(row), flush=True)
    return [row]


PARTS = {"variants": variants, "genes": genes, "donors": donors, "guide": guide, "released": released}


def shown(part: str, rows: list[dict[str, Any]]) -> str:
    """Return the table of a part: means over sections, r / relative RMSE."""
    found = pd.DataFrame(rows)
    if part == "released":
        return json.dumps(rows[0], indent=1)
    keys = ["variant"] if part == "genes" else ["mask", "variant"]
    values = found.select_dtypes("number").drop(columns="seed", errors="ignore").columns
    mean = found.groupby([*keys, "section"], sort=False)[list(values)].mean().groupby(keys, sort=False).mean()
    score = "used_r" if "used_r" in found else "r"
    each = found.groupby([*keys, "section"], sort=False)[score].mean().unstack().round(3).reindex(mean.index)
    mean["each"] = [", ".join(f"{s} {v:.3f}" for s, v in row.items() if v == v) for _, row in each.iterrows()]
    if part in ("variants", "guide"):
        sd = found.groupby([*keys, "section"], sort=False)[["whole_r", "whole_rrmse"]].std().groupby(keys, sort=False).mean()
        mean = mean.join(sd.add_prefix("seed_sd_"))
    flat = mean.reset_index()
    return table(list(flat.columns), flat.fillna("").to_numpy().tolist())


def main() -> None:
    """Run the parts that are asked for, and keep what the others gave before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=list(PARTS), nargs="*", default=list(PARTS))
    torch.set_num_threads(1)
    path = RESULTS / "s2s_ablations.json"
    for part in parser.parse_args().part:
        found = PARTS[part]()
        values = json.loads(path.read_text())["values"] if path.is_file() else {}  # read now: parts may run at the same time
        values[part] = found
        save("s2s_ablations", {"sections": SECTIONS, "masks": MASKS, "epochs": EPOCHS, "donors": DONORS, "others": OTHERS}, values)
        print(f"\n## {part}\n\n{shown(part, values[part])}\n", flush=True)


if __name__ == "__main__":
    main()
