"""Weights of published gene encoders: found under any wrapping, compared by name and shape, copied whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

BRING = "Or compute the embedding with its authors' code and bring it in with `stimg.pp.read_embedding`."


def unwrapped(weights: Mapping[str, Tensor], anchor: str, *, title: str, path: Path) -> dict[str, Tensor]:
    """Return ``weights`` without the prefix that stands before ``anchor``, the name of one weight of the network.

    Raises
    ------
    ValueError
        Where no weight has that name.
    """
    found = sorted((name for name in weights if name == anchor or name.endswith(f".{anchor}")), key=len)
    if not found:
        raise ValueError(
            f"{path} does not hold the weights of {title}: there is no {anchor!r} (found {sorted(weights)[:4]} and {max(len(weights) - 4, 0)} more). {BRING}"
        )
    prefix = found[0].removesuffix(anchor)
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def fill(network: nn.Module, weights: Mapping[str, Tensor], *, title: str, path: Path, unused: Sequence[str]) -> None:
    """Copy ``weights`` into ``network``; those whose names begin with one of ``unused`` are left out.

    Raises
    ------
    ValueError
        Counts what is missing, unknown or of another shape; nothing is copied then.
    """
    own = network.state_dict()
    given = {name: value for name, value in weights.items() if name in own or not name.startswith(tuple(unused))}
    lacks = [name for name in own if name not in given]
    more = [name for name in given if name not in own]
    other = [name for name in own if name in given and own[name].shape != given[name].shape]
    told = [f"{len(names)} {what} (such as {names[0]!r})" for names, what in ((lacks, "are missing"), (more, "are unknown")) if names]
    if other:
        told.append(f"{len(other)} have another shape ({other[0]!r}: {tuple(given[other[0]].shape)}, wanted {tuple(own[other[0]].shape)})")
    if told:
        raise ValueError(f"{path} does not hold the weights of {title}: of {len(own)}, {', '.join(told)}. {BRING}")
    network.load_state_dict(given)


def depth(weights: Mapping[str, Tensor], stem: str) -> int:
    """Return the number of layers named ``<stem>.<number>.``; 0 where there are none."""
    numbers = {name.removeprefix(f"{stem}.").split(".")[0] for name in weights if name.startswith(f"{stem}.")}
    return sum(number.isdigit() for number in numbers)
