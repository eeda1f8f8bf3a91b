"""Time and memory of imputation: against the number of genes, against the size of the slide, and beside what else could be used.

Protocol. Simulated sections, half of the observations hidden by chance; every number is one call in a process of its own, one thread. Times are seconds of
processor time, without reading the file and importing stimg. Peak memory is that of the whole process; what it was before the call stands beside it.
What would take hours is measured in part and multiplied, and marked with ~: a few genes of methods that fit each gene by itself; two epochs of the released design of
S2S-ST, of one gene; and three windows of large slides, for the others by the cube of the places that they read.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/imputation_speed.py [--quick] [--only genes|size]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, save, table

SECTIONS = {"ST": ("st", (19, 19), 6000), "Visium": ("visium", (55, 55), 6000)}
"""Technology, lattice and genes measured: a section as those of HER2ST, and one as those of Visium."""
GENES = (100, 1000, 5000)
SLIDES = {10_000: (100, 100), 50_000: (224, 224), 500_000: (708, 708)}
SLIDE_GENES, ASKED, DEPTH = 400, 100, 100.0
"""Genes measured on a slide of Visium HD, genes asked for, and mean counts of a bin of 8 µm."""
WINDOWS = 3
"""Windows of the larger slides that are computed."""
EPOCHS = 3000
"""Of the released design."""


def prepare(folder: Path, name: str, technology: str, shape: tuple[int, int], n_genes: int, depth: float | None) -> dict[str, Any]:
    """Write a sparse section and the places that it lacks, and say how many there are of each."""
    import stimg

    counts = None if depth is None else stimg.datasets.CountOptions(depth=depth)
    adata = stimg.datasets.simulate(technology=technology, shape=shape, n_genes=n_genes, counts=counts, rng=0)
    stimg.pp.rasterize(adata)
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    sparse, hidden = stimg.pp.sparsify(adata, mask="random", fraction=0.5, rng=0)
    hidden.X = None
    sparse.write_h5ad(folder / f"{name}.h5ad")
    hidden.write_h5ad(folder / f"{name}_hidden.h5ad")
    return {"measured": sparse.n_obs, "hidden": hidden.n_obs, "counts": float(sparse.X.sum() / sparse.n_obs)}


def read(folder: Path, name: str, n: int) -> tuple[Any, Any, list[str]]:
    """Return the sparse section, its hidden places, and the ``n`` genes with most counts."""
    import anndata as ad

    sparse, hidden = ad.read_h5ad(folder / f"{name}.h5ad"), ad.read_h5ad(folder / f"{name}_hidden.h5ad")
    most = np.argsort(-np.asarray(sparse.X.sum(axis=0)).ravel(), kind="stable")[:n]
    return sparse, hidden, sparse.var_names[most].tolist()


# ---- what is timed. Each function takes a section and gives a call; the call returns by how much its time is to be multiplied, or what to add


Call = Callable[[], tuple[float, float]]


def verb(method: str, *, uncertainty: bool) -> Callable[..., Call]:
    """``tl.impute`` of all hidden places."""

    def make(sparse: Any, hidden: Any, genes: list[str]) -> Call:
        from stimg.tl import impute  # and all that it imports

        def call() -> tuple[float, float]:
            impute(sparse, method=method, targets=hidden, genes=genes, uncertainty=uncertainty)
            return 1.0, 0.0

        return call

    return make


def some_windows(sparse: Any, hidden: Any, genes: list[str]) -> Call:
    """``tl.impute`` of all hidden places, of which some windows are computed; to add is the time of the others, by the cubes of the places that they read."""
    from stimg.data.slots import raster_libraries
    from stimg.image.interpolate import BEST, METHODS, Interpolated, in_windows, windowed
    from stimg.tl import impute

    known = windowed(METHODS[BEST])
    (library,) = raster_libraries(sparse).values()
    places = [library.spec.lattice_points(rc) for rc in (library.rc, hidden.obsm["stimg_rc"])]
    sizes = np.array([len(window.near) for window in known.windows(*places)], dtype=np.float64)
    chosen = np.linspace(0, len(sizes) - 1, 2 * WINDOWS + 1)[1::2].astype(int).tolist()
    learning = sparse.n_obs / len(sizes) * 0.5
    seconds: dict[int, float] = {}
    count = iter(range(len(sizes)))

    def timed(measured: Any, wanted: np.ndarray) -> Any:
        if len(wanted) < learning:  # a window that intervals are learned in, which asks for a fifth of the places
            return known.method(measured, wanted)
        number, start = next(count), time.process_time()
        assert len(measured.places) == sizes[number]
        if number not in chosen:
            return Interpolated(np.zeros((len(wanted), measured.n_asked)), np.ones((len(wanted), measured.n_asked)))
        found = known.method(measured, wanted)
        seconds[number] = time.process_time() - start
        return found

    def call() -> tuple[float, float]:
        impute(sparse, method=in_windows(timed), targets=hidden, genes=genes)
        of_one = sum(seconds.values()) / (sizes[chosen] ** 3).sum()
        return 1.0, float(of_one * (np.delete(sizes, chosen) ** 3).sum())

    return call


def s2s_training(sparse: Any, hidden: Any, genes: list[str]) -> Call:
    """Training of S2SImputer with all defaults."""
    import stimg

    stimg.model.S2SImputer.setup_anndata(sparse)
    model = stimg.model.S2SImputer(sparse, genes)

    def call() -> tuple[float, float]:
        model.train(enable_progress_bar=False)
        return 1.0, 0.0

    return call


def s2s_imputing(sparse: Any, hidden: Any, genes: list[str]) -> Call:
    """Imputing with a trained S2SImputer."""
    import stimg

    stimg.model.S2SImputer.setup_anndata(sparse)
    model = stimg.model.S2SImputer(sparse, genes, n_samples=2)
    model.train(max_epochs=1, steps_per_epoch=1, enable_progress_bar=False)

    def call() -> tuple[float, float]:
        model.impute(targets=hidden)
        return 1.0, 0.0

    return call


def released(sparse: Any, hidden: Any, genes: list[str]) -> Call:
    """One network of the released design for one gene, an epoch being one step of 16 maps and 16 pictures; times 3,000 epochs and all genes."""
    import stimg

    options = stimg.model.S2SImputerOptions.released(n_samples=2)
    stimg.model.S2SImputer.setup_anndata(sparse)
    model = stimg.model.S2SImputer(sparse, genes[:1], options=options)

    def call() -> tuple[float, float]:
        model.train(max_epochs=2, steps_per_epoch=1, batch_size=32, validation=None, enable_progress_bar=False)
        return len(genes) * EPOCHS / 2, 0.0

    return call


def s2s_windows(sparse: Any, hidden: Any, genes: list[str]) -> Call:
    """Two steps of S2SImputer from nearest values on a large slide, and imputing of all hidden places with it, in windows, ten genes."""
    import stimg

    stimg.model.S2SImputer.setup_anndata(sparse)
    model = stimg.model.S2SImputer(sparse, genes[:10], base="nearest", n_samples=2, turns=1)

    def call() -> tuple[float, float]:
        model.train(max_epochs=1, steps_per_epoch=2, enable_progress_bar=False)
        model.impute(targets=hidden)
        return 1.0, 0.0

    return call


def arrays(sparse: Any, hidden: Any, genes: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return places, log counts and wanted places, as a user of other libraries would make them."""
    values = np.log1p(sparse[:, genes].X.toarray().astype(np.float64) / np.asarray(sparse.X.sum(axis=1)).reshape(-1, 1) * 1e4)
    places, wanted = (np.asarray(each.obsm["spatial"], dtype=np.float64) for each in (sparse, hidden))
    unit = np.ptp(places, axis=0).max() / np.sqrt(len(places) + len(wanted))
    return places / unit, values, wanted / unit


