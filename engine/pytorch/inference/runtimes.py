"""The inference runtimes: eager PyTorch, compiled, exported, ONNX Runtime, and int8, all with the same weights.

A `Form` is a weights file prepared for one runtime. `start` makes the function that answers requests, as a new process
would. A form that cannot be made here raises `NotOffered` with the reason, and the other runtimes are still measured.
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
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
ONNX_HINT = "Install it: pip install -r requirements-onnx.txt."


class NotOffered(Exception):
    """This form cannot be made here; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights file, the model and data set that it belongs to, and the device to load it on."""

    path: Path
    model: ModelSpec
    data: Dataset
    device: torch.device

    def load(self) -> nn.Sequential:
        """The model with these weights on its device, in eval mode; no initial weights are drawn.

        Raises:
            FileNotFoundError: There is no such file.
            RuntimeError: The tensors in the file are not those of the model.
        """
        model = models.build(self.model, self.data, seed=0, device="meta")
        wanted = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        tensors = load_file(self.path, device=str(self.device))
        # The user's own weights can be in fp16 or bf16; each form casts to the precision of its combination itself.
        cast = {n: t.to(wanted.get(n, t.dtype)) if t.is_floating_point() else t for n, t in tensors.items()}
        model.load_state_dict(cast, assign=True)
        return model.eval()


@dataclass(slots=True)
class Answering:
    """A started form.

    `call` answers a request made by `Form.inputs`, and is what the clock times. `predict` maps examples (batch, ...) to
    logits (batch, ..., classes) in float32, for the test accuracy.
    """

    call: Callable[[Any], Any]
    predict: Callable[[Tensor], Tensor]


class Form:
    """The weights in one precision for one runtime; this one is plain PyTorch without autograd, and the base class."""

    records_gradients = False  # whether autograd is on while it answers
    is_per_cell = False  # whether every batch size and thread count must start its own
    cold_method = "reading the weights, building the model, one request"
    takes_any_batch = True  # or only the batch size of its combination

    def __init__(self, weights: Weights, cell: Cell, config: RunConfig, folder: Path) -> None:
        self.weights, self.config, self.folder = weights, config, folder
        self.precision, self.runtime = cell.precision, cell.runtime
        self.dtype = DTYPES[cell.precision]

    def prepare(self) -> None:
        """Do what is done once before deployment, such as exporting; a subclass raises NotOffered if it cannot."""

    def start(self, threads: int) -> Answering:
        """Read the form from disk and prepare it to answer with `threads` threads; this is the cold start."""
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
    """Plain PyTorch with autograd on, as in training."""

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
    cold_method = "reading the weights, building the model, compiling (or a hit in torch's cache), one request"

    def prepare(self) -> None:
        """Raise torch.compile's recompile limits, because each batch size and thread count compiles the code again."""
        kernels.raise_recompile_limits()

    def start(self, threads: int) -> Answering:
        """Load the weights and wrap the model in torch.compile; the first request compiles it."""
        return self._answering(torch.compile(self._converted(self.weights.load()), dynamic=False))

    def size(self) -> tuple[int | None, str]:
        """Bytes of the weights file, without the compiled code."""
        size, how = super().size()
        return size, f"{how}; the compiled code in torch's cache is not counted"


class Exported(Form):
    """torch.export: the graph of the model without its Python code, for any batch size."""

    cold_method = "making the exported program runnable, one request; without exporting it or reading it from disk"

    def prepare(self) -> None:
        """Export the model.

        Raises:
            NotOffered: torch.export cannot trace the model.
        """
        model = self._converted(self.weights.load())
        try:
            with _quiet():
                self._program = exported(model, self.inputs(_two_examples(self.weights)))
        except Exception as error:  # noqa: BLE001 - torch.export has many kinds of errors; other runtimes still run
            raise NotOffered(f"torch.export cannot export this model: {_first_line(error)}") from None

    def start(self, threads: int) -> Answering:
        """Make the exported program runnable."""
        with _quiet():
            return self._answering(self._program.module())

    def size(self) -> tuple[int | None, str]:
        """Bytes of the saved program."""
        buffer = io.BytesIO()
        with _quiet():
            torch.export.save(self._program, buffer)
        return len(buffer.getvalue()), "measured: its .pt2 archive, weights and graph"


