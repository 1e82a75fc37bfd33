"""Private data in every text that an error, a driver or a file name can reach is removed from a report."""

from __future__ import annotations

import re

import pytest

from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.lifecycle import Failed, Preparing, Progress, Starting, Stopping
from engine.events.machine import Busy, Calibration, HardwareSample
from engine.events.training import StepSplit
from engine.reports import redaction, sharing
from engine.reports.html.page import render
from engine.reports.redaction import anonymous
from engine.reports.report import Report
from tests.fakes import make_run

PLANTED = {
    "home": "/home/alice/secret project/run.py",
    "two paths": "/srv/company/a and /home/alice/b/c",
    "path": "/var/lib/company/payroll.db",
    "windows": r"C:\Users\alice\Desktop\x.txt",
    "unc": r"\\fileserver\share\plan.doc",
    "user": "alice",
    "host": "workhorse7",
    "ip": "192.168.17.23:29500",
    "ipv6": "fe80::1ff:fe23:4567:890a",
    "ipv6 in full": "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    "mac": "00:1B:44:11:3A:B7",
    "mac with dashes": "00-1B-44-11-3A-B7",
    "serial": "serial number 1321020034567",
    "uuid": "GPU-8f6d1c2e-1b2a-4c3d-9e8f-0123456789ab",
    "hf token": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123",
    "openai key": "sk-proj-abcdefgh12345678ABCDEFGH",
    "github token": "ghp_0123456789abcdefABCDEF0123456789abcd",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "bearer": "Authorization: Bearer abc.def-123",
    "named": "api_key=hunter2hunter2",
    "password": "password: hunter2",
    "url": "https://alice:hunter2@example.org/x",
    "mail": "alice@example.org",
    "random": "q7Zk2LmP9xV4bN8cR1tY6wS3dF5gH0jK",
    "environment": "value-of-MY_SETTING-42",
    "secret in the environment": "hunter22",
}
FORBIDDEN = re.compile(
    r"alice|secret project|company|fileserver|Desktop|workhorse7|192\.168|fe80|2001:0db8|1B[:-]44|1321020034567|8f6d1c2e"
    r"|hf_AbC|sk-proj|ghp_0|AKIA|eyJ|abc\.def|hunter2|q7Zk2|value-of-MY"
)  # fmt: skip


@pytest.fixture(autouse=True)
def somebody(monkeypatch):
    redaction._identity.cache_clear()
    monkeypatch.setattr(redaction.getpass, "getuser", lambda: "alice")
    monkeypatch.setattr(redaction.socket, "gethostname", lambda: "workhorse7")
    monkeypatch.setenv("MY_SETTING", PLANTED["environment"])
    monkeypatch.setenv("MY_TOKEN", PLANTED["secret in the environment"])
    yield
    redaction._identity.cache_clear()


@pytest.mark.parametrize("text", PLANTED.values(), ids=PLANTED.keys())
@pytest.mark.parametrize(
    "form", ["{}", "could not read '{}': no such file", "({}) was refused;", "at {}, after 3 tries"]
)
def test_private_data_is_removed_at_every_position_of_a_text(form, text):
    assert not FORBIDDEN.search(anonymous(form.format(text)))
    assert anonymous(anonymous(form.format(text))) == anonymous(form.format(text))


@pytest.mark.parametrize(
    "text",
    [
        "The loss became nan at step 140 with lr=3. Lower the learning rate.",
        "nvmlDeviceGetTotalEnergyConsumption of the board, read at 12:34:56; driver 550.54.14",
        "training took 1.35 times as long as undisturbed (wall time by the processor time of the thread)",
        "CUDA error: an illegal memory access; std::bad_alloc in c10::Error",
        "mean of 10,000 windows; 2.13.0+cpu; sm_90a; 1/2 of the batch; and/or",
        "RAPL package-0 (intel-rapl:0), every 1.0 ms; token accuracy 0.35; 64 tokens: 3.2 s",
        "highest resident memory of the process (ru_maxrss)",
    ],
)
def test_an_ordinary_sentence_stays_unchanged(text):
    assert anonymous(text) == text


def planted_run(store):
    """A run with private data in each of its texts."""
    words = " | ".join(PLANTED.values())
    config = with_overrides(RunConfig(), ["data=csv", "source.path=/home/alice/secret project/wages of alice.csv"])
    last = Failed(
        at=0, cause="ConfigError", message=f"{words} | wages of alice.csv: row 7", fix=words, detail=words,
        peak_memory_method=words, energy_method=words, busy=Busy(slowdown=2.0, slowdown_method=words),
    )  # fmt: skip
    said = [
        Starting(at=0, pid=1, pid_started=0),
        Preparing(text=words, done_bytes=0, total_bytes=None),
        Progress(text=words, done=1, total=2),
        StepSplit(method=words, reason=words),
        HardwareSample(elapsed_s=0, readings={}, missing={"gpu_power_w": words}),
        Stopping(at=0, reason=words),
        Calibration(
            at=0, device="cpu", device_name=words, threads=(1,), versions={"torch": words}, measurements=(), rounds=1, seconds=1,
            missing={"gemm": words}, others_reason=words,
        ),
    ]  # fmt: skip
    run = make_run(store, config, num_steps=40, last=last, said=said)
    run.problems.append(words)
    return run


@pytest.mark.parametrize("file_names", [False, True])
def test_a_report_contains_no_private_data(store, file_names):
    run = planted_run(store)
    report = Report.freeze("t", [run], file_names=file_names)
    text = report.to_json().replace("wages of (user).csv", "")
    assert not FORBIDDEN.search(text)
    page = re.sub(r'<script type="text/plain".*?</script>', "", render(report), flags=re.DOTALL)
    assert not FORBIDDEN.search(page.replace("wages of (user).csv", ""))
    assert ("wages of" in report.to_json()) is file_names
    assert not FORBIDDEN.search(" ".join(row.text for row in sharing.preview(report)))


def test_the_rest_of_a_message_stays(store):
    report = Report.freeze("t", [planted_run(store)])
    (run,) = report.runs
    assert "could" not in run.why and "table.csv: row 7" in run.why
    assert run.environment["device"] == "AMD EPYC 9575F"
    assert {event.kind for event in run.said} == {"progress", "calibration"}
    assert run.last_word.detail == ""


def test_names_of_files_inside_a_folder_are_removed_too():
    hidden = redaction.Redaction(with_overrides(RunConfig(), ["data=images", "source.path=/data/cats"]))
    assert hidden.text("source.path=/data/cats: its 'tabby/my old cat.png' cannot be read.") == (
        "source.path=images: its '(file)' cannot be read."
    )
    assert (
        hidden.text("landscape.safetensors of the run, see config.json")
        == "landscape.safetensors of the run, see config.json"
    )
