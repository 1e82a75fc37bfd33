"""`python -m engine …`: the same engine as the page, for scripts and terminals.

People get a readable card and a progress bar; `--json` prints exactly one JSON document, the last line of stdout.
Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import math
import os
import secrets
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from engine import (
    __version__,
    alerts,
    batch_law,
    calibration,
    cli_infer,
    cli_scale,
    cli_share,
    cost,
    energy,
    figures,
    gpus,
    hardware,
    keys,
    outcome,
    planner,
    races,
    records,
    serving,
    settings,
    split,
    studies,
    units,
)
from engine.checkup import check
from engine.config import RunConfig, describe, parse_config_json, with_overrides
from engine.errors import ConfigError, DeviceError, EngineError, OutOfMemory, StoreError
from engine.monitor import METRICS, Monitor, Snapshot, metric_of
from engine.presets import DEFAULT_PRESET, PRESETS, STUDIES, preset_config
from engine.recorder import parse_interval
from engine.sampler import beats
from engine.store import SORTABLE, Run, Store, json_text, words_of
from engine.supervisor import GRACE_S, IDLE_S, Client, rebuild_index, serve
from engine.text import LONGEST_NAME, clean_name, visible

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_POLL_S = 0.1
_WAKE_EVERY_S = 2.0
_FIRST_READING_S = 0.5
_BAR = 28


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.function(arguments)
        return code
    except (ConfigError, DeviceError, OutOfMemory) as error:
        return _complain(error, arguments, USAGE)
    except EngineError as error:
        return _complain(error, arguments, USAGE if isinstance(error, StoreError) else FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `… | head` closed the pipe
        sys.stderr.close()
        return OK


def _complain(error: EngineError, arguments: argparse.Namespace, code: int) -> int:
    print(visible(str(error)), file=sys.stderr)
    if getattr(arguments, "json", False):
        print(json_text({"error": {"type": type(error).__name__, "message": error.message, "fix": error.fix}}))
    return code


# --- commands ------------------------------------------------------------------------------------------------------


def run_command(a: argparse.Namespace) -> int:
    """Submit one run (or one per seed) and follow it to its end."""
    store = _store(a)
    client = Client(store)
    base = _config(a)
    if not 1 <= a.seeds <= 1000:
        raise ConfigError(f"seeds={a.seeds} is not allowed.", fix="seeds may be a whole number from 1 to 1000.")
    _warn(planner.check(base))
    configs = [with_overrides(base, [f"seed={base.seed + i}"]) for i in range(a.seeds)]
    group = secrets.token_hex(8) if a.seeds > 1 else None
    run_ids: list[str] = []
    try:
        for config in configs:
            with _undisturbed():  # between making a run and knowing its id, Ctrl-C would leave it behind
                run_ids.append(client.submit(config, name=a.name, group=group))
        runs = [_follow(store, client, run_id, quiet=a.json) for run_id in run_ids]
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C leaves none of them running
        for run_id in run_ids:
            client.cancel(run_id, reason="interrupted in the terminal")
        print("\nStopped.", file=sys.stderr)
        if a.json:
            print(
                json_text(
                    {"error": {"type": "KeyboardInterrupt", "message": "Stopped in the terminal."}, "run_ids": run_ids}
                )
            )
        return INTERRUPTED
    if a.json:
        results = [_result(run) for run in runs]
        for run in runs:
            if run.why():
                print(f"{run.run_id} {run.status}: {visible(run.why())}", file=sys.stderr)
        print(json_text({"group_id": group, "runs": results} if group else results[0]))
    else:
        for run in runs:
            print(_card(run))
    return OK if all(run.status == "finished" for run in runs) else FAILED


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, which must be short."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def race_command(a: argparse.Namespace) -> int:
    """Race configurations under equal conditions, one heat per seed, and say who won and how sure it is."""
    store = _store(a)
    client = Client(store)
    lanes, metric, target = _lanes(a)
    if not 1 <= a.seeds <= races.MOST_SEEDS:
        raise ConfigError(
            f"seeds={a.seeds} is not allowed.", fix=f"seeds may be a whole number from 1 to {races.MOST_SEEDS}."
        )
    if a.until_decided is not None and not a.seeds <= a.until_decided <= races.MOST_SEEDS:
        raise ConfigError(
            f"--until-decided {a.until_decided} is not allowed.",
            fix=f"It is the most seeds: from {a.seeds}, those to begin with, to {races.MOST_SEEDS}.",
        )
    outcome.check_target(metric, target)
    group, seeds, number = secrets.token_hex(8), list(range(a.seeds)), 1
    try:
        while True:
            with _undisturbed():
                client.submit_heats(races.heats(lanes, seeds, group), group=group, round=number)
            race = _followed_race(store, client, group, quiet=a.json)
            result = outcome.outcome(race, metric=metric, target=target, baseline=a.baseline)
            stopped = any(run.status in {"cancelled", "interrupted"} for run in race.runs)
            if a.until_decided is None or result.is_decided or stopped or len(race.seeds) >= a.until_decided:
                break
            begun = len(race.seeds)
            seeds, number = list(range(begun, min(begun + _SEEDS_A_ROUND, a.until_decided))), number + 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for row in store.rows(group=group):
            client.cancel(row.run_id, reason="interrupted in the terminal")
        print("\nStopped. What is finished stays.", file=sys.stderr)
        return INTERRUPTED
    if a.json:
        print(json_text(outcome.as_json(race, result)))
    else:
        print("\n".join(outcome.table(result)))
    return OK if all(run.status == "finished" for run in race.runs) else FAILED


_SEEDS_A_ROUND = 2


def compare_command(a: argparse.Namespace) -> int:
    """Lay runs that are there beside each other; those that differ in nothing but the seed are one lane."""
    store = _store(a)
    race = races.of_runs([store.run(store.find(run_id)) for run_id in a.runs])
    assert race, "argparse asks for a run at least"
    races.check_comparable([(lane.label, lane.config) for lane in race.lanes])
    if len(race.lanes) < 2:
        raise ConfigError("These runs are one configuration with several seeds.", fix="Name a run of another one.")
    metric, target = outcome.parse_target(a.target) if a.target else ("test_accuracy", None)
    result = outcome.outcome(race, metric=metric, target=target, baseline=a.baseline)
    print(json_text(outcome.as_json(race, result)) if a.json else "\n".join(outcome.table(result)))
    return OK


def _lanes(a: argparse.Namespace) -> tuple[list[races.Lane], races.Metric, float | None]:
    """The lanes of the arguments, checked, and the target they are to reach."""
    if a.preset and a.lane:
        raise ConfigError(
            "--preset and --lane exclude each other.", fix="Give one of them; --base names a preset for lanes."
        )
    if a.lane:
        base = preset_config(a.base)
        lanes = [races.parse_lane(text, base) for text in a.lane]
        metric: races.Metric = "test_accuracy"
        target: float | None = None
    else:
        preset = races.race_preset(a.preset or races.DEFAULT_RACE)
        lanes, metric, target = list(preset.lanes), preset.metric, preset.target
    lanes = [lane.model_copy(update={"config": with_overrides(lane.config, a.set)}) for lane in lanes]
    lanes = list(races.with_budget(lanes, a.budget)) if a.budget else lanes
    if a.target:
        metric, target = outcome.parse_target(a.target)
    races.check_lanes(lanes)
    if a.baseline and a.baseline not in (labels := [lane.label for lane in lanes]):
        raise ConfigError(f"baseline={a.baseline!r} is not a lane.", fix=f"Choose from {', '.join(labels)}.")
    return lanes, metric, target


def _followed_race(store: Store, client: Client, group: str, *, quiet: bool) -> races.Race:
    """The race once all of it is over."""
    run_ids = [row.run_id for row in reversed(store.rows(group=group))]
    for number, run_id in enumerate(run_ids):
        if not quiet and sys.stderr.isatty():
            print(f"\rrun {number + 1} of {len(run_ids)}" + " " * 80, file=sys.stderr)
        _follow(store, client, run_id, quiet=quiet)
    race = races.find(store, group)
    assert race, "its runs were submitted a moment ago"
    return race


def plan_command(a: argparse.Namespace) -> int:
    """What a run would need; nothing is started."""
    config, machine = _config(a), hardware.probe()
    hardware.check_device(config.device, machine)
    planner.check_abilities(config, machine)
    if config.task in {"calibrate", "landscape"}:
        return _plan_of_a_study(config, as_json=a.json)
    plan = planner.plan(config, machine=machine)
    if a.json:
        law = {"estimated_seconds": _law_seconds(config, plan)} if config.task == "batch-law" else {}
        if config.task == "infer":
            law = {"estimated_seconds": cli_infer.predicted_of(_store(a), config, plan).total_s}
        print(json_text(asdict(plan) | law | {"total_bytes": plan.total_bytes, "fingerprint": config.fingerprint}))
        return OK
    print(describe(config))
    print(f"  parameters        {plan.parameters:,}")
    print(f"  forward           {units.flops(plan.forward_flops_per_example)} per example (derived)")
    if config.task == "infer":
        print("\n".join(cli_infer.plan_lines(_store(a), config, plan)))
    else:
        _print_steps(config, plan)
    for name, size in plan.parts():
        print(f"  {name:<17} {units.nbytes(size)} ({'estimated' if name == 'workspace' else 'derived'})")
    print(f"  memory together   {units.nbytes(plan.total_bytes)}, {units.nbytes(plan.free_bytes)} free (measured)")
    print(f"  fits              {'unknown' if plan.fits is None else 'yes' if plan.fits else 'no'}")
    _warn(plan)
    return OK


def _print_steps(config: RunConfig, plan: planner.Plan) -> None:
    print(f"  training step     {units.flops(plan.train_flops_per_example * plan.batch_size)} (derived)")
    if config.task == "batch-law":
        print(f"  batch sizes       {', '.join(map(str, config.law.sizes(plan.train_examples)))}")
        print(f"  takes about       {units.duration(_law_seconds(config, plan))} (estimated, within a factor of some)")
    steps = (
        "as many as the trials take"
        if config.task == "batch-law"
        else "until the time is over"
        if plan.total_steps is None
        else f"{plan.total_steps:,}"
    )
    print(f"  steps             {steps}, {plan.steps_per_epoch:,} per epoch of {plan.train_examples:,} examples")


def _law_seconds(config: RunConfig, plan: planner.Plan) -> float:
    return batch_law.estimate_seconds(
        config.law,
        train_examples=plan.train_examples,
        forward_flops_per_example=plan.forward_flops_per_example,
        train_flops_per_example=plan.train_flops_per_example,
    )


def _plan_of_a_study(config: RunConfig, *, as_json: bool) -> int:
    """What a run that trains nothing does, and how long: it has no parameters, steps or FLOPs of its own."""
    takes = calibration.predicted_seconds(config.threads) if config.task == "calibrate" else None
    if as_json:
        unknown = {field.name: None for field in dataclasses.fields(planner.Plan)} | {"total_bytes": None}
        said = {"task": config.task, "about": studies.ABOUT[config.task], "estimated_seconds": takes}
        print(json_text(unknown | said | {"fingerprint": config.fingerprint}))
        return OK
    print(describe(config))
    print(textwrap.fill(studies.ABOUT[config.task], 100, initial_indent="  ", subsequent_indent="  "))
    if takes is not None:
        print(f"  takes about       {units.duration(takes)} (estimated), once other runs are over")
    return OK


def list_command(a: argparse.Namespace) -> int:
    if a.limit < 1:
        raise ConfigError(f"limit={a.limit} is not allowed.", fix="limit may be a whole number from 1.")
    store = _store(a)
    rows = store.rows(limit=a.limit, order=a.sort)
    if any(row.status not in records.TERMINAL for row in rows):
        Client(store).wake()  # should its supervisor be gone, a run that says it is alive is looked after again
    if a.json:
        print(
            json_text(
                {
                    "runs": [
                        r.model_dump(mode="python", include={"run_id", "status", "name", "created", "summary", "group"})
                        for r in rows
                    ]
                }
            )
        )
        return OK
    if not rows:
        print("No runs yet. Start one: python -m engine run --preset lenet")
    for r in rows:
        s = r.summary
        print(
            f"{r.run_id}  {r.status:<11} {units.age(time.time() - r.created):>12}  {units.accuracy(s.test_accuracy):>7}  "
            f"{units.loss(s.final_train_loss):>9}  {units.samples_per_s(s.samples_per_s):>16} {'busy' if s.busy else '':<4}  {words_of(r)}{'  ' + visible(r.name, LONGEST_NAME) if r.name else ''}"
        )
    return OK


def show_command(a: argparse.Namespace) -> int:
    store = _store(a)
    run = store.run(store.find(a.run))
    if a.json:
        print(json_text(_everything(store, run)))
    else:
        print(_card(run))
        for problem in run.problems:
            print(f"  ! {visible(problem)}")
    return OK


def watch_command(a: argparse.Namespace) -> int:
    """Follow a run without owning it: Ctrl-C leaves it running."""
    store = _store(a)
    run = _follow(store, Client(store), store.find(a.run), quiet=a.json)
    print(json_text(_result(run)) if a.json else _card(run))
    return OK if run.status == "finished" else FAILED


def cancel_command(a: argparse.Namespace) -> int:
    store = _store(a)
    client = Client(store)
    run_id = store.find(a.run)
    client.cancel(run_id)
    run = _wait(store, client, run_id, seconds=15)
    print(json_text({"run_id": run_id, "status": run.status}) if a.json else f"{run_id} is {run.status}.")
    return OK if run.is_over else FAILED


def rename_command(a: argparse.Namespace) -> int:
    store = _store(a)
    run_id = store.find(a.run)
    wanted = clean_name(a.name)
    Client(store).rename(run_id, wanted)
    until = time.monotonic() + 15
    while (name := store.run(run_id, keep_points=1).name) != wanted and time.monotonic() < until:
        time.sleep(_POLL_S)
    print(json_text({"run_id": run_id, "name": name}) if a.json else f"{run_id} is called {visible(name)!r}.")
    return OK if name == wanted else FAILED


def delete_command(a: argparse.Namespace) -> int:
    store = _store(a)
    run_id = store.find(a.run)
    Client(store).delete(run_id)
    until = time.monotonic() + 15
    while (store.runs / run_id).exists() and time.monotonic() < until:
        time.sleep(_POLL_S)
    gone = not (store.runs / run_id).exists()
    print(
        json_text({"run_id": run_id, "deleted": gone})
        if a.json
        else f"{run_id} {'is deleted' if gone else 'is still there'}."
    )
    return OK if gone else FAILED


def hardware_command(a: argparse.Namespace) -> int:
    interval_s = parse_interval(a.interval)
    machine = hardware.probe()
    with contextlib.closing(Monitor(dict)) as monitor:
        snapshot = _readings_after(monitor, min(interval_s, _FIRST_READING_S))
        if a.json:
            print(json_text(hardware.as_json(machine) | _as_json(snapshot)), flush=True)
        else:
            _print_machine(machine)
            _print_snapshot(snapshot)
        for _ in beats(time.monotonic, _sleep, interval_s) if a.watch else ():
            snapshot = monitor.read()
            print(json_text(_as_json(snapshot)) if a.json else _monitor_line(snapshot), flush=True)
    return OK


def _readings_after(monitor: Monitor, seconds: float) -> Snapshot:
    monitor.read()  # busy times and rates count from here
    time.sleep(seconds)
    return monitor.read()


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _as_json(snapshot: Snapshot) -> dict[str, Any]:
    processes = [asdict(process) for process in snapshot.processes]
    return {"at": snapshot.at, "readings": snapshot.readings, "missing": snapshot.missing, "gpu_processes": processes}


def _print_machine(machine: hardware.Machine) -> None:
    print(f"{visible(machine.cpu.name)}: {machine.cpu.usable_cores} usable cores")
    print(f"{units.nbytes(machine.memory_bytes)} memory, {units.nbytes(machine.memory_available_bytes)} available")
    for gpu in machine.gpus:
        print(
            f"cuda:{gpu.index}  {visible(gpu.name)}  {units.nbytes(gpu.memory_bytes)}  driver {visible(gpu.driver or 'unknown')}"
        )
    if machine.gpu_reason:
        print(f"No GPU: {visible(machine.gpu_reason)}")


def _print_snapshot(snapshot: Snapshot) -> None:
    """What was read, a line each; then what could not be, with each reason once."""
    print("\nNow:")
    for name, value in snapshot.readings.items():
        if value is not None:
            print(f"  {_title(name):36} {_in_words(name, value)}")
    reasons: dict[str, list[str]] = {}
    for name, reason in snapshot.missing.items():
        if metric_of(name) in METRICS:
            reasons.setdefault(reason, []).append(_title(name))
    if reasons:
        print("\nNot available here:")
    for reason, titles in reasons.items():
        print(f"  {', '.join(titles)}: {reason}")


def _in_words(column: str, value: float) -> str:
    if metric_of(column) == "gpu.throttle_bits":
        return gpus.throttle_words(int(value)) or "nothing"
    return units.reading(value, METRICS[metric_of(column)].unit)


def _title(column: str) -> str:
    title, device = METRICS[metric_of(column)].title, column.partition(".")[0]
    if device.startswith("core"):
        return f"{title} {device[4:]}"
    return f"GPU {device[3:]}: {title}" if device.startswith("gpu") else title


def _monitor_line(snapshot: Snapshot) -> str:
    """The machine in one line of a terminal."""
    said = snapshot.readings

    def part(title: str, name: str) -> str:
        value = said.get(name)
        return f"{title} {units.UNKNOWN if value is None else units.reading(value, METRICS[metric_of(name)].unit)}"

    parts = [part("CPU", "cpu.busy_percent"), part("memory", "memory.used_bytes"), part("load", "cpu.load_1min")]
    for gpu in sorted({name.partition(".")[0] for name in said if name.startswith("gpu")}, key=lambda g: int(g[3:])):
        parts += [part(f"GPU {gpu[3:]}", f"{gpu}.utilization_percent"), part("", f"{gpu}.power_w").strip()]
        parts += [part("", f"{gpu}.memory_used_bytes").strip(), part("", f"{gpu}.temperature_c").strip()]
    return f"{time.strftime('%H:%M:%S', time.localtime(snapshot.at))}  {'  '.join(parts)}"


def calibrate_command(a: argparse.Namespace) -> int:
    """Measure what a device reaches, as a run of its own, with every thread count up to the usable cores."""
    store, machine = _store(a), hardware.probe()
    hardware.check_device(a.device, machine)
    threads = machine.cpu.usable_cores if a.device == "cpu" else 1
    config = with_overrides(preset_config("calibrate"), [f"device={a.device}", f"threads={threads}"])
    if not a.json:
        about = units.duration(calibration.predicted_seconds(threads))
        print(f"Takes about {about} (estimated); it waits until no other run is at work.", file=sys.stderr)
    client = Client(store)
    run_id = ""
    try:
        with _undisturbed():
            run_id = client.submit(config, name="Calibration")
        run = _follow(store, client, run_id, quiet=a.json)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if run_id:
            client.cancel(run_id, reason="interrupted in the terminal")
        print("\nStopped.", file=sys.stderr)
        if a.json:
            stopped = {"type": "KeyboardInterrupt", "message": "Stopped in the terminal."}
            print(json_text({"error": stopped, "run_id": run_id or None}))
        return INTERRUPTED
    if a.json:
        if run.why():
            print(f"{run.run_id} {run.status}: {visible(run.why())}", file=sys.stderr)
        print(json_text(_result(run)))
    else:
        print(_card(run))
    return OK if run.status == "finished" else FAILED


def check_command(a: argparse.Namespace) -> int:
    """Read every run and say what is missing or rotten."""
    store = _store(a)
    rebuilt = rebuild_index(store) if a.rebuild else ""
    found = check(store)
    ok = not found.problems
    if a.json:
        print(json_text({"ok": ok, **asdict(found), **({"rebuilt": rebuilt} if a.rebuild else {})}))
        return OK if ok else FAILED
    if rebuilt:
        print(f"The index was made anew {rebuilt}, from {found.runs} run folders.")
    print(
        "\n".join(map(visible, found.problems))
        or f"{found.runs} runs, all as they were written ({found.indexed} in the index)."
    )
    for note in found.notes:
        print(f"  - {note}")
    print("  - " + ", ".join(f"{name} {version}" for name, version in found.versions.items()))
    return OK if ok else FAILED


def link_command(a: argparse.Namespace) -> int:
    """The one-time link of the dashboard, for a browser that is not signed in yet."""
    store = _store(a)
    method = settings.load(store.root).sign_in.method
    if a.sign_everyone_out:
        keys.sign_everyone_out(store.root)
        if method != "link":
            print(json_text({"link": None}) if a.json else "Everyone is signed out.")
            return OK
    if method != "link":
        raise ConfigError(
            f"sign_in.method={method!r}: people do not sign in with links here.",
            fix="Open the dashboard and sign in there.",
        )
    link = keys.sign_in_link(store.root, a.url)
    print(json_text({"link": link}) if a.json else link)
    return OK


def supervise_command(a: argparse.Namespace) -> int:
    """By hand: stay, and let runs go on with nobody there. On demand: leave some time after the last who needs it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    store = _store(a)
    if a.on_demand:
        served = serve(store, idle_s=a.idle_seconds or IDLE_S, grace_s=a.grace_seconds)
    else:
        served = serve(store, idle_s=a.idle_seconds or math.inf, standby=True)
    if not served:
        print("This store already has a supervisor.", file=sys.stderr)
        return OK
    # Its runs may still be at work, for the next supervisor to adopt: leave without multiprocessing's wait for them.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(OK)


