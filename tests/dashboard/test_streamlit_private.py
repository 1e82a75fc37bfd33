"""The non-public parts of Streamlit that the dashboard needs: a missing part is named when the server starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from streamlit.web.server import server_util

from dashboard.server import streamlit_private
from engine.common.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_the_installed_streamlit_has_all_that_is_needed():
    streamlit_private.check()


def test_a_missing_name_is_reported_with_the_versions_to_install(monkeypatch):
    monkeypatch.delattr(server_util, "get_cookie_secret")
    monkeypatch.setattr("streamlit.__version__", "1.99.0")
    with pytest.raises(ConfigError, match=r"Streamlit 1\.99\.0 lacks \S+\.get_cookie_secret, .*streamlit>=1\.67,<1"):
        streamlit_private.check()


def test_a_missing_module_and_a_missing_file_are_reported(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "streamlit.auth_util", None)
    monkeypatch.setattr(streamlit_private, "_INDEX_HTML", tmp_path / "static" / "index.html")
    with pytest.raises(ConfigError, match=r"lacks streamlit\.auth_util, \S*static/index\.html, which"):
        streamlit_private.check()


@pytest.mark.process
def test_the_server_does_not_start_without_them():
    code = (
        "import runpy; from streamlit.web.server import server_util; del server_util.get_cookie_secret; "
        "runpy.run_path('dashboard/app.py')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "lacks streamlit.web.server.server_util.get_cookie_secret" in done.stderr and "Traceback" not in done.stderr


def test_the_versions_are_those_of_the_requirements():
    assert f"\nstreamlit{streamlit_private.TESTED} " in (ROOT / "requirements.txt").read_text(encoding="utf-8")
