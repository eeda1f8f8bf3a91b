"""Writing that leaves either the old file or the whole new one, whatever happens in between."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
"""What the system says where nothing more can be written: disk full, file too large, quota used up."""


@contextmanager
def replacing(path: str | os.PathLike, *, overwrite: bool, directory: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and move it to ``path`` when the block ends without an error.

    The temporary file or folder is removed on any error (full disk, interrupt), and what stood at ``path`` stays as it was.
    Raises FileExistsError where ``path`` exists and ``overwrite`` is False, and OSError with the path where nothing can be written or the disk
    is full.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already. Pass `overwrite=True` to replace it, or another path.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as err:
        in_the_way = [p for p in target.parents if p.exists() and not p.is_dir()]
        number, reason = (errno.ENOTDIR, f"{in_the_way[0]} is no folder") if in_the_way else (err.errno, err.strerror)
        raise OSError(number, f"cannot write beside {target} ({reason}). Choose a folder you may write to, with free space") from err
    try:
        temporary = holder / target.name
        if directory:
            temporary.mkdir()
        yield temporary
        if target.is_dir() and not target.is_symlink():
            old = holder / "replaced"
            os.replace(target, old)
            try:
                os.replace(temporary, target)
            except OSError:
                os.replace(old, target)
                raise
        else:
            os.replace(temporary, target)
    except OSError as err:
        if err.errno not in FULL:
            raise
        raise OSError(
            err.errno,
            f"{target} could not be written ({err.strerror}); nothing was changed. Choose a folder with more free space, or free some",
        ) from err
    finally:
        shutil.rmtree(holder, ignore_errors=True)
