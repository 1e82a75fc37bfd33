"""Results of inference: latency histograms and quality of the answers."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.config.base import PrecisionName
from engine.config.tasks import Cell, RuntimeName
from engine.events.base import NOTHING, Count, EncodableStr, Event, Float32s, Int32s, Kept, Seconds

# Bins of every histogram: the same edges everywhere, so that those of two rounds, runs or machines can be added.
BIN_BASE_S = 1e-7
BIN_RATIO = 2 ** (1 / 32)  # 2.2 % wide
_MOST_BINS = 4_096  # up to more seconds than there are


class Histogram(BaseModel):
    """How many durations fell into each bin: bin k holds those from BIN_BASE_S * BIN_RATIO**k up to the next."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)

    first: Annotated[int, Field(ge=0, lt=_MOST_BINS)] = 0  # k of the first bin that is kept
    counts: Int32s = Field(default=NOTHING, validate_default=True)  # (n,) of it and those after it

    @model_validator(mode="after")
    def _counts_are_counts(self) -> Self:
        if len(self.counts) > _MOST_BINS or (len(self.counts) and self.counts.min() < 0):
            raise ValueError("a histogram of fewer than none, or of too many bins")
        return self

    @classmethod
    def of(cls, seconds: np.ndarray) -> Self:
        if not len(seconds):
            return cls()
        bins = np.floor(np.log2(np.maximum(seconds, BIN_BASE_S) / BIN_BASE_S) * 32).astype(np.int64)
        bins = np.minimum(bins, _MOST_BINS - 1)
        first = int(bins.min())
        return cls(first=first, counts=np.bincount(bins - first).astype("<i4"))

    @property
    def edges_s(self) -> np.ndarray:
        """(n + 1,): bin i lies between edges i and i + 1."""
        return BIN_BASE_S * BIN_RATIO ** np.arange(self.first, self.first + len(self.counts) + 1)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def __add__(self, other: Self) -> Self:
        parts = [h for h in (self, other) if len(h.counts)]
        if not parts:
            return self
        first, end = min(h.first for h in parts), max(h.first + len(h.counts) for h in parts)
        counts = np.zeros(end - first, "<i4")
        for part in parts:
            counts[part.first - first : part.first - first + len(part.counts)] += part.counts
        return type(self)(first=first, counts=counts)

    def quantile(self, share: float) -> float | None:
        """The upper edge of the bin that holds it: at most a bin's width too much; None of nothing."""
        if not self.total:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), math.ceil(share * self.total)))
        return float(self.edges_s[min(place, len(self.counts) - 1) + 1])


class Quantiles(BaseModel):
    """Of durations, each the smallest that so large a share of them did not exceed; of fewer than 100, p99 is the longest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    p50_s: Seconds
    p90_s: Seconds
    p99_s: Seconds
    max_s: Seconds
    mean_s: Seconds

    @classmethod
    def of(cls, seconds: np.ndarray) -> Self:
        """Of at least one."""
        p50, p90, p99 = np.percentile(seconds, [50, 90, 99], method="inverted_cdf")
        return cls(
            p50_s=float(p50),
            p90_s=float(p90),
            p99_s=float(p99),
            max_s=float(seconds.max()),
            mean_s=float(seconds.mean()),
        )


class Latency(Event):
    """One cell of an inference run as measured so far: written again after each round, and the last one counts.

    Times are those of requests after warm-up, the device synchronised at both ends. In the closed loop a request begins
    when it is sent; in the open loop when it arrived, so what it waited is in its latency (no coordinated omission).
    """

    kind: Literal["latency"] = "latency"
    kept: ClassVar[Kept] = "each key"
    cell: Cell
    load: Literal["closed", "open"] = "closed"
    round: Annotated[Count, Field(ge=1)]
    rounds: Annotated[Count, Field(ge=1)]
    requests: Annotated[Count, Field(ge=1)]
    seconds: Seconds  # wall time of the timed slices together
    p50_s: Seconds
    p90_s: Seconds
    p99_s: Seconds
    max_s: Seconds
    mean_s: Seconds
    samples_per_s: Annotated[float, Field(ge=0)]  # examples answered by `seconds`
    histogram: Histogram
    start_s: Float32s  # (k,) when requests began, since Started; at most some 2,000, extremes kept
    latency_s: Float32s  # (k,)
    prepare_s: Seconds = 0.0  # making the form that answers, once: exporting, quantising
    first_request_s: Seconds | None = None  # cold start: from the weights on disk to the first answer
    first_method: EncodableStr = ""  # what is in it, or why it is not known
    warm_up_s: Seconds = 0.0
    warm_up_requests: Count = 0
    wall_per_cpu: float | None = None  # of the timed slices; 1 where nobody else wanted the cores
    peak_memory_bytes: Count | None = None  # above the weights, while it answered
    memory_method: EncodableStr = ""
    energy_j: float | None = None  # of the timed slices
    energy_method: EncodableStr = ""  # how it was had, or why it is not known
    offered_per_s: float | None = None  # open loop: requests that arrived, by its seconds
    reached_per_s: float | None = None  # and that were answered
    queue: Quantiles | None = None  # and what they waited
    unanswered: Count = 0  # arrived, and not answered when its time was over; their wait so far counts as their latency
    ttft: Quantiles | None = None  # of text: to the first new character
    tpot: Quantiles | None = None  # and for each one after it
    tokens_per_s: float | None = None  # new characters of all examples
    cache: bool | None = None

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if len(self.start_s) != len(self.latency_s):
            raise ValueError(f"{len(self.start_s)} starts do not go with {len(self.latency_s)} latencies")
        return self

    @property
    def key(self) -> Cell:
        """The cell it measures."""
        return self.cell

    @property
    def samples_per_j(self) -> float | None:
        return self.requests * self.cell.batch_size / self.energy_j if self.energy_j else None


class Quality(Event):
    """What one form of the weights answers on the whole held-out split, and how large it is."""

    kind: Literal["quality"] = "quality"
    kept: ClassVar[Kept] = "each key"
    precision: PrecisionName
    runtime: RuntimeName
    test_accuracy: float  # 0..1
    test_loss: float
    accuracy_change: float | None = None  # against eager fp32 on the same examples
    loss_change: float | None = None
    max_logit_difference: float | None = None  # the largest |difference| of any answer to eager fp32's
    examples: Count
    size_bytes: Count | None = None  # on disk, in this form
    size_method: EncodableStr = ""
    seconds: Seconds

    @property
    def key(self) -> tuple[PrecisionName, RuntimeName]:
        """The form of the weights that answered."""
        return self.precision, self.runtime


class NotRun(Event):
    """A cell that is not measured, and why."""

    kind: Literal["not_run"] = "not_run"
    kept: ClassVar[Kept] = "each key"
    cell: Cell
    reason: EncodableStr

    @property
    def key(self) -> Cell:
        """The cell that is not measured."""
        return self.cell
