"""Small sections with known values, and figures closed after each test."""

from collections.abc import Callable, Iterator

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stimg.image.spec import RasterSpec

GENES = ("ERBB2", "COL1A1", "IGKC", "SNAP25")


def make_section(
    lattice: str = "hex",
    *,
    shape: tuple[int, int] = (9, 11),
    name: str = "A",
    pitch_um: float = 100.0,
    keep: float = 0.8,
    seed: int = 0,
    parity: int = 1,
) -> ad.AnnData:
    """A section whose observations are in random order, with counts, a category, a number, H&E and an embedding."""
    rng = np.random.default_rng(seed)
    rc = np.argwhere(rng.random(shape) < keep)
    rc = rc[rng.permutation(len(rc))]
    turn = np.deg2rad(20.0)
    scale = pitch_um / 0.5
    affine = ((scale * np.cos(turn), -scale * np.sin(turn), 400.0), (scale * np.sin(turn), scale * np.cos(turn), 700.0))
    spec = RasterSpec(lattice, shape, pitch_um, hex_parity=parity if lattice == "hex" else -1, affine=affine, mpp=0.5)
    n = len(rc)
    counts = rng.poisson(3.0, (n, len(GENES))).astype(np.float32)
    obs = pd.DataFrame(index=[f"{name}-{i}" for i in range(n)])
    obs["library_id"] = pd.Categorical([name] * n)
    obs["region"] = pd.Categorical(np.where(rc[:, 0] < shape[0] // 2, "upper", "lower"))
    obs["depth"] = counts.sum(axis=1)
    obs["hidden"] = rng.random(n) < 0.5
    adata = ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=list(GENES)))
    adata.obsm["stimg_rc"] = rc.astype(np.int32)
    adata.obsm["spatial"] = spec.centres_px(rc)[:, ::-1]
    adata.obsm["X_stimg_stmae"] = (rng.standard_normal((n, 3)) @ rng.standard_normal((3, 8)) + 0.1 * rng.standard_normal((n, 8))).astype(
        np.float32
    )
    adata.layers["stimg_stmae"] = np.log1p(counts + rng.random(counts.shape)).astype(np.float32)
    adata.layers["log"] = np.log1p(counts)
    adata.uns["stimg"] = {"raster": {name: spec.to_dict()}}
    image = rng.integers(0, 255, (60, 50, 3), dtype=np.uint8)
    adata.uns["spatial"] = {name: {"images": {"hires": image}, "scalefactors": {"tissue_hires_scalef": 0.02}}}
    return adata


def join(*sections: ad.AnnData) -> ad.AnnData:
    """Sections in one object, with the slots in ``uns`` that a join needs."""
    out = ad.concat(sections, uns_merge="unique")
    for key in ("library_id", "region"):
        out.obs[key] = out.obs[key].astype("category")
    return out


@pytest.fixture
def section() -> Callable[..., ad.AnnData]:
    return make_section


@pytest.fixture
def joined() -> Callable[..., ad.AnnData]:
    return join


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")
