"""The cost of many viewers, many runs and a long run: `python -m benchmarks.load [viewers] [runs] [long]`.

- viewers: 25 browsers poll one run every 2 s. Windows with them and without alternate within one run; the training's
  speed in a window is read from its own log, the server's CPU time from its process. The viewers run on this machine
  too, so their CPU time also slows the training.
- runs: 10,000 runs, made with the engine's own store and event log. Opened without an index; then listed, searched,
  sorted and paged in a real Chromium, from the action to the new list on the page. A search includes the 0.3 s that
  the page waits for more typing.
- long: a run of 100,000 steps, each with loss, learning rate, gradient norm, samples and time, eight hardware
  readings four times a second and 100 evaluations, written with 1, 10 and 100 steps at a time. Time to the drawn
  curve in Chromium: from the list of runs in an open dashboard, and separately from the address in an empty browser,
  which first loads Streamlit's pages and 5 MB of Plotly. Every sample opens another run.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.data_route import cpu_s, poll, server_process
from benchmarks.measure import RESULTS, Spread, load, save, table, verdict
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS, preset_config
from engine.config.run import RunConfig
from engine.events.lifecycle import Failed, Finished, Started, Starting
from engine.events.machine import HardwareSample
from engine.events.training import Evaluation, Steps
from engine.runtime.client import Client
from engine.store.columns import HARDWARE
from engine.store.event_log import EventLog
from engine.store.run import Run
from engine.store.store import Store
from engine.system.locks import claim
from tests.browser.conftest import CHROMIUM, FLAGS, Served, serve_dashboard
from tests.fakes import make_run

VIEWERS, REFRESH_S, WINDOW_S, PAIRS = 25, 2.0, 5.0, 10
RUNS, QUERIES, CLICKS = 10_000, 30, 12
STEPS, LONG_RUNS = 100_000, 4


# --- viewers ------------------------------------------------------------------------------------------------------


class Viewer(threading.Thread):
    """Polls as a page does, with the cursor of the last answer, while `looking` is set."""

    def __init__(self, url: Served, run_id: str, looking: threading.Event, late_s: float) -> None:
        super().__init__(daemon=True)
        address = urllib.parse.urlsplit(url)
        self.page, self.cookie, self.run_id = HTTPConnection(address.hostname or "", address.port), url.cookie, run_id
        self.looking, self.late_s, self.is_over = looking, late_s, False
        self.seconds: list[float] = []
        self.sizes: list[int] = []
        self.start()

    def run(self) -> None:
        """Poll while `looking` is set, until `is_over`."""
        cursor, _ = poll(self.page, self.cookie, self.run_id, "")
        while not self.is_over:
            self.looking.wait()
            self.page.close()  # the server closes connections that are idle for 5 s; the next request opens it again
            time.sleep(self.late_s)  # so that the 25 viewers do not poll at the same moment
            while self.looking.is_set():
                began = time.perf_counter()
                try:
                    cursor, size = poll(self.page, self.cookie, self.run_id, cursor)
                except RemoteDisconnected:  # more than 5 s late; a browser would also try again
                    self.page.close()
                    continue
                self.seconds.append(time.perf_counter() - began)
                self.sizes.append(size)
                time.sleep(max(0.0, REFRESH_S - (time.perf_counter() - began)))


def viewers() -> dict[str, Any]:
    """Measure with and without 25 viewers."""
    with tempfile.TemporaryDirectory() as home, serve_dashboard(Path(home)) as url:
        client = Client(Store(Path(home)))
        server = server_process(urllib.parse.urlsplit(url).port)
        run = running(client, "mnist-mlp")
        looking = threading.Event()
        everybody = [Viewer(url, run.run_id, looking, i * REFRESH_S / VIEWERS) for i in range(VIEWERS)]
        time.sleep(5)  # every viewer has its first answer
        windows = [window(server, looking, watched=bool(i % 2)) for i in range(2 * PAIRS)]
        looking.clear()
        for viewer in everybody:
            viewer.is_over = True
        time.sleep(REFRESH_S)  # so that no viewer polls a server that has ended
        run.refresh()
        client.cancel(run.run_id)
        wait(lambda: run.refresh() is not None and run.is_over)
    speeds = [speed(run, *w["time"]) for w in windows]
    pairs = list(zip(windows[::2], windows[1::2], strict=True))
    ratios = [watched / alone for alone, watched in zip(speeds[::2], speeds[1::2], strict=True)]
    seconds = [s for viewer in everybody for s in viewer.seconds]
    return {
        "viewers": VIEWERS,
        "refresh_s": REFRESH_S,
        "polls": len(seconds),
        "route_s": Spread.of(seconds),
        "route_p95_s": float(np.percentile(seconds, 95)),
        "bytes": Spread.of([s for viewer in everybody for s in viewer.sizes]),
        "server_core_share": Spread.of([(b["server_s"] - a["server_s"]) / WINDOW_S for a, b in pairs]),
        "pollers_core_share": Spread.of([b["own_s"] / WINDOW_S for _, b in pairs]),
        "training_speed_watched_over_alone": Spread.of(ratios),
        "ratios": ratios,
    }


def running(client: Client, preset: str) -> Run:
    """Start a training of several minutes and wait until its first seconds have passed."""
    config = with_overrides(preset_config(preset), ["budget.epochs=none", "budget.seconds=600"])
    run = client.store.run(client.submit(config))
    wait(lambda: run.refresh() is not None and len(run.steps) > 1_000)
    return run


def window(server: psutil.Process, looking: threading.Event, *, watched: bool) -> dict[str, Any]:
    """Server CPU time and training speed in one window."""
    looking.set() if watched else looking.clear()
    time.sleep(REFRESH_S)  # until the last viewer has started or stopped polling
    own, began, cpu, own_cpu = psutil.Process(), time.time(), cpu_s(server), cpu_s(psutil.Process())
    time.sleep(WINDOW_S)
    return {"time": (began, time.time()), "server_s": cpu_s(server) - cpu, "own_s": cpu_s(own) - own_cpu}


def speed(run: Run, began: float, ended: float) -> float:
    """Samples per second of wall time between two moments, from the run's own log."""
    assert run.started
    moments = run.started.at + run.steps["elapsed"]
    samples = np.interp([began, ended], moments, run.steps["samples"])
    return float(samples[1] - samples[0]) / (ended - began)


