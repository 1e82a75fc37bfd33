"""What the documentation says of a report is what the code writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from docs import report_schema
from engine.report import Report
from tests.fakes import make_run


def test_the_schema_of_a_report_is_documented_as_it_is():
    written = report_schema.FILE.read_text(encoding="utf-8")
    assert written == report_schema.document(), "out of date: `make docs` writes it anew"


def test_every_field_of_a_report_stands_in_the_document():
    text = report_schema.FILE.read_text(encoding="utf-8")
    for field in (*Report.model_fields, "schema_version", "recorded_steps", "heat", "test_accuracy", "optimizer"):
        assert f"| `{field}` |" in text


@pytest.mark.process
def test_the_documents_own_python_reads_a_report(store, tmp_path):
    run = make_run(store, diverges_at=140)
    (tmp_path / "report.json").write_text(Report.freeze("t", [run]).to_json(), encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", report_schema.FILE.read_text(encoding="utf-8"), re.DOTALL)
    assert code
    done = subprocess.run(
        [sys.executable, "-c", code[1] + "\nprint(json.dumps([float(x).hex() for x in loss]))"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    read = [float.fromhex(x) for x in json.loads(done.stdout)]
    np.testing.assert_array_equal(read, run.steps["loss"])
