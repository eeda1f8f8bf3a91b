"""The pages that repeat what the code says: API from ``__all__``, outputs from ``SLOTS``, options from docstrings, tutorials from their folder."""

import dataclasses
import inspect
import re
import shutil
from importlib import import_module
from pathlib import Path

MODULES = {
    "pp": "Preprocessing",
    "tl": "Tools",
    "pl": "Plots",
    "model": "Models",
    "bench": "Evaluation",
    "datasets": "Datasets",
    "zoo": "Encoders",
    "metrics": "Metrics",
    "image": "Images: rasters, crops and stores",
    "image.interpolate": "Images: values between measured places",
    "data": "Data: batches of crops",
    "nn": "Networks",
    "plan": "Training plans",
}
"""Public subpackages in the order of the API page."""
NOTEBOOKS = (".ipynb", ".md")


def public_names(module: str) -> list[str]:
    """Return the sorted public names of ``stimg.<module>``."""
    return sorted(getattr(import_module(f"stimg.{module}"), "__all__", []))


def api_page(module: str, title: str) -> str:
    """Return the page of one subpackage: the first paragraph of its docstring, and a table with a page for each public name."""
    doc = (import_module(f"stimg.{module}").__doc__ or "").strip().split("\n\n")[0]
    names = public_names(module)
    table = ""
    if names:
        rows = "\n".join(f"   {module}.{name}" for name in names)
        table = f".. currentmodule:: stimg\n\n.. autosummary::\n   :toctree: objects\n   :nosignatures:\n\n{rows}\n"
    return f"# {title}: `stimg.{module}`\n\n```{{eval-rst}}\n.. module:: stimg.{module}\n\n{doc}\n\n{table}```\n"


def outputs_page() -> str:
    """Return the table of slots as Markdown."""
    from stimg._core.keys import SLOTS

    rows = ""
    for slot in SLOTS:
        where = ", ".join(f"`{name}`" for name in slot.where.split(", "))
        rows += f"| {where} | {slot.holds} | {slot.writer} |\n"
    return "| slot | holds | written by |\n|---|---|---|\n" + rows


def options_table(options: type) -> str:
    """Return the fields of a frozen dataclass as a Markdown table: names, defaults, and what its numpy docstring says of them."""
    doc = inspect.cleandoc(options.__doc__ or "").split("Parameters\n----------\n")[1]
    entries: list[tuple[list[str], list[str]]] = []
    for line in doc.splitlines():
        if line and not line.startswith(" "):
            entries.append(([name.strip() for name in line.split(",")], []))
        elif line.strip():
            entries[-1][1].append(line.strip())
    defaults = {f.name: f.default for f in dataclasses.fields(options)}
    undocumented = set(defaults).symmetric_difference(name for names, _ in entries for name in names)
    if undocumented:
        raise ValueError(f"{options.__name__}: fields and documentation differ in {sorted(undocumented)}.")
    rows = ""
    for names, text in entries:
        meaning = re.sub(r":(class|func|meth):`([^`]+)`", r"{\1}`\2`", " ".join(text)).replace("|", "\\|")
        shown = ", ".join(f"`{name}`" for name in names)
        rows += f"| {shown} | {', '.join(f'`{defaults[name]!r}`' for name in names)} | {meaning} |\n"
    return "| option | default | what |\n|---|---|---|\n" + rows


def protocols_page() -> str:
    """Return a section for each protocol: what it fixes, what a reader must know, its metrics and nulls."""
    from stimg.bench import get_protocol, list_protocols

    text = ""
    for name in list_protocols().index:
        p = get_protocol(name)
        text += f"## `{name}`\n\n{p.title[0].upper()}{p.title[1:]}.\n\n"
        text += f"*Kind*: {p.kind}. *Kept apart*: {p.level}s. *Version* {p.version}, hash `{p.hash}`. *Source*: {p.source}.\n\n"
        if p.remarks:
            text += "What to know before comparing:\n\n" + "".join(f"- {remark}\n" for remark in p.remarks) + "\n"
        text += "Always beside a model: " + ", ".join(f"*{n}*" for n in p.nulls) + ".\n\n"
        rows = "".join(f"| `{m.name}` | {m.what} | {'more' if m.more_is_better else 'less'} |\n" for m in p.metrics)
        text += f"| metric | what it says | better |\n|---|---|---|\n{rows}\n"
    return text


