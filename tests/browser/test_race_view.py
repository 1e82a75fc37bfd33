"""The live view of a race in a real browser, with our own routes and logs that the tests write."""

from __future__ import annotations

import time

import numpy as np
import pytest

from dashboard.api import race as race_api
from dashboard.api import readers
from dashboard.api import run as run_api
from engine.charts.facts import RACE_CHARTS, RACE_COLUMNS, as_json
from engine.charts.style import PALETTE
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.lifecycle import Failed, Finished, Starting
from engine.events.machine import Busy
from engine.events.target import to_target
from engine.store.store import Store
from tests.dashboard.test_literal import IMAGE
from tests.dashboard.test_run_api import Worker
from tests.fakes import make_run

sync_api = pytest.importorskip("playwright.sync_api")

from starlette.responses import HTMLResponse, JSONResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from tests.browser.conftest import serve  # noqa: E402
from tests.browser.test_app import wait_for  # noqa: E402

pytestmark = pytest.mark.browser
expect = sync_api.expect
PATIENCE_MS = 20_000
MOUNT = """<!doctype html><body><script type="module">
import { mount } from "./assets/race.js";
const parentElement = document.body.appendChild(document.createElement("div"));
window.told = { target: [], ended: [] };
const tell = (name, value) => window.told[name].push(value);
window.remount = async () => {
  const data = await (await fetch("data")).json();
  mount({ data, parentElement, setStateValue: tell, setTriggerValue: tell });
};
await window.remount();
</script>"""


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path))
    monkeypatch.setattr(readers, "_REFRESH_S", 0.0)
    readers._readers.cache_clear()
    return Store(tmp_path.resolve())


class Race:
    """The view of a race, as a test uses it."""

    def __init__(self, tab, url: str) -> None:
        self.tab, self.url = tab, url
        self.data = {
            "key": "race",
            "lanes": [],
            "target": None,
            "axis": "steps",
            "alive": True,
            "price": 3.6,
            "palette": list(PALETTE),
            "version": "",
            "plotly_version": "1",
            "charts": as_json(RACE_CHARTS),
            "how": RACE_COLUMNS,
        }

    def lane(self, label: str, *run_ids: str, color: int | None = None, baseline: bool = False) -> Race:
        runs = [{"id": run_id, "seed": seed} for seed, run_id in enumerate(run_ids)]
        place = len(self.data["lanes"]) if color is None else color
        self.data["lanes"].append({"label": label, "color": place, "runs": runs, "baseline": baseline})
        return self

    def open(self, **data) -> Race:
        self.data |= data
        self.tab.goto(self.url)
        return self

    def remount(self, **data) -> None:
        """Mount the view again, as a rerun of the page does."""
        self.data |= data
        self.tab.evaluate("() => window.remount()")

    def drawn(self, chart: str = "loss") -> Race:
        self.tab.locator(f'[data-testid="race-plot-{chart}"].js-plotly-plot').wait_for(timeout=PATIENCE_MS)
        self.settled()
        return self

    def settled(self) -> None:
        """Wait until a poll that began after this call is drawn. A view that does not poll must rest for 200 ms."""
        polls, updates, _ = self._state()
        until, quiet = time.monotonic() + 5, 0
        while quiet < 4 and time.monotonic() < until:
            self.tab.wait_for_timeout(50)
            now, drawn, asks = self._state()
            if asks and now >= polls + 2:
                return
            quiet, updates = quiet + 1 if not asks and drawn == updates else 0, drawn

    def _state(self) -> tuple[int, int, bool]:
        return tuple(
            self.tab.evaluate(
                "() => { const { polls, updates, view } = document.querySelector('[data-testid=race]').isoflop;"
                " return [polls, updates, view.needsPoll()]; }"
            )
        )

    def raw(self) -> None:
        """Switch smoothing off."""
        self.tab.get_by_test_id("race-smoothing").last.fill("0")
        self.settled()

    def traces(self, chart: str, what: str = "main") -> list[dict]:
        """The traces of a chart as Plotly has them: lines, crossings, marks or the noise floor."""
        return self.tab.evaluate(
            """([chart, what]) => document.querySelector(`[data-testid="race-plot-${chart}"]`).data
                .filter((t) => t.meta?.[what])
                .map(({ x, y, name, line, meta, marker, text }) => ({ x, y, name, color: line?.color, lane: meta.lane, text }))""",
            [chart, what],
        )

    def layout(self, chart: str) -> dict:
        return self.tab.evaluate(
            '(chart) => { const { xaxis, yaxis } = document.querySelector(`[data-testid="race-plot-${chart}"]`).layout;'
            " return { x: xaxis.range, y: yaxis.range, title: xaxis.title.text, log: [xaxis.type, yaxis.type] }; }",
            chart,
        )

    def told(self, what: str) -> list:
        return self.tab.evaluate("(what) => window.told[what]", what)

    @property
    def debug(self) -> dict:
        return self.tab.evaluate(
            "() => { const { polls, updates, mounts } = document.querySelector('[data-testid=race]').isoflop;"
            " return { polls, updates, mounts }; }"
        )

    def cell(self, name: str, place: int = 0):
        return self.tab.get_by_test_id(f"lane-{name}-{place}")


