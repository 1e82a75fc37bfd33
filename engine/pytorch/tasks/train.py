"""The training task: a generator of events.

Where the speed comes from, against the loop of the tutorials: data stays on the device, each epoch is gathered once in
its random order and batches are views of it, the optimizer is fused, and losses are read back once per chunk of steps
instead of once per step.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
import torch
from safetensors.torch import save_file

from engine import __version__
from engine.common.errors import Diverged
from engine.config.run import RunConfig
from engine.config.schedules import lr_factor
from engine.data import loading
from engine.data.datasets import BUNDLED, Arrays
from engine.data.downloads import Progress
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Artifact, Preparing, Started
from engine.events.training import Compiled, Evaluation, Memory, Steps, StepSplit, TargetReached, WarmUp
from engine.hardware import probe
from engine.planning import planner
from engine.pytorch import models
from engine.pytorch.data import Examples, tensors
from engine.pytorch.distributed import data_parallel
from engine.pytorch.distributed.data_parallel import RankNet, RankStepper
from engine.pytorch.distributed.processes import RankProcesses
from engine.pytorch.setup import set_up_arithmetic, synchronize, torch_device
from engine.pytorch.training import optimizers
from engine.pytorch.training.checkpoints import Checkpoints
from engine.pytorch.training.memory import measure_memory, with_cuda_peaks
from engine.pytorch.training.step_breakdown import split_step
from engine.pytorch.training.steppers import STEPPERS, Net, Stepper

Clock = Callable[[], float]

_CHUNK_S = 0.1  # read losses back this often: a chart needs no more, a step feels no less
_MAX_CHUNK = 2_000
_WARM_UP_STEPS = 3
_EVALUATE_EVERY_S = 0.05  # of training time, at least
_EVALUATE_SHARE = 4  # and at least this many times as long as the last evaluation took
_PROGRESS_EVERY_S = 0.25


def train(
    config: RunConfig, folder: Path, *, clock: Clock = time.perf_counter, gang: RankProcesses | None = None
) -> Generator[AnyEvent, None, None]:
    """Train as `config` says and yield the run's events, from Started to the Artifact with the weights.

    The weights go to `folder`/model.safetensors, checkpoints beside it. `clock` gives seconds. With a `gang` this process
    is rank 0 of it. Raises ConfigError where the data cannot be had, DeviceError where PyTorch does not see the device,
    Diverged when the loss becomes NaN or infinite (after the steps that led there were yielded), and RankLost when
    another rank is gone.
    """
    if gang is None:
        yield from _train(config, folder, clock, None)
        return
    try:
        yield from _train(config, folder, clock, gang)
        gang.close(orderly=True)
    except Exception as error:
        if (cause := gang.blame(error)) is error:
            raise
        raise cause from cause.__cause__ or error
    finally:
        gang.close()


def _train(
    config: RunConfig, folder: Path, clock: Clock, gang: RankProcesses | None
) -> Generator[AnyEvent, None, None]:
    begun = clock()
    device = torch_device(config)
    set_up_arithmetic(config)
    arrays = yield from loaded(config, clock)
    plan = planner.plan(config, data=arrays.facts)
    training, held_out = tensors(arrays, config.model)
    facts, sha256 = arrays.facts, arrays.sha256
    del arrays  # raw, they are as large again
    has_loader = config.execution == "dataloader"  # its batches are moved to the device one by one
    training, held_out = training if has_loader else training.to(device), held_out.to(device)
    net: Net
    stepper: Stepper | RankStepper
    if gang:
        yield from data_parallel.assembled(gang, clock)
        crew = data_parallel.RankGroup(config, 0, gang.rendezvous, gang.board, gang)
        net = RankNet(config, facts, plan, crew)
        stepper = RankStepper(net, training, plan.batch_size, config.seed)
    else:
        model = models.build(
            config.model, facts, seed=config.seed, device=device, checkpointing=config.activation_checkpointing
        )
        optimizer = (optimizers.Reference if has_loader else optimizers.build)(config.optimizer, model)
        net = Net(config, model, optimizer, plan.micro_batch)
        if config.is_parallel:
            net = data_parallel.threaded(net)
        stepper = STEPPERS[config.execution](net, training, plan.batch_size, config.seed)
    synchronize(device)
    origin = clock()  # of elapsed_s, the axis the hardware is on as well
    yield Started(
        at=time.time(),
        parameters=plan.parameters,
        train_flops_per_example=plan.train_flops_per_example,
        train_examples=len(training),
        test_examples=len(held_out),
        total_steps=plan.total_steps,
        setup_s=origin - begun,
        data_sha256=sha256,
        environment=environment(device) | data_parallel.facts(config),
    )
    yield from _made_ready(stepper, net, device, clock)
    loop = _Loop(net, stepper, held_out, plan, clock, origin)
    events = _trained(loop, training, plan)
    yield from _with_its_path(events, loop, folder) if loop.checkpoints else events
    yield _save(net, folder)


def _trained(loop: _Loop, training: Examples, plan: planner.Plan) -> Iterator[AnyEvent]:
    """The loop's events, and between them what memory it takes and what each rank does."""
    memory, last = None, None
    ranks = data_parallel.RankEvents(loop.stepper) if isinstance(loop.stepper, RankStepper) else None
    for event in loop.run():
        yield event
        if not isinstance(event, Steps):
            continue
        if memory is None:  # now, and not before: someone waits for the first point
            memory = _memory(loop, training, plan)
            yield memory
            yield _split(loop, training, plan, event.train_s[1] / len(event.loss))
        if ranks:
            yield from ranks.after(event)
            last = event
    if ranks and last:
        yield from ranks.after(last, is_last=True)
    if memory and loop.device.type == "cuda":
        net = loop.net
        yield (
            data_parallel.peaks_of_all(memory, net)
            if isinstance(net, RankNet)
            else with_cuda_peaks(memory, loop.device)
        )


