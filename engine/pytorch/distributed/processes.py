"""The processes of a data-parallel run. Rank 0 is the run's own process: it leads, and alone writes the log. The other
ranks are forked from it, follow its orders, and end with it, whatever it ends by.

Orders and answers go through pipes as JSON; gradients go through torch.distributed (engine.pytorch.parallel). Each rank
beats in memory they share, from a thread of its own: who is silent is frozen, however busy its training is.
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
_SILENT_S = 2.0  # eight beats: who is silent for so long when others wait for it is why they wait
_BLAME_S = 2.0  # for the cause of a broken connection to be found
_ROOT_CAUSE_S = 5.0  # a rank that only lost its peer lets the one that broke speak first
_FAREWELL_S = 2.0
_PR_SET_PDEATHSIG = 1  # prctl(2)
_ANSWER_CHARS = 20_000  # of a traceback

Order = dict[str, Any]
Follow = Callable[[RunConfig, Path, "Link"], None]


class Heartbeats:
    """Memory that all ranks share since before they were forked: who beats, and how many steps each has done."""

    def __init__(self, num_ranks: int) -> None:
        cells = memoryview(mmap.mmap(-1, 16 * num_ranks)).cast("q")
        self.beats, self.steps = cells[:num_ranks], cells[num_ranks:]


class HeartbeatReader:
    """How long each rank has been silent, in our own beats: while we are frozen ourselves nobody grows silent."""

    def __init__(self, board: Heartbeats, ranks: Iterable[int]) -> None:
        self._board = board
        self._heard = {rank: board.beats[rank] for rank in ranks}
        self.silent_s = dict.fromkeys(self._heard, 0.0)

    def listen(self) -> None:
        for rank, heard in self._heard.items():
            beat = self._board.beats[rank]
            self.silent_s[rank] = self.silent_s[rank] + _BEAT_S if beat == heard else 0.0
            self._heard[rank] = beat


class RankProcesses:
    """The other ranks as rank 0 sees them. Forks them at once: this process must not have a second thread yet."""

    def __init__(self, config: RunConfig, folder: Path, follow: Follow) -> None:
        self.config, self.folder, self.num_ranks = config, folder, config.parallel.num_ranks
        self.rendezvous = folder / f".rendezvous-{secrets.token_hex(8)}"  # never that of an earlier try
        self.rendezvous.touch(mode=0o600)
        self.board = Heartbeats(self.num_ranks)
        self.lost: RankLost | EngineError | None = None
        self.lost_at = 0.0
        others = range(1, self.num_ranks)
        orders, words = [multiprocessing.Pipe() for _ in others], [multiprocessing.Pipe(duplex=False) for _ in others]
        shared = (follow, config, folder, self.board, self.rendezvous, orders, words, os.getpid())
        context = start_processes(
            _be_rank, args=shared, nprocs=len(others), join=False, daemon=True, start_method="fork"
        )
        self._processes = dict(zip(others, context.processes, strict=True))
        self.pids = tuple(process.pid for process in context.processes)
        for _, theirs in orders:
            theirs.close()
        for _, theirs in words:
            theirs.close()
        self._links = {rank: ours for rank, (ours, _) in zip(others, orders, strict=True)}
        self._words = {rank: ours for rank, (ours, _) in zip(others, words, strict=True)}
        self._listener = HeartbeatReader(self.board, others)
        self._over = threading.Event()
        self._losing = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="gang", daemon=True)
        self._thread.start()

    # --- orders ---

    def tell(self, do: str, **details: Any) -> None:
        """The same order to every other rank."""
        said = json.dumps({"do": do} | details).encode()
        for link in self._links.values():
            link.send_bytes(said)

    def answers(self) -> list[Order]:
        """What the other ranks answer to the last order, in their order."""
        return [json.loads(link.recv_bytes()) for link in self._links.values()]

    @contextlib.contextmanager
    def order(self, do: str, **details: Any) -> Iterator[list[Order]]:
        """Have the others do what this rank does in the block; their answers are in the list after it."""
        answers: list[Order] = []
        self.tell(do, **details)
        yield answers
        answers += self.answers()

    def have_answered(self) -> bool:
        return all(link.poll() for link in self._links.values())

    def raise_if_lost(self) -> None:
        if self.lost:
            raise self.lost

    # --- the end ---

    def blame(self, error: BaseException) -> BaseException:
        """Why a collective or a pipe broke: the rank that is gone, frozen or behind. Another error stays itself."""
        if not is_of_peers(error):
            return error
        until = time.monotonic() + _BLAME_S
        while self.lost is None and time.monotonic() < until:
            time.sleep(0.02)
        if self.lost is None:
            silent = [rank for rank, s in self._listener.silent_s.items() if s >= _SILENT_S]
            self._lose(self._frozen(silent[0]) if silent else self._waited_in_vain(error))
        assert self.lost is not None
        return self.lost

    def close(self, *, orderly: bool = False) -> None:
        """No rank but this one is left after it; `orderly`, once they have done all that they were told."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join(_FAREWELL_S)
        in_order = orderly and self.lost is None
        if in_order:
            with contextlib.suppress(OSError):
                self.tell("end")
        with contextlib.suppress(Exception):  # a group whose members are gone cannot be taken down in good order ...
            if dist.is_initialized() and (in_order or dist.get_backend() != "nccl"):  # ... and NCCL would wait for them
                dist.destroy_process_group()
        until = time.monotonic() + (_FAREWELL_S if in_order else 0.0)
        for process in self._processes.values():
            process.join(max(0.0, until - time.monotonic()))
        self._kill_all()
        for process in self._processes.values():
            process.join(_FAREWELL_S)
        for link in [*self._links.values(), *self._words.values()]:
            link.close()
        remove(self.rendezvous)

    def _kill_all(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(OSError, ValueError):
                process.kill()

    # --- the watch ---

    def _watch(self) -> None:
        alive = dict(self._processes)
        while not self._over.is_set():
            ready = wait([process.sentinel for process in alive.values()], timeout=_BEAT_S) if alive else []
            if not alive:
                self._over.wait(_BEAT_S)
            for rank, process in list(alive.items()):
                if process.sentinel in ready:
                    process.join(_FAREWELL_S)
                    del alive[rank]
                    if not self._over.is_set():
                        self._lose(self._cause_of_loss(rank, process.exitcode))
            if ready:
                continue  # a beat is a beat of the clock
            self.board.beats[0] += 1
            self._listener.listen()
            for rank, silent_s in self._listener.silent_s.items():
                if rank in alive and silent_s >= self.config.parallel.timeout_s:
                    self._lose(self._frozen(rank))

    def _lose(self, error: EngineError) -> None:
        """The first cause is the cause. The others end too: so whatever waits for them here ends at once."""
        with self._losing:
            if self.lost is None and not self._over.is_set():
                self.lost, self.lost_at = error, time.monotonic()
                self._kill_all()

    def _name(self, rank: int) -> str:
        pid = os.getpid() if rank == 0 else self._processes[rank].pid
        return f"Rank {rank} (process {pid}, {self.config.devices[rank]})"

    def _cause_of_loss(self, rank: int, code: int | None) -> EngineError:
        with contextlib.suppress(OSError, EOFError, ValueError):
            if self._words[rank].poll(0.1):
                return _spoken(rank, json.loads(self._words[rank].recv_bytes()))
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            how = f"was killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
        return RankLost(
            f"{self._name(rank)} {how} at step {self.board.steps[rank]}; the other ranks were ended with it.",
            fix="Its points up to then are kept. Run it again; if it repeats, try fewer ranks, a smaller model or batch.",
        )

    def _frozen(self, rank: int) -> RankLost:
        silent_s = self._listener.silent_s[rank]
        return RankLost(
            f"{self._name(rank)} gave no sign of life for {silent_s:.0f} s at step {self.board.steps[rank]}: it was frozen; "
            "all ranks were ended.",
            fix="Its points up to then are kept. Was it stopped (SIGSTOP, a debugger), or is the machine out of memory?",
        )

    def _waited_in_vain(self, error: BaseException) -> RankLost:
        """All are there and beat, and yet one keeps the others waiting."""
        steps = list(self.board.steps)
        last = min(range(self.num_ranks), key=steps.__getitem__)
        behind = (
            f"{self._name(last)} is at step {steps[last]}, the furthest at {max(steps)}. "
            if max(steps) > min(steps)
            else ""
        )
        return RankLost(
            f"The ranks lost each other: {behind}{_first_line(error)}",
            fix=f"Raise parallel.timeout_s={self.config.parallel.timeout_s:g} where steps take that long; or try fewer ranks.",
        )  # fmt: skip


class Link:
    """Rank 0 as another rank sees it."""

    def __init__(self, rank: int, board: Heartbeats, rendezvous: Path, orders: Connection) -> None:
        self.rank, self.board, self.rendezvous, self._orders = rank, board, rendezvous, orders

    def next_order(self) -> Order:
        order: Order = json.loads(self._orders.recv_bytes())
        return order

    def answer(self, **said: Any) -> None:
        self._orders.send_bytes(json.dumps(said).encode())


def _be_rank(
    index: int, follow: Follow, config: RunConfig, folder: Path, board: Heartbeats, rendezvous: Path,
    orders: Sequence[tuple[Connection, Connection]], words: Sequence[tuple[Connection, Connection]], leader: int,
) -> None:  # fmt: skip
    """The life of rank `index + 1`, from the fork to its end."""
    _end_with(leader)
    _let_go_of(folder)
    for other, pairs in enumerate(zip(orders, words, strict=True)):  # or nobody would see rank 0's end of a pipe close
        for ours, theirs in pairs:
            ours.close()
            if other != index:
                theirs.close()
    rank, code = index + 1, 0
    threading.Thread(target=_beat, args=(rank, config, folder, board, leader), name="beat", daemon=True).start()
    try:
        follow(config, folder, Link(rank, board, rendezvous, orders[index][1]))
    except BaseException as error:
        code = 1
        if is_of_peers(error):
            time.sleep(_ROOT_CAUSE_S)
        with contextlib.suppress(OSError):
            words[index][1].send_bytes(json.dumps(_in_words(error)).encode())
    os._exit(code)  # not through what this process inherited: exits, buffers and a group whose members are gone


def _beat(rank: int, config: RunConfig, folder: Path, board: Heartbeats, leader: int) -> None:
    """Show that this rank is there, and end everything where rank 0 is not."""
    listener = HeartbeatReader(board, [0])
    while True:
        time.sleep(_BEAT_S)
        board.beats[rank] += 1
        listener.listen()
        if os.getppid() != leader:
            os._exit(1)
        if listener.silent_s[0] >= config.parallel.timeout_s:
            record_cause(
                folder,
                f"Rank 0 (process {leader}, {config.devices[0]}) gave no sign of life for {listener.silent_s[0]:.0f} s at "
                f"step {board.steps[0]}: it was frozen; rank {rank} ended all of them",
            )
            os.kill(leader, signal.SIGKILL)


def _end_with(leader: int) -> None:
    """Die the moment rank 0 does, frozen or not (Linux; elsewhere its pipe and its pid tell)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != leader:  # it died before it could be said
        os._exit(1)


def _let_go_of(folder: Path) -> None:
    """Close what was inherited of the run's folder: its log, and the claim on it, are rank 0's alone."""
    with contextlib.suppress(OSError):
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if entry.readlink().is_relative_to(folder.resolve()):
                    os.close(int(entry.name))


# --- errors across processes ----------------------------------------------------------------------------------------


class RankTraceback(Exception):
    """What a rank's own traceback says, as the cause of the error it became."""


def is_of_peers(error: BaseException) -> bool:
    """Whether an error only tells that another rank is gone or late."""
    if isinstance(error, EOFError | ConnectionError | dist.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(re.search(r"(?i)gloo|nccl|connection|timed out", str(error)))


def _in_words(error: BaseException) -> dict[str, str]:
    kind = type(error).__name__
    message, fix = (error.message, error.fix) if isinstance(error, EngineError) else (_first_line(error), "")
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        kind, message, fix = OutOfMemory.__name__, limits.in_words(error), "Choose a smaller batch or model."
    detail = "".join(traceback.format_exception(error))[-_ANSWER_CHARS:]
    return {"kind": kind, "message": message, "fix": fix, "detail": detail}


def _spoken(rank: int, said: dict[str, str]) -> EngineError:
    """The error a rank ended with, in this process."""
    kind = getattr(errors, said["kind"], None)
    if isinstance(kind, type) and issubclass(kind, EngineError):
        error: EngineError = kind(f"Rank {rank}: {said['message']}", fix=said["fix"])
    else:
        error = RankLost(
            f"Rank {rank} broke off with {said['kind']}: {said['message']}",
            fix="Please report it with the run's log, which holds the rank's traceback.",
        )
    error.__cause__ = RankTraceback(f"in rank {rank}\n{said['detail']}")
    return error


def _first_line(error: BaseException) -> str:
    return f"{str(error).strip().partition(chr(10))[0][:300]}"
