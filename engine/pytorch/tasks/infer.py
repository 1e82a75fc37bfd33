"""The inference task: requests answered one at a time, each timed, in cells that take turns.

A timed request is two readings of the clock around one call, written into lists that were there before; on a GPU the device
is synchronised inside. Python's garbage collector is off meanwhile, or it would make some requests of small nets many times as
long. Inputs lie ready, standardised and laid out as the model reads them, and are others from request to request.
"""

from __future__ import annotations

import gc
import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.common.downsample import minmax
from engine.common.errors import ConfigError, DeviceError, EngineError
from engine.config.run import RunConfig
from engine.config.summary import model_in_words
from engine.config.tasks import Cell
from engine.events.catalog import AnyEvent
from engine.events.inference import Histogram, Latency, NotRun, Quality, Quantiles
from engine.events.lifecycle import Progress, Started
from engine.hardware import contention, energy_counters, probe
from engine.hardware.probe import Machine
from engine.hardware.rates import Unavailable
from engine.models import input_shape
from engine.planning import limits, planner, request_checks
from engine.pytorch import models
from engine.pytorch.data import Examples, tensors
from engine.pytorch.inference.decoder import Decoder
from engine.pytorch.inference.runtimes import FORMS, Answering, Form, NotOffered, Weights
from engine.pytorch.setup import set_up_arithmetic, synchronize, torch_device
from engine.pytorch.tasks.train import Clock, environment, loaded
from engine.pytorch.training.memory import allocator_peak
from engine.pytorch.training.steppers import cross_entropy
from engine.store.run import Run
from engine.studies import inference_runtimes
from engine.studies.inference import LEAST_REQUESTS, LONGEST, RUNTIME_WORDS
from engine.studies.inference_runtimes import BASES

_SLICE_S = 0.2  # of a cell, between two moments at which a run can be stopped
_OPEN_SLICE_S = 1.0  # of the open loop, whose arrivals stand still meanwhile
_MOST_IN_A_SLICE = 65_536
_POINTS, _POINTS_MEANWHILE = 2_000, 200  # of a timeline: in the last event of a cell, and in those before
_POOL, _POOL_BYTES = 32, 2**26  # different inputs of a cell
_WARM_SHARE = 0.1  # of a visit, for warming up again: the cells before it left their own data in the caches
_SPIN_NS = 300_000  # a sleep may come back so late: the rest until an arrival is spun
_TELL_EVERY_S = 0.2
_FRESH = ".fresh.safetensors"
_SLOW_TO_MAKE = {
    "compiled": 3,
    "onnxruntime": 2,
    "onnxruntime-int8": 2,
    "exported": 1,
}  # they come last in the first round


def infer(config: RunConfig, folder: Path, *, clock: Clock = time.perf_counter) -> Generator[AnyEvent, None, None]:
    """Measure the cells of `config`, of the weights of a run that lies beside `folder`, of a file, or of fresh ones.

    Raises ConfigError where the weights are missing, changed, a pickle, or another net's. A cell that cannot be measured
    is a NotRun event with its reason, and the others go on. Nothing is left in `folder`.
    """
    begun = clock()
    device = torch_device(config)
    set_up_arithmetic(config)
    path = _weights_file(config, folder)
    arrays = yield from loaded(config, clock)
    facts, sha256 = arrays.facts, arrays.sha256
    request_checks.check_request(config, facts)
    plan = planner.plan(config, data=facts)
    _, held_out = tensors(arrays, config.model)
    del arrays  # raw, and with the training split
    held_out = held_out.to(device)
    fresh = path or _fresh_weights(config, facts, folder)
    try:
        weights = Weights(fresh, config.model, facts, device)
        _check_weights(config, weights)
        synchronize(device)
        origin = clock()
        yield Started(
            at=time.time(), parameters=plan.parameters, train_flops_per_example=plan.train_flops_per_example,
            train_examples=plan.train_examples, test_examples=len(held_out), total_steps=None, setup_s=origin - begun,
            data_sha256=sha256, environment=environment(device),
        )  # fmt: skip
        bench = _Bench(config, weights, held_out, folder, plan.evaluation_batch, clock, origin)
        try:
            yield from bench.run()
        finally:
            bench.close()
    finally:
        if path is None:
            fresh.unlink(missing_ok=True)


# --- the weights --------------------------------------------------------------------------------------------------


