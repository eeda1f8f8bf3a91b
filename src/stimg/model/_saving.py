"""A saved model: tensors as safetensors, everything else as JSON. Nothing is ever unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from stimg._core import files

FORMAT = 1
TENSORS, RECORD = "model.safetensors", "model.json"


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


def write(directory: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any], *, overwrite: bool) -> None:
    """Write a model folder, whole or not at all."""
    from safetensors.torch import save_file

    with files.replacing(directory, overwrite=overwrite, directory=True) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / TENSORS)
        (temporary / RECORD).write_text(json.dumps({"format": FORMAT, **jsonable(record)}, indent=1))


def read(directory: Path, class_name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and record of a model folder; every kind of damage is an error that names the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (RECORD, TENSORS):
        if not (directory / name).is_file():
            found = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else "no such folder"
            raise FileNotFoundError(f"{directory / name} is missing (found {found}). Pass the folder that `save` wrote.")
    try:
        record = json.loads((directory / RECORD).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"{directory / RECORD} is damaged ({err}). Save the model again.") from err
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{directory} has format {record.get('format')!r}; this version of stimg reads {FORMAT}. Install the version that wrote it ({record.get('version')})."
        )
    if record.get("class") != class_name:
        raise ValueError(
            f"{directory} holds a {record.get('class')}; wanted a {class_name}. Load it with `stimg.model.{record.get('class')}.load`."
        )
    try:
        tensors = load_file(directory / TENSORS)
    except SafetensorError as err:
        raise ValueError(f"{directory / TENSORS} is damaged ({err}). Save the model again.") from err
    return tensors, record
