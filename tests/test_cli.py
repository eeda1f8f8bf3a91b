"""The command line: exit statuses, messages, and the whole walk on a slide."""

import json
import re
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.stats

import stimg
from stimg._core.settings import settings
from stimg.bench import html as report
from stimg.cli import doctor, main, scores


class TestDoctor:
    def test_a_sound_installation_passes(self, capsys):
        assert main(["doctor", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["problems"] == []
        assert found["system"]["stimg"] == stimg.__version__
        assert found["required"]["numpy"] == np.__version__
        assert "torch" in found["device"]

    def test_text_ends_with_the_verdict(self, capsys):
        assert main(["doctor"]) == 0
        assert capsys.readouterr().out.rstrip().endswith("No problem found.")

    def test_missing_and_old_packages_are_problems(self):
        found = doctor.Report()
        doctor.check_packages(found, ["numpy>=2", "numpy>=999", "no-such-package>=1", "pandas>=999; python_version < '3'"])
        assert found.required["no-such-package"] == "missing"
        assert len(found.problems) == 2
        assert f"numpy {np.__version__}: stimg needs numpy>=999" in found.problems[0]
        assert "no-such-package is missing" in found.problems[1]

    def test_a_missing_extra_is_no_problem_but_an_old_one_is(self):
        found = doctor.Report()
        doctor.check_packages(found, ['no-such-package>=1; extra == "io"', "numpy>=999; extra == 'wsi'", 'ruff>=999; extra == "dev"'])
        assert found.optional == {"no-such-package": "not installed (extra io)", "numpy": np.__version__}
        assert len(found.problems) == 1
        assert "stimg[wsi]" in found.problems[0]

    def test_a_torchvision_that_does_not_match_is_named(self, monkeypatch, tmp_path):
        (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "torchvision", raising=False)
        monkeypatch.setattr(doctor, "_installed", lambda name: "0.0.1")
        found = doctor.Report()
        doctor.check_torch(found)
        assert found.device["torchvision"] == "0.0.1, broken"
        assert "same channel" in found.problems[0]

    def test_a_mirror_that_is_no_folder_fails(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setenv("STIMG_DATA_MIRROR", str(tmp_path / "gone"))
        assert main(["doctor"]) == 1
        assert re.search(r"problem: STIMG_DATA_MIRROR=\S+gone is not a folder", capsys.readouterr().out)

    def test_cache_is_measured(self, monkeypatch, tmp_path):
        monkeypatch.setattr(settings, "data_dir", tmp_path)
        monkeypatch.delenv("STIMG_DATA_MIRROR", raising=False)
        (tmp_path / "file").write_bytes(bytes(3 * 2**20))
        found = doctor.Report()
        doctor.check_data(found)
        assert found.data["cache"].startswith(f"{tmp_path} (3 MiB used")
        assert found.data["mirror"] == "not set (STIMG_DATA_MIRROR)"
        assert found.problems == []


class TestMessages:
    def test_version(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["--version"])
        assert stop.value.code == 0
        assert capsys.readouterr().out == f"stimg {stimg.__version__}\n"

    def test_no_command_is_a_usage_error(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main([])
        assert stop.value.code == 2
        assert "COMMAND" in capsys.readouterr().err

    def test_a_missing_slide_is_one_line(self, tmp_path, capsys):
        assert main(["run", str(tmp_path / "gone.h5ad"), "--out", str(tmp_path / "out")]) == 2
        assert re.fullmatch(r"stimg run: there is no \S+gone\.h5ad\..*\n", capsys.readouterr().err)
        assert not (tmp_path / "out").exists()

    def test_a_traceback_on_request(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            main(["--traceback", "run", str(tmp_path / "gone.h5ad"), "--out", str(tmp_path / "out")])

    def test_an_unknown_suffix_is_refused(self, tmp_path, capsys):
        (tmp_path / "slide.csv").touch()
        assert main(["run", str(tmp_path / "slide.csv"), "--out", str(tmp_path / "out")]) == 2
        assert "wanted .h5ad or .zarr" in capsys.readouterr().err

    def test_results_are_not_overwritten_unasked(self, tmp_path, capsys):
        (tmp_path / "slide.h5ad").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").touch()
        assert main(["run", str(tmp_path / "slide.h5ad"), "--out", str(tmp_path / "out")]) == 2
        assert "exists already" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]

    def test_the_demo_replaces_only_its_own_results(self, tmp_path, capsys):
        (tmp_path / "mine.txt").touch()
        assert main(["demo", "--quick", "--out", str(tmp_path)]) == 2
        assert "exists already" in capsys.readouterr().err
        assert (tmp_path / "mine.txt").exists()

    def test_python_dash_m(self):
        done = subprocess.run([sys.executable, "-m", "stimg", "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"stimg {stimg.__version__}\n"


def test_report_escapes_and_embeds(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG")
    section = report.Section("1 < 2", ["a & b"], {"<k>": "<v>"}, {picture: 'say "x"'}, "print('<')")
    text = report.page("T", "L", [section])
    assert "1 &lt; 2" in text
    assert "a &amp; b" in text
    assert "<th>&lt;k&gt;</th><td>&lt;v&gt;</td>" in text
    assert 'src="data:image/png;base64,iVBORw=="' in text
    assert 'alt="say &quot;x&quot;"' in text
    assert "http" not in text


class TestScores:
    def test_correlation_of_each_gene_is_scipys(self):
        rng = np.random.default_rng(0)
        truth, predicted = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
        truth[:, 1] = 7  # a constant has no correlation
        found = scores.score_genes(truth, predicted, ["a", "b", "c", "d"])
        wanted = {name: scipy.stats.pearsonr(truth[:, i], predicted[:, i]).statistic for i, name in enumerate("abcd") if name != "b"}
        assert found == pytest.approx(wanted)
        assert list(found.values()) == sorted(found.values(), reverse=True)

    def test_log_normalised_divides_by_all_genes(self):
        counts = scipy.sparse.csr_matrix(np.array([[1.0, 2, 7], [0, 0, 5], [0, 0, 0]]))
        adata = anndata.AnnData(counts, var=pd.DataFrame(index=["a", "b", "c"]))
        found = scores.log_normalised(adata, ["c", "a"], None)
        np.testing.assert_allclose(found, [[np.log1p(7000), np.log1p(1000)], [np.log1p(10000), 0], [0, 0]])

    def test_clusters_that_are_the_labels_agree_and_missing_labels_do_not_count(self):
        points = np.repeat([[0.0, 0], [9, 0], [0, 9]], 10, axis=0)
        labels = pd.Series(np.repeat(["a", "b", "c"], 10))
        assert scores.cluster_agreement(points, labels, 0) == (1.0, 30)
        labels[::10] = None
        assert scores.cluster_agreement(points, labels, 0) == (1.0, 27)

    def test_hidden_genes_are_a_share_of_the_channels(self):
        var = pd.DataFrame({"stimg_channel": [True, False] * 20}, index=[f"g{i}" for i in range(40)])
        adata = anndata.AnnData(np.ones((2, 40), np.float32), var=var)
        hidden = scores.hidden_genes(adata, 3)
        assert len(hidden) == len(set(hidden)) == 4
        assert var.loc[hidden, "stimg_channel"].all()
        assert hidden == scores.hidden_genes(adata, 3)


def check_results(folder: Path) -> None:
    """Check that a folder of results is complete and readable."""
    text = (folder / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert text.count("data:image/png;base64,") == len(list((folder / "figures").glob("*.png"))) > 0
    table = anndata.read_h5ad(folder / "slide.h5ad")
    assert np.isfinite(table.obsm["X_stimg_stmae"]).all()
    assert anndata.read_zarr(folder / "slide.zarr").shape == table.shape
    assert (folder / "model").is_dir()


@pytest.mark.slow
def test_the_quick_demo_leaves_complete_results_twice(tmp_path, capsys):
    for _ in range(2):  # the second replaces the first
        assert main(["demo", "--quick", "--out", str(tmp_path / "out")]) == 0
        check_results(tmp_path / "out")
    out = capsys.readouterr().out
    assert "stimg run" in out
    assert str(tmp_path / "out" / "index.html") in out


@pytest.mark.slow
def test_run_on_an_own_slide(tmp_path):
    adata = stimg.datasets.simulate(technology="st", shape=(16, 18), n_genes=60, rng=1)
    adata.write_h5ad(tmp_path / "mine.h5ad")
    assert main(["run", str(tmp_path / "mine.h5ad"), "--out", str(tmp_path / "out"), "--genes", "32", "--epochs", "2"]) == 0
    check_results(tmp_path / "out")
