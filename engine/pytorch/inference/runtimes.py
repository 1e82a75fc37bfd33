"""The inference runtimes: the same weights in eager PyTorch, compiled, exported, through ONNX Runtime, in int8.

A `Form` is the weights made ready for one runtime, from a file on disk. `start` makes the function that answers requests
from it, as a process that has just begun would. A form that cannot be made here raises `NotOffered` with the reason, and
the other runtimes are still measured.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from engine.config.base import PrecisionName
from engine.config.models import ModelSpec
from engine.config.run import RunConfig
from engine.config.tasks import MOST_IN_A_REQUEST, Cell, RuntimeName
from engine.data.datasets import Dataset
from engine.models import input_shape
from engine.pytorch import models
from engine.pytorch.inference.decoder import Decoder
from engine.pytorch.training import kernels

DTYPES: dict[PrecisionName, torch.dtype] = {
    "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip
ONNX_HINT = "Install it: pip install -r requirements-onnx.txt."


class NotOffered(Exception):
    """This form cannot be made here; the message says why."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights file, the model and data set that it belongs to, and the device to load it on."""

    path: Path
    model: ModelSpec
    data: Dataset
    device: torch.device

    def load(self) -> nn.Sequential:
        """The model with these weights on its device, in eval mode; no initial weights are drawn.

        Raises what safetensors and load_state_dict raise where the file is missing or does not fit the model.
        """
        model = models.build(self.model, self.data, seed=0, device="meta")
        model.load_state_dict(load_file(self.path, device=str(self.device)), assign=True)
        return model.eval()


@dataclass(slots=True)
class Answering:
    """A started form. `call` answers a request made by `Form.inputs`, and is what the clock times; `predict` maps examples
    (batch, ...) to logits (batch, ..., classes) in float32, for the accuracy."""

    call: Callable[[Any], Any]
    predict: Callable[[Tensor], Tensor]


class Form:
    """The weights in one precision, for one runtime: plain PyTorch, and the base of the others."""

    records_gradients = False  # whether autograd is on while it answers
    is_per_cell = False  # whether every batch size and thread count needs its own
    cold_method = "reading the weights, building the net, one request"
    takes_any_batch = True

    def __init__(self, weights: Weights, cell: Cell, config: RunConfig, folder: Path) -> None:
        self.weights, self.config, self.folder = weights, config, folder
        self.precision, self.runtime = cell.precision, cell.runtime
        self.dtype = DTYPES[cell.precision]

    def prepare(self) -> None:
        """Do what is done once before deployment: export, quantise. Raises NotOffered where that is not possible here."""

    def start(self, threads: int) -> Answering:
        """Read the form from disk and make it ready to answer with `threads` threads; its time is the cold start."""
        return self._answering(self._converted(self.weights.load()))

    def size(self) -> tuple[int | None, str]:
        """Bytes of this form on disk (None where unknown), and how the figure was measured or derived."""
        tensors = {name: t.contiguous() for name, t in self._converted(self.weights.load()).state_dict().items()}
        return len(save(tensors)), f"measured: its .safetensors file in {self.precision}"

    def inputs(self, x: Tensor) -> Any:
        """Convert examples (batch, *input_shape), or characters (batch, prompt_len) int64, to what `call` takes."""
        return x if x.dtype in {torch.int64, torch.int32} else x.to(self.dtype)

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """The context of the timed loop: torch.inference_mode(), unless the form keeps autograd on."""
        return contextlib.nullcontext() if self.records_gradients else torch.inference_mode()

    def close(self) -> None:
        """Delete the files that `prepare` wrote."""

    def _converted(self, model: nn.Sequential) -> nn.Sequential:
        return model if self.dtype == torch.float32 else model.to(self.dtype)

    def _answering(self, model: Callable[[Tensor], Tensor], module: nn.Sequential | None = None) -> Answering:
        def predict(x: Tensor) -> Tensor:
            return model(self.inputs(x)).float()

        if self.weights.data.kind != "text":
            return Answering(model, predict)
        infer, net = self.config.infer, module if module is not None else model
        assert isinstance(net, nn.Sequential)
        decoder = Decoder(net, prompt_len=infer.prompt_len, new_tokens=infer.new_tokens, cache=infer.cache)
        if self.weights.device.type == "cuda":
            decoder.wait = functools.partial(torch.cuda.synchronize, self.weights.device)
        return Answering(decoder, predict)


