"""What a trained imputation network says of places without a measurement."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg._core import keys, validate
from stimg.data.slots import raster_libraries
from stimg.model._s2s_calibration import raw
from stimg.model._s2s_fields import field_of
from stimg.model._s2s_lattice import points_of, positions, raster_of, steps_of, surroundings
from stimg.model._s2s_read import Section, features, helpers_of, sections

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.model.s2s import S2SImputer

FACTORS = (2, 4)
MOST = 12_000
"""Places that are read at once; a larger slide is read in overlapping windows."""
SIDE, HALO = 64, 10
"""Steps of a window, and by how many it overlaps the next on each side."""


class Imputed(NamedTuple):
    """Values and standard deviations of a new measurement, float32 (places, genes) each, log1p counts per 10,000."""

    values: np.ndarray
    sd: np.ndarray


class Genes(NamedTuple):
    """Columns of a section that are wanted; axes of other donors for all its columns; how many genes are read at a time."""

    columns: np.ndarray
    axes: np.ndarray | None
    batch_size: int


class Asked(NamedTuple):
    """The places asked for in one library: steps on a lattice ``factor`` times finer, their positions in the result, and guide features."""

    steps: np.ndarray
    out: np.ndarray
    factor: int
    guide: np.ndarray | None


def impute(model: "S2SImputer", adata: "AnnData", targets: Any, genes: Sequence[str], *, batch_size: int) -> Imputed:
    """Return what ``model`` says of ``targets``; see :meth:`stimg.model.S2SImputer.impute`."""
    if not len(genes):
        raise ValueError("genes is empty; wanted at least one, or None for those of the model.")
    validate.unique_names(pd.Index(genes), "genes asked for", todo="Name each gene once.")
    validate.genes(genes, adata.var_names, what="genes", todo="Pass names of adata.var_names.")
    every = [*model.genes[model.genes.isin(adata.var_names)], *(gene for gene in genes if gene not in model.genes)]
    columns = pd.Index(every).get_indexer(list(genes))
    helpers = helpers_of(adata, every, layer=model._layer)
    found = sections(adata, every, helpers=helpers, **model._reading())
    model._check_lattices([each.spec for each in found])
    asked = asked_for(model, adata, found, targets)
    n = sum(len(each.out) for each in asked.values())
    values, sd = np.zeros((n, len(genes)), dtype=np.float32), np.zeros((n, len(genes)), dtype=np.float32)
    factor, axes = model._calibration_of(genes), model.axes_for([*every, *helpers])
    for section in found:
        if section.name in asked and len(asked[section.name].out):
            each = asked[section.name]
            passes = [2, 2] if each.factor == 4 else [each.factor]
            values[each.out], sd[each.out] = _filled(model, section, each, passes, Genes(columns, axes, batch_size))
    return Imputed(np.maximum(values, 0.0), sd * factor)


def asked_for(model: "S2SImputer", adata: "AnnData", found: Sequence[Section], targets: Any) -> dict[str, Asked]:
    """Return the places that ``targets`` names, by library."""
    if targets is None or (isinstance(targets, int | np.integer) and not isinstance(targets, bool)):
        factor = 1 if targets is None else int(targets)
        if factor not in (1, *FACTORS):
            raise ValueError(
                f"targets={factor}; wanted a lattice {' or '.join(map(str, FACTORS))} times finer, places, or None for the holes of the raster."
            )
        if model._guide_key is not None:
            raise ValueError(
                "The model reads a guide, which has to be known at the places too. Pass an AnnData with these features as `targets`."
            )
        out, n = {}, 0
        for section in found:
            steps = holes(section, factor)
            out[section.name] = Asked(steps, n + np.arange(len(steps)), factor, None)
            n += len(steps)
        return out
    if hasattr(targets, "obsm"):
        rasters = raster_libraries(adata, library_key=model._library_key)
        column = validate.obs(targets, model._library_key, todo="Name the library of every place.").astype(str).to_numpy()
        rc = np.asarray(validate.slot(targets.obsm, "obsm", keys.RC, todo="Give the places their row and column on the raster of `adata`."))
        guide = None if model._guide_key is None else _guide_at(model, targets)
        unknown = sorted(set(column) - set(rasters))
        if unknown:
            raise ValueError(f"targets has libraries that adata has not: {unknown}; adata has {sorted(rasters)}.")
        out = {}
        for name in np.unique(column):
            at = np.flatnonzero(column == name)
            steps = _on(rasters[name].spec, rc[at])
            out[str(name)] = Asked(steps, at, 1, None if guide is None else guide[at])
        return out
    rc = np.asarray(targets)
    if rc.ndim != 2 or rc.shape[1] != 2 or rc.dtype.kind not in "iu":
        raise ValueError(
            f"targets is {rc.dtype} of shape {rc.shape}; wanted whole (row, column) of the raster (n, 2), an AnnData, 2, 4, or None."
        )
    if len(found) != 1:
        raise ValueError(
            f"targets are rows and columns, but adata has {len(found)} libraries. Pass an AnnData that names the library of each place."
        )
    if model._guide_key is not None:
        raise ValueError(
            "The model reads a guide, which has to be known at the places too. Pass an AnnData with these features as `targets`."
        )
    return {found[0].name: Asked(_on(found[0].spec, rc), np.arange(len(rc)), 1, None)}


def _guide_at(model: "S2SImputer", targets: "AnnData") -> np.ndarray:
    """Return the guide features of the places; an error where there are none, or others than the model reads."""
    key = model._guide_key
    if key not in targets.obsm:
        raise KeyError(
            f"targets.obsm[{key!r}] is missing (found {sorted(targets.obsm)}). The model reads a guide, which has to be known at the places too: "
            "pass an AnnData with these features as `targets`."
        )
    guide = features(targets, str(key))
    if guide.shape[1] != model.n_guide:
        raise ValueError(
            f"targets.obsm[{key!r}] has {guide.shape[1]} columns; wanted the {model.n_guide} that the model reads. Compute them as for its training."
        )
    return guide


def _on(spec: Any, rc: np.ndarray) -> np.ndarray:
    rc = np.asarray(rc, dtype=np.int64).reshape(-1, 2)
    off = ((rc < 0) | (rc >= np.asarray(spec.shape))).any(axis=1)
    if off.any():
        raise ValueError(
            f"{int(off.sum())} of {len(rc)} targets are outside the raster of {spec.shape[0]} x {spec.shape[1]}, such as {rc[off][0].tolist()}."
        )
    return steps_of(spec, rc)


def holes(section: Section, factor: int) -> np.ndarray:
    """Return the steps of the places between the measured points that hold none, on a lattice ``factor`` times finer."""
    steps, between = surroundings(section.spec, section.steps, factor)
    return steps[between & (positions(steps, section.steps * factor) < 0)]


def table(model: "S2SImputer", adata: "AnnData", factor: int) -> pd.DataFrame:
    """Return the places behind ``targets=factor``; see :meth:`stimg.model.S2SImputer.places`."""
    parts = []
    for name, library in raster_libraries(adata, library_key=model._library_key).items():
        measured = np.unique(steps_of(library.spec, library.rc), axis=0)
        steps, between = surroundings(library.spec, measured, factor)
        steps = steps[between & (positions(steps, measured * factor) < 0)]
        affine = np.asarray(library.spec.affine)
        yx = points_of(library.spec, steps, factor) @ affine[:, :2].T + affine[:, 2]
        rc = raster_of(library.spec, steps)
        parts.append(pd.DataFrame({model._library_key: name, "row": rc[:, 0], "col": rc[:, 1], "y": yx[:, 0], "x": yx[:, 1]}))
    return pd.concat(parts, ignore_index=True)


def _filled(model: "S2SImputer", section: Section, asked: Asked, passes: list[int], genes: Genes) -> tuple[np.ndarray, np.ndarray]:
    """Return values and standard deviations at the places asked for, (places, genes) each; several passes double the lattice one after the other."""
    if len(passes) == 1:
        return _pass(model, section, asked.steps, passes[0], asked.guide, genes)
    everything = genes._replace(columns=np.arange(section.n_genes))
    first = holes(section, passes[0])
    coarse, coarse_sd = _pass(model, section, first, passes[0], None, everything)
    axes = None if genes.axes is None else genes.axes[:, : section.n_genes]
    values, sd = _pass(model, refined(section, first, coarse, passes[0]), asked.steps, passes[1], None, genes._replace(axes=axes))
    at = positions(asked.steps, first * passes[1])
    again = np.flatnonzero(at >= 0)
    values[again], sd[again] = coarse[at[again]][:, genes.columns], coarse_sd[at[again]][:, genes.columns]
    least = coarse_sd.mean(axis=0)[genes.columns]  # the second pass takes the first for measurements, and would be too sure
    return values, np.maximum(sd, least)


def refined(section: Section, steps: np.ndarray, values: np.ndarray, factor: int) -> Section:
    """Return a section on a lattice ``factor`` times finer, of the measured points and of ``values`` at ``steps`` as if they were measured; without helping genes."""
    spec = section.spec
    extra = 1 if spec.lattice == "hex" else 0
    shape = (factor * (spec.shape[0] - 1) + 1, factor * (spec.shape[1] - 1) + 1 + extra * factor)
    finer = replace(spec, shape=shape, pitch_um=spec.pitch_um / factor)
    every = np.concatenate([section.steps * factor, steps])
    order = np.lexsort(every.T[::-1])
    joined = sp.csr_matrix(np.concatenate([section.dense(np.arange(section.n_genes)), np.maximum(values, 0.0)])[order].astype(np.float32))
    counts = np.concatenate([section.counts, np.full(len(steps), np.median(section.counts))])[order]
    return Section(section.name, finer, every[order], joined, section.n_genes, counts, None, np.full(len(every), -1))


def _pass(
    model: "S2SImputer", section: Section, wanted: np.ndarray, factor: int, guide: np.ndarray | None, genes: Genes
) -> tuple[np.ndarray, np.ndarray]:
    """Return values and standard deviations at ``wanted`` steps of a lattice ``factor`` times finer, (places, genes) each."""
    near = surroundings(section.spec, section.steps, factor)[0]
    places = np.unique(np.concatenate([near, wanted, section.steps * factor]), axis=0)
    n_genes = len(genes.columns)
    values, sd, total = np.zeros((len(wanted), n_genes)), np.zeros((len(wanted), n_genes)), np.zeros(len(wanted))
    for known, here, asked, weight in _windows(section, places, wanted, factor):
        part = section.part(known)
        found = None
        if section.guide is not None:
            found = np.full((len(here), section.guide.shape[1]), np.nan, dtype=np.float32)
            at = positions(part.steps * factor, here)
            found[at] = part.guide
            if guide is not None:
                found[positions(wanted[asked], here)] = guide[asked]
        nothing = np.zeros(0, dtype=np.int64)
        field = field_of(part, np.arange(len(known)), nothing, model.options, places=here, factor=factor, guide=found, axes=genes.axes)
        at = positions(wanted[asked], here)
        for start in range(0, n_genes, genes.batch_size):
            out = np.arange(start, min(start + genes.batch_size, n_genes))
            columns = genes.columns[out]
            _, mean, spread = raw(model, field, columns, at)
            scale = field.base.spread[columns]
            block = np.ix_(asked, out)
            values[block] += weight[:, None] * (mean.T * scale + field.base.mean[columns])
            sd[block] += weight[:, None] * spread.T * scale
        total[asked] += weight
        if model.options.final_consistency:
            same = positions(wanted[asked], part.steps * factor)
            hit = same >= 0
            values[asked[hit]] = part.dense(genes.columns)[same[hit]] * total[asked[hit], None]
    return values / total[:, None], sd / total[:, None]


def _windows(section: Section, places: np.ndarray, wanted: np.ndarray, factor: int) -> Any:
    """Yield for each window the points that are shown, its places, the positions of those asked for in it, and their weights."""
    if len(places) <= MOST:
        yield np.arange(len(section.steps)), places, np.arange(len(wanted)), np.ones(len(wanted))
        return
    low, high = places.min(axis=0), places.max(axis=0)
    core, points = SIDE - 2 * HALO, section.steps * factor
    for top in range(int(low[0]), int(high[0]) + 1, core):
        for left in range(int(low[1]), int(high[1]) + 1, core):
            corner = np.array([top, left])

            def inside(steps: np.ndarray, halo: int, corner: np.ndarray = corner) -> np.ndarray:
                return np.flatnonzero(((steps >= corner - halo) & (steps < corner + core + halo)).all(axis=1))

            asked = inside(wanted, HALO // 2)
            known = inside(points, HALO)
            if not len(asked):
                continue
            reach = HALO
            while len(known) < 8:
                reach *= 2
                known = inside(points, reach)
            here = places[inside(places, reach)]
            away = np.minimum(wanted[asked] - (corner - HALO // 2), corner + core + HALO // 2 - 1 - wanted[asked]).min(axis=1)
            yield known, here, asked, np.minimum((away + 1.0) / (HALO + 1.0), 1.0)