def _memory(loop: _Loop, training: Examples, plan: planner.Plan) -> Memory:
    if isinstance(loop.net, RankNet):
        return data_parallel.memory_of_all(loop.net, training, loop.held_out, plan)
    return measure_memory(loop.net, training, loop.held_out, plan)


def _split(loop: _Loop, training: Examples, plan: planner.Plan, step_s: float) -> StepSplit:
    if isinstance(loop.net, RankNet):
        return data_parallel.split_of_one(loop.net, loop.stepper, training, plan, step_s)
    assert not isinstance(loop.stepper, RankStepper)
    return split_step(loop.net, loop.stepper, training, plan, step_s=step_s)


def loaded(config: RunConfig, clock: Clock) -> Generator[AnyEvent, None, Arrays]:
    """Load the run's data set and return it; yields Preparing events meanwhile.

    It is loaded in a thread so that progress events and cancellation keep working. Raises ConfigError where it cannot be
    had.
    """
    said: SimpleQueue[Progress | Arrays | BaseException] = SimpleQueue()

    def load() -> None:
        try:
            said.put(loading.load(config.data, config.source, progress=said.put))
        except BaseException as error:  # raised again where the run can tell it
            said.put(error)

    if config.data in BUNDLED:  # in memory already: a thread would only cost time
        return loading.load(config.data, config.source)
    threading.Thread(target=load, name="load", daemon=True).start()
    told, progress = clock(), Progress(f"Reading {config.data}", 0, None)
    word: Progress | Arrays | BaseException
    while True:
        try:
            word = said.get(timeout=_PROGRESS_EVERY_S)
        except Empty:  # nothing comes: between two events a run can be stopped
            word = progress
        if isinstance(word, BaseException):
            raise word
        if isinstance(word, Arrays):
            return word
        progress = word
        if clock() - told >= _PROGRESS_EVERY_S:
            told = clock()
            yield Preparing(text=progress.text, done_bytes=progress.done, total_bytes=progress.total)


def _with_its_path(events: Iterator[AnyEvent], loop: _Loop, folder: Path) -> Iterator[AnyEvent]:
    """The events of a loop that keeps checkpoints, and these, however it ends."""
    try:
        yield from events
    except GeneratorExit:  # nobody listens any more
        raise
    except BaseException:
        with contextlib.suppress(OSError):  # why the run ends counts more
            yield loop.path(folder)
        raise
    yield loop.path(folder)


