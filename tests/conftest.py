"""Fixtures shared by all tests: single-threaded torch, a headless matplotlib, and the folder of real data."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture(autouse=True)
def _one_torch_thread():
    """Numba's first parallel call, by scanpy or squidpy, changes torch's number of threads; two for tiny networks on a busy machine cost minutes."""
    if "torch" in sys.modules:
        import torch

        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)


@pytest.fixture
def mirror() -> Path:
    """Folder with the public data files; tests that need it are skipped, with this reason, where there is none."""
    value = os.environ.get("STIMG_DATA_MIRROR")
    if not value or not Path(value).is_dir():
        pytest.skip("no real data: set STIMG_DATA_MIRROR to a folder that mirrors the public files of stimg.datasets")
    return Path(value)
