"""From the name of a file to a verified path: the mirror folder first, then earlier downloads, then the public address."""

import hashlib
import logging
import shutil
import sys
from pathlib import Path

from stimg._core.files import replacing
from stimg._core.settings import CACHE_VARIABLE, MIRROR_VARIABLE, settings
from stimg.datasets.registry import FILES, RemoteFile

logger = logging.getLogger(__name__)
_BLOCK = 1 << 20


def digest(path: Path, *, git: bool = False) -> str:
    """Return the SHA-256 of a file, or with ``git=True`` the name of its git blob (SHA-1 of a header and the content)."""
    hasher = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False) if git else hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def _difference(path: Path, entry: RemoteFile, *, mirror: bool) -> str:
    """Return what differs between the file and the registry, empty where nothing does."""
    wanted = entry.mirror_sha256 if mirror and entry.mirror_sha256 else entry.sha256
    size = path.stat().st_size
    expected_size = "" if (mirror and entry.mirror_sha256) or not entry.size else f" of {entry.size} expected bytes"
    if wanted:
        found, kind = digest(path), "sha256"
    elif entry.git_sha1:
        wanted, found, kind = entry.git_sha1, digest(path, git=True), "git blob sha1"
    else:
        return ""
    return "" if found == wanted else f"{kind} {found}, expected {wanted} ({size}{expected_size or ' bytes'})"


def _from_mirror(entry: RemoteFile) -> Path | None:
    folder = settings.mirror()
    if folder is None:
        return None
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{MIRROR_VARIABLE} names {folder}, which is not a folder. Correct the variable, or unset it to use downloads in {settings.cache_dir()}."
        )
    path = folder / entry.mirror
    if not entry.mirror or not path.is_file():
        return None
    if wrong := _difference(path, entry, mirror=True):
        raise ValueError(
            f"{path} is damaged or another file: {wrong}. Copy it again, or remove it so that {entry.name} is downloaded from {entry.url}."
        )
    return path


def at_hand(name: str) -> bool:
    """Return whether the mirror or the folder for downloads has the file ``name``; nothing is read, and nothing is downloaded."""
    entry, mirror = FILES[name], settings.mirror()
    return bool(mirror is not None and entry.mirror and (mirror / entry.mirror).is_file()) or (settings.cache_dir() / entry.cache).is_file()


def _download(entry: RemoteFile, target: Path, *, progress: bool | None) -> None:
    import pooch
    import requests

    show = progress if progress is not None else settings.progress
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty() if show is None else show, chunk_size=1 << 16)
    instead = (
        f"Connect to the network, or put the file at {target}, or set {MIRROR_VARIABLE} to a folder that holds {entry.mirror}."
        if entry.mirror
        else f"Connect to the network, or put the file at {target}."
    )
    try:
        with replacing(target, overwrite=True) as temporary:
            free = shutil.disk_usage(temporary.parent).free
            if entry.size > free:
                raise OSError(
                    f"{entry.name} has {entry.size} bytes but {target.parent} has {free} free. Set {CACHE_VARIABLE} to a larger folder."
                )
            downloader(entry.url, str(temporary), None)
            if wrong := _difference(temporary, entry, mirror=False):
                raise ValueError(
                    f"{entry.url} sent something else than {entry.name}: {wrong}. Nothing was kept; try again, or report it if it stays so."
                )
    except requests.RequestException as err:
        raise ConnectionError(
            f"{entry.name} is neither in a mirror nor at {target}, and {entry.url} could not be fetched ({err}). {instead}"
        ) from err
    except OSError as err:
        if err.errno is None:
            raise
        raise OSError(
            err.errno,
            f"{entry.name} could not be written to {target.parent} ({err.strerror}). Set {CACHE_VARIABLE} to a folder with space that you may write to",
        ) from err


def fetch_file(name: str, *, content_checked: bool = False, progress: bool | None = None) -> Path:
    """Return the path of a verified file of the registry, downloading it where it is not at hand.

    The folder of ``$STIMG_DATA_MIRROR`` is looked into first, then the folder for downloads (``stimg.settings.data_dir``,
    ``$STIMG_DATA_DIR``, or the user's cache folder), then the public address is asked. A download appears under its name when it is whole
    and verified, never before.

    Parameters
    ----------
    name
        ``dataset/kind/library``, for example ``"her2st/image/C2"``.
    content_checked
        The caller verifies what it reads; without it, a file whose hash is not known is refused.
    progress
        Show a progress bar; by default only on a terminal.

    Raises
    ------
    ValueError
        An unknown name; a mirror's file or a download whose hash differs; a file that could not be verified.
    FileNotFoundError
        The mirror variable names a folder that does not exist.
    ConnectionError
        Not at hand and not reachable.
    OSError
        The folder for downloads cannot be written to, or is full.
    """
    entry = FILES[name]
    path = _from_mirror(entry)
    if path is not None:
        return path
    if not (entry.sha256 or entry.git_sha1 or content_checked):
        raise ValueError(
            f"The hash of {name} ({entry.url}) is not known, so a download could not be verified. Use the loader of {entry.dataset!r}."
        )
    target = settings.cache_dir() / entry.cache
    if target.is_file():
        wrong = _difference(target, entry, mirror=False)
        if not wrong:
            return target
        logger.info("%s in the cache is damaged (%s); downloading it again", name, wrong)
    _download(entry, target, progress=progress)
    logger.info("%s: %d bytes from %s", name, target.stat().st_size, entry.url)
    return target
