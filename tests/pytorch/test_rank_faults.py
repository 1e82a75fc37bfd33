"""Rank processes that are killed, frozen, slow or fail: each fault is a real one."""

from __future__ import annotations

import socket
import time

import psutil
import pytest
import torch

from engine.common.errors import RankLost
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.events.base import TERMINAL
from engine.pytorch.distributed.group import RankGroup
from engine.pytorch.distributed.processes import RankProcesses
from engine.runtime import worker
from tests.conftest import Supervised
from tests.pytorch.test_data_parallel import SAME, ranks
from tests.runtime.test_cancel import is_at_work

TIMEOUT = "parallel.timeout_s=3"  # others use this machine, too


class RunningRanks:
    """A run of some ranks that has made steps, and its processes."""

    def __init__(self, supervised, number=2, *assignments):
        self.supervised = supervised
        self.run = supervised.running(*ranks(number), TIMEOUT, *assignments)
        leader = psutil.Process(self.run.starting.pid)
        self.ranks = [leader, *sorted(leader.children(), key=lambda p: p.pid)]  # forked in their order
        assert len(self.ranks) == number

    def end(self, *statuses):
        """The run after its end; no rank process is left, and every step that was shown is in the log."""
        run = self.supervised.until(self.run.run_id, *TERMINAL)
        assert run.status in statuses, run.why()
        self.supervised.wait(lambda: not any(map(is_at_work, self.ranks)), "the end of all ranks")
        assert run.steps["step"].tolist() == list(range(1, len(run.steps) + 1))
        assert run.problems == []
        assert not list(run.folder.glob(".*")), "the rendezvous was left"
        return run


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2])
def test_a_killed_rank_is_named_and_no_process_is_left(supervised, rank):
    running = RunningRanks(supervised, 3)
    running.ranks[rank].kill()
    run = running.end("failed")
    assert run.last_word.cause == "RankLost"
    assert run.why().startswith(f"Rank {rank} (process {running.ranks[rank].pid}, cpu) was killed by SIGKILL")


@pytest.mark.slow
@pytest.mark.parametrize("other_is_frozen", [False, True])
def test_a_killed_rank_0_is_named_and_takes_the_others_with_it(supervised, other_is_frozen):
    running = RunningRanks(supervised)
    if other_is_frozen:
        running.ranks[1].suspend()
    running.ranks[0].kill()
    run = running.end("failed")
    assert run.last_word.cause == "WorkerLost"
    assert "rank 0, which leads the others: its process was killed by SIGKILL" in run.why()


@pytest.mark.slow
def test_a_frozen_rank_is_named_and_no_process_is_left(supervised):
    running = RunningRanks(supervised)
    running.ranks[1].suspend()
    run = running.end("failed")
    assert run.last_word.cause == "RankLost"
    assert run.why().startswith(f"Rank 1 (process {running.ranks[1].pid}, cpu) did not respond for ")


@pytest.mark.slow
def test_a_frozen_rank_0_is_named_by_another_and_no_process_is_left(supervised):
    running = RunningRanks(supervised)
    running.ranks[0].suspend()
    run = running.end("failed")
    assert run.last_word.cause == "WorkerLost"
    assert f"Rank 0 (process {running.ranks[0].pid}, cpu) did not respond for " in run.why()


@pytest.mark.slow
def test_a_run_whose_ranks_are_all_frozen_for_a_while_goes_on(supervised):
    """As when a machine sleeps or a container is paused: no rank was silent while the others were running."""
    running = RunningRanks(supervised)
    for process in running.ranks:
        process.suspend()
    time.sleep(3)
    for process in reversed(running.ranks):
        process.resume()
    running.run.refresh()
    steps = len(running.run.steps)
    supervised.wait(lambda: running.run.refresh() is not None and len(running.run.steps) > steps + 100, "more steps")
    supervised.client.cancel(running.run.run_id)
    running.end("cancelled")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_cancelling_stops_all_ranks_at_once(supervised, strategy):
    running = RunningRanks(supervised, 2, f"parallel.strategy={strategy}")
    supervised.client.cancel(running.run.run_id, reason="enough")
    assert running.end("cancelled").why() == "enough"


@pytest.mark.slow
def test_cancelling_stops_ranks_that_are_frozen(supervised):
    running = RunningRanks(supervised, 2, "parallel.timeout_s=60")
    running.ranks[1].suspend()
    supervised.client.cancel(running.run.run_id, reason="enough")
    assert running.end("cancelled").why() == "enough"


