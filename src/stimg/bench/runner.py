"""Running a protocol: folds, methods, seeds; every finished part is kept, so that a run that was killed goes on where it stopped."""

import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from stimg._core import hashing, keys, validate
from stimg._core.ledger import Leak, LeakageError, Seen
from stimg._core.progress import track
from stimg._core.rng import derive
from stimg.bench import leaks as _leaks
from stimg.bench import method as _method
from stimg.bench import protocol as _protocol
from stimg.bench import sections as _sections
from stimg.bench.method import Method, Prediction
from stimg.bench.protocol import Fold, Hidden, Protocol, Task
from stimg.bench.report import Report, assemble
from stimg.bench.store import Store
from stimg.data.ledger import recall

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.data.manifest import SplitManifest

logger = logging.getLogger(__name__)
PACKAGES = ("stimg", "numpy", "scipy", "pandas", "anndata", "scanpy", "scikit-learn", "torch", "scvi-tools")


def run(
    protocol: str | Protocol,
    data: Any,
    *,
    methods: Mapping[str, Any] | Sequence[str] = (),
    predictions: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    seeds: int | Sequence[int] = 3,
    nulls: bool = True,
    fitted: Any = (),
    allow_leakage: bool = False,
    layer: str | None = None,
    labels: str | None = None,
    features: Sequence[str] = (),
    library_key: str = keys.LIBRARY,
    donor_key: str = keys.DONOR,
    missing_donor: str = "error",
    manifest: "SplitManifest | str | Path | None" = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Report:
    """Return the report of methods, or of finished predictions, under a protocol, beside its nulls and its noise ceiling.

    Parameters
    ----------
    protocol
        A name of :func:`stimg.bench.list_protocols`, or a protocol of your own.
    data
        Sections with raw counts: an AnnData, several, a folder of ``.h5ad`` files, or a name (``"her2st"``, ``"dlpfc"``, ``"simulated"``).
    methods
        Names of :func:`stimg.bench.list_methods`, or functions by name: ``function(task, rng)`` returns values by library. What a task holds, see
        :class:`stimg.bench.Task`: everything a method may read, and nothing of the truth.
    predictions
        Finished predictions by name: the name of a layer of ``data``, or a table or array (observations x genes) for each library.
    out
        Folder for ``report.json``, tables and ``report.html``; finished parts are kept there, and a run that was interrupted goes on.
    seeds
        How many seeds, or which, for methods that depend on chance.
    nulls
        Whether the protocol's nulls are scored too.
    fitted
        What else was fitted on the way to the predictions: models, :class:`stimg.bench.Seen` records.
    allow_leakage
        Score all the same where something has seen test data; the report is stamped.
    layer, library_key, donor_key
        Where raw counts, library and donor are.
    labels
        Column of ``obs`` with known regions, for protocols that need them.
    features
        Slots of ``obsm`` that methods may read, such as embeddings of images.
    missing_donor
        ``"own-group"`` declares a section without a donor to be a donor of its own.
    manifest
        A split that :func:`stimg.pp.split` has made (by donor or section), or the file that holds it: its divisions in place of the
        protocol's, after the counts of every section are compared with it. Validation sections may be fitted on.
    overwrite
        Whether a run of something else in ``out`` may be replaced.
    progress
        Show a progress bar; by default only on a terminal.

    Raises
    ------
    LeakageError
        Where something fitted has seen test data; the message names who has seen what.
    ValueError
        For data that the protocol cannot use, predictions of the wrong shape, or another run in ``out``.

    Examples
    --------
    >>> import stimg
    >>> report = stimg.bench.run("her2st-strict", "simulated", seeds=1)
    >>> report.summary().loc["training mean", "mean_r"]["value"].iloc[0]
    np.float64(0.0)
    """
    chosen = _protocol.get(protocol)
    objects, found = chosen.load(
        data,
        layer=layer,
        library_key=library_key,
        donor_key=donor_key,
        missing_donor=missing_donor,
        features=features,
        labels=labels,
    )
    wanted = list(range(seeds)) if isinstance(seeds, int) else [int(s) for s in seeds]
    if not wanted:
        raise ValueError("seeds is empty; wanted at least one.")
    contents = _sections.content(found)
    folds = chosen.folds(found) if manifest is None else _folds_of(manifest, objects, found, layer, library_key, donor_key)
    runnable = [
        m
        for m in (_method.get(n) for n in (chosen.nulls if nulls else ()))
        if set(m.needs) <= set(features) and (not m.trains or all(f.train for f in folds))
    ]
    listed = _listed(chosen, runnable, methods, predictions, objects, features=features, library_key=library_key)
    split = _sections.split_hash(folds, contents)
    facts = {
        "protocol": chosen.hash,
        "split": split,
        "methods": [m.name for m in listed],
        "seeds": wanted,
        "inputs": _fingerprint({"given": predictions or {}, "read": _read_by_methods(found, features, labels)}),
        "allow_leakage": allow_leakage,
    }
    store = Store(None if out is None else Path(out), facts, overwrite=overwrite)
    jobs = [(f, m, s) for f in folds for m in listed for s in (wanted if m.seeded else wanted[:1])]
    case: _Case | None = None
    for fold, each, seed in track(jobs, desc=f"bench {chosen.name}", progress=progress):
        name = hashing.of_strings([fold.name, each.name, seed])
        if store.has(name):
            continue
        if case is None or case.fold != fold:
            task, hidden = chosen.task(found, fold)
            case = _Case(fold, task, hidden, _leaks.of_fold(chosen, task, hidden), *_leaks.of_features(task, features))
        store.put(name, _part(chosen, case, each, seed, fitted, allow_leakage=allow_leakage))
    report = assemble(
        chosen,
        folds=folds,
        sections=[
            {"library": n, "donor": _sections.donor(a), "n_obs": a.n_obs, "n_genes": a.n_vars, "content": contents[n]}
            for n, a in found.items()
        ],
        split=split,
        methods=listed,
        seeds=wanted,
        parts=chosen.pool([store.get(hashing.of_strings([f.name, m.name, s])) for f, m, s in jobs]),
        software=software(),
        machine={"platform": platform.platform(), "processor": platform.machine(), "python": platform.python_version()},
    )
    if out is not None:
        report.save(out)
    logger.info("bench %s: %d folds, %d methods, %d parts", chosen.name, len(folds), len(listed), len(jobs))
    return report


def _folds_of(
    manifest: "SplitManifest | str | Path",
    objects: Sequence["AnnData"],
    found: Mapping[str, "AnnData"],
    layer: str | None,
    library_key: str,
    donor_key: str,
) -> list[Fold]:
    """Return the divisions of a manifest as folds, after every section's counts are compared with it."""
    from stimg.data.manifest import SplitManifest

    split = manifest if isinstance(manifest, SplitManifest) else SplitManifest.load(manifest)
    if split.level == "block":
        raise ValueError(
            "the manifest divides sections into blocks; wanted one by donor or section. Protocols within sections make their own."
        )
    for adata in objects:
        split.check(adata, strict=False, layer=layer, library_key=library_key, donor_key=donor_key)
    absent = sorted(set(split.libraries) - set(found))
    if absent:
        raise ValueError(
            f"the manifest lists sections that are not in the data: {absent[:8]}. Add them, or make a manifest of these sections."
        )
    return [Fold(d.name, (*d.train, *d.validation), d.test) for d in split.divisions if d.test]


class _Case(NamedTuple):
    """One fold, made once for all methods: what they get, what they do not, and the leaks that are there before any of them."""

    fold: Fold
    task: Task
    hidden: Hidden
    leaks: list[Leak]
    features: list[Seen]
    silent: list[str]


def software() -> dict[str, str]:
    """Return the versions of the packages that can move a number."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_mb() -> float | None:
    """Return the largest resident memory of this process so far, in MB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024.0 if platform.system() != "Darwin" else 1024.0**2)


