"""Exports of reports as a zip, and imports of reports and curves as runs of this store.

An imported file is not trusted. A process under limits reads it and turns it into numbers and text under new ids. Its
runs are marked as imported, and either all of them enter the store or none does.
"""

from __future__ import annotations

from engine.reports.sharing.curve_tables import ROLES, Columns, is_table
from engine.reports.sharing.curves import UNITS, CurveChoices
from engine.reports.sharing.importing import Imports, columns_in, import_files
from engine.reports.sharing.library import (
    SavedReport,
    delete_report,
    origin_in_words,
    run_in_words,
    saved_report,
    saved_reports,
)
from engine.reports.sharing.preview import ReportItem, preview
from engine.reports.sharing.zips import write_zip

__all__ = [
    "ROLES",
    "UNITS",
    "Columns",
    "CurveChoices",
    "Imports",
    "ReportItem",
    "SavedReport",
    "columns_in",
    "delete_report",
    "import_files",
    "is_table",
    "origin_in_words",
    "preview",
    "run_in_words",
    "saved_report",
    "saved_reports",
    "write_zip",
]
