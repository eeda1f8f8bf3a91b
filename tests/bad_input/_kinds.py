"""What the tests of bad input share: the register of kinds, the check of one kind, and what is made bad.

A kind names the type of the error and two patterns: what the message must say was found, and what it must say is wanted or to be done. Its
function returns what must stay as it is (an object, a folder) and the call that has to fail.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stimg
from stimg import pp
from stimg.image import RasterSpec, RasterStore


class Kind(NamedTuple):
    error: type[Exception]
    found: str
    way_out: str
    make: Callable[[SimpleNamespace], tuple[Any, Callable[[], Any]]]

    def check(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        """The call fails as it should, and nothing has changed."""
        kept, call = self.make(SimpleNamespace(folder=folder, patch=patch))
        before = state(kept)
        with pytest.raises(self.error) as caught:
            call()
        patch.undo()
        message = caught.value.args[0] if isinstance(caught.value, KeyError) else str(caught.value)
        assert type(caught.value) is self.error or self.error is OSError
        assert re.search(self.found, message), message
        assert re.search(self.way_out, message), message
        assert state(kept) == before


class Kinds(dict[str, Kind]):
    """The kinds of one file by name; called, a decorator that adds one."""

    def __call__(self, error: type[Exception], found: str, way_out: str) -> Callable:
        def add(make: Callable) -> Callable:
            assert make.__name__ not in self
            self[make.__name__] = Kind(error, found, way_out, make)
            return make

        return add


@functools.cache
def _slide(technology: str, shape: tuple[int, int], rastered: bool) -> ad.AnnData:
    adata = stimg.datasets.simulate(technology=technology, shape=shape, n_genes=12, mpp=0.5, rng=0)
    if rastered:
        pp.rasterize(adata)
    return adata


def slide(technology="visium", shape=(8, 8), *, rastered=False):
    return _slide(technology, shape, rastered).copy()


def rastered(technology="visium", shape=(8, 8)):
    return slide(technology, shape, rastered=True)


def plain(xy, *, row=None, col=None, **factors):
    """Counts at (x, y), with array indices where given."""
    adata = ad.AnnData(sp.csr_matrix(np.ones((len(xy), 2), dtype=np.float32)), obs=pd.DataFrame(index=[f"s{i}" for i in range(len(xy))]))
    adata.obsm["spatial"] = np.asarray(xy, dtype=float)
    adata.obs["library_id"] = "A"
    if row is not None:
        adata.obs["array_row"], adata.obs["array_col"] = row, col
    adata.uns["spatial"] = {"A": {"images": {}, "scalefactors": factors, "metadata": {}}}
    return adata


def square(rows=10, cols=12, pitch=200.0):
    row, col = (a.ravel() for a in np.mgrid[:rows, :cols])
    return row, col, pitch * np.stack([col, row], axis=1)


def hexagonal(rows=10, cols=12, pitch=200.0):
    row, col = (a.ravel() for a in np.mgrid[:rows, :cols])
    return pitch * np.stack([col + 0.5 * (row % 2), row * np.sqrt(0.75)], axis=1)


def model_of(adata, **options):
    stimg.model.STMAE.setup_anndata(adata)
    return stimg.model.STMAE(adata, **{"crop_size": (4, 4), "n_latent": 8, "n_layers": 1, "n_heads": 2, **options})


def train(model, **options):
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    model.train(**{"max_epochs": 1, "validation": None, "rng": 0, **quiet, **options})
    return model


@functools.cache
def trained():
    return train(model_of(rastered()))


def store(folder: Path) -> Path:
    path = folder / "store.zarr"
    adata = rastered("st")
    spec = RasterSpec.from_dict(adata.uns["stimg"]["raster"]["D1S1"])
    RasterStore.from_csr(adata.X, adata.obsm["stimg_rc"], spec.shape).save(path)
    return path


def state(thing: Any) -> Any:
    """Everything that an object or a folder holds, as something that can be compared."""
    if isinstance(thing, ad.AnnData):
        parts = {name: {k: state(v) for k, v in getattr(thing, name).items()} for name in ("obsm", "layers", "obs", "var", "uns")}
        return {"X": state(thing.X), "names": (tuple(thing.obs_names), tuple(thing.var_names)), **parts}
    if isinstance(thing, dict):
        return {k: state(v) for k, v in thing.items()}
    if isinstance(thing, Path):
        return {str(p.relative_to(thing)): p.read_bytes() for p in sorted(thing.rglob("*")) if p.is_file()}
    if sp.issparse(thing):
        return [state(part) for part in (thing.data, thing.indices, thing.indptr)]
    if isinstance(thing, (np.ndarray, pd.Series, pd.DataFrame)):
        values = np.asarray(thing)
        return (values.shape, repr(values.tolist()))
    return repr(thing)
