"""`python -m engine`: exit codes and JSON for scripts, and text for people."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sys

import pytest

from engine.cli import common
from engine.cli import main as cli
from engine.common import units
from engine.common.errors import StoreError
from engine.config.presets import PRESETS
from engine.events.lifecycle import Finished
from engine.events.machine import Busy
from engine.events.training import StepSplit
from engine.runtime import client
from engine.runtime.client import Client
from engine.store.listing import row_of
from engine.store.store import Store
from engine.system import locks
from tests.fakes import make_run

SUMMARY = {
    "steps", "samples", "epochs", "train_seconds", "samples_per_s", "final_train_loss", "test_loss", "test_accuracy",
    "flops", "mfu", "peak_memory_bytes", "energy_j",
}  # fmt: skip
QUICK = ("--preset", "digits-mlp", "--set", "budget.epochs=2")
DIVERGING = ("--preset", "mnist-mlp", "--set", "optimizer.name=sgd", "--set", "optimizer.lr=1e6")


def ends(process, seconds=90):
    """Exit code, the last line of stdout as JSON, and stderr."""
    out, err = process.communicate(timeout=seconds)
    assert "Traceback" not in err
    return process.returncode, json.loads(out.splitlines()[-1]) if out else None, err


@pytest.fixture
def call(store, capsys):
    """The command line in this process, on its own store: exit code, stdout, stderr."""

    def run(*arguments):
        try:
            code = cli.main([*map(str, arguments), "--store", str(store.root)])
        except SystemExit as leaving:  # argparse leaves so
            code = leaving.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def ask(call):
    """A command's JSON document."""

    def run(*arguments):
        code, out, err = call(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out.splitlines()[-1])

    return run


# --- commands that submit runs

SUBMITTING = [
    (("run", *QUICK, "--seeds", "2"), "run_ids"),
    (("run", "--preset", "digits-law"), "run_ids"),
    (("race", "--base", "digits-mlp", "--lane", "a: batch_size=16", "--lane", "b: batch_size=64"), "run_ids"),
    (("scale", "--ranks", "1,2", "--seeds", "1", "--steps", "10"), "run_ids"),
    (("infer", "--preset", "lenet"), "run_id"),
    (("calibrate",), "run_id"),
]


@pytest.mark.parametrize("command", [command for command, _ in SUBMITTING])
def test_a_command_needs_the_store_before_its_runs_exist(call, store, monkeypatch, command):
    needed, create = [], Store.create

    def noted(self, *args, **options):
        needed.append(locks.is_needed(self.root))
        return create(self, *args, **options)

    def no_supervisor(_):
        raise StoreError("No supervisor in this test.")

    monkeypatch.setattr(Store, "create", noted)
    monkeypatch.setattr(client, "ring_doorbell", no_supervisor)
    try:
        call(*command)
    finally:
        locks.withdraw(store.root)
    assert needed and all(needed)


@pytest.mark.parametrize(("command", "key"), SUBMITTING)
def test_ctrl_c_cancels_every_run_that_a_command_submitted(call, store, monkeypatch, command, key):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    cancelled, before = [], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(common, "follow", pressed)
    monkeypatch.setattr(Client, "wake", lambda _: None)
    monkeypatch.setattr(Client, "cancel", lambda _, run_id, *, reason="": cancelled.append(run_id))
    try:
        code, out, err = call(*command, "--json")
        ignored = signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    told = json.loads(out.splitlines()[-1])
    assert (code, ignored, told["error"]["type"]) == (common.INTERRUPTED, signal.SIG_IGN, "KeyboardInterrupt")
    assert "Stopped." in err
    assert sorted(cancelled) == sorted(store.ids()) == sorted([told[key]] if key == "run_id" else told[key])


# --- run, in processes of its own ----------------------------------------------------------------------------------


def test_run_prints_one_json_document_with_the_promised_keys(engine, supervised):
    code, result, _ = ends(engine("run", *QUICK, "--json", "--store", supervised.store.root))
    assert (code, result["status"]) == (0, "finished")
    assert {"run_id", "status", "config", "summary"} <= result.keys()
    assert result["summary"].keys() >= SUMMARY
    assert (result["summary"]["steps"], result["summary"]["epochs"]) == (90, 2.0)


def test_several_seeds_are_one_group(engine, supervised):
    code, result, _ = ends(engine("run", *QUICK, "--seeds", 2, "--json", "--store", supervised.store.root))
    assert (code, [run["config"]["seed"] for run in result["runs"]]) == (0, [0, 1])
    rows = [row for row in supervised.store.rows() if row.group == result["group_id"]]
    assert {row.run_id for row in rows} == {run["run_id"] for run in result["runs"]}