def _read_by_methods(found: Mapping[str, "AnnData"], features: Sequence[str], labels: str | None) -> dict[str, Any]:
    """Return what else moves a number: the features of every section, and its labels as a hash."""
    values: dict[str, Any] = {f"{name}|{key}": a.obsm[key] for name, a in found.items() for key in features}
    if labels is not None:
        values |= {f"{name}|label": hashing.of_strings(a.obs["label"]) for name, a in found.items()}
    return values


def _fingerprint(inputs: Mapping[str, Any]) -> str:
    """Return a hash of finished predictions and of what methods read, so that a run is not taken for one of others."""

    def lines(given: Any, name: str) -> list[str]:
        if isinstance(given, Mapping):
            return [line for key in sorted(given) for line in lines(given[key], f"{name}|{key}")]
        return [f"{name}|{given if isinstance(given, str) else hashing.of_array(np.asarray(given, dtype=np.float64))}"]

    return hashing.of_strings(lines(inputs, ""))


def _listed(
    protocol: Protocol,
    nulls: Sequence[Method],
    methods: Mapping[str, Any] | Sequence[str],
    predictions: Mapping[str, Any] | None,
    objects: Sequence["AnnData"],
    *,
    features: Sequence[str],
    library_key: str,
) -> list[Method]:
    """Return the methods in the order of the report: nulls, then those asked for, then finished predictions."""
    out = list(nulls)
    given = methods.items() if isinstance(methods, Mapping) else [(m, m) for m in ([methods] if isinstance(methods, str) else methods)]
    for name, each in given:
        found = _method.get(each) if isinstance(each, str) else each if isinstance(each, Method) else _method.of(name, each)
        if protocol.kind not in found.kinds and found.kinds != ("any",):
            raise ValueError(f"method {found.name!r} answers {list(found.kinds)}; protocol {protocol.name!r} asks for {protocol.kind!r}.")
        lacking = sorted(set(found.needs) - set(features))
        if lacking:
            raise ValueError(f"method {found.name!r} needs obsm{lacking}; compute them and pass features={lacking}.")
        if not any(m.name == name and m.function is found.function for m in out):  # a null may be asked for by name too
            out.append(replace(found, name=name))
    out += [_given(name, each, objects, library_key) for name, each in (predictions or {}).items()]
    twice = sorted({m.name for m in out if [n.name for n in out].count(m.name) > 1})
    if twice:
        raise ValueError(f"two methods are called {twice}; give each a name of its own.")
    if not out:
        raise ValueError("there is nothing to score: no method, no predictions, and nulls=False.")
    return out


