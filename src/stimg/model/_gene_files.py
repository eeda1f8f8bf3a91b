"""A saved gene encoder: numbers as safetensors, all else as JSON."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from stimg.model import _kept, _saving
from stimg.model._gene_latent import SETTINGS, LatentMap
from stimg.model._gene_maps import PCAMap
from stimg.model._gene_pretrained import NicheformerMap, ScFoundationMap

if TYPE_CHECKING:
    from stimg.model.gene_encoders import GeneEncoder, Map

FIELDS = ("name", "n_features", "facts")
MAPS: dict[str, Any] = {"nicheformer": NicheformerMap, "scfoundation": ScFoundationMap}


def save(encoder: "GeneEncoder", directory: Path, *, overwrite: bool) -> None:
    """Write an encoder, whole or not at all."""
    arrays = {f"map.{name}": np.asarray(value) for name, value in encoder.map.arrays().items()}
    arrays |= _kept.ledger_arrays(encoder.ledger)
    if isinstance(encoder.map, LatentMap):
        facts = {"batches": encoder.map.batches, "scvi-tools": version("scvi-tools")}
    else:
        facts = {} if isinstance(encoder.map, PCAMap) else encoder.map.facts()
    record = _kept.record_of(
        encoder, options=encoder.settings, fit=encoder.identity(), name=encoder.name, n_features=encoder.n_features, facts=facts
    )
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
    _saving.write(directory, tensors, record, overwrite=overwrite)


def load(directory: Path) -> "GeneEncoder":
    """Return an encoder; every kind of damage is an error that names the file."""
    from stimg.model.gene_encoders import GeneEncoder

    tensors, record = _saving.read(directory, "GeneEncoder", FIELDS)
    _kept.check_genes(record, directory)
    own = {name.removeprefix("map."): value.numpy() for name, value in tensors.items() if name.startswith("map.")}
    name, facts, genes, width = record["name"], record["facts"], pd.Index(record["genes"]), int(record["n_features"])
    found: Map
    try:
        if name == "pca":
            found = PCAMap.restore(own)
        elif name in MAPS:
            found = MAPS[name].restore(own, facts, directory)
        elif name not in SETTINGS:
            raise ValueError(f"{directory} holds an encoder {name!r} that this version of stimg does not know. {_saving.AGAIN}")
        else:
            found = LatentMap.restore(name, own, genes, width, facts["batches"])
        ledger = list(_kept.ledger_of(record, tensors))
    except KeyError as err:
        raise ValueError(f"{directory} lacks {err.args[0]!r}. {_saving.AGAIN}") from err
    except RuntimeError as err:
        said = str(err).splitlines()[-1].strip()
        raise ValueError(
            f"{directory}: the weights do not fit the {name} of the installed scvi-tools (written with {facts.get('scvi-tools')}): {said}. Install that "
            "version, or fit the encoder again."
        ) from err
    return GeneEncoder(name, genes, width, found, settings=record["options"], ledger=ledger)
