"""Cohorts: samples with bulk expression, from a folder, from a table of samples or from sections of spots, and which of them hang together."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg._core import keys, validate
from stimg.bench import sections as _sections
from stimg.data.slots import library_rows

if TYPE_CHECKING:
    from anndata import AnnData

COHORT, TABLES = "cohort.csv", ("expression.csv", "expression.h5ad")
SLIDE = "X_slide"
"""``obsm``: features of a sample's slide, averaged over its tiles or spots."""
ABOUT = ("site", "organ", "subtype")


def grouped(size: Mapping[str, int], n: int) -> list[list[str]]:
    """Return the names of ``size`` in at most ``n`` groups of nearly equal total size: the largest first, each to the smallest group so far."""
    out: list[list[str]] = [[] for _ in range(min(n, len(size)))]
    total = [0] * len(out)
    for name in sorted(size, key=lambda k: (-size[k], k)):
        at = int(np.argmin(total))
        out[at].append(name)
        total[at] += size[name]
    return out


def units(cohort: "AnnData") -> pd.Categorical:
    """Return for each sample the name of the sites (or, where there is one site or none is known, the donor) that it hangs together with."""
    donor = cohort.obs[keys.DONOR].astype(str).to_numpy()
    if "site" not in cohort.obs or cohort.obs["site"].nunique() < 2:
        return pd.Categorical(donor)
    without = cohort.obs_names[cohort.obs["site"].isna()].tolist()
    if without:
        raise ValueError(
            f"the site of {len(without)} of {cohort.n_obs} samples is missing, such as {without[:4]}. Fill it in, or take the column out to leave donors out."
        )
    site = cohort.obs["site"].astype(str).to_numpy()
    d, s = pd.factorize(donor)[0], pd.factorize(site)[0]
    ties = sp.coo_matrix((np.ones(len(d)), (d, d.max() + 1 + s)), shape=(d.max() + s.max() + 2,) * 2)
    part = sp.csgraph.connected_components(ties, directed=False)[1][d]
    names = {p: "+".join(sorted(set(site[part == p]))) for p in np.unique(part)}
    return pd.Categorical([names[p] for p in part])


def joined(parts: Iterable["AnnData"]) -> "AnnData":
    """Return samples under each other, with the genes that all list."""
    import anndata

    found = list(parts)
    if len(found) == 1:
        return found[0].copy()
    out = anndata.concat(found, join="inner")
    if out.n_vars == 0:
        raise ValueError(
            f"{len(found)} tables have no gene in common, such as {found[0].var_names[:3].tolist()} against {found[1].var_names[:3].tolist()}; "
            "wanted one kind of gene names in all."
        )
    out.uns.update(found[0].uns)  # parts of one cohort share it
    missing = {c for a in found for c in a.obs.columns} - set(out.obs.columns)
    return out if not missing else _with_columns(out, found, sorted(missing))


def _with_columns(out: "AnnData", found: Sequence["AnnData"], names: Sequence[str]) -> "AnnData":
    """Put back what is known of some samples alone."""
    for name in names:
        out.obs[name] = np.concatenate([a.obs[name].to_numpy(dtype=object) if name in a.obs else np.full(a.n_obs, None) for a in found])
    return out


def samples(
    adata: "AnnData",
    *,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    donor_key: str = keys.DONOR,
    missing_donor: str = "error",
    features: Iterable[str] = (),
    labels: str | None = None,
) -> "AnnData":
    """Return one row a sample: observations as they are, or summed by ``obs[library_key]`` where there is that column; features are averaged.

    Raises
    ------
    ValueError
        For values that are negative or not finite, samples without any, a missing donor, several donors, sites or subtypes of one sample, and
        ``labels``, of which this protocol knows none.
    """
    from anndata import AnnData

    if labels is not None:
        raise ValueError(f"labels={labels!r}: bulk samples have no known regions; wanted None. The columns `subtype` and `organ` are read.")
    validate.one_of(missing_donor, _sections.MISSING_DONOR, "missing_donor")
    validate.not_empty(adata)
    validate.unique_names(adata.var_names, "gene names", todo="Run `adata.var_names_make_unique()` first, or sum them.")
    values = sp.csr_matrix(validate.finite_matrix(adata, layer), dtype=np.float64)
    if values.nnz and values.data.min() < 0:
        raise ValueError(
            f"The expression has negative values (least {values.data.min():g}); wanted counts or TPM. Undo logs, centring and scaling first."
        )
    of_spots = library_key in adata.obs
    if not of_spots:
        validate.unique_names(adata.obs_names, "samples", todo="Give each sample a name of its own.")
    name = adata.obs[library_key].astype(str) if of_spots else pd.Series(adata.obs_names.astype(str), index=adata.obs_names)
    rows = library_rows(name)
    order = list(rows) if of_spots else list(name)
    code = pd.Categorical(name, categories=order).codes
    member = sp.csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))), shape=(len(order), len(code)))
    summed = sp.csr_matrix(member @ values) if of_spots else values
    empty = [n for n, total in zip(order, np.asarray(summed.sum(axis=1)).ravel(), strict=True) if total <= 0]
    if empty:
        raise ValueError(f"{len(empty)} samples have no expression at all, such as {empty[:4]}; leave them out.")
    donors = _sections._donors(adata, name, donor_key, missing_donor)
    obs = pd.DataFrame(index=order if of_spots else adata.obs_names.astype(str))
    obs[keys.DONOR] = [donors[n] for n in obs.index]
    for column in (c for c in ABOUT if c in adata.obs):
        found = {n: adata.obs[column].iloc[at].astype(object).unique() for n, at in rows.items()}
        several = [n for n, v in found.items() if len(v) > 1]
        if several:
            raise ValueError(f"sample {several[0]!r} has several values of {column!r} ({list(found[several[0]])[:4]}); wanted one.")
        obs[column] = [found[n][0] for n in obs.index]
    out = AnnData(summed, obs=obs, var=adata.var[[]])
    for key in features:
        slot = np.asarray(validate.slot(adata.obsm, "obsm", key, todo="Compute it first, or leave it out of `features`."), dtype=np.float64)
        out.obsm[key] = (member @ slot) / np.bincount(code)[:, None] if of_spots else slot
    if not of_spots:
        for key, each in adata.layers.items():
            out.layers[key] = each
    return out