def processes(n: int) -> Callable[..., Call]:
    """Fit a Gaussian process of scikit-learn to each of ``n`` genes; times all."""

    def make(sparse: Any, hidden: Any, genes: list[str]) -> Call:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        places, values, wanted = arrays(sparse, hidden, genes[:n])
        kernel = ConstantKernel() * Matern(length_scale=3.0, nu=1.5) + WhiteKernel()

        def call() -> tuple[float, float]:
            for gene in range(n):
                process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0).fit(places, values[:, gene])
                process.predict(wanted, return_std=True)
            return len(genes) / n, 0.0

        return call

    return make


def splines(sparse: Any, hidden: Any, genes: list[str]) -> Call:
    """Thin-plate splines of scipy through the 50 nearest places."""
    from scipy.interpolate import RBFInterpolator

    places, values, wanted = arrays(sparse, hidden, genes)

    def call() -> tuple[float, float]:
        RBFInterpolator(places, values, neighbors=50, smoothing=1.0)(wanted)
        return 1.0, 0.0

    return call


def triangles(sparse: Any, hidden: Any, genes: list[str]) -> Call:
    """Linear interpolation of scipy."""
    from scipy.interpolate import griddata

    places, values, wanted = arrays(sparse, hidden, genes)

    def call() -> tuple[float, float]:
        griddata(places, values, wanted, method="linear")
        return 1.0, 0.0

    return call


