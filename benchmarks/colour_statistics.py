"""Colour statistics of all spots of a section: stimg against plain numpy (cut out each window, ask np.percentile), in one run.

Run ``python benchmarks/colour_statistics.py`` for section C2 of HER2ST (fetched or read from $STIMG_DATA_MIRROR; 187 spots, windows up to 400 µm =
580 px), or with ``--simulated`` for an image made here. Both are also timed on square bins of 8 µm, whose windows overlap almost wholly. One thread.
"""

import argparse
import statistics
import time

import numpy as np

from stimg.image.colour import WINDOWS_UM, colour_statistics

BIN_UM = 8.0


def her2st_section(name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (image, centres (y, x) in px, µm per px) of one section."""
    from stimg.datasets import fetch_file, her2st
    from stimg.datasets.registry import FILES
    from stimg.datasets.section import full

    adata, entry = her2st(name), FILES[f"her2st/image/{name}"]
    image = full(fetch_file(entry.name), (entry.width, entry.height))
    return image, adata.obsm["spatial"][:, ::-1], adata.uns["spatial"][name]["scalefactors"]["microns_per_pixel"]


def simulated_section(mpp: float = 0.69, side: int = 6000) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the same of a slide with a round piece of noisy tissue and spots 200 µm apart."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side].astype(np.float32) / side - 0.5
    density = np.where(y**2 + x**2 < 0.2, 0.4 + 0.1 * np.sin(40 * y) * np.cos(30 * x), 0.01)
    image = np.empty((side, side, 3), dtype=np.uint8)
    for channel, share in enumerate((0.7, 1.2, 0.8)):
        image[..., channel] = np.clip(255 * 10 ** (-share * density) + rng.normal(0, 6, density.shape), 0, 255)
    grid = np.stack(np.meshgrid(*[np.arange(0, side, 200 / mpp)] * 2, indexing="ij"), axis=-1).reshape(-1, 2) + 50
    return image, grid[((grid / side - 0.5) ** 2).sum(axis=1) < 0.2], mpp


def plain(image: np.ndarray, centres: np.ndarray, mpp: float) -> np.ndarray:
    """Return the statistics as numpy gives them, window by window."""
    out = []
    for centre in centres:
        for um in WINDOWS_UM:
            side = round(um / mpp)
            y, x = np.floor(centre - side / 2 + 0.5).astype(int)
            density = -np.log10((image[max(y, 0) : y + side, max(x, 0) : x + side].reshape(-1, 3) + 1.0) / 256)
            out.append([density.mean(axis=0), density.std(axis=0), *np.percentile(density, [10, 90], axis=0)])
    return np.swapaxes(np.array(out), 1, 2).reshape(len(centres), -1)


def timed(call, repeats: int):
    """Return (result, median seconds)."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        out = call()
        seconds.append(time.perf_counter() - start)
    return out, statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulated", action="store_true", help="an image made here, without any download")
    parser.add_argument("--section", default="C2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plain-spots", type=int, default=24, help="spots given to numpy; the rate is per spot")
    options = parser.parse_args()
    image, centres, mpp = simulated_section() if options.simulated else her2st_section(options.section)
    step = BIN_UM / mpp
    middle = np.array(image.shape[:2]) / 2
    bins = np.stack(np.meshgrid(*[np.arange(-75, 75) * step] * 2, indexing="ij"), axis=-1).reshape(-1, 2) + middle
    colour_statistics(image, centres[:1], mpp=mpp)  # compiles before the clock runs
    print(f"image of {image.shape[1]} x {image.shape[0]} px at {mpp:.3f} µm/px, windows {WINDOWS_UM} µm")
    print(f"{'':34s}{'positions':>11s}{'seconds':>10s}{'positions/s':>13s}{'ratio':>9s}")
    for name, places in (("spots", centres), (f"bins of {BIN_UM:g} µm", bins)):
        few = np.sort(np.random.default_rng(0).choice(len(places), min(options.plain_spots, len(places)), replace=False))
        reference, slow = timed(lambda places=places, few=few: plain(image, places[few], mpp), 1)
        ours, fast = timed(lambda places=places: colour_statistics(image, places, mpp=mpp), options.repeats)
        np.testing.assert_allclose(ours.values[few], reference, rtol=1e-5, atol=1e-6)
        rates = len(few) / slow, len(places) / fast
        print(f"{name + ', numpy':34s}{len(few):11d}{slow:10.3f}{rates[0]:13.1f}{1:9.0f}")
        print(f"{name + ', stimg':34s}{len(places):11d}{fast:10.3f}{rates[1]:13.1f}{rates[1] / rates[0]:9.0f}")


if __name__ == "__main__":
    main()
