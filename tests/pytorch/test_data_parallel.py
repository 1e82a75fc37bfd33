"""Data-parallel training: what may be asked for, that it computes what one process would, and how it fails."""

from __future__ import annotations

import functools
import socket
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file

from engine.common.errors import ConfigError, DeviceError, RankLost
from engine.config.parsing import overrides_from, with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.events.base import TERMINAL
from engine.events.lifecycle import SeedBlock
from engine.events.training import Ranks
from engine.hardware import probe
from engine.planning import planner
from engine.pytorch.distributed.data_parallel import RankGroup
from engine.pytorch.distributed.processes import RankProcesses
from engine.runtime import worker
from engine.runtime.supervisor import Supervisor
from engine.store.store import Submission
from tests.conftest import Supervised
from tests.runtime.test_cancel import is_at_work


def test_a_field_that_came_later_moves_no_fingerprint():
    assert RunConfig().fingerprint == with_overrides(RunConfig(), ["parallel.num_ranks=1"]).fingerprint
    assert RunConfig().fingerprint != with_overrides(RunConfig(), ["parallel.num_ranks=2"]).fingerprint


@pytest.mark.parametrize(
    ("assignments", "devices"),
    [
        ([], ("cpu",)),
        (["parallel.num_ranks=3"], ("cpu", "cpu", "cpu")),
        (["parallel.num_ranks=2", "device=cuda:2"], ("cuda:2", "cuda:3")),
        (
            ["parallel.num_ranks=2", "device=cuda:1", "parallel.devices=cuda:1,cuda:0"],
            ("cuda:1", "cuda:0"),
        ),
        (["parallel.devices=cpu"], ("cpu",)),
    ],
)
def test_each_rank_has_a_device(assignments, devices):
    config = with_overrides(RunConfig(), assignments)
    assert config.devices == devices
    assert config.is_parallel == any(a.startswith("parallel") for a in assignments)
    assert with_overrides(RunConfig(), overrides_from(RunConfig(), config)) == config


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["parallel.num_ranks=65"], "parallel.num_ranks=65 is not allowed. parallel.num_ranks may be a whole number from 1 to 64."),
        (["parallel.num_ranks=2", "parallel.devices=cpu"], "devices names 1 for num_ranks=2"),
        (["parallel.num_ranks=2", "parallel.devices=cpu,cuda:0"], "mixes CPU and GPUs"),
        (["parallel.num_ranks=2", "parallel.devices=cuda:0,cuda:0", "device=cuda:0"], "names a GPU twice"),
        (["parallel.num_ranks=2", "parallel.devices=cuda:0,cuda:1"], "set device=cuda:0"),
        (["parallel.num_ranks=2", "execution=dataloader"], "set execution=eager"),
        (["parallel.num_ranks=2", "execution=compiled"], "set execution=eager"),
        (["parallel.num_ranks=2", "execution=cuda-graph", "device=cuda:0"], "set execution=eager"),
        (["parallel.num_ranks=2", "task=batch-law"], "set num_ranks=1"),
        (["parallel.num_ranks=2", "task=calibrate"], "set num_ranks=1"),
        (["parallel.num_ranks=8", "batch_size=4"], "each rank needs an example"),
        (["parallel.num_ranks=2", "parallel.strategy=fsdp", "optimizer.name=muon"], "set parallel.strategy=ddp"),
        (["parallel.num_ranks=2", "parallel.strategy=fsdp", "checkpoints=5"], "set parallel.strategy=ddp"),
        (["parallel.num_ranks=2", "parallel.strategy=fsdp", "precision=fp16"], "set parallel.strategy=ddp"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_one_sentence(assignments, words):
    with pytest.raises(ConfigError) as refused:
        with_overrides(RunConfig(), assignments)
    assert words in str(refused.value)
    assert str(refused.value).count("\n") == 0


# --- n ranks compute what one computes --------------------------------------------------------------------------------

FAMILIES = {
    "mlp": ["model.hidden=32"],
    "cnn": ["model.family=cnn", "model.width=0.5"],
    "rnn": ["model.family=rnn", "model.size=tiny"],
    "transformer": ["model.family=transformer", "model.size=tiny", "model.patch_size=4"],
    "decoder": [
        "model.family=transformer",
        "model.size=tiny",
        "data=text",
        "source.seq_len=16",
        "evaluate_every=50",
        "optimizer.lr=0.0003",
    ],
}
STEPS = 50
# 61 of 1,438 examples: shares of 31 and 30, and a last batch of 35 within the 50 steps.
SAME = ["batch_size=61", f"budget.steps={STEPS}", "budget.epochs=none", "evaluate_every=25"]


def ranks(number: int, strategy: str = "ddp") -> list[str]:
    """Named one by one, so that a machine with one core runs them, too."""
    return [
        f"parallel.num_ranks={number}",
        f"parallel.strategy={strategy}",
        f"parallel.devices={','.join(['cpu'] * number)}",
    ]


def finished(supervised, *assignments):
    run = supervised.until(supervised.submit(*SAME, *assignments), "finished", "failed")
    assert run.status == "finished", run.why()
    return run


@pytest.fixture(scope="module")
def alone(supervised):
    """The run of one rank for each family, as everybody runs it."""
    return functools.cache(lambda *assignments: finished(supervised, *assignments))


def assert_same_trajectory(run, reference, tolerance=1e-5):
    ours, theirs = run.steps, reference.steps
    assert len(ours["loss"]) == STEPS
    np.testing.assert_array_equal(ours["samples"], theirs["samples"])
    np.testing.assert_allclose(ours["loss"], theirs["loss"], atol=tolerance, rtol=0)
    for name in ("test_loss", "test_accuracy"):
        np.testing.assert_allclose(run.evaluations[name], reference.evaluations[name], atol=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_follow_the_trajectory_of_one(supervised, alone, family, strategy):
    run = finished(supervised, *FAMILIES[family], *ranks(2, strategy))
    assert_same_trajectory(run, alone(*FAMILIES[family]))


TOGETHER = {
    "accumulation": ["grad_accumulation=3", "batch_size=20"],
    "full batch, clipped, averaged": [
        "batch_size=full", "grad_accumulation=2", "max_grad_norm=0.5", "ema_decay=0.9", "optimizer.name=momentum",
        "optimizer.lr=0.1",
    ],
    "activation checkpointing": [
        "model.family=transformer", "model.size=tiny", "model.patch_size=4", "activation_checkpointing=true",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("what", TOGETHER)
def test_three_ranks_do_what_one_does_and_leave_the_same_weights(supervised, alone, what, strategy):
    run, reference = finished(supervised, *TOGETHER[what], *ranks(3, strategy)), alone(*TOGETHER[what])
    assert_same_trajectory(run, reference)
    np.testing.assert_allclose(run.grad_norms["grad_norm"][-1], reference.grad_norms["grad_norm"][-1], rtol=1e-4)
    ours, theirs = (load_file(r.folder / "model.safetensors") for r in (run, reference))
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)


def test_one_rank_alone_runs_through_the_same_wrapper_where_its_device_is_named(supervised, alone):
    run = finished(supervised, *FAMILIES["mlp"], *ranks(1))
    assert_same_trajectory(run, alone(*FAMILIES["mlp"]))
    assert run.started.environment["num_ranks"] == 1
    assert run.ranks


def test_the_historical_wrapper_trains_in_one_process(supervised, alone):
    run = finished(supervised, *FAMILIES["mlp"], *ranks(2, "data-parallel"))
    assert_same_trajectory(run, alone(*FAMILIES["mlp"]))
    assert run.started.environment["backend"] == "threads of one process"
    assert run.ranks == []
    assert any("historical baseline" in warning for warning in planner.check(run.config).warnings)


def test_a_run_of_one_rank_knows_nothing_of_ranks(alone):
    run = alone(*FAMILIES["mlp"])
    assert run.ranks == []
    assert not {"num_ranks", "strategy", "backend"} & set(run.started.environment)


# --- what each rank did -----------------------------------------------------------------------------------------------


def of_ranks(**columns):
    """What two ranks say of ten steps of 10 ms."""
    said = {"step_s": (0.010, 0.010), "communication_s": (0.006, 0.002), "waited_s": (0.005, 0.001)} | columns
    return Ranks(
        elapsed_s=1.0, steps=(1, 10), device=("cpu", "cpu"), cpu_per_wall=(0.5, 0.9), memory_bytes=(1, 1), method="", **said
    )  # fmt: skip


def test_the_rank_the_others_wait_for_is_the_one_that_waits_least():
    assert of_ranks().own_s == pytest.approx((0.005, 0.009))
    assert of_ranks().straggler == 1
    assert of_ranks(waited_s=(0.005, 0.0049)).straggler is None
    assert of_ranks(waited_s=(None, None)).straggler is None


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_every_step_is_in_one_window_of_the_ranks(supervised, strategy):
    run = finished(supervised, *FAMILIES["mlp"], *ranks(2, strategy))
    windows = [said.steps for said in run.ranks]
    assert windows[0][0] == 1
    assert windows[-1][1] == STEPS
    assert all(after[0] == before[1] + 1 for before, after in pairwise(windows))
    for said in run.ranks:
        for step_s, communication_s, waited_s in zip(said.step_s, said.communication_s, said.waited_s, strict=True):
            assert 0 < waited_s <= communication_s < step_s
        assert min(said.memory_bytes) > 10**7
    total = sum(said.step_s[0] * (said.steps[1] - said.steps[0] + 1) for said in run.ranks)
    assert total <= run.summary().train_seconds


# --- what is refused, and who waits -------------------------------------------------------------------------------------


def test_more_ranks_than_cores_are_refused_unless_each_is_named():
    cores = probe.probe().cpu.usable_cores
    with pytest.raises(DeviceError) as refused:
        planner.check(with_overrides(RunConfig(), [f"parallel.num_ranks={cores + 1}"]))
    assert f"asks for {cores + 1} cores, and this machine has {cores} usable cores." in str(refused.value)
    plan = planner.check(with_overrides(RunConfig(), ranks(cores + 1)))
    assert any(f"share {cores} usable cores" in warning for warning in plan.warnings)


def test_more_gpus_than_there_are_are_refused_with_those_there_are(monkeypatch):
    machine = replace(probe.probe(), gpus=tuple(GPU for _ in range(1)), gpu_reason=None)
    monkeypatch.setattr(probe, "probe", lambda: machine)
    with pytest.raises(DeviceError) as refused:
        planner.check(with_overrides(RunConfig(), ["device=cuda:0", "parallel.num_ranks=3"]))
    assert "parallel.num_ranks=3 asks for cuda:1, cuda:2, and on this machine there is cuda:0." in str(refused.value)
    assert "from 1 to 1 on GPUs" in refused.value.fix


GPU = probe.GpuDevice(
    index=0, name="NVIDIA H200", memory_bytes=2**37, compute_capability="9.0", driver="570", power_limit_w=700.0
)


def test_the_memory_of_a_gang_is_that_of_all_ranks_on_a_device():
    alone, two, sharded = (planner.plan(with_overrides(RunConfig(), more)) for more in ([], ranks(2), ranks(2, "fsdp")))
    assert two.weight_bytes == 2 * alone.weight_bytes
    assert sharded.weight_bytes == alone.weight_bytes
    assert (two.batch_size, two.micro_batch, two.of_one_rank().batch_size) == (64, 32, 32)
    assert two.of_one_rank().weight_bytes == alone.weight_bytes
    on_gpus = planner.plan(with_overrides(RunConfig(), ["device=cuda:0", "parallel.num_ranks=2"]), free_bytes=10**10)
    assert on_gpus.weight_bytes == alone.weight_bytes  # on each


def test_runs_of_a_race_take_turns_and_are_no_gangs(supervised):
    gang, single = (with_overrides(PRESETS["digits-mlp"].config, more) for more in (ranks(2), []))
    with pytest.raises(ConfigError, match="cannot be used in a race"):
        supervised.client.submit_seed_blocks([[Submission(gang), Submission(single)]], group="g")


class Slots:
    """A supervisor of a machine with so many cores, whose runs last until they are told to end."""

    def __init__(self, store, cores):
        cpu = replace(probe.probe().cpu, usable_cores=cores)
        self.store, self.jobs = store, {}
        self.supervisor = Supervisor(store, self, machine=replace(probe.probe(), cpu=cpu))

    def start(self, *folders):
        job = self.jobs[folders[0].name] = Endless()
        return job

    def ask(self, *assignments, group=None, heat=None):
        return self.store.create(with_overrides(RunConfig(), assignments), group=group, heat=heat)

    def at_work(self):
        self.supervisor.tick()
        return {run_id for run_id, job in self.jobs.items() if job.alive}

    def end(self, run_id):
        self.jobs[run_id].alive = False


class Endless:
    alive = True

    def is_alive(self):
        return self.alive

    def signal(self, number):
        pass

    def cause_of_death(self):
        return "the test ended it"

    def sentinel(self):
        return None


@pytest.fixture
def slots(store):
    made = []

    def make(cores):
        made.append(Slots(store, cores))
        return made[-1]

    yield make
    for each in made:
        each.supervisor.index.close()


def test_a_gang_gets_all_its_gpus_or_none_and_nobody_younger_overtakes_it(slots):
    machine = slots(4)
    first = machine.ask("device=cuda:1")
    gang = machine.ask("device=cuda:0", "parallel.num_ranks=2")
    assert machine.at_work() == {first}
    younger, elsewhere = machine.ask("device=cuda:0"), machine.ask("device=cuda:2")
    assert machine.at_work() == {first, elsewhere}
    machine.end(first)
    assert machine.at_work() == {gang, elsewhere}
    machine.end(gang)
    assert machine.at_work() == {elsewhere, younger}


def test_ranks_on_the_cpu_take_a_core_for_each_thread_of_each(slots):
    machine = slots(4)
    first = machine.ask("parallel.num_ranks=2")
    second = machine.ask("threads=2")
    third = machine.ask()
    assert machine.at_work() == {first, second}
    machine.end(first)
    assert machine.at_work() == {second, third}


def test_a_gang_of_more_ranks_than_cores_runs_by_itself(slots):
    machine = slots(2)
    first, gang, last = machine.ask(), machine.ask(*ranks(4)), machine.ask()
    assert machine.at_work() == {first}
    machine.end(first)
    assert machine.at_work() == {gang}
    machine.end(gang)
    assert machine.at_work() == {last}


def test_gangs_of_one_group_that_are_heats_never_run_beside_each_other(slots):
    machine = slots(8)
    seed_blocks = [SeedBlock(id=f"{number} cpu", lanes=1) for number in range(2)]
    first, second = (
        machine.ask(f"parallel.num_ranks={n}", group="study", heat=heat)
        for n, heat in zip((1, 2), seed_blocks, strict=True)
    )
    assert machine.at_work() == {first}
    machine.end(first)
    assert machine.at_work() == {second}


# --- faults, each done for real -----------------------------------------------------------------------------------------

PATIENCE = "parallel.timeout_s=3"  # others use this machine, too


class GangAtWork:
    """A run of some ranks that has points, and what a test does to its processes."""

    def __init__(self, supervised, number=2, *assignments):
        self.supervised = supervised
        self.run = supervised.running(*ranks(number), PATIENCE, *assignments)
        leader = psutil.Process(self.run.starting.pid)
        self.ranks = [leader, *sorted(leader.children(), key=lambda p: p.pid)]  # forked in their order
        assert len(self.ranks) == number

    def end(self, *statuses):
        """The run, once it is over; no rank is left, and every point that was shown is there."""
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
    gang = GangAtWork(supervised, 3)
    gang.ranks[rank].kill()
    run = gang.end("failed")
    assert run.last_word.cause == "RankLost"
    assert run.why().startswith(f"Rank {rank} (process {gang.ranks[rank].pid}, cpu) was killed by SIGKILL")


@pytest.mark.slow
@pytest.mark.parametrize("other_is_frozen", [False, True])
def test_a_killed_rank_0_is_named_and_takes_the_others_with_it(supervised, other_is_frozen):
    gang = GangAtWork(supervised)
    if other_is_frozen:
        gang.ranks[1].suspend()
    gang.ranks[0].kill()
    run = gang.end("failed")
    assert run.last_word.cause == "WorkerLost"
    assert "rank 0, which leads the others: its process was killed by SIGKILL" in run.why()


@pytest.mark.slow
def test_a_frozen_rank_is_named_and_no_process_is_left(supervised):
    gang = GangAtWork(supervised)
    gang.ranks[1].suspend()
    run = gang.end("failed")
    assert run.last_word.cause == "RankLost"
    assert run.why().startswith(f"Rank 1 (process {gang.ranks[1].pid}, cpu) gave no sign of life for ")


@pytest.mark.slow
def test_a_frozen_rank_0_is_named_by_another_and_no_process_is_left(supervised):
    gang = GangAtWork(supervised)
    gang.ranks[0].suspend()
    run = gang.end("failed")
    assert run.last_word.cause == "WorkerLost"
    assert f"Rank 0 (process {gang.ranks[0].pid}, cpu) gave no sign of life for " in run.why()


@pytest.mark.slow
def test_a_run_whose_ranks_are_all_frozen_for_a_while_goes_on(supervised):
    """A machine that sleeps, a container that is paused: nobody was silent while the others listened."""
    gang = GangAtWork(supervised)
    for process in gang.ranks:
        process.suspend()
    time.sleep(3)
    for process in reversed(gang.ranks):
        process.resume()
    gang.run.refresh()
    steps = len(gang.run.steps)
    supervised.wait(lambda: gang.run.refresh() is not None and len(gang.run.steps) > steps + 100, "more steps")
    supervised.client.cancel(gang.run.run_id)
    gang.end("cancelled")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_cancelling_stops_all_ranks_at_once(supervised, strategy):
    gang = GangAtWork(supervised, 2, f"parallel.strategy={strategy}")
    supervised.client.cancel(gang.run.run_id, reason="enough")
    assert gang.end("cancelled").why() == "enough"


@pytest.mark.slow
def test_cancelling_stops_ranks_that_are_frozen(supervised):
    gang = GangAtWork(supervised, 2, "parallel.timeout_s=60")
    gang.ranks[1].suspend()
    supervised.client.cancel(gang.run.run_id, reason="enough")
    assert gang.end("cancelled").why() == "enough"


@pytest.mark.slow
def test_the_next_supervisor_adopts_a_gang_and_it_finishes(own_supervised):
    supervised = own_supervised
    gang = GangAtWork(supervised, 2, "budget.seconds=2")
    supervised.process.kill()
    supervised.client.wake()
    assert gang.end("finished").summary().train_seconds >= 2


def breaks(config, folder, link):
    """What another rank does instead of following."""
    if link.rank == 2:
        raise ZeroDivisionError("our own bug")
    link.next_order()
    time.sleep(60)


@pytest.mark.process
def test_an_exception_in_a_rank_ends_the_run_with_its_traceback(tmp_path):
    gang = RankProcesses(with_overrides(RunConfig(), ranks(3)), tmp_path, breaks)
    try:
        until = time.monotonic() + 20
        while gang.lost is None and time.monotonic() < until:
            time.sleep(0.01)
        failed = worker._failed(gang.blame(EOFError()), tmp_path, step=7)
        assert failed.message == "Rank 2 broke off with ZeroDivisionError: our own bug"
        assert failed.cause == "RankLost"
        assert "in breaks" in failed.detail
    finally:
        gang.close()
    assert not any(map(psutil.pid_exists, gang.pids))
    assert list(tmp_path.iterdir()) == []


def tarries(config, folder, link):
    """A rank that is there and beats, and does not come."""
    RankGroup(config, link.rank, link.rendezvous, link.board)
    time.sleep(60)


@pytest.mark.process
def test_a_rank_that_keeps_the_others_waiting_is_named(tmp_path):
    config = with_overrides(RunConfig(), [*ranks(2), "parallel.timeout_s=1"])
    gang = RankProcesses(config, tmp_path, tarries)
    try:
        crew = RankGroup(config, 0, gang.rendezvous, gang.board, gang)
        gang.board.steps[0] = 5
        with pytest.raises(RuntimeError) as late:
            crew.add_up(torch.zeros(1))
        cause = gang.blame(late.value)
        assert isinstance(cause, RankLost)
        assert f"Rank 1 (process {gang.pids[0]}, cpu) is at step 0, the furthest at 5." in cause.message
        assert "parallel.timeout_s=1" in cause.fix
    finally:
        gang.close()
    assert not any(map(psutil.pid_exists, gang.pids))


@pytest.mark.process
def test_a_gang_that_is_closed_leaves_no_process_whatever_its_ranks_do(tmp_path):
    gang = RankProcesses(with_overrides(RunConfig(), ranks(3)), tmp_path, lambda *_: time.sleep(600))
    began = time.monotonic()
    gang.close()
    assert time.monotonic() - began < 60  # they would sleep for ten minutes
    assert not any(map(psutil.pid_exists, gang.pids))


@pytest.mark.slow
def test_what_an_earlier_try_left_of_its_rendezvous_is_in_nobodys_way(supervised):
    config = with_overrides(PRESETS["digits-mlp"].config, [*SAME, *ranks(2)])
    run_id = supervised.store.create(config)
    for name in (".rendezvous", ".rendezvous-0123456789abcdef"):
        (supervised.store.folder(run_id) / name).write_bytes(b"\x01\x00\x00\x00\x00\x00\x00\x00stale")
    supervised.client.wake()
    assert supervised.until(run_id, *TERMINAL).status == "finished"


@pytest.mark.slow
def test_a_rank_that_runs_out_of_memory_says_so(supervised):
    gang = GangAtWork(supervised, 2, "model.hidden=512,512")
    gang.ranks[1].rlimit(psutil.RLIMIT_DATA, (1, 1))
    run = gang.end("failed")
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
        gang = GangAtWork(supervised)
        for process in gang.ranks:
            addresses = {c.laddr.ip for c in process.net_connections() if c.laddr}
            assert addresses == {"127.0.0.1"}
        supervised.client.cancel(gang.run.run_id)
        gang.end("cancelled")
    finally:
        supervised.end()