def test_a_run_that_diverges_exits_1_and_keeps_its_points(engine, supervised, capsys):
    code, result, err = ends(engine("run", *DIVERGING, "--json", "--store", supervised.store.root))
    assert (code, result["status"]) == (1, "failed")
    assert result["summary"]["final_train_loss"] is None
    assert "The loss became" in err
    cli.main(["show", result["run_id"], "--json", "--store", str(supervised.store.root)])
    loss = json.loads(capsys.readouterr().out)["steps"]["loss"]
    assert loss[0] > 0
    assert None in loss


def test_ctrl_c_stops_the_run_and_exits_130(engine, supervised):
    known = set(supervised.store.ids())
    process = engine("run", "--preset", "mnist-gd", "--set", "budget.seconds=600", "--store", supervised.store.root)
    supervised.wait(lambda: set(supervised.store.ids()) - known, "a run")
    (run_id,) = set(supervised.store.ids()) - known
    supervised.until(run_id, "running")
    process.send_signal(signal.SIGINT)
    assert (process.wait(30), process.communicate()[0]) == (130, "")
    assert supervised.until(run_id, "cancelled").why() == "interrupted in the terminal"


def test_run_starts_a_supervisor_if_there_is_none_and_prints_a_card(engine, own_supervised):
    own_supervised.end()
    process = engine("run", *QUICK, "--name", "first", "--store", own_supervised.store.root)
    out, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (0, "")
    assert "finished  first" in out
    assert "test accuracy" in out


def test_cancel_and_delete_reach_a_run(supervised, capsys):
    run = supervised.running()
    arguments = [run.run_id, "--json", "--store", str(supervised.store.root)]
    assert cli.main(["cancel", *arguments]) == 0
    assert cli.main(["delete", *arguments]) == 0
    cancelled, deleted = map(json.loads, capsys.readouterr().out.splitlines())
    assert cancelled == {"run_id": run.run_id, "status": "cancelled"}
    assert deleted == {"run_id": run.run_id, "deleted": True}


def test_check_rebuilds_the_index(supervised, capsys):
    supervised.until(supervised.submit("budget.epochs=1"), "finished")
    assert cli.main(["check", "--rebuild", "--json", "--store", str(supervised.store.root)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["indexed"] == result["runs"] == len(supervised.store.ids()) > 0
    rows = supervised.store.rows()
    folders = [row_of(supervised.store.run(row.run_id)) for row in rows]
    assert [row.model_dump_json() for row in rows] == [row.model_dump_json() for row in folders]


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("--set", "batch_size=0"),
        ("--set", "batch_size=4001"),
        ("--set", "optimizer.lr=nan"),
        ("--set", "batchsize=3"),
        ("--set", "batch_size"),
        ("--set", "device=cuda:99"),
        ("--set", "threads=1000"),
        ("--set", "model.hidden=1000000,1000000"),
        ("--preset", "nope"),
        ("--config", "/no/such/file.json"),
        ("--config", "/"),
        ("--preset", "lenet", "--config", "x.json"),
        ("--seeds", "0"),
        ("--seeds", "1001"),
    ],
)
def test_a_configuration_that_cannot_run_exits_2_with_one_sentence_and_leaves_nothing(call, store, arguments):
    code, out, err = call("run", *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert [*store.runs.iterdir(), *store.inbox.iterdir()] == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b'{"batch_size": 0}', b"[" * 100_000])
def test_a_bad_config_file_exits_2_with_one_sentence(call, store, tmp_path, content):
    (tmp_path / "c.json").write_bytes(content)
    code, _, err = call("run", "--config", tmp_path / "c.json")
    assert (code, len(err.splitlines())) == (2, 1)
    assert store.ids() == []


def test_an_error_is_also_json(call):
    code, out, _ = call("run", "--set", "batch_size=0", "--json")
    error = json.loads(out)["error"]
    assert (code, error["type"]) == (2, "ConfigError")
    assert error["message"].startswith("batch_size=0")


@pytest.mark.parametrize("arguments", [(), ("fly",), ("run", "--nope"), ("show",), ("list", "--sort", "id; drop")])
def test_wrong_usage_exits_2(call, arguments):
    assert call(*arguments)[0] == 2


