"""Fixtures shared by all tests: single-threaded torch, a headless matplotlib, and the folder of real data."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture
def mirror() -> Path:
    """Folder with the public data files; tests that need it are skipped, with this reason, where there is none."""
    value = os.environ.get("STIMG_DATA_MIRROR")
    if not value or not Path(value).is_dir():
        pytest.skip("no real data: set STIMG_DATA_MIRROR to a folder that mirrors the public files of stimg.datasets")
    return Path(value)
