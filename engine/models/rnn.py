"""Arithmetic of recurrent networks."""

from __future__ import annotations

from math import prod

from engine.config.models import RNN
from engine.data.datasets import Dataset
from engine.models.arithmetic import Family, Product, Stage

GATES = {"tanh": 1, "gru": 3, "lstm": 4}  # products of hidden_size units per step and direction


class RNNFamily(Family[RNN]):
    """Recurrent layers over the rows of an image, the values of a signal or the characters of a text."""

    is_recurrent = True

    def input_shape(self, model: RNN, data: Dataset) -> tuple[int, ...]:
        """(steps, features): the rows of an image, the values of a signal; (seq_len,) characters of a text."""
        if data.kind == "text":
            return data.shape
        return (data.shape[1], data.shape[0] * data.shape[2]) if data.kind == "image" else (*data.shape, 1)

    def products(self, model: RNN, data: Dataset) -> list[Product]:
        """For each layer and direction the product of the input and that of the state; then the output layer."""
        (steps, *features), hidden, directions = self.input_shape(model, data), model.hidden_size, _directions(model)
        gates, text = GATES[model.cell] * hidden, data.kind == "text"
        first = hidden if text else features[0]
        found = []
        for layer in range(model.num_layers):
            fan_in = first if layer == 0 else directions * hidden
            needs_gradient = (
                None if layer or text else 0
            )  # inputs of the first layer: embeddings need a gradient, pixels do not
            # The initial state is a constant 0, so it needs no gradient.
            found += directions * [
                Product("recurrent", fan_in, gates, rows=steps, input_gradient_rows=needs_gradient),
                Product("recurrent", hidden, gates, rows=steps, input_gradient_rows=steps - 1),
            ]
        return [*found, Product("linear", rnn_features(model, data), data.num_classes, rows=steps if text else 1)]

    def stages(self, model: RNN, data: Dataset, batch_size: int) -> list[Stage]:
        """One stage per recurrent layer, and one for the output layer."""
        steps, hidden, directions = self.input_shape(model, data)[0], model.hidden_size, _directions(model)
        # Per step, tanh keeps its state and the concatenated outputs; gates also keep their products and differences.
        per_step, first_state = (2, hidden) if model.cell == "tanh" else (8, 0)
        layer = directions * (per_step * steps * hidden + first_state)
        text, outputs = data.kind == "text", directions * steps * hidden
        copies = 0  # of the input in step-major order; a batch of one has it already, and oneDNN's LSTM needs none
        if text:
            copies = steps * hidden  # the embedded characters
        elif model.cell != "lstm" and batch_size > 1:
            copies = directions * prod(self.input_shape(model, data))
        logits = steps * data.num_classes if text else data.num_classes
        last = Stage(logits, logits)
        if not text and model.readout == "last" and model.bidirectional:
            # The last states of both directions are copied; then all outputs are freed.
            last = Stage(logits + directions * hidden - outputs, logits)
        return [Stage(layer + copies, outputs), *[Stage(layer, outputs)] * (model.num_layers - 1), last]

    def other_parameters(self, model: RNN, data: Dataset) -> int:
        """The embedding of characters."""
        return data.num_classes * model.hidden_size if data.kind == "text" else 0

    def is_fused_recurrence(self, model: RNN) -> bool:
        """True for an LSTM, which oneDNN runs as one kernel."""
        return model.cell == "lstm"


def rnn_features(model: RNN, data: Dataset) -> int:
    """Number of inputs of the fully connected layer after the recurrent layers."""
    state = model.hidden_size * _directions(model)
    steps = RNNFamily().input_shape(model, data)[0]
    return state * steps if data.kind != "text" and model.readout == "all" else state


def _directions(model: RNN) -> int:
    return 2 if model.bidirectional else 1