class Eager(Form):
    """Plain PyTorch with autograd on, as in the middle of training."""

    records_gradients = True


class ChannelsLast(Form):
    """Images and weights in channels_last memory format, which oneDNN's and cuDNN's convolutions prefer."""

    def _converted(self, model: nn.Sequential) -> nn.Sequential:
        return super()._converted(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def inputs(self, x: Tensor) -> Tensor:
        """Images (batch, channels, height, width) in this form's precision and memory format."""
        laid_out: Tensor = super().inputs(x).contiguous(memory_format=torch.channels_last)
        return laid_out


class Compiled(Form):
    """torch.compile with fixed shapes: each batch size and thread count has its own code."""

    is_per_cell = True
    takes_any_batch = False
    cold_method = "reading the weights, building the net, compiling (or finding it in torch's cache), one request"

    def prepare(self) -> None:
        """Raise torch.compile's recompile limits: each batch size and thread count compiles the same code once more."""
        kernels.raise_recompile_limits()

    def start(self, threads: int) -> Answering:
        return self._answering(torch.compile(self._converted(self.weights.load()), dynamic=False))

    def size(self) -> tuple[int | None, str]:
        size, how = super().size()
        return size, f"{how}; the compiled code, which lies in torch's cache, is not counted"


class Exported(Form):
    """torch.export: the graph of the model without its Python code, for any batch size."""

    cold_method = (
        "making the exported program runnable, one request; exporting is apart, reading it from disk is not in it"
    )

    def prepare(self) -> None:
        """Export the model; raises NotOffered where torch.export cannot trace it."""
        model = self._converted(self.weights.load())
        try:
            with _quiet():
                self._program = exported(model, self.inputs(_two_examples(self.weights)))
        except Exception as error:  # whatever it cannot trace, the ladder goes on
            raise NotOffered(f"torch.export cannot take this model: {_first_line(error)}") from None

    def start(self, threads: int) -> Answering:
        with _quiet():
            return self._answering(self._program.module())

    def size(self) -> tuple[int | None, str]:
        buffer = io.BytesIO()
        with _quiet():
            torch.export.save(self._program, buffer)
        return len(buffer.getvalue()), "measured: its .pt2 archive, weights and graph"


class Onnx(Form):
    """ONNX Runtime on the CPU, from an exported graph."""

    cold_method = "ONNX Runtime reading and optimising the .onnx file, one request; exporting is apart"
    _ending = "onnx"

    @property
    def path(self) -> Path:
        """The .onnx file in the run's folder."""
        return self.folder / f".{self.runtime}.{self._ending}"

    def prepare(self) -> None:
        """Write the .onnx file; raises NotOffered where a package is missing or ONNX cannot represent the model."""
        for package in ("onnxruntime", "onnx", "onnxscript"):
            if importlib.util.find_spec(package) is None:
                raise NotOffered(f"{package} is not installed. {ONNX_HINT}")
        try:
            with _quiet():
                self._export()
        except Exception as error:
            raise NotOffered(f"ONNX cannot take this model: {_first_line(error)}") from None

    def _export(self) -> None:
        batch = torch.export.Dim("batch", min=1, max=MOST_IN_A_REQUEST)
        torch.onnx.export(
            self.weights.load(), (_two_examples(self.weights),), self.path, dynamo=True, dynamic_shapes=({0: batch},),
            external_data=False, input_names=["x"], output_names=["y"], verbose=False,
        )  # fmt: skip

    def start(self, threads: int) -> Answering:
        """An ONNX Runtime session of the .onnx file with `threads` threads."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Waiting threads sleep, as everywhere here: spinning ones would take the core from threads that have work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        call = functools.partial(session.run, ["y"])
        return Answering(call, lambda x: torch.from_numpy(call(self.inputs(x))[0]))

    def inputs(self, x: Tensor) -> dict[str, Any]:
        """The session's feed: examples (batch, *input_shape) as a NumPy array named x."""
        return {"x": x.contiguous().numpy()}

    def size(self) -> tuple[int | None, str]:
        return self.path.stat().st_size, "measured: its .onnx file, weights and graph"

    def close(self) -> None:
        self.path.unlink(missing_ok=True)


class OnnxInt8(Onnx):
    """ONNX Runtime's dynamic quantisation of matrix products; convolutions stay, as their int8 kernels were slower."""

    def _export(self) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process

        super()._export()
        draft = self.path.with_suffix(".draft")
        try:
            quant_pre_process(str(self.path), str(draft))
            quantize_dynamic(
                str(draft), str(self.path), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"]
            )
        finally:
            draft.unlink(missing_ok=True)


_QUANTISED: set[type[nn.Module]] = {nn.Linear, nn.GRU, nn.LSTM}


class Int8(Form):
    """PyTorch's dynamic quantisation: int8 weights of linear and recurrent layers, activations rounded at each call."""

    cold_method = "reading the fp32 weights, building the net, quantising it, one request"

    def prepare(self) -> None:
        """Check only; raises NotOffered where this PyTorch has no dynamic quantisation or no int8 kernels."""
        if kernels.quantize_dynamic() is None:
            raise NotOffered(f"PyTorch {torch.__version__} has no dynamic quantisation any more.")
        if torch.backends.quantized.engine in {"none", ""}:
            raise NotOffered("This PyTorch was built without int8 kernels.")

    def start(self, threads: int) -> Answering:
        model, quantized = self.weights.load(), kernels.quantize_dynamic()
        assert quantized is not None, "prepare has looked"
        with _quiet():
            small = quantized(model, _QUANTISED, dtype=torch.qint8, inplace=True)
        return self._answering(small)

    def size(self) -> tuple[int | None, str]:
        """Bytes of the weights alone: int8 in quantised layers, with a scale and a zero point (8 bytes) per matrix, and
        float32 elsewhere."""
        small: dict[str, bool] = {}
        net = self.weights.load()
        for name, module in net.named_modules():
            if type(module) in _QUANTISED:
                small |= {f"{name}.{key}": value.ndim > 1 for key, value in module.named_parameters()}
        size = sum(t.numel() + 8 if small.get(name) else 4 * t.numel() for name, t in net.state_dict().items())
        return size, "derived: one byte per quantised weight, four for every other number"


FORMS: dict[RuntimeName, type[Form]] = {
    "eager": Eager,
    "inference_mode": Form,
    "channels_last": ChannelsLast,
    "compiled": Compiled,
    "exported": Exported,
    "onnxruntime": Onnx,
    "int8": Int8,
    "onnxruntime-int8": OnnxInt8,
}


def exported(model: nn.Module, x: Tensor) -> Any:
    """The torch.export.ExportedProgram of `model`, for batches of 1 to MOST_IN_A_REQUEST examples.

    `x` is an example batch (2, *input_shape): torch.export takes a size of 1 for a constant. Raises what torch.export
    raises where it cannot trace the model.
    """
    batch = torch.export.Dim("batch", min=1, max=MOST_IN_A_REQUEST)
    with torch.no_grad():
        return torch.export.export(model, (x,), dynamic_shapes=({0: batch},))


def _two_examples(weights: Weights) -> Tensor:
    return torch.zeros(2, *input_shape(weights.model, weights.data), device=weights.device)


@contextlib.contextmanager
def _quiet() -> Any:
    """Deprecations of what is used knowingly are no news to who runs it, nor that the exporter finds no torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{text[:200].rstrip('.')}."
