"""Every runtime gives the answers of the same weights, or the reason why it is not offered."""

from __future__ import annotations

import shutil

import pytest
from torch import nn

from engine.config.inference import infer_config, infer_matrix
from engine.config.models import MODELS
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.events.inference import NotRun, Quality
from engine.pytorch import models
from engine.pytorch.tasks.infer import infer
from tests.pytorch.test_infer import DIGITS, measured, of_kind

pytestmark = pytest.mark.slow  # it trains


@pytest.mark.parametrize("family", MODELS)
def test_every_family_answers_in_every_form_that_needs_no_further_package(family, tmp_path):
    data = "digits" if family != "cnn" else "mnist5k"
    base = with_overrides(DIGITS, [f"model.family={family}", "model.size=tiny", f"data={data}"])
    config = infer_matrix(
        infer_config(base, requests=3, rounds=1), (2,), runtimes=("eager", "channels_last", "exported", "int8")
    )
    events, cells = measured(config, tmp_path)
    reasons = {e.cell: e.reason for e in of_kind(events, NotRun)}
    assert set(cells) | set(reasons) == set(config.cells)
    for quality in of_kind(events, Quality):  # all of them give the answers of the same weights
        assert quality.max_logit_difference <= (0.3 if quality.runtime == "int8" else 1e-4), quality
        assert quality.size_bytes > 1_000
    for cell, reason in reasons.items():
        assert "layout for convolutions of images" in reason, (cell, reason)


@pytest.mark.parametrize("preset", ["mnist-mlp", "lenet"])
def test_onnx_runtime_gives_the_same_answers_and_its_int8_is_smaller(preset, tmp_path):
    for package in ("onnxruntime", "onnx", "onnxscript"):
        pytest.importorskip(package, reason="requirements-onnx.txt is optional")
    config = infer_matrix(
        infer_config(preset_config(preset), requests=3, rounds=1), (1, 5), runtimes=("onnxruntime", "onnxruntime-int8")
    )
    events, cells = measured(config, tmp_path)
    quality = {q.runtime: q for q in of_kind(events, Quality)}
    assert set(cells) == set(config.cells) and list(tmp_path.iterdir()) == []
    assert quality["onnxruntime"].max_logit_difference < 1e-4
    assert quality["onnxruntime-int8"].size_bytes < quality["onnxruntime"].size_bytes / 2.5
    assert 1e-4 < quality["onnxruntime-int8"].max_logit_difference < 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.xdist_group("compile")
def test_compiled_code_answers_the_same_though_its_batch_does_not_divide_the_split(tmp_path):
    config = infer_matrix(infer_config(DIGITS, requests=3, rounds=1), (100,), runtimes=("inference_mode", "compiled"))
    events, cells = measured(config, tmp_path)
    quality = {q.runtime: q for q in of_kind(events, Quality)}
    assert quality["compiled"].max_logit_difference < 1e-5
    assert quality["compiled"].examples == quality["inference_mode"].examples
    first = {cell.runtime: latency.first_request_s for cell, latency in cells.items()}
    assert first["compiled"] > first["inference_mode"]  # compiling is in the first answer, not in those that count


def test_bf16_halves_the_weights(tmp_path):
    config = infer_matrix(infer_config(DIGITS, requests=2, rounds=1), (1,), precisions=("fp32", "bf16"))
    size = {q.precision: q.size_bytes for q in of_kind(list(infer(config, tmp_path)), Quality)}
    assert 0.4 < size["bf16"] / size["fp32"] < 0.6


def test_a_precision_the_device_lacks_is_a_cell_that_did_not_run(tmp_path):
    config = infer_matrix(infer_config(DIGITS, requests=2), (1,), precisions=("fp32", "tf32"))
    events, cells = measured(config, tmp_path)
    (missing,) = of_kind(events, NotRun)
    assert missing.cell.precision == "tf32" and "tensor cores" in missing.reason and len(cells) == 1


def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = infer_matrix(infer_config(DIGITS, requests=2), (1,), runtimes=("inference_mode", "onnxruntime"))
    (missing,) = of_kind(list(infer(config, tmp_path)), NotRun)
    assert missing.reason == "onnxruntime is not installed. Install it: pip install -r requirements-onnx.txt."


def test_a_request_that_does_not_fit_in_memory_leaves_the_other_cells(tmp_path, monkeypatch):
    real = models.build

    class Small(nn.Sequential):
        def forward(self, x):
            if len(x) == 8:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 900 bytes.")
            return super().forward(x)

    monkeypatch.setattr(models, "build", lambda *a, **k: Small(*real(*a, **k)))
    config = infer_matrix(infer_config(DIGITS, requests=2), (2, 8))
    events, cells = measured(config, tmp_path)
    (missing,) = of_kind(events, NotRun)
    assert missing.cell.batch_size == 8 and "ran out of memory" in missing.reason and len(cells) == 1
