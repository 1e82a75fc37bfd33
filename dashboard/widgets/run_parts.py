"""Parts that several pages show: messages, links to a run, its state, the machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import streamlit as st

from dashboard import state
from engine.common import units
from engine.common.errors import EngineError
from engine.common.sanitize import visible
from engine.config.summary import describe
from engine.config.tasks import TaskName
from engine.events.base import Status
from engine.hardware.probe import Machine
from engine.measurement import energy
from engine.planning import request_checks
from engine.reports import sharing
from engine.store.listing import RunRow
from engine.store.run import Run

COLORS = {
    "queued": "gray",
    "starting": "blue",
    "running": "blue",
    "stopping": "orange",
    "finished": "green",
    "cancelled": "gray",
    "failed": "red",
    "interrupted": "orange",
}


def _race_of_surface(run: Run | RunRow) -> str:
    drawn = state.open_run(run.config.landscape.runs[0])
    return (drawn.group or "") if drawn else ""


@dataclass(frozen=True, slots=True)
class TaskView:
    """The page that shows the runs of a task, if that is not Train."""

    page: str
    view: str  # empty: the run's configuration decides the view
    parameter: str = "run"  # of the address: it names the run
    shown_as: Callable[[Run | RunRow], str] = lambda run: run.run_id  # its value; empty: Train shows the run


_TASK_VIEWS: Mapping[TaskName, TaskView] = {
    "batch-law": TaskView("compare", "Batch-size law", "law"),
    "calibrate": TaskView("hardware", "Calibrate"),
    "infer": TaskView("inference", ""),
    "landscape": TaskView("compare", "Descent path", "race", _race_of_surface),
}
TRAIN = "../pages/train.py"

# Streamlit replaces these after markdown has removed the backslashes: :smile:, :streamlit:, :material/home:, http://…,
# www.…, a@b.c, and ->, --, >= as one sign. `:color[x]` without a colour puts x into a plain span, and a sign in a span of
# its own forms none of these with the text around it.
_SIGNS = re.compile(
    r"(?P<apart>@|:(?=\S)|(?<=[wW]{3})\.|-(?=[->])|(?<=<)-|(?<=[<>~])=)|[\\`*_\[\](){}<>#|~$:&!+=^-]|(?<=\d)\.(?=\s|$)"
)
_LONGEST_TEXT = 1_000  # of a text about a run
_LONGEST_IN_A_LINE = 80


def literal(text: str, most: int = _LONGEST_TEXT) -> str:
    """The text escaped for markdown, so that Streamlit shows it unchanged in captions, messages, labels and help texts.

    It is cut after `most` characters.
    """

    def escaped(sign: re.Match[str]) -> str:
        return f":color[\\{sign[0]}]" if sign["apart"] else f"\\{sign[0]}"

    return _SIGNS.sub(escaped, visible(text, most).strip())


def error_box(error: EngineError) -> None:
    """Show an error: what is wrong and what to do."""
    st.error(literal(str(error)), icon=":material/error:")


def hint(error: EngineError) -> None:
    """Show what the user still has to do."""
    st.info(literal(str(error)), icon=":material/info:")


def warn(text: str) -> None:
    """Show a warning about the next run."""
    st.warning(literal(text), icon=":material/warning:")


def show_user() -> None:
    """Show who is signed in. The script stops here for somebody without access."""
    role = state.role()
    if role is None:
        st.error(f"{literal(state.actor().in_words)} may not use this dashboard. Ask its admin for access.")
        st.stop()
    if state.actor().source not in {"local", "terminal"}:
        st.caption(f"{literal(state.actor().name)} · {role} · [Sign out](sign-out)")


def page_of(run: Run | RunRow) -> str:
    """The page that shows a run, by its task."""
    return f"../pages/{_TASK_VIEWS[run.config.task].page}.py" if _shown_as(run) else TRAIN


def address_of(run: Run | RunRow) -> dict[str, str]:
    """The parameters of that page's address for this run."""
    shown_as = _shown_as(run)
    if not shown_as:
        return {"run": run.run_id}
    place = _TASK_VIEWS[run.config.task]
    return ({"view": place.view} if place.view else {}) | {place.parameter: shown_as}


