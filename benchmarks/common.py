"""Shared by the benchmark scripts: loading, scores, tables."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
HER2ST = {
    "B": ["B1", "B2", "B3", "B4", "B5", "B6"],
    "C": ["C1", "C2", "C3", "C4", "C5"],
    "D": ["D1", "D2", "D3", "D4", "D5", "D6"],
    "E": ["E1", "E2", "E3"],
}


def per_gene_pearson(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return Pearson's r of each column (n_obs, genes); 0 where it is not defined (a constant)."""
    p, t = predicted - predicted.mean(0), truth - truth.mean(0)
    scale = np.sqrt((p * p).sum(0) * (t * t).sum(0))
    return np.divide((p * t).sum(0), scale, out=np.zeros(p.shape[1]), where=scale > 1e-12)


def log_cp10k(counts: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return log1p counts per 10,000 of ``depth`` (n_obs,)."""
    return np.log1p(1e4 * counts / np.maximum(depth, 1)[:, None])


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
