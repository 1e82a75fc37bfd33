"""Checks of an inference request and of the weights that answer it, before anything starts."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from engine import models
from engine.common.errors import ConfigError
from engine.config.parsing import overrides_from
from engine.config.run import RunConfig
from engine.config.summary import model_in_words
from engine.data.datasets import Dataset
from engine.events.lifecycle import Artifact
from engine.store.run import Run

WEIGHTS_FILE = "model.safetensors"


def check_request(config: RunConfig, data: Dataset) -> None:
    """Check the shape or the length of an inference request.

    Raises:
        ConfigError: the model cannot read `infer.shape`, or that many characters.
    """
    infer, model = config.infer, config.model
    if data.kind == "text":
        room = data.shape[0]
        if models.family_of(model).limits_context and infer.prompt_len + infer.new_tokens > room:
            raise ConfigError(
                f"infer.prompt_len={infer.prompt_len} and infer.new_tokens={infer.new_tokens} are more than the {room} "
                "characters of this model's context.",
                fix=f"Choose a sum of at most {room}, or a model with a longer context (source.seq_len).",
            )
    if infer.shape:
        _check_shape(config, data)


def _check_shape(config: RunConfig, data: Dataset) -> None:
    given, reads = config.infer.shape, models.input_shape(config.model, data)
    if given in {data.shape, reads, (1, *data.shape), (1, *reads)}:
        return
    if given[1:] in {data.shape, reads}:
        raise ConfigError(
            f"infer.shape={shape_in_words(given)} begins with {given[0]}, which is the number of samples of a request.",
            fix=f"Set batch_size={given[0]}, and leave infer.shape empty.",
        )
    name = model_in_words(config.model, config.data)
    raise ConfigError(
        f"infer.shape={shape_in_words(given)} is not what this {name} takes: {_why_not(config, data, given)}.",
        fix=f"Leave infer.shape empty for {shape_in_words(data.shape)}, or scale your samples to that.",
    )


def _why_not(config: RunConfig, data: Dataset, given: tuple[int, ...]) -> str:
    shape = given[1:] if len(given) > len(data.shape) and given[0] == 1 else given
    reason = models.family_of(config.model).why_not_shape(config.model, data, shape)
    return f"it takes {shape_in_words(data.shape)}{', and ' if reason else ''}{reason}"


def shape_in_words(shape: Iterable[int]) -> str:
    """A shape as text, such as 1x28x28."""
    return "x".join(map(str, shape))


def weights_of(run: Run) -> Artifact | None:
    """The weights that a run saved; None if it saved none."""
    return next((artifact for artifact in run.all(Artifact) if artifact.name == WEIGHTS_FILE), None)


def check_run(config: RunConfig, run: Run) -> Artifact:
    """The weights of a run, if they can be used for `config`.

    Raises:
        ConfigError: they cannot; the message says why.
    """
    if not run.config.task_facts.trains_one_model:
        raise ConfigError(
            f"infer.run={run.run_id} did not train a model (task='{run.config.task}'): it has no weights.",
            fix="Choose a finished training run.",
        )
    same = run.config.model_copy(update={"model": config.model, "data": config.data, "source": config.source})
    if differing := overrides_from(run.config, same):
        field = differing[0].partition("=")[0]
        raise ConfigError(
            f"infer.run={run.run_id} trained another model or on other data: {field} differs.",
            fix="Take model, data and source from that run's configuration.",
        )
    if (found := weights_of(run)) is None:
        state = "has not ended yet" if not run.is_over else f"ended as {run.status} before it could save them"
        raise ConfigError(f"Run {run.run_id} has no weights: it {state}.", fix="Choose a finished training run.")
    if not (run.folder / WEIGHTS_FILE).is_file():
        raise ConfigError(f"The weights of run {run.run_id} are gone from its folder.", fix="Train it again.")
    return found


def own_weights(config: RunConfig) -> Path:
    """Path of the user's own weights file.

    Raises:
        ConfigError: the path names a home folder of an unknown user.
    """
    try:
        return Path(config.infer.weights).expanduser()
    except RuntimeError:  # ~unknown_user
        raise ConfigError(
            "infer.weights names the home folder of an unknown user.", fix="Write the path in full."
        ) from None


_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib"}
_MOST_HEADER_BYTES = 2**24
_HOW_TO_SAVE = (
    "Save it as .safetensors where it was trained: "
    "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
)


def tensors_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a .safetensors file, read from its header only.

    A pickle is never opened, because reading one runs the code inside it.

    Raises:
        ConfigError: the file is not in this format, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(8)
            size = struct.unpack("<Q", begin)[0] if len(begin) == 8 else 0
            header = file.read(size) if 2 <= size <= _MOST_HEADER_BYTES else b""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its name is not allowed"
        raise ConfigError(f"The weights file {path.name} cannot be read: {reason}.", fix="Check its name.") from None
    if (
        path.suffix.lower() in _PICKLES
        or begin[:4] == b"PK\x03\x04"
        or (begin[:1] == b"\x80" and begin[1:2] <= b"\x05")
    ):
        raise ConfigError(
            f"The weights file {path.name} is a pickle. It is not opened, because reading a pickle runs the code "
            "inside it.",
            fix=_HOW_TO_SAVE,
        )
    try:
        described = json.loads(header)
        found = {
            str(name): tuple(int(n) for n in entry["shape"])
            for name, entry in described.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f"The weights file {path.name} is not a .safetensors file.", fix=_HOW_TO_SAVE) from None
    return found


def check_tensors(
    found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]], *, whose: str, model: str
) -> None:
    """Compare tensors (name -> shape) with those of a model.

    Raises:
        ConfigError: tensors are missing, unknown or of another shape; the message names the first ones.
    """
    missing = [name for name in wanted if name not in found]
    more = [name for name in found if name not in wanted]
    differing = [name for name in wanted if name in found and tuple(found[name]) != tuple(wanted[name])]
    if not (missing or more or differing):
        return
    if differing:
        name = differing[0]
        what = f"{name} is {shape_in_words(found[name])} there, and the model's is {shape_in_words(wanted[name])}"
    elif missing:
        what = f"{_some(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    else:
        what = f"{_some(more)} {'is' if len(more) == 1 else 'are'} not in the model"
    raise ConfigError(
        f"{whose} are weights of another architecture than {model}: {what}.",
        fix="Choose the model they were trained as, or other weights.",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
