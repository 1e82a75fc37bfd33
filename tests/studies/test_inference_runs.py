"""Inference runs from outside: the command line, cancelling, reports, and the list of runs."""

from __future__ import annotations

import argparse
import json
import shlex

import numpy as np
import pytest

from engine.cli import cards, infer
from engine.cli import main as cli
from engine.common.errors import ConfigError, StoreError
from engine.config.inference import infer_config, infer_matrix
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.tasks import RUNTIMES
from engine.events.base import TERMINAL
from engine.events.inference import Histogram, Latency, NotRun, Quality
from engine.events.lifecycle import Artifact
from engine.reports.commands import reproduce
from engine.reports.html.page import render
from engine.reports.report import Report, json_in
from engine.runtime.client import Client
from engine.store.listing import line_of, row_of
from engine.studies.inference import matrix_of, sweet_spot
from engine.studies.inference_time import known_latencies
from tests.fakes import make_run
from tests.studies.test_inference import latency

DIGITS = with_overrides(preset_config("digits-mlp"), ["budget.epochs=2"])


@pytest.fixture(scope="module")
def trained(supervised):
    return supervised.until(supervised.submit("budget.epochs=3"), "finished")


@pytest.fixture
def ask(supervised, capsys):
    """The command line on the supervised store: exit code, stdout's JSON, stderr."""

    def run(*arguments):
        code = cli.main([*map(str, arguments), "--json", "--store", str(supervised.store.root)])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]), err

    return run


# --- the command line


def test_infer_measures_a_run_and_names_the_combination_to_deploy(ask, trained):
    code, said, _ = ask(
        "infer", "--run", trained.run_id, "--batch-sizes", "1,16", "--runtimes", "inference_mode,int8",
        "--set", "infer.seconds=0.05", "--limit-ms", 5_000,
    )  # fmt: skip
    assert (code, said["status"], said["config"]["infer"]["run"]) == (0, "finished", trained.run_id)
    cells = said["inference"]["cells"]
    assert [(c["batch_size"], c["runtime"]) for c in cells] == [
        (1, "inference_mode"), (16, "inference_mode"), (1, "int8"), (16, "int8"),
    ]  # fmt: skip
    assert all(sum(c["latency"]["histogram"]["counts"]) == c["latency"]["requests"] for c in cells)
    best = max(cells, key=lambda c: c["latency"]["samples_per_s"])
    assert said["inference"]["sweet_spot"]["cell"]["batch_size"] == best["batch_size"] == 16
    assert said["inference"]["sweet_spot"]["sentence"].startswith("Deploy batch 16")
    assert said["inference"]["qualities"][0]["test_accuracy"] == trained.summary().test_accuracy


def test_show_prints_the_same_afterwards(ask, trained):
    _, said, _ = ask("infer", "--run", trained.run_id[:8], "--set", "infer.requests=20")
    _, shown, _ = ask("show", said["run_id"])
    assert shown["inference"]["cells"] == said["inference"]["cells"]
    assert shown["summary"]["samples_per_s"] == said["inference"]["cells"][0]["latency"]["samples_per_s"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "{run}", "--preset", "lenet"], "--run takes model and data from the run"),
        (["--run", "{run}", "--batch-sizes", "1,two"], "is not a list of whole numbers"),
        (["--run", "{run}", "--runtimes", "tensorrt"], "infer.cells.0.runtime=tensorrt"),
        (["--run", "{run}", "--limit-ms", "-1"], "--limit-ms -1 is not allowed"),
        (["--run", "{run}", "--set", "infer.shape=1x1x224x224"], "its first layer has weights for 64 values"),
        (["--run", "{run}", "--set", "model.hidden=9"], "trained another model or on other data: model.hidden"),
        (["--run", "ffff"], "There is no run 'ffff'"),
        (["--preset", "lenet", "--weights", "model.pt"], "The weights file model.pt"),
        (["--preset", "char-decoder", "--set", "infer.new_tokens=100"], "more than the 64 characters"),
        (["--preset", "lenet", "--set", "threads=1000"], "more than this machine's"),
    ],
)
def test_what_cannot_be_measured_is_an_error_and_no_run(ask, supervised, trained, arguments, words):
    before = set(supervised.store.ids())
    code, said, err = ask("infer", *[a.replace("{run}", trained.run_id) for a in arguments])
    assert code == 2 and words in said["error"]["message"] and words in err
    assert set(supervised.store.ids()) == before


