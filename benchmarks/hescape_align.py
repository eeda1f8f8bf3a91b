"""Shared by `hescape_grid.py` and `hescape_simulated.py`: a cell of the grid, its training on the sections of a fold, and its embeddings as methods of `stimg.bench`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from stimg.bench import Method, Prediction
from stimg.bench.expression import ExpressionProtocol
from stimg.bench.methods.expression import held_out, training
from stimg.bench.protocol import Task, library_of
from stimg.metrics import embedding_ridge, retrieve
from stimg.model import STMAE, GeneEncoder, ImageGeneCLIP

BATCH: dict[str, dict[str, Any]] = {
    "none": {},
    "centre": {"batch": "centre"},
    "within": {"batch": "within", "sampling": "balanced"},
    "adversary": {"batch": "adversarial", "adversarial_weight": 3.0, "sampling": "balanced"},
}
"""Ways to deal with slides: nothing; both sides centred within each slide, in use too; negatives of the same slide alone, slides in equal numbers; a classifier of
slides whose gradient is reversed, slides in equal numbers."""
SCHEDULES: dict[str, tuple[tuple[float, int], ...]] = {
    "random": ((3e-3, 10), (1e-3, 40), (3e-3, 40), (3e-3, 80)),
    "ten epochs": ((3e-3, 10),),
    "CCA": ((1e-12, 1), (3e-4, 20), (1e-3, 20)),
}
"""Learning rate and epochs by start; where there are several, chosen in each fold for each gene encoder and loss on a part of the training sections. The first of "CCA"
is no training at all."""
STARTS: dict[str, dict[str, Any]] = {"random": {}, "ten epochs": {}, "CCA": {"init": "cca", "image_components": 128}}
SCVI_EPOCHS, STMAE_EPOCHS = 100, 20


@dataclass(frozen=True)
class Cell:
    """One alignment of the grid: image encoder, gene encoder, loss, way to deal with slides, weight of the auxiliary expression loss, start of the heads."""

    image: str
    gene: str = "PCA"
    loss: str = "clip"
    batch: str = "none"
    auxiliary: float = 0.0
    start: str = "random"
    trained: bool = True

    @property
    def name(self) -> str:
        """Name in tables."""
        parts = [
            f"{self.image} x {self.gene}",
            self.loss,
            self.batch,
            *(["expression loss"] if self.auxiliary else []),
            *([self.start] if self.start != "random" else []),
        ]
        return ", ".join([*parts, *([] if self.trained else ["untrained"])])

    def facts(self) -> dict[str, Any]:
        """Return the factors as columns of a table."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Embedded:
    """Embeddings of all sections by library and side, and the ledger of what was fitted on the way."""

    values: Mapping[str, Mapping[str, np.ndarray]]
    fitted: tuple[Any, ...]


