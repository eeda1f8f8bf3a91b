"""Human dorsolateral prefrontal cortex on Visium, with cortical layers drawn by experts (Maynard et al. 2021)."""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg.datasets.fetch import fetch_file
from stimg.datasets.registry import FILES, libraries
from stimg.datasets.section import ImageChoice, Section, affine_scale, assemble, check_image, select

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

PITCH_UM, SPOT_UM = 100.0, 55.0
LAYERS = ("Layer1", "Layer2", "Layer3", "Layer4", "Layer5", "Layer6", "WM")
MIN_COUNTS = 100
"""Genes below this total over all spots under tissue are left out."""
_DONOR = {"151673": "Br8100", "151674": "Br8100"}


def content(counts: sp.csr_matrix, barcodes: Iterable[str], gene_ids: Iterable[str]) -> str:
    """Return the SHA-256 of a count matrix (n_obs x n_vars) with its names, whatever the order, file format or compression."""
    rows, columns = np.asarray(list(barcodes), dtype=str), np.asarray(list(gene_ids), dtype=str)
    by_row, by_column = np.argsort(rows), np.argsort(columns)
    ordered = sp.csr_matrix(counts)[by_row][:, by_column]
    ordered.eliminate_zeros()
    ordered.sort_indices()
    hasher = hashlib.sha256("\n".join(rows[by_row]).encode() + b"\n\n" + "\n".join(columns[by_column]).encode())
    for part in (ordered.indptr, ordered.indices, ordered.data):
        hasher.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    return hasher.hexdigest()


def label_content(barcodes: Iterable[str], labels: Iterable[str]) -> str:
    """Return the SHA-256 of labels in the order of their barcodes."""
    pairs = sorted(zip(barcodes, labels, strict=True))
    return hashlib.sha256("\n".join(f"{b}\t{label}" for b, label in pairs).encode()).hexdigest()


def _known(section: str) -> dict[str, Any]:
    text = package_files("stimg.datasets").joinpath("dlpfc.json").read_text(encoding="utf-8")
    return json.loads(text)[section]


def read_10x(path: Path) -> tuple[sp.csr_matrix, pd.Index, pd.DataFrame]:
    """Return (counts n_obs x n_vars, barcodes, var with ``gene_ids``) of a feature-barcode matrix of Cell Ranger 3 or later (HDF5)."""
    import h5py
    from anndata.utils import make_index_unique

    with h5py.File(path, "r") as file:
        group = file["matrix"]
        n_vars, n_obs = (int(n) for n in group["shape"][:])
        parts = (group["data"][:].astype(np.float32), group["indices"][:].astype(np.int64), group["indptr"][:].astype(np.int64))
        barcodes = pd.Index(group["barcodes"][:].astype(str))
        ids, names = group["features/id"][:].astype(str), group["features/name"][:].astype(str)
    var = pd.DataFrame({"gene_ids": ids}, index=make_index_unique(pd.Index(names)))
    return sp.csr_matrix(parts, shape=(n_obs, n_vars)), barcodes, var


def _from_public(
    section: str, path: Path, positions: pd.DataFrame, known: dict[str, Any], progress: bool | None
) -> tuple[sp.csr_matrix, pd.Index, pd.DataFrame, pd.Series]:
    """Return the published matrix reduced to the known spots and genes, with its layers, after comparing both with their known content."""
    counts, barcodes, var = read_10x(path)
    kept = np.unpackbits(np.frombuffer(base64.b64decode(known["spots"]), np.uint8))[: len(positions)].astype(bool)
    where = np.flatnonzero(barcodes.isin(positions.index[kept]))
    genes = np.flatnonzero(np.asarray(counts.sum(axis=0)).ravel() >= MIN_COUNTS)
    counts, barcodes, var = counts[where][:, genes], barcodes[where], var.iloc[genes]
    found = content(counts, barcodes, var["gene_ids"])
    if found != known["counts"]:
        raise ValueError(
            f"{path} does not hold the counts of {section}: {counts.shape} observations and genes, total {counts.sum():.0f}, content {found}; expected "
            f"({known['observations']}, {known['genes']}), total {known['total']}, content {known['counts']}. Remove the file so that it is fetched again."
        )
    table_path = fetch_file("dlpfc/layers/all", content_checked=True, progress=progress)
    table = pd.read_csv(table_path, sep="\t", header=None, names=["barcode", "section", "layer"], dtype=str)
    layer = table[table["section"] == section].set_index("barcode")["layer"].str.replace("L", "Layer").reindex(barcodes)
    found = label_content(barcodes, layer.astype(str))
    if found != known["labels"]:
        raise ValueError(
            f"{table_path} does not hold the layers of {section}: content {found}, expected {known['labels']}. Remove the file and try again."
        )
    return counts, barcodes, var, layer


