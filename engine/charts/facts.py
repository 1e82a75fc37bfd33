"""The charts of a run's page, of a race and of a report: a row each, read by page, polls and report.

To add a chart of a column that a run's tables have, add a row to `RUN_CHARTS`: the poll then sends its lines, the page
makes a card and the report a figure. A column of a new event also needs its reader in `store.Run`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from engine.hardware.sampler import READINGS
from engine.store.run import THROUGHPUT_WINDOW_S

Table = Literal["steps", "evaluations", "grad_norms", "throughput", "hardware", "ranks"]
Format = Literal["loss", "accuracy", "count", "whole", "three_digits", "precise", "bytes"]
Shown = Literal[
    "always",  # without points the card says why there are none
    "running",  # until the run is over without a point
    "recorded",  # from the first point on
    "on_gpu",  # for a run on a GPU, and where there are points
    "on_cpu",  # for a run on the CPU, and where there are points
    "lr_moves",  # where a schedule changes the learning rate
    "chosen",  # where the reader switched it on
]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: a column of one of a run's tables."""

    key: str  # of its points in the answer to a poll; with `per_rank` the part after "rank0_"
    name: str  # in the legend and beside the pointer
    table: Table
    column: str
    color: int = 0  # place among the theme's colours
    is_noisy: bool = False  # values of single steps: faint, with a smooth line through them
    is_sparse: bool = False  # few points, such as evaluations: they get dots
    per_rank: bool = False  # one line for each rank of a run
    in_report: bool = True
    most_points: int | None = None  # sent to a browser; None: as many as of any line


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: its name, what it draws, its unit and axis, and how its points were obtained."""

    key: str
    title: str
    lines: tuple[Line, ...]
    how: tuple[str, ...]  # one sentence for each kind of point
    axis_title: str = ""  # of the vertical axis, where that is not the title
    unit: str = ""  # as shown; "bytes" is shown as MiB or GiB
    of: str = ""  # what a share is a share of, after the unit: "% of time"
    factor: float = 1.0  # from the column's unit to the one shown
    digits: str = ".4~g"  # d3 format of a value beside the pointer
    format: Format = "loss"  # of the value in the card's header
    tick: str = ""  # d3 format of the axis
    note: str = ""
    text_title: str = ""  # where the data is text and that changes the name
    log_from: float | None = None  # logarithmic where the largest value is so many times the smallest; None: never
    from_zero: bool = False
    least: float | None = None  # the axis reaches at least to here
    most: float | None = None  # and at most a little beyond here
    current: str = ""  # the value in the answer's `current` that the header shows; "": the last point
    target: str = ""  # the metric whose target is drawn here
    reading: str = ""  # the reading whose absence explains an empty chart
    shown: Shown = "always"
    wide: bool = False  # its tick labels are long, such as 0.00002
    flaw: bool = False  # a busy machine makes these values worth less

    @property
    def is_over_time(self) -> bool:
        """True where the points have no step and stand at the seconds since the run's start."""
        return all(line.table in {"throughput", "hardware", "ranks"} for line in self.lines)


# --- the rows -----------------------------------------------------------------------------------------------------

_READ_BACK = "read from the device ten times a second or less"
BINOMIAL = "Uncertain by chance alone: one standard error is sqrt(p (1 - p) / n) for a share p of n test examples."


def _readings(*names: str) -> tuple[str, ...]:
    return tuple(f"{READINGS[name].title}, measured: {READINGS[name].how}." for name in names)


def _hardware(
    key: str,
    title: str,
    column: str,
    unit: str,
    *,
    more: tuple[Line, ...] = (),
    name: str = "",
    line_key: str = "",
    **facts: Any,
) -> Chart:
    """The row of a hardware reading; `more` are further readings that the page draws beside it."""
    lines = (Line(line_key or key, name or title, "hardware", column), *more)
    how = _readings(*(line.column for line in lines))
    return Chart(key, title, lines, how, unit=unit, reading=column, from_zero=True, **facts)


