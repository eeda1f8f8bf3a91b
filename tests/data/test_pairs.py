import numpy as np
import pytest
import torch

from stimg.data import PairDataModule, PairDataset, PairSampler
from stimg.data.pairs import SAMPLING, _quota, mini_batches

SIZES = (40, 25, 7)


def groups(sizes=SIZES):
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


def dataset(sizes=SIZES, **more):
    own = groups(sizes)
    n = len(own)
    arrays = {"image": np.arange(2 * n, dtype=np.float32).reshape(n, 2), "gene": -np.arange(n, dtype=np.float32)[:, None], "batch": own}
    return PairDataset({**arrays, **more}, np.arange(n) * 3)


def epoch(sampler, number):
    sampler.set_epoch(number)
    return [np.array(part) for _, part in sampler]


@pytest.mark.parametrize("sampling", ["mixed", "within"])
@pytest.mark.parametrize("batch_size", [2, 10, 16, 100])
def test_every_pair_comes_once(sampling, batch_size):
    parts = mini_batches(groups(), batch_size, sampling, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(sum(SIZES)))
    assert max(map(len, parts)) <= batch_size
    if sampling == "mixed":
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("batch_size", [4, 10, 16])
def test_batches_within_one_group(batch_size):
    own = groups()
    parts = mini_batches(own, batch_size, "within", np.random.default_rng(0))
    for part in parts:
        assert len(np.unique(own[part])) == 1
    for g, size in enumerate(SIZES):
        lengths = [len(p) for p in parts if own[p[0]] == g]
        assert len(lengths) == -(-size // batch_size)
        assert max(lengths) - min(lengths) <= 1
    order = [own[p[0]] for p in parts]
    assert order != sorted(order)


@pytest.mark.parametrize("batch_size", [6, 9, 30])
def test_balanced_batches(batch_size):
    own = groups()
    counts = np.zeros(sum(SIZES), dtype=int)
    for part in mini_batches(own, batch_size, "balanced", np.random.default_rng(0)):
        assert len(np.unique(part)) == len(part) <= batch_size
        found = np.bincount(own[part], minlength=3)
        full = found == SIZES  # a group that has no more to give
        assert np.ptp(found[~full]) <= 1
        assert not full.any() or found[full].max() <= found[~full].min() + 1
        counts[part] += 1
    assert counts.sum() == sum(SIZES)
    for g in range(3):  # within a group all come equally often, but for one round
        assert np.ptp(counts[own == g]) <= 1
    assert counts[own == 2].mean() > counts[own == 0].mean()


def test_quotas_by_pouring():
    """As equal as can be, against adding one at a time to whoever has least."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        available = rng.integers(1, 20, rng.integers(1, 6))
        size, first = int(rng.integers(1, 40)), int(rng.integers(9))
        wanted = np.zeros(len(available), dtype=int)
        for _ in range(min(size, available.sum())):
            least = np.where(wanted < available, wanted, 10**6)
            wanted[least.argmin()] += 1
        found = _quota(size, available, first)
        assert (found <= available).all()
        np.testing.assert_array_equal(np.sort(found), np.sort(wanted))


def test_who_gets_the_odd_one_goes_round():
    assert {int(_quota(4, np.array([9, 9, 9]), i).argmax()) for i in range(3)} == {0, 1, 2}


@pytest.mark.parametrize("sampling", SAMPLING)
def test_epochs_differ_and_come_again(sampling):
    data = dataset()
    a, b = (PairSampler(data, 8, sampling=sampling, seed=5) for _ in range(2))
    first = epoch(a, 0)
    other = epoch(a, 1)
    assert any(len(x) != len(y) or (x != y).any() for x, y in zip(first, other, strict=True))
    for x, y in zip(first, epoch(b, 0), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(other, epoch(b, 1), strict=True):
        np.testing.assert_array_equal(x, y)
    assert any(
        (x != y).any() for x, y in zip(first, epoch(PairSampler(data, 8, sampling=sampling, seed=6), 0), strict=False) if len(x) == len(y)
    )
    fixed = PairSampler(data, 8, sampling=sampling, seed=5, fixed=True)
    for x, y in zip(first, epoch(fixed, 7), strict=True):
        np.testing.assert_array_equal(x, y)
    assert len(a) == len(first)


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_share_the_batches_of_one(sampling, ranks):
    data = dataset()
    one = epoch(PairSampler(data, 4 * ranks, sampling=sampling, seed=1), 3)
    parts = [epoch(PairSampler(data, 4, sampling=sampling, seed=1, num_replicas=ranks, rank=r), 3) for r in range(ranks)]
    assert len({len(p) for p in parts}) == 1
    kept = [p for p in one if len(p) >= ranks]
    assert len(kept) == len(parts[0])
    for whole, *own in zip(kept, *parts, strict=True):
        assert len({len(p) for p in own}) == 1
        joint = np.concatenate(own)
        assert len(np.unique(joint)) == len(joint) > len(whole) - ranks
        assert set(joint) <= set(whole)


def test_a_batch_is_rows_of_the_arrays():
    data = dataset()
    batch = data[(4, [5, 0, 9])]
    assert set(batch) == {"image", "gene", "batch"}
    np.testing.assert_array_equal(batch["image"], [[10, 11], [0, 1], [18, 19]])
    np.testing.assert_array_equal(batch["gene"].ravel(), [-5, 0, -9])
    np.testing.assert_array_equal(batch["batch"], groups()[[5, 0, 9]])


class Tiles:
    """Tiles that say which epoch and item they are."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, item):
        return {"image": torch.tensor([[[item]]], dtype=torch.uint8).expand(1, 4, 4, 2), "row": torch.tensor(item[1])}


def test_tiles_are_read_for_their_epoch():
    own = groups((5, 5))
    data = PairDataset({"gene": np.zeros((10, 1)), "batch": own}, np.arange(10), Tiles(10))
    batch = data[(3, [7, 2])]
    assert batch["image"].shape == (2, 1, 4, 4, 2)
    assert batch["image"][:, 0, 0, 0].tolist() == [[3, 7], [3, 2]]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_module_reads_epoch_after_epoch_whatever_the_workers(workers):
    train, val = dataset(), dataset((6, 5))
    data = PairDataModule(train, val, batch_size=8, sampling="balanced", seed=2, num_workers=workers, multiprocessing_context="fork")
    loader = data.train_dataloader()
    found = []
    for number in range(2):
        loader.sampler.set_epoch(number)
        found.append([batch["gene"].ravel().tolist() for batch in loader])
    sampler = PairSampler(train, 8, sampling="balanced", seed=2)
    wanted = [[(-p.astype(float)).tolist() for p in epoch(sampler, number)] for number in range(2)]
    assert found == wanted
    assert data.state_dict() == {"epoch": 1, "seed": 2}
    once, again = ([b["gene"].ravel().tolist() for b in data.val_dataloader()] for _ in range(2))
    assert once == again
    assert sorted(value for batch in once for value in batch) == sorted((-np.arange(11.0)).tolist())


def test_a_module_goes_on_from_an_epoch():
    data = PairDataModule(dataset(), seed=2)
    assert data.val_dataloader() == []
    data.load_state_dict({"epoch": 4, "seed": 2})
    assert data.train_dataloader().sampler.epoch == 4
    with pytest.raises(ValueError, match="seed=3"):
        data.load_state_dict({"epoch": 4, "seed": 3})
    np.testing.assert_array_equal(data.train_idx, np.arange(72) * 3)
    assert (data.n_train, data.n_val, data.n_obs) == (72, 0, 72)


def test_bad_input():
    with pytest.raises(ValueError, match=r"different numbers of pairs: .*'gene': 3.*'rows': 2"):
        PairDataset({"gene": np.zeros((3, 1)), "batch": np.zeros(3, int)}, np.arange(2))
    with pytest.raises(ValueError, match=r"lack 'batch' \(found \['gene'\]\)"):
        PairDataset({"gene": np.zeros((3, 1))}, np.arange(3))
    with pytest.raises(ValueError, match="sampling='even' is not known"):
        PairSampler(dataset(), 4, sampling="even")
    with pytest.raises(ValueError, match="batch_size=0"):
        PairSampler(dataset(), 0)
