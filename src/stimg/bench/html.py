"""One HTML page that shows a folder of results: figures inside, nothing fetched from anywhere."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .9rem; }
table { border-collapse: collapse; } td, th { border-bottom: 1px solid #ddd; padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; } code { font-size: .9em; }
"""


@dataclass
class Section:
    """One part of the page: a heading, paragraphs, a table of two columns, pictures with captions, a block of code."""

    title: str
    paragraphs: Sequence[str] = ()
    table: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[Path, str] = field(default_factory=dict)
    code: str = ""


def _figure(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{escape(caption, quote=True)}" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(text)}</p>" for text in section.paragraphs]
    if section.table:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in section.table.items())
        parts.append(f"<table>{rows}</table>")
    parts += [_figure(path, caption) for path, caption in section.figures.items()]
    if section.code:
        parts.append(f"<pre><code>{escape(section.code)}</code></pre>")
    return "\n".join(parts)


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML; PNG files named in the sections are read and embedded."""
    body = "\n".join(_section(section) for section in sections)
    head = f'<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{STYLE}</style></head>'
    return f'<!doctype html>\n<html lang="en">{head}\n<body>\n<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n{body}\n</body></html>\n'
