"""What somebody else wrote is shown as it is, in a real browser: names, reasons, devices that look like markup."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from engine.common.sanitize import visible
from engine.events.lifecycle import Failed, Queued
from engine.events.machine import HardwareSample
from engine.reports.html.page import render
from engine.reports.report import Report
from engine.store.store import Store
from tests.browser.conftest import serve_dashboard
from tests.dashboard.test_literal import IMAGE, LONG, NAME, SAMPLES, hostile_run, write_unknown_record
from tests.fakes import make_run

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser
expect = sync_api.expect
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_MS = 120_000  # others use this machine too

PAGE = """
import json, pathlib, sys
sys.path.insert(0, {root!r})
import streamlit as st
from dashboard.widgets.run_parts import literal
for i, text in enumerate(json.loads(pathlib.Path({samples!r}).read_text())):
    with st.container(key=f"sample-{{i}}"):
        st.caption(literal(text))
        st.error(literal(text))
        st.button(literal(text), key=f"button-{{i}}")
        st.markdown(f"**{{literal(text)}}**")
        st.metric("m", 1, help=literal(text))
st.text("complete")
"""
MARKUP = "a, img, em, del, code, pre, h1, h2, h3, h4, h5, h6, ul, ol, li, hr, blockquote, table, math, script, sup, [style*=color], [role=img]"


@pytest.fixture(scope="module")
def samples_url(tmp_path_factory):
    """A page of Streamlit's that writes every sample in every way the dashboard writes text."""
    folder = tmp_path_factory.mktemp("samples")
    (folder / "samples.json").write_text(json.dumps(SAMPLES))
    (folder / "page.py").write_text(PAGE.format(root=str(ROOT), samples=str(folder / "samples.json")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(folder / "page.py"), "--server.port", str(port)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/_stcore/health", timeout=1):
                break
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=20)


def as_drawn(text):
    """A browser draws a row of blanks as one."""
    return " ".join(text.split())


def test_streamlit_finds_no_markup_of_its_own_in_text_that_is_literal(browser, samples_url):
    page = browser.new_page()
    foreign, dialogs = [], []
    page.on("request", lambda r: foreign.append(r.url) if samples_url[7:] not in r.url and "http" in r.url else None)
    page.on("dialog", lambda d: dialogs.append(d.message))
    page.goto(samples_url)
    expect(page.get_by_text("complete", exact=True)).to_be_visible(timeout=PATIENCE_MS)
    wrong = []
    for i, text in enumerate(SAMPLES):
        shown = as_drawn(visible(text, 1_000))
        for way in ("stCaptionContainer", "stAlert", "stButton"):
            box = page.locator(f".st-key-sample-{i} [data-testid={way}]")
            if as_drawn(box.text_content()) != shown:
                wrong.append((way, shown, box.text_content()))
        strong = page.locator(f".st-key-sample-{i} strong")
        if strong.count() != 1 or as_drawn(strong.text_content()) != shown:
            wrong.append(("strong", shown, strong.all_text_contents()))
        found = page.locator(f".st-key-sample-{i} [data-testid=stMarkdownContainer]").locator(MARKUP)
        if found.count():
            wrong.append(("markup", shown, found.first.evaluate("n => n.outerHTML")))
    assert wrong == []
    assert dialogs == foreign == []
    page.close()


# --- hostile runs on every page ------------------------------------------------------------------------------------

INTRUDERS = "img[src='x'], a[href^='javascript'], a[href*='evil'], img[src*='evil'], [onerror], math, body script:not([src]):not([type])"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A store with a run that is hostile throughout, and one whose texts have no end and no place to break."""
    store = Store(tmp_path_factory.mktemp("hostile"))
    run = hostile_run(store)
    write_unknown_record(run)
    long = make_run(
        store,
        num_steps=120,
        last=Failed(at=0.0, cause="X", message=LONG, fix=LONG),
        said=[
            Queued(at=time.time(), name=LONG),
            HardwareSample(elapsed_s=0.1, readings={}, missing={"gpu_utilization_percent": LONG}),
        ],
    )
    return store, run, long


@pytest.fixture(scope="module")
def app_url(hostile):
    """A dashboard on the hostile store, in the place of the empty one."""
    with serve_dashboard(hostile[0].root) as url:
        yield url


@pytest.fixture
def quiet(page):
    """The page fails on requests to other hosts by itself; here also on a dialog, and on an element that text became."""
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    yield page
    assert dialogs == []
    assert page.locator(INTRUDERS).evaluate_all("nodes => nodes.map(n => n.outerHTML)") == []


def fits(page):
    return page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


SIZES = pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])


@SIZES
def test_the_start_page_shows_hostile_and_endless_names_as_text(quiet, app_url, width, scheme):
    quiet.set_viewport_size({"width": width, "height": 900})
    quiet.emulate_media(color_scheme=scheme)
    quiet.goto(app_url)
    expect(quiet.get_by_text(visible(NAME, 80)).first).to_be_visible(timeout=PATIENCE_MS)
    expect(quiet.get_by_text("W" * 79 + "…")).to_be_visible()
    assert fits(quiet)


@SIZES
def test_the_page_of_a_hostile_run_shows_its_reason_its_readings_and_its_charts(quiet, app_url, hostile, width, scheme):
    quiet.set_viewport_size({"width": width, "height": 900})
    quiet.emulate_media(color_scheme=scheme)
    quiet.goto(f"{app_url}/train?run={hostile[1].run_id}")
    expect(quiet.get_by_text(f"Why: {visible(NAME)} Fix: {visible(NAME)}")).to_be_visible(timeout=PATIENCE_MS)
    expect(quiet.get_by_text("Recording: at byte")).to_contain_text(visible(NAME), timeout=PATIENCE_MS)
    shown_path = visible(f"/data/{NAME}.csv")[-60:]  # of a long one the end
    expect(quiet.get_by_text(f"{shown_path}: there is no such file or folder.")).to_be_visible(timeout=PATIENCE_MS)
    quiet.locator('[data-testid="plot-loss"].js-plotly-plot').wait_for(timeout=PATIENCE_MS)
    expect(quiet.get_by_test_id("words-gpu")).to_have_text(visible(NAME), timeout=PATIENCE_MS)
    memory = quiet.locator("[data-testid=stMetric]", has_text="Training memory")
    memory.locator("[data-testid=stTooltipIcon]").first.hover()
    expect(quiet.get_by_role("tooltip")).to_contain_text(visible(NAME), timeout=PATIENCE_MS)
    assert fits(quiet)


@SIZES
def test_a_reason_without_end_breaks_no_layout(quiet, app_url, hostile, width, scheme):
    quiet.set_viewport_size({"width": width, "height": 900})
    quiet.emulate_media(color_scheme=scheme)
    quiet.goto(f"{app_url}/train?run={hostile[2].run_id}")
    words = quiet.get_by_test_id("words-gpu")
    expect(words).to_have_text("W" * 299 + "…", timeout=PATIENCE_MS)
    assert words.evaluate("n => n.scrollWidth <= n.clientWidth")
    assert fits(quiet)


def test_the_list_of_runs_draws_hostile_names_and_offers_no_export_of_its_own(quiet, app_url):
    quiet.goto(f"{app_url}/runs")
    table = quiet.locator("[data-testid=stDataFrame]")
    expect(table.get_by_text(visible(NAME, 200), exact=True)).to_have_count(1, timeout=PATIENCE_MS)
    table.hover()
    expect(quiet.locator("[data-testid=stElementToolbar]")).to_be_visible()
    expect(quiet.get_by_role("button", name="Download as CSV")).to_have_count(0)
    assert fits(quiet)
    box = table.bounding_box()
    for row in (1, 2):  # the boxes at the left of the rows
        for box_of in sorted({1, row}):  # the one that was chosen is let go of
            quiet.mouse.click(box["x"] + 18, box["y"] + 35 * (box_of + 0.5))
            quiet.wait_for_timeout(1_000)
        expect(quiet.locator(".st-key-selected")).to_contain_text(
            ["W" * 999 + "…", visible(NAME)][row - 1], timeout=PATIENCE_MS
        )
        assert fits(quiet)


@SIZES
def test_a_report_of_hostile_runs_is_text_from_its_title_to_its_legends(browser, hostile, tmp_path, width, scheme):
    _, run, long = hostile
    file = tmp_path / "report.html"
    file.write_text(render(Report.freeze(NAME, [run, hostile_run(Store(tmp_path)), long])), encoding="utf-8")
    context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda r: None if r.url.startswith(("file:", "blob:", "data:")) else said.append(r.url))
    page.goto(file.as_uri())
    page.locator("#chart-loss .main-svg").first.wait_for(timeout=PATIENCE_MS)
    assert page.locator("h1").inner_text() == visible(NAME)
    assert page.locator(".trouble").first.inner_text().endswith(f"Why: {visible(NAME)} Fix: {visible(NAME)}")
    page.locator("#chart-loss .nsewdrag").first.hover()
    expect(page.locator("#chart-loss .hoverlayer")).to_contain_text(IMAGE)  # beside its line: the run's own name
    assert page.locator(f"main :is({INTRUDERS}), svg a").count() == 0
    assert fits(page)
    assert said == []
    context.close()
