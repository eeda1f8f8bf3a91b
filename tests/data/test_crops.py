from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from stimg.data.augment import hex_symmetries
from stimg.data.crops import CropDataset, CropReader, CropSampler, collate, valid_corners
from stimg.data.library import Library
from stimg.image.spec import CropSpec, RasterSpec


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def place_of(library):
    """Lattice point of every row of the AnnData, by a loop over the store's index."""
    return {int(library.rows[library.store.index[r, c]]): (r, c) for r, c in np.argwhere(library.store.index >= 0)}


def naive_window(library, top, left, size):
    """Dense (gene, y, x) counts, row and depth of a window, point by point."""
    dense = np.zeros((library.store.n_vars, *size))
    obs, depth = np.full(size, -1), np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            r, c = top + y, left + x
            if 0 <= r < library.spec.shape[0] and 0 <= c < library.spec.shape[1] and library.store.index[r, c] >= 0:
                i = library.store.index[r, c]
                dense[:, y, x], obs[y, x], depth[y, x] = library.store.dense[:, r, c], library.rows[i], library.depth[i]
    return dense, obs, depth


@pytest.mark.parametrize("hex_parity", [-1, 0, 1])
@pytest.mark.parametrize("rule", ["weighted", "uniform", "variance", "all", "fixed"])
def test_a_batch_is_the_window_of_each_library(make_library, dense_batch, rule, hex_parity):
    panels = [[3, -1, 0, 7, 12, 5, 9, 1, 15, 2, -1, 4], np.arange(4, 16)]
    libs = [make_library(seed=i, panel=p, hex_parity=hex_parity, first_row=1000 * i) for i, p in enumerate(panels)]
    size, windows = (
        (4, 5),
        [(0, 2, 3, 0, np.random.default_rng(0)), (1, -1, 8, 0, np.random.default_rng(1)), (0, 5, 6, 0, np.random.default_rng(2))],
    )
    reader = CropReader(libs, size, rule=rule, n_channels=None if rule == "all" else 6, channels=[4, 9, 2, 15] if rule == "fixed" else None)
    batch = reader.read(windows)
    dense = dense_batch(batch, 16)
    assert (np.diff(batch["pixel"].numpy() * 16 + batch["channel"].numpy()) > 0).all()
    assert (batch["value"] != 0).all()
    assert batch["library"].tolist() == [0, 1, 0]
    for b, (which, top, left, _, _) in enumerate(windows):
        values, obs, depth = naive_window(libs[which], top, left, size)
        assert np.array_equal(batch["obs"][b].numpy(), obs)
        assert np.array_equal(batch["seen"][b].numpy(), obs >= 0)
        np.testing.assert_array_equal(batch["depth"][b].numpy(), depth.astype(np.float32))
        ids = [i for i in batch["panel"][b].tolist() if i >= 0]
        assert batch["panel"][b].tolist() == sorted(ids) + [-1] * (reader.n_channels - len(ids))
        measured = {int(p) for p in libs[which].panel if p >= 0}
        want = {"all": measured, "fixed": measured & {4, 9, 2, 15}}.get(rule)
        assert set(ids) == want if want is not None else (len(ids) == 6 and set(ids) <= measured)
        for g in range(16):
            if g in ids:
                np.testing.assert_array_equal(dense[b, g], values[list(libs[which].panel).index(g)])
            else:
                assert np.isnan(dense[b, g]).all()
        points = libs[which].spec.lattice_points(np.argwhere(np.ones(size)) + np.array([top, left])).reshape(*size, 2)
        np.testing.assert_allclose(np.diff(batch["yx"][b].numpy(), axis=1), np.diff(points, axis=1), atol=1e-6)
        np.testing.assert_allclose(np.diff(batch["yx"][b].numpy(), axis=0), np.diff(points, axis=0), atol=1e-6)
        assert abs(float(batch["yx"][b].reshape(-1, 2).mean(0).abs().max())) < 1e-6


def test_fewer_genes_than_channels_are_padded(make_library):
    lib = make_library(n_vars=4, panel=[9, 2, -1, 5])
    batch = CropReader([lib], (4, 4), rule="weighted", n_channels=6).read([(0, 0, 0, 0, np.random.default_rng(0))])
    assert batch["panel"].tolist() == [[2, 5, 9, -1, -1, -1]]


def test_top_variance_is_taken_over_the_crop_and_not_the_library(make_library):
    lib = make_library(n_vars=20, shape=(12, 12))
    batch = CropReader([lib], (5, 5), rule="variance", n_channels=6).read([(0, 4, 3, 0, np.random.default_rng(0))])
    values, obs, depth = naive_window(lib, 4, 3, (5, 5))
    v = np.log1p(values[:, obs >= 0] / depth[obs >= 0] * 1e4).var(1)
    assert batch["panel"][0].tolist() == sorted(np.argsort(-v)[:6].tolist())


