"""Results of a batch-size law and of a loss surface."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from engine.events.base import Count, Event, Kept, Seconds
from engine.events.summary import Work


class Surface(Event):
    """Summary of a loss surface: the loss on a plane in weight space. Its grid is in `landscape.safetensors`."""

    kind: Literal["surface"] = "surface"
    plane: Literal["pca", "random"]
    explained: tuple[float, float]  # share (0..1) of the checkpoints' variance along the first and the second axis
    x: tuple[float, float]  # smallest and largest x of the grid
    y: tuple[float, float]  # smallest and largest y of the grid
    resolution: Count
    loss_min: float  # smallest finite loss; NaN if no loss is finite
    loss_max: float
    num_not_finite: Count  # points of the grid where the loss was NaN or infinite
    plane_gap: float | None  # median over checkpoints of |loss at the checkpoint - loss at its projection on the plane|
    checkpoints: Count
    parameters: Count
    split: Literal["train", "test"]
    examples: Count
    seconds: Seconds  # time for the surface and the paths, without loading


class Trial(Event):
    """One short training until a target training loss, with one batch size, learning rate and seed.

    `steps` is interpolated between evaluations. `steps`, `samples` and `train_s` are None if the target was not reached
    within `max_steps`, or if the loss became NaN or infinite before.
    """

    kind: Literal["trial"] = "trial"
    kept: ClassVar[Kept] = "every"
    batch_size: Annotated[Count, Field(ge=1)]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    seed: Count
    tuning: bool  # True: a trial of the search for the learning rate; False: a measurement at the best one
    reached: bool
    max_steps: Count  # limit of the trial; during the search slightly above the steps of the best rate so far
    steps: Annotated[float, Field(ge=0, lt=2**53)] | None = None
    samples: Count | None = None  # samples used until the target; the last batch of an epoch can be smaller
    train_s: Seconds | None = None  # training time until the target, without evaluations
    step_s: Seconds | None = None  # mean time of all its steps; None without steps
    last_loss: float  # training loss at its end
    steps_made: Count | None = (
        None  # all steps, also those of the evaluations that confirmed the target; None: not recorded
    )
    samples_made: Count | None = None  # samples of all steps; None: not recorded

    @property
    def trained_s(self) -> float | None:
        """Training time of all steps, s; None if it was not recorded."""
        return None if self.steps_made is None else self.steps_made * (self.step_s or 0.0)

    @property
    def work(self) -> Work:
        """All its steps, also those after the target."""
        return Work(self.steps_made, self.samples_made, self.trained_s)

    @model_validator(mode="after")
    def _reached_has_steps(self) -> Self:
        if self.reached != (self.steps is not None):
            raise ValueError(f"reached={self.reached} cannot be combined with steps={self.steps}")
        return self
