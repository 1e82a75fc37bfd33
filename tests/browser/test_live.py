"""The live view of a run in a real browser, with our own routes and logs that the tests write."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest

from dashboard.api import readers
from dashboard.api import run as run_api
from engine.charts.facts import RANK_CHARTS, RUN_CHARTS, as_json
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Preparing, Started, Starting
from engine.events.machine import Busy, HardwareSample
from engine.events.training import Compiled, Evaluation, Steps, TargetReached
from engine.store.event_log import EventLog
from engine.store.store import Store
from tests.fakes import make_run

sync_api = pytest.importorskip("playwright.sync_api")

from starlette.responses import HTMLResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from tests.browser.conftest import serve  # noqa: E402

pytestmark = pytest.mark.browser
expect = sync_api.expect
MOUNT = """<!doctype html><body><script type="module">
import { mount } from "./assets/live.js";
const data = { run_id: location.search.slice(1), alive: true, plotly_version: "1", charts: CHARTS };
mount({ data, parentElement: document.body, setTriggerValue() {} });
</script>""".replace("CHARTS", json.dumps(as_json([*RUN_CHARTS, *RANK_CHARTS])))
STARTED = Started(
    at=0.0,
    parameters=1,
    train_flops_per_example=1,
    train_examples=1_000,
    test_examples=1,
    total_steps=1_000,
    setup_s=0.0,
)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path))
    readers._readers.cache_clear()
    return Store(tmp_path.resolve())


@pytest.fixture(scope="module")
def view_url():
    with serve(*run_api.ROUTES, Route("/", lambda _: HTMLResponse(MOUNT))) as url:
        yield url


@pytest.fixture
def open_run(tabs, store, view_url):
    """Opens the live view of a run."""
    with tabs.tab(view_url) as tab:

        def show(run_id: str):
            tab.goto(f"{view_url}/?{run_id}")
            return tab

        yield show


class Worker:
    def __init__(self, store: Store, *assignments: str) -> None:
        self.run_id = store.create(with_overrides(RunConfig(), assignments))
        self.log = EventLog(store.folder(self.run_id) / "events.jsonl")
        self.append(Starting(at=0.0, pid=1, pid_started=0.0))

    def append(self, *events: AnyEvent) -> None:
        for event in events:
            self.log.append(event)
        self.log._write()

    def steps(self, first: int, n: int = 20) -> None:
        clock = (first * 0.1, (first + n) * 0.1)
        step = np.arange(first, first + n)
        self.append(
            Steps(
                first=first,
                loss=1 / step,
                samples=np.full(n, 10),
                lr=1e-3 / step,
                train_s=clock,
                elapsed_s=clock,
                norm_steps=step,
                grad_norm=1 / step,
            )
        )


def goals(page) -> list[list[object]]:
    """Heights of the lines and texts of the labels on the chart of accuracy."""
    return page.evaluate(
        """() => { const { shapes = [], annotations = [] } = document.querySelector('[data-testid="plot-accuracy"]').layout;
        return [shapes.map((s) => s.y0), annotations.map((a) => a.text)]; }"""
    )


def test_a_download_has_a_progress_bar_only_if_its_size_is_known(store, open_run):
    worker = Worker(store)
    worker.append(Preparing(text="Downloading mnist", done_bytes=12_000_000, total_bytes=47_000_000))
    page = open_run(worker.run_id)
    expect(page.get_by_test_id("live-left")).to_have_text("Downloading mnist… 12 of 47 MB", timeout=30_000)
    expect(page.get_by_test_id("live-progress")).to_have_attribute("aria-valuenow", "26")
    worker.append(Preparing(text="Unpacking", done_bytes=1_500_000, total_bytes=None))
    expect(page.get_by_test_id("live-left")).to_have_text("Unpacking… 1.5 MB", timeout=30_000)  # Plotly loads meanwhile
    expect(page.get_by_test_id("live-progress")).to_be_hidden()
    worker.append(STARTED)
    expect(page.get_by_test_id("live-left")).to_be_hidden()


def test_a_busy_machine_is_marked_beside_the_throughput_while_the_run_goes_on(store, open_run):
    worker = Worker(store)
    worker.append(STARTED, HardwareSample(elapsed_s=1.0, readings={}, busy=Busy(slowdown=1.0)))
    worker.steps(1)
    page = open_run(worker.run_id)
    expect(page.get_by_test_id("value-throughput")).to_have_text("100samples/s", timeout=30_000)
    expect(page.get_by_test_id("flaw-throughput")).to_be_hidden()
    worker.append(HardwareSample(elapsed_s=2.0, readings={}, busy=Busy(slowdown=2.5)))
    worker.steps(21)
    mark = page.get_by_test_id("flaw-throughput")
    expect(mark).to_have_text("machine was busy")
    assert "2.50 times as long" in mark.get_attribute("title")


def test_each_chart_says_how_its_points_were_obtained(store, open_run):
    page = open_run(make_run(store, gpu=True).run_id)
    titles = page.locator(".iso-asks:visible")
    expect(titles.first).to_have_attribute("title", re.compile("measured"), timeout=30_000)
    for n in range(titles.count()):
        assert re.search("easured|erived", titles.nth(n).get_attribute("title")), titles.nth(n).inner_text()
    page.get_by_test_id("title-accuracy").click()
    expect(page.get_by_test_id("how-accuracy")).to_contain_text("standard error")


def test_compiling_is_shown_while_it_lasts_and_its_time_afterwards(store, open_run):
    worker = Worker(store, "execution=compiled")
    worker.append(STARTED.model_copy(update={"at": time.time()}))
    page = open_run(worker.run_id)
    expect(page.get_by_test_id("live-left")).to_have_text(re.compile(r"Compiling… [\d.]+ s"), timeout=30_000)
    worker.append(Compiled(seconds=12.4))
    worker.steps(1)
    expect(page.get_by_test_id("live-facts")).to_contain_text("compiled in 12 s", timeout=30_000)
    expect(page.get_by_test_id("live-left")).not_to_contain_text("Compiling")


def test_a_target_is_visible_from_the_start_and_its_label_changes_when_it_is_reached(store, open_run):
    worker = Worker(store, "target.value=0.95")
    worker.append(STARTED)
    worker.append(Evaluation(step=0, train_s=0, elapsed_s=0.1, test_loss=2.3, test_accuracy=0.1, seconds=0.01))
    worker.steps(1)
    page = open_run(worker.run_id)
    page.locator('[data-testid="plot-accuracy"].js-plotly-plot').wait_for(timeout=30_000)
    assert goals(page) == [[95], ["target 95 %"]]
    assert page.evaluate("() => document.querySelector('[data-testid=\"plot-accuracy\"]').layout.yaxis.range[1]") > 95
    worker.append(Evaluation(step=340, train_s=1.2, elapsed_s=1.4, test_loss=0.3, test_accuracy=0.96, seconds=0.01))
    expect(page.get_by_test_id("value-accuracy")).to_contain_text("96")
    worker.append(TargetReached(metric="test_accuracy", value=0.96, step=340, train_s=1.2, elapsed_s=1.4))
    expect(page.get_by_test_id("plot-accuracy")).to_contain_text("95 % reached at step 340, 1.2 s")
    mark = "() => document.querySelector('[data-testid=\"plot-accuracy\"]').data.at(-1)"
    assert (page.evaluate(mark)["x"], page.evaluate(mark)["y"]) == ([1.4], [96])


def test_a_schedule_has_its_chart_and_a_constant_learning_rate_none(store, open_run):
    page = open_run(make_run(store, num_steps=200).run_id)
    page.locator('[data-testid="plot-grad_norm"].js-plotly-plot').wait_for(timeout=30_000)
    expect(page.get_by_test_id("chart-lr")).to_be_hidden()
    page = open_run(make_run(store, with_overrides(RunConfig(), ["schedule=cosine"]), num_steps=200).run_id)
    page.locator('[data-testid="plot-lr"].js-plotly-plot').wait_for(timeout=30_000)


def test_the_accuracy_of_a_text_is_titled_for_what_it_is(store, open_run):
    config = with_overrides(RunConfig(), ["model.family=rnn", "data=text"])
    page = open_run(make_run(store, config, num_steps=200).run_id)
    expect(page.get_by_test_id("chart-accuracy")).to_contain_text("Next-character accuracy", timeout=30_000)


def test_gradient_norms_over_two_decades_are_on_a_log_axis_until_it_is_switched_off(store, open_run):
    worker = Worker(store, "schedule=cosine")
    worker.append(STARTED)
    worker.steps(1, n=400)
    page = open_run(worker.run_id)
    kind = "() => document.querySelector('[data-testid=\"plot-grad_norm\"]').layout.yaxis.type"
    page.locator('[data-testid="plot-grad_norm"].js-plotly-plot').wait_for(timeout=30_000)
    assert page.evaluate(kind) == "log"
    page.get_by_test_id("scale-grad_norm").click()
    page.wait_for_timeout(300)
    worker.steps(401)
    page.wait_for_timeout(1_000)
    assert page.evaluate(kind) == "linear"
