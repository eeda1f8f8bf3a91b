"""What a frozen embedding says about tissue: label probes on DLPFC and HER2ST, with splits that leak and splits that do not.

Tasks. DLPFC 151673 and 151674 (seven expert labels, one donor): (a) the protocol of the paper's code: frozen features, StandardScaler, a small
MLP, a random 20 % of the spots for training and the other 80 % for testing, accuracy and adjusted Rand index (ARI); (b) the same probe with
contiguous blocks: each section is cut into ten rectangles, two (20 %) train the probe, the others except a margin of 1.5 pitches test it;
(c) one section trains, the other tests. HER2ST (pathologist labels of B1, C1, D1, E1): leave one donor out, macro-F1 and accuracy.

Features: log1p counts per 10,000 of 512 highly variable genes; 50 principal components of 1,000; the same averaged over the neighbours within
2.5 pitches; row and column alone (no gene); STMAE. Nobody sees a label before the probe. Unsupervised features are fitted on all spots of the
section for (a) and (b), as is usual for them and as the paper does; for (c) and HER2ST on the training sections alone. Chance: always the
commonest training label. Five seeds; mean and standard deviation over seeds (and, for donors, the mean over donors).

    python benchmarks/probes.py [--seeds 5] [--quick] [--option field=value]
"""

import argparse
import warnings

import anndata as ad
import numpy as np
from common import options_of, save, table
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA
from sklearn.metrics import accuracy_score, adjusted_rand_score, f1_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import stimg
from stimg.data import raster_libraries
from stimg.image.split import balanced_blocks, hold_out


