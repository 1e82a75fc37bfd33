"""Model families as arithmetic: parameters, FLOPs and bytes in closed form, without building anything.

FLOPs follow `torch.utils.flop_counter`: a multiply-add is 2, matrix products and convolutions only. Training counts
the forward pass, the gradient of every weight, and the gradient of every input that has one: pixels and first states
have none, so "backward is twice forward" would overcount by exactly that. 6ND counts something else again and is never
used: it is 1.5 times too much for a small MLP and a sixth of the truth for LeNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil, isqrt, prod

from engine.config import CNN, MLP, RNN, ModelSpec, Optimizer, OptimizerName, Transformer
from engine.datasets import Dataset
from engine.errors import ConfigError

FLOAT_BYTES = 4
CNN_SIDE = 32  # LeNet's input; smaller images are enlarged and padded to it (pytorch/data.py)
KERNEL = 5
POOL = 2
SIGNAL_CHANNELS = 25
SIGNAL_KERNELS = (5, 3, 3)  # all with stride 2 and padding 1
FEED_FORWARD = 4  # width of a Transformer's feed-forward net, in model widths
GATES = {"tanh": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product, per example: `rows` vectors of `fan_in` by a matrix (fan_in, fan_out)."""

    kind: str  # linear, conv, recurrent or attention
    fan_in: int
    fan_out: int
    rows: int = 1  # positions of a sequence or pixels of a convolution's output
    input_gradient_rows: int | None = None  # rows whose vector has a gradient; None: all of them
    bias: int = 1  # bias vectors of fan_out: recurrent cells have one in each of their two products
    weights: bool = True  # False: both factors are activations, as in attention

    @property
    def parameters(self) -> int:
        return (self.fan_in + self.bias) * self.fan_out if self.weights else 0

    @property
    def forward_flops(self) -> int:
        return 2 * self.rows * self.fan_in * self.fan_out

    @property
    def train_flops(self) -> int:
        """Forward, the gradient of the matrix, and of the vectors that have one."""
        rows = self.rows if self.input_gradient_rows is None else self.input_gradient_rows
        return 2 * self.forward_flops + 2 * rows * self.fan_in * self.fan_out


# --- what each family reads ---------------------------------------------------------------------------------------


def input_shape(model: ModelSpec, data: Dataset) -> tuple[int, ...]:
    """Shape of one example as the model reads it.

    MLP (values,); CNN (channels, height, width) or (1, length); RNN (steps, features): an image's rows, a signal's
    values; Transformer (patches, values of a patch); of text (seq_len,) characters.

    Raises ConfigError when a signal is too short for the convolutions.
    """
    if data.kind == "text":
        return data.shape
    match model:
        case MLP():
            return (prod(data.shape),)
        case CNN():
            return _lenet_input(data.shape) if data.kind == "image" else (1, *data.shape)
        case RNN():
            return (data.shape[1], data.shape[0] * data.shape[2]) if data.kind == "image" else (*data.shape, 1)
        case Transformer():
            side = patch_size(model, data)
            if data.kind == "vector":
                return ceil(data.shape[0] / side), side
            channels, height, width = data.shape
            return ceil(height / side) * ceil(width / side), channels * side**2


