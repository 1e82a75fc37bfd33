"""The closed forms of the model families against PyTorch's own modules, flop counter, autograd and optimizers."""

from __future__ import annotations

import functools
from dataclasses import replace
from math import prod
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine import families
from engine.config import CNN, MLP, MODELS, RNN, Optimizer, OptimizerName, Source, Transformer
from engine.datasets import DATASETS, Dataset
from engine.errors import ConfigError
from engine.loading import facts
from engine.presets import PRESETS
from engine.pytorch import models, optim
from engine.pytorch.execution import cross_entropy


def dataset(kind: str, *shape: int, num_classes: int = 10) -> Dataset:
    return Dataset(title=kind, kind=kind, shape=shape, num_classes=num_classes, train_examples=100, test_examples=20)  # type: ignore[arg-type]


# Sequences are short: the flop counter calls Python for each operation of each step.
MNIST, DIGITS, CIFAR = DATASETS["mnist5k"], DATASETS["digits"], dataset("image", 3, 32, 32)
LARGE = dataset("image", 3, 48, 40, num_classes=7)
SIGNAL, TEXT = dataset("vector", 12), dataset("text", 9, num_classes=65)
TABLE = dataset("vector", 5, num_classes=3)


def _cells(data: Dataset, **more: object) -> dict[str, tuple[RNN, Dataset]]:
    kinds = {c: RNN(cell=c, hidden_size=6, **more) for c in ("tanh", "gru", "lstm")}  # type: ignore[arg-type]
    label = "-".join([data.kind, *(f"{k}={v}" for k, v in more.items())])
    return {f"{c}-{label}": (model, data) for c, model in kinds.items()}


CASES = {
    "softmax": (MLP(hidden=()), MNIST),
    "mlp-small": (MLP(), MNIST),
    "mlp-deep": (MLP(hidden=(7, 33, 1, 5)), MNIST),
    "mlp-digits": (MLP(hidden=(512, 512)), DIGITS),
    "mlp-cifar": (MLP(hidden=(64,)), CIFAR),
    "mlp-table": (MLP(hidden=(8, 8)), TABLE),
    "lenet": (CNN(), MNIST),
    "lenet-quarter": (CNN(width=0.25), MNIST),
    "lenet-odd": (CNN(width=1.7), MNIST),
    "lenet-digits": (CNN(), DIGITS),
    "lenet-cifar": (CNN(width=2.0), CIFAR),
    "lenet-large": (CNN(), LARGE),
    "cnn-signal": (CNN(), DATASETS["mnist1d"]),
    "cnn-table": (CNN(width=0.25), TABLE),
    **_cells(SIGNAL),
    **_cells(SIGNAL, readout="all"),
    **_cells(SIGNAL, bidirectional=True),
    **_cells(SIGNAL, bidirectional=True, readout="all", num_layers=2),
    **_cells(SIGNAL, num_layers=3),
    **_cells(DIGITS),
    **_cells(TEXT),
    **_cells(TEXT, num_layers=2),
    "vit-mnist": (Transformer(num_layers=2, d_model=16, num_heads=2), MNIST),
    "vit-digits": (Transformer(num_layers=1, d_model=16, num_heads=4, patch_size=3), DIGITS),
    "vit-large": (Transformer(num_layers=1, d_model=16, num_heads=1), LARGE),
    "transformer-signal": (Transformer(num_layers=2, d_model=16, num_heads=2, patch_size=5), SIGNAL),
    "decoder": (Transformer(num_layers=3, d_model=16, num_heads=4), TEXT),
}
PRESET_CASES = {name: (p.config.model, facts(p.config.data, p.config.source)) for name, p in PRESETS.items()}
SIZE_CASES = {
    f"{family}-{size}": (model.model_validate({"size": size}), TEXT if family in {"rnn", "transformer"} else MNIST)
    for family, model in MODELS.items()
    for size in model.sizes
}
every_case = pytest.mark.parametrize(("model", "data"), CASES.values(), ids=CASES)
every_preset = pytest.mark.parametrize(("model", "data"), PRESET_CASES.values(), ids=PRESET_CASES)
every_size = pytest.mark.parametrize(("model", "data"), SIZE_CASES.values(), ids=SIZE_CASES)
every_batch = pytest.mark.parametrize("batch_size", [1, 2, 7])


def batch(model, data, batch_size, device="meta"):
    """Inputs and labels of a batch, on the meta device without memory behind them."""
    shape = families.input_shape(model, data)
    if data.kind == "text":
        return (torch.zeros(batch_size, *shape, dtype=torch.int64, device=device),) * 2
    return torch.zeros(batch_size, *shape, device=device), torch.zeros(batch_size, dtype=torch.int64, device=device)


@functools.cache
def counted_flops(model, data, batch_size):
    """(forward, forward and backward) of the flop counter. The meta device takes attention apart: on the CPU the
    counter misses flash attention."""
    module = models.build(model, data, seed=0, device="meta")
    x, y = batch(model, data, batch_size)
    with FlopCounterMode(display=False) as counter:
        loss = cross_entropy(module(x), y)
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops()


# --- parameters and FLOPs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "data"), [*CASES.values(), *PRESET_CASES.values(), *SIZE_CASES.values()],
    ids=[*CASES, *PRESET_CASES, *SIZE_CASES],
)  # fmt: skip
def test_parameters_match_the_module(model, data):
    module = models.build(model, data, seed=0, device="meta")
    assert families.parameters(model, data) == sum(p.numel() for p in module.parameters())


@every_case
@every_batch
def test_forward_flops_match_the_torch_flop_counter(model, data, batch_size):
    assert families.forward_flops_per_example(model, data) * batch_size == counted_flops(model, data, batch_size)[0]


