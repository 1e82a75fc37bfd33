"""The form of a race: configurations, budget, seeds, metric and target; and the start of a race."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from dashboard import state
from dashboard.views import shared
from dashboard.widgets import run_parts
from engine.common import units
from engine.common.errors import ConfigError, EngineError
from engine.common.sanitize import shell_words
from engine.config.base import as_text
from engine.config.parsing import overrides_from, with_overrides
from engine.config.presets import PRESETS, preset_config
from engine.config.summary import describe
from engine.config.training import BUDGETS, Budget
from engine.planning import planner
from engine.studies import race_results, race_text, races
from engine.studies.races import Lane, Metric, Race, RacePreset

SEEDS_PER_ROUND = 2
_CHECKPOINTS = 50  # copies of the weights per run, kept for the descent path ...
_CHECKPOINT_BYTES = 64 * 2**20  # ... if they are no larger than this
_METRICS: dict[Metric, str] = {"test_accuracy": "Test accuracy (%)", "test_loss": "Test loss"}
_BUDGET_VALUES = {"seconds": "6", "samples": "50000", "epochs": "5", "steps": "1000", "flops": "1e11"}
_KEPT = (
    "compare.view", "race.preset", "race.lanes", "race.seeds", "race.until", "race.budget", "race.metric", "library.runs",
)  # fmt: skip


def keep_choices() -> None:
    """Keep what was chosen after a look at another view or page."""
    shared.keep_choices("compare.kept", _KEPT, prefixes=("race.amount.", "race.target."))


@dataclass(frozen=True, slots=True)
class RaceRequest:
    """What the form describes, and what is wrong with it."""

    lanes: list[Lane]
    seeds: int
    metric: Metric
    target: float | None
    wrong: ConfigError | None


def race_form(preset_name: str) -> RaceRequest:
    """Draw the form, at first as the preset says, and return what it describes."""
    preset = _choose_preset(preset_name)
    try:
        lanes = _choose_budget(_edit_lanes(preset), preset.lanes[0].config.budget)
        wrong = None
    except ConfigError as error:
        lanes, wrong = list(preset.lanes), error
    st.session_state.setdefault("race.seeds", 1)
    seeds = st.number_input(
        "Seeds", 1, races.MOST_SEEDS, key="race.seeds",
        help=f"Each seed gives other initial weights and another data order, the same for every configuration. One seed shows the "
        f"curves. A verdict needs {race_results.SEEDS_NEEDED_IN_WORDS}, because test accuracy varies from seed to seed.",
    )  # fmt: skip
    st.toggle(
        "Add seeds until the result is significant", key="race.until",
        help=f"When a race ends without a verdict, {SEEDS_PER_ROUND} more seeds are raced, up to {races.MOST_SEEDS}, "
        "while this page is open. The test becomes stricter each time the result is tested, so that repeated tests "
        "do not turn chance into a significant result.",
    )  # fmt: skip
    metric, target, mistake = _choose_target(preset)
    return RaceRequest(lanes, int(seeds), metric, target, wrong or mistake or _unfair(lanes))


def _unfair(lanes: Sequence[Lane]) -> ConfigError | None:
    try:
        races.check_variants(lanes)
        for lane in lanes:
            state.check(lane.config)
    except ConfigError as error:
        return error
    except EngineError as error:
        return ConfigError(error.message, fix=error.fix)
    return None


def _choose_preset(preset_name: str) -> RacePreset:
    if "race.preset" not in st.session_state:
        st.session_state["race.preset"] = preset_name
    name = st.selectbox(
        "Race", list(races.RACES), key="race.preset", format_func=lambda key: races.RACES[key].title, on_change=_forget_lanes,
        help="The race to run. Its configurations differ only in the settings shown below.",
    )  # fmt: skip
    preset = races.RACES[name]
    st.caption(run_parts.literal(preset.teaches))
    if preset.trap:
        st.warning(run_parts.literal(preset.trap), icon=":material/warning:")
    return preset


def _forget_lanes() -> None:
    shared.forget_choices("compare.kept", ("race.lanes", "race.budget", "race.metric"))


def _edit_lanes(preset: RacePreset) -> list[Lane]:
    """The configurations as text, one per line, in the syntax of the command line, which can express every setting."""
    base = preset.base
    with st.expander("Configurations", icon=":material/edit:"):
        if "race.lanes" not in st.session_state:
            st.session_state["race.lanes"] = "\n".join(_as_line(lane, base) for lane in preset.lanes)
        text = st.text_area(
            "One configuration per line", key="race.lanes", height=140, max_chars=8_000,
            help="A name, a colon, and the settings that differ: `Big: batch_size=256 optimizer.lr=0.4`. Two to six lines.",
        )  # fmt: skip
        st.caption(run_parts.literal(f"All other settings are those of {base}: {PRESETS[base].title}."))
        was_shown = "train.link" in st.session_state
        st.button(
            "Add the form of Train", on_click=_add_from_train, args=(base,), icon=":material/add:", disabled=not was_shown,
            help="Adds the settings on the page Train as one more configuration."
            + ("" if was_shown else " Open the page Train first."),
        )  # fmt: skip
        if refused := st.session_state.pop("race.not_added", None):
            run_parts.error_box(refused)
    return [races.parse_variant(line, preset_config(base)) for line in text.splitlines() if line.strip()]


def _changes(lane: Lane, base: str) -> str:
    """The settings that differ from a preset, in the syntax of the command line."""
    return " ".join(change.replace(" ", "") for change in overrides_from(preset_config(base), lane.config))


def _as_line(lane: Lane, base: str) -> str:
    """A configuration as a line of the form, without its budget, which is the same for all."""
    budget = preset_config(base).budget
    without_budget = lane.model_copy(update={"config": lane.config.model_copy(update={"budget": budget})})
    return f"{lane.label}: {_changes(without_budget, base)}"


def command(request: RaceRequest) -> str:
    """The command line of the same race."""
    base = races.RACES[st.session_state["race.preset"]].base
    words = ["python", "-m", "engine", "race", "--base", base]
    for lane in request.lanes:
        words += ["--lane", f"{lane.label}: {_changes(lane, base)}"]
    target = "none" if request.target is None else f"{request.metric}={request.target:g}"
    return shell_words([*words, "--seeds", str(request.seeds), "--target", target])


def _add_from_train(base: str) -> None:
    try:
        _, config = state.config_from_link(st.session_state["train.link"])
        lines = [line for line in st.session_state["race.lanes"].splitlines() if line.strip()]
        same_seed = config.model_copy(update={"seed": preset_config(base).seed})
        line = _as_line(Lane(label=f"Train {len(lines) + 1}", config=same_seed), base)
        st.session_state["race.lanes"] = "\n".join([*lines, line])
    except ConfigError as error:
        st.session_state["race.not_added"] = error


def _choose_budget(lanes: list[Lane], given: Budget) -> list[Lane]:
    kind = next(name for name in ("seconds", *BUDGETS) if getattr(given, name) is not None)
    kinds = ["seconds", "samples", "steps", "epochs", "flops"]
    left, right = st.columns([1.3, 1], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Budget per run", kinds, index=kinds.index(kind), key="race.budget",
        format_func=lambda k: "FLOPs" if k == "flops" else k,
        help="Every configuration stops at the same amount. The kind of budget favours some configurations, as explained below.",
    )  # fmt: skip
    start = as_text(getattr(given, chosen)) if chosen == kind else _BUDGET_VALUES[chosen]
    amount = right.text_input(
        "Amount", start, key=f"race.amount.{chosen}.{start}", max_chars=20, label_visibility="collapsed"
    )
    with_budget = list(races.with_budget(lanes, f"{chosen}={amount}"))
    st.caption(race_text.BUDGETS_IN_WORDS[chosen])
    return with_budget


def _choose_target(preset: RacePreset) -> tuple[Metric, float | None, ConfigError | None]:
    left, right = st.columns([1.3, 1], vertical_alignment="bottom")
    metrics = list(_METRICS)
    metric = left.selectbox(
        "Target", metrics, index=metrics.index(preset.metric), key="race.metric", format_func=_METRICS.__getitem__,
        help="A configuration reaches the target when two evaluations in a row are at least that good. The table shows the "
        "time, steps and samples until then. You can drag the target in the charts.",
    )  # fmt: skip
    own = preset.target if metric == preset.metric else 0.3 if metric == "test_loss" else 0.9
    factor = 100 if metric == "test_accuracy" else 1
    value = right.text_input(
        "Value", f"{factor * own:g}", key=f"race.target.{metric}.{own}", max_chars=20, label_visibility="collapsed"
    )
    try:
        number = float(value) / factor
        race_results.check_target(metric, number)
    except ValueError:
        fix = "Write 90 for an accuracy of 90 %, or a loss such as 0.3."
        return metric, None, ConfigError(f"Target {value!r} is not a number.", fix=fix)
    except ConfigError as error:
        return metric, None, error
    return metric, number, None


def start(request: RaceRequest) -> str:
    """Submit a race; returns its group. A double click submits one race."""
    lanes, seeds = request.lanes, request.seeds
    group = state.key_of(" ".join([*(lane.model_dump_json() for lane in lanes), str(seeds)]))[:16]
    state.client().submit_seed_blocks(races.seed_blocks(_with_checkpoints(lanes), range(seeds), group), group=group)
    st.session_state["race.until_of"] = group
    return group


def _with_checkpoints(lanes: Sequence[Lane]) -> list[Lane]:
    """The configurations with checkpoints for the descent path, if all have the same small model."""
    sizes = [planner.plan(lane.config).parameters for lane in lanes]
    same_model = len({lane.config.model for lane in lanes}) == 1
    if not same_model or max(sizes) * 4 * _CHECKPOINTS > _CHECKPOINT_BYTES:
        return list(lanes)
    sets = [f"checkpoints={_CHECKPOINTS}"]
    return [lane.model_copy(update={"config": with_overrides(lane.config, sets)}) for lane in lanes]


def add_seeds(race: Race, number: int) -> bool:
    """Submit more seeds of a race; two pages that ask for the same seeds get the same runs. False: there are no more."""
    free = [seed for seed in range(races.MOST_SEEDS) if seed not in race.seeds][:number]
    if not free:
        return False
    seed_blocks = races.seed_blocks(race.as_lanes(), free, race.group)
    state.client().submit_seed_blocks(seed_blocks, group=race.group, round=race.rounds + 1)
    return True


def preview(request: RaceRequest) -> None:
    """What will run, before it is started."""
    lanes, seeds = request.lanes, request.seeds
    each = [lane.config.budget.seconds for lane in lanes]
    takes = (
        f"About {units.duration(seeds * sum(s for s in each if s))} of training in total (derived from the budget)"
        if all(each)
        else "The duration depends on the slowest configuration; it is known in advance only for a budget in seconds"
    )
    st.info(
        f"Press Start to race {len(lanes)} configurations with {seeds} seed{'s' if seeds > 1 else ''}. {takes}.",
        icon=":material/flag:",
    )
    for column, lane in zip(st.columns(min(3, len(lanes))) * 2, lanes, strict=False):
        with column.container(border=True):
            st.markdown(f"**{run_parts.literal(lane.label)}**")
            if rule := race_text.formula(lane.config):
                st.latex(rule)
            st.caption(run_parts.literal(describe(lane.config)))
