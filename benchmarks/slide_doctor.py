"""Which mistakes ``pp.check_slide`` finds, on real and on simulated sections, and how often it finds one where there is none.

Run ``STIMG_DATA_MIRROR=... python benchmarks/slide_doctor.py`` (about 10 minutes of one core; ``--quick`` for a part). Each section is examined as it is, in
halves, and with one mistake made on purpose. "All rows" are the rows of scale, array, extent, coordinates and of the image; "image alone" are those in which expression is
compared with the image, without which a mistake in an object that states nothing is not seen. Mistakes in the DLPFC sections are made in their left halves, for time.
"""

import argparse
import gzip
import os
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import common
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import binomtest

import stimg
from stimg.datasets import DonorOptions, TissueOptions

NAMED = {
    "x and y swapped": {"axis swap"}, "image mirrored": {"flip"}, "image turned": {"rotation"}, "turned": {"rotation"}, "shifted": {"shift"},
    "coordinates x": {"coordinate scale"}, "hires": {"coordinate scale"}, "µm": {"coordinate scale"},
}  # fmt: skip
"""What a mistake, by the beginning of its name, should be called."""
IMAGE = ("tissue", "axis swap", "flip", "rotation", "shift", "coordinate scale", "section")
GEOMETRY = ("scale", "extent", "coordinates", "array", *IMAGE)


MOST = 2000
"""Observations above which mistakes are made in a half."""


def read_rds(path: Path) -> Any:
    """Return what an R file of lists, vectors and one sparse matrix holds (enough for the lymph node section)."""
    raw, at = gzip.decompress(path.read_bytes()), 14
    names: list[Any] = []

    def whole() -> int:
        nonlocal at
        at += 4
        return struct.unpack_from(">i", raw, at - 4)[0]

    def array(kind: str, n: int) -> np.ndarray:
        nonlocal at
        found = np.frombuffer(raw, kind, n, at)
        at += found.nbytes
        return found

    def item() -> Any:
        nonlocal at
        flags = whole()
        kind = flags & 255
        if kind in (241, 242, 251, 253, 254):
            return None
        if kind == 255:
            return names[(flags >> 8) - 1]
        if kind == 1:
            names.append(item())
            return names[-1]
        if kind == 2:
            pairs = {}
            while kind == 2:
                if flags & 512:
                    item()
                tag = item() if flags & 1024 else None
                pairs[tag] = item()
                flags = whole()
                kind = flags & 255
            return pairs
        if kind == 25:
            return item()
        n = whole()
        if kind == 9:
            at += max(n, 0)
            return None if n < 0 else raw[at - n : at].decode()
        found = array(">i4", n) if kind in (10, 13) else array(">f8", n) if kind == 14 else [item() for _ in range(n)]
        return {"value": found, "attr": item()} if flags & 512 else found

    if raw[2:6] == struct.pack(">i", 3):
        at = 14 + 4 + struct.unpack_from(">i", raw, 14)[0]
    return item()


def lymph_node(folder: Path) -> ad.AnnData:
    """Return 1,000 spots x 2,000 genes of a human lymph node with its reduced image."""
    import json

    from PIL import Image

    matrix = read_rds(folder / "expr.rds")
    shape = tuple(int(n) for n in matrix["Dim"])
    genes, barcodes = (list(n["value"] if isinstance(n, dict) else n) for n in matrix["Dimnames"])
    counts = sp.csr_matrix(sp.coo_matrix((matrix["x"].astype(float), (matrix["i"], matrix["j"])), shape=shape).T)
    positions = pd.read_csv(folder / "tissue_positions_list.csv", header=None, index_col=0).loc[barcodes]
    adata = ad.AnnData(counts, obs=pd.DataFrame(index=barcodes), var=pd.DataFrame(index=genes))
    adata.obs["library_id"] = pd.Categorical(["lymph"] * len(barcodes))
    adata.obs["array_row"], adata.obs["array_col"] = positions[2].to_numpy(), positions[3].to_numpy()
    adata.obsm["spatial"] = positions[[5, 4]].to_numpy(float)
    factors = json.loads((folder / "scalefactors_json.json").read_text())
    image = np.asarray(Image.open(folder / "tissue_lowres_image.png").convert("RGB"))
    adata.uns["spatial"] = {"lymph": {"images": {"lowres": image}, "scalefactors": factors, "metadata": {}}}
    return adata


def one(adata: ad.AnnData, library: str) -> ad.AnnData:
    """Return one library as an object of its own."""
    part = adata[adata.obs["library_id"] == library].copy()
    part.uns["spatial"] = {library: adata.uns["spatial"][library]}
    return part


