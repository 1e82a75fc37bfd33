"""Training on a user's own file: what is standardised, and what the run records about the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config.data import Source
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.data import loading
from engine.events.lifecycle import Started
from engine.events.training import Evaluation
from engine.pytorch.data import tensors
from engine.pytorch.tasks.train import train

CASES = Path(__file__).parents[1] / "data" / "cases"
TINY = ["model.hidden=16", "batch_size=16", "optimizer.lr=0.01"]


def trained(tmp_path: Path, file: str, *more: str) -> list:
    config = with_overrides(RunConfig(), [*TINY, f"source.path={CASES / file}", *more])
    return list(train(config, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "file", "epochs"), [("csv", "big_offset.csv", 30), ("numpy", "nhwc2.npz", 5), ("csv", "few_shot.csv", 1)]
)
def test_a_model_learns_what_the_file_holds(tmp_path, data, file, epochs):
    events = trained(tmp_path, file, f"data={data}", f"budget.epochs={epochs}")
    (started,) = [event for event in events if isinstance(event, Started)]
    last = [event for event in events if isinstance(event, Evaluation)][-1]
    assert started.largest_class_accuracy is not None
    if file == "big_offset.csv":  # the time alone decides the class
        assert last.test_accuracy == 1 and started.largest_class_accuracy == pytest.approx(1 / 3)


@pytest.mark.slow
def test_a_run_records_how_its_data_was_read(tmp_path):
    (started,) = [
        e for e in trained(tmp_path, "missing_label_NA.csv", "data=csv", "budget.epochs=1") if isinstance(e, Started)
    ]
    assert started.data_notes == ("3 rows have no label and are left out (rows 19, 39, 59).",)
    assert started.data_version == started.data_sha256
    (started,) = [
        e for e in trained(tmp_path, "imbalance.csv", "data=csv", "budget.epochs=1") if isinstance(e, Started)
    ]
    assert "is not tested" in started.data_warnings[0] and started.largest_class_accuracy == 1


def test_inputs_are_standardised_before_they_lose_digits():
    arrays = loading.load("csv", Source(path=str(CASES / "big_offset.csv")))
    training, _ = tensors(arrays, RunConfig().model)
    assert training.x.dtype == torch.float32
    expected = (arrays.train_x - arrays.mean) / arrays.std
    assert np.allclose(training.x.numpy(), expected, atol=1e-6) and abs(training.x[:, 0].std() - 1) < 0.1


def test_the_accuracy_of_the_largest_class_of_known_data():
    assert loading.load("mnist5k", Source()).largest_class_accuracy == pytest.approx(0.1)
    text = loading.load("text", Source())
    spaces = np.array(text.classes)[text.test_x[1:]] == " "
    assert text.largest_class_accuracy == pytest.approx(spaces.mean())
