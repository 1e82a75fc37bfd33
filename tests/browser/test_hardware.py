"""The page Hardware in a real browser: on this machine with a real run, and with fake GPUs."""

from __future__ import annotations

import os
import re
import time

import pynvml
import pytest

from dashboard.api import hardware as hardware_api
from dashboard.api import run as run_api
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.hardware import history, monitor
from engine.hardware.history import Recorder, Span
from engine.hardware.monitor import Monitor
from engine.runtime.client import Client
from engine.store.store import Store
from tests.fake_nvml import FakeGpu, FakeNvml

sync_api = pytest.importorskip("playwright.sync_api")

from starlette.responses import HTMLResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from tests.browser.conftest import serve, serve_dashboard  # noqa: E402
from tests.browser.test_app import wait_for  # noqa: E402

pytestmark = pytest.mark.browser
expect = sync_api.expect
DEBUG = "document.querySelector('[data-testid=monitor]')?.isoflop"
POINTS = f"() => {DEBUG}?.view.traces['cpu.busy_percent']?.x.length ?? 0"
MOUNT = """<!doctype html><body><script type="module">
import { mount } from "./assets/monitor.js";
const data = { intervals_s: [0.25, 1], may_set_interval: true, plotly_version: "1" };
mount({ data, parentElement: document.body, setTriggerValue(name, value) { window.asked = value; } });
</script>"""
GPM = {pynvml.NVML_GPM_METRIC_SM_UTIL: 41.0, pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: 12.0}


# --- with fake GPUs ------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path))
    return Store(tmp_path.resolve())


class FakeRecorder:
    """A recorder with a clock of its own, which begins 4 minutes ago."""

    def __init__(self, store, nvml):
        self.monitor = Monitor(nvml=nvml, wall=lambda: self.at)
        self.recorder = Recorder(store.root, clock=lambda: self.at)
        self.at = time.time() - 240

    def beats(self, number, every_s=0.5):
        for _ in range(number):
            self.at += every_s
            self.recorder.beat(self.monitor)


@pytest.fixture(scope="module")
def view_url():
    with serve(*run_api.ROUTES, *hardware_api.ROUTES, Route("/", lambda _: HTMLResponse(MOUNT))) as url:
        yield url


@pytest.fixture
def open_monitor(tabs, store, view_url):
    with tabs.tab(view_url, 1200, 1000) as tab:

        def show():
            tab.goto(view_url)
            wait_for(tab, f"() => {DEBUG}?.updates ?? 0", lambda n: n > 0)
            return tab

        yield show


def test_two_gpus_are_shown_and_one_field_that_fails_hides_no_other(store, open_monitor):
    lame = FakeGpu(gpm=GPM, throttle=0x4, errors={"nvmlDeviceGetTemperature": pynvml.NVML_ERROR_NOT_SUPPORTED})
    recorded = FakeRecorder(
        store,
        FakeNvml(lame, FakeGpu(uuid="GPU-b", name="NVIDIA <b>A100</b>", processes=((1, 5 << 30), (os.getpid(), 1)))),
    )
    recorded.beats(200)
    page = open_monitor()
    expect(page.get_by_test_id("value-gpu0-power")).to_have_text("250W")
    expect(page.get_by_test_id("value-gpu0-activity")).to_have_text("87%")
    expect(page.get_by_test_id("words-gpu0-activity")).to_contain_text("100 % does not mean the GPU is full")
    expect(page.get_by_test_id("missing-gpu0")).to_contain_text("Temperature, PCIe, NVLink: NVML: not supported.")
    expect(page.get_by_test_id("chart-gpu0-temperature")).to_be_hidden()
    expect(page.get_by_test_id("value-gpu1-temperature")).to_have_text("51°C")
    expect(page.get_by_test_id("words-gpu1-activity")).to_contain_text("GPM needs a Hopper")
    expect(page.get_by_test_id("words-gpu0-clocks")).to_contain_text("Clock limited by the power limit.")
    expect(page.get_by_test_id("group-gpu1")).to_contain_text("GPU 1 · NVIDIA <b>A100</b>")
    expect(page.get_by_test_id("processes-gpu1")).to_contain_text("another process · 5.00 GiB")
    expect(page.get_by_test_id("gpu-reason")).to_be_hidden()


