"""One progress bar for the whole package, silent where nobody watches."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from stimg._core.settings import settings

T = TypeVar("T")


def wanted(progress: bool | None = None) -> bool:
    """Whether to show progress: ``progress``, else ``settings.progress``, else whether stderr is a terminal."""
    chosen = settings.progress if progress is None else progress
    return sys.stderr.isatty() if chosen is None else chosen


def track(items: Iterable[T], *, desc: str, total: int | None = None, progress: bool | None = None) -> Iterator[T]:
    """Yield from ``items`` under a progress bar; ``progress=None`` follows ``settings.progress``, else whether stderr is a terminal."""
    if not wanted(progress):
        yield from items
        return
    from tqdm.auto import tqdm

    yield from tqdm(items, desc=desc, total=total)
