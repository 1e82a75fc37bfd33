"""The form of a scaling study: which training, on how many ranks; and the start of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import streamlit as st

from dashboard import state
from dashboard.views import shared
from dashboard.widgets import form_fields, run_parts
from engine.common import units
from engine.common.errors import ConfigError, EngineError
from engine.common.sanitize import shell_words
from engine.config.data import DATA
from engine.config.parallel import Parallel
from engine.config.parsing import overrides_from, with_overrides
from engine.config.presets import PRESETS, preset_config
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.config.training import FULL
from engine.hardware import probe
from engine.studies import scaling
from engine.studies.race_results import CLAIM_SEEDS, check_target
from engine.studies.races import Lane, Metric

DEFAULT = "lenet"
_FROM_TRAIN = "train"  # in the place of a preset: the form of the page Train
_FIELDS = ("preset", "batch", "ranks", "beyond", "weak", "strategy", "device", "seeds", "target")


def keep_choices() -> None:
    """Keep what was chosen after a look at another page."""
    linked = {"scale.preset"} if "preset" in st.query_params else set()
    fields = [f"scale.{name}" for name in _FIELDS]
    shared.keep_choices("scale.kept", fields, prefixes=("scale.steps.",), linked=linked)


@dataclass(slots=True)
class ScalingRequest:
    """What the form describes: the configurations, or why there are none."""

    lanes: list[Lane] = field(default_factory=list)
    seeds: int = scaling.DEFAULT_SEEDS
    target: tuple[Metric, float] | None = None
    seconds: float = 0.0  # estimated duration of the whole study
    wrong: EngineError | None = None
    warnings: list[str] = field(default_factory=list)
    command: str = ""  # the command line of the same study
    only_one_rank: str = ""  # why this machine has no second rank


def form(preset: str) -> ScalingRequest:
    """Draw the form, at first with a preset, and return what it describes."""
    request = ScalingRequest()
    try:
        _draw(request, preset)
    except EngineError as error:
        request.wrong = error
    return request


def _draw(request: ScalingRequest, preset: str) -> None:
    config = _choose_training(preset)
    machine = state.machine()
    if len(devices := probe.device_choices(machine)) > 1:
        st.session_state.setdefault("scale.device", "cuda:0" if len(machine.gpus) > 1 else "cpu")
        kinds = [device for device in devices if device in {"cpu", "cuda:0"}]
        device = st.segmented_control("Device", kinds, key="scale.device", required=True, help="GPUs from cuda:0 on.")
        config = with_overrides(config, [f"device={device}", "parallel.devices=[]"])
    config = _choose_batch(config)
    most = scaling.room(config, machine)
    beyond = _choose_beyond(config, most)
    numbers = scaling.ranks_here(config, machine, beyond=beyond)
    ranks = _choose_ranks(config, numbers, most)
    st.session_state.setdefault("scale.weak", True)
    weak = st.toggle(
        "Include weak scaling", key="scale.weak", disabled=config.batch_size == FULL,
        help="Strong scaling splits one batch among the ranks: the same training, in less time if it scales. Weak scaling gives "
        "each rank a batch of that size: more samples in the same time, but another training.",
    )  # fmt: skip
    weak = bool(weak) and config.batch_size != FULL
    info = Parallel.model_fields["strategy"]
    strategy = st.selectbox(
        info.title or "", list(form_fields.WORDS["parallel.strategy"]), key="scale.strategy",
        format_func=form_fields.WORDS["parallel.strategy"].__getitem__, help=info.description,
    )  # fmt: skip
    config = with_overrides(config, [f"parallel.strategy={strategy}"])
    steps, request.seeds = _choose_steps_and_repeats(config)
    request.target = _choose_target(config)
    if len(numbers) == 1:
        request.only_one_rank = _why_only_one_rank(config)
        return
    base = scaling.as_base(config, steps)
    request.command = _command(config, ranks, steps, request.seeds, weak=weak)
    request.lanes = scaling.lanes_of(base, ranks, weak=weak, most=most)
    if len(request.lanes) < 2:
        raise ConfigError("A study needs more than one rank count.", fix="Choose at least one rank count besides 1.")
    plans = [state.check(lane.config) for lane in request.lanes]
    request.warnings = list(dict.fromkeys(warning for plan in plans for warning in plan.warnings))
    request.seconds = scaling.estimate_seconds(base, plans[0], len(request.lanes) * request.seeds, steps)


def _command(config: RunConfig, ranks: Sequence[int], steps: int, seeds: int, *, weak: bool) -> str:
    preset = state.closest_preset(config)
    sets = [word for a in overrides_from(PRESETS[preset].config, config) for word in ("--set", a)]
    words = ["python", "-m", "engine", "scale", "--preset", preset, *sets, "--ranks", ",".join(map(str, ranks))]
    return shell_words([*words, *(["--weak"] if weak else []), "--seeds", str(seeds), "--steps", str(steps)])


def _choose_training(preset: str) -> RunConfig:
    names = [*PRESETS, *([_FROM_TRAIN] if "train.link" in st.session_state else [])]
    if st.session_state.get("scale.preset") not in names:
        st.session_state["scale.preset"] = preset if preset in names else DEFAULT
    name = st.selectbox(
        "Training", names, key="scale.preset", on_change=_forget_batch_and_target,
        format_func=lambda n: "The form of the page Train" if n == _FROM_TRAIN else PRESETS[n].title,
        help="The training that runs on 1, 2, 4 ... ranks. Set up any other training under Train.",
    )  # fmt: skip
    config = state.config_from_link(st.session_state["train.link"])[1] if name == _FROM_TRAIN else preset_config(name)
    st.caption(run_parts.literal(describe(config) if name == _FROM_TRAIN else PRESETS[name].teaches))
    return with_overrides(config, ["parallel.num_ranks=1", "parallel.devices=[]"])


def _forget_batch_and_target() -> None:
    shared.forget_choices("scale.kept", ("scale.batch", "scale.target"))


def _choose_batch(config: RunConfig) -> RunConfig:
    """Powers of two, and the preset's own batch size."""
    own = config.batch_size
    sizes = sorted({2**i for i in range(3, 12)} | ({own} if isinstance(own, int) else set()))
    options = [*map(str, sizes), *([FULL] if own == FULL else [])]
    if st.session_state.get("scale.batch") not in options:
        st.session_state["scale.batch"] = str(own)
    chosen = st.select_slider(
        "Global batch size", options, key="scale.batch",
        help="Samples per optimizer step, all ranks together. A larger batch has more computation between two all-reduces.",
    )  # fmt: skip
    return with_overrides(config, [f"batch_size={chosen}"])