@every_case
@every_batch
def test_training_flops_match_the_torch_flop_counter(model, data, batch_size):
    assert families.train_flops_per_example(model, data) * batch_size == counted_flops(model, data, batch_size)[1]


@every_preset
def test_flops_of_every_preset_match_the_torch_flop_counter(model, data):
    ours = families.forward_flops_per_example(model, data), families.train_flops_per_example(model, data)
    assert ours == counted_flops(model, data, 1)


@every_size
def test_flops_of_every_size_match_the_torch_flop_counter(model, data):
    assert families.train_flops_per_example(model, data) * 2 == counted_flops(model, data, 2)[1]


def test_six_times_parameters_is_not_what_training_costs():
    """Why 6ND is never shown: it is off both ways."""
    ratios = {
        name: families.train_flops_per_example(*PRESET_CASES[name]) / (6 * families.parameters(*PRESET_CASES[name]))
        for name in ("mnist-mlp", "lenet")
    }
    assert ratios["mnist-mlp"] == pytest.approx(1 / 1.49, abs=0.01)
    assert ratios["lenet"] == pytest.approx(6.2, abs=0.2)


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("mnist1d-linear", 410),
        ("mnist1d-mlp", 15_210),
        ("mnist1d-cnn", 5_210),
        ("mnist1d-gru", 5_134),
        ("lenet", 61_706),
    ],
)
def test_reference_nets_have_the_parameters_their_authors_state(preset, count):
    assert families.parameters(*PRESET_CASES[preset]) == count


# --- activations ---------------------------------------------------------------------------------------------------


def kept_bytes(model, data, batch_size, device):
    """Bytes of the distinct storages autograd keeps for the backward pass; parameters and the batch left out."""
    module = models.build(model, data, seed=0, device=device)
    x, y = batch(model, data, batch_size, device)
    others = {t.untyped_storage()._cdata for t in [*module.parameters(), x, y]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in others:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cross_entropy(module(x), y)
    return sum(storage.nbytes() for storage in kept.values())


def runs_composed(model):
    """oneDNN runs an LSTM on the CPU as a whole and keeps a workspace of its own: the meta device takes it apart."""
    return "meta" if isinstance(model, RNN) and model.cell == "lstm" else "cpu"


@every_case
@every_batch
def test_activation_bytes_are_what_autograd_keeps(model, data, batch_size):
    held = kept_bytes(model, data, batch_size, runs_composed(model))
    assert families.activation_bytes(model, data, batch_size) == held


@every_preset
def test_activation_bytes_of_every_preset_are_what_autograd_keeps(model, data):
    assert families.activation_bytes(model, data, 3) == kept_bytes(model, data, 3, runs_composed(model))


@pytest.mark.parametrize("size", [1, 3, 12, 64])
def test_activation_bytes_grow_in_proportion_to_the_batch(size):
    one = families.activation_bytes(MLP(), MNIST, 1) - 4  # the loss keeps one number whatever the batch
    assert families.activation_bytes(MLP(), MNIST, size) == size * one + 4


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (MLP(hidden=(64,) * 9), MNIST),
        (CNN(), MNIST),
        (RNN(num_layers=4), SIGNAL),
        (Transformer(num_layers=6), TEXT),
    ],
    ids=["mlp", "cnn", "rnn", "transformer"],
)
def test_checkpointing_keeps_less(model, data):
    plain, checkpointed = (families.activation_bytes(model, data, 8, checkpointing=c) for c in (False, True))
    assert checkpointed < 0.9 * plain


# --- optimizer state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", get_args(OptimizerName))
@pytest.mark.parametrize(
    ("model", "data"),
    [(MLP(), DIGITS), (CNN(), DIGITS), (RNN(hidden_size=5), SIGNAL), CASES["decoder"]],
    ids=["mlp", "cnn", "rnn", "decoder"],
)
def test_optimizer_bytes_match_the_optimizers_state(name, model, data):
    spec = Optimizer(name=name)
    module = models.build(model, data, seed=0)
    optimizer = optim.build(spec, module)
    held = sum(t.nbytes for t in optimizer.state_tensors() if t.dim())  # a step counter has no dimension
    assert families.optimizer_bytes(spec, model, data) == held


def test_momentum_zero_keeps_no_state():
    assert families.optimizer_bytes(Optimizer(name="momentum", momentum=0.0), MLP(), MNIST) == 0


# --- what the families read ----------------------------------------------------------------------------------------


@every_case
def test_the_module_reads_the_stated_input_and_answers_one_logit_per_class(model, data):
    module = models.build(model, data, seed=0, device="meta")
    x, y = batch(model, data, 2)
    assert module(x).shape == (*y.shape, data.num_classes)


def test_patches_hold_the_whole_image():
    model = Transformer(patch_size=5)
    patches, values = families.input_shape(model, LARGE)
    assert patches * values >= prod(LARGE.shape)
    assert (patches, values) == (10 * 8, 3 * 25)


def test_a_signal_too_short_for_the_convolutions_is_refused():
    with pytest.raises(ConfigError, match=r"'cnn' does not go with examples of 2 values.*Choose model.family=mlp"):
        families.products(CNN(), replace(TABLE, shape=(2,)))


def test_a_longer_context_costs_attention_its_square():
    short, long = (facts("text", Source(seq_len=n)) for n in (64, 128))
    model = Transformer()
    positions = [
        sum(p.forward_flops for p in families.products(model, d) if p.kind == "attention") for d in (short, long)
    ]
    assert positions[1] == 4 * positions[0]
