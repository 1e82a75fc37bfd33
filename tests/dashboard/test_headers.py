"""Requests are served for this machine's own names, and sockets and changes for our own pages only."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from dashboard.server.headers import HEADERS, MIDDLEWARE

OWN = {"Host": "127.0.0.1:8501"}


async def page(request):
    return PlainTextResponse("in")


async def socket(websocket):
    await websocket.accept()
    await websocket.send_text("in")
    await websocket.close()


@pytest.fixture
def client():
    routes = [Route("/", page, methods=["GET", "POST", "PUT", "DELETE"]), WebSocketRoute("/ws", socket)]
    return TestClient(Starlette(routes=routes, middleware=MIDDLEWARE[:2]), base_url="http://127.0.0.1:8501")


@pytest.mark.parametrize("host", ["localhost", "localhost:8501", "LOCALHOST:80", "127.0.0.1:8502", "[::1]:8501"])
def test_this_machines_own_names_are_served(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil.example:8501",
        "127.0.0.1.evil.example",
        "localhost:8501@evil",
        "127.0.0.1:8501/x",
        "127.0.0.2",
        "0.0.0.0",
        "localhost:99999999",
        "[::1",
        "::1",
        "localhost\n",
        "",
    ],
)
def test_any_other_host_is_refused(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 400


def test_an_allowed_host_is_served_and_a_star_stands_for_all_hosts_below(client, monkeypatch):
    names = ["isoflop.example.org", "*.lab.example", "10.1.2.3", "::1"]
    monkeypatch.setattr("streamlit.get_option", lambda key: names if key == "server.allowedHosts" else None)
    hosts = (
        "isoflop.example.org:443",
        "a.lab.example",
        "10.1.2.3",
        "[::1]:8501",
        "lab.example",
        "xlab.example",
        "localhost",
    )
    assert [client.get("/", headers={"Host": h}).status_code for h in hosts] == [200] * 4 + [400] * 3


def test_two_host_headers_are_refused(client):
    response = client.get("/", headers=[("Host", "localhost"), ("Host", "evil.example")])
    assert response.status_code == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:9999", "http://localhost:8501", "null"])
def test_a_change_from_another_site_or_port_is_refused(client, method, origin):
    assert client.request(method, "/", headers={"Origin": origin}).status_code == 403


@pytest.mark.parametrize("headers", [{"Origin": "http://127.0.0.1:8501"}, {}])
def test_a_change_from_our_own_page_or_a_script_is_served(client, headers):
    assert client.post("/", headers=headers).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:9999", "http://127.0.0.1", "null", None])
def test_a_socket_needs_our_own_origin(client, origin):
    headers = OWN | ({"Origin": origin} if origin else {})
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws", headers=headers):
        pass


def test_a_socket_from_our_own_page_is_served(client):
    with client.websocket_connect("/ws", headers=OWN | {"Origin": "http://127.0.0.1:8501"}) as ws:
        assert ws.receive_text() == "in"


def test_a_socket_for_another_host_is_refused(client):
    headers = {"Host": "evil.example", "Origin": "http://evil.example"}  # what DNS rebinding looks like
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws", headers=headers):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1:8501", "evil.example"])
def test_each_answer_carries_the_safety_headers(client, host):
    answer = client.get("/", headers={"Host": host})
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
