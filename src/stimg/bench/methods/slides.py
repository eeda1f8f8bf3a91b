"""Nulls and the plain rival for labels of slides: what does without attention, and what has nothing to do with the tissue."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stimg._core import keys
from stimg.bench import sections as _sections
from stimg.bench.expression import depth_of
from stimg.bench.method import Prediction, method
from stimg.bench.protocol import Task, library_of
from stimg.bench.protocols.slides import SITE, dealt, label_of

if TYPE_CHECKING:
    from anndata import AnnData

KINDS = ("slides",)
INNER = 4
"""Groups of training donors among which the strength of the penalty is chosen."""
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse penalties, strongest first."""
PLAIN = 1.0
"""Inverse penalty where a slide is described by one or a few numbers."""
Values = Mapping[str, np.ndarray]


@method("class frequencies", kinds=KINDS, role="null")
def class_frequencies(task: Task, rng: np.random.Generator) -> Values:
    """Share of each class among the training slides, for every slide: chance."""
    labels, classes = [label_of(a) for a in task.train], task.extra["classes"]
    share = np.array([labels.count(name) for name in classes]) / len(labels)
    return dict.fromkeys(task.asked(), share)


@method("number of tiles", kinds=KINDS, role="null")
def number_of_tiles(task: Task, rng: np.random.Generator) -> Values:
    """Logistic regression on the log of the number of tiles, one number: how much tissue was cut."""
    return _logistic(task, lambda a: np.array([np.log(a.n_obs)]))


@method("depth of the slide", kinds=KINDS, role="null")
def depth(task: Task, rng: np.random.Generator) -> Prediction:
    """Logistic regression on the mean of log(1 + counts), one number; chance where the slides have no counts."""
    values = _logistic(task, lambda a: np.array([np.log1p(depth_of(a)).mean() if a.n_vars else 0.0]))
    return Prediction(values, notes={"slides with counts": sum(a.n_vars > 0 for a in (*task.train, *task.test))})


@method("site of the slide", kinds=KINDS, role="null")
def site(task: Task, rng: np.random.Generator) -> Prediction:
    """Logistic regression on the site: what the label owes to where the slide was made; chance where sites are not known."""
    known = all(SITE in a.obs for a in (*task.train, *task.test))
    names = sorted({str(a.obs[SITE].iloc[0]) for a in task.train}) if known else [""]
    values = _logistic(task, lambda a: np.array([known and str(a.obs[SITE].iloc[0]) == name for name in names], dtype=np.float64))
    return Prediction(values, notes={"sites": len(names) if known else 0})


@method("mean colour of the slide", kinds=KINDS, role="rival", needs=(keys.COLOUR,))
def mean_colour(task: Task, rng: np.random.Generator) -> Values:
    """Logistic regression on the colour statistics of the tiles, averaged: stain and scanner, and what tissue does to them."""
    return _logistic(task, lambda a: mean_of(a, [keys.COLOUR]), STRENGTHS)


@method("donors' labels permuted", kinds=KINDS, role="null", seeded=True)
def permuted_labels(task: Task, rng: np.random.Generator) -> Values:
    """Averaged tiles and a logistic regression on labels that were dealt out to other training donors: chance with all the machinery."""
    donors = [_sections.donor(a) for a in task.train]
    first = {donor: label_of(a) for donor, a in sorted(zip(donors, task.train, strict=True), key=lambda pair: library_of(pair[1]))}
    names = sorted(first)
    drawn = dict(zip(names, (first[names[i]] for i in rng.permutation(len(names))), strict=True))
    return _logistic(task, lambda a: mean_of(a, task.extra["features"]), (1e-2,), [drawn[d] for d in donors])


@method("mean of tiles, logistic", kinds=KINDS, role="rival")
def mean_of_tiles(task: Task, rng: np.random.Generator) -> Values:
    """Mean of the tiles' features and a logistic regression; its penalty is chosen on groups of training donors."""
    return _logistic(task, lambda a: mean_of(a, task.extra["features"]), STRENGTHS)


def mean_of(adata: "AnnData", features: Sequence[str]) -> np.ndarray:
    """Return the mean of the observations of a slide, slots beside each other, float64."""
    return np.concatenate([np.asarray(adata.obsm[key]).mean(axis=0, dtype=np.float64) for key in features])


def _logistic(
    task: Task, describe: Callable[["AnnData"], np.ndarray], strengths: Sequence[float] = (PLAIN,), labels: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Return probabilities of the test slides, each described by a vector; the fit does not depend on the order of the slides."""
    train = sorted(task.train, key=library_of)
    where = {library_of(a): i for i, a in enumerate(task.train)}
    given = [label_of(a) for a in task.train] if labels is None else list(labels)
    y = np.array([given[where[library_of(a)]] for a in train], dtype=object)
    x = np.stack([describe(a) for a in train])
    strength = _strength(x, y, [_sections.donor(a) for a in train], strengths)
    asked = task.asked()
    found, known = _fit(x, y, np.stack([describe(a) for a in asked.values()]), strength)
    out = np.zeros((len(asked), len(task.extra["classes"])))
    for name, column in zip(known, found.T, strict=True):
        out[:, list(task.extra["classes"]).index(name)] = column
    return dict(zip(asked, out, strict=True))


def _fit(x: np.ndarray, y: np.ndarray, asked: np.ndarray, strength: float) -> tuple[np.ndarray, list[str]]:
    """Return probabilities (asked, classes) and the classes; all classes of the training weigh the same."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if len(set(y)) < 2:
        return np.ones((len(asked), 1)), [str(y[0])]
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000).fit(scaler.transform(x), y.astype(str))
    return model.predict_proba(scaler.transform(asked)), [str(c) for c in model.classes_]


def _strength(x: np.ndarray, y: np.ndarray, donors: Sequence[str], strengths: Sequence[float]) -> float:
    """Return the inverse penalty with the best log score of held-out donors, the strongest penalty where several are as good."""
    if len(strengths) == 1:
        return strengths[0]
    try:
        groups = dealt(donors, [str(v) for v in y], INNER)
    except ValueError:  # a class with one donor cannot be held out
        return strengths[len(strengths) // 2]
    loss = np.zeros(len(strengths))
    weight = {name: 1 / np.mean(y == name) for name in set(y)}
    for group in groups:
        test = np.zeros(len(y), dtype=bool)
        test[group] = True
        for i, strength in enumerate(strengths):
            found, known = _fit(x[~test], y[~test], x[test], strength)
            for row, label in zip(found, y[test], strict=True):
                chance = row[known.index(label)] if label in known else 0.0
                loss[i] -= weight[label] * np.log(max(chance, 1e-12))
    return strengths[int(np.argmin(np.round(loss, 9)))]