def probe(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Return accuracy, ARI and macro-F1 of a small MLP."""
    classifier = MLPClassifier((128,), alpha=1e-2, max_iter=300, early_stopping=False, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted = make_pipeline(StandardScaler(), classifier).fit(x[train], y[train]).predict(x[test])
    return accuracy_score(y[test], predicted), adjusted_rand_score(y[test], predicted), f1_score(y[test], predicted, average="macro")


def chance(y: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[float, float, float]:
    """Return the scores of always saying the commonest training label."""
    values, counts = np.unique(y[train], return_counts=True)
    predicted = np.full(test.sum(), values[counts.argmax()])
    return accuracy_score(y[test], predicted), 0.0, f1_score(y[test], predicted, average="macro")


def log_values(adata: ad.AnnData, genes: list[str]) -> np.ndarray:
    """Return log1p counts per 10,000 of the library size."""
    depth = np.asarray(adata.X.sum(1)).ravel()
    return np.log1p(1e4 * adata[:, genes].X.toarray() / np.maximum(depth, 1)[:, None])


def smooth(adata: ad.AnnData, x: np.ndarray, radius: float = 2.5) -> np.ndarray:
    """Return the mean over the spots within ``radius`` pitches."""
    out = np.empty_like(x)
    for library in raster_libraries(adata).values():
        points = library.spec.lattice_points(library.rc)
        for i, near in enumerate(cKDTree(points).query_ball_point(points, radius)):
            out[library.rows[i]] = x[library.rows[near]].mean(0)
    return out


def features(fit: ad.AnnData, adata: ad.AnnData, options: dict, training: dict, seed: int, epochs: int | None) -> dict[str, np.ndarray]:
    """Return the features of ``adata`` from what was fitted on ``fit``."""
    stimg.pp.select_genes(fit, rule="highly_variable", n=1000)
    ranked = fit.var_names[fit.var["stimg_channel"]][np.argsort(fit.var.loc[fit.var["stimg_channel"], "stimg_channel_order"])].tolist()
    raw_fit, raw = log_values(fit, ranked), log_values(adata, ranked)

    def centred(a: ad.AnnData, values: np.ndarray) -> np.ndarray:
        out = values.copy()
        for library in raster_libraries(a).values():
            out[library.rows] -= out[library.rows].mean(0)
        return out

    pca = PCA(50, random_state=seed).fit(centred(fit, raw_fit))
    scores = pca.transform(centred(adata, raw))
    stimg.model.STMAE.setup_anndata(fit)
    model = stimg.model.STMAE(fit, ranked, **options)
    model.train(epochs, rng=seed, enable_progress_bar=False, **training)
    rc = adata.obsm["stimg_rc"].astype(float)
    return {
        "row and column": rc,
        "512 HVG": raw[:, :512],
        "PCA-50": scores,
        "PCA-50, neighbours averaged": smooth(adata, scores),
        "STMAE": model.get_latent_representation(adata),
        "STMAE, one spot alone": single(model, adata),
    }


def single(model, adata: ad.AnnData) -> np.ndarray:
    """Return the embedding of every spot with nothing around it: a crop of one lattice point."""
    size, model.crop = model.crop, stimg.image.CropSpec((1, 1))
    try:
        return model.get_latent_representation(adata, overlap=0, batch_size=512)
    finally:
        model.crop = size


def block_split(adata: ad.AnnData, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of two of ten contiguous blocks of every section, and of the rest without the margin."""
    train, test = np.zeros(adata.n_obs, dtype=bool), np.zeros(adata.n_obs, dtype=bool)
    for library in raster_libraries(adata).values():
        centres = library.spec.centres_um(library.rc)
        blocks = balanced_blocks(centres, 10)
        held = np.random.default_rng(seed).choice(10, 2, replace=False)
        parts = hold_out(blocks, held, centres, 1.5 * library.spec.pitch_um)
        train[library.rows[parts.test]], test[library.rows[parts.train]] = True, True
    return train, test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--model-seeds", type=int, default=1, help="trainings of STMAE per fit")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="dlpfc,her2st")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--name", default="probes")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.epochs = 2, 3
    warnings.filterwarnings("ignore", module="lightning")
    options, training = options_of(args.option)
    rows = []

    def run(task: str, unit: str, x: dict[str, np.ndarray], y: np.ndarray, split, model_seed: int = 0) -> None:
        for seed in range(args.seeds):
            train, test = split(seed)
            for name, values in {"chance": None, **x}.items():
                found = chance(y, train, test) if values is None else probe(values, y, train, test, seed)
                rows.append(
                    {
                        "task": task,
                        "unit": unit,
                        "features": name,
                        "seed": seed + 100 * model_seed,
                        "accuracy": found[0],
                        "ari": found[1],
                        "f1": found[2],
                    }
                )
        done = [r for r in rows if r["task"] == task and r["unit"] == unit]
        print(
            task,
            unit,
            {
                n: round(float(np.mean([r["accuracy"] for r in done if r["features"] == n])), 3)
                for n in dict.fromkeys(r["features"] for r in done)
            },
            flush=True,
        )

    if "dlpfc" in args.only:
        sections = {}
        for name in ("151673", "151674"):
            a = stimg.datasets.dlpfc(name)
            stimg.pp.rasterize(a)
            sections[name] = a[a.obs["label"].notna().to_numpy()].copy()
        for name, a in sections.items():
            y = a.obs["label"].astype(str).to_numpy()
            for model_seed in range(args.model_seeds):
                x = features(a, a, options, training, model_seed, args.epochs)

                def random_split(seed: int, n: int = a.n_obs) -> tuple[np.ndarray, np.ndarray]:
                    train = np.zeros(n, dtype=bool)
                    train[np.random.default_rng(seed).choice(n, n // 5, replace=False)] = True
                    return train, ~train

                run("DLPFC, random 20 %", name, x, y, random_split, model_seed)
                run("DLPFC, blocks 20 %", name, x, y, lambda seed, a=a: block_split(a, seed), model_seed)
        for first, second in (("151673", "151674"), ("151674", "151673")):
            both = ad.concat([sections[first], sections[second]], join="inner", uns_merge="unique")
            y = both.obs["label"].astype(str).to_numpy()
            fit = both[both.obs["library_id"].astype(str) == first].copy()
            for model_seed in range(args.model_seeds):
                x = features(fit, both, options, training, model_seed, args.epochs)
                train = (both.obs["library_id"].astype(str) == first).to_numpy()
                run("DLPFC, section to section", f"{first} to {second}", x, y, lambda seed, train=train: (train, ~train), model_seed)
    if "her2st" in args.only:
        names = ["B1", "C1", "D1", "E1"]
        a = stimg.datasets.her2st(names)
        stimg.pp.rasterize(a)
        labels = a.obs["label"].astype(str).to_numpy()
        keep = a.obs["label"].notna().to_numpy() & (labels != "undetermined")
        for left in names:
            inside = (a.obs["library_id"].astype(str) != left).to_numpy()
            fit = a[inside].copy()
            for model_seed in range(args.model_seeds):
                x = features(fit, a, options, training, model_seed, args.epochs)
                run("HER2ST, donor out", left, x, labels, lambda seed, inside=inside: (inside & keep, ~inside & keep), model_seed)
    summary = []
    for task in dict.fromkeys(r["task"] for r in rows):
        for name in dict.fromkeys(r["features"] for r in rows):
            own = [r for r in rows if r["task"] == task and r["features"] == name]
            cells = []
            for score in ("accuracy", "ari", "f1"):
                per_seed = [np.mean([r[score] for r in own if r["seed"] == s]) for s in sorted({r["seed"] for r in own})]
                cells.append(f"{np.mean(per_seed):.3f} ± {np.std(per_seed, ddof=1) if len(per_seed) > 1 else 0:.3f}")
            summary.append([task, name, *cells])
    print(table(["task", "features", "accuracy", "ARI", "macro-F1"], summary))
    print("written to", save(args.name, {"script": "benchmarks/probes.py", "arguments": vars(args)}, rows))


if __name__ == "__main__":
    main()
