"""Which leaks a report has to tell of: those of the protocol and its folds, and those of what a method was fitted on."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from stimg._core import keys
from stimg._core.ledger import Leak, Seen
from stimg.bench.protocol import Hidden, Protocol, Task, library_of
from stimg.bench.sections import seen_together
from stimg.data.ledger import find_leaks, recall

if TYPE_CHECKING:
    from anndata import AnnData


def of_fold(protocol: Protocol, task: Task, hidden: Hidden) -> list[Leak]:
    """Return what the protocol's own choices and the training sections have seen of the test sections."""
    level = hidden.level or protocol.level
    train = {library_of(a): a for a in task.train} if level != "observation" else {}
    sources = [*hidden.seen, *([seen_together(train, who="training sections", kind="model")] if train else [])]
    return together([*hidden.leaks, *_found(sources, hidden, level)])


def of_fitted(protocol: Protocol, hidden: Hidden, fitted: Sequence[Seen]) -> list[Leak]:
    """Return what things that were fitted on the way to a prediction have seen of the test sections."""
    return together(_found(fitted, hidden, hidden.level or protocol.level)) if fitted else []


def of_features(task: Task, features: Sequence[str]) -> tuple[list[Seen], list[str]]:
    """Return what the slots of ``obsm`` that methods may read remember, and the names of those that remember nothing."""
    seen, silent = [], []
    for key in features:
        everywhere = [*task.train, *task.test]
        seen += [s for a in everywhere for s in recall(a, only=[key])]
        if not all("seen" in a.uns.get(keys.UNS, {}).get(key, {}) for a in everywhere):
            silent.append(key)
    return seen, silent


def _found(sources: Sequence[Seen], hidden: Hidden, level: str) -> list[Leak]:
    pictures = image_hashes(hidden.sections) if any(len(s.images) for s in sources) else []
    return [
        replace(leak, where=leak.where or (library_of(whole),))
        for whole in hidden.sections
        for leak in find_leaks(whole, sources, level=level, images=pictures)
    ]


def together(leaks: Iterable[Leak]) -> list[Leak]:
    """Return one finding for each fitted thing and way of recognition; numbers and places of several sections are put together."""
    found: dict[tuple[str, str, str], Leak] = {}
    for leak in leaks:
        key = (leak.who, leak.kind, leak.by)
        if key in found:
            before = found[key]
            where = tuple(dict.fromkeys(before.where + leak.where))
            leak = replace(leak, n=before.n + leak.n, of=before.of + leak.of, where=where)
        found[key] = leak
    return list(found.values())


def image_hashes(sections: Iterable["AnnData"]) -> list[int]:
    """Return the perceptual hash of each section's image, as far as ``uns["spatial"]`` holds one."""
    from stimg.image.perceptual import image_hash

    out = []
    for adata in sections:
        for entry in adata.uns.get("spatial", {}).values():
            images = entry.get("images", {})
            if images:
                pixels = np.asarray(images.get("hires", next(iter(images.values()))))[..., :3]
                out.append(int(image_hash(pixels if pixels.dtype.kind != "f" else np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8))))
    return out
