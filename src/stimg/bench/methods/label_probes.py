"""Nulls for probes of known regions that need more than counts and coordinates, or nothing at all."""

from collections.abc import Mapping

import numpy as np

from stimg._core import keys
from stimg.bench.method import method
from stimg.bench.protocols.domains import EmbeddingTask

KINDS = ("labels",)


@method("commonest region", kinds=KINDS, role="null")
def commonest_region(task: EmbeddingTask, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """One constant number, so that a probe answers with the commonest training region throughout."""
    return {name: np.zeros((a.n_obs, 1)) for name, a in task.asked().items()}


@method("colour of the spot", kinds=KINDS, role="rival", needs=(keys.COLOUR,))
def colour(task: EmbeddingTask, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Colour statistics of the image around the spot (`obsm["X_stimg_colour"]`), less the mean of the section: what an image encoder has to beat."""
    found = {name: np.asarray(a.obsm[keys.COLOUR], dtype=np.float64) for name, a in task.asked().items()}
    return {name: values - values.mean(axis=0) for name, values in found.items()}
