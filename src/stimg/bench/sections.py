"""From what a user has (a folder, a name, objects) to sections: one AnnData for each library, checked once for all protocols."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg._core import hashing, keys, validate
from stimg._core.ledger import Seen, merged
from stimg._core.panel import is_control
from stimg.bench.protocol import Fold
from stimg.data.ledger import seen_of
from stimg.data.slots import library_rows

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)
SUFFIXES = (".h5ad", ".zarr")
MISSING_DONOR = ("error", "own-group")


def _her2st() -> list["AnnData"]:
    from stimg import datasets
    from stimg.datasets.fetch import at_hand
    from stimg.datasets.registry import libraries

    return [datasets.her2st(s, image="hires" if at_hand(f"her2st/image/{s}") else "none") for s in libraries("her2st")]


def _dlpfc() -> list["AnnData"]:
    from stimg import datasets
    from stimg.datasets.registry import libraries

    return [datasets.dlpfc(s) for s in libraries("dlpfc")]


def _simulated() -> list["AnnData"]:
    from stimg import datasets

    return [datasets.simulate(technology="visium", shape=(24, 24), n_genes=300, n_donors=3, n_sections=2, rng=0)]


DATASETS: dict[str, Callable[[], list["AnnData"]]] = {"her2st": _her2st, "dlpfc": _dlpfc, "simulated": _simulated}
"""Data sets that can be named in place of a folder."""


def read(data: "str | Path | AnnData | Iterable[AnnData] | Mapping[str, AnnData]") -> list["AnnData"]:
    """Return the objects behind ``data``: a folder of ``.h5ad`` files and ``.zarr`` folders, one such file, a name of ``DATASETS``, or objects.

    Raises
    ------
    FileNotFoundError
        Where there is no such folder or name, or the folder holds no such file.
    """
    if hasattr(data, "obs_names"):
        return [data]
    if isinstance(data, Mapping):
        return list(data.values())
    if not isinstance(data, str | Path):
        return list(data)
    path = Path(data)
    if not path.exists():
        if str(data) in DATASETS:
            return DATASETS[str(data)]()
        raise FileNotFoundError(
            f"there is no folder {path}, and no data set of that name; wanted a folder with .h5ad files, or one of {sorted(DATASETS)}."
        )
    files = [path] if path.suffix in SUFFIXES else sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{path} holds no .h5ad file and no .zarr folder (found {[p.name for p in sorted(path.iterdir())][:8]}).")
    import anndata

    found = []
    for file in files:
        try:
            found.append(anndata.read_h5ad(file) if file.suffix == ".h5ad" else anndata.read_zarr(file))
        except (OSError, KeyError, ValueError) as err:
            raise ValueError(f"{file} cannot be read ({type(err).__name__}: {err}). Copy it again, or take it out of the folder.") from err
    return found


def load_sections(
    data: Any,
    *,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    donor_key: str = keys.DONOR,
    missing_donor: str = "error",
    features: Iterable[str] = (),
    labels: str | None = None,
) -> dict[str, "AnnData"]:
    """Return one AnnData for each library, by name: raw counts of genes in ``X`` (CSR), ``library_id``, ``donor``, and a raster.

    Nothing else comes along, so that nothing computed from counts can reach a method by another way: of ``obs`` the array indices, of ``obsm``
    the coordinates and ``features``, of ``uns`` the images and the records of those features.

    Parameters
    ----------
    data
        As for :func:`read`.
    layer
        Layer with raw counts.
    library_key, donor_key
        Columns of ``obs``.
    missing_donor
        ``"error"``, or ``"own-group"``: a section whose donor is not known is declared to be a donor of its own.
    features
        Names of slots of ``obsm`` that methods may read.
    labels
        Column of ``obs`` with known regions; it becomes ``obs["label"]``.

    Raises
    ------
    KeyError, ValueError
        For a missing column or slot, values that are no counts, libraries that occur in two objects, and a missing donor.
    """
    from stimg import pp

    validate.one_of(missing_donor, MISSING_DONOR, "missing_donor")
    out: dict[str, AnnData] = {}
    for adata in read(data):
        validate.not_empty(adata)
        counts = validate.counts(adata, layer)
        library = validate.obs(adata, library_key, todo="Name the capture area of every observation.").astype(str)
        donors = _donors(adata, library, donor_key, missing_donor)
        gene = np.flatnonzero(~is_control(adata.var))
        for name, rows in library_rows(library).items():
            if name in out:
                raise ValueError(
                    f"library {name!r} occurs in two objects. Give every capture area a name of its own in obs[{library_key!r}]."
                )
            part = _bare(adata, rows, features)
            part = type(part)(
                sp.csr_matrix(counts[rows][:, gene], dtype=np.float32),
                obs=part.obs,
                var=adata.var[[]].iloc[gene],
                obsm=dict(part.obsm.items()),
                uns=part.uns,
            )
            part.obs[keys.LIBRARY] = pd.Categorical([name] * len(rows))
            part.obs[keys.DONOR] = pd.Categorical([donors[name]] * len(rows))
            if labels is not None:
                part.obs["label"] = validate.slot(adata.obs, "obs", labels, todo="Name the column of known regions.").iloc[rows].to_numpy()
            if keys.RC not in part.obsm:
                pp.rasterize(part)
            out[name] = part
    if not out:
        raise ValueError("There is no section in the data; wanted at least one.")
    logger.info(
        "%d sections of %d donors, %d observations", len(out), len({donor(a) for a in out.values()}), sum(a.n_obs for a in out.values())
    )
    return dict(sorted(out.items()))


def _bare(adata: "AnnData", rows: np.ndarray, features: Iterable[str]) -> "AnnData":
    """Return names, array indices, coordinates, images and features of some observations, without counts and genes."""
    from anndata import AnnData

    kept = [c for c in ("array_row", "array_col", "in_tissue") if c in adata.obs]
    for key in features:
        validate.slot(adata.obsm, "obsm", key, todo="Compute it first, or leave it out of `features`.")
    slots = [k for k in (keys.SPATIAL, keys.RC, *features) if k in adata.obsm]
    records = adata.uns.get(keys.UNS, {})
    own = {k: records[k] for k in (keys.RASTER, *features) if k in records}
    uns = {k: v for k, v in (("spatial", adata.uns.get("spatial")), (keys.UNS, own)) if v}
    return AnnData(None, obs=adata.obs[kept].iloc[rows].copy(), obsm={k: adata.obsm[k][rows] for k in slots}, uns=uns)


def donor(adata: "AnnData") -> str:
    """Return the donor of a section."""
    return str(adata.obs[keys.DONOR].iloc[0])


def _donors(adata: "AnnData", library: pd.Series, donor_key: str, missing: str) -> dict[str, str]:
    column = (
        adata.obs[donor_key].astype("object")
        if donor_key in adata.obs
        else pd.Series([None] * adata.n_obs, index=adata.obs_names, dtype="object")
    )
    found = {}
    for name, rows in library_rows(library).items():
        values = sorted({str(v) for v in column.iloc[rows] if pd.notna(v)})
        if len(values) > 1:
            raise ValueError(
                f"library {name!r} has observations of {len(values)} donors ({values[:4]}); wanted one. Give each its own library."
            )
        if not values or column.iloc[rows].isna().any():
            if missing == "error":
                raise ValueError(
                    f"the donor of library {name!r} is missing in obs[{donor_key!r}] (columns found: {list(adata.obs.columns)[:12]}). Sections of one donor are "
                    "no independent data: write the donor there, or pass missing_donor='own-group' to declare that such a section is a donor of its own."
                )
            values = [f"{name} (own group)"]
        found[name] = values[0]
    return found


def shared_genes(found: Mapping[str, "AnnData"]) -> list[str]:
    """Return the genes that all sections list, in the order of the first."""
    first, *others = found.values()
    names = first.var_names
    for other in others:
        names = names[names.isin(other.var_names)]
    return [str(n) for n in names]


def seen_together(found: Mapping[str, "AnnData"], *, who: str, kind: str) -> Seen:
    """Return one record of all observations of some sections, over the genes that they share."""
    genes = shared_genes(found)
    return merged([seen_of(a, who=who, kind=kind, genes=genes) for a in found.values()], who=who, kind=kind)


def groups(found: Mapping[str, "AnnData"], level: str) -> dict[str, str]:
    """Return the group of each library at ``level``: its donor, or itself."""
    return {name: donor(a) if level == "donor" else name for name, a in found.items()}


def content(found: Mapping[str, "AnnData"]) -> dict[str, str]:
    """Return one hash a library that depends on its counts and gene names alone, whatever the order of observations."""
    return {name: hashing.of_array(np.sort(hashing.of_observations(a.X, a.var_names))) for name, a in found.items()}


def split_hash(folds: Iterable[Fold], contents: Mapping[str, str]) -> str:
    """Return the hash of who was trained on and tested in which fold, and of what was in there."""
    lines = []
    for fold in folds:
        for part in ("train", "test"):
            lines += [f"{fold.name}|{part}|{name}|{contents[name]}" for name in sorted(getattr(fold, part))]
    return hashing.of_strings(sorted(lines))
