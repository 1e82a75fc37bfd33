"""Arithmetic of recurrent networks."""

from __future__ import annotations

from math import prod

from engine.config.models import RNN
from engine.data.datasets import Dataset
from engine.models.arithmetic import Family, Layer, Product, Stage

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

    def layers(self, model: RNN, data: Dataset, batch_size: int, half: float) -> list[list[Layer]]:
        """One layer per recurrent layer, and the output layer."""
        (steps, *features), h, directions = self.input_shape(model, data), model.hidden_size, _directions(model)
        text, states, products = data.kind == "text", steps * h, self.products(model, data)
        inside = [stage.inside for stage in self.stages(model, data, batch_size)]
        outputs = directions * states
        joined = outputs if directions > 1 else 0  # both directions' outputs in one tensor
        state = half if model.cell == "tanh" else 1.0  # autocast adds the states of gates in float32
        found = []
        for n in range(model.num_layers):
            width = h if text and n == 0 else features[0] if n == 0 else directions * h
            own = sum(p.parameters for p in products[2 * directions * n : 2 * directions * (n + 1)])
            given = steps * width if n or text else 0
            if self.is_fused_recurrence(model):
                found.append(_fused(steps, h, width, directions, given, own, half))
                continue
            pre = half * GATES[model.cell] * states  # products of the inputs of all steps
            # Autocast halves all that tanh keeps, and a quarter of what gates keep, because their states are float32.
            kept = inside[n] * (half if model.cell == "tanh" else (1 + half) / 2)
            found.append(
                Layer(
                    kept=kept,
                    forward=kept + pre + joined,
                    evaluation=given + pre + state * (2 * outputs + joined),
                    backward=kept + state * outputs + half * GATES[model.cell] * h,
                    last=given + 2 * pre,
                    parameters=own,
                    backward_copies=1 / directions,  # a step's gradient is added to that of the later steps
                )
            )
        rows = steps if text else 1
        read, logits = rnn_features(model, data) * rows, data.num_classes * rows
        answer = Layer(
            kept=inside[-1],
            forward=max(inside[-1], 0) + half * logits,
            evaluation=outputs + half * read + (1 + half) * logits,
            backward=max(inside[-1], 0) + 2 * logits,
            last=half * (logits + read) + (0 if text else outputs),
            parameters=products[-1].parameters,
        )
        return [*([layer] for layer in found), [answer]]

    def other_parameters(self, model: RNN, data: Dataset) -> int:
        """The embedding of characters."""
        return data.num_classes * model.hidden_size if data.kind == "text" else 0

    def is_fused_recurrence(self, model: RNN) -> bool:
        """True for an LSTM, which oneDNN runs as one kernel."""
        return model.cell == "lstm"


def _fused(steps: int, h: int, width: int, directions: int, given: float, parameters: int, half: float) -> Layer:
    """An LSTM layer that oneDNN runs as one kernel; `width` is the values of its input at a step.

    The forward pass fills a workspace for the backward pass: the gates, the states and cells of a grid of steps, and room
    for the gradients of these states (src/cpu/rnn/rnn_utils.cpp of oneDNN). Each direction has its own. The forward
    pass copies the weights to another layout, the backward pass the weights and their gradient; both have scratch for the
    gates of all steps.
    """
    states, inputs = steps * h, steps * width
    workspace = half * (4 * states + 5 * (steps + 1) * h) + 6 * (steps + 1) * max(width, h)
    gates, joined = half * 4 * states, half * directions * states if directions > 1 else 0.0
    kept = directions * (workspace + half * states) + half * inputs
    scratch = gates + half * (steps + 1) * width
    return Layer(
        kept=kept,
        forward=kept + scratch + joined,
        evaluation=given + half * inputs + scratch + half * directions * states + joined,
        backward=kept + gates + half * directions * states + 2 * half * states + half * inputs,
        parameters=parameters,
        copies=1 / directions,
        backward_copies=2 / directions,
    )


def rnn_features(model: RNN, data: Dataset) -> int:
    """Number of inputs of the fully connected layer after the recurrent layers."""
    state = model.hidden_size * _directions(model)
    steps = RNNFamily().input_shape(model, data)[0]
    return state * steps if data.kind != "text" and model.readout == "all" else state


def _directions(model: RNN) -> int:
    return 2 if model.bidirectional else 1
