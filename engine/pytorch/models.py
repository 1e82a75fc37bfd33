"""The PyTorch modules of each model family, and the layout of their inputs.

`FAMILIES` has both for each family. Inputs have the shape that `engine.models.input_shape` gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.config.models import CNN, MLP, RNN, ModelSpec, Transformer
from engine.data.datasets import Dataset
from engine.models import family_of, input_shape
from engine.models.cnn import KERNEL, POOL, SIGNAL_KERNELS, cnn_channels, cnn_features
from engine.models.rnn import rnn_features
from engine.models.transformer import FEED_FORWARD


def build(
    model: ModelSpec, data: Dataset, *, seed: int, device: torch.device | str = "cpu", checkpointing: bool = False
) -> nn.Sequential:
    """Build the model with its initial weights, which depend only on spec, data set and seed.

    It maps inputs (batch, *input_shape) to logits (batch, classes), for text (batch, seq_len, characters). Weights are
    drawn on the CPU, so that every device starts from the same ones; on the meta device nothing is drawn.
    """
    if torch.device(device).type == "meta":
        with torch.device("meta"):
            return _module(model, data, checkpointing)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _module(model, data, checkpointing)
    if family_of(model).has_convolutions and data.kind == "image":
        # The convolutions of oneDNN and cuDNN are faster with channels last: LeNet trains 1.3x as fast.
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.to(device)


def _module(model: ModelSpec, data: Dataset, checkpointing: bool) -> nn.Sequential:
    stages = FAMILIES[model.family].stages(model, data)
    parts = [part for stage in stages for part in stage]
    return Checkpointed(parts, [len(stage) for stage in stages]) if checkpointing else nn.Sequential(*parts)


class Checkpointed(nn.Sequential):
    """A sequence of modules in stages, with activation checkpointing (Chen et al. 2016, arXiv:1604.06174).

    All stages but the last free their activations in the forward pass and compute them again in the backward pass.
    """

    def __init__(self, parts: Sequence[nn.Module], lengths: Sequence[int]) -> None:
        super().__init__(*parts)
        ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        self.spans = list(pairwise([0, *ends]))

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Sequential."""
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


# --- MLP -----------------------------------------------------------------------------------------------------------


def _mlp(model: MLP, data: Dataset) -> list[list[nn.Module]]:
    """About sqrt(hidden layers) stages, which needs the least memory (Chen et al. 2016)."""
    dims = [*input_shape(model, data), *model.hidden]
    hidden = [[nn.Linear(i, o), nn.ReLU()] for i, o in pairwise(dims)]
    size = max(1, math.isqrt(len(hidden)))
    stages = [[part for pair in hidden[i : i + size] for part in pair] for i in range(0, len(hidden), size)]
    return [*stages, [nn.Linear(dims[-1], data.num_classes)]]


# --- CNN -----------------------------------------------------------------------------------------------------------


def _cnn(model: CNN, data: Dataset) -> list[list[nn.Module]]:
    return _lenet(model, data) if data.kind == "image" else _signal_cnn(model, data)


def _lenet(model: CNN, data: Dataset) -> list[list[nn.Module]]:
    c1, c2, f1, f2 = cnn_channels(model, data)
    return [
        [nn.Conv2d(input_shape(model, data)[0], c1, KERNEL), nn.ReLU(), nn.MaxPool2d(POOL)],
        [nn.Conv2d(c1, c2, KERNEL), nn.ReLU(), nn.MaxPool2d(POOL)],
        [
            nn.Flatten(),
            nn.Linear(cnn_features(model, data), f1),
            nn.ReLU(),
            nn.Linear(f1, f2),
            nn.ReLU(),
            nn.Linear(f2, data.num_classes),
        ],
    ]


def _signal_cnn(model: CNN, data: Dataset) -> list[list[nn.Module]]:
    channels = [1, *cnn_channels(model, data)]
    convolutions: list[list[nn.Module]] = [
        [nn.Conv1d(i, o, kernel, stride=2, padding=1), nn.ReLU()]
        for (i, o), kernel in zip(pairwise(channels), SIGNAL_KERNELS, strict=True)
    ]
    return [*convolutions, [nn.Flatten(), nn.Linear(cnn_features(model, data), data.num_classes)]]