@pytest.fixture(scope="module")
def served():
    """Our routes and a page that mounts the view with `served.data`."""

    class Served:
        data: dict

    routes = [
        *run_api.ROUTES,
        *race_api.ROUTES,
        Route("/", lambda _: HTMLResponse(MOUNT)),
        Route("/data", lambda _: JSONResponse(Served.data)),
    ]
    with serve(*routes) as Served.url:
        yield Served


@pytest.fixture
def race(tabs, store, served):
    """A tab for a race."""
    with tabs.tab(served.url, 1280) as tab:
        shown = Race(tab, served.url)
        served.data = shown.data
        yield shown


def finished(store, *assignments: str, **how):
    return make_run(store, with_overrides(RunConfig(), assignments), **how)


# --- what is drawn is what was stored ------------------------------------------------------------------------------


def test_the_lines_equal_the_stored_series_on_every_axis(store, race):
    run = finished(store, num_steps=300)
    race.lane("one", run.run_id).open().drawn()
    race.raw()
    race.tab.get_by_test_id("race-extra").click()
    seconds, samples = run.steps["seconds"], run.steps["samples"]
    axes = {
        "steps": run.steps["step"],
        "samples": samples,
        "epochs": samples / 4_000,
        "seconds": seconds,
        "flops": samples * 408_576,
        "money": seconds * 3.6 / 3_600,
    }
    for axis, x in axes.items():
        race.tab.get_by_test_id(f"axis-{axis}").click()
        race.settled()
        (line,) = race.traces("loss")
        np.testing.assert_allclose(line["x"], x, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(line["y"], run.steps["loss"], rtol=1e-5)
    race.tab.get_by_test_id("axis-steps").click()
    race.settled()
    for chart, table, column, factor in (
        ("test_loss", run.evaluations, "test_loss", 1),
        ("accuracy", run.evaluations, "test_accuracy", 100),
        ("grad_norm", run.grad_norms, "grad_norm", 1),
    ):
        (line,) = race.traces(chart)
        assert line["x"] == table["step"].tolist()
        np.testing.assert_allclose(line["y"], factor * table[column], rtol=1e-5)


def test_several_seeds_are_drawn_as_mean_and_band_until_the_first_of_them_ends(store, race):
    runs = [finished(store, num_steps=n, seed=seed) for seed, n in enumerate((400, 300, 360))]
    race.lane("three", *(run.run_id for run in runs)).open().drawn()
    race.raw()
    (mean,) = race.traces("loss")
    losses = np.array([run.steps["loss"][:300] for run in runs])
    assert mean["name"] == "three · mean of 3"
    assert mean["x"] == list(range(1, 301))
    np.testing.assert_allclose(mean["y"], losses.mean(axis=0), rtol=1e-5)
    band = race.tab.evaluate(
        "() => document.querySelector('[data-testid=race-plot-loss]').data.find((t) => t.fill === 'toself').y"
    )
    np.testing.assert_allclose(band[:300], losses.max(axis=0), rtol=1e-5)
    np.testing.assert_allclose(band[300:600][::-1], losses.min(axis=0), rtol=1e-5)


def test_all_seeds_draws_a_line_for_each_seed(store, race):
    runs = [finished(store, num_steps=200, seed=seed) for seed in range(2)]
    race.lane("two", *(run.run_id for run in runs)).open().drawn()
    race.tab.get_by_test_id("race-all-seeds").click()
    race.raw()
    lines = race.traces("loss")
    assert [line["name"] for line in lines] == ["two · seed 0", "two · seed 1"]
    for line, run in zip(lines, runs, strict=True):
        np.testing.assert_allclose(line["y"], run.steps["loss"], rtol=1e-5)


def test_a_smooth_line_has_the_raw_one_faint_behind_it(store, race):
    run = finished(store, num_steps=400)
    race.lane("one", run.run_id).open().drawn()
    (smooth,) = race.traces("loss")
    faint = race.tab.evaluate(
        "() => document.querySelector('[data-testid=race-plot-loss]').data.find((t) => t.opacity < 0.3).y"
    )
    np.testing.assert_allclose(faint, run.steps["loss"], rtol=1e-5)
    assert np.abs(np.diff(smooth["y"][200:])).mean() < 0.3 * np.abs(np.diff(faint[200:])).mean()


def test_a_lane_has_one_colour_in_its_swatch_and_on_every_chart(store, race):
    for color in (3, 1):
        race.lane(f"lane {color}", finished(store, num_steps=200).run_id, color=color)
    race.open().drawn()
    for chart in ("loss", "test_loss", "accuracy"):
        assert [line["color"] for line in race.traces(chart)] == [PALETTE[3], PALETTE[1]]
    swatch = "(n) => getComputedStyle(n).backgroundColor"
    rgb = "rgb({}, {}, {})".format(*bytes.fromhex(PALETTE[3][1:]))
    assert race.tab.get_by_test_id("swatch-0").evaluate(swatch) == rgb


def test_a_lane_can_be_hidden_and_shown_again(store, race):
    race.lane("a", finished(store, num_steps=200).run_id).lane("b", finished(store, num_steps=200).run_id)
    race.open().drawn()
    race.cell("name").click()
    race.settled()
    assert [line["name"] for line in race.traces("loss")] == ["b"]
    race.cell("name").click()
    race.settled()
    assert [line["name"] for line in race.traces("loss")] == ["a", "b"]


def test_many_runs_send_no_more_points_than_a_browser_can_draw(store, race):
    for lane in range(6):
        workers = [Worker(store).start() for _ in range(6)]
        for worker in workers:
            worker.steps(np.ones(5_000))
        race.lane(f"lane {lane}", *(worker.run_id for worker in workers))
    race.open().drawn()
    race.tab.get_by_test_id("race-all-seeds").click()
    race.raw()
    lines = race.traces("loss")
    assert len(lines) == 36
    assert 36 * 100 < sum(len(line["x"]) for line in lines) <= 9_000


# --- while it runs ---------------------------------------------------------------------------------------------------


def test_nothing_is_drawn_before_there_is_something(store, race):
    worker = Worker(store)
    race.lane("waits", worker.run_id).open()
    expect(race.cell("status")).to_have_text("Queued", timeout=PATIENCE_MS)
    assert race.tab.locator(".js-plotly-plot").count() == 0
    worker.log.append(Starting(at=0.0, pid=1, pid_started=0.0))
    worker.start().steps(np.ones(20))
    race.drawn()
    assert race.tab.locator(".js-plotly-plot").count() == 1
    expect(race.cell("status")).to_have_text("Running")
    expect(race.cell("steps")).to_have_text("20")


def test_zoom_and_settings_survive_updates_and_new_seeds_and_no_chart_is_mounted_twice(store, race):
    worker, other = Worker(store).start(), Worker(store).start()
    worker.steps(np.linspace(2, 1, 400))
    race.lane("grows", worker.run_id).open().drawn()
    race.tab.get_by_test_id("axis-samples").click()
    box = race.tab.locator('[data-testid="race-plot-loss"] .nsewdrag').bounding_box()
    y = box["y"] + box["height"] / 2
    race.tab.mouse.move(box["x"] + 0.2 * box["width"], y)
    race.tab.mouse.down()
    race.tab.mouse.move(box["x"] + 0.6 * box["width"], y, steps=5)
    race.tab.mouse.up()
    race.settled()
    zoom, mounts = race.layout("loss")["x"], race.debug["mounts"]
    race.tab.evaluate("() => { document.querySelector('[data-testid=race-plot-loss]').mine = true; }")
    worker.steps(np.linspace(1, 0.5, 400))
    other.steps(np.linspace(2, 1, 500))
    race.data["lanes"][0]["runs"].append({"id": other.run_id, "seed": 1})
    race.remount()
    race.settled()
    race.settled()
    assert race.layout("loss")["x"] == pytest.approx(zoom)
    assert race.layout("loss")["title"] == "Samples seen"
    assert race.tab.evaluate("() => document.querySelector('[data-testid=race-plot-loss]').mine")
    assert race.debug["mounts"] == mounts
    (mean,) = race.traces("loss")
    assert (mean["name"], mean["x"][-1]) == ("grows · mean of 2", 5_000)
    race.tab.get_by_test_id("race-reset-zoom").click()
    race.settled()
    assert race.layout("loss")["x"] == [0, 8_000]


def test_the_end_is_reported_once_and_again_after_seeds_were_added(store, race):
    worker = Worker(store).start()
    worker.steps(np.ones(20))
    race.lane("ends", worker.run_id).open().drawn()
    assert race.told("ended") == []
    worker.end()
    expect(race.cell("status")).to_have_text("Finished", timeout=PATIENCE_MS)
    race.settled()
    polls = race.debug["polls"]
    race.remount(alive=False)
    race.tab.wait_for_timeout(800)  # a running run is polled every 500 ms
    assert race.told("ended") == [{"finished": 1}]
    assert race.debug["polls"] == polls  # runs that are over are not polled again
    race.data["lanes"][0]["runs"].append({"id": finished(store, num_steps=40, diverges_at=30).run_id, "seed": 1})
    race.remount(alive=True)
    expect(race.cell("status")).to_have_text("Failed 1 of 2", timeout=PATIENCE_MS)
    race.settled()
    assert race.told("ended") == [{"finished": 1}, {"finished": 1, "failed": 1}]


def test_a_page_that_is_hidden_does_not_poll(store, race):
    worker = Worker(store).start()
    worker.steps(np.ones(20))
    race.tab.add_init_script("Object.defineProperty(document, 'hidden', { get: () => window.away === true })")
    race.lane("grows", worker.run_id).open().drawn()
    race.tab.evaluate("() => { window.away = true; }")
    race.tab.wait_for_timeout(300)  # for the answer to the last poll
    polls = race.debug["polls"]
    race.tab.wait_for_timeout(800)  # a running run is polled every 500 ms
    assert race.debug["polls"] == polls
    race.tab.evaluate("() => { window.away = false; document.dispatchEvent(new Event('visibilitychange')); }")
    wait_for(race.tab, "() => document.querySelector('[data-testid=race]').isoflop.polls", lambda n: n > polls)


# --- target and noise floor --------------------------------------------------------------------------------------------


def crossing(run, value: float) -> float:
    """The step at which a run reaches a target, by the engine's rule."""
    step = to_target(run.evaluations["step"], run.evaluations["test_accuracy"], value, lower_is_better=False)
    assert step is not None
    return step


def test_dragging_the_line_reports_the_target_on_release_and_marks_the_crossings(store, race):
    runs = [finished(store, num_steps=1_200, seed=seed) for seed in range(2)]
    race.lane("a", runs[0].run_id).lane("b", runs[1].run_id)
    race.open(target={"metric": "test_accuracy", "value": 0.5}).drawn("accuracy")
    box = race.tab.get_by_test_id("grip-test_accuracy").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    race.tab.mouse.move(x, y)
    race.tab.mouse.down()
    race.tab.mouse.move(x, y - 60, steps=6)
    assert race.told("target") == []
    race.tab.mouse.up()
    race.settled()
    (target,) = race.told("target")
    assert target["metric"] == "test_accuracy"
    assert 0.6 < target["value"] < 0.94
    marks = race.traces("accuracy", "crossing")
    assert [mark["x"] for mark in marks] == [[pytest.approx(crossing(run, target["value"]), rel=1e-4)] for run in runs]
    expect(race.cell("target")).to_have_text(f"{round(crossing(runs[0], target['value']))} steps")
    expect(race.tab.get_by_test_id("target-test_accuracy")).to_have_value(f"{100 * target['value']:.6g}")


def test_a_finger_can_drag_the_line_of_the_other_chart(store, race, browser, served):
    race.lane("a", finished(store, num_steps=1_200).run_id)
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    phone = Race(context.new_page(), served.url)
    phone.data = race.data
    phone.open().drawn("test_loss")
    grip = phone.tab.get_by_test_id("grip-test_loss")
    grip.scroll_into_view_if_needed()
    box = grip.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = context.new_cdp_session(phone.tab)

    def finger(kind: str, *points: float) -> None:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": p} for p in points]})

    finger("touchStart", y)
    for dy in (10, 20, 30):
        finger("touchMove", y + dy)
    finger("touchEnd")
    phone.settled()
    (target,) = phone.told("target")
    assert target["metric"] == "test_loss"
    assert target["value"] > 0
    context.close()


def test_the_target_can_be_typed_moved_by_keys_and_removed(store, race):
    race.lane("a", finished(store, num_steps=1_200).run_id).open().drawn("accuracy")
    field = race.tab.get_by_test_id("target-test_accuracy")
    field.fill("80")
    field.press("Enter")
    race.settled()
    race.tab.get_by_test_id("grip-test_accuracy").focus()
    race.tab.keyboard.press("ArrowUp")
    race.tab.keyboard.press("ArrowUp")
    wait_for(race.tab, "() => window.told.target.length", lambda n: n == 2)  # the keys are reported after a pause
    field.fill("")
    field.press("Enter")
    race.settled()
    first, moved, gone = race.told("target")
    assert (first, gone) == ({"metric": "test_accuracy", "value": 0.8}, None)
    assert 0.8 < moved["value"] <= 0.9
    assert race.traces("accuracy", "crossing") == []


@pytest.mark.parametrize("typed", ["-1", "101"])
def test_an_invalid_target_is_refused(store, race, typed):
    race.lane("a", finished(store, num_steps=400).run_id).open().drawn("accuracy")
    race.tab.get_by_test_id("target-test_accuracy").fill(typed)
    race.tab.get_by_test_id("target-test_accuracy").press("Enter")
    race.settled()
    assert race.told("target") == []


def test_a_target_of_the_page_counts_when_it_changes_and_does_not_undo_the_readers_target(store, race):
    race.lane("a", finished(store, num_steps=1_200).run_id)
    race.open(target={"metric": "test_accuracy", "value": 0.5}).drawn("accuracy")
    field = race.tab.get_by_test_id("target-test_accuracy")
    field.fill("80")
    field.press("Enter")
    race.remount()
    race.settled()
    expect(field).to_have_value("80")
    race.remount(target={"metric": "test_accuracy", "value": 0.7})
    race.settled()
    expect(field).to_have_value("70")


def test_the_noise_floor_lies_around_the_leading_lane(store, race):
    run = finished(store, num_steps=1_200)
    race.lane("a", run.run_id).open().drawn("accuracy")
    (floor,) = race.traces("accuracy", "floor")
    accuracy = run.evaluations["test_accuracy"]
    upper = 100 * (accuracy + np.sqrt((1 - accuracy) / (2 * 1_000)))
    np.testing.assert_allclose(floor["y"][: len(upper)], upper, rtol=1e-5)
    half = 100 * np.sqrt((1 - accuracy[-1]) / 2_000)
    expect(race.tab.get_by_test_id("floor-accuracy")).to_have_text(f"noise floor ±{half:.2f} points")
    assert "1,000 test samples" in race.tab.get_by_test_id("floor-accuracy").get_attribute("title")


# --- errors, and texts of other people --------------------------------------------------------------------


def test_a_lane_that_diverged_has_a_mark_and_its_reason(store, race):
    bad = finished(store, num_steps=400, diverges_at=100)
    race.lane("good", finished(store, num_steps=400).run_id).lane("bad", bad.run_id).open().drawn()
    (mark,) = race.traces("loss", "mark")
    assert (mark["x"], mark["text"], mark["lane"]) == ([100], ["NaN at step 100"], 1)
    expect(race.cell("status", 1)).to_have_text("Failed")
    expect(race.cell("loss", 1)).to_have_text("NaN")
    expect(race.cell("why", 1)).to_have_text("The loss became nan at step 100 with lr=3. Lower the learning rate.")


def test_a_run_that_is_gone_says_so_and_the_others_go_on(store, race):
    race.lane("there", finished(store, num_steps=200).run_id).lane("gone", "0123456789abcdef").open().drawn()
    expect(race.cell("status", 1)).to_have_text("Gone")
    expect(race.cell("why", 1)).to_contain_text("There is no run")


def test_texts_of_other_people_are_shown_as_plain_text(store, race):
    last = Failed(at=0.0, cause="X", message=f"Why: {IMAGE}", fix="<b>Fix</b>")
    run = finished(store, num_steps=300, last=last)
    race.lane(f"{IMAGE} %{{x}} <b>b</b> $x$", run.run_id).open().drawn("accuracy")
    box = race.tab.locator('[data-testid="race-plot-accuracy"] .nsewdrag').bounding_box()
    race.tab.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    hover = race.tab.locator('[data-testid="race-plot-accuracy"] .hoverlayer')
    expect(hover).to_contain_text("<img src=x")
    assert race.tab.locator("img, [onerror], [data-testid=race] b").count() == 0
    assert race.tab.locator(".hoverlayer tspan[style*=bold]").count() == 0
    expect(race.cell("why")).to_have_text(f"Why: {IMAGE} <b>Fix</b>")


def test_money_and_joules_are_axes_only_where_they_are_known(store, race):
    race.lane("a", finished(store, num_steps=200).run_id).open(price=None, axis="money").drawn()
    expect(race.tab.get_by_test_id("axis-money")).to_be_hidden()
    expect(race.tab.get_by_test_id("axis-joules")).to_be_hidden()
    assert race.layout("loss")["title"] == "Steps"


def test_scales_can_be_logarithmic(store, race):
    race.lane("a", finished(store, num_steps=400).run_id).open().drawn()
    race.tab.get_by_test_id("race-log-x").click()
    race.tab.get_by_test_id("race-log-y").click()
    race.settled()
    assert race.layout("loss")["log"] == ["log", "log"]
    assert race.layout("accuracy")["log"] == ["log", "linear"]
    assert race.layout("loss")["x"][0] == pytest.approx(np.log10(0.9))


def test_on_a_phone_nothing_is_wider_than_the_screen(store, race):
    race.tab.set_viewport_size({"width": 390, "height": 800})
    for place in range(3):
        race.lane(f"a lane with quite a long name, number {place}", finished(store, num_steps=300).run_id)
    race.open(target={"metric": "test_accuracy", "value": 0.9}).drawn("accuracy")
    assert race.tab.evaluate("() => document.documentElement.scrollWidth") <= 390


def test_a_lane_whose_runs_were_disturbed_is_marked_beside_its_throughput(store, race):
    busy = Finished(at=0.0, busy=Busy(slowdown=2.5))
    quiet = Finished(at=0.0, busy=Busy(slowdown=1.0))
    disturbed = [make_run(store, seed=seed, num_steps=60, last=last).run_id for seed, last in enumerate((busy, quiet))]
    race.lane("disturbed", *disturbed).lane("quiet", make_run(store, num_steps=60, last=quiet).run_id).open().drawn()
    expect(race.tab.get_by_test_id("lane-busy-0")).to_have_text("busy 1 of 2")
    assert "2.50 times" in race.tab.get_by_test_id("lane-busy-0").get_attribute("title")
    expect(race.tab.get_by_test_id("lane-busy-1")).to_be_hidden()
    assert "standard error" in race.tab.get_by_test_id("lane-accuracy-0").get_attribute("title")
    assert "measured" in race.tab.get_by_test_id("title-loss").get_attribute("title")