# --- following a run -----------------------------------------------------------------------------------------------


def _follow(store: Store, client: Client, run_id: str, *, quiet: bool) -> Run:
    run = store.run(run_id)
    woken = time.monotonic()
    draw = not quiet and sys.stderr.isatty()
    while not run.is_over:
        time.sleep(_POLL_S)
        run.refresh()
        if draw:
            print(f"\r{_bar(run)}", end="", file=sys.stderr, flush=True)
        if not run.is_over and time.monotonic() - woken > _WAKE_EVERY_S:
            store.folder(run.run_id)  # raises when it was deleted: it will never end
            client.wake()  # should the supervisor have died, another takes its place
            woken = time.monotonic()
    if draw:
        print("\r" + " " * 100 + "\r", end="", file=sys.stderr)
    return run


def _bar(run: Run) -> str:
    share = run.progress()
    if share is None:
        return f"{run.status:<10}" + (_download(run.preparing) if run.preparing else "")
    if run.config.task in {"batch-law", "calibrate", "infer"}:
        doing = run.done_so_far.text if run.done_so_far else ""
        filled = round(share * _BAR)
        return f"{run.status:<9} {'█' * filled}{'░' * (_BAR - filled)} {share:4.0%}  {visible(doing, 50):<50}"
    loss, accuracy = run.steps.last("loss"), run.evaluations.last("test_accuracy")
    filled = round(share * _BAR)
    return (
        f"{run.status:<9} {'█' * filled}{'░' * (_BAR - filled)} {share:4.0%}  step {len(run.steps):,}  "
        f"loss {units.loss(loss)}  accuracy {units.accuracy(accuracy)}   "
    )


