"""The finished parts of a run: each in a file of its own, that is whole or not there."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stimg._core import files

logger = logging.getLogger(__name__)
PARTS, RUN = "parts", "run.json"


class Store:
    """Finished parts: in memory, or each in a file of its own that is whole or not there."""

    def __init__(self, out: Path | None, facts: Mapping[str, Any], *, overwrite: bool) -> None:
        self.folder = None if out is None else out / PARTS
        self.kept: dict[str, dict[str, Any]] = {}
        if out is None:
            return
        text = json.dumps(dict(facts), indent=1, sort_keys=True)
        known = out / RUN
        if known.is_file() and known.read_text(encoding="utf-8") != text:
            before = json.loads(known.read_text(encoding="utf-8"))
            differs = sorted(k for k in facts if before.get(k) != json.loads(text)[k])
            if not overwrite:
                raise FileExistsError(
                    f"{out} holds another run (it differs in {differs}). Choose another folder, or pass overwrite=True to replace it."
                )
            for old in (out / PARTS).glob("*.json"):
                old.unlink()
        elif out.exists() and not known.is_file() and any(out.iterdir()) and not overwrite:
            raise FileExistsError(f"{out} is not empty and holds no run. Choose another folder, or pass overwrite=True.")
        with files.replacing(known, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.json"

    def has(self, name: str) -> bool:
        """Return whether the part is finished; a damaged file counts as not finished."""
        path = self._path(name)
        if path is None:
            return name in self.kept
        if name not in self.kept and path.is_file():
            try:
                self.kept[name] = json.loads(path.read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError):
                logger.info("%s is damaged; that part is run again", path)
        return name in self.kept

    def put(self, name: str, part: Mapping[str, Any]) -> None:
        """Keep a finished part."""
        text = json.dumps(part, allow_nan=False)
        self.kept[name] = json.loads(text)
        path = self._path(name)
        if path is not None:
            with files.replacing(path, overwrite=True) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def get(self, name: str) -> dict[str, Any]:
        """Return a finished part."""
        return self.kept[name]
