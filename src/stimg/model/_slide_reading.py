"""What a trained classifier says of slides, and the slides of a benchmark as one table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from stimg._core import keys, validate
from stimg.data.bags import batch_of

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.model.slide_classifier import SlideClassifier

JOINED = "X_joined"


@dataclass(frozen=True)
class SlideReading:
    """What a :class:`stimg.model.SlideClassifier` says of the slides of a table.

    Parameters
    ----------
    proba
        Probability of each class for each slide, (slides, classes), slides in sorted order.
    embedding
        Pooled embedding of each slide, (slides, n_hidden).
    attention
        Weight of every observation in its slide, float32 (n_obs,).
    contribution
        What every observation adds to the logits of its slide, float32 (n_obs, classes).
    """

    proba: pd.DataFrame
    embedding: pd.DataFrame
    attention: np.ndarray
    contribution: pd.DataFrame


@torch.inference_mode()
def read(model: "SlideClassifier", adata: "AnnData") -> SlideReading:
    """Return what ``model`` says of ``adata``, one slide after the other: memory grows with the largest slide, not with their number."""
    bags = model.bags(adata)
    classes = list(model.classes)
    model.module.eval()
    attention = np.zeros(adata.n_obs, dtype=np.float32)
    contribution = np.zeros((adata.n_obs, len(classes)), dtype=np.float32)
    answers, pooled = [], []
    for rows in bags.rows:
        batch = {name: value.to(model.device) for name, value in batch_of(bags.features, [rows]).items()}
        slide, weight = model.module.pool(batch["items"], batch["bag"], 1)
        answers.append(torch.softmax(model.module.classify(slide).double(), dim=1)[0].cpu().numpy())
        pooled.append(slide[0].float().cpu().numpy())
        attention[rows] = weight.float().cpu().numpy()
        contribution[rows] = model.module.contributions(batch["items"], batch["bag"], 1).float().cpu().numpy()
    names = pd.Index(bags.names, name=model._library_key)
    return SlideReading(
        proba=pd.DataFrame(np.stack(answers), index=names, columns=classes),
        embedding=pd.DataFrame(np.stack(pooled), index=names),
        attention=attention,
        contribution=pd.DataFrame(contribution, index=adata.obs_names, columns=classes),
    )


def joined(sections: Sequence["AnnData"], features: Sequence[str]) -> "AnnData":
    """Return the observations of several slides under each other, their features beside each other in ``obsm["X_joined"]``."""
    from anndata import AnnData

    obs = pd.concat([a.obs for a in sections])
    obs.index = [f"{library}/{name}" for library, name in zip(obs[keys.LIBRARY], obs.index, strict=True)]
    todo = "Pass it as `features` of the run."
    parts = [np.concatenate([validate.slot(a.obsm, "obsm", f, todo=todo) for f in features], axis=1) for a in sections]
    return AnnData(None, obs=obs, obsm={JOINED: np.concatenate(parts)})