def _shown_as(run: Run | RunRow) -> str:
    """The id under which a study's page shows it; empty for the page Train. A loss surface is shown with its race."""
    place = _TASK_VIEWS.get(run.config.task)
    return place.shown_as(run) if place else ""


def has_weights(run: Run) -> bool:
    """Whether this run has weights for inference."""
    return (
        run.config.task_facts.trains_one_model
        and run.status == "finished"
        and request_checks.weights_of(run) is not None
    )


def refreshed(run_id: str) -> Run:
    """A run under way, with its newest records. The whole page is drawn again when the run is over or deleted."""
    run = state.open_run(run_id)
    if run is not None:
        run.refresh()
    if run is None or run.is_over:
        st.rerun()
    return run


def progress_of(run: Run, text: str) -> None:
    """Draw the progress of a run with a text, and its Stop button."""
    bar, action = st.columns([5, 1], vertical_alignment="center")
    bar.progress(run.progress() or 0.0, text=literal(text))
    if state.client().may("cancel", run.run_id) and action.button(
        "Stop", key=f"stop-{run.run_id}", icon=":material/stop:", width="stretch"
    ):
        state.client().cancel(run.run_id)


def account_of(run: Run) -> energy.Account:
    """The energy of a run, with this store's prices and idle power."""
    return energy.in_store(state.store(), run)


def why_box(run: Run) -> None:
    """Show where a run comes from if it was imported, and why it ended before its budget."""
    if origin := sharing.origin_in_words(run):
        st.info(literal(" ".join(origin)), icon=":material/file_open:")
    if run.status == "failed":
        st.error(literal(run.why()), icon=":material/error:")
    elif run.status == "interrupted":
        st.info(literal(f"{run.status.capitalize()}: {run.why()}"), icon=":material/info:")
    for problem in run.problems:
        st.warning(literal(f"Recording: {problem}."), icon=":material/warning:")


def origins_of(runs: Sequence[tuple[str, Run]]) -> None:
    """Show which of the runs were imported. `runs` are pairs of a name and a run."""
    if names := list(dict.fromkeys(name for name, run in runs if run.imported)):
        st.badge("imported, unverified", color="orange", icon=":material/download:")
        st.caption(literal(f"Imported: {', '.join(names)}."))


def status_badge(status: Status) -> None:
    """Show the status of a run in its colour."""
    st.badge(status, color=COLORS[status])  # type: ignore[arg-type]


def run_line(row: RunRow, now: float) -> None:
    """Draw a run as one line with a link to it. `now` is Unix time, s."""
    with st.container(horizontal=True, vertical_alignment="center", key=f"line-{row.run_id}"):
        status_badge(row.status)
        st.page_link(
            page_of(row),
            label=literal(describe(row.config)),
            query_params=address_of(row),
            width="content",
        )
        figures = [units.age(now - row.created)]
        if row.summary.test_accuracy is not None:
            figures.insert(0, f"{units.accuracy(row.summary.test_accuracy)} test accuracy")
        st.caption(
            literal(" · ".join(figures + ([visible(row.name, _LONGEST_IN_A_LINE)] if row.name else []))),
            help="Test accuracy: measured at the last evaluation." if row.summary.test_accuracy is not None else None,
        )


def machine_card(machine: Machine) -> None:
    """Draw this machine's CPU, memory and GPUs."""
    with st.container(border=True, key="machine"):
        st.markdown("**This machine**")
        st.text(f"{visible(machine.cpu.name)}\n{machine.cpu.usable_cores} usable cores")
        st.text(
            f"{units.nbytes(machine.memory_bytes)} memory, {units.nbytes(machine.memory_available_bytes)} available"
        )
        for gpus in machine.alike:
            gpu, more = gpus[0], f" to cuda:{gpus[-1].index}" if len(gpus) > 1 else ""
            each = " each" if more else ""
            st.text(f"cuda:{gpu.index}{more}: {visible(gpu.name)}, {units.nbytes(gpu.memory_bytes)}{each}")
        if machine.gpu_reason:
            st.caption(literal(f"{machine.gpu_reason} Runs use the CPU."))
