"""Pictures of a report: what is drawn is what the report says, worked out here by loops."""

import copy
import io
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

import stimg
from stimg.pl.files import png

ROLES = {"net": "model", "flat": "null", "depth": "audit", "colour": "rival"}
DONORS = {"A": ["A1", "A2"], "B": ["B1"]}
SEEDS = {"net": [0, 1, 2]}
SCORE = {"net": 0.3, "flat": 0.0, "depth": 0.4, "colour": 0.1}
UGLY = "$\\frac{ <b>_^"


def make_report():
    """Two panels of genes, four methods, three sections of two donors; every score is another number."""
    rows, rng = [], np.random.default_rng(0)
    for panel in ("P", "Q"):
        ceiling = {"A1": 0.6, "A2": 0.8, "B1": 0.5}
        for method in ROLES:
            for donor, sections in DONORS.items():
                for section in sections:
                    for seed in SEEDS.get(method, [0]):
                        row = {"fold": donor, "method": method, "seed": seed, "library": section, "donor": donor, "panel": panel}
                        r = SCORE[method] * (1 if panel == "P" else 0.5) + 0.05 * rng.random()
                        rows.append(row | {"mean_r": r, "error": 1 - r, "recall_5": r, "chance_5": 0.05, "ceiling": ceiling[section]})
    summary = []
    for metric in ("mean_r", "error", "recall_5"):
        for panel in ("P", "Q"):
            for method in ROLES:
                own = [r for r in rows if r["method"] == method and r["panel"] == panel]
                by_donor = {d: float(np.mean([r[metric] for r in own if r["donor"] == d])) for d in DONORS}
                value = float(np.mean([r[metric] for r in own]))
                entry = {"method": method, "metric": metric, "stratum": panel, "value": value, "low": value - 0.02, "high": value + 0.03}
                summary.append(entry | {"by_donor": by_donor, "by_fold": by_donor})
    return {
        "protocol": {"strata": ["panel"]},
        "methods": [{"name": n, "role": r} for n, r in ROLES.items()],
        "metrics": [
            {"name": "mean_r", "what": "", "more_is_better": True, "aggregate": "mean"},
            {"name": "error", "what": "", "more_is_better": False, "aggregate": "median"},
            {"name": "recall_5", "what": "", "more_is_better": True, "aggregate": "mean"},
        ],
        "scores": rows,
        "summary": summary,
        "details": {},
        "maps": [],
    }


@pytest.fixture
def report():
    return make_report()


def marks(ax, gid):
    """The x of every line of that kind."""
    return [np.asarray(line.get_xdata(), dtype=float) for line in ax.lines if line.get_gid() == gid]


def order(ax):
    return [line.get_gid().removeprefix("value of ") for line in ax.lines if str(line.get_gid()).startswith("value of")]


def rows_of(report, method, panel, **where):
    return [r for r in report["scores"] if r["method"] == method and r["panel"] == panel and all(r[k] == v for k, v in where.items())]


def test_methods_are_drawn_best_first_with_interval_donors_and_seeds(report):
    axes = stimg.pl.scores(report)
    assert list(axes) == ["P", "Q"]
    for panel, ax in axes.items():
        entries = {s["method"]: s for s in report["summary"] if s["metric"] == "mean_r" and s["stratum"] == panel}
        assert order(ax) == sorted(ROLES, key=lambda m: -entries[m]["value"])
        for i, method in enumerate(order(ax)):
            (dot,) = [line for line in ax.lines if line.get_gid() == f"value of {method}"]
            assert dot.get_xydata().tolist() == [[entries[method]["value"], i]]
            assert marks(ax, "interval")[i].tolist() == [entries[method]["low"], entries[method]["high"]]
            assert marks(ax, "donors")[i].tolist() == list(entries[method]["by_donor"].values())
        (seeds,) = marks(ax, "seeds")  # of the one method with more than one
        assert seeds == pytest.approx([np.mean([r["mean_r"] for r in rows_of(report, "net", panel, seed=s)]) for s in range(3)])
        assert ax.get_title(loc="left") == panel


def test_the_ceiling_is_the_mean_over_sections_and_its_band_the_range_of_donors(report):
    ax = stimg.pl.scores(report, stratum="P")
    assert marks(ax, "noise ceiling")[0][0] == pytest.approx(np.mean([0.6, 0.8, 0.5]))
    (band,) = ax.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (pytest.approx(0.5), pytest.approx(0.7))
    assert not marks(stimg.pl.scores(report, metric="error", stratum="P"), "noise ceiling")
    ax = stimg.pl.scores(report, metric="recall_5", stratum="P")
    assert marks(ax, "chance")[0][0] == pytest.approx(0.05)


def test_less_is_better_turns_the_order_and_medians_are_medians(report):
    ax = stimg.pl.scores(report, metric="error", stratum="P")
    assert order(ax) == ["depth", "net", "colour", "flat"]
    assert ax.get_xlabel() == "error (less is better)"
    assert marks(ax, "seeds")[0] == pytest.approx([np.median([r["error"] for r in rows_of(report, "net", "P", seed=s)]) for s in range(3)])


