"""How often the 95 % interval of B_crit holds the true value: repeats of the study `digits-law`, each with other seeds.

    python -m benchmarks.batch_law_coverage --repeats 20 --folder trials

The truth comes from a scan that shares only the trials with the study: 32 seeds at every rate of a grid of factor 1.2, the
mean of ln S at each rate, the minimum of a polynomial through the means of a batch size, and the fit of the law by SciPy.
The folder keeps all trials; those in it are not made again. Steps do not depend on the machine's load; times do.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from benchmarks import measure
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.tasks import Law
from engine.events.studies import Trial
from engine.pytorch.tasks.batch_law import batch_law as task
from engine.studies import batch_law
from engine.studies.lr_tuning import Ask

CONFIG = preset_config("digits-law")
FACTOR = 1.2
# By batch size: a rate near the best, and the grid around it, as powers of FACTOR.
GRIDS = {
    1: (0.03, -6, 5), 2: (0.05, -5, 5), 4: (0.09, -6, 6), 8: (0.15, -3, 6), 16: (0.25, -4, 6), 32: (0.4, -4, 4),
    64: (0.6, -5, 4), 128: (0.8, -5, 2), 256: (1.0, -7, 1), 512: (1.0, -6, 2), 1438: (1.0, -6, 1),
}  # fmt: skip
SCAN_SEEDS = range(1_000, 1_032)
WINDOW = 0.6  # ln S above the best rate up to which a rate is part of the polynomial
SPREADS = ("b_crit", "s_min", "e_min", "rms_log_residual", "trials", "cpu_s")
FIRST_SEED = 10_000  # of the repeats; no seed of the scan


def scan(path: Path) -> dict[int, dict[float, list[float | None]]]:
    """Steps of every seed by batch size and rate; makes the trials that `path` does not hold and adds them to it."""
    known: dict[tuple[int, float, int], float | None] = {}
    if path.exists():
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        known = {(row["b"], round(row["lr"], 6), row["seed"]): row["steps"] for row in rows}

    def missing(law: Law, sizes: Sequence[int], lr: float, seed: int) -> Generator[Ask, Trial, None]:
        with path.open("a", encoding="utf-8") as file:
            for size in sizes:
                for rate in rates(size):
                    for each in SCAN_SEEDS:
                        if (size, rate, each) not in known:
                            steps = (yield Ask(size, rate, each, law.max_steps, tuning=True)).steps
                            known[size, rate, each] = steps
                            file.write(json.dumps({"b": size, "lr": rate, "seed": each, "steps": steps}) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        for _ in task(CONFIG, Path(folder), asks=missing):
            pass
    return {size: {rate: [known[size, rate, each] for each in SCAN_SEEDS] for rate in rates(size)} for size in GRIDS}


def rates(size: int) -> list[float]:
    """The grid of learning rates of a batch size."""
    middle, low, high = GRIDS[size]
    return [round(middle * FACTOR**place, 6) for place in range(low, high + 1)]


def best_steps(by_rate: dict[float, list[float | None]]) -> tuple[float, float]:
    """Steps at the best learning rate, and that rate, from the mean of ln S at each rate."""
    means = {math.log(lr): np.mean(np.log(steps)) for lr, steps in by_rate.items() if all(steps)}
    x, y = (np.array(column) for column in zip(*((x, y) for x, y in means.items()), strict=True))
    near = y < y.min() + WINDOW
    middle = x[np.argmin(y)]
    line = np.polyfit(x[near] - middle, y[near], 4)
    grid = np.linspace(x[near].min(), x[near].max(), 2_000) - middle
    at = int(np.argmin(np.polyval(line, grid)))
    return math.exp(np.polyval(line, grid[at])), math.exp(grid[at] + middle)


def truth(by_size: dict[int, dict[float, list[float | None]]]) -> dict[str, Any]:
    """The law of the scan."""
    best = {size: best_steps(by_rate) for size, by_rate in by_size.items()}
    sizes, log_steps = np.array([*best], dtype=np.float64), np.log([steps for steps, _ in best.values()])
    found = least_squares(lambda p: log_steps - np.logaddexp(p[0], p[1] - np.log(sizes)), [3.0, 7.0])
    s_min, e_min = np.exp(found.x)
    return {
        "s_min": s_min, "e_min": e_min, "b_crit": e_min / s_min, "rms_log_residual": math.sqrt(2 * found.cost / len(sizes)),
        "seeds": len(SCAN_SEEDS), "best": {size: {"steps": steps, "lr": lr} for size, (steps, lr) in best.items()},
    }  # fmt: skip


def standard_errors(by_size: dict[int, dict[float, list[float | None]]], resamples: int = 200) -> dict[str, float]:
    """Of the true law: its spread when the seeds of the scan are drawn again."""
    rng, laws = np.random.default_rng(0), []
    for _ in range(resamples):
        drawn = rng.integers(len(SCAN_SEEDS), size=len(SCAN_SEEDS))
        again = {s: {lr: [steps[i] for i in drawn] for lr, steps in by.items()} for s, by in by_size.items()}
        laws.append(truth(again))
    return {name: float(np.std([law[name] for law in laws])) for name in ("b_crit", "s_min", "e_min")}


def study(seed: int, path: Path) -> dict[str, Any]:
    """One run of the study: its law, its interval, and what it cost. Its trials are in `path`, or are made."""
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            begun = time.process_time()
            events = task(with_overrides(CONFIG, [f"seed={seed}"]), Path(folder))
            made = [event.model_dump() for event in events if isinstance(event, Trial)]
        path.write_text(json.dumps({"cpu_s": time.process_time() - begun, "trials": made}), encoding="utf-8")
    kept = json.loads(path.read_text(encoding="utf-8"))
    trials, cpu_s = [Trial.model_validate(row) for row in kept["trials"]], kept["cpu_s"]
    found = batch_law.outcome(trials)
    assert found.law and found.b_crit
    return {
        "seed": seed, "b_crit": found.law.b_crit, "low": found.b_crit.low, "high": found.b_crit.high,
        "s_min": found.law.s_min, "e_min": found.law.e_min, "rms_log_residual": found.law.rms_log_residual,
        "trials": len(trials), "steps": sum(t.steps_made or 0 for t in trials),
        "samples": sum(t.samples_made or 0 for t in trials), "cpu_s": cpu_s,
    }  # fmt: skip


def main() -> None:
    """Print and save the truth, the repeats and the coverage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--folder", type=Path, required=True, help="keeps all trials")
    a = parser.parse_args()
    before = measure.load()
    a.folder.mkdir(exist_ok=True)
    scanned = scan(a.folder / "scan.jsonl")
    true = truth(scanned) | {"standard_errors": standard_errors(scanned)}
    b_crit = true["b_crit"]
    print(
        f"truth: B_crit {b_crit:.1f}, S_min {true['s_min']:.1f}, E_min {true['e_min']:.0f}, rms {true['rms_log_residual']:.3f}"
    )
    repeats = []
    for i in range(a.repeats):
        seed = FIRST_SEED + 100 * i
        repeats.append(made := study(seed, a.folder / f"{seed}.json"))
        made["holds"] = bool(made["low"] <= b_crit <= made["high"])
        found = (
            "{seed}: B_crit {b_crit:.1f} [{low:.1f}, {high:.1f}] {holds}, rms {rms_log_residual:.3f}, {trials} trials"
        )
        print(found.format(**made), flush=True)
    logs = np.log([made["b_crit"] / b_crit for made in repeats])
    summary = {
        "holds": sum(made["holds"] for made in repeats), "repeats": len(repeats), "mean_log_error": logs.mean(),
        "sd_log_error": logs.std(ddof=1), "largest_rms": max(made["rms_log_residual"] for made in repeats),
        **{name: measure.Spread.of([made[name] for made in repeats]) for name in SPREADS},
    }  # fmt: skip
    print(
        f"{summary['holds']} of {len(repeats)} intervals hold {b_crit:.1f}; rms {summary['rms_log_residual'].text(3)}"
    )
    print(f"ln B_crit is off by {logs.mean():+.3f} +- {logs.std(ddof=1):.3f} (mean and standard deviation)")
    measure.save("batch_law_coverage", {"truth": true, "summary": summary, "repeats": repeats}, load_before=before)


if __name__ == "__main__":
    main()
