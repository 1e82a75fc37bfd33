"""Tabs and dashboards come and go; what they started goes on, and shows again where one looks."""

from __future__ import annotations

import os
import signal

import pytest

from engine.store.store import Store
from tests.browser.conftest import Served
from tests.runtime.conftest import scene  # noqa: F401 - a fixture
from tests.runtime.scene import Scene

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_run_goes_on_when_its_tab_is_closed_and_its_dashboard_stopped_with_one_open(browser, scene: Scene):  # noqa: F811
    scene.supervise("--on-demand", "--grace-seconds", 60)
    dashboard = scene.dashboard()
    run = scene.running()
    url = Served.signed_in(f"http://127.0.0.1:{scene.port}", scene.root)
    seen = []
    for _ in range(2):  # closed, and opened again
        context = url.new_context(browser)
        tab = context.new_page()
        tab.goto(f"{url}/train?run={run.run_id}")
        tab.get_by_text("running").first.wait_for(timeout=60_000)
        run.refresh()
        seen.append(len(run.steps))
        if len(seen) == 1:
            context.close()
    assert seen[1] > seen[0]
    os.killpg(dashboard.pid, signal.SIGINT)  # the tab is still open
    dashboard.wait(20)
    scene.dashboard()
    run = Store(scene.root).run(run.run_id)
    assert run.status == "running"
    context.close()
