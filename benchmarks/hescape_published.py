"""What HESCAPE's own table says of its first finding: image encoders against gene encoders, panels for replicates.

Test recall at 5 in batches of 64, image to expression / expression to image, as printed by Gindra et al. 2025 (arXiv 2508.01490). scFoundation, which has no value for two panels, is
left out.
"""

from typing import Any

import pandas as pd

from stimg.bench.factors import factor_components, factor_contrast

PANELS = ("5K", "multi-tissue", "immuno-oncology", "colon", "breast", "lung")
RECALL = """
MLP CTransPath .103/.106 .138/.098 .110/.094 .098/.122 .116/.117 .103/.126
MLP CONCH .228/.228 .241/.178 .187/.130 .300/.258 .383/.260 .443/.418
MLP GigaPath .257/.257 .297/.215 .179/.132 .313/.297 .390/.288 .510/.493
MLP H-optimus .235/.235 .209/.153 .173/.119 .296/.291 .309/.235 .358/.336
MLP UNI .247/.246 .255/.171 .243/.130 .320/.317 .346/.248 .493/.493
Nicheformer CTransPath .105/.115 .126/.117 .127/.127 .092/.106 .110/.126 .122/.138
Nicheformer CONCH .237/.274 .258/.286 .224/.247 .267/.253 .366/.410 .412/.496
Nicheformer GigaPath .241/.255 .274/.285 .247/.267 .261/.269 .414/.447 .473/.554
Nicheformer H-optimus .243/.273 .261/.277 .212/.215 .290/.278 .418/.451 .424/.498
Nicheformer UNI .259/.291 .269/.288 .243/.261 .252/.250 .416/.442 .449/.538
DRVI CTransPath .106/.116 .116/.147 .138/.135 .111/.123 .162/.144 .143/.163
DRVI CONCH .266/.316 .298/.363 .300/.290 .356/.362 .397/.397 .539/.597
DRVI GigaPath .315/.359 .322/.417 .344/.334 .388/.394 .461/.436 .649/.709
DRVI H-optimus .299/.321 .271/.342 .287/.267 .412/.397 .465/.461 .562/.612
DRVI UNI .322/.341 .312/.396 .326/.318 .404/.401 .450/.436 .610/.678
"""


def table() -> pd.DataFrame:
    """Return one row for gene encoder, image encoder, panel and direction."""
    rows = []
    for line in RECALL.split("\n")[1:-1]:
        gene, image, *values = line.split()
        for panel, pair in zip(PANELS, values, strict=True):
            for direction, value in zip(("image to expression", "expression to image"), pair.split("/"), strict=True):
                rows.append({"gene": gene, "image": image, "panel": panel, "direction": direction, "value": float(value)})
    return pd.DataFrame(rows)


def plain_rows(components: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table of components as JSON can hold it."""
    return [{k: None if pd.isna(v) else v for k, v in row.items()} for row in components.reset_index().to_dict("records")]


def published() -> dict[str, Any]:
    """Return variances and ranges of both factors, with and without the weakest image encoder."""
    everything, out = table(), {}
    for name, part in {"all": everything, "without CTransPath": everything[everything["image"] != "CTransPath"]}.items():
        out[name] = {"components": plain_rows(factor_components(part, ("image", "gene"), replicate="panel"))}
        out[name] |= {of: factor_contrast(part, ("image", "gene"), replicate="panel", of=of)._asdict() for of in ("variance", "range")}
    return out


if __name__ == "__main__":
    for name, found in published().items():
        print(
            name, pd.DataFrame(found["components"]).round(4).to_string(index=False), found["variance"], found["range"], sep="\n", end="\n\n"
        )
