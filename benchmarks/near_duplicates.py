"""Signals by which copies of a section are found: what they are for sections of different tissue, and for copies with fewer molecules.

Sections: HER2ST (20), DLPFC (2). Every pair of different sections; and each of B1, C2, D1, E1 against a copy of itself whose counts were thinned to 95, 50 and 30 %.

    python benchmarks/near_duplicates.py
"""

import numpy as np
from common import save, table

import stimg
from stimg.bench import sections
from stimg.data import near_duplicates

SIGNALS = ("shared_observations", "matched_observations", "profile_r", "image_distance")


def thinned(adata, share: float):
    """Return the section with each molecule kept by chance, under another name."""
    other = adata.copy()
    other.X.data = np.random.default_rng(0).binomial(other.X.data.astype(int), share).astype(np.float32)
    other.X.eliminate_zeros()
    library = f"copy {share:g}"
    other.obs["library_id"], other.obs["donor"] = library, "copies"
    other.obs_names = [f"{library} {i}" for i in range(other.n_obs)]
    other.uns = {}
    return other


def main() -> None:
    her = sections.DATASETS["her2st"]()
    groups = {"her2st": her, "dlpfc": [stimg.datasets.dlpfc(s, image="hires") for s in ("151673", "151674")]}
    rows, values = [], {}
    for name, group in groups.items():
        found = near_duplicates(group, every_pair=True)
        same = found["donor_a"] == found["donor_b"]
        for kind, part in ((f"{name}, one donor", found[same]), (f"{name}, two donors", found[~same])):
            if len(part):
                numbers = part[list(SIGNALS)].astype(float)
                values[kind] = {s: [float(numbers[s].min()), float(numbers[s].median()), float(numbers[s].max())] for s in SIGNALS}
                rows.append([kind, len(part), *(f"{numbers[s].min():.3f} – {numbers[s].max():.3f}" for s in SIGNALS)])
    for share in (0.95, 0.5, 0.3):
        numbers = []
        for adata in her:
            if adata.obs["library_id"].iloc[0] in ("B1", "C2", "D1", "E1"):
                (row,) = near_duplicates([adata, thinned(adata, share)], every_pair=True)[list(SIGNALS)].astype(float).to_numpy()
                numbers.append(row)
        low, high = np.min(numbers, axis=0), np.max(numbers, axis=0)
        values[f"copies thinned to {share:g}"] = np.asarray(numbers).tolist()
        rows.append([f"copies thinned to {share:g}", len(numbers), *(f"{a:.3f} – {b:.3f}" for a, b in zip(low, high, strict=True))])
    print(table(["pairs", "n", *SIGNALS], rows))
    print("written to", save("near_duplicates", {"script": "benchmarks/near_duplicates.py"}, values))


if __name__ == "__main__":
    main()
