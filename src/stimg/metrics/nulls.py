"""What predictors without a model reach, and what no predictor can exceed: zero-pixel baselines, permutations, and the noise ceiling.

Values are (observations, genes), usually log(1 + counts per 10,000) of the full library; everything is returned as float64. Two of the
baselines, :func:`depth_line` and :func:`neighbour_mean`, look at the test observations' own counts: they are *audits* of a protocol, which
say how much of a score needs no image, and cannot be used where the counts are not known.
"""

from typing import Any

import numpy as np

from stimg._core import validate
from stimg._core.rng import RngLike, as_generator
from stimg.image.interpolate import k_nearest_weights
from stimg.metrics._arrays import matrix, same_length, same_width
from stimg.metrics._noise_ceiling import Ceiling, noise_ceiling
from stimg.metrics._ridge import Linear, RidgePrediction, embedding_ridge, ridge
from stimg.metrics._spatial_weights import SpatialWeights
from stimg.metrics.sections import centred, section_means

__all__ = [
    "Ceiling",
    "Linear",
    "RidgePrediction",
    "constant",
    "coordinate_neighbours",
    "depth_line",
    "embedding_ridge",
    "neighbour_mean",
    "noise_ceiling",
    "permute_blocks",
    "permute_labels",
    "random_embedding",
    "ridge",
]


def constant(train_values: np.ndarray, n_test: int) -> np.ndarray:
    """Return the training mean of each gene for every test observation, (n_test, genes): correlation 0 by definition."""
    train_values = matrix(train_values, "train_values")
    same_length(train_values=train_values)
    return np.tile(train_values.mean(axis=0), (validate.whole(n_test, "n_test", least=0), 1))


def depth_line(train_values: np.ndarray, train_depth: np.ndarray, test_depth: np.ndarray, *, train_section: Any = None) -> np.ndarray:
    """Return each gene's least-squares line on log(depth), fitted on the training observations, at the test observations, (n_test, genes).

    An audit, not a method: it reads the true depth of the test observations, which no one has who predicts from an image.

    Parameters
    ----------
    train_values
        (n_train, genes).
    train_depth, test_depth
        Counts of the full library of each observation, (n_train,) and (n_test,).
    train_section
        Section of each training observation, any labels: the slope is then the one within sections (values and log depths less their
        section's mean), through the means of all.

    Raises
    ------
    ValueError
        For observations without counts, NaN, or arrays that differ in length.
    """
    values = matrix(train_values, "train_values")
    same_length(train_values=values, train_depth=train_depth, train_section=train_section)
    logs = []
    for name, depth in (("train_depth", train_depth), ("test_depth", test_depth)):
        depth = np.asarray(depth, dtype=np.float64).reshape(-1, 1)
        wrong = ~(np.isfinite(depth) & (depth > 0))
        if wrong.any():
            raise ValueError(f"{name} is zero, negative or not finite for {int(wrong.sum())} of {len(depth)} observations. Leave them out.")
        logs.append(np.log(depth))
    x = centred(logs[0], train_section)
    squares = float((x**2).sum())
    flat = squares <= 1e-24 * float((logs[0] ** 2).sum())  # one depth throughout, but for rounding
    slope = np.zeros((1, values.shape[1])) if flat else x.T @ centred(values, train_section) / squares
    return values.mean(axis=0) + (logs[1] - logs[0].mean()) * slope


def coordinate_neighbours(
    train_rc: np.ndarray, train_values: np.ndarray, test_rc: np.ndarray, *, k: int = 10, train_section: Any = None
) -> np.ndarray:
    """Return the mean of the ``k`` training observations nearest in array coordinates, (n_test, genes); sections are laid on each other unregistered.

    Parameters
    ----------
    train_rc, test_rc
        (row, column) on the array, or any coordinates of one unit, (n, 2). Give the rows of the sections that may be looked at: other
        sections of the same donor, or other donors alone.
    train_values
        (n_train, genes).
    k
        Number of neighbours, over all training sections together.
    train_section
        Section of each training observation: each section's mean is then replaced by the mean of all before neighbours are averaged.

    Raises
    ------
    ValueError
        For ``k`` above the number of training observations, NaN, or arrays that differ in length.

    Notes
    -----
    Observations at the k-th distance, of which a lattice and stacked sections have many, share the places that are left equally: the
    expectation over random choices among them, whatever the order of the observations.
    """
    values, train, test = matrix(train_values, "train_values"), matrix(train_rc, "train_rc"), matrix(test_rc, "test_rc")
    same_length(train_rc=train, train_values=values, train_section=train_section)
    same_width(train_rc=train, test_rc=test)
    if validate.whole(k, "k") > len(train):
        raise ValueError(f"k={k} neighbours of {len(train)} training observations; wanted at most as many. Lower k.")
    if train_section is not None:
        values = centred(values, train_section) + values.mean(axis=0)
    return k_nearest_weights(train, test, int(k)) @ values if len(test) else np.empty((0, values.shape[1]))


