"""The cost of a live update on the server: `python -m benchmarks.data_route`.

A real server and a real run are polled twice a second with the cursor of the last answer, as a page does. The
server's CPU time is read from its process in windows with and without polls; the CPU time without polls is
subtracted. Bytes are those of the uncompressed body.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import urllib.parse
from http.client import HTTPConnection
from pathlib import Path

import psutil

from benchmarks.measure import Spread, load, save, table, verdict
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.runtime.client import Client
from engine.store.store import Store
from tests.browser.conftest import serve_dashboard

WORKLOADS = {
    "fast": ("784-128-10, B=64: some 1,300 steps/s", "mnist-mlp"),
    "usual": ("LeNet, B=64: some 140 steps/s", "lenet"),
}
UPDATES = 60
POLL_S = 0.5


def cpu_s(server: psutil.Process) -> float:
    """CPU seconds of the server's process so far."""
    times = server.cpu_times()
    return times.user + times.system


def server_process(port: int | None) -> psutil.Process:
    """The child process that serves on `port`."""
    return next(p for p in psutil.Process(os.getpid()).children() if str(port) in p.cmdline())


def poll(page: HTTPConnection, cookie: str, run_id: str, cursor: str) -> tuple[str, int]:
    """Poll once; return the new cursor and the size of the answer in bytes. The connection stays open."""
    page.request(
        "GET", f"/api/runs/{run_id}/points?{urllib.parse.urlencode({'after': cursor})}", headers={"Cookie": cookie}
    )
    body = page.getresponse().read()
    return json.loads(body)["cursor"], len(body)


def measure(page: HTTPConnection, cookie: str, server: psutil.Process, run_id: str) -> dict[str, Spread | float]:
    """Windows of two seconds, with and without polls in alternation."""
    cursor, size = poll(page, cookie, run_id, "")
    full, sizes, polled, alone = size, [], 0.0, 0.0
    for _ in range(UPDATES // 4):
        before = cpu_s(server)
        for _ in range(4):
            time.sleep(POLL_S)
            cursor, size = poll(page, cookie, run_id, cursor)
            sizes.append(size)
        polled += cpu_s(server) - before
        before = cpu_s(server)
        time.sleep(4 * POLL_S)
        alone += cpu_s(server) - before
        cursor, _ = poll(page, cookie, run_id, cursor)
    return {
        "cpu_ms_per_update": 1e3 * (polled - alone) / len(sizes),
        "bytes": Spread.of(sizes),
        "first_load_bytes": full,
    }


def measure_idle_bytes(page: HTTPConnection, cookie: str, run_id: str) -> int:
    """Size in bytes of an update with nothing new, after the run has ended."""
    cursor, _ = poll(page, cookie, run_id, "")
    return poll(page, cookie, run_id, cursor)[1]


def main() -> None:
    """Measure, print a table and save the result."""
    load_before = load()
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as home, serve_dashboard(Path(home)) as url:
        address = urllib.parse.urlsplit(url)
        server, page = server_process(address.port), HTTPConnection(address.hostname or "", address.port)
        client = Client(Store(Path(home)))
        for name, (title, preset) in WORKLOADS.items():
            config = with_overrides(preset_config(preset), ["budget.epochs=none", "budget.seconds=120"])
            run_id = client.submit(config)
            run = client.store.run(run_id)
            while not len(run.steps):
                time.sleep(0.1)
                run.refresh()
            results[name] = {"title": title} | measure(page, url.cookie, server, run_id)
            client.cancel(run_id)
            while not run.is_over:
                time.sleep(0.1)
                run.refresh()
            time.sleep(0.5)
            results[name]["nothing_new_bytes"] = measure_idle_bytes(page, url.cookie, run_id)
    rows = [
        [
            r["title"],
            f"{r['cpu_ms_per_update']:.1f}",
            verdict(r["cpu_ms_per_update"] <= 5),
            r["bytes"].text(0),
            f"{r['nothing_new_bytes']}",
            verdict(r["nothing_new_bytes"] < 1000),
        ]
        for r in results.values()
    ]
    header = [
        "run polled at 2 Hz",
        "server CPU, ms/update",
        "<= 5 ms",
        "bytes/update (p10-p90)",
        "nothing new, bytes",
        "< 1 kB",
    ]
    table(header, rows)
    save("data_route", {"workloads": results}, load_before=load_before)


if __name__ == "__main__":
    main()
