"""The page Compare in a real browser: a race from the click to its verdict, stopped, on a phone, at another view."""

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PATIENCE_MS = 60_000


@pytest.fixture
def compare(page, app_url):
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{app_url}/compare?preset=batch-vs-stochastic-digits")
    page.get_by_role("button", name="Start").wait_for()
    return page


def with_seconds(page, seconds, in_all):
    amount = page.get_by_label("Amount")
    amount.fill(str(seconds))
    amount.press("Enter")
    page.get_by_text(f"About {in_all} of training").wait_for()


def test_a_race_goes_from_a_click_to_words_a_beginner_can_use(compare):
    with_seconds(compare, 1, "3.00 s")
    compare.get_by_role("button", name="Start").click()
    verdict = compare.locator(".st-key-race-verdict")
    expect(verdict).to_contain_text("first on this machine", timeout=PATIENCE_MS)
    expect(compare.get_by_text("3 of 3 runs done")).to_be_visible(timeout=PATIENCE_MS)
    expect(verdict).to_contain_text("Preliminary: 1 of 7 seeds", timeout=PATIENCE_MS)
    expect(verdict).to_contain_text("From seed to seed, test accuracy varies by at least")
    assert "race=" in compare.url
    expect(compare.get_by_text("Each step of Batch reads all 1,438 training samples")).to_be_visible()


def test_a_race_that_is_stopped_keeps_what_it_has(compare):
    with_seconds(compare, 200, "10 min 00 s")
    compare.get_by_role("button", name="Start").click()
    compare.get_by_test_id("stMainBlockContainer").get_by_role("button", name="Stop").click()
    expect(compare.get_by_text("3 of 3 runs done")).to_be_visible(timeout=PATIENCE_MS)
    expect(compare.get_by_text("Cancelled").first).to_be_visible()
    expect(compare.get_by_test_id("stMainBlockContainer").get_by_role("button", name="Stop")).to_have_count(
        0, timeout=PATIENCE_MS
    )


def test_on_a_phone_nothing_is_wider_than_the_screen(tabs, app_url, compare):
    with_seconds(compare, 0.5, "1.50 s")
    compare.get_by_role("button", name="Start").click()
    expect(compare.get_by_text("3 of 3 runs done")).to_be_visible(timeout=PATIENCE_MS)
    with tabs.tab(app_url, 390, 844, "dark") as phone:
        phone.goto(compare.url)
        phone.get_by_text("3 of 3 runs done").wait_for(timeout=PATIENCE_MS)
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_was_chosen_is_there_after_a_look_elsewhere(compare):
    with_seconds(compare, 0.5, "1.50 s")
    compare.get_by_text("Two weights", exact=True).click()
    compare.get_by_text("Condition number").first.wait_for()
    compare.get_by_text("Race", exact=True).first.click()
    compare.get_by_role("button", name="Start").wait_for()
    compare.wait_for_url("**preset=batch-vs-stochastic-digits**")
    expect(compare.get_by_label("Amount")).to_have_value("0.5")


def test_a_target_typed_in_a_chart_or_dragged_is_the_tables(compare):
    with_seconds(compare, 0.5, "1.50 s")
    compare.get_by_role("button", name="Start").click()
    expect(compare.get_by_text("3 of 3 runs done")).to_be_visible(timeout=PATIENCE_MS)
    table = compare.locator(".st-key-race-outcome")
    field = compare.get_by_test_id("target-test_accuracy")
    field.fill("70")
    field.press("Enter")
    expect(table).to_contain_text("to reach 70 % test accuracy", timeout=PATIENCE_MS)
    line = compare.get_by_test_id("grip-test_accuracy")
    line.scroll_into_view_if_needed()
    box = line.bounding_box()
    compare.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    compare.mouse.down()
    compare.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2 - 30, steps=5)
    compare.mouse.up()
    expect(table).not_to_contain_text("to reach 70 % test accuracy", timeout=PATIENCE_MS)
    value = compare.get_by_label("Value")  # a change in the form overrides the target of the chart
    value.fill("60")
    value.press("Enter")
    expect(table).to_contain_text("to reach 60 % test accuracy", timeout=PATIENCE_MS)
