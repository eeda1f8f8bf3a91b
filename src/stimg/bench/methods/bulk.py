"""Nulls, audits and a linear rival for bulk expression of samples."""

from collections.abc import Mapping

import numpy as np

from stimg._core import keys
from stimg.bench.cohorts import SLIDE, grouped
from stimg.bench.method import Prediction, method
from stimg.bench.protocol import Hidden, Task
from stimg.data.ledger import recall
from stimg.metrics import embedding_ridge
from stimg.metrics._ridge import PENALTIES

KINDS = ("bulk",)
INNER = 5
"""Groups of training samples among which the penalty is chosen."""


@method("mean of training samples", kinds=KINDS, role="null")
def training_mean(task: Task, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Mean of the training samples for every sample: r is 0 by definition, and what correlates between samples all the same is in `sample_r`."""
    mean = task.target(task.train[0]).mean(axis=0)
    return {name: np.tile(mean, (a.n_obs, 1)) for name, a in task.asked().items()}


@method("subtype mean", kinds=KINDS, role="audit")
def subtype_mean(task: Task, rng: np.random.Generator, hidden: Hidden) -> Prediction:
    """Mean of the training samples of the same subtype, which is read from the test samples; of all where it is not known."""
    train = task.train[0]
    values, out = task.target(train), {}
    known = train.obs["subtype"].to_numpy(dtype=object) if "subtype" in train.obs else np.full(train.n_obs, None)
    for name, obs in hidden.extra["obs"].items():
        own = obs["subtype"] if "subtype" in obs else [None] * len(obs)
        same = [known == s for s in own]
        out[name] = np.stack([values[m].mean(axis=0) if m.any() else values.mean(axis=0) for m in same])
    return Prediction(out, notes={"subtypes known": "subtype" in train.obs})


@method("site mean", kinds=KINDS, role="audit")
def site_mean(task: Task, rng: np.random.Generator, hidden: Hidden) -> Mapping[str, np.ndarray]:
    """Mean of the true values of the samples of the same site (or donor), its own among them: what knowing the site gives away."""
    return {name: np.tile(truth.mean(axis=0), (len(truth), 1)) for name, truth in hidden.truth.items()}


@method("another sample", kinds=KINDS, role="null", seeded=True)
def another_sample(task: Task, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Profile of a training sample drawn at random: chance with the right spread, and `sample_r` of somebody else's profile."""
    train = task.train[0]
    values = task.target(train)[np.argsort(train.obs_names)]  # by name, so that a draw does not depend on the order of the samples
    out = {}
    for name, a in task.asked().items():
        out[name] = np.empty((a.n_obs, values.shape[1]))
        out[name][np.argsort(a.obs_names)] = values[rng.integers(len(values), size=a.n_obs)]
    return out


@method("slide features, ridge", kinds=KINDS, role="rival", needs=(SLIDE,))
def slide_ridge(task: Task, rng: np.random.Generator) -> Prediction:
    """Ridge on the averaged features of the slide (`obsm["X_slide"]`); the penalty is chosen on groups of training sites or donors."""
    train, asked = task.train[0], task.asked()
    unit = train.obs[keys.LIBRARY].astype(str)
    parts = grouped(unit.value_counts().to_dict(), INNER)
    group = unit.map({name: i for i, part in enumerate(parts) for name in part}).to_numpy()
    found = embedding_ridge(
        np.asarray(train.obsm[SLIDE]),
        task.target(train),
        np.concatenate([np.asarray(a.obsm[SLIDE]) for a in asked.values()]),
        train_group=group,
        penalties=PENALTIES if len(parts) > 1 else PENALTIES[-1:],
    )
    ends = np.cumsum([a.n_obs for a in asked.values()])[:-1]
    fitted = tuple(recall(train, only=[SLIDE]))
    return Prediction(dict(zip(asked, np.split(found.values, ends), strict=True)), fitted, {"penalty": found.penalty})
