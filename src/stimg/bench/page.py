"""One HTML page of a report: what was evaluated, what to know before comparing, where the models stand, and everything behind it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stimg.bench import page_tables as tables
from stimg.bench import verdict
from stimg.bench.html import Html, document, fold, join, picture, table, tag
from stimg.bench.page_tables import OPEN_STRATA, coded, listed, plural, role_tag, signed
from stimg.bench.report import Report
from stimg.bench.verdict import shown

STYLE = """
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 1rem 0; } .facts dt { color: var(--soft); }
.facts dd { margin: 0; min-width: 0; }
.box { border-left: 4px solid var(--line); background: var(--box); padding: .6rem 1rem; margin: 1rem 0; border-radius: 0 4px 4px 0; }
.box p, .box ul { margin: .3rem 0; } .box ul { padding-left: 1.1rem; }
.loud { border: 2px solid var(--bad); border-left-width: 10px; background: var(--bad-ground); } .loud strong { color: var(--bad); }
.quiet { color: var(--good); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .5rem 2rem; align-items: start; }
.pair > * { min-width: 0; } .pair figure { margin: .5rem 0; }
.said { margin: .9rem 0 .3rem; } .said .bad { color: var(--bad); } .said .good { color: var(--good); }
.pair > div > :first-child { margin-top: .5rem; } .pair table { font-size: .9rem; }
.tag { font-size: .75rem; border: 1px solid currentColor; border-radius: 3px; padding: 0 .3em; white-space: nowrap; color: var(--soft); font-weight: 400; }
.tag.model { color: var(--model); } .tag.rival { color: var(--rival); } .tag.flatters { color: var(--bad); }
td small { display: block; font-size: .75rem; white-space: nowrap; } .grid { font-size: .9rem; }
.grid td, .grid th { padding-right: .6rem; } .grid small { letter-spacing: -.02em; } .grid thead th { font-weight: 600; min-width: 4rem; max-width: 8rem; }
.grid tbody th { position: sticky; left: 0; background: var(--ground); min-width: 8rem; max-width: 15rem; }
td.tint { padding-left: .4rem; background: rgb(0 114 178 / calc(var(--t) * 40%)); } td.tint.minus { background: rgb(213 94 0 / calc(var(--t) * 40%)); }
td.flatters, th.flatters { background: repeating-linear-gradient(135deg, transparent 0 5px, rgb(128 128 128 / 13%) 5px 10px); }
@media (max-width: 36rem) { .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .4rem; } }
"""
LEVELS = {
    "donor": "no donor may be in both training and test",
    "section": "no section may be in both training and test; other sections of a donor may",
    "observation": "no observation may be in both training and test, nor a neighbour of one; other observations of a section may",
}
PLURAL = {"model": "models", "rival": "rivals", "null": "nulls", "audit": "audits"}
LOOKS = dict.fromkeys((verdict.ABOVE, verdict.WORSE), "bad") | dict.fromkeys((verdict.LOWER, verdict.EVEN, verdict.HIGHER), "even")
LOOKS[verdict.BETTER] = "good"
DRAWN, SAID, STAMPS, CASES, GENES = 2, 4, 6, 3, 10
"""What a page shows: methods with genes and maps, methods and stamps before the rest is closed, cases, genes at either end."""
CEILING, AGAINST = "noise ceiling", "against "


def page(report: Report) -> str:
    """Return the report as one HTML page: no script, nothing fetched, figures inside; every text of the report escaped."""
    d = report.data
    name = f"{d['protocol']['name']} {d['protocol']['version']}"
    strata = list(dict.fromkeys(s["stratum"] for s in d["summary"] if s["metric"] == report.headline))
    light = {**d, "details": report.details()}  # made a table once for all figures
    return document(
        f"{name}: {listed(verdict.subjects(report)) or 'nulls'}",
        tag("header", tag("h1", name), tag("p", _lead(d)), _stamps(d["stamps"]), _protocol(d)),
        _standing(report, light, strata),
        tables.metrics(report, strata),
        tables.donors(report, strata),
        _genes(report, light, strata),
        _cases(report),
        tables.methods(d),
        tag("h2", "Behind the numbers"),
        tables.ledger(d),
        tables.cost(d),
        tables.data(d),
        tables.repeat(d),
        style=STYLE,
    )


def _lead(d: Mapping[str, Any]) -> str:
    """Return in a sentence what was evaluated."""
    by_role = {role: [m["name"] for m in d["methods"] if m["role"] == role] for role in PLURAL}
    models = [repr(name) for name in by_role.pop("model")]
    beside = listed(f"{len(names)} {role if len(names) == 1 else PLURAL[role]}" for role, names in by_role.items() if names)
    who = listed(models if len(models) <= 6 else [*models[:6], f"{len(models) - 6} more models"])
    what = f"{who}, beside {beside}," if who and beside else who or f"{beside}, and no model,"
    n = sum(s["n_obs"] for s in d["sections"])
    return (
        f"{what} on {plural(len(d['sections']), 'section')} of {plural(len({s['donor'] for s in d['sections']}), 'donor')} "
        f"({n:,} observations), {plural(len(d['split']['folds']), 'fold')}: {d['protocol']['title']}."
    )


def _stamps(stamps: Sequence[str]) -> Html:
    """Return the stamps in a loud box, or a quiet line where there are none."""
    if stamps:
        lines = [tag("li", tag("strong", stamp)) for stamp in stamps]
        more = fold(f"{len(lines) - STAMPS} more", tag("ul", *lines[STAMPS:])) if lines[STAMPS:] else ""
        why = tag("p", "These numbers must not stand anywhere without these lines.")
        return tag("div", why, tag("ul", *lines[:STAMPS]), more, class_="box loud", role="alert")
    told = (
        " Gene lists, training sections and what the methods say they were fitted on were compared with the test data of each fold. "
        "What a method does not say cannot be checked."
    )
    return tag("p", tag("span", "No leak found.", class_="quiet"), told)


def _protocol(d: Mapping[str, Any]) -> Html:
    p = d["protocol"]
    facts: list[tuple[str, str]] = [
        ("protocol", join(tag("strong", p["name"]), f" {p['version']}, hash ", tag("code", p["hash"]))),
        ("source", p["source"]),
        ("kept apart", f"{p['level']}: {LEVELS.get(p['level'], 'as the protocol says')}"),
        ("split", join(f"{plural(len(d['split']['folds']), 'fold')}, hash ", tag("code", d["split"]["hash"]))),
    ]
    if p["strata"]:
        facts.append(("reported apart", f"by {listed(p['strata'])}; never averaged"))
    remarks = tag("ul", *(tag("li", coded(remark)) for remark in p["remarks"]))
    known = tag("div", tag("p", tag("strong", "Know this before you compare")), remarks, class_="box") if p["remarks"] else ""
    return join(tag("dl", *(join(tag("dt", k), tag("dd", v)) for k, v in facts), class_="facts"), known)


def _standing(report: Report, light: Mapping[str, Any], strata: Sequence[str]) -> Html:
    """Return the headline figure of each stratum, with what it says beside it."""
    from stimg import pl
    from stimg.pl.files import png

    metric, subjects = report.data["metrics"][0], verdict.subjects(report)
    beside = bool(subjects) or len(strata) == 1
    blocks = []
    for i, stratum in enumerate(strata):
        values = ", ".join(f"{name} {shown(value)}" for name, value in verdict.values(report, metric["name"], stratum).items())
        drawn = png(pl.scores(light, stratum=stratum, legend=i == 0, return_fig=True))
        said = [_said(each, first=k == 0) for k, each in enumerate(verdict.verdicts(report, metric["name"], stratum))]
        said = [*said[:SAID], fold(f"{len(said) - SAID} more", *said[SAID:])] if said[SAID:] else said
        said += [tag("p", each, class_="said") for each in verdict.of_the_rest(report, metric["name"], stratum)]
        figure = picture(drawn, alt=f"{metric['name']}, {stratum}: {values}", width=460)
        blocks.append(tag("div", figure, tag("div", *said), **({"class_": "pair"} if beside else {})))
    shown_first = blocks[:OPEN_STRATA] if beside else [tag("div", *blocks[:OPEN_STRATA], class_="pair")]
    role = next((m["role"] for m in report.data["methods"] if m["name"] in subjects), "null")
    return join(
        tag("h2", f"Where the {PLURAL[role]} stand" if subjects or not verdict.pictured(report) else "What zero pixels score"),
        tag("p", _how_to_read(report, metric), class_="soft"),
        *shown_first,
        tables.the_rest(blocks, strata),
    )


def _how_to_read(report: Report, metric: Mapping[str, Any]) -> str:
    few = min((s["n_donors"] for s in report.data["summary"] if s["metric"] == metric["name"]), default=0)
    text = (
        f"{metric['name']}: {metric['what']}. Grey are nulls, which see no pixel and nothing of what is to be predicted, and audits, which are "
        "given a part of the truth; neither is a result. Intervals are 95 %, donors drawn again; differences are taken on the same sections, "
        "seeds averaged first."
    )
    if few == 1:
        return f"{text} There is one donor, or all are pooled: there is no interval, and nothing is said of other donors."
    if few < verdict.FEW:
        return f"{text} An interval over {few} donors is rough, and usually too narrow: better and worse are said only where every donor agrees."
    return text


def _said(found: verdict.Verdict, *, first: bool) -> Html:
    """Return a verdict: its sentence, what goes with it, and the differences behind it."""
    rows = []
    for c in found.comparisons:
        interval = tag("small", f"{signed(c.low)} to {signed(c.high)}") if np.isfinite(c.low) else ""
        ahead = f"{c.ahead} of {c.n_donors}" if c.n_donors > 1 else "–"
        rows.append([join(c.other, " ", role_tag(c.role)), shown(c.other_value), join(signed(c.difference), interval), ahead])
    said = [
        join("; it " if i else " ", tag("strong", words, class_=LOOKS[words]), f" {text}") for i, (words, text) in enumerate(found.clauses)
    ]
    sentence = said or [join(f" {verdict.ALONE}")]
    return join(
        tag("p", tag("strong", found.method), f" ({shown(found.value)})", *sentence, ".", class_="said"),
        tag("p", " ".join(found.remarks), class_="soft") if found.remarks else "",
        fold("differences on the same sections", table(("against", "its score", "difference", "donors ahead"), rows), open_=first)
        if rows
        else "",
    )


def _genes(report: Report, light: Mapping[str, Any], strata: Sequence[str]) -> Html:
    """Return genes against their ceiling and against the best null or audit, for the best methods."""
    from stimg import pl
    from stimg.pl.files import png

    details, subjects = light["details"], verdict.subjects(report)
    if not {"gene", "r"} <= set(details):
        return Html()
    roles = {m["name"]: m["role"] for m in report.data["methods"]}
    out: list[Html] = []
    for stratum in strata[:DRAWN]:
        own = _of_stratum(details, report.data["protocol"]["strata"], stratum)
        if own.empty:  # a stratum that is scored, and has no genes of its own
            continue
        scored = verdict.values(report, report.headline, stratum)
        blind = [name for name in scored if roles[name] in ("null", "audit")]
        for name in [n for n in scored if n in subjects][:DRAWN] or blind[:DRAWN]:
            other = next((n for n in blind if n != name), None)
            against = [*([CEILING] if "ceiling" in own else []), *([other] if other is not None else [])]
            found = _by_gene(own, name, against)
            figures = []
            for each in against:
                drawn = png(pl.gene_scores(light, method=name, against=each, stratum=stratum, return_fig=True))
                on = (
                    "On the dashed line it is as good as noise allows." if each == CEILING else f"Below the dashed line {each!r} is better."
                )
                figures.append(picture(drawn, alt=f"r of each gene, {name} against {each}", caption=f"A dot is a gene. {on}", width=440))
            out += [
                tag("h3", f"{name}, {stratum}" if stratum else name),
                tag("p", _gene_words(found, name, other, roles)),
                tag("div", *figures, class_="pair"),
                fold(f"the {GENES} genes with the highest r, and the {GENES} with the lowest", _gene_rows(found, against)),
            ]
    if not out:
        return Html()
    if len(strata) > DRAWN or len(subjects) > DRAWN:
        out.append(tag("p", coded("`stimg.pl.gene_scores(report, method=..., stratum=...)` draws the others."), class_="soft"))
    return join(tag("h2", "Genes"), *out)


def _of_stratum(details: pd.DataFrame, keys: Sequence[str], stratum: str) -> pd.DataFrame:
    if not keys:
        return details
    first, *others = (details[key].astype(str) for key in keys)
    return details[first.str.cat(others, sep=", ") == stratum]


def _by_gene(details: pd.DataFrame, name: str, against: Sequence[str]) -> pd.DataFrame:
    """Return for each gene the mean r of a method over seeds and sections, and what it is held against; highest r first."""
    values = details.assign(r=details["r"].astype(np.float64).fillna(0.0))
    own = values[values["method"] == name].groupby("gene")
    out = own.agg(r=("r", "mean"), undefined=("undefined", "all"))
    for each in against:
        out[AGAINST + each] = own["ceiling"].mean() if each == CEILING else values[values["method"] == each].groupby("gene")["r"].mean()
    return out.sort_values("r", ascending=False, kind="stable")


def _gene_words(found: pd.DataFrame, name: str, other: str | None, roles: Mapping[str, str]) -> str:
    parts = []
    if other is not None:
        ahead = int((found["r"] > found[AGAINST + other]).sum())
        parts.append(f"{name!r} is better than the {roles[other]} {other!r} on {ahead:,} of {plural(len(found), 'gene')}.")
    if AGAINST + CEILING in found:
        above = int((found["r"] > found[AGAINST + CEILING]).sum())
        are = "is" if above == 1 else "are"
        parts.append(f"{plural(above, 'gene')} {are} above the noise ceiling, by chance or by a leak.")
    below, undefined = int((found["r"] < 0).sum()), int(found["undefined"].sum())
    parts.append(f"r is below 0 for {plural(below, 'gene')}, and undefined in every section for {undefined:,}.")
    return " ".join(parts)


def _gene_rows(found: pd.DataFrame, against: Sequence[str]) -> Html:
    ends = found if len(found) <= 2 * GENES else pd.concat([found.head(GENES), found.tail(GENES)])
    rows = [
        [str(gene), "undefined" if row["undefined"] else shown(row["r"]), *(shown(row[AGAINST + a]) for a in against)]
        for gene, row in ends.iterrows()
    ]
    return table(["gene", "r", *against], rows)


def _cases(report: Report) -> Html:
    """Return the worst cases of the best methods as maps, the best ones beside them."""
    from stimg import pl
    from stimg.pl.files import png

    kept = {m["method"] for m in report.data["maps"]}
    stratum = next((s["stratum"] for s in report.data["summary"] if s["metric"] == report.headline), "")
    scored = verdict.values(report, report.headline, stratum)
    out = []
    for name in [n for n in scored if n in kept and n in verdict.subjects(report)][:DRAWN]:
        sides = []
        for side in ("worst", "best"):
            drawn = png(pl.score_maps(report, method=name, n=CASES, best=side == "best", return_fig=True), dpi=120)
            figure = picture(drawn, alt=f"maps of the {side} cases of {name}", width=440)
            sides.append(tag("div", tag("p", f"the {side} of the kept cases", class_="soft"), figure))
        out += [tag("h3", name), tag("div", *sides, class_="pair")]
    if not out:
        return Html()
    lead = (
        "Genes of single sections with the lowest r among those that the report keeps of each fold, and for contrast those with the highest; "
        "truth and prediction share one colour scale."
    )
    return join(tag("h2", "Worst cases"), tag("p", lead, class_="soft"), *out)
