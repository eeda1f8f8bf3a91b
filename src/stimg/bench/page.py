"""One HTML page of a report: what was evaluated, what to know before comparing, where the models stand, and everything behind it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stimg.bench import verdict
from stimg.bench.html import Html, document, fold, join, picture, table, tag
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
.said { margin: .9rem 0 .3rem; } .said .bad { color: var(--bad); } .said .good { color: var(--good); } .pair > div > :first-child { margin-top: .5rem; } .pair ul { margin: .4rem 0; padding-left: 1.1rem; } .pair table { font-size: .9rem; }
.tag { font-size: .75rem; border: 1px solid currentColor; border-radius: 3px; padding: 0 .3em; white-space: nowrap; color: var(--soft); font-weight: 400; }
.tag.model { color: var(--model); } .tag.rival { color: var(--rival); } .tag.flatters { color: var(--bad); }
tr.null > *, tr.audit > * { color: var(--soft); }
td small { display: block; font-size: .75rem; white-space: nowrap; } .grid { font-size: .9rem; }
.grid td, .grid th { padding-right: .6rem; } .grid small { letter-spacing: -.02em; } .grid thead th { font-weight: 600; min-width: 4rem; max-width: 8rem; }
.grid tbody th { position: sticky; left: 0; background: var(--ground); min-width: 8rem; max-width: 15rem; }
td.tint { padding-left: .4rem; background: rgb(0 114 178 / calc(var(--t) * 40%)); } td.tint.minus { background: rgb(213 94 0 / calc(var(--t) * 40%)); }
td.flatters, th.flatters { background: repeating-linear-gradient(135deg, transparent 0 5px, rgb(128 128 128 / 13%) 5px 10px); }
@media (max-width: 36rem) { .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .4rem; } }
"""
ROLES = {
    "model": "what is evaluated",
    "rival": "a simple method with the same inputs, or the usual one",
    "null": "sees no pixel, and nothing of what is to be predicted",
    "audit": "is given a part of the truth, to show what that part alone is worth; never a result",
}
LEVELS = {
    "donor": "no donor may be in both training and test",
    "section": "no section may be in both training and test; other sections of a donor may",
    "observation": "no observation may be in both training and test, nor a neighbour of one; other observations of a section may",
}
DRAWN, STRATA, STAMPS, CASES, GENES, OPEN = 2, 4, 6, 3, 10, 12
"""What a page shows: methods with genes and maps; strata, methods and stamps before the rest is closed; cases; genes at either end; donors in an open table."""
PLURAL = {"model": "models", "rival": "rivals", "null": "nulls", "audit": "audits"}


def page(report: Report) -> str:
    """Return the report as one HTML page: no script, nothing fetched, figures inside; every text of the report escaped."""
    d = report.data
    name = f"{d['protocol']['name']} {d['protocol']['version']}"
    strata = list(dict.fromkeys(s["stratum"] for s in d["summary"] if s["metric"] == report.headline))
    light = {**d, "details": report.details()}
    parts = [
        tag("header", tag("h1", name), tag("p", _lead(d)), _stamps(d), _protocol(d)),
        _standing(report, light, strata),
        _metrics(report, strata),
        _donors(report, strata),
        _genes(report, light, strata),
        _cases(report),
        _methods(d),
        tag("h2", "Behind the numbers"),
        _ledger(d),
        _cost(d),
        _data(d),
        _repeat(d),
    ]
    return document(f"{name}: {', '.join(verdict.subjects(report)) or 'nulls'}", *parts, style=STYLE)


def _lead(d: Mapping[str, Any]) -> str:
    """Return in one or two sentences what was evaluated."""
    by_role = {role: [m["name"] for m in d["methods"] if m["role"] == role] for role in ROLES}
    counted = [f"{len(v)} {role if len(v) == 1 else PLURAL[role]}" for role, v in by_role.items() if v and role != "model"]
    donors, n = {s["donor"] for s in d["sections"]}, sum(s["n_obs"] for s in d["sections"])
    who = listed(
        [repr(m) for m in by_role["model"]][:6] + ([f"{len(by_role['model']) - 6} more models"] if len(by_role["model"]) > 6 else [])
    )
    beside = f" beside {listed(counted)}" if counted else ""
    what = f"{who}{beside}" if who else f"{listed(counted).capitalize()}, and no model,"
    return (
        f"{what} on {plural(len(d['sections']), 'section')} of {plural(len(donors), 'donor')} ({n:,} observations), "
        f"{plural(len(d['split']['folds']), 'fold')}: {d['protocol']['title']}."
    )


