"""Named configurations, with a sentence on what each one shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.common.errors import ConfigError
from engine.config.base import Spec
from engine.config.messages import nearest
from engine.config.run import RunConfig


class Preset(Spec):
    """A named configuration and what it shows."""

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
        "A small fully connected network that passes 90 % test accuracy within a second of training.",
        model={"family": "mlp", "hidden": [128]},
        optimizer={"name": "adam", "lr": 1e-3},
        batch_size=64,
        budget={"epochs": 20.0},
    ),
    "mnist-mlp-large": _preset(
        "MLP 784-512-256-10 on MNIST",
        "This MLP has five times as many parameters as 784-128-10. See whether they are worth the time.",
        model={"family": "mlp", "hidden": [512, 256]},
        optimizer={"name": "adam", "lr": 1e-3},
        batch_size=64,
        budget={"epochs": 20.0},
    ),
    "lenet": _preset(
        "LeNet on MNIST",
        "A convolutional network. It has fewer parameters than the small MLP and is more accurate.",
        model={"family": "cnn"},
        optimizer=_MOMENTUM,
        batch_size=64,
        budget={"epochs": 10.0},
    ),
    "lenet-source": _preset(
        "LeNet, learning rate 0.001",
        "The same model with a learning rate twenty times smaller. It is still improving when the budget ends.",
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
        "Learning rate too high",
        "LeNet with a learning rate five times as high. The loss jumps instead of falling; a loss of 2.30 means that "
        "the model guesses at random.",
        model={"family": "cnn"},
        optimizer=_MOMENTUM | {"lr": 0.1},
        batch_size=64,
        budget={"epochs": 10.0},
    ),
    "mnist-gd": _preset(
        "Batch gradient descent",
        "Each step uses the whole training set, so the curve is smooth but there are few steps.",
        model={"family": "mlp", "hidden": [128]},
        optimizer={"name": "gd", "lr": 0.5},
        batch_size="full",
        budget={"seconds": 10.0},
    ),
    "mnist-stochastic": _preset(
        "Stochastic gradient descent",
        "Each step uses one sample, so there are many noisy steps.",
        model={"family": "mlp", "hidden": [128]},
        optimizer={"name": "sgd", "lr": 0.01},
        batch_size=1,
        budget={"seconds": 10.0},
    ),
    "mnist-gru": _preset(
        "GRU reads MNIST row by row",
        "A recurrent network that reads the 28 rows one after another.",
        model={"family": "rnn", "cell": "gru", "hidden_size": 128},
        optimizer={"name": "adam", "lr": 1e-3},
        batch_size=64,
        budget={"epochs": 10.0},
    ),
    "mnist-vit": _preset(
        "Vision Transformer on MNIST",
        "A Transformer with attention over 16 patches of the image. With so few images it learns more slowly than "
        "LeNet, and it needs four times the FLOPs.",
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
        "A causal decoder that predicts the next character of Python's documentation: 4 layers, 4 heads, width 128.",
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
        "A recurrent network on the same text. Compare its test loss with that of the Transformer at equal FLOPs.",
        model={"family": "rnn", "cell": "lstm", "hidden_size": 128},
        data="text",
        optimizer={"name": "adam", "lr": 2e-3},
        max_grad_norm=1.0,
        batch_size=32,
        budget={"steps": 1_000},
    ),
    "mnist1d-linear": _preset(
        "MNIST-1D: softmax regression",
        "A linear model with 410 parameters for a signal of 40 values. The authors of MNIST-1D report a test "
        "accuracy of 31.5 % (Greydanus & Kobak 2020).",
        model={"family": "mlp", "hidden": []},
        **_MNIST1D,
    ),
    "mnist1d-mlp": _preset(
        "MNIST-1D: MLP 40-100-100-10",
        "An MLP with 15,210 parameters. It learns each position of the signal separately. The authors of MNIST-1D "
        "report a test accuracy of 65.1 %.",
        model={"family": "mlp", "hidden": [100, 100]},
        **_MNIST1D,
    ),
    "mnist1d-cnn": _preset(
        "MNIST-1D: convolutions",
        "A convolutional network with 5,210 parameters. It finds a pattern at any position. The authors of MNIST-1D "
        "report a test accuracy of 92.3 %.",
        model={"family": "cnn"},
        **_MNIST1D,
    ),
    "mnist1d-gru": _preset(
        "MNIST-1D: GRU",
        "A recurrent network with 5,134 parameters. It reads the signal from both ends. The authors of MNIST-1D "
        "report a test accuracy of 89.1 %.",
        model={"family": "rnn", "cell": "gru", "hidden_size": 6, "bidirectional": True, "readout": "all"},
        **_MNIST1D,
    ),
}
STUDIES: Mapping[str, Preset] = {  # tasks other than a single training
    "digits-law": _preset(
        "Batch-size law on 8x8 digits",
        "Trains at batch sizes from one sample to the whole training set. Above a few dozen samples, a larger batch "
        "hardly saves steps, but training needs more samples in total.",
        task="batch-law",
        model={"family": "mlp", "hidden": [64]},
        data="digits",
        optimizer={"name": "sgd", "lr": 0.06},
    ),
    "calibrate": _preset(
        "Calibration of this machine",
        "Measures matrix products, memory bandwidth, overheads and the best thread count. The speed of runs is "
        "compared with these figures.",
        task="calibrate",
    ),
}
DEFAULT_PRESET = "mnist-mlp"


def preset_config(name: str) -> RunConfig:
    """The configuration of a preset.

    Raises:
        ConfigError: There is no such preset. The message names all presets.
    """
    known = {**PRESETS, **STUDIES}
    if name not in known:
        raise ConfigError(
            f"preset={name!r} is not known{nearest(name, known)}.", fix=f"Choose from {', '.join(known)}."
        )
    return known[name].config
