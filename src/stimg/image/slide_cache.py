"""Decoded pieces of a slide, kept while they are near: neighbouring tiles share them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

CACHE_BYTES = 64 << 20
"""Decoded pieces that an open slide keeps, in each process."""


class PieceCache:
    """Arrays by key, those used last; the oldest go where there are more than ``limit`` bytes. Threads may share it.

    A copy made by pickling is empty: each process decodes for itself.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit, self.nbytes = limit, 0
        self._pieces: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.limit,)

    def __len__(self) -> int:
        return len(self._pieces)

    def get(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the array of ``key``, from ``make`` where it is not here."""
        with self._lock:
            if key in self._pieces:
                self._pieces.move_to_end(key)
                return self._pieces[key]
        piece = make()
        with self._lock:
            if key not in self._pieces:
                self._pieces[key] = piece
                self.nbytes += piece.nbytes
            while self.nbytes > self.limit and len(self._pieces) > 1:
                self.nbytes -= self._pieces.popitem(last=False)[1].nbytes
        return piece

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._pieces.clear()
            self.nbytes = 0
