"""Results of inference: latency, and accuracy of each precision and runtime."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.config.base import PrecisionName
from engine.config.tasks import Cell, RuntimeName
from engine.events.base import NOTHING, Count, EncodableStr, Event, Float32s, Int32s, Kept, Seconds
from engine.events.summary import Work

# All histograms have the same bin edges, so histograms of several rounds, runs or machines can be added.
BIN_BASE_S = 1e-7
BIN_RATIO = 2 ** (1 / 32)  # 2.2 % wide
_MOST_BINS = 4_096  # up to 3e31 s


class Histogram(BaseModel):
    """Number of durations in each bin. Bin k begins at BIN_BASE_S * BIN_RATIO**k seconds and ends at bin k + 1."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)

    first: Annotated[int, Field(ge=0, lt=_MOST_BINS)] = 0  # k of the first bin in `counts`
    counts: Int32s = Field(default=NOTHING, validate_default=True)  # (n,) counts of bin `first` and the following ones

    @model_validator(mode="after")
    def _counts_are_counts(self) -> Self:
        if len(self.counts) > _MOST_BINS or (len(self.counts) and self.counts.min() < 0):
            raise ValueError(f"a histogram with negative counts, or with more than {_MOST_BINS} bins")
        return self

    @classmethod
    def of(cls, seconds: np.ndarray) -> Self:
        """The histogram of durations, (n,) in seconds."""
        if not len(seconds):
            return cls()
        bins = np.floor(np.log2(np.maximum(seconds, BIN_BASE_S) / BIN_BASE_S) * 32).astype(np.int64)
        bins = np.minimum(bins, _MOST_BINS - 1)
        first = int(bins.min())
        return cls(first=first, counts=np.bincount(bins - first).astype("<i4"))

    @property
    def edges_s(self) -> np.ndarray:
        """(n + 1,) in seconds: bin i lies between edges i and i + 1."""
        return BIN_BASE_S * BIN_RATIO ** np.arange(self.first, self.first + len(self.counts) + 1)

    @property
    def total(self) -> int:
        """Number of durations."""
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
        """The duration in seconds that a `share` (0..1) of all does not exceed; None without durations.

        It is the upper edge of its bin, so it is up to 2.2 % too large.
        """
        if not self.total:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), math.ceil(share * self.total)))
        return float(self.edges_s[min(place, len(self.counts) - 1) + 1])


class Quantiles(BaseModel):
    """Quantiles of durations: N % do not exceed pN. With fewer than 100 durations, p99 is the longest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    p50_s: Seconds
    p90_s: Seconds
    p99_s: Seconds
    max_s: Seconds
    mean_s: Seconds

    @classmethod
    def of(cls, seconds: np.ndarray) -> Self:
        """The quantiles of at least one duration, (n,) in seconds."""
        p50, p90, p99 = np.percentile(seconds, [50, 90, 99], method="inverted_cdf")
        return cls(
            p50_s=float(p50),
            p90_s=float(p90),
            p99_s=float(p99),
            max_s=float(seconds.max()),
            mean_s=float(seconds.mean()),
        )


class Latency(Event):
    """Latency of one combination so far. It is written again after each round; the last one counts.

    Times are of requests after warm-up, with the device synchronised before and after. In the closed loop a request
    begins when it is sent. In the open loop it begins when it arrives, so latency includes the time in the queue (no
    coordinated omission).
    """

    kind: Literal["latency"] = "latency"
    kept: ClassVar[Kept] = "each key"
    cell: Cell
    load: Literal["closed", "open"] = "closed"
    round: Annotated[Count, Field(ge=1)]
    rounds: Annotated[Count, Field(ge=1)]
    requests: Annotated[Count, Field(ge=1)]
    seconds: Seconds  # wall time of all timed slices
    p50_s: Seconds
    p90_s: Seconds
    p99_s: Seconds
    max_s: Seconds
    mean_s: Seconds
    samples_per_s: Annotated[float, Field(ge=0)]  # samples answered, divided by `seconds`
    histogram: Histogram
    start_s: Float32s  # (k,) when requests began, since Started; downsampled to about 2,000 with the extremes
    latency_s: Float32s  # (k,) their latencies
    prepare_s: Seconds = 0.0  # one-time preparation of the runtime: export, quantisation
    first_request_s: Seconds | None = None  # cold start: from the weights on disk to the first answer
    first_method: EncodableStr = ""  # what first_request_s contains, or why it is unknown
    warm_up_s: Seconds = 0.0
    warm_up_requests: Count = 0
    wall_per_cpu: float | None = None  # wall time / CPU time of the timed slices; 1 if no other program used the cores
    peak_memory_bytes: Count | None = None  # peak above the weights during requests
    memory_method: EncodableStr = ""
    energy_j: float | None = None  # of the timed slices
    energy_method: EncodableStr = ""  # how it was measured, or why it is unknown
    offered_per_s: float | None = None  # open loop: requests that arrived per second
    reached_per_s: float | None = None  # open loop: requests that were answered per second
    queue: Quantiles | None = None  # open loop: time in the queue
    unanswered: Count = 0  # requests not answered at the end of the time; their wait until then counts as latency
    ttft: Quantiles | None = None  # text: time to first token (character)
    tpot: Quantiles | None = None  # text: time per output token after the first
    tokens_per_s: float | None = None  # text: new characters per second, over all samples
    cache: bool | None = None  # text: whether the KV cache was used

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if len(self.start_s) != len(self.latency_s):
            raise ValueError(f"{len(self.start_s)} starts, but {len(self.latency_s)} latencies")
        return self

    @property
    def work(self) -> Work:
        """The timed requests."""
        return Work(samples=self.requests * self.cell.batch_size, samples_per_s=self.samples_per_s)

    @property
    def key(self) -> Cell:
        """The cell it measures."""
        return self.cell

    @property
    def samples_per_j(self) -> float | None:
        """Samples answered per joule; None if the energy is unknown."""
        return self.requests * self.cell.batch_size / self.energy_j if self.energy_j else None


class Quality(Event):
    """Test loss and accuracy of the model in one precision and runtime, and its size."""

    kind: Literal["quality"] = "quality"
    kept: ClassVar[Kept] = "each key"
    precision: PrecisionName
    runtime: RuntimeName
    test_accuracy: float  # 0..1
    test_loss: float
    accuracy_change: float | None = None  # difference from eager fp32 on the same samples
    loss_change: float | None = None
    guess_accuracy: float | None = None  # 0..1, share of the most frequent class of the same samples
    max_logit_difference: float | None = None  # largest |difference| of a logit from that of eager fp32
    examples: Count
    size_bytes: Count | None = None  # size on disk in this precision and runtime
    size_method: EncodableStr = ""
    seconds: Seconds

    @property
    def key(self) -> tuple[PrecisionName, RuntimeName]:
        """The form of the weights that answered."""
        return self.precision, self.runtime


class NotRun(Event):
    """A combination that is not measured, and why."""

    kind: Literal["not_run"] = "not_run"
    kept: ClassVar[Kept] = "each key"
    cell: Cell
    reason: EncodableStr

    @property
    def key(self) -> Cell:
        """The cell that is not measured."""
        return self.cell
