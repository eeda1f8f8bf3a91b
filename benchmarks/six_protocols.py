"""One fixed set of predictions, scored under six protocols: how far the number moves while nothing is predicted any better.

Predictions. For every section of HER2ST (donors B, C, D, E; 20 sections) and every gene that any of the protocols scores: (1) the line on the true log depth of
each spot, fitted on the other donors, on log(1 + counts per 10,000 of the full library); it sees no pixel; (2) the mean of the ten training spots at nearly the same place in the other
sections of the same donor; no pixel either; (3) noise: a smooth random field for each gene, unrelated to anything. Each of the three is computed once and scored six times.

Protocols: her2st-strict, triplex, histogene, stem, hest of stimg.bench, and as the sixth the correlation over all entries of the matrix (`flat_r`) on the genes of her2st-strict, which some
publications call "overall". The column "selected" is the mean of the 50 genes that are best on the test section itself.

    python benchmarks/six_protocols.py [--data her2st]
"""

import argparse
from dataclasses import replace

import numpy as np
import pandas as pd
from common import save, table
from scipy.ndimage import gaussian_filter

import stimg
from stimg.bench import get_protocol
from stimg.bench.expression import ExpressionProtocol
from stimg.bench.gene_rules import GENE_RULES, Panel
from stimg.bench.methods.expression import coordinates_same, depth

PROTOCOLS = ("her2st-strict", "triplex", "histogene", "stem", "hest")


def predictions(sections: dict) -> dict[str, dict[str, pd.DataFrame]]:
    """Return the three fixed sets of predictions, by name and library."""
    scored = {
        g
        for name in PROTOCOLS
        for p in [get_protocol(name)]
        for fold in p.folds(sections)
        for names in p.genes(sections, fold)[0].values()
        for g in names
    }
    genes = sorted(scored)
    GENE_RULES.add("scored by any", lambda found, panel: genes)
    everything = ExpressionProtocol(
        name="all genes",
        version="1",
        title="",
        source="",
        panels=(Panel("all", "scored by any", len(genes), seen="all"),),
        ceiling_splits=0,
    )
    out: dict[str, dict[str, pd.DataFrame]] = {"depth line": {}, "coordinates": {}, "random field": {}}
    rng = np.random.default_rng(0)
    for protocol, name, method in (
        (everything, "depth line", lambda t, h: depth(t, rng, h)),
        (replace(everything, folds_by="section", level="section"), "coordinates", lambda t, h: coordinates_same(t, rng).values),
    ):
        for fold in protocol.folds(sections):
            task, hidden = protocol.task(sections, fold)
            for library, values in method(task, hidden).items():
                out[name][library] = pd.DataFrame(values, index=sections[library].obs_names, columns=list(task.genes))
    for library, adata in sections.items():
        rc = adata.obsm["stimg_rc"]
        fields = [gaussian_filter(rng.normal(size=rc.max(0) + 1), 3)[rc[:, 0], rc[:, 1]] for _ in genes]
        out["random field"][library] = pd.DataFrame(np.stack(fields, 1), index=adata.obs_names, columns=genes)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="her2st", help="as for stimg.bench.run")
    args = parser.parse_args()
    sections = stimg.bench.load_sections(args.data)
    given = predictions(sections)
    values: dict[str, dict[str, dict[str, float]]] = {name: {} for name in given}
    for protocol in PROTOCOLS:
        report = stimg.bench.run(
            replace(stimg.bench.get_protocol(protocol), ceiling_splits=0),
            sections,
            predictions=given,
            nulls=False,
            allow_leakage=True,
            seeds=1,
        )
        for entry in report.data["summary"]:
            name = protocol + (f" ({entry['stratum']})" if protocol == "her2st-strict" else "")
            values[entry["method"]].setdefault(name, {})[entry["metric"]] = entry["value"]
    shown = [n for n in next(iter(values.values())) if n != "her2st-strict (HVG500)"]
    rows = []
    for method, found in values.items():
        rows.append([f"{method}: r", *(found[n]["mean_r"] for n in shown), found["her2st-strict (HEG250)"]["flat_r"]])
        rows.append([f"{method}: selected", *(found[n]["selected_r"] for n in shown), "–"])
    print(table(["predictions", *shown, "overall (all entries)"], rows))
    print(
        "written to",
        save("six_protocols", {"script": "benchmarks/six_protocols.py", "arguments": vars(args), "sections": list(sections)}, values),
    )


if __name__ == "__main__":
    main()