def _download(p: records.Preparing) -> str:
    total = f" of {units.nbytes(p.total_bytes)}" if p.total_bytes else ""
    return f"{visible(p.text, 60)}  {units.nbytes(p.done_bytes)}{total}    "


def _wait(store: Store, client: Client, run_id: str, *, seconds: float) -> Run:
    run = store.run(run_id)
    until = time.monotonic() + seconds
    while not run.is_over and time.monotonic() < until:
        time.sleep(_POLL_S)
        run.refresh()
    return run


# --- what is shown -------------------------------------------------------------------------------------------------


def _result(run: Run) -> dict[str, Any]:
    """`summary.mfu` is against the measured peak; `cost` says what it was computed from, or why it is null."""
    costs = cost.as_json(run, _calibration_of(run)) if run.config.task == "train" else None
    mfu = costs["measured_peak"]["value"] if costs else None
    return {
        "run_id": run.run_id,
        "status": run.status,
        "config": run.config.model_dump(mode="json"),
        "summary": run.summary().model_dump(mode="python") | {"mfu": mfu},
        "cost": costs,
        "why": run.why() or None,
        **({"batch_law": asdict(batch_law.outcome(run.trials))} if run.config.task == "batch-law" else {}),
        **({"calibration": _calibration(run)} if run.config.task == "calibrate" else {}),
        **({"inference": serving.as_json(serving.matrix_of(run))} if run.config.task == "infer" else {}),
    }


