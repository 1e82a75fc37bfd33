"""Data for a browser: thinned rows of a table, means of groups of rows, marks of NaN, and answers as JSON."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from starlette.responses import Response

from engine.common.errors import StoreError
from engine.common.sanitize import visible

logger = logging.getLogger(__name__)
FULL_POINTS = 1_500  # per trace, for a new browser: about the width of a chart in pixels
FULL_MEANS = 500
_FEWEST_NEW_POINTS = 24  # per trace and update
_MARKS = 40
_LONGEST_TEXT = 300


def answer(body: Mapping[str, Any], status: int = 200) -> Response:
    """The response to a poll: JSON that is not cached. Raises ValueError for NaN and infinity, which JSON lacks."""
    return answer_of_text(json_of(body), status)


def answer_of_text(text: str, status: int = 200) -> Response:
    """The response with a JSON text."""
    return Response(text, status_code=status, media_type="application/json", headers={"Cache-Control": "no-store"})


def json_of(body: Mapping[str, Any]) -> str:
    """The JSON text of a body. Raises ValueError for NaN and infinity, which JSON lacks."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False)


def text_of_run(make: Callable[[], Mapping[str, Any]]) -> tuple[bool, str]:
    """Whether the part of an answer that is about one run could be made, and its JSON text; if not, its `error` says why.

    One run that cannot be drawn must not take the others from the page.
    """
    try:
        return True, json_of(make())
    except StoreError as error:
        why = error.message
    except Exception as error:
        logger.exception("a run cannot be drawn")
        why = f"This run cannot be drawn ({type(error).__name__}: {error}). The server's log has the details."
    return False, json_of({"error": visible(why, _LONGEST_TEXT)})


def limit(total: int, new: int, most: int, *, full: bool) -> int:
    """Points to send of `new` rows out of `total`.

    An update is as dense as the whole run would be. So a fast run does not fill the browser, and an update with half a
    run is not drawn coarser than the rest.
    """
    return most if full else int(max(_FEWEST_NEW_POINTS, most * new / total))


def means(y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Means of groups of consecutive rows of `y` (n,): last row, mean and number of finite rows of each group.

    A noisy loss is thinned to its extremes, which do not give its mean, so the smooth line is drawn through these means.
    None if all rows fit into `most`, because each row is then its own mean.
    """
    group = -(-len(y) // most)
    if group <= 1:
        return None
    first = np.arange(0, len(y), group)
    finite = np.isfinite(y)
    n = np.add.reduceat(finite, first, dtype=int)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = np.add.reduceat(np.where(finite, y, 0.0), first) / n
    return np.minimum(first + group, len(y)) - 1, mean, n


def marks(y: np.ndarray, before: float) -> list[tuple[int, str]]:
    """Where a value becomes NaN or infinite: the first row of each such stretch, and "NaN", "+inf" or "-inf".

    `before` is the value before the first row.
    """
    odd = np.flatnonzero(~np.isfinite(y))
    found = []
    for i in odd[:10_000].tolist():
        word = _word(y[i])
        if word and word != _word(y[i - 1] if i else before):
            found.append((i, word))
    return found[:_MARKS]


def _word(value: float) -> str | None:
    if math.isfinite(value):
        return None
    return "NaN" if math.isnan(value) else "+inf" if value > 0 else "-inf"


def numbers(values: Iterable[float]) -> list[float | None]:
    """The values as `short` rounds them."""
    return [short(v) for v in values]


def short(value: float | None) -> float | None:
    """Six significant digits, more than a chart can show; None for NaN and infinity, which JSON does not have."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