def _choose_beyond(config: RunConfig, most: int) -> bool:
    if config.device != "cpu":
        return False
    return st.toggle(
        "More ranks than cores", key="scale.beyond",
        help=f"Adds one rank count above the {most} that this machine has cores for. Its ranks share cores, so no speed-up is "
        "possible; it shows what that looks like.",
    )  # fmt: skip


def _choose_ranks(config: RunConfig, numbers: Sequence[int], most: int) -> list[int]:
    many = [n for n in numbers if n > 1]
    if not many:
        return [1]
    kept = [n for n in st.session_state.get("scale.ranks", ()) if n in many]
    if "scale.ranks" in st.session_state:
        st.session_state["scale.ranks"] = kept
    chosen = st.pills(
        "Rank counts", many, selection_mode="multi", key="scale.ranks",
        default=None if "scale.ranks" in st.session_state else many,
        format_func=lambda n: f"{n} (shared)" if n > most else str(n), help=Parallel.model_fields["num_ranks"].description,
    )  # fmt: skip
    if isinstance(batch := config.batch_size, int) and chosen:
        n = max(chosen)
        st.caption(
            f"Strong scaling: global batch {batch:,} = {n} ranks x {batch / n:g}. Weak scaling: {n} ranks x {batch:,} = "
            f"{batch * n:,}."
        )
    return [1, *sorted(chosen)]


