"""The list of charts of a run, a race and the ranks. The page, the poll and the report read it.

To add a chart of a column in a run's tables, add a row to `RUN_CHARTS`: the poll then sends its lines, the page makes a
card and the report a figure. A column of a new event also needs its reader in `engine/store/run.py`.
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
    "always",  # a card without points gives the reason
    "running",  # hidden when the run is over and has no points
    "recorded",  # from the first point on
    "on_gpu",  # for a run on a GPU, and wherever there are points
    "on_cpu",  # for a run on the CPU, and wherever there are points
    "lr_moves",  # where a schedule changes the learning rate
    "chosen",  # where the user switched it on
]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: a column of one of a run's tables."""

    key: str  # of its points in the answer to a poll; with `per_rank`, the part after "rank0_"
    name: str  # in the legend and the tooltip
    table: Table
    column: str
    color: int = 0  # index of the theme's colour
    is_noisy: bool = False  # values of single steps: drawn faint, with a smoothed line
    is_sparse: bool = False  # few points, such as evaluations: drawn with dots
    per_rank: bool = False  # one line for each rank of a run
    in_report: bool = True
    most_points: int | None = None  # sent to a browser, at most; None is the usual limit


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: its name, what it draws, its unit and axis, and how its points were obtained."""

    key: str
    title: str
    lines: tuple[Line, ...]
    how: tuple[str, ...]  # one sentence for each kind of point
    axis_title: str = ""  # of the vertical axis, where it differs from the title
    unit: str = ""  # as shown; "bytes" is shown as MiB or GiB
    of: str = ""  # the whole of a share, after the unit: "% of time"
    factor: float = 1.0  # from the column's unit to the one shown
    digits: str = ".4~g"  # d3 format of a value in the tooltip
    format: Format = "loss"  # of the value in the card's header
    tick: str = ""  # d3 format of the axis
    note: str = ""
    text_title: str = ""  # the title for text data, where it differs
    log_from: float | None = None  # ratio of largest to smallest value from which the axis is logarithmic; None: never
    from_zero: bool = False
    least: float | None = None  # the axis reaches at least this value
    most: float | None = None  # the axis hardly exceeds this value
    current: str = ""  # the value in the answer's `current` that the header shows; "": the last point
    target: str = ""  # the metric whose target is drawn here
    reading: str = ""  # the reading whose absence explains an empty chart
    shown: Shown = "always"
    wide: bool = False  # its tick labels are long, such as 0.00002
    flaw: bool = False  # a busy machine makes these values less reliable

    @property
    def is_over_time(self) -> bool:
        """True where the points have no step, and their x is the time since the run's start."""
        return all(line.table in {"throughput", "hardware", "ranks"} for line in self.lines)


# --- the rows -----------------------------------------------------------------------------------------------------

_READ_BACK = "read from the device ten times a second or less"
BINOMIAL = (
    "Its standard error is sqrt(p (1 - p) / n) for a share p of n test samples. For text it is measured from the spread "
    "between windows."
)


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
        "Test loss, measured: mean cross-entropy on the test samples at each evaluation.",
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
    ("Measured: mean cross-entropy on the test samples at each evaluation.",),
    target="test_loss",
)
ACCURACY = Chart(
    "accuracy",
    "Test accuracy",
    (Line("accuracy", "accuracy", "evaluations", "test_accuracy", is_sparse=True),),
    ("Measured: share of correct predictions on the test samples at each evaluation.", BINOMIAL),
    unit="%",
    factor=100,
    digits=".2f",
    format="accuracy",
    note="on test samples",
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
        f"Derived: samples divided by training time, over windows of {THROUGHPUT_WINDOW_S:g} s of training time, "
        "with the device synchronised at both ends.",
        "Training time does not include loading, warm-up, compiling and evaluation.",
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
        "Measured: L2 norm of all gradients together before clipping. With clipping it is recorded for every step, otherwise "
        "for the last step before each time the losses are read from the device.",
    ),
    log_from=100,
    from_zero=True,
    shown="running",
)
LR = Chart(
    "lr",
    "Learning rate",
    (Line("lr", "learning rate", "steps", "lr", most_points=500),),
    ("Derived: the value of the schedule at each step.",),
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


# All ranks end a step together, so a slow rank does not show in the time of a step. Its own work takes longest, and it
# waits least.
RANK_CHARTS = (
    _ranks(
        "rank_own",
        "A step of each rank",
        "own",
        "Measured by each rank: the time of a whole step, and the part of it without waiting, the rank's own work.",
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

# A difference between 0.1 and 0.01 counts as much as between 1 and 0.1, so these axes become logarithmic sooner.
RACE_CHARTS = (
    replace(
        LOSS, lines=LOSS.lines[:1], how=LOSS.how[:2], note="cross-entropy of each batch, nats", log_from=100, target=""
    ),
    replace(TEST_LOSS, note="cross-entropy, nats", log_from=100),
    replace(ACCURACY, note="of the test samples, %"),
    replace(GRAD_NORM, note="before clipping", shown="chosen"),
)
RACE_COLUMNS: dict[str, str] = {  # of the table above a race's charts; with several seeds, their mean
    "Loss": "Training loss, measured: mean over the batches of the last epoch, at most 100.",
    "Accuracy": f"Test accuracy, measured on the test samples at the last evaluation. {BINOMIAL}",
    "Steps": "Counted.",
    "Samples/s": "Throughput, derived: samples divided by training time, over the newest window of a running run, and over "
    "all of the training time of a finished one.",
    "Target": "Derived: at the first of two evaluations in a row that reach it, interpolated from the one before.",
}


def as_json(charts: Iterable[Chart]) -> list[dict[str, Any]]:
    """The rows as JSON for the page's script, without empty fields."""
    return [_known(asdict(chart)) | {"lines": [_known(asdict(line)) for line in chart.lines]} for chart in charts]


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None and value is not False and value != ""}
