"""Shared by several commands: exit codes, common arguments, following runs, and cancelling them by Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from engine.common import units
from engine.common.errors import ConfigError
from engine.common.jsontext import json_text
from engine.common.sanitize import visible
from engine.config.parsing import parse_config_json, with_overrides
from engine.config.presets import DEFAULT_PRESET, preset_config
from engine.config.run import RunConfig
from engine.events.lifecycle import Preparing, Progress
from engine.planning import planner
from engine.runtime.client import Client
from engine.store.run import Run
from engine.store.store import Store

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
POLL_S = 0.1
_WAKE_EVERY_S = 2.0
_BAR = 28

Adder = Callable[..., argparse.ArgumentParser]  # (name, function, help text, *parents): adds a command


# --- arguments ---------------------------------------------------------------------------------------------------------


def store_of(a: argparse.Namespace) -> Store:
    """The store of `--store`, or the default one."""
    return Store(Path(a.store) if a.store else None)


def config_of(a: argparse.Namespace) -> RunConfig:
    """The configuration of the arguments. Paths become absolute, because a worker has another working directory.

    Raises:
        ConfigError: The arguments contradict each other, or name a file, preset, field or user that does not exist.
    """
    config = _config_as_typed(a)
    if not config.source.path:
        return config
    try:
        path = Path(config.source.path).expanduser().absolute()
    except RuntimeError:  # ~nobody
        raise ConfigError(
            f"source.path={config.source.path!r} names the home folder of an unknown user.",
            fix="Write the full path.",
        ) from None
    return with_overrides(config, [f"source.path={path}"])


def _config_as_typed(a: argparse.Namespace) -> RunConfig:
    if a.config and a.preset:
        raise ConfigError("--preset and --config cannot be used together.", fix="Give one of them.")
    if not a.config:
        return with_overrides(preset_config(a.preset or DEFAULT_PRESET), a.set)
    try:
        text = Path(a.config).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"--config {a.config}: {reason}.", fix="Name an existing JSON file.") from None
    return with_overrides(parse_config_json(text, name=a.config), a.set)


# --- stderr ------------------------------------------------------------------------------------------------------------


def warn(plan: planner.Plan) -> None:
    """Print on stderr how a plan reads the user's data, and its warnings."""
    for note in plan.notes:
        print(f"  - {visible(note)}", file=sys.stderr)
    for warning in plan.warnings:
        print(f"  ! {visible(warning)}", file=sys.stderr)


def print_why(run: Run) -> None:
    """Print on stderr why a run ended, for people who read it beside the JSON on stdout."""
    if run.why():
        print(f"{run.run_id} {run.status}: {visible(run.why())}", file=sys.stderr)


# --- Ctrl-C ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ctrl_c_delayed() -> Iterator[None]:
    """Context manager: delay Ctrl-C to the end of the block, which must be short.

    Otherwise a Ctrl-C between the submission of a run and the return of its id would leave the run running.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed in the block.
    """
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


@contextlib.contextmanager
def cancelled_by_ctrl_c(
    client: Client, run_ids: Callable[[], Sequence[str]], *, kept: str = "", json_key: str = ""
) -> Iterator[None]:
    """Context manager: Ctrl-C in the block cancels the runs.

    Args:
        client: The client of the store.
        run_ids: Returns the runs to cancel; called when Ctrl-C is pressed.
        kept: A sentence for the user on what is not lost.
        json_key: If set, a JSON document goes to stdout, with the ids under this key: a list, or for "run_id" the only
            id or null.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; `main` turns this into exit code 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # so that a second Ctrl-C does not interrupt the cancelling
        ids = list(run_ids())
        for run_id in ids:
            client.cancel(run_id, reason="interrupted in the terminal")
        print(f"\nStopped. {kept}".rstrip(), file=sys.stderr)
        if json_key:
            error = {"type": "KeyboardInterrupt", "message": "Stopped in the terminal."}
            print(json_text({"error": error, json_key: ids if json_key == "run_ids" else next(iter(ids), None)}))
        raise


# --- following a run ---------------------------------------------------------------------------------------------------


def run_to_its_end(client: Client, config: RunConfig, *, name: str, kept: str = "", as_json: bool) -> Run:
    """Submit one run and follow it to its end. Ctrl-C cancels it and raises KeyboardInterrupt."""
    run_ids: list[str] = []
    with cancelled_by_ctrl_c(client, lambda: run_ids, kept=kept, json_key="run_id" if as_json else ""):
        with ctrl_c_delayed():
            run_ids.append(client.submit(config, name=name))
        return follow(client.store, client, run_ids[0], quiet=as_json)


def follow(store: Store, client: Client, run_id: str, *, quiet: bool) -> Run:
    """Wait until the run is over, with a progress bar unless `quiet`, and return it.

    Raises:
        StoreError: The run was deleted meanwhile.
    """
    run = store.run(run_id)
    last_wake_s = time.monotonic()
    draw = not quiet and sys.stderr.isatty()
    while not run.is_over:
        time.sleep(POLL_S)
        run.refresh()
        if draw:
            print(f"\r{bar(run)}", end="", file=sys.stderr, flush=True)
        if not run.is_over and time.monotonic() - last_wake_s > _WAKE_EVERY_S:
            store.folder(run.run_id)  # raises if the run was deleted, because it would never end
            client.wake()  # if the supervisor has died, this starts another one
            last_wake_s = time.monotonic()
    if draw:
        print("\r" + " " * 100 + "\r", end="", file=sys.stderr)
    return run


def run_ids_of(store: Store, group: str) -> list[str]:
    """The runs of a group, in the order of submission."""
    return [row.run_id for row in reversed(store.rows(group=group))]


def follow_all(store: Store, client: Client, run_ids: Sequence[str], *, quiet: bool) -> None:
    """Follow runs to their ends, one after another; unless `quiet`, a terminal shows a line per run."""
    for number, run_id in enumerate(run_ids):
        if not quiet and sys.stderr.isatty():
            name = visible(store.run(run_id, keep_points=1).name, 60)
            print(f"\rrun {number + 1} of {len(run_ids)}: {name}" + " " * 70, file=sys.stderr)
        follow(store, client, run_id, quiet=quiet)


def wait(store: Store, run_id: str, *, seconds: float) -> Run:
    """Wait until the run is over, at most `seconds`, and return it."""
    run = store.run(run_id)
    until = time.monotonic() + seconds
    while not run.is_over and time.monotonic() < until:
        time.sleep(POLL_S)
        run.refresh()
    return run


def bar(run: Run) -> str:
    """Status and progress of a run as one line for a terminal."""
    share = run.progress()
    if share is None:
        return f"{run.status:<10}" + (_download_in_words(p) if (p := run.latest(Preparing)) else "")
    filled = round(share * _BAR)
    drawn = f"{run.status:<9} {'█' * filled}{'░' * (_BAR - filled)} {share:4.0%}  "
    if not run.config.task_facts.trains_one_model:
        return drawn + f"{visible(done.text if (done := run.latest(Progress)) else '', 50):<50}"
    loss, accuracy = run.steps.last("loss"), run.evaluations.last("test_accuracy")
    return (
        drawn
        + f"step {len(run.steps):,}  training loss {units.loss(loss)}  test accuracy {units.accuracy(accuracy)}   "
    )


def _download_in_words(p: Preparing) -> str:
    total = f" of {units.nbytes(p.total_bytes)}" if p.total_bytes else ""
    return f"{visible(p.text, 60)}  {units.nbytes(p.done_bytes)}{total}    "
