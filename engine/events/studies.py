"""Results of a batch-size law and of a loss surface."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from engine.events.base import Count, Event, Kept, Seconds


class Surface(Event):
    """The loss on a plane through weights, as `landscape.safetensors` holds it (engine.landscape)."""

    kind: Literal["surface"] = "surface"
    plane: Literal["pca", "random"]
    explained: tuple[
        float, float
    ]  # share of the checkpoints' variance along each axis, 0..1; the second's beyond the first's
    x: tuple[float, float]  # range
    y: tuple[float, float]
    resolution: Count
    loss_min: float  # of the finite ones; NaN where there is none
    loss_max: float
    num_not_finite: Count  # points of the grid where the loss was NaN or infinite
    plane_gap: float | None  # median over checkpoints of |loss at the checkpoint - loss at its shadow on the plane|
    checkpoints: Count
    parameters: Count
    split: Literal["train", "test"]
    examples: Count
    seconds: Seconds  # for the surface and the paths, without loading


class Trial(Event):
    """One short training towards a training loss, with one batch size, learning rate and seed.

    `steps` is interpolated between evaluations; None, like `samples` and `train_s`, where the target was not reached within
    `max_steps` or before the loss became NaN or infinite.
    """

    kind: Literal["trial"] = "trial"
    kept: ClassVar[Kept] = "every"
    batch_size: Annotated[Count, Field(ge=1)]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    seed: Count
    tuning: bool  # it chose the learning rate; the others measure at the best one
    reached: bool
    max_steps: Count  # when it would have been given up; in tuning soon after the best rate so far
    steps: Annotated[float, Field(ge=0, lt=2**53)] | None = None
    samples: Count | None = None  # examples used until then, an epoch's smaller last batch as it is
    train_s: Seconds | None = None  # training clock until then, evaluations left out
    step_s: Seconds | None = None  # mean time of all steps it made; None where it made none
    last_loss: float  # training loss where it ended

    @model_validator(mode="after")
    def _reached_has_steps(self) -> Self:
        if self.reached != (self.steps is not None):
            raise ValueError(f"reached={self.reached} does not go with steps={self.steps}")
        return self
