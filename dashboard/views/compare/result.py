"""A race: its verdict, live charts, result table, and the button for more seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import streamlit as st

from dashboard import state
from dashboard.api import readers
from dashboard.live.race import race_view, target_of
from dashboard.views import shared
from dashboard.views.compare.form import SEEDS_PER_ROUND, add_seeds
from dashboard.views.compare.table import as_table, greyed
from dashboard.widgets import run_parts
from engine.charts.survival import survival_chart
from engine.common.errors import EngineError, StoreError
from engine.studies import race_results, race_text, race_verdicts, races
from engine.studies.race_results import Outcome
from engine.studies.races import Metric, Race

_REFRESH_S = 1.5


@dataclass(frozen=True, slots=True)
class _Question:
    """A race and how it is judged; parts of the page that refresh by themselves look it up again."""

    group: str
    key: str
    metric: Metric
    target: float | None
    baseline: str
    price_per_hour: float | None

    def judged(self) -> tuple[Race, Outcome] | None:
        """The race as it is now with its result; None if its runs were deleted."""
        race = open_race(self.group) or races.of_runs(
            [run for run in map(state.open_run, st.session_state.get(f"{self.key}.runs", ())) if run]
        )
        return (race, self.outcome(race)) if race else None

    def outcome(self, race: Race) -> Outcome:
        """The result of the race by this metric, target and baseline."""
        return race_results.outcome(
            race, metric=self.metric, target=self.target, baseline=self.baseline, price_per_hour=self.price_per_hour
        )


def open_race(group: str | None) -> Race | None:
    """The race of a link, or None if it is not in the store. Its runs are those that all pages share."""
    if not group:
        return None
    try:
        return races.find(state.store(), group, readers.shared_run)
    except StoreError:
        return None


def _first_axis(race: Race) -> str:
    """Seconds, or steps if an imported table has no times."""
    tables = [table for run in race.runs if run.imported for table in (run.steps, run.evaluations) if len(table)]
    return "seconds" if all(np.isfinite(table["seconds"][-1]) for table in tables) else "steps"


def show_race(race: Race, metric: Metric, target: float | None, *, key: str) -> None:
    """Verdict, live charts and table of a race; `key` distinguishes the races that one session shows."""
    labels = [lane.label for lane in race.lanes]
    can_stop = shared.can_stop(race.runs)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{run_parts.literal(' · '.join(labels))}**", width="stretch")
        with st.popover("Baseline and price", type="tertiary"):
            baseline, price = _choose_baseline_and_price(labels, key)
        if can_stop and st.button("Stop", key="race.stop", icon=":material/stop:"):
            shared.stop(race.runs)
    given = {"metric": metric, "value": target} if target is not None else None
    run_parts.origins_of([(lane.label, run) for lane in race.lanes for run in lane.runs.values()])
    if st.session_state.get(f"{key}.given", ()) != given:  # the form changed: it overrides the target set in a chart
        st.session_state[f"{key}.given"] = st.session_state[f"{key}.target"] = given
    shown = st.session_state[f"{key}.target"]
    metric, target = (shown["metric"], shown["value"]) if shown else (metric, None)
    question = _Question(race.group, key, metric, target, baseline, price)
    _redrawn(_draw_verdict, question, alive=not race.is_over)
    lanes = [
        {
            "label": lane.label, "color": number, "baseline": lane.label == baseline,
            "runs": [{"id": run.run_id, "seed": seed} for seed, run in sorted(lane.runs.items())],
        }
        for number, lane in enumerate(race.lanes)
    ]  # fmt: skip

    def take_target() -> None:
        st.session_state[f"{key}.target"] = target_of(st.session_state[key].get("target"))

    race_view(
        lanes, key=key, target=shown, axis=_first_axis(race), alive=not race.is_over, price_per_hour=price, on_target=take_target
    )  # fmt: skip
    _redrawn(_draw_table, question, alive=not race.is_over)
    if race.is_over and race.group:
        _more_seeds(race, question)


def _choose_baseline_and_price(labels: list[str], key: str) -> tuple[str, float | None]:
    baseline = st.selectbox(
        "Baseline",
        labels,
        key=f"{key}.baseline",
        help="Verdicts and ratios compare the others with this configuration.",
    )
    price = st.number_input(
        "Price per hour", 0.0, None, 0.0, step=0.1, key=f"{key}.price",
        help="The price of one hour of this machine in your currency. Charts and table then show money, derived from time.",
    )  # fmt: skip
    return baseline, price or None


def _redrawn(draw: Callable[[_Question], None], question: _Question, *, alive: bool) -> None:
    """A part that is drawn again while the race runs, without the rest of the page."""
    st.fragment(run_every=_REFRESH_S if alive else None)(draw)(question)


def _draw_verdict(question: _Question) -> None:
    judged = question.judged()
    if judged is None:
        return
    race, result = judged
    with st.container(border=True, key="race-verdict"):
        if imported := sum(run.imported is not None for run in race.runs):
            st.caption(
                f"{imported} of {len(race.runs)} runs were imported, unverified. Their times are from another machine."
            )
        words = race_text.recommendation(result, made_here=not imported)
        st.markdown(f"**{run_parts.literal(words)}**" if words else "No configuration has reached the target yet.")
        if sentences := race_verdicts.verdicts_in_words(result):
            st.caption("\n".join(f"- {run_parts.literal(sentence)}" for sentence in sentences))
        if correction := race_verdicts.correction_in_words(result):
            st.caption(run_parts.literal(correction))
        if result.noise_floor is not None:
            st.caption(
                f"From seed to seed, test accuracy varies by at least ±{100 * result.noise_floor:.2g} points (derived from "
                "the number of test predictions n: √(error / 2n)). With one seed, a smaller difference can be chance."
            )


def _draw_table(question: _Question) -> None:
    judged = question.judged()
    if judged is None:
        return
    race, result = judged
    with st.container(key="race-outcome"):
        if result.target is not None:
            st.markdown(f"**Cost to reach {run_parts.literal(race_text.target_in_words(result))}**")
        table = as_table(result).style.apply(lambda table: greyed(table, result), axis=None)
        st.dataframe(table, hide_index=True, height="content", key="race-table")
    st.caption(
        f"Medians over the seeds. × = relative to the baseline ({run_parts.literal(result.baseline)}). A target is reached at the "
        "first of two evaluations in a row that are at least that good, interpolated from the evaluation before. If half of the "
        "runs or more missed it, there is no median, and the table says how many reached it."
    )
    for sentence in race_text.batch_sentences(race, result):
        st.markdown(f":material/lightbulb: {run_parts.literal(sentence)}")
    if tip := _tip(race):
        st.caption(f"Try next: {run_parts.literal(tip)}")
    for lane in result.lanes:
        for why in lane.why:
            st.caption(f":material/error: {run_parts.literal(lane.label)}: {run_parts.literal(why)}")
    if result.target is not None and result.seeds > 1:
        with st.expander("Time to target over all seeds"):
            figure = survival_chart(race_results.survivals(race, result))
            st.plotly_chart(figure, key="race-survival", theme=None, config={"displayModeBar": False})
            st.caption(
                "Share of runs that have not reached the target yet (Kaplan and Meier 1958). A line that stays above "
                "zero has runs that never reached it. Expected time in the table: the time of all runs divided by "
                "the number of runs that reached the target."
            )


def _tip(race: Race) -> str:
    """What to try next, if this is a race of the preset in the form."""
    preset = races.RACES.get(st.session_state.get("race.preset", ""))
    is_of_preset = preset and [lane.label for lane in race.lanes] == [lane.label for lane in preset.lanes]
    return preset.then if preset and is_of_preset else ""


def _more_seeds(race: Race, question: _Question) -> None:
    if len(race.seeds) >= races.MOST_SEEDS or not shared.can_extend(race.runs):
        return
    needed = race_results.seeds_needed(max(2, len(race.lanes)))
    missing = min(max(needed - len(race.seeds), SEEDS_PER_ROUND), races.MOST_SEEDS - len(race.seeds))
    try:
        if _needs_more_seeds(race, question) and add_seeds(race, missing):
            st.rerun()
        if st.button(
            f"Race {missing} more seed{'s' if missing > 1 else ''}", icon=":material/casino:", key="race.more",
            help="The same configurations with other initial weights and data orders, to tell real differences from chance.",
        ) and add_seeds(race, missing):  # fmt: skip
            st.rerun()
    except EngineError as error:
        run_parts.error_box(error)


def _needs_more_seeds(race: Race, question: _Question) -> bool:
    """Whether seeds are to be added until the result is significant, for a race that this page started and nobody stopped."""
    if not st.session_state.get("race.until") or st.session_state.get("race.until_of") != race.group:
        return False
    was_stopped = any(run.status in {"cancelled", "interrupted"} for run in race.runs)
    return not was_stopped and not question.outcome(race).is_decided