DEFAULT = "`tl.impute`, values alone"
CALLS: dict[str, Callable[..., Call]] = {
    DEFAULT: verb("ensemble", uncertainty=False),
    "`tl.impute`, with standard deviations": verb("ensemble", uncertainty=True),
    '`"pca_kriging"`, values alone': verb("pca_kriging", uncertainty=False),
    '`"nearest"`, values alone': verb("nearest", uncertainty=False),
    "`S2SImputer`, training": s2s_training,
    "`S2SImputer`, imputing": s2s_imputing,
    "released design, a network a gene": released,
    "scikit-learn, a Gaussian process a gene": processes(10),
    "scikit-learn, a Gaussian process a gene, 1 gene": processes(1),
    "scipy, thin-plate splines of 50 neighbours": splines,
    "scipy, `griddata`": triangles,
    "default": verb("ensemble", uncertainty=True),
    "default, three windows": some_windows,
    '`"nearest"`': verb("nearest", uncertainty=True),
    "`S2SImputer`, two steps, ten genes": s2s_windows,
}
IN_PROPORTION = ("released", "scikit-learn")
"""Measured for the fewest genes alone: each gene takes the time of another."""
AGAINST_GENES = {
    "ST": [
        DEFAULT, "`tl.impute`, with standard deviations", '`"pca_kriging"`, values alone', '`"nearest"`, values alone', "`S2SImputer`, training",
        "`S2SImputer`, imputing", "released design, a network a gene", "scikit-learn, a Gaussian process a gene",
        "scipy, thin-plate splines of 50 neighbours", "scipy, `griddata`",
    ],
    "Visium": [
        DEFAULT, "`tl.impute`, with standard deviations", '`"pca_kriging"`, values alone', '`"nearest"`, values alone',
        "scikit-learn, a Gaussian process a gene, 1 gene", "scipy, thin-plate splines of 50 neighbours", "scipy, `griddata`",
    ],
}  # fmt: skip
AGAINST_SIZE = {
    10_000: ["default", '`"nearest"`'],
    50_000: ["default, three windows", '`"nearest"`', "`S2SImputer`, two steps, ten genes"],
    500_000: ["default, three windows", '`"nearest"`'],
}


