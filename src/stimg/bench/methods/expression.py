"""Nulls and rivals for predicting expression of sections from images or from nothing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from stimg._core import keys, validate
from stimg.bench.expression import depth_of
from stimg.bench.method import Prediction, method
from stimg.bench.protocol import Hidden, Task, library_of
from stimg.bench.sections import donor
from stimg.data.ledger import recall
from stimg.data.slots import raster_libraries
from stimg.image.lattice import neighbour_pairs
from stimg.image.split import balanced_blocks
from stimg.metrics import constant, coordinate_neighbours, depth_line, embedding_ridge, neighbour_mean, permute_labels

if TYPE_CHECKING:
    from anndata import AnnData

KINDS = ("expression",)
COMPONENTS = 256
NEAREST = 10
"""Training observations that a coordinate null averages."""
QUARTERS = 4
"""Parts of the one training section that are left out in turn where there is no other section to choose a penalty by."""


def training(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return the target of all training observations, 0 where a section does not list a gene, and their section."""
    values = np.concatenate([task.target(a) for a in task.train])
    section = np.concatenate([[library_of(a)] * a.n_obs for a in task.train])
    return np.nan_to_num(values), section


@method("training mean", kinds=KINDS, role="null")
def training_mean(task: Task, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Mean of the training observations for every observation: r is 0 by definition, squared error is the yardstick."""
    values, _ = training(task)
    return {name: constant(values, a.n_obs) for name, a in task.asked().items()}


@method("depth line", kinds=KINDS, role="audit")
def depth(task: Task, rng: np.random.Generator, hidden: Hidden) -> Mapping[str, np.ndarray]:
    """Line on the true log depth of each observation, fitted on the training sections."""
    values, section = training(task)
    fitted = np.maximum(np.concatenate([depth_of(a) for a in task.train]), 1)
    return {name: depth_line(values, fitted, np.maximum(hidden.depth[name], 1), train_section=section) for name in task.asked()}


def _from_middle(adata: "AnnData") -> np.ndarray:
    """Return row and column of each observation from the middle of its section: sections are laid on each other by their centres."""
    rc = np.asarray(adata.obsm[keys.RC], dtype=np.float64)
    return rc - rc.mean(axis=0)


def _neighbours(task: Task, *, same_donor: bool) -> Prediction:
    out, used = {}, {}
    everything = np.concatenate([np.nan_to_num(task.target(a)) for a in task.train]) if task.train else np.zeros((0, len(task.genes)))
    donors = np.concatenate([[donor(a)] * a.n_obs for a in task.train])
    where = np.concatenate([_from_middle(a) for a in task.train])
    section = np.concatenate([[library_of(a)] * a.n_obs for a in task.train])
    for name, a in task.asked().items():
        keep = (donors == donor(a)) == same_donor
        used[name] = int(keep.sum())
        out[name] = (
            coordinate_neighbours(
                where[keep], everything[keep], _from_middle(a), k=min(NEAREST, int(keep.sum())), train_section=section[keep]
            )
            if keep.any()
            else np.full((a.n_obs, len(task.genes)), np.nan)
        )
    return Prediction(out, notes={"training observations": used})


@method("coordinates, same donor", kinds=KINDS, role="null")
def coordinates_same(task: Task, rng: np.random.Generator) -> Prediction:
    """Mean of the training observations at nearly the same place in other sections of the donor; undefined where it has none."""
    return _neighbours(task, same_donor=True)


@method("coordinates, other donors", kinds=KINDS, role="null")
def coordinates_other(task: Task, rng: np.random.Generator) -> Prediction:
    """Mean of the training observations at nearly the same place in sections of other donors."""
    return _neighbours(task, same_donor=False)


@method("neighbour mean", kinds=KINDS, role="audit")
def neighbours(task: Task, rng: np.random.Generator, hidden: Hidden) -> Mapping[str, np.ndarray]:
    """Mean of the true values of each observation's neighbours: how smooth the truth is."""
    out = {}
    for name, a in task.asked().items():
        pairs = [lib.rows[neighbour_pairs(lib.spec, lib.rc, diagonal=lib.spec.lattice == "square")] for lib in raster_libraries(a).values()]
        out[name] = neighbour_mean(np.nan_to_num(hidden.truth[name]), np.concatenate(pairs))
    return out


@method("labels permuted", kinds=KINDS, role="audit", seeded=True)
def permuted(task: Task, rng: np.random.Generator, hidden: Hidden) -> Mapping[str, np.ndarray]:
    """Truth of the section in random order: chance."""
    return {name: permute_labels(np.nan_to_num(hidden.truth[name]), rng=rng) for name in task.asked()}


def held_out(task: Task) -> np.ndarray:
    """Return the groups that are left out in turn to choose a penalty, one label a training observation.

    Donors; sections where there is one donor; contiguous quarters where there is one section.
    """
    if len(task.train) == 1:
        return balanced_blocks(task.train[0].obsm[keys.RC], min(QUARTERS, task.train[0].n_obs))
    donors = [donor(a) for a in task.train]
    groups = donors if len(set(donors)) > 1 else [library_of(a) for a in task.train]
    return np.concatenate([[group] * a.n_obs for group, a in zip(groups, task.train, strict=True)])


def feature_ridge(task: Task, key: str) -> Prediction:
    """Return the ridge regression of the target on ``obsm[key]``; the penalty is chosen by leaving out training donors (see :func:`held_out`)."""
    values, section = training(task)
    x = np.concatenate([np.asarray(validate.slot(a.obsm, "obsm", key, todo="Compute it for every section.")) for a in task.train])
    asked = task.asked()
    found = embedding_ridge(
        x,
        values,
        np.concatenate([np.asarray(a.obsm[key]) for a in asked.values()]),
        train_section=section,
        test_section=np.concatenate([[name] * a.n_obs for name, a in asked.items()]),
        train_group=held_out(task),
        n_components=task.extra.get("n_components", COMPONENTS),
    )
    ends = np.cumsum([a.n_obs for a in asked.values()])[:-1]
    fitted = [seen for a in (*task.train, *task.test) for seen in recall(a, only=[key])]
    return Prediction(dict(zip(asked, np.split(found.values, ends), strict=True)), tuple(fitted), {"penalty": found.penalty})


@method("colour ridge", kinds=KINDS, role="rival", needs=(keys.COLOUR,))
def colour_ridge(task: Task, rng: np.random.Generator) -> Prediction:
    """Ridge on 48 colour statistics of the image around each observation (:func:`stimg.pp.colour_statistics`)."""
    return feature_ridge(task, keys.COLOUR)