def methods_page() -> str:
    """Return the table of nulls, audits and rivals."""
    from stimg.bench import list_methods

    rows = "".join(f"| {name} | {row['role']} | {row['kinds']} | {row['what']} |\n" for name, row in list_methods().iterrows())
    return "| method | role | for | what |\n|---|---|---|---|\n" + rows


def encoders_page(kind: str) -> str:
    """Return the table of the cards of one kind, with their notes and citations below."""
    from stimg.zoo import get
    from stimg.zoo import list as cards

    def shown(value: object) -> str:
        return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    of_tiles = kind == "image"
    head = [
        "encoder",
        "name",
        "width",
        *(("px", "µm / px") if of_tiles else ("reads",)),
        "M parameters",
        "licence",
        "commercial",
        "gated",
        "loader",
        "hub",
    ]
    text = "| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|\n"
    notes = ""
    for name in cards(kind).index:
        c = get(name)
        middle = (c.size_px, c.mpp) if of_tiles else (c.unit,)
        cells = (c.title, f"`{name}`", c.n_features, *middle, c.parameters_m and round(c.parameters_m, 1), c.licence)
        flags = ("yes" if c.commercial else "no", "yes" if c.gated else "no", c.loader, c.repo)
        text += "| " + " | ".join(shown(value) for value in (*cells, *flags)) + " |\n"
        notes += f"- **{c.title}**: {c.notes + ' ' if c.notes else ''}*{c.citation}*\n"
    return f"{text}\n{notes}"


def copy_tutorials(source: Path, target: Path) -> list[str]:
    """Copy the notebooks of ``source`` to ``target`` where they differ, drop the others, and return their names."""
    target.mkdir(parents=True, exist_ok=True)
    notebooks = sorted(path for path in source.glob("*") if path.suffix in NOTEBOOKS and path.name != "README.md")
    for old in target.glob("*"):
        if old.name not in {path.name for path in notebooks}:
            old.unlink() if old.is_file() else shutil.rmtree(old)
    for path in notebooks:
        copy = target / path.name
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            shutil.copyfile(path, copy)
    return [path.stem for path in notebooks]


def _update(path: Path, text: str) -> None:
    """Write only what changed, so that Sphinx reads again only what it must."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def write(docs: Path) -> None:
    """Write the generated pages into ``docs/generated`` and ``docs/tutorials``."""
    for module, title in MODULES.items():
        page = docs / "generated" / f"{module}.md"
        if public_names(module):
            _update(page, api_page(module, title))
        else:
            page.unlink(missing_ok=True)
    listed = "\n".join(f"generated/{module}" for module in MODULES if public_names(module))
    _update(docs / "generated" / "_api.md", f"```{{toctree}}\n:maxdepth: 2\n\n{listed}\n```\n")
    _update(docs / "generated" / "_outputs.md", outputs_page())
    _update(docs / "generated" / "_protocols.md", protocols_page())
    _update(docs / "generated" / "_methods.md", methods_page())
    for kind in ("image", "gene"):
        _update(docs / "generated" / f"_{kind}_encoders.md", encoders_page(kind))
    from stimg.model import ImageGeneCLIPOptions, ImageMAEOptions, S2SImputerOptions, SlideClassifierOptions, STMAEOptions

    _update(docs / "generated" / "_stmae_options.md", options_table(STMAEOptions))
    _update(docs / "generated" / "_image_mae_options.md", options_table(ImageMAEOptions))
    _update(docs / "generated" / "_s2s_options.md", options_table(S2SImputerOptions))
    _update(docs / "generated" / "_slide_classifier_options.md", options_table(SlideClassifierOptions))
    _update(docs / "generated" / "_image_gene_clip_options.md", options_table(ImageGeneCLIPOptions))
    names = copy_tutorials(docs.parent / "tutorials", docs / "tutorials")
    listed = "\n".join(f"tutorials/{name}" for name in names)
    _update(docs / "generated" / "_tutorials.md", f"```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n")
