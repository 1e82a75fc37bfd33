"""A driver that is missing, fails or hangs is a reason in words, and nothing waits for it."""

import contextlib
import os
import threading
import time

import pynvml
import pytest

from engine.hardware import energy_counters, probe, sampler
from engine.hardware.nvml import Watched
from tests.fake_nvml import FakeGpu, FakeNvml


class Stuck(FakeNvml):
    """Functions that return only when they are let go, as with a GPU that fell off the bus."""

    def __init__(self, *functions):
        super().__init__(FakeGpu())
        self.functions, self.let_go, self.calls = set(functions), threading.Event(), 0

    def __getattribute__(self, name):
        if name.startswith("nvml") and name in super().__getattribute__("functions"):
            return self.hang
        return super().__getattribute__(name)

    def __getattr__(self, name):
        return self.hang if name in self.functions else super().__getattr__(name)

    def hang(self, *_):
        self.calls += 1
        self.let_go.wait(60)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)


@pytest.fixture
def stuck():
    made = []

    def make(*functions):
        made.append(Stuck(*functions))
        return made[-1], Watched(made[-1], init_s=0.2, call_s=0.2)

    yield make
    for nvml in made:
        nvml.let_go.set()


def test_results_and_errors_of_nvml_are_passed_on():
    watched = Watched(FakeNvml(FakeGpu(errors={"nvmlDeviceGetName": pynvml.NVML_ERROR_NOT_SUPPORTED})))
    machine = probe.probe(nvml=watched, torch_version="2.13.0+cu130", environ={})
    assert [gpu.name for gpu in machine.gpus] == ["NVIDIA GPU"]
    assert machine.gpus[0].driver == "580.159.03"


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_driver_that_hangs_is_no_gpu_and_says_why(stuck, function):
    _, watched = stuck(function)
    machine = probe.probe(nvml=watched, environ={})
    assert (machine.gpus, machine.gpu_reason) == ((), "The NVIDIA driver does not answer: Timeout.")


def test_while_one_call_hangs_the_others_fail_at_once_and_are_not_made(stuck):
    nvml, watched = stuck("nvmlInit")
    for _ in range(50):
        probe.probe(nvml=watched, environ={})
    assert nvml.calls == 1


def test_a_driver_that_comes_back_is_asked_again(stuck):
    nvml, watched = stuck("nvmlInit")
    assert probe.probe(nvml=watched, environ={}).gpus == ()
    nvml.functions.clear()
    nvml.let_go.set()
    until = time.monotonic() + 10
    while not probe.probe(nvml=watched, environ={}).gpus and time.monotonic() < until:
        time.sleep(0.01)
    assert len(probe.probe(nvml=watched, environ={}).gpus) == 1


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetUtilizationRates"]
)
def test_a_reading_that_hangs_mid_run_becomes_none_with_its_reason_and_the_run_goes_on(stuck, function):
    nvml, watched = stuck()
    samples = []
    energy = energy_counters.EnergyMeter("cuda:0", nvml=watched)
    energy.start()
    with contextlib.ExitStack() as stack:
        readers = sampler.open_readers("cuda:0", time.perf_counter, stack, nvml=watched)
        beats = sampler.Sampler("cuda:0", time.perf_counter, samples.append, energy=energy, readers=readers)
        beats.beat(readers)
        nvml.functions.add(function)
        beats.beat(readers)
        beats.beat(readers)
        joules, why = energy.stop()
    assert samples[0].readings["gpu_power_w"] == 250.0
    assert samples[2].readings["process_memory_bytes"] > 0
    assert samples[2].readings["gpu_temperature_c"] is None
    said = samples[1].missing | samples[2].missing
    assert "Timeout" in said["gpu_temperature_c"]
    assert (joules, "Timeout" in why) == (None, True)


@pytest.mark.process
def test_a_forked_process_has_a_thread_of_its_own():
    watched = Watched(FakeNvml(FakeGpu()))
    assert watched.nvmlDeviceGetCount() == 1
    child = os.fork()
    if not child:
        os._exit(0 if watched.nvmlDeviceGetCount() == 1 else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
