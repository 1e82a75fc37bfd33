"""The library in a real browser: search, sorting, pages, selection, deleting with undo and imports; all of it in the address."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from engine.config.presets import PRESETS
from engine.reports.report import Report
from engine.store.store import Store
from tests.browser.conftest import serve_dashboard
from tests.browser.test_app import wait_for
from tests.fakes import make_run

RECORDINGS = Path(__file__).parents[1] / "recordings" / "curves"

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def app_url(tmp_path_factory):
    """A dashboard of its own, with 230 runs: LeNets that failed, and others."""
    home = tmp_path_factory.mktemp("many-runs")
    store = Store(home)
    for i in range(230):
        preset = "lenet" if i % 10 == 0 else "digits-mlp"
        make_run(
            store, PRESETS[preset].config, name=f"night-{i}", num_steps=20 + i, diverges_at=9 if i % 10 == 0 else None
        )
    with serve_dashboard(home) as url:
        yield url


def caption(page):
    return page.locator(".st-key-pages [data-testid=stCaptionContainer]")


def expect_list(page, first, last, total):
    expect(caption(page)).to_contain_text(f"{first}–{last} of {total} runs", timeout=30_000)
    expect(page.get_by_test_id("stDataFrame").locator("canvas").first).to_be_visible(timeout=30_000)


def test_pages_are_turned_and_a_link_leads_to_one(page, app_url):
    page.goto(f"{app_url}/runs")
    expect_list(page, 1, 100, 230)
    page.get_by_role("button", name="Next page").click()
    expect_list(page, 101, 200, 230)
    page.goto(page.url)
    expect_list(page, 101, 200, 230)
    page.goto(f"{app_url}/runs?page=77")
    expect_list(page, 1, 100, 230)


def test_a_search_is_answered_while_it_is_typed_and_stands_in_the_address(page, app_url):
    page.goto(f"{app_url}/runs")
    expect_list(page, 1, 100, 230)
    page.get_by_placeholder("Search name").press_sequentially("failed LENET")
    expect_list(page, 1, 23, 23)
    expect(page).to_have_url(f"{app_url}/runs?q=failed+LENET", timeout=30_000)
    page.goto(f"{app_url}/runs?q=night-22&state=finished")
    expect_list(page, 1, 10, 10)  # 22, and 221 to 229: 220 failed
    page.get_by_placeholder("Search name").fill("no such run")
    page.get_by_role("button", name="Show all runs").click(timeout=30_000)
    expect_list(page, 1, 100, 230)


def test_a_search_begins_at_its_first_page(page, app_url):
    page.goto(f"{app_url}/runs?page=3")
    expect_list(page, 201, 230, 230)
    page.get_by_placeholder("Search name").fill("night")
    expect_list(page, 1, 100, 230)


def test_a_click_on_a_columns_head_sorts_all_pages_and_a_second_one_turns_the_order(page, app_url):
    page.goto(f"{app_url}/runs?page=3")
    expect_list(page, 201, 230, 230)
    for order in ("best accuracy", "worst accuracy", "best accuracy"):
        click_head_of_test_accuracy(page)
        expect(page).to_have_url(f"{app_url}/runs?sort={order.replace(' ', '+')}", timeout=30_000)
        expect_list(page, 1, 100, 230)
        expect(page.get_by_role("combobox", name="Sort by")).to_have_value(order)


def click_head_of_test_accuracy(page):
    """The table is drawn on a canvas: its heads are found by where they are."""
    box = page.get_by_test_id("stDataFrame").locator("canvas").first.bounding_box()
    page.mouse.click(box["x"] + 660, box["y"] + 18)


def choose(page, *rows):
    """The boxes at the left of the rows."""
    page.get_by_role("heading", name="Library").scroll_into_view_if_needed()
    box = page.get_by_test_id("stDataFrame").locator("canvas").first.bounding_box()
    for row in rows:
        page.mouse.click(box["x"] + 18, box["y"] + 35 * (row + 1.5))
        page.wait_for_timeout(600)


def test_a_filter_and_the_columns_stand_in_the_address(page, app_url):
    page.goto(f"{app_url}/runs?where=data+%3D+mnist5k")
    expect_list(page, 1, 23, 23)
    page.get_by_placeholder("optimizer.name").fill("model.family = cnn, steps > 200")
    page.get_by_placeholder("optimizer.name").press("Enter")
    page.get_by_role("button", name="Show all runs").click(timeout=30_000)
    expect_list(page, 1, 100, 230)
    page.get_by_placeholder("optimizer.name").fill("nonsense = 1")
    page.get_by_placeholder("optimizer.name").press("Enter")
    expect(page.get_by_text("A run has no field 'nonsense'")).to_be_visible(timeout=30_000)


def test_runs_are_deleted_and_had_back(page, app_url):
    page.goto(f"{app_url}/runs?q=night-15")
    expect_list(page, 1, 11, 11)
    choose(page, 0, 1)
    expect(page.get_by_text("2 runs selected")).to_be_visible(timeout=30_000)
    page.locator(".st-key-delete-chosen button").first.click()
    expect_list(page, 1, 9, 9)
    page.get_by_role("button", name="Undo").click(timeout=8_000)
    expect_list(page, 1, 11, 11)


def test_a_report_that_is_dropped_in_comes_in_marked_and_one_sentence_says_what_is_no_report(page, app_url, tmp_path):
    report, other = tmp_path / "theirs.json", tmp_path / "other.json"
    store = Store(tmp_path / "elsewhere")
    report.write_text(Report.freeze("From elsewhere", [make_run(store, name="guest")]).to_json(), encoding="utf-8")
    other.write_text("{}", encoding="utf-8")
    page.goto(f"{app_url}/runs?q=guest")
    drop(page, other)
    expect(page.get_by_text("This is not a report, or it is incomplete")).to_be_visible(timeout=30_000)
    drop(page, report)
    expect(page.get_by_text("Imported 1 run (unverified)")).to_be_visible(timeout=30_000)
    page.goto(f"{app_url}/runs?q=guest")
    expect(page.get_by_test_id("stDataFrame").locator("canvas").first).to_be_visible(timeout=30_000)
    choose(page, 0)
    expect(page.locator(".st-key-selected")).to_contain_text("from the report 'From elsewhere'", timeout=30_000)
    expect(page.locator(".st-key-selected").get_by_role("button", name="Copy link")).to_be_visible()


def test_logs_of_keras_and_wandb_are_compared_with_an_own_run(page, app_url):
    make_run(Store(app_url.home), name="lake own", num_steps=240)
    page.goto(f"{app_url}/runs?q=lake")
    for name in ("keras_epoch0", "wandb_export"):
        drop(page, RECORDINGS / f"{name}.csv")
        choices = page.locator(".st-key-import-choices")
        expect(choices).to_contain_text(f"{name}.csv: which column is what?")
        expect(choices).to_contain_text("Not used:")
        choices.get_by_role("button", name="Import").click()
        expect(page.get_by_text("Imported 1 run (unverified)")).to_be_visible()
        page.get_by_role("button", name="Dismiss").click()
    wanted = ("lake own", "keras_epoch0", "wandb_export")
    ids = [row.run_id for name in wanted for row in Store(app_url.home).rows() if row.name == name]
    page.goto(f"{app_url}/compare?view=Runs&runs={','.join(ids)}")
    expect(page.get_by_test_id("race-facts")).to_contain_text("3 of 3 runs done")
    drawn = "node => node.data.filter(trace => trace.y?.some(Number.isFinite) && trace.mode !== 'none').length"
    loss = page.locator("[data-testid=race-grid] .js-plotly-plot").first
    expect(page.get_by_test_id("axis-steps").locator("input")).to_be_checked()
    expect(page.get_by_test_id("race-lacking")).to_be_hidden()
    assert loss.evaluate(drawn) >= 3
    page.get_by_test_id("axis-seconds").click()
    expect(page.get_by_test_id("race-lacking")).to_contain_text("its file does not say it: keras_epoch0, wandb_export.")


def drop(page, file):
    page.get_by_role("button", name="Import").click(timeout=30_000)
    page.get_by_test_id("stPopoverBody").locator("input[type=file]").first.set_input_files(file)


def test_a_link_is_copied_as_the_page_is(browser, app_url):
    context = app_url.new_context(browser, permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"{app_url}/runs?q=night-15")
    expect_list(page, 1, 11, 11)
    page.get_by_role("button", name="Copy link").first.click()
    # Not the word "Copied": it stands there for a moment, which a busy machine can miss.
    wait_for(page, "() => navigator.clipboard.readText()", lambda text: text == f"{app_url}/runs?q=night-15")
    context.close()
