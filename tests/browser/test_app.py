"""The dashboard as its first user meets it: a real server, a real browser, real training."""


import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

LONG = "budget.epochs=none&budget.seconds=60"
POINTS = """() => {
  const el = document.querySelector('[data-testid="live-run"]');
  return el && el.isoflop ? el.isoflop.points("loss") : 0;
}"""
UPDATES = """() => document.querySelector('[data-testid="live-run"]').isoflop.updates"""


def wait_for(page, script, good, *, seconds=30):
    """`page.wait_for_function` needs unsafe-eval; asking again and again does not."""
    for _ in range(int(seconds * 10)):
        value = page.evaluate(script)
        if good(value):
            return value
        page.wait_for_timeout(100)
    raise AssertionError(f"still {value!r} after {seconds} s")


def press_run(page):
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible(timeout=20_000)


@pytest.mark.parametrize("path", ["/", "/train", "/runs"])
@pytest.mark.parametrize("width", [1440, 390])
def test_each_page_paints_without_errors_or_outside_requests(page, app_url, path, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(app_url + path)
    expect(page.get_by_test_id("stMainBlockContainer")).to_be_visible(timeout=20_000)
    page.wait_for_timeout(500)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
