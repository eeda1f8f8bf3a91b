"""A saved expression head: numbers as safetensors, all else as JSON, and the model behind it in a folder inside."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import stimg.model
from stimg._core import files
from stimg.model import _kept, _saving
from stimg.model._head_axes import AxesMap
from stimg.model._head_calibration import ARRAYS, Calibration
from stimg.model._head_fit import AnyMap, Fitted
from stimg.model._head_maps import RetrievalMap, RidgeMap

if TYPE_CHECKING:
    from stimg.model.expression_head import ExpressionHead

NETWORK = "network"
FIELDS = ("recipe", "calibration", "network", "n_features")


def save(head: "ExpressionHead", directory: Path, *, overwrite: bool) -> None:
    """Write a head, whole or not at all."""
    arrays = {} if head.map is None else {f"map.{name}": each for name, each in head.map.arrays().items()}
    if head.calibration is not None:
        arrays |= {f"calibration.{name}": each for name, each in head.calibration.arrays().items()}
    arrays |= _kept.ledger_arrays(head.ledger)
    record = _kept.record_of(
        head,
        options=head.options.to_dict(),
        fit=head.identity(),
        setup={"library_key": head.library_key, "layer": head.layer},
        recipe=head.recipe,
        calibration=None if head.calibration is None else head.calibration.facts(),
        network=None if head.network is None else type(head.network).__name__,
        n_features=head.n_features,
    )
    with files.replacing(directory, overwrite=overwrite, directory=True) as whole:
        _saving.write(whole, {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}, record, overwrite=True)
        if head.network is not None:
            head.network.save(str(whole / NETWORK))


def load(directory: Path) -> "ExpressionHead":
    """Return a head; every kind of damage is an error that names the file."""
    from stimg.model.expression_head import ExpressionHead
    from stimg.model.head_options import ExpressionHeadOptions

    tensors, record = _saving.read(directory, "ExpressionHead", FIELDS)
    _kept.check_genes(record, directory)
    arrays = {name: each.numpy() for name, each in tensors.items()}
    options = ExpressionHeadOptions.from_dict(record["options"])
    try:
        map_, calibration = _map(options.kind, _under(arrays, "map.")), None
        if record["calibration"] is not None:
            own = _under(arrays, "calibration.")
            calibration = Calibration.restore({name: own[name] for name in ARRAYS}, record["calibration"])
        ledger = list(_kept.ledger_of(record, arrays))
    except KeyError as err:
        raise ValueError(f"{directory / _saving.TENSORS} lacks {err.args[0]!r}. {_saving.AGAIN}") from err
    network = None
    if record["network"] is not None:
        network = getattr(stimg.model, record["network"]).load(str(directory / NETWORK))
    return ExpressionHead(
        options,
        record["genes"],
        Fitted(map_, calibration, int(record["n_features"])),
        ledger=ledger,
        recipe=record["recipe"],
        library_key=record["setup"]["library_key"],
        layer=record["setup"]["layer"],
        network=network,
    )


def _under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): each for name, each in arrays.items() if name.startswith(prefix)}


def _map(kind: str, arrays: Mapping[str, Any]) -> AnyMap | None:
    if kind == "trained":
        return None
    maps: dict[str, type[AnyMap]] = {"ridge": RidgeMap, "axes": AxesMap, "retrieval": RetrievalMap}
    return maps[kind].from_arrays(arrays)
