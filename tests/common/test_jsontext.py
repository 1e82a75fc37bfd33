"""JSON text: unknown and infinite numbers are null, also in columns that are written in pieces."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from engine.common.jsontext import Counts, json_text


@pytest.mark.parametrize("rows", [6, 100_003])
def test_a_column_is_written_exactly_and_unknown_is_null(rows):
    column = np.resize([0.1 + 0.2, -1e-300, math.nan, 2.0**70, math.inf, 5.0], rows)
    counts = np.resize([1.0, math.nan, 2.0**53, 0.0], rows)
    found = json.loads(json_text({"a": column, "of": [{"n": Counts(counts)}, np.empty(0)]}))
    expected = [value if math.isfinite(value) else None for value in column.tolist()]
    assert found["a"] == expected
    assert found["of"] == [{"n": [None if math.isnan(v) else int(v) for v in counts.tolist()]}, []]
    assert all(value is None or isinstance(value, int) for value in found["of"][0]["n"])


def test_hidden_characters_are_escaped_in_keys_and_values():
    assert json_text({"a\u202e": ["\x1b", None, True, math.nan]}) == '{"a\\u202e": ["\\u001b", null, true, null]}'
