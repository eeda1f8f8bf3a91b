"""Nulls and rivals for imputation within a section: the methods of :mod:`stimg.image.interpolate`, given what a task holds."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys, validate
from stimg.bench.expression import depth_of
from stimg.bench.method import Prediction, method
from stimg.bench.protocol import Hidden, Task, library_of
from stimg.bench.values import log_values
from stimg.data.ledger import recall
from stimg.data.slots import raster_libraries
from stimg.image import interpolate
from stimg.image.interpolate import BEST, METHODS, Guide, Interpolated, Measured, axes_of_sections
from stimg.image.lattice import neighbour_pairs
from stimg.metrics import neighbour_mean, permute_labels

if TYPE_CHECKING:
    from anndata import AnnData

KINDS = ("imputation",)
HELPERS = 2000
"""Genes with most counts that help, beside those asked for."""
RIVALS = {
    "nearest": "nearest",
    "linear": "linear",
    "cubic": "cubic",
    "k-NN 8": "k_nearest",
    "inverse distance 8": "inverse_distance",
    "graph Laplacian": "laplacian",
    "kriging": "kriging_pooled",
    "kriging per gene": "kriging_per_gene",
    "kriging averaged": "kriging",
    "kriging by depth": "kriging_by_depth",
    "PCA-20 + kriging": "pca_kriging",
    "PCA-20 + kriging by depth": "pca_kriging_by_depth",
    "factors + kriging by depth": "factor_kriging",
    "kriging ensemble": "ensemble",
    "other donors' axes + kriging": "donor_kriging",
    "krigings by depth, other donors": "depth_ensemble",
    "kriging ensemble, other donors": "donor_ensemble",
}
"""Name in reports to the name in ``stimg.image.interpolate.METHODS``."""


def places(adata: "AnnData") -> np.ndarray:
    """Return the (y, x) lattice points of a section's observations, float64 (n_obs, 2), in pitches."""
    (library,) = raster_libraries(adata).values()
    return library.spec.lattice_points(library.rc)


def measured(task: Task, adata: "AnnData", *, donors: bool = False, guide: str | None = None) -> Measured:
    """Return the observed part of a section as arrays: the genes of the task, and those with most counts beside them; ``guide`` is a slot of ``obsm``."""
    total = np.asarray(adata.X.sum(axis=0), dtype=np.float64).ravel()
    genes = list(dict.fromkeys([*task.genes, *adata.var_names[np.argsort(-total, kind="stable")[:HELPERS]]]))
    loadings = _axes(task.train, genes) if donors else None
    columns = np.arange(len(task.genes))
    features = None if guide is None else _guide(adata, task.where[library_of(adata)], guide)
    return Measured(
        places(adata), log_values(adata, genes=genes), columns=columns, depth=depth_of(adata), loadings=loadings, guide=features
    )


def _guide(adata: "AnnData", where: "AnnData", key: str) -> Guide:
    """Return the features of the observed and the hidden places."""
    found = [np.asarray(validate.slot(a.obsm, "obsm", key, todo="Compute it for every section.")) for a in (adata, where)]
    return Guide(np.concatenate([places(adata), places(where)]), np.concatenate(found).astype(np.float64))


def _axes(sections: Sequence["AnnData"], genes: Sequence[str]) -> np.ndarray:
    """Return axes of expression of other donors' sections in ``genes``; genes that a section does not list count 0."""
    if not sections:
        raise ValueError("There is no section of another donor; wanted at least one. Give more donors, or leave this method out.")
    return axes_of_sections([(np.nan_to_num(log_values(a, genes=genes)), depth_of(a)) for a in sections])


def _answer(found: Interpolated) -> Any:
    return found.values if found.variance is None else {"mean": found.values, "sd": np.sqrt(found.variance)}


def guided(task: Task, key: str, *, inner: str = BEST) -> Prediction:
    """Return a method of ``stimg.image.interpolate`` that krigs, with the features ``obsm[key]`` of observed and hidden places as its guide."""
    out = {library_of(a): _answer(METHODS[inner](measured(task, a, guide=key), places(task.where[library_of(a)]))) for a in task.test}
    fitted = tuple(seen for a in task.test for seen in recall(a, only=[key]))
    return Prediction(out, fitted, notes={"regime": f"with {key} of the hidden places"})


@method("kriging ensemble, colours", kinds=KINDS, role="rival", needs=(keys.COLOUR,))
def colours(task: Task, rng: np.random.Generator) -> Prediction:
    """Mean of three krigings, guided by 48 colour statistics of the image around observed and hidden places (:func:`stimg.pp.colour_statistics`)."""
    return guided(task, keys.COLOUR)


def _rival(name: str, inner: str) -> Callable[..., Any]:
    """Register a method of ``stimg.image.interpolate`` under the name of a report."""
    chosen = METHODS[inner]

    def rival(task: Task, rng: np.random.Generator) -> Any:
        out = {
            library_of(a): _answer(chosen(measured(task, a, donors=chosen.donors), places(task.where[library_of(a)]))) for a in task.test
        }
        return Prediction(out, notes={"regime": "other donors"}) if chosen.donors else out

    rival.__doc__ = chosen.what
    return method(name, kinds=KINDS, role="rival", trains=chosen.donors)(rival)


for _name, _inner in RIVALS.items():
    _rival(_name, _inner)


@method("section mean", kinds=KINDS, role="null")
def section_mean(task: Task, rng: np.random.Generator) -> Mapping[str, Any]:
    """Mean of the observed spots: r is 0 by definition; its interval is their standard deviation."""
    return {library_of(a): _answer(METHODS["mean"](measured(task, a), places(task.where[library_of(a)]))) for a in task.test}


@method("Gaussian", kinds=KINDS, role="rival")
def gaussian(task: Task, rng: np.random.Generator) -> Prediction:
    """Gaussian-weighted mean of the observed spots; one bandwidth for all genes and the interval come from leaving single observed spots out."""
    out, chosen = {}, {}
    for a in task.test:
        values, known, name = task.target(a), places(a), library_of(a)
        chosen[name] = interpolate.best_bandwidth(known, values)[0]
        out[name] = _answer(interpolate.gaussian(known, values, places(task.where[name]), bandwidths=[chosen[name]]))
    return Prediction(out, notes={"bandwidth in pitches": chosen})


@method("true neighbours", kinds=KINDS, role="audit")
def true_neighbours(task: Task, rng: np.random.Generator, hidden: Hidden) -> Mapping[str, np.ndarray]:
    """Mean of the true values of each hidden spot's neighbours on the lattice, hidden ones included: how smooth the truth is."""
    out = {}
    for a in task.test:
        name = library_of(a)
        (library,) = raster_libraries(a).values()
        rc = np.concatenate([library.rc, task.where[name].obsm[keys.RC]])
        pairs = neighbour_pairs(library.spec, rc, diagonal=library.spec.lattice == "square")
        out[name] = neighbour_mean(np.concatenate([task.target(a), hidden.truth[name]]), pairs)[a.n_obs :]
    return out


@method("hidden values permuted", kinds=("imputation", "completion"), role="audit", seeded=True)
def permuted(task: Task, rng: np.random.Generator, hidden: Hidden) -> Mapping[str, np.ndarray]:
    """Truth of the section in random order: chance."""
    return {name: permute_labels(np.nan_to_num(hidden.truth[name]), rng=rng) for name in task.asked()}
