"""An unexpected error: the viewer gets an id, the log the traceback."""

import re

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from dashboard.widgets import error_page


def test_a_page_that_fails_shows_an_id_and_the_log_has_the_traceback(caplog):
    def page():
        from dashboard.widgets import error_page

        try:
            raise ValueError("secret of /home/alice")
        except ValueError as error:
            assert error_page.on_page_error(error)

    (shown,) = AppTest.from_function(page).run().error
    assert "alice" not in shown.value
    assert re.search(r"under the id ([0-9a-f]{8})\.", shown.value)[1] in caplog.text
    assert "secret of /home/alice" in caplog.text


def test_an_error_that_a_user_can_fix_is_shown_in_full():
    def page():
        from dashboard.widgets import error_page
        from engine.common.errors import StoreError

        assert error_page.on_page_error(StoreError("The store is gone.", fix="Start again."))

    assert [e.value for e in AppTest.from_function(page).run().error] == ["The store is gone. Start again."]


def test_a_route_that_fails_shows_an_id(caplog):
    def broken(_):
        raise ValueError("secret of /home/alice")

    app = Starlette(routes=[Route("/", broken)], exception_handlers={Exception: error_page.on_route_error})
    answer = TestClient(app, raise_server_exceptions=False).get("/")
    assert (answer.status_code, "alice" in answer.text) == (500, False)
    assert "secret of /home/alice" in caplog.text
