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

from engine.text import visible
from tests.test_literal import SAMPLES

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser
expect = sync_api.expect
ROOT = Path(__file__).resolve().parents[2]

PAGE = """
import json, pathlib, sys
sys.path.insert(0, {root!r})
import streamlit as st
from dashboard.parts import literal
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
    expect(page.get_by_text("complete", exact=True)).to_be_visible(timeout=60_000)
    wrong = []
    for i, text in enumerate(SAMPLES):
        shown = as_drawn(visible(text, 2_000))
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