LOSS = Chart(
    "loss",
    "Training loss",
    (
        Line("loss", "each step", "steps", "loss", is_noisy=True),
        Line("test_loss", "test loss", "evaluations", "test_loss", color=1, is_sparse=True),
    ),
    (
        f"Each step, measured: mean cross-entropy of its batch before the step, {_READ_BACK}.",
        "Smoothed, derived: a moving average.",
        "Test loss, measured: mean cross-entropy on the test examples at each evaluation.",
        "The figure, measured: mean over the batches of the last epoch, at most 100.",
    ),
    axis_title="Loss",
    log_from=1e4,
    current="loss",
    target="test_loss",
)
TEST_LOSS = Chart(
    "test_loss",
    "Test loss",
    (Line("test_loss", "Test loss", "evaluations", "test_loss", is_sparse=True),),
    ("Measured: mean cross-entropy on the test examples at each evaluation.",),
    target="test_loss",
)
ACCURACY = Chart(
    "accuracy",
    "Test accuracy",
    (Line("accuracy", "accuracy", "evaluations", "test_accuracy", is_sparse=True),),
    ("Measured: share of right answers on the test examples at each evaluation.", BINOMIAL),
    unit="%",
    factor=100,
    digits=".2f",
    format="accuracy",
    note="on examples not trained on",
    text_title="Next-character accuracy",
    most=100,
    current="test_accuracy",
    target="test_accuracy",
)
THROUGHPUT = Chart(
    "throughput",
    "Throughput",
    (Line("throughput", "throughput", "throughput", "samples_per_s"),),
    (
        f"Derived: examples divided by training time, over windows of {THROUGHPUT_WINDOW_S:g} s of training time, "
        "with the device synchronised at both ends.",
        "Loading, warm-up, compiling and evaluation are left out.",
    ),
    unit="samples/s",
    digits=".4s",
    format="count",
    tick="~s",
    note="training time only",
    from_zero=True,
    current="samples_per_s",
    flaw=True,
)
GRAD_NORM = Chart(
    "grad_norm",
    "Gradient norm",
    (Line("grad_norm", "measured", "grad_norms", "grad_norm", is_noisy=True),),
    (
        "Measured: L2 norm of all gradients together before clipping. It is known for every step where gradients are "
        "clipped, otherwise for the last step before each time the losses are read from the device.",
    ),
    log_from=100,
    from_zero=True,
    shown="running",
)
LR = Chart(
    "lr",
    "Learning rate",
    (Line("lr", "learning rate", "steps", "lr", most_points=500),),
    ("Derived: what the schedule gives for each step.",),
    digits=".3~g",
    format="precise",
    tick="~g",
    from_zero=True,
    shown="lr_moves",
    wide=True,
)

RUN_CHARTS = (
    LOSS,
    ACCURACY,
    THROUGHPUT,
    GRAD_NORM,
    LR,
    _hardware(
        "memory",
        "Process memory",
        "process_memory_bytes",
        "bytes",
        line_key="process_memory",
        format="bytes",
        note="whole process, includes PyTorch",
    ),
    _hardware(
        "cpu",
        "Process CPU",
        "process_cpu_percent",
        "%",
        line_key="process_cpu",
        name="this run, of one core",
        of="of one core",
        more=(Line("system_cpu", "whole machine", "hardware", "system_cpu_percent", color=1, in_report=False),),
        digits=".0f",
        format="whole",
        least=100,
    ),
    _hardware(
        "gpu",
        "GPU busy",
        "gpu_utilization_percent",
        "%",
        line_key="gpu_utilization",
        of="of time",
        digits=".0f",
        format="whole",
        note="share of time in which a kernel ran",
        least=100,
    ),
    _hardware(
        "gpu_memory",
        "GPU memory",
        "gpu_memory_used_bytes",
        "bytes",
        format="bytes",
        note="all programs on the device",
        shown="recorded",
    ),
    _hardware(
        "power",
        "GPU power",
        "gpu_power_w",
        "W",
        line_key="gpu_power",
        digits=".3~r",
        format="three_digits",
        note="all programs on the device",
        shown="on_gpu",
    ),
    _hardware(
        "cpu_power",
        "CPU power",
        "cpu_power_w",
        "W",
        digits=".3~r",
        format="three_digits",
        note="all programs on the machine",
        shown="on_cpu",
    ),
    _hardware(
        "clock",
        "GPU clock",
        "gpu_sm_clock_hz",
        "MHz",
        line_key="gpu_clock",
        factor=1e-6,
        digits=",.0f",
        format="whole",
        shown="recorded",
    ),
    _hardware(
        "temperature",
        "GPU temperature",
        "gpu_temperature_c",
        "°C",
        line_key="gpu_temperature",
        digits=".0f",
        format="whole",
        shown="recorded",
    ),
)


