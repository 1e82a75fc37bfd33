"""Compare: configurations side by side under equal conditions, live, with a verdict; and what the batch size does."""

import streamlit as st

from dashboard import state
from dashboard.views import batch_law, compare, descent
from dashboard.widgets import component, copy_buttons, run_parts
from engine.charts import style
from engine.common.errors import ConfigError, EngineError
from engine.common.sanitize import shell_words
from engine.studies import races

VIEWS = ("Race", "Runs", "Batch-size law", "Descent path", "Two weights")


def race_page() -> None:
    left, right = st.columns([1, 2.7], gap="medium")
    with left.container(border=True, key="form"):
        button = st.empty()  # above the fields, where it is in sight on every screen
        linked = st.query_params.get("preset", races.DEFAULT_RACE)
        name = linked if linked in races.RACES else races.DEFAULT_RACE
        lanes, seeds, metric, target, wrong = compare.race_form(name)
        may = state.client().may("submit")
        if button.button(
            "Start", type="primary", width="stretch", icon=":material/flag:", key="run", disabled=bool(wrong) or not may,
            help=None if may else "As viewer you may look at races; an admin can let you start some.",
        ):  # fmt: skip
            try:
                st.session_state["compare.race"] = compare.start(lanes, seeds)
            except EngineError as error:
                wrong = error if isinstance(error, ConfigError) else ConfigError(error.message, fix=error.fix)
        copy_buttons.copy_buttons("" if wrong else compare.command(lanes, seeds, metric, target), key="copy-form")
    group = st.session_state.pop("compare.race", None) or st.query_params.get("race")
    race = compare.open_race(group)
    params = {"view": "Race", "preset": st.session_state["race.preset"]} | ({"race": race.group} if race else {})
    if params != dict(st.query_params):
        st.query_params.from_dict(params)
    with right:
        if wrong:
            with st.container(key="problems"):
                run_parts.error_box(wrong)
        if race:
            with st.container(key="run-view"):
                try:
                    compare.show_race(race, metric, target, key=f"race-{race.group}")
                except EngineError as error:
                    run_parts.error_box(error)
            return
        component.preload()
        if group:
            st.warning("The race of this link is not in this store.", icon=":material/warning:")
        if not wrong:
            compare.preview(lanes, seeds)


def runs_page() -> None:
    """Runs that are there already, laid beside each other."""
    chosen = compare.library_choice()
    params = {"view": "Runs"} | ({"runs": ",".join(chosen)} if chosen else {})
    if params != dict(st.query_params):
        st.query_params.from_dict(params)
    copy_buttons.copy_buttons(
        shell_words(["python", "-m", "engine", "compare", *chosen]) if len(chosen) > 1 else "", key="copy-runs"
    )
    if len(chosen) < 2:
        st.info("Choose two or more runs: they are drawn into the same charts.", icon=":material/compare_arrows:")
        return
    key = "library-" + "-".join(sorted(chosen))
    st.session_state[f"{key}.runs"] = chosen
    try:
        race = compare.library_race(chosen)
        if race:
            compare.show_race(race, "test_accuracy", None, key=key)
    except EngineError as error:
        run_parts.error_box(error)


def path_page() -> None:
    race = compare.open_race(st.query_params.get("race") or st.session_state.get("compare.last"))
    if race is None:
        st.info(
            "Race first: the paths of its lanes are drawn here, on the loss surface around them.",
            icon=":material/landscape:",
        )
        return
    st.caption(run_parts.literal(f"Seed {min(race.seeds)} of {' · '.join(lane.label for lane in race.lanes)}"))
    first = [(number, lane, lane.runs.get(min(race.seeds))) for number, lane in enumerate(race.lanes)]
    descent.descent_view(
        [
            {"label": lane.label, "color": style.colour(number), "run_id": run.run_id}
            for number, lane, run in first
            if run is not None
        ]
    )


st.title("Compare", anchor=False)
compare.keep_choices()
if "compare.view" not in st.session_state:
    linked_view = st.query_params.get("view", "Race")
    st.session_state["compare.view"] = linked_view if linked_view in VIEWS else "Race"
view = st.segmented_control("View", VIEWS, key="compare.view", label_visibility="collapsed", required=True)
if race_id := st.query_params.get("race"):
    st.session_state["compare.last"] = race_id
if view == "Race":
    if "race" not in st.query_params and st.session_state.get("compare.last"):
        st.query_params["race"] = st.session_state["compare.last"]  # coming back shows what was here before
    race_page()
elif view == "Runs":
    runs_page()
else:
    kept = {key: st.query_params[key] for key in ("race", "law") if key in st.query_params}
    if {"view": view} | kept != dict(st.query_params):
        st.query_params.from_dict({"view": str(view)} | kept)
if view == "Batch-size law":
    batch_law.law_view()
elif view == "Descent path":
    path_page()
elif view == "Two weights":
    descent.quadratic_bowl_view()