def _from_mirror(path: Path) -> tuple[sp.csr_matrix, pd.Index, pd.DataFrame, pd.Series]:
    import anndata as ad

    adata = ad.read_h5ad(path)
    barcodes = pd.Index(adata.obs_names.str.replace(r"\.\d+$", "", regex=True))
    return sp.csr_matrix(adata.X), barcodes, adata.var[["gene_ids"]].copy(), adata.obs["layer_guess_reordered"]


def _read(section: str, image: ImageChoice, progress: bool | None) -> Section:
    positions = pd.read_csv(fetch_file(f"dlpfc/positions/{section}", progress=progress), header=None, index_col=0)
    factors = json.loads(fetch_file(f"dlpfc/scalefactors/{section}", progress=progress).read_text())
    path = fetch_file(f"dlpfc/counts/{section}", content_checked=True, progress=progress)
    if path.suffix == ".h5ad":
        counts, barcodes, var, layer = _from_mirror(path)
    else:
        counts, barcodes, var, layer = _from_public(section, path, positions, _known(section), progress)
    here = positions.loc[barcodes]
    row, column = here[2].to_numpy(), here[3].to_numpy()
    xy = here[[5, 4]].to_numpy(float)
    grid = np.column_stack([column * PITCH_UM / 2, row * PITCH_UM * np.sqrt(3) / 2])
    entry = FILES[f"dlpfc/image/{section}"]
    return Section(
        library=section,
        donor=_DONOR[section],
        counts=counts,
        names=list(barcodes),
        var=var,
        obs=pd.DataFrame({"array_row": row, "array_col": column, "label": pd.Categorical(layer, categories=list(LAYERS))}),
        xy=xy,
        mpp=1 / affine_scale(grid, xy),
        spot_um=SPOT_UM,
        image=None if image == "none" else fetch_file(entry.name, progress=progress),
        image_size=(entry.width, entry.height),
        image_scale=factors["tissue_lowres_scalef"],
        scalefactors=factors,
        metadata={"technology": "Visium", "pitch_um": PITCH_UM, "source": "LieberInstitute/HumanPilot"},
    )


def dlpfc(
    sections: str | int | Sequence[str | int] | None = None,
    *,
    image: ImageChoice = "none",
    as_sdata: bool = False,
    progress: bool | None = None,
) -> "AnnData | SpatialData":
    """Return sections of human cortex on Visium: about 2,900 spots and 12,000 genes a section, seven layers in ``obs["label"]``.

    Parameters
    ----------
    sections
        ``"151673"``, ``"151674"``, or None for both; one donor.
    image, as_sdata, progress
        As for :func:`stimg.datasets.her2st`. The published image has 600 pixels a side, so ``"hires"`` and ``"full"`` hold those.

    Returns
    -------
    Counts (float32 CSR) with ``library_id``, ``donor``, ``array_row``, ``array_col`` (Space Ranger's), ``label`` (Layer1 to Layer6, WM),
    ``var["gene_ids"]``, ``obsm["spatial"]`` (x, y) in full-resolution pixels, ``uns["spatial"]``. Several sections share the genes that both list.

    Raises
    ------
    ValueError
        An unknown section, a damaged file, content that is not the known one, ``image="full"`` without ``as_sdata``.
    ConnectionError, OSError
        Files that are not at hand and cannot be fetched or written.

    Notes
    -----
    The spots are those with an expert label that a processed copy of the data keeps (about four fifths of those under tissue), the genes those with
    at least 100 counts over all spots under tissue. The hash of the published matrices is not known; a downloaded matrix is reduced to them and must
    agree with the known content, number by number, else a ValueError is raised. ``microns_per_pixel`` comes from the pitch of 100 µm.
    ``spot_diameter_fullres`` is Space Ranger's, which is larger than the spots (55 µm); the circles of SpatialData have 55 µm.
    """
    check_image(image, as_sdata)
    names = None if sections is None else [str(sections)] if isinstance(sections, (str, int)) else [str(s) for s in sections]
    wanted = select(names, libraries("dlpfc"), "DLPFC section")
    return assemble([_read(s, image, progress) for s in wanted], image=image, as_sdata=as_sdata)
