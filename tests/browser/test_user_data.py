"""A user's own table, with dates, categories and a missing label, trained from the page: what was done to it is in sight."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import serve_dashboard

pytestmark = pytest.mark.browser

TABLE = "species,day,colour,member,comment,size\n" + "".join(
    f"{'' if i == 30 else ('oak', 'elm', 'yew')[i % 3]},2026-{i % 3 + 1:02d}-{i % 28 + 1:02d},"
    f"{('red', 'green', 'blue')[i % 3]},{('yes', 'no')[i // 2 % 2]},sample number {i},{i * 0.37 % 5:.2f}\n"
    for i in range(90)
)
FILE = {"name": "trees.csv", "mimeType": "text/csv", "buffer": TABLE.encode()}
TOO_WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth + 1"


@pytest.fixture(scope="module")
def app_url(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_DATA", str(tmp_path_factory.mktemp("user-data")))
        with serve_dashboard(tmp_path_factory.mktemp("user-data-store")) as url:
            yield url


def test_a_table_is_previewed_and_trained_and_what_is_left_out_is_said(page, app_url):
    page.goto(app_url + "/train?budget.epochs=5&batch_size=16")
    page.locator(".st-key-experiment-data input").click()
    page.get_by_role("option", name="Your table (CSV)", exact=True).click()
    expect(page.get_by_text("nothing is chosen yet")).to_be_visible()
    page.locator("input[type=file]").set_input_files(FILE)
    label = page.locator(".st-key-experiment-source-label input")
    expect(label).to_be_visible()  # the last column is no label, and the page offers the others
    expect(page.get_by_text("This looks like regression")).to_be_visible()
    label.click()
    page.get_by_role("option", name="species", exact=True).click()
    preview = page.locator(".st-key-preview")
    for sentence in (
        "1 row has no label and is left out (row 32).",
        "Column 'day' is read as date, as days since 1970-01-01.",
        "Column 'colour' is read as 3 categories, one-hot.",
        "Column 'member' is read as yes or no: 'yes' is 1.",
        "Column 'comment' is left out: text with 89 different values.",
        "Each feature is standardised",
    ):
        expect(preview.get_by_text(sentence)).to_be_visible()
    expect(page.get_by_test_id("stDataFrame")).to_have_count(2)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_test_id("live-status")).to_have_text("Finished", timeout=60_000)
    expect(page.get_by_text("Data: 1 row has no label and is left out (row 32).")).to_be_visible()
    expect(page.get_by_text("largest class 33")).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 900})
    assert not page.evaluate(TOO_WIDE)
