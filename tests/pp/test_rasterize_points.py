"""``pp.rasterize_points`` against a loop over points, for frames, dask partitions, and SpatialData with transformations."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stimg.pp as pp
from stimg.data.slots import raster_libraries
from stimg.pp import _rasterize_points as module

GENES = ["Actb", "NegControlProbe_1", "BLANK_7", "Ccl2", "Unassigned_3"]


def points(n=2000, seed=0, low=-37.0, high=180.0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {"x": rng.uniform(low, high, n), "y": rng.uniform(low, high, n), "gene": rng.choice(GENES, n, p=[0.5, 0.1, 0.1, 0.2, 0.1])}
    )


def naive(frame, step, matrix=None):
    """Counts per (row, column, gene) by a loop."""
    matrix = np.eye(3) if matrix is None else matrix
    counts = Counter()
    for x, y, gene in zip(frame["x"], frame["y"], frame["gene"], strict=True):
        x2, y2, _ = matrix @ [x, y, 1]
        counts[int(np.floor(y2 / step)), int(np.floor(x2 / step)), gene] += 1
    return counts


def counts_of(adata):
    coo = adata.X.tocoo()
    row, col = adata.obs["array_row"].to_numpy(), adata.obs["array_col"].to_numpy()
    return Counter({(row[i], col[i], adata.var_names[j]): int(v) for i, j, v in zip(coo.row, coo.col, coo.data, strict=True)})


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.5, 60), st.floats(0.1, 3), st.integers(1, 200))
def test_counts_are_those_of_a_loop(seed, pixel_um, mpp, n):
    frame = points(n, seed)
    adata = pp.rasterize_points(frame, pixel_um=pixel_um, mpp=mpp)
    assert counts_of(adata) == naive(frame, pixel_um / mpp)
    assert adata.X.sum() == n
    assert adata.X.dtype == np.int32
    assert adata.X.has_sorted_indices
    assert list(adata.var_names) == sorted(adata.var_names)


def test_partitions_and_merging_change_nothing(monkeypatch):
    import dask.dataframe as dd

    frame = points()
    whole = pp.rasterize_points(frame, pixel_um=8.0, mpp=1.0)
    monkeypatch.setattr(module, "MERGE_FROM", 50)
    parts = pp.rasterize_points(dd.from_pandas(frame, npartitions=9), pixel_um=8.0, mpp=1.0)
    shuffled = frame.sample(frac=1, random_state=1)
    again = pp.rasterize_points(dd.from_pandas(shuffled.reset_index(drop=True), npartitions=4), pixel_um=8.0, mpp=1.0)
    for other in (parts, again):
        assert (whole.X != other.X).nnz == 0
        assert whole.obs.equals(other.obs)
        assert whole.var.equals(other.var)


def test_one_partition_at_a_time():
    import dask.dataframe as dd

    alive, most = [0], [0]

    def part(i):
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        frame = points(50, i)
        import weakref

        weakref.finalize(frame, lambda: alive.__setitem__(0, alive[0] - 1))
        return frame

    frames = dd.from_map(part, range(12), meta=points(1))
    assert pp.rasterize_points(frames, pixel_um=20.0, mpp=1.0).X.sum() == 600
    assert most[0] <= 3


def test_slots_and_control_probes():
    frame = points()
    adata = pp.rasterize_points(frame, pixel_um=10.0, mpp=0.5, library_id="L")
    assert adata.var["control"].to_dict() == {g: g in GENES[1:3] + GENES[4:] for g in GENES}
    library = raster_libraries(adata)["L"]
    assert library.spec.source == "points"
    xy = adata.obsm["spatial"]
    assert np.allclose(library.spec.centres_px(library.rc), xy[:, ::-1])
    assert np.allclose(xy, (adata.obs[["array_col", "array_row"]].to_numpy() + 0.5) * 20.0)
    again = adata.copy()
    pp.rasterize(again)  # the verb for tables agrees
    assert (again.obsm["stimg_rc"] == adata.obsm["stimg_rc"]).all()
    assert np.allclose(again.uns["stimg"]["raster"]["L"]["affine"], adata.uns["stimg"]["raster"]["L"]["affine"])


def test_known_categories_are_kept_and_quality_is_a_filter():
    frame = points(300)
    frame["gene"] = pd.Categorical(frame["gene"], categories=[*GENES, "Never"])
    frame["qv"] = np.arange(300) % 40
    adata = pp.rasterize_points(frame, pixel_um=10.0, mpp=1.0, min_qv=20)
    assert adata.X.sum() == (frame["qv"] >= 20).sum()
    assert adata[:, "Never"].X.sum() == 0


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda f: f, {"mpp": None}, ValueError, "Pass `mpp=`"),
        (lambda f: f.drop(columns="gene"), {}, KeyError, "feature_key"),
        (lambda f: f.iloc[:0], {}, ValueError, "no points"),
        (lambda f: f.assign(gene=[None, *f["gene"][1:]]), {}, ValueError, "1 points without a gene"),
        (lambda f: f.assign(x=[np.nan, *f["x"][1:]]), {}, ValueError, "1 rows of 40"),
        (lambda f: f, {"pixel_um": 0}, ValueError, "pixel_um=0"),
        (lambda f: f, {"min_qv": 20}, KeyError, "qv"),
    ],
)
def test_errors(change, options, error, message):
    with pytest.raises(error, match=message):
        pp.rasterize_points(change(points(40)), **{"pixel_um": 8.0, "mpp": 1.0, **options})


def sdata_of(frame, transformations):
    import dask.dataframe as dd
    from spatialdata import SpatialData
    from spatialdata.models import PointsModel

    element = PointsModel.parse(dd.from_pandas(frame, npartitions=3), feature_key="gene", transformations=transformations)
    return SpatialData(points={"transcripts": element})


def test_spatialdata_transformations(tmp_path):
    import spatialdata
    from spatialdata import get_centroids
    from spatialdata.transformations import Affine, Identity, Scale

    matrix = np.array([[1.5, 0.4, 20], [-0.3, 2.0, -5], [0, 0, 1]])
    systems = {
        "global": Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y")),
        "own": Identity(),
        "big": Scale([3, 3], axes=("x", "y")),
    }
    frame = points(800)
    sdata = sdata_of(frame, systems)
    assert pp.rasterize_points(sdata, pixel_um=8.0, mpp=0.5) is None
    table = sdata.tables["transcripts_bins"]
    assert counts_of(table) == naive(frame, 16.0, matrix)
    for name, system in (("global", np.eye(3)), ("own", np.linalg.inv(matrix)), ("big", np.diag([3, 3, 1]) @ np.linalg.inv(matrix))):
        xy = get_centroids(sdata.shapes["transcripts_squares"], coordinate_system=name).compute().to_numpy()
        assert np.allclose(xy, table.obsm["spatial"] @ system[:2, :2].T + system[:2, 2])
    before = table.uns["stimg"]["raster"]["transcripts"]["affine"].copy()
    pp.rasterize(sdata, table_key="transcripts_bins")  # through the squares
    assert np.allclose(sdata.tables["transcripts_bins"].uns["stimg"]["raster"]["transcripts"]["affine"], before)
    with pytest.raises(ValueError, match="transcripts_bins"):
        pp.rasterize_points(sdata, pixel_um=8.0, mpp=0.5)
    pp.rasterize_points(sdata, pixel_um=8.0, mpp=1.0, coordinate_system="big", new_table_key="t2", new_shapes_key="s2")
    assert counts_of(sdata.tables["t2"]) == naive(frame, 8.0, np.diag([3, 3, 1]))
    sdata.write(tmp_path / "s.zarr")
    again = spatialdata.read_zarr(tmp_path / "s.zarr")
    assert (again.tables["transcripts_bins"].X != table.X).nnz == 0
    with pytest.raises(KeyError, match="transcripts"):
        pp.rasterize_points(again, points_key="other", pixel_um=8.0, mpp=1.0)