def _calibration_of(run: Run) -> calibration.Found | None:
    """The newest calibration of the run's device in its store."""
    device, name = calibration.of_run(run)
    return calibration.latest(Store(run.folder.parent.parent), device, name)


def _calibration(run: Run) -> dict[str, Any] | None:
    return run.calibration.model_dump(mode="python", exclude={"kind"}) if run.calibration else None


def _everything(store: Store, run: Run) -> dict[str, Any]:
    account = energy.in_store(store, run)
    steps, evaluations, hardware_table = run.steps, run.evaluations, run.hardware
    per_example = run.started.train_flops_per_example if run.started else None
    ints = ("step", "samples")
    return _result(run) | {
        "name": run.name,
        "created": run.created,
        "fingerprint": run.config.fingerprint,
        "steps": {n: steps[n].astype(int).tolist() if n in ints else steps[n].tolist() for n in steps.names}
        | {"flops": (steps["samples"] * per_example).astype(int).tolist() if per_example else []},
        "evaluations": [
            {"step": int(row[0]), "seconds": row[1], "elapsed": row[2], "test_loss": row[3], "test_accuracy": row[4]}
            for row in zip(*(evaluations[n].tolist() for n in evaluations.names), strict=True)
        ],
        "hardware": {"seconds" if n == "elapsed" else n: hardware_table[n].tolist() for n in hardware_table.names},
        "missing_readings": run.missing_readings,
        "busy": _busy(run),
        "alerts": [asdict(alert) for alert in alerts.of_run(run, time.time())],
        "step_split": _split(run),
        "energy": account.model_dump(),
        "figures": {name: figure.model_dump() for name, figure in figures.of_run(run, account).items()},
        "environment": run.started.environment if run.started else None,
        "gradient_norms": {n: run.grad_norms[n].tolist() for n in ("step", "seconds", "grad_norm")},
        "compile_seconds": run.compiled.seconds if run.compiled else None,
        "warm_up_seconds": run.warm_up.seconds if run.warm_up else None,
        "memory": run.memory.model_dump() if run.memory else None,
        "target_reached": run.target_reached.model_dump() if run.target_reached else None,
        "artifacts": [artifact.model_dump() for artifact in run.artifacts],
        "problems": run.problems,
        "imported": run.imported.origin.model_dump() if run.imported else None,
        **({"trials": [trial.model_dump() for trial in run.trials]} if run.config.task == "batch-law" else {}),
    }