def test_of_sixteen_gpus_two_are_open_and_the_others_a_click_away(store, open_monitor):
    recorded = FakeRecorder(store, FakeNvml(*(FakeGpu(uuid=f"GPU-{n}", gpm=GPM) for n in range(16))))
    recorded.beats(20)
    page = open_monitor()
    expect(page.get_by_test_id("chart-gpu1-power")).to_be_visible()
    expect(page.get_by_test_id("chart-gpu15-power")).to_be_hidden()
    expect(page.get_by_test_id("summary-gpu15")).to_have_text("87 % · 1.00 GiB · 250 W · 51 °C")
    page.get_by_test_id("group-gpu15").get_by_role("button").first.click()
    expect(page.get_by_test_id("value-gpu15-power")).to_have_text("250W")


def test_new_readings_move_the_charts_without_mounting_them_again_and_zoom_stays_for_all(store, open_monitor):
    recorded = FakeRecorder(store, FakeNvml(FakeGpu(gpm=GPM)))
    recorded.recorder.spans = (Span("a" * 16, "<img src=x> *mine*", recorded.at + 60, recorded.at + 100),)
    recorded.beats(440)
    page = open_monitor()
    expect(page.get_by_test_id("run-" + "a" * 16).get_by_role("link")).to_have_text("<img src=x> *mine*")
    assert (
        page.get_by_test_id("run-" + "a" * 16)
        .get_by_role("link")
        .get_attribute("href")
        .endswith("/train?run=" + "a" * 16)
    )
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.3 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], y, steps=5)
    page.mouse.up()
    wait_for(page, f"() => {DEBUG}.view.zoom", bool, seconds=10)
    mounts = page.evaluate(f"() => {DEBUG}.mounts")
    updates = page.evaluate(f"() => {DEBUG}.updates")
    recorded.beats(20)
    wait_for(page, f"() => {DEBUG}.updates", lambda n: n > updates + 2)
    ranges = page.evaluate(
        "() => [...document.querySelectorAll('.js-plotly-plot')].map((p) => p.layout.xaxis.range.map((x) => +new Date(x)))"
    )
    assert len({tuple(r) for r in ranges}) == 1
    assert ranges[0][1] - ranges[0][0] < 200_000
    assert page.evaluate(f"() => {DEBUG}.mounts") >= mounts
    assert page.evaluate(f"() => {DEBUG}.loads") == 1
    page.get_by_test_id("reset-zoom").click()
    expect(page.get_by_test_id("reset-zoom")).to_be_hidden()


def test_pause_time_window_and_interval_work(store, open_monitor):
    recorded = FakeRecorder(store, FakeNvml(FakeGpu()))
    recorded.beats(300)
    page = open_monitor()
    page.get_by_test_id("window-60").click()
    expect(page.get_by_test_id("window-60")).to_have_attribute("aria-pressed", "true")
    page.get_by_test_id("pause").click()
    polls = page.evaluate(f"() => {DEBUG}.polls")
    page.wait_for_timeout(2_500)  # it polls every second
    assert page.evaluate(f"() => {DEBUG}.polls") <= polls + 1
    page.get_by_test_id("pause").click()
    wait_for(page, f"() => {DEBUG}.polls", lambda n: n > polls + 1)
    page.get_by_test_id("interval").select_option("1")
    assert page.evaluate("() => window.asked") == 1


READS = (
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetMemoryInfo",
    "nvmlGpmSampleGet",
    "nvmlDeviceGetHandleByIndex",
)


