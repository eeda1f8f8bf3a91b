"""Slides with one label each: attention beside averaged tiles and the nulls, on simulated cohorts of which the truth is known.

Each cohort has 60 donors with one slide of 30 to 60 tiles and 32 features; half of the donors are positive. They differ in what the label does (nothing,
a few tiles, all tiles), and in whether one of two sites has most of the positive donors. `stimg bench slides`: five groups of donors, each left out once. Three
cohorts of each kind, other tissue and other training in each, and more where the label does nothing; two trainings where it is in a few tiles. Then attention and contributions on 20 held-out donors,
beside the tiles that carry the label.

    python benchmarks/slide_classifier.py [--cohorts 3] [--epochs 60]

One thread, about four minutes of processor time.
"""

import argparse
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from common import save, table
from sklearn.metrics import roc_auc_score

import stimg
from stimg.model import SlideClassifier

SIZE: dict[str, Any] = {"n_donors": 60, "n_tiles": (30, 60), "n_features": 32}
FEW, ALL = {"effect": 4.0, "informative": 0.1}, {"effect": 0.5, "informative": 1.0}
SITES: dict[str, Any] = {"n_sites": 2, "site_effect": 2.0}
KINDS: dict[str, dict[str, Any]] = {
    "nothing": {"effect": 0.0},
    "a tenth of the tiles": FEW,
    "every tile, a little": ALL,
    "a tenth of the tiles, two sites alike": {**FEW, **SITES},
    "nothing, sites with the label": {"effect": 0.0, **SITES, "confounded": True},
    "nothing, sites mostly with the label": {"effect": 0.0, **SITES},
    "a tenth of the tiles, sites mostly with the label": {**FEW, **SITES},
}
MOSTLY = [kind for kind in KINDS if "mostly" in kind]
PLAIN = ("a tenth of the tiles", "every tile, a little")
"""Kinds for which the network is trained with averaged tiles too."""
TRAININGS, MORE_COHORTS = {"a tenth of the tiles": 2}, {"nothing": 5}
SHARE, LEVEL = 0.8, 0.05
EVERY, SAME = "all pairs", "pairs of one site"
NULLS = ("class frequencies", "number of tiles", "site of the slide", "donors' labels permuted", "mean of tiles, logistic")


def cohort(kind: str, rng: int) -> AnnData:
    """Return a simulated cohort; where sites go mostly with the label, 60 of 150 donors, four of five at the site of their label."""
    if kind not in MOSTLY:
        return stimg.datasets.simulate_cohort(**SIZE, **KINDS[kind], rng=rng)
    adata = stimg.datasets.simulate_cohort(**{**SIZE, "n_donors": 150}, **KINDS[kind], rng=rng)
    donors = adata.obs.groupby("donor", observed=True)[["label", "site"]].first().sort_index()
    keep: list[str] = []
    for i, label in enumerate(("negative", "positive")):
        for j, site in enumerate(("site_1", "site_2")):
            of = donors.index[(donors["label"] == label) & (donors["site"] == site)]
            keep += list(of[: round(30 * (SHARE if i == j else 1 - SHARE))])
    return adata[adata.obs["donor"].isin(keep).to_numpy()].copy()


def scored(kind: str, rng: int, epochs: int) -> list[dict[str, Any]]:
    """Return the scores of every method on one cohort, under the protocol."""
    methods = {"attention": SlideClassifier.as_method(max_epochs=epochs)}
    if kind in PLAIN:
        methods["the same network, averaged tiles"] = SlideClassifier.as_method(max_epochs=epochs, pooling="mean")
    seeds = [rng * 10 + i for i in range(TRAININGS.get(kind, 1))]
    report = stimg.bench.run("slides", cohort(kind, rng), methods=methods, labels="label", features=["X_simulated"], seeds=seeds)
    assert not report.data["stamps"]
    columns = ["auroc", "auroc_low", "auroc_high", "p", "n_pairs"]
    rows = report.scores()[["method", "seed", "pairs", *columns]].to_dict(orient="records")
    return [{"label": kind, "cohort": rng, **row} for row in rows]