def _weights_file(config: RunConfig, folder: Path) -> Path | None:
    """The file the weights are in; None where fresh ones are to be drawn."""
    if config.infer.weights:
        return request_checks.own_weights(config)
    if not config.infer.run:
        return None
    other = folder.parent / config.infer.run
    if not other.is_dir():
        raise ConfigError(f"infer.run={config.infer.run} is not in this store.", fix="Was it deleted? Choose another.")
    run = Run(other, keep_points=1)
    artifact = request_checks.check_run(config, run)
    path = other / request_checks.WEIGHTS_FILE
    if hashlib.sha256(path.read_bytes()).hexdigest() != artifact.sha256:
        raise ConfigError(
            f"The weights of run {run.run_id} are not those it saved: the file was changed.", fix="Train it again."
        )
    return path


def _check_weights(config: RunConfig, weights: Weights) -> None:
    net = models.build(config.model, weights.data, seed=0, device="meta")
    wanted = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    whose = f"The weights of run {config.infer.run}" if config.infer.run else f"Those in {weights.path.name}"
    name = f"{model_in_words(config.model, config.data)} on {config.data}"
    request_checks.check_tensors(request_checks.tensors_in(weights.path), wanted, whose=whose, model=name)


def _fresh_weights(config: RunConfig, facts: Any, folder: Path) -> Path:
    """First weights of the seed in a file, so that a cold start reads what it always reads."""
    path = folder / _FRESH
    model = models.build(config.model, facts, seed=config.seed)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)
    path.chmod(0o600)
    return path


# --- the clock around a request -----------------------------------------------------------------------------------


class Stopwatch:
    """Where times of requests go, ns of time.perf_counter: made before, so that nothing grows meanwhile.

    Lists: at a request of 40 us two readings of the clock cost 0.3 % of it and storing them 0.4 %; into an array it was 2.5 %.
    """

    def __init__(self, size: int = _MOST_IN_A_SLICE) -> None:
        self.size = size
        self.begun, self.ended, self.first = [0] * size, [0] * size, [0] * size  # `first` of text: the first character


def closed_loop(
    call: Callable[[Any], object], inputs: Iterator[Any], watch: Stopwatch, most: int, until_ns: int, *,
    wait: Callable[[], object] | None = None,
) -> int:  # fmt: skip
    """Requests one after another until so many are answered or the time is over; how many there were, one at least.

    Between the two readings of the clock there is the call and nothing else; on a GPU, waiting for the device.
    """
    now, begun, ended = time.perf_counter_ns, watch.begun, watch.ended
    i = -1
    if wait is None:
        for i, x in zip(range(min(most, watch.size)), inputs, strict=False):
            start = now()
            call(x)
            end = now()
            begun[i] = start
            ended[i] = end
            if end >= until_ns:
                break
        return i + 1
    wait()
    for i, x in zip(range(min(most, watch.size)), inputs, strict=False):
        start = now()
        call(x)
        wait()
        end = now()
        begun[i] = start
        ended[i] = end
        if end >= until_ns:
            break
    return i + 1


def decoding_loop(decoder: Decoder, inputs: Iterator[Any], watch: Stopwatch, most: int, until_ns: int) -> int:
    """The same of a text model, which notes by itself when its first character was there."""
    now, begun, ended, first, wait = time.perf_counter_ns, watch.begun, watch.ended, watch.first, decoder.wait
    i = -1
    for i, x in zip(range(min(most, watch.size)), inputs, strict=False):
        start = now()
        decoder(x)
        if wait:
            wait()
        end = now()
        begun[i], ended[i], first[i] = start, end, decoder.first_ns
        if end >= until_ns:
            break
    return i + 1


# --- the cells ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Served:
    """One cell and all its requests so far."""

    cell: Cell
    form: Form
    answering: Answering | None = None
    inputs: list[Any] = field(default_factory=list)
    begun: list[np.ndarray] = field(default_factory=list)  # ns; in the open loop when requests arrived
    latency: list[np.ndarray] = field(default_factory=list)  # ns
    queue: list[np.ndarray] = field(default_factory=list)  # ns, open loop
    first: list[np.ndarray] = field(default_factory=list)  # ns to the first character, text
    requests: int = 0
    seconds: float = 0.0  # timed
    busy: tuple[float, float] = (0.0, 0.0)  # what the slices took, and what they would have taken undisturbed
    offered: int = 0
    reached: int = 0
    unanswered: int = 0
    prepare_s: float = 0.0
    first_request_s: float | None = None
    warm_up_s: float = 0.0
    warm_up_requests: int = 0
    peak_bytes: int | None = None
    memory_method: str = ""
    joules: float | None = 0.0

    @property
    def seed(self) -> list[int]:
        return [self.cell.batch_size, self.cell.threads]


