"""Heads: from image features, or from a model that aligns images and expression, to the expression of single genes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from stimg._core import hashing, keys, validate
from stimg._core.ledger import Seen
from stimg.data.ledger import recall, seen_of
from stimg.model._head_axes import AxesMap
from stimg.model._head_calibration import level_of
from stimg.model._head_fit import Fitted, fit_features, fit_network
from stimg.model._head_maps import ROWS, within
from stimg.model._head_recipe import check_recipe, recipe_of
from stimg.model._head_reference import LIBRARY_TODO, features_of, log_depth, log_values, reference_of, shared_genes, tables_of
from stimg.model.head_options import FEATURES, KINDS, ExpressionHeadOptions

if TYPE_CHECKING:
    from anndata import AnnData

UNIT = "log1p_cp10k"


class PredictedGenes(NamedTuple):
    """``values``, and the bounds ``lower`` and ``upper`` of their intervals or None: float32 (n_obs, genes)."""

    values: np.ndarray
    lower: np.ndarray | None
    upper: np.ndarray | None


class ExpressionHead:
    """Predicts genes from what is known of the image; made by :meth:`fit` or :meth:`load`, applied by :func:`stimg.tl.predict_expression`.

    Attributes
    ----------
    options
        :class:`ExpressionHeadOptions`.
    genes
        Genes that it predicts.
    calibration
        Predictability and intervals, learnt on observations that were left out; None where nothing could be left out.
    ledger
        What has been seen on the way (:class:`stimg.bench.Seen`): the reference, what its features were fitted on, the model.
    recipe
        How the features were made, by slot: encoder, side of the tile, µm per pixel.
    network
        The model behind ``kind="trained"``, or behind ``"retrieval"`` in its space; else None.
    """

    def __init__(
        self,
        options: ExpressionHeadOptions,
        genes: Sequence[str],
        fitted: Fitted,
        *,
        ledger: Sequence[Seen],
        recipe: Mapping[str, Mapping[str, Any]],
        library_key: str = keys.LIBRARY,
        layer: str | None = None,
        network: Any = None,
    ) -> None:
        self.options, self.genes = options, pd.Index([str(gene) for gene in genes])
        self.map, self.calibration, self.n_features = fitted.map, fitted.calibration, fitted.n_features
        self.ledger, self.recipe, self.network = tuple(ledger), dict(recipe), network
        self.library_key, self.layer = library_key, layer

    @classmethod
    def fit(
        cls,
        reference: "AnnData | Sequence[AnnData]",
        *,
        features: str | Sequence[str] = FEATURES,
        genes: Sequence[str] | None = None,
        kind: str = "ridge",
        expression: "AnnData | Sequence[AnnData] | None" = None,
        model: Any = None,
        centre: bool = True,
        n_components: int | None = 256,
        n_joint: int = 16,
        k: int = 50,
        temperature: float | None = None,
        layer: str | None = None,
        library_key: str = keys.LIBRARY,
        donor_key: str = keys.DONOR,
    ) -> "ExpressionHead":
        """Return a head fitted on sections that have expression and image features.

        Parameters
        ----------
        reference
            One AnnData or several, with raw counts.
        features
            Slots of ``obsm``. Not read with ``model``.
        genes
            Genes to predict; None: all that every section measured and that have a count, but for control probes.
        kind, centre, n_components, n_joint, k
            As for :class:`ExpressionHeadOptions`.
        expression
            Further sections with counts, whether or not they have an image, from which ``"axes"`` learns what expression varies along, and nothing
            about images. A gene that one of them did not measure counts as zero there.
        model
            A trained ``stimg.model.ImageGeneCLIP``: with ``kind="retrieval"`` its joint space is used; with ``kind="trained"`` its decoder, and the
            reference only serves to calibrate it, so that it must not have been seen by the model.
        temperature
            Of the weights of ``"retrieval"``; None: 0.3, or what the model has learnt.
        layer
            Layer with raw counts.
        library_key, donor_key
            Columns of ``obs`` with the section and the donor.

        Raises
        ------
        KeyError
            For missing features, columns or genes.
        ValueError
            For features that were made differently in two tables, sections that are in two, a reference of which nothing can be left out, a model
            without a decoder, or one that has seen the reference it should be judged on.
        TypeError
            For a reference that is no AnnData.

        Notes
        -----
        To calibrate, donors are left out in turn (in at most five groups); sections where there is one donor, contiguous quarters where there is
        one section. Everything, the penalty included, is then chosen and fitted on the others. The penalty is the one with the highest
        correlation on groups that are left out. Where a model has seen the reference, ``"retrieval"`` in its space is not calibrated.

        Examples
        --------
        >>> import stimg
        >>> adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, n_donors=3, rng=0)
        >>> adata.obsm["X_some"] = adata.X.toarray()[:, :4].astype("float32")
        >>> head = stimg.model.ExpressionHead.fit(adata, features="X_some", genes=["Gene00001", "Gene00002"])
        >>> head.calibration.level, head.predict(adata).values.shape
        ('donor', (192, 2))
        """
        tables = tables_of(reference)
        more = [] if expression is None else tables_of(expression, what="expression")
        slots = () if model is not None else tuple(validate.names(features))
        validate.one_of(kind, KINDS, "kind")
        if model is None and kind == "trained":
            raise ValueError("kind='trained' needs a trained model. Pass `model=`, or kind='ridge' or 'retrieval'.")
        if model is not None and kind in ("ridge", "axes"):
            raise ValueError(
                f"kind={kind!r} regresses on features and reads no model. Pass kind='trained' or 'retrieval', or leave the model out."
            )
        if more and kind != "axes":
            raise ValueError(
                f"kind={kind!r} learns nothing from sections without image features. Pass kind='axes', or leave expression= out."
            )
        if model is None and not slots:
            raise ValueError("features is empty; wanted at least one slot of adata.obsm.")
        wanted = _genes_of(model, tables, genes, layer) if kind == "trained" else shared_genes(tables, genes, layer)
        options = ExpressionHeadOptions(kind, slots, centre, n_components, n_joint, k, _temperature(temperature, model))
        recipe = recipe_of(tables[0], slots)
        for each in tables[1:]:
            check_recipe(each, recipe)
        columns: dict[str, Any] = {"layer": layer, "library_key": library_key, "donor_key": donor_key}
        ref = reference_of(tables, wanted, more=more, **columns)
        if model is None:
            widths = {each.obsm[key].shape[1] for key in slots for each in tables if key in each.obsm}
            x = [features_of(each, slots) for each in tables]
            if len({part.shape[1] for part in x}) > 1:
                raise ValueError(
                    f"the features have {sorted(widths)} columns in different tables of the reference; wanted the same in each."
                )
            fitted = fit_features(np.concatenate(x), ref, options)
        else:
            fitted = fit_network(tables, wanted, ref, options, model, **columns)
        who = f"{kind} head"
        ledger = [
            seen_of(each, who=who, kind="model", genes=[g for g in wanted if g in each.var_names], **columns) for each in [*tables, *more]
        ]
        ledger += _once([*(seen for each in tables for seen in recall(each, only=slots)), *([] if model is None else recall(model))])
        return cls(options, wanted, fitted, ledger=ledger, recipe=recipe, library_key=library_key, layer=layer, network=model)

    @classmethod
    def of_model(cls, model: Any, *, genes: Sequence[str] | None = None) -> "ExpressionHead":
        """Return the decoder of a trained model as a head that is not calibrated: no predictability, no intervals."""
        wanted = _genes_of(model, (), genes, None)
        options = ExpressionHeadOptions("trained", ())
        return cls(options, wanted, Fitted(None, None, 0), ledger=recall(model), recipe={}, network=model)

    @property
    def predictability(self) -> pd.Series:
        """Pearson's r of every gene on observations that were left out, float64; NaN where nothing was."""
        values = np.full(len(self.genes), np.nan) if self.calibration is None else self.calibration.predictability.astype(np.float64)
        return pd.Series(values, index=self.genes, name="predictability")

    def predict(
        self,
        adata: "AnnData",
        *,
        genes: Sequence[str] | None = None,
        coverage: float | None = None,
        library_key: str | None = None,
    ) -> PredictedGenes:
        """Return log1p counts per 10,000 of ``genes`` (None: all), float32 (n_obs, genes), and intervals where ``coverage`` is given.

        Raises
        ------
        KeyError
            For missing features, a missing column with the section, or genes that the head does not predict.
        ValueError
            For features of another width or made in another way, NaN in them, intervals of a head that is not calibrated, or a coverage outside
            [0.5, 0.99].
        """
        validate.unique_names(pd.Index(validate.names(genes or ())), "genes asked for", todo="Name each gene once.")
        todo = "The head predicts `head.genes` alone."
        at = (
            np.arange(len(self.genes))
            if genes is None
            else validate.genes(validate.names(genes), self.genes, what="genes asked for", todo=todo)
        )
        if coverage is not None:
            level_of(coverage)
            if self.calibration is None:
                raise ValueError(
                    "the head has no residuals of observations that it has not seen, so it knows no intervals. Pass `reference=` with sections "
                    "that the model has not seen, or `coverage=None`."
                )
        if self.map is None:
            values = self.network.predict_expression(adata, genes=list(self.genes[at]), head="trained").to_numpy(dtype=np.float32)
        else:
            query = self._query(adata, library_key or self.library_key)
            values = np.zeros((adata.n_obs, len(at)), dtype=np.float32)
            for start in range(0, adata.n_obs, ROWS):
                part = slice(start, min(start + ROWS, adata.n_obs))
                values[part] = self.map.values(self.map.prepare(query[part]), at)
        np.maximum(values, 0.0, out=values)  # where a regression falls below, no log value does
        if coverage is None or self.calibration is None:
            return PredictedGenes(values, None, None)
        return PredictedGenes(values, *self.calibration.intervals(values, at, coverage))

    def _query(self, adata: "AnnData", library_key: str) -> np.ndarray:
        if self.network is not None:
            return np.asarray(self.network.get_image_embedding(adata))
        x = features_of(adata, self.options.features)
        if x.shape[1] != self.n_features:
            raise ValueError(
                f"adata.obsm{list(self.options.features)} have {x.shape[1]} columns; the head was fitted on {self.n_features}. Compute the features as "
                "for the reference."
            )
        check_recipe(adata, self.recipe)
        column = validate.obs(adata, library_key, todo=LIBRARY_TODO).astype(str)
        return within(x, pd.factorize(column)[0], centre=self.options.centre)

    def get_image_embedding(self, adata: "AnnData") -> np.ndarray:
        """Return the image side of the joint space of ``kind="axes"``, float32 (n_obs, 1 + axes): latents that the image tells of.

        Each latent has unit variance in the reference, times its correlation with the truth where groups were left out, so that those an image
        does not tell weigh little in a cosine. See :func:`stimg.tl.align` and :func:`stimg.tl.retrieve`, which take a head as their model.

        Raises
        ------
        ValueError
            For a head of another kind; and as :meth:`predict`.
        """
        map_ = self._axes()
        return map_.joint(map_.prepare(self._query(adata, self.library_key)), predicted=True)

    def get_gene_embedding(self, adata: "AnnData") -> np.ndarray:
        """Return the expression side of the joint space of ``kind="axes"``, float32 (n_obs, 1 + axes).

        Raises
        ------
        KeyError
            For genes that span the axes and were not measured, or a missing column with the section.
        ValueError
            For a head of another kind.
        """
        map_ = self._axes()
        genes = [str(g) for g in self.genes[map_.axes.judged]]
        validate.genes(genes, adata.var_names, what="genes that span the axes", todo="Embed sections that measured them.")
        column = validate.obs(adata, self.library_key, todo=LIBRARY_TODO).astype(str)
        values, depth = log_values(adata, genes, self.layer), log_depth(adata, self.layer)
        return map_.joint(map_.axes.latents(values, depth, pd.factorize(column)[0], centre=self.options.centre), predicted=False)

    def _axes(self) -> AxesMap:
        if not isinstance(self.map, AxesMap):
            raise ValueError(
                f"a head of kind={self.options.kind!r} has no joint space of its own. Fit one with kind='axes', or align a model."
            )
        return self.map

    def identity(self, adata: "AnnData | None" = None) -> dict[str, Any]:
        """Return what a record of a prediction says of the head, the same for any data."""
        arrays = {} if self.map is None else self.map.arrays()
        parts = [hashing.of_array(arrays[name]) for name in sorted(arrays)]
        calibration = {} if self.calibration is None else {f"calibration_{k}": v for k, v in self.calibration.facts().items()}
        return {
            "head": self.options.kind,
            "features": list(self.options.features) or "read by the model",
            "head_hash": hashing.of_strings([*parts, *self.genes]),
            "model": "none" if self.network is None else type(self.network).__name__,
            "centre": self.options.centre,
            **calibration,
        }

    def save(self, directory: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Write the head into a folder, whole or not at all: numbers as safetensors, all else as JSON, a model in a folder of its own inside."""
        from stimg.model._head_files import save

        save(self, Path(directory), overwrite=overwrite)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "ExpressionHead":
        """Return the head that :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            For a folder that is none, is damaged, or holds something else.
        """
        from stimg.model._head_files import load

        return load(Path(directory))


def _temperature(temperature: float | None, model: Any) -> float:
    if temperature is not None:
        return temperature
    return ExpressionHeadOptions.temperature if model is None else 1.0 / float(model.scale)


def _genes_of(model: Any, tables: Sequence["AnnData"], genes: Sequence[str] | None, layer: str | None) -> list[str]:
    """Return the genes that a model's decoder predicts and that all tables measured, or those asked for."""
    known = pd.Index(model.genes)
    if genes is not None:
        wanted = validate.names(genes)
        validate.genes(wanted, known, what="genes asked for", todo="The model predicts genes of its vocabulary alone (`model.genes`).")
        return shared_genes(tables, wanted, layer) if tables else wanted
    return [str(g) for g in known if all(g in each.var_names for each in tables)]


def _once(ledger: Sequence[Seen]) -> list[Seen]:
    """Return the records without repeats."""
    out: dict[tuple, Seen] = {}
    for seen in ledger:
        out.setdefault((seen.who, seen.kind, seen.libraries, seen.ids.tobytes(), seen.contents.tobytes()), seen)
    return list(out.values())
