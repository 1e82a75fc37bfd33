"""Downloads from a real server on this machine: a verified file, or no file and an error."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from engine.common.errors import ConfigError
from engine.data import downloads
from engine.data.datasets import Archive, Release

ROOT = Path(__file__).resolve().parents[2]
CONTENT = {"a.gz": np.random.default_rng(0).bytes(900_000), "b.gz": b"small"}
RELEASE = Release(
    "toy",
    "http://authors.invalid/toy",
    tuple(Archive(n, hashlib.sha256(c).hexdigest(), len(c)) for n, c in CONTENT.items()),
    (0.0,),
    (1.0,),
)


class Server(http.server.BaseHTTPRequestHandler):
    """Answers in the way that `how` of its server names."""

    def do_GET(self) -> None:
        folder, _, name = self.path.lstrip("/").partition("/")
        content, how = CONTENT[name], self.server.how  # type: ignore[attr-defined]
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        if how == "missing" or folder != RELEASE.name:
            return self.send_error(404)
        sent = {"other": b"\0" * len(content), "endless": content * 3}.get(how, content)
        self.send_response(200)
        if how != "no length":
            self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent[: len(sent) // 2] if how == "cut off" else sent)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.how, server.asked = "well", []
    monkeypatch.setenv("ISOFLOP_MIRROR", f"http://127.0.0.1:{server.server_port}/")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_downloads_are_stored_under_their_names(server, cache):
    paths = downloads.fetch(RELEASE)
    assert {name: path.read_bytes() for name, path in paths.items()} == CONTENT
    assert files(cache) == ["toy/a.gz", "toy/b.gz"]


def test_a_second_fetch_sends_no_request(server):
    downloads.fetch(RELEASE)
    server.asked.clear()
    downloads.fetch(RELEASE)
    assert server.asked == []


@pytest.mark.parametrize("how", ["well", "no length"])
def test_progress_rises_to_the_size_of_all_archives(server, how):
    server.how, seen = how, []
    downloads.fetch(RELEASE, seen.append)
    done = [progress.done for progress in seen]
    assert done == sorted(done) and len(done) >= 4 and done[-1] == seen[0].total == RELEASE.size_bytes
    assert seen[0].text == "Downloading toy"


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("missing", "the server answered 404"),
        ("cut off", "the connection broke off"),
        ("other", "another checksum"),
        ("endless", "another checksum"),
    ],
)
def test_a_failed_download_leaves_nothing_behind_and_says_why(server, cache, how, why):
    server.how = how
    with pytest.raises(
        ConfigError, match=rf"toy: a\.gz .*http://127\.0\.0\.1.*{why}.*put the file into .*toy yourself"
    ):
        downloads.fetch(RELEASE)
    assert files(cache) == []


def test_a_server_that_sends_too_much_is_disconnected(server):
    server.how, seen = "endless", []
    with pytest.raises(ConfigError):
        downloads.fetch(RELEASE, seen.append)
    assert len(seen) <= 6  # of eleven chunks


def test_without_network_the_error_names_the_server(cache):
    with pytest.raises(ConfigError, match=r"from http://authors\.invalid/toy/a\.gz: no connection\. Try again, or put"):
        downloads.fetch(RELEASE)


@pytest.mark.parametrize("folder", [".", "toy"])
def test_archives_that_the_user_put_into_the_cache_are_used(cache, folder):
    (cache / folder).mkdir(parents=True)
    for name, content in CONTENT.items():
        (cache / folder / name).write_bytes(content)
    assert [path.parent for path in downloads.fetch(RELEASE).values()] == [(cache / folder).resolve()] * 2


@pytest.mark.parametrize("folder", [".", "toy"])
def test_a_wrong_file_in_the_cache_is_replaced(server, cache, folder):
    (cache / folder).mkdir(parents=True)
    (cache / folder / "a.gz").write_bytes(b"half of it")
    assert downloads.fetch(RELEASE)["a.gz"].read_bytes() == CONTENT["a.gz"]


def test_a_wrong_file_that_cannot_be_replaced_is_named(cache):
    (cache / "toy").mkdir(parents=True)
    (cache / "toy/a.gz").write_bytes(b"something else")
    with pytest.raises(ConfigError, match="The file that is there now is not the released one"):
        downloads.fetch(RELEASE)


@pytest.mark.process
def test_a_full_disk_is_reported_and_no_file_is_left(server, cache):
    """A limit of the file size takes the place of a full disk: it raises the same error at the same call."""
    code = "from tests.data.test_downloads import *; import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); downloads.fetch(RELEASE)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert f"toy: a.gz could not be stored in {cache}/toy: File too large." in done.stderr
    assert files(cache) == []


@pytest.mark.process
def test_two_processes_that_fetch_at_once_both_succeed(server, cache):
    code = "from tests.data.test_downloads import *; print(len(downloads.fetch(RELEASE)))"
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0] for process in running] == [b"2\n"] * 2
    assert files(cache) == ["toy/a.gz", "toy/b.gz"]


def test_old_drafts_of_killed_processes_are_deleted(server, cache):
    (cache / "toy").mkdir(parents=True)
    for name, age_s in (("tmpold", 90_000), ("tmpnew", 60)):
        (cache / "toy" / name).write_bytes(b"half")
        os.utime(cache / "toy" / name, (time.time() - age_s,) * 2)
    downloads.fetch(RELEASE)
    assert files(cache) == ["toy/a.gz", "toy/b.gz", "toy/tmpnew"]


def test_a_cache_folder_that_cannot_be_written_is_reported(tmp_path, monkeypatch, server):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ISOFLOP_DATA", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"could not be stored in .*: Not a directory"):
        downloads.fetch(RELEASE)