# --- RNN -----------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """One recurrent layer (tanh, GRU or LSTM)."""

    def __init__(self, model: RNN, in_size: int) -> None:
        super().__init__()
        kind = {"tanh": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[model.cell]
        self.cell = kind(in_size, model.hidden_size, batch_first=True, bidirectional=model.bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (batch, steps, features) to the hidden states of all steps (batch, steps, hidden size)."""
        states: Tensor = self.cell(x)[0]
        return states


class LastState(nn.Module):
    """The hidden state after the whole input; for the backward direction that is the state at the first step."""

    def __init__(self, model: RNN) -> None:
        super().__init__()
        self.hidden_size, self.bidirectional = model.hidden_size, model.bidirectional

    def forward(self, states: Tensor) -> Tensor:
        """States (batch, steps, hidden size) to the last state (batch, hidden size)."""
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
    return [[*embedding, *layers[0]], *layers[1:], [*answer, nn.Linear(rnn_features(model, data), data.num_classes)]]


def _rows_first(x: Tensor, model: RNN, data: Dataset) -> Tensor:
    """Images (n, channels, rows, columns) as (n, rows, channels, columns): an RNN reads one row per step."""
    return x.transpose(1, 2) if data.kind == "image" else x


# --- Transformer ---------------------------------------------------------------------------------------------------


class Positions(nn.Module):
    """Learned position embeddings: adds a learned vector to each position."""

    def __init__(self, num_positions: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_positions, d_model))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, positions, d_model) to the same shape."""
        return x + self.weight


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762); causal: no position sees a later one."""

    def __init__(self, model: Transformer, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = model.num_heads, causal
        self.qkv = nn.Linear(model.d_model, 3 * model.d_model, bias=False)
        self.out = nn.Linear(model.d_model, model.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, positions, d_model) to the same shape."""
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """A pre-norm Transformer block (Xiong et al. 2020, arXiv:2002.04745).

    Attention, then a feed-forward network; each reads a normalised copy and is added to the residual stream.
    """

    def __init__(self, model: Transformer, *, causal: bool) -> None:
        super().__init__()
        d, wide = model.d_model, FEED_FORWARD * model.d_model
        self.norm1, self.norm2 = nn.LayerNorm(d, bias=False), nn.LayerNorm(d, bias=False)
        self.attention = Attention(model, causal=causal)
        self.feed_forward = nn.Sequential(nn.Linear(d, wide, bias=False), nn.GELU(), nn.Linear(wide, d, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, positions, d_model) to the same shape."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.feed_forward(self.norm2(x))
        return y


class MeanOverPositions(nn.Module):
    """Mean pooling."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, positions, d_model) to (batch, d_model)."""
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
    _init_as_gpt2(stages, model)
    return stages


def _init_as_gpt2(stages: Sequence[Sequence[nn.Module]], model: Transformer) -> None:
    """Draw initial weights as GPT-2 does (Radford et al. 2019, section 2.3): normal with std 0.02.

    Layers that add to the residual stream are scaled down by the square root of their number.
    """
    for module in (part for stage in stages for root in stage for part in root.modules()):
        if isinstance(module, nn.Linear | nn.Embedding | Positions):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for block in (part for stage in stages for part in stage if isinstance(part, Block)):
        for layer in (block.attention.out, block.feed_forward[2]):
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * model.num_layers))  # type: ignore[arg-type]


def _patches(x: Tensor, model: Transformer, data: Dataset) -> Tensor:
    """Patches: images (n, c, h, w) to (n, rows, columns, c, side, side); signals are padded to whole patches."""
    side = family_of(model).patch_size(model, data)
    if data.kind == "image":
        return x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
    return F.pad(x, [0, input_shape(model, data)[0] * side - x.shape[1]])


# --- all families ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TorchFamily:
    """How PyTorch builds the models of a family."""

    stages: Callable[[Any, Dataset], list[list[nn.Module]]]  # the layers in order; checkpointing frees a stage at once
    arrange: Callable[[Tensor, Any, Dataset], Tensor] = lambda x, model, data: x  # reorders the examples for the model


FAMILIES: Mapping[str, TorchFamily] = {
    "mlp": TorchFamily(_mlp),
    "cnn": TorchFamily(_cnn),
    "rnn": TorchFamily(_rnn, _rows_first),
    "transformer": TorchFamily(_transformer, _patches),
}


def arranged(x: Tensor, model: ModelSpec, data: Dataset) -> Tensor:
    """Standardised examples (n, ...) in the layout that the model reads: (n, *input_shape)."""
    return FAMILIES[model.family].arrange(x, model, data).reshape(len(x), *input_shape(model, data))
