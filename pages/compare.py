"""Compare: configurations side by side under equal conditions, with a verdict; and studies of the batch size."""

import streamlit as st

from dashboard import state
from dashboard.views import batch_law, loss_surface, quadratic_bowl
from dashboard.views.compare import chosen_runs, form, result
from dashboard.views.shared import VIEWER_NOTE
from dashboard.widgets import component, copy_buttons, run_parts
from engine.charts import style
from engine.common.errors import ConfigError, EngineError
from engine.common.sanitize import shell_words
from engine.studies import races

VIEWS = ("Race", "Runs", "Batch-size law", "Descent path", "Two weights")


def set_address(**params: str) -> None:
    """Write what is shown into the address; empty values are left out."""
    wanted = {name: value for name, value in params.items() if value}
    if wanted != dict(st.query_params):
        st.query_params.from_dict(wanted)


def race_page() -> None:
    """The form of a race, and the race of the address."""
    left, right = st.columns([1, 2.7], gap="medium")
    with left.container(border=True, key="form"):
        button = st.empty()  # above the fields, so that it is in sight on every screen
        linked = st.query_params.get("preset", races.DEFAULT_RACE)
        request = form.race_form(linked if linked in races.RACES else races.DEFAULT_RACE)
        wrong = request.wrong
        allowed = state.client().may("submit")
        if button.button(
            "Start", type="primary", width="stretch", icon=":material/flag:", key="run", disabled=bool(wrong) or not allowed,
            help=None if allowed else VIEWER_NOTE,
        ):  # fmt: skip
            try:
                st.session_state["compare.race"] = form.start(request)
            except EngineError as error:
                wrong = error if isinstance(error, ConfigError) else ConfigError(error.message, fix=error.fix)
        copy_buttons.copy_buttons("" if wrong else form.command(request), key="copy-form")
    group = st.session_state.pop("compare.race", None) or st.query_params.get("race")
    race = result.open_race(group)
    set_address(view="Race", preset=st.session_state["race.preset"], race=race.group if race else "")
    with right:
        if wrong:
            with st.container(key="problems"):
                run_parts.error_box(wrong)
        if race:
            with st.container(key="run-view"):
                try:
                    result.show_race(race, request.metric, request.target, key=f"race-{race.group}")
                except EngineError as error:
                    run_parts.error_box(error)
            return
        component.preload()
        if group:
            st.warning("The race of this link is not in this store.", icon=":material/warning:")
        if not wrong:
            form.preview(request)


def runs_page() -> None:
    """Runs of the library beside each other."""
    chosen = chosen_runs.choose_runs()
    set_address(view="Runs", runs=",".join(chosen))
    copy_buttons.copy_buttons(
        shell_words(["python", "-m", "engine", "compare", *chosen]) if len(chosen) > 1 else "", key="copy-runs"
    )
    if len(chosen) < 2:
        st.info("Choose two or more runs to see them in the same charts.", icon=":material/compare_arrows:")
        return
    key = "library-" + "-".join(sorted(chosen))
    st.session_state[f"{key}.runs"] = chosen
    try:
        race = chosen_runs.race_of(chosen)
        if race:
            result.show_race(race, "test_accuracy", None, key=key)
    except EngineError as error:
        run_parts.error_box(error)


def go_to_race() -> None:
    """Show the view of races, where the paths begin."""
    st.session_state["compare.view"] = "Race"


def path_page() -> None:
    """The paths of a race on the loss surface around them."""
    race = result.open_race(st.query_params.get("race") or st.session_state.get("compare.last"))
    if race is None:
        st.info(
            "Start a race first. This view then draws the paths of its runs on the loss surface around them.",
            icon=":material/landscape:",
        )
        st.button("Go to Race", icon=":material/flag:", on_click=go_to_race)
        return
    seed = min(race.seeds)
    st.caption(run_parts.literal(f"Seed {seed} of {' · '.join(lane.label for lane in race.lanes)}"))
    loss_surface.descent_view(
        [
            {"label": lane.label, "color": style.colour(number), "run_id": lane.runs[seed].run_id}
            for number, lane in enumerate(race.lanes)
            if seed in lane.runs
        ]
    )


st.title("Compare", anchor=False)
form.keep_choices()
if "compare.view" not in st.session_state:
    linked_view = st.query_params.get("view", "Race")
    st.session_state["compare.view"] = linked_view if linked_view in VIEWS else "Race"
view = st.segmented_control("View", VIEWS, key="compare.view", label_visibility="collapsed", required=True)
if race_id := st.query_params.get("race"):
    st.session_state["compare.last"] = race_id
if view == "Race":
    if "race" not in st.query_params and st.session_state.get("compare.last"):
        st.query_params["race"] = st.session_state["compare.last"]  # coming back shows the race that was open before
    race_page()
elif view == "Runs":
    runs_page()
else:
    set_address(view=str(view), **{key: st.query_params[key] for key in ("race", "law") if key in st.query_params})
if view == "Batch-size law":
    batch_law.law_view()
elif view == "Descent path":
    path_page()
elif view == "Two weights":
    quadratic_bowl.quadratic_bowl_view()
