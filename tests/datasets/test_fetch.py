"""Files are found in the mirror, in the cache, or fetched from a server on this machine; what is damaged is never used."""

import errno
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pooch
import pytest

from stimg._core.registry import Registry
from stimg._core.settings import CACHE_VARIABLE, MIRROR_VARIABLE, settings
from stimg.datasets import fetch_file
from stimg.datasets.registry import DATASETS, FILES, RemoteFile, dataset_files, listing

BODY = b"spot\tgene\n1x1\t3\n" * 500


class _Handler(BaseHTTPRequestHandler):
    requests: ClassVar[list[str]] = []

    def do_GET(self):
        self.requests.append(self.path)
        if self.path == "/missing.tsv":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        body = BODY[: len(BODY) // 2] if self.path == "/cut.tsv" else BODY
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    _Handler.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


@pytest.fixture
def world(monkeypatch, tmp_path, server):
    """A registry of one file kind after another, an empty cache and no mirror."""
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(settings, "data_dir", None)
    sha = hashlib.sha256(BODY).hexdigest()
    git = hashlib.sha1(b"blob " + str(len(BODY)).encode() + b"\x00" + BODY).hexdigest()
    registry: Registry[RemoteFile] = Registry("file of stimg.datasets")
    for name, page, s, g in [
        ("toy/counts/good", "good.tsv", sha, ""),
        ("toy/counts/git", "git.tsv", "", git),
        ("toy/counts/other", "other.tsv", "0" * 64, ""),
        ("toy/counts/othergit", "othergit.tsv", "", "0" * 40),
        ("toy/counts/cut", "cut.tsv", sha, ""),
        ("toy/counts/missing", "missing.tsv", sha, ""),
        ("toy/counts/unknown", "unknown.tsv", "", ""),
    ]:
        registry.add(name, RemoteFile(name, f"{server}/{page}", s, g, len(BODY), f"toy/{page}", "", 0, 0))
    monkeypatch.setitem(fetch_file.__globals__, "FILES", registry)
    return tmp_path


def test_a_download_is_kept_and_not_asked_for_again(world):
    path = fetch_file("toy/counts/good")
    assert path == world / "cache" / "toy" / "counts" / "good.tsv"
    assert path.read_bytes() == BODY
    assert fetch_file("toy/counts/good") == path
    assert _Handler.requests == ["/good.tsv"]


def test_a_git_blob_name_verifies(world):
    assert fetch_file("toy/counts/git").read_bytes() == BODY
    with pytest.raises(ValueError, match="git blob sha1"):
        fetch_file("toy/counts/othergit")


@pytest.mark.parametrize(("name", "error"), [("other", ValueError), ("cut", (ConnectionError, ValueError)), ("missing", ConnectionError)])
def test_nothing_stays_of_a_failed_download(world, name, error):
    with pytest.raises(error, match=re.escape(f"toy/counts/{name}")):
        fetch_file(f"toy/counts/{name}")
    assert [p for p in (world / "cache").rglob("*") if p.is_file()] == []
    assert [p.name for p in (world / "cache" / "toy" / "counts").iterdir()] == []


def test_a_wrong_hash_names_what_was_found_and_expected(world):
    with pytest.raises(ValueError, match=f"{hashlib.sha256(BODY).hexdigest()}.*{'0' * 64}"):
        fetch_file("toy/counts/other")


def test_a_damaged_download_is_fetched_again(world):
    path = fetch_file("toy/counts/good")
    path.write_bytes(BODY[:-1])
    assert fetch_file("toy/counts/good").read_bytes() == BODY
    assert _Handler.requests == ["/good.tsv"] * 2


def test_a_file_without_a_hash_is_refused_unless_the_caller_verifies(world):
    with pytest.raises(ValueError, match="not known"):
        fetch_file("toy/counts/unknown")
    assert _Handler.requests == []
    assert fetch_file("toy/counts/unknown", content_checked=True).read_bytes() == BODY


def test_the_mirror_comes_first_and_is_verified(world, monkeypatch):
    mirror = world / "mirror" / "toy"
    mirror.mkdir(parents=True)
    monkeypatch.setenv(MIRROR_VARIABLE, str(mirror.parent))
    assert fetch_file("toy/counts/good").is_relative_to(world / "cache")  # not in the mirror
    (mirror / "good.tsv").write_bytes(BODY)
    assert fetch_file("toy/counts/good") == mirror / "good.tsv"
    (mirror / "good.tsv").write_bytes(BODY[:100])
    with pytest.raises(ValueError, match=r"good\.tsv is damaged.*sha256.*expected.*100 of 8000 expected bytes"):
        fetch_file("toy/counts/good")


def test_a_mirror_that_does_not_exist_is_an_error(world, monkeypatch):
    monkeypatch.setenv(MIRROR_VARIABLE, str(world / "nowhere"))
    with pytest.raises(FileNotFoundError, match=MIRROR_VARIABLE):
        fetch_file("toy/counts/good")


def test_no_network_says_what_to_do(world, monkeypatch):
    entry = RemoteFile("toy/counts/off", "http://127.0.0.1:9/off.tsv", "0" * 64, "", 1, "toy/off.tsv", "", 0, 0)
    fetch_file.__globals__["FILES"].add("toy/counts/off", entry)
    with pytest.raises(ConnectionError, match=rf"toy/counts/off.*{MIRROR_VARIABLE}.*toy/off\.tsv"):
        fetch_file("toy/counts/off")


def test_a_full_disk_and_a_read_only_cache_are_named(world, monkeypatch):
    def full(self, url, output_file, pooch, check_only=False):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pooch.HTTPDownloader, "__call__", full)
        with pytest.raises(OSError, match=f"No space left.*{CACHE_VARIABLE}") as caught:
            fetch_file("toy/counts/good")
        assert caught.value.errno == errno.ENOSPC
    (world / "afile").write_text("x")
    monkeypatch.setenv(CACHE_VARIABLE, str(world / "afile" / "below"))  # cannot be made, whoever runs the tests
    with pytest.raises(OSError, match=f"toy/counts/good could not be written.*{CACHE_VARIABLE}"):
        fetch_file("toy/counts/good")
    huge = RemoteFile("toy/counts/huge", "http://127.0.0.1:9/huge.tsv", "0" * 64, "", 10**18, "", "", 0, 0)
    monkeypatch.setenv(CACHE_VARIABLE, str(world / "cache"))
    fetch_file.__globals__["FILES"].add("toy/counts/huge", huge)
    with pytest.raises(OSError, match=r"1000000000000000000 bytes.*free"):
        fetch_file("toy/counts/huge")


