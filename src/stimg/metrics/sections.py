"""Values less what is common to their section."""

from typing import Any

import numpy as np
import scipy.sparse as sp


def section_means(values: np.ndarray, section: Any) -> np.ndarray:
    """Return, for every row, the mean of the rows of its section."""
    code = np.unique(np.asarray(section), return_inverse=True)[1]
    member = sp.csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))), shape=(code.max() + 1, len(code)))
    return np.asarray((member @ values) / np.bincount(code)[:, None])[code]


def centred(values: np.ndarray, section: Any) -> np.ndarray:
    """Return ``values`` less the mean of their section, or of all rows where there are no sections."""
    return values - (values.mean(axis=0) if section is None else section_means(values, section))