def _split(run: Run) -> dict[str, Any] | None:
    """Seconds of each part of a step, and the shares; null where the run did not take one apart."""
    if run.step_split is None:
        return None
    found = split.parts(run.step_split, evaluation_s=run.evaluation_s, steps=len(run.steps))
    return run.step_split.model_dump(exclude={"kind"}) | {
        "evaluation_s": next((part.seconds for part in found if part.key == "evaluation"), None),
        "shares": {part.key: part.share for part in found},
        "sentence": split.sentence(found, run.config) or None,
    }


def _busy(run: Run) -> dict[str, Any] | None:
    """Whether something else used the machine; null where the run did not say."""
    busy = run.busy
    return None if busy is None else busy.model_dump() | {"busy": busy.is_busy, "reason": busy.in_words or None}


def _card(run: Run) -> str:
    if run.imported and run.imported.origin.form == "curve":
        return cli_share.curve_card(run)
    if run.config.task == "calibrate":
        return _calibration_card(run)
    if run.config.task == "landscape":
        return _surface_card(run)
    if run.config.task == "infer":
        return cli_infer.card(run)
    return _law_card(run) if run.config.task == "batch-law" else _training_card(run)


def _surface_card(run: Run) -> str:
    lines = [f"{run.run_id}  {run.status}", f"  {describe(run.config)}"]
    if s := run.surface:
        lines += [
            f"  loss              {units.loss(s.loss_min)} to {units.loss(s.loss_max)} (measured on {s.examples:,} {s.split} examples)",
            f"  the plane shows   {units.percent(sum(s.explained))} of how the weights moved (derived)",
            f"  off the plane     {units.loss(s.plane_gap)} of loss between a checkpoint and its shadow, median (derived)",
            f"  checkpoints       {s.checkpoints:,} (counted)",
            f"  took              {units.duration(s.seconds)} (measured)",
        ]
    if why := run.why():
        lines.append(f"  {visible(why)}")
    return "\n".join(lines)


