"""What importing costs: nothing heavy before it is needed. Import times are measured by ``benchmarks/import_time.py``."""

import importlib
import json
import subprocess
import sys

import pytest

import stimg

HEAVY = ("torch", "scvi", "lightning", "squidpy", "spatialdata", "matplotlib", "transformers", "timm")
LIGHT_MODULES = ("pp", "pl", "datasets", "metrics", "image", "zoo")


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after ``code``."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_stimg_loads_no_other_package_of_size():
    assert loaded_by("import stimg; stimg.__version__").isdisjoint({*HEAVY, "scanpy", "anndata", "pandas", "numba"})


def test_touching_the_light_subpackages_loads_neither_torch_nor_scvi():
    code = "import stimg\n" + "\n".join(f"stimg.{name}" for name in LIGHT_MODULES)
    assert loaded_by(code).isdisjoint(set(HEAVY) - {"matplotlib"})


@pytest.mark.parametrize("name", ["pp", "pl", "metrics", "datasets", "tl", "data", "zoo"])
def test_importing_a_subpackage_costs_less_than_anndata(name):
    assert loaded_by(f"import stimg.{name}; dir(stimg.{name})").isdisjoint({*HEAVY, "anndata", "numba", "pandas", "scipy"})


@pytest.mark.parametrize("name", [name for name in stimg.__all__ if name not in ("__version__", "settings")])
def test_every_public_name_resolves(name):
    module = getattr(stimg, name)
    assert module is importlib.import_module(f"stimg.{name}")
    public = getattr(module, "__all__", [])
    assert len(public) == len(set(public))
    for entry in public:
        assert getattr(module, entry) is not None
        assert entry in dir(module)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'plot'; it has .*\bpl\b"):
        _ = stimg.plot


def test_dir_lists_what_can_be_used():
    assert dir(stimg) == sorted(stimg.__all__)
    assert stimg.settings is importlib.import_module("stimg._core.settings").settings