def test_a_lost_gpu_shows_no_old_value_as_current_and_its_reason_once(store, open_monitor):
    gpus = FakeGpu(gpm=GPM), FakeGpu(uuid="GPU-b", name="NVIDIA H200")
    recorded = FakeRecorder(store, FakeNvml(*gpus))
    recorded.beats(100)
    page = open_monitor()
    expect(page.get_by_test_id("value-gpu0-power")).to_have_text("250W")
    gpus[0].errors |= dict.fromkeys(READS, pynvml.NVML_ERROR_GPU_IS_LOST)
    recorded.beats(150)
    expect(page.get_by_test_id("value-gpu0-power")).to_have_text("–W")
    expect(page.get_by_test_id("rest-gpu0")).to_have_text("This GPU cannot be read now. NVML: GPU is lost.")
    expect(page.get_by_test_id("summary-gpu0")).to_have_text("")
    expect(page.get_by_test_id("words-gpu0-temperature")).to_be_hidden()
    expect(page.get_by_test_id("value-gpu1-power")).to_have_text("250W")
    expect(page.get_by_test_id("rest-gpu1")).to_be_hidden()


def test_a_gpu_that_was_not_read_has_a_marked_gap_with_its_reason(store, open_monitor, monkeypatch):
    monkeypatch.setattr(history, "REST_AFTER_S", 20)
    recorded = FakeRecorder(store, FakeNvml(FakeGpu()))
    recorded.beats(120)
    page = open_monitor()  # this counts as a look
    recorded.beats(10)
    expect(page.get_by_test_id("value-gpu0-power")).to_have_text("250W")
    expect(page.get_by_test_id("rest-gpu0")).to_contain_text("this page was not open and no run used a GPU")
    marks = "() => document.querySelector('[data-testid=plot-gpu0-power]').layout.shapes.map((s) => s.label?.text)"
    wait_for(page, marks, lambda words: "not read" in words)


def test_in_a_container_processes_have_no_owner(store, open_monitor, monkeypatch):
    monkeypatch.setattr(monitor, "has_own_pids", lambda _: True)
    FakeRecorder(store, FakeNvml(FakeGpu(processes=((4_000_001, 5 << 30),)))).beats(20)
    holders = open_monitor().get_by_test_id("processes-gpu0")
    expect(holders).to_contain_text("a process · 5.00 GiB")
    expect(holders).to_contain_text("the owners are not known")


def test_each_title_explains_the_method(store, open_monitor):
    FakeRecorder(store, FakeNvml(FakeGpu())).beats(20)
    page = open_monitor()
    titles = page.locator(".iso-asks:visible")
    assert titles.count() > 8
    for n in range(titles.count()):
        assert "measured: " in titles.nth(n).get_attribute("title")
    titles.first.click()
    expect(page.locator(".iso-how:visible")).to_contain_text("measured: NVML")


# --- on this machine ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("hardware-store")
    with serve_dashboard(home) as url:
        yield url, home


@pytest.fixture
def tab(tabs, served):
    with tabs.tab(served[0]) as tab:
        yield tab


@pytest.mark.parametrize("width", [1440, 390])
def test_opening_the_page_shows_history_and_the_run_that_trains(tab, served, width):
    url, home = served
    client = Client(Store(home))
    run_id = client.submit(
        with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.seconds=60"]), name="<b>mine</b>"
    )
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(f"{url}/hardware")
    before = wait_for(tab, POINTS, lambda n: n > 8, seconds=60)
    run = tab.get_by_test_id(f"run-{run_id}")
    expect(run.get_by_role("link")).to_have_text("<b>mine</b>", timeout=30_000)
    wait_for(tab, POINTS, lambda n: n > before)
    expect(tab.get_by_test_id("value-own")).to_have_text(re.compile(r"\d+%"))
    expect(tab.get_by_test_id("value-memory")).to_contain_text("of ")
    if tab.evaluate(f"() => {DEBUG}.view.about.gpus.length") == 0:
        expect(tab.get_by_test_id("gpu-reason")).to_contain_text("No NVIDIA driver on this machine")
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= width
    client.cancel(run_id)
    tab.reload()
    assert wait_for(tab, POINTS, lambda n: n > 0) > before  # the whole history at once


def test_the_chosen_interval_reaches_the_supervisor(tab, served):
    url, home = served
    tab.goto(f"{url}/hardware")
    wait_for(tab, POINTS, lambda n: n > 0, seconds=60)
    tab.get_by_test_id("interval").select_option("2")
    wait_for(tab, f"() => {DEBUG}.view.answer.interval_s", lambda s: s == 2, seconds=30)
    assert (home / "monitor.json").read_text() == '{"interval_s":2.0}'
