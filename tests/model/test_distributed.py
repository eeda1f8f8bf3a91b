"""Two processes on the CPU. Every process runs the whole script, as a user's would."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from stimg.model import STMAE

pytestmark = pytest.mark.slow

SLIDE = """
import json, os, sys
import torch
import stimg
from stimg.model import STMAE
torch.set_num_threads(1)
adata = stimg.datasets.simulate(technology="visium", shape=(12, 12), n_genes=40, rng=0)
stimg.pp.rasterize(adata)
STMAE.setup_anndata(adata)
model = STMAE(adata, n_latent=8, n_layers=1, n_decoder_layers=1, crop_size=(6, 6))
"""

DISTRIBUTED = (
    SLIDE
    + """
from lightning.pytorch.callbacks import Callback

class Fake(Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        trainer.callback_metrics["validation_loss"].fill_([3.0, 1.0, 2.0, 2.0, 2.0, 2.0][trainer.current_epoch])

class Steps(Callback):
    n, rate = 0, 0.0
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.n, self.rate = self.n + 1, optimizer.param_groups[0]["lr"]

steps = Steps()
common = dict(batch_size=2, validation_fraction=0.25, lr=5e-3, accelerator="cpu", devices=2, strategy="ddp")
model.train(max_epochs=6, patience=2, checkpoint_dir=os.path.join(sys.argv[1], "c"), callbacks=[Fake(), steps], **common)
rank = torch.distributed.get_rank()
torch.save({k: v for k, v in model.module.state_dict().items()}, os.path.join(sys.argv[1], f"weights{rank}.pt"))
told = {"epochs": model.epochs(), "best": model.best_epoch_, "history": {k: v[k].tolist() for k, v in model.history.items()}, "n_steps": steps.n}
with open(os.path.join(sys.argv[1], f"told{rank}.json"), "w") as file:
    json.dump(told, file)
model.save(os.path.join(sys.argv[1], "model"))
"""
)

JOINT = """
import os, sys
import torch
from lightning.pytorch import Trainer
import stimg
from stimg.data.library import libraries
from stimg.data.module import CropDataModule
from stimg.image import CropSpec
from stimg.nn.stmae import Offsets
from stimg.plan import MaskedPlan
torch.set_num_threads(1)

class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 6 * 6).view(6, 6) / 100)
    def forward(self, batch, offsets):
        return {"loss": ((batch["depth"] / 1000 * self.weight).sum((1, 2)) - 1).square().mean()}

n = int(sys.argv[2])
adata = stimg.datasets.simulate(technology="visium", shape=(12, 12), n_genes=20, rng=0)
stimg.pp.rasterize(adata)
data = CropDataModule(libraries(adata, vocabulary=adata.var_names), crop=CropSpec((6, 6)), rule="all", batch_size=4 // n, seed=0)
nothing = Offsets(torch.zeros(1, 20), torch.zeros(1, 20))
toy = Toy()
plan = MaskedPlan(toy, train_offsets=nothing, val_offsets=None, max_epochs=3, steps_per_epoch=-(-len(data.train_dataset) // (4 // n)), lr=1e-2)
Trainer(
    max_epochs=3, accelerator="cpu", devices=n, strategy="ddp" if n > 1 else "auto", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
).fit(plan, datamodule=data)
if plan.global_rank == 0:
    torch.save(toy.weight.detach(), os.path.join(sys.argv[1], f"joint{n}.pt"))
    torch.save(torch.tensor(plan.total_steps), os.path.join(sys.argv[1], f"steps{n}.pt"))
"""


def environment():
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MASTER_", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK"))}
    return {**kept, "OMP_NUM_THREADS": "1"}


def run(script, folder, *arguments):
    path = folder / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, path, str(folder), *arguments], capture_output=True, text=True, cwd=folder, env=environment(), timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_two_processes_train_one_model(tmp_path, make_slide):
    done = run(DISTRIBUTED, tmp_path)
    assert "early_stopping was automatically disabled" not in done.stderr
    first, second = (json.loads((tmp_path / f"told{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert (first["epochs"], first["best"]) == (4, 1)
    assert {"train_loss", "validation_loss"} <= set(first["history"])
    assert first["n_steps"] == 4 * 2  # 8 crops of an epoch, 2 on each of 2 ranks
    a, b = (torch.load(tmp_path / f"weights{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    loaded = STMAE.load(tmp_path / "model")
    assert all(torch.equal(v, a[k]) for k, v in loaded.module.state_dict().items())
    assert np.isfinite(loaded.get_latent_representation(make_slide())).all()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["c", "model"]


def test_two_ranks_do_what_one_does_with_the_joint_batch(tmp_path):
    """For a loss that is a mean over crops. (The model's own is a mean over hidden values, and every rank draws its own masks.)"""
    for n in ("1", "2"):
        run(JOINT, tmp_path, n)
    one, two = (torch.load(tmp_path / f"joint{n}.pt", weights_only=True) for n in (1, 2))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(one, torch.linspace(-1, 1, 36).view(6, 6) / 100)
    steps = [int(torch.load(tmp_path / f"steps{n}.pt", weights_only=True)) for n in (1, 2)]
    assert steps[0] == steps[1] == 3 * 2


def test_a_killed_process_leaves_a_checkpoint_to_go_on_from(tmp_path, make_slide, make_model):
    script = (
        SLIDE
        + """
import time
from lightning.pytorch.callbacks import Callback

class Slow(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 3:
            print("here", flush=True)
            time.sleep(600)

model.train(max_epochs=6, validation_fraction=0.25, batch_size=4, lr=5e-3, rng=0, checkpoint_dir=sys.argv[1], callbacks=[Slow()])
"""
    )
    (tmp_path / "script.py").write_text(script)
    folder = tmp_path / "c"
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", str(folder)], stdout=subprocess.PIPE, env=environment(), cwd=tmp_path
    )
    assert process.stdout.readline().strip() == b"here"
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    fit = {"max_epochs": 6, "validation_fraction": 0.25, "batch_size": 4, "lr": 5e-3, "rng": 0}
    resumed, straight = make_model(make_slide()), make_model(make_slide())
    resumed.train(checkpoint_dir=folder, **fit)
    straight.train(**fit)
    a, b = (m.module.state_dict() for m in (resumed, straight))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(resumed.history[k].equals(straight.history[k]) for k in straight.history)