def _law_card(run: Run) -> str:
    found = batch_law.outcome(run.trials)
    lines = [
        f"{run.run_id}  {run.status}" + (f"  {visible(run.name, LONGEST_NAME)}" if run.name else ""),
        *cli_share.origin_lines(run),
        f"  {describe(run.config)}",
        f"  trials            {len(run.trials):,}, {sum(t.tuning for t in run.trials):,} of them to choose learning rates",
        f"    {'batch size':>10} {'learning rate':>14} {'steps':>9} {'seeds there':>12} {'one step':>10}",
    ]
    for at in found.sizes:
        steps, reached = units.count(at.steps and round(at.steps)), f"{at.reached} of {at.measured}"
        rate = units.lr(at.lr and float(f"{at.lr:.3g}"))
        lines.append(f"    {at.batch_size:>10} {rate:>14} {steps:>9} {reached:>12} {units.duration(at.step_s):>10}")
    lines += [f"  {title:<17} {text} ({how})" for title, text, how in batch_law.facts(found)]
    lines += [f"  ! {note}" for note in found.notes]
    if run.summary().busy:
        lines.append(f"  ! machine was busy: {visible(run.summary().busy_why)}")
    if why := run.why():
        lines.append(f"  {visible(why)}")
    return "\n".join(lines)


