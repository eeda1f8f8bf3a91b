"""Public names that are imported when they are first used: the one way in which a subpackage of stimg stays light."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def attach(package: str, where: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of ``package``.

    ``where`` says for each public name which module of the package defines it: ``"module"``, or ``"module:name"`` where it is called
    something else there.
    """
    public = sorted(where)

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(public)}.")
        module, _, inner = where[name].partition(":")
        return getattr(import_module(f"{package}.{module}"), inner or name)

    return get, lambda: list(public), public