class Onnx(Form):
    """ONNX Runtime on the CPU, from an exported graph."""

    cold_method = "ONNX Runtime reading and optimising the .onnx file, one request; without exporting it"
    _ending = "onnx"

    @property
    def path(self) -> Path:
        """The .onnx file in the run's folder."""
        return self.folder / f".{self.runtime}.{self._ending}"

    def prepare(self) -> None:
        """Write the .onnx file.

        Raises:
            NotOffered: A package is missing, or ONNX cannot represent the model.
        """
        for package in ("onnxruntime", "onnx", "onnxscript"):
            if importlib.util.find_spec(package) is None:
                raise NotOffered(f"{package} is not installed. {ONNX_HINT}")
        try:
            with _quiet():
                self._export()
        except Exception as error:  # noqa: BLE001 - the exporters have many kinds of errors; other runtimes still run
            raise NotOffered(f"ONNX cannot represent this model: {_first_line(error)}") from None

    def _export(self) -> None:
        batch = torch.export.Dim("batch", min=1, max=MOST_IN_A_REQUEST)
        torch.onnx.export(
            self.weights.load(),
            (_two_examples(self.weights),),
            self.path,
            dynamo=True,
            dynamic_shapes=({0: batch},),
            external_data=False,
            input_names=["x"],
            output_names=["y"],
            verbose=False,
        )

    def start(self, threads: int) -> Answering:
        """Open an ONNX Runtime session of the .onnx file with `threads` threads."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Waiting threads sleep, as in the other runtimes. Spinning ones would take the core from those with work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        call = functools.partial(session.run, ["y"])
        return Answering(call, lambda x: torch.from_numpy(call(self.inputs(x))[0]))

    def inputs(self, x: Tensor) -> dict[str, Any]:
        """The session's feed: examples (batch, *input_shape) as a NumPy array named x."""
        return {"x": x.contiguous().numpy()}

    def size(self) -> tuple[int | None, str]:
        """Bytes of the .onnx file."""
        return self.path.stat().st_size, "measured: its .onnx file, weights and graph"

    def close(self) -> None:
        """Delete the .onnx file."""
        self.path.unlink(missing_ok=True)


class OnnxInt8(Onnx):
    """ONNX Runtime's dynamic quantisation of matrix products; convolutions stay fp32, which was faster."""

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
    """PyTorch's dynamic quantisation of linear and recurrent layers: int8 weights; calls quantise activations."""

    cold_method = "reading the fp32 weights, building the model, quantising it, one request"

    def prepare(self) -> None:
        """Check that this PyTorch can quantise.

        Raises:
            NotOffered: This PyTorch has no dynamic quantisation or no int8 kernels.
        """
        if kernels.quantize_dynamic() is None:
            raise NotOffered(f"PyTorch {torch.__version__} has no dynamic quantisation any more.")
        if torch.backends.quantized.engine in {"none", ""}:
            raise NotOffered("This PyTorch was built without int8 kernels.")

    def start(self, threads: int) -> Answering:
        """Load the weights and quantise them."""
        model, quantize = self.weights.load(), kernels.quantize_dynamic()
        assert quantize is not None, "prepare has checked this"
        with _quiet():
            quantized = quantize(model, _QUANTISED, dtype=torch.qint8, inplace=True)
        return self._answering(quantized)

    def size(self) -> tuple[int | None, str]:
        """Bytes of the weights: int8 with scale and zero point (8 bytes) per quantised matrix, float32 elsewhere."""
        is_int8: dict[str, bool] = {}
        model = self.weights.load()
        for name, module in model.named_modules():
            if type(module) in _QUANTISED:
                is_int8 |= {f"{name}.{key}": value.ndim > 1 for key, value in module.named_parameters()}
        size = sum(t.numel() + 8 if is_int8.get(name) else 4 * t.numel() for name, t in model.state_dict().items())
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

    `x` is an example batch (2, *input_shape), because torch.export would take a size of 1 for a constant. Errors of
    torch.export, which has many kinds, pass through.
    """
    batch = torch.export.Dim("batch", min=1, max=MOST_IN_A_REQUEST)
    with torch.no_grad():
        return torch.export.export(model, (x,), dynamic_shapes=({0: batch},))


def _two_examples(weights: Weights) -> Tensor:
    return torch.zeros(2, *input_shape(weights.model, weights.data), device=weights.device)


@contextlib.contextmanager
def _quiet() -> Any:
    """Context manager: hide deprecation warnings of what is used knowingly, and the exporter's note on torchvision."""
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
