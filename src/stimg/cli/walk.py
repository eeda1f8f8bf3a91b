"""From a slide to a folder of results: raster, channels, model, embedding, completed panel, figures, and one page that shows them."""

import json
import os
import platform
import shutil
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from stimg._core import keys
from stimg._core.files import replacing
from stimg.bench.html import Section, page
from stimg.cli import figures
from stimg.cli.scores import cluster_agreement, hidden_genes, log_normalised, score_genes

MARK = "stimg-results.json"
"""File by which a folder of results is recognised."""
MOST_DRAWN = 4
"""Libraries that the figures show; the results are those of all."""


@dataclass
class Walk:
    """One walk: the slide, where its results go, and the few things that can be chosen.

    ``epochs`` None leaves their number to the model. ``layer`` holds raw counts (None: X), ``label`` is a column of ``obs`` with known
    regions (None: there is none), and ``validation`` is as for :meth:`stimg.model.STMAE.train`.
    """

    adata: Any
    out: Path
    title: str
    lead: str
    genes: int = 256
    epochs: int | None = None
    seed: int = 0
    layer: str | None = None
    library_key: str = keys.LIBRARY
    lattice: str = "auto"
    label: str | None = None
    validation: str | None = "blocks"
    overwrite: bool = False
    steps: dict[str, str] = field(default_factory=dict)


def again() -> str:
    """Return the command that does the same on a slide of one's own, as it can be typed here."""
    called = Path(sys.argv[0])
    command = str(called) if called.name == "stimg" and not shutil.which("stimg") else "stimg"
    return f"{command} run SLIDE.h5ad --out results"


def say(text: str) -> None:
    """Print one line at once."""
    print(text, flush=True)


@contextmanager
def step(walk: Walk, name: str) -> Iterator[list[str]]:
    """Print what the block did and how long it took; the block appends its words to the list."""
    began = time.perf_counter()
    words: list[str] = []
    yield words
    walk.steps[name] = f"{' '.join(words)} ({time.perf_counter() - began:.1f} s)".strip()
    say(f"{name:<10} {walk.steps[name]}")


def refuse_to_overwrite(out: Path, *, overwrite: bool) -> None:
    """Raise a FileExistsError where ``out`` is a folder with something in it, or a file, and must stay."""
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists already. Choose another folder with --out, or pass --overwrite to `stimg run` to replace it.")


def read_slide(path: Path, *, table: str) -> Any:
    """Return the AnnData of an ``.h5ad`` file or a ``.zarr`` folder; of a SpatialData folder, its table."""
    if path.suffix not in (".h5ad", ".zarr"):
        raise ValueError(f"{path} ends in {path.suffix!r}; wanted .h5ad or .zarr. Read it with spatialdata-io, and write one of these.")
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}. Check the path.")
    import anndata

    if path.suffix == ".h5ad":
        return anndata.read_h5ad(path)
    import zarr

    if "spatialdata_attrs" not in dict(zarr.open_group(path, mode="r").attrs):
        return anndata.read_zarr(path)
    from spatialdata import read_zarr

    tables = read_zarr(path, selection=("tables",)).tables
    if table not in tables:
        raise KeyError(f"{path} has no table {table!r} (found {sorted(tables)}). Name one with --table.")
    return tables[table]


def walk(job: Walk) -> None:
    """Do the whole walk and move the folder of results to its place when it is complete."""
    refuse_to_overwrite(job.out, overwrite=job.overwrite)
    began = time.perf_counter()
    with replacing(job.out, overwrite=True, directory=True) as folder, _quiet():
        (folder / "figures").mkdir()
        sections = _results(job, folder)
        job.steps["total"] = f"{time.perf_counter() - began:.1f} s"
        sections.append(_about(job))
        (folder / "index.html").write_text(page(job.title, job.lead, sections), encoding="utf-8")
        (folder / MARK).write_text(json.dumps({"title": job.title, "steps": job.steps}, indent=2), encoding="utf-8")
    say(f"\nResults in {job.out.resolve()}; look at {job.out.resolve() / 'index.html'}")
    say(f"The same on your own slide: {again()}")


