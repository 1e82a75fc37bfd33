"""Reports on their way: out as a zip with all that belongs to them, and in again as runs of this store.

What comes in is somebody else's: it is read in a process under limits, becomes numbers and text under new ids, is marked
as imported, and stands in the store as a whole or not at all.
"""

from __future__ import annotations

from engine.reports.sharing.curves import CurveChoices
from engine.reports.sharing.importing import Imports, import_files
from engine.reports.sharing.library import SavedReport, delete_report, origin_in_words, saved_report, saved_reports
from engine.reports.sharing.preview import Leaving, preview
from engine.reports.sharing.zips import write_zip

__all__ = [
    "CurveChoices",
    "Imports",
    "Leaving",
    "SavedReport",
    "delete_report",
    "import_files",
    "origin_in_words",
    "preview",
    "saved_report",
    "saved_reports",
    "write_zip",
]
