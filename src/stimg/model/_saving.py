"""A saved model: tensors as safetensors, everything else as JSON. Nothing is ever unpickled."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from stimg._core import files

FORMAT = 2
TENSORS, RECORD = "model.safetensors", "model.json"
FIELDS = ("sha256", "options", "genes", "genes_hash", "setup", "registry", "history", "ledger", "fit")
"""What every record has; classes add their own."""
AGAIN = "Save the model again, or copy the folder anew."


def jsonable(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: arrays, numpy scalars and tuples become lists and numbers."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | pd.Index | pd.Series):
        return [jsonable(v) for v in value.tolist()]
    if isinstance(value, list | tuple | set):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def write(
    directory: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any], *, overwrite: bool, texts: Mapping[str, str] | None = None
) -> None:
    """Write a model folder, whole or not at all; ``texts`` are further files by name."""
    from safetensors import torch as safetensors

    with files.replacing(directory, overwrite=overwrite, directory=True) as temporary:
        whole_tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        (temporary / TENSORS).write_bytes(safetensors.save(whole_tensors))  # written here, so that a full disk is an OSError
        whole = {"format": FORMAT, "sha256": _digest(temporary / TENSORS), **jsonable(record)}
        (temporary / RECORD).write_text(json.dumps(whole, indent=1), encoding="utf-8")
        for name, text in (texts or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(directory: Path, class_name: str, fields: Iterable[str] = ()) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and record of a model folder; every kind of damage is an error that names the file. ``fields`` are those of the class."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (RECORD, TENSORS):
        if not (directory / name).is_file():
            found = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else "no such folder"
            raise FileNotFoundError(f"{directory / name} is missing (found {found}). Pass the folder that `save` wrote.")
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"{directory / RECORD} is damaged ({err}). {AGAIN}") from err
    if not isinstance(record, dict):
        raise ValueError(f"{directory / RECORD} holds a {type(record).__name__}; wanted the record of a model. {AGAIN}")
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{directory} has format {record.get('format')!r}; this version of stimg reads {FORMAT}. Install the version that wrote it ({record.get('version')})."
        )
    if record.get("class") != class_name:
        raise ValueError(
            f"{directory} holds a {record.get('class')}; wanted a {class_name}. Load it with `stimg.model.{record.get('class')}.load`."
        )
    missing = [name for name in (*FIELDS, *fields) if name not in record]
    if missing:
        raise ValueError(f"{directory / RECORD} is damaged: it lacks {missing}. {AGAIN}")
    if _digest(directory / TENSORS) != record["sha256"]:
        raise ValueError(f"{directory / TENSORS} is damaged, or not the file that {RECORD} was written with. {AGAIN}")
    try:
        tensors = load_file(directory / TENSORS)
    except SafetensorError as err:
        raise ValueError(f"{directory / TENSORS} is damaged ({err}). {AGAIN}") from err
    return tensors, record