@given(
    rows=st.integers(1, 9),
    cols=st.integers(1, 9),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_valid_corners_equal_counting(rows, cols, height, width, share, seed):
    rng = np.random.default_rng(seed)
    occupied = rng.random((rows, cols)) < 0.6
    crop = CropSpec((height, width), min_occupied=max(1, round(share * min(height * width, rows * cols))))
    want, best = [], 0
    for top in range(min(0, rows - height), max(0, rows - height) + 1):
        for left in range(min(0, cols - width), max(0, cols - width) + 1):
            n = int(occupied[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)].sum())
            best = max(best, n)
            if n >= crop.fewest:
                want.append([top, left])
    if want:
        assert valid_corners(occupied, crop).tolist() == want
    else:
        with pytest.raises(ValueError, match=f"'a' has no window .* best one holds {best}"):
            valid_corners(occupied, crop, name="a")


def test_corners_are_drawn_uniformly_from_the_valid_ones(make_library):
    lib = make_library(shape=(6, 7), filled=0.5)
    data = CropDataset([lib], CropSpec((3, 3), min_occupied=5), rule="all")
    valid = {tuple(c) for c in valid_corners(lib.store.index >= 0, data.crop).tolist()}
    drawn = Counter((w[1], w[2]) for w in (data._window((0, i)) for i in range(4000)))
    assert set(drawn) == valid
    assert 1 < len(valid) < 20
    expected = 4000 / len(valid)
    chi2 = sum((n - expected) ** 2 / expected for n in drawn.values())
    assert chi2 < len(valid) + 5 * np.sqrt(2 * len(valid))


def test_a_raster_smaller_than_the_window_is_covered(make_library):
    lib = make_library(shape=(3, 12))
    data = CropDataset([lib], CropSpec((8, 8)), rule="all")
    tops = {data._window((0, i))[1] for i in range(200)}
    assert tops == set(range(-5, 1))
    batch = data[(0, 1)]
    top, left = data._window((0, 1))[1:3]
    assert np.array_equal(batch["obs"][0].numpy(), naive_window(lib, top, left, (8, 8))[1])


def test_number_of_crops(make_library):
    libs = [make_library(shape=(20, 30)), make_library(shape=(5, 5), seed=1)]
    crop = CropSpec((4, 5))
    assert len(CropDataset(libs, crop)) == int(2 * 20 * 30 / 20) + int(2 * 25 / 20)
    data = CropDataset(libs, crop, max_samples=7)
    assert len(data) == 7
    parts = []
    for epoch in range(40):
        sampler = CropSampler(data)
        sampler.set_epoch(epoch)
        parts.append([i for _, i in sampler])
    assert all(len(set(p)) == 7 for p in parts)
    assert len({i for p in parts for i in p}) > 55


@pytest.mark.parametrize("hex_parity", [-1, 1])
def test_augmentation_changes_geometry_and_nothing_else(make_library, hex_parity):
    lib = make_library(shape=(12, 12), hex_parity=hex_parity, filled=0.9)
    crop = CropSpec((5, 5))
    plain, turned = (CropDataset([lib], crop, n_channels=5, augment=a, seed=4) for a in (False, True))
    found = set()
    for i in range(150):
        a, b = plain[(1, i)], turned[(1, i)]
        symmetry = turned._window((1, i))[3]
        found.add(symmetry)
        assert torch.equal(a["panel"], b["panel"])
        per_obs = []
        for batch in (a, b):
            obs = batch["obs"].flatten()
            values = torch.zeros(25, 12).index_put((batch["pixel"], batch["channel"]), batch["value"])
            per_obs.append({int(o): (values[p].tolist(), float(batch["depth"].flatten()[p])) for p, o in enumerate(obs) if o >= 0})
            assert torch.equal(batch["obs"] >= 0, batch["seen"])
        assert per_obs[0] == per_obs[1]
        yx = [{int(o): p for o, p in zip(x["obs"].flatten(), x["yx"].reshape(-1, 2).double(), strict=True) if o >= 0} for x in (a, b)]
        before, after = (torch.stack([y[o] for o in sorted(y)]) for y in yx)
        torch.testing.assert_close(torch.cdist(before, before), torch.cdist(after, after), atol=1e-5, rtol=0)
        if hex_parity >= 0:
            torch.testing.assert_close(after, before @ torch.from_numpy(hex_symmetries()[symmetry].T.copy()), atol=1e-5, rtol=0)
        else:
            assert torch.equal(a["yx"], b["yx"])
    assert found == set(range(12 if hex_parity >= 0 else 8))