class Fold:
    """The alignments of one fold: everything is fitted on its training sections, all of ``sections`` are embedded.

    Parameters
    ----------
    task
        Of the protocol `hescape`: training sections, and the genes that were chosen on them.
    sections
        All sections by library, with image features in ``obsm``.
    images
        Slot of each image encoder.
    """

    def __init__(self, task: Task, sections: Mapping[str, AnnData], images: Mapping[str, str]) -> None:
        self.genes, self.images = list(task.genes), images
        self.train = tuple(library_of(a) for a in task.train)
        self.group = held_out(task)
        self.sections = {name: lean(a, list(images.values())) for name, a in sections.items()}
        self.joined = ad.concat([self.sections[n] for n in self.train], join="inner", index_unique="-", uns_merge="unique")
        self.encoders: dict[tuple[str, int], Any] = {}
        self.schedules: dict[tuple[str, str, str], tuple[float, int]] = {}

    def gene_slot(self, kind: str, seed: int) -> str | None:
        """Return the slot with the finished embedding of expression, fitted where it is not there yet; None for encoders of the model itself."""
        if kind in ("PCA", "MLP"):
            return None
        key = f"X_genes_{kind}_{seed}"
        if (kind, seed) not in self.encoders:
            objects = [self.joined, *self.sections.values()]
            if kind == "scVI":
                encoder: Any = GeneEncoder.fit(self.joined, "scvi", genes=self.genes, max_epochs=SCVI_EPOCHS, rng=seed)
                for a in objects:
                    a.obsm[key] = encoder.transform(a)
            else:
                STMAE.setup_anndata(self.joined)
                encoder = STMAE(self.joined, self.genes)
                encoder.train(max_epochs=STMAE_EPOCHS, validation=None, rng=seed, enable_progress_bar=False)
                for a in objects:
                    a.obsm[key] = encoder.get_latent_representation(a)
            self.encoders[kind, seed] = encoder
        return key

    def model(self, cell: Cell, seed: int, data: AnnData, schedule: tuple[float, int]) -> ImageGeneCLIP:
        """Return the trained model of a cell."""
        ImageGeneCLIP.setup_anndata(data, image=self.images[cell.image], gene=self.gene_slot(cell.gene, seed))
        own = "mlp" if cell.gene == "MLP" else "pca"
        model = ImageGeneCLIP(
            data, self.genes, gene_encoder=own, loss=cell.loss, expression_weight=cell.auxiliary, **BATCH[cell.batch], **STARTS[cell.start]
        )
        lr, epochs = schedule
        model.train(epochs, validation=None, lr=lr, rng=seed, enable_progress_bar=False)
        return model

    def schedule(self, cell: Cell) -> tuple[float, int]:
        """Return learning rate and epochs with the lowest mean log rank of partners in one training section (or donor, or quarter) that is left out."""
        key = (cell.gene, cell.loss, cell.start)
        if len(SCHEDULES[cell.start]) == 1:
            return SCHEDULES[cell.start][0]
        if key not in self.schedules:
            probe = Cell(list(self.images)[-1], cell.gene, cell.loss, start=cell.start)
            held = self.group == sorted(set(self.group))[-1]
            self.gene_slot(cell.gene, 0)
            ranks = []
            for each in SCHEDULES[cell.start]:
                model = self.model(probe, 0, self.joined[~held].copy(), each)
                ranks.append(log_rank(model, self.joined[held].copy()))
            self.schedules[key] = SCHEDULES[cell.start][int(np.argmin(ranks))]
        return self.schedules[key]

    def embed(self, cell: Cell, seed: int) -> Embedded:
        """Return the embeddings of all sections by a cell, each section by itself."""
        schedule = self.schedule(cell) if cell.trained else (1e-12, 1)
        model = self.model(cell, seed, self.joined, schedule)
        values = {
            name: {"image": model.get_image_embedding(a), "expression": model.get_gene_embedding(a)} for name, a in self.sections.items()
        }
        encoder = self.encoders.get((cell.gene, seed))
        return Embedded(values, (*model.ledger, *(() if encoder is None else encoder.ledger)))  # the models themselves would hold the data


def lean(adata: AnnData, slots: Sequence[str]) -> AnnData:
    """Return a section with its counts and what is needed of ``obsm`` and ``uns``: slots of images, coordinates and the raster."""
    out = AnnData(adata.X, obs=adata.obs[["library_id", "donor"]].copy(), var=adata.var[[]].copy())
    for key in ("spatial", "stimg_rc", *slots):
        out.obsm[key] = adata.obsm[key]
    out.uns["stimg"] = {"raster": adata.uns["stimg"]["raster"]}
    return out


def log_rank(model: ImageGeneCLIP, adata: AnnData) -> float:
    """Return the mean log of rank over gallery of partners, both directions, over all observations of ``adata`` together."""
    image, gene = model.get_image_embedding(adata), model.get_gene_embedding(adata)
    return float(np.mean([np.log(found.rank / found.gallery).mean() for found in (retrieve(image, gene), retrieve(gene, image))]))


def by_train(folds: Mapping[frozenset[str], Any], task: Task) -> Any:
    """Return what belongs to the fold with these training sections."""
    return folds[frozenset(library_of(a) for a in task.train)]


Answers = Mapping[frozenset[str], Embedded]


def retrieval(name: str, folds: Answers) -> Method:
    """Return embeddings as a method of retrieval."""

    def answer(task: Task, rng: np.random.Generator) -> Prediction:
        found = by_train(folds, task)
        return Prediction({library_of(a): found.values[library_of(a)] for a in task.test}, found.fitted)

    return Method(name, answer, ("retrieval",), "model", name)