def neighbour_mean(values: np.ndarray, pairs: np.ndarray, *, section: Any = None) -> np.ndarray:
    """Return the mean of each observation's neighbours, itself left out, (n, genes): how far the true values are smooth in space.

    An audit, not a method: it reads the true values of the test section.

    Parameters
    ----------
    values
        True values, (n, genes).
    pairs
        Pairs of neighbours, int (m, 2), each once, as :func:`stimg.image.neighbour_pairs` gives them.
    section
        Section of each observation; an observation without neighbours gets the mean of its section, itself
        included (default: of all observations).

    Raises
    ------
    ValueError
        For pairs that stand twice, join an observation to itself or two sections, or name others than 0 to n - 1; for NaN.
    """
    values, pairs = matrix(values, "values"), np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    same_length(values=values, section=section)
    upper = SpatialWeights.from_pairs(pairs, len(values)).upper()
    section = np.zeros(len(values), dtype=np.int64) if section is None else np.asarray(section)
    across = int((section[pairs[:, 0]] != section[pairs[:, 1]]).sum())
    if across:
        raise ValueError(f"{across} of {len(pairs)} pairs join two sections; wanted neighbours within one section.")
    graph = (upper + upper.T) / 2
    degree = np.asarray(graph.sum(axis=1))
    return np.where(degree > 0, (graph @ values) / np.maximum(degree, 1), section_means(values, section))


def permute_labels(values: np.ndarray, *, rng: RngLike = 0) -> np.ndarray:
    """Return ``values`` (n, ...) with their rows in random order: no link to the image is left, and none to the neighbours either."""
    values = np.asarray(values)
    return values[as_generator(rng).permutation(len(values))]


def permute_blocks(values: np.ndarray, blocks: Any, *, library: Any = None, rng: RngLike = 0) -> np.ndarray:
    """Return ``values`` (n, ...) with whole blocks of rows in random order, so that most neighbours stay neighbours.

    Parameters
    ----------
    values
        (n, ...), in any order of the rows.
    blocks
        Spatial block of each row, any labels.
    library
        Library of each row, any labels: blocks stay in theirs, and a label that two libraries use means two blocks.
    rng
        Source of chance.

    Notes
    -----
    Rows are put one block after the other, in the order of their labels and within a block in the order given; the blocks are then laid over
    these places in random order. Blocks of different sizes therefore move against each other: a block may fall on parts of two.
    """
    values, block = np.asarray(values), np.asarray(blocks)
    same_length(values=values, blocks=block, library=library)
    code = np.unique(block, return_inverse=True)[1]
    home = np.zeros(len(values), dtype=np.int64) if library is None else np.unique(np.asarray(library), return_inverse=True)[1]
    generator, out = as_generator(rng), np.empty_like(values)
    for name in range(home.max() + 1):
        rows = np.flatnonzero(home == name)
        rows = rows[np.argsort(code[rows], kind="stable")]
        parts = np.split(rows, np.flatnonzero(np.diff(code[rows])) + 1)
        out[rows] = values[np.concatenate([parts[i] for i in generator.permutation(len(parts))])]
    return out


def random_embedding(n: int, dim: int, *, rng: RngLike = 0) -> np.ndarray:
    """Return standard normal features that know nothing of the image, float32 (n, dim)."""
    return as_generator(rng).standard_normal((validate.whole(n, "n", least=0), validate.whole(dim, "dim")), dtype=np.float32)
