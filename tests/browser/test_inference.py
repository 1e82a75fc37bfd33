"""The page Inference in a real browser: from a training run to a recommended cell, and the live view on a real log."""

from __future__ import annotations

import re
import shutil
import time

import pytest

from dashboard.api import inference as inference_api
from dashboard.api import readers
from dashboard.api import run as run_api
from engine.config.inference import infer_config, infer_matrix
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.events.inference import Latency
from engine.runtime.client import Client
from engine.store.store import Store
from engine.studies.inference import RUNTIME_WORDS

sync_api = pytest.importorskip("playwright.sync_api")

from starlette.responses import HTMLResponse, JSONResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from tests.browser.conftest import serve, serve_dashboard  # noqa: E402
from tests.browser.test_app import wait_for  # noqa: E402

pytestmark = pytest.mark.browser
expect = sync_api.expect
PATIENCE_MS = 60_000
DEBUG = "document.querySelector('[data-testid=inference]')?.isoflop"
SIZES = (1, 8, 64)
MOUNT = """<!doctype html><body><script type="module">
import { mount, pick } from "./assets/inference.js";
window.told = {};
const tell = (name, value) => (window.told[name] = value);
window.remount = async () => {
  const data = await (await fetch("./data")).json();
  window.end = (data.rows ? pick : mount)({ data, parentElement: document.body, setStateValue: tell, setTriggerValue: tell });
};
window.remount();
</script>"""


# --- from a training run to a recommendation, through the whole app --------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("inference-store")
    with serve_dashboard(home) as url:
        yield url, home


def until_over(home, run_id):
    run = Store(home).run(run_id)
    for _ in range(1200):
        run.refresh()
        if run.is_over:
            assert run.status == "finished", run.why()
            return run
        time.sleep(0.1)
    raise AssertionError("the run is still running")


@pytest.fixture(scope="module")
def trained(served):
    _, home = served
    config = with_overrides(preset_config("digits-mlp"), ["budget.epochs=3"])
    return until_over(home, Client(Store(home)).submit(config, name="<b>mine</b>"))


@pytest.fixture(scope="module")
def measured(served, trained):
    """A measurement of three batch sizes and two runtimes."""
    _, home = served
    base = infer_config(trained.config, trained.run_id, seconds=0.3, rounds=3)
    config = infer_matrix(base, SIZES, runtimes=("inference_mode", "channels_last"))
    return until_over(home, Client(Store(home)).submit(config))


@pytest.fixture
def tab(tabs, served):
    url, _ = served
    with tabs.tab(url, 1440, 1000) as tab:
        yield tab


def test_from_a_finished_training_to_the_cell_to_deploy(tab, served, trained):
    url, _ = served
    tab.goto(f"{url}/train?run={trained.run_id}")
    tab.get_by_role("link", name="Measure inference").click(timeout=PATIENCE_MS)
    expect(tab.get_by_test_id("stMainBlockContainer")).to_contain_text("Press Run", timeout=PATIENCE_MS)
    for size in (2, 4, 16, 32, 128, 256, 512, 1024):
        tab.get_by_test_id(f"pick-row-{size}").click()
    expect(tab.get_by_test_id("pick-64x1")).to_have_attribute("aria-checked", "true")
    expect(tab.get_by_test_id("pick-2x1")).to_have_attribute("aria-checked", "false")
    seconds = tab.get_by_role("spinbutton", name="Seconds per combination")
    seconds.fill("0.3")
    seconds.press("Enter")
    expect(tab.get_by_text(re.compile(r"6 combinations: about .*estimated"))).to_be_visible(timeout=30_000)
    tab.get_by_role("button", name="Run", exact=True).click()
    wait_for(tab, f"() => {DEBUG}?.view.cells.size ?? 0", lambda n: n >= 3, seconds=60)
    expect(tab.get_by_test_id("inference-status")).to_have_text("Finished", timeout=120_000)
    limit = tab.get_by_role("spinbutton", name="Latency limit (ms)")
    limit.fill("60000")
    limit.press("Enter")
    expect(tab.get_by_test_id("sentence")).to_contain_text("Deploy batch 64", timeout=30_000)
    expect(tab.get_by_test_id("besides")).to_contain_text(re.compile(r"\d\d\.\d\d %"))
    wait_for(tab, "() => location.search", lambda text: "limit=60000" in text)
    tab.get_by_test_id("throughput-64x1").click()
    expect(tab.get_by_test_id("detail-title")).to_have_text("Batch 64, 1 thread", timeout=30_000)
    wait_for(tab, "() => location.search", lambda text: "cell=64x1" in text)
    tab.reload()
    expect(tab.get_by_test_id("detail-title")).to_have_text("Batch 64, 1 thread", timeout=PATIENCE_MS)


