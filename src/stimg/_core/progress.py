"""One progress bar for the whole package, silent where nobody watches."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from stimg._core.settings import settings

T = TypeVar("T")


def track(items: Iterable[T], *, desc: str, total: int | None = None, progress: bool | None = None) -> Iterator[T]:
    """Yield from ``items`` under a progress bar; ``progress=None`` follows ``settings.progress``, else whether stderr is a terminal."""
    show = progress if progress is not None else settings.progress
    if show is None:
        show = sys.stderr.isatty()
    if not show:
        yield from items
        return
    from tqdm.auto import tqdm

    yield from tqdm(items, desc=desc, total=total)
