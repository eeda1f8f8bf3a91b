"""Process-wide preferences. Nothing here changes a result."""

import os
from dataclasses import dataclass, field
from pathlib import Path

MIRROR_VARIABLE = "STIMG_DATA_MIRROR"
"""Environment variable naming a folder that holds the public files of ``stimg.datasets``; looked into before the network."""
CACHE_VARIABLE = "STIMG_DATA_DIR"
"""Environment variable naming the folder where downloads are kept."""


def _cache_dir() -> Path:
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    import pooch

    return Path(pooch.os_cache("stimg"))


@dataclass
class Settings:
    """Preferences of this process: ``progress`` (None: only on a terminal) and ``data_dir`` (where downloads are kept)."""

    progress: bool | None = None
    data_dir: Path | None = field(default=None)

    def cache_dir(self) -> Path:
        """Return the folder for downloads: ``data_dir``, else ``$STIMG_DATA_DIR``, else the user's cache folder."""
        return Path(self.data_dir) if self.data_dir is not None else _cache_dir()

    def mirror(self) -> Path | None:
        """Return the folder of ``$STIMG_DATA_MIRROR``, or None where the variable is not set."""
        value = os.environ.get(MIRROR_VARIABLE)
        return Path(value) if value else None


settings = Settings()