def read_cohort(folder: Path) -> "AnnData":
    """Return the samples of a folder with ``cohort.csv`` and their expression, see :class:`BulkProtocol`.

    Raises
    ------
    FileNotFoundError
        For a table or a file of features that is not there.
    ValueError
        For missing columns, samples that occur twice or have no expression, and features of other shapes.
    """
    import anndata

    table = pd.read_csv(folder / COHORT, dtype=str)
    lacking = [c for c in ("sample", "donor") if c not in table]
    if lacking:
        raise ValueError(f"{folder / COHORT} lacks the columns {lacking} (found {list(table.columns)}).")
    if table["sample"].isna().any() or table["sample"].duplicated().any():
        twice = table["sample"][table["sample"].duplicated()].tolist()
        raise ValueError(f"{folder / COHORT} has samples without a name or twice ({twice[:4]}); wanted one line a sample.")
    table = table.set_index("sample").rename_axis(None)
    files = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(files) != 1:
        raise FileNotFoundError(f"{folder} holds {[f.name for f in files]}; wanted one of {list(TABLES)}: samples x genes.")
    if files[0].suffix == ".h5ad":
        expression = anndata.read_h5ad(files[0])
    else:
        frame = pd.read_csv(files[0], index_col=0)
        frame.index = frame.index.astype(str)
        kinds = {str(t) for t in frame.dtypes} - {"int64", "float64"}
        if kinds:
            raise ValueError(f"{files[0]} has columns of {sorted(kinds)}; wanted numbers after the first column, which names the sample.")
        expression = anndata.AnnData(frame)
    unknown = [n for n in table.index if n not in expression.obs_names]
    if unknown:
        raise ValueError(f"{files[0]} has no expression of {len(unknown)} of {len(table)} samples of {COHORT}, such as {unknown[:4]}.")
    out = expression[table.index].copy()
    for column in (keys.DONOR, *(c for c in ABOUT if c in table)):
        out.obs[column] = table[column].to_numpy()
    if "features" in table:
        slides = {name: _slide(folder, name, path) for name, path in table["features"].items()}
        widths = {name: len(values) for name, values in slides.items()}
        if len(set(widths.values())) > 1:
            least, most = min(widths, key=widths.__getitem__), max(widths, key=widths.__getitem__)
            raise ValueError(
                f"the features of {least!r} and {most!r} have {widths[least]} and {widths[most]} dimensions; wanted one encoder for all samples."
            )
        out.obsm[SLIDE] = np.stack(list(slides.values()))
    return out


def _slide(folder: Path, sample: Hashable, path: Any) -> np.ndarray:
    """Return the features of one slide, averaged over its tiles, float64 (dim,)."""
    if pd.isna(path) or not (folder / str(path)).is_file():
        raise FileNotFoundError(
            f"the features of sample {sample!r} are missing ({path!r} in {folder}). Compute them, or take the sample out."
        )
    values = np.load(folder / path, mmap_mode="r")
    if values.ndim not in (1, 2) or 0 in values.shape:
        raise ValueError(f"{folder / path} has shape {values.shape}; wanted (dim,) or (tiles, dim).")
    return np.asarray(values, dtype=np.float64) if values.ndim == 1 else values.mean(axis=0, dtype=np.float64)
