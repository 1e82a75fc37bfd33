"""The dashboard with a real server, a real browser and real training."""

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

LONG = "/train?preset=lenet&budget.epochs=none&budget.seconds=120"
LIVE = '[data-testid="live-run"]'
POINTS = f"""() => document.querySelector('{LIVE}')?.isoflop?.view.traces.loss?.x.length ?? 0"""
UPDATES = f"""() => document.querySelector('{LIVE}').isoflop.updates"""


def wait_for(page, script, good, *, seconds=30):
    """Evaluate a script until its value is good. `page.wait_for_function` would need unsafe-eval."""
    for _ in range(int(seconds * 10)):
        value = page.evaluate(script)
        if good(value):
            return value
        page.wait_for_timeout(100)
    raise AssertionError(f"still {value!r} after {seconds} s")


def start_a_long_run(page, app_url):
    page.goto(app_url + LONG)
    page.get_by_role("button", name="Run", exact=True).click(timeout=30_000)
    expect(page.get_by_test_id("stMainBlockContainer").get_by_role("button", name="Stop")).to_be_visible(timeout=30_000)
    wait_for(page, POINTS, lambda n: n > 20)
    page.locator(".js-plotly-plot").first.wait_for()  # points may be there before Plotly is


def drag_over_the_first_chart(page):
    """Zoom with the mouse. Returns the new range of the time axis."""
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.2 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], y, steps=5)
    page.mouse.up()
    wait_for(page, f"() => document.querySelector('{LIVE}').isoflop.view.zoom", bool, seconds=5)
    return page.evaluate("() => document.querySelector('.js-plotly-plot').layout.xaxis.range")


def stop(page):
    page.get_by_test_id("stMainBlockContainer").get_by_role("button", name="Stop").click()
    expect(page.get_by_test_id("live-status")).to_have_text("Cancelled", timeout=30_000)


@pytest.mark.parametrize("path", ["/", "/train", "/runs"])
@pytest.mark.parametrize("width", [1440, 390])
def test_each_page_paints_without_errors_outside_requests_or_sideways_scrolling(page, app_url, path, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(app_url + path)
    expect(page.get_by_test_id("stMainBlockContainer")).to_contain_text(
        {"/": "Isoflop", "/train": "Start from", "/runs": "Library"}[path], timeout=30_000
    )
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_one_click_on_the_start_page_shows_a_network_learning(page, app_url):
    page.goto(app_url)
    page.get_by_role("button", name="Run").first.click(timeout=30_000)
    wait_for(page, POINTS, lambda n: n > 100)
    expect(page.get_by_test_id("live-status")).to_have_text("Finished", timeout=60_000)
    accuracy = page.locator('[data-testid="stMetric"]', has_text="Test accuracy").locator(
        '[data-testid="stMetricValue"]'
    )
    expect(accuracy).to_be_visible(timeout=30_000)
    assert float(accuracy.inner_text().split()[0]) >= 95


def test_zoom_and_a_hidden_line_survive_updates_and_stop_keeps_the_points(page, app_url):
    start_a_long_run(page, app_url)
    page.evaluate("() => { document.querySelector('.js-plotly-plot').__mine = true; }")
    zoom = drag_over_the_first_chart(page)
    page.get_by_test_id("legend-test_loss").wait_for()  # every line is there
    lines = page.evaluate("() => document.querySelector('.js-plotly-plot').data.length")
    page.get_by_test_id("legend-test_loss").click()
    before = page.evaluate(UPDATES)
    wait_for(page, UPDATES, lambda n: n >= before + 4)
    state = page.evaluate(
        "() => { const p = document.querySelector('.js-plotly-plot');"
        " return {same: p.__mine === true, range: p.layout.xaxis.range, lines: p.data.length}; }"
    )
    assert state["same"]
    assert state["range"] == pytest.approx(zoom)
    assert state["lines"] == lines - 1
    stop(page)
    assert page.evaluate(POINTS) > 20


def test_a_reload_finds_the_run_again(page, app_url):
    start_a_long_run(page, app_url)
    page.reload()
    expect(page.get_by_test_id("stMainBlockContainer").get_by_role("button", name="Stop")).to_be_visible(timeout=30_000)
    wait_for(page, POINTS, lambda n: n > 20)
    stop(page)


def test_a_chart_never_holds_more_than_two_thousand_points(page, app_url):
    page.goto(app_url + "/train?preset=mnist-stochastic&budget.seconds=8")
    page.get_by_role("button", name="Run", exact=True).click(timeout=30_000)
    expect(page.get_by_test_id("live-status")).to_have_text("Finished", timeout=60_000)
    drawn = page.evaluate(
        "() => Math.max(...[...document.querySelectorAll('.js-plotly-plot')].flatMap(p => p.data.map(t => t.x.length)))"
    )
    assert 100 < drawn <= 2_000


def test_a_diverged_run_shows_its_mark_its_reason_and_a_fix(page, app_url):
    page.goto(
        app_url
        + "/train?preset=mnist-mlp&model.hidden=[128,128]&optimizer.name=momentum&optimizer.lr=1000&batch_size=64"
    )
    page.get_by_role("button", name="Run", exact=True).click(timeout=30_000)
    expect(page.get_by_test_id("live-status")).to_have_text("Failed", timeout=30_000)
    expect(page.get_by_text("Lower the learning rate")).to_be_visible(timeout=30_000)
    expect(page.locator(LIVE)).to_contain_text("at step")


def test_a_run_is_opened_exported_and_deleted_from_the_list(page, app_url):
    page.goto(app_url + "/train?preset=digits-mlp&budget.epochs=3")
    page.get_by_role("button", name="Run", exact=True).click(timeout=30_000)
    expect(page.get_by_test_id("live-status")).to_have_text("Finished", timeout=30_000)
    page.get_by_role("button", name="Export").click()
    expect(page.get_by_text("Contents of this file")).to_be_visible(timeout=30_000)
    with page.expect_download(timeout=30_000) as download:
        page.get_by_role("button", name="Download isoflop-").click()
    assert b"<html" in download.value.path().read_bytes()[:500]
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Delete").click()
    page.locator(".st-key-delete-for-good button").click()
    expect(page.get_by_role("heading", name="Library")).to_be_visible(timeout=30_000)


def test_the_form_drives_the_address_and_the_address_the_form(page, app_url):
    page.goto(app_url + "/train?preset=lenet&optimizer.lr=0.05")
    lr = page.get_by_role("textbox", name="Learning rate")
    expect(lr).to_have_value("0.05", timeout=30_000)
    lr.fill("nan")
    lr.press("Enter")
    expect(page.get_by_text("optimizer.lr=nan is not allowed")).to_be_visible(timeout=30_000)
    lr.fill("0.1")
    lr.press("Enter")
    expect(page).to_have_url(f"{app_url}/train?preset=lenet&optimizer.lr=0.1", timeout=30_000)