@pytest.mark.parametrize("width", [1440, 390])
def test_a_measurement_fits_its_screen(tab, served, measured, width):
    url, _ = served
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(f"{url}/inference?run={measured.run_id}")
    tab.locator('[data-testid="plot-curve"].js-plotly-plot').wait_for(timeout=PATIENCE_MS)
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= width


# --- the view by itself, fed by our own route from a log that grows ---------------------------------------------------


class Shown:
    def __init__(self, page, url, data):
        self.page, self.url, self.data = page, url, data

    def open(self, **data):
        self.data.update(data)
        self.page.goto(self.url)
        return self.page

    def remount(self, **data):
        """As on a rerun of the page."""
        self.data.update(data)
        self.page.evaluate("() => window.remount()")


@pytest.fixture(scope="module")
def view():
    """The address of a page that mounts the view, and the data it mounts it with."""
    data: dict = {}
    routes = [
        *run_api.ROUTES,
        *inference_api.ROUTES,
        Route("/", lambda _: HTMLResponse(MOUNT)),
        Route("/data", lambda _: JSONResponse(data)),
    ]
    with serve(*routes) as url:
        yield url, data


@pytest.fixture
def shown(tabs, view, tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path))
    readers._readers.cache_clear()
    url, data = view
    data.clear()
    data.update(version="", plotly_version="1")
    with tabs.tab(url, 1200, 1000) as tab:
        yield Shown(tab, url, data)


class Replayed:
    """The log of a run, written again in parts."""

    def __init__(self, store, run):
        self.folder = store.runs / run.run_id
        self.folder.mkdir(parents=True)
        shutil.copy(run.folder / "config.json", self.folder)
        self.lines = (run.folder / "events.jsonl").read_bytes().splitlines(keepends=True)
        self.at = [n for n, line in enumerate(self.lines) if b'"kind":"latency"' in line]

    def until(self, count):
        """Write everything before the latency event with this number; everything if it is None."""
        end = self.at[count] if count is not None else len(self.lines)
        (self.folder / "events.jsonl").write_bytes(b"".join(self.lines[:end]))


def data_of(run):
    return {"key": "k", "runs": [run.run_id], "alive": True, "limit_s": 60.0, "quantile": "p99", "cell": None}


def counted(page, what):
    return page.evaluate(f"() => {DEBUG}.{what}")


def test_maps_fill_and_sharpen_in_place_and_a_chart_is_mounted_once(shown, measured, tmp_path):
    log = Replayed(Store(tmp_path.resolve()), measured)
    log.until(0)
    page = shown.open(**data_of(measured))
    expect(page.get_by_test_id("sentence")).to_have_text("Nothing is measured yet.", timeout=PATIENCE_MS)
    cells = page.locator("[data-testid^=throughput-][data-known]")
    expect(cells).to_have_count(0)
    expect(page.get_by_test_id("throughput-inference_modex64")).to_have_attribute(
        "title", re.compile("not measured yet")
    )
    page.get_by_test_id("throughput-inference_modex64").evaluate("(node) => { node.mine = true; }")
    log.until(2)
    expect(cells).to_have_count(2, timeout=30_000)
    first = cells.all_inner_texts()
    log.until(3)
    expect(cells).to_have_count(3, timeout=30_000)
    mounts = counted(page, "mounts")
    log.until(None)
    expect(page.get_by_test_id("inference-status")).to_have_text("Finished", timeout=30_000)
    assert cells.all_inner_texts() != first
    assert counted(page, "mounts") == mounts and counted(page, "loads") == 1
    assert page.get_by_test_id("throughput-inference_modex64").evaluate("(node) => node.mine === true")
    wait_for(page, "() => window.told.ended", lambda said: said == "finished")
    polls = counted(page, "polls")
    page.wait_for_timeout(1_300)  # a running run is polled every second
    assert counted(page, "polls") == polls  # the run is over, so the view does not poll


