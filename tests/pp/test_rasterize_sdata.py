"""``pp.rasterize`` on SpatialData: every coordinate system against spatialdata's own centroids."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stimg.pp as pp
from stimg.data.slots import raster_libraries
from stimg.image.spec import RasterSpec


def make(xy, row=None, col=None, *, lib="A", factors=None, images=None, n_vars=3):
    """An AnnData with positions, and array indices where given."""
    xy = np.asarray(xy, dtype=float)
    n = len(xy)
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(2, (n, n_vars)).astype(np.float32)), obs=pd.DataFrame(index=[f"b{i}" for i in range(n)]))
    adata.obsm["spatial"] = xy
    if row is not None:
        adata.obs["array_row"], adata.obs["array_col"] = np.asarray(row), np.asarray(col)
    adata.obs["library_id"] = pd.Categorical([lib] * n)
    adata.uns["spatial"] = {lib: {"images": images or {}, "scalefactors": factors or {}, "metadata": {}}}
    return adata


def visium(first_row=0, rows=12, cols=9, pitch=138.0, holes=0.2, turn=0.0, seed=0, **kwargs):
    """A hexagonal array in Space Ranger's convention, and its true (x, y)."""
    rng = np.random.default_rng(seed)
    row = np.repeat(np.arange(first_row, first_row + rows), cols)
    col = 2 * np.tile(np.arange(3, 3 + cols), rows) + row % 2
    keep = rng.random(len(row)) >= holes
    row, col = row[keep], col[keep]
    xy = pitch * np.stack([col / 2, row * np.sqrt(3) / 2], axis=1)
    cos, sin = np.cos(turn), np.sin(turn)
    xy = xy @ np.array([[cos, -sin], [sin, cos]]).T + [3000, 2000]
    return make(xy, row, col, **kwargs)


def spec_of(adata, lib="A"):
    return RasterSpec.from_dict(adata.uns["stimg"]["raster"][lib])


def sdata_of(adata, transformations, *, polygons=False):
    """A SpatialData whose table annotates circles, or squares, at the AnnData's coordinates."""
    import geopandas
    import shapely
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    xy = adata.obsm["spatial"]
    if polygons:
        frame = geopandas.GeoDataFrame(geometry=shapely.box(xy[:, 0] - 5, xy[:, 1] - 5, xy[:, 0] + 5, xy[:, 1] + 5))
        shapes = ShapesModel.parse(frame, transformations=transformations)
    else:
        shapes = ShapesModel.parse(xy, geometry=0, radius=20.0, transformations=transformations)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    table = adata[order].copy()
    table.obs["region"], table.obs["instance"] = pd.Categorical(["spots"] * adata.n_obs), shapes.index.to_numpy()[order]
    return SpatialData(
        shapes={"spots": shapes}, tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="instance")}
    )


@pytest.mark.parametrize("polygons", [False, True])
def test_spatialdata_in_every_coordinate_system(polygons):
    from spatialdata import get_centroids
    from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

    affine = np.array([[0.5, 0.1, 7], [-0.1, 0.5, 3], [0, 0, 1]])
    systems = {
        "global": Identity(),
        "microns": Scale([100 / 138, 100 / 138], axes=("x", "y")),
        "moved": Sequence([Scale([2, 2], axes=("x", "y")), Translation([50, -90], axes=("x", "y"))]),
        "turned": Affine(affine, input_axes=("x", "y"), output_axes=("x", "y")),
    }
    adata = visium(factors={"microns_per_pixel": 100 / 138, "spot_diameter_fullres": 96.4}, images={"hires": np.zeros((900, 900, 3))})
    sdata = sdata_of(adata, systems, polygons=polygons)
    for name, scale in {"global": 1.0, "microns": 100 / 138, "moved": 2.0, "turned": np.sqrt(0.26)}.items():
        pp.rasterize(sdata, coordinate_system=name)
        table = sdata.tables["table"]
        spec = spec_of(table)
        assert spec.mpp == pytest.approx(100 / 138 / scale)
        assert spec.residual_um < 1e-6
        xy = get_centroids(sdata.shapes["spots"], coordinate_system=name).compute().loc[table.obs["instance"]].to_numpy()
        assert np.allclose(spec.centres_px(table.obsm["stimg_rc"]), xy[:, ::-1], atol=1e-6)
    with pytest.raises(KeyError, match="no transformation to 'elsewhere'"):
        pp.rasterize(sdata, coordinate_system="elsewhere")
    with pytest.raises(KeyError, match="found \\['table'\\]"):
        pp.rasterize(sdata, table_key="other")


def test_spatialdata_names_the_library_by_region_and_counts_strangers():
    from spatialdata.transformations import Identity

    adata = visium()
    del adata.obs["library_id"]
    sdata = sdata_of(adata, {"global": Identity()})
    pp.rasterize(sdata)
    assert list(raster_libraries(sdata.tables["table"])) == ["spots"]
    sdata.tables["table"].obs["instance"] = sdata.tables["table"].obs["instance"].to_numpy() + 2
    with pytest.raises(KeyError, match=r"2 of \d+ instances"):
        pp.rasterize(sdata)
