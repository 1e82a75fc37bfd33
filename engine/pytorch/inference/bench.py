"""Measures all combinations of an inference run in one process. They take turns, in another order in each round.

Python's garbage collector is off in timed slices, because it makes some requests of small models many times as long.
Inputs are prepared before: standardised, laid out as the model reads them, and different from request to request.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Generator, Iterator, Sequence
from itertools import cycle
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.common.errors import DeviceError, EngineError
from engine.config.run import RunConfig
from engine.config.tasks import Cell
from engine.events.catalog import AnyEvent
from engine.events.inference import Latency, NotRun
from engine.events.lifecycle import Progress
from engine.hardware import energy_counters, probe
from engine.hardware.probe import Machine
from engine.models import input_shape
from engine.planning import limits, planner
from engine.pytorch.data import Examples
from engine.pytorch.inference.cells import ENERGY_ERROR, EnergyTimer, InterferenceTimer, MeasuredCell
from engine.pytorch.inference.decoder import Decoder
from engine.pytorch.inference.load import OpenLoop, Stopwatch, arrivals_s, closed_loop, decoding_loop
from engine.pytorch.inference.quality import judged_cells, quality
from engine.pytorch.inference.runtimes import FORMS, Answering, Form, NotOffered, Weights
from engine.pytorch.setup import Clock, set_up_arithmetic, synchronize
from engine.pytorch.training.memory import allocator_peak
from engine.studies.inference import LEAST_REQUESTS, LONGEST
from engine.studies.inference_runtimes import offered

_SLICE_S = 0.2  # of one combination: a run can be stopped between two slices
_OPEN_SLICE_S = 1.0  # of the open loop, whose arrivals stand still between two slices
_POOL, _POOL_BYTES = 32, 2**26  # different inputs of a combination, at most
_WARM_SHARE = 0.1  # of a visit for warming up again, because the combinations before it filled the caches
_PROGRESS_EVERY_S = 0.2
_SLOW_TO_PREPARE = {"compiled": 3, "onnxruntime": 2, "onnxruntime-int8": 2, "exported": 1}  # last in the first round


class Bench:
    """The measurement of all combinations of a run. Call `run`, then `close`."""

    def __init__(
        self,
        config: RunConfig,
        weights: Weights,
        test: Examples,
        folder: Path,
        evaluation_batch: int,
        clock: Clock,
        origin: float,
    ) -> None:
        """`test` is the test split on the device; `origin` is the reading of `clock` at the run's time 0."""
        self.config, self.weights, self.test, self.folder = config, weights, test, folder
        self.evaluation_batch, self.clock = evaluation_batch, clock
        self.device, self.infer = weights.device, config.infer
        self.rounds = min(self.infer.rounds, self.infer.requests)
        self._origin_ns = time.perf_counter_ns() - int((clock() - origin) * 1e9)
        self._forms: dict[tuple[str, str], Form | str] = {}  # a string is the reason why there is no form
        self._prepare_s: dict[tuple[str, str], float] = {}
        self._shared: dict[tuple[str, str, int], Answering] = {}
        self._watch = Stopwatch()
        self._energy = energy_counters.EnergyMeter(config.device)
        self._rng = np.random.default_rng(config.seed)
        self._reported, self._done, self._total = -math.inf, 0, 1
        self._slice_s = _SLICE_S

    def close(self) -> None:
        """Stop the energy counter and delete the files of the forms."""
        self._energy.stop()
        for form in self._forms.values():
            if isinstance(form, Form):
                form.close()

    def run(self) -> Iterator[AnyEvent]:
        """Measure all combinations; yields Latency, Quality and Progress events, and NotRun with the reason."""
        machine = probe.probe()
        cells: list[MeasuredCell] = []
        for cell in self.config.cells:
            if reason := offered(self.config, cell) or _why_unable(self.config, cell, machine):
                yield NotRun(cell=cell, reason=reason)
            else:
                cells.append(MeasuredCell(cell, FORMS[cell.runtime](self.weights, cell, self.config, self.folder)))
        self._total = max(1, len(cells) * self.rounds)
        self._energy.start()
        if (
            self._energy.period_s or 0
        ) > ENERGY_ERROR * self._slice_s:  # a slice must hold several steps of the counter
            self._slice_s = _OPEN_SLICE_S
        for number in range(1, self.rounds + 1):
            order = [cells[i] for i in self._rng.permutation(len(cells))]
            if number == 1:  # combinations that are quickly prepared come first, so that the first figures come soon
                order.sort(key=lambda each: _SLOW_TO_PREPARE.get(each.cell.runtime, 0))
            for measured in order:
                self._done = min(self._done + 1, self._total - 1)
                reason = yield from self._visit(measured, number)
                if reason:
                    cells.remove(measured)
                    yield NotRun(cell=measured.cell, reason=reason)
            if number == 1:  # not before, because the user waits for the first figures
                yield from self._qualities(cells)
                for measured in cells:
                    self._measure_memory(measured)
                    yield from self._progress(f"Memory of {measured.in_words()}")
                    if self.rounds == 1 and measured.requests:
                        yield self._latency(measured, number)
        yield Progress(text="Done", done=self._total, total=self._total)

    # --- one visit

    def _visit(self, measured: MeasuredCell, number: int) -> Generator[AnyEvent, None, str]:
        """One round of a combination; returns the reason why it cannot be measured, or "".

        Raises:
            EngineError: The run ends with this error.
        """
        try:
            if measured.answering is None:
                yield from self._begin(measured)
            else:
                self._warm_up(measured, _WARM_SHARE * self.infer.seconds / self.rounds)
            if self.infer.load == "open":
                yield from self._open(measured, number)
            else:
                yield from self._closed(measured, number)
        except NotOffered as error:
            return str(error)
        except EngineError:
            raise
        except Exception as error:  # each runtime has its own class for out of memory; the others are raised again
            if not _is_out_of_memory(error):
                raise
            measured.answering = None
            return limits.in_words(error)
        if measured.requests:
            yield self._latency(measured, number)
        return ""

    def _begin(self, measured: MeasuredCell) -> Iterator[AnyEvent]:
        """The cold start, from weights on disk to the first answer, then the warm-up; these requests do not count."""
        yield from self._progress(f"Starting {measured.in_words()}", at_once=True)
        measured.form = self._form(measured)
        measured.prepare_s = self._prepare_s[measured.form_key]
        measured.inputs = self._inputs(measured)
        self._set_up(measured.cell)
        synchronize(self.device)
        begun = self.clock()
        started = measured.form.start(measured.cell.threads)
        with measured.form.context():
            started.call(measured.inputs[0])
        synchronize(self.device)
        measured.first_request_s = self.clock() - begun
        key = (*measured.form_key, measured.cell.threads)
        measured.answering = started if measured.form.is_per_cell else self._shared.setdefault(key, started)
        yield from self._progress(f"Warming up {measured.in_words()}")
        self._warm_up(measured, math.inf)

    def _form(self, measured: MeasuredCell) -> Form:
        """The form of a combination, prepared once for all that share it.

        Raises:
            NotOffered: The form cannot be made here.
        """
        key = measured.form_key
        if key not in self._forms:
            begun = self.clock()
            self._set_up(measured.cell)
            try:
                measured.form.prepare()
                self._forms[key] = measured.form
            except NotOffered as reason:
                self._forms[key] = str(reason)
            self._prepare_s[key] = self.clock() - begun
        found = self._forms[key]
        if isinstance(found, str):
            raise NotOffered(found)
        return found

    def _inputs(self, measured: MeasuredCell) -> list[Any]:
        """Batches of the test split, as many different ones as there are, up to a limit."""
        examples, batch = self.test, measured.cell.batch_size
        text = examples.y is None
        size = 8 * self.infer.prompt_len if text else 4 * prod(input_shape(self.config.model, self.weights.data))
        count = max(1, min(_POOL, _POOL_BYTES // (size * batch)))
        order = np.random.default_rng([self.config.seed, batch]).permutation(len(examples))
        chosen = torch.from_numpy(np.resize(order, (count, batch))).to(self.device)
        taken = [examples.take(rows * examples.seq_len if text else rows)[0] for rows in chosen]
        return [measured.form.inputs(x[:, : self.infer.prompt_len].contiguous() if text else x) for x in taken]

    def _warm_up(self, measured: MeasuredCell, at_most_s: float) -> None:
        """Requests that do not count: `infer.warm_up` of them, or fewer (at least one) when the time is over."""
        assert measured.answering
        self._set_up(measured.cell)
        call, begun = measured.answering.call, self.clock()
        with measured.form.context():
            for i in range(self.infer.warm_up):
                call(measured.inputs[i % len(measured.inputs)])
                measured.warm_up_requests += 1
                if self.clock() - begun > at_most_s:
                    break
        synchronize(self.device)
        measured.warm_up_s += self.clock() - begun

    def _set_up(self, cell: Cell) -> None:
        set_up_arithmetic(
            self.config.model_copy(update={"threads": cell.threads, "precision": cell.precision}), flush_denormal=False
        )

    def _measure_memory(self, measured: MeasuredCell) -> None:
        if measured.cell.runtime.startswith("onnxruntime"):
            measured.memory_method = "ONNX Runtime has its own allocator, which reports no peak"
            return
        if measured.answering is None:
            return
        self._set_up(measured.cell)
        call = measured.answering.call
        with measured.form.context():
            measured.peak_bytes = allocator_peak(lambda: call(measured.inputs[0]), self.device)
        measured.memory_method = "PyTorch's allocator within one request, above weights and inputs"

    @contextlib.contextmanager
    def _timed_slice(self, measured: MeasuredCell) -> Iterator[InterferenceTimer]:
        """Context manager of a slice of timed requests: interference, energy, autograd, and no garbage collector."""
        with (
            InterferenceTimer(measured) as interference,
            EnergyTimer(self._energy, measured),
            measured.form.context(),
        ):
            gc.disable()
            try:
                yield interference
            finally:
                gc.enable()

    # --- the closed loop

    def _closed(self, measured: MeasuredCell, number: int) -> Iterator[AnyEvent]:
        """The requests of a round: for its share of the seconds, longer if these hold too few requests."""
        infer, spent = self.infer, 0.0
        share_s = infer.seconds / self.rounds
        most = math.ceil(infer.requests * number / self.rounds)
        least = min(most, math.ceil(min(LEAST_REQUESTS, infer.requests) * number / self.rounds))
        while measured.requests < most and (
            spent < share_s or (measured.requests < least and spent < LONGEST * share_s)
        ):
            left = share_s - spent if spent < share_s else self._slice_s
            before = measured.seconds
            self._slice(measured, most - measured.requests, min(self._slice_s, left))
            spent += measured.seconds - before
            yield from self._progress(measured.in_words())

    def _slice(self, measured: MeasuredCell, most: int, seconds: float) -> None:
        """Timed requests without a break."""
        assert measured.answering
        self._set_up(measured.cell)
        call, inputs = measured.answering.call, cycle(measured.inputs)
        decoder = call if isinstance(call, Decoder) else None
        wait = (lambda: synchronize(self.device)) if self.device.type == "cuda" else None
        with self._timed_slice(measured) as interference:
            begun = time.perf_counter_ns()
            until = begun + int(seconds * 1e9)
            if decoder:
                count = decoding_loop(decoder, inputs, self._watch, most, until)
            else:
                count = closed_loop(call, inputs, self._watch, most, until, wait=wait)
            ended = time.perf_counter_ns()
            interference.is_one_busy_thread = measured.cell.threads == 1 and self.device.type == "cpu"
        measured.add(*self._watch.spans(count), (ended - begun) / 1e9)
        if decoder:
            measured.first.append(self._watch.spans(count, to_first=True)[1])

    # --- the open loop

    def _open(self, measured: MeasuredCell, number: int) -> Iterator[AnyEvent]:
        """Requests that arrive at random during this round's share of the seconds.

        If requests arrive faster than they are answered, those that still wait after twice the window count with the
        time that they waited until then. Leaving them out would make an overloaded combination look fast.
        """
        infer, cell = self.infer, measured.cell
        window_s = infer.seconds / self.rounds
        most = math.ceil(infer.requests * number / self.rounds) - measured.offered
        rng = np.random.default_rng([self.config.seed, number, cell.batch_size, cell.threads])
        due = arrivals_s(rng, infer.rate, window_s, most)
        if not len(due):
            measured.seconds += window_s
            return
        loop = OpenLoop((due * 1e9).astype(np.int64), int(window_s * 1e9))
        assert measured.answering
        while not loop.is_over:
            self._set_up(cell)
            with self._timed_slice(measured):
                loop.resume(
                    measured.answering.call, measured.inputs, int(_OPEN_SLICE_S * 1e9), lambda: synchronize(self.device)
                )
            yield from self._progress(measured.in_words())
        measured.add(loop.arrived, loop.latency, window_s)
        measured.offered += len(due)
        measured.reached += loop.in_time
        measured.unanswered += loop.unanswered
        measured.queue.append(loop.queue)
        if isinstance(measured.answering.call, Decoder):
            measured.first.append(loop.to_first)

    # --- events

    def _latency(self, measured: MeasuredCell, number: int) -> Latency:
        return measured.latency_event(self.infer, number, self.rounds, self._origin_ns, self._energy)

    def _qualities(self, cells: Sequence[MeasuredCell]) -> Iterator[AnyEvent]:
        reference = self.weights.load()
        for measured in judged_cells(cells):
            yield from quality(
                measured,
                reference,
                self.test,
                self.evaluation_batch,
                set_up=self._set_up,
                progress=self._progress,
                clock=self.clock,
            )

    def _progress(self, text: str, *, at_once: bool = False) -> Iterator[Progress]:
        now = self.clock()
        if at_once or now - self._reported >= _PROGRESS_EVERY_S:
            self._reported = now
            yield Progress(text=text, done=self._done, total=self._total)


def _why_unable(config: RunConfig, cell: Cell, machine: Machine) -> str:
    """The reason why this device cannot compute a combination; "" if it can."""
    execution = "compiled" if cell.runtime == "compiled" else "eager"
    own = {"precision": cell.precision, "execution": execution}
    try:
        planner.check_abilities(config.model_copy(update=own), machine)
    except DeviceError as error:
        return error.message
    return ""


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