def wait(is_so: Callable[[], bool], *, seconds: float = 120.0) -> float:
    """Wait until `is_so()`; return the seconds.

    Raises:
        TimeoutError: It is not so within `seconds`.
    """
    began = time.perf_counter()
    while not is_so():
        if time.perf_counter() - began > seconds:
            raise TimeoutError(f"Nothing after {seconds:g} s.")
        time.sleep(0.01)
    return time.perf_counter() - began


# --- many runs ----------------------------------------------------------------------------------------------------


def make_runs(store: Store, number: int) -> None:
    """Runs of all presets and three seeds, one in ten failed, 200 steps each, through the engine's own writers."""
    configs = [with_overrides(p.config, [f"seed={seed}"]) for p in PRESETS.values() for seed in range(3)]
    rng = np.random.default_rng(0)
    for i in range(number):
        run_id = store.create(configs[i % len(configs)], name=f"night {i}" if i % 7 == 0 else "")
        log = EventLog(store.folder(run_id) / "events.jsonl")
        log.append(Starting(at=time.time(), pid=1, pid_started=1.0))
        log.append(started(200))
        log.append(
            Steps(
                first=1,
                loss=rng.random(200),
                samples=np.full(200, 64),
                lr=0.1,
                train_s=(0, 1 + rng.random()),
                elapsed_s=(0, 2),
            )
        )
        log.append(
            Evaluation(step=200, train_s=1, elapsed_s=1, test_loss=0.3, test_accuracy=rng.random(), seconds=0.01)
        )
        last = Finished(at=time.time())
        failed = Failed(at=time.time(), cause="Diverged", message="The loss became nan.", fix="Lower the rate.")
        log.close(failed if i % 10 == 0 else last)


def started(steps: int) -> Started:
    """The Started event of a run with so many steps."""
    return Started(
        at=time.time(),
        parameters=101_770,
        train_flops_per_example=408_576,
        train_examples=4_000,
        test_examples=1_000,
        total_steps=steps,
        setup_s=0.1,
    )


