"""The modules the specs describe. Inputs come as `families.input_shape` says and `pytorch/data.py` lays them out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.config import CNN, MLP, RNN, ModelSpec, Transformer
from engine.datasets import Dataset
from engine.families import FEED_FORWARD, KERNEL, POOL, SIGNAL_KERNELS, cnn_channels, feature_size, input_shape


def build(
    model: ModelSpec, data: Dataset, *, seed: int, device: torch.device | str = "cpu", checkpointing: bool = False
) -> nn.Sequential:
    """The model with its first weights: a function of spec, data set and seed alone.

    It answers logits: (batch, classes), of text (batch, seq_len, characters). Weights are drawn on the CPU, so that
    every device starts from the same ones; on the meta device nothing is drawn.
    """
    if torch.device(device).type == "meta":
        with torch.device("meta"):
            return _module(model, data, checkpointing)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _module(model, data, checkpointing)
    if isinstance(model, CNN) and data.kind == "image":
        # oneDNN's and cuDNN's convolutions like channels last: 1.3x the tutorial loop on LeNet.
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.to(device)


def _module(model: ModelSpec, data: Dataset, checkpointing: bool) -> nn.Sequential:
    stages = _stages(model, data)
    parts = [part for stage in stages for part in stage]
    return Checkpointed(parts, [len(stage) for stage in stages]) if checkpointing else nn.Sequential(*parts)


def _stages(model: ModelSpec, data: Dataset) -> list[list[nn.Module]]:
    """The parts in order; a stage is what checkpointing forgets at once."""
    match model:
        case MLP():
            return _mlp(model, data)
        case CNN():
            return _lenet(model, data) if data.kind == "image" else _signal_cnn(model, data)
        case RNN():
            return _rnn(model, data)
        case Transformer():
            return _transformer(model, data)


class Checkpointed(nn.Sequential):
    """Parts in stages; all but the last stage forget what is inside them until the backward pass comes
    (Chen et al. 2016, arXiv:1604.06174)."""

    def __init__(self, parts: Sequence[nn.Module], lengths: Sequence[int]) -> None:
        super().__init__(*parts)
        ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        self.spans = list(pairwise([0, *ends]))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self)
        for first, last in self.spans:
            if torch.is_grad_enabled() and last < len(parts):
                x = checkpoint(_through, parts[first:last], x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = _through(parts[first:last], x)
        return x


def _through(parts: Sequence[nn.Module], x: Tensor) -> Tensor:
    for part in parts:
        x = part(x)
    return x


# --- the families --------------------------------------------------------------------------------------------------


def _mlp(model: MLP, data: Dataset) -> list[list[nn.Module]]:
    """Stages of about the square root of the number of hidden layers: fewer would keep more inside, more at the seams."""
    dims = [*input_shape(model, data), *model.hidden]
    hidden = [[nn.Linear(i, o), nn.ReLU()] for i, o in pairwise(dims)]
    size = max(1, math.isqrt(len(hidden)))
    stages = [[part for pair in hidden[i : i + size] for part in pair] for i in range(0, len(hidden), size)]
    return [*stages, [nn.Linear(dims[-1], data.num_classes)]]


def _lenet(model: CNN, data: Dataset) -> list[list[nn.Module]]:
    c1, c2, f1, f2 = cnn_channels(model, data)
    return [
        [nn.Conv2d(input_shape(model, data)[0], c1, KERNEL), nn.ReLU(), nn.MaxPool2d(POOL)],
        [nn.Conv2d(c1, c2, KERNEL), nn.ReLU(), nn.MaxPool2d(POOL)],
        [
            nn.Flatten(), nn.Linear(feature_size(model, data), f1), nn.ReLU(), nn.Linear(f1, f2), nn.ReLU(),
            nn.Linear(f2, data.num_classes),
        ],
    ]  # fmt: skip


def _signal_cnn(model: CNN, data: Dataset) -> list[list[nn.Module]]:
    channels = [1, *cnn_channels(model, data)]
    convolutions: list[list[nn.Module]] = [
        [nn.Conv1d(i, o, kernel, stride=2, padding=1), nn.ReLU()]
        for (i, o), kernel in zip(pairwise(channels), SIGNAL_KERNELS, strict=True)
    ]
    return [*convolutions, [nn.Flatten(), nn.Linear(feature_size(model, data), data.num_classes)]]


class Recurrent(nn.Module):
    """One recurrent layer: (batch, steps, features) to the states (batch, steps, hidden) of all steps."""

    def __init__(self, model: RNN, in_size: int) -> None:
        super().__init__()
        kind = {"tanh": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[model.cell]
        self.cell = kind(in_size, model.hidden_size, batch_first=True, bidirectional=model.bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.cell(x)[0]
        return states


class LastState(nn.Module):
    """The state after the whole input: of the pass from the end, that is the one at the first step."""

    def __init__(self, model: RNN) -> None:
        super().__init__()
        self.hidden_size, self.bidirectional = model.hidden_size, model.bidirectional

    def forward(self, states: Tensor) -> Tensor:
        if not self.bidirectional:
            return states[:, -1]
        return torch.cat([states[:, -1, : self.hidden_size], states[:, 0, self.hidden_size :]], dim=1)


def _rnn(model: RNN, data: Dataset) -> list[list[nn.Module]]:
    state = model.hidden_size * (2 if model.bidirectional else 1)
    text = data.kind == "text"
    first = model.hidden_size if text else input_shape(model, data)[1]
    embedding: list[nn.Module] = [nn.Embedding(data.num_classes, model.hidden_size)] if text else []
    layers: list[list[nn.Module]] = [[Recurrent(model, first if i == 0 else state)] for i in range(model.num_layers)]
    answer: list[nn.Module] = [] if text else [LastState(model) if model.readout == "last" else nn.Flatten()]
    return [[*embedding, *layers[0]], *layers[1:], [*answer, nn.Linear(feature_size(model, data), data.num_classes)]]


class Positions(nn.Module):
    """Adds a learned vector to each position."""

    def __init__(self, num_positions: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_positions, d_model))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017); causal: a position sees itself and what came before."""

    def __init__(self, model: Transformer, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = model.num_heads, causal
        self.qkv = nn.Linear(model.d_model, 3 * model.d_model, bias=False)
        self.out = nn.Linear(model.d_model, model.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention, then a feed-forward net, each on a normalised copy and added to the residual stream (pre-norm)."""

    def __init__(self, model: Transformer, *, causal: bool) -> None:
        super().__init__()
        d, wide = model.d_model, FEED_FORWARD * model.d_model
        self.norm1, self.norm2 = nn.LayerNorm(d, bias=False), nn.LayerNorm(d, bias=False)
        self.attention = Attention(model, causal=causal)
        self.feed_forward = nn.Sequential(nn.Linear(d, wide, bias=False), nn.GELU(), nn.Linear(wide, d, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.feed_forward(self.norm2(x))
        return y


class MeanOverPositions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def _transformer(model: Transformer, data: Dataset) -> list[list[nn.Module]]:
    text, d = data.kind == "text", model.d_model
    num_positions, *patch = input_shape(model, data)
    first: nn.Module = nn.Embedding(data.num_classes, d) if text else nn.Linear(patch[0], d)
    blocks: list[list[nn.Module]] = [[Block(model, causal=text)] for _ in range(model.num_layers)]
    answer: list[nn.Module] = [] if text else [MeanOverPositions()]
    head = nn.Linear(d, data.num_classes, bias=not text)
    stages: list[list[nn.Module]] = [
        [first, Positions(num_positions, d)],
        *blocks,
        [nn.LayerNorm(d, bias=False), *answer, head],
    ]
    _draw(stages, model)
    return stages


def _draw(stages: Sequence[Sequence[nn.Module]], model: Transformer) -> None:
    """GPT-2's first weights: normal, 0.02; what adds to the residual stream is smaller by the root of its terms."""
    for module in (part for stage in stages for root in stage for part in root.modules()):
        if isinstance(module, nn.Linear | nn.Embedding | Positions):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for block in (part for stage in stages for part in stage if isinstance(part, Block)):
        for layer in (block.attention.out, block.feed_forward[2]):
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * model.num_layers))  # type: ignore[arg-type]
