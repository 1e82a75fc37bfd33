"""Optimizer, budget and target of a training run."""

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
    """What the form, the planner, reports and advice must know of an optimizer; its step is in `pytorch/optim.py`."""

    label: str  # name in the form
    usual_lr: float  # a good first learning rate; another optimizer's would often be far off
    knobs: tuple[str, ...] = ()  # fields of Optimizer it reads beside lr and weight_decay
    states_per_parameter: int = 0  # float32 values kept for each parameter
    states_with_momentum: int = 0  # further ones, kept only if momentum > 0
    states_per_matrix_entry: int | None = None  # for entries of weight matrices, if they are kept in another way
    scratch: int = 0  # copies of all weights that one step holds for a moment, because its kernels are not fused
    capturable: bool = True  # its step can be recorded in a CUDA graph
    decoupled: bool = False  # weight decay is lr x weight, not a part of the gradient
    full_batch: bool = False  # each step reads the whole training set
    is_plain: bool = False  # a step is the learning rate times the gradient

    @property
    def keeps_state(self) -> bool:
        """Whether a step reads and writes more than weights and gradients."""
        return self.states_per_parameter + self.states_with_momentum > 0

    @property
    def for_matrices(self) -> bool:
        """Whether it has a rule of its own for whole weight matrices, and another one for all other parameters."""
        return self.states_per_matrix_entry is not None


# The usual learning rates of gd and momentum are those of the presets. Nesterov's is momentum's, and sgd without
# momentum takes a little more. Those of Adagrad, Adam, AdamW and Muon are torch.optim's defaults, RMSprop's is that of
# Keras.
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
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _used_by(knob: str) -> str:
    return f"Used by {_listed([name for name, facts in OPTIMIZERS.items() if knob in facts.knobs])}."


class Optimizer(Spec):
    """How a step is computed from a gradient."""

    name: OptimizerName = field("adam", "Optimizer")
    """gd is gradient descent on the whole training set; all others use mini-batches. muon orthogonalises the steps
    of weight matrices and uses adamw for all other parameters."""
    lr: float = number(1e-3, "Learning rate", gt=0, le=1e6)
    """Size of a step."""
    momentum: float = number(
        0.9, "Momentum", description=f"Share of the last step that is kept. {_used_by('momentum')}", ge=0, lt=1
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
        description="Pulls every weight towards zero. It is added to the gradient; with "
        f"{_listed([name for name, facts in OPTIMIZERS.items() if facts.decoupled])} it is subtracted as a share of "
        "lr x weight.",
        ge=0,
        le=1e3,
    )

    @property
    def facts(self) -> OptimizerFacts:
        """What is known of this optimizer."""
        return OPTIMIZERS[self.name]


class Budget(Spec):
    """When a run ends: at the first limit it reaches."""

    steps: int | None = field(None, "Steps", ge=1, le=100_000_000)
    """Optimizer steps."""
    epochs: float | None = number(None, "Epochs", gt=0, le=1_000_000)
    """Passes over the training set."""
    samples: int | None = field(None, "Samples", ge=1, le=10**15)
    """Training examples seen."""
    seconds: float | None = number(None, "Seconds", gt=0, le=86_400)
    """Training time, without evaluation."""
    flops: float | None = number(None, "FLOPs", gt=0, le=1e24)
    """Arithmetic of training, computed in closed form."""

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if all(getattr(self, name) is None for name in BUDGETS):
            raise ValueError(f"needs at least one of {', '.join(BUDGETS)}")
        return self


BUDGETS = tuple(Budget.model_fields)


class Target(Spec):
    """A result that ends the run once two evaluations in a row have reached it."""

    metric: Literal["test_accuracy", "test_loss"] = field("test_accuracy", "Target")
    """Measured on the held-out split."""
    value: float | None = number(None, "Target value", ge=0)
    """Smallest accuracy (0 to 1) or largest loss. none: train to the end of the budget."""

    @model_validator(mode="after")
    def _accuracy_is_a_share(self) -> Self:
        if self.metric == "test_accuracy" and self.value is not None and self.value > 1:
            raise ValueError(f"value={self.value:g} is not allowed: accuracy is a share from 0 to 1, 97 % is 0.97")
        return self