def _results(job: Walk, folder: Path) -> list[Section]:
    """Compute, save and draw everything into ``folder``; return the sections of the page."""
    from stimg import model as models
    from stimg import pp, tl

    adata, pictures = job.adata, folder / "figures"
    common: dict[str, Any] = {"library_key": job.library_key}
    with step(job, "rasterise") as words:
        pp.rasterize(adata, lattice=job.lattice, **common)
        library, spec = next(iter(_specs(adata).items()))
        words.append(f"{adata.n_obs} observations on {spec.shape[0]} x {spec.shape[1]} ({spec.lattice}, pitch {spec.pitch_um:g} µm)")
    with step(job, "channels") as words:
        pp.select_genes(adata, rule="variance", n=min(job.genes, adata.n_vars), layer=job.layer, **common)
        names = _channels(adata)
        words.append(f"{len(names)} of {adata.n_vars} genes, the most variable first: {', '.join(names[:3])}")
    with step(job, "train") as words:
        models.STMAE.setup_anndata(adata, layer=job.layer, **common)
        model = models.STMAE(adata)
        model.train(max_epochs=job.epochs, validation=job.validation, rng=job.seed, enable_progress_bar=sys.stderr.isatty())
        held = np.asarray(model.validation_indices) if job.validation else np.arange(adata.n_obs)
        words.append(f"{model.epochs()} epochs on {len(model.train_indices)} observations, {len(held) if job.validation else 0} held out")
        model.save(folder / "model", overwrite=True)
    key = keys.embedding_key("stmae")
    with step(job, "embed") as words:
        tl.embed(adata, model=model)
        words.append(f"{adata.obsm[key].shape[1]} numbers for each observation in obsm[{key!r}]")
    with step(job, "complete") as words:
        hidden = hidden_genes(adata, job.seed)
        predicted: Any = tl.impute_genes(
            adata, model=model, genes=hidden, copy=True
        )  # a table of its own: a layer would be dense over all genes
        truth = adata[:, hidden].copy()
        truth.X = log_normalised(adata, hidden, job.layer)
        scores = score_genes(truth.X[held], predicted.X[held], hidden)
        median = float(np.median(list(scores.values()))) if scores else float("nan")
        words.append(f"{len(hidden)} genes predicted from the others, median r = {median:.2f} over {len(held)} observations")
    agreement = _agreement(job, names, key)
    with step(job, "save") as words:
        adata.write_h5ad(folder / "slide.h5ad")
        adata.write_zarr(folder / "slide.zarr")
        predicted.write_h5ad(folder / "completed.h5ad")
        words.append("slide.h5ad, slide.zarr, completed.h5ad, model/")
    with step(job, "draw") as words:
        some = {"library_id": list(_specs(adata))[:MOST_DRAWN], **common}
        drawn = {"layer": job.layer, **some}
        shown = dict(list(scores.items())[:3])
        side = min(*model.crop.size, *spec.shape)
        files = {
            "overview": figures.overview(
                adata, pictures / "overview.png", names=names, key=key, library=library, layer=job.layer, **common
            ),
            "genes": figures.genes(adata, pictures / "genes.png", names=names[:4], **drawn),
            "crops": figures.crops(adata, pictures / "crops.png", names=names[:3], side=side, seed=job.seed, **drawn),
            "history": figures.history(model, pictures / "history.png"),
            "embedding": figures.embedding(adata, pictures / "embedding.png", key=key, **some),
            "completed": figures.completed(truth, predicted, pictures / "completed.png", scores=shown, library=library, **common),
        }
        if job.label:
            files["regions"] = figures.regions(adata, pictures / "regions.png", label=job.label, **some)
        words.append(f"{len(files)} figures")
    spread = (
        f"median {median:.2f}, best {max(scores.values()):.2f}, worst {min(scores.values()):.2f}" if scores else "none, all are constant"
    )
    where = (
        f"the {len(held)} observations held out of training"
        if job.validation
        else f"all {len(held)} observations, which the training has seen"
    )
    known = {files["regions"]: f"Known regions, obs[{job.label!r}]."} if job.label else {}
    return [
        Section(
            "At a glance",
            figures={files["overview"]: "Two genes on the raster, and the embedding as colours: alike in colour, alike to the model."},
        ),
        Section(
            "The slide as an image",
            [f"{library}: {job.steps['rasterise']}. Channels: {job.steps['channels']}."],
            figures={
                files["genes"]: "Genes on the raster, log(1 + counts).",
                files["crops"]: "Crops as the model sees them; three genes as colours.",
            },
        ),
        Section(
            "Training",
            [f"{job.steps['train']}. The validation curve is that of the observations held out, a contiguous block of the slide."],
            figures={files["history"]: "Training and validation curves."},
        ),
        Section(
            "Embedding",
            [agreement] if agreement else [],
            figures={files["embedding"]: "First three principal components of the embedding as red, green and blue.", **known},
        ),
        Section(
            "Genes that the model was not shown",
            [
                f"{len(hidden)} of the {len(names)} channels were taken out of the slide and predicted from the others. Pearson's r over {where}: {spread}."
            ],
            figures={files["completed"]: "The best three on the whole slide: measured, log(1 + counts per 10,000), and predicted."},
        ),
    ]


