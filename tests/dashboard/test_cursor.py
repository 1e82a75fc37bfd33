"""The cursor of a poll: what the routes write they can read, and anything else means: send everything again."""

from __future__ import annotations

import pytest

from dashboard.api import cursor


def test_a_cursor_says_what_a_browser_holds():
    assert cursor.held(cursor.write((120, 4, 0)), (121, 4, 9)) == (120, 4, 0)


@pytest.mark.parametrize(
    "text", ["", "x", "1-2", "1-2-3-4", "-1-2-3", "1-2-3\n", "1.2.3", "²-1-1", "9" * 16 + "-1-1", "5-4-0"]
)
def test_a_text_that_cannot_be_a_cursor_of_these_records_holds_nothing(text):
    assert cursor.held(text, (4, 4, 4)) is None
