"""Hostile and damaged files are refused in one sentence and leave no trace in the store."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import struct
import zipfile
import zlib

import numpy as np
import pytest

from engine.common.errors import StoreError
from engine.reports import points, sharing
from engine.reports.html.page import render
from engine.reports.points import Points
from engine.reports.report import Report
from engine.reports.sharing import zips
from engine.store.integrity_check import check
from engine.store.store import Store
from tests.fakes import make_run
from tests.reports.test_sharing import frozen, here, traces  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("here")
BIDI = "safe\u202egnp.exe\x1b[31m<script>alert(1)</script>[x](javascript:1)"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    store = Store(tmp_path_factory.mktemp("theirs"))
    return frozen([make_run(store, name="one", num_steps=200), make_run(store, diverges_at=40)])


def everything(folder):
    return sorted(path for path in folder.rglob("*") if path.name not in {"order", "reports"})


@pytest.fixture
def refused(tmp_path):
    """Import bytes that must be refused; return the message, after a check that no file is left."""

    def check_refusal(content: bytes | str, name: str) -> str:
        folder = tmp_path / "in" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode(errors="surrogatepass") if isinstance(content, str) else content)
        store = Store(folder / "store")
        before = traces(store), everything(tmp_path)
        with pytest.raises(StoreError) as caught:
            sharing.import_files(store, [folder / name])
        assert (traces(store), everything(tmp_path)) == before
        assert caught.value.message.startswith(name) and "\n" not in str(caught.value)
        assert not re.search(r"Traceback|/tmp/|tmp_path", str(caught.value))
        return str(caught.value)

    return check_refusal


# --- zips -----------------------------------------------------------------------------------------------------------------


def zipped(report: Report, *extra: tuple[str | zipfile.ZipInfo, bytes], with_report=True) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        if with_report:
            archive.writestr("report.json", report.to_json())
        for name, content in extra:
            archive.writestr(name, content)
    return out.getvalue()


def link_to(target: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("report.html")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def test_a_valid_zip_is_imported(report, tmp_path):
    (tmp_path / "r.zip").write_bytes(zipped(report, ("folder/", b""), ("folder/note.txt", b"hello")))
    assert len(sharing.import_files(Store(tmp_path / "s"), [tmp_path / "r.zip"]).run_ids) == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../evil", "leads out of its folder"),
        ("a/../../evil", "leads out of its folder"),
        ("/etc/cron.d/evil", "is an absolute path"),
        ("C:/evil", "is an absolute path"),
        ("c:evil", "is an absolute path"),
        ("..\\evil", "contains a backslash"),
        ("\\\\server\\share", "contains a backslash"),
        ("a//b", "not an ordinary file name"),
        ("./a", "not an ordinary file name"),
        ("a\x1b[31m", "not an ordinary file name"),
        ("a\u202eb", "not an ordinary file name"),
    ],
)
def test_a_zip_with_an_unsafe_member_name_is_refused(report, refused, name, says):
    instead = "X" * len(name) if name.isascii() else name  # Python's own zipfile would mend some names
    data = zipped(report, (instead, b"evil")).replace(instead.encode(), name.encode())
    assert says in refused(data, "r.zip")


def test_a_member_name_with_a_nul_byte_is_refused(report, refused):
    assert "not an ordinary file name" in refused(
        zipped(report, ("a.txtX", b"")).replace(b"a.txtX", b"a.txt\0"), "r.zip"
    )


def test_a_zip_with_a_link_is_refused(report, refused):
    assert "is a link or a device" in refused(zipped(report, (link_to("/etc/passwd"), b"/etc/passwd")), "r.zip")


def test_a_zip_with_a_device_is_refused(report, refused):
    info = zipfile.ZipInfo("null")
    info.external_attr = (stat.S_IFCHR | 0o666) << 16
    assert "is a link or a device" in refused(zipped(report, (info, b"")), "r.zip")


def test_a_zip_with_too_many_members_is_refused(report, refused):
    extra = [(f"csv/{number}", b"") for number in range(2_000)]
    assert "2,001 members, the limit is 2,000" in refused(zipped(report, *extra), "r.zip")


def test_a_zip_that_unpacks_to_too_many_bytes_is_refused(report, refused, monkeypatch):
    monkeypatch.setattr(zips, "MAX_UNPACKED_BYTES", 1_000_000)
    assert "unpack to more than 1,000,000 bytes" in refused(zipped(report, ("a", os.urandom(1_000_000))), "r.zip")


def test_a_zip_bomb_is_refused_by_its_compression_ratio(report, refused):
    assert "'bomb' unpacks to more than 200 times its size" in refused(
        zipped(report, ("bomb", bytes(10_000_000))), "r.zip"
    )


def test_a_member_with_a_wrong_size_is_counted_while_unpacking(report, refused):
    bomb = b'{"schema_version": 2, "runs": [' + b" " * 5_000_000 + b"]}"
    data = bytearray(zipped(report, ("report.json", bomb), with_report=False))
    size = struct.pack("<L", len(bomb))
    assert data.count(size) == 2  # in its own header and in the directory
    lying = bytes(data).replace(size, struct.pack("<L", 1_000))
    assert "damaged" in refused(lying, "r.zip")


def test_unpacked_bytes_are_counted_whatever_the_directory_names(report, tmp_path, monkeypatch):
    (tmp_path / "r.zip").write_bytes(zipped(report))
    archive = zips.Archive(tmp_path / "r.zip")
    archive._left = 1_000
    with pytest.raises(StoreError, match="unpacks to more than"):
        archive.read("report.json")


def test_a_zip_with_overlapping_members_is_refused(report, refused):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("report.json", report.to_json())
        archive.writestr("kernel", os.urandom(1_000))
        again = zipfile.ZipInfo("quoted")
        first = archive.getinfo("kernel")
        for attribute in ("header_offset", "compress_size", "file_size", "CRC", "compress_type"):
            setattr(again, attribute, getattr(first, attribute))
        archive.filelist.append(again)
        archive.NameToInfo["quoted"] = again
    assert "overlaps another one" in refused(out.getvalue(), "r.zip")


def test_an_encrypted_zip_is_refused(report, refused):
    data = bytearray(zipped(report))
    data[6] |= 1
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 8] |= 1
    assert "'report.json' is encrypted" in refused(bytes(data), "r.zip")


def test_a_zip_with_another_compression_is_refused(report, refused):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("report.json", report.to_json())
    assert "unsupported compression" in refused(out.getvalue(), "r.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_duplicate_member_is_refused(report, refused):
    assert "contains 'report.json' twice" in refused(zipped(report, ("report.json", b"{}")), "r.zip")


def test_a_zip_without_a_report_is_refused(report, refused):
    assert "contains no report.json" in refused(zipped(report, ("note.txt", b""), with_report=False), "r.zip")


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_truncated_zip_is_refused(report, refused, share):
    data = zipped(report)
    assert "not a complete zip file" in refused(data[: int(share * len(data))], "r.zip")


def test_a_zip_with_a_damaged_byte_is_refused(report, refused):
    data = bytearray(zipped(report))
    data[400] ^= 0xFF
    assert "damaged" in refused(bytes(data), "r.zip")


def test_changed_weights_and_other_formats_are_refused(tmp_path, refused):
    store = Store(tmp_path / "theirs")
    run = make_run(store, num_steps=40)
    for content, says in ((b"\x80\x04pickled", "is not a safetensors file"), (None, "was changed after the export")):
        (run.folder / "model.safetensors").write_bytes(content or b"good")
        report = frozen([run], files=("model.safetensors",))
        data = content or b"evil"
        sent = zipped(report, (f"weights/{run.run_id}/model.safetensors", data))
        assert says in refused(sent, "r.zip")


# --- JSON -----------------------------------------------------------------------------------------------------------------


def changed(report: Report, change) -> str:
    data = json.loads(report.to_json())
    change(data)
    return json.dumps(data)


def set_in(*path, value):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def column(*values) -> dict:
    return Points({"x": np.array(values, np.float64)}).model_dump()["x"]


def steps(**columns):
    return set_in("runs", 0, "steps", value={"loss": column(1, 2), "step": column(1, 2)} | columns)


def bomb() -> dict:
    import base64

    return {"float64": base64.b64encode(zlib.compress(bytes(6_000_000), 9)).decode()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_in("schema_version", value=3), "has schema 3; this version of Isoflop reads 1 to 2. Update Isoflop."),
        (set_in("schema_version", value="2; drop"), "has schema 2; drop"),
        (set_in("runs", value=[]), "damaged: runs"),
        (set_in("runs", value={}), "not a report"),
        (lambda d: d["runs"].append(d["runs"][0]), "it contains the run "),
        (set_in("runs", 0, "run_id", value="../../../etc/passw"), "damaged: runs.0.run_id"),
        (set_in("runs", 0, "group", value="../x"), "damaged: runs.0.group"),
        (set_in("runs", 0, "heat", value={"id": "../" * 30, "lanes": 2}), "heat.id is not a valid id"),
        (set_in("runs", 0, "steps", "loss", value={"float32": "AAAA"}), "damaged"),
        (steps(loss=column(1, 2, 3)), "differ in length"),
        (steps(step=column(2, 1)), "step falls"),
        (steps(step=column(1, 1)), "does not rise"),
        (steps(step=column(0, 1)), "counted from 1"),
        (steps(step=column(1, 1e300)), "a value outside 0 to 2^53"),
        (steps(step=column(1, 1.5)), "not whole numbers"),
        (steps(seconds=column(2, 1)), "seconds falls"),
        (steps(seconds=column(1, float("inf"))), "a value outside 0 to 2^53"),
        (steps(samples=column(-5, 1)), "a value outside 0 to 2^53"),
        (set_in("runs", 0, "summary", "steps", value=10**25), "is not a count"),
        (set_in("runs", 0, "summary", "steps", value=-1), "is not a count"),
        (set_in("runs", 0, "summary", "test_accuracy", value=2.5), "summary.test_accuracy=2.5 is above 1"),
        (set_in("runs", 0, "summary", "train_seconds", value=-1.0), "summary.train_seconds=-1.0 is negative"),
        (set_in("runs", 0, "summary", "train_seconds", value=0.1), "train_seconds=0.1, but its points say 1.6"),
        (set_in("runs", 0, "summary", "samples", value=7), "summary.samples=7, but its points say 12800"),
        (set_in("runs", 0, "summary", "steps", value=7), "summary.steps=7, but its points say 200"),
        (set_in("runs", 0, "summary", "samples_per_s", value=1e9), "but its points say 8000"),
        (set_in("runs", 0, "figures", "test_accuracy", "value", value=0.99), "figures.test_accuracy=0.99, but its summary"),
        (set_in("runs", 0, "figures", "step_seconds", "value", value=5.0), "step_seconds=5.0, but its summary says 0.008"),
        (set_in("runs", 0, "created", value=1e300), "damaged: runs.0.created"),
        (set_in("created", value=-1), "damaged: created"),
        (set_in("runs", 0, "config", "batch_size", value=-1), "damaged: runs.0.config"),
        (set_in("runs", 0, "status", value="victorious"), "damaged: runs.0.status"),
        (set_in("runs", 0, "name", value="x" * 10_000), "damaged: runs.0.name"),
        (set_in("runs", 0, "said", value=[{"kind": "hologram"}]), "events of the kind 'hologram'"),
        (set_in("runs", 0, "said", value=[{"kind": "finished", "at": 0}]), "has a field of its own"),
        (set_in("runs", 0, "files", value=[{"name": "../evil", "size_bytes": 1, "sha256": "0" * 64}]), "damaged: runs.0.files"),
        (set_in("conclusions", value=[{"outcome": {"lanes": "all"}}]), "damaged: conclusions"),
        (set_in("notes", value="x" * 30_000), "damaged: notes"),
    ],
)  # fmt: skip
def test_a_manipulated_report_is_refused(report, refused, change, says):
    assert says in refused(changed(report, change), "r.json")


def test_a_report_that_unpacks_to_too_many_bytes_is_refused(report, refused, monkeypatch):
    monkeypatch.setattr(points, "MAX_UNPACKED_BYTES", 5_000_000)  # of 500 million
    text = changed(report, steps(loss=bomb()))
    assert len(text) < 50_000
    assert "would unpack to more than 5,000,000 bytes" in refused(text, "r.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "null",
        '"x"',
        "{}",
        '{"schema_version": 2}',
        "[" * 200_000,
        '{"runs":' * 100_000,
        "1" * 10_000,
        "\x00\x01\x02",
        "MZ\x90",
    ],
)
def test_a_text_that_is_not_a_report_is_refused(refused, text):
    assert "This is not a report" in refused(text, "r.json")


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_a_constant_without_quotes_is_refused_and_named(report, refused, word):
    text = report.to_json().replace('"recorded_steps":200', f'"recorded_steps":{word}')
    assert f"contains {word} without quotes" in refused(text, "r.json")


def test_a_huge_whole_number_is_refused(report, refused):
    assert "not a report" in refused(
        report.to_json().replace('"recorded_steps":200', f'"recorded_steps":{"9" * 5_000}'), "r.json"
    )
    assert "damaged" in refused(
        report.to_json().replace('"recorded_steps":200', f'"recorded_steps":{"9" * 300}'), "r.json"
    )


def test_bytes_that_are_not_text_are_refused(refused):
    assert "neither a zip nor UTF-8 text" in refused(b"\xff\xfe\x00{", "r.json")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_report_is_refused(report, refused, share):
    for text, name in ((report.to_json(), "r.json"), (render(report), "r.html")):
        begin = text.index('id="report"') if name == "r.html" else 0
        assert "not a report, or it is incomplete" in refused(text[: begin + int(share * len(report.to_json()))], name)


def test_a_page_without_a_report_is_refused(refused):
    assert "not a report" in refused("<!doctype html><script>alert(1)</script>", "r.html")


def test_a_file_that_is_too_large_is_not_opened(tmp_path):
    with (tmp_path / "r.json").open("wb") as file:
        file.truncate(60_000_000)
    with pytest.raises(Exception, match="60,000,000 bytes; the limit is 50,000,000"):
        sharing.import_files(Store(tmp_path / "s"), [tmp_path / "r.json"])


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "r.json")
    with pytest.raises(Exception, match="not a readable file"):
        sharing.import_files(Store(tmp_path / "s"), [tmp_path / "r.json"])


# --- what comes in all the same -------------------------------------------------------------------------------------------


def test_a_report_with_a_wrong_hash_is_imported_with_a_warning(report, tmp_path):
    store, page = Store(tmp_path / "s"), tmp_path / "r.html"
    page.write_text(render(report).replace('"title":"A report"', '"title":"A better report"', 1))
    found = sharing.import_files(store, [page])
    assert f"names {report.content_hash}" in found.warnings[0] and "changed after the export" in found.warnings[0]
    assert store.run(found.run_ids[0]).imported.origin.hash_matches is False


def test_a_reformatted_report_keeps_its_hash(report, tmp_path):
    pretty = json.dumps(json.loads(report.to_json()), indent=1)
    sums = f"{report.content_hash}  report.json\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("report.json", pretty)
        archive.writestr("SHA256SUMS", sums)
    (tmp_path / "r.zip").write_bytes(out.getvalue())
    store = Store(tmp_path / "s")
    (run_id, *_) = sharing.import_files(store, [tmp_path / "r.zip"]).run_ids
    assert store.run(run_id).imported.origin.hash_matches is True


def test_hostile_texts_become_visible_text(report, tmp_path):
    data = json.loads(report.to_json())
    data["title"] = data["notes"] = BIDI
    run = data["runs"][0]
    run |= {
        "name": BIDI,
        "problems": [BIDI],
        "missing_readings": {BIDI: BIDI},
        "peak_memory_method": BIDI,
        "asked_name": BIDI,
    }
    run["environment"] = {"device": BIDI, "user": "alice", BIDI: BIDI}
    run["config"] |= {"data": "csv", "source": {"path": "/etc/passwd", "label": BIDI}}
    data["runs"][1]["last_word"] |= {"message": BIDI, "cause": BIDI}
    (tmp_path / "r.json").write_text(json.dumps(data))
    store = Store(tmp_path / "s")
    found = sharing.import_files(store, [tmp_path / "r.json"])
    back = store.run(found.run_ids[0])
    assert "\u202e" not in back.name and "\x1b" not in back.name
    assert back.config.source.path == "passwd"
    assert set(back.started.environment) == {"device"}
    assert check(store).problems == []
    page = render(Report.freeze("t", [store.run(run_id) for run_id in found.run_ids]))
    assert "<script>alert" not in page and "\u202e" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_a_lone_surrogate_does_not_stop_an_import(report, tmp_path):
    (tmp_path / "r.json").write_text(
        report.to_json().replace('"name":"one"', '"name":"one \\\\ud800"'.replace("\\\\", "\\"))
    )
    store = Store(tmp_path / "s")
    try:
        found = sharing.import_files(store, [tmp_path / "r.json"])
    except StoreError as error:
        assert "damaged" in str(error)
    else:
        assert "one" in store.run(found.run_ids[0]).name


def test_an_imported_reached_target_without_a_configured_target_makes_a_page(report, tmp_path):
    data = json.loads(report.to_json())
    data["runs"][0]["target_reached"] = {
        "metric": "test_accuracy", "value": 0.9, "step": 120, "train_s": 1.0, "elapsed_s": 1.0
    }  # fmt: skip
    assert "reached at step" not in render(Report.from_json(json.dumps(data)))
