"""Options of the simulator: frozen dataclasses with the units in their docstrings, checked when they are made."""

import math
from dataclasses import dataclass, fields
from typing import Any

from stimg._core import validate

LAYOUTS = ("patches", "layers")


def _number(name: str, value: float, low: float = 0.0, high: float = math.inf) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name}={value!r} is outside {low:g} .. {high:g}; wanted a finite number in that range.")


def _whole(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or int(value) != value or value < low:
        raise ValueError(f"{name}={value!r} is not a whole number of at least {low}.")


@dataclass(frozen=True)
class TissueOptions:
    """The tissue that is sectioned.

    Parameters
    ----------
    n_domains
        Number of tissue domains.
    domain_um
        Typical width of a domain in µm. None: half the shorter side, so that a section of any size has structure.
    layout
        ``"patches"`` (each point belongs to the largest of ``n_domains`` smooth random fields) or ``"layers"`` (bands between level sets
        of one smooth field, as in a cortex).
    sharpness
        Inverse temperature of the softmax over the fields: how narrow the transition between two domains is.
    n_types
        Number of cell types.
    purity
        Share of a domain's cells that belong to its own main type, before the random remainder is added; 0 to 1.
    outline
        Cut the section out of its rectangle by an irregular outline.
    holes
        Fraction of the tissue that is lost in holes, 0 to 0.9.
    cell_um
        Spacing in µm of the places that could hold a cell; two nuclei never come nearer than their sizes allow.
    """

    n_domains: int = 5
    domain_um: float | None = None
    layout: str = "patches"
    sharpness: float = 8.0
    n_types: int = 6
    purity: float = 0.6
    outline: bool = False
    holes: float = 0.0
    cell_um: float = 7.0

    def __post_init__(self) -> None:
        _whole("n_domains", self.n_domains, 1)
        _whole("n_types", self.n_types, 1)
        if self.n_types > 120:
            raise ValueError(f"n_types={self.n_types} is more than the simulator's 120 cell types.")
        validate.one_of(self.layout, LAYOUTS, "layout")
        _number("purity", self.purity, 0, 1)
        _number("holes", self.holes, 0, 0.9)
        for name in ("sharpness", "cell_um"):
            validate.positive(getattr(self, name), name)
        if self.domain_um is not None:
            validate.positive(self.domain_um, "domain_um", "µm")


@dataclass(frozen=True)
class GeneOptions:
    """How genes belong to programmes. Programmes are one per cell type, one per domain, ``n_gradients`` smooth ones and a baseline.

    Parameters
    ----------
    n_gradients
        Number of programmes whose activity is a smooth field, whatever the domains.
    marker_fraction, domain_fraction, gradient_fraction, housekeeping_fraction
        Shares of the genes that mark cell types, domains, gradients, or are strong and the same everywhere; the rest is background.
    type_weight, domain_weight, gradient_weight
        Shares of an observation's RNA that the three kinds of programmes bring; the remainder is the baseline.
    log_fold_change
        Mean natural-log fold change of a member gene in its programme.
    second_programme
        Probability that a gene of a programme belongs to a second one, with half the fold change.
    abundance_sd
        Standard deviation of the natural log of the genes' baseline abundance.
    n_controls
        Number of negative control probes, added after the genes.
    control_fraction
        Share of an observation's counts that goes to all control probes together, the same everywhere.
    """

    n_gradients: int = 3
    marker_fraction: float = 0.35
    domain_fraction: float = 0.2
    gradient_fraction: float = 0.15
    housekeeping_fraction: float = 0.1
    type_weight: float = 0.45
    domain_weight: float = 0.25
    gradient_weight: float = 0.25
    log_fold_change: float = 3.0
    second_programme: float = 0.2
    abundance_sd: float = 1.0
    n_controls: int = 0
    control_fraction: float = 0.005

    def __post_init__(self) -> None:
        _whole("n_gradients", self.n_gradients, 0)
        _whole("n_controls", self.n_controls, 0)
        for group in (
            ("marker_fraction", "domain_fraction", "gradient_fraction", "housekeeping_fraction"),
            ("type_weight", "domain_weight", "gradient_weight"),
        ):
            for name in group:
                _number(name, getattr(self, name), 0, 1)
            total = sum(getattr(self, name) for name in group)
            if total > 1 + 1e-9:
                raise ValueError(f"{' + '.join(group)} is {total:g}; wanted at most 1.")
        _number("log_fold_change", self.log_fold_change)
        _number("second_programme", self.second_programme, 0, 1)
        _number("abundance_sd", self.abundance_sd)
        _number("control_fraction", self.control_fraction, 0, 0.5)


@dataclass(frozen=True)
class CountOptions:
    """How counts are drawn from rates.

    Parameters
    ----------
    depth
        Expected total count of an observation. None: a value that suits the technology, its capture area and the number of genes.
    depth_sd
        Standard deviation of the natural log of the independent part of the library size.
    depth_spatial_sd
        Standard deviation of the natural log of its smooth spatial part.
    density_effect
        Power with which the RNA under the capture area enters the library size; 0 switches it off.
    dispersion
        Median over genes of the negative-binomial dispersion a, in variance = mean + a * mean ** 2; 0 gives Poisson counts.
    dispersion_sd
        Standard deviation of the natural log of the dispersion over genes.
    capture
        Probability that a molecule is captured. Binomial thinning: it multiplies the mean and leaves the dispersion.
    dropout
        Probability that all molecules of a gene are lost in an observation (extra zeros beyond the negative binomial).
    """

    depth: float | None = None
    depth_sd: float = 0.3
    depth_spatial_sd: float = 0.2
    density_effect: float = 1.0
    dispersion: float = 0.2
    dispersion_sd: float = 0.3
    capture: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.depth is not None:
            validate.positive(self.depth, "depth")
        for name in ("depth_sd", "depth_spatial_sd", "density_effect", "dispersion", "dispersion_sd"):
            _number(name, getattr(self, name))
        _number("capture", self.capture, 1e-6, 1)
        _number("dropout", self.dropout, 0, 0.999)


@dataclass(frozen=True)
class DonorOptions:
    """What differs between donors, and between the sections of one donor. :meth:`none` switches all of it off but the tissue itself.

    The first donor, and the first section of each donor, are the reference: nothing is shifted there. Every donor has its own tissue;
    the sections of a donor are serial sections of one.

    Parameters
    ----------
    gene_sd, section_gene_sd
        Standard deviation of the per-gene natural-log shift of a donor, and of a section.
    depth_sd, section_depth_sd
        Standard deviation of the natural-log shift of the library size of a donor, and of a section.
    stain_sd, section_stain_sd
        Standard deviation of the shift of each element of the stain matrix and of the natural log of the staining strength.
    composition_sd
        Standard deviation of the natural-log shift of the cell-type proportions of a donor's domains.
    deformation_um
        Standard deviation in µm of the smooth deformation from one section of a donor to the next. None: a twentieth of ``domain_um``.
    rotation_deg
        Standard deviation in degrees of the rotation of a section about its centre; the first section is never moved.
    """

    gene_sd: float = 0.2
    section_gene_sd: float = 0.05
    depth_sd: float = 0.2
    section_depth_sd: float = 0.1
    stain_sd: float = 0.05
    section_stain_sd: float = 0.01
    composition_sd: float = 0.2
    deformation_um: float | None = None
    rotation_deg: float = 1.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                _number(item.name, value)

    @classmethod
    def none(cls, **options: Any) -> "DonorOptions":
        """Return options without effects on expression, depth, stain and composition; ``options`` sets single ones."""
        off = {item.name: 0.0 for item in fields(cls) if item.name.endswith("_sd")}
        return cls(**{**off, **options})


@dataclass(frozen=True)
class ImageOptions:
    """The H&E image.

    Parameters
    ----------
    haematoxylin, eosin
        Optical density of the stain in (red, green, blue), brought to unit length.
    strength
        Multiplies the optical density of both stains.
    texture
        Contrast of the stroma's texture; 0 gives flat stroma.
    noise
        Standard deviation of the camera's noise in grey levels.
    hires_px, lowres_px
        Longest side in pixels of the two images kept with the AnnData.
    """

    haematoxylin: tuple[float, float, float] = (0.60, 0.72, 0.34)
    eosin: tuple[float, float, float] = (0.13, 0.86, 0.40)
    strength: float = 1.0
    texture: float = 1.0
    noise: float = 1.5
    hires_px: int = 2000
    lowres_px: int = 600

    def __post_init__(self) -> None:
        for name in ("haematoxylin", "eosin"):
            vector = getattr(self, name)
            if len(vector) != 3 or min(vector) < 0 or max(vector) <= 0:
                raise ValueError(
                    f"{name}={vector!r} is not a stain; wanted three optical densities (red, green, blue), none negative, not all zero."
                )
        validate.positive(self.strength, "strength")
        _number("texture", self.texture)
        _number("noise", self.noise)
        _whole("hires_px", self.hires_px, 1)
        _whole("lowres_px", self.lowres_px, 1)
