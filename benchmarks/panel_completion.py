"""Panel completion on HER2ST: 157 of 785 genes are hidden in a donor that nothing was fitted on.

Protocol. Donors B, C, D, E (20 sections); leave one donor out. The 785 genes are the list behind many published tables (chosen by its authors
with all sections, used here as a fixed panel). A seeded draw hides 157 of them in the test donor: they are taken out of the object, so neither
library sizes nor anything else can see them. Target: log1p counts per 10,000 of the full library, no smoothing. Score: Pearson's r per hidden
gene over the spots of a section (a constant counts 0), mean and median over genes, mean over sections; the mean over donors is given too.

Nulls and rivals, all fitted on the training donors alone, on values centred within each section: a line on the observed depth; the best
co-expressed gene; the mean of the 20 best; PCA-50 + ridge; PCA + ridge with rank and penalty chosen by leaving out one training donor at a
time; the same with the mean of the eight neighbours' scores added. STMAE hides whole genes (``mask_scope="crop"``), as the task does, and is
stopped by blocks of the training sections; its untrained start, a shrunken PCA, is scored too. Ceiling: square root of the reliability by binomial splitting of the counts.

    python benchmarks/panel_completion.py [--seeds 3] [--draws 1] [--quick]
"""

import argparse
import time
import warnings

import anndata as ad
import numpy as np
from common import HER2ST, log_cp10k, options_of, per_gene_pearson, save, table
from scipy.spatial import cKDTree

import stimg

RANKS, PENALTIES = (5, 10, 15, 20, 30, 50), (1e-3, 1e-2, 1e-1, 1.0)


class Section:
    """Dense arrays of one section for the classical rivals."""

    def __init__(self, adata: ad.AnnData, panel: list[str], hidden: np.ndarray) -> None:
        counts = np.asarray(adata[:, panel].X.todense(), dtype=np.float64)
        full = np.asarray(adata.X.sum(1)).ravel()
        self.truth = log_cp10k(counts, full)
        observed = np.setdiff1d(np.arange(len(panel)), hidden)
        depth = counts[:, observed].sum(1)
        self.x = log_cp10k(counts[:, observed], depth)
        self.x -= self.x.mean(0)
        self.y = self.truth[:, hidden] - self.truth[:, hidden].mean(0)
        self.depth = np.log(np.maximum(depth, 1))
        self.depth -= self.depth.mean()
        rc = adata.obsm["stimg_rc"]
        near = cKDTree(rc).query_ball_point(rc, 1.5)
        self.neighbours = [[j for j in group if j != i] or [i] for i, group in enumerate(near)]
        rng = np.random.default_rng(0)
        splits = []
        for _ in range(5):
            half = rng.binomial(counts[:, hidden].astype(int), 0.5)
            rest = rng.binomial((full - counts[:, hidden].sum(1)).astype(int), 0.5)
            size = half.sum(1) + rest
            splits.append(per_gene_pearson(log_cp10k(half, size), log_cp10k(counts[:, hidden] - half, full - size)))
        r = np.clip(np.mean(splits, axis=0), 0, 1)
        self.ceiling = np.sqrt(2 * r / (1 + r))

    def around(self, scores: np.ndarray) -> np.ndarray:
        """Return the mean of the neighbours' scores."""
        return np.stack([scores[group].mean(0) for group in self.neighbours])


def ridge(a: np.ndarray, b: np.ndarray, penalty: float) -> np.ndarray:
    """Return ridge coefficients; the penalty is in units of the mean variance of the columns."""
    gram = a.T @ a
    return np.linalg.solve(gram + penalty * np.trace(gram) / len(gram) * np.eye(len(gram)), a.T @ b)


def pca_ridge(train: list[Section], rank: int, penalty: float, spatial: bool):
    """Return a function from a section to predictions."""
    x, y = np.vstack([s.x for s in train]), np.vstack([s.y for s in train])
    axes = np.linalg.svd(x, full_matrices=False)[2][:rank].T

    def features(s: Section) -> np.ndarray:
        scores = s.x @ axes
        return np.hstack([scores, s.around(scores)]) if spatial else scores

    weights = ridge(np.vstack([features(s) for s in train]), y, penalty)
    return lambda s: features(s) @ weights


def tuned(train: dict[str, list[Section]], spatial: bool):
    """Return the best of the grid by leaving out one training donor at a time."""
    best = (-np.inf, 0, 0.0)
    for rank in RANKS:
        for penalty in PENALTIES:
            scores = []
            for left in train:
                inner = [s for d, group in train.items() if d != left for s in group]
                model = pca_ridge(inner, rank, penalty, spatial)
                scores += [per_gene_pearson(model(s), s.y).mean() for s in train[left]]
            best = max(best, (float(np.mean(scores)), rank, penalty))
    flat = [s for group in train.values() for s in group]
    return pca_ridge(flat, best[1], best[2], spatial), best[1:]


