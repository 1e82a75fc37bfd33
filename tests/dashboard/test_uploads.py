"""An upload never takes the disk space that runs need."""

import pytest

from dashboard.widgets import uploads
from engine.common.errors import ConfigError
from engine.system import disk_space


def test_an_upload_that_would_fill_the_disk_is_refused_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_DATA", str(tmp_path))
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: disk_space.NEW_RUNS_NEED_BYTES + 5)
    with pytest.raises(ConfigError, match="does not fit: the disk has 500 MiB free"):
        uploads.keep("csv", b"a,b\n1,2\n")
    assert list((tmp_path / "uploads").iterdir()) == []
    assert uploads.keep("csv", b"a,b\n").read_bytes() == b"a,b\n"
