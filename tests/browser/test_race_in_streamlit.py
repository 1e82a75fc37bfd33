"""The live view of a race inside Streamlit, with real training."""

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

import numpy as np
import pytest

from tests.conftest import ROOT, Supervised

sync_api = pytest.importorskip("playwright.sync_api")

from tests.browser.test_race_view import PATIENCE_MS, Race  # noqa: E402

pytestmark = pytest.mark.browser
expect = sync_api.expect

PAGE = """
import json, pathlib
import streamlit as st
from dashboard.live.race import race_view
st.session_state["reruns"] = st.session_state.get("reruns", 0) + 1
race = json.loads(pathlib.Path({lanes!r}).read_text())
target = {{"metric": "test_accuracy", "value": 0.9}}
state = race_view(race["lanes"], key="race", target=target, axis="seconds", alive=race["alive"], price_per_hour=None)
if state.ended:
    st.session_state["ended"] = state.ended
st.text("state " + json.dumps([state.target, st.session_state.get("ended")]))
st.button("Again")
"""
APP = """
import sys
sys.path.insert(0, {root!r})
import streamlit as st
from starlette.middleware import Middleware
from starlette.routing import Route
from dashboard.api import race, run
from dashboard.server.headers import SafetyHeaders
routes = [Route(r.path, r.endpoint) for r in (*run.ROUTES, *race.ROUTES)]
app = st.App({page!r}, routes=routes, middleware=[Middleware(SafetyHeaders)])
"""


@contextlib.contextmanager
def streamlit(folder: Path, home: Path):
    (folder / "page.py").write_text(PAGE.format(lanes=str(folder / "lanes.json")))
    (folder / "app.py").write_text(APP.format(root=str(ROOT), page=str(folder / "page.py")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(folder / "app.py"), "--server.port", str(port)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"ISOFLOP_HOME": str(home)}, stdout=log, stderr=log
        )
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


@pytest.mark.slow
def test_a_race_of_real_runs_inside_streamlit(browser, supervised: Supervised, tmp_path):
    def lane(place: int, batch_size: int, *seeds: int) -> dict:
        runs = [
            {"id": supervised.submit(f"batch_size={batch_size}", f"seed={seed}", "budget.epochs=8"), "seed": seed}
            for seed in seeds
        ]
        return {"label": f"B = {batch_size}", "color": place, "runs": runs, "baseline": place == 0}

    lanes = [lane(0, 8, 0, 1), lane(1, 128, 0, 1)]
    (tmp_path / "lanes.json").write_text(json.dumps({"lanes": lanes, "alive": True}))
    with streamlit(tmp_path, supervised.store.root) as url:
        tab = browser.new_page()
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on(
            "console",
            lambda m: errors.append(m.text) if m.type == "error" and "_stcore" not in str(m.location) else None,
        )
        tab.goto(url)
        shown = Race(tab, url).drawn("accuracy")
        mounts = tab.evaluate("() => document.querySelector('[data-testid=race]').isoflop.mounts")
        for place in (0, 1):
            expect(shown.cell("status", place)).to_have_text("Finished", timeout=60_000)
        target = [{"metric": "test_accuracy", "value": 0.9}, {"finished": 4}]
        expect(tab.get_by_text("state [")).to_have_text(f"state {json.dumps(target)}", timeout=PATIENCE_MS)
        tab.get_by_test_id("target-test_loss").fill("0.5")
        tab.get_by_test_id("target-test_loss").press("Enter")
        target[0] = {"metric": "test_loss", "value": 0.5}
        expect(tab.get_by_text("state [")).to_have_text(f"state {json.dumps(target)}", timeout=PATIENCE_MS)
        tab.get_by_test_id("target-test_loss").fill("")
        tab.get_by_test_id("target-test_loss").press("Enter")
        target[0] = None
        expect(tab.get_by_text("state [")).to_have_text(f"state {json.dumps(target)}", timeout=PATIENCE_MS)
        more = lane(1, 128, 2)["runs"]
        supervised.until(more[0]["id"], "finished")
        lanes[1]["runs"] += more
        (tmp_path / "lanes.json").write_text(json.dumps({"lanes": lanes, "alive": False}))
        tab.get_by_role("button", name="Again").click()
        tab.get_by_test_id("race-all-seeds").click()
        tab.get_by_test_id("axis-steps").click()
        shown.settled()
        shown.raw()
        runs = [supervised.store.run(run["id"]) for one in lanes for run in one["runs"]]
        for line, run in zip(shown.traces("loss"), runs, strict=True):
            assert line["x"] == run.steps["step"].tolist()
            np.testing.assert_allclose(line["y"], run.steps["loss"], rtol=1e-5)
        for line, run in zip(shown.traces("accuracy"), runs, strict=True):
            np.testing.assert_allclose(line["y"], 100 * run.evaluations["test_accuracy"], rtol=1e-5)
        assert tab.evaluate("() => document.querySelector('[data-testid=race]').isoflop.mounts") == mounts
        tab.close()
        assert errors == []
