"""The form of the page Train in a real browser: layout, plan, upload, and training of each model family."""

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import serve_dashboard

pytestmark = pytest.mark.browser

FAMILIES = {
    "mnist-mlp": "MLP",
    "mnist1d-cnn": "1-D CNN",
    "mnist-gru": "GRU",
    "char-lstm": "LSTM",
    "char-decoder": "Transformer",
}
TOO_WIDE = """() => [...document.querySelectorAll('.st-key-form .stColumn, .st-key-form [data-testid=stExpanderDetails]')]
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"""


@pytest.fixture(scope="module")
def app_url(tmp_path_factory):
    """A dashboard with a data cache of its own: uploads are kept there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_DATA", str(tmp_path_factory.mktemp("browser-data")))
        with serve_dashboard(tmp_path_factory.mktemp("browser-form-store")) as url:
            yield url


def open_form(page, url):
    page.goto(url)
    expect(page.get_by_text("Steps per epoch")).to_be_visible(timeout=30_000)


def choose(page, field, option):
    page.locator(f".st-key-experiment-{field} input").click()
    page.get_by_role("option", name=option, exact=True).click()


@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_in_the_form_is_cut_off(page, app_url, width):
    page.set_viewport_size({"width": width, "height": 2_000})
    open_form(page, app_url + "/train?preset=mnist-vit")
    for group in page.locator(".st-key-form details summary").all():
        group.click()
    expect(page.get_by_role("textbox", name="Evaluate every")).to_be_visible()
    assert page.evaluate(TOO_WIDE) == []
    families = page.locator(".st-key-experiment-family button")
    assert len({round(b.bounding_box()["y"]) for b in families.all()}) == 1


def test_the_size_dial_moves_the_plan_at_once(page, app_url):
    open_form(page, app_url + "/train")
    parameters = page.locator('[data-testid="stMetric"]', has_text="Parameters")
    expect(parameters).to_contain_text("101,770")
    page.get_by_role("radio", name="Large").or_(page.get_by_role("button", name="Large")).first.click()
    expect(parameters).to_contain_text("3,716,106", timeout=30_000)
    expect(page.get_by_role("textbox", name="Hidden layers")).to_have_value("2048, 1024")


def test_a_group_that_is_open_stays_open_while_it_is_filled_in(page, app_url):
    open_form(page, app_url + "/train")
    page.locator(".st-key-group-tricks summary").click()
    clipping = page.get_by_role("textbox", name="Gradient clipping")
    clipping.fill("1")
    clipping.press("Enter")
    expect(page.get_by_text("Regularization and memory · 1 set")).to_be_visible(timeout=30_000)
    expect(clipping).to_be_visible()
    expect(page).to_have_url(f"{app_url}/train?preset=mnist-mlp&max_grad_norm=1")


def test_text_changes_the_model_and_says_so(page, app_url):
    open_form(page, app_url + "/train")
    choose(page, "data", "Text, character by character")
    expect(page.get_by_text("the model changed from MLP to Transformer")).to_be_visible(timeout=30_000)


def test_an_uploaded_table_trains(page, app_url):
    open_form(page, app_url + "/train?budget.epochs=5")
    choose(page, "data", "Your table (CSV)")
    expect(page.get_by_text("nothing is chosen yet")).to_be_visible(timeout=30_000)
    rows = [f"{x:.3f},{-x:.3f},{'ab'[int(x > 0)]}" for x in np.random.default_rng(0).normal(size=100)]
    file = {"name": "../mine.csv", "mimeType": "text/csv", "buffer": "\n".join(["x,y,kind", *rows]).encode()}
    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_text("80 training samples, 20 test samples")).to_be_visible(timeout=30_000)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_test_id("live-status")).to_have_text("Finished", timeout=60_000)


@pytest.mark.parametrize("preset", FAMILIES)
def test_each_family_trains_from_the_page(page, app_url, preset):
    open_form(page, f"{app_url}/train?preset={preset}&budget.epochs=none&budget.steps=30")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_test_id("live-status")).to_have_text("Finished", timeout=120_000)
    expect(page.get_by_text(f"{FAMILIES[preset]}", exact=False).first).to_be_visible()
    expect(page.get_by_text("Training memory")).to_be_visible(timeout=30_000)