@pytest.mark.slow
def test_the_next_supervisor_adopts_a_run_of_ranks_and_it_finishes(own_supervised):
    supervised = own_supervised
    running = RunningRanks(supervised, 2, "budget.seconds=2")
    supervised.process.kill()
    supervised.client.wake()
    assert running.end("finished").summary().train_seconds >= 2


def breaks(config, folder, link):
    """Run by the other ranks in the place of `follow`: one of them fails."""
    if link.rank == 2:
        raise ZeroDivisionError("our own bug")
    link.next_order()
    time.sleep(60)


@pytest.mark.process
def test_an_exception_in_a_rank_ends_the_run_with_its_traceback(tmp_path):
    running = RankProcesses(with_overrides(RunConfig(), ranks(3)), tmp_path, breaks)
    try:
        until = time.monotonic() + 20
        while running.lost is None and time.monotonic() < until:
            time.sleep(0.01)
        failed = worker._failed(running.root_cause(EOFError()), tmp_path, step=7)
        assert failed.message == "Rank 2 failed with ZeroDivisionError: our own bug"
        assert failed.cause == "RankLost"
        assert "in breaks" in failed.detail
    finally:
        running.close()
    assert not any(map(psutil.pid_exists, running.pids))
    assert list(tmp_path.iterdir()) == []


def never_joins(config, folder, link):
    """Run by the other rank in the place of `follow`: it joins the group, but makes no collective."""
    RankGroup(config, link.rank, link.rendezvous, link.heartbeats)
    time.sleep(60)


@pytest.mark.process
def test_a_rank_that_keeps_the_others_waiting_is_named(tmp_path):
    config = with_overrides(RunConfig(), [*ranks(2), "parallel.timeout_s=1"])
    running = RankProcesses(config, tmp_path, never_joins)
    try:
        group = RankGroup(config, 0, running.rendezvous, running.heartbeats, running)
        running.heartbeats.steps[0] = 5
        with pytest.raises(RuntimeError) as late:
            group.add_up(torch.zeros(1))
        cause = running.root_cause(late.value)
        assert isinstance(cause, RankLost)
        assert f"Rank 1 (process {running.pids[0]}, cpu) is at step 0, the furthest at 5." in cause.message
        assert "parallel.timeout_s=1" in cause.fix
    finally:
        running.close()
    assert not any(map(psutil.pid_exists, running.pids))


@pytest.mark.process
def test_a_run_of_ranks_that_is_closed_leaves_no_process_whatever_its_ranks_do(tmp_path):
    running = RankProcesses(with_overrides(RunConfig(), ranks(3)), tmp_path, lambda *_: time.sleep(600))
    began = time.monotonic()
    running.close()
    assert time.monotonic() - began < 60  # they would sleep for ten minutes
    assert not any(map(psutil.pid_exists, running.pids))


@pytest.mark.slow
def test_what_an_earlier_try_left_of_its_rendezvous_does_no_harm(supervised):
    config = with_overrides(PRESETS["digits-mlp"].config, [*SAME, *ranks(2)])
    run_id = supervised.store.create(config)
    for name in (".rendezvous", ".rendezvous-0123456789abcdef"):
        (supervised.store.folder(run_id) / name).write_bytes(b"\x01\x00\x00\x00\x00\x00\x00\x00stale")
    supervised.client.wake()
    assert supervised.until(run_id, *TERMINAL).status == "finished"


@pytest.mark.slow
def test_a_rank_that_runs_out_of_memory_says_so(supervised):
    running = RunningRanks(supervised, 2, "model.hidden=512,512")
    running.ranks[1].rlimit(psutil.RLIMIT_DATA, (1, 1))
    run = running.end("failed")
    assert run.last_word.cause == "OutOfMemory"
    assert run.why().startswith("Rank 1: The run ran out of memory")
    assert "in rank 1" in run.last_word.detail
    assert "in backward_share" in run.last_word.detail


@pytest.mark.slow
@pytest.mark.process
def test_nothing_listens_beyond_loopback_whatever_the_environment_says(tmp_path, monkeypatch):
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family == socket.AF_INET and a.address != "127.0.0.1" for a in addresses):
            monkeypatch.setenv("GLOO_SOCKET_IFNAME", name)
    supervised = Supervised(tmp_path / "store")
    try:
        running = RunningRanks(supervised)
        for process in running.ranks:
            addresses = {c.laddr.ip for c in process.net_connections() if c.laddr}
            assert addresses == {"127.0.0.1"}
        supervised.client.cancel(running.run.run_id)
        running.end("cancelled")
    finally:
        supervised.end()
