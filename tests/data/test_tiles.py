"""Items of the tile dataset against what is read by hand; workers, epochs, files that change."""

import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tifffile
import torch
from PIL import Image
from torch.utils.data import DataLoader

import stimg
from stimg.data.tile_pairs import nearest_rows, positions
from stimg.data.tile_plan import tile_plan
from stimg.data.tiles import TileDataset, collate
from stimg.image import CropSpec, TileAugmentation, open_slide

SIDE, GENES = 500, [f"g{i}" for i in range(9)]


def picture(seed):
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(60, 230, (25, 25, 3)), np.ones((20, 20, 1)))
    return np.clip(coarse + rng.integers(-20, 20, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


IMAGES = {"A": picture(0), "B": picture(1)}


@pytest.fixture
def adata():
    """Two arrays of 5 x 5 spots, 80 px apart, in mixed order; 0.5 µm per pixel."""
    rng = np.random.default_rng(0)
    row, col = np.divmod(np.arange(25), 5)
    order = rng.permutation(50)
    obs = pd.DataFrame(
        {"library_id": ["A"] * 25 + ["B"] * 25, "array_row": np.tile(row, 2), "array_col": np.tile(col, 2)},
        index=[f"o{i}" for i in range(50)],
    )
    out = ad.AnnData(sp.csr_matrix(rng.poisson(2.0, (50, 9)).astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES))
    out.obsm["spatial"] = np.tile(np.stack([col, row], axis=1) * 80.0 + 85.0, (2, 1))
    out = out[order].copy()
    out.obs["library_id"] = pd.Categorical(out.obs["library_id"])
    out.uns["spatial"] = {k: {"images": {}, "scalefactors": {"microns_per_pixel": 0.5, "bin_size_um": 40.0}} for k in "AB"}
    stimg.pp.plan_tiles(out, tile_um=30, mpp=0.5, fields=(1, 2.5), image=IMAGES)
    return out


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        if key == "crop":
            for part in a[key]:
                assert torch.equal(a[key][part], b[key][part]), part
        else:
            assert torch.equal(a[key], b[key]), key


class TestItems:
    def test_images_rows_and_dtypes(self, adata):
        tiles = TileDataset(adata, image=IMAGES)
        assert len(tiles) == 50
        for i in (0, 7, 31):
            item = tiles[i]
            assert set(item) == {"image", "row"}
            assert item["image"].dtype == torch.uint8
            assert item["image"].shape == (2, 60, 60, 3)
            assert int(item["row"]) == i
            x, y = adata.obsm["spatial"][i].astype(int)
            image = IMAGES[adata.obs["library_id"].iloc[i]]
            np.testing.assert_array_equal(item["image"][0], image[y - 30 : y + 30, x - 30 : x + 30])
            wide, _ = open_slide(image).tile((y, x), 150, 60)
            np.testing.assert_array_equal(item["image"][1], wide)
        with pytest.raises(IndexError, match="tile 50 does not exist; there are 50"):
            tiles[50]

    @pytest.mark.parametrize("rows", [np.array([40, 3, 17]), np.isin(np.arange(50), [3, 17, 40])])
    def test_some_rows(self, adata, rows):
        tiles, every = TileDataset(adata, image=IMAGES, rows=rows), TileDataset(adata, image=IMAGES)
        wanted = rows if rows.dtype != bool else np.flatnonzero(rows)
        assert tiles.rows.tolist() == wanted.tolist()
        for i, row in enumerate(wanted):
            same(tiles[i], every[int(row)])

    def test_expression_is_log1p_of_counts_per_10000(self, adata):
        tiles = TileDataset(adata, image=IMAGES, expression=["g7", "g2"])
        dense = adata.X.toarray()
        wanted = np.log1p(dense / dense.sum(1, keepdims=True) * 1e4)[:, [7, 2]]
        found = np.stack([tiles[i]["expression"] for i in range(50)])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert TileDataset(adata, image=IMAGES, expression=True)[0]["expression"].shape == (9,)
        assert TileDataset(adata, image=IMAGES, expression="g1")[0]["expression"].shape == (1,)
        adata.layers["counts"], adata.X = adata.X.copy(), adata.X * 0.5
        np.testing.assert_allclose(
            TileDataset(adata, image=IMAGES, expression=["g7", "g2"], layer="counts")[4]["expression"], wanted[4], rtol=1e-6
        )
        with pytest.raises(ValueError, match="fractional values"):
            TileDataset(adata, image=IMAGES, expression=["g7"])

    def test_control_probes_do_not_count(self, adata):
        adata.var["control"] = [False] * 8 + [True]
        dense = adata.X.toarray()
        wanted = np.log1p(dense / dense[:, :8].sum(1, keepdims=True) * 1e4)[:, 0]
        tiles = TileDataset(adata, image=IMAGES, expression=["g0"])
        np.testing.assert_allclose([float(tiles[i]["expression"]) for i in range(50)], wanted, rtol=1e-6)

    def test_neighbours_are_the_nearest_of_the_same_library(self, adata):
        rows = np.flatnonzero(np.random.default_rng(3).random(50) < 0.6)
        tiles = TileDataset(adata, image=IMAGES, rows=rows, neighbours=4)
        xy, library = adata.obsm["spatial"], adata.obs["library_id"].to_numpy()
        for i, row in enumerate(rows):
            found = tiles[i]["neighbours"].numpy()
            assert found.dtype == np.int64
            assert row not in found
            assert set(found) <= set(rows)
            others = [r for r in rows if r != row and library[r] == library[row]]
            distance = np.sort(np.linalg.norm(xy[others] - xy[row], axis=1))[:4]
            np.testing.assert_allclose(np.linalg.norm(xy[found] - xy[row], axis=1), distance)

    def test_few_and_equal_places(self, adata):
        adata.obsm["spatial"][:] = 7.0  # all at one place: everyone is everyone's neighbour
        found = nearest_rows(adata, np.arange(50), np.zeros(50, int), 3)
        assert all(row not in others and len(set(others)) == 3 for row, others in enumerate(found.tolist()))
        few = nearest_rows(adata, np.array([4, 9]), np.array([0, 0]), 3)
        assert few.tolist() == [[9, -1, -1], [4, -1, -1]]
        assert nearest_rows(adata, np.array([4]), np.array([0]), 2).tolist() == [[-1, -1]]

    def test_crops_show_the_observation_in_their_middle(self, adata):
        stimg.pp.rasterize(adata)
        tiles = TileDataset(adata, image=IMAGES, crop=CropSpec((3, 3)), expression=["g1", "g4"])
        dense, rc, library = adata.X.toarray(), adata.obsm["stimg_rc"], adata.obs["library_id"].to_numpy()
        batch = tiles.__getitems__([5, 20, 33])
        for b, i in enumerate((5, 20, 33)):
            crop = tiles[i]["crop"]
            assert int(crop["obs"][0, 1, 1]) == i == int(batch["crop"]["obs"][b, 1, 1])
            values = np.zeros((3, 3, 2))
            pixel, channel = crop["pixel"].numpy(), crop["channel"].numpy()
            values[pixel // 3, pixel % 3, channel] = crop["value"]
            for dy in range(3):
                for dx in range(3):
                    at = np.flatnonzero((rc == rc[i] + [dy - 1, dx - 1]).all(1) & (library == library[i]))
                    assert int(crop["obs"][0, dy, dx]) == (at[0] if len(at) else -1)
                    np.testing.assert_array_equal(values[dy, dx], dense[at[0], [1, 4]] if len(at) else 0)
        assert TileDataset(adata, image=IMAGES, crop=CropSpec((3, 3)))[0]["crop"]["panel"].shape == (1, 9)
        assert "expression" not in TileDataset(adata, image=IMAGES, crop=CropSpec((3, 3)))[0]

    def test_batches_are_stacked_items(self, adata):
        stimg.pp.rasterize(adata)
        tiles = TileDataset(adata, image=IMAGES, expression=True, neighbours=2, crop=CropSpec((3, 3)), augment=True)
        batch, items = tiles.__getitems__([4, 30, 4]), [tiles[4], tiles[30], tiles[4]]
        same(collate(items), batch)
        assert collate(batch) is batch
        assert batch["image"].shape == (3, 2, 60, 60, 3)


class TestSources:
    @pytest.mark.parametrize("kind", ["png", "tiff", "slides", "dask", "spatialdata"])
    def test_items_do_not_depend_on_where_pixels_come_from(self, adata, tmp_path, kind):
        wanted = TileDataset(adata, image=IMAGES)
        other = adata.copy()
        options = {}
        if kind == "png":
            paths = {name: tmp_path / f"{name}.png" for name in IMAGES}
            for name, path in paths.items():
                Image.fromarray(IMAGES[name]).save(path)
            stimg.pp.plan_tiles(other, tile_um=30, mpp=0.5, fields=(1, 2.5), image=paths)  # and read again from the paths
        elif kind == "tiff":
            stimg.pp.plan_tiles(other, tile_um=30, mpp=0.5, fields=(1, 2.5), image=tiffs(tmp_path))
        elif kind == "slides":
            options["slides"] = {name: open_slide(each, mpp=3.0) for name, each in IMAGES.items()}  # the plan's µm per pixel counts
        elif kind == "dask":
            import dask.array as da

            options["image"] = {name: da.from_array(each, chunks=(128, 200, 3)) for name, each in IMAGES.items()}
        else:
            other = as_spatialdata(other, tmp_path)
            stimg.pp.plan_tiles(other, tile_um=30, mpp=0.5, fields=(1, 2.5), image_mpp=0.5)
        tiles = TileDataset(other, **options)
        for i in range(0, 50, 7):
            same(tiles[i], wanted[i])

    def test_arrays_have_to_be_passed_again(self, adata):
        with pytest.raises(
            KeyError, match=r"library 'A': the tiles were planned on the image, which is not here. Pass `image=` or `slides=`"
        ):
            TileDataset(adata)
        with pytest.raises(KeyError, match=r"slides has nothing for library 'B' \(found \['A'\]\)"):
            TileDataset(adata, slides={"A": open_slide(IMAGES["A"])})
        only_a = np.flatnonzero(adata.obs["library_id"] == "A")
        assert len(TileDataset(adata, rows=only_a, slides={"A": open_slide(IMAGES["A"])})) == 25  # others are not opened

    def test_other_and_changed_images(self, adata, tmp_path):
        with pytest.raises(ValueError, match=r"'A': the image has changed since the tiles were planned"):
            TileDataset(adata, image={"A": IMAGES["B"], "B": IMAGES["B"]})
        with pytest.raises(ValueError, match=r"has \(400, 500\) pixels \(y, x\), the tiles were planned on \(500, 500\)"):
            TileDataset(adata, image={"A": IMAGES["A"][:400], "B": IMAGES["B"]})
        paths = {name: tmp_path / f"{name}.png" for name in IMAGES}
        for name, path in paths.items():
            Image.fromarray(IMAGES[name]).save(path)
        stimg.pp.plan_tiles(adata, tile_um=30, mpp=0.5, image=paths)
        TileDataset(adata)
        Image.fromarray(IMAGES["A"]).save(paths["B"])
        with pytest.raises(ValueError, match=r"B\.png has changed since the tiles were planned"):
            TileDataset(adata)
        paths["B"].unlink()
        with pytest.raises(KeyError, match=r"planned on .*B\.png, which is not here"):
            TileDataset(adata)

    def test_subsets_keep_their_plan_and_others_have_none(self, adata):
        part = adata[[8, 3, 40]].copy()
        same({"image": TileDataset(part, image=IMAGES)[1]["image"]}, {"image": TileDataset(adata, image=IMAGES)[3]["image"]})
        with pytest.raises(KeyError, match=r"holds no plan of tiles \(found \['tiles'\]\). Run `stimg.pp.plan_tiles` first"):
            TileDataset(adata, image=IMAGES, key="other")
        joined = ad.concat([adata])
        with pytest.raises(KeyError, match="holds no plan of tiles"):
            TileDataset(joined, image=IMAGES)
        adata.obs["library_id"] = pd.Categorical(["C"] * 50)
        with pytest.raises(KeyError, match=r"knows no image of libraries \['C'\] \(found \['A', 'B'\]\)"):
            tile_plan(adata)
        adata.obsm["stimg_tiles"] = adata.obsm["stimg_tiles"][:, :2]
        with pytest.raises(ValueError, match=r"has shape \(50, 2\); wanted \(50, 4\)"):
            tile_plan(adata)


def as_spatialdata(adata, folder):
    from spatialdata import SpatialData, read_zarr
    from spatialdata.models import Image2DModel, ShapesModel, TableModel

    adata.obs["region"] = pd.Categorical([f"{name}_spots" for name in adata.obs["library_id"]])
    adata.obs["instance"] = np.arange(adata.n_obs)
    images, shapes = {}, {}
    for name, image in IMAGES.items():
        rows = np.flatnonzero(adata.obs["library_id"] == name)
        images[f"{name}_image"] = Image2DModel.parse(np.moveaxis(image, -1, 0), dims=("c", "y", "x"), chunks=(3, 100, 128))
        shapes[f"{name}_spots"] = ShapesModel.parse(adata.obsm["spatial"][rows], geometry=0, radius=9.0, index=rows)
    table = TableModel.parse(adata, region=["A_spots", "B_spots"], region_key="region", instance_key="instance")
    SpatialData(images=images, shapes=shapes, tables={"table": table}).write(folder / "a.zarr")
    return read_zarr(folder / "a.zarr")


class TestDraws:
    def test_an_item_depends_on_seed_epoch_and_row_alone(self, adata):
        tiles = TileDataset(adata, image=IMAGES, augment=True, seed=5)
        first = [tiles[i]["image"] for i in range(10)]
        plain = TileDataset(adata, image=IMAGES)
        assert not any(torch.equal(first[i], plain[i]["image"]) for i in range(10))
        some = TileDataset(adata, image=IMAGES, rows=[9, 4], augment=True, seed=5)
        assert torch.equal(some[1]["image"], first[4])
        tiles.set_epoch(3)
        assert sum(torch.equal(tiles[i]["image"], first[i]) for i in range(10)) == 0
        assert torch.equal(tiles[(0, 2)]["image"], first[2])
        assert torch.equal(tiles[(3, 2)]["image"], tiles[2]["image"])
        assert not torch.equal(TileDataset(adata, image=IMAGES, augment=True, seed=6)[0]["image"], first[0])
        with pytest.raises(ValueError, match="epoch=-1"):
            tiles.set_epoch(-1)

    def test_turns_alone_keep_the_pixels(self, adata):
        tiles = TileDataset(adata, image=IMAGES, augment=TileAugmentation(scale=0, shift=0))
        plain = TileDataset(adata, image=IMAGES)
        seen = set()
        for epoch in range(40):
            turned, flat = tiles[(epoch, 0)]["image"][0].numpy(), plain[0]["image"][0].numpy()
            found = [k for k in range(8) if np.array_equal(turned, np.rot90(flat[:, ::-1] if k >= 4 else flat, k % 4))]
            assert len(found) == 1
            seen.add(found[0])
        assert seen == set(range(8))

    @pytest.mark.parametrize("workers", [1, 2])
    @pytest.mark.parametrize("kind", ["array", "tiff", "zarr"])
    def test_workers_change_nothing(self, adata, tmp_path, kind, workers):
        if kind == "zarr":
            data, options = as_spatialdata(adata, tmp_path), {}
            stimg.pp.plan_tiles(data, tile_um=30, mpp=0.5, image_mpp=0.5)
        elif kind == "tiff":
            data, options = adata, {"neighbours": 2}
            stimg.pp.plan_tiles(data, tile_um=30, mpp=0.5, fields=(1, 2.5), image=tiffs(tmp_path))
        else:
            data, options = adata, {"image": IMAGES, "expression": True}
        tiles = TileDataset(data, augment=True, **options)
        tiles[0]  # files are open and caches filled before workers are forked
        loader = DataLoader(
            tiles, batch_size=16, num_workers=workers, persistent_workers=True, collate_fn=tiles.collate, multiprocessing_context="fork"
        )
        for epoch in (0, 1):
            tiles.set_epoch(epoch)
            for b, batch in enumerate(loader):
                same(batch, tiles.__getitems__([(epoch, i) for i in range(b * 16, min(b * 16 + 16, 50))]))

    def test_spawned_workers_open_files_themselves(self, adata, tmp_path):
        paths = tiffs(tmp_path) | {"B": tmp_path / "B.png"}
        Image.fromarray(IMAGES["B"]).save(paths["B"])
        stimg.pp.plan_tiles(adata, tile_um=30, mpp=0.5, image=paths)
        tiles = TileDataset(adata, augment=True, expression=True)
        tiles.set_epoch(2)
        assert len(pickle.dumps(tiles._slides)) < 5000
        loader = DataLoader(tiles, batch_size=25, num_workers=1, collate_fn=tiles.collate, multiprocessing_context="spawn")
        for b, batch in enumerate(loader):
            same(batch, tiles.__getitems__(list(range(b * 25, b * 25 + 25))))


def tiffs(folder):
    paths = {name: folder / f"{name}.tif" for name in IMAGES}
    for name, path in paths.items():
        tifffile.imwrite(path, IMAGES[name], photometric="rgb", tile=(64, 64), compression="zlib")
    return paths


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"rows": np.zeros(50, bool)}, ValueError, "positions of at least one observation"),
            ({"rows": np.ones(49, bool)}, ValueError, r"mask of shape \(49,\); wanted \(50,\)"),
            ({"rows": [3, 50]}, ValueError, r"values from 3 to 50; wanted positions in 0 \.\. 49"),
            ({"rows": [-1]}, ValueError, "wanted positions in 0"),
            ({"rows": [0.5]}, ValueError, "rows has dtype float64"),
            ({"expression": ["g1", "nope"]}, KeyError, r"1 of 2 genes are not in the object: \['nope'\]"),
            ({"neighbours": -2}, ValueError, "neighbours=-2 is not usable"),
            ({"crop": CropSpec((3, 3))}, KeyError, r"stimg\.pp\.rasterize"),
            ({"seed": -1}, ValueError, "rng=-1 is outside"),
            ({"layer": "no", "expression": True}, KeyError, r"layers\['no'\] is missing"),
            ({"image": IMAGES["A"]}, ValueError, "One image for several libraries"),
        ],
    )
    def test_refused(self, adata, options, error, words):
        with pytest.raises(error, match=words):
            TileDataset(adata, **{"image": IMAGES, **options})

    def test_empty_observations_and_broken_plans(self, adata):
        adata.X[17] = 0
        adata.X.eliminate_zeros()
        with pytest.raises(ValueError, match=rf"1 of 50 observations have no counts, the first is '{adata.obs_names[17]}'"):
            TileDataset(adata, image=IMAGES, expression=True)
        TileDataset(adata, image=IMAGES)
        adata.obsm["stimg_tiles"][4, 0] = np.nan
        with pytest.raises(ValueError, match="NaN or infinite"):
            TileDataset(adata, image=IMAGES)

    def test_positions(self):
        assert positions(None, 3).tolist() == [0, 1, 2]
        assert positions([2, 2], 3).tolist() == [2, 2]
