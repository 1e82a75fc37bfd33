"""Parameters, FLOPs and bytes of the model families in closed form, without building a model.

This room imports `common`, `config` and `data`. To add a family, add its spec to the configuration, a file here with
its `Family`, its entry in `FAMILIES`, and its module to `pytorch/models.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.config.models import ModelSpec
from engine.config.training import Optimizer
from engine.data.datasets import Dataset
from engine.models.arithmetic import FLOAT_BYTES, AnyFamily, Layer, Product, Stage
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
    """The arithmetic of a model's family."""
    return FAMILIES[model.family]


def input_shape(model: ModelSpec, data: Dataset) -> tuple[int, ...]:
    """Shape of one sample as the model reads it.

    Text (seq_len,) characters; MLP (values,); CNN (channels, height, width) or (1, length); RNN (steps, features);
    Transformer (patches, values of a patch).
    """
    return data.shape if data.kind == "text" else family_of(model).input_shape(model, data)


def products(model: ModelSpec, data: Dataset) -> list[Product]:
    """Every matrix product of a forward pass over one sample, in order.

    Raises ConfigError if a signal is too short for the convolutions.
    """
    return family_of(model).products(model, data)


def stages(model: ModelSpec, data: Dataset, batch_size: int) -> list[Stage]:
    """The stages whose activations checkpointing frees together, in order. The last one ends with the loss."""
    return family_of(model).stages(model, data, batch_size)


def layers(model: ModelSpec, data: Dataset, batch_size: int, *, half: bool = False) -> list[list[Layer]]:
    """The layers of each stage with what they have in memory; `half`: products compute in 16 bits under autocast."""
    return family_of(model).layers(model, data, batch_size, 0.5 if half else 1.0)


# --- parameters and FLOPs -----------------------------------------------------------------------------------------


def parameters(model: ModelSpec, data: Dataset) -> int:
    """Number of trained parameters: weights and biases of matrix products, embeddings, positions and norms."""
    return sum(product.parameters for product in products(model, data)) + family_of(model).other_parameters(model, data)


def matrix_parameters(model: ModelSpec, data: Dataset) -> int:
    """Number of entries of weight matrices, which muon orthogonalises; kernels of convolutions are not counted."""
    return sum(p.fan_in * p.fan_out for p in products(model, data) if p.weights and p.kind != "conv")


def forward_flops_per_example(model: ModelSpec, data: Dataset) -> int:
    """FLOPs of a forward pass, per sample."""
    return sum(product.forward_flops for product in products(model, data))


def train_flops_per_example(model: ModelSpec, data: Dataset) -> int:
    """FLOPs of a forward and a backward pass, per sample.

    Activations that checkpointing computes again are not counted, as in model FLOPs utilisation (MFU).
    """
    return sum(product.train_flops for product in products(model, data))


# --- bytes --------------------------------------------------------------------------------------------------------


def optimizer_bytes(optimizer: Optimizer, model: ModelSpec, data: Dataset) -> int:
    """Bytes of optimizer state. Step counters, a few bytes per tensor, are left out."""
    facts, count, entries = optimizer.facts, parameters(model, data), matrix_parameters(model, data)
    per_parameter = facts.states_per_parameter + (facts.states_with_momentum if optimizer.momentum else 0)
    per_entry = per_parameter if facts.states_per_matrix_entry is None else facts.states_per_matrix_entry
    return FLOAT_BYTES * (per_parameter * (count - entries) + per_entry * entries)


def activation_bytes(model: ModelSpec, data: Dataset, batch_size: int, *, checkpointing: bool = False) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass of one float32 batch, without parameters and data.

    With checkpointing, these are the outputs of all stages but the last, the last stage, and the largest other stage
    while it is computed again. The count is exact for PyTorch's own kernels with an attention that keeps no score
    matrix. An LSTM that oneDNN or cuDNN runs as a whole keeps more. The scratch memory of convolutions is not
    documented and not counted.
    """
    found = stages(model, data, batch_size)
    values = sum(stage.inside for stage in found)
    if checkpointing and len(found) > 1:
        *freed, last = found
        values = sum(s.output for s in freed) + last.inside + max(s.inside for s in freed)
    return FLOAT_BYTES * (batch_size * values + 1)  # plus one value for the weight of the loss


def largest_matrix(model: ModelSpec, data: Dataset) -> tuple[int, int]:
    """Sides (fan_in, fan_out) of the largest weight of a matrix product."""
    found = max((p for p in products(model, data) if p.weights), key=lambda p: p.fan_in * p.fan_out)
    return found.fan_in, found.fan_out


def largest_output(model: ModelSpec, data: Dataset) -> int:
    """Number of values in the largest output of a layer, per sample."""
    return max(p.rows * p.fan_out for p in products(model, data) if p.kind != "attention")
