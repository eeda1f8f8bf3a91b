"""What of a panel is a gene: the one predicate that tells control probes from genes."""

import re

import numpy as np
import pandas as pd

CONTROL_COLUMN = "control"
"""``var``: True for control probes, where a reader knows them."""
CONTROL_NAMES = (
    "NegControl",
    "NegPrb",
    "BLANK",
    "Blank",
    "Unassigned",
    "Deprecated",
    "Intergenic",
    "antisense_",
    "SystemControl",
    "FalseCode",
)
"""Beginnings of the names that Xenium, MERSCOPE and CosMx give to probes and codewords that measure no gene."""
CONTROL_TYPES = ("Negative Control", "Unassigned Codeword", "Deprecated Codeword", "Genomic Control", "Blank Codeword")
"""Beginnings of ``var["feature_types"]`` of such probes in 10x files."""


def is_control(var: pd.DataFrame) -> np.ndarray:
    """Return True for every row of ``var`` that is a control probe, bool (n_vars,).

    A row is a control probe where ``var["control"]`` is True, where its name (the index) begins with one of ``CONTROL_NAMES``, or where
    ``var["feature_types"]`` begins with one of ``CONTROL_TYPES``. Control probes never become channels and do not count towards depth.

    Raises
    ------
    TypeError
        Where ``var["control"]`` is there and is not boolean, or has missing values.
    """
    pattern = re.compile("|".join(re.escape(name) for name in CONTROL_NAMES))
    found = np.fromiter((pattern.match(str(name)) is not None for name in var.index), dtype=bool, count=len(var))
    if CONTROL_COLUMN in var:
        column = var[CONTROL_COLUMN]
        missing = int(column.isna().sum())
        if missing or not pd.api.types.is_bool_dtype(column.dtype):
            raise TypeError(
                f"adata.var['{CONTROL_COLUMN}'] has dtype {column.dtype} and {missing} missing values; wanted booleans, True for control probes. "
                "Convert it, or rename the column where it means something else."
            )
        found |= column.to_numpy(dtype=bool)
    if "feature_types" in var:
        types = re.compile("|".join(re.escape(name) for name in CONTROL_TYPES))
        found |= np.fromiter((types.match(str(name)) is not None for name in var["feature_types"]), dtype=bool, count=len(var))
    return found