def many_runs() -> dict[str, Any]:
    """Measure a store with 10,000 runs."""
    with tempfile.TemporaryDirectory() as home:
        store = Store(Path(home))
        make_runs(store, RUNS)
        began = time.perf_counter()
        with serve_dashboard(Path(home)) as url, browser() as chromium:
            up = time.perf_counter()
            page = url.new_context(chromium).new_page()
            page.goto(f"{url}/runs")
            page.wait_for_selector("canvas", timeout=120_000)
            first = time.perf_counter() - began
            run = running_soon(Client(store))
            all_indexed = wait(lambda: store.listing(limit=0).unread == 0, seconds=600) + time.perf_counter() - began
            queries = {name: queried(ask) for name, ask in queries_of(store).items()}
            server = server_process(urllib.parse.urlsplit(url).port)
            cpu = cpu_s(server)
            actions = on_the_page(page, url, store)
            cpu = (cpu_s(server) - cpu) / (4 * CLICKS)
        with serve_dashboard(Path(home)) as url, browser() as chromium:
            page = url.new_context(chromium).new_page()
            indexed_open = timed(lambda: (page.goto(f"{url}/runs"), page.wait_for_selector("canvas", timeout=60_000)))
    return {
        "runs": RUNS,
        "opened_without_index_s": {"server_up": up - began, "list_drawn": first, "all_indexed": all_indexed},
        "click_while_indexing_to_first_point_s": run,
        "opened_with_index_page_s": indexed_open,
        "queries_s": queries,
        "page_s": actions,
        "server_cpu_s_per_action": cpu,
        "page_p95_s": {name: float(np.percentile(seconds, 95)) for name, seconds in actions.items()},
    }


def running_soon(client: Client) -> float:
    """Seconds from a click to the first point in the log."""
    began = time.perf_counter()
    run = client.store.run(client.submit(with_overrides(preset_config("mnist-mlp"), ["budget.epochs=1"])))
    wait(lambda: run.refresh() is not None and len(run.steps) > 0)
    return time.perf_counter() - began


def queries_of(store: Store) -> dict[str, Callable[[], Any]]:
    """The measured queries by title."""
    return {
        "top 100 by accuracy": lambda: store.listing(order="test_accuracy", limit=100),
        "100 of lowest loss": lambda: store.listing(order="final_train_loss", descending=False, limit=100),
        "search, by accuracy": lambda: store.listing(search="lenet momentum", order="test_accuracy", limit=100),
        "page 90": lambda: store.listing(limit=100, offset=9_000),
        "newest 6, with configuration": lambda: store.rows(limit=6),
    }


def queried(ask: Callable[[], Any]) -> Spread:
    """Seconds of a query, repeated."""
    ask()
    return Spread.of([timed(ask) for _ in range(QUERIES)])