def sections(quick: bool) -> Iterator[tuple[str, str, ad.AnnData, dict[str, ad.AnnData]]]:
    """Yield (group, name, section, other sections whose image is wrong for it, by what they are)."""
    her = {s: stimg.datasets.her2st(s, image="hires") for s in (("C2", "B4") if quick else ("B4", "C2", "C3", "C4", "C5"))}
    for name, adata in her.items():
        others = [("serial" if n[0] == name[0] else "other", other) for n, other in her.items() if n != name]
        yield "HER2ST", name, adata, dict(others)
    brain = {s: stimg.datasets.dlpfc(s, image="hires") for s in ("151673", "151674")}
    for name, adata in brain.items():
        (other,) = (o for n, o in brain.items() if n != name)
        if not quick or name == "151673":
            yield "DLPFC", name, adata, {"serial": other}
    bulb = {s: stimg.datasets.mob(s, image="hires") for s in ("1", "2")}
    for name, adata in bulb.items():
        (other,) = (o for n, o in bulb.items() if n != name)
        if not quick or name == "1":
            yield "olfactory bulb", f"MOB{name}", adata, {"serial": other}
    mirror = Path(os.environ.get("STIMG_DATA_MIRROR", "")) / "visium_lymph"
    if mirror.is_dir():
        yield "lymph node", "lymph", lymph_node(mirror), {}
    for seed in range(1 if quick else 2):
        for technology, shape in (("visium", (20, 18)), ("st", (15, 14))):
            for outline in (True, False):
                made = stimg.datasets.simulate(
                    technology=technology, shape=shape, n_genes=300, n_donors=2, n_sections=2, image=True, mpp=2.0,
                    tissue=TissueOptions(outline=outline), donors=DonorOptions(), rng=seed,
                )  # fmt: skip
                if technology == "st":  # nothing else states the pitch of a square array
                    for entry in made.uns["spatial"].values():
                        entry["metadata"]["pitch_um"] = 200.0
                kind = "outline" if outline else "tissue fills image"
                wrong = {"serial": one(made, "D1S2"), "other": one(made, "D2S1")}
                yield f"simulated, {kind}", f"{technology} {seed}", one(made, "D1S1"), wrong


def moved(adata: ad.AnnData, by: Callable[[np.ndarray], np.ndarray]) -> ad.AnnData:
    """Return a copy with other (x, y)."""
    out = adata.copy()
    out.obsm["spatial"] = by(np.asarray(adata.obsm["spatial"], dtype=float))
    return out


def entry_of(adata: ad.AnnData) -> dict[str, Any]:
    """Return ``uns["spatial"]`` of the only library."""
    (entry,) = adata.uns["spatial"].values()
    return entry


def with_entry(adata: ad.AnnData, **change: Any) -> ad.AnnData:
    """Return a copy whose only library has other parts."""
    out = adata.copy()
    (library,) = out.uns["spatial"]
    out.uns["spatial"] = {library: {**out.uns["spatial"][library], **change}}
    return out


def untouched(adata: ad.AnnData) -> Iterator[tuple[str, ad.AnnData]]:
    """Yield the section and its halves."""
    xy = np.asarray(adata.obsm["spatial"], dtype=float)
    yield "as it is", adata
    for axis in (0, 1):
        below = xy[:, axis] < np.median(xy[:, axis])
        for half in (below, ~below):
            yield "as it is, a half of it", adata[half].copy()


