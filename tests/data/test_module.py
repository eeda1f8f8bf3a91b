import numpy as np
import pytest
import torch

from stimg.data.crops import CropSampler
from stimg.data.module import CropDataModule
from stimg.image.spec import CropSpec


@pytest.fixture
def module(make_library):
    def make(**options):
        train = [make_library(), make_library(seed=1, first_row=200)]
        return CropDataModule(
            train, [make_library(seed=2, first_row=400)], **{"crop": CropSpec((4, 4)), "n_channels": 5, "batch_size": 4, **options}
        )

    return make


def fit(module, n_epochs, *, plan=None, **options):
    """Train a dummy for some epochs and return what it has seen: (training rows by epoch, validation rows by epoch)."""
    from lightning.pytorch import LightningModule, Trainer

    class Plan(LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen, self.checked = {}, {}

        def training_step(self, batch, _):
            self.seen.setdefault(self.current_epoch, []).append(batch["obs"].clone())
            return (self.weight * batch["value"].sum()).sum()

        def validation_step(self, batch, _):
            self.checked.setdefault(self.current_epoch, []).append((batch["obs"].clone(), batch["panel"].clone()))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    plan = Plan()
    ckpt = options.pop("ckpt_path", None)
    trainer = Trainer(
        max_epochs=n_epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(plan, datamodule=module, ckpt_path=ckpt)
    return trainer, plan


def test_attributes_that_scvi_tools_reads(module, make_library):
    found = module()
    assert found.n_train == len(found.train_idx) == sum(lib.n_obs for lib in found.train_dataset.reader.libraries)
    assert found.n_val == len(found.val_idx) == found.val_dataset.reader.libraries[0].n_obs
    assert found.n_obs == found.n_train + found.n_val
    assert set(found.val_idx) == set(found.val_dataset.reader.libraries[0].rows)
    alone = CropDataModule([make_library()], crop=CropSpec((4, 4)))
    assert alone.val_dataloader() == []
    assert (alone.n_val, len(alone.val_idx)) == (0, 0)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")
def test_lightning_moves_the_epoch_of_training_and_not_of_validation(module):
    _, plan = fit(module(), 3, enable_checkpointing=False)
    first, second = (torch.cat(plan.seen[e]) for e in (0, 1))
    assert first.shape == second.shape
    assert not torch.equal(first, second)
    for e in (1, 2):
        assert all(torch.equal(a, b) and torch.equal(p, q) for (a, p), (b, q) in zip(plan.checked[0], plan.checked[e], strict=True))


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches", "ignore:Total length of `list`")
def test_a_plan_that_validates_trains_without_validation_libraries(make_library):
    """A loader of None would be an error or a warning of Lightning, an empty list means that nothing is validated."""
    alone = CropDataModule([make_library()], crop=CropSpec((4, 4)), n_channels=5, batch_size=4)
    trainer, plan = fit(alone, 2, enable_checkpointing=False)
    assert sorted(plan.seen) == [0, 1]
    assert plan.checked == {}
    assert not trainer.num_val_batches or sum(trainer.num_val_batches) == 0


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches", "ignore:Checkpoint directory")
def test_training_goes_on_where_the_checkpoint_stopped(module, tmp_path):
    _, whole = fit(module(), 4, enable_checkpointing=False)
    trainer, _ = fit(module(), 2, default_root_dir=tmp_path)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, rest = fit(module(), 4, ckpt_path=tmp_path / "half.ckpt", default_root_dir=tmp_path)
    assert sorted(rest.seen) == [2, 3]
    for epoch in (2, 3):
        assert torch.equal(torch.cat(whole.seen[epoch]), torch.cat(rest.seen[epoch]))


def test_state_without_lightning(module):
    ours = module()
    loader = ours.train_dataloader()
    loader.sampler.set_epoch(3)
    state = ours.state_dict()
    theirs = module()
    theirs.load_state_dict(state)
    assert list(theirs.train_dataloader().sampler) == list(loader.sampler)
    assert theirs.state_dict() == state
    with pytest.raises(ValueError, match="seed=0"):
        module(seed=9).load_state_dict(state)


def test_validation_crops_are_not_augmented_and_training_crops_are(module):
    found = module()
    assert found.train_dataset.augment
    assert not found.val_dataset.augment
    assert not module(augment=False).train_dataset.augment
    assert len(module(max_samples_per_epoch=3).train_dataset) == 3
    assert len(module(max_val_samples=2).val_dataset) == 2


def test_drop_last_and_batch_size(module):
    assert len(module().train_dataset) == 24
    assert [len(b["seen"]) for b in module(batch_size=7).train_dataloader()] == [7, 7, 7, 3]
    assert [len(b["seen"]) for b in module(batch_size=7, drop_last=True).train_dataloader()] == [7, 7, 7]
    with pytest.raises(ValueError, match="drop_last leaves no batch"):
        module(drop_last=True, batch_size=1000).train_dataloader()
    with pytest.raises(ValueError, match="batch_size"):
        module(batch_size=0)


def test_ranks_come_from_torch_distributed(module, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        sampler = module().train_dataloader().sampler
        assert (sampler.num_replicas, sampler.rank) == (2, rank)
        parts.append(list(sampler))
    woven = [x for pair in zip(*parts, strict=True) for x in pair]
    one = list(CropSampler(module().train_dataset))
    assert woven[: len(one)] == one
    assert not np.intersect1d([i for _, i in parts[0]], [i for _, i in parts[1]]).size


@pytest.mark.filterwarnings("ignore")
def test_the_runner_of_scvi_tools_takes_it(module):
    from types import SimpleNamespace

    from lightning.pytorch import LightningModule
    from scvi.train import TrainRunner

    class Plan(LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.steps = torch.nn.Parameter(torch.zeros(1)), 0

        def training_step(self, batch, _):
            self.steps += 1
            return self.weight * batch["value"].sum()

        def validation_step(self, batch, _):
            self.log("validation_loss", self.weight.sum(), batch_size=len(batch["seen"]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    data, plan = module(), Plan()
    model = SimpleNamespace(history_=None, is_trained_=False, module=torch.nn.Identity(), to_device=lambda _: None)
    TrainRunner(model, plan, data, max_epochs=2, accelerator="cpu", devices=1, enable_progress_bar=False, check_val_every_n_epoch=1)()
    assert plan.steps == 2 * len(data.train_dataloader())
    assert plan.n_obs_training == data.n_train
    assert plan.n_obs_validation == data.n_val
    assert np.array_equal(model.train_indices, data.train_idx)
    assert np.array_equal(model.validation_indices, data.val_idx)
