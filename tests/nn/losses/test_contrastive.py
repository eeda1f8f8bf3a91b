"""Both losses against loops over pairs, and their gathering over processes against one process with the joint batch."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from stimg.nn.losses import clip_loss, siglip_loss
from stimg.nn.losses.contrastive import LARGEST_LOG_SCALE, gather


def pairs(n=7, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)), rng.normal(size=(n, dim)), rng.integers(0, 3, n)


def unit(x):
    return x / np.sqrt((x**2).sum(1, keepdims=True))


def naive_clip(x, y, theta, *, normalise=True, group=None, smoothing=0.0):
    if normalise:
        x, y = unit(x), unit(y)
    n, total = len(x), 0.0
    for i in range(n):
        rivals = [j for j in range(n) if group is None or group[j] == group[i]]
        for a, b in ((x, y), (y, x)):
            logits = [math.exp(theta) * float(a[i] @ b[j]) for j in rivals]
            log_sum = math.log(sum(math.exp(v) for v in logits))
            shares = [v - log_sum for v in logits]
            total -= (1 - smoothing) * shares[rivals.index(i)] + smoothing * sum(shares) / len(rivals)
    return total / (2 * n)


def naive_siglip(x, y, theta, bias, *, normalise=True, group=None):
    if normalise:
        x, y = unit(x), unit(y)
    total = 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            if group is None or group[i] == group[j]:
                z = 1 if i == j else -1
                total += math.log(1 + math.exp(-z * (math.exp(theta) * float(x[i] @ y[j]) + bias)))
    return total / len(x)


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(a)) for a in arrays]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_clip_against_a_loop(normalise, grouped, smoothing):
    x, y, group = pairs()
    own = {"normalise": normalise, "smoothing": smoothing}
    found = clip_loss(*tensors(x, y), torch.tensor(0.7), group=torch.from_numpy(group) if grouped else None, **own)
    assert float(found) == pytest.approx(naive_clip(x, y, 0.7, group=group if grouped else None, **own), rel=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("grouped", [False, True])
def test_siglip_against_a_loop(normalise, grouped):
    x, y, group = pairs(seed=1)
    found = siglip_loss(
        *tensors(x, y), torch.tensor(0.4), torch.tensor(-3.0), normalise=normalise, group=torch.from_numpy(group) if grouped else None
    )
    wanted = naive_siglip(x, y, 0.4, -3.0, normalise=normalise, group=group if grouped else None)
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_the_released_formula():
    """HESCAPE's code: half the sum of two cross entropies of s I G' and its transpose, embeddings as they are."""
    x, y, _ = pairs(seed=2)
    i, g = (t.float() for t in tensors(x, y))
    scale = torch.tensor(1 / 0.07)
    logits = scale * i @ g.T
    target = torch.arange(len(i))
    wanted = (torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)) / 2
    found = clip_loss(i, g, scale.log(), normalise=False)
    torch.testing.assert_close(found, wanted)
    assert abs(float(clip_loss(i, g, scale.log())) - float(wanted)) > 0.1


def test_normalised_losses_do_not_know_lengths():
    x, y, _ = pairs()
    stretched = x * np.linspace(0.1, 9, len(x))[:, None]
    for normalise, same in ((True, True), (False, False)):
        a, b = (float(clip_loss(*tensors(each, y), torch.tensor(0.0), normalise=normalise)) for each in (x, stretched))
        assert (abs(a - b) < 1e-5) == same


def test_pairs_of_other_groups_play_no_part():
    x, y, _ = pairs(8)
    group = torch.tensor([0] * 4 + [1] * 4)
    apart = [naive_clip(x[part], y[part], 1.0) for part in (slice(0, 4), slice(4, 8))]
    assert float(clip_loss(*tensors(x, y), torch.tensor(1.0), group=group)) == pytest.approx(np.mean(apart), rel=1e-5)
    image = torch.from_numpy(x).requires_grad_()
    clip_loss(image[:4], torch.from_numpy(y[:4]), torch.tensor(1.0)).backward()
    alone = image.grad.clone()
    image.grad = None
    clip_loss(image, torch.from_numpy(y), torch.tensor(1.0), group=group).backward()
    torch.testing.assert_close(image.grad[:4], alone[:4] / 2)


def test_a_group_of_one_has_nothing_to_tell_apart():
    x, y, _ = pairs(3)
    own = {"group": torch.arange(3)}
    assert float(clip_loss(*tensors(x, y), torch.tensor(1.0), **own)) == pytest.approx(0.0, abs=1e-6)
    assert float(clip_loss(*tensors(x, y), torch.tensor(1.0), smoothing=0.3, **own)) == pytest.approx(0.0, abs=1e-6)


def test_half_precision_is_computed_in_full():
    x, y, _ = pairs()
    half = [t.to(torch.bfloat16) for t in tensors(x, y)]
    found = clip_loss(*half, torch.tensor(2.0))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, clip_loss(*(t.float() for t in half), torch.tensor(2.0)))


def test_bad_shapes():
    x, y, group = pairs()
    with pytest.raises(ValueError, match=r"shapes \(7, 5\) and \(6, 5\)"):
        clip_loss(*tensors(x, y[:6]), torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"group has shape \(6,\); wanted \(7,\)"):
        siglip_loss(*tensors(x, y), torch.tensor(0.0), torch.tensor(0.0), group=torch.from_numpy(group[:6]))


def test_one_process_gathers_nothing():
    x = torch.ones(3, 2)
    assert gather(x) is x
    assert math.log(100) == LARGEST_LOG_SCALE


SCRIPT = """
import sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from stimg.nn.losses import clip_loss, siglip_loss

