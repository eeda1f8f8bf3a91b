"""One line of a slide's examination, and the table of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

STATUS = ("pass", "warn", "fail", "skip")


@dataclass(frozen=True)
class Row:
    """What one check found: its name, one of ``STATUS``, what was found, what is wanted, and what to do (empty for a pass)."""

    check: str
    status: str
    found: str
    wanted: str
    todo: str = ""


def as_frame(rows: Mapping[str, Sequence[Row]], library_key: str) -> pd.DataFrame:
    """Return the rows of every library as a table."""
    lines = [(library, r.check, r.status, r.found, r.wanted, r.todo) for library, each in rows.items() for r in each]
    return pd.DataFrame(lines, columns=[library_key, "check", "status", "found", "wanted", "todo"])


def percent(share: float) -> str:
    """Return a share as text, never rounded to 0 or 100 where it is not."""
    value = 100 * share
    return f"{value:.2g} %" if 0 < value < 1 else f"{value:.1f} %" if 99 < value < 100 else f"{value:.0f} %"
