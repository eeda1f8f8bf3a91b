"""Shared by the benchmark scripts: options, results, tables."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def save(name: str, protocol: Mapping[str, Any], values: Any) -> Path:
    """Write ``benchmarks/results/<name>.json`` with protocol, values and versions."""
    RESULTS.mkdir(exist_ok=True)
    versions = {p: version(p) for p in ("stimg", "numpy", "torch", "scvi-tools", "anndata")}
    path = RESULTS / f"{name}.json"
    path.write_text(
        json.dumps(
            {"protocol": protocol, "versions": versions, "machine": platform.processor() or platform.machine(), "values": values}, indent=1
        )
    )
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row) + " |" for row in rows])


def options_of(texts: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (fields of STMAEOptions, arguments of train) from texts such as ``n_latent=32`` or ``train.lr=0.001``."""
    options: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for text in texts:
        key, value = text.split("=", 1)
        (training if key.startswith("train.") else options)[key.removeprefix("train.")] = _value(value)
    return options, training


def _value(text: str) -> Any:
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    if "," in text:
        return tuple(_value(part) for part in text.split(",") if part)
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
