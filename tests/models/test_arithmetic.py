"""The closed forms of the model families against PyTorch's own modules, flop counter, autograd and optimizers.

The cases are not the product of all choices. Each case has one batch size, and the recurrent cases contain every pair of
choices (cell, data, layers, direction, readout, batch size); a test checks that. All presets are cases as well.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from math import prod
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine import models
from engine.common.errors import ConfigError
from engine.config.data import Source
from engine.config.models import CNN, MLP, MODELS, RNN, Transformer
from engine.config.presets import PRESETS
from engine.config.training import OPTIMIZERS, Optimizer, OptimizerName
from engine.data.datasets import DATASETS, Dataset
from engine.data.loading import facts
from engine.pytorch import models as modules
from engine.pytorch.training import optimizers
from engine.pytorch.training.net import cross_entropy


def dataset(kind: str, *shape: int, num_classes: int = 10) -> Dataset:
    return Dataset(title=kind, kind=kind, shape=shape, num_classes=num_classes, train_examples=100, test_examples=20)  # type: ignore[arg-type]


# Sequences are short: the flop counter calls Python for each operation of each step.
MNIST, DIGITS, CIFAR = DATASETS["mnist5k"], DATASETS["digits"], dataset("image", 3, 32, 32)
LARGE = dataset("image", 3, 48, 40, num_classes=7)
SIGNAL, TEXT = dataset("vector", 12), dataset("text", 9, num_classes=65)
TABLE = dataset("vector", 5, num_classes=3)


# cell, data, num_layers, bidirectional, readout, batch size: every pair that a configuration allows
RECURRENT = [
    ("gru", DIGITS, 2, True, "last", 1),
    ("gru", SIGNAL, 1, True, "all", 7),
    ("gru", TEXT, 1, False, "last", 2),
    ("lstm", DIGITS, 1, True, "last", 1),
    ("lstm", DIGITS, 2, False, "all", 2),
    ("lstm", SIGNAL, 1, False, "all", 1),
    ("lstm", TEXT, 2, False, "last", 7),
    ("tanh", DIGITS, 1, False, "all", 7),
    ("tanh", SIGNAL, 2, True, "last", 2),
    ("tanh", TEXT, 1, False, "last", 1),
]


def recurrent(cell, data, num_layers, bidirectional, readout, batch_size):
    model = RNN(cell=cell, hidden_size=6, num_layers=num_layers, bidirectional=bidirectional, readout=readout)
    words = [cell, data.kind, f"{num_layers}", *(["both"] if bidirectional else []), readout]
    return "-".join(words), (model, data, batch_size)


CASES = {
    "softmax": (MLP(hidden=()), MNIST, 2),
    "mlp-small": (MLP(), MNIST, 7),
    "mlp-deep": (MLP(hidden=(7, 33, 1, 5)), MNIST, 1),
    "mlp-digits": (MLP(hidden=(512, 512)), DIGITS, 2),
    "mlp-cifar": (MLP(hidden=(64,)), CIFAR, 7),
    "mlp-table": (MLP(hidden=(8, 8)), TABLE, 1),
    "lenet": (CNN(), MNIST, 1),
    "lenet-quarter": (CNN(width=0.25), MNIST, 2),
    "lenet-odd": (CNN(width=1.7), MNIST, 7),
    "lenet-digits": (CNN(), DIGITS, 1),
    "lenet-cifar": (CNN(width=2.0), CIFAR, 2),
    "lenet-large": (CNN(), LARGE, 7),
    "cnn-signal": (CNN(), DATASETS["mnist1d"], 2),
    "cnn-table": (CNN(width=0.25), TABLE, 7),
    **dict(recurrent(*row) for row in RECURRENT),
    "vit-mnist": (Transformer(num_layers=2, d_model=16, num_heads=2), MNIST, 7),
    "vit-digits": (Transformer(num_layers=1, d_model=16, num_heads=4, patch_size=3), DIGITS, 1),
    "vit-large": (Transformer(num_layers=1, d_model=16, num_heads=1), LARGE, 2),
    "transformer-signal": (Transformer(num_layers=2, d_model=16, num_heads=2, patch_size=5), SIGNAL, 1),
    "decoder": (Transformer(num_layers=3, d_model=16, num_heads=4), TEXT, 2),
}
PRESET_CASES = {name: (p.config.model, facts(p.config.data, p.config.source)) for name, p in PRESETS.items()}
SIZE_CASES = {
    f"{family}-{size}": (model.model_validate({"size": size}), TEXT if model.reads_text else MNIST)
    for family, model in MODELS.items()
    for size in model.sizes
}
every_case = pytest.mark.parametrize(("model", "data", "batch_size"), CASES.values(), ids=CASES)
every_preset = pytest.mark.parametrize(("model", "data"), PRESET_CASES.values(), ids=PRESET_CASES)


def test_the_recurrent_cases_contain_every_allowed_pair_of_choices():
    def pairs(row):
        return {((i, row[i]), (j, row[j])) for i, j in itertools.combinations(range(len(row)), 2)}

    rows = [(cell, data.title, *others) for cell, data, *others in RECURRENT]
    every = itertools.product(*(sorted({row[i] for row in rows}) for i in range(6)))
    allowed = [row for row in every if row[1] != "text" or (not row[3] and row[4] == "last")]
    assert set().union(*map(pairs, rows)) == set().union(*map(pairs, allowed))


def batch(model, data, batch_size, device="meta"):
    """Inputs and labels of a batch, on the meta device without memory behind them."""
    shape = models.input_shape(model, data)
    if data.kind == "text":
        return (torch.zeros(batch_size, *shape, dtype=torch.int64, device=device),) * 2
    return torch.zeros(batch_size, *shape, device=device), torch.zeros(batch_size, dtype=torch.int64, device=device)


def counted_flops(model, data, batch_size):
    """(forward, forward and backward) of the flop counter. On the meta device attention is several operations; on the CPU the
    counter misses flash attention."""
    module = modules.build(model, data, seed=0, device="meta")
    x, y = batch(model, data, batch_size)
    with FlopCounterMode(display=False) as counter:
        loss = cross_entropy(module(x), y)
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops()


# --- parameters and FLOPs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "data"), [*PRESET_CASES.values(), *SIZE_CASES.values()], ids=[*PRESET_CASES, *SIZE_CASES]
)
def test_parameters_of_every_preset_and_size_match_the_module(model, data):
    module = modules.build(model, data, seed=0, device="meta")
    assert models.parameters(model, data) == sum(p.numel() for p in module.parameters())


@every_case
def test_the_module_has_the_stated_parameters_input_and_output(model, data, batch_size):
    module = modules.build(model, data, seed=0, device="meta")
    x, y = batch(model, data, batch_size)
    assert models.parameters(model, data) == sum(p.numel() for p in module.parameters())
    assert module(x).shape == (*y.shape, data.num_classes)


@every_case
def test_flops_match_the_torch_flop_counter(model, data, batch_size):
    ours = models.forward_flops_per_example(model, data), models.train_flops_per_example(model, data)
    assert tuple(batch_size * flops for flops in ours) == counted_flops(model, data, batch_size)


@every_preset
def test_flops_of_every_preset_match_the_torch_flop_counter(model, data):
    ours = models.forward_flops_per_example(model, data), models.train_flops_per_example(model, data)
    assert ours == counted_flops(model, data, 1)


def test_six_times_parameters_is_not_what_training_costs():
    """Why 6ND is never shown: it is off both ways."""
    ratios = {
        name: models.train_flops_per_example(*PRESET_CASES[name]) / (6 * models.parameters(*PRESET_CASES[name]))
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
    assert models.parameters(*PRESET_CASES[preset]) == count


# --- activations ---------------------------------------------------------------------------------------------------


def kept_bytes(model, data, batch_size, device):
    """Bytes of the distinct storages autograd keeps for the backward pass; parameters and the batch left out."""
    module = modules.build(model, data, seed=0, device=device)
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
    """oneDNN runs an LSTM on the CPU as a whole and keeps its own workspace; the meta device runs its operations separately."""
    return "meta" if isinstance(model, RNN) and model.cell == "lstm" else "cpu"


@every_case
def test_activation_bytes_are_what_autograd_keeps(model, data, batch_size):
    held = kept_bytes(model, data, batch_size, runs_composed(model))
    assert models.activation_bytes(model, data, batch_size) == held


@every_preset
def test_activation_bytes_of_every_preset_are_what_autograd_keeps(model, data):
    assert models.activation_bytes(model, data, 3) == kept_bytes(model, data, 3, runs_composed(model))


@pytest.mark.parametrize("size", [1, 3, 12, 64])
def test_activation_bytes_grow_in_proportion_to_the_batch(size):
    one = models.activation_bytes(MLP(), MNIST, 1) - 4  # the loss keeps one number whatever the batch
    assert models.activation_bytes(MLP(), MNIST, size) == size * one + 4


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
    plain, checkpointed = (models.activation_bytes(model, data, 8, checkpointing=c) for c in (False, True))
    assert checkpointed < 0.9 * plain


# --- optimizer state -----------------------------------------------------------------------------------------------


DECODER = CASES["decoder"][:2]
STATE_CASES = {name: (name, *DECODER) for name in get_args(OptimizerName)} | {
    f"{name}-{label}": (name, *case)  # their state depends on which weights are matrices
    for name in get_args(OptimizerName)
    if OPTIMIZERS[name].for_matrices
    for label, case in {
        "mlp": (MLP(), DIGITS),
        "cnn": (CNN(), DIGITS),
        "rnn": (RNN(hidden_size=5), SIGNAL),
    }.items()
}


@pytest.mark.parametrize(("name", "model", "data"), STATE_CASES.values(), ids=STATE_CASES)
def test_optimizer_bytes_match_the_optimizers_state(name, model, data):
    spec = Optimizer(name=name)
    module = modules.build(model, data, seed=0)
    optimizer = optimizers.build(spec, module)
    held = sum(t.nbytes for t in optimizer.state_tensors() if t.dim())  # a step counter has no dimension
    assert models.optimizer_bytes(spec, model, data) == held


def test_momentum_zero_keeps_no_state():
    assert models.optimizer_bytes(Optimizer(name="momentum", momentum=0.0), MLP(), MNIST) == 0


# --- what the families read ----------------------------------------------------------------------------------------


def test_patches_hold_the_whole_image():
    model = Transformer(patch_size=5)
    patches, values = models.input_shape(model, LARGE)
    assert patches * values >= prod(LARGE.shape)
    assert (patches, values) == (10 * 8, 3 * 25)


def test_a_signal_too_short_for_the_convolutions_is_refused():
    with pytest.raises(ConfigError, match=r"'cnn' cannot read samples of 2 values.*Choose model.family=mlp"):
        models.products(CNN(), replace(TABLE, shape=(2,)))


def test_a_longer_context_costs_attention_its_square():
    short, long = (facts("text", Source(seq_len=n)) for n in (64, 128))
    model = Transformer()
    positions = [
        sum(p.forward_flops for p in models.products(model, d) if p.kind == "attention") for d in (short, long)
    ]
    assert positions[1] == 4 * positions[0]