torch.set_num_threads(1)
KINDS = {
    "clip": {},
    "clip, within": {"within": True},
    "clip, smoothed, as released": {"smoothing": 0.1, "normalise": False},
    "siglip": {},
    "siglip, within": {"within": True},
}

class Two(nn.Module):
    def __init__(self, kind):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.image, self.gene = nn.Linear(6, 4), nn.Linear(5, 4)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) * 0.5
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.tensor(-2.0)) if "siglip" in kind else None
    def forward(self, x, y, group, within=False, **options):
        image, gene = self.image(x), self.gene(y)
        options["group"] = group if within else None
        if self.bias is None:
            return clip_loss(image, gene, self.log_scale, **options)
        return siglip_loss(image, gene, self.log_scale, self.bias, **options)

def work(rank, n, folder):
    if n > 1:
        dist.init_process_group("gloo", rank=rank, world_size=n, init_method=f"file://{folder}/meet{n}")
    generator = torch.Generator().manual_seed(1)
    x, y, group = torch.randn(16, 6, generator=generator), torch.randn(16, 5, generator=generator), torch.arange(16) // 6
    told = {}
    for kind, options in KINDS.items():
        network = Two(kind)
        model = nn.parallel.DistributedDataParallel(network) if n > 1 else network
        loss = model(x[rank::n], y[rank::n], group[rank::n], **options)
        loss.backward()  # the gradients are now averaged over ranks
        mean = loss.detach().clone()
        if n > 1:
            dist.all_reduce(mean)
        told[kind] = {"loss": mean / n, **{name: p.grad for name, p in network.named_parameters()}}
    if rank == n - 1:
        torch.save(told, f"{folder}/told{n}.pt")
    if n > 1:
        dist.destroy_process_group()

if __name__ == "__main__":
    n = int(sys.argv[2])
    if n == 1:
        work(0, 1, sys.argv[1])
    else:
        mp.spawn(work, (n, sys.argv[1]), nprocs=n)
"""


@pytest.mark.slow
def test_one_two_and_four_processes_agree(tmp_path):
    """The mean of the ranks' losses, and the gradients that DistributedDataParallel has averaged, are those of the joint batch."""
    (tmp_path / "script.py").write_text(SCRIPT)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MASTER_", "LOCAL_RANK", "WORLD_SIZE", "RANK"))}
    told = {}
    for n in (1, 2, 4):
        command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), str(n)]
        done = subprocess.run(command, capture_output=True, text=True, env={**kept, "OMP_NUM_THREADS": "1"}, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        told[n] = torch.load(tmp_path / f"told{n}.pt", weights_only=True)
    assert len(told[1]) == 5
    for n in (2, 4):
        for kind, wanted in told[1].items():
            assert wanted.keys() == told[n][kind].keys()
            for name, value in wanted.items():
                torch.testing.assert_close(told[n][kind][name], value, rtol=1e-5, atol=1e-6, msg=lambda m, k=kind, p=name: f"{k} {p}: {m}")
