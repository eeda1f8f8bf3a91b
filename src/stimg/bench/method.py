"""What is scored: a method is a function from a task to values, with what a report must say about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import pandas as pd

from stimg._core import validate
from stimg._core.registry import Registry

ROLES = ("null", "audit", "rival", "model")
MODULES = ("expression", "imputation", "completion", "labels", "label_probes", "retrieval", "bulk", "slides")
"""Modules of ``stimg.bench.methods``, whose functions register themselves."""


@dataclass(frozen=True)
class Prediction:
    """What a method returns where it has more to say than values.

    Parameters
    ----------
    values
        By library: float arrays (observations asked for, genes), tables with gene names as columns, or what the kind of task asks for.
    fitted
        What was fitted on the way, beyond the task's own training sections: models, :class:`stimg.bench.Seen` records.
    notes
        What a report should say of this fit, such as a chosen penalty.
    """

    values: Mapping[str, Any]
    fitted: tuple[Any, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A named way to answer a task.

    Parameters
    ----------
    name
        As it appears in reports.
    function
        ``function(task, rng)``, or ``function(task, rng, hidden)`` for audits, returning values by library or a :class:`Prediction`.
    kinds
        Kinds of tasks it answers.
    role
        ``"null"``: sees no pixel and nothing of the test section but coordinates; ``"audit"``: reads the truth, to show what a property of
        it gives away; ``"rival"``: a simple method; ``"model"``.
    what
        One line.
    seeded
        Whether chance enters: only then it is run for every seed.
    needs
        Slots of ``obsm`` without which it is left out.
    trains
        Whether it reads the sections that may train: it is left out of a protocol's nulls where a fold has none.
    """

    name: str
    function: Callable[..., Any]
    kinds: tuple[str, ...]
    role: str
    what: str
    seeded: bool = False
    needs: tuple[str, ...] = ()
    trains: bool = False

    def __post_init__(self) -> None:
        validate.one_of(self.role, ROLES, "role")


METHODS: Registry[Method] = Registry("method")


def method(
    name: str, *, kinds: tuple[str, ...], role: str, seeded: bool = False, needs: tuple[str, ...] = (), trains: bool = False
) -> Callable[[Callable], Callable]:
    """Return a decorator that registers a function as a method; the first line of its docstring says what it is."""

    def add(function: Callable) -> Callable:
        METHODS.add(name, Method(name, function, kinds, role, (function.__doc__ or "").strip().split("\n")[0], seeded, needs, trains))
        return function

    return add


def load() -> None:
    """Import the modules whose methods register themselves."""
    for module in MODULES:
        import_module(f"stimg.bench.methods.{module}")


def get(name: str) -> Method:
    """Return the method of that name, or the function behind ``package.module:function`` as a model.

    Raises
    ------
    ValueError
        For an unknown name.
    ImportError
        Where the module or the function is not there.
    """
    load()
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            function = getattr(import_module(module), attribute)
        except AttributeError as err:
            raise ImportError(f"module {module!r} has no {attribute!r}. Pass package.module:function.") from err
        return of(name, function)
    return METHODS[name]


def of(name: str, function: Callable[..., Any]) -> Method:
    """Return a user's function as a method that is run for every seed, for any kind of task."""
    if not callable(function):
        raise TypeError(
            f"the method {name!r} is a {type(function).__name__}; wanted a function of (task, rng), or the name of a known method."
        )
    return Method(name, function, ("any",), "model", (function.__doc__ or name).strip().split("\n")[0], seeded=True)


def listing() -> pd.DataFrame:
    """Return one row a registered method: what it is, its role, the kinds of tasks it answers, and the slots it needs."""
    load()
    rows = [
        {"name": n, "what": m.what, "role": m.role, "kinds": ", ".join(m.kinds), "needs": ", ".join(m.needs)}
        for n, m in ((n, METHODS[n]) for n in METHODS)
    ]
    return pd.DataFrame(rows).set_index("name")