def classical(train: dict[str, list[Section]], test: list[Section], full: bool) -> dict[str, list[np.ndarray]]:
    """Return per-gene r of every rival for every test section."""
    flat = [s for group in train.values() for s in group]
    x, y = np.vstack([s.x for s in flat]), np.vstack([s.y for s in flat])
    depth = np.concatenate([s.depth for s in flat])
    line = (depth @ y) / (depth @ depth)
    spread = x.std(0) + 1e-9
    order = np.argsort(-((x / spread).T @ (y / (y.std(0) + 1e-9))), axis=0)
    models = {
        "observed depth": lambda s: np.outer(s.depth, line),
        "best co-expressed gene": lambda s: (s.x / spread)[:, order[0]],
        "mean of 20 co-expressed": lambda s: np.stack([(s.x / spread)[:, o].mean(1) for o in order[:20].T], axis=1),
        "PCA-50 + ridge": pca_ridge(flat, 50, 1e-3, False),
    }
    if full:
        for name, spatial in (("PCA + ridge, tuned", False), ("PCA + neighbours + ridge, tuned", True)):
            models[name], chosen = tuned(train, spatial)
            print(f"  {name}: rank {chosen[0]}, penalty {chosen[1]:g}", flush=True)
    out = {name: [per_gene_pearson(model(s), s.y) for s in test] for name, model in models.items()}
    out["ceiling"] = [s.ceiling for s in test]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="trainings of STMAE per fold")
    parser.add_argument("--draws", type=int, default=1, help="draws of hidden genes")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--donors", default="".join(HER2ST))
    parser.add_argument("--quick", action="store_true", help="one donor, one seed, few epochs")
    parser.add_argument("--option", action="append", default=[], help="field=value of STMAEOptions, or train.field=value")
    parser.add_argument("--name", default="panel_completion")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    options, training = options_of(args.option)
    training = {"batch_size": 8, **training}
    if args.quick:
        args.seeds, args.epochs, args.donors = 1, 20, args.donors[0]
    sections = {}
    for name in [s for group in HER2ST.values() for s in group]:
        sections[name] = stimg.datasets.her2st(name)
        stimg.pp.rasterize(sections[name])
    panel = [g for g in stimg.datasets.gene_list("her_hvg_cut_1000") if all(g in a.var_names for a in sections.values())]
    rows: list[dict] = []
    for draw in range(args.draws):
        hidden = np.sort(np.random.default_rng(draw).choice(len(panel), round(0.2 * len(panel)), replace=False))
        names = [panel[i] for i in hidden]
        arrays = {d: [Section(sections[s], panel, hidden) for s in group] for d, group in HER2ST.items()}
        for donor in args.donors:
            train = {d: group for d, group in arrays.items() if d != donor}
            for method, scores in classical(train, arrays[donor], full=not args.quick).items():
                rows.extend(
                    {"method": method, "draw": draw, "seed": 0, "section": s, "r": r.tolist()}
                    for s, r in zip(HER2ST[donor], scores, strict=True)
                )

            def predict(
                model, method: str, seed: int, donor: str = donor, draw: int = draw, names: list[str] = names, arrays: dict = arrays
            ) -> None:
                for s, truth in zip(HER2ST[donor], arrays[donor], strict=True):
                    observed = sections[s][:, [g for g in panel if g not in set(names)]].copy()
                    r = per_gene_pearson(model.impute_genes(observed, genes=names).to_numpy(), truth.y)
                    rows.append({"method": method, "draw": draw, "seed": seed, "section": s, "r": r.tolist()})

            joined = ad.concat([sections[s] for d in train for s in HER2ST[d]], join="inner", uns_merge="unique")
            for seed in range(args.seeds):
                start = time.perf_counter()
                stimg.model.STMAE.setup_anndata(joined)
                model = stimg.model.STMAE(joined, panel, **{"mask_scope": "crop", **options})
                if seed == 0:
                    model.train(1, lr=1e-12, enable_progress_bar=False)
                    predict(model, "STMAE, untrained start", 0)
                    model = stimg.model.STMAE(joined, panel, **{"mask_scope": "crop", **options})
                model.train(args.epochs, rng=seed, enable_progress_bar=False, **training)
                for s, arrays_s in zip(HER2ST[donor], arrays[donor], strict=True):
                    observed = sections[s][:, [g for g in panel if g not in set(names)]].copy()
                    predicted = model.impute_genes(observed, genes=names).to_numpy()
                    rows.append(
                        {"method": "STMAE", "draw": draw, "seed": seed, "section": s, "r": per_gene_pearson(predicted, arrays_s.y).tolist()}
                    )
                mean = np.mean(
                    [
                        np.mean(r["r"])
                        for r in rows
                        if r["method"] == "STMAE" and r["seed"] == seed and r["section"][0] == donor and r["draw"] == draw
                    ]
                )
                print(
                    f"  donor {donor} draw {draw} seed {seed}: STMAE {mean:.3f} ({time.perf_counter() - start:.0f} s, best epoch {model.best_epoch_} of {model.epochs()})",
                    flush=True,
                )
    summary = []
    for method in dict.fromkeys(r["method"] for r in rows):
        own = [r for r in rows if r["method"] == method]
        by_donor = {d: float(np.mean([np.mean(r["r"]) for r in own if r["section"][0] == d])) for d in args.donors}
        seeds = [np.mean([np.mean(r["r"]) for r in own if r["seed"] == s]) for s in sorted({r["seed"] for r in own})]
        median = float(np.mean([np.median(r["r"]) for r in own]))
        spread = f"{np.std(seeds, ddof=1):.3f}" if len(seeds) > 1 else ""
        summary.append([method, float(np.mean(seeds)), spread, median, float(np.mean(list(by_donor.values()))), *by_donor.values()])
    print(table(["method", "mean r", "sd over seeds", "median r", "mean of donors", *args.donors], summary))
    protocol = {"script": "benchmarks/panel_completion.py", "arguments": vars(args), "hidden": round(0.2 * len(panel)), "panel": len(panel)}
    print("written to", save(args.name, protocol, rows))


if __name__ == "__main__":
    main()
