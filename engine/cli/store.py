"""Commands on the runs of a store, and on the store: list, show, check, link, supervise and others."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from dataclasses import asdict

from engine.access import keys, settings
from engine.cli import cards, common, results
from engine.common import units
from engine.common.errors import ConfigError
from engine.common.jsontext import json_pieces, json_text
from engine.common.sanitize import LONGEST_NAME, clean_name, visible
from engine.events.base import TERMINAL
from engine.runtime.client import Client, rebuild_index
from engine.runtime.daemon import GRACE_S, IDLE_S, serve
from engine.store.index import SORTABLE
from engine.store.integrity_check import check
from engine.store.listing import words_of


def register(add: common.Adder) -> None:
    """Add the commands."""
    listing = add("list", list_command, "list the runs of the store, newest first")
    listing.add_argument("--limit", type=int, default=50, help="number of runs (default %(default)s)")
    listing.add_argument(
        "--sort", choices=SORTABLE, default="created", help="the value to sort by (default %(default)s)"
    )
    for name, function, text in (
        ("show", show_command, "show the results of a run; --json prints everything recorded"),
        ("watch", watch_command, "follow a run until it ends"),
        ("cancel", cancel_command, "cancel a run"),
        ("delete", delete_command, "delete a run that has ended"),
    ):
        add(name, function, text).add_argument("run", metavar="RUN", help="id, beginning of an id, or last")
    rename = add("rename", rename_command, "rename a run")
    rename.add_argument("run", metavar="RUN", help="id, beginning of an id, or last")
    rename.add_argument("name", help="the new name")
    checking = add("check", check_command, "read every run and report missing or damaged data")
    checking.add_argument("--rebuild", action="store_true", help="rebuild the index from the run folders")
    link = add("link", link_command, "print a link that signs one more browser in to the dashboard")
    link.add_argument("--url", default="", help="address of the dashboard (default: where it was last started)")
    link.add_argument("--sign-everyone-out", action="store_true", help="first sign out every browser")
    supervise = add(
        "supervise", supervise_command, "run the supervisor of this store, so that runs continue without a dashboard"
    )
    supervise.add_argument("--idle-seconds", type=float, help="exit after this time without a run (default: never)")
    supervise.add_argument("--on-demand", action="store_true", help=argparse.SUPPRESS)  # for the client that starts it
    supervise.add_argument("--grace-seconds", type=float, default=GRACE_S, help=argparse.SUPPRESS)


def list_command(a: argparse.Namespace) -> int:
    """Print one line per run.

    Raises:
        ConfigError: The limit is below 1.
    """
    if a.limit < 1:
        raise ConfigError(f"--limit {a.limit} is not allowed.", fix="Choose a whole number from 1.")
    store = common.store_of(a)
    rows = store.rows(limit=min(a.limit, sys.maxsize), order=a.sort)
    if any(row.status not in TERMINAL for row in rows):
        Client(store).wake()  # if the supervisor is gone, a new one finds the runs whose process ended
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
        return common.OK
    if not rows:
        print("No runs yet. Start one: python -m engine run --preset lenet")
    else:
        print(_list_line(*_LIST_HEADS))
    for r in rows:
        s = r.summary
        name = f"  {visible(r.name, LONGEST_NAME)}" if r.name else ""
        print(
            _list_line(
                r.run_id,
                r.status,
                units.age(time.time() - r.created),
                units.accuracy(s.test_accuracy),
                units.loss(s.final_train_loss),
                units.samples_per_s(s.samples_per_s),
                "busy" if s.busy else "",
                f"{words_of(r)}{name}",
            )
        )
    return common.OK


_LIST_HEADS = ("run", "status", "created", "test accuracy", "training loss", "throughput", "busy", "configuration")


def _list_line(run: str, status: str, age: str, accuracy: str, loss: str, speed: str, busy: str, words: str) -> str:
    return f"{run:<16}  {status:<11} {age:>12}  {accuracy:>13}  {loss:>13}  {speed:>16}  {busy:<4}  {words}"


def show_command(a: argparse.Namespace) -> int:
    """Print one run and the problems of its log."""
    store = common.store_of(a)
    run = store.run(store.find(a.run))
    if a.json:
        sys.stdout.writelines(json_pieces(results.everything(store, run)))
        print()
    else:
        print(cards.card(run))
        for problem in run.problems:
            print(f"  ! {visible(problem)}")
    return common.OK


def watch_command(a: argparse.Namespace) -> int:
    """Follow a run to its end; Ctrl-C leaves it running."""
    store = common.store_of(a)
    run = common.follow(store, Client(store), store.find(a.run), quiet=a.json)
    print(json_text(results.of_run(run)) if a.json else cards.card(run))
    return common.OK if run.status == "finished" else common.FAILED


def cancel_command(a: argparse.Namespace) -> int:
    """Cancel a run and wait until it has ended."""
    store = common.store_of(a)
    client = Client(store)
    run_id = store.find(a.run)
    client.cancel(run_id)
    run = common.wait(store, run_id, seconds=15)
    print(json_text({"run_id": run_id, "status": run.status}) if a.json else f"{run_id} is {run.status}.")
    return common.OK if run.is_over else common.FAILED


def rename_command(a: argparse.Namespace) -> int:
    """Rename a run and wait until the store has the new name."""
    store = common.store_of(a)
    run_id = store.find(a.run)
    new_name = clean_name(a.name)
    Client(store).rename(run_id, new_name)
    until = time.monotonic() + 15
    while (name := store.run(run_id, keep_points=1).name) != new_name and time.monotonic() < until:
        time.sleep(common.POLL_S)
    print(json_text({"run_id": run_id, "name": name}) if a.json else f"{run_id} is now named {visible(name)!r}.")
    return common.OK if name == new_name else common.FAILED


def delete_command(a: argparse.Namespace) -> int:
    """Delete a run and wait until its folder is gone."""
    store = common.store_of(a)
    run_id = store.find(a.run)
    Client(store).delete(run_id)
    until = time.monotonic() + 15
    while (store.runs / run_id).exists() and time.monotonic() < until:
        time.sleep(common.POLL_S)
    gone = not (store.runs / run_id).exists()
    print(
        json_text({"run_id": run_id, "deleted": gone})
        if a.json
        else f"{run_id} {'is deleted' if gone else 'is not deleted yet'}."
    )
    return common.OK if gone else common.FAILED


def check_command(a: argparse.Namespace) -> int:
    """Read every run and print missing or damaged data."""
    store = common.store_of(a)
    rebuilt = rebuild_index(store) if a.rebuild else ""
    found = check(store)
    ok = not found.problems
    if a.json:
        print(json_text({"ok": ok, **asdict(found), **({"rebuilt": rebuilt} if a.rebuild else {})}))
        return common.OK if ok else common.FAILED
    if rebuilt:
        print(f"The index was rebuilt {rebuilt}, from {found.runs} run folders.")
    print("\n".join(map(visible, found.problems)) or f"{found.runs} runs, no damage ({found.indexed} in the index).")
    for note in found.notes:
        print(f"  - {note}")
    print("  - " + ", ".join(f"{name} {version}" for name, version in found.versions.items()))
    return common.OK if ok else common.FAILED


def link_command(a: argparse.Namespace) -> int:
    """Print a one-time link that signs a browser in to the dashboard.

    Raises:
        ConfigError: The store does not use sign-in links.
    """
    store = common.store_of(a)
    method = settings.load(store.root).sign_in.method
    if a.sign_everyone_out:
        keys.sign_everyone_out(store.root)
        if method != "link":
            print(json_text({"link": None}) if a.json else "Everyone is signed out.")
            return common.OK
    if method != "link":
        raise ConfigError(
            f"This store does not use links, because sign_in.method={method!r}.",
            fix="Open the dashboard and sign in there.",
        )
    link = keys.sign_in_link(store.root, a.url)
    print(json_text({"link": link}) if a.json else link)
    return common.OK


def supervise_command(a: argparse.Namespace) -> int:
    """Run the supervisor until it is stopped; with --on-demand, exit some time after the last client has left."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    store = common.store_of(a)
    if a.on_demand:
        served = serve(store, idle_s=a.idle_seconds or IDLE_S, grace_s=a.grace_seconds)
    else:
        served = serve(store, idle_s=a.idle_seconds or math.inf, standby=True)
    if not served:
        print("This store already has a supervisor.", file=sys.stderr)
        return common.OK
    # Runs can still be running, and the next supervisor adopts them; a normal exit would wait for them.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(common.OK)
