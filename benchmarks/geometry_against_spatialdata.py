"""Where things end up: the displacement of known positions after rasterising and cropping, spatialdata's functions against stimg's.

Run ``python benchmarks/geometry_against_spatialdata.py``; it takes seconds and prints the table of docs/concepts/geometry_against_spatialdata.md.
Every row places values whose true positions are known, asks the function where they are, and measures the difference.
"""

import warnings
from importlib.metadata import version

import anndata as ad
import dask.dataframe as dd
import geopandas
import numpy as np
import pandas as pd
import scipy.sparse as sp
import shapely

import stimg.pp as pp
from stimg.data.slots import raster_libraries

warnings.filterwarnings("ignore")


def transform_xy(element, xy):
    """Return (x, y) of an element's own pixel frame in the global coordinate system."""
    from spatialdata.transformations import get_transformation

    matrix = np.asarray(get_transformation(element, "global").to_affine_matrix(("x", "y"), ("x", "y")))
    return np.asarray(xy, dtype=float) @ matrix[:2, :2].T + matrix[:2, 2]


def pixel_centres(image):
    """Return (x, y) in global coordinates of the centre of every pixel of a (c, y, x) image, (rows * columns, 2); pixel k spans k .. k + 1."""
    rows, cols = image.shape[-2:]
    return transform_xy(image, np.stack(np.meshgrid(np.arange(cols) + 0.5, np.arange(rows) + 0.5), axis=-1).reshape(-1, 2))


def bins(edge=8.0, side=16):
    """Return a SpatialData of square bins that cover 0 .. side * edge, one gene whose value names the bin."""
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    row, col = np.divmod(np.arange(side * side), side)
    frame = geopandas.GeoDataFrame(geometry=shapely.box(col * edge, row * edge, (col + 1) * edge, (row + 1) * edge))
    table = ad.AnnData(sp.csc_matrix(np.arange(1.0, side * side + 1)[:, None]), var=pd.DataFrame(index=["index"]))
    table.obs = pd.DataFrame({"array_row": row, "array_col": col, "region": pd.Categorical(["bins"] * len(row)), "id": np.arange(len(row))})
    table.obs.index = table.obs.index.astype(str)
    table = TableModel.parse(table, region="bins", region_key="region", instance_key="id")
    return SpatialData(shapes={"bins": ShapesModel.parse(frame)}, tables={"table": table}), np.stack([col, row], axis=1) * edge + edge / 2


def bins_spatialdata(edge=8.0):
    from spatialdata import rasterize_bins

    sdata, truth = bins(edge)
    image = rasterize_bins(sdata, bins="bins", table_name="table", row_key="array_row", col_key="array_col", value_key="index")
    value = np.asarray(image.data).reshape(-1)
    filled = value > 0
    return pixel_centres(image)[filled] - truth[value[filled].astype(int) - 1]


def bins_stimg(edge=8.0):
    sdata, truth = bins(edge)
    pp.rasterize(sdata, pitch_um=edge)
    library = raster_libraries(sdata.tables["table"])["bins"]
    return library.spec.centres_px(library.rc)[:, ::-1] - truth[library.rows]


def points(edge, side=16):
    """Return a SpatialData with one point in the centre of each pixel of ``edge`` units that a raster from 0 would have."""
    from spatialdata import SpatialData
    from spatialdata.models import PointsModel

    row, col = np.divmod(np.arange(side * side), side)
    truth = np.stack([col, row], axis=1) * edge + edge / 2
    frame = pd.DataFrame({"x": truth[:, 0], "y": truth[:, 1], "gene": pd.Categorical(["A"] * len(row))})
    return SpatialData(points={"points": PointsModel.parse(dd.from_pandas(frame, npartitions=2), feature_key="gene")}), truth


def points_spatialdata(edge=4.0, side=16):
    from spatialdata import rasterize

    sdata, truth = points(edge, side)
    image = rasterize(
        sdata["points"],
        axes=("x", "y"),
        min_coordinate=[0, 0],
        max_coordinate=[edge * side] * 2,
        target_coordinate_system="global",
        target_unit_to_pixels=1 / edge,
    )
    value = np.asarray(image.data).reshape(-1)
    return (pixel_centres(image) * value[:, None]).sum(axis=0, keepdims=True) / value.sum() - truth.mean(axis=0)


def points_stimg(edge=4.0, side=16):
    sdata, truth = points(edge, side)
    pp.rasterize_points(sdata, pixel_um=edge, mpp=1.0)
    table = sdata.tables["points_bins"]
    library = raster_libraries(table)["points"]
    value = np.asarray(table.X.sum(axis=1)).ravel()
    return (library.spec.centres_px(library.rc)[:, ::-1] * value[:, None]).sum(axis=0, keepdims=True) / value.sum() - truth.mean(axis=0)


