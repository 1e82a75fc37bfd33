"""What somebody else wrote (a name, a path, a class, a device, an error) is shown as it is and obeyed by nothing."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import time
import zlib

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import state
from dashboard.api import run as run_api
from engine.charts import training
from engine.cli import common
from engine.cli import main as cli
from engine.common.errors import ConfigError
from engine.common.jsontext import json_text
from engine.common.sanitize import LONGEST_NAME, clean_name, shell_words, visible
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.lifecycle import Artifact, Failed, Preparing, Queued
from engine.events.machine import HardwareSample
from engine.hardware import probe
from engine.hardware.probe import CpuDevice, GpuDevice, Machine
from engine.reports.commands import reproduce
from engine.reports.exporters import points_csv
from engine.reports.html.page import render
from engine.reports.report import Report, json_in
from engine.runtime.client import Client
from engine.store.event_log import EventLog
from engine.store.run import Run
from engine.store.store import Store
from tests.conftest import ROOT
from tests.fakes import MEMORY, make_run

IMAGE, SCRIPT = "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script><!--"
SAMPLES = [
    IMAGE,
    SCRIPT,
    "[x](javascript:alert(1)) ![](http://evil.example/p.png) <http://evil.example> [^1] [x]: http://evil.example",
    "http://evil.example/a https://evil.example?b=c www.evil.example WWW.evil.example mailto:a@evil.example a@b.co",
    "**b** _i_ ~~s~~ `c` `` c ``` *i* __b__",
    "# h", "- item", "+ item", "* item", "1. one", "2) two", "> quote", "    code", "---", "===", "***", "| a | b |",
    "- [ ] task", "```", "~~~", "<!-- gone -->", "<details>", "Term\n: x", "a | b\n--|--\n1 | 2", "line\nbreak  \nhard",
    "$x^2$ $$y$$ costs $5 and $6",
    ":red[x] :blue-background[y] :green-badge[z] :small[s] :help[h] :color[c]{foreground=red} :rainbow[r] :shimmer[q]",
    ":material/home: :material_home: :streamlit: :smile: :+1: :-1: ::: ::name[x]{a=b} :::name",
    "a -> b <- c <-> d -- e >= f <= g ~= h", "->", "--", ">=",
    "&lt;b&gt; &amp; &#60; &nbsp; &copy;",
    r"\ \* \\ C:\new\table \n \x1b",
    "nul \0 bell \a escape \x1b[31mred\x1b]0;title\x07 csi \x9b31m delete \x7f tab\tcr\rover",
    "right \u202eto left\u202c \u2066isolated\u2069 \u200bzero \ufeffmark \u2028line",
    "lone \ud800 surrogate \udc80",
    "z" + "\u0300\u0301\u0302\u0303\u0304\u0305" * 20 + "algo, but café and cafe\u0301 stay",
    "<b>bold</b> <a href=\"javascript:alert(1)\">a</a> %{x} %{customdata[0]} <extra>e</extra> {0} {x} %s %(a)s $x$",
    "=cmd|' /C calc'!A0", "@SUM(1+1)", "שלום עולם, 你好, 👩\u200d👩\u200d👧, नमस्ते",
    "x" * 10_000,
]  # fmt: skip
NAME = f"{IMAGE} :smile: $x$ `c` \x1b[31m\u202e{SCRIPT} %{{x}} {{0}} ![](http://evil.example/n)"
LONG = "W" * 10_000
COMMANDS = (
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"  # of a terminal; \n ends our own lines
)


def hostile_run(store: Store, **more: object) -> Run:
    """A run as an older version, a strange machine and a strange file may have left it: hostile wherever text goes."""
    config = with_overrides(RunConfig(), ["data=csv", f"source.path=/data/{NAME}.csv", f"source.label={NAME}"])
    usual = make_run(Store(store.root / "usual"), num_steps=20).started
    assert usual
    facts = dict.fromkeys(["device", "cpu", "cpu_isa", "gpu_driver", "os", "python", "torch", "cuda"], NAME)
    return make_run(
        store,
        config,
        num_steps=120,
        last=Failed(at=0.0, cause="X", message=f"Why: {NAME}", fix=f"Fix: {NAME}", peak_memory_method=NAME),
        said=[
            Queued(at=time.time(), name=NAME),
            Preparing(text=NAME, done_bytes=1, total_bytes=None),
            usual.model_copy(update={"environment": usual.environment | facts}),
            MEMORY.model_copy(update={"method": NAME}),
            Artifact(name=NAME, size_bytes=1, sha256="0"),
            HardwareSample(elapsed_s=0.1, readings={}, missing={"gpu_utilization_percent": NAME}),
        ],
        **more,  # type: ignore[arg-type]
    )


def preparing_run(store: Store, event: Preparing) -> Run:
    """A queued run whose newest event is `event`."""
    run_id = store.create(RunConfig())
    EventLog(store.folder(run_id) / "events.jsonl").append(event)
    return store.run(run_id)


def write_unknown_record(run: Run) -> None:
    """A line that is whole, of a kind that nobody knows; the reader quotes it."""
    body = json.dumps({"kind": NAME}).encode()
    path = run.folder / "events.jsonl"
    path.write_bytes(path.read_bytes() + body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body))
    run.refresh()
    assert NAME in "".join(run.problems)


MACHINE = Machine(
    CpuDevice(NAME, 4, 8, 4, ()), (GpuDevice(0, NAME, 2**30, NAME, None, None),), NAME, 2**34, 2**33, "Linux", "3"
)


# --- what is made visible ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, é, 你好, שלום, 👩\u200d👩\u200d👧, नमस्ते", None),
        ("<b>&amp; $x$ :smile: \\n", None),
        ("\x1b[31m\x1b]0;t\x07", r"\x1b[31m\x1b]0;t\x07"),
        ("a\nb\r\tc\0", r"a\nb\r\tc\x00"),
        ("\x7f\x9b\xad", r"\x7f\u009b\u00ad"),
        ("a\u202eb\u2066c\u200f\u2028\ufeff\U000e0041", r"a\u202eb\u2066c\u200f\u2028\ufeff\U000e0041"),
        ("\ud800", r"\ud800"),
        ("z" + "\u0301" * 6, "z" + "\u0301" * 4 + r"\u0301\u0301"),
    ],
)
def test_what_would_be_obeyed_or_overlooked_is_shown_as_an_escape_and_the_rest_as_it_is(text, shown):
    assert visible(text) == (text if shown is None else shown)


@pytest.mark.parametrize("text", ["x" * 10_000, "\x1b" * 10_000, "z" + "\u0301" * 10_000])
def test_a_long_text_is_cut_to_what_was_asked_for(text):
    assert len(visible(text, 200)) == 200
    assert visible(text, 200).endswith("…")
    assert visible("x" * 200, 200) == "x" * 200


@pytest.mark.parametrize("text", SAMPLES)
def test_json_for_a_terminal_says_the_same_in_its_own_escapes(text):
    document = json_text({"text": text})
    assert not re.search(COMMANDS, document)
    assert json.loads(document) == {"text": text}


def test_a_command_with_a_hidden_character_still_works_when_it_is_pasted_and_shows_what_it_does():
    words = ["it's", "a\x1b[31m\n\u202e\x9b\xad\\'b", "$HOME `id`", "e\u0301\u0301\u0301\u0301\u0301\u0301"]
    command = shell_words(["printf", r"%s\0", *words])
    assert not re.search(COMMANDS, command)
    done = subprocess.run(["bash", "-c", command], capture_output=True, env={"LC_ALL": "C.UTF-8"}, check=True)
    assert done.stdout.decode().split("\0")[:-1] == words


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "lr 0.1", "=1+1", IMAGE, "👩\u200d👩\u200d👧 নাম", "x" * LONGEST_NAME])
def test_a_name_may_hold_whatever_can_be_seen(name):
    assert clean_name(f"  {name}\n") == name


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "a\0", "\u202egnp.exe", "\ud800", "\x9b", "a\u200bb"])
def test_a_name_with_what_cannot_be_seen_is_refused_in_a_sentence_that_shows_it(store, name):
    with pytest.raises(ConfigError, match="invisible character") as refused:
        store.create(RunConfig(), name=name)
    assert visible(name.strip()) in str(refused.value)
    assert not re.search(COMMANDS, str(refused.value))
    assert store.ids() == []


def test_a_name_that_is_too_long_is_refused_with_the_limit(store):
    with pytest.raises(ConfigError, match=r"has 10,000 characters\. Shorten it to at most 200"):
        store.create(RunConfig(), name="x" * 10_000)


def test_a_name_from_before_there_were_rules_is_read_as_it_is(store):
    assert hostile_run(store).name == NAME


# --- the log -------------------------------------------------------------------------------------------------------


def test_a_last_word_about_a_file_whose_name_is_not_utf8_is_written_and_read(store):
    odd = b"caf\xe9.png".decode(errors="surrogateescape")
    run_id = store.create(RunConfig())
    log = EventLog(store.folder(run_id) / "events.jsonl")
    log.append(HardwareSample(elapsed_s=0, readings={}, missing={"gpu_power_w": odd}))
    log.close(Failed(at=0, cause="ConfigError", message=f"{odd} is no image.", fix=odd, detail=odd))
    run = store.run(run_id)
    assert run.why() == r"caf\udce9.png is no image. caf\udce9.png"
    assert run.missing_readings == {"gpu_power_w": r"caf\udce9.png"}
    assert run.problems == []


def test_a_record_with_a_lone_surrogate_is_skipped_and_the_others_stand(store):
    run = make_run(store, num_steps=20)
    path = run.folder / "events.jsonl"
    body = rb'{"kind":"queued","at":0,"name":"\ud800"}'
    path.write_bytes(path.read_bytes() + body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body))
    again = store.run(run.run_id)
    assert len(again.problems) == 1
    assert len(again.steps) == 20


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def call(store, capsys):
    def run(*arguments):
        try:
            code = cli.main([*map(str, arguments), "--store", str(store.root)])
        except SystemExit as leaving:
            code = leaving.code
        out, err = capsys.readouterr()
        assert not re.search(COMMANDS, out + err)
        return code, out, err

    return run


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize("command", ["list", "show", "check", "watch"])
def test_no_command_sends_a_control_character_to_the_terminal(call, store, command, more):
    run = hostile_run(store)
    write_unknown_record(run)
    (make_run(store, num_steps=20).folder / "config.json").write_text(json.dumps({NAME: 1}))
    _, out, err = call(command, *([run.run_id] if command in {"show", "watch"} else []), *more)
    assert out + err
    if command != "check" and not more:
        assert visible(NAME, LONGEST_NAME) in out


def test_what_became_of_a_run_is_told_beside_its_json(call, store, monkeypatch):
    run = hostile_run(store)
    monkeypatch.setattr(Client, "submit", lambda *_, **__: run.run_id)
    code, out, err = call("run", "--json")
    assert code == 1
    assert json.loads(out)["why"] == run.why()
    assert visible(run.why()) in err


def test_a_strange_machine_and_a_strange_file_are_named_as_they_are(call, store, monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "probe", lambda: MACHINE)
    assert call("hardware")[1].count(visible(NAME)) == 4
    file = tmp_path / "\x1b[31m\u202e.csv"
    _, out, _ = call("export", make_run(store, num_steps=20).run_id, "-o", file)
    assert visible(str(file)) in out
    assert file.exists()


def test_a_name_with_a_line_break_makes_no_row_of_its_own_in_the_list(call, store):
    make_run(store, num_steps=20, said=[Queued(at=0, name="a\nffffffffffffffff  finished")])
    _, out, _ = call("list")
    assert len(out.splitlines()) == 2  # with the header


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--preset", "\x1b[31m"],
        ["plan", "--set", "\x1b[31m=1"],
        ["plan", "--set", "data=csv", "--set", f"source.path={NAME}"],
        ["plan", "--set", "data=csv", "--set", "source.path=\udce9"],
        ["plan", "--config", "\x1b[31m\udce9"],
        ["show", "\x1b]0;title\x07"],
        ["run", "--name", "\x1b[31m"],
        ["run", "--name", "\udce9"],
        ["list", "--limit", "\x1b[31m"],
        ["\x1b[31m"],
        ["list", "\x1b[31m\udce9"],
    ],
)
def test_a_refusal_quotes_what_was_typed_without_obeying_it(call, arguments):
    code, _, err = call(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_progress_shows_what_is_prepared_on_one_line(store):
    run = preparing_run(store, Preparing(text=f"{NAME}{LONG}", done_bytes=1, total_bytes=None))
    assert len(common.bar(run)) < 120
    assert not re.search(COMMANDS, common.bar(run))


@pytest.mark.parametrize("ending", ["html", "json"])
def test_a_title_that_is_not_utf8_is_written_into_a_report(call, store, tmp_path, ending):
    run = make_run(store, num_steps=20)
    code, _, _ = call("export", run.run_id, "-o", tmp_path / f"r.{ending}", "--title", "caf\udce9 \x1b[31m")
    assert code == 0
    assert r"caf\udce9" in (tmp_path / f"r.{ending}").read_text().replace(r"\\", "\\")


# --- reports and charts --------------------------------------------------------------------------------------------


def test_a_report_holds_no_markup_and_nothing_hidden_of_what_others_wrote(store):
    page = render(Report.freeze(NAME, [hostile_run(store), hostile_run(store)]))
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>") == 4
    assert "<!--" not in page
    data = page.index('<script type="application/json"')  # is exact, and shown to nobody
    assert not re.search(COMMANDS, page[:data])
    assert Report.from_json(json_in(page)).runs[0].name == NAME


def test_plotly_reads_no_markup_in_a_label(store):
    runs = [hostile_run(store), make_run(store, num_steps=40, name="<a href='javascript:alert(1)'>x</a>")]
    for chart in training.shown(runs):
        for trace in chart.draw(runs).data:
            assert "<" not in trace.name
            assert not re.search(COMMANDS, trace.name)
            assert "onerror" not in (trace.hovertemplate or "") + (trace.text[0] if trace.text else "")


def test_every_cell_of_the_exported_steps_is_a_number(store):
    rows = list(csv.reader(io.StringIO("".join(points_csv([hostile_run(store)])))))
    assert all(name.isidentifier() for name in rows[0])
    assert len(rows) == 121
    assert rows[0][-1] == "run_id"
    assert all(cell == "" or float(cell) is not None for row in rows[1:] for cell in row[:-1])


def test_the_command_of_a_report_shows_what_is_hidden_in_a_path(store):
    command = reproduce(hostile_run(store).config)
    assert not re.search(COMMANDS, command)
    assert r"\u202e" in command


# --- the dashboard -------------------------------------------------------------------------------------------------


def test_the_live_view_gets_nothing_that_turns_or_breaks_a_line(store):
    run = hostile_run(store)
    write_unknown_record(run)
    answer = run_api.points(run)
    assert answer["missing"]["gpu_utilization_percent"] == visible(NAME)
    assert visible(NAME) in answer["problems"][0]
    assert answer["why"] == visible(run.why(), 300)
    assert not re.search(COMMANDS, "".join(answer["problems"]))


def test_what_a_run_prepares_comes_to_the_live_view_on_one_short_line(store):
    run = preparing_run(store, Preparing(text=NAME + LONG, done_bytes=1, total_bytes=None))
    assert run_api.points(run)["preparing"]["text"] == visible(NAME + LONG, 300)


@pytest.fixture
def app(store, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(store.root))
    state.store.clear()
    yield AppTest.from_file(str(ROOT / "dashboard" / "main.py"), default_timeout=30)
    state.store.clear()


def test_a_machine_with_a_strange_name_is_shown_as_it_calls_itself(app, monkeypatch):
    monkeypatch.setattr(state, "machine", lambda: MACHINE)
    app.run()
    assert not app.exception
    texts = [text.value for text in app.text]
    assert f"{visible(NAME)}\n4 usable cores" in texts
    assert any(text.startswith(f"cuda:0: {visible(NAME)}") for text in texts)


def test_a_run_with_a_name_that_is_not_allowed_any_more_can_be_run_again(app, store, monkeypatch):
    submitted = []

    def submit(_, config, *, name, key):
        submitted.append(clean_name(name))
        return hostile.run_id

    hostile = hostile_run(store)
    monkeypatch.setattr("engine.runtime.client.Client.submit", submit)
    app.run()
    app.switch_page(str(ROOT / "pages" / "train.py"))
    app.query_params["run"] = hostile.run_id
    app.run()
    app.button(key=f"again-{hostile.run_id}").click().run()
    assert submitted == [visible(NAME, LONGEST_NAME)]
