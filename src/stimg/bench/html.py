"""Pages that show results: everything inside, nothing fetched from anywhere, no script; light and dark, narrow and printed."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5b5b5b; --line: #d9d9d9; --ground: #fff; --box: #f5f5f4;
  --model: #0072b2; --rival: #b84a00; --bad: #a3002c; --bad-ground: #fdecef; --good: #00684a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a6a6a6; --line: #3d3d3d; --ground: #161616; --box: #222;
  --model: #5db5e8; --rival: #f08a45; --bad: #ff8fa6; --bad-ground: #3a1219; --good: #5fcfa6; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink); background: var(--ground);
  overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.2; } h1 { margin: 0 0 .5rem; } h3 { margin: 1.5rem 0 .5rem; }
h2 { margin-top: 2.75rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
p { max-width: 46rem; } figure { margin: 1rem 0; } figcaption, small, .soft { color: var(--soft); } figcaption { font-size: .9rem; max-width: 46rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { border-bottom: 1px solid var(--line); padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
thead th { vertical-align: bottom; border-bottom-width: 2px; line-height: 1.25; } tbody th { font-weight: inherit; }
pre { background: var(--box); padding: .8rem; overflow-x: auto; border-radius: 4px; } code { font-size: .9em; overflow-wrap: anywhere; }
details { margin: .75rem 0; } summary { cursor: pointer; }
@media (max-width: 36rem) { body { font-size: 15px; margin: 1rem auto; } }
@media print { body { font-size: 11px; max-width: none; margin: 0; } h2, h3, h3 + p { break-after: avoid; } tr, figure, .box { break-inside: avoid; }
  .scroll { overflow: visible; } details::details-content { content-visibility: visible; height: auto; } }
"""


class Html(str):
    """Text that is HTML already; every other text is escaped when it becomes part of a page."""


def tag(name: str, /, *children: str, **attributes: str) -> Html:
    """Return an element; children and attributes are escaped, except children made by this function. ``class_`` stands for ``class``."""
    inside = "".join(child if isinstance(child, Html) else escape(child) for child in children)
    given = "".join(f' {key.rstrip("_")}="{escape(value, quote=True)}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>" + ("" if name in ("img", "meta") else f"{inside}</{name}>"))


def join(*parts: str) -> Html:
    """Return parts one after the other, escaped where they are not HTML."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], **attributes: str) -> Html:
    """Return a table with a heading line, whose rows begin with their name; wide ones are scrolled. Cells made by ``tag("td", ...)`` stay."""
    top = tag(
        "thead", tag("tr", *(each if each.startswith("<th") and isinstance(each, Html) else tag("th", each, scope="col") for each in head))
    )
    lines = []
    for first, *others in rows:
        cells = (each if isinstance(each, Html) and each.startswith("<td") else tag("td", each) for each in others)
        lines.append(tag("tr", tag("th", first, scope="row"), *cells))
    return tag("div", tag("table", top, tag("tbody", *lines), **attributes), class_="scroll")


def fold(summary: str, *children: str, open_: bool = False) -> Html:
    """Return a part of the page that can be closed, and is so until it is asked for."""
    return tag("details", tag("summary", summary), *children, **({"open": ""} if open_ else {}))


def picture(png: bytes, *, alt: str, caption: str = "", width: int | None = None) -> Html:
    """Return a figure with a PNG inside, ``width`` pixels wide where there is room."""
    data = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    size = {} if width is None else {"width": str(width)}
    return tag("figure", tag("img", alt=alt, src=data, **size), *([tag("figcaption", caption)] if caption else []))


def document(title: str, *body: str, style: str = "") -> str:
    """Return a whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        Html(f"<style>{STYLE}{style}</style>"),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


@dataclass
class Section:
    """One part of the page: a heading, paragraphs, a table of two columns, pictures with captions, a block of code."""

    title: str
    paragraphs: Sequence[str] = ()
    table: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[Path, str] = field(default_factory=dict)
    code: str = ""


def _section(section: Section) -> Html:
    parts = [tag("h2", section.title), *(tag("p", text) for text in section.paragraphs)]
    if section.table:
        parts.append(tag("table", *(tag("tr", tag("th", name), tag("td", value)) for name, value in section.table.items())))
    parts += [picture(path.read_bytes(), alt=caption, caption=caption) for path, caption in section.figures.items()]
    if section.code:
        parts.append(tag("pre", tag("code", section.code)))
    return join(*parts)


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML; PNG files named in the sections are read and embedded."""
    return document(title, tag("h1", title), tag("p", lead), *(_section(section) for section in sections))
