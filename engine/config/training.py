"""Optimizer, budget and target of a training run, and the facts of each optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import model_validator

from engine.config.base import Spec, field, number

FULL = "full"  # the batch size of batch gradient descent: the whole training set
OptimizerName = Literal["gd", "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "muon"]
ScheduleName = Literal["constant", "cosine", "step", "one-cycle", "warm-up"]


@dataclass(frozen=True, slots=True)
class OptimizerFacts:
    """Facts of an optimizer for form, planner and reports. `pytorch/training/optimizers.py` has its step."""

    label: str  # name in the form
    usual_lr: float  # a good first learning rate; those of other optimizers can differ by 100x
    knobs: tuple[str, ...] = ()  # fields of Optimizer that it reads, except lr and weight_decay
    states_per_parameter: int = 0  # float32 values kept for each parameter
    states_with_momentum: int = 0  # further float32 values per parameter if momentum > 0
    states_per_matrix_entry: int | None = (
        None  # values per entry of a weight matrix, if they differ from those of other parameters
    )
    scratch: int = 0  # temporary copies of all weights in a step, because its kernels are not fused
    capturable: bool = True  # its step can be captured in a CUDA graph
    decoupled: bool = (
        False  # weight decay is subtracted from the weight as lr x decay x weight, not added to the gradient
    )
    full_batch: bool = False  # each step reads the whole training set
    is_plain: bool = False  # a step is learning rate x gradient

    @property
    def keeps_state(self) -> bool:
        """Whether a step reads and writes more than weights and gradients."""
        return self.states_per_parameter + self.states_with_momentum > 0

    @property
    def for_matrices(self) -> bool:
        """Whether it has a separate rule for weight matrices."""
        return self.states_per_matrix_entry is not None


# The usual learning rates of gd and momentum are those of the presets. That of nesterov equals that of momentum; that
# of sgd is slightly higher. Those of adagrad, adam, adamw and muon are the defaults of torch.optim. That of rmsprop is
# the default of Keras.
OPTIMIZERS: Mapping[OptimizerName, OptimizerFacts] = {
    "gd": OptimizerFacts("Gradient descent", 0.5, full_batch=True, is_plain=True),
    "sgd": OptimizerFacts("SGD", 0.05, is_plain=True),
    "momentum": OptimizerFacts("SGD, momentum", 0.02, ("momentum",), states_with_momentum=1),
    "nesterov": OptimizerFacts("SGD, Nesterov", 0.02, ("momentum",), states_with_momentum=1),
    "adagrad": OptimizerFacts("Adagrad", 0.01, states_per_parameter=1, capturable=False),
    "rmsprop": OptimizerFacts("RMSprop", 1e-3, ("alpha",), states_per_parameter=1, scratch=1, capturable=False),
    "adam": OptimizerFacts("Adam", 1e-3, ("beta1", "beta2"), states_per_parameter=2),
    "adamw": OptimizerFacts("AdamW", 1e-3, ("beta1", "beta2"), states_per_parameter=2, decoupled=True),
    "muon": OptimizerFacts(
        "Muon",
        1e-3,
        ("momentum", "beta1", "beta2"),
        states_per_parameter=2,
        states_per_matrix_entry=1,
        scratch=4,
        capturable=False,
        decoupled=True,
    ),
}


def _listed(names: Sequence[str]) -> str:
    """Names as "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _used_by(knob: str) -> str:
    return f"Used by {_listed([name for name, facts in OPTIMIZERS.items() if knob in facts.knobs])}."


class Optimizer(Spec):
    """The optimizer and its hyperparameters."""

    name: OptimizerName = field("adam", "Optimizer")
    """gd: gradient descent on the whole training set. All others use mini-batches. muon orthogonalises the updates of
    weight matrices and uses adamw for all other parameters."""
    lr: float = number(1e-3, "Learning rate", gt=0, le=1e6)
    """How far the weights move per step. Too high diverges, too low is slow. Usual: 0.001 (adam), 0.01 to 0.1 (sgd)."""
    momentum: float = number(
        0.9, "Momentum", description=f"Share of the previous step that is kept. {_used_by('momentum')}", ge=0, lt=1
    )
    beta1: float = number(
        0.9, "Beta 1", description=f"Decay of the mean of the gradients. {_used_by('beta1')}", ge=0, lt=1
    )
    beta2: float = number(
        0.999, "Beta 2", description=f"Decay of the mean of the squared gradients. {_used_by('beta2')}", ge=0, lt=1
    )
    alpha: float = number(
        0.99, "Alpha", description=f"Decay of the mean of the squared gradients. {_used_by('alpha')}", ge=0, lt=1
    )
    weight_decay: float = number(
        0.0,
        "Weight decay",
        description="Pulls every weight towards zero. It is a part of the gradient; with "
        f"{_listed([name for name, facts in OPTIMIZERS.items() if facts.decoupled])} it is decoupled: lr x decay x "
        "weight is subtracted.",
        ge=0,
        le=1e3,
    )

    @property
    def facts(self) -> OptimizerFacts:
        """The facts of this optimizer."""
        return OPTIMIZERS[self.name]


class Budget(Spec):
    """The limits of training. It ends at the first one that it reaches."""

    steps: int | None = field(None, "Steps", ge=1, le=100_000_000)
    """Optimizer steps."""
    epochs: float | None = number(None, "Epochs", gt=0, le=1_000_000)
    """Epochs: passes over the training set."""
    samples: int | None = field(None, "Samples", ge=1, le=10**15)
    """Training samples, counted again in each epoch."""
    seconds: float | None = number(None, "Seconds", gt=0, le=86_400)
    """Training time in seconds, without evaluation."""
    flops: float | None = number(None, "FLOPs", gt=0, le=1e24)
    """FLOPs of training, computed in closed form."""

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if all(getattr(self, name) is None for name in BUDGETS):
            raise ValueError(f"needs at least one of {', '.join(BUDGETS)}")
        return self


BUDGETS = tuple(Budget.model_fields)


class Target(Spec):
    """A target for the test split. The run ends when two consecutive evaluations reach it."""

    metric: Literal["test_accuracy", "test_loss"] = field("test_accuracy", "Target")
    """Metric of the test split that must reach the target value."""
    value: float | None = number(None, "Target value", ge=0)
    """Smallest test accuracy (0 to 1) or largest test loss. none: train until the budget ends."""

    @model_validator(mode="after")
    def _accuracy_is_a_share(self) -> Self:
        if self.metric == "test_accuracy" and self.value is not None and self.value > 1:
            raise ValueError(f"value={self.value:g} is not allowed; accuracy is from 0 to 1, so 97 % is 0.97")
        return self