class _Bench:
    """All cells of a run in one process."""

    def __init__(
        self, config: RunConfig, weights: Weights, held_out: Examples, folder: Path, evaluation_batch: int, clock: Clock,
        origin: float,
    ) -> None:  # fmt: skip
        self.config, self.weights, self.held_out, self.folder = config, weights, held_out, folder
        self.evaluation_batch, self.clock = evaluation_batch, clock
        self.device, self.infer = weights.device, config.infer
        self.rounds = min(self.infer.rounds, self.infer.requests)
        self._origin_ns = time.perf_counter_ns() - int((clock() - origin) * 1e9)
        self._forms: dict[tuple[str, str], Form | str] = {}  # a reason where it cannot be made
        self._prepare_s: dict[tuple[str, str], float] = {}
        self._shared: dict[tuple[str, str, int], Answering] = {}
        self._watch = Stopwatch()
        self._energy = energy_counters.EnergyMeter(config.device)
        self._rng = np.random.default_rng(config.seed)
        self._told, self._done, self._total = -math.inf, 0, 1
        self._slice_s = _SLICE_S

    def close(self) -> None:
        self._energy.stop()
        for form in self._forms.values():
            if isinstance(form, Form):
                form.close()

    def run(self) -> Iterator[AnyEvent]:
        machine = probe.probe()
        served: list[_Served] = []
        for cell in self.config.cells:
            if reason := inference_runtimes.offered(self.config, cell) or _ability(self.config, cell, machine):
                yield NotRun(cell=cell, reason=reason)
            else:
                served.append(_Served(cell, FORMS[cell.runtime](self.weights, cell, self.config, self.folder)))
        self._total = max(1, len(served) * self.rounds)
        self._energy.start()
        if (self._energy.period_s or 0) > _SURE * self._slice_s:  # a slice must hold several of the counter's steps
            self._slice_s = _OPEN_SLICE_S
        for number in range(1, self.rounds + 1):
            order = [served[i] for i in self._rng.permutation(len(served))]
            if number == 1:  # what is quick to make has its first numbers soon
                order.sort(key=lambda s: _SLOW_TO_MAKE.get(s.cell.runtime, 0))
            for one in order:
                self._done = min(self._done + 1, self._total - 1)
                reason = yield from self._visit(one, number)
                if reason:
                    served.remove(one)
                    yield NotRun(cell=one.cell, reason=reason)
            if number == 1:  # now, and not before: someone waits for the first numbers
                yield from self._qualities(served)
                for one in served:
                    self._measure_memory(one)
                    yield from self._tell(f"Memory of {_in_words(one.cell)}")
                    if self.rounds == 1 and one.requests:
                        yield self._latency(one, number)
        yield Progress(text="Done", done=self._total, total=self._total)

    # --- one visit

    def _visit(self, one: _Served, number: int) -> Generator[AnyEvent, None, str]:
        """A round of a cell; why it cannot be measured, or nothing."""
        try:
            if one.answering is None:
                yield from self._begin(one)
            else:
                self._warm(one, _WARM_SHARE * self.infer.seconds / self.rounds)
            if self.infer.load == "open":
                yield from self._open(one, number)
            else:
                yield from self._closed(one, number)
        except NotOffered as error:
            return str(error)
        except EngineError:
            raise
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            one.answering = None
            return limits.in_words(error)
        if one.requests:
            yield self._latency(one, number)
        return ""

    def _begin(self, one: _Served) -> Iterator[AnyEvent]:
        """From weights on disk to the first answer, then warm up; none of it is in the requests that count."""
        yield from self._tell(f"Starting {_in_words(one.cell)}", at_once=True)
        one.form = self._form(one)
        one.prepare_s = self._prepare_s[one.form.precision, one.form.runtime]
        one.inputs = self._inputs(one)
        self._set_up(one.cell)
        synchronize(self.device)
        begun = self.clock()
        started = one.form.start(one.cell.threads)
        with one.form.context():
            started.call(one.inputs[0])
        synchronize(self.device)
        one.first_request_s = self.clock() - begun
        key = (one.form.precision, one.form.runtime, one.cell.threads)
        one.answering = started if one.form.is_per_cell else self._shared.setdefault(key, started)
        yield from self._tell(f"Warming up {_in_words(one.cell)}")
        self._warm(one, math.inf)

    def _form(self, one: _Served) -> Form:
        """Made once, for all cells that need it."""
        key = (one.form.precision, one.form.runtime)
        if key not in self._forms:
            begun = self.clock()
            self._set_up(one.cell)
            try:
                one.form.prepare()
                self._forms[key] = one.form
            except NotOffered as reason:
                self._forms[key] = str(reason)
            self._prepare_s[key] = self.clock() - begun
        found = self._forms[key]
        if isinstance(found, str):
            raise NotOffered(found)
        return found

    def _inputs(self, one: _Served) -> list[Any]:
        """Batches of examples not trained on, each a different one where there are enough."""
        examples, batch = self.held_out, one.cell.batch_size
        text = examples.y is None
        size = 8 * self.infer.prompt_len if text else 4 * prod(input_shape(self.config.model, self.weights.data))
        count = max(1, min(_POOL, _POOL_BYTES // (size * batch)))
        order = np.random.default_rng([self.config.seed, batch]).permutation(len(examples))
        chosen = torch.from_numpy(np.resize(order, (count, batch))).to(self.device)
        taken = [examples.take(rows * examples.seq_len if text else rows)[0] for rows in chosen]
        return [one.form.inputs(x[:, : self.infer.prompt_len].contiguous() if text else x) for x in taken]

    def _warm(self, one: _Served, at_most_s: float) -> None:
        """Requests that do not count: at least one, then until there were enough or the time is over."""
        assert one.answering
        self._set_up(one.cell)
        call, begun = one.answering.call, self.clock()
        with one.form.context():
            for i in range(self.infer.warm_up):
                call(one.inputs[i % len(one.inputs)])
                one.warm_up_requests += 1
                if self.clock() - begun > at_most_s:
                    break
        synchronize(self.device)
        one.warm_up_s += self.clock() - begun

    def _set_up(self, cell: Cell) -> None:
        set_up_arithmetic(self.config.model_copy(update={"threads": cell.threads, "precision": cell.precision}))

    def _measure_memory(self, one: _Served) -> None:
        if one.cell.runtime.startswith("onnxruntime"):
            one.memory_method = "ONNX Runtime has memory of its own, which it does not tell of"
            return
        if one.answering is None:
            return
        self._set_up(one.cell)
        call = one.answering.call
        with one.form.context():
            one.peak_bytes = allocator_peak(lambda: call(one.inputs[0]), self.device)
        one.memory_method = "PyTorch's allocator within one request, above weights and inputs"

    # --- the closed loop

    def _closed(self, one: _Served, number: int) -> Iterator[AnyEvent]:
        """Requests of this round: its share of the seconds, longer where they hold too few requests."""
        infer, spent = self.infer, 0.0
        share_s = infer.seconds / self.rounds
        most = math.ceil(infer.requests * number / self.rounds)
        least = min(most, math.ceil(min(LEAST_REQUESTS, infer.requests) * number / self.rounds))
        while one.requests < most and (spent < share_s or (one.requests < least and spent < LONGEST * share_s)):
            left = share_s - spent if spent < share_s else self._slice_s
            before = one.seconds
            self._slice(one, most - one.requests, min(self._slice_s, left))
            spent += one.seconds - before
            yield from self._tell(_in_words(one.cell))

    def _slice(self, one: _Served, most: int, seconds: float) -> None:
        """Timed requests without a break."""
        assert one.answering
        self._set_up(one.cell)
        call, inputs = one.answering.call, cycle(one.inputs)
        decoder = call if isinstance(call, Decoder) else None
        wait = (lambda: synchronize(self.device)) if self.device.type == "cuda" else None
        with _Disturbance(one) as measured, self._joules(one), one.form.context():
            gc.disable()
            try:
                begun = time.perf_counter_ns()
                until = begun + int(seconds * 1e9)
                if decoder:
                    count = decoding_loop(decoder, inputs, self._watch, most, until)
                else:
                    count = closed_loop(call, inputs, self._watch, most, until, wait=wait)
                ended = time.perf_counter_ns()
            finally:
                gc.enable()
            measured.by_clock = one.cell.threads == 1 and self.device.type == "cpu"
        one.seconds += (ended - begun) / 1e9
        one.requests += count
        starts, ends = _taken(self._watch.begun, count), _taken(self._watch.ended, count)
        one.begun.append(starts)
        one.latency.append(ends - starts)
        if decoder:
            one.first.append(_taken(self._watch.first, count) - starts)

    # --- the open loop

    def _open(self, one: _Served, number: int) -> Iterator[AnyEvent]:
        """Requests that arrive by chance over this round's share of the seconds, each begun when the last one is answered.

        Where requests are answered more slowly than they arrive, those still waiting when as much time again is over count
        with what they waited until then: leaving them out would make an overloaded cell look fast.
        """
        infer = self.infer
        window_s = infer.seconds / self.rounds
        most = math.ceil(infer.requests * number / self.rounds) - one.offered
        rng = np.random.default_rng([self.config.seed, number, *one.seed])
        due = arrivals_s(rng, infer.rate, window_s, most)
        if not len(due):
            one.seconds += window_s
            return
        loop = _OpenLoop((due * 1e9).astype(np.int64), int(window_s * 1e9))
        assert one.answering
        while not loop.is_over:
            self._set_up(one.cell)
            with _Disturbance(one), self._joules(one), one.form.context():
                gc.disable()
                try:
                    loop.go_on(
                        one.answering.call, one.inputs, int(_OPEN_SLICE_S * 1e9), lambda: synchronize(self.device)
                    )
                finally:
                    gc.enable()
            yield from self._tell(_in_words(one.cell))
        one.offered += len(due)
        one.reached += loop.in_time
        one.unanswered += loop.unanswered
        one.requests += len(due)
        one.seconds += window_s
        one.begun.append(loop.arrived)
        one.latency.append(loop.latency)
        one.queue.append(loop.queue)
        if isinstance(one.answering.call, Decoder):
            one.first.append(loop.to_first)

    # --- what comes of it

    def _latency(self, one: _Served, number: int) -> Latency:
        begun, latency = np.concatenate(one.begun), np.concatenate(one.latency) / 1e9
        is_last = number == self.rounds
        kept = minmax(latency, _POINTS if is_last else _POINTS_MEANWHILE)
        text = bool(one.first)
        ttft = tpot = None
        if text:
            first = np.concatenate(one.first) / 1e9
            answered = first > 0
            ttft = Quantiles.of(first[answered]) if answered.any() else None
            if answered.any() and self.infer.new_tokens > 1:
                after = latency - np.concatenate(one.queue) / 1e9 if one.queue else latency
                own = first - np.concatenate(one.queue) / 1e9 if one.queue else first
                tpot = Quantiles.of((after - own)[answered] / (self.infer.new_tokens - 1))
        answered_requests = one.reached if self.infer.load == "open" else one.requests
        examples = answered_requests * one.cell.batch_size
        joules, method = self._energy_of(one)
        took, undisturbed = one.busy
        return Latency(
            cell=one.cell, load=self.infer.load, round=number, rounds=self.rounds, requests=one.requests,
            seconds=one.seconds, **Quantiles.of(latency).model_dump(), samples_per_s=examples / one.seconds,
            histogram=Histogram.of(latency),
            start_s=((begun - self._origin_ns) / 1e9)[kept], latency_s=latency[kept],
            prepare_s=one.prepare_s, first_request_s=one.first_request_s, first_method=one.form.cold_method,
            warm_up_s=one.warm_up_s, warm_up_requests=one.warm_up_requests,
            wall_per_cpu=took / undisturbed if undisturbed else None,
            peak_memory_bytes=one.peak_bytes, memory_method=one.memory_method, energy_j=joules, energy_method=method,
            offered_per_s=one.offered / one.seconds if self.infer.load == "open" else None,
            reached_per_s=one.reached / one.seconds if self.infer.load == "open" else None,
            queue=Quantiles.of(np.concatenate(one.queue) / 1e9) if one.queue else None, unanswered=one.unanswered,
            ttft=ttft, tpot=tpot, tokens_per_s=examples * self.infer.new_tokens / one.seconds if text else None,
            cache=self.infer.cache if text else None,
        )  # fmt: skip

    def _joules(self, one: _Served) -> _Joules:
        return _Joules(self._energy, one)

    def _energy_of(self, one: _Served) -> tuple[float | None, str]:
        """Joules of the timed slices, where the counter moved often enough in them."""
        period = self._energy.period_s
        if one.joules is None or period is None:
            return None, self._energy.stop()[1] if self._energy.source == "none" else "The energy counter failed."
        if (slices := len(one.latency)) * period > 1.05 * _SURE * one.seconds:
            return None, (
                f"The counter moves every {period:g} s, and {slices} slices of {one.seconds / slices:.2g} s are too short for it: "
                f"set infer.seconds={math.ceil(self.rounds * period / _SURE):g}."
            )
        return one.joules, f"{self._energy.source}, over the timed slices"

    def _tell(self, text: str, *, at_once: bool = False) -> Iterator[Progress]:
        now = self.clock()
        if at_once or now - self._told >= _TELL_EVERY_S:
            self._told = now
            yield Progress(text=text, done=self._done, total=self._total)

    # --- quality

    def _qualities(self, served: Sequence[_Served]) -> Iterator[AnyEvent]:
        """What each form answers on the held-out split, beside eager fp32 on the same batches."""
        reference = self.weights.load()
        forms: dict[tuple[str, str], _Served] = {}
        for one in served:
            key = (one.form.precision, one.form.runtime)
            if one.answering and (key not in forms or _suits_better(one, forms[key])):
                forms[key] = one
        for one in forms.values():
            yield from self._quality(one, reference)

    def _quality(self, one: _Served, reference: Callable[[Tensor], Tensor]) -> Iterator[AnyEvent]:
        assert one.answering
        begun = self.clock()
        size_bytes, size_method = one.form.size()
        batch = self.evaluation_batch if one.form.takes_any_batch else one.cell.batch_size
        is_reference = one.form.precision == "fp32" and one.form.runtime in BASES
        own, base, count, far = _Sums(), _Sums(), 0, 0.0
        for x, y in self.held_out.in_order(batch):
            with torch.inference_mode():
                self._set_up(one.cell)
                own_x = x if one.form.takes_any_batch else _filled(x, batch)
                answers = one.answering.predict(own_x)[: len(x)].to(y.device)
                self._set_up(Cell(threads=one.cell.threads))  # the reference is in fp32, not in tf32
                expected = answers if is_reference else reference(x).float()
                own.add(answers, y)
                base.add(expected, y)
                far = max(far, float((answers - expected).abs().max()))
            count += y.numel()
            yield from self._tell(f"Quality of {one.form.runtime} in {one.form.precision}")
        yield Quality(
            precision=one.form.precision, runtime=one.form.runtime, test_accuracy=own.right / count,
            test_loss=own.loss / count, accuracy_change=(own.right - base.right) / count,
            loss_change=(own.loss - base.loss) / count, max_logit_difference=far, examples=count, size_bytes=size_bytes,
            size_method=size_method, seconds=self.clock() - begun,
        )  # fmt: skip


@dataclass(slots=True)
class _Sums:
    """Over the held-out split."""

    loss: float = 0.0
    right: int = 0

    def add(self, logits: Tensor, y: Tensor) -> None:
        self.loss += cross_entropy(logits, y, reduction="sum").item()
        self.right += int((logits.argmax(-1) == y).sum().item())


def _suits_better(one: _Served, other: _Served) -> bool:
    """Which cell's code to judge a form by that is made for one batch size: the largest that is no waste."""
    return not one.form.takes_any_batch and other.cell.batch_size < one.cell.batch_size <= _FAIR_BATCH


_FAIR_BATCH = 256


_SURE = 0.1  # what the counter's grain may make of the joules, as a share


def arrivals_s(rng: np.random.Generator, rate: float, seconds: float, most: int) -> np.ndarray:
    """When requests arrive within a window: a Poisson process, so the times between them are exponential."""
    if most <= 0:
        return np.empty(0)
    expected = rate * seconds
    count = min(most, int(expected + 10 * math.sqrt(expected) + 10))
    times = np.cumsum(rng.exponential(1 / rate, count))
    return times[times < seconds]


class _OpenLoop:
    """One queue and one server. Its time stands still between two calls of `go_on`."""

    def __init__(self, due_ns: np.ndarray, window_ns: int) -> None:
        self._due, self._window = due_ns, window_ns
        self._next, self._passed = 0, 0  # the next request; ns of its own time so far
        count = len(due_ns)
        self.arrived, self.latency, self.queue, self.to_first = (np.zeros(count, np.int64) for _ in range(4))
        self.in_time = 0  # answered before the window was over
        self.unanswered = 0

    @property
    def is_over(self) -> bool:
        return self._next >= len(self._due)

    def go_on(
        self, call: Callable[[Any], object], inputs: Sequence[Any], slice_ns: int, wait: Callable[[], object]
    ) -> None:
        """Answer requests for about `slice_ns`."""
        now = time.perf_counter_ns
        begin = now() - self._passed  # where its own clock reads zero
        until = now() + slice_ns
        while self._next < len(self._due):
            i, due = self._next, begin + int(self._due[self._next])
            if now() > begin + 2 * self._window:
                self._give_up(begin, now())
                return
            if min(due, now()) >= until:
                break
            self._wait_for(due)
            start = now()
            call(inputs[i % len(inputs)])
            wait()
            end = now()
            self.arrived[i], self.latency[i], self.queue[i] = due, end - due, start - due
            self.to_first[i] = getattr(call, "first_ns", due) - due
            self.in_time += end <= begin + self._window
            self._next += 1
        self._passed = now() - begin

    @staticmethod
    def _wait_for(due: int) -> None:
        """Sleep most of the time there is, and spin the rest: a sleep comes back when the system likes."""
        while (left := due - time.perf_counter_ns()) > 0:
            if left > 2 * _SPIN_NS:
                time.sleep((left - _SPIN_NS) / 1e9)

    def _give_up(self, begin: int, at: int) -> None:
        rest = slice(self._next, None)
        self.arrived[rest] = begin + self._due[rest]
        self.latency[rest] = self.queue[rest] = at - self.arrived[rest]
        self.unanswered = len(self._due) - self._next
        self._next = len(self._due)


class _Disturbance:
    """What a slice took against what it would have taken undisturbed, added to its cell."""

    def __init__(self, one: _Served) -> None:
        self._one = one
        self.by_clock = False  # one thread that never sleeps: its own CPU time is what it would have taken

    def __enter__(self) -> _Disturbance:
        self._wall, self._cpu = time.perf_counter(), time.thread_time()
        self._scheduled = contention.scheduled_s()
        return self

    def __exit__(self, *error: object) -> None:
        wall, cpu = time.perf_counter() - self._wall, time.thread_time() - self._cpu
        now = contention.scheduled_s()
        took, undisturbed = self._one.busy
        if self.by_clock:
            self._one.busy = took + wall, undisturbed + cpu
        elif now and self._scheduled:
            ran, waited = (after - before for after, before in zip(now, self._scheduled, strict=True))
            self._one.busy = took + ran + waited, undisturbed + ran


class _Joules:
    """What the energy counter moved by in a slice, added to its cell; None once it failed."""

    def __init__(self, meter: energy_counters.EnergyMeter, one: _Served) -> None:
        self._meter, self._one = meter, one

    def _read(self) -> float | None:
        self._meter.update()
        try:
            return self._meter.joules()
        except Unavailable:
            return None

    def __enter__(self) -> None:
        self._before = self._read()

    def __exit__(self, *error: object) -> None:
        now = self._read()
        known = self._one.joules is not None and self._before is not None and now is not None
        self._one.joules = self._one.joules + now - self._before if known else None  # type: ignore[operator]


def _taken(times: list[int], count: int) -> np.ndarray:
    return np.array(times[:count], np.int64)


def _filled(x: Tensor, batch: int) -> Tensor:
    """A last, smaller batch with its first example repeated: some forms take one size alone."""
    return x if len(x) == batch else torch.cat([x, x[:1].expand(batch - len(x), *x.shape[1:])])


def _ability(config: RunConfig, cell: Cell, machine: Machine) -> str:
    """Why this device cannot compute a cell; empty where it can."""
    execution = "compiled" if cell.runtime == "compiled" else "eager"
    own = {"precision": cell.precision, "execution": execution}
    try:
        planner.check_abilities(config.model_copy(update=own), machine)
    except DeviceError as error:
        return error.message
    return ""


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _in_words(cell: Cell) -> str:
    at = f"batch {cell.batch_size} x {cell.threads} thread{'' if cell.threads == 1 else 's'}"
    return f"{at}, {RUNTIME_WORDS[cell.runtime]}{'' if cell.precision == 'fp32' else f' in {cell.precision}'}"