def _given(name: str, given: Any, objects: Sequence["AnnData"], library_key: str) -> Method:
    """Return finished predictions as a method: a layer's name, or values by library."""
    records: dict[str, list[Seen]] = {}
    if isinstance(given, str):
        layer = given
        tables: dict[str, Any] = {}
        for adata in objects:
            values = validate.slot(adata.layers, "layers", layer, todo="Write the predictions there, or pass them by library.")
            library = adata.obs[library_key].astype(str)
            for lib in library.unique():
                rows = np.flatnonzero((library == lib).to_numpy())
                part = values[rows]
                dense = part.toarray() if hasattr(part, "toarray") else np.asarray(part)
                tables[lib] = pd.DataFrame(dense, index=adata.obs_names[rows], columns=adata.var_names)
                records[lib] = recall(adata, only=[layer])
    elif isinstance(given, Mapping):
        tables = dict(given)
    else:
        raise TypeError(f"predictions[{name!r}] is a {type(given).__name__}; wanted the name of a layer, or values by library.")

    def answer(task: Task, rng: np.random.Generator) -> Prediction:
        asked = task.asked()
        missing = [lib for lib in asked if lib not in tables]
        if missing:
            raise ValueError(f"predictions[{name!r}] have nothing for {missing} (found {sorted(tables)[:8]}); wanted every test section.")
        fitted = tuple(seen for lib in asked for seen in records.get(lib, ()))
        return Prediction({lib: tables[lib] for lib in asked}, fitted, {} if fitted else {"ledger": "undeclared"})

    return Method(name, answer, ("any",), "model", "finished predictions")


def _part(protocol: Protocol, case: "_Case", each: Method, seed: int, fitted: Any, *, allow_leakage: bool) -> dict[str, Any]:
    """Return the scores of one method on one fold, as plain values."""
    task, hidden, fold = case.task, case.hidden, case.fold
    rng = derive(seed, *(int(h) for h in hashing.of_names([fold.name, each.name]) % np.uint64(2**31)))
    wall, cpu = time.perf_counter(), time.process_time()
    answer = each.function(task, rng, hidden) if each.role == "audit" else each.function(task, rng)
    answer = answer if isinstance(answer, Prediction) else Prediction(answer)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    own = [*recall(answer.fitted), *([*recall(fitted), *case.features] if each.role == "model" else [])]
    leaks = _leaks.together([*case.leaks, *_leaks.of_fitted(protocol, hidden, own)])
    if leaks and not allow_leakage:
        raise LeakageError(leaks)
    values = protocol.check(task, answer.values, f"method {each.name!r}")
    scored = protocol.score(task, hidden, values)
    if each.role in ("rival", "model"):
        for row, more in zip(scored.rows, protocol.significance(task, hidden, values, scored), strict=True):
            row.update(more)
    silent = [f"obsm[{key!r}]" for key in case.silent] if each.role == "model" else []
    if answer.notes.get("ledger") == "undeclared" and not own:
        silent.append(each.name)
    return {
        "fold": fold.name,
        "method": each.name,
        "seed": seed,
        "rows": _plain(scored.rows),
        "details": _plain(scored.details.to_dict(orient="list")),
        "maps": _plain(protocol.maps(task, hidden, values, scored)) if each.role in ("rival", "model") else [],
        "notes": _plain(answer.notes),
        "ledger": {"declared": not silent, "silent": silent, "leaks": [str(leak) for leak in leaks]},
        "cost": {
            "seconds": seconds[0],
            "processor_seconds": seconds[1],
            "peak_mb": peak_mb(),
        },
    }


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON can hold it; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