def _stamps(d: Mapping[str, Any]) -> Html:
    if d["stamps"]:
        lines = [tag("li", tag("strong", stamp)) for stamp in d["stamps"]]
        more = fold(f"{len(lines) - STAMPS} more", tag("ul", *lines[STAMPS:])) if lines[STAMPS:] else Html()
        why = tag("p", "These numbers must not stand anywhere without these lines.")
        return tag("div", why, tag("ul", *lines[:STAMPS]), more, class_="box loud", role="alert")
    return tag(
        "p",
        tag("span", "No leak found.", class_="quiet"),
        " Gene lists, training sections and what the methods say they were fitted on were compared with the test data of each fold. "
        "What a method does not say cannot be checked.",
    )


def _protocol(d: Mapping[str, Any]) -> Html:
    p = d["protocol"]
    facts: list[tuple[str, str]] = [
        ("protocol", join(tag("strong", p["name"]), f" {p['version']}, hash ", tag("code", p["hash"]))),
        ("source", p["source"]),
        ("kept apart", f"{p['level']}: {LEVELS[p['level']]}" if p["level"] in LEVELS else p["level"]),
        ("split", join(f"{plural(len(d['split']['folds']), 'fold')}, hash ", tag("code", d["split"]["hash"]))),
    ]
    if p["strata"]:
        facts.append(("reported apart", f"by {listed(p['strata'])}; never averaged"))
    out = tag("dl", *(join(tag("dt", k), tag("dd", v)) for k, v in facts), class_="facts")
    if not p["remarks"]:
        return out
    known = tag("p", tag("strong", "Know this before you compare"))
    return join(out, tag("div", known, tag("ul", *(tag("li", _coded(r)) for r in p["remarks"])), class_="box"))


def _standing(report: Report, light: Mapping[str, Any], strata: Sequence[str]) -> Html:
    """Return the headline figure of each stratum, with what it says beside it."""
    from stimg import pl

    metric = report.data["metrics"][0]
    few = min((s["n_donors"] for s in report.data["summary"] if s["metric"] == metric["name"]), default=0)
    open_, blocks = verdict.subjects(report), []
    for i, stratum in enumerate(strata):
        alt = ", ".join(f"{k} {shown(v)}" for k, v in verdict.values(report, metric["name"], stratum).items())
        drawn = pl.png(pl.scores(light, stratum=stratum, legend=i == 0, return_fig=True))
        figure = picture(drawn, alt=f"{metric['name']}, {stratum}: {alt}", width=460)
        said = [_said(each, first=k == 0) for k, each in enumerate(verdict.verdicts(report, metric["name"], stratum))]
        said = said[:STRATA] + ([fold(f"{len(said) - STRATA} more", *said[STRATA:])] if said[STRATA:] else [])
        said += [tag("p", s, class_="said") for s in verdict.of_the_rest(report, metric["name"], stratum)]
        blocks.append(tag("div", figure, tag("div", *said), class_="pair") if open_ or len(strata) == 1 else tag("div", figure, *said))
    notes = (
        f"{metric['name']}: {metric['what']}. Grey are nulls, which see no pixel and nothing of what is to be predicted, and audits, which are given a part "
        "of the truth; neither is a result. Intervals are 95 %, donors drawn again; differences are taken on the same sections, seeds averaged first."
    )
    if few == 1:
        notes += " There is one donor, so there is no interval, and nothing is known of other donors."
    elif few < verdict.FEW:
        notes += (
            f" An interval over {few} donors is rough, and usually too narrow: better and worse are said only where every donor agrees."
        )
    cards = blocks[:STRATA] if open_ or len(strata) == 1 else [tag("div", *blocks[:STRATA], class_="pair")]
    closed = fold(f"{len(blocks) - STRATA} more: {'; '.join(strata[STRATA:])}", *blocks[STRATA:]) if blocks[STRATA:] else Html()
    what = next((f"Where the {PLURAL[m['role']]} stand" for m in report.data["methods"] if m["name"] in open_), "What zero pixels score")
    return join(tag("h2", what), tag("p", notes, class_="soft"), *cards, closed)


