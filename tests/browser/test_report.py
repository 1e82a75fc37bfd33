"""An exported report in a real browser without a network."""

from __future__ import annotations

import pytest

from engine.charts import training
from engine.reports.html.page import render
from engine.reports.report import Report, concluded
from engine.store.store import Store
from tests.fakes import make_run
from tests.reports.test_sharing import race_of

sync_api = pytest.importorskip("playwright.sync_api")

NAME = "<img src=x onerror=alert(1)></script>"


@pytest.fixture
def page(browser):
    context = browser.new_context(offline=True)
    yield context.new_page()
    context.close()


@pytest.mark.browser
def test_a_report_opens_offline_with_every_chart_and_no_console_message(page, tmp_path):
    runs = [make_run(Store(tmp_path), name=NAME, gpu=True), make_run(Store(tmp_path), diverges_at=140)]
    report = Report.freeze(NAME, runs)
    file = tmp_path / "report.html"
    file.write_text(render(report), encoding="utf-8")
    said, requests = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: requests.append(request.url))

    page.goto(file.as_uri())
    drawn = page.locator(".js-plotly-plot > .plot-container .main-svg:first-child")
    sync_api.expect(drawn).to_have_count(len(training.shown(runs)) + 1, timeout=30_000)

    assert page.locator("#chart-loss").get_by_text("NaN at step 140").count() == 1
    assert page.locator("h1").inner_text() == NAME
    assert said == []
    assert all(url.startswith(("file:", "blob:", "data:")) for url in requests)


@pytest.mark.browser
def test_the_data_saved_from_a_report_has_the_hash_it_shows(page, tmp_path):
    report = Report.freeze(NAME, [make_run(Store(tmp_path), num_steps=40)])
    (tmp_path / "report.html").write_text(render(report), encoding="utf-8")
    page.goto((tmp_path / "report.html").as_uri())
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the data").click()
    download.value.save_as(tmp_path / "saved.json")
    saved = Report.from_json((tmp_path / "saved.json").read_text(encoding="utf-8"))
    assert saved.content_hash == page.locator(".hash").inner_text() == report.content_hash


@pytest.mark.browser
def test_a_report_prints_with_its_charts_on_white_paper(page, tmp_path):
    (tmp_path / "report.html").write_text(render(Report.freeze("t", [make_run(Store(tmp_path))])), encoding="utf-8")
    page.emulate_media(color_scheme="dark")
    page.goto((tmp_path / "report.html").as_uri())
    page.locator("#chart-cpu .main-svg").first.wait_for()
    page.emulate_media(color_scheme="dark", media="print")
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(250, 250, 251)"
    charts_fit = "() => [...document.querySelectorAll('.chart')].every(c => c.scrollWidth <= c.clientWidth)"
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 without its margins
    assert page.evaluate(charts_fit)


@pytest.mark.browser
def test_a_race_prints_every_chart_and_its_verdict_on_paper(page, tmp_path):
    """Check the PDF: every page is drawn and contains the expected text."""
    runs = race_of(Store(tmp_path)).runs
    report = Report.freeze("A race", runs, conclusions=concluded(runs, target=0.8))
    (tmp_path / "race.html").write_text(render(report), encoding="utf-8")
    page.goto((tmp_path / "race.html").as_uri())
    drawn = page.locator(".js-plotly-plot > .plot-container .main-svg:first-child")
    sync_api.expect(drawn).to_have_count(page.locator(".chart").count(), timeout=30_000)
    assert page.locator(".verdict td", has_text="2 of 2 runs").count() == 2
    page.emulate_media(media="print")
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    sizes = page.evaluate(
        "() => [...document.querySelectorAll('.chart')].map(c => [c.clientWidth, c.querySelector('.main-svg').clientWidth])"
    )
    assert all(0 < inside <= outside + 1 for outside, inside in sizes), sizes
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 2