def _lenet_input(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    scale = enlargement(height, width)
    return channels, max(CNN_SIDE, scale * height), max(CNN_SIDE, scale * width)


def enlargement(height: int, width: int) -> int:
    """Whole number by which an image smaller than LeNet's input is enlarged before it is padded."""
    return max(1, min(CNN_SIDE // height, CNN_SIDE // width))


def patch_size(model: Transformer, data: Dataset) -> int:
    """Side of an image's patch in pixels, or length of a signal's."""
    if isinstance(model.patch_size, int):
        return model.patch_size
    return max(1, round(min(data.shape[1:]) / 8)) if data.kind == "image" else ceil(data.shape[0] / 64)


def cnn_channels(model: CNN, data: Dataset) -> tuple[int, ...]:
    """Of images LeNet's 6-16-120-84, of signals 25-25-25, each times the width and at least 1."""
    base = (6, 16, 120, 84) if data.kind == "image" else (SIGNAL_CHANNELS,) * len(SIGNAL_KERNELS)
    return tuple(max(1, round(n * model.width)) for n in base)


def feature_size(model: CNN | RNN, data: Dataset) -> int:
    """Values that the first fully connected layer behind the convolutions or the recurrence reads."""
    if isinstance(model, CNN):
        channels, sizes = cnn_channels(model, data), _map_sizes(model, data)
        return channels[1] * prod(s // POOL for s in sizes[-1]) if data.kind == "image" else channels[-1] * sizes[-1][0]
    state = model.hidden_size * (2 if model.bidirectional else 1)
    return state * input_shape(model, data)[0] if data.kind != "text" and model.readout == "all" else state


def _map_sizes(model: CNN, data: Dataset) -> list[tuple[int, ...]]:
    """(height, width) or (length,) of each convolution's output, before pooling."""
    size, sizes = input_shape(model, data)[1:], []
    if data.kind == "image":
        for _ in range(2):
            size = tuple(s - KERNEL + 1 for s in size)
            sizes.append(size)
            size = tuple(s // POOL for s in size)
        return sizes
    for kernel in SIGNAL_KERNELS:
        size = ((size[0] + 2 - kernel) // 2 + 1,)
        if size[0] < 1:
            raise ConfigError(
                f"model.family='cnn' does not go with examples of {data.shape[0]} values: its first convolution spans "
                f"{SIGNAL_KERNELS[0]}.",
                fix="Choose model.family=mlp.",
            )
        sizes.append(size)
    return sizes


# --- matrix products ----------------------------------------------------------------------------------------------


def products(model: ModelSpec, data: Dataset) -> list[Product]:
    """Every matrix product of a forward pass over one example, in order."""
    match model:
        case MLP():
            dims = [*input_shape(model, data), *model.hidden, data.num_classes]
            return [
                Product("linear", i, o, input_gradient_rows=None if n else 0) for n, (i, o) in enumerate(pairwise(dims))
            ]
        case CNN():
            return _cnn_products(model, data)
        case RNN():
            return _rnn_products(model, data)
        case Transformer():
            return _transformer_products(model, data)


def _cnn_products(model: CNN, data: Dataset) -> list[Product]:
    channels, sizes = cnn_channels(model, data), _map_sizes(model, data)
    kernels = (KERNEL**2,) * 2 if data.kind == "image" else SIGNAL_KERNELS
    ins = [input_shape(model, data)[0], *channels]
    convolutions = [
        Product("conv", k * i, o, rows=prod(size), input_gradient_rows=None if n else 0)
        for n, (k, i, o, size) in enumerate(zip(kernels, ins, channels, sizes, strict=False))
    ]
    dims = [feature_size(model, data), *channels[len(kernels) :], data.num_classes]
    return convolutions + [Product("linear", i, o) for i, o in pairwise(dims)]


def _rnn_products(model: RNN, data: Dataset) -> list[Product]:
    steps, hidden, directions = input_shape(model, data)[0], model.hidden_size, 2 if model.bidirectional else 1
    gates, text = GATES[model.cell] * hidden, data.kind == "text"
    first = hidden if text else input_shape(model, data)[1]
    found = []
    for layer in range(model.num_layers):
        fan_in = first if layer == 0 else directions * hidden
        has_gradient = None if layer or text else 0  # of the first layer's input: an embedding has one, pixels do not
        # The first state is zero and nobody's output: no gradient.
        found += directions * [
            Product("recurrent", fan_in, gates, rows=steps, input_gradient_rows=has_gradient),
            Product("recurrent", hidden, gates, rows=steps, input_gradient_rows=steps - 1),
        ]
    return [*found, Product("linear", feature_size(model, data), data.num_classes, rows=steps if text else 1)]


def _transformer_products(model: Transformer, data: Dataset) -> list[Product]:
    positions, *patch = input_shape(model, data)
    d, text = model.d_model, data.kind == "text"
    block = [
        Product("linear", d, 3 * d, rows=positions, bias=0),
        # Each head's queries by its keys, then its weights by its values; a causal mask hides half of the result, but
        # it is computed, and counted by the flop counter.
        Product("attention", d, positions, rows=positions, weights=False),
        Product("attention", positions, d, rows=positions, weights=False),
        Product("linear", d, d, rows=positions, bias=0),
        Product("linear", d, FEED_FORWARD * d, rows=positions, bias=0),
        Product("linear", FEED_FORWARD * d, d, rows=positions, bias=0),
    ]
    first = [] if text else [Product("linear", patch[0], d, rows=positions, input_gradient_rows=0)]
    head = Product("linear", d, data.num_classes, rows=positions if text else 1, bias=0 if text else 1)
    return [*first, *model.num_layers * block, head]


# --- parameters and FLOPs -----------------------------------------------------------------------------------------


def parameters(model: ModelSpec, data: Dataset) -> int:
    """Trained numbers: weights and biases, and what no matrix product uses (embeddings, positions, norms)."""
    return sum(product.parameters for product in products(model, data)) + _unmultiplied_parameters(model, data)


def _unmultiplied_parameters(model: ModelSpec, data: Dataset) -> int:
    text = data.kind == "text"
    if isinstance(model, RNN):
        return data.num_classes * model.hidden_size if text else 0
    if isinstance(model, Transformer):
        norms, positions = 2 * model.num_layers + 1, input_shape(model, data)[0]
        return model.d_model * (norms + positions + (data.num_classes if text else 0))
    return 0


def matrix_parameters(model: ModelSpec, data: Dataset) -> int:
    """Those in weight matrices: muon moves them, adamw the rest (convolutions' kernels, biases, embeddings, norms)."""
    return sum(p.fan_in * p.fan_out for p in products(model, data) if p.weights and p.kind != "conv")


def forward_flops_per_example(model: ModelSpec, data: Dataset) -> int:
    return sum(product.forward_flops for product in products(model, data))


def train_flops_per_example(model: ModelSpec, data: Dataset) -> int:
    """Forward and backward. What checkpointing computes a second time is not counted: it is cost, not work done."""
    return sum(product.train_flops for product in products(model, data))


# --- bytes --------------------------------------------------------------------------------------------------------

_STATES: dict[OptimizerName, int] = {  # float32 values an optimizer keeps per parameter
    "gd": 0, "sgd": 0, "momentum": 1, "nesterov": 1, "adagrad": 1, "rmsprop": 1, "adam": 2, "adamw": 2,
}  # fmt: skip


def optimizer_bytes(optimizer: Optimizer, model: ModelSpec, data: Dataset) -> int:
    """Bytes of optimizer state that grow with the model (step counters, some bytes a tensor, are left out)."""
    count = parameters(model, data)
    if optimizer.name == "muon":  # one momentum per matrix entry, adamw's two for the rest
        return FLOAT_BYTES * (2 * count - matrix_parameters(model, data))
    if optimizer.name in {"momentum", "nesterov"} and not optimizer.momentum:
        return 0
    return FLOAT_BYTES * _STATES[optimizer.name] * count


@dataclass(frozen=True, slots=True)
class Stage:
    """What checkpointing forgets at once, in float32 values per example."""

    inside: int  # kept for the backward pass by its operations, its output included where the next stage needs it
    output: int


def activation_bytes(model: ModelSpec, data: Dataset, batch_size: int, *, checkpointing: bool = False) -> int:
    """Bytes of the tensors autograd keeps for the backward pass of one batch in float32; parameters and data left out.

    With checkpointing: the seams between stages, the last stage, and the largest other one while it is computed again.
    Exact for PyTorch's own kernels, with attention that keeps no score matrix; where oneDNN or cuDNN runs a whole LSTM
    they keep more, and what a convolution needs as scratch is nowhere said.
    """
    found = stages(model, data, batch_size)
    values = sum(stage.inside for stage in found)
    if checkpointing and len(found) > 1:
        *forgotten, last = found
        values = sum(s.output for s in forgotten) + last.inside + max(s.inside for s in forgotten)
    return FLOAT_BYTES * (batch_size * values + 1)  # and one for the loss's weight


def stages(model: ModelSpec, data: Dataset, batch_size: int) -> list[Stage]:
    """The stages of `pytorch/models.py`; the last one ends with the loss, which keeps the log-probabilities."""
    match model:
        case MLP():
            return _mlp_stages(model, data)
        case CNN():
            return _cnn_stages(model, data)
        case RNN():
            return _rnn_stages(model, data, batch_size)
        case Transformer():
            return _transformer_stages(model, data)


def _mlp_stages(model: MLP, data: Dataset) -> list[Stage]:
    size = max(1, isqrt(len(model.hidden)))
    parts = [model.hidden[i : i + size] for i in range(0, len(model.hidden), size)]
    return [*(Stage(sum(part), part[-1]) for part in parts), Stage(data.num_classes, data.num_classes)]


def _cnn_stages(model: CNN, data: Dataset) -> list[Stage]:
    channels, sizes = cnn_channels(model, data), _map_sizes(model, data)
    found = []
    for c, size in zip(channels, sizes, strict=False):
        full = c * prod(size)
        if data.kind == "image":  # ReLU's output, then the pooled values and their 64-bit places
            pooled = c * prod(s // POOL for s in size)
            found.append(Stage(full + 3 * pooled, pooled))
        else:
            found.append(Stage(full, full))
    return [*found, Stage(sum(channels[len(sizes) :]) + data.num_classes, data.num_classes)]


def _rnn_stages(model: RNN, data: Dataset, batch_size: int) -> list[Stage]:
    steps, hidden, directions = input_shape(model, data)[0], model.hidden_size, 2 if model.bidirectional else 1
    # Per step: tanh keeps its state and the joined outputs; gates come with their products and differences.
    per_step, first_state = (2, hidden) if model.cell == "tanh" else (8, 0)
    layer = directions * (per_step * steps * hidden + first_state)
    text, joined = data.kind == "text", directions * steps * hidden
    copies = 0  # of the input in step-major order, which a batch of one already is; oneDNN's LSTM takes it as it is
    if text:
        copies = steps * hidden  # the embedded characters
    elif model.cell != "lstm" and batch_size > 1:
        copies = directions * prod(input_shape(model, data))
    answers = steps * data.num_classes if text else data.num_classes
    last = Stage(answers, answers)
    if not text and model.readout == "last" and model.bidirectional:
        last = Stage(answers + directions * hidden - joined, answers)  # two states are copied, the joined outputs go
    return [Stage(layer + copies, joined), *[Stage(layer, joined)] * (model.num_layers - 1), last]


def _transformer_stages(model: Transformer, data: Dataset) -> list[Stage]:
    positions, d, text = input_shape(model, data)[0], model.d_model, data.kind == "text"
    # Per position of a block: two residual streams, two norms, queries, keys and values, attention's output, and twice
    # four times the width around GELU; attention's log-sums per head; means and deviations of the norms.
    block = Stage(positions * ((8 + 2 * FEED_FORWARD) * d + model.num_heads + 4), positions * d)
    answers = positions * data.num_classes if text else data.num_classes
    head = positions * (d + 2) + (positions * d if text else d) + answers
    return [Stage(0, positions * d), *[block] * model.num_layers, Stage(head, answers)]


def workspace_bytes(model: ModelSpec, data: Dataset, batch_size: int) -> int:
    """An estimate of what comes and goes within a backward pass: the largest layer's gradient, before and after it."""
    return 2 * FLOAT_BYTES * batch_size * largest_output(model, data)


def largest_output(model: ModelSpec, data: Dataset) -> int:
    """Values of the largest layer's output, per example."""
    return max(p.rows * p.fan_out for p in products(model, data) if p.kind != "attention")
