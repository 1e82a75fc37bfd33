"""The monitor in a real supervisor and in a terminal."""

from __future__ import annotations

import json
import re

import pytest

from engine.access import settings
from engine.access.policy import AccessError, Actor
from engine.cli.hardware import monitor_line, print_snapshot
from engine.common.errors import ConfigError
from engine.hardware.history import load_settings
from engine.hardware.readings_log import CURRENT, Reader
from engine.runtime.client import Client
from tests.fake_nvml import FakeGpu
from tests.hardware.fake_machine import GPM


def readings_of(supervised):
    """Reads the log of a supervisor that has begun to write it."""
    reader = Reader(supervised.store.root)
    supervised.wait(lambda: (supervised.store.root / CURRENT).exists() and reader.read().newest > 2, "readings")
    return reader.read


def test_a_supervisor_keeps_the_readings_and_knows_its_runs(supervised):
    read = readings_of(supervised)
    run = supervised.running()
    supervised.wait(lambda: any(s["run_id"] == run.run_id for s in read().notes["spans"]), "its span")
    supervised.client.cancel(run.run_id)
    supervised.until(run.run_id, "cancelled")
    supervised.wait(lambda: all(s["end"] for s in read().notes["spans"] if s["run_id"] == run.run_id), "its end")
    found = read()
    assert found.rows[:, 1 + found.columns.index("own.cpu_percent")].max() > 20


def test_a_client_sets_the_interval_through_the_supervisor(supervised):
    readings_of(supervised)
    supervised.client.set_monitor_interval(1)
    supervised.wait(lambda: load_settings(supervised.store.root).interval_s == 1.0, "the interval")
    supervised.client.set_monitor_interval(0.25)
    supervised.wait(lambda: load_settings(supervised.store.root).interval_s == 0.25, "the interval")
    with pytest.raises(ConfigError):
        supervised.client.set_monitor_interval(0.001)


@pytest.mark.parametrize("default", ["viewer", "runner"])
def test_only_an_admin_can_set_the_interval(store, default):
    path = store.root / settings.FILE
    path.write_text(f'[sign_in]\nmethod = "oidc"\nallowed = ["a@b.c"]\n[roles]\ndefault = "{default}"\n')
    path.chmod(0o600)
    with pytest.raises(AccessError, match="Only an admin can set how often"):
        Client(store, Actor("oidc", "a@b.c")).set_monitor_interval(1)


def test_the_command_prints_one_snapshot(engine):
    out, _ = engine("hardware").communicate(timeout=120)
    assert "Memory used" in out
    assert "No NVIDIA driver" in out
    out, _ = engine("hardware", "--json").communicate(timeout=120)
    said = json.loads(out.splitlines()[-1])
    assert said["readings"]["memory.used_bytes"] > 1e6
    assert set(said["missing"]) >= {name for name, value in said["readings"].items() if value is None}
    assert {"cpu", "gpus", "memory_bytes"} <= said.keys()


def test_the_terminal_describes_a_gpu(machine, capsys):
    snapshot = machine.second(machine.monitor(FakeGpu(gpm=GPM, throttle=0x4), FakeGpu(uuid="GPU-b")))
    print_snapshot(snapshot)
    text = re.sub(" +", " ", capsys.readouterr().out)
    assert " GPU 0: Clock limited by the power limit\n" in text
    assert " GPU 0: SMs active 42 %\n" in text
    assert "GPU 1: SMs active, GPU 1: Tensor cores active, GPU 1: Memory bandwidth: NVML can read no" in text
    assert monitor_line(snapshot).endswith("GPU 0 87 %  250.0 W  1.00 GiB  51 °C  GPU 1 87 %  250.0 W  1.00 GiB  51 °C")


def test_watching_goes_on_until_ctrl_c(engine):
    process = engine("hardware", "--watch", "--interval", "0.25")
    lines = (line for line in process.stdout if re.match(r"\d\d:\d\d:\d\d  CPU \d+ %  memory ", line))
    assert next(lines) and next(lines)  # they may say the same
    process.send_signal(2)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_an_absurd_rate_is_refused_from_the_terminal_too(engine):
    process = engine("hardware", "--watch", "--interval", "0.0001")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "is not between" in err) == (2, True)