def arguments(*words):
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    for name in ("--preset", "--config", "--store"):
        common.add_argument(name)
    common.add_argument("--set", action="append", default=[])
    common.add_argument("--json", action="store_true")
    commands = parser.add_subparsers()

    def add(name, function, text, *parents):
        return commands.add_parser(name, parents=list(parents))

    infer.register(add, common)
    return parser.parse_args(["infer", *words])


def config_of(store, *words):
    return infer.config_of(arguments(*words), store)


def test_a_matrix_is_every_batch_size_by_every_thread_count(store):
    config = config_of(store, "--preset", "lenet", "--matrix", "--threads", "1,2")
    assert sorted({c.batch_size for c in config.cells}) == list(infer.BATCH_SIZES)
    assert len(config.cells) == 22 and config.threads == 2


def test_a_training_batch_size_is_not_used_for_requests(store):
    assert config_of(store, "--preset", "lenet").batch_size == 1
    assert config_of(store, "--preset", "lenet", "--set", "batch_size=8").batch_size == 8
    assert config_of(store, "--preset", "mnist-gd").batch_size == 1  # it trains with all of them
    assert config_of(store, "--preset", "lenet", "--set", "infer.load=open").infer.load == "open"


def test_all_runtimes_can_be_chosen_at_once(store):
    config = config_of(store, "--preset", "lenet", "--runtimes", "all")
    assert [c.runtime for c in config.cells] == list(RUNTIMES)


def test_last_is_the_newest_run_with_weights(store):
    with pytest.raises(ConfigError, match="no finished training run"):
        infer.last_with_weights(store)
    weights = Artifact(name="model.safetensors", size_bytes=1, sha256="0" * 64)
    wanted = make_run(store, num_steps=20, said=[weights])
    make_run(store, num_steps=20)
    make_run(store, infer_config(DIGITS), num_steps=0)
    assert infer.last_with_weights(store) == wanted.run_id


# --- as a run like any other


def test_a_run_without_weights_is_refused_before_anything_starts(supervised, store):
    run = make_run(store, DIGITS, num_steps=20)
    with pytest.raises(ConfigError, match="has no weights"):
        Client(store).submit(infer_config(DIGITS, run.run_id))
    with pytest.raises(StoreError, match="There is no run"):
        Client(store).submit(infer_config(DIGITS, "0" * 16))


@pytest.mark.parametrize("load", ["closed", "open"])
def test_inference_is_cancelled_and_what_is_measured_stays(supervised, trained, load):
    config = infer_matrix(infer_config(DIGITS, trained.run_id, seconds=300, load=load, rate=50.0, rounds=100), (1, 8))
    run = supervised.store.run(supervised.client.submit(config))
    supervised.wait(lambda: run.refresh() is not None and len(run.latencies) == 2, "both cells")
    supervised.client.cancel(run.run_id, reason="enough")
    supervised.until(run.run_id, *TERMINAL)
    run.refresh()
    assert (run.status, run.why(), run.problems) == ("cancelled", "enough", [])
    assert sweet_spot(matrix_of(run), 10.0).best is not None
    assert {path.name for path in run.folder.iterdir()} <= {"config.json", "events.jsonl", "stop", "labels.json"}


def test_a_wrong_checksum_fails_the_run_with_its_sentence(supervised, trained):
    path = trained.folder / "model.safetensors"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-4] + b"\0\0\1\0")
        run = supervised.until(supervised.client.submit(infer_config(trained.config, trained.run_id)), "failed")
    finally:
        path.write_bytes(content)
    assert "the file was changed" in run.why()


# --- what is kept and shown


