"""Building the networks of the cards: from a package, timm, transformers or the package of CONCH, from the hub or from files."""

import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stimg._core.optional import need
from stimg.nn.image._ctranspath import convert, with_stem
from stimg.nn.image.efficientnet import EfficientNetLite0, StageStatistics, load_installed, load_weights

if TYPE_CHECKING:
    from stimg.zoo.card import ImageCard

WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
"""Endings of files of weights."""
MAY_LACK = ("mask_token", "pooler.dense.weight", "pooler.dense.bias")
"""Weights that a checkpoint may lack: they are not used for features."""
CACHED = "bring embeddings that were computed elsewhere in with `stimg.pp.read_embedding`."


def load_network(card: "ImageCard", *, path: Path | None = None, offline: bool | None = None) -> tuple[nn.Module, str]:
    """Return the network of ``card`` with its weights, and where these came from; see :func:`load_image_encoder` for what it raises."""
    if path is not None and not path.exists():
        raise FileNotFoundError(f"path={str(path)!r} does not exist. Pass the file or the folder with the weights of {card.title}.")
    if card.loader not in LOADERS:
        raise ValueError(
            f"{card.title} has no weights of its own. Train a model, or load one that was saved, and pass it as `encoder=` of `stimg.tl.embed_image`."
        )
    with torch.random.fork_rng(devices=[]):  # networks are drawn at random before their weights are read; nobody's random state is touched
        network = LOADERS[card.loader](card, path, _local_only(offline))
    width = getattr(network, "num_features", None)
    wanted = None if card.n_features is None else card.n_features // (2 if card.pooling == "class_mean" else 1)
    if isinstance(width, int) and width != wanted:
        raise ValueError(
            f"{path or card.repo} holds a network of width {width}; {card.title} has {wanted}. Pass the weights of {card.repo or card.title}."
        )
    return network.eval(), str(path) if path is not None else (card.repo or str(card.extra.get("package", card.loader)))


def _local_only(offline: bool | None) -> bool:
    """Return whether nothing may be downloaded; the hub reads the same variable when it is imported."""
    if offline is not None:
        return bool(offline)
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def _package(card: "ImageCard", path: Path | None, local_only: bool) -> nn.Module:
    network = EfficientNetLite0() if path is not None else load_installed()
    if path is not None:
        load_weights(network, read_weights(path))
    return StageStatistics(network) if card.extra.get("read") == "stages" else network


def _timm(card: "ImageCard", path: Path | None, local_only: bool) -> nn.Module:
    timm = need("timm", extra="encoders", purpose=f"to build {card.title}")
    if path is None and card.repo is None:
        raise FileNotFoundError(f"The weights of {card.title} are on no hub. {card.notes} Or {CACHED}")
    if path is None and local_only:
        path = _snapshot(card)
    if path is None:
        with _translated(card, local_only=False):
            return timm.create_model(f"hf-hub:{card.repo}", pretrained=True, **_arguments(timm, card, "hub"))
    if path.is_dir() and (path / "config.json").is_file():
        with _translated(card, local_only=True):
            return timm.create_model(f"local-dir:{path}", pretrained=True, **_arguments(timm, card, "hub"))
    if "architecture" not in card.extra:
        raise ValueError(
            f"{path} has no config.json, and the card of {card.title} names no architecture. Pass the folder as it is on the hub of {card.repo}."
        )
    network = timm.create_model(card.extra["architecture"], pretrained=False, **_arguments(timm, card, "kwargs"))
    weights = {k: v for k, v in read_weights(path).items() if not k.startswith(tuple(card.extra.get("drop", ())))}
    if card.extra.get("stem") == "ctranspath":
        network, weights = with_stem(network), convert(weights)
    fit(network, weights, card, path)
    return network


def _arguments(timm: Any, card: "ImageCard", which: str) -> dict[str, Any]:
    """Return the arguments for timm; layers that cards name are looked up in timm and torch."""
    named = {"mlp_layer": timm.layers, "act_layer": nn}
    given = dict(card.extra.get(which, {}))
    return {key: getattr(named[key], value) if key in named else value for key, value in given.items()}


def _transformers(card: "ImageCard", path: Path | None, local_only: bool) -> nn.Module:
    transformers = need("transformers", extra="encoders", purpose=f"to build {card.title}")
    if path is None and local_only:
        path = _snapshot(card)  # transformers asks the hub for adapters even where it may read local files only
    if path is not None and not path.is_dir():
        raise ValueError(
            f"path={str(path)!r} is a file; {card.title} wants the folder with config.json and the weights, as the hub keeps it."
        )
    source = card.repo if path is None else str(path)
    with _translated(card, local_only=path is not None):
        network, info = transformers.AutoModel.from_pretrained(source, local_files_only=path is not None, output_loading_info=True)
    found, wanted = getattr(network.config, "model_type", None), card.extra.get("model_type")
    if wanted is not None and found != wanted:
        raise ValueError(f"{source} holds a {found!r} network; {card.title} is a {wanted!r}. Pass the folder of {card.repo}.")
    lacks = sorted(name for name in info["missing_keys"] if not name.endswith(MAY_LACK))
    if lacks:
        raise ValueError(f"{source} lacks {len(lacks)} weights of {card.title}, such as {lacks[0]!r}. Copy {card.repo} again.")
    return _Tokens(network)


class _Tokens(nn.Module):
    """A network of transformers that returns its last tokens, (B, tokens, width)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.num_features = getattr(network.config, "hidden_size", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last tokens."""
        return self.network(pixel_values=x).last_hidden_state


