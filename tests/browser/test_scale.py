"""The page Scale in a real browser: two ranks train live, and each of them on the page Train."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PATIENCE_MS = 120_000
MOUNTS = "() => document.querySelector('[data-testid=scale]').isoflop.mounts"


@pytest.fixture
def scale(page, app_url):
    """The page with a study of three short runs in its form: one rank, and two in either mode, sharing where they must."""
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{app_url}/scale?preset=lenet")
    page.get_by_role("button", name="Start").wait_for()
    fill(page, "Steps per run", "60")
    fill(page, "Repeats", "1")
    if page.get_by_text("so there is no second rank").count():  # one core
        page.get_by_text("More ranks than cores").click()
    asked = page.get_by_text(re.compile(r"configurations x 1 repeat = \d+ runs"))
    page.runs = int(re.search(r"= (\d+) runs", asked.inner_text())[1])  # by how many cores there are
    return page


def fill(page, label: str, text: str) -> None:
    field = page.get_by_label(label, exact=True)
    field.fill(text)
    field.press("Enter")


def all_done(page) -> str:
    return f"{page.runs} of {page.runs} runs done"


def test_two_ranks_train_lenet_from_a_click_to_the_sentence(scale):
    scale.get_by_role("button", name="Start").click()
    expect(scale.get_by_test_id("scale-status")).to_have_text("Running", timeout=PATIENCE_MS)
    scale.locator('[data-testid="scale-plot-speedup"].js-plotly-plot').wait_for()
    scale.evaluate("() => { document.querySelector('[data-testid=scale-plot-speedup]').mine = true; }")
    expect(scale.get_by_test_id("scale-facts")).to_have_text(all_done(scale), timeout=PATIENCE_MS)
    expect(scale.get_by_test_id("scale-status")).to_have_text("Finished")
    verdict = scale.locator(".st-key-scale-verdict")
    expect(verdict).to_contain_text("times as fast as one", timeout=PATIENCE_MS)
    expect(verdict).to_contain_text("Preliminary: 1 of 6 repeats")
    expect(verdict).to_contain_text("Several ranks take the same steps as one")
    expect(scale.get_by_role("button", name="Stop", exact=True)).to_have_count(0, timeout=PATIENCE_MS)
    assert scale.evaluate(
        "() => document.querySelector('[data-testid=scale-plot-speedup]').mine"
    )  # never mounted again
    assert scale.evaluate(MOUNTS) == 3
    dots = scale.evaluate(
        "() => document.querySelector('[data-testid=scale-plot-speedup]').data.find((t) => t.name.startsWith('strong')).y.length"
    )
    assert dots >= 2
    assert "study=" in scale.url


def test_a_study_that_is_stopped_says_how_far_it_came_and_can_be_found_again(scale, tabs, app_url):
    fill(scale, "Steps per run", "100000")
    scale.get_by_role("button", name="Start").click()
    expect(scale.get_by_test_id("scale-status")).to_have_text("Running", timeout=PATIENCE_MS)
    scale.get_by_test_id("stMainBlockContainer").get_by_role("button", name="Stop").click()
    expect(scale.get_by_test_id("scale-facts")).to_have_text(all_done(scale), timeout=PATIENCE_MS)
    expect(scale.get_by_test_id("scale-status")).to_have_text("Cancelled")
    expect(scale.locator(".st-key-scale-verdict")).to_contain_text(
        f"No result: 0 of {scale.runs} runs finished", timeout=PATIENCE_MS
    )
    with tabs.tab(app_url, 390, 844, "dark") as phone:
        phone.goto(scale.url)
        expect(phone.get_by_test_id("scale-status")).to_have_text("Cancelled", timeout=PATIENCE_MS)
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390


def test_each_rank_is_seen_on_the_page_train(page, app_url):
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{app_url}/train?preset=lenet&budget.epochs=1&parallel.num_ranks=2&parallel.devices=[cpu,cpu]")
    page.get_by_role("button", name="Run", exact=True).click()
    table = page.get_by_test_id("live-ranks")
    expect(table).to_contain_text("Waiting in all-reduce", timeout=PATIENCE_MS)
    assert table.locator("tr").count() == 3
    expect(page.get_by_test_id("live-status")).to_have_text("Finished", timeout=PATIENCE_MS)
    for chart in ("rank_own", "rank_waits", "rank_cpu", "rank_memory"):
        expect(page.get_by_test_id(f"chart-{chart}")).to_be_visible()
    names = page.evaluate("() => document.querySelector('[data-testid=plot-rank_own]').data.map((t) => t.name)")
    assert names == ["whole step", "rank 0 works", "rank 1 works"]
