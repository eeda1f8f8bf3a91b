"""Random tiles against the pixels of the slide, and the draws against what they are said to depend on."""

import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from PIL import Image
from torch.utils.data import DataLoader

import stimg
from stimg.data import RandomTileDataset, RandomTileModule, RandomTileSampler
from stimg.data.tiles import collate
from stimg.image import TileAugmentation, open_slide

SIDE = 600


def picture(seed):
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(60, 230, (30, 30, 3)), np.ones((20, 20, 1)))
    return np.clip(coarse + rng.integers(-20, 20, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


IMAGES = {"A": picture(0), "B": picture(1)}


def make(fields=(1.0,), mpp=0.5, tile_um=20.0, image=IMAGES):
    """Two arrays, 6 x 6 and 3 x 3 spots, 80 px apart; 0.5 µm per pixel."""
    rc = {"A": np.divmod(np.arange(36), 6), "B": np.divmod(np.arange(9), 3)}
    library = ["A"] * 36 + ["B"] * 9
    row, col = (np.concatenate([rc[name][i] for name in "AB"]) for i in (0, 1))
    obs = pd.DataFrame({"library_id": pd.Categorical(library)}, index=[f"o{i}" for i in range(45)])
    adata = ad.AnnData(sp.csr_matrix(np.ones((45, 2), dtype=np.float32)), obs=obs)
    adata.obsm["spatial"] = np.stack([col, row], axis=1) * 80.0 + 100.0
    adata.uns["spatial"] = {k: {"images": {}, "scalefactors": {"microns_per_pixel": 0.5}} for k in "AB"}
    stimg.pp.plan_tiles(adata, tile_um=tile_um, mpp=mpp, fields=fields, image=image)
    return adata


@pytest.fixture
def adata():
    return make()


class TestPixels:
    def test_at_the_scale_of_the_slide_they_are_its_pixels(self, adata):
        tiles = RandomTileDataset(adata, image=IMAGES, n_tiles=60)
        assert tiles.in_memory
        for i in range(60):
            item = tiles[i]
            y, x = np.floor(item["centre"].numpy() - 20 + 0.5).astype(int)
            image = IMAGES[tiles.libraries[int(item["library"])]]
            np.testing.assert_array_equal(item["image"].numpy(), image[y : y + 40, x : x + 40])

    @pytest.mark.parametrize("in_memory", [True, False])
    def test_reduced_they_are_means_of_the_slide(self, in_memory):
        adata = make(fields=(1.0, 2.5), mpp=1.0)
        tiles = RandomTileDataset(adata, image=IMAGES, n_tiles=40, in_memory=in_memory, size_px=16)
        assert tiles.in_memory == in_memory
        fields = set()
        for i in range(40):
            item = tiles[i]
            step = 2.0 * (1.0, 2.5)[int(item["field"])]
            fields.add(int(item["field"]))
            slide = open_slide(IMAGES[tiles.libraries[int(item["library"])]])
            centre = item["centre"].numpy()
            if in_memory:  # the picture begins at `low`, and a tile at one of its pixels
                low = tiles._pictures[int(item["library"])][int(item["field"])].low
                centre = low + (np.floor((centre - low) / step - 8 + 0.5) + 8) * step
                assert np.abs(centre - item["centre"].numpy()).max() <= step / 2 + 1e-9
            wanted, _ = slide.tile(centre, 16 * step, 16)
            assert np.abs(item["image"].numpy().astype(int) - wanted).max() <= 1
        assert fields == {0, 1}

    def test_memory_is_given_back(self, adata):
        tiles = RandomTileDataset(adata, image=IMAGES, n_tiles=5)
        before = [tiles[i] for i in range(5)]
        tiles.release()
        assert not tiles.in_memory
        for i in range(5):
            assert torch.equal(tiles[i]["centre"], before[i]["centre"])
            assert torch.equal(tiles[i]["image"], before[i]["image"])  # the slide's own scale: the same pixels

    def test_beyond_the_slide_is_white(self):
        small = {k: v[:520, :520] for k, v in IMAGES.items()}
        adata = make(tile_um=80.0, image=small)
        tiles = RandomTileDataset(adata, image=small, n_tiles=200)
        seen = False
        for i in range(200):
            item = tiles[i]
            y, x = np.floor(item["centre"].numpy() - 80 + 0.5).astype(int)
            padded = np.full((1000, 1000, 3), 255, np.uint8)
            padded[200:720, 200:720] = small[tiles.libraries[int(item["library"])]]
            wanted = padded[y + 200 : y + 360, x + 200 : x + 360]
            np.testing.assert_array_equal(item["image"].numpy(), wanted)
            seen |= y < 0 or x + 160 > 520
        assert seen

    def test_files_are_decoded_once_and_let_go(self, tmp_path):
        paths = {}
        for name, pixels in IMAGES.items():
            paths[name] = tmp_path / f"{name}.png"
            Image.fromarray(pixels).save(paths[name])
        adata = make(image=paths)
        tiles = RandomTileDataset(adata, n_tiles=5)
        assert all(slide._source._pixels is None for slide in tiles._slides)
        for path in paths.values():
            path.unlink()
        other = RandomTileDataset(make(), image=IMAGES, n_tiles=5)
        for i in range(5):
            assert torch.equal(tiles[i]["image"], other[i]["image"])


class TestDraws:
    def test_places_are_uniform_over_the_tissue(self, adata):
        tiles = RandomTileDataset(adata, image=IMAGES, n_tiles=4000)
        batch = tiles.__getitems__(range(4000))
        centres, library = batch["centre"].numpy(), batch["library"].numpy()
        xy = adata.obsm["spatial"]
        for k, rows in ((0, slice(0, 36)), (1, slice(36, 45))):
            near = np.linalg.norm(centres[library == k][:, None] - xy[rows, ::-1], axis=2).min(1)
            assert near.max() <= 60 + tiles.places[k].side  # three quarters of the pitch of 80, to the squares' precision
        share = tiles.places[1].area / (tiles.places[0].area + tiles.places[1].area)
        assert tiles.area_um2 == pytest.approx((tiles.places[0].area + tiles.places[1].area) * 0.25)
        assert library.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 4000))
        middle = centres[(library == 0) & (np.abs(centres - 300) < 160).all(1)]  # all of this square is tissue
        counts = np.histogram2d(*middle.T, bins=5)[0].ravel()
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 52  # chi-square with 24 degrees of freedom: p < 0.001 beyond 51.2

    def test_the_default_number_covers_the_tissue(self, adata):
        tiles = RandomTileDataset(adata, image=IMAGES, coverage=3.0)
        assert len(tiles) == round(3 * tiles.area_um2 / 20**2)

    def test_items_depend_on_seed_epoch_and_index_alone(self, adata):
        def read(**options):
            return RandomTileDataset(adata, image=IMAGES, n_tiles=20, augment=TileAugmentation(), **options)

        tiles = read(seed=3)
        whole = tiles.__getitems__(range(20))
        for i in (0, 7, 19):
            single = pickle.loads(pickle.dumps(tiles))[i]
            assert all(torch.equal(single[k], whole[k][i]) for k in whole)
        pairs = tiles.__getitems__([(0, 7), (1, 7)])
        assert torch.equal(pairs["image"][0], whole["image"][7])
        assert not torch.equal(pairs["centre"][1], whole["centre"][7])
        tiles.set_epoch(1)
        assert torch.equal(tiles[7]["image"], pairs["image"][1])
        assert not torch.equal(read(seed=4)[7]["centre"], whole["centre"][7])
        state = torch.get_rng_state()
        tiles[3]
        assert torch.equal(torch.get_rng_state(), state)

    def test_augmentation_turns_the_tile(self, adata):
        plain = RandomTileDataset(adata, image=IMAGES, n_tiles=40)
        turned = RandomTileDataset(adata, image=IMAGES, n_tiles=40, augment=True)
        kinds = set()
        for i in range(40):
            a, b = plain[i], turned[i]
            assert torch.equal(a["centre"], b["centre"])
            x = a["image"].numpy()
            ways = [np.rot90(s, k) for s in (x, x[:, ::-1]) for k in range(4)]
            kinds.add(next(k for k, way in enumerate(ways) if np.array_equal(way, b["image"].numpy())))
        assert kinds == set(range(8))

    def test_no_pixel_is_in_a_training_and_in_a_validation_tile(self):
        adata = make(fields=(1.0, 2.0))
        held = np.zeros(45, dtype=bool)
        held[[0, 1, 6, 7]] = True
        train = RandomTileDataset(adata, image=IMAGES, rows=~held, avoid=held, n_tiles=1500)
        val = RandomTileDataset(adata, image=IMAGES, rows=held, n_tiles=1500)
        parts = []
        for tiles in (train, val):
            batch = tiles.__getitems__(range(1500))
            side = 40 * np.array([1.0, 2.0])[batch["field"].numpy()]
            mine = batch["library"].numpy() == tiles.libraries.index("A")
            parts.append((batch["centre"].numpy()[mine], side[mine]))
        assert val.libraries == ["A"]
        (a, sa), (b, sb) = parts
        gap = np.abs(a[:, None] - b).max(2) - (sa[:, None] + sb) / 2
        assert gap.min() >= 0
        assert gap.min() < 15  # and not more than needed is lost


