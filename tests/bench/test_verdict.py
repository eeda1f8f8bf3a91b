"""What a report says in words: against numbers worked out by hand, and never more than they bear out."""

import itertools

import numpy as np
import pytest

from stimg.bench import verdict
from stimg.bench.expression import ExpressionProtocol
from stimg.bench.protocol import Metric
from stimg.bench.report import Report, summarise

METRICS = (Metric("mean_r", "r"), Metric("error", "squared error", more_is_better=False), Metric("median_r", "r", aggregate="median"))
ROLES = {"mine": "model", "flat": "null", "places": "null", "depth": "audit", "colour": "rival"}


def make_report(scores, *, roles=ROLES, ceiling=None, kind="expression", metric="mean_r"):
    """A report of scores: by method, by donor, a list of the scores of its sections (or of lists of seeds)."""
    rows = []
    for method, by_donor in scores.items():
        for donor, values in by_donor.items():
            for i, value in enumerate(values):
                for seed, each in enumerate(value if isinstance(value, list) else [value]):
                    row = {
                        "fold": donor,
                        "method": method,
                        "seed": seed,
                        "library": f"{donor}{i}",
                        "donor": donor,
                        "n_obs": 9,
                        "n_undefined": 0,
                    }
                    rows.append(row | {"panel": "P", "n_genes": 10, metric: each} | ({} if ceiling is None else {"ceiling": ceiling}))
    protocol = ExpressionProtocol(name="p", version="1", title="t", source="s", metrics=METRICS, kind=kind)
    used = next(m for m in METRICS if m.name == metric)
    return Report(
        {
            "schema": 1,
            "protocol": {**{k: getattr(protocol, k) for k in ("name", "version", "hash", "title", "source", "kind", "level")}, "remarks": [], "strata": ["panel"]},
            "split": {"hash": "h", "folds": []},
            "methods": [{"name": m, "role": roles[m], "what": "w", "seeds": [0]} for m in scores],
            "metrics": [{"name": used.name, "what": "w", "more_is_better": used.more_is_better, "aggregate": used.aggregate}],
            "scores": rows,
            "summary": summarise(rows, protocol, list(scores)),
            **{k: [] for k in ("sections", "stamps", "ledger", "cost", "maps")},
            **{k: {} for k in ("software", "machine", "details")},
        }
    )  # fmt: skip


def flat(value, donors="ABCD"):
    return {d: [value] for d in donors}


def test_differences_are_those_of_the_same_sections_and_their_interval_that_of_drawn_donors():
    mine = {"A": [[0.5, 0.7], 0.1], "B": [0.4], "C": [0.2]}
    other = {"A": [0.3, 0.2], "B": [0.1], "C": [0.3]}
    found = verdict.compare(make_report({"mine": mine, "depth": other}), "mine", "depth", metric="mean_r", stratum="P")
    by_donor = {"A": [0.6 - 0.3, 0.1 - 0.2], "B": [0.3], "C": [-0.1]}
    drawn = sorted(np.mean([v for d in draw for v in by_donor[d]]) for draw in itertools.product("ABC", repeat=3))
    assert found.difference == pytest.approx(np.mean([0.3, -0.1, 0.3, -0.1]))
    assert (found.low, found.high) == (pytest.approx(drawn[0]), pytest.approx(drawn[-1]))  # 1 of 27 is more than 2.5 %
    assert (found.ahead, found.n_donors, found.role) == (2, 3, "audit")
    assert found.value == pytest.approx(np.mean([0.6, 0.1, 0.4, 0.2]))
    assert found.better is None


def test_fewer_is_better_where_the_metric_says_so():
    report = make_report({"mine": flat(0.2), "flat": flat(0.9)}, metric="error")
    found = verdict.compare(report, "mine", "flat", metric="error", stratum="P")
    assert (found.better, found.ahead, found.difference) == (True, 4, pytest.approx(-0.7))
    assert list(verdict.values(report, "error", "P")) == ["mine", "flat"]


def test_medians_are_compared_by_the_median_of_the_differences():
    report = make_report({"mine": {"A": [0.1, 0.2, 0.9], "B": [0.5]}, "flat": flat(0.0, "B") | {"A": [0.0] * 3}}, metric="median_r")
    found = verdict.compare(report, "mine", "flat", metric="median_r", stratum="P")
    assert found.difference == pytest.approx(np.median([0.1, 0.2, 0.9, 0.5]))