@pytest.mark.parametrize("command", ["show", "watch", "cancel", "delete"])
@pytest.mark.parametrize("run", ["0" * 16, "../x", "last", "", "/etc"])
def test_an_unknown_run_exits_2(call, command, run):
    code, _, err = call(command, run)
    assert code == 2
    assert err.startswith("There is no run")


@pytest.mark.parametrize("name", ["x.exe", "no/such/folder/x.json"])
def test_an_export_that_cannot_be_written_exits_2(call, store, tmp_path, name):
    run = make_run(store, num_steps=20)
    code, _, err = call("export", run.run_id, "-o", tmp_path / name)
    assert (code, len(err.splitlines())) == (2, 1)


# --- what is told --------------------------------------------------------------------------------------------------


def test_list_prints_each_run_newest_first(ask, store):
    first, last = make_run(store, num_steps=40), make_run(store, num_steps=40, name="mine")
    runs = ask("list")["runs"]
    assert [run["run_id"] for run in runs] == [last.run_id, first.run_id]
    assert runs[0].keys() >= {"run_id", "status", "name", "created", "summary"}
    assert runs[0]["summary"].keys() >= SUMMARY


def test_list_names_each_column(call, store):
    run = make_run(store, num_steps=40)
    heads, line = call("list")[1].splitlines()
    names = "test accuracy", "training loss", "throughput"
    for name, text in zip(names, ("–", units.loss(run.summary().final_train_loss), "samples/s"), strict=True):
        assert line.index(text) + len(text) == heads.index(name) + len(name)  # right-aligned
    assert heads.split()[:2] == ["run", "status"] and line.startswith(run.run_id)


def test_show_prints_every_step(ask, store):
    shown = ask("show", make_run(store, num_steps=1_260).run_id)
    steps = shown["steps"]
    assert steps.keys() >= {"step", "loss", "seconds", "samples", "flops", "lr"}
    assert {len(column) for column in steps.values()} == {1_260}
    assert steps["step"] == list(range(1, 1_261))
    assert shown["evaluations"][0].keys() >= {"step", "seconds", "test_loss", "test_accuracy"}
    assert len(shown["hardware"]["seconds"]) == len(shown["hardware"]["process_cpu_percent"])


def test_show_counts_samples_and_flops_at_each_step(ask, store):
    steps = ask("show", make_run(store, num_steps=40).run_id)["steps"]
    assert steps["samples"][:2] == [64, 128]
    assert steps["flops"][-1] == 40 * 64 * 408_576


def test_show_prints_the_provenance_of_each_figure_and_interference(ask, call, store):
    busy = Busy(slowdown=2.0, slowdown_method="wall by CPU time")
    split = StepSplit(
        data_s=1e-4, forward_s=1e-4, backward_s=1e-4, optimizer_s=7e-4, read_back_s=0.0, steps=8, method="m"
    )
    last = Finished(
        at=0,
        busy=busy,
        energy_j=500.0,
        energy_source="rapl",
        energy_window_s=10.0,
        energy_period_s=1e-3,
        energy_method="RAPL",
    )
    run = make_run(store, step_s=1e-3, said=[split], last=last)
    shown = ask("show", run.run_id)
    assert (shown["summary"]["busy"], shown["busy"]["busy"], shown["busy"]["slowdown"]) == (True, True, 2.0)
    assert shown["figures"]["samples_per_s"]["how"] == "derived" and "busy" in shown["figures"]["samples_per_s"]["note"]
    assert shown["energy"]["joules"] / shown["summary"]["samples"] * 1_000 == shown["energy"]["per_1000_samples_j"]
    split = shown["step_split"]
    assert split["shares"] == pytest.approx(
        {"data": 0.1, "forward": 0.1, "backward": 0.1, "optimizer": 0.7, "read_back": 0}
    )
    assert (split["doubt"], split["sum_s"], split["run_step_s"]) == (None, pytest.approx(1e-3), pytest.approx(1e-3))
    assert shown["alerts"] == []
    _, card, _ = call("show", run.run_id)
    for words in ("the machine was busy", "500 J (measured, rapl)", "optimizer 700 µs", "a larger batch"):
        assert words in card


def test_show_says_where_a_step_breakdown_is_not_that_of_the_run(ask, call, store):
    parts = {"data_s": 1e-4, "forward_s": 1e-4, "backward_s": 1e-4, "optimizer_s": 7e-4, "read_back_s": 0.0}
    run = make_run(store, step_s=3e-3, said=[StepSplit(**parts, steps=8, method="m")])
    found = ask("show", run.run_id)["step_split"]
    assert found["sentence"] is None and "add up to 1.00 ms" in found["doubt"]
    _, card, _ = call("show", run.run_id)
    assert found["doubt"] in card and "a larger batch" not in card