def _said(found: verdict.Verdict, *, first: bool) -> Html:
    rows = [
        [
            join(c.other, " ", _role(c.role)),
            shown(c.other_value),
            join(signed(c.difference), *([tag("small", f"{signed(c.low)} to {signed(c.high)}")] if np.isfinite(c.low) else [])),
            f"{c.ahead} of {c.n_donors}",
        ]
        for c in found.comparisons
    ]
    head = ("against", "its score", "difference", "donors ahead")
    looks = {verdict.ABOVE: "bad", verdict.WORSE: "bad", verdict.EVEN: "even", verdict.BETTER: "good"}
    said: list[Html] = []
    for i, (words, text) in enumerate(found.clauses):
        said.append(join("; it " if i else " ", tag("strong", words, class_=looks[words]), f" {text}"))
    sentence = tag(
        "p",
        tag("strong", found.method),
        f" ({shown(found.value)})",
        *(said or [join(" stands alone: there is nothing to hold it against")]),
        ".",
        class_="said",
    )
    remarks = tag("p", " ".join(found.remarks), class_="soft")
    return join(sentence, remarks, fold("differences on the same sections", table(head, rows), open_=first) if rows else Html())


def _metrics(report: Report, strata: Sequence[str]) -> Html:
    """Return methods by metrics, each stratum, and what the metrics are."""
    d = report.data
    entries = {(s["method"], s["stratum"], s["metric"]): s for s in d["summary"]}
    out, tables = [tag("h2", "All metrics")], []
    head = [join(_broken(m["name"]), "" if m["more_is_better"] else " ↓") for m in d["metrics"]]
    for stratum in strata:
        columns = [i for i, m in enumerate(d["metrics"]) if any((x["name"], stratum, m["name"]) in entries for x in d["methods"])]
        top = ["", *(tag("th", head[i], scope="col", **_flat(d["metrics"][i])) for i in columns)]
        rows = []
        for m in d["methods"]:
            cells = [entries.get((m["name"], stratum, d["metrics"][i]["name"])) for i in columns]
            if any(cells):
                rows.append(
                    [
                        join(m["name"], " ", _role(m["role"])),
                        *(_cell(c, _flat(d["metrics"][i])) for c, i in zip(cells, columns, strict=True)),
                    ]
                )
        tables.append(join(*([tag("h3", stratum)] if stratum else []), table(top, rows, class_="grid")))
    out += tables[:STRATA] + (
        [fold(f"{len(tables) - STRATA} more: {'; '.join(strata[STRATA:])}", *tables[STRATA:])] if tables[STRATA:] else []
    )
    out.append(tag("p", "Small: interval over donors. ↓: less is better. Hatched: flatters, never to be quoted alone.", class_="soft"))
    told = [
        [
            join(m["name"], *([" ", tag("span", "flatters", class_="tag flatters")] if flatters(m) else [])),
            m["what"].removeprefix("flatters: "),
        ]
        for m in d["metrics"]
    ]
    out.append(fold("What the metrics are", table(("metric", "what it is"), told)))
    return join(*out)


def _cell(entry: Mapping[str, Any] | None, look: Mapping[str, str]) -> Html:
    if entry is None:
        return tag("td", "–", **look)
    small = [tag("small", f"[{shown(entry['low'])}, {shown(entry['high'])}]")] if entry["low"] is not None else []
    return tag("td", shown(entry["value"]), *small, **look)


def _flat(metric: Mapping[str, Any]) -> dict[str, str]:
    return {"class_": "flatters"} if flatters(metric) else {}


