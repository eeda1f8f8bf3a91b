"""Content hashes: what a fitted thing has seen, in 16 hexadecimal digits that do not depend on order or platform."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

LENGTH = 16

ENTRIES = 1 << 18
"""Counts that are hashed at a time."""


def of_strings(values: Iterable[Any], *, ordered: bool = True) -> str:
    """Return the hash of a sequence of strings; ``ordered=False`` hashes the sorted values."""
    texts = [str(v) for v in values]
    if not ordered:
        texts.sort()
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:LENGTH]


def of_array(array: np.ndarray) -> str:
    """Return the hash of an array's dtype, shape and bytes (little-endian, C order)."""
    array = np.ascontiguousarray(array)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()[:LENGTH]


def of_names(names: Iterable[Any]) -> np.ndarray:
    """Return one uint64 per name, the same on every platform."""
    texts = [str(n) for n in names]
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


@lru_cache(maxsize=32)
def _of_genes(names: tuple[str, ...]) -> np.ndarray:
    """Return the hashes of gene names; the same panels are asked for again and again."""
    return of_names(names)


def of_observations(matrix: Any, names: Iterable[Any]) -> np.ndarray:
    """Return one uint64 per row of ``matrix`` (CSR or dense, n_obs x n_vars) that depends on the row's values by gene name alone.

    Equal counts give equal hashes whatever the barcode and the order of the genes, so a section that comes back under another name is
    recognised. The hash is a sum over the genes with counts: genes without counts do not enter, and a row without counts is 0.
    """
    import scipy.sparse as sp

    csr = sp.csr_matrix(matrix)
    if not csr.has_sorted_indices or not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    gene = _of_genes(tuple(names))
    if len(gene) != csr.shape[1]:
        raise ValueError(f"{len(gene)} names for {csr.shape[1]} genes; wanted one name a column.")
    out = np.zeros(csr.shape[0], dtype=np.uint64)
    bounds = np.unique([0, *np.searchsorted(csr.indptr, np.arange(ENTRIES, csr.nnz, ENTRIES)), len(out)])
    for first, last in pairwise(bounds.tolist()):
        start, stop = csr.indptr[first], csr.indptr[last]
        out[first:last] = _of_rows(gene[csr.indices[start:stop]], csr.data[start:stop], csr.indptr[first : last + 1] - start)
    return out


def _of_rows(gene: np.ndarray, data: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Return the sums over rows of the hashes of genes mixed with their values."""
    mixed = gene ^ (data.astype(np.float32).view(np.uint32).astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F))
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    mixed[data == 0] = 0
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    return total[indptr[1:]] - total[indptr[:-1]]
