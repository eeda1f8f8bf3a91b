"""Published gene lists."""

import pickle
from typing import Any

import numpy as np

from stimg.datasets.fetch import fetch_file
from stimg.datasets.registry import libraries
from stimg.datasets.section import select

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and plain strings, and nothing that could run other code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}; a list of gene names needs numpy arrays and strings only")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def gene_list(name: str, *, progress: bool | None = None) -> list[str]:
    """Return a published list of gene symbols, in its own order.

    Parameters
    ----------
    name
        ``"her_hvg_cut_1000"`` (785 genes of HER2-positive breast cancer) or ``"skin_hvg_cut_1000"`` (171 genes of skin cancer), the lists behind
        many published tables. They were chosen with the test sections included: use them to compare with those tables, not to choose genes.
    progress
        Show a progress bar while downloading; by default only on a terminal.

    Raises
    ------
    ValueError
        An unknown name, or a file that does not hold a list of names.
    ConnectionError, OSError
        A file that is not at hand and cannot be fetched or written.
    """
    (wanted,) = select(name, libraries("genes"), "gene list")
    path = fetch_file(f"genes/lists/{wanted}", progress=progress)
    with path.open("rb") as handle:
        version = np.lib.format.read_magic(handle)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(handle)
        if dtype.hasobject:
            array = _ArrayUnpickler(handle).load()
        else:
            handle.seek(0)
            array = np.load(handle, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim != 1 or not all(isinstance(g, str) for g in array):
        raise ValueError(f"{path} does not hold a list of names. Remove the file so that it is fetched again.")
    return [str(g) for g in array]
