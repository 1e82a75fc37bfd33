"""The interface of a model family, and its parts: matrix products and checkpointing stages.

FLOPs follow `torch.utils.flop_counter`: a multiply-add is 2 FLOPs, and only matrix products and convolutions count.
Training is the forward pass, the gradient of every weight, and the gradient of every input that needs one. Pixels and
initial states need none, so "backward is twice forward" would count too much. The 6ND rule (Kaplan et al. 2020,
arXiv:2001.08361) is not used: it gives 1.5 times the FLOPs of a small MLP and a sixth of those of LeNet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
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


class Family(ABC, Generic[Spec]):
    """Arithmetic of a model family. `pytorch/models.py` builds its module.

    Every method takes the spec of the model and the facts of its data set.
    """

    has_convolutions = False
    is_recurrent = False
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


def join(shape: tuple[int, ...]) -> str:
    """A shape as 1x28x28."""
    return "x".join(map(str, shape))


AnyFamily = Family[Any]