def test_roles_are_told_apart_without_colour(report):
    ax = stimg.pl.scores(report, stratum="P")
    looks = {}
    for method in order(ax):
        (dot,) = [line for line in ax.lines if line.get_gid() == f"value of {method}"]
        looks[method] = (dot.get_marker(), dot.get_markerfacecolor() == "white")
    assert looks == {"depth": ("D", True), "net": ("o", False), "colour": ("s", False), "flat": ("o", False)}
    texts = [t.get_text() for t in ax.texts]
    assert {"net", "flat  (null)", "depth  (audit)", "colour  (rival)"} <= set(texts)
    keys = [t.get_text() for t in ax.get_legend().get_texts()]
    assert keys[:4] == ["model", "rival", "null", "audit: reads the truth"]
    assert {"one donor", "one seed", "noise ceiling, range of donors"} <= set(keys)
    assert stimg.pl.scores(report, stratum="P", legend=False).get_legend() is None


def test_strata_share_their_range_unless_one_would_be_too_small_to_see(report):
    axes = stimg.pl.scores(report)
    assert axes["P"].get_xlim() == axes["Q"].get_xlim()
    small = copy.deepcopy(report)
    for entry in small["summary"] + small["scores"]:
        if entry.get("stratum", entry.get("panel")) == "Q":
            for key in ("value", "low", "high", "mean_r", "ceiling"):
                if key in entry:
                    entry[key] *= 0.1
            for key in entry.get("by_donor", {}):
                entry["by_donor"][key] *= 0.1
    axes = stimg.pl.scores(small)
    assert axes["Q"].get_xlim()[1] < 0.2 < axes["P"].get_xlim()[1]


def test_numbers_missing_from_the_report_are_not_drawn(report):
    for entry in report["summary"]:
        if entry["method"] == "flat":
            entry["low"] = entry["high"] = None
        if entry["method"] == "colour":
            entry["value"] = None
    ax = stimg.pl.scores(report, stratum="P")
    assert order(ax) == ["depth", "net", "flat"]
    assert len(marks(ax, "interval")) == 2
    for entry in report["summary"]:
        entry["low"] = entry["high"] = None
        entry["by_donor"] = {"A": entry["value"]}
    keys = [t.get_text() for t in stimg.pl.scores(report, stratum="P").get_legend().get_texts()]
    assert not {"one donor", "95 % interval over donors"} & set(keys)


def test_any_name_can_be_drawn(report):
    long = "x" * 80
    data = copy.deepcopy(report)
    for entry in [*data["methods"], *data["scores"], *data["summary"]]:
        for key in ("name", "method"):
            if key in entry:
                entry[key] = {"net": UGLY, "flat": long, "depth": "a\nb"}.get(entry[key], entry[key])
        for key in ("panel", "stratum"):
            if key in entry:
                entry[key] += UGLY
    fig = stimg.pl.scores(data, return_fig=True)
    fig.canvas.draw()
    texts = [t.get_text() for t in fig.axes[0].texts]
    assert UGLY in texts
    assert "a b  (audit)" in texts
    assert max(map(len, texts)) < 50


def test_axes_given_are_used_and_reports_are_taken_as_they_are(report):
    fig, axes = plt.subplots(1, 2)
    found = stimg.pl.scores(SimpleNamespace(data=report), ax=axes)
    assert list(found.values()) == list(axes)
    assert stimg.pl.scores(report, stratum="P", ax=axes[0]) is axes[0]
    assert stimg.pl.scores(report, return_fig=True) is not fig


def test_a_figure_fits_its_frame(report):
    fig = stimg.pl.scores(report, return_fig=True)
    fig.canvas.draw()
    for ax in fig.axes:
        box = ax.get_tightbbox()
        assert min(box.x0, box.y0) > -2
        assert box.x1 < fig.bbox.x1 + 2
        assert box.y1 < fig.bbox.y1 + 2


def test_errors(report):
    with pytest.raises(TypeError, match="report is a int without the entries of a report"):
        stimg.pl.scores(3)
    with pytest.raises(ValueError, match=r"metric='speed' is not known; wanted one of .*mean_r"):
        stimg.pl.scores(report, metric="speed")
    with pytest.raises(ValueError, match="stratum='R' is not known"):
        stimg.pl.scores(report, stratum="R")
    with pytest.raises(ValueError, match="There is no stratum to draw"):
        stimg.pl.scores(report, stratum=[])
    with pytest.raises(ValueError, match="ax holds 1 Axes for 2 panels"):
        stimg.pl.scores(report, ax=plt.subplots()[1])
    with pytest.raises(ValueError, match="ncols=0"):
        stimg.pl.scores(report, ncols=0)


def test_png_is_a_picture_on_white_and_closes_its_figure():
    fig, ax = plt.subplots(figsize=(3, 2))
    ax.fill_between([0, 1], [0, 0], [1, 1], color="#0072B2")
    ax.set_axis_off()
    image = Image.open(io.BytesIO(png(fig, dpi=50)))
    assert image.size == (150, 100)
    pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_allclose(pixels[50, 75], [0x00, 0x72, 0xB2], atol=3)
    assert not plt.fignum_exists(fig.number)
