"""How well domains, Moran's I and marker genes of sparse slides and of imputed ones agree with those of the full slide.

DLPFC 151673 (Visium, seven expert layers) and HER2ST B1, C1, D1, E1 (four donors, pathologist labels). Half of the spots hidden by chance, every second one, or all
but a quarter grid; eight masks a section. Genes are the 1,000 with the largest variance of log counts on the *sparse* slide; the full slide, which is what all are
compared with, is clustered by its own 1,000. k-means is told the true number of regions, and starts three times.

    python benchmarks/imputation_downstream.py

Takes three minutes of one core.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from anndata import AnnData
from common import save, table
from scipy.spatial import KDTree
from sklearn.decomposition import PCA

import stimg
from stimg.bench.values import log_values
from stimg.data.slots import raster_libraries
from stimg.metrics import SpatialWeights, cluster, cluster_agreement, cluster_bootstrap, morans_i, per_gene_pearson

SECTIONS = {"DLPFC": ("151673",), "HER2ST": ("B1", "C1", "D1", "E1")}
MASKS: dict[str, list[dict[str, Any]]] = {
    "random 50 %": [{"mask": "random", "rng": seed} for seed in range(3)],
    "checkerboard": [{"mask": "checkerboard", "phase": phase} for phase in range(2)],
    "quarter grid": [{"mask": "quarter", "phase": phase} for phase in range(3)],
}
FILLS = {"nearest": "nearest", "k-NN 8": "k_nearest", "default ensemble": "ensemble"}
N_GENES, N_COMPONENTS, STARTS, VOTERS = 1000, 20, 3, 8
TOP, TOP_SPATIAL, FEWEST, RATE = 20, 50, 5, 0.05
"""Marker genes of a region; spatially variable genes; spots that a region must have inside and outside of the mask; false discovery rate."""
DROPPED = ("undetermined",)
SPARSE = "sparse slide alone"


@dataclass(frozen=True)
class Slide:
    """Values of ``genes`` at places, float64 (n, G), whose lattice points are ``points`` (n, 2) and whose regions are ``labels`` (n,), None where there is none."""

    values: np.ndarray
    points: np.ndarray
    labels: np.ndarray
    hexagonal: bool

    @classmethod
    def of(cls, adata: AnnData, values: np.ndarray) -> "Slide":
        """Return the slide of a rastered table with other values."""
        (library,) = raster_libraries(adata).values()
        labels = adata.obs["label"].astype(object).where(adata.obs["label"].notna() & ~adata.obs["label"].isin(DROPPED), None)
        return cls(values, library.spec.lattice_points(library.rc), labels.to_numpy(), library.spec.lattice == "hex")

    def part(self, rows: np.ndarray) -> "Slide":
        """Return some of the places."""
        return Slide(self.values[rows], self.points[rows], self.labels[rows], self.hexagonal)

    def filled(self, values: np.ndarray) -> "Slide":
        """Return the same places with other values."""
        return Slide(values, self.points, self.labels, self.hexagonal)

    @cached_property
    def n_regions(self) -> int:
        """Number of regions."""
        return len({label for label in self.labels if label is not None})

    @cached_property
    def near(self) -> np.ndarray:
        """Each place and its 6 (hexagonal) or 4 nearest ones, (n, 7 or 5); inside a full slide these are the adjacent ones."""
        return KDTree(self.points).query(self.points, k=7 if self.hexagonal else 5)[1]

    @cached_property
    def averaged(self) -> np.ndarray:
        """The values, each place averaged with its nearest ones."""
        return self.values[self.near].mean(axis=1)

    @cached_property
    def moran(self) -> np.ndarray:
        """Moran's I of each gene among nearest places, 0 for genes that are constant."""
        pairs = np.stack([np.repeat(self.near[:, 0], self.near.shape[1] - 1), self.near[:, 1:].ravel()], axis=1)
        pairs = np.unique(np.sort(pairs, axis=1), axis=0)
        return np.nan_to_num(morans_i(self.values, SpatialWeights.from_pairs(pairs, len(self.near))))

    def markers(self, region: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return Welch's t, the difference of means (log fold change) and Benjamini-Hochberg's p of each gene, the region against the other regions."""
        inside = self.labels == region
        outside = np.array([label is not None for label in self.labels]) & ~inside
        a, b = self.values[inside], self.values[outside]
        with np.errstate(divide="ignore", invalid="ignore"):
            t, p = scipy.stats.ttest_ind(a, b, equal_var=False)
        return np.nan_to_num(t), a.mean(axis=0) - b.mean(axis=0), scipy.stats.false_discovery_control(np.nan_to_num(p, nan=1.0))


# ---- clusters


def embedded(values: np.ndarray, fitted_on: np.ndarray) -> np.ndarray:
    """Return principal components of ``fitted_on``, at ``values``."""
    return PCA(N_COMPONENTS, svd_solver="randomized", random_state=0).fit(fitted_on).transform(values)


def clusters(values: np.ndarray, k: int) -> list[np.ndarray]:
    """Return the clusters of each start."""
    at = embedded(values, values)
    return [cluster(at, k, rng=start, n_init=5) for start in range(STARTS)]


def assigned(filled: np.ndarray, measured: int, found: np.ndarray) -> np.ndarray:
    """Return the clusters ``found`` at the first ``measured`` places, and at the others the one whose centre is nearest, axes and centres from measured ones alone."""
    at = embedded(filled, filled[:measured])
    centres = np.stack([at[:measured][found == each].mean(axis=0) for each in np.unique(found)])
    away = np.linalg.norm(at[measured:, None] - centres[None], axis=2)
    return np.concatenate([found, np.unique(found)[away.argmin(axis=1)]])


def votes(found: np.ndarray, points: np.ndarray, k: int) -> np.ndarray:
    """Return ``found`` at the first places, and at the others the commonest among the ``k`` nearest of those."""
    near = KDTree(points[: len(found)]).query(points[len(found) :], k=k)[1].reshape(len(points) - len(found), k)
    count = np.stack([(found[near] == each).sum(axis=1) for each in np.unique(found)])
    tie = np.stack([(found[near[:, :1]] == each).any(axis=1) for each in np.unique(found)])  # of equal ones that of the nearest
    return np.concatenate([found, np.unique(found)[(count + 0.5 * tie).argmax(axis=0)]])


def domains(found: list[np.ndarray], full: Slide, reference: list[np.ndarray], measured: int) -> dict[str, float]:
    """Return the adjusted Rand index with labels and with clusters of the full slide, of all places and of hidden ones, and what clusters say of being measured."""
    known, status = np.arange(len(full.labels)), np.arange(len(full.labels)) < measured
    out = {}
    for name, rows in (("", known), (", hidden", known[measured:])):
        out[f"labels{name}"] = np.mean([cluster_agreement(full.labels[rows], each[rows]).ari for each in found])
        out[f"full clusters{name}"] = np.mean([cluster_agreement(a[rows], b[rows]).ari for b in found for a in reference if a is not b])
    return {k: float(v) for k, v in out.items()} | {
        "NMI with measured": float(np.mean([cluster_agreement(status, each).nmi for each in found]))
    }


# ---- Moran's I and markers


def spatial(found: Slide, full: Slide) -> dict[str, float]:
    """Return how Moran's I agrees with that of the full slide over the genes."""
    a, b = full.moran, found.moran
    top = [set(np.argsort(-each, kind="stable")[:TOP_SPATIAL]) for each in (a, b)]
    return {
        "mean I": float(b.mean()),
        "less full slide": float((b - a).mean()),
        "absolute": float(np.abs(b - a).mean()),
        "Pearson": float(np.corrcoef(a, b)[0, 1]),
        "Spearman": float(scipy.stats.spearmanr(a, b)[0]),
        "top 50": len(top[0] & top[1]) / TOP_SPATIAL,
    }


def marking(found: Slide, full: Slide, hidden: Slide, regions: list[str]) -> dict[str, float]:
    """Return how marker genes agree with those of the full slide, and log fold changes also with those of the hidden spots alone, mean over regions."""
    rows = []
    for region in regions:
        (t, change, p), (t_full, change_full, p_full), (_, change_hidden, _) = (s.markers(region) for s in (found, full, hidden))
        top = [set(np.argsort(-each, kind="stable")[:TOP]) for each in (t, t_full)]
        called, called_full = p < RATE, p_full < RATE
        rows.append(
            {
                "top 20": len(top[0] & top[1]) / TOP,
                "fold change": np.corrcoef(change, change_full)[0, 1],
                "slope": np.polyfit(change_full, change, 1)[0],
                "fold change, hidden": np.corrcoef(change, change_hidden)[0, 1],
                "genes called": called.mean(),
                "not by full slide": (called & ~called_full).sum() / max(called.sum(), 1),
            }
        )
    return {k: float(v) for k, v in pd.DataFrame(rows).mean().items()}


def maps(values: np.ndarray, truth: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """Return Pearson's r over hidden spots of the maps of marker genes, chosen on the sparse slide."""
    return {"maps, hidden": float(per_gene_pearson(truth[:, chosen], values[:, chosen]).values.mean())}


# ---- one section under one mask


def drawn(filled: AnnData, key: str, measured: int, rng: np.random.Generator) -> np.ndarray:
    """Return imputed values with as much noise as their standard deviations say, not below 0."""
    values, sd = (np.asarray(filled.layers[name], dtype=np.float64) for name in (key, f"{key}_sd"))
    noise = sd[measured:] * rng.normal(size=sd[measured:].shape)
    return np.concatenate([values[:measured], np.maximum(values[measured:] + noise, 0.0)])


def fills(sparse: AnnData, truth: AnnData, genes: list[str], *, draw: bool, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Yield values of all places, measured ones first, by each way to fill the hidden ones."""
    n = sparse.n_obs
    for name, method in FILLS.items():
        last = name == "default ensemble"
        filled = stimg.tl.impute(sparse, method=method, targets=truth, genes=genes, uncertainty=draw and last, n_folds=3)
        values = np.asarray(filled.layers[f"stimg_{method}"], dtype=np.float64)
        yield name, values
        if last:
            yield f"{name}, shuffled", np.concatenate([values[:n], rng.permutation(values[n:])])
            if draw:
                yield f"{name}, one draw", drawn(filled, f"stimg_{method}", n, rng)


def chosen_genes(adata: AnnData) -> list[str]:
    """Return the genes with the largest variance of log counts."""
    found = adata.copy()
    stimg.pp.select_genes(found, rule="variance", n=N_GENES)
    return found.var_names[found.var["stimg_channel"]].tolist()


def compared(
    adata: AnnData, reference: Mapping[int, np.ndarray], mask: Mapping[str, Any], *, draw: bool, seed: int
) -> list[dict[str, Any]]:
    """Return one row for each way to fill a sparse slide (and for the sparse and the full one), with every measure."""
    rng = np.random.default_rng(seed)
    sparse, truth = stimg.pp.sparsify(adata, **mask)
    genes, n = chosen_genes(sparse), sparse.n_obs
    whole = adata[[*sparse.obs_names, *truth.obs_names]].copy()
    full = Slide.of(whole, log_values(whole, genes=genes))
    measured, hidden = full.part(np.arange(n)), full.part(np.arange(n, whole.n_obs))
    k, ready = full.n_regions, [pd.Series(each, index=adata.obs_names)[whole.obs_names].to_numpy() for each in reference.values()]
    regions = [
        r
        for r in sorted({x for x in full.labels if x is not None})
        if min((measured.labels == r).sum(), (hidden.labels == r).sum()) >= FEWEST
    ]
    chosen = np.unique(np.concatenate([np.argsort(-measured.markers(r)[0], kind="stable")[:TOP] for r in regions]))
    alone = clusters(measured.values, k)

    def row(name: str, found: list[np.ndarray], slide: Slide | None = None, values: np.ndarray | None = None) -> dict[str, Any]:
        out: dict[str, Any] = {"filled by": name, **domains(found, full, ready, n)}
        out |= {} if slide is None else {**spatial(slide, full), **marking(slide, full, hidden, regions)}
        return out if values is None else out | maps(values[n:], hidden.values, chosen)

    rows = [
        row("full slide", ready, full),
        row("full slide, averaged", clusters(full.averaged, k)),
        row(SPARSE, [votes(each, full.points, 1) for each in alone], measured),
        row(f"{SPARSE}, averaged", [votes(each, full.points, 1) for each in clusters(measured.averaged, k)]),
        row(f"{SPARSE}, vote of 8", [votes(each, full.points, VOTERS) for each in alone]),
        row(f"{SPARSE}, shuffled", [np.concatenate([each, rng.permutation(votes(each, full.points, 1)[n:])]) for each in alone]),
    ]
    for name, values in fills(sparse, truth, genes, draw=draw, rng=rng):
        rows.append(row(name, clusters(values, k), full.filled(values), values))
        if name == "default ensemble":
            rows.append(row(f"{name}, averaged", clusters(full.filled(values).averaged, k)))
        if name in ("k-NN 8", "default ensemble"):  # nearest values would have the labels of the sparse slide alone
            rows.append(row(f"{name}, clusters of measured", [assigned(values, n, each) for each in alone]))
    return rows


# ---- tables

DOMAINS = ("labels", "full clusters", "labels, hidden", "full clusters, hidden", "NMI with measured")
MORAN = ("mean I", "less full slide", "absolute", "Pearson", "Spearman", "top 50")
MARKERS = ("top 20", "fold change", "slope", "fold change, hidden", "genes called", "not by full slide", "maps, hidden")


def means(found: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return means over sections (draws of a mask first)."""
    each = found.groupby(["filled by", "section"], sort=False)[list(columns)].mean()
    return each.groupby("filled by", sort=False).mean().dropna(how="all")


def against_sparse(found: pd.DataFrame, name: str, column: str) -> str:
    """Return a way to fill less the sparse slide alone, with the 95 % interval over donors, or the standard deviation over masks where there is one donor."""
    each = found.groupby(["filled by", "section", "draw"])[column].first()
    if name not in each or each[name].isna().all():
        return "–"
    gap = (each[name] - each[SPARSE]).groupby("section").mean() if found["section"].nunique() > 1 else each[name] - each[SPARSE]
    if found["section"].nunique() == 1:
        return f"{gap.mean():+.3f} ± {gap.std():.3f}"
    low, high = cluster_bootstrap(gap.to_numpy(), gap.index.to_numpy())[1:3]
    return f"{gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


COMPARED = (*FILLS, "default ensemble, clusters of measured", "default ensemble, one draw", f"{SPARSE}, vote of 8", f"{SPARSE}, averaged")
GAPS = ("labels", "full clusters", "Pearson", "less full slide", "top 20", "fold change")


def report(found: pd.DataFrame) -> None:
    """Print a table for each data set, mask and topic, and the differences from the sparse slide."""
    for (data, mask), part in found.groupby(["data", "mask"], sort=False):
        for topic, columns in (("domains", DOMAINS), ("Moran's I", MORAN), ("markers", MARKERS)):
            rows = [[name, *("–" if np.isnan(v) else float(v) for v in row)] for name, row in means(part, columns).iterrows()]
            print(f"\n{data}, {mask}: {topic}\n\n{table(['filled by', *columns], rows)}")
        gaps = [[name, *(against_sparse(part, name, column) for column in GAPS)] for name in COMPARED]
        print(f"\n{data}, {mask}: less the sparse slide alone\n\n{table(['filled by', *GAPS], gaps)}", flush=True)


def main() -> None:
    """Sparsify, fill, compare, print, save."""
    rows = []
    for data, names in SECTIONS.items():
        for name in names:
            adata = getattr(stimg.datasets, data.lower())(name)
            stimg.pp.rasterize(adata)
            adata = adata[(adata.obsm["stimg_rc"] >= 0).all(axis=1)].copy()
            own = Slide.of(adata, log_values(adata, genes=chosen_genes(adata)))
            reference = dict(enumerate(clusters(own.values, own.n_regions)))
            for mask, draws in MASKS.items():
                for draw, options in enumerate(draws):
                    table_rows = compared(adata, reference, options, draw=data == "HER2ST", seed=draw)
                    rows += [{"data": data, "section": name, "mask": mask, "draw": draw, **row} for row in table_rows]
    found = pd.DataFrame(rows)
    report(found)
    protocol = {"sections": SECTIONS, "masks": MASKS, "genes": N_GENES, "components": N_COMPONENTS, "starts": STARTS, "top": TOP}
    values = found.groupby(["data", "section", "mask", "filled by"]).mean(numeric_only=True).reset_index()
    save("imputation_downstream", protocol, values.to_dict("records"))


if __name__ == "__main__":
    main()
