"""A dense stand-in for the raster store, and small libraries: what the tests of this folder compare with."""

from typing import NamedTuple

import numpy as np
import pytest

from stimg.data.library import Library
from stimg.image.spec import RasterSpec


class Window(NamedTuple):
    pixel: np.ndarray
    gene: np.ndarray
    value: np.ndarray


class DenseStore:
    """The interface of RasterStore on a dense array (gene, row, col)."""

    def __init__(self, dense: np.ndarray, index: np.ndarray) -> None:
        self.dense, self.index = dense, index
        self.shape, self.n_vars, self.nnz, self.dtype = index.shape, len(dense), int((dense != 0).sum()), dense.dtype

    @classmethod
    def from_csr(cls, X, rc, shape):
        values = np.asarray(X.todense())
        dense, index = np.zeros((X.shape[1], *shape), dtype=values.dtype), np.full(shape, -1, dtype=np.int32)
        for i in range(len(rc) - 1, -1, -1):
            dense[:, rc[i, 0], rc[i, 1]] += values[i]
            index[rc[i, 0], rc[i, 1]] = i
        return cls(dense, index)

    def _cut(self, image, top, left, height, width, fill):
        out = np.full((*image.shape[:-2], height, width), fill, dtype=image.dtype)
        for y in range(height):
            for x in range(width):
                if 0 <= top + y < self.shape[0] and 0 <= left + x < self.shape[1]:
                    out[..., y, x] = image[..., top + y, left + x]
        return out

    def window(self, top, left, height, width, genes=None, *, workspace=None):
        dense = self._cut(self.dense if genes is None else self.dense[np.asarray(genes)], top, left, height, width, 0)
        gene, y, x = np.nonzero(dense)
        return Window((y * width + x).astype(np.int32), gene.astype(np.int32), dense[gene, y, x])

    def occupancy(self, top, left, height, width):
        return self._cut(self.index, top, left, height, width, -1) >= 0

    def obs(self, top, left, height, width):
        return self._cut(self.index, top, left, height, width, -1)


def _make_library(
    *, shape=(9, 11), n_vars=12, filled=0.7, hex_parity=-1, seed=0, panel=None, name="a", first_row=0, values="counts"
) -> Library:
    """A random library of ``shape`` with a share ``filled`` of its lattice points occupied."""
    rng = np.random.default_rng(seed)
    occupied = rng.random(shape) < filled
    occupied[0, 0] = occupied[-1, -1] = True
    rc = np.argwhere(occupied).astype(np.int32)[rng.permutation(int(occupied.sum()))]
    index = np.full(shape, -1, dtype=np.int32)
    index[rc[:, 0], rc[:, 1]] = np.arange(len(rc))
    counts = rng.poisson(rng.gamma(0.5, 3.0, size=n_vars), size=(len(rc), n_vars)).astype(np.float32)
    if values != "counts":
        counts = np.log1p(counts).astype(np.float32)
    dense = np.zeros((n_vars, *shape), dtype=np.float32)
    dense[:, rc[:, 0], rc[:, 1]] = counts.T
    spec = RasterSpec("hex" if hex_parity >= 0 else "square", shape, 100.0, hex_parity=hex_parity)
    depth = (counts.sum(1) + rng.integers(0, 5, len(rc))).astype(np.float32)
    panel = np.arange(n_vars) if panel is None else np.asarray(panel)
    rows = first_row + rng.permutation(len(rc)).astype(np.int64)
    return Library(name, DenseStore(dense, index), spec, panel.astype(np.int64), depth, rows, rc, values == "counts")


def _dense_batch(batch, n_vocabulary):
    """The batch as (B, V, H, W), NaN where a gene is not in the crop's panel."""
    b, h, w = batch["seen"].shape
    out = np.full((b, n_vocabulary, h * w), np.nan)
    for i in range(b):
        out[i, [g for g in batch["panel"][i].tolist() if g >= 0]] = 0
    pixel, channel = batch["pixel"].numpy(), batch["channel"].numpy()
    out[pixel // (h * w), channel, pixel % (h * w)] = batch["value"].numpy()
    return out.reshape(b, n_vocabulary, h, w)


@pytest.fixture(scope="session")
def make_library():
    return _make_library


@pytest.fixture(scope="session")
def dense_batch():
    return _dense_batch


@pytest.fixture(scope="session")
def dense_store():
    return DenseStore
