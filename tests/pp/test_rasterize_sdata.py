"""``pp.rasterize`` on SpatialData: every coordinate system against spatialdata's own centroids."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from _lattices import spec_of, visium

import stimg.pp as pp
from stimg.data.slots import raster_libraries


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


def sections(systems, *, names=("A", "B"), libraries=None):
    """A SpatialData of ST sections with other sizes, holes and pixels; ``systems`` gives each element's coordinate systems. Also the rows by section."""
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    parts, shapes = [], {}
    for i, name in enumerate(names):
        part = visium(seed=i, rows=9 + i, cols=7 + 2 * i, pitch=138.0 + 20 * i, lib=(libraries or names)[i])
        part.obs_names = [f"{name}_{k:03d}" for k in range(part.n_obs)]
        shapes[f"{name}_spots"] = ShapesModel.parse(
            part.obsm["spatial"], geometry=0, radius=20.0, index=part.obs_names, transformations=systems[i]
        )
        part.obs["region"], part.obs["instance"] = f"{name}_spots", part.obs_names.to_numpy()
        parts.append(part)
    table = ad.concat(parts)
    table.obs["region"] = pd.Categorical(table.obs["region"])
    table = table[np.random.default_rng(0).permutation(table.n_obs)].copy()
    table = TableModel.parse(table, region=list(shapes), region_key="region", instance_key="instance")
    return SpatialData(shapes=shapes, tables={"table": table})


def scaled(factor):
    from spatialdata.transformations import Identity, Scale

    return Identity() if factor == 1 else Scale([factor, factor], axes=("x", "y"))


@pytest.mark.parametrize(
    ("systems", "wanted", "chosen", "scales"),
    [
        pytest.param([{"a": 1}, {"b": 2}], None, {"A": "a", "B": "b"}, [1, 2], id="only one"),
        pytest.param([{"A": 1, "A_um": 0.7}, {"B": 3, "B_um": 0.6}], None, {"A": "A", "B": "B"}, [1, 3], id="the library's"),
        pytest.param([{"A": 2, "global": 1}, {"B": 3, "x": 0.6}], None, {"A": "global", "B": "B"}, [1, 3], id="global"),
        pytest.param([{"A": 2, "x": 0.5}, {"x": 2}], None, {"A": "A", "B": "x"}, [2, 2], id="named before shared"),
        pytest.param([{"A": 2, "x": 0.5}, {"B": 3, "x": 4}], "x", {"A": "x", "B": "x"}, [0.5, 4], id="asked for"),
    ],
)
def test_every_section_has_its_coordinate_system(systems, wanted, chosen, scales):
    from spatialdata import get_centroids

    sdata = sections([{name: scaled(f) for name, f in each.items()} for each in systems])
    pp.rasterize(sdata, coordinate_system=wanted)
    table = sdata.tables["table"]
    assert table.uns["stimg"]["rasterize"]["coordinate_system"] == chosen
    for i, (name, library) in enumerate(raster_libraries(table).items()):
        assert library.spec.mpp == pytest.approx(100 / (138 + 20 * i) / scales[i])
        assert library.spec.residual_um < 1e-6
        rows = table.obs["instance"].iloc[library.rows]
        xy = get_centroids(sdata.shapes[f"{name}_spots"], coordinate_system=chosen[name]).compute().loc[rows].to_numpy()
        assert np.allclose(library.spec.centres_px(library.rc), xy[:, ::-1], atol=1e-6)


def test_coordinate_systems_are_never_mixed_in_silence():
    sdata = sections([{"a": scaled(1), "x": scaled(1)}, {"b": scaled(1)}])
    with pytest.raises(KeyError, match=r"sdata.shapes\['B_spots'\] has no transformation to 'x' \(found \['b'\]\)"):
        pp.rasterize(sdata, coordinate_system="x")
    with pytest.raises(KeyError, match=r"no transformation to 'global'"):
        pp.rasterize(sdata, coordinate_system="global")
    with pytest.raises(
        KeyError, match=r"library 'A' has 2 coordinate systems to choose from.*sdata.shapes\['A_spots'\] has \['a', 'x'\].*Pass"
    ):
        pp.rasterize(sdata)
    assert "stimg_rc" not in sdata.tables["table"].obsm


def test_a_library_of_two_elements_lies_in_one_that_both_have():
    """Elements of one library whose only systems differ must not be fitted together as if the units were the same."""
    apart = sections([{"a": scaled(1)}, {"b": scaled(2)}], libraries=("L", "L"))
    with pytest.raises(KeyError, match=r"library 'L' has 0 coordinate systems to choose from.*\['a'\].*\['b'\]"):
        pp.rasterize(apart, source="cells", pixel_um=100.0, mpp=0.5, collision="sum")
    both = sections([{"a": scaled(1), "x": scaled(1)}, {"b": scaled(2), "x": scaled(1)}], libraries=("L", "L"))
    pp.rasterize(both, source="cells", pixel_um=100.0, mpp=0.5, collision="sum")
    assert both.tables["table"].uns["stimg"]["rasterize"]["coordinate_system"] == {"L": "x"}


@pytest.mark.parametrize("technology", ["visium", "st", "visium_hd", "xenium"])
def test_simulated_sections_are_rasterised_as_their_table_is(technology):
    import stimg

    options = {"technology": technology, "shape": (7, 9), "n_genes": 5, "n_sections": 2, "n_donors": 2, "rng": 3}
    more = {"pixel_um": 20.0, "collision": "sum"} if technology == "xenium" else {}
    adata, sdata = stimg.datasets.simulate(**options), stimg.datasets.simulate(**options, as_sdata=True)
    pp.rasterize(adata, **more)
    pp.rasterize(sdata, **more)
    table = sdata.tables["table"]
    assert table.uns["stimg"]["rasterize"]["coordinate_system"] == {name: name for name in ("D1S1", "D1S2", "D2S1", "D2S2")}
    np.testing.assert_array_equal(table.obsm["stimg_rc"], adata.obsm["stimg_rc"])
    for name in ("D1S1", "D1S2", "D2S1", "D2S2"):
        ours, theirs = spec_of(table, name), spec_of(adata, name)
        assert (ours.shape, ours.lattice) == (theirs.shape, theirs.lattice)
        assert (ours.pitch_um, ours.mpp) == (pytest.approx(theirs.pitch_um), pytest.approx(theirs.mpp))
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-6)


def test_points_in_a_system_of_their_own():
    import stimg

    counts = []
    for given in (None, "D1S1"):
        sdata = stimg.datasets.simulate(technology="xenium", shape=(6, 6), n_genes=5, rng=0, as_sdata=True)
        pp.rasterize_points(sdata, pixel_um=20.0, mpp=0.5, coordinate_system=given, new_table_key="bins")
        assert sdata.tables["bins"].uns["stimg"]["rasterize_points"]["coordinate_system"] == "D1S1"
        counts.append(sdata.tables["bins"].X.toarray())
    np.testing.assert_array_equal(*counts)
