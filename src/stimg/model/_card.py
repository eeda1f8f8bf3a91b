"""The model card that lies beside saved weights: what the model read, on whose data, under which licence, and how it scored."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stimg._core import hashing
from stimg._core.ledger import Seen

NAME = "README.md"
SHOWN = 12
"""Names that are listed before "and so on"."""
UNKNOWN = "not stated"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(v) for v in value) or "none"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(_cell(v) for v in row) + " |" for row in rows])


def _few(names: Sequence[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in names[:SHOWN])
    return listed + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "") if names else "none"


def _seen(ledger: Sequence[Seen]) -> str:
    def digest(seen: Seen) -> str:
        return hashing.of_array(seen.contents if len(seen.contents) else seen.ids)

    rows = [(f"{s.kind} {s.who}", len(s), _few(s.libraries), _few(s.donors), f"`{digest(s)}`") for s in ledger]
    return _table(("what has seen", "observations", "libraries", "donors", "hash of them"), rows)


def _inputs(facts: Mapping[str, Any]) -> str:
    """Return the table of the embeddings and tiles that a model reads."""
    rows = []
    for key, width in facts.get("widths", {}).items():
        source, about = facts.get("sources", {}).get(key, {}), facts.get("about", {}).get(key, {})
        commercial = {True: "allowed", False: "not allowed"}.get(about.get("commercial"), UNKNOWN)
        rows.append(
            (
                f"`{key}`",
                width,
                source.get("encoder", source.get("verb", UNKNOWN)),
                source.get("mpp", UNKNOWN),
                source.get("tile_um", UNKNOWN),
                source.get("fields", UNKNOWN),
                about.get("licence", UNKNOWN),
                commercial,
            )
        )
    header = ("input", "columns", "made by", "µm per pixel", "side in µm", "fields", "licence of the weights", "commercial use")
    return _table(header, rows)


def _scores(scores: Mapping[str, Any]) -> str:
    if not scores:
        return "None were attached (`model.scores_`)."
    rows = [
        (protocol, metric, value)
        for protocol, found in scores.items()
        for metric, value in (found.items() if isinstance(found, Mapping) else [("score", found)])
    ]
    return _table(("protocol", "metric", "value"), rows)


def card(model: Any, record: Mapping[str, Any], *, limits: Sequence[str] = ()) -> str:
    """Return the model card as Markdown.

    Parameters
    ----------
    model
        A trained model of stimg.
    record
        What is saved of it as JSON.
    limits
        What it cannot do, one sentence each.
    """
    name, fit, genes = record["class"], record["fit"], list(record.get("genes", ()))
    parts = [f"# {name}", getattr(model, "_model_summary_string", ""), f"Written by stimg {record['version']}."]
    parts.append(f'```python\nimport stimg\n\nmodel = stimg.model.{name}.load("<this folder>")\n```')
    if "facts" in record:
        parts += ["## Inputs", _inputs(record["facts"])]
    if genes:
        parts += ["## Genes", f"{len(genes)}, hash of the list `{record['genes_hash']}`: {_few(genes)}. All are in `model.json`."]
    parts += [
        "## Data",
        _seen(model.ledger),
        "The data are not in this folder. The last row is what the model itself was trained on or stopped by.",
    ]
    last = {curve: values["value"][fit["best_epoch"]] for curve, values in record["history"].items() if _has(values, fit["best_epoch"])}
    best = (
        f"best epoch {fit['best_epoch']}, by {fit['monitor']}" if fit["best_epoch"] >= 0 else "without validation, the last epoch was kept"
    )
    parts += ["## Training", f"{model.epochs()} epochs, {best}."]
    if last:
        parts.append(_table(("curve", "at the best epoch"), list(last.items())))
    parts += ["### Options", _table(("option", "value"), [(k, v) for k, v in record["options"].items()])]
    parts += ["## Scores", _scores(record.get("scores", {}))]
    if limits:
        parts += ["## Limits", "\n".join(f"- {limit}" for limit in limits)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _has(values: Mapping[str, Any], epoch: int) -> bool:
    return 0 <= epoch < len(values["value"]) and bool(np.isfinite(values["value"][epoch]))
