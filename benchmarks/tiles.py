"""Tiles per second of ``stimg.data.TileDataset``, beside other ways to read them and the bound of copying from memory, in one run.

``python benchmarks/tiles.py`` makes a slide of 8,192 x 8,192 pixels with 1,000 spots in four forms (array, jpg, tiled JPEG TIFF with a pyramid, SpatialData
on disk) and reads tiles of 224 x 224 pixels. ``--quick`` takes a small one. Prints tables and writes ``benchmarks/results/tiles.json``. Rates are per
second of wall time and of processor time, the best pass of some seconds with warm caches; ratios are within the run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
import anndata as ad
import numpy as np
import pandas as pd
import psutil
import tifffile
import torch
from common import save, table
from PIL import Image
from torch.utils.data import DataLoader

import stimg
from stimg.data import TileDataset
from stimg.image import open_slide

torch.set_num_threads(1)
SIZE, MPP, BATCH = 224, 0.5, 64
CHILD = "--memory-child"


def picture(side: int, seed: int = 0) -> np.ndarray:
    """Return uint8 (side, side, 3) with structure at all scales and a grain, which compresses about as H&E does."""
    rng = np.random.default_rng(seed)
    out = np.full((side, side, 3), 190.0, dtype=np.float32)
    for block in (512, 64, 8):
        coarse = rng.normal(0, 22, (-(-side // block), -(-side // block), 3)).astype(np.float32)
        out += np.kron(coarse, np.ones((block, block, 1), dtype=np.float32))[:side, :side]
    for rows in np.array_split(np.arange(side), 32):  # the grain in strips: no second array of this size
        out[rows] += rng.normal(0, 4, (len(rows), side, 3)).astype(np.float32)
    return np.clip(out, 0, 255).astype(np.uint8)


def write_tiff(path: Path, image: np.ndarray, levels: int = 3) -> None:
    """Write a tiled pyramid, JPEG, as scanners do."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        options: dict[str, Any] = {"tile": (256, 256), "compression": "jpeg", "photometric": "rgb"}
        file.write(image, subifds=levels - 1, resolution=(1e4 / MPP, 1e4 / MPP), resolutionunit="CENTIMETER", **options)
        for level in range(1, levels):
            file.write(image[:: 2**level, :: 2**level], subfiletype=1, **options)


def section(side: int, n: int, seed: int = 1) -> ad.AnnData:
    """Return a table of spots on a square lattice, all tiles inside."""
    across = int(np.sqrt(n))
    at = np.linspace(SIZE * 2, side - SIZE * 2, across)
    y, x = (each.ravel() for each in np.meshgrid(at, at, indexing="ij"))
    adata = ad.AnnData(
        np.ones((len(y), 1), dtype=np.float32),
        obs=pd.DataFrame({"library_id": pd.Categorical(["A"] * len(y))}, index=[str(i) for i in range(len(y))]),
    )
    jitter = np.random.default_rng(seed).uniform(-40, 40, (len(y), 2))
    adata.obsm["spatial"] = np.stack([x, y], axis=1) + jitter
    adata.uns["spatial"] = {
        "A": {"images": {}, "scalefactors": {"microns_per_pixel": MPP, "spot_diameter_fullres": float(SIZE)}, "metadata": {}}
    }
    return adata


class Rate(NamedTuple):
    """Tiles per second of wall time, and per second of this process's processor time, which other programs on the machine disturb less."""

    wall: float
    core: float


def best(read: Callable[[], int], seconds: float) -> Rate:
    """Return the highest rates of a pass of ``read``, which reads tiles and returns how many; the first pass is not timed."""
    read()
    rates: list[Rate] = []
    begin = time.perf_counter()
    while not rates or time.perf_counter() - begin < seconds:
        start, used = time.perf_counter(), time.process_time()
        done = read()
        rates.append(Rate(done / (time.perf_counter() - start), done / (time.process_time() - used)))
    return Rate(max(rate.wall for rate in rates), max(rate.core for rate in rates))


