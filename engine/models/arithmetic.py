"""The interface of a model family, and its parts: matrix products and checkpointing stages.

FLOPs follow `torch.utils.flop_counter`: a multiply-add is 2 FLOPs, and only matrix products and convolutions count.
Training is the forward pass, the gradient of every weight, and the gradient of every input that needs one. Pixels and
initial states need none, so "backward is twice forward" would count too much. The 6ND rule (Kaplan et al. 2020,
arXiv:2001.08361) is not used: it gives 1.5 times the FLOPs of a small MLP and a sixth of those of LeNet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

from engine.config.models import Model
from engine.data.datasets import Dataset

FLOAT_BYTES = 4
Spec = TypeVar("Spec", bound=Model)


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product (rows, fan_in) @ (fan_in, fan_out), per sample."""

    kind: str  # linear, conv, recurrent or attention
    fan_in: int
    fan_out: int
    rows: int = 1  # positions of a sequence, or pixels of a convolution's output
    input_gradient_rows: int | None = None  # rows whose input needs a gradient; None: all rows
    bias: int = 1  # number of bias vectors (fan_out,)
    weights: bool = True  # False: both factors are activations, as in attention

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return (self.fan_in + self.bias) * self.fan_out if self.weights else 0

    @property
    def forward_flops(self) -> int:
        """FLOPs of the product, biases left out."""
        return 2 * self.rows * self.fan_in * self.fan_out

    @property
    def train_flops(self) -> int:
        """FLOPs of the forward pass, of the gradient of the matrix, and of the gradient of the inputs that need one."""
        rows = self.rows if self.input_gradient_rows is None else self.input_gradient_rows
        return 2 * self.forward_flops + 2 * rows * self.fan_in * self.fan_out


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the model whose activations checkpointing frees together, in float32 values per sample."""

    inside: int  # kept for the backward pass, with the output if the next stage needs it
    output: int  # values of its output


@dataclass(frozen=True, slots=True)
class Layer:
    """What a part of a stage has in memory while it runs, for one sample, in float32 values.

    Tensors that earlier layers keep for the backward pass are not counted again.
    """

    kept: float  # for the backward pass
    evaluation: float  # most in a forward pass without autograd, its input included
    backward: float  # most in its backward pass before the gradient of its weights exists, `kept` included
    last: float = 0.0  # most in its backward pass once the gradient of its weights exists
    forward: float = 0.0  # most in its forward pass with autograd, if it is more than `kept`
    parameters: int = 0  # of the layer, whatever the number of samples
    copies: float = 0.0  # of its weights that its kernel makes in a forward pass
    backward_copies: float = 0.0  # of its weights or their gradient in a backward pass, beside that gradient


class Family(ABC, Generic[Spec]):
    """Arithmetic of a model family. `pytorch/models.py` builds its module.

    Every method takes the spec of the model and the facts of its data set.
    """

    has_convolutions = False
    is_recurrent = False
    has_written_gradients = False  # `ManualMLP` has the gradients of its plain form
    limits_context = False  # a text model reads at most seq_len characters, prompt and new ones together

    @abstractmethod
    def input_shape(self, model: Spec, data: Dataset) -> tuple[int, ...]:
        """Shape of one image or vector as the model reads it. Text is always (seq_len,) characters."""

    @abstractmethod
    def products(self, model: Spec, data: Dataset) -> list[Product]:
        """Every matrix product of a forward pass over one sample, in order."""

    @abstractmethod
    def stages(self, model: Spec, data: Dataset, batch_size: int) -> list[Stage]:
        """The stages of the module in `pytorch/models.py`.

        The last one ends with the loss, which keeps the log-probabilities.
        """

    def layers(self, model: Spec, data: Dataset, batch_size: int, half: float) -> list[list[Layer]]:
        """The layers of each stage, for an estimate of the peaks of a step and of an evaluation.

        `half` is 0.5 if matrix products compute in 16 bits under autocast, else 1. By default a stage is one layer of
        float32 values whose output and its gradient exist twice for a moment.
        """
        return [[Layer(s.inside, 2 * s.output, s.inside + 2 * s.output)] for s in self.stages(model, data, batch_size)]

    def other_parameters(self, model: Spec, data: Dataset) -> int:
        """Parameters that no matrix product uses: embeddings, positions and norms."""
        return 0

    def image_border(self, model: Spec, data: Dataset) -> tuple[int, tuple[int, int]]:
        """How an image is prepared: the integer factor of its enlargement, and the (height, width) it is padded to."""
        _, height, width = data.shape
        return 1, (height, width)

    def patch_size(self, model: Spec, data: Dataset) -> int:
        """Side of a patch in pixels, or length of a patch of a signal; 1 if the model has no patches."""
        return 1

    def is_fused_recurrence(self, model: Spec) -> bool:
        """Whether one kernel runs all steps of a recurrent layer.

        On a CPU without bfloat16 arithmetic this kernel computes only in float32. It keeps about as much for the
        backward pass as `stages` counts.
        """
        return False

    def why_not_shape(self, model: Spec, data: Dataset, shape: tuple[int, ...]) -> str:
        """Why trained weights cannot read samples of another `shape`; "" if the shape itself says it."""
        return ""


def linear_layers(dims: Sequence[int], half: float, *, is_first: bool) -> list[Layer]:
    """Fully connected layers with ReLU between them, and the loss after the last; `dims` are values, input first.

    ReLU keeps its output; in its backward pass that output and two gradients exist. The loss keeps log-probabilities
    in float32. If the layers are the first of a model, their input is data that needs no gradient.
    """
    found = []
    for n, (i, o) in enumerate(pairwise(dims)):
        is_data, is_last = is_first and n == 0, n == len(dims) - 2
        cast = (1 - half) * i if is_data else 0.0  # autocast's copy of the input, 2 of 4 bytes; kept
        given = cast if is_data else half * i
        inner = 0.0 if is_data else half * i
        values = o if is_last else half * o
        found.append(
            Layer(
                kept=cast + values,
                forward=cast + values + half * o,
                evaluation=max(given + half * o, 2 * values + (half * o if half < 1 and is_last else 0)),
                backward=cast + 3 * values,
                last=cast + half * o + inner,
                parameters=(i + 1) * o,
            )
        )
    return found


def join(shape: tuple[int, ...]) -> str:
    """A shape as 1x28x28."""
    return "x".join(map(str, shape))


AnyFamily = Family[Any]
