"""From the click on Run to the first point on the page: a real server and a real Chromium.

`python -m benchmarks.first_point`. Warm: a page that has been open for some seconds. Cold: from starting the server on
an empty store to the first point of the first run, nothing imported before.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.measure import Spread, load, save, table
from tests.browser.conftest import CHROMIUM, FLAGS, Served, serve_dashboard

WARM_CLICKS = 8
EXPERIMENT = "train?preset=lenet&budget.epochs=none&budget.seconds=60"
DRAWN = """() => {
  const view = document.querySelector('[data-testid="live-run"]')?.isoflop?.view;
  const drawn = document.querySelector('.js-plotly-plot .main-svg');
  return view && drawn && view.debug.updates && view.traces.loss?.x.length ? view.runId : null;
}"""


def open_page(browser: Browser, url: Served) -> Page:
    """Open the Train page and wait until its form is ready."""
    page = url.new_context(browser, viewport={"width": 1440, "height": 900}).new_page()
    page.goto(f"{url}/{EXPERIMENT}")
    page.get_by_role("button", name="Run", exact=True).wait_for(timeout=60_000)
    return page


def click_to_point(page: Page, before: str | None) -> tuple[float, str]:
    """Click Run; return the seconds until a chart shows a loss of a run other than `before`, and the id of that run.

    Raises:
        TimeoutError: No point is drawn within a minute.
    """
    start = time.perf_counter()
    page.get_by_role("button", name="Run", exact=True).click()
    while time.perf_counter() - start < 60:
        run_id = page.evaluate(DRAWN)
        if run_id and run_id != before:
            return time.perf_counter() - start, run_id
        time.sleep(0.01)
    raise TimeoutError("no point within a minute")


def stop(page: Page) -> None:
    """Press Stop, and wait until the run has ended and one second more."""
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Export").wait_for(timeout=30_000)
    time.sleep(1)


def main() -> None:
    """Measure warm and cold starts, print a table and save the result."""
    load_before = load()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as home:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        begun = time.perf_counter()
        with serve_dashboard(Path(home)) as url:
            page = open_page(browser, url)
            first_click, run_id = click_to_point(page, None)
            cold = time.perf_counter() - begun
            stop(page)
            warm = []
            for _ in range(WARM_CLICKS):
                seconds, run_id = click_to_point(page, run_id)
                warm.append(seconds)
                stop(page)
        browser.close()
    figures = {"warm": Spread.of(warm), "first_click_s": first_click, "from_nothing_s": cold}
    rows = [
        ["page open for some seconds, supervisor warm", figures["warm"].text(), "< 1"],
        ["first click, just after the page has loaded", f"{first_click:.2f}", "-"],
        ["from starting the server on an empty store", f"{cold:.2f}", "< 8"],
    ]
    table(["click to first point on the page, s", "median (p10-p90)", "goal"], rows)
    save("first_point", figures, load_before=load_before)


if __name__ == "__main__":
    main()
