"""Signing in with an identity provider, through Streamlit's own st.login: a real provider, a real dashboard."""

from __future__ import annotations

import http.cookiejar
import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Route

from engine.access import keys, settings
from engine.store.store import Store
from engine.system.files import write_atomically
from tests.browser.conftest import end_supervisor
from tests.conftest import ROOT
from tests.dashboard.test_server_start import free_port

pytestmark = [pytest.mark.process, pytest.mark.slow]
jwk = pytest.importorskip("joserfc.jwk")
jwt = pytest.importorskip("joserfc.jwt")


class Provider:
    """An OpenID provider on this machine that signs in the user in `claims`."""

    def __init__(self) -> None:
        self.claims: dict[str, object] = {}
        self.nonces: dict[str, str] = {}
        self.key = jwk.RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        routes = [
            Route("/.well-known/openid-configuration", self.describe),
            Route("/keys", lambda _: JSONResponse({"keys": [self.key.as_dict(private=False)]})),
            Route("/authorize", self.authorize),
            Route("/token", self.token, methods=["POST"]),
        ]
        self.server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=self.port, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()

    def describe(self, _):
        return JSONResponse(
            {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
            }
        )

    def authorize(self, request):
        code = secrets.token_hex(8)
        self.nonces[code] = request.query_params.get("nonce", "")
        query = urllib.parse.urlencode({"code": code, "state": request.query_params["state"]})
        return RedirectResponse(f"{request.query_params['redirect_uri']}?{query}")

    async def token(self, request):
        form = urllib.parse.parse_qs((await request.body()).decode())
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": "isoflop",
            "sub": "1",
            "iat": now,
            "exp": now + 600,
            "nonce": self.nonces.pop(form["code"][0]),
            **self.claims,
        }
        signed = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self.key)
        return JSONResponse({"access_token": "a", "token_type": "Bearer", "expires_in": 600, "id_token": signed})


@pytest.fixture(scope="module")
def provider():
    made = Provider()
    yield made
    made.server.should_exit = True
    made.thread.join(10)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("oidc") / "store"


@pytest.fixture(scope="module")
def dashboard(provider, home):
    """A dashboard of a team that signs in with the provider."""
    store = Store(home)
    port = free_port()
    write_atomically(
        store.root / settings.FILE,
        '[sign_in]\nmethod = "oidc"\nallowed = ["@lab.example", "guest@other.example"]\n[roles]\nadmin = ["ada@lab.example"]\n',
    )
    described = store.root / "secrets.toml"
    write_atomically(
        described,
        f'[auth]\nredirect_uri = "http://127.0.0.1:{port}/oauth2callback"\ncookie_secret = "{secrets.token_hex(16)}"\n'
        f'client_id = "isoflop"\nclient_secret = "s"\nserver_metadata_url = "{provider.url}/.well-known/openid-configuration"\n',
    )
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(ROOT / "dashboard" / "app.py"),
        "--server.port",
        str(port),
        "--secrets.files",
        str(described),
    ]
    process = subprocess.Popen(command, env=os.environ | {"ISOFLOP_HOME": str(store.root)}, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=1)
            break
        except OSError:
            time.sleep(0.1)
    yield url
    process.terminate()
    process.wait(20)
    end_supervisor(home)


class Browser:
    """Follows redirects and keeps cookies, as a browser does."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))

    def get(self, path: str) -> tuple[int, str]:
        request = urllib.request.Request(urllib.parse.urljoin(self.url + "/", path), headers={"Accept": "text/html"})
        try:
            with self._opener.open(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def sign_in(self) -> tuple[int, str]:
        """Press the button on the page that a stranger sees."""
        _, page = self.get("/")
        link = page.split('href="')[1].split('"')[0]
        return self.get(link.replace("&amp;", "&"))


@pytest.fixture
def browser(dashboard):
    return Browser(dashboard)


def test_a_stranger_is_shown_a_button_and_nothing_of_the_app(browser):
    status, page = browser.get("/train")
    assert status == 401
    assert "auth/login?provider=" in page
    assert browser.get("/static/js/anything.js")[0] == 401


def test_somebody_on_the_list_signs_in_and_out_again(browser, provider):
    provider.claims = {"email": "Ann@Lab.example", "email_verified": True}
    status, page = browser.sign_in()
    assert (status, "<title>Streamlit</title>" in page) == (200, True)
    assert browser.get("/api/runs/0123456789abcdef/points")[0] == 404  # in, and there is no such run
    browser.get("/sign-out")
    assert browser.get("/")[0] == 401


@pytest.mark.parametrize(
    "claims",
    [
        {"email": "eve@evil.example", "email_verified": True},
        {"email": "eve@notlab.example"},
        {"email": "eve@evil.example@lab.example"},
        {"email": "ada@lab.example", "email_verified": False},
        {"preferred_username": "ada@lab.example"},
    ],
)
def test_nobody_else_gets_in(browser, provider, claims):
    provider.claims = claims
    status, page = browser.sign_in()
    assert status in {401, 403}
    assert "<title>Streamlit</title>" not in page
    assert browser.get("/api/runs/0123456789abcdef/points")[0] in {401, 403}


def test_a_cookie_with_another_signature_is_refused(browser, provider):
    provider.claims = {"email": "ada@lab.example"}
    assert browser.sign_in()[0] == 200
    for cookie in browser.cookies:
        cookie.value = cookie.value.replace(cookie.value[-3:], "AAA")
    assert browser.get("/")[0] == 401


def test_signing_everyone_out_counts_for_them_too_and_they_may_come_back(browser, provider, home):
    provider.claims = {"email": "ada@lab.example"}
    assert browser.sign_in()[0] == 200
    time.sleep(1.1)  # cookies are dated to the second
    keys.sign_everyone_out(home)
    assert browser.get("/")[0] == 401
    assert browser.sign_in()[0] == 200
