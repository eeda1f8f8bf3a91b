"""A map with holes, ready for any gene: what is known of it, what is asked for, and how both become a batch for an imputation network."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from stimg.image.interpolate import METHODS, Measured
from stimg.model import _s2s_base, _s2s_natural
from stimg.model._s2s_base import Base
from stimg.model._s2s_lattice import plane_of, positions, rasterised
from stimg.model._s2s_read import Section
from stimg.model.s2s_options import S2SImputerOptions
from stimg.nn.s2s import LatticeBatch


@dataclass(frozen=True, eq=False)
class Field:
    """A map with holes: where it is known, where it is asked for, and what the cascade starts from.

    Parameters
    ----------
    section
        The measured points of the window.
    asked
        Columns of ``section`` that are asked for: the genes of the field.
    steps
        All places of the window, int64 (P, 2).
    known, wanted
        Positions in ``section`` of the points that are shown, and of those that are to be predicted.
    known_at, wanted_at
        Their positions in ``steps``.
    base
        Fitted on the points that are shown, and on nothing else.
    guide
        Features of all places, float32 (P, D), NaN where there are none.
    pictures
        Pictures that are learned from beside the genes, or None.
    """

    section: Section
    asked: np.ndarray
    steps: np.ndarray
    known: np.ndarray
    wanted: np.ndarray
    known_at: np.ndarray
    wanted_at: np.ndarray
    base: Base
    guide: np.ndarray
    pictures: "Pictures | None" = None


class Pictures(NamedTuple):
    """Pictures under the points of a field: their truth (n, P), what is shown at known points (n, k), their base, its doubt (n, P) and their facts (n, F)."""

    clean: np.ndarray
    shown: np.ndarray
    start: np.ndarray
    doubt: np.ndarray
    facts: np.ndarray


def field_of(
    section: Section,
    known: np.ndarray,
    wanted: np.ndarray,
    options: S2SImputerOptions,
    *,
    places: np.ndarray,
    asked: np.ndarray | None = None,
    factor: int = 1,
    guide: np.ndarray | None = None,
    axes: np.ndarray | None = None,
) -> Field:
    """Return the field of ``section`` whose points ``known`` are shown.

    ``places`` are the steps of the window, ``factor`` times finer than the section's; ``asked`` the columns of the genes (None: those of the section that
    do not only help); ``axes`` are those of other donors.
    """
    points = section.steps * factor
    shown = section.part(known)
    asked = np.arange(section.n_genes) if asked is None else asked
    at = positions(points, places)
    if guide is None:
        guide = np.full((len(places), 0 if section.guide is None else section.guide.shape[1]), np.nan, dtype=np.float32)
        if section.guide is not None:
            guide[at[at >= 0]] = section.guide[at >= 0]
    base = _s2s_base.fit(
        plane_of(section.hexagonal, shown.steps),
        shown.dense().astype(np.float64),
        shown.counts,
        plane_of(section.hexagonal, places) / factor,
        asked=asked,
        kind=options.base,
        count_aware=options.count_aware,
        standardise=options.standardise,
        axes=axes,
        features=None if shown.guide is None else (shown.guide, guide),
    )
    return Field(section, asked, places, known, wanted, at[known], at[wanted], base, guide)


def batch_of(
    field: Field,
    genes: np.ndarray,
    options: S2SImputerOptions,
    *,
    turn: np.ndarray | None = None,
    pictures: np.ndarray | None = None,
) -> tuple[LatticeBatch, np.ndarray]:
    """Return the maps of ``genes``, positions among those of the field, and behind them ``pictures``, positions among its pictures.

    With them the place of each point of the field in the flattened raster.
    """
    raster = rasterised(field.steps, turn)
    (rows, cols), n_genes, base = raster.shape, len(genes), field.base
    values = field.section.dense(field.asked[genes])
    known, target = base.units(values[field.known], genes), base.units(values[field.wanted], genes)
    facts = base.facts[genes]
    relative = _s2s_base.relative_depth(field.section.counts[field.wanted], float(np.median(field.section.counts[field.known])))
    noise = np.minimum(facts[:, 1:2], 0.95)
    weight = 1.0 / ((1.0 - noise) + noise / relative) if options.count_aware else np.ones_like(target)
    wanted_at = field.wanted_at
    n_all = n_genes + (0 if pictures is None else len(pictures))
    shape = (n_all, rows * cols)
    out = {name: np.zeros(shape, dtype=np.float32) for name in ("measured", "target", "weight", "doubt")}
    out["base"] = np.zeros((n_all, _s2s_base.N_MAPS, rows * cols), dtype=np.float32)
    shown_at = raster.at[field.known_at]
    out["measured"][:n_genes, shown_at] = known
    out["base"][:n_genes, :, raster.at] = base.maps[genes]
    out["doubt"][:n_genes, raster.at] = base.doubt[genes]
    out["target"][:n_genes, raster.at[wanted_at]] = target
    out["weight"][:n_genes, raster.at[wanted_at]] = weight
    if pictures is not None and len(pictures):
        assert field.pictures is not None
        clean, shown, start, doubt, about = (each[pictures] for each in field.pictures)
        out["measured"][n_genes:, shown_at] = shown
        out["base"][n_genes:, 0, raster.at] = start
        out["doubt"][n_genes:, raster.at] = doubt
        out["target"][n_genes:, raster.at] = clean
        everywhere = np.ones(len(field.steps), dtype=np.float32)
        if options.score == "hidden":
            everywhere[field.known_at] = 0.0
        mean_weight = weight.sum(axis=1).mean() if weight.size else 1.0
        out["weight"][n_genes:, raster.at] = everywhere * mean_weight / max(float(everywhere.sum()), 1.0)
        facts = np.concatenate([facts, about])
    depth, far = np.ones(rows * cols, dtype=np.float32), np.zeros(rows * cols, dtype=np.float32)
    depth[shown_at], far[raster.at] = base.depth, base.far
    mask = {name: np.zeros(rows * cols, dtype=bool) for name in ("known", "inside")}
    mask["known"][shown_at], mask["inside"][raster.at] = True, True
    guide = np.full((field.guide.shape[1], rows * cols), np.nan, dtype=np.float32)
    guide[:, raster.at] = field.guide.T
    arrays: dict[str, np.ndarray] = {**out, **mask, "depth": depth, "far": far, "guide": guide}
    tensors: dict[str, Any] = {name: torch.from_numpy(each.reshape(*each.shape[:-1], rows, cols)) for name, each in arrays.items()}
    return LatticeBatch(**tensors, facts=torch.from_numpy(np.ascontiguousarray(facts))), raster.at  # type: ignore[typeddict-item]


def pictures_of(field: Field, n: int, options: S2SImputerOptions, rng: np.random.Generator) -> Pictures:
    """Return ``n`` pictures under the points of a field, by the rules of its genes.

    With noise, a picture has the part of noise and the facts of a gene of the field; depth makes some spots noisier, as it does for genes.
    """
    assert options.natural is not None
    base, hexagonal = field.base, field.section.hexagonal
    clean = _s2s_natural.sampled(options.natural, plane_of(hexagonal, field.steps), n, rng)
    if not options.standardise:
        clean = (0.5 + 0.2 * clean).clip(0, 1)
    about = base.facts[rng.integers(len(base.facts), size=n)].copy()
    if options.natural_noise:
        explained = np.clip(np.where(base.doubt.any(), about[:, 3], 1.0 - about[:, 1]), 0.02, 0.9)[:, None]
        clean = clean * np.sqrt(explained)
        noise = rng.normal(size=(n, len(field.known_at))) * np.sqrt((1.0 - explained) / base.depth)
        shown = clean[:, field.known_at] + noise
    else:
        about[:, 1:] = np.array([0.0, 1.0, 1.0])
        shown = clean[:, field.known_at]
    points, places = (plane_of(hexagonal, steps) for steps in (field.steps[field.known_at], field.steps))
    name = _s2s_base.members(options.base, donors=False)[-1]
    found = METHODS[name](
        Measured(points, shown.T.astype(np.float64), logs=False, depth=base.depth if options.natural_noise else None), places
    )
    doubt = np.zeros_like(clean) if found.variance is None else np.log(np.clip(found.variance.T, 1e-3, 20.0))
    every = (clean, shown, found.values.T, doubt, about)
    return Pictures(*(np.ascontiguousarray(each, dtype=np.float32) for each in every))