class TestLoading:
    def test_workers_change_nothing(self, adata):
        tiles = RandomTileDataset(adata, image=IMAGES, n_tiles=24, augment=True)
        module = RandomTileModule(tiles, tiles, batch_size=8)
        alone = list(module.train_dataloader())
        loader = DataLoader(tiles, batch_size=8, sampler=RandomTileSampler(tiles), collate_fn=collate, num_workers=2)
        for a, b in zip(alone, loader, strict=True):
            assert all(torch.equal(a[k], b[k]) for k in a)

    def test_epochs_ranks_and_state(self, adata):
        tiles = RandomTileDataset(adata, image=IMAGES, n_tiles=10)
        samplers = [RandomTileSampler(tiles, num_replicas=3, rank=r) for r in range(3)]
        for sampler in samplers:
            sampler.set_epoch(2)
        read = [list(s) for s in samplers]
        assert [len(r) for r in read] == [4, 4, 4]
        assert sorted(i for part in read for _, i in part) == list(range(12))
        assert {e for part in read for e, _ in part} == {2}
        assert next(iter(RandomTileSampler(tiles, fixed=True))) == (0, 0)
        module = RandomTileModule(tiles, None, batch_size=5)
        loader = module.train_dataloader()
        loader.sampler.set_epoch(4)
        state = module.state_dict()
        assert state == {"epoch": 4, "seed": 0}
        again = RandomTileModule(tiles, None, batch_size=5)
        again.load_state_dict(state)
        assert torch.equal(next(iter(again.train_dataloader()))["image"], next(iter(loader))["image"])
        assert again.val_dataloader() == []
        with pytest.raises(ValueError, match=r"made with seed=5, this data module with 0"):
            again.load_state_dict({"epoch": 1, "seed": 5})

    def test_numbers_of_observations(self, adata):
        held = np.arange(45) < 5
        module = RandomTileModule(
            RandomTileDataset(adata, image=IMAGES, rows=~held, n_tiles=4), RandomTileDataset(adata, image=IMAGES, rows=held, n_tiles=4)
        )
        assert (module.n_train, module.n_val, module.n_obs) == (40, 5, 45)


