"""The page Hardware under Streamlit's own test driver."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import state
from dashboard.live import hardware as monitor
from dashboard.widgets import run_parts
from engine.access import settings
from engine.hardware import probe as hardware
from engine.runtime.client import Client
from tests.fake_nvml import FakeGpu, FakeNvml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def app(store, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(store.root))
    monkeypatch.setattr(Client, "wake", lambda _: None)
    for cached in (state.store, state.machine):
        cached.clear()
    yield AppTest.from_file(str(ROOT / "dashboard" / "main.py"), default_timeout=60)
    for cached in (state.store, state.machine):
        cached.clear()


def open_page(app, **params):
    app.run()
    app.switch_page(str(ROOT / "pages" / "hardware.py"))
    for key, value in params.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    assert not app.error
    return app


def said(app):
    return "\n".join(str(e.value) for kind in (app.markdown, app.caption) for e in kind)


def test_the_page_tells_the_machine_with_its_versions_and_nothing_that_identifies_it(app, monkeypatch):
    probe = hardware.probe(nvml=FakeNvml(FakeGpu(uuid="GPU-serial-1234", name="NVIDIA *H200*")), environ={})
    monkeypatch.setattr(hardware, "probe", lambda: probe)
    text = said(open_page(app))
    assert "usable of" in text
    assert "torch 2" in text.replace("\\", "")
    assert "NVIDIA \\*H200\\*" in text
    assert "driver 580\\.159\\.03" in text or "driver 580.159.03" in text
    assert "serial" not in text


def test_gpus_of_a_kind_are_told_once(app, monkeypatch):
    gpus = [FakeGpu(uuid=f"GPU-{n}", name="NVIDIA H200") for n in range(16)]
    probe = hardware.probe(nvml=FakeNvml(*gpus, FakeGpu(uuid="GPU-x", name="NVIDIA L4")), environ={})
    monkeypatch.setattr(hardware, "probe", lambda: probe)
    text = said(open_page(app))
    assert text.count("NVIDIA H200") == 1 and run_parts.literal("16 × NVIDIA H200") in text
    assert all(run_parts.literal(devices) in text for devices in ("cuda:0 to cuda:15 · ", "cuda:16 · "))


@pytest.mark.parametrize("view", ["", "Monitor", "<b>", "Nothing"])
def test_the_view_stands_in_the_address_and_another_one_is_the_first(app, view):
    open_page(app, **({"view": view} if view else {}))
    assert app.query_params["view"] in ("Monitor", ["Monitor"])


def test_what_the_browser_asks_for_becomes_a_command_and_an_absurd_one_an_error(app, store, monkeypatch):
    asked = [2.0]
    monkeypatch.setattr(monitor, "_live", lambda: asked[0])
    open_page(app)
    assert ['"interval_s": "2.0"' in path.read_text() for path in store.inbox.glob("*.json")] == [True]
    asked[0] = 0.001
    app.run()
    assert "is not between" in app.error[0].value
    assert len(list(store.inbox.glob("*.json"))) == 1


def test_a_viewer_may_look_but_not_choose_how_often(app, store, monkeypatch):
    path = store.root / settings.FILE
    path.write_text('[sign_in]\nmethod = "oidc"\nallowed = ["a@b.c"]\n')
    path.chmod(0o600)
    from engine.access.policy import Actor

    monkeypatch.setattr(state, "actor", lambda: Actor("oidc", "a@b.c"))
    monkeypatch.setattr(monitor, "_live", lambda: 2.0)
    app.run()
    app.switch_page(str(ROOT / "pages" / "hardware.py")).run()
    assert "Only an admin can set how often" in app.error[0].value
    assert list(store.inbox.glob("*.json")) == []