def on_tiles(kind: str, rng: int, epochs: int) -> dict[str, Any]:
    """Return how well attention and contributions tell the tiles that carry the label, in the positive slides of 20 donors held out."""
    adata = cohort(kind, rng)
    last = np.unique(adata.obs["donor"].astype(str))[-20:]
    held = adata.obs["donor"].isin(last).to_numpy()
    train, test = adata[~held].copy(), adata[held].copy()
    SlideClassifier.setup_anndata(train, features="X_simulated", label_key="label")
    model = SlideClassifier(train)
    model.train(max_epochs=epochs, rng=rng, enable_progress_bar=False)
    stimg.tl.classify_slides(test, model=model)
    weight, speaks = test.obs["stimg_slide_attention"], test.obsm["stimg_slide_contribution"]["positive"]
    own: list[tuple[float, float, float, float]] = []
    for _, part in test.obs.groupby("library_id", observed=True):
        planted = part["informative"]
        if planted.any():
            auroc = [float(roc_auc_score(planted, each[part.index])) for each in (weight, speaks)]
            own.append((*auroc, float(weight[part.index][planted].sum()), float(planted.mean())))
    names = ("attention", "contribution", "weight of these tiles", "their share")
    return {"label": kind, "cohort": rng, "slides": len(own), **dict(zip(names, np.mean(own, axis=0).tolist(), strict=True))}


def spread(values: pd.Series) -> str:
    """Return the mean and the range."""
    return f"{values.mean():.2f} ({values.min():.2f}-{values.max():.2f})"


def show(scores: pd.DataFrame, tiles: pd.DataFrame) -> None:
    """Print the tables."""
    mean = scores.groupby(["label", "cohort", "method", "pairs"], sort=False)["auroc"].mean()
    columns = ("attention", "the same network, averaged tiles", *NULLS)

    def cell(kind: str, method: str, pairs: str) -> str:
        found = mean.reset_index().query("label == @kind and method == @method and pairs == @pairs")["auroc"]
        return spread(found) if len(found) else ""

    lines = [
        [kind, pairs, *(cell(kind, m, pairs) for m in columns)]
        for kind in KINDS
        for pairs in (EVERY, SAME)
        if cell(kind, "attention", pairs)
    ]
    print("AUROC, mean over cohorts (smallest-largest)", table(["label is in", "pairs", *columns], lines), sep="\n\n", end="\n\n")
    of_each = []
    for (kind, pairs), part in scores.query("method == 'attention'").groupby(["label", "pairs"], sort=False):
        below = part.groupby("cohort")["p"].max() < LEVEL
        ends = f"{part['auroc_low'].mean():.2f} to {part['auroc_high'].mean():.2f}"
        twice = part.groupby("cohort")["auroc"].agg(lambda v: v.max() - v.min()).max() if kind in TRAININGS else None
        shown = "" if twice is None else f"{twice:.2f}"
        of_each.append([kind, pairs, len(below), spread(part["auroc"]), ends, int(below.sum()), shown, round(part["n_pairs"].mean())])
    header = ["label is in", "pairs", "cohorts", "AUROC", "95 % over donors, mean of both ends", f"p below {LEVEL} in", "two trainings differ by", "pairs of slides"]  # fmt: skip
    print("Attention", table(header, of_each), sep="\n\n", end="\n\n")
    found = [[kind, *(spread(part[c]) for c in tiles.columns[3:])] for kind, part in tiles.groupby("label", sort=False)]
    print("Tiles that carry the label, 20 donors held out", table(["label is in", *tiles.columns[3:]], found), sep="\n\n", end="\n\n")


def main() -> None:
    """Simulate, run, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    scores = pd.DataFrame(
        [row for kind in KINDS for rng in range(args.cohorts + MORE_COHORTS.get(kind, 0)) for row in scored(kind, rng, args.epochs)]
    )
    tiles = pd.DataFrame([on_tiles(kind, rng, args.epochs) for kind in (k for k in KINDS if "tenth" in k) for rng in range(args.cohorts)])
    seconds = time.process_time() - started
    show(scores, tiles)
    print(f"{seconds:.0f} s of processor time")
    protocol = {**SIZE, "kinds": KINDS, "share": SHARE, "cohorts": args.cohorts, "epochs": args.epochs, "seconds": seconds}
    save("slide_classifier", protocol, {"scores": scores.to_dict(orient="records"), "tiles": tiles.to_dict(orient="records")})


if __name__ == "__main__":
    main()
