"""The cursor of a poll: how many records of each kind a browser has, as one short text such as `120-4-0`.

A route puts its counts into an answer with `write`. The browser sends the text back with its next poll, and `held`
reads it. The text comes from outside, so the answer to any text that cannot be a cursor is everything again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_LONGEST = 15  # digits of a count; int() then needs no limit of its own


def write(counts: Sequence[int]) -> str:
    """The cursor of a browser that has this many records of each kind."""
    return "-".join(map(str, counts))


def numbers(text: str, n: int) -> tuple[int, ...] | None:
    """The `n` counts of a cursor, or None if the text is not a cursor of `n` counts."""
    if not re.fullmatch(rf"\d{{1,{_LONGEST}}}(-\d{{1,{_LONGEST}}}){{{n - 1}}}", text, re.ASCII):
        return None
    return tuple(map(int, text.split("-")))


def held(text: str, counts: Sequence[int]) -> tuple[int, ...] | None:
    """How many of the `counts` records the browser has.

    None if it must start again, because it sent no cursor, or one that names more records than there are.
    """
    found = numbers(text, len(counts))
    return found if found and all(h <= c for h, c in zip(found, counts, strict=True)) else None