def test_a_limit_moves_the_sentence_and_takes_the_colour_of_cells_over_it(shown, measured, tmp_path):
    Replayed(Store(tmp_path.resolve()), measured).until(None)
    page = shown.open(**data_of(measured))
    expect(page.get_by_test_id("sentence")).to_contain_text("Deploy batch 64", timeout=PATIENCE_MS)
    over = page.locator("[data-testid^=latency-][data-over]")
    expect(over).to_have_count(0)
    shown.remount(limit_s=1e-9)
    expect(page.get_by_test_id("sentence")).to_contain_text("No combination stays under", timeout=30_000)
    expect(over).to_have_count(len(SIZES))
    expect(page.locator("[data-sweet]")).to_have_count(0)


def test_a_cell_opens_its_distribution_and_its_time_with_the_hardware_on_one_axis(shown, measured, tmp_path):
    Replayed(Store(tmp_path.resolve()), measured).until(None)
    page = shown.open(**data_of(measured))
    page.get_by_test_id("latency-inference_modex8").click(timeout=PATIENCE_MS)
    page.locator('[data-testid="plot-timeline"].js-plotly-plot').wait_for(timeout=PATIENCE_MS)
    expect(page.get_by_test_id("detail-title")).to_contain_text("Batch 8")
    assert page.evaluate("() => window.told.cell") == "8x1-fp32-inference_mode"
    axes = page.evaluate(
        "() => document.querySelector('[data-testid=plot-timeline]').data.map((t) => [t.xaxis ?? 'x', t.yaxis ?? 'y'])"
    )
    assert {x for x, _ in axes} == {"x"} and {"y", "y2"} <= {y for _, y in axes}
    latency = next(m for cell, m in measured.by_key(Latency).items() if cell.batch_size == 8)
    drawn = page.evaluate("() => document.querySelector('[data-testid=plot-histogram]').data[0].y")
    assert sum(drawn) == latency.requests
    expect(page.get_by_test_id("detail-facts")).to_contain_text("Test accuracy")
    page.get_by_test_id("latency-inference_modex8").click()
    expect(page.get_by_test_id("detail")).to_be_hidden()
    assert page.evaluate("() => window.told.cell") is None


def test_the_ladder_says_why_a_rung_did_not_run(shown, measured, tmp_path):
    Replayed(Store(tmp_path.resolve()), measured).until(None)
    page = shown.open(**data_of(measured))
    ladder = page.get_by_test_id("ladder")
    expect(ladder).to_contain_text("Not run: Channels last is a layout for convolutions", timeout=PATIENCE_MS)
    expect(ladder.locator("tbody th")).to_have_text([RUNTIME_WORDS[r] for r in ("inference_mode", "channels_last")])
    expect(page.get_by_test_id("throughput-channels_lastx1")).to_have_text("not run")


def test_a_run_that_is_gone_is_said(shown, tmp_path):
    page = shown.open(key="k", runs=["f" * 16], alive=False, limit_s=1.0, quantile="p99", cell=None)
    expect(page.get_by_test_id("inference-notice")).to_contain_text("There is no run", timeout=PATIENCE_MS)


def test_cells_are_picked_one_by_one_by_row_and_by_column(shown):
    rows = [{"id": str(n), "label": str(n)} for n in SIZES]
    columns = [{"id": str(n), "label": f"{n} threads", "name": f"{n} threads"} for n in (1, 2)]
    page = shown.open(key="p", rows=rows, columns=columns, corner="all", chosen=["1x1"], disabled=False)

    def told(*cells):
        return wait_for(page, "() => window.told.cells ?? null", lambda found: found == list(cells), seconds=5)

    page.get_by_test_id("pick-64x2").click(timeout=PATIENCE_MS)
    told("1x1", "64x2")
    page.get_by_test_id("pick-column-2").click()
    told("1x1", "1x2", "8x2", "64x2")
    page.get_by_test_id("pick-row-1").click()
    told("8x2", "64x2")
    page.get_by_test_id("pick-8x1").press("Space")
    told("8x1", "8x2", "64x2")
    page.get_by_test_id("pick-all").click()
    expect(page.locator(".inf-box[aria-checked=true]")).to_have_count(6)
