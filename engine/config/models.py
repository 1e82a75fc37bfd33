"""Model families and their dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, cast, get_args

from pydantic import Field, model_validator

from engine.config.base import Spec, field, number, values
from engine.config.data import DataFacts

SizeName = Literal["tiny", "small", "base", "large"]
CUSTOM = "custom"
Sizes = Mapping[SizeName, Mapping[str, Any]]  # dimensions by size


class Model(Spec):
    """Base class of the model families. `size=base` sets every dimension at once; only the dimensions are stored.

    A family has a spec here, its arithmetic in `engine/models/<family>.py` and its module in `pytorch/models.py`.
    """

    sizes: ClassVar[Sizes]
    label: ClassVar[str]  # name in the form
    reads_text: ClassVar[bool] = False
    not_for_text: ClassVar[tuple[str, ...]] = ()  # fields that text models do not use

    @model_validator(mode="before")
    @classmethod
    def _dimensions_of_a_size(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "size" not in data:
            return data
        size, given = data["size"], {key: value for key, value in data.items() if key != "size"}
        if size == CUSTOM:
            return given
        if not isinstance(size, str) or size not in cls.sizes:
            raise ValueError(f"size={size!r} is not allowed; choose from {', '.join([*cls.sizes, CUSTOM])}")
        return {**cls.sizes[cast(SizeName, size)], **given}

    @property
    def size(self) -> SizeName | Literal["custom"]:
        """The size whose dimensions this model has, or "custom" if it has those of none."""
        own = self.model_dump()
        for name, dimensions in self.sizes.items():
            if all(own[key] == value for key, value in dimensions.items()):
                return name
        return "custom"

    def in_words(self, data: DataFacts) -> str:
        """A short name for lists, with the main dimensions."""
        raise NotImplementedError

    def why_not_text(self) -> str:
        """Why this model cannot be trained on text and what to set instead; "" if it can."""
        if self.reads_text:
            return ""
        readers = " or ".join(sorted((name for name, model in MODELS.items() if model.reads_text), reverse=True))
        return (
            f"model.family='{_family_name(type(self))}' cannot be combined with data='text', because it does not read "
            f"in order; set model.family={readers}"
        )


class MLP(Model):
    """Multilayer perceptron: fully connected layers with ReLU between them."""

    label = "MLP"
    sizes: ClassVar[Sizes] = {
        "tiny": {"hidden": (32,)},
        "small": {"hidden": (128,)},
        "base": {"hidden": (512, 256)},
        "large": {"hidden": (2048, 1024)},
    }

    family: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = values(
        (128,), "Hidden layers", min_length=0, max_length=16
    )
    """Units of each hidden layer, from first to last. Without any, the model is softmax regression."""

    def in_words(self, data: DataFacts) -> str:
        """MLP with the units of its hidden layers: MLP 512-256."""
        return "MLP " + "-".join(map(str, self.hidden)) if self.hidden else "softmax regression"


class CNN(Model):
    """Convolutional network.

    For images it is LeNet-5 (LeCun et al. 1998) with ReLU and max pooling. For signals it has three strided
    convolutions of 25 channels, like the reference network of MNIST-1D (Greydanus & Kobak 2020, arXiv:2011.14439).
    """

    label = "CNN"
    sizes: ClassVar[Sizes] = {
        "tiny": {"width": 0.5},
        "small": {"width": 1.0},
        "base": {"width": 2.0},
        "large": {"width": 4.0},
    }

    family: Literal["cnn"] = "cnn"
    width: float = number(1.0, "Width", ge=0.25, le=32)
    """Multiplies the channels and units of every layer; 1 is LeNet's 6-16-120-84."""

    def in_words(self, data: DataFacts) -> str:
        """LeNet, 1-D CNN or CNN, with the width unless it is 1."""
        name = "CNN" if data.is_yours else "1-D CNN" if data.kind == "vector" else "LeNet"
        return name if self.width == 1 else f"{name} x{self.width:g}"


class RNN(Model):
    """Recurrent network. It reads an image row by row, a signal value by value, a text character by character."""

    label = "RNN"
    reads_text = True
    not_for_text = ("bidirectional", "readout")
    sizes: ClassVar[Sizes] = {
        "tiny": {"hidden_size": 32, "num_layers": 1},
        "small": {"hidden_size": 128, "num_layers": 1},
        "base": {"hidden_size": 256, "num_layers": 2},
        "large": {"hidden_size": 512, "num_layers": 2},
    }

    family: Literal["rnn"] = "rnn"
    cell: Literal["tanh", "gru", "lstm"] = field("gru", "Cell")
    """tanh: a plain recurrent network. gru and lstm have gates that control what the state keeps."""
    hidden_size: int = field(128, "Hidden size", ge=1, le=16_384)
    """Number of units of the state."""
    num_layers: int = field(1, "Layers", ge=1, le=32)
    """Number of recurrent layers, one on top of the other."""
    bidirectional: bool = field(False, "Bidirectional")
    """Adds a second pass that reads from the end. Not allowed for text, because it would read the next character."""
    readout: Literal["last", "all"] = field("last", "Readout")
    """What the output layer reads: the state of the last step, or the states of all steps. Text models predict at
    every step."""

    def in_words(self, data: DataFacts) -> str:
        """The cell with layers and hidden size: GRU 2x256."""
        both = "bidirectional " if self.bidirectional else ""
        layers = f"{self.num_layers}x" if self.num_layers > 1 else ""
        return f"{both}{'RNN' if self.cell == 'tanh' else self.cell.upper()} {layers}{self.hidden_size}"

    def why_not_text(self) -> str:
        """Refuses a bidirectional network."""
        return (
            "model.bidirectional=true cannot be combined with data='text', because reading from the end shows the "
            "character to predict; set it to false"
            if self.bidirectional
            else ""
        )


class Transformer(Model):
    """Pre-norm Transformer: patches of an image or signal (Dosovitskiy et al. 2021), or a causal decoder for text."""

    label = "Transformer"
    reads_text = True
    not_for_text = ("patch_size",)
    sizes: ClassVar[Sizes] = {
        "tiny": {"num_layers": 2, "d_model": 64, "num_heads": 2},
        "small": {"num_layers": 4, "d_model": 128, "num_heads": 4},
        "base": {"num_layers": 6, "d_model": 256, "num_heads": 8},
        "large": {"num_layers": 8, "d_model": 512, "num_heads": 8},
    }

    family: Literal["transformer"] = "transformer"
    num_layers: int = field(4, "Layers", ge=1, le=64)
    """Number of blocks, each with attention and an MLP."""
    d_model: int = field(128, "Model width", ge=8, le=8_192)
    """Width of the residual stream."""
    num_heads: int = field(4, "Attention heads", ge=1, le=64)
    """Number of attention heads, which share the model width equally."""
    patch_size: Annotated[int, Field(ge=1, le=1_024)] | Literal["auto"] = field("auto", "Patch size")
    """Side of a patch in pixels. auto is an eighth of the image's side; a signal is cut into at most 64 patches."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model={self.d_model} is not divisible by num_heads={self.num_heads}")
        return self

    def in_words(self, data: DataFacts) -> str:
        """Transformer with layers and model width: Transformer 4x128."""
        return f"Transformer {self.num_layers}x{self.d_model}"


def _family_name(model: type[Model]) -> str:
    name: str = model.model_fields["family"].default
    return name


ModelSpec = MLP | CNN | RNN | Transformer
MODELS: Mapping[str, type[Model]] = {_family_name(model): model for model in get_args(ModelSpec)}