def test_show_of_a_run_without_points_has_empty_arrays(ask, store, config):
    shown = ask("show", store.create(config))
    assert (shown["status"], {len(column) for column in shown["steps"].values()}) == ("queued", {0})


def test_plan_prints_what_a_run_needs_and_starts_nothing(ask, store):
    plan = ask("plan", "--preset", "mnist-mlp")
    assert plan.keys() >= {
        "parameters", "forward_flops_per_example", "train_flops_per_example", "weight_bytes", "gradient_bytes",
        "optimizer_bytes", "activation_bytes", "fits",
    }  # fmt: skip
    assert (plan["parameters"], plan["weight_bytes"], plan["fits"]) == (101_770, 407_080, True)
    assert store.ids() == []


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_planned(ask, preset):
    assert ask("plan", "--preset", preset)["fits"] is True


def test_the_plan_of_a_run_that_does_not_fit_says_so(ask):
    assert ask("plan", "--set", "model.hidden=1000000,1000000")["fits"] is False


def test_hardware_describes_the_machine_without_identifying_it(ask):
    text = json.dumps(ask("hardware"))
    assert os.uname().nodename not in text
    assert '"usable_cores"' in text


def test_check_exits_1_and_names_what_is_damaged(call, store):
    run = make_run(store, num_steps=40)
    log = run.folder / "events.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"kind":"steps"', b'"kind":"stops"', 1))
    code, out, _ = call("check", "--json")
    result = json.loads(out)
    assert (code, result["ok"], result["runs"]) == (1, False, 1)
    assert run.run_id in result["problems"][0]


def test_check_of_an_undamaged_store_is_ok(ask, store):
    make_run(store, num_steps=40)
    assert ask("check") == ask("check") | {"ok": True, "runs": 1, "problems": []}


def test_watch_of_a_run_that_has_ended_prints_its_result(ask, store):
    run = make_run(store, num_steps=40)
    assert ask("watch", run.run_id)["status"] == "finished"


@pytest.mark.parametrize("command", ["list", "check", "hardware", "plan"])
def test_commands_print_plain_lines_without_json(call, store, command):
    make_run(store, num_steps=40)
    code, out, err = call(command)
    assert (code, err) == (0, "")
    assert "{" not in out


# --- export --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [False, True])
def test_a_terminal_without_unicode_gets_something_else(store, monkeypatch, as_json):
    make_run(store, name="é█", num_steps=40)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["list", "--store", str(store.root), "--limit", "9" * 20, *(["--json"] if as_json else [])]) == 0
    terminal.flush()
    shown = terminal.buffer.getvalue().decode("ascii")
    assert (json.loads(shown)["runs"][0]["name"] == "é█") if as_json else shown.rstrip().endswith("??")


def test_a_run_is_exported_as_csv_with_every_step(call, store, tmp_path):
    run = make_run(store, num_steps=100)
    assert call("export", run.run_id, "-o", tmp_path / "x.csv")[0] == 0
    rows = [row for row in csv.reader((tmp_path / "x.csv").read_text().splitlines()) if not row[0].startswith("#")]
    assert len(rows) == 1 + 100


@pytest.mark.parametrize("kind", ["json", "html"])
def test_runs_are_exported_as_one_report(call, store, tmp_path, kind):
    runs = [make_run(store, num_steps=40), make_run(store, num_steps=40, diverges_at=30)]
    path = tmp_path / f"x.{kind}"
    assert call("export", *(run.run_id for run in runs), "-o", path, "--title", "Two runs")[0] == 0
    text = path.read_text()
    assert "Two runs" in text
    assert all(run.run_id in text for run in runs)
    if kind == "json":
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_path_in_the_home_of_an_unknown_user_is_refused(capsys):
    assert cli.main(["plan", "--set", "data=csv", "--set", "source.path=~nobody-here/x.csv"]) == 2
    assert "names the home folder of an unknown user" in capsys.readouterr().err


def test_the_plan_of_a_calibration_describes_it_and_has_no_training_figures(call, ask):
    _, said, _ = call("plan", "--preset", "calibrate")
    assert "A calibration does not train a model" in said and "(estimated)" in said
    assert not any(word in said for word in ("parameters", "FLOP", "epoch"))
    known = ask("plan", "--set", "task=calibrate")
    assert (known["task"], known["parameters"], known["estimated_seconds"] > 0) == ("calibrate", None, True)
