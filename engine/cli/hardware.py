"""`python -m engine hardware` and `calibrate`: the hardware, its present readings, and its measured peaks."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import asdict
from typing import Any

from engine.cli import cards, common, results
from engine.common import units
from engine.common.jsontext import json_text
from engine.common.sanitize import visible
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.hardware import gpus, probe
from engine.hardware.history import parse_interval
from engine.hardware.monitor import METRICS, Monitor, Snapshot, metric_of
from engine.hardware.sampler import beats
from engine.measurement import calibration
from engine.runtime.client import Client

_FIRST_READING_S = 0.5


def register(add: common.Adder) -> None:
    """Add the commands."""
    calibrating = add("calibrate", calibrate_command, "measure FLOP/s, bandwidth and overheads of this machine")
    calibrating.add_argument("--device", default="cpu", help="cpu (default), or cuda:i")
    machine = add("hardware", hardware_command, "hardware of this machine, and its present readings")
    machine.add_argument("--watch", action="store_true", help="print one line per reading until Ctrl-C")
    machine.add_argument(
        "--interval", default="1", metavar="SECONDS", help="time between readings, 0.25 to 10 (default %(default)s)"
    )


def hardware_command(a: argparse.Namespace) -> int:
    """Print the hardware and its readings, once or until Ctrl-C."""
    interval_s = parse_interval(a.interval)
    machine = probe.probe()
    with contextlib.closing(Monitor(dict)) as monitor:
        snapshot = _readings_after(monitor, min(interval_s, _FIRST_READING_S))
        if a.json:
            print(json_text(probe.as_json(machine) | _as_json(snapshot)), flush=True)
        else:
            _print_machine(machine)
            print_snapshot(snapshot)
        for _ in beats(time.monotonic, _sleep, interval_s) if a.watch else ():
            snapshot = monitor.read()
            print(json_text(_as_json(snapshot)) if a.json else monitor_line(snapshot), flush=True)
    return common.OK


def _readings_after(monitor: Monitor, seconds: float) -> Snapshot:
    monitor.read()  # busy times and rates are differences from this reading
    time.sleep(seconds)
    return monitor.read()


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _as_json(snapshot: Snapshot) -> dict[str, Any]:
    processes = [asdict(process) for process in snapshot.processes]
    return {"at": snapshot.at, "readings": snapshot.readings, "missing": snapshot.missing, "gpu_processes": processes}


def _print_machine(machine: probe.Machine) -> None:
    print(f"{visible(machine.cpu.name)}: {machine.cpu.usable_cores} usable cores, {machine.cpu.isa_in_words}")
    print(f"{units.nbytes(machine.memory_bytes)} memory, {units.nbytes(machine.memory_available_bytes)} available")
    for gpu in machine.gpus:
        print(
            f"cuda:{gpu.index}  {visible(gpu.name)}  {units.nbytes(gpu.memory_bytes)}  driver {visible(gpu.driver or 'unknown')}"
        )
    if machine.gpu_reason:
        print(f"No GPU: {visible(machine.gpu_reason)}")


def print_snapshot(snapshot: Snapshot) -> None:
    """Print a line per reading, then the readings that are not available, grouped by reason."""
    print("\nNow:")
    for name, value in snapshot.readings.items():
        if value is not None:
            print(f"  {_title(name):36} {reading_in_words(name, value)}")
    reasons: dict[str, list[str]] = {}
    for name, reason in snapshot.missing.items():
        if metric_of(name) in METRICS:
            reasons.setdefault(reason, []).append(_title(name))
    if reasons:
        print("\nNot available here:")
    for reason, titles in reasons.items():
        print(f"  {', '.join(titles)}: {reason}")


def reading_in_words(column: str, value: float) -> str:
    """A reading as text with its unit."""
    if metric_of(column) == "gpu.throttle_bits":
        return gpus.throttle_words(int(value)) or "nothing"
    return units.reading(value, METRICS[metric_of(column)].unit)


def _title(column: str) -> str:
    title, device = METRICS[metric_of(column)].title, column.partition(".")[0]
    if device.startswith("core"):
        return f"{title} {device[4:]}"
    return f"GPU {device[3:]}: {title}" if device.startswith("gpu") else title


def monitor_line(snapshot: Snapshot) -> str:
    """The main readings as one line for a terminal."""
    readings = snapshot.readings

    def part(title: str, name: str) -> str:
        value = readings.get(name)
        return f"{title} {units.UNKNOWN if value is None else units.reading(value, METRICS[metric_of(name)].unit)}"

    parts = [part("CPU", "cpu.busy_percent"), part("memory", "memory.used_bytes"), part("load", "cpu.load_1min")]
    for gpu in sorted(
        {name.partition(".")[0] for name in readings if name.startswith("gpu")}, key=lambda g: int(g[3:])
    ):
        parts += [part(f"GPU {gpu[3:]}", f"{gpu}.utilization_percent"), part("", f"{gpu}.power_w").strip()]
        parts += [part("", f"{gpu}.memory_used_bytes").strip(), part("", f"{gpu}.temperature_c").strip()]
    return f"{time.strftime('%H:%M:%S', time.localtime(snapshot.at))}  {'  '.join(parts)}"


def calibrate_command(a: argparse.Namespace) -> int:
    """Calibrate a device as a run of its own, with every number of threads up to the usable cores."""
    store, machine = common.store_of(a), probe.probe()
    probe.check_device(a.device, machine)
    threads = machine.cpu.usable_cores if a.device == "cpu" else 1
    config = with_overrides(preset_config("calibrate"), [f"device={a.device}", f"threads={threads}"])
    if not a.json:
        about = units.duration(calibration.predicted_seconds(threads))
        print(
            f"Takes about {about} (estimated), longer on a busy machine. It starts when no other run is running.",
            file=sys.stderr,
        )
    run = common.run_to_its_end(Client(store), config, name="Calibration", as_json=a.json)
    if a.json:
        common.print_why(run)
        print(json_text(results.of_run(run)))
    else:
        print(cards.card(run))
    return common.OK if run.status == "finished" else common.FAILED
