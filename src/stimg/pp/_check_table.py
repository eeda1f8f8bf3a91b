"""Checks of a library's table: counts, genes, control probes, observations, depth."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg._core import hashing, panel, validate
from stimg.pp._check_rows import Row, percent

LEAST_DEPTH = {"spot": (20.0, 200.0), "small": (1.0, 10.0)}
"""Median counts of an observation below which a library fails, and below which it is remarked upon; spots, and smaller bins and cells."""
MUCH_CONTROL = (0.05, 0.2)
"""Share of the counts that control probes may take: remarked upon, failed."""
MUCH_MITOCHONDRIAL = 0.3
PROFILE = 30
"""Counts from which two equal profiles are no chance."""
_COUNTS_TODO = "Put raw counts into adata.X, or pass `layer=`."


def check_counts(adata: Any, rows: np.ndarray, layer: str | None) -> tuple[Row, sp.csr_matrix | None, bool]:
    """Return the row about counts, the values to go on with (None where they cannot be used), and whether they are counts."""
    wanted = "finite whole numbers, none negative"
    found = validate.matrix(adata, layer)
    part = sp.csr_matrix(found[rows]) if not sp.issparse(found) else sp.csr_matrix(found.tocsr()[rows])
    data = part.data
    if data.dtype.kind not in "iufb":
        return Row("counts", "fail", f"values of dtype {data.dtype}", wanted, _COUNTS_TODO), None, False
    bad = int((~np.isfinite(data)).sum())
    if bad:
        return Row("counts", "fail", f"{bad} NaN or infinite values", wanted, "Remove or repair them."), None, False
    if data.size and data.min() < 0:
        found_text = f"{int((data < 0).sum())} negative values, the least is {data.min():g}"
        return Row("counts", "fail", found_text, wanted, _COUNTS_TODO), None, False
    broken = int((data != np.rint(data)).sum()) if data.dtype.kind == "f" else 0
    if broken:
        example = data[data != np.rint(data)][0]
        return (
            Row("counts", "fail", f"{broken} of {data.size} values are fractions, such as {example:.4g}", wanted, _COUNTS_TODO),
            part,
            False,
        )
    if not data.any():
        return Row("counts", "fail", "all values are zero", wanted, _COUNTS_TODO), None, False
    return Row("counts", "pass", f"whole numbers up to {data.max():g}", wanted), part, True


def check_panel(adata: Any) -> Row:
    """Return the row about the genes of the table."""
    names = pd.Index([str(n) for n in adata.var_names])
    wanted = "unique gene names of one kind and one species"
    twice = int(names.duplicated().sum())
    if twice:
        what = f"{twice} duplicated gene names, the first is {names[names.duplicated()][0]!r}"
        return Row("panel", "fail", what, wanted, "Run `adata.var_names_make_unique()`, or add the duplicates up.")
    numbers = int(names.str.fullmatch(r"\d+").sum())
    if numbers > 0.5 * len(names):
        return Row(
            "panel",
            "fail",
            f"{numbers} of {len(names)} gene names are numbers",
            wanted,
            "Set adata.var_names to symbols or Ensembl identifiers.",
        )
    genes = names[~controls(adata)]
    ensembl = genes.str.match(r"ENS[A-Z]*G\d{6}")
    prefixes = genes.str.extract(r"^(GRCh\d\d|hg\d\d|mm\d\d|GRCm\d\d)_+", expand=False).dropna().unique()
    species = set(genes.str.extract(r"^(ENS[A-Z]*)G\d{6}", expand=False).dropna())
    if len(prefixes) > 1 or len(species) > 1:
        return Row(
            "panel",
            "warn",
            f"genes of several species: {sorted(map(str, [*prefixes, *species]))}",
            wanted,
            "Keep the genes of one species.",
        )
    share = float(ensembl.mean()) if len(genes) else 0.0
    if 0.05 < share < 0.95:
        return Row("panel", "warn", f"{percent(share)} Ensembl identifiers, the rest other names", wanted, "Bring all names to one kind.")
    if len(genes) < 10:
        return Row("panel", "warn", f"{len(genes)} genes", "10 or more", "Check the reader or the filter that made this object.")
    return Row("panel", "pass", f"{len(genes)} genes ({'Ensembl identifiers' if share > 0.5 else 'symbols'})", wanted)


def controls(adata: Any) -> np.ndarray:
    """Return which columns are control probes, bool (n_vars,); none where ``var["control"]`` cannot be read."""
    try:
        return panel.is_control(adata.var)
    except TypeError:  # told by check_controls
        return np.zeros(adata.n_vars, dtype=bool)


def check_controls(adata: Any, values: sp.csr_matrix | None) -> Row:
    """Return the row about control probes, and whether they take more of the counts than they should."""
    wanted = f"control probes with at most {percent(MUCH_CONTROL[0])} of the counts"
    try:
        control = panel.is_control(adata.var)
    except TypeError as error:
        return Row("control probes", "fail", str(error).split(";")[0], "booleans", "Convert adata.var['control'], or rename it.")
    if not control.any():
        return Row("control probes", "pass", "none in the panel", wanted)
    if values is None:
        return Row("control probes", "skip", f"{int(control.sum())} probes; the counts cannot be read", wanted, "Correct the counts first.")
    share = float(values[:, np.flatnonzero(control)].sum() / max(values.sum(), 1))
    status = "fail" if share > MUCH_CONTROL[1] else "warn" if share > MUCH_CONTROL[0] else "pass"
    todo = "" if status == "pass" else "Check the run, and that var['control'] marks what it should."
    return Row("control probes", status, f"{int(control.sum())} probes with {percent(share)} of the counts", wanted, todo)


def check_observations(adata: Any, rows: np.ndarray, yx: np.ndarray, values: sp.csr_matrix | None) -> Row:
    """Return the row about names, positions and profiles that come twice."""
    wanted = "each observation once"
    names = adata.obs_names
    twice = names[names.duplicated()]
    if len(twice):
        what = f"{len(twice)} duplicated names in the table, the first is {twice[0]!r}"
        return Row("observations", "fail", what, wanted, "Make them unique, for example with `anndata.concat(..., index_unique='-')`.")
    here = np.isfinite(yx).all(axis=1)
    same = int(here.sum()) - len(np.unique(yx[here], axis=0)) if here.any() else 0
    profile = 0
    if values is not None:
        depth = np.asarray(values.sum(axis=1)).ravel()
        content = hashing.of_observations(values, adata.var_names)[depth >= PROFILE]
        profile = sum(n - 1 for n in Counter(content.tolist()).values())
    if profile:
        what = f"{profile} observations have the counts of another one (of {PROFILE} or more)"
        return Row("observations", "fail", what, wanted, "Remove the copies: a section was joined to itself, or a file read twice.")
    if same:
        return Row("observations", "fail", f"{same} observations have the coordinates of another one", wanted, "Remove or correct them.")
    return Row("observations", "pass", f"{len(rows)}, each once", wanted)


def check_depth(adata: Any, values: sp.csr_matrix | None, counts: bool, *, small: bool) -> Row:
    """Return the row about the number of counts, empty observations and the share of mitochondrial counts."""
    fail, low = LEAST_DEPTH["small" if small else "spot"]
    wanted = f"a median of {low:g} or more, none empty, at most {percent(MUCH_MITOCHONDRIAL)} mitochondrial"
    if values is None or not counts:
        return Row("depth", "skip", "not counts", wanted, "Correct the counts first.")
    control = controls(adata)
    depth = np.asarray(values[:, np.flatnonzero(~control)].sum(axis=1)).ravel()
    median, empty = float(np.median(depth)), int((depth == 0).sum())
    upper = pd.Index([str(n).upper() for n in adata.var_names])
    mitochondrial = np.flatnonzero(upper.str.startswith("MT-"))
    share = float(values[:, mitochondrial].sum() / max(depth.sum(), 1)) if len(mitochondrial) else 0.0
    what = (
        f"median {median:,.0f}, from {depth.min():,.0f} to {depth.max():,.0f}"
        if median >= 10
        else f"median {median:g}, up to {depth.max():,.0f}"
    )
    if empty:
        what += f"; {empty} of {len(depth)} observations without any count"
    if len(mitochondrial):
        what += f"; {percent(share)} mitochondrial"
    if median < fail or empty > 0.5 * len(depth):
        return Row("depth", "fail", what, wanted, "Check the layer and the sequencing: nothing can be learnt from this.")
    if median < low or empty or share > MUCH_MITOCHONDRIAL:
        return Row("depth", "warn", what, wanted, "Remove empty observations; compare methods by a measure that depth does not decide.")
    return Row("depth", "pass", what, wanted)