def flatters(metric: Mapping[str, Any]) -> bool:
    """Return whether a metric says of itself that it flatters."""
    return str(metric["what"]).startswith("flatters")


def _donors(report: Report, strata: Sequence[str]) -> Html:
    """Return the headline by donor, and by fold where folds are not the donors."""
    d, parts = report.data, []
    for stratum in strata:
        found = {s["method"]: s for s in d["summary"] if (s["metric"], s["stratum"]) == (report.headline, stratum)}
        names = [m["name"] for m in d["methods"] if m["name"] in found]
        for key, what in (("by_donor", "donor"), ("by_fold", "fold")):
            units = list(dict.fromkeys(u for n in names for u in found[n][key]))
            if len(units) < 2 or (key == "by_fold" and set(units) == {u for n in names for u in found[n]["by_donor"]}):
                continue
            most = max((abs(v) for n in names for v in found[n][key].values() if v is not None), default=0.0) or 1.0
            rows = [[u, *(_tinted(found[n][key].get(u), most) for n in names)] for u in units]
            title = f"by {what}" + (f", {stratum}" if stratum else "") + f" ({len(units)})"
            parts.append(fold(title, table([what, *names], rows, class_="grid"), open_=not parts and len(units) <= OPEN))
    return join(tag("h2", f"{report.headline} of single donors"), *parts) if parts else Html()


def _tinted(value: float | None, most: float) -> Html:
    if value is None:
        return tag("td", "–")
    return tag("td", shown(value), class_="tint minus" if value < 0 else "tint", style=f"--t:{abs(value) / most:.2f}")


def _genes(report: Report, light: Mapping[str, Any], strata: Sequence[str]) -> Html:
    """Return genes against their ceiling and against the best null or audit, for the best methods."""
    from stimg import pl

    details = light["details"]
    if not {"gene", "r"} <= set(details):
        return Html()
    roles = {m["name"]: m["role"] for m in report.data["methods"]}
    keys = list(report.data["protocol"]["strata"])
    out = [tag("h2", "Genes")]
    for stratum in strata[:DRAWN]:
        own = details
        if keys:
            first, *others = (details[key].astype(str) for key in keys)
            own = details[first.str.cat(others, sep=", ") == stratum]
        if own.empty:  # a stratum that is scored, and has no genes of its own
            continue
        scored = verdict.values(report, report.headline, stratum)
        blind = [n for n in scored if roles[n] in ("null", "audit")]
        for name in [n for n in scored if n in verdict.subjects(report)][:DRAWN] or blind[:DRAWN]:
            other = next((n for n in blind if n != name), None)
            against = (["noise ceiling"] if "ceiling" in details else []) + ([other] if other is not None else [])
            found = _by_gene(own, name, against)
            alts = [f"r of each gene by {name} against {a}, {stratum}" for a in against]
            drawn = [pl.png(pl.gene_scores(light, method=name, against=a, stratum=stratum, return_fig=True)) for a in against]
            out += [tag("h3", join(name, f", {stratum}" if stratum else "")), tag("p", _gene_words(found, name, other, roles))]
            told = [
                "A dot is a gene. "
                + (
                    "On the dashed line it is as good as noise allows."
                    if a == "noise ceiling"
                    else f"Below the dashed line {a!r} is better."
                )
                for a in against
            ]
            out.append(
                tag("div", *(picture(p, alt=a, caption=c, width=440) for p, a, c in zip(drawn, alts, told, strict=True)), class_="pair")
            )
            out.append(fold(f"the {GENES} genes with the highest r, and the {GENES} with the lowest", _gene_rows(found, against)))
    if len(strata) > DRAWN or len(verdict.subjects(report)) > DRAWN:
        out.append(tag("p", tag("code", "stimg.pl.gene_scores(report, method=..., stratum=...)"), " draws the others.", class_="soft"))
    return join(*out) if len(out) > 1 else Html()


