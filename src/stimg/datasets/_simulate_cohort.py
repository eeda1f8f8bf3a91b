"""Cohorts of slides with one label each, of which few tiles carry it, and it is known which."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._core import keys, provenance, validate
from stimg._core.rng import RngLike, as_seed, derive
from stimg.data.ledger import remember

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)
FEATURES = "X_simulated"
NEGATIVE, POSITIVE = "negative", "positive"
TILE_PX = 256.0
_COHORT, _SLIDE = 0, 1


def simulate_cohort(
    *,
    n_donors: int = 40,
    n_slides: int = 1,
    n_tiles: int | tuple[int, int] = (50, 150),
    n_features: int = 32,
    n_types: int = 4,
    prevalence: float = 0.5,
    effect: float = 3.0,
    informative: float = 0.1,
    donor_sd: float = 0.5,
    n_sites: int = 1,
    site_effect: float = 0.0,
    confounded: bool = False,
    rng: RngLike = 0,
) -> "AnnData":
    r"""Return the embedded tiles of slides of a cohort, each donor with a label that a known few of the tiles carry.

    Parameters
    ----------
    n_donors, n_slides
        Number of donors, and of slides of each.
    n_tiles
        Tiles of a slide, or the (smallest, largest) number, drawn uniformly.
    n_features
        Width of the embedding.
    n_types
        Kinds of tissue, with other features, in shares that differ from slide to slide.
    prevalence
        Share of positive donors; their number is rounded, and is at least one and at most all but one.
    effect
        By how much a tile that carries the label is shifted, along one direction, in standard deviations of a tile of its kind. 0: the label says nothing.
    informative
        Share of such tiles in the slides of positive donors, at least one a slide; 0 is allowed.
    donor_sd
        Standard deviation of each feature's shift between donors: what makes slides look apart for no reason of interest.
    n_sites, site_effect
        Number of sites, and the length of the shift that each gives to all tiles of its slides, in the same units.
    confounded
        Whether sites go with the label: with two sites, all positive donors are of the second one. False: both labels at every site.
    rng
        Seed. The result depends on it and on the arguments alone.

    Returns
    -------
    AnnData without genes, tiles by rows. ``obs``: ``library_id``, ``donor``, ``site``, ``label`` (``"negative"``, ``"positive"``), ``informative`` (bool:
    the tile was shifted); ``obsm["X_simulated"]`` float32 (n_obs, n_features); ``obsm["spatial"]`` (x, y) in pixels, tiles of 256 px on a grid.

    Raises
    ------
    ValueError
        For numbers outside their range, and ``confounded`` with fewer than two sites.

    Notes
    -----
    Tile i of slide s, of kind k, has the features :math:`x_i = \mu_k + b_{d(s)} + t_{h(s)} + e\, c_i\, u + \epsilon_i` with :math:`\mu_k \sim N(0, I)`,
    :math:`b_d \sim N(0, \sigma_d^2 I)`, :math:`t_h` of length ``site_effect``, :math:`u` of length 1, :math:`c_i` one for a tile that carries the
    label, :math:`e` the effect and :math:`\epsilon_i \sim N(0, I)`. Averaging a slide leaves of the effect its share, ``informative * effect``.

    Examples
    --------
    >>> adata = simulate_cohort(n_donors=10, n_tiles=20, rng=0)
    >>> adata.n_obs, adata.obs.groupby("donor", observed=True)["label"].first().value_counts().to_dict()
    (200, {'negative': 5, 'positive': 5})
    """
    few, many = _sizes(n_tiles)
    for name, value, least in (
        ("n_donors", n_donors, 2),
        ("n_slides", n_slides, 1),
        ("n_features", n_features, 1),
        ("n_types", n_types, 1),
        ("n_sites", n_sites, 1),
    ):
        validate.whole(value, name, least=least)
    for share, what in ((prevalence, "prevalence"), (informative, "informative")):
        if not 0 <= validate.number(share, what) <= 1:
            raise ValueError(f"{what}={share} is not in [0, 1].")
    for size, what in ((donor_sd, "donor_sd"), (site_effect, "site_effect")):
        if not validate.number(size, what) >= 0:
            raise ValueError(f"{what}={size} is negative; wanted zero or a positive number.")
    validate.number(effect, "effect")
    if confounded and n_sites < 2:
        raise ValueError(f"confounded=True with n_sites={n_sites}: one site cannot go with a label. Pass n_sites=2, and a site_effect.")
    seed = as_seed(rng)
    cohort = derive(seed, _COHORT)
    centres = cohort.standard_normal((n_types, n_features))
    direction = _unit(cohort.standard_normal(n_features))
    sites = site_effect * np.stack([_unit(v) for v in cohort.standard_normal((n_sites, n_features))])
    number = min(n_donors - 1, max(1, round(prevalence * n_donors)))
    positive = np.zeros(n_donors, dtype=bool)
    positive[cohort.permutation(n_donors)[:number]] = True
    site = _site_of(positive, n_sites, confounded, cohort)
    shifts = donor_sd * cohort.standard_normal((n_donors, n_features))
    width = len(str(n_donors))
    parts: list[dict[str, Any]] = []
    for d in range(n_donors):
        for s in range(n_slides):
            own = derive(seed, _SLIDE, d, s)
            n = int(own.integers(few, many + 1))
            kind = own.choice(n_types, n, p=own.dirichlet(np.full(n_types, 2.0)))
            carries = np.zeros(n, dtype=bool)
            if positive[d] and informative > 0:
                carries[own.permutation(n)[: max(1, round(informative * n))]] = True
            x = centres[kind] + shifts[d] + sites[site[d]] + effect * carries[:, None] * direction + own.standard_normal((n, n_features))
            edge = int(np.ceil(np.sqrt(n)))
            at = np.arange(n)
            parts.append(
                {
                    "x": x.astype(np.float32),
                    "carries": carries,
                    "xy": (np.column_stack([at % edge, at // edge]) + 0.5) * TILE_PX,
                    "donor": f"D{d + 1:0{width}d}",
                    "slide": f"D{d + 1:0{width}d}S{s + 1}",
                    "d": d,
                }
            )
    adata = _table(parts, positive, site)
    provenance.record(
        adata,
        FEATURES,
        verb="simulate_cohort",
        seed=seed,
        effect=effect,
        informative=informative,
        donor_sd=donor_sd,
        site_effect=site_effect,
        confounded=confounded,
        unit="standard deviations of a tile of one kind",
    )
    remember(adata, FEATURES)  # fitted on nothing
    logger.info("simulated %d tiles of %d slides of %d donors, %d of them positive", adata.n_obs, len(parts), n_donors, int(positive.sum()))
    return adata


def _sizes(n_tiles: int | tuple[int, int]) -> tuple[int, int]:
    both = (n_tiles, n_tiles) if isinstance(n_tiles, int | np.integer) else tuple(n_tiles)
    if len(both) != 2:
        raise ValueError(f"n_tiles={n_tiles!r}; wanted one number, or the smallest and the largest.")
    few, many = (validate.whole(v, "n_tiles") for v in both)
    if few > many:
        raise ValueError(f"n_tiles={n_tiles!r}: the smallest is larger than the largest.")
    return few, many


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)  # type: ignore[no-any-return]


def _site_of(positive: np.ndarray, n_sites: int, confounded: bool, rng: np.random.Generator) -> np.ndarray:
    """Return the site of each donor: by label, the negatives at the first half of the sites, or dealt out within each label."""
    out = np.zeros(len(positive), dtype=np.int64)
    half = n_sites // 2
    for label, own in ((False, np.arange(half)), (True, np.arange(half, n_sites))):
        members = rng.permutation(np.flatnonzero(positive == label))
        choice = own if confounded else np.arange(n_sites)
        out[members] = choice[np.arange(len(members)) % len(choice)]
    return out


def _table(parts: list[dict[str, Any]], positive: np.ndarray, site: np.ndarray) -> "AnnData":
    from anndata import AnnData

    size = [len(p["x"]) for p in parts]

    def column(values: list[str]) -> pd.Categorical:
        return pd.Categorical(np.repeat(np.array(values, dtype=object), size))

    obs = pd.DataFrame(
        {
            keys.LIBRARY: column([p["slide"] for p in parts]),
            keys.DONOR: column([p["donor"] for p in parts]),
            "site": column([f"site_{site[p['d']] + 1}" for p in parts]),
            "label": column([POSITIVE if positive[p["d"]] else NEGATIVE for p in parts]),
            "informative": np.concatenate([p["carries"] for p in parts]),
        },
        index=[f"{p['slide']}_{i:05d}" for p, n in zip(parts, size, strict=True) for i in range(n)],
    )
    adata = AnnData(None, obs=obs)
    adata.obsm[FEATURES] = np.concatenate([p["x"] for p in parts])
    adata.obsm[keys.SPATIAL] = np.concatenate([p["xy"] for p in parts])
    return adata
