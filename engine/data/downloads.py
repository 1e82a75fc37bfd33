"""Released data sets from the web: each archive fetched once, checked, and kept in the cache folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.common.errors import ConfigError
from engine.data.datasets import Archive, Release

_TIMEOUT_S = 30.0  # without a byte
_CHUNK_BYTES = 1 << 18
_DRAFT_AGE_S = 86_400.0  # pooch's drafts, tmp…: what a killed process left behind


@dataclass(frozen=True, slots=True)
class Progress:
    """How far something long has come, in bytes."""

    text: str
    done: int
    total: int | None


def cache_folder() -> Path:
    """`$ISOFLOP_DATA`, or isoflop in the user's cache folder."""
    if given := os.environ.get("ISOFLOP_DATA"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "isoflop"


def fetch(release: Release, progress: Callable[[Progress], None] = lambda _: None) -> dict[str, Path]:
    """The archives of a release by name, each with the stated hash; what is not in the cache is downloaded.

    An archive put by hand into the cache folder, or into the release's folder in it, counts as downloaded.
    `$ISOFLOP_MIRROR` replaces the authors' server: archives are then read from $ISOFLOP_MIRROR/<release>/<archive>.

    Raises ConfigError when an archive cannot be had, or what came is not the archive that was released; nothing of it
    is kept.
    """
    paths: dict[str, Path] = {}
    before = 0
    for archive in release.archives:
        report = _Report(release, archive, before, progress)
        paths[archive.name] = _by_hand(release, archive) or _download(release, archive, report)
        before += archive.size_bytes
    return paths


def keep(path: Path, content: bytes) -> None:
    """All of the content under its name, or nothing. Raises OSError when the folder cannot be written."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


class _Report:
    """What pooch calls a progress bar, telling bytes of the whole release."""

    total = 0  # pooch sets it to the announced length of the archive, or 0

    def __init__(self, release: Release, archive: Archive, before: int, progress: Callable[[Progress], None]) -> None:
        self.release, self.archive, self.before, self.progress = release, archive, before, progress
        self.done = 0

    def update(self, size: int) -> None:
        """One more chunk of `size`, or less: pooch does not say how much shorter the last one was.

        Raises ValueError, as pooch does of a wrong hash, when more comes than the archive has: a disk has an end.
        """
        if self.done > self.archive.size_bytes + _CHUNK_BYTES:
            raise ValueError("more than was released")
        self.done += size
        done = self.before + min(self.done, self.archive.size_bytes)
        self.progress(Progress(f"Downloading {self.release.name}", done, self.release.size_bytes))

    def reset(self) -> None: ...  # at the end; pooch then adds the announced length once more

    def close(self) -> None: ...


def _by_hand(release: Release, archive: Archive) -> Path | None:
    """An archive beside the release's folder; its hash tells MNIST's from Fashion-MNIST's of the same name."""
    import pooch

    path = cache_folder() / archive.name
    with contextlib.suppress(OSError):
        if path.is_file() and pooch.file_hash(str(path)) == archive.sha256:
            return path
    return None


def _download(release: Release, archive: Archive, report: _Report) -> Path:
    import pooch  # here: with requests it is a tenth of a second the page need not wait for
    import requests

    mirror = os.environ.get("ISOFLOP_MIRROR")
    url = f"{mirror.rstrip('/')}/{release.name}/{archive.name}" if mirror else f"{release.url}/{archive.name}"
    folder = cache_folder() / release.name
    found = (folder / archive.name).exists()
    pooch.get_logger().setLevel("ERROR")
    downloader = pooch.HTTPDownloader(progressbar=report, chunk_size=_CHUNK_BYTES, timeout=_TIMEOUT_S)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(folder)
        return Path(
            pooch.retrieve(url, f"sha256:{archive.sha256}", fname=archive.name, path=folder, downloader=downloader)
        )
    except requests.RequestException as error:
        what = f"could not be fetched from {url}: {_reason(error)}"
    except ValueError:  # pooch says so of a wrong hash
        what = f"is not the file that was released: what came from {url} has another checksum"
    except OSError as error:
        what = f"could not be kept in {folder}: {error.strerror or error}"
    hint = " The one that lies there is not the one released." if found else ""
    raise ConfigError(
        f"{release.name}: {archive.name} {what}.",
        fix=f"Try again, or put the file into {folder} by hand.{hint}",
    ) from None


def _reason(error: Exception) -> str:
    """Why a download failed, in a few words."""
    import requests

    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answered {response.status_code} {response.reason}"
    if isinstance(error, requests.Timeout):
        return f"no answer for {_TIMEOUT_S:g} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    return "that is not an http address" if isinstance(error, ValueError) else "no connection"


def _sweep(folder: Path) -> None:
    for draft in folder.glob("tmp*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > _DRAFT_AGE_S:
                draft.unlink()