class TestErrors:
    def test_index(self, adata):
        with pytest.raises(IndexError, match="tile 4 does not exist; there are 4 in an epoch"):
            RandomTileDataset(adata, image=IMAGES, n_tiles=4)[4]

    def test_no_plan(self, adata):
        del adata.uns["stimg"]["tiles"]
        with pytest.raises(KeyError, match="plan_tiles"):
            RandomTileDataset(adata, image=IMAGES)

    def test_nothing_left(self, adata):
        with pytest.raises(ValueError, match=r"No tissue is left for tiles of 20 µm around 45 observations, 45 of which"):
            RandomTileDataset(adata, image=IMAGES, avoid=np.arange(45))

    def test_one_observation(self, adata):
        one = adata[[0]].copy()
        with pytest.raises(ValueError, match=r"library 'A' has one observation.*reach_um"):
            RandomTileDataset(one, image={"A": IMAGES["A"]})
        tiles = RandomTileDataset(one, image={"A": IMAGES["A"]}, reach_um=30.0, n_tiles=50)
        assert np.linalg.norm(tiles.__getitems__(range(50))["centre"].numpy() - 100, axis=1).max() <= 60 + tiles.places[0].side

    @pytest.mark.parametrize(("name", "value"), [("reach_um", -1.0), ("coverage", 0.0), ("n_tiles", 0), ("size_px", 0)])
    def test_numbers(self, adata, name, value):
        with pytest.raises(ValueError, match=name):
            RandomTileDataset(adata, image=IMAGES, **{name: value})

    def test_a_slide_that_is_too_coarse(self, adata):
        adata.uns["stimg"]["tiles"]["spec"]["mpp"] = 0.1
        with pytest.raises(ValueError, match="times coarser than the tile wanted"):
            RandomTileDataset(adata, image=IMAGES, n_tiles=3)
