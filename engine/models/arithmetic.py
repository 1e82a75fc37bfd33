"""What the arithmetic of all model families shares: matrix products, checkpointing stages and the interface of a
family.

FLOPs follow `torch.utils.flop_counter`: a multiply-add counts 2, and only matrix products and convolutions count.
Training counts the forward pass, the gradient of every weight, and the gradient of every input that needs one. Pixels
and first states need none, so "backward costs twice forward" would overcount. 6ND is another count and never used: it
is 1.5 times too much for a small MLP and a sixth of the true cost of LeNet.
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
    """A matrix product, per example: `rows` vectors of `fan_in` by a matrix (fan_in, fan_out)."""

    kind: str  # linear, conv, recurrent or attention
    fan_in: int
    fan_out: int
    rows: int = 1  # positions of a sequence, or pixels of a convolution's output
    input_gradient_rows: int | None = None  # rows whose vector needs a gradient; None: all of them
    bias: int = 1  # bias vectors of fan_out: a recurrent cell has one in each of its two products
    weights: bool = True  # False: both factors are activations, as in attention

    @property
    def parameters(self) -> int:
        return (self.fan_in + self.bias) * self.fan_out if self.weights else 0

    @property
    def forward_flops(self) -> int:
        return 2 * self.rows * self.fan_in * self.fan_out

    @property
    def train_flops(self) -> int:
        """FLOPs of the forward pass, of the gradient of the matrix, and of the gradients of vectors that need one."""
        rows = self.rows if self.input_gradient_rows is None else self.input_gradient_rows
        return 2 * self.forward_flops + 2 * rows * self.fan_in * self.fan_out


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the model whose activations checkpointing frees together, in float32 values per example."""

    inside: int  # kept for the backward pass by its operations, with its output where the next stage needs it
    output: int


class Family(ABC, Generic[Spec]):
    """What the engine must know of a model family; its module is built in `pytorch/models.py`.

    Every method takes the spec of the model and the facts of its data set, and builds nothing.
    """

    has_convolutions = False
    is_recurrent = False
    limits_context = False  # a text model that reads at most seq_len characters: prompt and answer must fit in them

    @abstractmethod
    def input_shape(self, model: Spec, data: Dataset) -> tuple[int, ...]:
        """Shape of one image or vector as the model reads it. Text is always (seq_len,) characters."""

    @abstractmethod
    def products(self, model: Spec, data: Dataset) -> list[Product]:
        """Every matrix product of a forward pass over one example, in order."""

    @abstractmethod
    def stages(self, model: Spec, data: Dataset, batch_size: int) -> list[Stage]:
        """The stages of the module in `pytorch/models.py`. The last one ends with the loss, which keeps the
        log-probabilities."""

    def other_parameters(self, model: Spec, data: Dataset) -> int:
        """Parameters that no matrix product uses: embeddings, positions and norms."""
        return 0

    def image_border(self, model: Spec, data: Dataset) -> tuple[int, tuple[int, int]]:
        """How an image is prepared: the whole number by which it is enlarged, and (height, width) to pad it to."""
        _, height, width = data.shape
        return 1, (height, width)

    def patch_size(self, model: Spec, data: Dataset) -> int:
        """Side of a patch in pixels, or length of a patch of a signal; 1 where the model reads no patches."""
        return 1

    def is_fused_recurrence(self, model: Spec) -> bool:
        """Whether one kernel runs all steps of a recurrent layer. On a CPU without bfloat16 arithmetic that kernel is
        float32 only, and it keeps about as much for the backward pass as the closed forms count."""
        return False

    def why_not_shape(self, model: Spec, data: Dataset, shape: tuple[int, ...]) -> str:
        """Why trained weights cannot read examples of another `shape`; "" if only the shape itself is to be named."""
        return ""


def join(shape: tuple[int, ...]) -> str:
    """1x28x28."""
    return "x".join(map(str, shape))


AnyFamily = Family[Any]
