"""The user's own files: a table, arrays, a folder of images, a text; what is in them, or one sentence why not.

Nothing is unpickled, and sizes are checked before they are believed. The page asks `inspect`, which parses in a process
of its own with limits on memory and time; a run's process calls `read`. Row numbers are those of a spreadsheet: the
header is row 1.
"""

from __future__ import annotations

from engine.data.user_files.arrays import channels_first, read_npz
from engine.data.user_files.inspection import inspect
from engine.data.user_files.reading import read
from engine.data.user_files.text import text_arrays, text_facts

__all__ = ["channels_first", "inspect", "read", "read_npz", "text_arrays", "text_facts"]
