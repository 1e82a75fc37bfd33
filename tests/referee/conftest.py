"""One small store with a run of each kind, made by the command line, and its export as the referee reads it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load

ROOT = Path(__file__).resolve().parents[2]
KEPT = "ISOFLOP_REFEREE"  # names a folder: the files are made there once, and judged again without new runs
SECONDS = 900  # of one command, at most: the machine can be busy
SETTINGS = "[energy]\ntdp_w = [10, 100]\nprice_per_kwh = 0.5\n"

LANES = {  # `tutorial` is the same training as `fast`, at another speed
    "fast": "optimizer.lr=0.003",
    "tutorial": "optimizer.lr=0.003 execution=dataloader",
    "slow": "optimizer.lr=0.0008",
}
TARGET, SEEDS = 0.9, 10  # corrected for all comparisons, fewer seeds would give no interval
COMMANDS = {
    "calibration": ["calibrate"],
    "training": ["run", "--preset", "digits-mlp", "--set", "budget.epochs=3", "--set", "checkpoints=2"],
    "target": ["run", "--preset", "digits-mlp", "--set", f"target.value={TARGET}"],
    "lenet": ["run", "--preset", "lenet", "--set", "data=digits", "--set", "budget.epochs=none", "--set", "budget.steps=40"],
    "text": ["run", "--preset", "char-lstm", "--set", "model.hidden_size=16", "--set", "budget.steps=60"],
    "race": ["race", "--base", "digits-mlp", *(word for lane in LANES.items() for word in ("--lane", ": ".join(lane))),
             "--budget", "steps=120", "--seeds", str(SEEDS), "--target", f"test_accuracy={TARGET}"],
    "scaling": ["scale", "--preset", "digits-mlp", "--ranks", "1,2", "--weak", "--seeds", "3", "--steps", "40"],
    "law": ["run", "--preset", "digits-law", "--set", "law.batch_sizes=8,32,128,512", "--set", "law.full_batch=false"],
    "inference": ["infer", "--run", "{training}", "--matrix", "--batch-sizes", "1,16", "--threads", "1", "--precisions",
                  "fp32,bf16", "--limit-ms", "1000", "--set", "infer.requests=500", "--set", "infer.seconds=0.2"],
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """The documents that the commands printed, and the report with points and weights of all runs."""

    said: dict[str, dict[str, Any]]  # what each command of COMMANDS printed, by its name
    shown: dict[str, dict[str, Any]]  # what `show --json` printed of its run, by the same name
    report: dict[str, dict[str, Any]]  # by run id
    archive: zipfile.ZipFile

    def run(self, name: str) -> dict[str, Any]:
        """The run that a command of COMMANDS made, as the report has it."""
        return self.report[self.said[name]["run_id"]]

    def points(self, run_id: str, table: str) -> dict[str, np.ndarray]:
        """The columns of a table of a run, from its CSV."""
        text = self.archive.read(f"csv/{run_id}-{table}.csv").decode()
        rows = np.genfromtxt(io.StringIO(text), delimiter=",", names=True, dtype=np.float64)
        return {name: np.atleast_1d(rows[name]) for name in rows.dtype.names}

    def weights(self, run_id: str, file: str = "model") -> dict[str, np.ndarray]:
        """The tensors of a run's weight file."""
        return load(self.archive.read(f"weights/{run_id}/{file}.safetensors"))

    def lane(self, study: str, label: str) -> dict[str, Any]:
        """A configuration of a race or a scaling study."""
        return next(lane for lane in self.said[study]["lanes"] if lane["label"] == label)


def _engine(store: Path, *arguments: object) -> dict[str, Any]:
    """What a command prints with --json."""
    command = [sys.executable, "-m", "engine", *map(str, arguments), "--store", str(store), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-500:]}\n{done.stderr[-2000:]}"
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = Path(os.environ.get(KEPT) or tmp_path_factory.mktemp("referee"))
    if not (folder / "all.zip").exists():
        _make(folder)
    said, shown = json.loads((folder / "said.json").read_text(encoding="utf-8"))
    archive = zipfile.ZipFile(folder / "all.zip")
    runs = json.loads(archive.read("report.json"))["runs"]
    return Exported(said, shown, {run["run_id"]: run for run in runs}, archive)


def _make(folder: Path) -> None:
    """Run COMMANDS in a new store with one supervisor; write what they print to said.json, and the export to all.zip."""
    store = folder / "store"
    store.mkdir(parents=True, mode=0o700)
    (store / "settings.toml").write_text(SETTINGS, encoding="utf-8")
    (store / "settings.toml").chmod(0o600)
    command = [sys.executable, "-m", "engine", "supervise", "--store", str(store)]
    supervisor = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    said: dict[str, dict[str, Any]] = {}
    try:
        for name, words in COMMANDS.items():
            ids = {made: document["run_id"] for made, document in said.items() if "run_id" in document}
            said[name] = _engine(store, *(word.format(**ids) for word in words))
        shown = {name: _engine(store, "show", said[name]["run_id"]) for name in said if "run_id" in said[name]}
        ids = [row["run_id"] for row in _engine(store, "list", "--limit", 1000)["runs"]]
        _engine(store, "check")
        _engine(store, "export", *ids, "--weights", "-o", folder / "all.part.zip")
    finally:
        _end(supervisor)
    (folder / "said.json").write_text(json.dumps([said, shown]), encoding="utf-8")
    (folder / "all.part.zip").replace(folder / "all.zip")


def _end(supervisor: subprocess.Popen) -> None:
    """Kill the supervisor and its children."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(supervisor.pid)
        family = [*process.children(recursive=True), process]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=10)
    supervisor.wait(timeout=10)