def timed(do: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def on_the_page(page: Any, url: str, store: Store) -> dict[str, list[float]]:
    """Seconds from an action to the resulting list."""
    page.goto(f"{url}/runs")
    says = page.locator(".st-key-pages [data-testid=stCaptionContainer]")
    says.wait_for()
    page.wait_for_timeout(2_000)

    def until(text: str, do: Callable[[], Any]) -> float:
        began = time.perf_counter()
        do()
        says.get_by_text(text).wait_for(timeout=30_000)
        return time.perf_counter() - began

    total = store.listing(limit=0).total
    words = ["lenet", "adam", "failed", "night 7", "digits", "momentum", "full batch", "rnn", "mnist5k", "nan"]
    search, sort, turn = (
        page.get_by_placeholder("Search name, experiment, tag, note or id"),
        page.get_by_role("combobox", name="Sort by"),
        [],
    )
    searches, sorts = [], []
    for i in range(CLICKS):
        word = words[i % len(words)]
        found = store.listing(search=word, limit=0).total
        expected = f"of {found:,} runs" if found else "No run"
        if found:
            searches.append(until(expected, lambda word=word: search.fill(word)))
        search.fill("")
        says.get_by_text(f"of {total:,} runs").wait_for(timeout=30_000)
        turn.append(until("101–200 of", lambda: page.get_by_role("button", name="Next page").click()))

        def choose(i: int = i) -> None:
            sort.click()
            page.get_by_role("option").nth(1 + i % 10).click()

        sorts.append(until("1–100 of", choose))  # another order starts at the first page
    return {"search": searches, "sort": sorts, "turn a page": turn}


# --- a long run ---------------------------------------------------------------------------------------------------


def make_long_run(store: Store, per_record: int) -> str:
    """100,000 steps of 10 ms each, read back `per_record` at a time."""
    config = with_overrides(RunConfig(), ["schedule=cosine", "max_grad_norm=1"])
    run_id = store.create(config, name=f"{per_record} at a time")
    with claim(store.folder(run_id)):  # otherwise the supervisor ends it as a run without a process
        _write_long_run(store.folder(run_id), per_record)
    return run_id


def _write_long_run(folder: Path, per_record: int) -> None:
    log = EventLog(folder / "events.jsonl")
    log.append(started(STEPS))
    rng, step_s = np.random.default_rng(per_record), 0.1 / per_record  # ten read-backs a second
    sampled, evaluated = 0.0, 0
    for first in range(1, STEPS + 1, per_record):
        step, now = np.arange(first, first + per_record), (first + per_record - 1) * step_s
        clock = (now - per_record * step_s, now)
        log.append(
            Steps(
                first=first,
                loss=2 * np.exp(-step / 3e4) + rng.gamma(2, 0.02, per_record),
                samples=np.full(per_record, 64),
                lr=rng.random(per_record),
                train_s=clock,
                elapsed_s=clock,
                norm_steps=step,
                grad_norm=rng.random(per_record),
            )
        )
        if now - sampled >= 0.25:
            sampled = now
            log.append(HardwareSample(elapsed_s=now, readings=dict.fromkeys(HARDWARE, 1e9 * rng.random())))
        if first // 1_000 > evaluated:
            evaluated = first // 1_000
            log.append(
                Evaluation(step=first, train_s=now, elapsed_s=now, test_loss=0.2, test_accuracy=0.9, seconds=0.01)
            )
    log.close(Finished(at=time.time()))


DRAWN = """() => [...document.querySelectorAll('.js-plotly-plot')].some(
    p => p.querySelector('.scatterlayer path.js-line')?.getAttribute('d')?.length > 1000)"""


def long_run() -> dict[str, Any]:
    """Measure the page of a run with 100,000 steps."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home, serve_dashboard(Path(home)) as url, browser() as chromium:
        store, address = Store(Path(home)), urllib.parse.urlsplit(url)
        server = server_process(address.port)
        url.new_context(chromium).new_page().goto(f"{url}/train")  # the server has imported what its pages need
        time.sleep(5)
        painted(chromium, url, make_run(store).run_id, server)  # not counted
        short = [painted(chromium, url, make_run(store).run_id, server) for _ in range(LONG_RUNS)]
        results["1,260 steps, to compare"] = _columns(short)
        for per_record in (1, 10, 100):
            ids = [make_long_run(store, per_record) for _ in range(LONG_RUNS + 1)]
            log = store.folder(ids[0]) / "events.jsonl"
            reads = [timed(lambda ids=ids: store.run(ids[0])) for _ in range(5)]
            answer: list[int] = []
            connection = HTTPConnection(address.hostname or "", address.port)
            route = timed(lambda ids=ids: answer.append(poll(connection, url.cookie, ids[0], "")[1]))  # noqa: B023
            results[f"{per_record} steps a record"] = {
                "log_bytes": log.stat().st_size,
                "read_s": Spread.of(reads),
                "route_first_answer_s": route,
                "answer_bytes": answer[0],
            }
            paints = [painted(chromium, url, run_id, server) for run_id in ids[1:]]
            results[f"{per_record} steps a record"] |= _columns(paints)
            ids = [make_long_run(store, per_record) for _ in range(LONG_RUNS)]
            results[f"{per_record} steps a record"]["opened_from_list_s"] = opened(chromium, url, ids)
    return results


def opened(chromium: Any, url: Served, run_ids: list[str]) -> list[float]:
    """Seconds from a click on Open in the list of runs to the drawn curve."""
    page, seconds = url.new_context(chromium, viewport={"width": 1440, "height": 900}).new_page(), []
    for run_id in run_ids:
        page.goto(f"{url}/runs?q={run_id}")
        page.wait_for_timeout(2_000)
        table = page.locator("canvas").first.bounding_box()
        page.mouse.click(table["x"] + 15, table["y"] + 52)  # the box that selects the first row
        link = page.get_by_role("link", name="Open")
        link.wait_for()
        page.wait_for_timeout(2_000)
        seconds.append(timed(lambda link=link: (link.click(), wait(lambda: page.evaluate(DRAWN), seconds=60))))
    page.context.close()
    return seconds


def _columns(paints: list[tuple[float, float]]) -> dict[str, list[float]]:
    seconds, cpu = zip(*paints, strict=True)
    return {"first_paint_s": list(seconds), "first_paint_server_cpu_s": list(cpu)}


def painted(chromium: Any, url: Served, run_id: str, server: psutil.Process) -> tuple[float, float]:
    """Seconds from the address to the drawn curve in an empty browser, and the server's CPU seconds."""
    context = url.new_context(chromium, viewport={"width": 1440, "height": 900})
    page = context.new_page()
    began, cpu = time.perf_counter(), cpu_s(server)
    page.goto(f"{url}/train?run={run_id}", wait_until="commit")
    wait(lambda: page.evaluate(DRAWN), seconds=60)
    seconds = time.perf_counter() - began
    context.close()
    return seconds, cpu_s(server) - cpu


# --- main ---------------------------------------------------------------------------------------------------------

PARTS = {"viewers": viewers, "runs": many_runs, "long": long_run}


def main() -> None:
    """Run the chosen parts, print tables and save the result."""
    chosen, load_before = sys.argv[1:] or list(PARTS), load()
    path = RESULTS / "load.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = {name: results[name] for name in PARTS if name in results}
    for name in chosen:
        before = load()
        results[name] = PARTS[name]() | {"load_1min": {"before": before, "after": load()}}
        print(f"{name} measured; load {before:.1f} to {load():.1f}")
    save("load", results, load_before=load_before)
    saved = json.loads(path.read_text(encoding="utf-8"))
    table(["", "measured", "aim", ""], [row for name in chosen for row in ROWS[name](saved[name])])


def viewer_rows(r: dict[str, Any]) -> Iterator[list[str]]:
    """The rows of the table on viewers."""
    ratio = Spread(**r["training_speed_watched_over_alone"])
    slower, noisy = (
        1 - ratio.median,
        ratio.p90 - ratio.p10 > 0.06,
    )  # a spread of twice the goal, so that the ratio is not conclusive
    yield ["data route, p95", f"{r['route_p95_s'] * 1e3:.1f} ms", "< 1 s", verdict(r["route_p95_s"] < 1)]
    share = r["server_core_share"]["median"]
    yield ["server, of a core", f"{share:.1%}", "< 50 %", verdict(share < 0.5)]
    says = "inconclusive" if noisy else verdict(slower < 0.03)
    yield ["training, watched over alone", ratio.text(3), "> 0.97", says]


def run_rows(r: dict[str, Any]) -> Iterator[list[str]]:
    """The rows of the table on many runs."""
    for name, p95 in r["page_p95_s"].items():
        yield [f"{name} on the page, p95", f"{p95:.2f} s", "< 1 s", verdict(p95 < 1)]
    for name, spread in r["queries_s"].items():
        aimed = name.startswith("top 100")
        judged = ["< 5 ms", verdict(spread["median"] < 0.005)] if aimed else ["", ""]
        yield [name, f"{spread['median'] * 1e3:.1f} ms", *judged]
    opened = r["opened_without_index_s"]
    yield ["opened without an index", f"{opened['list_drawn']:.1f} s", "< 5 s", verdict(opened["list_drawn"] < 5)]


def long_rows(r: dict[str, Any]) -> Iterator[list[str]]:
    """The rows of the table on a long run."""
    for name, figures in r.items():
        if name != "load_1min":
            if seconds := figures.get("opened_from_list_s"):
                paint = float(np.median(seconds))
                yield [f"{name}: first paint", f"{paint:.2f} s", "< 2 s", verdict(paint < 2)]
            yield [f"{name}: in an empty browser", f"{np.median(figures['first_paint_s']):.2f} s", "", ""]
            yield ["  of it CPU time of the server", f"{np.median(figures['first_paint_server_cpu_s']):.2f} s", "", ""]


ROWS = {"viewers": viewer_rows, "runs": run_rows, "long": long_rows}


if __name__ == "__main__":
    main()
