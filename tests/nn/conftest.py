"""Random and simulated batches of crops, and naive readings of them: what the tests of this folder compare with."""

import numpy as np
import pytest
import torch


def _make_batch(*, seed=0, size=(3, 4), n_genes=11, widths=(7, 5, 9), filled=(0.9, 0.4, 0.0), rate=1.5, hexagonal=False, extra=True):
    """A batch of len(widths) crops, each with its own panel width and share of occupied lattice points."""
    rng = np.random.default_rng(seed)
    n, (height, width) = len(widths), size
    seen = np.zeros((n, height, width), dtype=bool)
    panel = np.full((n, max(widths)), -1, dtype=np.int64)
    pixel, channel, value, depth = [], [], [], np.zeros((n, height, width), dtype=np.float32)
    obs = np.full((n, height, width), -1, dtype=np.int64)
    for b in range(n):
        ids = np.sort(rng.choice(n_genes, widths[b], replace=False))
        panel[b, : widths[b]] = ids
        n_spots = round(filled[b] * height * width)
        at = rng.permutation(height * width)[:n_spots]
        seen[b].reshape(-1)[at] = True
        for p in range(height * width):
            y, x = divmod(p, width)
            if not seen[b, y, x]:
                continue
            counts = rng.poisson(rng.gamma(0.7, rate, widths[b]))
            depth[b, y, x] = max(counts.sum() + (rng.integers(0, 20) if extra else 0), 1)
            obs[b, y, x] = b * height * width + p
            for g, c in zip(ids, counts, strict=True):
                if c:
                    pixel.append(b * height * width + p)
                    channel.append(g)
                    value.append(c)
    grid = np.stack(np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"), -1)
    if hexagonal:
        grid[..., 1] += np.where(np.arange(height) % 2 == 1, 0.25, -0.25)[:, None]
        grid[..., 0] *= np.sqrt(3) / 2
    arrays = {
        "pixel": np.array(pixel, dtype=np.int64),
        "channel": np.array(channel, dtype=np.int64),
        "value": np.array(value, dtype=np.float32),
        "seen": seen,
        "depth": depth,
        "obs": obs,
        "panel": panel,
        "yx": np.broadcast_to(grid, (n, height, width, 2)).astype(np.float32).copy(),
        "library": np.arange(n, dtype=np.int64) % 2,
    }
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def _counts_image(batch, n_genes):
    """The counts of a batch as (B, H, W, n_genes), NaN for genes that are not in the crop's panel."""
    n, height, width = batch["seen"].shape
    out = np.full((n, height * width, n_genes), np.nan)
    for b in range(n):
        for g in batch["panel"][b].tolist():
            if g >= 0:
                out[b, :, g] = 0.0
    for p, g, v in zip(batch["pixel"].tolist(), batch["channel"].tolist(), batch["value"].tolist(), strict=True):
        out[p // (height * width), p % (height * width), g] = v
    return out.reshape(n, height, width, n_genes)


def _visible_image(packed, sight, n_genes):
    """Which genes the encoder sees at every lattice point, bool (B, H, W, n_genes), read off ``sight.mask`` entry by entry."""
    n, height, width = packed.where.shape
    out = np.zeros((n, height, width, n_genes), dtype=bool)
    n_spots = packed.seen.shape[1]
    for b in range(n):
        for y in range(height):
            for x in range(width):
                at = int(packed.where[b, y, x])
                if at < 0:
                    continue
                row = 0 if sight.mask.shape[1] == 1 else at - b * n_spots
                for c, g in enumerate(packed.panel[b].tolist()):
                    if g >= 0:
                        out[b, y, x, g] = bool(sight.mask[b, row, c])
    return out


def _simulated(technology, *, rule="all", n_channels=None, n_crops=4):
    """A batch that the real dataset makes from two simulated sections, augmented, and the number of genes."""
    from stimg.data import CropDataset, libraries
    from stimg.datasets import simulate
    from stimg.image.spec import CropSpec
    from stimg.pp import rasterize

    adata = simulate(technology=technology, shape=(9, 8), n_genes=24, n_sections=2, rng=1)
    rasterize(adata)
    keep = np.random.default_rng(0).random(adata.n_obs) < 0.7
    found = libraries(adata, vocabulary=list(adata.var_names), rows=keep)
    data = CropDataset(found, CropSpec((5, 4), min_occupied=2), rule=rule, n_channels=n_channels, augment=True, seed=3)
    return data.__getitems__([(0, i * len(data) // n_crops) for i in range(n_crops)]), adata.n_vars


@pytest.fixture(scope="session")
def make_batch():
    return _make_batch


@pytest.fixture(scope="session")
def counts_image():
    return _counts_image


@pytest.fixture(scope="session")
def visible_image():
    return _visible_image


@pytest.fixture(scope="session")
def simulated():
    return _simulated