def inferred(store, **more):
    """A run of inference with made-up latencies."""
    config = infer_matrix(
        infer_config(preset_config("lenet"), "0123456789abcdef"), (1, 8), runtimes=("inference_mode", "int8")
    )
    times = dict(zip(config.cells, (1e-4, 4e-4, 2e-4, 6e-4), strict=True))
    said = [latency(cell, t) for cell, t in list(times.items())[:3]]
    said.append(NotRun(cell=config.cells[3], reason="int8 cannot be used in /home/somebody/files/x.txt"))
    quality = {"test_accuracy": 0.98, "test_loss": 0.1, "examples": 1_000, "seconds": 0.1, "size_bytes": 250_000}
    said.append(Quality(precision="fp32", runtime="inference_mode", **quality))
    return make_run(store, config, num_steps=0, said=[*said, *more.get("said", ())])


def test_the_list_shows_the_accuracy_and_the_description(store):
    line = line_of(row_of(inferred(store)))
    assert line.words == "inference of LeNet: batch 1-8 x 1 thread · inference_mode, int8 · mnist5k · cpu"
    assert (line.samples_per_s, line.test_accuracy, line.steps) == (None, 0.98, None)


def test_the_last_event_of_a_combination_counts(store):
    cell = infer_matrix(infer_config(preset_config("lenet"), "0123456789abcdef"), (1,)).cells[0]
    run = inferred(store, said=[latency(cell, 3e-4)])
    assert run.by_key(Latency)[cell].p50_s == 3e-4 and len(run.latencies) == 3


def test_a_report_holds_every_cell_and_leaks_no_path(store):
    report = Report.from_json(Report.freeze("inference", [inferred(store)]).to_json())
    found = report.runs[0].matrix
    assert [c.quantile_s("p50") for c in found.cells] == [1e-4, 4e-4, 2e-4, None]
    page = render(report)
    assert ">Inference<" in page and "Training loss" not in page
    assert "/home/somebody" not in page and "x.txt" not in page
    assert "takes 2.00 times as long as plain PyTorch at batch 1" in page


def test_a_report_of_many_requests_stays_small_and_keeps_its_percentiles(store):
    config = infer_matrix(infer_config(preset_config("lenet")), range(1, 101), (1, 2))
    rng = np.random.default_rng(0)
    said = []
    for cell in config.cells:
        seconds = rng.lognormal(-8, 0.5, 2_000).astype("<f4")
        event = latency(cell, 1e-4).model_copy(
            update={"histogram": Histogram.of(seconds), "start_s": np.arange(2_000, dtype="<f4"), "latency_s": seconds}
        )
        said.append(event)
    report = Report.freeze("many", [make_run(store, config, num_steps=0, said=said)])
    page = render(report)
    assert len(page) < 3_000_000
    again = Report.from_json(json_in(page)).runs[0]
    assert len(again.latencies) == 200 and again.latencies[0].requests == 1_000
    assert 8 <= len(again.latencies[0].start_s) < 2_000


@pytest.mark.parametrize("preset", ["lenet", "char-decoder"])
@pytest.mark.parametrize("run_id", ["", "0123456789abcdef"])
def test_the_command_of_a_report_measures_the_same_again(store, preset, run_id):
    base = with_overrides(preset_config(preset), ["seed=3"])
    config = infer_matrix(
        infer_config(base, run_id, seconds=0.5, load="open", rate=20.0), (1, 32), (1, 2), runtimes=("eager", "int8")
    )
    words = shlex.split(reproduce(config))
    assert words[:4] == ["python", "-m", "engine", "infer"] and "--batch-sizes" in words
    if not run_id:
        assert config_of(store, *words[4:]) == config
    one = infer_config(base, run_id, batch_size=8, runtime="int8")
    assert "--batch-sizes" not in reproduce(one) and "batch_size=8" in reproduce(one)


def test_a_card_reads_in_a_terminal(store):
    text = cards.inference_card(inferred(store), 5e-3)
    assert "Deploy batch 8 on 1 thread with PyTorch in inference mode: 20.0 k samples/s with a p99 of 800 µs" in text
    assert "PyTorch int8 takes 2.00 times as long as plain PyTorch at batch 1" in text
    assert "- PyTorch int8, fp32: int8 cannot be used" in text


def test_latencies_of_finished_runs_are_known_before_the_next(store):
    run = inferred(store)
    known = known_latencies(store, infer_config(preset_config("lenet")))
    assert known == {cell: found.p50_s for cell, found in run.by_key(Latency).items()}
    assert known_latencies(store, infer_config(preset_config("mnist-mlp"))) == {}
