"""A real server and a real Chromium for the tests in this folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--process-per-site",  # the tabs of a context share a process, which compiles the scripts of a page once
]


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # a busy machine draws slowly

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Tabs:
    """Tabs for tests. Those of one address share a context, because its cached and compiled scripts save seconds a test."""

    def __init__(self, browser) -> None:
        self.browser, self.contexts = browser, {}

    @contextlib.contextmanager
    def tab(self, url: str, width: int = 1440, height: int = 900, scheme: str = "light") -> Iterator[Any]:
        """A tab for `url`; of a signed-in user where it is a dashboard. It is closed, and what the page stored removed.

        The test fails on an error in the page.
        """
        if url not in self.contexts:
            context = url.new_context(self.browser) if isinstance(url, Served) else self.browser.new_context()
            self.contexts[url] = context
            context.new_page().goto(f"{url}/_stcore/health")  # keeps the process between two tests
        tab, errors = self.contexts[url].new_page(), []
        tab.set_viewport_size({"width": width, "height": height})
        tab.emulate_media(color_scheme=scheme)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        try:
            yield tab
        finally:
            if tab.url.startswith(url):
                tab.evaluate("localStorage.clear()")
            tab.close()
        assert errors == []


@pytest.fixture(scope="session")
def tabs(browser):
    return Tabs(browser)


@contextlib.contextmanager
def serve(*routes) -> Iterator[str]:
    """The address of a server with these routes of Starlette, in a thread of this process."""
    import uvicorn
    from starlette.applications import Starlette

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture(scope="session")
def app_url(tmp_path_factory):
    """The address of a dashboard, one for each process of pytest. It is stopped afterwards."""
    with serve_dashboard(tmp_path_factory.mktemp("browser-store")) as url:
        yield url


class Served(str):
    """The address of a running dashboard, with the folder of its store and the cookie of a signed-in user."""

    home: Path
    cookie: str  # name=value

    @classmethod
    def signed_in(cls, url: str, home: Path) -> Served:
        served = cls(url)
        served.home = home
        opener = urllib.request.build_opener(_Stay)
        try:
            opener.open(f"{url}/?token={(home / 'keys' / 'link.token').read_text()}", timeout=20)
        except urllib.error.HTTPError as answer:  # a redirect to the address without the token
            served.cookie = answer.headers["Set-Cookie"].split(";")[0]
        return served

    def new_context(self, browser, **options):
        """A browser context of a signed-in user."""
        context = browser.new_context(**options)
        name, value = self.cookie.split("=", 1)
        context.add_cookies([{"name": name, "value": value, "url": str(self), "httpOnly": True, "sameSite": "Strict"}])
        return context


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


@contextlib.contextmanager
def serve_dashboard(home: Path) -> Iterator[Served]:
    """Start a dashboard on a free port, from another directory than ours, and stop it with its supervisor."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "dashboard" / "app.py"), "--server.port", str(port)]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd="/", env=os.environ | {"ISOFLOP_HOME": str(home)}, stdout=log, stderr=log
        )
    try:
        _wait_until_up(url, server, home)
        yield Served.signed_in(url, home)
    finally:
        server.terminate()
        server.wait(timeout=20)
        end_supervisor(home)


def _wait_until_up(url: str, server: subprocess.Popen, home: Path) -> None:
    for _ in range(300):
        assert server.poll() is None, (home / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the dashboard did not start:\n" + (home / "server.log").read_text())


def end_supervisor(home: Path) -> None:
    """Stop the supervisor of a store, found by its command line, because a new one has not written its pid yet."""
    of_home = {"supervise", str(home.resolve())}
    found = [p for p in psutil.process_iter(["cmdline"]) if of_home <= set(p.info["cmdline"] or [])]
    family = [member for process in found for member in (*process.children(recursive=True), process)]
    for process in found:
        process.terminate()
    _, alive = psutil.wait_procs(family, timeout=10)
    for left in alive:
        left.kill()


@pytest.fixture
def page(tabs, app_url):
    """A fresh tab. The test fails on a console error and on any request to another host."""
    with tabs.tab(app_url) as tab:
        tab.errors, tab.foreign = [], []
        tab.on("console", lambda m: tab.errors.append(m.text) if m.type == "error" and not _harmless(m) else None)
        tab.on("request", lambda r: tab.foreign.append(r.url) if not _own(r.url, app_url) else None)
        yield tab
    assert tab.errors == []
    assert tab.foreign == []


def _harmless(message) -> bool:
    """Streamlit probes its health below a page's own address first, which gives two 404s on a deep link."""
    return "/_stcore/" in message.location.get("url", "")


def _own(url: str, app_url: str) -> bool:
    return url.startswith((app_url, app_url.replace("http", "ws"), "blob:", "data:"))
