"""Sign-in: every route has a rule, and no route answers without signing in."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
import tomllib

import pytest
from itsdangerous import URLSafeTimedSerializer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from dashboard.server import auth_middleware, sign_in
from dashboard.server.headers import MIDDLEWARE
from engine.access import keys, settings
from engine.access.settings import Settings
from engine.system.files import write_atomically
from tests.conftest import ROOT

URL = "http://127.0.0.1:8501"
HTML = {"Accept": "text/html", "Origin": URL}
SOCKET = {"Host": "127.0.0.1:8501", "Origin": URL}
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
TOKEN = "shared-by-the-whole-team"  # noqa: S105
TEAM = {
    "link": "",
    "token": f'[sign_in]\nmethod = "token"\ntoken = "{TOKEN}"\n',
    "proxy": '[sign_in]\nmethod = "proxy"\nproxy_header = "X-User"\nproxy_addresses = ["10.0.0.5"]\n',
    "oidc": '[sign_in]\nmethod = "oidc"\nallowed = ["@lab.example"]\n',
}


async def echo(request):
    return PlainTextResponse(request.headers.get(auth_middleware.ACTOR_HEADER, "nobody"))


async def socket_echo(websocket):
    await websocket.accept()
    await websocket.send_text(websocket.headers.get(auth_middleware.ACTOR_HEADER, "nobody"))
    await websocket.close()


@pytest.fixture
def app(store, monkeypatch):
    """The middleware of the dashboard before an app that answers with the user it got."""
    monkeypatch.setenv("ISOFLOP_HOME", str(store.root))
    monkeypatch.setattr("dashboard.server.auth_middleware._WRONG_TOKEN_WAIT_S", 0)
    routes = [WebSocketRoute("/_stcore/stream", socket_echo), Route("/{rest:path}", echo, methods=list(METHODS))]
    return Starlette(routes=routes, middleware=MIDDLEWARE)


def browser(app, *, client=("127.0.0.1", 50_000), url=URL):
    return TestClient(app, base_url=url, client=client, follow_redirects=False, headers={"Accept": "text/html"})


def sign_in_with(store, method, more=""):
    write_atomically(store.root / settings.FILE, TEAM[method] + more)


# --- every route has a decision -------------------------------------------------------------------------------------


def every_route(routes: list[BaseRoute], prefix: str = ""):
    """Path and methods of each route of an app; a mount that serves files is a path of its own."""
    for route in routes:
        path = prefix + getattr(route, "path", "")
        if isinstance(route, Mount) and route.routes:
            yield from every_route(route.routes, path)
        elif isinstance(route, WebSocketRoute):
            yield path, {"WEBSOCKET"}
        else:
            yield path or "/", getattr(route, "methods", None) or {"GET", "HEAD"}


@pytest.fixture(scope="module")
def real_routes():
    """The routes of the app that `streamlit run` starts."""
    code = (
        "import json, sys; sys.path.insert(0, '.')\n"
        "from streamlit import config\n"
        "config._main_script_path = 'dashboard/app.py'; config.get_config_options(force_reparse=True)\n"
        "from tests.dashboard.test_auth_middleware import every_route\n"
        "from dashboard.app import app\n"
        "found = every_route(app._build_starlette_app().routes)\n"
        "print(json.dumps([[path, sorted(methods)] for path, methods in found]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def filled(path):
    return re.sub(r"\{\w+(:\w+)?\}", "x", path)


@pytest.mark.process
def test_each_route_and_method_of_the_app_is_decided_by_a_rule(real_routes):
    assert len(real_routes) > 20
    undecided = [
        (path, method)
        for path, methods in real_routes
        for method in methods
        if not any(method in rule.methods and re.fullmatch(rule.path, filled(path)) for rule in auth_middleware.RULES)
    ]
    assert undecided == []


@pytest.mark.process
def test_each_rule_is_about_a_route_that_is_there(real_routes):
    ours = (
        "/sign-in",
        "/sign-out",
        "/_stcore/script-health-check",
        "/_stcore/none",
        "/train",
    )  # the gate's own, options
    paths = [filled(path) for path, _ in real_routes] + list(ours)
    assert [
        rule.path for rule in auth_middleware.RULES if not any(re.fullmatch(rule.path, path) for path in paths)
    ] == []


@pytest.mark.process
def test_only_the_health_route_is_open_without_signing_in(real_routes):
    open_ones = {
        (path, method)
        for path, _ in real_routes
        for method in (*METHODS, "WEBSOCKET")
        if auth_middleware.decide(filled(path), method) == "anyone"
    }
    assert open_ones == {("/_stcore/health", method) for method in ("GET", "HEAD", "OPTIONS")}


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/_stcore/new", "GET"),
        ("/_stcore/agent/interact", "POST"),
        ("/_stcore/metrics", "GET"),
        ("/api/new", "GET"),
        ("/api/runs/x/points", "POST"),
        ("/", "POST"),
        ("/train", "DELETE"),
        ("/_stcore/stream", "GET"),
        ("/anything", "WEBSOCKET"),
        ("/_stcore/health", "TRACE"),
        ("/api", "GET"),
        ("/_stcore", "GET"),
    ],
)
def test_a_request_without_a_rule_is_refused(path, method):
    assert auth_middleware.decide(path, method) == "nobody"


# --- every route needs signing in --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", TEAM)
@pytest.mark.process
def test_without_signing_in_no_route_answers(app, store, real_routes, how, method):
    sign_in_with(store, how)
    client = browser(app)
    for path, _ in real_routes:
        answer = client.request(method, filled(path), headers=HTML)
        if auth_middleware.decide(filled(path), method) not in {"anyone", "provider"}:
            assert answer.status_code in {401, 404}, (path, method)
            assert answer.text not in {"nobody", "local"}, (path, method)


@pytest.mark.parametrize("how", TEAM)
def test_without_signing_in_there_is_no_socket(app, store, how):
    sign_in_with(store, how)
    with (
        pytest.raises(WebSocketDisconnect) as refused,
        browser(app).websocket_connect("/_stcore/stream", headers=SOCKET),
    ):
        pass
    assert refused.value.reason == "Sign in first."


def test_a_program_is_told_in_words_and_a_person_is_shown_a_page(app):
    assert browser(app).get("/api/runs/x/points", headers={"Accept": "*/*"}).text == "Sign in first."
    page = browser(app).get("/train?preset=lenet")
    assert page.status_code == 401
    assert "python -m engine link" in page.text


# --- the link --------------------------------------------------------------------------------------------------------


def test_the_link_is_exchanged_for_a_cookie_and_an_address_without_token(app, store):
    client = browser(app)
    answer = client.get(f"/train?preset=lenet&token={keys.link_token(store.root)}&optimizer.lr=0.1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/train?preset=lenet&optimizer.lr=0.1")
    cookie = answer.headers["set-cookie"].lower()
    assert cookie.startswith("isoflop-8501=")
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/train").text == "local"
    held = SOCKET | {"Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items())}
    with client.websocket_connect("/_stcore/stream", headers=held) as ws:
        assert ws.receive_text() == "local"


def test_a_link_lets_one_browser_in(app, store):
    token = keys.link_token(store.root)
    assert browser(app).get(f"/?token={token}").status_code == 303
    second = browser(app)
    answer = second.get(f"/?token={token}")
    assert (answer.status_code, "was used before" in answer.text) == (401, True)
    assert second.get("/").status_code == 401
    assert browser(app).get(f"/?token={keys.link_token(store.root)}").status_code == 303


def test_who_is_in_already_may_follow_an_old_link(app, store):
    client, token = browser(app), keys.link_token(store.root)
    for _ in range(2):
        assert client.get(f"/?token={token}").status_code == 303


@pytest.mark.parametrize("token", ["", "x", "é", "a" * 5_000, "%00", "../link.token"])
def test_a_wrong_token_opens_nothing_and_uses_nothing_up(app, store, token):
    right = keys.link_token(store.root)
    assert browser(app).get("/", params={"token": token}).status_code == 401
    assert keys.link_token(store.root) == right


@pytest.mark.parametrize("path", ["//evil.example/x", "/\\evil.example", "//evil.example"])
def test_the_clean_address_is_always_ours(app, store, path):
    answer = browser(app).get(f"{URL}{path}?token={keys.link_token(store.root)}")
    assert answer.status_code == 303
    assert re.match(r"/(?![/\\])", answer.headers["location"])


def test_the_token_may_be_pasted(app, store):
    client = browser(app)
    form = {"token": f" {keys.link_token(store.root)} "}
    assert client.post("/sign-in", data=form, headers=HTML).headers["location"] == "/"
    assert client.get("/").text == "local"


def test_another_sites_page_cannot_send_the_form(app, store):
    form = {"token": keys.link_token(store.root)}
    for origin in ("http://evil.example", "http://127.0.0.1:9999", "null"):
        assert browser(app).post("/sign-in", data=form, headers={"Origin": origin}).status_code == 403


def test_a_huge_form_is_not_read_to_its_end(app):
    assert browser(app).post("/sign-in", content=b"token=" + b"x" * 10**6, headers=HTML).status_code == 401


def test_signing_out_and_signing_everyone_out(app, store):
    first, second = browser(app), browser(app)
    for client in (first, second):
        client.get(f"/?token={keys.link_token(store.root)}")
    assert first.get("/sign-out").status_code == 303
    assert (first.get("/").status_code, second.get("/").status_code) == (401, 200)
    keys.sign_everyone_out(store.root)
    assert second.get("/").status_code == 401


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_sites_page_cannot_sign_anybody_out(app, store, site):
    """A page on another port of this machine is the same site: the browser would obey a cookie's end from there."""
    client = browser(app)
    client.get(f"/?token={keys.link_token(store.root)}")
    for path in ("/sign-out", "/auth/logout"):
        answer = client.get(path, headers={"Sec-Fetch-Site": site})
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    assert client.get("/sign-out", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 303


@pytest.mark.parametrize("cookies", ["{junk}; {ours}", "{ours}; {junk}", "{junk}; {ours}; {junk}"])
def test_a_cookie_that_another_port_of_this_machine_set_beside_ours_signs_nobody_out(app, store, cookies):
    client = browser(app)
    client.get(f"/?token={keys.link_token(store.root)}")
    (held,) = client.cookies.values()
    both = cookies.format(junk="isoflop-8501=junk", ours=f"isoflop-8501={held}")
    assert browser(app).get("/", headers={"Cookie": both}).text == "local"


@pytest.mark.parametrize("name", ["link.token", "cookie.key"])
def test_a_secret_that_was_emptied_is_nobodys_key(app, store, name):
    keys.link_token(store.root)
    keys.cookie_key(store.root)
    (store.root / "keys" / name).write_text("")
    assert browser(app).post("/sign-in", data={"token": ""}, headers=HTML).status_code == 401
    forged = URLSafeTimedSerializer("", salt="isoflop sign-in").dumps(["link", sign_in._fingerprint(Settings())])
    assert browser(app).get("/", headers={"Cookie": f"isoflop-8501={forged}"}).status_code == 401
    assert len((store.root / "keys" / name).read_text()) >= 20


def test_wrong_tokens_do_not_fill_the_disk(app, store):
    client = browser(app)
    for _ in range(30):
        client.get("/?token=wrong")
    assert (store.root / "audit.jsonl").read_text().count("refused") == 1


def test_a_form_that_never_ends_is_not_waited_for(monkeypatch):
    async def receive():
        if asked.append(1) is None and len(asked) == 1:
            return {"type": "http.request", "body": b"token=", "more_body": True}
        await asyncio.sleep(60)

    asked = []
    monkeypatch.setattr(auth_middleware, "_SLOWEST_BODY_S", 0.05)
    body = auth_middleware._body(Request({"type": "http", "method": "POST", "headers": []}, receive))
    assert asyncio.run(asyncio.wait_for(body, 20)) == b""


# --- sockets that are open ---------------------------------------------------------------------------------------------


async def long_talk(websocket):
    """Answers each message, and speaks by itself in between."""
    await websocket.accept()
    async for message in websocket.iter_text():
        for _ in range(2):
            await asyncio.sleep(0.05)
            await websocket.send_text(message)


@pytest.fixture
def talking(app, store):
    app.routes.insert(0, WebSocketRoute("/_stcore/stream", long_talk))
    sign_in_with(store, "token")
    client = browser(app)
    client.get(f"/?token={TOKEN}")
    return client, SOCKET | {"Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items())}


def another_token(store):
    write_atomically(store.root / settings.FILE, TEAM["token"].replace(TOKEN, TOKEN + "-2"))


def nobody_allowed(store):
    write_atomically(store.root / settings.FILE, TEAM["token"].replace(TOKEN, f'{TOKEN}"\nallowed = ["ada'))


@pytest.mark.parametrize(
    "end",
    [
        another_token,
        nobody_allowed,
        lambda store: keys.sign_everyone_out(store.root),
        lambda store: sign_in_with(store, "proxy"),
        lambda store: write_atomically(store.root / settings.FILE, "[broken"),
        lambda store: (store.root / settings.FILE).unlink(),
    ],
)
def test_an_open_socket_ends_at_the_next_click_of_somebody_who_is_out(talking, store, end):
    client, headers = talking
    with client.websocket_connect("/_stcore/stream", headers=headers) as ws:
        ws.send_text("in")
        assert [ws.receive_text(), ws.receive_text()] == ["in", "in"]
        end(store)
        ws.send_text("out")
        with pytest.raises(WebSocketDisconnect):
            ws.receive_text()


def test_an_open_socket_says_nothing_more_to_somebody_who_is_out(talking, store, monkeypatch):
    monkeypatch.setattr(auth_middleware, "_CHECK_EVERY_S", 0)
    client, headers = talking
    with client.websocket_connect("/_stcore/stream", headers=headers) as ws:
        ws.send_text("in")
        assert ws.receive_text() == "in"
        keys.sign_everyone_out(store.root)
        with pytest.raises(WebSocketDisconnect):
            ws.receive_text()


def test_one_person_has_so_many_sockets(talking, monkeypatch):
    monkeypatch.setattr(auth_middleware, "_MOST_SOCKETS", 1)
    client, headers = talking
    with client.websocket_connect("/_stcore/stream", headers=headers):  # noqa: SIM117 - the first stays open
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/_stcore/stream", headers=headers):
            pass
    with client.websocket_connect("/_stcore/stream", headers=headers) as ws:
        ws.send_text("in")
        assert ws.receive_text() == "in"


# --- cookies -----------------------------------------------------------------------------------------------------------


def test_a_cookie_is_good_for_its_own_port_store_and_way_to_sign_in_only(app, store):
    client = browser(app)
    client.get(f"/?token={keys.link_token(store.root)}")
    (held,) = client.cookies.values()
    assert client.get("/", headers={"Host": "127.0.0.1:8502"}).status_code == 401
    sign_in_with(store, "token")
    assert client.get("/").status_code == 401
    sign_in_with(store, "link")
    forged = held[:-2] + ("aa" if held[-2:] != "aa" else "bb")
    for value in (forged, "", "x.y.z", held + "x"):
        assert browser(app).get("/", headers={"Cookie": f"isoflop-8501={value}"}).status_code == 401


def test_an_old_cookie_is_no_good_any_more(app, store, monkeypatch):
    client = browser(app)
    client.get(f"/?token={keys.link_token(store.root)}")
    assert client.get("/").status_code == 200
    now = time.time()
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: now + sign_in.COOKIE_MAX_AGE_S + 60)
    assert client.get("/").status_code == 401


def test_a_link_on_another_site_is_loaded_again_from_our_page(app):
    """The cookie is SameSite=Strict, so the browser leaves it out after a link on another site."""
    answer = browser(app).get(
        '/train?run=1&x="><script>', headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    )
    assert 'http-equiv="refresh" content="0; url=/train?run=1&amp;x=%22%3E%3Cscript%3E"' in answer.text


# --- the user -------------------------------------------------------------------------------------------------------


def test_a_client_cannot_set_its_own_user(app, store):
    client = browser(app)
    client.get(f"/?token={keys.link_token(store.root)}")
    assert (
        client.get("/", headers=[(auth_middleware.ACTOR_HEADER, "terminal"), ("X-Isoflop-Actor", "oidc:ada")]).text
        == "local"
    )
    assert browser(app).get("/_stcore/health", headers={auth_middleware.ACTOR_HEADER: "terminal"}).text == "nobody"


def test_a_shared_token_lets_in_by_form_and_by_link_until_it_changes(app, store):
    sign_in_with(store, "token")
    client = browser(app)
    assert client.post("/sign-in", data={"token": "wrong"}, headers=HTML).status_code == 401
    assert client.post("/sign-in", data={"token": TOKEN}, headers=HTML).status_code == 303
    assert browser(app).get(f"/?token={TOKEN}").status_code == 303
    assert client.get("/").text == "token%3Ateam"
    write_atomically(store.root / settings.FILE, TEAM["token"].replace(TOKEN, TOKEN + "-2"))
    assert client.get("/").status_code == 401


@pytest.mark.parametrize(
    ("peer", "headers", "seen"),
    [
        (("10.0.0.5", 4000), [("X-User", "ada")], "proxy%3Aada"),
        (("::ffff:10.0.0.5", 4000), [("X-User", "ada")], "proxy%3Aada"),
        (("10.0.0.5", 4000), [("X-User", "ada"), ("X-Forwarded-For", "10.0.0.55, 192.0.2.7")], "proxy%3Aada"),
        (("10.0.0.5", 4000), [("X-User", "josé".encode())], "proxy%3Ajos%C3%83%C2%A9"),
        (("10.0.0.5", 4000), [("X-User", " ")], None),
        (("10.0.0.5", 4000), [("X-User", "a" * 201)], None),  # cut, it would be another's
        (("10.0.0.5", 4000), [("X_User", "ada")], None),
        (("10.0.0.5", 4000), [], None),
        (("10.0.0.5", 4000), [("X-User", "eve"), ("X-User", "ada")], None),
        (("10.0.0.6", 4000), [("X-User", "ada")], None),
        (("127.0.0.1", 4000), [("X-User", "ada")], None),
        (None, [("X-User", "ada")], None),
    ],
)
def test_a_name_is_believed_from_the_proxys_own_address_only(app, store, peer, headers, seen):
    sign_in_with(store, "proxy")
    answer = browser(app, client=peer).get("/", headers=headers)
    assert (answer.status_code, answer.text if seen else None) == (200 if seen else 401, seen)


@pytest.mark.parametrize(
    "forwarded", ["10.0.0.5", "10.0.0.5:4000", "[10.0.0.5]:4000", "[10.0.0.5]", "10.0.0.5:0", "192.0.2.7, 10.0.0.5:1"]
)
@pytest.mark.parametrize(
    ("proxy", "peer", "believed"),
    [
        ("10.0.0.5", "127.0.0.1", False),  # another process of this machine, which uvicorn trusts, says it is the proxy
        ("127.0.0.1", "10.0.0.5", False),  # another machine says of itself what uvicorn would say of it
        ("10.0.0.5", "10.0.0.5", False),  # cannot be told from the first
    ],
)
def test_a_forwarded_address_is_not_trusted_as_the_proxys(app, store, proxy, peer, believed, forwarded):
    """With uvicorn's own middleware before ours, which takes the forwarded address from trusted peers."""
    write_atomically(store.root / settings.FILE, TEAM["proxy"].replace("10.0.0.5", proxy))
    served = browser(ProxyHeadersMiddleware(app), client=(peer, 4000))
    answer = served.get("/", headers={"X-User": "ada", "X-Forwarded-For": forwarded})
    assert answer.status_code == (200 if believed else 401)


def test_a_proxy_on_this_machine_is_believed_whomever_it_forwards(app, store):
    write_atomically(store.root / settings.FILE, TEAM["proxy"].replace("10.0.0.5", "127.0.0.1"))
    served = browser(ProxyHeadersMiddleware(app), client=("127.0.0.1", 4000))
    for forwarded in ({}, {"X-Forwarded-For": "192.0.2.7"}, {"X-Forwarded-For": "::1, 2001:db8::7"}):
        assert served.get("/", headers={"X-User": "ada"} | forwarded).text == "proxy%3Aada"


def test_a_viewer_may_read_and_may_not_upload(app, store):
    sign_in_with(store, "proxy", '[roles]\nrunner = ["rob"]\n')
    client = browser(app, client=("10.0.0.5", 4000))
    upload = "/_stcore/upload_file/session/file"
    assert client.get("/api/runs/x/points", headers={"X-User": "eve"}).status_code == 200
    assert client.put(upload, headers={"X-User": "eve"}).status_code == 403
    assert client.put(upload, headers={"X-User": "rob"}).status_code == 200


def test_a_user_who_is_not_on_the_list_gets_a_message(app, store):
    write_atomically(store.root / settings.FILE, TEAM["proxy"] + 'allowed = ["@lab.example"]\n')
    client = browser(app, client=("10.0.0.5", 4000))
    assert client.get("/", headers={"X-User": "ann@lab.example"}).status_code == 200
    answer = client.get("/", headers={"X-User": "<b>@evil.example"})
    assert (answer.status_code, "&lt;b&gt;@evil.example may not use this dashboard" in answer.text) == (403, True)


def test_invalid_settings_refuse_every_request(app, store, caplog):
    write_atomically(store.root / settings.FILE, "[sign_in]\nmethod = 'nobody'")
    answer = browser(app).get("/", headers={"X-User": "ada"})
    assert (answer.status_code, str(store.root) in answer.text) == (503, False)
    assert "sign_in.method" in caplog.text


def test_a_request_that_came_in_elsewhere_is_refused_however_the_server_was_started(app, store):
    """`uvicorn dashboard.app:app --host 0.0.0.0` does not read Streamlit's settings."""
    token = keys.link_token(store.root)
    outside = TestClient(app, base_url="http://192.0.2.7:8501", headers={"Host": "localhost:8501"})
    answer = outside.get(f"/?token={token}")
    assert (answer.status_code, answer.text) == (
        403,
        "This dashboard can only be used on the machine on which it runs.",
    )


# --- response headers and files ----------------------------------------------------------------------------------------


def test_the_only_inline_script_allowed_is_the_one_in_streamlits_page(app):
    policy = browser(app).get("/_stcore/health").headers["Content-Security-Policy"]
    assert policy.count("'sha256-") == 1
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


def test_the_keys_are_for_their_owner_alone(store):
    keys.link_token(store.root)
    keys.cookie_key(store.root)
    folder = store.root / "keys"
    assert [oct(p.stat().st_mode & 0o777) for p in (store.root, folder, *folder.iterdir())] == ["0o700"] * 2 + [
        "0o600"
    ] * 2


def test_streamlits_own_switches_are_set_to_safe():
    expected = {
        "server.enableStaticServing": False,
        "server.enableXsrfProtection": True,
        "runner.postScriptGC": False,
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",
        "client.allowedOrigins": [],
        "server.fileWatcherType": "none",
        "server.address": "127.0.0.1",
        "logger.hideWelcomeMessage": True,
        "server.maxUploadSize": 200,
        "server.trustedUserHeaders": json.dumps({auth_middleware.ACTOR_HEADER: "actor"}),
    }
    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    assert {key: config[key.split(".")[0]][key.split(".")[1]] for key in expected} == expected