def _ranks(key: str, title: str, what: str, how: str, unit: str, **facts: Any) -> Chart:
    line = Line(what, facts.pop("name", ""), "ranks", what, per_rank=True, is_sparse=True)
    return Chart(
        key,
        title,
        (*facts.pop("first", ()), line),
        (how,),
        unit=unit,
        from_zero=True,
        shown="recorded",
        **{"format": "three_digits"} | facts,
    )


# A slow rank does not show in the time of a step, because all ranks end a step together. It shows in the time of its
# own work, and in that it waits least.
RANK_CHARTS = (
    _ranks(
        "rank_own",
        "A step of each rank",
        "own",
        "Measured by each rank: the time of a whole step, and of it the part that is the rank's own work, not waiting.",
        "ms",
        factor=1e3,
        digits=".3~g",
        name="works",
        first=(Line("rank0_step", "whole step", "ranks", "step", color=7, is_sparse=True),),
    ),
    _ranks(
        "rank_waits",
        "Ranks wait in all-reduce",
        "waits",
        "Derived: the time a rank waits for the others, divided by the time of a step.",
        "% of a step",
        factor=100,
        digits=".0f",
        least=10,
    ),
    _ranks(
        "rank_cpu",
        "CPU of each rank",
        "cpu",
        "Measured: CPU time of the rank's process divided by wall time.",
        "%",
        of="of one core",
        factor=100,
        digits=".0f",
        least=100,
    ),
    _ranks(
        "rank_memory",
        "Memory of each rank",
        "memory",
        "Measured: resident memory of the rank's process.",
        "bytes",
        format="bytes",
    ),
)

# Lanes that end at 0.1 and 0.01 differ as much as those that end at 1 and 0.1, so these axes become logarithmic sooner.
RACE_CHARTS = (
    replace(
        LOSS, lines=LOSS.lines[:1], how=LOSS.how[:2], note="cross-entropy of each batch, nats", log_from=100, target=""
    ),
    replace(TEST_LOSS, note="cross-entropy, nats", log_from=100),
    replace(ACCURACY, note="of the test examples, %"),
    replace(GRAD_NORM, note="before clipping", shown="chosen"),
)
RACE_COLUMNS: dict[str, str] = {  # of the rows above a race's charts; where a lane has several seeds, their mean
    "Loss": "Training loss, measured: mean over the batches of the last epoch, at most 100.",
    "Accuracy": f"Test accuracy, measured on the test examples at the last evaluation. {BINOMIAL}",
    "Steps": "Counted.",
    "Samples/s": "Throughput, derived: examples divided by training time; over the newest window while a run goes on, "
    "over all of its training time when it is over.",
    "Target": "Measured: the first of two evaluations in a row that reach it, interpolated from the one before.",
}


def as_json(charts: Iterable[Chart]) -> list[dict[str, Any]]:
    """The rows as a page's script reads them; what a row leaves empty is left out."""
    return [_known(asdict(chart)) | {"lines": [_known(asdict(line)) for line in chart.lines]} for chart in charts]


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None and value is not False and value != ""}
