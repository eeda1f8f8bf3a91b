"""What the parameter sets of all models can do."""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, Self


class Options:
    """Base of the frozen dataclasses named after a model, such as ``STMAEOptions``."""

    def changed(self, **changes: Any) -> Self:
        """Return a copy with ``changes``; an unknown field is a TypeError that lists the known ones."""
        known = [f.name for f in fields(self)]  # type: ignore[arg-type]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise TypeError(f"{type(self).__name__.removesuffix('Options')} has no option {unknown}; it has {known}.")
        return replace(self, **changes)  # type: ignore[type-var]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; :meth:`from_dict` is the inverse."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the options of :meth:`to_dict`'s values, also after a round trip through JSON."""
        turned = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls().changed(**turned)
