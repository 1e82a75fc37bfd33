"""A scaling study: its verdict, charts, result table and loss curves."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import state
from dashboard.api import readers
from dashboard.live.race import race_view
from dashboard.views import shared
from dashboard.widgets import run_parts
from dashboard.widgets.component import addresses, stub
from engine.access import settings
from engine.common.errors import EngineError, StoreError
from engine.common.sanitize import LONGEST_NAME, visible
from engine.config.summary import describe
from engine.studies import scaling, scaling_results, scaling_table, scaling_text
from engine.studies.race_results import CLAIM_SEEDS
from engine.studies.races import Lane, Metric
from engine.studies.scaling import Study
from engine.studies.scaling_results import Outcome

_REFRESH_S = 1.5
_MOST_CURVES = 72
_COLUMN_WIDTH = 130  # px, fits "1.75 (1.60 to 1.91)"
_REPEATS_PER_ROUND = 2


def open_study(group: str | None) -> Study | None:
    """The study of a link, or None if it is not in the store. Its runs are those that all pages share.

    Raises:
        ConfigError: The runs of this group are not a scaling study.
    """
    if not group:
        return None
    try:
        return scaling.find(state.store(), group, readers.shared_run)
    except StoreError:
        return None


def show_study(study: Study, target: tuple[Metric, float] | None) -> None:
    """Verdict, charts, result table and loss curves."""
    group, alive = study.race.group, not study.is_over
    can_stop = shared.can_stop(study.runs)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{run_parts.literal(_title(study))}**", width="stretch")
        if can_stop and st.button("Stop", key="scale.stop", icon=":material/stop:"):
            shared.stop(study.runs)
    run_parts.origins_of([(lane.label, run) for lane in study.race.lanes for run in lane.runs.values()])
    redrawn = st.fragment(run_every=_REFRESH_S if alive else None)
    redrawn(_draw_verdict)(group, target)
    mount = st.components.v2.component("isoflop_scale", js=stub("scale.js"), isolate_styles=False)
    mount(key=f"scale-{group}", data={"study": group} | addresses())
    redrawn(_draw_table)(group, target)
    st.markdown("**Loss curves of all configurations**")
    st.caption(
        "Over steps, configurations with the same global batch size coincide, because they take the same steps. Over training "
        "time they differ by their speed. A configuration with a larger batch is another training."
    )
    race_view(_curves(study), key=f"scale-race-{group}", axis="seconds", alive=alive)
    if not alive:
        _more_repeats(study)


def _title(study: Study) -> str:
    numbers = sorted({lane.ranks for lane in study.lanes})
    return f"{describe(study.base.config)} · on {', '.join(map(str, numbers))} ranks"


def _curves(study: Study) -> list[dict[str, object]]:
    """Configurations of the loss curves; only the first repeats, because one poll can ask for at most 72 runs."""
    each = max(1, _MOST_CURVES // len(study.lanes))
    return [
        {
            "label": visible(lane.label, LONGEST_NAME), "color": number, "baseline": lane.ranks == 1,
            "runs": [{"id": run.run_id, "seed": seed} for seed, run in sorted(lane.runs.items())[:each]],
        }
        for number, lane in enumerate(study.lanes)
    ]  # fmt: skip


def _outcome(group: str, target: tuple[Metric, float] | None) -> Outcome | None:
    study = open_study(group)
    if study is None:
        return None
    return scaling_results.outcome_of(study, target=target, prices=settings.load(state.store().root).energy)


def _draw_verdict(group: str, target: tuple[Metric, float] | None) -> None:
    found = _outcome(group, target)
    if found is None:
        return
    with st.container(border=True, key="scale-verdict"):
        st.markdown(f"**{run_parts.literal(scaling_text.headline(found))}**")
        if texts := [*scaling_text.reasons(found), *scaling_text.fits(found), scaling_text.agreement(found)]:
            st.caption("\n".join(f"- {run_parts.literal(text)}" for text in texts if text))
    for at in found.lanes:
        for why in at.why:
            show = st.error if at.status.get("failed") else st.info
            show(
                run_parts.literal(f"{at.label}: {why}"),
                icon=":material/error:" if show is st.error else ":material/info:",
            )


def _draw_table(group: str, target: tuple[Metric, float] | None) -> None:
    found = _outcome(group, target)
    if found is None:
        return
    table = as_table(found)
    # Of a fixed width, because a phone cuts narrower columns.
    columns = {name: st.column_config.TextColumn(width=_COLUMN_WIDTH) for name in table.columns[1:-1]}
    st.dataframe(table, hide_index=True, height="content", key="scale-table", column_config=columns)
    notes = [scaling_text.intervals(), scaling_text.averages()]
    if found.method:
        notes.append(f"Waiting and all-reduce: {found.method}.")
    if found.why_no_energy and found.base.joules is None:
        notes.append(f"Energy is not available: {found.why_no_energy}")
    elif found.target and all(at.money_to_target is None for at in found.lanes):
        notes.append(
            f"To see the price of the energy, set price_per_kwh under [energy] in {settings.FILE} of the store."
        )
    st.caption(run_parts.literal(" ".join(note if note.endswith(".") else f"{note}." for note in notes)))


def as_table(found: Outcome) -> pd.DataFrame:
    """One row per figure, one column per configuration, and a last column that says how each figure was obtained."""
    labels = [visible(at.label, LONGEST_NAME) for at in found.lanes]
    rows = [[title, *texts, how] for title, texts, how in scaling_table.rows(found)]
    return pd.DataFrame(rows, columns=["", *labels, "How"])


def _more_repeats(study: Study) -> None:
    done = len(study.seeds)
    if done >= scaling.MOST_SEEDS or not shared.can_extend(study.runs):
        return
    number = min(max(CLAIM_SEEDS - done, _REPEATS_PER_ROUND), scaling.MOST_SEEDS - done)
    try:
        if st.button(
            f"Repeat {number} more time{'' if number == 1 else 's'}", icon=":material/replay:", key="scale.more",
            help="The same configurations with other seeds. More repeats make the intervals narrower.",
        ):  # fmt: skip
            free = [seed for seed in range(scaling.MOST_SEEDS) if seed not in study.seeds][:number]
            lanes = [Lane(label=lane.label, config=lane.config) for lane in study.lanes]
            seed_blocks = scaling.seed_blocks(lanes, free, study.race.group)
            state.client().submit_seed_blocks(seed_blocks, group=study.race.group, round=study.race.rounds + 1)
            st.rerun()
    except EngineError as error:
        run_parts.error_box(error)