def _calibration_card(run: Run) -> str:
    lines = [f"{run.run_id}  {run.status}", *cli_share.origin_lines(run), f"  {describe(run.config)}"]
    if made := run.calibration:
        versions = ", ".join(f"{name} {version}" for name, version in made.versions.items() if version)
        lines.append(f"  {visible(made.device_name)}; {versions}; {units.duration(made.seconds)}")
        lines += [f"  {title:<32} {text:>16}   {how}" for title, text, how in calibration.facts(made)]
        lines += [f"  - {reason}" for reason in calibration.missing_in_words(made)]
        lines += [f"  ! {doubt}" for doubt in calibration.doubts(made, now=time.time())]
    if why := run.why():
        lines.append(f"  {visible(why)}")
    return "\n".join(lines)


def _training_card(run: Run) -> str:
    s = run.summary()
    busy = ", the machine was busy" if s.busy else ""
    lines = [
        f"{run.run_id}  {run.status}" + (f"  {visible(run.name, LONGEST_NAME)}" if run.name else ""),
        *cli_share.origin_lines(run),
        f"  {describe(run.config)}",
        f"  test accuracy     {units.accuracy(s.test_accuracy)} (measured on the held-out split)",
        f"  train loss        {units.loss(s.final_train_loss)} (measured: mean over the last epoch's batches, at most 100)",
        f"  trained           {s.steps:,} steps, {s.epochs:.4g} epochs (counted), {units.duration(s.train_seconds)} (measured{busy})",
        f"  throughput        {units.samples_per_s(s.samples_per_s)} (derived: examples by training time{busy})",
        f"  arithmetic        {units.flops(s.flops)} (derived: closed form per layer)",
        f"  MFU               {_mfu_in_words(run)}",
        f"  training memory   {units.nbytes(s.peak_memory_bytes)} (measured: weights, optimizer and one step's peak)",
        f"  process memory    {units.nbytes(s.process_memory_bytes)} (measured, PyTorch itself included)",
    ]
    if run.is_over:
        account = energy.in_store(Store(run.folder.parent.parent), run)
        short = ", too short a window to be compared" if account.is_short else ""
        how = f"measured, {account.source}{short}" if account.is_measured else visible(energy.how_in_words(account))
        lines.append(f"  energy            {energy.in_words(account)} ({how.rstrip('.')})")
    if found := split.parts(run.step_split, evaluation_s=run.evaluation_s, steps=s.steps):
        lines.append(f"  a step            {split.row_in_words(found)} (measured)")
        lines.append(f"                    {split.sentence(found, run.config)}")
    lines += [f"  ! {visible(alert.in_words)}" for alert in alerts.of_run(run, time.time())]
    if s.busy:
        lines.append(f"  ! machine was busy: {visible(s.busy_why)}")
    if run.compiled:
        lines.append(
            f"  compiling         {units.duration(run.compiled.seconds)} (measured, before the clock of training)"
        )
    if run.config.target.value is not None:
        lines.append(f"  target            {_target(run)}")
    if why := run.why():
        lines.append(f"  {visible(why)}")
    return "\n".join(lines)


def _mfu_in_words(run: Run) -> str:
    found = cost.mfu(run.config, cost.flops_per_s(run), _calibration_of(run))
    if found.value is None:
        return f"{units.UNKNOWN} ({visible(found.reason)})"
    busy = ", the machine was busy" if run.summary().busy else ""
    peak = units.flops_per_s(found.peak_flops_per_s)
    return f"{units.percent(found.value, digits=1)} of {peak} (derived; peak measured{busy})"


def _target(run: Run) -> str:
    target, reached = run.config.target, run.target_reached
    words = f"{target.metric} {target.value:g}"
    if reached is None:
        return f"{words}: not reached"
    return f"{words}: reached at step {reached.step:,}, after {units.duration(reached.train_s)}"


def _warn(plan: planner.Plan) -> None:
    for warning in plan.warnings:
        print(f"  ! {warning}", file=sys.stderr)


# --- arguments -----------------------------------------------------------------------------------------------------


def _store(a: argparse.Namespace) -> Store:
    return Store(Path(a.store) if a.store else None)


def _config(a: argparse.Namespace) -> RunConfig:
    """The experiment of the arguments. A run's process works elsewhere, so a file's path is made absolute."""
    config = _config_as_typed(a)
    if not config.source.path:
        return config
    try:
        path = Path(config.source.path).expanduser().absolute()
    except RuntimeError:  # ~nobody
        raise ConfigError(
            f"source.path={config.source.path!r} names the home of a user who is not known.",
            fix="Write the path in full.",
        ) from None
    return with_overrides(config, [f"source.path={path}"])


