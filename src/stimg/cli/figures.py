"""The figures of a folder of results, each drawn by ``stimg.pl`` and saved as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DPI = 110


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=DPI, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return path


def genes(adata: Any, path: Path, *, names: Sequence[str], layer: str | None, library_id: list[str], library_key: str) -> Path:
    """Save the raster of some genes."""
    from stimg import pl

    return _save(
        pl.raster(
            adata, color=list(names), layer=layer, transform="log1p", library_id=library_id, library_key=library_key, return_fig=True
        ),
        path,
    )


def regions(adata: Any, path: Path, *, label: str, library_id: list[str], library_key: str) -> Path:
    """Save the raster of a column of ``obs``."""
    from stimg import pl

    return _save(pl.raster(adata, color=label, library_id=library_id, library_key=library_key, return_fig=True), path)


def crops(
    adata: Any, path: Path, *, names: Sequence[str], side: int, seed: int, layer: str | None, library_id: list[str], library_key: str
) -> Path:
    """Save the outlines of some crops and what is in them, three genes as colours."""
    from stimg import pl
    from stimg.image.spec import CropSpec

    drawn = pl.crops(
        adata,
        genes=list(names[:3]),
        spec=CropSpec((side, side)),
        n=3,
        rng=seed,
        layer=layer,
        library_id=library_id,
        library_key=library_key,
        return_fig=True,
    )
    return _save(drawn, path)


def history(model: Any, path: Path) -> Path:
    """Save the training curves."""
    from stimg import pl

    return _save(pl.history(model.history, return_fig=True), path)


def embedding(adata: Any, path: Path, *, key: str, library_id: list[str], library_key: str) -> Path:
    """Save the embedding as colours in space."""
    from stimg import pl

    return _save(pl.embedding_map(adata, obsm_key=key, library_id=library_id, library_key=library_key, return_fig=True), path)


def completed(truth: Any, predicted: Any, path: Path, *, scores: Mapping[str, float], library: str, library_key: str) -> Path:
    """Save measured and predicted values of genes that the model was not shown, best first; both objects are on one scale."""
    from stimg import pl

    drawn = pl.reconstruction(
        truth, genes=list(scores), predicted=predicted, scores=scores, library_id=library, library_key=library_key, return_fig=True
    )
    return _save(drawn, path)


def overview(adata: Any, path: Path, *, names: Sequence[str], key: str, layer: str | None, library: str, library_key: str) -> Path:
    """Save one picture of the walk: a gene on the raster, three genes as channels, the embedding."""
    import matplotlib.pyplot as plt

    from stimg import pl

    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    chosen: dict[str, Any] = {"library_id": library, "library_key": library_key}
    for panel, name in zip(axes[:2], names[:2], strict=True):
        pl.raster(adata, color=name, layer=layer, transform="log1p", ax=panel, **chosen)
    pl.embedding_map(adata, obsm_key=key, ax=axes[2], **chosen)
    return _save(figure, path)