def _open_clip(card: "ImageCard", path: Path | None, local_only: bool) -> nn.Module:
    try:
        conch = need("conch.open_clip_custom", purpose=f"to build {card.title}")
    except ImportError as err:
        raise ImportError(
            f"{card.title} needs the package `conch` ({err.__cause__ or err}). Install it from its authors' repository, mahmoodlab/CONCH; a package of that "
            f"name in an index is another one. Or {CACHED}"
        ) from err
    if path is None:
        hub = need("huggingface_hub", extra="encoders", purpose=f"to download {card.title}")
        with _translated(card, local_only=local_only):
            path = Path(hub.hf_hub_download(card.repo, card.extra["file"], local_files_only=local_only))
    file = _weights_file(path)
    with _translated(card, local_only=True):
        model = conch.create_model_from_pretrained(card.extra["architecture"], checkpoint_path=str(file), return_transform=False)
    visual = {k: v for k, v in model.state_dict().items() if k.startswith("visual.")}
    _compare(visual, {k: v for k, v in read_weights(file).items() if k.startswith("visual.")}, card, file, shapes=False)
    return _Conch(model)


class _Conch(nn.Module):
    """The image tower of CONCH before its contrastive projection, (B, 512), not normalised."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        return self.model.encode_image(x, proj_contrast=False, normalize=False)


LOADERS: dict[str, Callable[["ImageCard", Path | None, bool], nn.Module]] = {
    "package": _package,
    "timm": _timm,
    "transformers": _transformers,
    "open_clip": _open_clip,
}
"""By ``card.loader``."""


def _weights_file(path: Path) -> Path:
    """Return ``path``, or the one file of weights in it."""
    if not path.is_dir():
        return path
    for ending in WEIGHTS:
        found = sorted(path.glob(f"*{ending}"))
        if len(found) == 1:
            return found[0]
    raise FileNotFoundError(f"{path} holds no single file of weights ({', '.join(WEIGHTS)}). Pass the file itself.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file by name, without the wrapping that training code leaves around them.

    Raises
    ------
    ValueError
        Where the file cannot be read as weights.
    """
    path = _weights_file(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as err:
        said = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as weights ({said}). Copy it again; pickled code is not loaded.") from err
    for key in ("state_dict", "model", "teacher"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"{path} holds no weights by name. Save `network.state_dict()`.")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _compare(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], card: "ImageCard", path: Path, *, shapes: bool = True) -> None:
    """Raise a ValueError that counts what does not fit."""
    lacks = [k for k in own if k not in weights]
    more = [k for k in weights if k not in own]
    other = [k for k in own if k in weights and shapes and own[k].shape != weights[k].shape]
    if not (lacks or more or other):
        return
    found = [f"{len(names)} {what} (such as {names[0]!r})" for names, what in ((lacks, "are missing"), (more, "are unknown")) if names]
    if other:
        found.append(
            f"{len(other)} have another shape ({other[0]!r}: {tuple(weights[other[0]].shape)}, wanted {tuple(own[other[0]].shape)})"
        )
    raise ValueError(
        f"{path} does not hold the weights of {card.title}: of {len(own)}, {', '.join(found)}. Pass those of {card.repo or card.title}."
    )


def fit(network: nn.Module, weights: Mapping[str, Tensor], card: "ImageCard", path: Path) -> None:
    """Copy ``weights`` into ``network``; a ValueError counts what is missing, unknown or of another shape, and nothing is copied then."""
    _compare(network.state_dict(), weights, card, path)
    network.load_state_dict(dict(weights), strict=True)


def _snapshot(card: "ImageCard") -> Path:
    """Return the folder of the hub's local cache."""
    hub = need("huggingface_hub", extra="encoders", purpose=f"to find {card.title} in the cache")
    with _translated(card, local_only=True):
        return Path(hub.snapshot_download(card.repo, local_files_only=True))


@contextmanager
def _translated(card: "ImageCard", *, local_only: bool) -> Iterator[None]:
    """Turn what the hub and the packages raise into what was found and what to do."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError) as err:
        chain = list(_chain(err))
        kinds = {type(each).__name__ for each in chain}
        status = next((s for s in (getattr(getattr(e, "response", None), "status_code", None) for e in chain) if s), None)
        said = (str(err).strip() or type(err).__name__).splitlines()[0]
        again = f"Download them once where the hub can be reached, pass `path=` with a copy, or {CACHED}"
        if "GatedRepoError" in kinds or status in (401, 403):
            raise PermissionError(
                f"The weights of {card.title} are gated: the hub refused {card.repo}{f' ({status})' if status else ''}. Accept the licence ({card.licence}) on "
                f"the hub's page of {card.repo}, log in (`hf auth login`, or set HF_TOKEN) and call this again; or pass `path=` with a copy of the weights, "
                f"or {CACHED}"
            ) from err
        if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "EntryNotFoundError", "RepositoryNotFoundError"} or isinstance(
            err, (ConnectionError, FileNotFoundError)
        ):
            why = "offline mode is on, and they are not in the local cache" if local_only else "the hub could not be reached"
            raise FileNotFoundError(f"The weights of {card.title} ({card.repo}) were not found: {why} ({said}). {again}") from err
        if isinstance(err, OSError):
            raise FileNotFoundError(f"The weights of {card.title} ({card.repo}) could not be loaded ({said}). {again}") from err
        raise ValueError(f"What was found for {card.title} does not fit the network ({said}). Take the weights of {card.repo}.") from err


def _chain(err: BaseException | None) -> Iterator[BaseException]:
    """Yield ``err`` and what it came from."""
    seen: set[int] = set()
    while err is not None and id(err) not in seen:
        seen.add(id(err))
        yield err
        err = err.__cause__ or err.__context__
