"""What ``stimg.datasets`` can fetch: one row a file in ``files.tsv``, one entry a dataset here."""

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files as package_files
from pathlib import Path

import pandas as pd

from stimg._core.registry import Registry
from stimg._core.settings import settings


@dataclass(frozen=True)
class RemoteFile:
    """One public file: where it is, how its content is recognised, and what a mirror folder calls it.

    Parameters
    ----------
    name
        ``dataset/kind/library``.
    url
        Public address, pinned to a commit where the host has commits.
    sha256, git_sha1
        Hash of the public bytes, and the name that git gives to the same bytes; empty where not known.
    size
        Size of the public file in bytes, 0 where not known.
    mirror
        Path inside the folder of ``$STIMG_DATA_MIRROR``, empty where no mirror holds it.
    mirror_sha256
        Hash of the mirror's file where its bytes are not the public ones (compressed, or stored in another format).
    width, height
        Size in pixels of an image, else 0.
    """

    name: str
    url: str
    sha256: str
    git_sha1: str
    size: int
    mirror: str
    mirror_sha256: str
    width: int
    height: int

    @property
    def dataset(self) -> str:
        """First part of the name."""
        return self.name.split("/")[0]

    @property
    def library(self) -> str:
        """Last part of the name."""
        return self.name.split("/")[-1]

    @property
    def cache(self) -> str:
        """Path inside the folder for downloads."""
        return self.name + "".join(Path(self.url).suffixes[-2:] if self.url.endswith(".gz") else Path(self.url).suffixes[-1:])


@dataclass(frozen=True)
class Dataset:
    """What a dataset is, under which licence its files are published, and what to cite."""

    name: str
    what: str
    libraries: tuple[str, ...]
    source: str
    licence: str
    citation: str
    verified: str = "sha256"


@lru_cache(maxsize=1)
def _rows() -> tuple[RemoteFile, ...]:
    text = package_files("stimg.datasets").joinpath("files.tsv").read_text(encoding="utf-8")
    return tuple(
        RemoteFile(
            row["name"],
            row["url"],
            row["sha256"],
            row["git_sha1"],
            int(row["bytes"] or 0),
            row["mirror"],
            row["mirror_sha256"],
            int(row["width"] or 0),
            int(row["height"] or 0),
        )
        for row in csv.DictReader(text.splitlines(), delimiter="\t")
    )


def _registry() -> Registry[RemoteFile]:
    registry: Registry[RemoteFile] = Registry("file of stimg.datasets")
    for row in _rows():
        registry.add(row.name, row)
    return registry


FILES: Registry[RemoteFile] = _registry()
"""Every file by name."""
DATASETS: Registry[Dataset] = Registry("dataset")
"""Every dataset by name."""


def libraries(dataset: str) -> tuple[str, ...]:
    """Return the libraries of which counts are registered (of "genes": the lists), sorted."""
    kind = "lists" if dataset == "genes" else "counts"
    return tuple(sorted(row.library for row in _rows() if row.name.startswith(f"{dataset}/{kind}/")))


def _add(name: str, what: str, source: str, licence: str, citation: str, verified: str = "sha256") -> None:
    DATASETS.add(name, Dataset(name, what, libraries(name), source, licence, citation, verified))


