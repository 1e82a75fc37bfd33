"""What the view of a race hands to the browser, and what it believes of what comes back."""

from __future__ import annotations

import json
import math

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.live import race
from engine.charts.style import PALETTE

LANE = {"label": "B = 1\n\u202e", "color": 2, "runs": [{"id": "0123456789abcdef", "seed": 7}], "baseline": True}


def page(lanes, target):
    import streamlit as st

    from dashboard.live.race import race_view

    state = race_view(lanes, key="race", target=target, alive=False)
    st.text(f"{state.target} {state.ended}")


def test_the_browser_gets_lanes_target_axis_and_palette():
    aim = {"metric": "test_loss", "value": 0.5}
    at = AppTest.from_function(page, args=([LANE], aim)).run()
    assert not at.exception
    data = json.loads(at.get("bidi_component")[0].proto.json)
    assert data["lanes"] == [LANE | {"label": "B = 1\\n\\u202e"}]
    assert (data["target"], data["axis"], data["price"], data["alive"]) == (aim, "steps", None, False)
    assert data["palette"] == list(PALETTE)
    assert at.text[0].value == f"{aim} None"


@pytest.mark.parametrize("metric", race.METRICS)
def test_a_target_comes_back_as_it_was_set(metric):
    assert race.target_of({"metric": metric, "value": 1}) == {"metric": metric, "value": 1.0}


@pytest.mark.parametrize(
    "said",
    [None, "x", [], {}, {"metric": "loss", "value": 1}, {"metric": "test_loss", "value": "1"},
     {"metric": "test_loss", "value": -1}, {"metric": "test_accuracy", "value": 1.01},
     {"metric": "test_loss", "value": math.nan}, {"metric": "test_loss", "value": math.inf},
     {"metric": "test_loss", "value": True}, {"metric": ["test_loss"], "value": 1}],
)  # fmt: skip
def test_what_is_no_target_is_none(said):
    assert race.target_of(said) is None


def test_more_runs_than_one_poll_may_ask_for_are_a_mistake_of_the_page():
    lane = LANE | {"runs": LANE["runs"] * 73}
    with pytest.raises(AssertionError, match="more runs"):
        race.race_view([lane], key="race", alive=False)