def test_an_oblong_window_is_never_turned_by_a_quarter(make_library):
    data = CropDataset([make_library(shape=(12, 12))], CropSpec((4, 6)), augment=True)
    assert {data._window((0, i))[3] for i in range(100)} == {0, 1, 2, 3}


def test_items_depend_on_seed_epoch_and_index_alone(make_library):
    libs = [make_library(), make_library(seed=1, first_row=500)]
    make = lambda seed: CropDataset(libs, CropSpec((4, 4)), n_channels=5, augment=True, seed=seed)  # noqa: E731
    a, b = make(3), make(3)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    items = [(e, i) for e in range(3) for i in range(len(a))]
    first = {item: a[item] for item in items}
    assert all(same(first[item], b[item]) for item in reversed(items))
    assert same(collate([first[(0, 1)], first[(2, 4)]]), b.__getitems__([(0, 1), (2, 4)]))
    assert same(first[(0, 2)], a[2])
    assert not same(first[(0, 1)], first[(1, 1)])
    assert not same(first[(0, 1)], make(4)[(0, 1)])
    assert np.array_equal(np.random.get_state()[1], state[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state[1])


def epochs_of(data, n_workers, n_epochs=2, **options):
    """All batches of some epochs, read by one loader with persistent workers."""
    sampler = CropSampler(data)
    loader = DataLoader(
        data, batch_size=3, sampler=sampler, collate_fn=collate, num_workers=n_workers, persistent_workers=n_workers > 0, **options
    )
    batches = []
    for epoch in range(n_epochs):
        sampler.set_epoch(epoch)
        batches.append([{k: v.clone() for k, v in batch.items()} for batch in loader])
    return batches


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
def test_batches_do_not_depend_on_workers_and_change_with_the_epoch(make_library):
    data = CropDataset([make_library(), make_library(seed=1)], CropSpec((4, 4)), n_channels=5, augment=True)
    alone = epochs_of(data, 0)
    assert not all(same(x, y) for x, y in zip(*alone, strict=True))
    for n_workers in (2, 4):
        for ours, theirs in zip(alone, epochs_of(data, n_workers), strict=True):
            assert len(ours) == len(theirs) > 2
            assert all(same(x, y) for x, y in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_ranks_interleave_to_the_sequence_of_one(make_library, n):
    data = CropDataset([make_library(), make_library(seed=1)], CropSpec((4, 4)))
    for epoch in (0, 3):
        ranks = [CropSampler(data, num_replicas=n, rank=r) for r in range(n)]
        one = CropSampler(data)
        for sampler in [*ranks, one]:
            sampler.set_epoch(epoch)
        parts = [list(s) for s in ranks]
        assert {len(p) for p in parts} == {len(ranks[0])}
        woven = [p[i] for i in range(len(parts[0])) for p in parts]
        assert woven[: len(data)] == list(one)
        assert sorted(i for _, i in one) == list(range(len(data)))
        assert [i for _, i in woven[len(data) :]] == list(range(len(data), len(woven)))
        assert len(woven) - len(data) < n
        assert {e for e, _ in woven} == {epoch}
    assert isinstance(ranks[0], torch.utils.data.distributed.DistributedSampler)


def test_a_fixed_sampler_stays_at_epoch_0(make_library):
    data = CropDataset([make_library()], CropSpec((4, 4)))
    sampler = CropSampler(data, fixed=True)
    before = list(sampler)
    sampler.set_epoch(5)
    assert list(sampler) == before
    assert before[0][0] == 0


def test_observations_on_one_lattice_point_add_up(dense_store):
    from scipy.sparse import csr_matrix

    counts = np.array([[1, 0], [2, 5], [4, 0]], dtype=np.float32)
    rc = np.array([[0, 0], [1, 1], [0, 0]], dtype=np.int32)
    lib = Library(
        "a", dense_store.from_csr(csr_matrix(counts), rc, (2, 2)), RasterSpec("square", (2, 2), 1.0, collision="sum"),
        np.array([0, 1]), np.array([10, 20, 30], np.float32), np.array([7, 8, 9]), rc,
    )  # fmt: skip
    batch = CropReader([lib], (2, 2), rule="all").read([(0, 0, 0, 0, np.random.default_rng(0))])
    assert batch["depth"][0].tolist() == [[40, 0], [0, 20]]
    assert batch["obs"][0].tolist() == [[7, -1], [-1, 8]]
    assert list(zip(batch["pixel"].tolist(), batch["channel"].tolist(), batch["value"].tolist(), strict=True)) == [
        (0, 0, 5),
        (3, 0, 2),
        (3, 1, 5),
    ]
    assert lib.first.tolist() == [0, 1, 0]


def test_wrong_choices_raise(make_library):
    lib = make_library()
    with pytest.raises(ValueError, match="no library"):
        CropReader([], (4, 4), rule="all")
    with pytest.raises(ValueError, match="room for the 12"):
        CropReader([lib], (4, 4), rule="all", n_channels=11)
    with pytest.raises(ValueError, match="fixed"):
        CropReader([lib], (4, 4), rule="weighted", channels=[1])
    with pytest.raises(ValueError, match="fixed"):
        CropReader([lib], (4, 4), rule="fixed")
    with pytest.raises(ValueError, match="twice"):
        CropReader([lib], (4, 4), rule="fixed", channels=[1, 1])
    with pytest.raises(ValueError, match="'a' measures none of the 2"):
        CropReader([lib], (4, 4), rule="fixed", channels=[50, 60])
    with pytest.raises(ValueError, match="less than one"):
        CropDataset([lib], CropSpec((4, 4)), max_samples=0)
    with pytest.raises(ValueError, match="best one holds"):
        CropDataset([lib], CropSpec((4, 4), min_occupied=16))
    with pytest.raises(ValueError, match="measures no gene"):
        make_library(panel=[-1] * 12)
    with pytest.raises(IndexError):
        CropDataset([lib], CropSpec((4, 4)))[-1]


@pytest.mark.slow
def test_workers_that_are_spawned_read_the_same_batches():
    from scipy.sparse import csr_matrix

    from stimg.image.store import RasterStore

    rng = np.random.default_rng(0)
    rc = np.argwhere(rng.random((12, 14)) < 0.8).astype(np.int32)
    counts = csr_matrix(rng.poisson(0.5, size=(len(rc), 30)).astype(np.float32))
    store = RasterStore.from_csr(counts, rc, (12, 14))
    depth = np.asarray(counts.sum(1)).ravel().astype(np.float32) + 1
    lib = Library("a", store, RasterSpec("hex", (12, 14), 100.0, hex_parity=1), np.arange(30), depth, np.arange(len(rc)), rc)
    data = CropDataset([lib], CropSpec((5, 5)), n_channels=8, augment=True)
    alone, spawned = epochs_of(data, 0), epochs_of(data, 2, multiprocessing_context="spawn")
    for ours, theirs in zip(alone, spawned, strict=True):
        assert len(ours) == len(theirs) > 2
        assert all(same(x, y) for x, y in zip(ours, theirs, strict=True))


def test_a_rule_of_ones_own_may_read_the_values(make_library, dense_batch, monkeypatch):
    from stimg.data.channels import ChannelRule, channel_rules

    def most_hits(view, n, rng):
        return view.genes[np.argsort(-np.bincount(view.hits.gene, minlength=view.n_vars)[view.genes], kind="stable")[:n]]

    monkeypatch.setitem(channel_rules._entries, "most_hits", ChannelRule("most_hits", most_hits))
    lib = make_library(n_vars=20, shape=(12, 12))
    batch = CropReader([lib], (5, 5), rule="most_hits", n_channels=6).read([(0, 4, 3, 0, np.random.default_rng(0))])
    values = naive_window(lib, 4, 3, (5, 5))[0]
    want = np.sort(np.argsort(-(values != 0).sum((1, 2)), kind="stable")[:6])
    assert batch["panel"][0].tolist() == want.tolist()
    np.testing.assert_array_equal(dense_batch(batch, 20)[0, want], values[want])


@pytest.mark.parametrize("rule", ["weighted", "uniform"])
def test_a_store_on_disk_gives_the_same_batches(tmp_path, rule):
    from scipy.sparse import csr_matrix

    from stimg.image.store import RasterStore

    rng = np.random.default_rng(0)
    rc = np.argwhere(rng.random((12, 14)) < 0.8).astype(np.int32)
    counts = csr_matrix(rng.poisson(0.5, size=(len(rc), 30)).astype(np.float32))
    store = RasterStore.from_csr(counts, rc, (12, 14))
    store.save(tmp_path / "a.zarr")
    parts = (RasterSpec("square", (12, 14), 100.0), np.arange(30), np.asarray(counts.sum(1), np.float32).ravel() + 1, np.arange(len(rc)))
    opened = RasterStore.open(tmp_path / "a.zarr")
    order = opened.source_rows
    libs = [Library("a", store, *parts), Library("a", opened, *parts[:2], parts[2][order], parts[3][order])]
    memory, disk = (CropDataset([lib], CropSpec((5, 5)), rule=rule, n_channels=8, augment=True) for lib in libs)
    for ours, theirs in zip(epochs_of(memory, 0), epochs_of(disk, 2), strict=True):
        assert all(same(x, y) for x, y in zip(ours, theirs, strict=True))
