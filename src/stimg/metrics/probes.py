"""Probes: what a simple classifier reads from a frozen embedding, and how classifications are scored."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stimg._core.rng import RngLike, as_seed
from stimg._core.validate import finite, one_of
from stimg.metrics.clusters import as_labels, encode, missing, row_keys

KINDS = ("linear", "knn", "mlp")
N_NEIGHBOURS = 10


class Classification(NamedTuple):
    """Scores of a classification. Balanced accuracy, macro-F1 and AUROC are means over the classes that the test holds.

    Parameters
    ----------
    accuracy, balanced_accuracy, macro_f1
        Share of right labels, mean recall, mean F1 (0 for a class that is never predicted right).
    auroc
        Mean one-versus-rest area under the ROC curve; None without probabilities.
    ari, nmi
        Adjusted Rand index and normalised mutual information between true and predicted labels.
    chance_accuracy
        Accuracy of answering with the commonest training label always.
    n_test
        Number of observations scored.
    n_absent
        Classes that the classifier knows and the test lacks: left out of the means.
    n_unseen
        Classes of the test that the classifier does not know: every answer to them is wrong, their AUROC .5.
    n_undefined
        AUROCs that do not exist, since the test holds one class alone: counted as 0.
    converged
        Whether the fit of the classifier ended before its limit of iterations; None where nothing was fitted here.
    classes
        What the classifier knows, sorted.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    auroc: float | None
    ari: float
    nmi: float
    chance_accuracy: float
    n_test: int
    n_absent: int
    n_unseen: int
    n_undefined: int
    converged: bool | None
    classes: tuple[Any, ...]


def classification(
    truth: Sequence[Any] | np.ndarray,
    predicted: Sequence[Any] | np.ndarray,
    *,
    probabilities: np.ndarray | None = None,
    classes: Sequence[Any] | np.ndarray | None = None,
    commonest: Any = None,
) -> Classification:
    """Return the scores of predicted labels, by scikit-learn's metrics.

    Parameters
    ----------
    truth, predicted
        (n,), labels of one type (strings, or numbers), none missing.
    probabilities
        (n, n_classes), finite scores of each class, columns in the order of ``classes``; for the AUROC.
    classes
        What the classifier knows, its training labels; by default whatever is in ``truth`` or ``predicted``.
    commonest
        The commonest label of the training, for ``chance_accuracy``; by default that of the test, which no constant answer beats.

    Raises
    ------
    ValueError
        For lengths that differ, no observation, missing labels, predictions outside ``classes``, duplicated classes, probabilities
        without ``classes``, of another shape or not finite, a commonest label that is not a class.
    TypeError
        For labels that mix strings and numbers.

    Examples
    --------
    >>> score = classification(["a", "a", "a", "b"], ["a", "a", "b", "b"])
    >>> score.accuracy, round(score.balanced_accuracy, 3), round(score.macro_f1, 3), score.chance_accuracy
    (0.75, 0.833, 0.733, 0.75)
    """
    from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score, recall_score, roc_auc_score

    y, p = as_labels(truth, "truth"), as_labels(predicted, "predicted")
    if len(y) != len(p) or len(y) == 0:
        raise ValueError(f"There are {len(y)} true and {len(p)} predicted labels; wanted the same number, at least one.")
    _none_missing(y, "truth")
    _none_missing(p, "predicted")
    given = np.concatenate([y, p]) if classes is None else as_labels(classes, "classes")
    _none_missing(given, "classes")
    names, y, p, columns = encode(y, p, given)
    known = np.unique(columns)
    if classes is not None and len(known) < len(columns):
        raise ValueError(f"classes has {len(columns)} entries of which {len(known)} are distinct; wanted each class once.")
    strange = np.setdiff1d(p, known)
    if len(strange):
        raise ValueError(
            f"predicted holds {[names[i] for i in strange]}, not among the classes {[names[i] for i in known]}. Pass all of them."
        )
    if commonest is not None and commonest not in [names[i] for i in known]:
        raise ValueError(f"commonest={commonest!r} is not among the classes {[names[i] for i in known]}; wanted a training label.")
    present, count = np.unique(y, return_counts=True)
    auroc, n_undefined = None, 0
    if probabilities is not None:
        scores = np.asarray(probabilities, dtype=np.float64)
        if classes is None or scores.shape != (len(y), len(columns)):
            raise ValueError(
                f"probabilities has shape {scores.shape} and classes {'is None' if classes is None else f'{len(columns)} entries'}; wanted (n, n_classes) with n = {len(y)}, and the class of each column."
            )
        finite(scores, "probabilities", todo="Repair the classifier.")
        column = {code: scores[:, i] for i, code in enumerate(columns)}
        n_undefined = int(len(present) == 1)
        auroc = 0.0 if n_undefined else float(np.mean([roc_auc_score(y == c, column.get(c, np.zeros(len(y)))) for c in present]))
    return Classification(
        accuracy=float(np.mean(y == p)),
        balanced_accuracy=float(recall_score(y, p, labels=present, average="macro", zero_division=0.0)),
        macro_f1=float(f1_score(y, p, labels=present, average="macro", zero_division=0.0)),
        auroc=auroc,
        ari=float(adjusted_rand_score(y, p)),
        nmi=float(normalized_mutual_info_score(y, p)),
        chance_accuracy=float(np.mean(as_labels(truth, "truth") == commonest) if commonest is not None else count.max() / len(y)),
        n_test=len(y),
        n_absent=len(np.setdiff1d(known, present)),
        n_unseen=len(np.setdiff1d(present, known)),
        n_undefined=n_undefined,
        converged=None,
        classes=tuple(names[i] for i in known),
    )