def _choose_steps_and_repeats(config: RunConfig) -> tuple[int, int]:
    """Steps per run, at first as many as take about three seconds; and repeats."""
    left, right = st.columns(2, wrap=False)
    try:
        usual = scaling.default_steps(config, state.check(config))
    except EngineError:
        usual = 100  # the check of the configurations below says what is wrong
    key = f"scale.steps.{st.session_state['scale.preset']}.{config.batch_size}"
    st.session_state.setdefault(key, usual)
    steps = left.number_input(
        "Steps per run", 20, 1_000_000, step=50, key=key,
        help="The same for every rank count. Choose enough for a few seconds, because shorter runs are too noisy.",
    )  # fmt: skip
    st.session_state.setdefault("scale.seeds", scaling.DEFAULT_SEEDS)
    seeds = right.number_input(
        "Repeats", 1, scaling.MOST_SEEDS, key="scale.seeds",
        help="Each repeat has another seed. The rank counts take turns, so that all are measured under the same conditions. Three "
        f"repeats give an interval; a verdict needs {CLAIM_SEEDS}.",
    )  # fmt: skip
    return int(steps), int(seeds)


def _choose_target(config: RunConfig) -> tuple[Metric, float] | None:
    st.session_state.setdefault("scale.target", "" if config.is_text or DATA[config.data].measures_speed_only else "90")
    text = st.text_input(
        "Target accuracy (%)", key="scale.target", placeholder="none", max_chars=10,
        help="The table shows time, energy and money until two evaluations in a row have reached this. It does not end a run.",
    )  # fmt: skip
    if not text.strip(" %"):
        return None
    try:
        value = float(text.strip(" %")) / 100
    except ValueError:
        raise ConfigError(
            f"Target accuracy {text!r} is not a number.", fix="Write 90 for 90 %, or leave it empty."
        ) from None
    check_target("test_accuracy", value)
    return "test_accuracy", value


def _why_only_one_rank(config: RunConfig) -> str:
    if config.device != "cpu":
        return "This machine has one GPU, so there is no second rank. Choose the device cpu to scale over its cores."
    cores = state.machine().cpu.usable_cores
    threads = f" and a rank uses {config.threads} threads" if config.threads > 1 else ""
    return (
        f"This machine has {cores} usable core{'' if cores == 1 else 's'}{threads}, so there is no second rank. Turn on “More ranks "
        "than cores” to see what sharing cores costs."
    )


def start(request: ScalingRequest) -> str:
    """Submit a study; returns its group. A double click submits one study."""
    wanted = " ".join([*(lane.model_dump_json() for lane in request.lanes), str(request.seeds)])
    group = state.key_of(wanted)[:16]
    blocks = scaling.seed_blocks(request.lanes, range(request.seeds), group)
    state.client().submit_seed_blocks(blocks, group=group)
    return group


def preview(request: ScalingRequest) -> None:
    """What will run, before it is started."""
    lanes, repeats = len(request.lanes), f"{request.seeds} repeat{'' if request.seeds == 1 else 's'}"
    st.info(
        f"Press Start: {lanes} configurations x {repeats} = {lanes * request.seeds} runs, one after another, about "
        f"{units.duration(request.seconds)} (estimated).",
        icon=":material/hub:",
    )
    for warning in request.warnings:
        run_parts.warn(warning)
    for column, lane in zip(st.columns(min(3, lanes)) * 3, request.lanes, strict=False):
        with column.container(border=True):
            st.markdown(f"**{run_parts.literal(lane.label)}**")
            st.caption(run_parts.literal(_in_words(lane.config)))


def _in_words(config: RunConfig) -> str:
    ranks, batch = config.parallel.num_ranks, config.batch_size
    if ranks == 1:
        return (
            f"One process, batch size {batch if isinstance(batch, str) else f'{batch:,}'}: the baseline of the others."
        )
    each = (
        f"{batch / ranks:g} samples each" if isinstance(batch, int) else "an equal share of the whole training set each"
    )
    shared_cores = ", taking turns on fewer cores" if config.device == "cpu" and config.parallel.devices else ""
    return f"{ranks} processes, {each}{shared_cores}. Every step averages the gradients over all of them."
