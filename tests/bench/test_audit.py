"""The audit: its nulls on real sections against naive code that shares nothing with the package, and what it does with images."""

import numpy as np
import pandas as pd
import pytest

import stimg
from stimg._core import keys
from stimg.bench import audit, get_protocol
from stimg.bench.auditing import within_donor

SECTIONS = ("B4", "C2", "C3", "D1")


def read(mirror, section):
    """Counts, row and column of a section from its public files, with pandas alone."""
    counts = pd.read_csv(mirror / "her2st/ST-cnts" / f"{section}.tsv.gz", sep="\t", index_col=0)
    spots = pd.read_csv(mirror / "her2st/ST-spotfiles" / f"{section}_selection.tsv", sep="\t")
    spots.index = spots["x"].astype(str) + "x" + spots["y"].astype(str)
    names = [n for n in spots.index if n in counts.index]
    return counts.loc[names], spots.loc[names, ["y", "x"]].to_numpy(float)


def pearson(a, b):
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def score(truth, predicted, have):
    return np.mean([pearson(truth[:, g], predicted[:, g]) if have[g] else 0.0 for g in range(truth.shape[1])])


@pytest.mark.data
@pytest.mark.slow
def test_nulls_on_real_sections_are_those_of_naive_code(mirror):
    found = {s: read(mirror, s) for s in SECTIONS}
    wanted = {name: [] for name in ("depth line", "coordinates, other donors", "neighbour mean", "ceiling")}
    for test in ("B", "C", "D"):
        train = [s for s in SECTIONS if s[0] != test]
        shared = [g for g in found[train[0]][0].columns if all(g in found[s][0].columns for s in train)]
        totals = sum(found[s][0][shared].sum() for s in train)
        genes = totals.sort_values(ascending=False, kind="stable").index[:250]
        logs = {
            s: np.log1p(1e4 * found[s][0].reindex(columns=genes).fillna(0).to_numpy() / found[s][0].to_numpy().sum(1, keepdims=True))
            for s in SECTIONS
        }
        depth = {s: np.log(found[s][0].to_numpy().sum(1)) for s in SECTIONS}
        slopes = []
        for g in range(250):
            x = np.concatenate([depth[s] - depth[s].mean() for s in train])
            y = np.concatenate([logs[s][:, g] - logs[s][:, g].mean() for s in train])
            slopes.append((x @ y) / (x @ x))
        middle = {s: found[s][1] - found[s][1].mean(0) for s in SECTIONS}
        pool, values = np.concatenate([middle[s] for s in train]), np.concatenate([logs[s] for s in train])
        for s in (s for s in SECTIONS if s[0] == test):
            have = [g in found[s][0].columns for g in genes]
            wanted["depth line"].append(score(logs[s], np.outer(depth[s], slopes), have))
            near = np.stack([values[np.argsort(((pool - p) ** 2).sum(1), kind="stable")[:10]].mean(0) for p in middle[s]])
            wanted["coordinates, other donors"].append(score(logs[s], near, have))
            rc = found[s][1]
            around = []
            for i in range(len(rc)):
                beside = [j for j in range(len(rc)) if j != i and np.abs(rc[j] - rc[i]).max() <= 1]
                around.append(logs[s][beside].mean(0) if beside else logs[s].mean(0))
            wanted["neighbour mean"].append(score(logs[s], np.stack(around), have))
            rng = np.random.default_rng(1)
            counts = found[s][0].to_numpy()
            at = [found[s][0].columns.get_loc(g) if h else -1 for g, h in zip(genes, have, strict=True)]
            r = np.zeros((4, 250))
            for k in range(4):
                half = rng.binomial(counts, 0.5)
                halves = [np.log1p(1e4 * c / np.maximum(c.sum(1, keepdims=True), 1)) for c in (half, counts - half)]
                r[k] = [pearson(halves[0][:, a], halves[1][:, a]) if a >= 0 else 0.0 for a in at]
            mean = np.clip(r.mean(0), 0, None)
            wanted["ceiling"].append(np.sqrt(2 * mean / (1 + mean)).mean())
    report = audit([stimg.datasets.her2st(s) for s in SECTIONS], images=False, progress=False)["all"]
    rows = report.scores().query("panel == 'HEG250'")
    for name, values in wanted.items():
        ours = rows[rows["method"] == name]["mean_r"] if name != "ceiling" else rows[rows["method"] == "training mean"]["ceiling"]
        assert len(ours) == len(values) == 4
        assert ours.mean() == pytest.approx(np.mean(values), abs=0.01), name
    assert (rows[rows["method"] == "training mean"]["mean_r"] == 0).all()
    assert abs(rows[rows["method"] == "labels permuted"]["mean_r"].mean()) < 0.02


@pytest.mark.slow
def test_sections_with_images_are_evaluated_by_themselves(slides, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("A1", "A2", "B1"):
        slides[name].uns["spatial"][name]["images"] = {"hires": rng.integers(0, 255, (950, 850, 3), dtype=np.uint8)}
        slides[name].uns["spatial"][name]["scalefactors"]["tissue_hires_scalef"] = 1.0
    reports = audit(slides, out=tmp_path / "out", progress=False)
    assert [s["library"] for s in reports["all"].data["sections"]] == ["A1", "A2", "B1", "B2", "C1"]
    assert [s["library"] for s in reports["images"].data["sections"]] == ["A1", "A2", "B1"]
    assert "colour ridge" not in {m["name"] for m in reports["all"].data["methods"]}
    assert "colour ridge" in {m["name"] for m in reports["images"].data["methods"]}
    assert (tmp_path / "out/report.json").is_file()
    assert (tmp_path / "out/images/report.json").is_file()
    assert keys.COLOUR not in slides["A1"].obsm  # the data are left alone
    assert set(audit(slides, images=False, progress=False)) == {"all"}


def test_sections_of_one_donor_are_left_out_one_by_one(slides):
    rng = np.random.default_rng(0)
    for name in ("A1", "A2"):
        slides[name].uns["spatial"][name]["images"] = {"hires": rng.integers(0, 255, (950, 850, 3), dtype=np.uint8)}
        slides[name].uns["spatial"][name]["scalefactors"]["tissue_hires_scalef"] = 1.0
    report = audit(slides, progress=False)["images"]
    assert [f["name"] for f in report.data["split"]["folds"]] == ["A1", "A2"]
    assert "One donor" in report.data["protocol"]["remarks"][-1]
    assert "coordinates, same donor" in {m["name"] for m in report.data["methods"]}
    protocol = get_protocol("her2st-strict")
    assert within_donor(protocol).hash != protocol.hash
    assert within_donor(get_protocol("stem")) is get_protocol("stem")


def test_leaks_of_a_protocol_are_stamped_and_not_an_error(slides):
    report = audit(slides, protocol="hest", images=False, progress=False)["all"]
    assert any("var50 of protocol hest" in stamp for stamp in report.data["stamps"])