def _config_as_typed(a: argparse.Namespace) -> RunConfig:
    if a.config and a.preset:
        raise ConfigError("--preset and --config exclude each other.", fix="Give one of them.")
    if not a.config:
        return with_overrides(preset_config(a.preset or DEFAULT_PRESET), a.set)
    try:
        text = Path(a.config).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"--config {a.config}: {reason}.", fix="Name a JSON file that is there.") from None
    return with_overrides(parse_config_json(text, name=a.config), a.set)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(visible(message))  # it quotes what was typed, or pasted


def _parser() -> _Parser:
    common = _Parser(add_help=False)
    common.add_argument("--store", help="folder of all runs (default $ISOFLOP_HOME or ~/.isoflop)")
    common.add_argument("--json", action="store_true", help="print one JSON document on the last line of stdout")
    config = _Parser(add_help=False)
    config.add_argument("--preset", help=f"one of {', '.join([*PRESETS, *STUDIES])} (default {DEFAULT_PRESET})")
    config.add_argument("--config", help="a JSON file with a configuration")
    config.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a field, e.g. batch_size=128"
    )

    parser = _Parser(prog="python -m engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"isoflop {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, function: Any, text: str, *parents: _Parser) -> _Parser:
        command = commands.add_parser(name, help=text, description=text, parents=[common, *parents])
        command.set_defaults(function=function)
        return command

    run = add("run", run_command, "run an experiment and follow it", config)
    run.add_argument("--seeds", type=int, default=1, help="run that many seeds, from the configuration's own upwards")
    run.add_argument("--name", default="", help="a name to show in lists")
    race = add("race", race_command, "race configurations under equal conditions, and say who won and how sure it is")
    race.add_argument("--preset", help=f"one of {', '.join(races.RACES)} (default {races.DEFAULT_RACE})")
    race.add_argument(
        "--lane", action="append", default=[], metavar="'LABEL: KEY=VALUE ...'", help="a configuration; 2 to 6 of them"
    )
    race.add_argument("--base", default=DEFAULT_PRESET, help="preset that --lane changes (default %(default)s)")
    race.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of every lane")
    race.add_argument(
        "--seeds", type=int, default=1, help=f"heats, one per seed; a verdict takes {outcome.CLAIM_SEEDS}"
    )
    race.add_argument(
        "--until-decided", type=int, metavar="SEEDS", help="add seeds until it is decided, at most so many"
    )
    race.add_argument(
        "--budget", help="one for all lanes: seconds=6, samples=50000, steps=1000, epochs=2 or flops=1e11"
    )
    race.add_argument("--target", help="test_accuracy=0.95, test_loss=0.3 or none")
    race.add_argument("--baseline", default="", metavar="LABEL", help="the lane the others are measured by (the first)")
    cli_infer.register(add, config)
    cli_scale.register(add, config)
    comparing = add("compare", compare_command, "lay runs that are there beside each other")
    comparing.add_argument("runs", nargs="+", metavar="RUN", help="two or more: ids, or beginnings of them")
    comparing.add_argument("--target", help="test_accuracy=0.95, test_loss=0.3 or none")
    comparing.add_argument("--baseline", default="", metavar="LABEL")
    add("plan", plan_command, "what a run would need, without running it", config)
    listing = add("list", list_command, "the runs of the store, newest first")
    listing.add_argument("--limit", type=int, default=50)
    listing.add_argument("--sort", choices=SORTABLE, default="created")
    for name, function, text in (
        ("show", show_command, "everything recorded of a run"),
        ("watch", watch_command, "follow a run until it ends"),
        ("cancel", cancel_command, "stop a run"),
        ("delete", delete_command, "delete a run that is over"),
    ):
        add(name, function, text).add_argument("run", metavar="RUN", help="id, the beginning of one, or last")
    rename = add("rename", rename_command, "give a run another name")
    rename.add_argument("run", metavar="RUN", help="id, the beginning of one, or last")
    rename.add_argument("name")
    cli_share.add_commands(add, _store)
    calibrating = add("calibrate", calibrate_command, "measure what this machine reaches: peaks, bandwidth, overheads")
    calibrating.add_argument("--device", default="cpu", help="cpu (default), or cuda:i")
    machine = add("hardware", hardware_command, "what this machine offers, and what it does now")
    machine.add_argument("--watch", action="store_true", help="go on, a line for each reading, until Ctrl-C")
    machine.add_argument("--interval", default="1", metavar="SECONDS", help="0.25 to 10 (default %(default)s)")
    checking = add("check", check_command, "read every run and say what is missing or rotten")
    checking.add_argument("--rebuild", action="store_true", help="make the index anew from the run folders")
    link = add("link", link_command, "print a link that lets one more browser into the dashboard")
    link.add_argument("--url", default="", help="where the dashboard is (default: where it was started last)")
    link.add_argument("--sign-everyone-out", action="store_true", help="end every sign-in there is, first")
    supervise = add(
        "supervise", supervise_command, "be this store's supervisor, so that runs go on without a dashboard"
    )
    supervise.add_argument("--idle-seconds", type=float, help="leave after so long without a run (default: stay)")
    supervise.add_argument("--on-demand", action="store_true", help=argparse.SUPPRESS)  # started by who needs it
    supervise.add_argument("--grace-seconds", type=float, default=GRACE_S, help=argparse.SUPPRESS)
    return parser
