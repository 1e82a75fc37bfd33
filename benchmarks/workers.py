"""Worker processes that run on request, shared by `peers` and `loggers`.

Each one exchanges JSON lines over its pipes. All run on the same core and take turns, so that none disturbs another.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Peer:
    """A library or logger to measure: its title, its class, and the packages it needs."""

    title: str
    kind: type[Any]
    packages: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


class WorkerError(RuntimeError):
    """The error of a worker."""


class Worker:
    """The process of one peer. It answers a line of JSON with a line of JSON; its other output goes to a file."""

    def __init__(self, module: str, name: str, env: Mapping[str, str], folder: Path) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "--worker", name],
                env=os.environ | env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )

    def ask(self, **request: Any) -> dict[str, float]:
        """Send a request and wait for the answer.

        Raises:
            WorkerError: The worker failed or has ended.
        """
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
        answer = self.answer()
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer of the process."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"ended: {self._last_output()}"}

    def close(self) -> None:
        """End the process; kill it after 30 s."""
        try:
            self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _last_output(self) -> str:
        return (self.log.read_text().strip().splitlines() or ["no output"])[-1]


def serve(handle: Callable[..., Mapping[str, Any]]) -> None:
    """In the worker: report that it is ready, then answer requests with `handle`. An error is an answer too."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    answers.write("{}\n")
    os.dup2(2, 1)  # peers can print to stdout, which is a pipe for answers
    for line in sys.stdin:
        try:
            answer = dict(handle(**json.loads(line)))
        except Exception as error:  # noqa: BLE001 - any error of a peer becomes its answer
            answer = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        answers.write(json.dumps(answer) + "\n")


@contextlib.contextmanager
def started(module: str, peers: Mapping[str, Peer], env: Mapping[str, str]) -> Iterator[dict[str, Worker]]:
    """One worker per peer; their files go to a temporary folder."""
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        shared = {"CUDA_VISIBLE_DEVICES": "", "MKL_NUM_THREADS": "1", "HOME": home, **env}
        try:
            for name, peer in peers.items():
                workers[name] = Worker(module, name, {**shared, **peer.env}, Path(home))
            for worker in workers.values():
                worker.answer()  # wait until imports are done, so that they do not disturb the first round
            yield workers
        finally:
            for worker in workers.values():
                worker.close()


def first_answers(
    workers: Mapping[str, Worker], peers: Mapping[str, Peer], **request: Any
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """The answers of all workers to a request, and the errors of those that failed, which are also printed."""
    answers, left_out = {}, {}
    for name, worker in workers.items():
        try:
            answers[name] = worker.ask(**request)
        except WorkerError as error:
            left_out[name] = str(error)
            print(f"{peers[name].title} left out: {error}")
    return answers, left_out


def installed(peers: Mapping[str, Peer], names: Iterable[str]) -> tuple[dict[str, Peer], dict[str, str]]:
    """The requested peers that are installed, and reasons for the others, which are also printed."""
    found, left_out = {}, {}
    for name in names:
        if absent := [package for package in peers[name].packages if package not in versions([peers[name]])]:
            left_out[name] = f"not installed: {', '.join(absent)}"
            print(f"{peers[name].title} left out: {left_out[name]}")
        else:
            found[name] = peers[name]
    return found, left_out


def versions(peers: Iterable[Peer]) -> dict[str, str]:
    """Versions of the installed packages."""
    found = {}
    for package in sorted({package for peer in peers for package in peer.packages}):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this process and its children on its last core; without effect on systems without affinity (macOS)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def names_of(peers: Mapping[str, Peer]) -> Callable[[str], list[str]]:
    """A parser of `a,b` for an argument of the command line."""

    def parse(text: str) -> list[str]:
        if unknown := set(text.split(",")) - peers.keys():
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is not one of {', '.join(peers)}")
        return text.split(",")

    return parse
