"""Pieces of the page Compare: what is to race, the race as it goes, its table, its verdict and what it teaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st

from dashboard import state
from dashboard.api import readers
from dashboard.live.race import race_view, target_of
from dashboard.widgets import run_parts
from engine.charts.survival import survival_chart
from engine.common import units
from engine.common.errors import ConfigError, EngineError, StoreError
from engine.common.sanitize import LONGEST_NAME, shell_words, visible
from engine.config.base import as_text
from engine.config.parsing import overrides_from, with_overrides
from engine.config.presets import PRESETS, preset_config
from engine.config.summary import describe
from engine.config.training import BUDGETS, Budget
from engine.measurement import energy
from engine.planning import planner
from engine.store.listing import RunRow
from engine.studies import race_results, race_text, race_verdicts, races
from engine.studies.race_results import Outcome
from engine.studies.races import Lane, Metric, Race, RacePreset

_REFRESH_S = 1.5
_PATH = 50  # copies of the weights kept for the descent path ...
_PATH_BYTES = 64 * 2**20  # ... where they are no more than this
_SEEDS_A_ROUND = 2
_METRICS: dict[str, str] = {"test_accuracy": "Test accuracy (%)", "test_loss": "Test loss"}
_BUDGET_VALUES = {"seconds": "6", "samples": "50000", "epochs": "5", "steps": "1000", "flops": "1e11"}


# --- what stays --------------------------------------------------------------------------------------------------------

_KEPT = (
    "compare.view",
    "race.preset",
    "race.lanes",
    "race.seeds",
    "race.until",
    "race.budget",
    "race.metric",
    "library.runs",
)
_KEPT_TEXTS = ("race.amount.", "race.target.")


def keep_choices() -> None:
    """What was chosen is still so after a look at another view or page, where Streamlit forgets what is not drawn."""
    kept: dict[str, object] = st.session_state.setdefault("compare.kept", {})
    texts = {key for key in [*st.session_state, *kept] if str(key).startswith(_KEPT_TEXTS)}
    for key in [*_KEPT, *map(str, texts)]:
        if key in st.session_state:
            kept[key] = st.session_state[key]
        elif key in kept:
            st.session_state[key] = kept[key]


# --- what is to race ------------------------------------------------------------------------------------------------


def race_form(preset_name: str) -> tuple[list[Lane], int, Metric, float | None, ConfigError | None]:
    """The card that says what is to race: lanes, seeds, the metric and the target; and what is wrong with it."""
    preset = _choose(preset_name)
    try:
        lanes = _draw_lanes(preset)
        lanes = _draw_budget(lanes, preset.lanes[0].config.budget)
        wrong = None
    except ConfigError as error:
        lanes, wrong = list(preset.lanes), error
    st.session_state.setdefault("race.seeds", 1)
    seeds = st.number_input(
        "Seeds", 1, races.MOST_SEEDS, key="race.seeds",
        help=f"Each seed is a heat: other first weights, another order of the examples, the same for every lane. One shows the "
        f"curves; a verdict takes {race_results.CLAIM_SEEDS}, because luck alone moves accuracy from seed to seed.",
    )  # fmt: skip
    st.toggle(
        "Add seeds until decided", key="race.until",
        help=f"When a race ends without a verdict, {_SEEDS_A_ROUND} more seeds are raced, up to {races.MOST_SEEDS}, while this "
        "page is open. Each look makes the verdict stricter, so that luck does not win by being asked often.",
    )  # fmt: skip
    metric, target, mistake = _draw_target(preset)
    return lanes, int(seeds), metric, target, wrong or mistake or _unfair(lanes)


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


def _choose(preset_name: str) -> RacePreset:
    if "race.preset" not in st.session_state:
        st.session_state["race.preset"] = preset_name
    name = st.selectbox(
        "Race", list(races.RACES), key="race.preset", format_func=lambda key: races.RACES[key].title, on_change=_forget_lanes,
        help="What is compared. Each lane below is one configuration; everything they do not name is the same in all.",
    )  # fmt: skip
    preset = races.RACES[name]
    st.caption(run_parts.literal(preset.teaches))
    if preset.trap:
        st.warning(run_parts.literal(preset.trap), icon=":material/warning:")
    return preset


def _forget_lanes() -> None:
    for key in ("race.lanes", "race.budget", "race.metric"):
        st.session_state.pop(key, None)
        st.session_state.get("compare.kept", {}).pop(key, None)


def _draw_lanes(preset: RacePreset) -> list[Lane]:
    """The lanes as text, one a line, in the words of the command line: whatever a form can say fits in."""
    base = preset.base
    with st.expander("Lanes", icon=":material/edit:"):
        if "race.lanes" not in st.session_state:
            st.session_state["race.lanes"] = "\n".join(_as_line(lane, base) for lane in preset.lanes)
        text = st.text_area(
            "One lane a line", key="race.lanes", height=140, max_chars=8_000,
            help="A name, a colon, and what is different: `Big: batch_size=256 optimizer.lr=0.4`. Two to six lanes.",
        )  # fmt: skip
        st.caption(run_parts.literal(f"Everything else is as in {base}: {PRESETS[base].title}."))
        st.button(
            "Add what Train shows", on_click=_add_from_train, args=(base,), icon=":material/add:",
            disabled="train.link" not in st.session_state, help="The form of the page Train, as one more lane.",
        )  # fmt: skip
        if refused := st.session_state.pop("race.not_added", None):
            run_parts.error_box(refused)
    lanes = [races.parse_variant(line, preset_config(base)) for line in text.splitlines() if line.strip()]
    return lanes


def _as_line(lane: Lane, base: str) -> str:
    """A lane in the words of the command line, without what is the race's own: budget and seed."""
    changes = overrides_from(preset_config(base), lane.config.model_copy(update={"budget": preset_config(base).budget}))
    return f"{lane.label}: {' '.join(c.replace(' ', '') for c in changes)}"


