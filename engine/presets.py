"""Configurations with a name: what there is to see in each, and where one starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.config import RunConfig, Spec, nearest
from engine.errors import ConfigError


class Preset(Spec):
    """A named configuration and what there is to see in it."""

    title: str
    teaches: str
    config: RunConfig


def _preset(title: str, teaches: str, **fields: Any) -> Preset:
    return Preset(title=title, teaches=teaches, config=RunConfig.model_validate(fields))


_MOMENTUM = {"name": "momentum", "lr": 0.02, "momentum": 0.9}
_MNIST1D = {"data": "mnist1d", "optimizer": {"name": "adam", "lr": 1e-2}, "batch_size": 100, "budget": {"steps": 6_000}}
PRESETS: Mapping[str, Preset] = {
    "mnist-mlp": _preset(
        "MLP 784-128-10 on MNIST",
        "A small fully connected net that passes 90 % within a second of training.",
        model={"family": "mlp", "hidden": [128]},
        optimizer={"name": "adam", "lr": 1e-3},
        batch_size=64,
        budget={"epochs": 20.0},
    ),
    "mnist-mlp-large": _preset(
        "MLP 784-512-256-10 on MNIST",
        "Five times the parameters: does it pay?",
        model={"family": "mlp", "hidden": [512, 256]},
        optimizer={"name": "adam", "lr": 1e-3},
        batch_size=64,
        budget={"epochs": 20.0},
    ),
    "lenet": _preset(
        "LeNet on MNIST",
        "Convolutions see shapes: fewer parameters than the small MLP, better answers.",
        model={"family": "cnn"},
        optimizer=_MOMENTUM,
        batch_size=64,
        budget={"epochs": 10.0},
    ),
    "lenet-source": _preset(
        "LeNet, learning rate 0.001",
        "The same net with a learning rate twenty times smaller: it has not arrived when the budget ends.",
        model={"family": "cnn"},
        optimizer=_MOMENTUM | {"lr": 1e-3},
        batch_size=64,
        budget={"epochs": 10.0},
    ),
    "digits-mlp": _preset(
        "MLP 64-64-10 on 8x8 digits",
        "The smallest real experiment: 1,797 images of 8x8 pixels.",
        model={"family": "mlp", "hidden": [64]},
        data="digits",
        optimizer={"name": "adam", "lr": 1e-3},
        batch_size=32,
        budget={"epochs": 40.0},
    ),
    "lr-too-high": _preset(
        "A learning rate too high",
        "The same LeNet with steps five times as long: the loss jumps about instead of settling, and once it sits at "
        "2.30 the net only guesses among ten digits.",
        model={"family": "cnn"},
        optimizer=_MOMENTUM | {"lr": 0.1},
        batch_size=64,
        budget={"epochs": 10.0},
    ),
    "mnist-gd": _preset(
        "Batch gradient descent",
        "The whole training set for every step: a smooth curve, but few steps.",
        model={"family": "mlp", "hidden": [128]},
        optimizer={"name": "gd", "lr": 0.5},
        batch_size="full",
        budget={"seconds": 10.0},
    ),
    "mnist-stochastic": _preset(
        "Stochastic gradient descent",
        "One example per step: many noisy steps.",
        model={"family": "mlp", "hidden": [128]},
        optimizer={"name": "sgd", "lr": 0.01},
        batch_size=1,
        budget={"seconds": 10.0},
    ),
    "mnist-gru": _preset(
        "GRU reads MNIST row by row",
        "A recurrent net sees 28 rows one after another, and remembers.",
        model={"family": "rnn", "cell": "gru", "hidden_size": 128},
        optimizer={"name": "adam", "lr": 1e-3},
        batch_size=64,
        budget={"epochs": 10.0},
    ),
    "mnist-vit": _preset(
        "Vision Transformer on MNIST",
        "Attention over 16 patches: on so little data it learns slower than LeNet, for four times the arithmetic.",
        model={"family": "transformer", "size": "tiny", "patch_size": 7},
        optimizer={"name": "adamw", "lr": 2e-3, "weight_decay": 0.05},
        schedule="cosine",
        warmup_steps=60,
        max_grad_norm=1.0,
        batch_size=64,
        budget={"epochs": 20.0},
    ),
    "char-decoder": _preset(
        "Transformer writes documentation",
        "A causal decoder predicts the next character of Python's documentation: 4 layers, 4 heads, width 128.",
        model={"family": "transformer", "size": "small"},
        data="text",
        optimizer={"name": "adamw", "lr": 1e-3, "beta2": 0.99, "weight_decay": 0.1},
        schedule="cosine",
        warmup_steps=100,
        lr_end=0.1,
        max_grad_norm=1.0,
        batch_size=12,
        budget={"steps": 2_000},
    ),
    "char-lstm": _preset(
        "LSTM writes documentation",
        "The same text through a recurrent net: compare its loss with the decoder's at equal arithmetic.",
        model={"family": "rnn", "cell": "lstm", "hidden_size": 128},
        data="text",
        optimizer={"name": "adam", "lr": 2e-3},
        max_grad_norm=1.0,
        batch_size=32,
        budget={"steps": 1_000},
    ),
    "mnist1d-linear": _preset(
        "MNIST-1D: softmax regression",
        "410 parameters on a signal of 40 values. Its authors report 31.5 % (Greydanus & Kobak 2020).",
        model={"family": "mlp", "hidden": []},
        **_MNIST1D,
    ),
    "mnist1d-mlp": _preset(
        "MNIST-1D: MLP 40-100-100-10",
        "15,210 parameters that must learn every position by itself. Its authors report 65.1 %.",
        model={"family": "mlp", "hidden": [100, 100]},
        **_MNIST1D,
    ),
    "mnist1d-cnn": _preset(
        "MNIST-1D: convolutions",
        "5,210 parameters that know a shift when they see one. Its authors report 92.3 %.",
        model={"family": "cnn"},
        **_MNIST1D,
    ),
    "mnist1d-gru": _preset(
        "MNIST-1D: GRU",
        "5,134 parameters that read the signal from both ends. Its authors report 89.1 %.",
        model={"family": "rnn", "cell": "gru", "hidden_size": 6, "bidirectional": True, "readout": "all"},
        **_MNIST1D,
    ),
}
STUDIES: Mapping[str, Preset] = {  # runs that are no single training
    "digits-law": _preset(
        "Batch-size law on 8x8 digits",
        "From one example per step to all of them: steps stop falling at a batch of some dozens, examples do not stop rising.",
        task="batch-law",
        model={"family": "mlp", "hidden": [64]},
        data="digits",
        optimizer={"name": "sgd", "lr": 0.06},
    ),
    "calibrate": _preset(
        "What this machine reaches",
        "Matrix products, memory, overheads and thread counts, measured: what a run's speed is compared with.",
        task="calibrate",
    ),
}
DEFAULT_PRESET = "mnist-mlp"


def preset_config(name: str) -> RunConfig:
    """The configuration of a preset; a ConfigError names the ones there are."""
    known = {**PRESETS, **STUDIES}
    if name not in known:
        raise ConfigError(
            f"preset={name!r} is not known{nearest(name, known)}.", fix=f"Choose from {', '.join(known)}."
        )
    return known[name].config
