"""The page of a report: complete, escaped, without script or anything fetched; and what a browser makes of it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

import stimg
from stimg.bench import Report, run, seen_of
from stimg.bench import page_tables as tables
from stimg.bench.expression import ExpressionProtocol
from stimg.bench.gene_rules import Panel
from stimg.bench.page import page

REMARKS = ("Depth alone predicts much; see `depth_residual_r`.", "Ten genes are few.")
HOSTILE = "<img src=x onerror=alert(1)>\"'&$\\frac{$"
BROWSER = next((found for found in map(shutil.which, ("chromium", "chromium-browser")) if found), None)


class Parsed(HTMLParser):
    """A page as elements, attributes and text, and the texts of single elements; what is not closed in turn is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words, self.inside = [], [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = "".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("img", "meta", "wbr"):
            self.open.append(tag)
            self.inside.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
            for tag in set(self.open):
                self.inside[tag][-1] += data


def half(truth, share):
    """A method that knows a share of the truth."""

    def answer(task, rng):
        """A share of the truth, and noise."""
        return {n: share * truth(a, task) + rng.normal(size=(a.n_obs, len(task.genes))) for n, a in task.asked().items()}

    return answer


@pytest.fixture(scope="module")
def sections(_slides):
    return stimg.bench.load_sections({name: adata.copy() for name, adata in _slides.items()})


@pytest.fixture(scope="module")
def protocol():
    return ExpressionProtocol(
        name="small",
        version="0",
        title="ten genes",
        source="these tests",
        remarks=REMARKS,
        panels=(Panel("HEG10", "highest mean", 10), Panel("HEG25", "highest mean", 25)),
        ceiling_splits=2,
        nulls=("training mean", "depth line", "labels permuted"),
    )


@pytest.fixture(scope="module")
def report(sections, protocol):
    def truth(adata, task):
        return task.target(sections[adata.obs["library_id"].iloc[0]])

    methods = {"good": half(truth, 2.0), "bad": half(truth, 0.0)}
    return run(protocol, sections, methods=methods, seeds=2, progress=False)


@pytest.fixture(scope="module")
def text(report):
    return page(report)


def changed(report, change, *, quick=True):
    """The report with its content changed; without genes and maps, which take most of the time, where ``quick``."""
    kept = {**report.data, "details": {}, "maps": []} if quick else report.data
    data = json.loads(json.dumps(kept))
    change(data)
    return Report(data)


def test_everything_is_on_the_page(report, text):
    parsed = Parsed(text)
    names = [m["name"] for m in report.data["methods"]] + [m["name"] for m in report.data["metrics"]]
    names += [s[k] for s in report.data["sections"] for k in ("library", "content")]
    names += [report.data[k]["hash"] for k in ("protocol", "split")] + list(report.data["software"]) + ["HEG10", "HEG25"]
    for name in names:
        assert name in parsed.text, name
    for m in report.data["metrics"]:
        assert m["what"].removeprefix("flatters: ") in parsed.text
    assert "Depth alone predicts much; see depth_residual_r." in parsed.text
    assert "depth_residual_r" in parsed.inside["code"]
    assert "No leak found." in parsed.text
    assert "alert" not in dict(parsed.attributes).values()
    assert parsed.text.index("No leak found.") < parsed.text.index(REMARKS[1]) < parsed.text.index("Where the models stand")


def test_nothing_is_fetched_and_nothing_runs(text):
    parsed = Parsed(text)
    assert not {"script", "link", "iframe", "object", "a"} & set(parsed.tags)
    assert not re.search(r"https?://|url\(|@import", text)
    where = [value for name, value in parsed.attributes if name in ("src", "href", "srcset")]
    assert len(where) == parsed.tags.count("img") == 2 + 8 + 4  # scores of two panels; genes of two methods in each, twice; maps
    assert all(value.startswith("data:image/png;base64,") for value in where)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert all(value for name, value in parsed.attributes if name == "alt")
    assert len(text) < 2e6


def test_the_same_report_gives_the_same_page(report, text):
    assert page(Report(json.loads(json.dumps(report.data)))) == text


def test_the_numbers_of_the_tables_are_those_of_the_summary(report, text):
    rows = re.findall(r"<tr><th scope=\"row\">depth line.*?</tr>", text)
    entries = {(s["stratum"], s["metric"]): s["value"] for s in report.data["summary"] if s["method"] == "depth line"}
    for stratum in ("HEG10", "HEG25"):
        wanted = [tables.shown(entries.get((stratum, m["name"]))) for m in report.data["metrics"]]  # an audit has no p-value
        assert any([re.sub(r"<small>.*?</small>|<.*?>", "", c) for c in re.findall(r"<td.*?</td>", row)] == wanted for row in rows)
    flattering = sum(m["what"].startswith("flatters") for m in report.data["metrics"])
    assert text.count('<th scope="col" class="flatters">') == 2 * flattering > 0


def test_donors_are_told_apart_and_folds_only_where_they_are_something_else(report, text):
    assert "by donor, HEG10 (3)" in text
    assert "by fold" not in text

    def halves(data):
        for entry in data["summary"]:
            entry["by_fold"] = {"left": 0.25, "right": -0.5}

    text = page(changed(report, halves))
    assert "by fold, HEG10 (2)" in text
    assert '<td class="tint minus" style="--t:1.00">−.500</td>' in text
    assert '<td class="tint" style="--t:0.50">.250</td>' in text


def test_stamps_are_loud_and_all_there(report, sections, protocol):
    seen = seen_of(sections["C1"], who=f"encoder {HOSTILE}", kind="encoder")
    leaky = run(
        protocol, sections, methods={"mine": half(lambda a, t: 0.0, 0.0)}, fitted=[seen], allow_leakage=True, seeds=1, progress=False
    )
    parsed = Parsed(page(changed(leaky, lambda d: None)))
    assert ("role", "alert") in parsed.attributes
    assert "No leak found" not in parsed.text
    assert leaky.data["stamps"]
    for stamp in leaky.data["stamps"]:
        assert stamp in parsed.inside["strong"]
    assert "allow_leakage=True" in parsed.text
    many = changed(report, lambda d: d.update(stamps=[f"NOT CHECKED: {i}" for i in range(30)]))
    assert [s for s in Parsed(page(many)).inside["strong"] if s.startswith("NOT CHECKED")] == many.data["stamps"]


@pytest.mark.slow
def test_hostile_names_are_shown_and_nothing_else(report):
    known = {m["name"]: f"{HOSTILE}{i}" for i, m in enumerate(report.data["methods"])}
    text = json.dumps(report.data)
    for old, new in {**known, "A1": f"A1{HOSTILE}", "HEG10": f"HEG10{HOSTILE}", "ten genes": HOSTILE, "g1": f"g1{HOSTILE}"}.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    data = json.loads(text)
    data["protocol"]["remarks"] = [HOSTILE]
    data["notes"] = [{"fold": HOSTILE, "method": known["good"], "seed": 0, "notes": {HOSTILE: HOSTILE}}]
    data["machine"][HOSTILE] = HOSTILE
    parsed = Parsed(page(Report(data)))
    assert len(parsed.tags) > 500
    assert "script" not in parsed.tags
    assert parsed.tags.count("img") == 14
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    for name in [*known.values(), f"A1{HOSTILE}", f"HEG10{HOSTILE}"]:
        assert name in parsed.text
    assert f"observations), 3 folds: {HOSTILE}." in parsed.text


def test_without_models_the_nulls_speak(report):
    def alone(data):
        kept = [m["name"] for m in data["methods"] if m["role"] in ("null", "audit")]
        data["methods"] = [m for m in data["methods"] if m["name"] in kept]
        for key in ("scores", "summary", "ledger", "cost"):
            data[key] = [e for e in data[key] if e["method"] in kept]
        data["maps"] = []

    parsed = Parsed(page(changed(report, alone, quick=False)))
    assert "What zero pixels score" in parsed.inside["h2"]
    assert "Worst cases" not in parsed.inside["h2"]
    assert "Without any model, the best null 'training mean' scores .000" in parsed.text


def test_a_report_without_genes_maps_intervals_and_strata(report):
    def bare(data):
        data["details"], data["maps"], data["protocol"]["strata"], data["protocol"]["remarks"], data["notes"] = {}, [], [], [], []
        data["summary"] = [
            {**s, "stratum": "", "low": None, "high": None, "n_donors": 1} for s in data["summary"] if s["stratum"] == "HEG10"
        ]
        data["scores"] = [{**s, "donor": "A"} for s in data["scores"] if s["panel"] == "HEG10"]
        for entry in data["summary"]:
            entry["by_donor"] = {"A": entry["value"]}
            if entry["metric"] == "relative_mse":
                entry["value"] = None
        for entry in data["cost"]:
            entry["peak_mb"] = None

    parsed = Parsed(page(changed(report, bare)))
    assert not {"Genes", "Worst cases"} & set(parsed.inside["h2"])
    assert "There is one donor, or all are pooled: there is no interval" in parsed.text
    assert "is better than" not in parsed.text
    assert "scores better, without an interval, than" in parsed.text


def test_words():
    assert [tables.plural(n, "fold") for n in (1, 2, 1234)] == ["1 fold", "2 folds", "1,234 folds"]
    assert [tables.listed("abc"[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert [tables.signed(v) for v in (0.5, -0.25, 0.0, np.nan)] == ["+.500", "−.250", ".000", "–"]
    assert [tables.duration(s) for s in (0.013, 42.4, 150, 9000)] == ["0.01 s", "42 s", "2.5 min", "2.5 h"]


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1100, 500])
def test_a_browser_shows_it_whole_and_asks_for_nothing(text, tmp_path, width):
    seen = "[innerWidth, document.documentElement.scrollWidth, [...document.images].every(i => i.naturalWidth > 50), performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length]"
    file = tmp_path / "page.html"
    script = f"<script>window.onload = () => {{ document.title = {seen}.join(' ') }}</script>"
    file.write_text(text.replace("</body>", f"{script}</body>"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    call = [BROWSER, *flags.split(), "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    call += [f"--window-size={width},2000", "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom", file.as_uri()]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=True)
    inner, outer, loaded, asked = re.search(r"<title>(\d+) (\d+) (\w+) (\d+)</title>", done.stdout).groups()
    assert int(outer) <= int(inner) == width
    assert (loaded, asked) == ("true", "0")
    for name in ("good", "bad", "training mean", "depth line", "labels permuted"):
        assert name in done.stdout
    assert "CONSOLE" not in done.stderr