def through_loader(dataset: TileDataset, workers: int, order: np.ndarray) -> Callable[[], int]:
    """Return a pass over the dataset in an order; workers stay alive between passes."""
    loader = DataLoader(
        dataset, batch_size=BATCH, sampler=order.tolist(), collate_fn=dataset.collate, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: sum(len(batch["image"]) for batch in loader)


def copying(image: np.ndarray, adata: ad.AnnData, order: np.ndarray) -> Callable[[], int]:
    """Return the bound: slices of an array in memory, stacked to batches."""
    corners = np.floor(adata.obsm["spatial"][:, ::-1] - SIZE / 2 + 0.5).astype(int)

    def read() -> int:
        for first in range(0, len(order), BATCH):
            torch.from_numpy(np.stack([image[y : y + SIZE, x : x + SIZE] for y, x in corners[order[first : first + BATCH]]]))
        return len(order)

    return read


def squidpy_crops(image: np.ndarray, adata: ad.AnnData) -> Callable[[], int]:
    """Return a pass over squidpy's crops of spots, as arrays."""
    import squidpy as sq

    container = sq.im.ImageContainer(image, library_id="A")
    return lambda: sum(1 for _ in container.generate_spot_crops(adata, library_id="A", as_array="image", squeeze=True))


def spatialdata_tiles(sdata: Any) -> Callable[[], int]:
    """Return a pass over the first tiles of spatialdata's dataset, as it comes."""
    from spatialdata.dataloader import ImageTilesDataset

    def items() -> Iterator[Any]:
        dataset = ImageTilesDataset(
            sdata=sdata,
            regions_to_images={"spots": "he"},
            regions_to_coordinate_systems={"spots": "global"},
            table_name="table",
            tile_scale=1.0,
            rasterize=False,
            transform=lambda found: np.asarray(found["he"].data),
        )
        return (dataset[i] for i in range(60))

    return lambda: sum(1 for _ in items())


def as_spatialdata(image: np.ndarray, adata: ad.AnnData, path: Path) -> Any:
    """Return the slide as SpatialData on disk, in chunks of 512."""
    from spatialdata import SpatialData, read_zarr
    from spatialdata.models import Image2DModel, ShapesModel, TableModel

    element = Image2DModel.parse(np.moveaxis(image, -1, 0), dims=("c", "y", "x"), scale_factors=[2, 2], chunks=(3, 512, 512))
    spots = ShapesModel.parse(adata.obsm["spatial"], geometry=0, radius=SIZE / 2, index=np.arange(adata.n_obs))
    own = adata.copy()
    own.obs["region"], own.obs["instance"] = pd.Categorical(["spots"] * own.n_obs), np.arange(own.n_obs)
    parsed = TableModel.parse(own, region="spots", region_key="region", instance_key="instance")
    SpatialData(images={"he": element}, shapes={"spots": spots}, tables={"table": parsed}).write(path)
    return read_zarr(path)


def memory_child(path: str, n: int) -> None:
    """Print the resident memory that reading random tiles of a file adds, in MB."""
    rng, process = np.random.default_rng(0), psutil.Process()
    slide = open_slide(path, mpp=MPP)
    side = slide.levels[0].height
    slide.tile((SIZE, SIZE), 2.5 * SIZE, SIZE)  # compiles and opens
    before, most = process.memory_info().rss, 0
    for y, x in rng.uniform(SIZE * 2, side - SIZE * 2, (n, 2)):
        slide.tile((y, x), SIZE, SIZE)
        most = max(most, process.memory_info().rss)
    sys.stdout.write(json.dumps((most - before) / 1e6))


def memory(folder: Path, sides: tuple[int, ...], n: int) -> dict[str, dict[str, float]]:
    """Return file sizes and added memory of TIFF files of several sizes."""
    found, part = {}, picture(sides[0])
    for side in sides:
        path = folder / f"{side}.tiff"
        write_tiff(path, np.tile(part, (side // sides[0], side // sides[0], 1)))
        run = subprocess.run([sys.executable, __file__, CHILD, str(path), str(n)], check=True, capture_output=True, text=True)
        found[f"{side} x {side}"] = {
            "pixels MB": side**2 * 3 / 1e6,
            "file MB": path.stat().st_size / 1e6,
            "added MB": json.loads(run.stdout),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a slide of 2,048 pixels with 64 spots")
    parser.add_argument(CHILD, nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_child:
        memory_child(options.memory_child[0], int(options.memory_child[1]))
        return
    warnings.simplefilter("ignore")
    side, n, seconds = (2048, 64, 0.1) if options.quick else (8192, 1000, 1.5)
    image, adata = picture(side), section(side, n)
    in_order, shuffled = np.arange(adata.n_obs), np.random.default_rng(0).permutation(adata.n_obs)
    rates: dict[str, Rate] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiff(folder / "slide.tiff", image)
        Image.fromarray(image).save(folder / "slide.jpg", quality=90)
        sdata = as_spatialdata(image, adata, folder / "slide.zarr")
        rates["copying from memory (bound)"] = best(copying(image, adata, shuffled), seconds)
        sources = {"array": image, "jpg": folder / "slide.jpg", "TIFF": folder / "slide.tiff", "SpatialData": None}
        for what, source in sources.items():
            for kind, mpp, fields in (("as it is", MPP, (1.0,)), ("reduced 2 x", 2 * MPP, (1.0,)), ("reduced 1.4 x", 1.4 * MPP, (1.0,))):
                data = sdata if source is None else adata
                stimg.pp.plan_tiles(data, tile_um=SIZE * mpp, mpp=mpp, fields=fields, image=source)
                dataset = TileDataset(data, image=source)
                lazy = what in ("TIFF", "SpatialData")
                for workers in (0, 2):
                    if workers and kind != "as it is":
                        continue
                    rates[f"{what}, {kind}, {workers} workers"] = best(through_loader(dataset, workers, shuffled), seconds)
                if lazy and kind == "as it is":
                    rates[f"{what}, {kind}, 0 workers, in the order of the slide"] = best(through_loader(dataset, 0, in_order), seconds)
        stimg.pp.plan_tiles(adata, tile_um=SIZE * MPP, mpp=MPP, image=image)
        rates["array, as it is, augmented, 0 workers"] = best(
            through_loader(TileDataset(adata, image=image, augment=True), 0, shuffled), seconds
        )
        rates["squidpy generate_spot_crops, array"] = best(squidpy_crops(image, adata), seconds)
        rates["spatialdata ImageTilesDataset, SpatialData"] = best(spatialdata_tiles(sdata), seconds)
        flat = memory(folder, (1024, 2048) if options.quick else (4096, 16384), 40 if options.quick else 400)
    bound = rates["copying from memory (bound)"]
    rows = []
    for way, rate in rates.items():
        alone = "2 workers" not in way  # the processor time of workers is not that of this process
        share = rate.core / bound.core if alone else rate.wall / bound.wall
        rows.append([way, f"{rate.wall:,.0f}", f"{rate.core:,.0f}" if alone else "", f"{share:.3f}"])
    sys.stdout.write(table(["way", "tiles / s", "tiles / s of one core", "of the bound"], rows) + "\n\n")
    rows = [[name, *(f"{value:,.1f}" for value in found.values())] for name, found in flat.items()]
    sys.stdout.write(table(["TIFF of", *next(iter(flat.values()))], rows) + "\n")
    if not options.quick:
        protocol = {"side": side, "spots": adata.n_obs, "tile px": SIZE, "batch": BATCH, "seconds": seconds, "cores": os.cpu_count()}
        save("tiles", protocol, {"tiles per second": {way: rate._asdict() for way, rate in rates.items()}, "memory": flat})


if __name__ == "__main__":
    main()
