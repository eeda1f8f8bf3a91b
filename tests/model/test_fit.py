"""What a caller of ``train`` asks of the loop, against the numbers written out by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stimg.model import STMAE, ImageGeneCLIP, ImageMAE
from stimg.model._fit import Loop
from stimg.model._seeded import seeded


def train(max_epochs=None, *, validation="blocks", lr=0.5, rng=3, checkpoint_dir=None, other="passed over"):
    """A ``train`` with defaults for what it does not name."""
    validation_fraction, early_stopping, patience, batch_size, weight_decay = 0.1, True, 20, 16, 0.0
    return Loop.asked(locals())


def test_what_is_asked_is_read_from_the_arguments():
    loop = train(7, validation=["A"], checkpoint_dir="folder")
    assert loop == Loop(7, ["A"], 0.1, True, 20, 16, 0.5, 0.0, 3, Path("folder"))
    assert train().checkpoint_dir is None
    with pytest.raises(KeyError, match="weight_decay"):
        Loop.asked({"rng": 0, **{k: v for k, v in vars(loop).items() if k != "weight_decay"}})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"lr": 0.0}, "lr"),
        ({"patience": 0}, "patience"),
        ({"batch_size": -1}, "batch_size"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1"),
    ],
)
def test_values_that_make_no_sense(changes, match):
    with pytest.raises(ValueError, match=match):
        replace(train(), **changes)


def test_length_of_a_training():
    loop = train().over(33, steps=100, most=400)  # 33 items in batches of 16 are 3 steps, and 34 epochs the first that make 100
    assert (loop.steps, loop.max_epochs) == (3, 34)
    assert train().over(33, steps=100, most=20).max_epochs == 20
    assert train(5).over(33, steps=100, most=4).max_epochs == 5
    assert loop.of_plan() == {"max_epochs": 34, "steps_per_epoch": 3, "lr": 0.5, "weight_decay": 0.0, "seed": 3}
    assert loop.of_record() == {"max_epochs": 34, "batch_size": 16, "lr": 0.5, "weight_decay": 0.0, "rng": 3}


@pytest.mark.parametrize("cls", [STMAE, ImageGeneCLIP, ImageMAE])
def test_every_model_asks_for_the_same_things(cls):
    """``Loop.asked`` finds its arguments by name: a ``train`` that calls one of them otherwise would fail."""
    import inspect

    named = set(inspect.signature(cls.train).parameters)
    assert set(vars(train())) - {"seed", "steps"} | {"rng"} <= named


def test_seeded_draws_leave_no_trace():
    before = torch.get_rng_state()
    with seeded(4):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(4):
        assert torch.equal(torch.rand(3), first)
    np.testing.assert_array_equal(first.numpy(), torch.rand(3, generator=torch.Generator().manual_seed(4)).numpy())


def test_seeded_draws_that_fail_leave_no_trace():
    def draw():
        with seeded(5):
            torch.rand(1)
            raise RuntimeError("stop")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"):
        draw()
    assert torch.equal(torch.get_rng_state(), before)