def _by_gene(details: pd.DataFrame, name: str, against: Sequence[str]) -> pd.DataFrame:
    """Return for each gene the mean r of a method over seeds and sections, and what it is held against; highest r first."""
    values = details.assign(r=details["r"].astype(np.float64).fillna(0.0))
    own = values[values["method"] == name].groupby("gene")
    out = own.agg(r=("r", "mean"), undefined=("undefined", "all"))
    for each in against:
        out[each] = own["ceiling"].mean() if each == "noise ceiling" else values[values["method"] == each].groupby("gene")["r"].mean()
    return out.sort_values("r", ascending=False, kind="stable")


def _gene_words(found: pd.DataFrame, name: str, other: str | None, roles: Mapping[str, str]) -> str:
    parts = []
    if other in found:
        parts.append(
            f"{name!r} is better than the {roles[other]} {other!r} on {int((found['r'] > found[other]).sum())} of {plural(len(found), 'gene')}."
        )
    parts.append(
        f"r is below 0 for {plural(int((found['r'] < 0).sum()), 'gene')}, and undefined in every section for {int(found['undefined'].sum())}."
    )
    return " ".join(parts)


def _gene_rows(found: pd.DataFrame, against: Sequence[str]) -> Html:
    ends = found if len(found) <= 2 * GENES else pd.concat([found.head(GENES), found.tail(GENES)])
    rows = [
        [str(gene), shown(row["r"]) + (" (undefined)" if row["undefined"] else ""), *(shown(row[a]) for a in against)]
        for gene, row in ends.iterrows()
    ]
    return table(["gene", "r", *against], rows)


def _cases(report: Report) -> Html:
    """Return the worst cases of the best methods as maps, the best ones beside them."""
    from stimg import pl

    kept = {m["method"] for m in report.data["maps"]}
    stratum = next(iter(s["stratum"] for s in report.data["summary"]), "")
    wanted = [n for n in verdict.values(report, report.headline, stratum) if n in kept and n in verdict.subjects(report)][:DRAWN]
    out = []
    for name in wanted:
        drawn = {
            k: pl.png(pl.score_maps(report, method=name, n=CASES, best=k == "best", return_fig=True), dpi=120) for k in ("worst", "best")
        }
        out.append(tag("h3", name))
        each = [
            tag("div", tag("p", f"the {k} of the kept cases", class_="soft"), picture(p, alt=f"maps of the {k} cases of {name}", width=440))
            for k, p in drawn.items()
        ]
        out.append(tag("div", *each, class_="pair"))
    if not out:
        return Html()
    lead = "Genes of single sections with the lowest r among those that the report keeps of each fold, and for contrast those with the highest; truth and prediction share one colour scale."
    return join(tag("h2", "Worst cases"), tag("p", lead, class_="soft"), *out)


def _methods(d: Mapping[str, Any]) -> Html:
    rows = [[join(m["name"], " ", _role(m["role"])), m["what"], plural(len(m["seeds"]), "seed")] for m in d["methods"]]
    told = tag("ul", *(tag("li", _role(r), f" {what}") for r, what in ROLES.items() if any(m["role"] == r for m in d["methods"])))
    return join(tag("h2", "Methods"), told, table(("method", "what it does", "run for"), rows))


def _ledger(d: Mapping[str, Any]) -> Html:
    """Return what each method is known to have seen."""
    rows = []
    for m in d["methods"]:
        own = [e for e in d["ledger"] if e["method"] == m["name"]]
        leaks = {leak: [e["fold"] for e in own if leak in e["leaks"]] for e in own for leak in e["leaks"]}
        found = tag("ul", *(tag("li", f"{leak} (fold {listed(sorted(set(folds)))})") for leak, folds in leaks.items())) if leaks else "none"
        silent = sorted({name for e in own for name in e["silent"]})
        rows.append([m["name"], listed(silent) if silent else "–", found])
    return fold("what each method has seen", table(("method", "does not say what it has seen", "test data seen"), rows))


