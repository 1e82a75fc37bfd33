"""Trainings with published results, compared with those of Isoflop: `python -m benchmarks.reference`.

MNIST is downloaded on first use, or taken from `mnist.npz` in the cache folder ($ISOFLOP_DATA). The text of nanoGPT is
not part of Isoflop: give it with `--text tinyshakespeare.txt`, or its row is left out.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import measure
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.events.training import Evaluation
from engine.pytorch.tasks.train import train


@dataclass(frozen=True, slots=True)
class Reference:
    """A training, its published result, and the tolerance."""

    title: str
    preset: str
    changes: tuple[str, ...]
    metric: str
    published: float
    tolerance: float
    source: str


_PAPER = "Greydanus & Kobak 2020, arXiv:2011.14439"
REFERENCES = {
    "mlp": Reference(
        "784-128-10, Adam 1e-3, B=128, 5 epochs, MNIST",
        "mnist-mlp",
        ("data=mnist", "batch_size=128", "budget.epochs=5"),
        "test_accuracy",
        0.975,
        0.004,
        "tutorials",
    ),
    "lenet": Reference(
        "LeNet, momentum 0.02, B=64, 5 epochs, MNIST",
        "lenet",
        ("data=mnist", "budget.epochs=5"),
        "test_accuracy",
        0.989,
        0.005,
        "tutorials",
    ),
    "mnist1d-linear": Reference("MNIST-1D, linear", "mnist1d-linear", (), "test_accuracy", 0.315, 0.03, _PAPER),
    "mnist1d-mlp": Reference("MNIST-1D, MLP", "mnist1d-mlp", (), "test_accuracy", 0.651, 0.04, _PAPER),
    "mnist1d-cnn": Reference("MNIST-1D, CNN", "mnist1d-cnn", (), "test_accuracy", 0.923, 0.03, _PAPER),
    "mnist1d-gru": Reference("MNIST-1D, GRU", "mnist1d-gru", (), "test_accuracy", 0.891, 0.04, _PAPER),
    "decoder": Reference(
        "decoder 4 x 128, context 64, B=12, 2,000 steps, tinyshakespeare",
        "char-decoder",
        (),
        "test_loss",
        1.88,
        0.05,
        "nanoGPT's README, CPU line",
    ),
}


def main() -> None:
    """Train all references, print a table and save the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=REFERENCES, action="append")
    parser.add_argument("--text", type=Path, help="tinyshakespeare.txt")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load_before, rows, figures = measure.load(), [], {}
    for name in arguments.only or REFERENCES:
        reference = REFERENCES[name]
        text = [f"source.path={arguments.text.absolute()}"] if arguments.text and name == "decoder" else []
        if name == "decoder" and not text:
            print(f"{reference.title}: left out, --text is not given")
            continue
        config = with_overrides(PRESETS[reference.preset].config, [*reference.changes, *text])
        with tempfile.TemporaryDirectory() as folder:
            events = list(train(config, Path(folder)))
        last = [event for event in events if isinstance(event, Evaluation)][-1]
        found = getattr(last, reference.metric)
        reached = abs(found - reference.published) <= reference.tolerance
        rows.append(
            [
                reference.title,
                reference.metric,
                f"{found:.4f}",
                f"{reference.published:g}",
                measure.verdict(reached),
                f"{last.train_s:.1f} s",
            ]
        )
        figures[name] = {
            "title": reference.title,
            "metric": reference.metric,
            "found": found,
            "published": reference.published,
            "tolerance": reference.tolerance,
            "reached": reached,
            "source": reference.source,
            "training_seconds": last.train_s,
            "steps": last.step,
            "seed": config.seed,
        }
    measure.table(["training", "metric", "found", "published", "", "training time"], rows)
    if not arguments.only:
        measure.save("reference", {"trainings": figures}, load_before=load_before)


if __name__ == "__main__":
    main()