def command(lanes: Sequence[Lane], seeds: int, metric: Metric, target: float | None) -> str:
    """The same race from a terminal."""
    base = races.RACES[st.session_state["race.preset"]].base
    words = ["python", "-m", "engine", "race", "--base", base]
    for lane in lanes:
        changes = overrides_from(preset_config(base), lane.config)
        words += ["--lane", f"{lane.label}: {' '.join(change.replace(' ', '') for change in changes)}"]
    words += ["--seeds", str(seeds), "--target", "none" if target is None else f"{metric}={target:g}"]
    return shell_words(words)


def _add_from_train(base: str) -> None:
    try:
        _, config = state.config_from_link(st.session_state["train.link"])
        lines = [line for line in st.session_state["race.lanes"].splitlines() if line.strip()]
        lane = Lane(
            label=f"Train {len(lines) + 1}", config=config.model_copy(update={"seed": preset_config(base).seed})
        )
        st.session_state["race.lanes"] = "\n".join([*lines, _as_line(lane, base)])
    except ConfigError as error:
        st.session_state["race.not_added"] = error


def _draw_budget(lanes: list[Lane], given: Budget) -> list[Lane]:
    kind = next(name for name in ("seconds", *BUDGETS) if getattr(given, name) is not None)
    kinds = ["seconds", "samples", "steps", "epochs", "flops"]
    left, right = st.columns([1.3, 1], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Equal", kinds, index=kinds.index(kind), key="race.budget", format_func=lambda k: "FLOPs" if k == "flops" else k,
        help="The race ends for every lane at the same of these. Which one you choose favours some lanes: see below.",
    )  # fmt: skip
    start = as_text(getattr(given, chosen)) if chosen == kind else _BUDGET_VALUES[chosen]
    amount = right.text_input(
        "Amount", start, key=f"race.amount.{chosen}.{start}", max_chars=20, label_visibility="collapsed"
    )
    lanes = list(races.with_budget(lanes, f"{chosen}={amount}"))
    st.caption(race_text.BUDGETS_IN_WORDS[chosen])
    return lanes


