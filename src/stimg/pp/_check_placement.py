"""Checks of how a library's expression lies on its image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg.image.alignment import IDENTITY, ImageMaps, agreement, expression_values, image_maps, lead
from stimg.pp._check_image import Picture
from stimg.pp._check_rows import Row, percent
from stimg.pp._check_search import CHANCE, KINDS, LEAST_COVERAGE, LEAST_MARGIN, LIKE, SURE, Alternative, Placement, search
from stimg.pp._check_sources import Measured, Source
from stimg.pp._check_view import View

LEAST_OBSERVATIONS = 50
"""Observations from which expression is compared with an image."""
MOST_OBSERVATIONS = 3000
"""More are added up in squares first."""
GROUP = 8
"""Cells and small bins that are added up at least."""
OFF_TISSUE = (0.9, 0.5)
"""Share on tissue below which it is remarked upon, and below which it fails."""
EMPTY_OFF_TISSUE = 0.8
"""Probability that an observation on tissue has more counts than one beside it, from which those beside it are background."""
MANY_BETTER = 3
"""Kinds of placement, most of the five, that explain more where an image is doubted: beside the right place there should be none."""
_TODO = {
    "axis swap": "obsm['spatial'] must be (x, y), that is (column, row): exchange its columns.",
    "flip": "Mirror the coordinates, or load the image without mirroring it.",
    "rotation": "Turn the coordinates about the image's centre, or load the image as it was when they were made.",
    "shift": "Move the coordinates, or take the image they were made on; a neighbouring section's image looks like this too.",
    "coordinate scale": "Multiply the coordinates by this factor, or pass the image they belong to.",
}
_WANTED = "no other placement explains more"


@dataclass(frozen=True)
class Evidence:
    """What was compared with the image: positions on the picture, values, the maps of the picture, and the step between positions in its pixels."""

    yx: np.ndarray
    values: np.ndarray
    maps: ImageMaps
    step_px: float


@dataclass(frozen=True)
class Compared:
    """A library that was compared with its image."""

    view: View
    picture: Picture
    evidence: Evidence


def evidence(
    view: View, measured: Measured, picture: Picture | str, values: sp.csr_matrix | None, keep: np.ndarray, *, small: bool
) -> Evidence | str:
    """Return what can be compared with the image, or in words why nothing can.

    Parameters
    ----------
    view, measured, picture
        The library, the lattice of its coordinates, its image.
    values
        Expression, (n, n_vars).
    keep
        Observations to compare, bool (n,): those under tissue that have counts.
    small
        Whether the observations are cells or small bins.
    """
    if isinstance(picture, str):
        return picture
    if values is None:
        return "the counts cannot be read"
    here = np.flatnonzero(view.here & keep)
    if len(here) < LEAST_OBSERVATIONS:
        return f"{len(here)} observations with counts; wanted {LEAST_OBSERVATIONS} or more"
    pitch = measured.pitch_px
    if not pitch:
        return "all observations have the same coordinates"
    group = max(len(here) / MOST_OBSERVATIONS, float(GROUP) if small and len(here) >= GROUP * LEAST_OBSERVATIONS else 1.0)
    yx, chosen = view.yx[here], values[here]
    if group > 1:
        yx, chosen = pooled(yx, chosen, pitch * np.sqrt(group))
    if len(yx) < LEAST_OBSERVATIONS:
        return f"{len(yx)} squares of observations; wanted {LEAST_OBSERVATIONS} or more"
    step = max(pitch * float(np.sqrt(group)) * picture.scale, 1.0)
    table = expression_values(chosen)
    if not table.shape[1]:
        return "all observations have the same expression"
    return Evidence(picture.place(yx), table, image_maps(picture.pixels, step_px=step), step)


def pooled(yx: np.ndarray, values: sp.csr_matrix, side: float) -> tuple[np.ndarray, sp.csr_matrix]:
    """Return mean position and summed values of the observations in squares of ``side``, of each square that holds any."""
    cell = np.floor((yx - yx.min(axis=0)) / side).astype(np.int64)
    _, which, count = np.unique(cell[:, 0] * (cell[:, 1].max() + 1) + cell[:, 1], return_inverse=True, return_counts=True)
    member = sp.csr_matrix((np.ones(len(yx)), (which.ravel(), np.arange(len(yx)))), shape=(len(count), len(yx)))
    return member @ yx / count[:, None], sp.csr_matrix(member @ values)


def named_factors(view: View, sources: Sequence[Source]) -> dict[str, float]:
    """Return factors of the coordinates that stand for a known mistake, by what they mean."""
    out = {}
    for name, factor in (("hires", view.metadata.hires_scale), ("lowres", view.metadata.lowres_scale)):
        if factor and abs(factor - 1) > 0.02:
            out[f"pixels of the {name} image, x {1 / factor:.4g}"] = 1 / factor
            out[f"full-resolution pixels on a {name} image, x {factor:.4g}"] = factor
    mpp = next((s.mpp for s in sources if s.name not in ("pitch", "bins") and abs(s.mpp - 1) > 0.02), None)
    if mpp:
        out[f"µm, x {1 / mpp:.4g}"] = 1 / mpp
        out[f"full-resolution pixels on an image in µm, x {mpp:.4g}"] = mpp
    return out


def check_placement(compared: Compared, depth: np.ndarray, sources: Sequence[Source], flagged: np.ndarray | None) -> list[Row]:
    """Return the rows about tissue, axes, flip, rotation, shift, scale and section.

    Parameters
    ----------
    compared
        The library and its image.
    depth
        Sum of values of every observation.
    sources
        Of the scale.
    flagged
        Which observations the table says to be under tissue; None where it says nothing.
    """
    view, picture, found = compared.view, compared.picture, compared.evidence
    factors = named_factors(view, sources)
    placement = search(found.maps, found.yx, found.values, step_px=found.step_px, origin=picture.affine[:, 2], factors=factors)
    cause = placement.cause
    tissue = check_tissue(view, picture, found.maps, depth, flagged, cause)
    rows = [tissue, *(_kind_row(kind, placement, cause) for kind in KINDS)]
    return [*rows, _section_row(placement, cause, tissue)]


def check_tissue(
    view: View, picture: Picture, maps: ImageMaps, depth: np.ndarray, flagged: np.ndarray | None, cause: Alternative | None
) -> Row:
    """Return the row about observations on tissue."""
    least, fail = OFF_TISSUE
    wanted = f"{percent(least)} or more on tissue"
    if not maps.has_background:
        return Row("tissue", "skip", "the image shows tissue alone", wanted)
    keep = np.flatnonzero(view.here & (flagged if flagged is not None else True))
    index = np.floor(picture.place(view.yx[keep]))
    inside = ((index >= 0) & (index < maps.tissue.shape)).all(axis=1)
    row, col = np.clip(index, 0, np.array(maps.tissue.shape) - 1).astype(np.int64).T
    on = maps.tissue[row, col] & inside
    share = float(on.mean())
    found = f"{percent(share)} on tissue" + (" of those marked in_tissue" if flagged is not None else "")
    if share >= least:
        return Row("tissue", "pass", found, wanted)
    if cause is None and on.any() and flagged is None:
        poor = _more(depth[keep][on], depth[keep][~on])
        if poor >= EMPTY_OFF_TISSUE:
            todo = "Remove the observations beside the tissue, or mark them in obs['in_tissue']."
            return Row("tissue", "warn", f"{found}; those beside it have fewer counts ({percent(poor)} of pairs)", wanted, todo)
    bad = share < fail or cause is not None
    todo = (
        f"See {cause.kind}."
        if cause is not None
        else "Look at `stimg.pl.check_slide`: is this the section's image, in this orientation and scale?"
    )
    return Row("tissue", "fail" if bad else "warn", found, wanted, todo)


def _more(a: np.ndarray, b: np.ndarray) -> float:
    """Return the probability that a value of ``a`` exceeds one of ``b``, ties counting half."""
    ordered = np.sort(b)
    below, upto = np.searchsorted(ordered, a, side="left"), np.searchsorted(ordered, a, side="right")
    return float((below + upto).mean() / 2 / len(b))


def _kind_row(kind: str, placement: Placement, cause: Alternative | None) -> Row:
    own = f"{placement.explained:.3f} of the variance as it is"
    best = placement.best[kind]
    if best is None:
        if placement.coverage < LEAST_COVERAGE:
            return Row(kind, "skip", f"{own}; no such change puts the observations on tissue", _WANTED)
        return Row(kind, "pass", f"{own}; any such change takes them off the tissue", _WANTED)
    found = f"{own}, {best.explained:.3f} by '{best.transform.name}' ({best.z:+.1f} standard errors"
    found += (f", p {best.p:.2g}" if best.margin > 0 else "") + f"), {percent(best.coverage)} on tissue"
    if best is cause:
        return Row(kind, "fail", found, _WANTED, _TODO[kind])
    if cause is not None:
        close = best.p <= CHANCE[1] and best.z >= LIKE and cause.explained - best.explained < LEAST_MARGIN
        todo = f"As good as the {cause.kind}: they cannot be told apart here." if close else f"See {cause.kind}."
        return Row(kind, "warn" if close else "skip", found, _WANTED, todo)
    if best.z <= -LIKE:
        return Row(kind, "pass", found, _WANTED)
    if best.z < LIKE:
        return Row(kind, "skip", f"{found}: cannot be told apart", _WANTED)
    if best.p <= CHANCE[1]:
        return Row(kind, "warn", found, _WANTED, f"Weak evidence, to be looked at. {_TODO[kind]}")
    return Row(kind, "skip", f"{found}: no more than the search for the best finds by chance", _WANTED)


def _section_row(placement: Placement, cause: Alternative | None, tissue: Row) -> Row:
    passes, mentioned = CHANCE
    wanted = f"more explained than of {percent(1 - passes)} of random fields as smooth"
    found, chance = f"{placement.explained:.3f} of the variance", placement.chance
    if cause is not None:
        return Row("section", "skip", f"{found} as it is, {cause.explained:.3f} after the {cause.kind}", wanted, f"See {cause.kind}.")
    if tissue.status == "fail":
        todo = "No turn, flip, shift or scale that was tried helps: take the image of this section."
        return Row("section", "fail", f"{found}; {tissue.found}", wanted, todo)
    if not chance.structured:
        return Row("section", "skip", f"{found}; the expression has no more structure than when it is shuffled", wanted)
    found += f"; {chance.usual:.3f} on average of random fields as smooth (p {chance.p:.2g})"
    unlike = placement.better >= MANY_BETTER
    if unlike:
        found += f"; {placement.better} of {len(KINDS)} kinds of wrong placement explain more"
    if chance.p <= passes and not unlike:
        return Row("section", "pass", found, wanted)
    if chance.p <= mentioned:
        return Row("section", "warn", found, wanted, "Image and expression hardly agree: check that the image is of this section.")
    return Row("section", "fail", found, wanted, "Image and expression agree no better than chance: take the image of this section.")


def exchanged(libraries: Sequence[Compared]) -> dict[str, Row]:
    """Return a section row for every library whose expression lies better on the image of another one (fail), or that shares it (warn)."""
    out: dict[str, Row] = {}
    if len(libraries) < 2:
        return out
    for one in libraries:
        mine, here = one.evidence, one.picture
        own = agreement(mine.maps, mine.yx, mine.values, [IDENTITY])
        full = np.linalg.solve(here.affine[:, :2], (mine.yx - here.affine[:, 2]).T).T
        best: tuple[float, float, float, str] | None = None
        for other in libraries:
            if other is one:
                continue
            if np.array_equal(here.pixels, other.picture.pixels):
                todo = "Right where both lie on one picture; else give each library its own."
                out[one.view.name] = Row(
                    "section", "warn", f"the very image of library {other.view.name!r}", "the image of its own section", todo
                )
                continue
            fit = agreement(other.evidence.maps, other.picture.place(full), mine.values, [IDENTITY])
            margin, error = lead(fit, 0, own, 0)
            if fit.coverage[0] >= LEAST_COVERAGE and margin >= LEAST_MARGIN and (best is None or margin > best[0]):
                best = margin, margin / max(error, 1e-9), float(fit.explained[0]), other.view.name
        if best is not None and (best[1] >= SURE or own.coverage[0] < LEAST_COVERAGE):
            what = f"{own.explained[0]:.3f} of the variance, on the image of {best[3]!r} {best[2]:.3f} ({best[1]:+.1f} standard errors)"
            out[one.view.name] = Row("section", "fail", what, "the image of its own section", "Exchange the images of the two libraries.")
    return out


def in_tissue(obs: Any, rows: np.ndarray) -> np.ndarray | None:
    """Return which of the rows ``obs["in_tissue"]`` marks, bool (n,); None where it is missing, is no flag, or marks none."""
    if "in_tissue" not in obs:
        return None
    values = pd.to_numeric(obs["in_tissue"].iloc[rows].astype(object), errors="coerce").to_numpy(dtype=np.float64)
    return values.astype(bool) if np.isin(values, (0.0, 1.0)).all() and values.any() else None
