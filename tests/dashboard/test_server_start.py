"""The start of the server: which settings it refuses, what it prints, and real servers that were started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect

from dashboard.server import sign_in
from engine.access import settings
from engine.access.settings import Roles, Settings, SignIn
from engine.common.errors import ConfigError
from engine.system.files import write_atomically
from tests.browser.conftest import end_supervisor
from tests.conftest import ROOT
from tests.dashboard.test_auth_middleware import TEAM, TOKEN


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_a_start_on_this_machines_own_addresses_needs_nothing(address):
    sign_in.check_start(address, Settings())


@pytest.mark.parametrize("address", [None, "", "0.0.0.0", "::", "192.0.2.7", "no-such-host.invalid"])
def test_any_other_start_without_signing_in_is_refused_and_told_the_ways(address):
    with pytest.raises(ConfigError) as refused:
        sign_in.check_start(address, Settings())
    assert all(way in str(refused.value) for way in ("oidc", "proxy", "token"))
    sign_in.check_start(address, Settings(sign_in=SignIn(method="token", token=TOKEN)))


def test_a_provider_needs_authlib_and_a_description(monkeypatch):
    oidc = Settings(sign_in=SignIn(method="oidc", allowed=("@lab.example",)), roles=Roles())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install Authlib"):
        sign_in.check_start("0.0.0.0", oidc)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"\[auth\] in \.streamlit/secrets\.toml"):
        sign_in.check_start("0.0.0.0", oidc)


def start_dashboard(home, *flags, **environment):
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "dashboard" / "app.py"), *flags]
    environment = os.environ | {"ISOFLOP_HOME": str(home)} | environment
    return subprocess.Popen(
        command, cwd=home, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(process, home):
    """Stop the dashboard and its supervisor. Returns its output."""
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)
    end_supervisor(home)
    return said


@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        (["--server.address", "0.0.0.0"], {}),
        ([], {"STREAMLIT_SERVER_ADDRESS": "::"}),
        (["--server.address="], {}),
    ],
)
@pytest.mark.process
def test_an_open_start_ends_with_exit_code_2(store, flags, environment):
    process = start_dashboard(store.root, "--server.port", str(free_port()), *flags, **environment)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, "can be reached from other machines" in err, "token=" in out) == (2, True, False)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.process
def test_a_start_prints_the_link_on_the_terminal_and_no_log_has_it(store):
    port = free_port()
    process = start_dashboard(store.root, "--server.port", str(port), "--logger.level", "debug")
    try:
        line = next(line for line in process.stdout if "token=" in line)
        token = line.split("token=")[1].strip()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=30) as answer:
            assert answer.read() == b"ok"
        request = urllib.request.Request(f"http://127.0.0.1:{port}/?token={token}")
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert opener.open(request, timeout=30).url == f"http://127.0.0.1:{port}/"
    finally:
        out, err = end(process, store.root)
    assert token not in out + err
    logs = [path for path in store.root.rglob("*") if path.is_file() and path.parent.name != "keys"]
    assert logs
    assert all(token.encode() not in path.read_bytes() for path in logs)


@pytest.mark.slow
@pytest.mark.process
def test_below_a_base_path_every_route_works_and_needs_signing_in(store):
    port = free_port()
    process = start_dashboard(store.root, "--server.port", str(port), "--server.baseUrlPath", "team/flop")
    try:
        link = "http" + next(line for line in process.stdout if "token=" in line).split("http")[1].strip()
        assert link.startswith(f"http://127.0.0.1:{port}/team/flop/?token=")
        paths = ("_stcore/host-config", "assets/live.js", "static/manifest.json", "")
        urls = [f"http://127.0.0.1:{port}/team/flop/{path}" for path in paths]
        for url in urls:
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(url, timeout=30)
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        for url in (link, *urls, urls[-1] + "_stcore/health"):
            assert opener.open(url, timeout=30).status == 200
    finally:
        end(process, store.root)


def session_of(port, name, session=""):
    """The id of the session that a user gets who asks for the session of another one."""
    wanted = ["streamlit", "none", session] if session else ["streamlit"]
    with connect(
        f"ws://127.0.0.1:{port}/_stcore/stream",
        origin=f"http://127.0.0.1:{port}",
        subprotocols=wanted,
        additional_headers={"X-User": name},
        open_timeout=60,
    ) as ws:
        ws.send(BackMsg(rerun_script=ClientState()).SerializeToString())
        messages = (ForwardMsg.FromString(ws.recv(timeout=60)) for _ in range(20))
        return next(filter(None, (message.new_session.initialize.session_id for message in messages)))


@pytest.mark.slow
@pytest.mark.process
def test_a_session_is_resumed_by_its_own_user_only(store):
    write_atomically(store.root / settings.FILE, TEAM["proxy"].replace("10.0.0.5", "127.0.0.1"))
    port = free_port()
    process = start_dashboard(store.root, "--server.port", str(port))
    try:
        next(line for line in process.stdout if "Isoflop:" in line)
        of_rob = session_of(port, "rob")
        assert session_of(port, "eve", of_rob) != of_rob
        assert session_of(port, "rob", of_rob) == of_rob
    finally:
        end(process, store.root)


def test_a_start_on_every_interface_tells_an_address_that_is_answered(store, monkeypatch):
    monkeypatch.setattr("streamlit.get_option", lambda _: ["localhost", "*.lab.example", "192.0.2.7"])
    shared = Settings(sign_in=SignIn(method="token", token=TOKEN))
    assert "http://192.0.2.7:8501/ " in sign_in.greeting(store.root, shared, "0.0.0.0", 8501, "")
    assert "http://[::1]:80/x" in sign_in.greeting(store.root, shared, "::1", 80, "/x/")
