"""Genes of a report and maps of its worst cases: what is drawn is what the report says, worked out here by loops."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import stimg
from stimg.image.spec import RasterSpec

GENES = [f"g{i}" for i in range(8)]
R = {"net": [0.9, 0.5, 0.4, 0.3, 0.2, 0.1, -0.2, 0.0], "depth": [0.1, 0.6, 0.2, 0.3, 0.1, 0.4, 0.2, 0.1]}


def make_case(method, r, *, library="A1", gene="g0", fold="A", lattice="square", seed=0):
    rc = np.argwhere(np.ones((4, 5)))
    spec = RasterSpec(lattice, (4, 5), 100.0, hex_parity=1 if lattice == "hex" else -1).to_dict()
    place = {"spec": {k: np.asarray(v).tolist() for k, v in spec.items()}, "rc": [*rc.tolist(), [-1, -1]]}
    truth = np.arange(21) / 10
    case = {"fold": fold, "method": method, "seed": seed, "library": library, "gene": gene, "r": r, "raster": place}
    return case | {"truth": truth.tolist(), "predicted": [*(1 - truth[:-1]), None]}


@pytest.fixture
def report():
    """Two panels; in the second every r is half. Sections and seeds scatter around the values above."""
    keys = ("method", "seed", "library", "panel", "gene", "r", "undefined", "ceiling")
    columns = {k: [] for k in keys}
    for method, values in R.items():
        for seed in (0, 1):
            for library in ("A1", "B1"):
                for panel, share in (("P", 1.0), ("Q", 0.5)):
                    for i, gene in enumerate(GENES):
                        shift = 0.02 * (seed - 0.5) + (0.04 if library == "A1" else -0.04)
                        dead = method == "net" and gene == "g7"
                        row = (
                            method,
                            seed,
                            library,
                            panel,
                            gene,
                            0.0 if dead else share * values[i] + shift,
                            dead,
                            0.1 * i + (library == "A1") * 0.2,
                        )
                        for key, value in zip(keys, row, strict=True):
                            columns[key].append(value)
    return {
        "protocol": {"strata": ["panel"]},
        "methods": [{"name": "net", "role": "model"}, {"name": "depth", "role": "audit"}, {"name": "lost", "role": "null"}],
        "metrics": [{"name": "mean_r"}],
        "scores": [],
        "summary": [{"stratum": "P"}, {"stratum": "Q"}],
        "details": columns,
        "maps": [
            make_case("net", 0.3, gene="g1"),
            make_case("net", -0.4, gene="g2", lattice="hex"),
            make_case("net", -0.4, gene="g2", lattice="hex", seed=1),
            make_case("net", 0.8, gene="g3"),
            make_case("net", None, gene="g4"),
            make_case("other", -0.9),
            make_case("net", 0.0, gene="g1", fold="A1 hole"),
        ],
    }  # fmt: skip


def points(ax, gid="genes"):
    (line,) = [line for line in ax.lines if line.get_gid() == gid]
    return np.asarray(line.get_xydata())


def test_a_gene_is_its_mean_over_seeds_and_sections(report):
    axes = stimg.pl.gene_scores(report, method="net")
    assert list(axes) == ["P", "Q"]
    for panel, share in (("P", 1.0), ("Q", 0.5)):
        drawn = points(axes[panel])
        assert drawn[:, 1] == pytest.approx([share * r for r in R["net"][:7]])
        assert drawn[:, 0] == pytest.approx([0.1 * i + 0.1 for i in range(7)])
        assert points(axes[panel], "undefined") == pytest.approx(np.array([[0.8, 0.0]]))
        low, high = points(axes[panel], "equal")
        assert low[0] == low[1]
        assert high[0] == high[1] >= drawn.max()


def test_another_method_takes_the_place_of_the_ceiling(report):
    ax = stimg.pl.gene_scores(report, method="net", against="depth", stratum="P")
    assert points(ax)[:, 0] == pytest.approx(R["depth"][:7])
    assert ax.get_xlabel() == "r of depth"
    assert ax.get_ylabel() == "r of net"


def test_the_names_of_the_extremes_are_written(report):
    ax = stimg.pl.gene_scores(report, method="net", stratum="P", label=2)
    assert [t.get_text() for t in ax.texts] == ["g0", "g1", "g6", "g7"]
    assert not stimg.pl.gene_scores(report, method="net", stratum="P", label=0).texts
    report["details"]["gene"] = [f"{g}$\\frac{{" for g in report["details"]["gene"]]
    stimg.pl.gene_scores(report, method="net", stratum="P", return_fig=True).canvas.draw()


def test_errors_of_genes(report):
    with pytest.raises(ValueError, match="method='x' is not known"):
        stimg.pl.gene_scores(report, method="x")
    with pytest.raises(ValueError, match="against='x' is not known"):
        stimg.pl.gene_scores(report, method="net", against="x")
    with pytest.raises(ValueError, match="no genes of 'lost' and 'noise ceiling' in stratum 'P'"):
        stimg.pl.gene_scores(report, method="lost")
    report["details"].pop("ceiling")
    with pytest.raises(ValueError, match=r"no noise ceiling of genes\. Pass the name of another method"):
        stimg.pl.gene_scores(report, method="net")
    with pytest.raises(ValueError, match="The report has no genes"):
        stimg.pl.gene_scores(report | {"details": {}}, method="net")


def test_the_worst_cases_come_first_each_once(report):
    found = stimg.pl.score_maps(report, method="net", n=3)
    assert list(found) == [(p, g, k) for p, g in (("A1", "g2"), ("A1 hole", "g1"), ("A1", "g1")) for k in ("truth", "prediction")]
    assert [ax.get_title() for ax in found.values()][:2] == ["g2 · A1", "predicted, r = −.40"]
    best = stimg.pl.score_maps(report, method="net", n=2, best=True)
    assert [key[1] for key in best][::2] == ["g3", "g1"]


def test_maps_show_the_values_on_one_scale_and_nothing_off_the_raster(report):
    found = stimg.pl.score_maps(report, method="net", n=1, best=True)
    truth, prediction = (ax.collections[0] for ax in found.values())
    np.testing.assert_allclose(truth.get_array(), np.arange(20) / 10)
    np.testing.assert_allclose(prediction.get_array(), 1 - np.arange(20) / 10)
    assert truth.norm.vmin == prediction.norm.vmin == pytest.approx(-0.9)
    assert truth.norm.vmax == prediction.norm.vmax
    bars = [line for ax in found.values() for line in ax.lines if line.get_gid() == "scale bar"]
    assert len(bars) == 1
    assert np.ptp(bars[0].get_xdata()) == 100.0


def test_maps_fit_their_frame_and_take_axes(report):
    fig = stimg.pl.score_maps(report, method="net", return_fig=True)
    fig.canvas.draw()
    for ax in fig.axes:
        box = ax.get_tightbbox()
        assert min(box.x0, box.y0) > -2
        assert box.x1 < fig.bbox.x1 + 2
        assert box.y1 < fig.bbox.y1 + 2
    _, axes = plt.subplots(1, 2)
    assert list(stimg.pl.score_maps(report, method="net", n=1, ax=axes).values()) == list(axes)


def test_errors_of_maps(report):
    with pytest.raises(ValueError, match=r"no maps of method='depth' \(it has those of \['net', 'other'\]\)"):
        stimg.pl.score_maps(report, method="depth")
    with pytest.raises(ValueError, match="n=0"):
        stimg.pl.score_maps(report, method="net", n=0)