def probe(
    x: np.ndarray, y: Sequence[Any] | np.ndarray, train: np.ndarray, test: np.ndarray, *, kind: str = "linear", rng: RngLike = 0
) -> Classification:
    """Return the scores on ``test`` of a classifier fitted on the embedding and labels of ``train``.

    Parameters
    ----------
    x
        (n_obs, n_dims), the embedding; finite where it is used.
    y
        (n_obs,), labels; None, NaN and empty strings are allowed outside ``train`` and ``test`` alone.
    train, test
        bool (n_obs,), without a common observation.
    kind
        ``"linear"``: logistic regression (L2, C = 1, L-BFGS with 1,000 iterations at most). ``"knn"``: majority of the 10 nearest
        training observations, or of all where there are fewer. ``"mlp"``: one hidden layer of 128 ReLU, alpha = .01, Adam for 300 epochs
        at most. In all of them each dimension is scaled by mean and standard deviation of ``train``. Settings are fixed so that
        embeddings, not the tuning of probes, are compared; elsewhere scikit-learn's defaults hold.
    rng
        Seed of the MLP. The result does not depend on the order of the observations.

    Raises
    ------
    ValueError
        For lengths that differ, masks that overlap or are empty, missing labels, values that are not finite, or one class to train on.
    TypeError
        For masks that are not bool.

    Examples
    --------
    >>> x = np.array([[0.0], [0.2], [1.0], [1.2], [0.1], [1.1]])
    >>> train = np.array([True, True, True, True, False, False])
    >>> probe(x, ["a", "a", "b", "b", "a", "b"], train, ~train).accuracy
    1.0
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.preprocessing import StandardScaler

    one_of(kind, KINDS, "kind")
    x, labels = np.asarray(x), as_labels(y, "y")
    if x.ndim != 2 or x.shape[1] == 0 or len(x) != len(labels):
        raise ValueError(f"x has shape {x.shape} for {len(labels)} labels; wanted (observations, dimensions) and one label each.")
    masks = {"train": np.asarray(train), "test": np.asarray(test)}
    for name, mask in masks.items():
        if mask.dtype != bool:
            raise TypeError(f"{name} has dtype {mask.dtype}; wanted bool, True for the observations of the set.")
        if mask.shape != (len(x),) or not mask.any():
            raise ValueError(f"{name} has shape {mask.shape} and {int(mask.sum())} observations; wanted ({len(x)},) with at least one.")
        _none_missing(labels[mask], f"y in {name}")
        finite(x[mask], f"x in {name}", todo="Remove or repair them.")
    both = int((masks["train"] & masks["test"]).sum())
    if both:
        raise ValueError(f"{both} observations are in train and in test; wanted none. Split again: such a score is that of memory.")
    classes, codes = encode(labels[masks["train"]])
    if len(classes) < 2:
        raise ValueError(f"train holds one class alone, {classes[0]!r}; wanted at least two. Nothing can be learned.")
    fitted_on = x[masks["train"]].astype(np.float64)
    order = np.argsort(row_keys(np.column_stack([fitted_on, codes])))
    scaler = StandardScaler().fit(fitted_on[order])
    model = _model(kind, as_seed(rng), len(order))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(scaler.transform(fitted_on[order]), codes[order])
    converged = not any(issubclass(each.category, ConvergenceWarning) for each in caught)
    for each in caught:  # that one is reported in the result, any other is passed on
        if not issubclass(each.category, ConvergenceWarning):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    asked = x[masks["test"]].astype(np.float64)
    _, first, which = np.unique(row_keys(asked), return_index=True, return_inverse=True)
    shown = scaler.transform(asked[first])  # each row once: products of matrices round by position, which breaks ties of equal rows
    names = np.array([*classes, None], dtype=object)[:-1]  # the None keeps numpy from looking into the labels
    return classification(
        labels[masks["test"]],
        names[model.predict(shown)[which]],
        probabilities=model.predict_proba(shown)[which],
        classes=names,
        commonest=classes[int(np.argmax(np.bincount(codes)))],
    )._replace(converged=converged)


def _model(kind: str, seed: int, n_train: int) -> Any:
    if kind == "linear":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=1.0, max_iter=1000)
    if kind == "knn":
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier(min(N_NEIGHBOURS, n_train))
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((128,), alpha=1e-2, max_iter=300, random_state=seed)


def _none_missing(labels: np.ndarray, name: str) -> None:
    count = int(missing(labels).sum())
    if count:
        raise ValueError(f"{name} has {count} missing labels of {len(labels)}; wanted none. Leave those observations out of the sets.")
