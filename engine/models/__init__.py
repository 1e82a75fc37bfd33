"""Model families as arithmetic: parameters, FLOPs and bytes in closed form, without building a model.

To add a family: a spec in the configuration, a file here with its `Family`, its line in `FAMILIES`, and its module in
`pytorch/models.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.config.models import ModelSpec
from engine.config.training import Optimizer
from engine.data.datasets import Dataset
from engine.models.arithmetic import FLOAT_BYTES, AnyFamily, Product, Stage
from engine.models.cnn import CNNFamily
from engine.models.mlp import MLPFamily
from engine.models.rnn import RNNFamily
from engine.models.transformer import TransformerFamily

FAMILIES: Mapping[str, AnyFamily] = {
    "mlp": MLPFamily(),
    "cnn": CNNFamily(),
    "rnn": RNNFamily(),
    "transformer": TransformerFamily(),
}


def family_of(model: ModelSpec) -> AnyFamily:
    """What the engine knows of the family of a model."""
    return FAMILIES[model.family]


def input_shape(model: ModelSpec, data: Dataset) -> tuple[int, ...]:
    """Shape of one example as the model reads it; of text (seq_len,) characters.

    MLP (values,); CNN (channels, height, width) or (1, length); RNN (steps, features); Transformer (patches, values of
    a patch).
    """
    return data.shape if data.kind == "text" else family_of(model).input_shape(model, data)


def products(model: ModelSpec, data: Dataset) -> list[Product]:
    """Every matrix product of a forward pass over one example, in order.

    Raises ConfigError when a signal is too short for the convolutions.
    """
    return family_of(model).products(model, data)


def stages(model: ModelSpec, data: Dataset, batch_size: int) -> list[Stage]:
    """The stages that checkpointing frees together, in order; the last one ends with the loss."""
    return family_of(model).stages(model, data, batch_size)


# --- parameters and FLOPs -----------------------------------------------------------------------------------------


def parameters(model: ModelSpec, data: Dataset) -> int:
    """Number of trained values: weights and biases of matrix products, embeddings, positions and norms."""
    return sum(product.parameters for product in products(model, data)) + family_of(model).other_parameters(model, data)


def matrix_parameters(model: ModelSpec, data: Dataset) -> int:
    """Number of entries of weight matrices, which muon updates by its own rule; kernels of convolutions do not
    count."""
    return sum(p.fan_in * p.fan_out for p in products(model, data) if p.weights and p.kind != "conv")


def forward_flops_per_example(model: ModelSpec, data: Dataset) -> int:
    """FLOPs of a forward pass, per example."""
    return sum(product.forward_flops for product in products(model, data))


def train_flops_per_example(model: ModelSpec, data: Dataset) -> int:
    """FLOPs of a forward and a backward pass, per example. What checkpointing computes a second time is not counted,
    because it is cost and not progress."""
    return sum(product.train_flops for product in products(model, data))


# --- bytes --------------------------------------------------------------------------------------------------------


def optimizer_bytes(optimizer: Optimizer, model: ModelSpec, data: Dataset) -> int:
    """Bytes of optimizer state that grow with the model; step counters, some bytes per tensor, are left out."""
    facts, count, entries = optimizer.facts, parameters(model, data), matrix_parameters(model, data)
    per_parameter = facts.states_per_parameter + (facts.states_with_momentum if optimizer.momentum else 0)
    per_entry = per_parameter if facts.states_per_matrix_entry is None else facts.states_per_matrix_entry
    return FLOAT_BYTES * (per_parameter * (count - entries) + per_entry * entries)


def activation_bytes(model: ModelSpec, data: Dataset, batch_size: int, *, checkpointing: bool = False) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass of one float32 batch, without parameters and data.

    With checkpointing: the outputs of all stages but the last, the last stage, and the largest other stage while it is
    computed again. Exact for PyTorch's own kernels, with an attention that keeps no score matrix. Where oneDNN or cuDNN
    runs a whole LSTM they keep more; the scratch memory of convolutions is not documented and not counted.
    """
    found = stages(model, data, batch_size)
    values = sum(stage.inside for stage in found)
    if checkpointing and len(found) > 1:
        *freed, last = found
        values = sum(s.output for s in freed) + last.inside + max(s.inside for s in freed)
    return FLOAT_BYTES * (batch_size * values + 1)  # plus one value for the weight of the loss


def workspace_bytes(model: ModelSpec, data: Dataset, batch_size: int) -> int:
    """An estimate of temporary memory in a backward pass: the gradient of the largest layer, before and after it."""
    return 2 * FLOAT_BYTES * batch_size * largest_output(model, data)


def largest_output(model: ModelSpec, data: Dataset) -> int:
    """Values of the largest output of a layer, per example."""
    return max(p.rows * p.fan_out for p in products(model, data) if p.kind != "attention")
