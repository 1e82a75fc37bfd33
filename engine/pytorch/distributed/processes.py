"""The rank processes of a data-parallel run.

Rank 0 is the run's own process: it leads, and it alone writes the event log. The other ranks are forked from it, follow
its orders, and end when it ends, for any reason.

Orders and answers go through pipes as JSON; gradients go through torch.distributed (`data_parallel`). Each rank counts
heartbeats in shared memory from a thread of its own. So a rank whose heartbeats stop is frozen: a rank that is only
busy with training goes on counting.

torchrun (torch.distributed.elastic) is not used, because its store listens on every interface, and because forked ranks
start in 0.3 s with the libraries already loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import multiprocessing
import os
import re
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from engine.common import errors
from engine.common.errors import EngineError, OutOfMemory, RankLost
from engine.config.run import RunConfig
from engine.planning import limits
from engine.store.stop_requests import record_cause
from engine.system.disk_space import remove

_BEAT_S = 0.25
_FROZEN_S = 2.0  # a rank without a heartbeat for eight beats, while others wait for it, is reported as the cause
_CAUSE_S = 2.0  # how long to look for the cause of a broken connection
_ROOT_CAUSE_S = 5.0  # a rank that only lost its connection waits, so that the failed rank reports first
_CLOSE_S = 2.0  # how long a rank or a thread may take to end
_PR_SET_PDEATHSIG = 1  # prctl(2)
_DETAIL_CHARS = 20_000  # of a traceback that is sent to rank 0

Order = dict[str, Any]
Follow = Callable[[RunConfig, Path, "RankLink"], None]


class Heartbeats:
    """Shared memory with two counters per rank: its heartbeats, and its steps. Make it before the ranks are forked."""

    def __init__(self, num_ranks: int) -> None:
        cells = memoryview(mmap.mmap(-1, 16 * num_ranks)).cast("q")
        self.beats, self.steps = cells[:num_ranks], cells[num_ranks:]


class HeartbeatReader:
    """Seconds since the last heartbeat of each rank.

    They are counted in calls of `read`, one per beat of this process. So while this process is frozen itself, no other
    rank seems silent.
    """

    def __init__(self, heartbeats: Heartbeats, ranks: Iterable[int]) -> None:
        self._heartbeats = heartbeats
        self._last = {rank: heartbeats.beats[rank] for rank in ranks}
        self.silent_s = dict.fromkeys(self._last, 0.0)

    def read(self) -> None:
        """Compare the counters with the last call; call this once per `_BEAT_S`."""
        for rank, last in self._last.items():
            beat = self._heartbeats.beats[rank]
            self.silent_s[rank] = self.silent_s[rank] + _BEAT_S if beat == last else 0.0
            self._last[rank] = beat


class RankProcesses:
    """The other ranks as rank 0 sees them: it sends them orders, watches them, and ends them.

    The constructor forks them, so this process must not have a second thread yet. `follow` is what each of them runs.
    """

    def __init__(self, config: RunConfig, folder: Path, follow: Follow) -> None:
        self.config, self.folder, self.num_ranks = config, folder, config.parallel.num_ranks
        # A new name each time, because an earlier try may have left its file.
        self.rendezvous = folder / f".rendezvous-{secrets.token_hex(8)}"
        self.rendezvous.touch(mode=0o600)
        self.heartbeats = Heartbeats(self.num_ranks)
        self.lost: RankLost | EngineError | None = None
        self.lost_at = 0.0
        others = range(1, self.num_ranks)
        orders, error_pipes = (
            [multiprocessing.Pipe() for _ in others],
            [multiprocessing.Pipe(duplex=False) for _ in others],
        )
        shared = (follow, config, folder, self.heartbeats, self.rendezvous, orders, error_pipes, os.getpid())
        context = start_processes(
            _run_rank, args=shared, nprocs=len(others), join=False, daemon=True, start_method="fork"
        )
        self._processes = dict(zip(others, context.processes, strict=True))
        self.pids = tuple(process.pid for process in context.processes)
        for _, theirs in orders:
            theirs.close()
        for _, theirs in error_pipes:
            theirs.close()
        self._links = {rank: ours for rank, (ours, _) in zip(others, orders, strict=True)}
        self._error_pipes = {rank: ours for rank, (ours, _) in zip(others, error_pipes, strict=True)}
        self._reader = HeartbeatReader(self.heartbeats, others)
        self._closed = threading.Event()
        self._loss_lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._thread.start()

    # --- orders ---

    def send(self, do: str, **details: Any) -> None:
        """Send an order to every other rank."""
        order = json.dumps({"do": do} | details).encode()
        for link in self._links.values():
            link.send_bytes(order)

    def answers(self) -> list[Order]:
        """Wait for the answers of the other ranks to the last order, sorted by rank."""
        return [json.loads(link.recv_bytes()) for link in self._links.values()]

    @contextlib.contextmanager
    def order(self, do: str, **details: Any) -> Iterator[list[Order]]:
        """Context manager: the other ranks do what this rank does in the block; then the list has their answers."""
        answers: list[Order] = []
        self.send(do, **details)
        yield answers
        answers += self.answers()

    def have_answered(self) -> bool:
        """Whether the answer of every other rank can be read without waiting."""
        return all(link.poll() for link in self._links.values())

    def raise_if_lost(self) -> None:
        """Raise the error of the first lost rank.

        Raises:
            EngineError: A rank was lost: RankLost, or the error that the rank ended with.
        """
        if self.lost:
            raise self.lost

    # --- the end ---

    def root_cause(self, error: BaseException) -> BaseException:
        """The error of the lost, frozen or slow rank, because of which `error` broke a collective or a pipe.

        An error with another cause is returned as it is.
        """
        if not is_of_peers(error):
            return error
        until = time.monotonic() + _CAUSE_S
        while self.lost is None and time.monotonic() < until:
            time.sleep(0.02)
        if self.lost is None:
            silent = [rank for rank, s in self._reader.silent_s.items() if s >= _FROZEN_S]
            self._set_lost(self._frozen(silent[0]) if silent else self._behind(error))
        assert self.lost is not None
        return self.lost

    def close(self, *, orderly: bool = False) -> None:
        """End all other ranks and delete the rendezvous file. With `orderly`, let them finish their orders first."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join(_CLOSE_S)
        in_order = orderly and self.lost is None
        if in_order:
            with contextlib.suppress(OSError):
                self.send("end")
        with contextlib.suppress(Exception):  # destroying a group whose members are gone fails ...
            if dist.is_initialized() and (
                in_order or dist.get_backend() != "nccl"
            ):  # ... and with NCCL it waits for them
                dist.destroy_process_group()
        until = time.monotonic() + (_CLOSE_S if in_order else 0.0)
        for process in self._processes.values():
            process.join(max(0.0, until - time.monotonic()))
        self._kill_all()
        for process in self._processes.values():
            process.join(_CLOSE_S)
        for link in [*self._links.values(), *self._error_pipes.values()]:
            link.close()
        remove(self.rendezvous)

    def _kill_all(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(OSError, ValueError):
                process.kill()

    # --- the watch ---

    def _watch(self) -> None:
        alive = dict(self._processes)
        while not self._closed.is_set():
            ready = wait([process.sentinel for process in alive.values()], timeout=_BEAT_S) if alive else []
            if not alive:
                self._closed.wait(_BEAT_S)
            for rank, process in list(alive.items()):
                if process.sentinel in ready:
                    process.join(_CLOSE_S)
                    del alive[rank]
                    if not self._closed.is_set():
                        self._set_lost(self._cause_of_loss(rank, process.exitcode))
            if ready:
                continue  # the wait ended early, so this was no full beat
            self.heartbeats.beats[0] += 1
            self._reader.read()
            for rank, silent_s in self._reader.silent_s.items():
                if rank in alive and silent_s >= self.config.parallel.timeout_s:
                    self._set_lost(self._frozen(rank))

    def _set_lost(self, error: EngineError) -> None:
        """Keep the first error as the cause, and kill the other ranks so that nothing here waits for them."""
        with self._loss_lock:
            if self.lost is None and not self._closed.is_set():
                self.lost, self.lost_at = error, time.monotonic()
                self._kill_all()

    def _name(self, rank: int) -> str:
        pid = os.getpid() if rank == 0 else self._processes[rank].pid
        return f"Rank {rank} (process {pid}, {self.config.devices[rank]})"

    def _cause_of_loss(self, rank: int, code: int | None) -> EngineError:
        with contextlib.suppress(OSError, EOFError, ValueError):
            if self._error_pipes[rank].poll(0.1):
                return _deserialized(rank, json.loads(self._error_pipes[rank].recv_bytes()))
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            how = f"was killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
        return RankLost(
            f"{self._name(rank)} {how} at step {self.heartbeats.steps[rank]}; the other ranks were ended with it.",
            fix="The points up to then are kept. Run it again; if this repeats, try fewer ranks or a smaller batch.",
        )

    def _frozen(self, rank: int) -> RankLost:
        silent_s = self._reader.silent_s[rank]
        return RankLost(
            f"{self._name(rank)} did not respond for {silent_s:.0f} s at step {self.heartbeats.steps[rank]}: it was "
            "frozen. All ranks were ended.",
            fix="The points up to then are kept. Was it stopped (SIGSTOP, debugger), or is the machine out of memory?",
        )

    def _behind(self, error: BaseException) -> RankLost:
        """The error where all ranks have heartbeats, but one keeps the others waiting for too long."""
        steps = list(self.heartbeats.steps)
        last = min(range(self.num_ranks), key=steps.__getitem__)
        behind = f"{self._name(last)} is at step {steps[last]}, the furthest at {max(steps)}. "
        return RankLost(
            f"The ranks lost their connection: {behind if max(steps) > min(steps) else ''}{_first_line(error)}",
            fix=f"Raise parallel.timeout_s={self.config.parallel.timeout_s:g} if steps take that long, or try fewer "
            "ranks.",
        )


class RankLink:
    """Rank 0 as another rank sees it: it sends orders, and this rank answers them."""

    def __init__(self, rank: int, heartbeats: Heartbeats, rendezvous: Path, orders: Connection) -> None:
        self.rank, self.heartbeats, self.rendezvous, self._orders = rank, heartbeats, rendezvous, orders

    def next_order(self) -> Order:
        """Wait for the next order: "do" is its name, the other keys are its arguments."""
        order: Order = json.loads(self._orders.recv_bytes())
        return order

    def answer(self, **values: Any) -> None:
        """Answer the last order."""
        self._orders.send_bytes(json.dumps(values).encode())


def _run_rank(
    index: int,
    follow: Follow,
    config: RunConfig,
    folder: Path,
    heartbeats: Heartbeats,
    rendezvous: Path,
    orders: Sequence[tuple[Connection, Connection]],
    error_pipes: Sequence[tuple[Connection, Connection]],
    leader: int,
) -> None:
    """Run rank `index + 1` from the fork to its end; `leader` is the process id of rank 0."""
    _die_with_leader(leader)
    _close_inherited(folder)
    for other, pairs in enumerate(zip(orders, error_pipes, strict=True)):  # so that closing rank 0's end closes a pipe
        for ours, theirs in pairs:
            ours.close()
            if other != index:
                theirs.close()
    rank, code = index + 1, 0
    beating = threading.Thread(
        target=_keep_heartbeat, args=(rank, config, folder, heartbeats, leader), name="heartbeat", daemon=True
    )
    beating.start()
    try:
        follow(config, folder, RankLink(rank, heartbeats, rendezvous, orders[index][1]))
    except BaseException as error:  # noqa: BLE001 - the border of this process: rank 0 gets every error
        code = 1
        if is_of_peers(error):
            time.sleep(_ROOT_CAUSE_S)
        with contextlib.suppress(OSError):
            error_pipes[index][1].send_bytes(json.dumps(_serialized(error)).encode())
    os._exit(code)  # skips the inherited exit handlers, buffers and the process group, whose members may be gone


def _keep_heartbeat(rank: int, config: RunConfig, folder: Path, heartbeats: Heartbeats, leader: int) -> None:
    """Count this rank's heartbeats, and end all ranks when rank 0 has ended or is frozen."""
    reader = HeartbeatReader(heartbeats, [0])
    while True:
        time.sleep(_BEAT_S)
        heartbeats.beats[rank] += 1
        reader.read()
        if os.getppid() != leader:
            os._exit(1)
        if reader.silent_s[0] >= config.parallel.timeout_s:
            record_cause(
                folder,
                f"Rank 0 (process {leader}, {config.devices[0]}) did not respond for {reader.silent_s[0]:.0f} s at "
                f"step {heartbeats.steps[0]}: it was frozen; rank {rank} ended all ranks",
            )
            os.kill(leader, signal.SIGKILL)


def _die_with_leader(leader: int) -> None:
    """Have Linux kill this process when rank 0 ends, even if frozen (elsewhere pipe and pid are watched)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != leader:  # rank 0 ended before prctl
        os._exit(1)


def _close_inherited(folder: Path) -> None:
    """Close inherited files in the run's folder: the event log and the claim on the run belong to rank 0."""
    with contextlib.suppress(OSError):
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if entry.readlink().is_relative_to(folder.resolve()):
                    os.close(int(entry.name))


# --- errors across processes ----------------------------------------------------------------------------------------


class RankTraceback(Exception):
    """The traceback of another rank as text, set as the cause of the error that rank 0 raises."""


def is_of_peers(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone or late."""
    if isinstance(error, EOFError | ConnectionError | dist.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(re.search(r"(?i)gloo|nccl|connection|timed out", str(error)))


def _serialized(error: BaseException) -> dict[str, str]:
    """An error as JSON fields: its class, message, fix and traceback."""
    kind = type(error).__name__
    message, fix = (error.message, error.fix) if isinstance(error, EngineError) else (_first_line(error), "")
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        kind, message, fix = OutOfMemory.__name__, limits.in_words(error), "Choose a smaller batch or model."
    detail = "".join(traceback.format_exception(error))[-_DETAIL_CHARS:]
    return {"kind": kind, "message": message, "fix": fix, "detail": detail}


def _deserialized(rank: int, fields: dict[str, str]) -> EngineError:
    """The error that a rank ended with, from what `_serialized` made of it."""
    kind = getattr(errors, fields["kind"], None)
    if isinstance(kind, type) and issubclass(kind, EngineError):
        error: EngineError = kind(f"Rank {rank}: {fields['message']}", fix=fields["fix"])
    else:
        error = RankLost(
            f"Rank {rank} failed with {fields['kind']}: {fields['message']}",
            fix="Please report it with the run's log, which holds the rank's traceback.",
        )
    error.__cause__ = RankTraceback(f"in rank {rank}\n{fields['detail']}")
    return error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]
