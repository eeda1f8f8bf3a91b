import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from stimg.nn.stmae import Offsets
from stimg.plan import EpochHistory, MaskedPlan, StopWhenStale


class Toy(nn.Module):
    """Loss is the squared distance of a weight to the batch's mean, plus noise that no gradient sees."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.zeros(2))
        self.drawn, self.offsets, self.modes = [], [], []

    def forward(self, batch, offsets):
        self.drawn.append(float(torch.rand(1)))
        self.offsets.append(float(offsets.mean.sum()))
        self.modes.append(self.training)
        loss = (self.weight.sum() + self.bias.sum() - batch["panel"].mean()).square()
        return {"loss": loss, "hidden": loss * 2}


def offsets(value):
    return Offsets(torch.full((1, 3), value), torch.full((1, 3), value))


def make(toy, **options):
    options = {"train_offsets": offsets(1.0), "val_offsets": offsets(2.0), "max_epochs": 5, "steps_per_epoch": 2, **options}
    return MaskedPlan(toy, **options)


def fit(plan, values=(1.0, 2.0, 3.0), *, val=(1.0, 5.0, 6.0), epochs=5, batch_size=2, workers=0, **options):
    def loader(numbers):
        return DataLoader([{"panel": torch.tensor(v)} for v in numbers], batch_size=batch_size, num_workers=workers)

    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=options.pop("num_sanity_val_steps", 0),
        **options,
    )
    trainer.fit(plan, loader(values), loader(val) if val else None)
    return trainer


def test_the_learning_rate_rises_and_falls():
    plan = make(Toy(), max_epochs=10, steps_per_epoch=10, warmup=0.2)
    rates = [plan._rate(step) for step in range(100)]
    for step, rate in enumerate(rates):
        wanted = (step + 1) / 20 if step < 20 else 0.01 + 0.99 * (1 + math.cos(math.pi * (step - 20) / 80)) / 2
        assert rate == pytest.approx(wanted)
    assert max(rates) == 1.0
    assert plan._rate(100) == plan._rate(1000) == pytest.approx(0.01)


def test_biases_do_not_decay():
    toy = Toy()
    optimizer = make(toy, lr=0.1, weight_decay=0.3).configure_optimizers()["optimizer"]
    found = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert found == {id(toy.weight): 0.3, id(toy.bias): 0.0}


def test_losses_are_weighted_by_crops():
    """The last batch of the validation is smaller: the mean is over crops, not over batches."""
    plan, history = make(Toy(), lr=1e-12), EpochHistory()
    fit(plan, callbacks=[history], epochs=1)
    wanted = ((4 - 3.0) ** 2 * 2 + (4 - 6.0) ** 2) / 3  # batches (1, 5) and (6,)
    assert history.curves["validation_loss"]["value"] == [pytest.approx(wanted)]
    assert history.curves["validation_hidden"]["value"] == [pytest.approx(2 * wanted)]
    assert history.curves["train_loss"]["value"] == [pytest.approx(((4 - 1.5) ** 2 * 2 + (4 - 3) ** 2) / 3)]


def test_the_best_weights_are_copies():
    toy = Toy()
    plan = make(toy, lr=0.3)
    history = EpochHistory()
    fit(plan, val=(4.5,), callbacks=[history])
    losses = history.curves["validation_loss"]["value"]
    assert plan.best_loss == min(losses)
    assert plan.best_epoch == losses.index(min(losses))
    assert plan.best["weight"].data_ptr() != toy.weight.data_ptr()
    best = Toy()
    best.load_state_dict(plan.best)
    assert (best.weight.sum() + best.bias.sum() - 4.5).square().item() == pytest.approx(plan.best_loss)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_every_step_draws_its_own_and_every_validation_the_same():
    def drawn(plan, **options):
        toy = plan.module
        fit(plan, **options)
        train = [d for d, mode in zip(toy.drawn, toy.modes, strict=True) if mode]
        return train, [d for d, mode in zip(toy.drawn, toy.modes, strict=True) if not mode]

    train, val = drawn(make(Toy()))
    assert len(set(train)) == len(train) == 10
    assert len(val) == 10
    assert val == val[:2] * 5
    assert drawn(make(Toy()), val=None)[0] == train  # validation changes nothing
    assert drawn(make(Toy()), num_sanity_val_steps=2)[0] == train
    assert drawn(make(Toy()), val_check_interval=1)[0] == train
    assert not set(drawn(make(Toy(), seed=1))[0]) & set(train)


def test_train_and_validation_have_their_own_offsets():
    toy = Toy()
    fit(make(toy), epochs=1)
    assert sorted(toy.offsets) == [3.0, 3.0, 6.0, 6.0]
    assert [o for o, mode in zip(toy.offsets, toy.modes, strict=True) if mode] == [3.0, 3.0]


def test_offsets_are_no_weights():
    plan = make(Toy())
    assert set(plan.state_dict()) == {"module.weight", "module.bias"}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_schedule_counts_the_steps_taken(accumulate):
    plan = make(Toy(), max_epochs=5, steps_per_epoch=2)
    trainer = fit(plan, accumulate_grad_batches=accumulate)
    assert plan.total_steps == trainer.global_step == 10 // accumulate


def test_a_loss_that_is_no_number():
    with pytest.raises(ValueError, match=r"training loss is inf in epoch 0 \(learning rate 0\.25\)"):
        fit(make(Toy(), lr=0.25), values=(math.inf,))


def test_history_follows_the_epochs_in_which_something_was_measured():
    history = EpochHistory({"train_loss": {"epoch": [0, 1], "value": [9.0, 8.0]}})
    fit(make(Toy()), callbacks=[history], check_val_every_n_epoch=2)
    assert history.curves["train_loss"]["epoch"] == [0, 1, 2, 3, 4, 5, 6]
    assert history.curves["train_loss"]["value"][:2] == [9.0, 8.0]
    assert history.curves["validation_loss"]["epoch"] == [3, 5]
    assert history.done == 5
    again = EpochHistory()
    again.load_state_dict(history.state_dict())
    assert (again.curves, again.first, again.done) == (history.curves, 2, 5)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 1), (2, 2), (3, 3), (9, 5)])
def test_stopping(patience, epochs):
    """A rate of nothing: epoch 0 stays the best one."""
    plan, history = make(Toy(), lr=0.0), EpochHistory()
    fit(plan, callbacks=[history, StopWhenStale(patience, history)])
    assert history.done == min(5, epochs + 1)
    assert plan.best_epoch == 0