def _cost(d: Mapping[str, Any]) -> Html:
    rows = []
    for m in d["methods"]:
        own = [c for c in d["cost"] if c["method"] == m["name"]]
        wall, cpu = sum(c["seconds"] for c in own), sum(c["processor_seconds"] for c in own)
        peak = max((c["peak_mb"] for c in own if c["peak_mb"] is not None), default=None)
        rows.append(
            [
                m["name"],
                str(len(own)),
                seconds(wall),
                seconds(wall / max(len(own), 1)),
                seconds(cpu),
                "–" if peak is None else f"{peak:,.0f} MB",
            ]
        )
    head = ("method", "runs", "time", "time a run", "processor time", "peak memory")
    note = "Time to fit and predict, without scoring. Memory is the largest of the whole process up to the end of that method, so it never falls from one to the next."
    return fold("time and memory", table(head, rows), tag("p", note, class_="soft"))


def _data(d: Mapping[str, Any]) -> Html:
    sections = [[s["library"], s["donor"], f"{s['n_obs']:,}", f"{s['n_genes']:,}", tag("code", str(s["content"]))] for s in d["sections"]]
    folds = [[f["name"], ", ".join(f["train"]) or "–", ", ".join(f["test"])] for f in d["split"]["folds"]]
    parts = [
        fold(plural(len(sections), "section"), table(("section", "donor", "observations", "genes", "hash of its counts"), sections)),
        fold(plural(len(folds), "fold"), table(("fold", "trained on", "tested on"), folds)),
    ]
    notes: dict[tuple[str, str], list[str]] = {}
    for each in d.get("notes", ()):
        text = json.dumps(each["notes"], ensure_ascii=False)
        notes.setdefault((each["method"], text), []).append(f"{each['fold']} (seed {each['seed']})")
    if notes:
        rows = [[method, ", ".join(where), tag("code", text)] for (method, text), where in notes.items()]
        parts.append(fold("what the methods noted", table(("method", "fold", "note"), rows)))
    return join(*parts)


def _repeat(d: Mapping[str, Any]) -> Html:
    seeds = max((m["seeds"] for m in d["methods"]), key=len, default=[0])
    models = [m["name"] for m in d["methods"] if m["role"] == "model"]
    given = ["data"] + ([f"methods={{{', '.join(f'{m!r}: ...' for m in models)}}}"] if models else []) + [f"seeds={list(seeds)}"]
    given += ["allow_leakage=True"] if any(s.startswith("LEAKAGE") for s in d["stamps"]) else []
    code = f"import stimg\n\nreport = stimg.bench.run({d['protocol']['name']!r}, {', '.join(given)})\n"
    code += f"assert report.data['protocol']['hash'] == {d['protocol']['hash']!r}\nassert report.data['split']['hash'] == {d['split']['hash']!r}\n"
    note = "The same protocol hash, split hash and seeds give the same numbers. `data` holds the sections above; the numbers behind this page are in report.json."
    versions = {**d["software"], **{k: str(v) for k, v in d["machine"].items()}}
    return join(
        tag("h2", "How to repeat it"), tag("p", _coded(note)), tag("pre", tag("code", code)),
        fold("software and machine", table(("", ""), list(versions.items()))),
    )  # fmt: skip


def _broken(name: str) -> Html:
    """Return a name that may be broken after its underscores."""
    return Html("_<wbr>".join(tag("span", word) for word in name.split("_")))


def _coded(text: str) -> Html:
    """Return a text whose words between backticks are code."""
    return join(*(tag("code", part) if i % 2 else part for i, part in enumerate(text.split("`"))))


def _role(role: str) -> Html:
    return tag("span", role, class_=f"tag {role}")


def signed(value: float) -> str:
    """Return a difference with its sign."""
    text = shown(value)
    return text if text.startswith("-") or float(value) == 0 else f"+{text}"


def seconds(value: float) -> str:
    """Return a time in the unit in which it is read."""
    return (
        f"{value / 3600:.1f} h"
        if value >= 7200
        else f"{value / 60:.1f} min"
        if value >= 120
        else f"{value:.2f} s"
        if value < 10
        else f"{value:.0f} s"
    )


def plural(n: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def listed(names: Iterable[str]) -> str:
    """Return names with commas and "and"."""
    *first, last = list(names) or [""]
    return f"{', '.join(first)} and {last}" if first else last
