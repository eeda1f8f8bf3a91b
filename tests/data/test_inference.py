import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from stimg.data.crops import collate
from stimg.data.inference import InferenceDataset
from stimg.image.blend import Blend, taper


@pytest.mark.parametrize(("mode", "overlap", "kind"), [("tiles", 0, "uniform"), ("tiles", (2, 1), "triangle"), ("centred", 0, "centre")])
@pytest.mark.parametrize("shape", [(9, 11), (3, 17), (2, 2)])
def test_reading_depth_out_of_the_windows_gives_depth_back(make_library, mode, overlap, kind, shape):
    libs = [make_library(shape=shape, filled=0.4), make_library(shape=(7, 8), seed=1, hex_parity=0, first_row=1000)]
    data = InferenceDataset(libs, (4, 5), mode=mode, overlap=overlap, rule="all")
    blend = Blend(1100, 1)
    for batch in DataLoader(data, batch_size=7, collate_fn=collate):
        blend.add(batch["obs"].numpy(), batch["depth"].numpy()[..., None], taper((4, 5), kind))
    want = np.concatenate([lib.depth for lib in libs])
    assert np.array_equal(data.rows, np.concatenate([lib.rows for lib in libs]))
    np.testing.assert_allclose(blend.result(data.rows, at=data.at)[:, 0], want, rtol=1e-6)


def test_a_centred_window_has_its_observation_in_the_centre(make_library):
    lib = make_library()
    data = InferenceDataset([lib], (4, 5), mode="centred", rule="all")
    centres = torch.cat([data[i]["obs"][:, 2, 2] for i in range(len(data))])
    assert sorted(centres.tolist()) == sorted(lib.rows.tolist())


def test_empty_tiles_are_left_out(make_library):
    lib = make_library(shape=(30, 30), filled=0.0)
    assert InferenceDataset([lib], (5, 5), rule="all").windows.tolist() == [[0, 0, 0], [0, 25, 25]]


def test_draws_do_not_depend_on_the_order_of_reading(make_library):
    data = InferenceDataset([make_library()], (4, 4), rule="weighted", n_channels=4, overlap=2)
    forward = [data[i] for i in range(len(data))]
    for i in reversed(range(len(data))):
        assert torch.equal(forward[i]["panel"], data[i]["panel"])
    assert len({tuple(b["panel"][0].tolist()) for b in forward}) > 1
    other = InferenceDataset([make_library()], (4, 4), rule="weighted", n_channels=4, overlap=2, seed=1)
    assert any(not torch.equal(a["panel"], other[i]["panel"]) for i, a in enumerate(forward))


def test_wrong_choices_raise(make_library):
    lib = make_library()
    with pytest.raises(ValueError, match="mode"):
        InferenceDataset([lib], (4, 4), mode="center")
    with pytest.raises(ValueError, match="overlap"):
        InferenceDataset([lib], (4, 4), mode="centred", overlap=2)
    with pytest.raises(ValueError, match="same row"):
        InferenceDataset([lib, make_library(seed=1)], (4, 4))
    with pytest.raises(IndexError):
        InferenceDataset([lib], (4, 4))[10_000]