_add(
    "her2st",
    "HER2-positive breast cancer, legacy Spatial Transcriptomics (200 µm pitch), H&E, pathologist's labels of 4 sections",
    "https://github.com/almaan/her2st",
    "CC BY 4.0",
    "Andersson A et al. Spatial deconvolution of HER2-positive breast cancer delineates tumor-associated cell type interactions. "
    "Nature Communications 12, 6012 (2021). doi:10.1038/s41467-021-26271-2",
    "sha256; images without a known sha256 by their git blob name",
)
_add(
    "dlpfc",
    "human dorsolateral prefrontal cortex, Visium (100 µm pitch), cortical layers drawn by experts, H&E at 600 px",
    "https://github.com/LieberInstitute/HumanPilot",
    "not stated by the source; the distributing package spatialLIBD is Artistic-2.0",
    "Maynard KR et al. Transcriptome-scale spatial gene expression in the human dorsolateral prefrontal cortex. "
    "Nature Neuroscience 24, 425-436 (2021). doi:10.1038/s41593-020-00787-0",
    "sha256; counts and layers by a hash of their content after reading",
)
_add(
    "mob",
    "mouse olfactory bulb, Spatial Transcriptomics on a staggered array of 2,000 spots, 1,000 genes, H&E at 1905 px",
    "https://github.com/jbergenstrahle/STUtility",
    "MIT",
    "Bergenstråhle J, Larsson L, Lundeberg J. Seamless integration of image and molecular analysis for spatial transcriptomics workflows. "
    "BMC Genomics 21, 482 (2020). doi:10.1186/s12864-020-06832-3",
)
_add(
    "stahl",
    "human breast cancer, legacy Spatial Transcriptomics (200 µm pitch), 4 neighbouring layers, no image",
    "https://github.com/raphael-group/paste",
    "BSD-3-Clause",
    "Ståhl PL et al. Visualization and analysis of gene expression in tissue sections by spatial transcriptomics. "
    "Science 353, 78-82 (2016). doi:10.1126/science.aaf2403",
)
_add(
    "genes",
    "gene lists behind published tables on HER2-positive breast cancer (785) and skin cancer (171); chosen with test sections, for comparison only",
    "https://github.com/biomed-AI/Hist2ST",
    "not stated by the source",
    "Zeng Y et al. Spatial transcriptomics prediction from histology jointly through Transformer and graph neural networks. "
    "Briefings in Bioinformatics 23, bbac297 (2022). doi:10.1093/bib/bbac297",
)


def dataset_files(dataset: str) -> list[RemoteFile]:
    """Return the files of ``dataset``; an unknown name is a ValueError that lists the known ones."""
    return [row for row in _rows() if row.dataset == DATASETS[dataset].name]


def listing() -> pd.DataFrame:
    """Return one row a dataset: what it is, its libraries, files and bytes, licence, citation, and how many files are at hand.

    Returns
    -------
    Table indexed by ``name`` with ``what``, ``libraries`` (count), ``files`` (count), ``bytes`` (sum of the public files whose
    size is known), ``licence``, ``citation``, ``source``, ``verified`` (how a download is recognised), ``in_mirror`` and ``in_cache``
    (number of files that exist there; their hashes are compared when they are read).
    """
    mirror, cache = settings.mirror(), settings.cache_dir()
    table = []
    for name in DATASETS:
        entry, rows = DATASETS[name], dataset_files(name)
        table.append(
            {
                "name": name,
                "what": entry.what,
                "libraries": len(entry.libraries),
                "files": len(rows),
                "bytes": sum(row.size for row in rows),
                "licence": entry.licence,
                "citation": entry.citation,
                "source": entry.source,
                "verified": entry.verified,
                "in_mirror": sum((mirror / row.mirror).is_file() for row in rows if row.mirror) if mirror is not None else 0,
                "in_cache": sum((cache / row.cache).is_file() for row in rows),
            }
        )
    return pd.DataFrame(table).set_index("name")


def markdown() -> str:
    """Return the table of datasets as the documentation prints it."""
    lines = ["| dataset | what | libraries | files | MB | licence | a download is recognised by |", "|---|---|---|---|---|---|---|"]
    for name in DATASETS:
        entry, rows = DATASETS[name], dataset_files(name)
        size = sum(row.size for row in rows) / 1e6
        known = ", ".join(entry.libraries) or "—"
        cells = (f"[{name}]({entry.source})", entry.what, known, str(len(rows)), f"{size:.1f}", entry.licence, entry.verified)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
