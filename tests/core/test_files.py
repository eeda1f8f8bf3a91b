"""Either the old file or the whole new one, also where the system really refuses to write."""

import errno
import os
import subprocess
import sys

import pytest

from stimg._core.files import replacing


def contents(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("directory", [False, True])
def test_the_new_one_appears_when_it_is_whole(tmp_path, directory):
    target = tmp_path / "below" / "target"
    for text in ("old", "new"):
        with replacing(target, overwrite=text == "new", directory=directory) as temporary:
            (temporary / "file" if directory else temporary).write_text(text)
            assert text not in contents(target.parent).get("target/file" if directory else "target", "")
    assert contents(tmp_path) == {"below/target/file" if directory else "below/target": "new"}
    with pytest.raises(FileExistsError, match=r"target exists already. Pass `overwrite=True`"), replacing(target, overwrite=False):
        pass


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()]
)
def test_an_error_leaves_what_was_there(tmp_path, error):
    (tmp_path / "target").write_text("old")

    def write():
        with replacing(tmp_path / "target", overwrite=True) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)) as caught:
        write()
    assert contents(tmp_path) == {"target": "old"}
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    assert ("target could not be written (No space left on device); nothing was changed" in str(caught.value)) == full
    if isinstance(error, OSError):
        assert caught.value.errno == error.errno


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(NotADirectoryError, match=r"cannot write beside .*file is no folder"):
        with replacing(tmp_path / "file" / "target", overwrite=True):
            pass
    assert contents(tmp_path) == {"file": "old"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the limit on the size of files is that of Unix")
def test_a_system_that_refuses_to_write_more(tmp_path):
    script = (
        "import resource, signal, sys; from pathlib import Path; from stimg._core.files import replacing\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    with replacing(sys.argv[1], overwrite=True) as temporary:\n"
        "        temporary.write_bytes(bytes(100_000))\n"
        "except OSError as err: print(err)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "target")], capture_output=True, text=True, check=True)
    assert "target could not be written" in done.stdout
    assert contents(tmp_path) == {}