def mistakes(adata: ad.AnnData, wrong: dict[str, ad.AnnData], seed: int) -> Iterator[tuple[str, ad.AnnData]]:
    """Yield (mistake, the section with it)."""
    if adata.n_obs > MOST:
        adata = adata[adata.obsm["spatial"][:, 0] < np.median(adata.obsm["spatial"][:, 0])].copy()
    entry = entry_of(adata)
    factors = entry["scalefactors"]
    which = "hires" if "hires" in entry["images"] else "lowres"
    scale, image = factors[f"tissue_{which}_scalef"], entry["images"][which]
    xy = np.asarray(adata.obsm["spatial"], dtype=float)
    centre = xy.mean(axis=0)
    pitch = float(np.median(np.sort(np.linalg.norm(xy[:200, None] - xy[None], axis=2), axis=1)[:, 1]))
    mpp = factors.get("microns_per_pixel", 100 / pitch)
    rng = np.random.default_rng(seed)
    yield "x and y swapped", moved(adata, lambda p: p[:, ::-1])
    yield "image mirrored, left-right", with_entry(adata, images={which: image[:, ::-1].copy()})
    yield "image mirrored, up-down", with_entry(adata, images={which: image[::-1].copy()})
    yield "image turned by 180°", with_entry(adata, images={which: image[::-1, ::-1].copy()})
    yield "image turned by 90°", with_entry(adata, images={which: np.rot90(image).copy()})
    turn = np.deg2rad(5)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    yield "turned by 5°", moved(adata, lambda p: (p - centre) @ matrix + centre)
    for factor in (1.02, 0.98, 1.1, 0.9):
        yield f"coordinates x {factor}", moved(adata, lambda p, f=factor: p * f)
    for factor in (1.02, 1.1):
        yield f"stated µm per pixel x {factor}", with_entry(adata, scalefactors={**factors, "microns_per_pixel": mpp * factor})
    if abs(scale - 1) > 0.02:  # an image that was never reduced has no other coordinates
        yield "hires coordinates", moved(adata, lambda p: p * scale)
    if abs(mpp - 1) > 0.02:
        yield "µm taken for pixels", moved(adata, lambda p: p * mpp)
    for steps in (0.5, 1, 2, 4):
        angle = rng.uniform(0, 2 * np.pi)
        by = steps * pitch * np.array([np.cos(angle), np.sin(angle)])
        yield f"shifted by {steps:g} steps", moved(adata, lambda p, b=by: p + b)
    for name, other in wrong.items():
        theirs = entry_of(other)
        kept = {f"tissue_{which}_scalef": theirs["scalefactors"][f"tissue_{which}_scalef"]}
        yield (
            f"image of {'a neighbouring section' if name == 'serial' else 'another donor'}",
            with_entry(adata, images={which: theirs["images"][which]}, scalefactors={**factors, **kept}),
        )


def rate(states: pd.Series, wanted: tuple[str, ...]) -> str:
    """Return how many are of the wanted states, with the exact binomial 95 % interval of their share."""
    n, k = len(states), int(states.isin(wanted).sum())
    if not n:
        return ""
    low, high = binomtest(k, n).proportion_ci(0.95, method="exact")
    return f"{k} / {n} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Print the tables and keep the values."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three real sections and one seed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines: list[dict[str, Any]] = []
    start = time.process_time()
    for group, name, adata, wrong in sections(options.quick):
        for mistake, made in (*untouched(adata), *mistakes(adata, wrong, seed=len(lines))):
            table = stimg.pp.check_slide(made)
            for mode, checks in (("all rows", GEOMETRY), ("image alone", IMAGE)):
                if mode == "image alone" and mistake.startswith("stated"):
                    continue
                rows = table[table["check"].isin(checks)]
                bad, odd = (rows.loc[rows["status"] == status, "check"].tolist() for status in ("fail", "warn"))
                state = "fail" if bad else "warn" if odd else "pass"
                lines.append({"group": group, "section": name, "mistake": mistake, "mode": mode, "state": state, "fail": bad, "warn": odd})
                if (state == "pass") == (not mistake.startswith("as it is")) and mode == "all rows":
                    print(f"    {name}, {mistake}: {state}, {[*bad, *odd]}", flush=True)
        print(f"{group}, {name}: {time.process_time() - start:.0f} s", flush=True)
        if not options.quick:  # what is there so far, if it is cut short
            common.save("slide_doctor", {"sections": sorted({line["section"] for line in lines})}, lines)
    frame = pd.DataFrame(lines)
    real = ~frame["group"].str.startswith("simulated")
    for mode in ("all rows", "image alone"):
        rows = []
        for mistake in dict.fromkeys(frame["mistake"]):
            chosen = (frame["mode"] == mode) & (frame["mistake"] == mistake)
            if chosen.any():
                states = [frame.loc[chosen & of, "state"] for of in (real, ~real)]
                rows.append([mistake, *(rate(s, wanted) for s in states for wanted in (("fail",), ("fail", "warn")))])
        header = ["", "real: fail", "real: fail or warn", "simulated: fail", "simulated: fail or warn"]
        print(f"\n{mode}\n\n" + common.table(header, rows))
    alone = frame[(frame["mode"] == "image alone") & (frame["state"] == "fail")]
    right = total = 0
    for row in alone.itertuples():
        wanted = next((kinds for start_of, kinds in NAMED.items() if row.mistake.startswith(start_of)), None)
        kinds = set(row.fail) & set.union(*NAMED.values())
        if wanted is not None and kinds:
            right, total = right + (kinds == wanted), total + 1
    print(
        f"\nOf {total} failures with a cause, by the image alone, {right} name the right one. {time.process_time() - start:.0f} s of one core."
    )


if __name__ == "__main__":
    main()