def measure(folder: Path, name: str, what: str, n_genes: int) -> dict[str, Any]:
    """Return seconds and memory of one call, in this process."""
    import stimg

    warnings.simplefilter("ignore")
    stimg.settings.progress = False
    call = CALLS[what](*read(folder, name, n_genes))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.process_time()
    times, more = call()
    seconds = time.process_time() - start
    return {
        "section": name,
        "method": what,
        "genes": n_genes,
        "seconds": seconds * times + more,
        "measured_seconds": seconds,
        "in_part": times != 1 or more > 0,
        "before_mb": before,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def child(folder: Path, *arguments: Any) -> dict[str, Any]:
    """Return what this script says in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--one", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = (
        {"failed": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:200], "arguments": arguments}
        if done.returncode
        else json.loads(done.stdout.strip().splitlines()[-1])
    )
    print(found, flush=True)
    return found


def spelled(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}" if seconds / size >= 10 else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def shown(row: dict[str, Any], base: dict[str, Any] | None = None) -> str:
    """Return the time of a call, and its ratio to another's."""
    if "failed" in row:
        return row["failed"]
    times = 1.0 if base is None or row is base or "failed" in base else row["seconds"] / base["seconds"]
    digits = 0 if times < 1e6 else -int(np.log10(times)) + 1
    ratio = "" if times == 1.0 else f" ({times:.2g}×)" if times < 10 else f" ({round(times, digits):,.0f}×)"
    return ("~" if row["in_part"] else "") + spelled(row["seconds"]) + ratio


def against_genes(folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Measure, print and return times by number of genes."""
    rows: list[dict[str, Any]] = []
    genes = GENES[:1] if quick else GENES
    for name, (technology, shape, n_measured) in SECTIONS.items():
        facts = child(folder, "prepare", name, technology, (12, 12) if quick else shape, n_measured, None)
        cells: dict[tuple[str, int], dict[str, Any]] = {}
        for what in AGAINST_GENES[name]:
            for n in genes:
                first = cells.get((what, genes[0]))
                if first is None or not what.startswith(IN_PROPORTION) or "failed" in first:
                    cells[what, n] = child(folder, "measure", name, what, n)
                else:
                    cells[what, n] = {**first, "genes": n, "seconds": first["seconds"] * n / genes[0], "in_part": True}
        lines = [[what, *(shown(cells[what, n], cells[DEFAULT, n]) for n in genes)] for what in AGAINST_GENES[name]]
        print(f"\n{name}: {facts['measured']} measured, {facts['hidden']} predicted (ratio to the default)\n")
        print(table(["", *(f"{n:,} genes" for n in genes)], lines), "\n", flush=True)
        rows += [{**facts, **row} for row in cells.values()]
    return rows


def against_size(folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Measure, print and return time and memory by number of bins."""
    rows, lines, first = [], [], {}
    for size, shape in SLIDES.items():
        if quick and size > 10_000:
            break
        facts = child(folder, "prepare", str(size), "visium_hd", (80, 80) if quick else shape, SLIDE_GENES, DEPTH)
        for what in AGAINST_SIZE[size]:
            row = child(folder, "measure", str(size), what, ASKED)
            rows.append({**facts, **row})
            label = "default" if what.startswith("default") else what
            if "failed" in row:
                lines.append([f"{size:,}", label, row["failed"], *[""] * 4])
                continue
            each = row["seconds"] / facts["hidden"] * 1e3
            ratio = each / first.setdefault(label, each)
            result = (facts["measured"] + facts["hidden"]) * ASKED * 8 / 2**20
            memory = [f"{row['before_mb']:.0f}", f"{row['peak_mb']:.0f}", f"{result:.0f}"]
            lines.append([f"{size:,}", label, shown(row), f"{each:.2f} ms ({ratio:.2f}×)", *memory])
    header = ["bins", "", "time", "per predicted bin", "MB before", "MB peak", "MB of the result"]
    print(f"\nHalf of the bins hidden, {ASKED} genes\n\n{table(header, lines)}\n", flush=True)
    return rows


def main() -> None:
    """Measure all, print tables, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("genes", "size"), default=None, help="the other part is kept as it was saved")
    parser.add_argument("--folder", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, *rest = json.loads(args.one)
        print(json.dumps({"prepare": prepare, "measure": measure}[kind](Path(args.folder), *rest)))
        return
    with tempfile.TemporaryDirectory() as folder:
        parts = {"genes": against_genes, "size": against_size}
        found = {name: part(Path(folder), quick=args.quick) for name, part in parts.items() if args.only in (None, name)}
    protocol = {"script": "benchmarks/imputation_speed.py", "genes": ASKED, "counts_of_a_bin": DEPTH, "hidden": 0.5, "threads": 1}
    if not args.quick:
        kept = json.loads((RESULTS / "imputation_speed.json").read_text())["values"] if args.only else {}
        print("written to", save("imputation_speed", protocol, kept | found))


if __name__ == "__main__":
    main()
