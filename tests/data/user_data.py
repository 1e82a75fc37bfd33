"""Helpers of the tests that read users' files."""

from __future__ import annotations

import numpy as np
import pytest

from engine.common.errors import ConfigError
from engine.config.data import Source
from engine.data import user_files

IRIS = "length,width,kind\n" + "".join(f"{i}.5,{i % 3},{'ab'[i % 2]}\n" for i in range(20))


def refused(data: str, source: Source) -> str:
    """The error with which `read` refuses a file."""
    with pytest.raises(ConfigError) as refusal:
        user_files.read(data, source)
    return str(refusal.value)


def labels(n: int = 20, classes: int = 2) -> np.ndarray:
    return np.arange(n) % classes
