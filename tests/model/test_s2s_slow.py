"""S2SImputer in two processes on the CPU, each of which runs the whole script as a user's would; compiled; and on a real section."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import stimg
from stimg.model import S2SImputer

pytestmark = pytest.mark.slow

SLIDE = """
import json, os, sys
import numpy as np
import torch
import stimg
from stimg.model import S2SImputer
torch.set_num_threads(1)
adata = stimg.datasets.simulate(technology="st", shape=(12, 12), n_genes=20, rng=0)
stimg.pp.rasterize(adata)
measured = adata[::2].copy()
S2SImputer.setup_anndata(measured)
model = S2SImputer(measured, n_samples=4, n_hidden=4, growth=2, turns=1, window=4)
fit = dict(max_epochs=3, steps_per_epoch=6, batch_size=8, rng=0, enable_progress_bar=False)
"""
DISTRIBUTED = (
    SLIDE
    + """
from lightning.pytorch.callbacks import Callback

class Steps(Callback):
    n = 0
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.n += 1

steps = Steps()
model.train(**fit, accelerator="cpu", devices=2, strategy="ddp", checkpoint_dir=os.path.join(sys.argv[1], "c"), callbacks=[steps])
rank = torch.distributed.get_rank()
torch.save(dict(model.module.state_dict()), os.path.join(sys.argv[1], f"weights{rank}.pt"))
told = {
    "epochs": model.epochs(), "best": model.best_epoch_, "judged": model.judged_, "calibration": model.calibration.tolist(), "n_steps": steps.n,
    "history": {k: v[k].tolist() for k, v in model.history.items()},
}
with open(os.path.join(sys.argv[1], f"told{rank}.json"), "w") as file:
    json.dump(told, file)
model.save(os.path.join(sys.argv[1], "model"))
"""
)


def run(script, folder):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MASTER_", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK"))}
    path = folder / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, path, str(folder)], capture_output=True, text=True, cwd=folder, env={**kept, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def slide():
    adata = stimg.datasets.simulate(technology="st", shape=(12, 12), n_genes=20, rng=0)
    stimg.pp.rasterize(adata)
    return adata[::2].copy(), adata[1::2].copy()


def test_two_processes_train_one_model(tmp_path):
    """Same weights, gate and calibration on both ranks, half of the steps of an epoch on each; what one of them saved is what both have."""
    run(DISTRIBUTED, tmp_path)
    first, second = (json.loads((tmp_path / f"told{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["epochs"] == 3
    assert first["n_steps"] == 3 * 3
    assert {"train_loss", "validation_loss"} <= set(first["history"])
    a, b = (torch.load(tmp_path / f"weights{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    loaded = S2SImputer.load(tmp_path / "model")
    assert all(torch.equal(v, a[k]) for k, v in loaded.module.state_dict().items())
    measured, hidden = slide()
    values, sd = loaded.impute(measured, hidden)
    assert np.isfinite(values).all()
    assert (sd > 0).all()


def test_a_compiled_network_trains_and_is_saved_plainly(tmp_path):
    """The smallest network, and a map that is always shown in the same way: compiling for every shape would take minutes."""
    measured, hidden = slide()
    small = {"n_samples": 1, "n_stages": 1, "n_hidden": 4, "n_dense": 1, "growth": 2, "n_attention": 0, "turns": 1, "augment": False}
    models = []
    for compile in (False, True):
        S2SImputer.setup_anndata(measured)
        models.append(S2SImputer(measured, natural=None, **small))
        models[-1].train(max_epochs=2, steps_per_epoch=2, batch_size=8, rng=0, validation=None, enable_progress_bar=False, compile=compile)
    plain, compiled = models
    assert compiled.module.state_dict().keys() == plain.module.state_dict().keys()
    a, b = (m.history["train_loss"]["train_loss"] for m in (compiled, plain))
    np.testing.assert_allclose(a, b, rtol=1e-3)
    compiled.save(tmp_path / "m")
    np.testing.assert_array_equal(S2SImputer.load(tmp_path / "m").impute(measured, hidden).values, compiled.impute(measured, hidden).values)


@pytest.mark.data
def test_a_real_section(mirror):
    """HER2ST C1, half of its spots: it is not worse than what it starts from by more than chance, and its intervals hold nine in ten hidden values."""
    adata = stimg.datasets.her2st("C1")
    stimg.pp.rasterize(adata)
    sparse, truth = stimg.pp.sparsify(adata, mask="random", rng=0)
    counts = np.asarray(sparse.X.sum(axis=0)).ravel()
    genes = list(sparse.var_names[np.argsort(-counts)[:60]])
    S2SImputer.setup_anndata(sparse)
    model = S2SImputer(sparse, genes)
    model.train(max_epochs=5, enable_progress_bar=False)
    values, sd = model.impute(targets=truth)
    base = stimg.tl.impute(sparse, targets=truth, genes=genes, uncertainty=False)[truth.obs_names].layers["stimg_ensemble"]
    dense = truth[:, genes].X.toarray() / np.asarray(truth.X.sum(axis=1)).reshape(-1, 1)
    real = np.log1p(1e4 * dense)
    assert ((values - real) ** 2).sum() < 1.02 * ((base - real) ** 2).sum() < 1.02 * ((real - real.mean(axis=0)) ** 2).sum()
    assert 0.84 < (np.abs(values - real) < 1.645 * sd).mean() < 0.96