def test_an_unknown_name_lists_a_close_one():
    with pytest.raises(ValueError, match="Did you mean 'her2st/counts/B1'"):
        fetch_file("her2st/count/B1")


def test_every_registered_file_can_be_verified_and_is_pinned():
    by_content = {"dlpfc/counts/151673", "dlpfc/counts/151674", "dlpfc/layers/all"}
    caches = set()
    for name in FILES:
        row = FILES[name]
        assert row.name == name
        assert bool(row.sha256 or row.git_sha1) != (name in by_content)
        assert re.fullmatch("[0-9a-f]{64}|", row.sha256)
        assert re.fullmatch("[0-9a-f]{40}|", row.git_sha1)
        assert row.url.startswith("https://")
        assert "raw.githubusercontent.com" not in row.url or re.search("/[0-9a-f]{40}/", row.url)
        assert (row.size > 0) == (not name.startswith("dlpfc/counts"))
        assert row.name.startswith(f"{row.dataset}/")
        caches.add(row.cache)
    assert len(caches) == len(FILES)
    assert FILES["her2st/counts/B1"].cache == "her2st/counts/B1.tsv.gz"
    assert sum(len(dataset_files(d)) for d in DATASETS) == len(FILES)
    assert len([n for n in FILES if n.startswith("her2st/image/")]) == 36


@pytest.mark.data
def test_the_mirror_holds_what_the_registry_says(mirror):
    present = [n for n in FILES if FILES[n].mirror and (mirror / FILES[n].mirror).is_file()]
    assert len(present) > 80
    for name in present:
        assert fetch_file(name, content_checked=True) == mirror / FILES[name].mirror
    sums = dict(reversed(line.split("  ./")) for line in (mirror / "SHA256SUMS").read_text().splitlines())
    for name in present:
        row = FILES[name]
        assert (row.mirror_sha256 or row.sha256) == sums[row.mirror]


def test_listing_counts_what_is_at_hand(monkeypatch, tmp_path):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(settings, "data_dir", None)
    target = tmp_path / FILES["mob/spots/1"].cache
    target.parent.mkdir(parents=True)
    target.write_text("x")
    table = listing()
    assert table.index.tolist() == sorted(DATASETS)
    assert table["in_cache"].to_dict() == {"dlpfc": 0, "genes": 0, "her2st": 0, "mob": 1, "stahl": 0}
    assert (table["in_mirror"] == 0).all()
    assert table.loc["her2st", "bytes"] == sum(FILES[n].size for n in FILES if n.startswith("her2st/"))
