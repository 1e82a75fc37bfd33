"""When the supervisor starts data-parallel runs beside other runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.lifecycle import SeedBlock
from engine.hardware import probe
from engine.runtime.supervisor import Supervisor
from tests.pytorch.test_data_parallel import ranks


class Slots:
    """A supervisor of a machine with `cores` cores; its runs last until `end`."""

    def __init__(self, store, cores):
        cpu = replace(probe.probe().cpu, usable_cores=cores)
        self.store, self.jobs = store, {}
        self.supervisor = Supervisor(store, self, machine=replace(probe.probe(), cpu=cpu))

    def start(self, *folders):
        job = self.jobs[folders[0].name] = EndlessJob()
        return job

    def ask(self, *assignments, group=None, heat=None):
        return self.store.create(with_overrides(RunConfig(), assignments), group=group, heat=heat)

    def running(self):
        self.supervisor.tick()
        return {run_id for run_id, job in self.jobs.items() if job.alive}

    def end(self, run_id):
        self.jobs[run_id].alive = False


class EndlessJob:
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


def test_ranks_get_all_their_gpus_or_none_and_no_younger_run_overtakes_them(slots):
    machine = slots(4)
    first = machine.ask("device=cuda:1")
    parallel = machine.ask("device=cuda:0", "parallel.num_ranks=2")
    assert machine.running() == {first}
    younger, elsewhere = machine.ask("device=cuda:0"), machine.ask("device=cuda:2")
    assert machine.running() == {first, elsewhere}
    machine.end(first)
    assert machine.running() == {parallel, elsewhere}
    machine.end(parallel)
    assert machine.running() == {elsewhere, younger}


def test_ranks_on_the_cpu_take_a_core_for_each_thread_of_each(slots):
    machine = slots(4)
    first = machine.ask("parallel.num_ranks=2")
    second = machine.ask("threads=2")
    third = machine.ask()
    assert machine.running() == {first, second}
    machine.end(first)
    assert machine.running() == {second, third}


def test_a_run_of_more_ranks_than_cores_runs_alone(slots):
    machine = slots(2)
    first, parallel, last = machine.ask(), machine.ask(*ranks(4)), machine.ask()
    assert machine.running() == {first}
    machine.end(first)
    assert machine.running() == {parallel}
    machine.end(parallel)
    assert machine.running() == {last}


def test_runs_of_ranks_in_one_group_never_run_at_the_same_time(slots):
    machine = slots(8)
    seed_blocks = [SeedBlock(id=f"{number} cpu", lanes=1) for number in range(2)]
    first, second = (
        machine.ask(f"parallel.num_ranks={n}", group="study", heat=heat)
        for n, heat in zip((1, 2), seed_blocks, strict=True)
    )
    assert machine.running() == {first}
    machine.end(first)
    assert machine.running() == {second}
