"""The view of optimizers on a quadratic bowl: it opens, says when an optimizer diverges, and stays small."""

from __future__ import annotations

import json

from streamlit.testing.v1 import AppTest

from dashboard.views.quadratic_bowl import walk_as_data
from engine.studies import quadratic_bowl


def bowl_page():
    from dashboard.views.quadratic_bowl import quadratic_bowl_view

    quadratic_bowl_view()


def said(app):
    return " ".join(caption.value for caption in app.caption).replace("\\", "")


def test_the_view_opens_and_says_that_nothing_is_measured():
    app = AppTest.from_function(bowl_page, default_timeout=30).run()
    assert not app.exception
    assert "nothing is measured" in said(app)
    assert "Gradient descent is stable below a learning rate of 0.2 (2/κ): at 0.15 it converges." in said(app)


def test_above_the_bound_the_view_says_that_it_diverges():
    app = AppTest.from_function(bowl_page, default_timeout=30).run()
    app.select_slider(key="toy.lr").set_value(0.3).run()
    assert "at 0.3 it grows along y and diverges" in said(app)


def test_every_optimizer_can_be_walked_and_none_at_all():
    app = AppTest.from_function(bowl_page, default_timeout=30).run()
    for names in (list(quadratic_bowl.RULES), []):
        app.button_group(key="toy.names").set_value(names).run()
        assert not app.exception


def test_all_walks_together_are_a_few_kilobytes():
    bowl = quadratic_bowl.Bowl(1000.0)
    walks = [
        quadratic_bowl.walk(name, bowl, quadratic_bowl.Hyper(lr=1e-3), steps=200, noise=3.0)
        for name in quadratic_bowl.RULES
    ]
    assert len(json.dumps([walk_as_data(walked) for walked in walks])) < 60_000
