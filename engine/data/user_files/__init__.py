"""Reads the user's own files: a table, arrays, a folder of images or a text.

Nothing is unpickled, and sizes are checked before memory is allocated. Pages call `inspect`, which parses in a separate
process with limits of memory and time; the process of a run calls `read`. Error messages count rows as a spreadsheet
does: the header is row 1.
"""

from __future__ import annotations

from engine.data.user_files.arrays import channels_first, read_npz
from engine.data.user_files.inspection import columns, inspect, preview
from engine.data.user_files.reading import read
from engine.data.user_files.text import text_arrays, text_facts

__all__ = ["channels_first", "columns", "inspect", "preview", "read", "read_npz", "text_arrays", "text_facts"]
