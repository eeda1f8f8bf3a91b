"""The runner: the same report whatever is interrupted, leaks stopped and stamped, finished predictions scored, bad input refused."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stimg
from stimg.bench import LeakageError, Prediction, Report, get_protocol, run, seen_of
from stimg.bench.expression import ExpressionProtocol
from stimg.bench.gene_rules import Panel
from stimg.bench.report import validate_report

QUICK = {"seeds": 1, "progress": False}


@pytest.fixture
def protocol():
    return ExpressionProtocol(
        name="small",
        version="0",
        title="ten genes",
        source="these tests",
        panels=(Panel("HEG10", "highest mean", 10),),
        ceiling_splits=2,
        nulls=("training mean", "depth line", "labels permuted"),
    )


def oracle(truth):
    """A method that gives back values it was built with."""
    return lambda task, rng: {name: truth[name][list(task.genes)] for name in task.asked()}


def tables(slides, protocol):
    found = stimg.bench.load_sections(slides)
    out = {}
    for fold in protocol.folds(found):
        task, hidden = protocol.task(found, fold)
        for name, values in hidden.truth.items():
            out[name] = pd.DataFrame(values, index=found[name].obs_names, columns=list(task.genes))
    return out


def bare(report):
    """A report without what differs from run to run: time and memory."""
    return {k: v for k, v in report.data.items() if k != "cost"}


def test_nulls_score_what_they_must_and_the_truth_scores_best(slides, protocol):
    report = run(protocol, slides, methods={"truth": oracle(tables(slides, protocol))}, **QUICK)
    table = report.summary()["value"].unstack("metric").droplevel("stratum")
    assert table.loc["training mean", "mean_r"] == 0
    assert table.loc["training mean", "relative_mse"] == pytest.approx(1)
    assert table.loc["truth", "mean_r"] == pytest.approx(1)
    assert abs(table.loc["labels permuted", "mean_r"]) < 0.1
    assert report.headline == "mean_r"
    assert report.data["stamps"] == []
    assert report.by_donor().columns.tolist() == ["A", "B", "C"]
    assert list(report.details()["gene"].unique()) != []
    entry = next(s for s in report.data["summary"] if s["method"] == "labels permuted" and s["metric"] == "mean_r")
    rows = report.scores().query("method == 'labels permuted'")
    assert entry["value"] == pytest.approx(rows["mean_r"].mean())
    assert entry["by_donor"]["A"] == pytest.approx(rows[rows["donor"] == "A"]["mean_r"].mean())
    assert entry["n_donors"] == 3
    assert entry["low"] <= entry["value"] <= entry["high"]


def test_seeds_are_averaged_and_their_spread_is_told(slides, protocol):
    report = run(protocol, slides, seeds=[3, 7, 8], progress=False)
    entry = next(s for s in report.data["summary"] if s["method"] == "labels permuted" and s["metric"] == "mean_r")
    rows = report.scores().query("method == 'labels permuted'")
    by_seed = rows.groupby("seed")["mean_r"].mean()
    assert by_seed.index.tolist() == [3, 7, 8]
    assert entry["seed_sd"] == pytest.approx(by_seed.std(ddof=1))
    assert entry["value"] == pytest.approx(by_seed.mean())
    assert report.scores().query("method == 'depth line'")["seed"].unique().tolist() == [3]
    again = run(protocol, slides, seeds=[3, 7, 8], progress=False)
    assert bare(again) == bare(report)


def test_the_order_of_observations_and_sections_does_not_matter(slides, protocol):
    rng = np.random.default_rng(0)
    mixed = {n: slides[n][rng.permutation(slides[n].n_obs), rng.permutation(slides[n].n_vars)].copy() for n in reversed(list(slides))}
    quiet = replace(protocol, nulls=("training mean", "depth line"), ceiling_splits=0)
    first, second = run(quiet, slides, **QUICK), run(quiet, mixed, **QUICK)
    assert first.data["split"] == second.data["split"]
    for a, b in zip(first.data["summary"], second.data["summary"], strict=True):
        assert a["value"] == pytest.approx(b["value"], abs=1e-9)


def test_a_report_is_written_read_back_and_checked(slides, protocol, tmp_path):
    report = run(protocol, slides, out=tmp_path / "out", **QUICK)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "report.json", "report.html", "scores.csv", "summary.csv", "details.csv", "run.json", "parts",
    }  # fmt: skip
    assert Report.load(tmp_path / "out").data == report.data == json.loads((tmp_path / "out/report.json").read_text())
    assert len(pd.read_csv(tmp_path / "out/scores.csv")) == len(report.scores())
    assert "depth line" in report.markdown()
    with pytest.raises(ValueError, match=r"metrics=\['speed'\] are not in the report"):
        report.markdown(["speed"])
    with pytest.raises(ValueError, match="metric='speed' is not in the report"):
        report.by_donor("speed")
    for spoil, message in [
        (lambda d: d.update(schema=99), "no report of schema 1"),
        (lambda d: d.pop("ledger"), r"report\['ledger'\] is a NoneType; wanted a list"),
        (lambda d: d["summary"][0].pop("low"), r"report\['summary'\]\[0\] lacks \['low'\]"),
        (lambda d: d["details"]["r"].pop(), "columns of different lengths"),
    ]:
        data = json.loads((tmp_path / "out/report.json").read_text())
        spoil(data)
        with pytest.raises(ValueError, match=message):
            validate_report(data)
    (tmp_path / "out/report.json").write_text('{"schema": 1,')
    with pytest.raises(ValueError, match="is damaged"):
        Report.load(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="a run that was interrupted has none yet"):
        Report.load(tmp_path)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_gives_the_same_report(slides, protocol, tmp_path):
    whole = run(protocol, slides, methods={"noise": noise}, seeds=2, out=tmp_path / "whole", progress=False)
    calls = []

    def stops(task, rng):
        calls.append(task.fold)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return noise(task, rng)

    with pytest.raises(KeyboardInterrupt):
        run(protocol, slides, methods={"noise": stops}, seeds=2, out=tmp_path / "cut", progress=False)
    assert not (tmp_path / "cut/report.json").exists()
    finished = {p.name: p.read_bytes() for p in (tmp_path / "cut/parts").iterdir()}
    assert finished
    (tmp_path / "cut/parts" / sorted(finished)[0]).write_text("{")  # damaged: run again
    again = run(protocol, slides, methods={"noise": noise}, seeds=2, out=tmp_path / "cut", progress=False)
    assert bare(again) == bare(whole)
    assert all((tmp_path / "cut/parts" / n).read_bytes() == b for n, b in sorted(finished.items())[1:])
    calls = []
    run(protocol, slides, methods={"noise": lambda t, r: calls.append(1)}, seeds=2, out=tmp_path / "cut", progress=False)
    assert not calls  # everything is there


def noise(task, rng):
    """Noise around nothing."""
    return {name: rng.normal(size=(a.n_obs, len(task.genes))) for name, a in task.asked().items()}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_that_is_killed_goes_on(slides, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name, adata in slides.items():
        adata.write_h5ad(data / f"{name}.h5ad")
    code = (
        "import sys, time, numpy as np, stimg\n"
        "def slow(task, rng):\n"
        "    time.sleep(float(sys.argv[3]))\n"
        "    return {n: np.zeros((a.n_obs, len(task.genes))) + np.arange(a.n_obs)[:, None] for n, a in task.asked().items()}\n"
        "stimg.bench.run('hest', sys.argv[1], methods={'slow': slow}, out=sys.argv[2], seeds=1, allow_leakage=True, progress=False)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    call = [sys.executable, str(script), str(data)]
    subprocess.run([*call, str(tmp_path / "whole"), "0"], check=True, capture_output=True)
    process = subprocess.Popen([*call, str(tmp_path / "cut"), "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline and len(list((tmp_path / "cut/parts").glob("*.json"))) < 2:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list((tmp_path / "cut/parts").glob("*.json"))) >= 2
    subprocess.run([*call, str(tmp_path / "cut"), "0"], check=True, capture_output=True)
    assert bare(Report.load(tmp_path / "cut")) == bare(Report.load(tmp_path / "whole"))


def test_another_run_in_the_folder_is_kept_unless_told_otherwise(slides, protocol, tmp_path):
    run(protocol, slides, out=tmp_path / "out", **QUICK)
    before = (tmp_path / "out/report.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"holds another run \(it differs in \['seeds'\]\)"):
        run(protocol, slides, out=tmp_path / "out", seeds=2, progress=False)
    assert (tmp_path / "out/report.json").read_bytes() == before
    run(protocol, slides, out=tmp_path / "out", seeds=2, overwrite=True, progress=False)
    assert Report.load(tmp_path / "out").data["methods"][2]["seeds"] == [0, 1]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="is not empty and holds no run"):
        run(protocol, slides, out=tmp_path / "mine", **QUICK)
    assert (tmp_path / "mine/thesis.tex").read_text() == "x"


def test_a_full_disk_leaves_the_finished_parts(slides, protocol, tmp_path, monkeypatch):
    import errno

    from stimg._core import files

    real, calls = files.os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="Choose a folder with more free space"):
        run(protocol, slides, out=tmp_path / "out", **QUICK)
    monkeypatch.undo()
    assert len(list((tmp_path / "out/parts").glob("*.json"))) == 3
    assert not (tmp_path / "out/report.json").exists()
    assert bare(run(protocol, slides, out=tmp_path / "out", **QUICK)) == bare(run(protocol, slides, **QUICK))


def test_protocols_that_leak_by_construction_stop_and_are_stamped_where_allowed(slides):
    with pytest.raises(LeakageError, match="the gene list 'var50 of protocol hest' has seen 144 of 144 test observations"):
        run("hest", slides, **QUICK)
    report = run("hest", slides, allow_leakage=True, **QUICK)
    assert any(s.startswith("LEAKAGE ALLOWED: the gene list 'var50 of protocol hest'") for s in report.data["stamps"])
    assert "LEAKAGE ALLOWED" in report.markdown()
    assert "stamped" in repr(report)


def test_what_a_method_was_fitted_on_is_asked(slides, protocol):
    everything = stimg.bench.load_sections(slides)
    encoder = seen_of(everything["C1"], who="my encoder", kind="encoder")

    def leaky(task, rng):
        return Prediction(noise(task, rng), fitted=(encoder,))

    with pytest.raises(LeakageError, match=r"the encoder 'my encoder' has seen 72 of 72 test observations.*\(C1\)"):
        run(protocol, slides, methods={"mine": leaky}, **QUICK)
    with pytest.raises(LeakageError, match="my encoder"):
        run(protocol, slides, methods={"mine": noise}, fitted=[encoder], **QUICK)
    report = run(protocol, slides, methods={"mine": leaky}, allow_leakage=True, **QUICK)
    assert [s for s in report.data["stamps"] if "my encoder" in s]
    assert [e["fold"] for e in report.data["ledger"] if e["leaks"]] == ["C"]


def test_the_same_section_under_two_donors_is_stopped(slides, protocol):
    again = slides["A1"].copy()
    again.obs["library_id"], again.obs["donor"] = "Z1", "Z"
    again.obs_names = [f"z{i}" for i in range(again.n_obs)]
    again.uns["spatial"] = {"Z1": again.uns["spatial"].pop("A1")}
    with pytest.raises(LeakageError, match=r"training sections.*recognised by their counts"):
        run(protocol, {**slides, "Z1": again}, **QUICK)


def test_finished_predictions_from_layers_and_arrays(slides, protocol):
    truth = tables(slides, protocol)
    arrays = {n: t.to_numpy() for n, t in truth.items()}
    for name, adata in slides.items():
        full = np.full(adata.shape, np.nan, dtype=np.float32)
        full[:, adata.var_names.get_indexer(truth[name].columns)] = arrays[name]
        adata.layers["mine"] = full
    report = run(protocol, slides, predictions={"layer": "mine", "tables": truth}, **QUICK)
    table = report.summary()["value"].unstack("metric").droplevel("stratum")
    assert table.loc["layer", "mean_r"] == pytest.approx(1, abs=1e-6)
    assert table.loc["tables", "mean_r"] == pytest.approx(1)
    assert [s for s in report.data["stamps"] if s.startswith("NOT CHECKED: layer")]
    seen = seen_of(slides["A1"], who="net", kind="model")
    for name in ("B1", "B2", "C1"):
        stimg.bench.remember(slides[name], "mine", seen)
    stimg.bench.remember(slides["A1"], "mine", seen_of(slides["B1"], who="other net", kind="model"))
    stimg.bench.remember(slides["A2"], "mine", seen)
    with pytest.raises(LeakageError, match=r"the model 'net' has seen other observations of 1 of 1 test donors \(A\)"):
        run(protocol, slides, predictions={"layer": "mine"}, **QUICK)
    stimg.bench.remember(slides["A2"], "mine", seen_of(slides["B1"], who="other net", kind="model"))
    report = run(protocol, slides, predictions={"layer": "mine"}, **QUICK)
    assert report.data["stamps"] == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"methods": ["nonsense"]}, ValueError, "There is no method named 'nonsense'"),
        ({"methods": ["nowhere.at.all:f"]}, ImportError, "nowhere"),
        ({"methods": ["stimg.bench.method:nothing"]}, ImportError, "has no 'nothing'"),
        ({"methods": {"x": 3}}, TypeError, "the method 'x' is a int"),
        ({"methods": ["colour ridge"]}, ValueError, r"needs obsm\['X_stimg_colour'\]"),
        ({"methods": ["random encoders"]}, ValueError, "protocol 'small' asks for 'expression'"),
        ({"methods": {"depth line": noise}}, ValueError, r"two methods are called \['depth line'\]"),
        ({"predictions": {"x": 3}}, TypeError, "wanted the name of a layer, or values by library"),
        ({"predictions": {"x": "no layer"}}, KeyError, "no layer"),
        ({"predictions": {"x": {"A1": np.zeros((72, 10))}}}, ValueError, r"predictions\['x'\] have nothing for \['A2'\]"),
        ({"methods": {"x": lambda t, r: {}}}, ValueError, r"method 'x' gave no values for \['A1', 'A2'\]"),
        (
            {"methods": {"x": lambda t, r: {n: np.zeros((3, 3)) for n in t.asked()}}},
            ValueError,
            r"gave \(3, 3\) values for A1; wanted \(72, 10\)",
        ),
        ({"seeds": []}, ValueError, "seeds is empty"),
        ({"nulls": False}, ValueError, "there is nothing to score"),
        ({"labels": "region"}, KeyError, "region"),
        ({"fitted": [object()], "methods": {"x": noise}}, TypeError, "does not say what it has seen"),
    ],
)
def test_bad_input(slides, protocol, arguments, error, message):
    with pytest.raises(error, match=message):
        run(protocol, slides, **{**QUICK, **arguments})


def test_an_unknown_protocol_is_answered_with_the_known_ones(slides):
    with pytest.raises(ValueError, match=r"There is no protocol named 'her2st-strikt'. Did you mean 'her2st-strict'\?"):
        run("her2st-strikt", slides, **QUICK)


def test_undefined_predictions_count_as_zero_and_are_counted(slides, protocol):
    def half(task, rng):
        out = noise(task, rng)
        for values in out.values():
            values[0, :5] = np.nan
        return out

    report = run(protocol, slides, methods={"half": half}, nulls=False, **QUICK)
    rows = report.scores()
    assert (rows["n_undefined"] == 5).all()
    details = report.details()
    assert (details[details["undefined"].astype(bool)]["r"] == 0).all()
    assert rows["mean_r"].to_numpy() == pytest.approx(details.groupby("library")["r"].mean().loc[rows["library"]].to_numpy())


def test_the_folder_of_a_run_names_what_it_is(slides, protocol, tmp_path):
    run(protocol, slides, out=tmp_path / "out", **QUICK)
    facts = json.loads(Path(tmp_path / "out/run.json").read_text())
    assert facts["protocol"] == protocol.hash
    assert facts["methods"] == ["training mean", "depth line", "labels permuted"]
    assert get_protocol(protocol) is protocol


def test_folds_of_a_manifest(slides, protocol, tmp_path):
    import anndata as ad

    joined = ad.concat(list(slides.values()), join="inner")
    joined.uns["spatial"] = {n: a.uns["spatial"][n] for n, a in slides.items()}
    stimg.pp.split(joined, test=["B"], validation=["C"])
    manifest = stimg.data.SplitManifest.from_anndata(joined)
    manifest.save(tmp_path / "split.json")
    report = run(protocol, slides, manifest=tmp_path / "split.json", **QUICK)
    (fold,) = report.data["split"]["folds"]
    assert set(fold["train"]) == {"A1", "A2", "C1"}
    assert set(fold["test"]) == {"B1", "B2"}
    assert report.data["split"]["hash"] != run(protocol, slides, **QUICK).data["split"]["hash"]
    few = {n: slides[n] for n in ("A1", "B1", "B2", "C1")}
    with pytest.raises(ValueError, match=r"not in the data: \['A2'\]"):
        run(protocol, few, manifest=manifest, **QUICK)
    slides["B1"].X[0, 0] += 1
    with pytest.raises(ValueError, match="B1"):
        run(protocol, slides, manifest=manifest, **QUICK)
    stimg.pp.rasterize(joined)
    stimg.pp.split(joined, by="block", n_blocks=4, test=0.25)
    with pytest.raises(ValueError, match="divides sections into blocks"):
        run(protocol, slides, manifest=stimg.data.SplitManifest.from_anndata(joined), **QUICK)
