"""The devices and memory of this machine, and what a run can use of them."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import psutil
import pynvml
import pytest

from engine.common.errors import DeviceError
from engine.hardware import probe as hardware_probe
from engine.hardware.probe import (
    ABILITIES,
    GpuDevice,
    Machine,
    allowed_cores,
    as_json,
    check_device,
    device_choices,
    environment,
    free_memory_bytes,
)
from tests.fake_nvml import FakeGpu, FakeNvml

NO_DRIVER = FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
TWO_GPUS = FakeNvml(FakeGpu(uuid="GPU-aaaa1111", name="NVIDIA A"), FakeGpu(uuid="GPU-bbbb2222", name="NVIDIA B"))
CUDA = "2.13.0+cu130"


def probe(nvml: FakeNvml, *, root: Path = Path("/"), torch_version: str = CUDA, **environ: str) -> Machine:
    return hardware_probe.probe(nvml=nvml, root=root, environ=environ, torch_version=torch_version)


def write(root: Path, **files: str) -> None:
    """Files under a fake root; `__` in a name stands for a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# --- GPUs ----------------------------------------------------------------------------------------------------------


def test_a_machine_without_a_driver_says_why_it_has_no_gpu():
    machine = probe(NO_DRIVER)
    assert machine.gpus == ()
    assert machine.gpu_reason == "No NVIDIA driver on this machine (libnvidia-ml.so was not found)."


def test_a_driver_that_does_not_answer_is_not_a_missing_driver():
    machine = probe(FakeNvml(init_error=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH))
    assert machine.gpu_reason == "The NVIDIA driver does not answer: RM has detected an NVML/RM version mismatch."


def test_a_gpu_is_described_in_our_units():
    assert probe(FakeNvml(FakeGpu())).gpus == (GpuDevice(0, "NVIDIA H200", 143_771 << 20, "580.159.03", "9.0", 700.0),)


def test_a_field_the_gpu_does_not_have_is_unknown_and_hides_no_other():
    gpu = FakeGpu(errors={"nvmlDeviceGetPowerManagementLimit": pynvml.NVML_ERROR_NOT_SUPPORTED})
    (found,) = probe(FakeNvml(gpu)).gpus
    assert (found.power_limit_w, found.compute_capability) == (None, "9.0")


def test_nvml_is_closed_again():
    nvml = FakeNvml(FakeGpu())
    probe(nvml)
    free_memory_bytes("cuda:0", nvml=nvml, environ={})
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("0,1", ["NVIDIA A", "NVIDIA B"]),
        ("1,0", ["NVIDIA B", "NVIDIA A"]),
        ("1", ["NVIDIA B"]),
        ("GPU-bbbb", ["NVIDIA B"]),
        ("GPU-bbbb2222,GPU-aaaa1111", ["NVIDIA B", "NVIDIA A"]),
        ("GPU-", []),  # fits both
        ("1,-1,0", ["NVIDIA B"]),  # nothing is visible after an invalid entry
        ("1,7,0", ["NVIDIA B"]),
        ("0,0", []),  # a repeated entry hides everything
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_devices_are_counted_as_cuda_visible_devices_says(visible, names):
    assert [gpu.name for gpu in probe(TWO_GPUS, CUDA_VISIBLE_DEVICES=visible).gpus] == names


def test_hidden_gpus_are_a_reason_without_their_identity():
    machine = probe(TWO_GPUS, CUDA_VISIBLE_DEVICES="GPU-cccc3333")
    assert machine.gpu_reason == "CUDA_VISIBLE_DEVICES hides every GPU of this machine (it has 2)."


def test_free_memory_is_that_of_the_visible_device():
    nvml = FakeNvml(FakeGpu(), FakeGpu(uuid="GPU-bbbb2222", total=100, used=30))
    assert free_memory_bytes("cuda:0", nvml=nvml, environ={"CUDA_VISIBLE_DEVICES": "1"}) == 70
    assert free_memory_bytes("cuda:1", nvml=nvml, environ={"CUDA_VISIBLE_DEVICES": "1"}) is None


# --- choosing a device ---------------------------------------------------------------------------------------------


def test_the_devices_to_choose_from_are_the_cpu_and_the_visible_gpus():
    assert device_choices(probe(TWO_GPUS)) == ["cpu", "cuda:0", "cuda:1"]


def test_a_device_that_is_not_here_is_refused_with_the_choices():
    with pytest.raises(DeviceError) as caught:
        check_device("cuda:9", probe(TWO_GPUS))
    assert str(caught.value) == "device=cuda:9 is not on this machine. Choose from cpu, cuda:0, cuda:1."


def test_a_machine_without_gpus_says_why_when_it_refuses_one():
    with pytest.raises(DeviceError, match=r"cuda:0 is not on this machine\. No NVIDIA driver .* Choose from cpu\.$"):
        check_device("cuda:0", probe(NO_DRIVER))


def test_a_pytorch_without_cuda_cannot_use_the_gpu_that_is_here():
    machine = probe(TWO_GPUS, torch_version="2.13.0+cpu")
    with pytest.raises(
        DeviceError, match=r"cuda:0 cannot be used here\. .*PyTorch 2\.13\.0\+cpu is built without CUDA"
    ):
        check_device("cuda:0", machine)