def _draw_target(preset: RacePreset) -> tuple[Metric, float | None, ConfigError | None]:
    left, right = st.columns([1.3, 1], vertical_alignment="bottom")
    metrics: list[Metric] = ["test_accuracy", "test_loss"]
    metric = left.selectbox(
        "Target", metrics, index=metrics.index(preset.metric), key="race.metric", format_func=_METRICS.__getitem__,
        help="What a lane is to reach on held-out examples, in two evaluations in a row; the table says what that took. It "
        "can be dragged in the charts.",
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
        return (
            metric,
            None,
            ConfigError(f"Target {value!r} is no number.", fix="Write 90 for an accuracy of 90 %, or a loss."),
        )
    except ConfigError as error:
        return metric, None, error
    return metric, number, None


def seconds_of_training(lanes: Sequence[Lane], seeds: int) -> float | None:
    """All training of a race, where its budget is time; None where only running it tells."""
    each = [lane.config.budget.seconds for lane in lanes]
    return seeds * sum(s for s in each if s) if all(each) else None


def start(lanes: Sequence[Lane], seeds: int) -> str:
    """Ask for a race; returns its group. A double click asks for one."""
    group = state.key_of(" ".join([*(lane.model_dump_json() for lane in lanes), str(seeds)]))[:16]
    state.client().submit_seed_blocks(races.seed_blocks(_with_paths(lanes), range(seeds), group), group=group)
    st.session_state["race.until_of"] = group
    return group


def _with_paths(lanes: Sequence[Lane]) -> list[Lane]:
    """The lanes, keeping their paths where these are small: what the descent path is drawn from."""
    sizes = [planner.plan(lane.config).parameters for lane in lanes]
    alike = len({lane.config.model for lane in lanes}) == 1
    if not alike or max(sizes) * 4 * _PATH > _PATH_BYTES:
        return list(lanes)
    return [lane.model_copy(update={"config": with_overrides(lane.config, [f"checkpoints={_PATH}"])}) for lane in lanes]


def add_seeds(race: Race, number: int) -> bool:
    """More heats of the same race; asked for twice, by two pages, they are the same runs. False: there are no more."""
    free = [seed for seed in range(races.MOST_SEEDS) if seed not in race.seeds][:number]
    if not free:
        return False
    seed_blocks = races.seed_blocks(race.as_lanes(), free, race.group)
    state.client().submit_seed_blocks(seed_blocks, group=race.group, round=race.rounds + 1)
    return True


def preview(lanes: Sequence[Lane], seeds: int) -> None:
    """What will race, before it does."""
    training = seconds_of_training(lanes, seeds)
    takes = (
        f"About {units.duration(training)} of training in all (derived from the budget)"
        if training
        else ("How long it takes depends on the slowest lane: only a budget in seconds tells before")
    )
    st.info(
        f"Press Start: {len(lanes)} lanes, {seeds} seed{'s' if seeds > 1 else ''}. {takes}.", icon=":material/flag:"
    )
    for column, lane in zip(st.columns(min(3, len(lanes))) * 2, lanes, strict=False):
        with column.container(border=True):
            st.markdown(f"**{run_parts.literal(lane.label)}**")
            if rule := race_text.formula(lane.config):
                st.latex(rule)
            st.caption(run_parts.literal(describe(lane.config)))


# --- the race as it goes --------------------------------------------------------------------------------------------


def open_race(group: str | None) -> Race | None:
    """The race of a link, from the readers all pages share."""
    if not group:
        return None
    try:
        return races.find(state.store(), group, readers.shared_run)
    except StoreError:
        return None


def show_race(race: Race, metric: Metric, target: float | None, *, key: str) -> None:
    """Verdict, live charts, table, and what they teach."""
    may_stop = not race.is_over and all(state.client().may("cancel", run.run_id) for run in race.runs)
    labels = [lane.label for lane in race.lanes]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{run_parts.literal(' · '.join(labels))}**", width="stretch")
        with st.popover("Baseline and price", type="tertiary"):
            baseline, price = _reading_knobs(labels, key)
        if may_stop and st.button("Stop", key="race.stop", icon=":material/stop:"):
            _stop(race)
    given = {"metric": metric, "value": target} if target is not None else None
    run_parts.origins_of([(lane.label, run) for lane in race.lanes for run in lane.runs.values()])
    if st.session_state.get(f"{key}.given", ()) != given:  # the form, or nobody yet, spoke last
        st.session_state[f"{key}.given"] = st.session_state[f"{key}.target"] = given
    shown = st.session_state[f"{key}.target"]
    metric, target = (shown["metric"], shown["value"]) if shown else (metric, None)
    _verdict_box(race.group, key, metric, target, baseline, price, live=not race.is_over)
    lanes = [
        {
            "label": lane.label, "color": number, "baseline": lane.label == baseline,
            "runs": [{"id": run.run_id, "seed": seed} for seed, run in sorted(lane.runs.items())],
        }
        for number, lane in enumerate(race.lanes)
    ]  # fmt: skip

    def heard() -> None:
        st.session_state[f"{key}.target"] = target_of(st.session_state[key].get("target"))

    race_view(
        lanes, key=key, target=shown, axis="seconds", alive=not race.is_over, price_per_hour=price, on_target=heard
    )
    _table_box(race.group, key, metric, target, baseline, price, live=not race.is_over)
    if race.is_over and race.group:
        _more_seeds(race, metric, target, baseline)


def _reading_knobs(labels: list[str], key: str) -> tuple[str, float | None]:
    baseline = st.selectbox(
        "Baseline", labels, key=f"{key}.baseline", help="The lane the others are measured by: verdicts and percentages."
    )
    price = st.number_input(
        "Price per hour", 0.0, None, 0.0, step=0.1, key=f"{key}.price",
        help="What an hour of this machine costs you, in your currency: then money is an axis, too. Derived from seconds.",
    )  # fmt: skip
    return baseline, price or None


def _stop(race: Race) -> None:
    for run in race.runs:
        if not run.is_over:
            state.client().cancel(run.run_id)


def _live(live: bool, draw: Callable[..., None], *arguments: object) -> None:
    """A part that is drawn anew while the race goes on, without the rest of the page."""
    st.fragment(run_every=_REFRESH_S if live else None)(draw)(*arguments)


def _verdict_box(
    group: str, key: str, metric: Metric, target: float | None, baseline: str, price: float | None, *, live: bool
) -> None:
    _live(live, _draw_verdict, group, key, metric, target, baseline, price)


def _table_box(
    group: str, key: str, metric: Metric, target: float | None, baseline: str, price: float | None, *, live: bool
) -> None:
    _live(live, _draw_table, group, key, metric, target, baseline, price)


def _judged(
    group: str, key: str, metric: Metric, target: float | None, baseline: str, price: float | None
) -> tuple[Race, Outcome] | None:
    race = open_race(group) or races.of_runs(
        [r for r in map(state.open_run, st.session_state.get(f"{key}.runs", ())) if r]
    )
    if race is None:
        return None
    return race, race_results.outcome(race, metric=metric, target=target, baseline=baseline, price_per_hour=price)


def _draw_verdict(*arguments: object) -> None:
    judged = _judged(*arguments)  # type: ignore[arg-type]
    if judged is None:
        return
    race, result = judged
    with st.container(border=True, key="race-verdict"):
        if theirs := sum(run.imported is not None for run in race.runs):
            st.caption(
                f"{theirs} of {len(race.runs)} runs were imported, unverified: their times are those of another machine."
            )
        words = race_text.recommendation(result, made_here=not theirs)
        st.markdown(f"**{run_parts.literal(words)}**" if words else "Nothing has reached the target yet.")
        if sentences := _verdicts(result):
            st.caption("\n".join(f"- {run_parts.literal(sentence)}" for sentence in sentences))
        if result.noise_floor is not None:
            st.caption(
                f"Luck alone moves accuracy by about {100 * result.noise_floor:.2f} points from seed to seed, at least "
                "(derived: √(error / 2 n) of the held-out examples). Smaller differences in one seed mean nothing."
            )


def _verdicts(result: Outcome) -> list[str]:
    keys = [("to_target", "target"), ("test_accuracy", "accuracy")]
    return [
        race_verdicts.verdict_in_words(lane.label, result.baseline, lane.verdicts[key], what)
        for lane in result.lanes
        for key, what in keys
        if key in lane.verdicts
    ]


def _draw_table(*arguments: object) -> None:
    judged = _judged(*arguments)  # type: ignore[arg-type]
    if judged is None:
        return
    race, result = judged
    with st.container(key="race-outcome"):
        if result.target is not None:
            st.markdown(f"**What it takes to reach {run_parts.literal(race_text.target_in_words(result))}**")
        table = as_table(result)
        pale = table.style.apply(lambda table: _pale(table, result), axis=None)
        st.dataframe(pale, hide_index=True, height="content", key="race-table")
    st.caption(
        f"Medians over the seeds; × is of the baseline, {run_parts.literal(result.baseline)}. A target counts as reached at the first of two evaluations in a row beyond it, interpolated to "
        "the one before; where half of the runs or more did not reach it, that is said."
    )
    for sentence in race_text.batch_sentences(race, result):
        st.markdown(f":material/lightbulb: {run_parts.literal(sentence)}")
    if tip := _tip(race):
        st.caption(f"Try next: {run_parts.literal(tip)}")
    for lane in result.lanes:
        for why in lane.why:
            st.caption(f":material/error: {run_parts.literal(lane.label)}: {run_parts.literal(why)}")
    if result.target is not None and result.seeds > 1:
        with st.expander("Time to the target over all seeds"):
            figure = survival_chart(race_results.survivals(race, result))
            st.plotly_chart(figure, key="race-survival", theme=None, config={"displayModeBar": False})
            st.caption(
                "Share of runs that have not reached the target yet (Kaplan and Meier 1958); a line that stays above zero is of "
                "runs that never did. Expected time in the table: all time spent, by the number of runs that arrived."
            )


def _tip(race: Race) -> str:
    """What to do next, where the race is of the preset the form shows."""
    preset = races.RACES.get(st.session_state.get("race.preset", ""))
    alike = preset and [lane.label for lane in race.lanes] == [lane.label for lane in preset.lanes]
    return preset.then if preset and alike else ""


_ENERGY = "Energy to target"


def as_table(result: Outcome) -> pd.DataFrame:
    """One row per figure, one column per lane, and how each figure was had."""

    def row(title: str, how: str, read: Callable[[race_results.VariantOutcome], str]) -> list[str]:
        return [title, *map(read, result.lanes), how]

    def cost(axis: str, write: Callable[[float], str]) -> Callable[[race_results.VariantOutcome], str]:
        def read(lane: race_results.VariantOutcome) -> str:
            value = lane.cost[axis]
            if value == 0:
                return "before training"
            if value is None:
                return "not reached" if lane.judged else "–"
            return write(value) + _versus(lane, axis)

        return read

    rows = [
        row("Test accuracy", "measured on held-out examples", lambda r: units.accuracy(r.test_accuracy)),
        row("Test loss", "measured on held-out examples", lambda r: units.loss(r.test_loss)),
    ]
    if result.target is not None:
        rows += [
            row("Seconds to target", "measured on the training clock", _marked(cost("seconds", units.duration))),
            row("Steps to target", "measured", cost("steps", lambda v: f"{round(v):,}")),
            row("Samples to target", "measured", cost("samples", lambda v: f"{round(v):,}")),
            row("FLOPs to target", "derived, closed form per layer", cost("flops", units.flops)),
            row(_ENERGY, _energy_how(result), _energy(cost("joules", units.energy))),
            row("Runs that reached it", "counted", lambda r: f"{r.reached} of {sum(r.status.values())}"),
            row(
                "Expected time",
                "derived: time of all runs by those that arrived",
                _marked(lambda r: units.duration(r.expected_s)),
            ),
        ]
        if any(lane.cost["money"] is not None for lane in result.lanes):
            rows.insert(
                6, row("Money to target", "derived: seconds by your price", cost("money", lambda v: f"{v:.3g}"))
            )
    rows += [
        row("Steps per second", "derived: steps by training time", _marked(lambda r: _rate(r.steps_per_s))),
        row("Samples per second", "derived: examples by training time", _marked(lambda r: _rate(r.samples_per_s))),
        row(
            "Memory of a step", "measured: weights, optimizer, one step's peak", lambda r: units.nbytes(r.memory_bytes)
        ),
        row(
            "Noise of the loss",
            "derived: spread around a moving mean",
            lambda r: "–" if r.loss_noise is None else f"± {r.loss_noise:.2g}",
        ),
    ]
    labels = [visible(lane.label, LONGEST_NAME) for lane in result.lanes]
    how = "How" if "How" not in labels else "How it was had"
    return pd.DataFrame(rows, columns=["", *labels, how])


def _pale(table: pd.DataFrame, result: Outcome) -> pd.DataFrame:
    """Joules over too short a window for their counter are greyed."""
    css = pd.DataFrame("", index=table.index, columns=table.columns)
    short = [n for n, lane in enumerate(result.lanes, 1) if (lane.energy_doubt or 0) > 1 / energy.PERIODS]
    css.iloc[table.iloc[:, 0].to_numpy() == _ENERGY, short] = "color: #8a8f99"
    return css


def _marked(read: Callable[[race_results.VariantOutcome], str]) -> Callable[[race_results.VariantOutcome], str]:
    """A figure of time, with a mark where something else used the machine."""

    def text(lane: race_results.VariantOutcome) -> str:
        value = read(lane)
        return value + race_verdicts.busy_in_words(lane) if value[:1].isdigit() else value

    return text


def _energy(read: Callable[[race_results.VariantOutcome], str]) -> Callable[[race_results.VariantOutcome], str]:
    """Only where a counter followed the lane's runs: those that take turns on one device share one."""

    def text(lane: race_results.VariantOutcome) -> str:
        if not lane.has_energy:
            return "not available here"
        value = read(lane)
        return energy.with_doubt(value, lane.energy_doubt) if value[:1].isdigit() else value

    return text


def _energy_how(result: Outcome) -> str:
    return "measured by the energy counter" if any(lane.has_energy for lane in result.lanes) else ""


def _rate(value: float | None) -> str:
    return "–" if value is None else units.count(value if value < 100 else round(value))


def _versus(lane: race_results.VariantOutcome, axis: str) -> str:
    share = lane.share.get(axis)
    return "" if share is None else f" ({share:.2g} ×)" if share < 100 else f" ({share:,.0f} ×)"


def _more_seeds(race: Race, metric: Metric, target: float | None, baseline: str) -> None:
    if len(race.seeds) >= races.MOST_SEEDS or not _is_mine(race):
        return
    missing = min(max(race_results.CLAIM_SEEDS - len(race.seeds), _SEEDS_A_ROUND), races.MOST_SEEDS - len(race.seeds))
    try:
        if _goes_on(race, metric, target, baseline) and add_seeds(race, missing):
            st.rerun()
        if st.button(
            f"Race {missing} more seed{'s' if missing > 1 else ''}", icon=":material/casino:", key="race.more",
            help="The same lanes with other first weights and orders: what differs between seeds is luck.",
        ) and add_seeds(race, missing):  # fmt: skip
            st.rerun()
    except EngineError as error:
        run_parts.error_box(error)


def _is_mine(race: Race) -> bool:
    client = state.client()
    return client.may("submit") and all(client.may("cancel", run.run_id) for run in race.runs)


def _goes_on(race: Race, metric: Metric, target: float | None, baseline: str) -> bool:
    """Whether this race, started on this page to be decided, is not yet; one that was stopped is left alone."""
    if not st.session_state.get("race.until") or st.session_state.get("race.until_of") != race.group:
        return False
    stopped = any(run.status in {"cancelled", "interrupted"} for run in race.runs)
    return not stopped and not race_results.outcome(race, metric=metric, target=target, baseline=baseline).is_decided


# --- runs of the library ----------------------------------------------------------------------------------------------


def library_choice() -> list[str]:
    """Ids of runs to lay beside each other without racing them."""
    rows = [row for row in state.store().rows(limit=100) if row.config.task == "train"]
    words = {row.run_id: _called(row) for row in rows}
    asked = [*st.query_params.get("runs", "").split(","), *st.session_state.get("library.runs", [])]
    older = [row for run_id in dict.fromkeys(asked) if run_id not in words and (row := _row(run_id))]
    words |= {row.run_id: _called(row) for row in older}
    linked = [run_id for run_id in st.query_params.get("runs", "").split(",") if run_id in words]
    if "library.runs" not in st.session_state:
        st.session_state["library.runs"] = linked
    chosen = st.multiselect(
        "Runs", list(words), key="library.runs", format_func=words.__getitem__, max_selections=24,
        placeholder="Choose two or more runs", help="Runs that differ in nothing but their seed are one lane.",
    )  # fmt: skip
    return list(chosen)


def _called(row: RunRow) -> str:
    theirs = " · imported, unverified" if row.summary.imported else ""
    return f"{visible(row.name, 40) or describe(row.config)} · seed {row.config.seed} · {row.run_id[:6]}{theirs}"


def _row(run_id: str) -> RunRow | None:
    """A run that a link or the library names, however old it is."""
    try:
        return state.store().row(run_id) if run_id else None
    except StoreError:
        return None


def library_race(run_ids: Sequence[str]) -> Race | None:
    """Chosen runs as lanes; raises ConfigError, naming what differs, for runs that cannot be compared."""
    runs = [run for run in map(state.open_run, run_ids) if run]
    race = races.of_runs(runs)
    if race:
        races.check_comparable([(lane.label, lane.config) for lane in race.lanes])
        if len(race.lanes) > races.MOST_LANES:
            raise ConfigError(f"{len(race.lanes)} different configurations.", fix=f"Choose at most {races.MOST_LANES}.")
    return race
