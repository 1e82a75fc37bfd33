"""Getting in, with a real browser: the link, the form, and a hostile page on another port of this machine."""

import http.server
import threading
from pathlib import Path

import pytest
from playwright.sync_api import expect

from engine.access import keys

pytestmark = pytest.mark.browser


@pytest.fixture
def served(app_url):
    return app_url, app_url.home


@pytest.fixture
def stranger(browser):
    """A tab of a browser that was never here."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


def is_in(page):
    expect(page.get_by_test_id("stMainBlockContainer")).to_contain_text("Isoflop", timeout=30_000)


def test_the_link_of_the_terminal_leads_in_and_leaves_no_token_in_the_address(stranger, served):
    url, home = served
    stranger.goto(f"{url}/?token={keys.link_token(home)}")
    is_in(stranger)
    assert "token" not in stranger.url
    stranger.reload()
    is_in(stranger)


def test_the_form_leads_in_too_and_says_when_a_token_is_old(stranger, served):
    url, home = served
    stranger.goto(f"{url}/train")
    stranger.get_by_label("Or paste the token of the link").fill("of yesterday")
    stranger.get_by_role("button", name="Sign in").click()
    expect(stranger.locator("main")).to_contain_text("was used before")
    stranger.get_by_label("Or paste the token of the link").fill(keys.link_token(home))
    stranger.get_by_role("button", name="Sign in").click()
    is_in(stranger)


def test_a_link_on_another_site_leads_in_somebody_who_is_signed_in(browser, served, elsewhere):
    url, _ = served
    context = url.new_context(browser)
    page = context.new_page()
    page.goto(elsewhere("<a href='{url}/runs'>here</a>", url))
    page.get_by_text("here").click()
    expect(page.get_by_test_id("stMainBlockContainer")).to_contain_text("Library", timeout=30_000)
    context.close()


HOSTILE = """<title>waiting</title><iframe src="{url}/"></iframe><img src="{url}/sign-out"><script>
const tries = [
  new Promise(done => {{ const ws = new WebSocket("{url}/_stcore/stream".replace("http", "ws"));
    ws.onopen = () => done("a socket"); ws.onerror = () => done("") }}),
  fetch("{url}/api/runs/0123456789abcdef/points", {{credentials: "include"}}).then(r => r.text()).catch(() => ""),
  fetch("{url}/_stcore/upload_file/a/b", {{method: "PUT", mode: "no-cors", credentials: "include", body: "x"}})
    .then(r => r.type == "opaque" ? "" : r.status).catch(() => ""),
];
Promise.all(tries).then(got => document.title = "got: " + got.join(""));
</script>"""


def test_a_page_on_another_port_of_this_machine_gets_nothing_of_somebody_who_is_signed_in(browser, served, elsewhere):
    url, _ = served
    context = url.new_context(browser)
    page = context.new_page()
    page.goto(elsewhere(HOSTILE, url))
    expect(page).to_have_title("got: ", timeout=30_000)
    (frame,) = page.frames[1:]
    assert "Isoflop" not in frame.content()
    page.evaluate("address => { location.href = address }", f"{url}/sign-out")
    expect(page.locator("body")).to_contain_text("Sign out from the page itself")
    page.goto(url)
    is_in(page)  # nor can it sign them out
    context.close()


def test_a_script_that_slips_into_the_page_is_not_run(browser, served):
    url, _ = served
    context = url.new_context(browser)
    page = context.new_page()
    page.goto(url)
    is_in(page)
    page.evaluate("""() => {
        for (const make of [
            () => { const s = document.createElement("script"); s.textContent = "window.slipped = 1"; return s },
            () => { const i = document.createElement("img"); i.setAttribute("onerror", "window.slipped = 1"); i.src = "x:"; return i },
            () => { const s = document.createElement("script"); s.src = "http://127.0.0.1:9/x.js"; return s },
        ]) document.body.append(make())
    }""")
    page.wait_for_timeout(500)
    assert page.evaluate("() => window.slipped") is None
    context.close()


@pytest.fixture
def elsewhere(tmp_path):
    """Another site: it serves a page that knows our address."""
    servers = []

    def serve(text: str, url: str) -> str:
        (tmp_path / "index.html").write_text(text.format(url=url))

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, directory=str(Path(tmp_path)), **kwargs)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://localhost:{server.server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
