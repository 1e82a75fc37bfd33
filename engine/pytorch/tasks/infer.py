"""The inference task: it loads the weights and yields the events of their measurement (`inference/bench.py`)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator
from pathlib import Path

from safetensors.torch import save_file

from engine.common.errors import ConfigError
from engine.config.run import RunConfig
from engine.config.summary import model_in_words
from engine.data.datasets import Dataset
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Started
from engine.planning import planner, request_checks
from engine.pytorch import models
from engine.pytorch.data import tensors
from engine.pytorch.inference.bench import Bench
from engine.pytorch.inference.runtimes import Weights
from engine.pytorch.loading import data_facts, load_dataset
from engine.pytorch.setup import Clock, environment, set_up_arithmetic, synchronize, torch_device
from engine.store.run import Run

_FRESH_WEIGHTS = ".fresh.safetensors"


def infer(config: RunConfig, folder: Path, *, clock: Clock = time.perf_counter) -> Generator[AnyEvent, None, None]:
    """Measure the combinations of `config` with the weights of a run, of a file, or fresh ones from the seed.

    The run's folder must be beside `folder`. `clock` gives seconds. A combination that cannot be measured is a NotRun
    event with its reason, and the others go on. Nothing is left in `folder`.

    Raises:
        ConfigError: The weights are missing, changed, a pickle, or those of another model.
        DeviceError: PyTorch does not see the device.
    """
    begun = clock()
    device = torch_device(config)
    set_up_arithmetic(config, flush_denormal=False)
    path = _weights_file(config, folder)
    arrays = yield from load_dataset(config, clock)
    facts, about_data = arrays.facts, data_facts(arrays)
    request_checks.check_request(config, facts)
    plan = planner.plan(config, data=facts)
    _, test = tensors(arrays, config.model)
    del arrays  # it holds the raw data and the training split
    test = test.to(device)
    source = path or fresh_weights(config, facts, folder)
    try:
        weights = Weights(source, config.model, facts, device)
        _check_weights(config, weights)
        synchronize(device)
        origin = clock()
        yield Started(
            at=time.time(),
            parameters=plan.parameters,
            train_flops_per_example=plan.train_flops_per_example,
            train_examples=plan.train_examples,
            test_examples=len(test),
            total_steps=None,
            setup_s=origin - begun,
            **about_data,
            environment=environment(device),
        )
        bench = Bench(config, weights, test, folder, plan.evaluation_batch, clock, origin)
        try:
            yield from bench.run()
        finally:
            bench.close()
    finally:
        if path is None:
            source.unlink(missing_ok=True)


# --- the weights --------------------------------------------------------------------------------------------------


def _weights_file(config: RunConfig, folder: Path) -> Path | None:
    """The file of the weights; None if fresh ones are asked for.

    Raises:
        ConfigError: The run is missing or has no weights for this configuration, or its file was changed.
    """
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
            f"The weights of run {run.run_id} are not those that it saved: the file was changed.", fix="Train it again."
        )
    return path


def _check_weights(config: RunConfig, weights: Weights) -> None:
    model = models.build(config.model, weights.data, seed=0, device="meta")
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    whose = f"The weights of run {config.infer.run}" if config.infer.run else f"Those in {weights.path.name}"
    name = f"{model_in_words(config.model, config.data)} on {config.data}"
    request_checks.check_tensors(request_checks.tensors_in(weights.path), wanted, whose=whose, model=name)


def fresh_weights(config: RunConfig, facts: Dataset, folder: Path) -> Path:
    """Write the initial weights of the seed to a file in `folder`, so that a cold start reads a file as always."""
    path = folder / _FRESH_WEIGHTS
    model = models.build(config.model, facts, seed=config.seed)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)
    path.chmod(0o600)
    return path
