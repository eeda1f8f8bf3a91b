"""What heads say of themselves, and what comes true: predictability and intervals learnt on sections or donors that were left out, scored on new ones.

Sections of HER2ST with a full-resolution image at hand, 48 colour statistics of the image around each spot, the 785 genes of the list ``her_hvg_cut_1000`` that
all of them report. For each set of reference sections a head is fitted, with its predictability and its intervals, and then meets a section that it has not
seen: of the same donor, or of another.

    python benchmarks/predicted_genes.py

Needs the images of C2-C5 and B4 (STIMG_DATA_MIRROR, or about 150 MB of downloads). Takes a minute.
"""

from anndata import AnnData
from common import save, table
from scipy.stats import spearmanr

import stimg
from stimg._core.keys import COLOUR
from stimg.bench.values import log_values
from stimg.metrics import coverage, per_gene_pearson
from stimg.model import ExpressionHead

SECTIONS = ("C2", "C3", "C4", "C5", "B4")
CASES = (
    ("a section of the same donor", ("C2", "C3", "C4"), "C5"),
    ("another donor, none left out in the fit", ("C2", "C3", "C4", "C5"), "B4"),
    ("a section of a donor of the reference, donors left out in the fit", ("C2", "C3", "C4", "B4"), "C5"),
)
LEVEL, LEAST = 0.9, 0.1


def read(name: str) -> AnnData:
    """Return a section with the colours of its image."""
    adata = stimg.datasets.her2st(name)
    stimg.pp.rasterize(adata)
    stimg.pp.colour_statistics(adata, image=stimg.datasets.fetch_file(f"her2st/image/{name}"))
    return adata


def main() -> None:
    """Fit, predict, score, save."""
    sections = {name: read(name) for name in SECTIONS}
    genes = [g for g in stimg.datasets.gene_list("her_hvg_cut_1000") if all(g in a.var_names for a in sections.values())]
    rows = []
    for what, reference, test in CASES:
        for kind in ("ridge", "retrieval"):
            head = ExpressionHead.fit([sections[name] for name in reference], features=COLOUR, genes=genes, kind=kind)
            found = head.predict(sections[test], coverage=LEVEL)
            truth = log_values(sections[test], genes=genes)
            r = per_gene_pearson(truth, found.values).values
            worth = head.predictability.to_numpy()
            inside = coverage(truth, found.lower, found.upper, level=LEVEL)
            rows.append(
                {
                    "new section": what,
                    "reference": "+".join(reference),
                    "test": test,
                    "head": kind,
                    "left out": head.calibration.level,
                    "r": float(r.mean()),
                    "predicted r": float(worth.mean()),
                    "r of genes kept": float(r[worth >= LEAST].mean()),
                    "share kept": float((worth >= LEAST).mean()),
                    "rank correlation": float(spearmanr(r, worth)[0]),
                    "coverage": inside.coverage,
                    "width": inside.mean_width,
                }
            )
    columns = list(rows[0])
    print(table(columns, [[row[c] for c in columns] for row in rows]))
    save("predicted_genes", {"genes": len(genes), "level": LEVEL, "least predictability": LEAST, "features": COLOUR}, rows)


if __name__ == "__main__":
    main()