def test_methods_may_be_called_like_columns():
    names = {"donor": "model", "fold": "null"}
    report = make_report({"donor": flat(0.4), "fold": flat(0.1)}, roles=names)
    assert verdict.compare(report, "donor", "fold", metric="mean_r", stratum="P").better is True


def test_the_sentence_begins_with_what_is_worse():
    scores = {
        "mine": flat(0.21),
        "flat": flat(0.0),
        "places": flat(0.02),
        "depth": flat(0.28),
        "colour": {"A": [0.1], "B": [0.3], "C": [0.3], "D": [0.1]},
    }
    (found,) = verdict.verdicts(make_report(scores), "mean_r", "P")
    assert str(found) == (
        "'mine' (.210) is worse than the audit 'depth' (.280), which sees no pixel; it cannot be told from the best rival 'colour' (.200); "
        "it is better than the best null 'places' (.020)."
    )  # fmt: skip
    assert [c.other for c in found.comparisons] == ["places", "depth", "colour"]
    (found,) = verdict.verdicts(make_report(scores, kind="imputation"), "mean_r", "P")
    assert "pixel" not in str(found)


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        (flat(0.1, "A"), verdict.HIGHER),  # one donor: nothing is known of others
        (flat(0.01, "A"), verdict.LOWER),
        (flat(0.05, "A"), verdict.EVEN),
        ({"A": [0.3], "B": [0.3], "C": [0.01], "D": [0.04]}, verdict.EVEN),  # the interval is above 0, yet one of four donors is below
        ({"A": [0.3], "B": [0.3], "C": [0.06], "D": [0.06]}, verdict.BETTER),
        ({d: [0.3] for d in "ABCDEFG"} | {"H": [0.04]}, verdict.BETTER),  # one of eight may be
        ({"A": [0.04], "B": [0.03], "C": [0.02], "D": [0.0]}, verdict.WORSE),
    ],
)
def test_better_and_worse_are_said_only_where_donors_agree(mine, words):
    report = make_report({"mine": mine, "flat": flat(0.05, mine)})
    (found,) = verdict.verdicts(report, "mean_r", "P")
    assert found.clauses[0][0] == words


def test_a_score_above_the_noise_ceiling_is_called_what_it_is():
    (found,) = verdict.verdicts(make_report({"mine": flat(0.7), "flat": flat(0.0)}, ceiling=0.6), "mean_r", "P")
    assert found.clauses[0] == (verdict.ABOVE, "(.600), which nothing is that has not seen the noise of these very counts")
    (found,) = verdict.verdicts(make_report({"mine": flat(0.5), "flat": flat(0.0)}, ceiling=0.6), "mean_r", "P")
    assert found.clauses[0][0] == verdict.BETTER
    report = make_report({"flat": flat(0.0), "depth": flat(0.7)}, ceiling=0.6)
    assert verdict.of_the_rest(report, "mean_r", "P")[1].startswith("'depth' is above the noise ceiling")


def test_without_models_rivals_are_spoken_of_and_without_both_the_nulls():
    report = make_report({"flat": flat(0.01), "depth": flat(0.3), "colour": flat(0.2)})
    assert verdict.subjects(report) == ["colour"]
    (found,) = verdict.verdicts(report, "mean_r", "P")
    assert [c.other for c in found.comparisons] == ["flat", "depth"]
    report = make_report({"flat": flat(0.01), "depth": flat(0.3)}, ceiling=0.6)
    assert verdict.subjects(report) == verdict.verdicts(report, "mean_r", "P") == []
    (text,) = verdict.of_the_rest(report, "mean_r", "P")
    assert text.startswith(
        "Without any model, the best null 'flat' scores .010, the strongest audit 'depth' scores .300 and the noise ceiling is .600."
    )


def test_a_model_alone_is_said_to_stand_alone():
    (found,) = verdict.verdicts(make_report({"mine": flat(0.4)}), "mean_r", "P")
    assert str(found) == f"'mine' (.400) {verdict.ALONE}."


def test_remarks_name_the_worst_donor_and_count_undefined_scores():
    report = make_report({"mine": {"A": [[0.4, 0.6]], "B": [[0.1, 0.1]]}, "flat": flat(0.0, "AB")})
    for row in report.data["scores"]:
        row["n_undefined"] = 3
    (found,) = verdict.verdicts(report, "mean_r", "P")
    assert found.remarks == (
        "12 of its 40 single scores are undefined and count 0.",
        "Its worst donor is B (.100).",
        f"Over 2 seeds its score has a standard deviation of {np.std([0.25, 0.35], ddof=1):.3f}.".replace("0.", "."),
    )
