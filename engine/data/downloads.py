"""Downloads of released data sets. Each archive is downloaded once, verified and kept in the cache folder."""

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

_TIMEOUT_S = 30.0  # longest wait for the next byte
_CHUNK_BYTES = 1 << 18
_DRAFT_AGE_S = 86_400.0  # older temporary files of pooch (tmp*) come from processes that were killed


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a download, in bytes."""

    text: str
    done: int
    total: int | None  # None if unknown


def cache_folder() -> Path:
    """`$ISOFLOP_DATA`, or the folder isoflop in the user's cache folder."""
    if given := os.environ.get("ISOFLOP_DATA"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "isoflop"


def fetch(release: Release, progress: Callable[[Progress], None] = lambda _: None) -> dict[str, Path]:
    """The archives of a release by name, each with the stated hash. Those that are not in the cache are downloaded.

    A user can also put an archive into the cache folder, or into the release's folder in it. `$ISOFLOP_MIRROR` replaces
    the authors' server: archives are then read from $ISOFLOP_MIRROR/<release>/<archive>.

    Raises:
        ConfigError: An archive cannot be downloaded or stored, or has another hash. It is not kept then.
    """
    paths: dict[str, Path] = {}
    before = 0
    for archive in release.archives:
        report = _Report(release, archive, before, progress)
        paths[archive.name] = _by_hand(release, archive) or _download(release, archive, report)
        before += archive.size_bytes
    return paths


def keep(path: Path, content: bytes) -> None:
    """Write `content` to `path` completely or not at all. Raises OSError if the folder cannot be written."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


class _Report:
    """The progress bar that pooch calls. It reports bytes of the whole release."""

    total = 0  # pooch sets it to the announced length of the archive, or 0

    def __init__(self, release: Release, archive: Archive, before: int, progress: Callable[[Progress], None]) -> None:
        self.release, self.archive, self.before, self.progress = release, archive, before, progress
        self.done = 0

    def update(self, size: int) -> None:
        """Count one more chunk of `size` bytes. The last one can be shorter, which pooch does not report.

        Raises:
            ValueError: The server sends more than the archive has, which would fill the disk. Pooch raises the same
                for a wrong hash.
        """
        if self.done > self.archive.size_bytes + _CHUNK_BYTES:
            raise ValueError("more bytes than the release has")
        self.done += size
        done = self.before + min(self.done, self.archive.size_bytes)
        self.progress(Progress(f"Downloading {self.release.name}", done, self.release.size_bytes))

    def reset(self) -> None:
        """Called at the end, before pooch adds the announced length once more."""

    def close(self) -> None:
        """Called after `reset`."""


def _by_hand(release: Release, archive: Archive) -> Path | None:
    """An archive that the user put beside the release's folder, else None. Its hash is checked, because MNIST and
    Fashion-MNIST have equal file names."""
    import pooch

    path = cache_folder() / archive.name
    with contextlib.suppress(OSError):
        if path.is_file() and pooch.file_hash(str(path)) == archive.sha256:
            return path
    return None


def _download(release: Release, archive: Archive, report: _Report) -> Path:
    import pooch  # imported here, because pooch and requests take 0.1 s and pages do not need them
    import requests

    mirror = os.environ.get("ISOFLOP_MIRROR")
    url = f"{mirror.rstrip('/')}/{release.name}/{archive.name}" if mirror else f"{release.url}/{archive.name}"
    folder = cache_folder() / release.name
    found = (folder / archive.name).exists()
    pooch.get_logger().setLevel("ERROR")
    downloader = pooch.HTTPDownloader(progressbar=report, chunk_size=_CHUNK_BYTES, timeout=_TIMEOUT_S)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _delete_old_drafts(folder)
        return Path(
            pooch.retrieve(url, f"sha256:{archive.sha256}", fname=archive.name, path=folder, downloader=downloader)
        )
    except requests.RequestException as error:
        what = f"could not be downloaded from {url}: {_reason(error)}"
    except ValueError:  # pooch raises it for a wrong hash
        what = f"is not the released file: the download from {url} has another checksum"
    except OSError as error:
        what = f"could not be stored in {folder}: {error.strerror or error}"
    hint = " The file that is there now is not the released one." if found else ""
    raise ConfigError(
        f"{release.name}: {archive.name} {what}.",
        fix=f"Try again, or put the file into {folder} yourself.{hint}",
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
    return "this is not an http address" if isinstance(error, ValueError) else "no connection"


def _delete_old_drafts(folder: Path) -> None:
    for draft in folder.glob("tmp*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > _DRAFT_AGE_S:
                draft.unlink()