def coarse_spatialdata(edge=4.0, side=64):
    from spatialdata import get_extent, rasterize
    from spatialdata.models import Image2DModel

    image = rasterize(
        Image2DModel.parse(np.ones((1, side, side)), dims=("c", "y", "x")),
        axes=("x", "y"),
        min_coordinate=[0, 0],
        max_coordinate=[side] * 2,
        target_coordinate_system="global",
        target_unit_to_pixels=1 / edge,
    )
    low, high = get_extent(image)["x"]
    return float(low), float(high), float(np.asarray(image.data).sum())


def coarse_stimg(edge=4.0, side=64):
    row, col = np.divmod(np.arange(side * side), side)
    adata = ad.AnnData(sp.csr_matrix(np.ones((side * side, 1))))
    adata.obs["array_row"], adata.obs["array_col"], adata.obs["library_id"] = row, col, "A"
    adata.obsm["spatial"] = np.stack([col, row], axis=1) + 0.5
    pp.rasterize(adata, pitch_um=1.0)
    out = pp.resample(adata, pixel_um=edge)
    x = out.obsm["spatial"][:, 0]
    return float(x.min() - edge / 2), float(x.max() + edge / 2), float(out.X.sum())


def window_spatialdata(low=10.3, width=20.0, side=64):
    from spatialdata import bounding_box_query
    from spatialdata.models import Image2DModel

    grid = np.arange(side * side, dtype=np.int32).reshape(1, side, side)
    image = bounding_box_query(
        Image2DModel.parse(grid, dims=("c", "y", "x")),
        axes=("x", "y"),
        min_coordinate=[low, low],
        max_coordinate=[low + width] * 2,
        target_coordinate_system="global",
    )
    row, col = np.divmod(np.asarray(image.data).reshape(-1), side)
    return pixel_centres(image) - np.stack([col, row], axis=1) - 0.5


def window_stimg(low=10.3, width=20.0, side=64):
    from stimg.image.store import RasterStore

    row, col = np.divmod(np.arange(side * side), side)
    adata = ad.AnnData(sp.csr_matrix(np.arange(1.0, side * side + 1, dtype=np.float32)[:, None]))
    adata.obs["array_row"], adata.obs["array_col"], adata.obs["library_id"] = row, col, "A"
    adata.obsm["spatial"] = np.stack([col, row], axis=1) + 0.5
    pp.rasterize(adata, pitch_um=1.0)
    library = raster_libraries(adata)["A"]
    store = RasterStore.from_csr(adata.X, library.rc, library.spec.shape)
    top = left = int(np.floor(low))
    size = int(np.ceil(low + width)) - top
    window = store.window(top, left, size, size)
    pixel, value = np.asarray(window.pixel), np.asarray(window.value)
    claimed = library.spec.centres_px(np.stack([top + pixel // size, left + pixel % size], axis=1))[:, ::-1]
    return claimed - adata.obsm["spatial"][value.astype(int) - 1]


ROWS = (
    ("bins of 8 units to a raster", "`rasterize_bins`", bins_spatialdata, "`pp.rasterize`", bins_stimg),
    ("points to pixels of 4 units (mean position)", "`rasterize`", points_spatialdata, "`pp.rasterize_points`", points_stimg),
    ("window of an image of 1-unit pixels from 10.3", "`bounding_box_query`", window_spatialdata, "window of a raster", window_stimg),
)


def main():
    print(f"spatialdata {version('spatialdata')}, stimg {version('stimg')}\n")
    print("| known positions | spatialdata | displacement (x, y), units | stimg | displacement (x, y), units |")
    print("|---|---|---|---|---|")
    for what, theirs, their_run, ours, our_run in ROWS:
        cells = []
        for run in (their_run, our_run):
            shift = np.asarray(run())
            worst = shift[np.argmax(np.abs(shift).max(axis=1))]
            cells.append(", ".join(f"{value + 0.0:.3f}" for value in np.round(worst, 6) + 0.0))
        print(f"| {what} | {theirs} | {cells[0]} | {ours} | {cells[1]} |")
    print("\n64 x 64 pixels of 1 unit that cover 0 .. 64, each holding 1, brought to pixels of 4 units\n")
    print("| | extent in x | total |\n|---|---|---|")
    for name, run in (
        ("truth", lambda: (0.0, 64.0, 4096.0)),
        ("spatialdata `rasterize`", coarse_spatialdata),
        ("`pp.resample`", coarse_stimg),
    ):
        low, high, total = run()
        print(f"| {name} | {low:.1f} .. {high:.1f} | {total:.0f} |")


if __name__ == "__main__":
    main()