def probed(name: str, folds: Answers) -> Method:
    """Return image embeddings, less the mean of their section, for a probe of regions."""

    def answer(task: Any, rng: np.random.Generator) -> Prediction:
        found = by_train(folds, task)
        values = {lib: found.values[lib]["image"] for lib in task.asked()}
        return Prediction({lib: v - v.mean(axis=0) for lib, v in values.items()}, found.fitted)

    return Method(name, answer, ("labels",), "model", name)


def raw_probe(name: str, key: str) -> Method:
    """Return features of an image encoder, less the mean of their section, for a probe."""

    def answer(task: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {n: np.asarray(a.obsm[key], dtype=np.float64) - np.mean(a.obsm[key], axis=0) for n, a in task.asked().items()}

    return Method(f"raw {name}", answer, ("labels",), "model", name, needs=(key,))


class Ridges:
    """Ridge regressions of expression on embeddings of images, as `colour ridge` of `stimg.bench` has it; the targets of a fold are read once."""

    def __init__(self) -> None:
        self.known: dict[frozenset[str], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def method(
        self, name: str, read: Callable[[Task], tuple[Mapping[str, np.ndarray], tuple[Any, ...]]], n_components: int | None = 256
    ) -> Method:
        """Return the ridge regression on what ``read`` returns of a task: values by library, and what was fitted for them."""

        def answer(task: Task, rng: np.random.Generator) -> Prediction:
            train = [library_of(a) for a in task.train]
            if frozenset(train) not in self.known:
                self.known[frozenset(train)] = (*training(task), held_out(task))
            target, section, group = self.known[frozenset(train)]
            values, fitted = read(task)
            asked = task.asked()
            found = embedding_ridge(
                np.concatenate([values[n] for n in train]),
                target,
                np.concatenate([values[n] for n in asked]),
                train_section=section,
                test_section=np.concatenate([[n] * a.n_obs for n, a in asked.items()]),
                train_group=group,
                n_components=n_components,
            )
            ends = np.cumsum([a.n_obs for a in asked.values()])[:-1]
            return Prediction(dict(zip(asked, np.split(found.values, ends), strict=True)), fitted, {"penalty": found.penalty})

        return Method(name, answer, ("expression",), "model", name)

    def of_slot(self, name: str, keys: Sequence[str], n_components: int | None = 256) -> Method:
        """Return the ridge on slots of ``obsm``."""

        def read(task: Task) -> tuple[Mapping[str, np.ndarray], tuple[Any, ...]]:
            return {library_of(a): np.hstack([a.obsm[k] for k in keys]) for a in (*task.train, *task.test)}, ()

        return self.method(name, read, n_components)

    def of_cell(self, name: str, folds: Answers, beside: Sequence[str] = ()) -> Method:
        """Return the ridge on aligned embeddings, with slots of ``obsm`` beside them where wanted."""

        def read(task: Task) -> tuple[Mapping[str, np.ndarray], tuple[Any, ...]]:
            found = by_train(folds, task)
            values = {}
            for a in (*task.train, *task.test):
                lib = library_of(a)
                values[lib] = np.hstack([found.values[lib]["image"], *(a.obsm[k] for k in beside)])
            return values, found.fitted

        return self.method(name, read)


class WithoutP(ExpressionProtocol):
    """A protocol of expression without p-values of single sections, which no table here prints and which would take most of the time."""

    def significance(self, task: Any, hidden: Any, values: Any, scored: Any) -> list[dict[str, Any]]:
        """Return nothing."""
        return [{} for _ in scored.rows]

    @classmethod
    def of(cls, protocol: Any, **changes: Any) -> "WithoutP":
        """Return ``protocol`` without p-values and with changes."""
        return cls(**{**{f.name: getattr(protocol, f.name) for f in fields(protocol)}, **changes})


def scores(report: Any, division: Callable[[Mapping[str, Any]], str], metrics: Sequence[str]) -> pd.DataFrame:
    """Return the scores of a report, long: method, fold (by ``division`` of a row), library, further strata, metric, value."""
    rows = [
        {
            "method": r["method"],
            "fold": division(r),
            "library": r["library"],
            **{k: r[k] for k in report.data["protocol"]["strata"]},
            "metric": m,
            "value": r[m],
        }
        for r in report.data["scores"]
        for m in metrics
        if r.get(m) is not None
    ]
    return pd.DataFrame(rows)