def _specs(adata: Any) -> dict[str, Any]:
    """Return the RasterSpec of each library."""
    from stimg.image.spec import RasterSpec

    return {str(name): RasterSpec.from_dict(values) for name, values in adata.uns[keys.UNS][keys.RASTER].items()}


def _channels(adata: Any) -> list[str]:
    """Return the channels in the order of selection."""
    order = adata.var[keys.CHANNEL_ORDER].to_numpy()
    chosen = np.flatnonzero(adata.var[keys.CHANNEL].to_numpy(dtype=bool))
    return [str(name) for name in adata.var_names[chosen[np.argsort(order[chosen], kind="stable")]]]


def _agreement(job: Walk, names: list[str], key: str) -> str:
    """Return a sentence that compares clusters of the embedding, and of principal components of the same genes, with the known regions."""
    if not job.label:
        return ""
    from sklearn.decomposition import PCA

    labels = job.adata.obs[job.label]
    values = log_normalised(job.adata, names, job.layer)
    components = PCA(n_components=min(30, *values.shape), random_state=job.seed).fit_transform(values)
    learned, n = cluster_agreement(job.adata.obsm[key], labels, job.seed)
    plain, _ = cluster_agreement(components, labels, job.seed)
    return (
        f"k-means clusters against the known regions of {n} observations, adjusted Rand index: embedding {learned:.2f}, "
        f"principal components of the same genes without any position {plain:.2f}. One slide and one seed: an illustration, not a benchmark."
    )


def _about(job: Walk) -> Section:
    """Return the last section: what was run, how long it took, and how to do it again."""
    from importlib.metadata import version

    versions = {name: version(name) for name in ("stimg", "anndata", "numpy", "torch", "scvi-tools")}
    machine = f"{platform.platform()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    table = {
        **job.steps,
        "settings": f"{job.genes} genes, at most {job.epochs or 'the default number of'} epochs, seed {job.seed}",
        "machine": machine,
    }
    table["versions"] = ", ".join(f"{name} {value}" for name, value in versions.items())
    return Section(
        "What was done",
        ["In this folder: slide.h5ad and slide.zarr with every result, completed.h5ad, model/, figures/."],
        table,
        code=again(),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries below from telling what the lines of the walk tell already."""
    import anndata

    with import_module("stimg.model._quiet").quiet(), warnings.catch_warnings(), anndata.settings.override(zarr_write_format=3):
        for told in (".*autosharding.*", "Consolidated metadata.*"):
            warnings.filterwarnings("ignore", message=told)
        yield


def demo(options: Namespace) -> int:
    """Do the walk on an example slide."""
    ours = (options.out / MARK).is_file()
    refuse_to_overwrite(options.out, overwrite=ours)
    common: dict[str, Any] = {"out": options.out, "genes": options.genes, "epochs": options.epochs, "seed": options.seed, "overwrite": True}
    if options.quick:
        common |= {"genes": min(options.genes, 64), "epochs": min(options.epochs, 3)}
    adata, lead = _example("simulated" if options.quick else options.data, options.seed, quick=options.quick)
    say(lead)
    walk(Walk(adata, title="stimg demo", lead=lead, label="label" if "label" in adata.obs else None, **common))
    return 0


def _example(choice: str, seed: int, *, quick: bool) -> tuple[Any, str]:
    """Return an example slide and what it is."""
    from stimg import datasets

    if choice in ("auto", "her2st"):
        try:
            adata = datasets.her2st("D1")
            known = sorted(set(adata.obs["label"].dropna()) - {"undetermined"})
            adata.obs["label"] = adata.obs["label"].cat.set_categories(known)
            return adata, "HER2-positive breast cancer, section D1 of Andersson et al. 2021 (CC BY 4.0), with a pathologist's regions."
        except ConnectionError as error:
            if choice == "her2st":
                raise
            say(f"No public slide at hand ({error}); a simulated one in its place.")
    shape, n_genes = ((20, 20), 80) if quick else ((32, 30), 300)
    adata = datasets.simulate(technology="visium", shape=shape, n_genes=n_genes, rng=seed)
    return adata, "A simulated Visium slide with known domains; no measured data."


def run(options: Namespace) -> int:
    """Do the walk on a slide in a file."""
    refuse_to_overwrite(options.out, overwrite=options.overwrite)
    adata = read_slide(options.slide, table=options.table)
    lead = f"{options.slide.name}: {adata.n_obs} observations, {adata.n_vars} genes."
    say(lead)
    chosen = {name: getattr(options, name) for name in ("genes", "epochs", "seed", "layer", "library_key", "lattice", "label", "overwrite")}
    validation = None if options.validation == "none" else options.validation
    walk(Walk(adata, options.out, title=options.slide.name, lead=lead, validation=validation, **chosen))
    return 0