def test_the_cpu_is_always_a_device():
    check_device("cpu", probe(NO_DRIVER))


# --- CPU and memory ------------------------------------------------------------------------------------------------


def test_the_cpu_is_described_by_the_kernel(tmp_path):
    write(tmp_path, proc__cpuinfo="model name\t: AMD EPYC 7763\nflags\t\t: fpu sse2 avx2 avx512f\n")
    cpu = probe(NO_DRIVER, root=tmp_path).cpu
    assert (cpu.name, cpu.isa) == ("AMD EPYC 7763", ("avx2", "avx512f"))
    assert [cpu.can(ability) for ability in ABILITIES] == [False, False, False]


@pytest.mark.parametrize(
    ("cpuinfo", "abilities"),
    [
        ("flags : avx2 avx_vnni avx512_bf16", [True, True, False]),
        ("flags : avx2 amx_tile amx_int8 avx512_fp16", [True, False, True]),
        ("Features : fp asimd asimdhp asimddp sve i8mm bf16", [True, True, True]),  # Arm
        ("Features : fp asimd crc32", [False, False, False]),
        ("processor : 0", [None, None, None]),
        ("", [None, None, None]),
    ],
)
def test_what_a_cpu_can_do_is_known_only_where_the_system_lists_its_flags(tmp_path, cpuinfo, abilities):
    write(tmp_path, proc__cpuinfo=f"{cpuinfo}\n")
    machine = probe(NO_DRIVER, root=tmp_path)
    assert [machine.cpu.can(ability) for ability in ABILITIES] == abilities
    facts = environment(machine, "cpu")
    assert [facts[f"cpu_{ability}"] for ability in ABILITIES] == abilities
    assert (facts["cpu_isa"] is None) == ("not known" in machine.cpu.isa_in_words) == (abilities[0] is None)


def test_a_cpu_the_kernel_does_not_name_still_has_a_name(tmp_path):
    assert probe(NO_DRIVER, root=tmp_path).cpu.name == (platform.processor() or platform.machine())


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", None), ("150000 100000", 1), ("50000 100000", 1)])
def test_a_cpu_quota_leaves_whole_cores(tmp_path, quota, cores):
    write(tmp_path, proc__self__cgroup="0::/\n", **{"sys__fs__cgroup__cpu.max": quota})
    assert probe(NO_DRIVER, root=tmp_path).cpu.usable_cores == (cores or len(allowed_cores()))


def test_an_old_cgroup_limits_cores_too(tmp_path):
    files = {
        "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "100000\n",
        "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000\n",
    }
    write(tmp_path, proc__self__cgroup="1:cpu,cpuacct:/job\n", **files)  # the container sees only the mount's root
    assert probe(NO_DRIVER, root=tmp_path).cpu.usable_cores == 1


def test_an_old_cgroup_of_another_controller_limits_no_cores(tmp_path):
    files = {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}
    write(tmp_path, **{f"sys__fs__cgroup__cpu__other__{name}": text for name, text in files.items()})
    write(tmp_path, proc__self__cgroup="4:memory:/other\n1:cpu:/\n")
    assert probe(NO_DRIVER, root=tmp_path).cpu.usable_cores == len(allowed_cores())


def test_a_memory_limit_counts_where_it_is_less_than_the_machine_has(tmp_path):
    files = {
        "memory.max": "1000000",
        "memory.current": "400000",
        "memory.stat": "active_file 9\ninactive_file 100000\n",
    }
    write(tmp_path, proc__self__cgroup="0::/job/step\n", **{f"sys__fs__cgroup__job__{k}": v for k, v in files.items()})
    assert probe(NO_DRIVER, root=tmp_path).memory_bytes == 1_000_000
    assert free_memory_bytes("cpu", root=tmp_path) == 700_000  # unused file pages are given up on demand


def test_an_old_cgroup_without_a_limit_is_no_limit(tmp_path):
    files = {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "400000"}
    write(tmp_path, proc__self__cgroup="4:memory:/\n", **{f"sys__fs__cgroup__memory__{k}": v for k, v in files.items()})
    assert probe(NO_DRIVER, root=tmp_path).memory_bytes == psutil.virtual_memory().total


# --- what is told --------------------------------------------------------------------------------------------------


def test_the_environment_of_a_run_names_its_own_device():
    environment = hardware_probe.environment(probe(TWO_GPUS), "cuda:1")
    assert (environment["device"], environment["gpu_driver"]) == ("NVIDIA B", "580.159.03")


def test_the_environment_of_a_cpu_run_has_no_gpu():
    environment = hardware_probe.environment(probe(TWO_GPUS), "cpu")
    assert environment["device"] == environment["cpu"]
    assert not [key for key in environment if key.startswith("gpu")]


def test_no_field_identifies_a_gpu():
    machine = probe(TWO_GPUS)
    told = json.dumps([as_json(machine), hardware_probe.environment(machine, "cuda:0")])
    assert not [gpu.uuid for gpu in TWO_GPUS.gpus if gpu.uuid in told]
