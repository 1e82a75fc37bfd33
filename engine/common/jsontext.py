"""JSON text, with NaN and infinity as null."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from engine.common.sanitize import visible_json


def json_text(value: Any) -> str:
    """`value` as standard JSON. NaN and infinity become null, because JSON has no number for them."""
    return visible_json(json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    if isinstance(value, np.ndarray):
        return _without_nan(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