def _made_ready(stepper: Stepper | RankStepper, net: Net, device: torch.device, clock: Clock) -> Iterator[AnyEvent]:
    """Compile where the run asks for it, then warm up: neither is part of training time."""
    set_up_arithmetic(net.config)
    begun = clock()
    stepper.prepare()
    synchronize(device)
    if net.config.execution in {"compiled", "cuda-graph"}:
        yield Compiled(seconds=clock() - begun)
    if net.config.execution == "cuda-graph":
        return  # what is recorded has run before
    set_up_arithmetic(net.config)
    begun = clock()
    stepper.warm_up(_WARM_UP_STEPS)
    synchronize(device)
    yield WarmUp(seconds=clock() - begun, steps=_WARM_UP_STEPS)


class _Loop:
    """Steps in chunks, evaluations between them, one clock for each."""

    def __init__(
        self,
        net: Net,
        stepper: Stepper | RankStepper,
        held_out: Examples,
        plan: planner.Plan,
        clock: Clock,
        origin: float,
    ) -> None:
        self.net, self.stepper, self.held_out, self.clock, self.origin = net, stepper, held_out, clock, origin
        self.config, self.total_steps = net.config, plan.total_steps
        self.device = torch.device(self.config.device)
        self.evaluation_batch = plan.evaluation_batch
        self.step = 0
        self.train_s = 0.0
        self.checkpoints = Checkpoints(net.config, net.model, plan.total_steps) if net.config.checkpoints else None
        self.chunk = 1  # grows until a chunk takes _CHUNK_S: the first point comes after one step
        self.evaluated = (-1, 0.0, 0.0)  # step, training clock, duration of the last evaluation
        self.reached: Evaluation | None = None  # the first of the evaluations in a row that reach the target

    def run(self) -> Iterator[AnyEvent]:
        """Train until the budget is spent or the target is reached; yields Steps, Evaluation and TargetReached events.

        Raises Diverged when the loss becomes NaN or infinite.
        """
        if self.checkpoints:
            self.checkpoints.look(0, 0.0)
        yield self._evaluate()
        while not self._is_over():
            event = self._steps(self._next_chunk())
            yield event
            self._check(event)
            if self.checkpoints:
                self.checkpoints.look(self.step, self.train_s)
            if self._evaluation_is_due():
                evaluation = self._evaluate()
                yield evaluation
                if target := self._target_reached(evaluation):
                    yield target
                    return
        if self.evaluated[0] != self.step:
            evaluation = self._evaluate()
            yield evaluation
            if target := self._target_reached(evaluation):
                yield target

    def path(self, folder: Path) -> Artifact:
        """Write the checkpoints, with the last weights among them, to `folder`."""
        assert self.checkpoints is not None
        self.checkpoints.end(self.step, self.train_s)
        return self.checkpoints.save(folder)

    def _is_over(self) -> bool:
        seconds = self.config.budget.seconds
        out_of_steps = self.total_steps is not None and self.step >= self.total_steps
        return out_of_steps or (seconds is not None and self.train_s >= seconds)

    def _next_chunk(self) -> int:
        limits = [self.chunk]
        if self.total_steps is not None:
            limits.append(self.total_steps - self.step)
        if isinstance(every := self.config.evaluate_every, int):
            limits.append(every - self.step % every)
        if self.checkpoints:
            limits.append(self.checkpoints.steps_to_next(self.step, self.train_s))
        if (seconds := self.config.budget.seconds) is not None and self.step:
            left = (seconds - self.train_s) / (self.train_s / self.step)
            limits.append(max(1, math.ceil(left)))
        return min(limits)

    def _lrs(self, count: int) -> list[float]:
        """The learning rate of each of the next steps. A run limited by time is as far as its clock says."""
        lr, per_step = self.config.optimizer.lr, self.train_s / self.step if self.step else 0.0
        if self.config.schedule == "constant" and self.step >= self.config.warmup_steps:
            return [lr] * count
        factors = []
        for i in range(count):
            share = (self.step + i) / self.total_steps if self.total_steps else 0.0
            if self.config.budget.seconds:
                share = max(share, (self.train_s + i * per_step) / self.config.budget.seconds)
            factors.append(lr_factor(self.config, self.step + i, min(share, 1.0)))
        return [lr * factor for factor in factors]

    def _steps(self, count: int) -> Steps:
        """`count` optimizer steps between two readings of the clock."""
        lrs = self._lrs(count)
        set_up_arithmetic(self.config)
        elapsed, start = self.clock() - self.origin, self.clock()
        chunk = self.stepper.steps(lrs)  # reading losses back waits for the device ...
        synchronize(self.device)  # ... but not for the last update
        took = self.clock() - start
        first, self.step = self.step + 1, self.step + count
        train_s, self.train_s = self.train_s, self.train_s + took
        self.chunk = min(_MAX_CHUNK, max(1, round(count * min(4.0, _CHUNK_S / max(took, 1e-6)))))
        return Steps(
            first=first,
            loss=chunk.losses,
            samples=chunk.samples,
            lr=lrs[0] if min(lrs) == max(lrs) else np.array(lrs),
            train_s=(train_s, self.train_s),
            elapsed_s=(elapsed, elapsed + took),
            norm_steps=first + chunk.norm_at,
            grad_norm=chunk.norms,
        )

    def _check(self, event: Steps) -> None:
        bad = np.flatnonzero(~np.isfinite(event.loss))
        if len(bad):
            step, value = event.first + int(bad[0]), event.loss[bad[0]]
            raise Diverged(
                f"The loss became {'NaN' if np.isnan(value) else 'infinite'} at step {step} with optimizer.lr={self.config.optimizer.lr:g}.",
                fix="Lower the learning rate.",
            )

    def _evaluation_is_due(self) -> bool:
        step, train_s, took = self.evaluated
        if isinstance(every := self.config.evaluate_every, int):
            return self.step % every == 0
        return self.step > step and self.train_s - train_s >= max(_EVALUATE_EVERY_S, _EVALUATE_SHARE * took)

    def _evaluate(self) -> Evaluation:
        """Mean loss and accuracy over the whole held-out split; its time is not training time."""
        set_up_arithmetic(self.config)
        start = self.clock()
        loss, correct, count = self.net.evaluated(self.held_out, self.evaluation_batch)
        test_loss, accuracy = loss / count, correct / count
        now = self.clock()
        self.evaluated = (self.step, self.train_s, now - start)
        return Evaluation(
            step=self.step,
            train_s=self.train_s,
            elapsed_s=now - self.origin,
            test_loss=test_loss,
            test_accuracy=accuracy,
            seconds=now - start,
        )

    def _target_reached(self, evaluation: Evaluation) -> TargetReached | None:
        """Two evaluations in a row: one alone may be luck. The time to the target is that of the first."""
        target = self.config.target
        if target.value is None:
            return None
        value = getattr(evaluation, target.metric)
        if not (value >= target.value if target.metric == "test_accuracy" else value <= target.value):
            self.reached = None
            return None
        first, self.reached = self.reached, self.reached or evaluation
        if first is None:
            return None
        return TargetReached(
            metric=target.metric,
            value=getattr(first, target.metric),
            step=first.step,
            train_s=first.train_s,
            elapsed_s=first.elapsed_s,
        )


def environment(device: torch.device) -> dict[str, str | int | float | None]:
    """The machine, the device, the versions of what computes, and torch's number of threads: a result's conditions."""
    return probe.environment(probe.probe(), str(device)) | {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": _dotted(torch.backends.cudnn.version()) if device.type == "cuda" else None,
        "numpy": np.__version__,
        "isoflop": __version__,
        "threads": torch.get_num_threads(),
    }


def _dotted(version: int | None) -> str | None:
    """cuDNN's 91002 as 9.10.2, its 8907 as 8.9.7: since version 9 the parts have two digits more."""
    if version is None:
        return None
    major, rest = divmod(version, 10_000 if version >= 90_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _save(net: Net, folder: Path) -> Artifact:
    """Weights without pickle, under a name that is there whole or not at all; the averaged ones where there are any."""
    path, draft = folder / "model.safetensors", folder / ".model.safetensors"
    try:
        with net.averaged():
            save_file(net.weights(), draft)
        draft.chmod(0o600)
        draft.replace(path)
    except BaseException:  # half of it on a full disk would only be in the way
        draft.unlink(missing_ok=True)
        raise
    content = path.read_bytes()
    return Artifact(name=path.name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
