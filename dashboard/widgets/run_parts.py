"""Pieces several pages show: the plan of an experiment, a run's final numbers, the machine's card, an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard import state
from engine.charts.step_breakdown import split_chart
from engine.common import units
from engine.common.errors import EngineError
from engine.common.sanitize import visible
from engine.config.summary import describe
from engine.config.tasks import TaskName
from engine.events.base import Status
from engine.events.training import Compiled
from engine.hardware.probe import Machine
from engine.measurement import calibration, cost, energy, provenance, step_breakdown
from engine.measurement.energy import Detail
from engine.measurement.provenance import Figure
from engine.planning import request_checks
from engine.planning.planner import Plan
from engine.reports import sharing
from engine.reports.frozen_run import ENVIRONMENT
from engine.store.listing import RunRow
from engine.store.run import Run
from engine.studies.inference import cell_in_words, matrix_of

COLORS = {
    "queued": "gray", "starting": "blue", "running": "blue", "stopping": "orange",
    "finished": "green", "cancelled": "gray", "failed": "red", "interrupted": "orange",
}  # fmt: skip


def person() -> None:
    """Who is signed in, where there are several people; somebody who may no longer look gets no further."""
    role = state.role()
    if role is None:
        st.error(f"{literal(state.actor().in_words)} may not use this dashboard. Ask its admin for access.")
        st.stop()
    if state.actor().source not in {"local", "terminal"}:
        st.caption(f"{literal(state.actor().name)} · {role} · [Sign out](sign-out)")


def error_box(error: EngineError) -> None:
    """What is wrong and what to do, shown as the text it is."""
    st.error(literal(str(error)), icon=":material/error:")


# What Streamlit looks for in the text that markdown leaves, where a backslash is gone already: :smile:, :streamlit:,
# :material/home:, http://…, www.…, a@b.c, and ->, --, >= as one sign. `:color[x]` without a colour is x in a plain span,
# and what stands in a span of its own makes none of these with what is around it.
_SIGNS = re.compile(
    r"(?P<apart>@|:(?=\S)|(?<=[wW]{3})\.|-(?=[->])|(?<=<)-|(?<=[<>~])=)|[\\`*_\[\](){}<>#|~$:&!+=^-]|(?<=\d)\.(?=\s|$)"
)
_LONGEST_TEXT = 1_000  # of what is said of a run; a page is no place for more
_LONGEST_IN_A_LINE = 80


def literal(text: str, most: int = _LONGEST_TEXT) -> str:
    """Text shown as it is wherever Streamlit reads markdown: in a caption, a message, a label, a help text."""

    def escaped(sign: re.Match[str]) -> str:
        return f":color[\\{sign[0]}]" if sign["apart"] else f"\\{sign[0]}"

    return _SIGNS.sub(escaped, visible(text, most).strip())


def hint(error: EngineError) -> None:
    """What is still to be done."""
    st.info(literal(str(error)), icon=":material/info:")


def warn(text: str) -> None:
    """What one should know before a run."""
    st.warning(literal(text), icon=":material/warning:")


def badged(place: DeltaGenerator, label: str, text: str, figure: Figure, *, more: str = "", flaw: str = "") -> None:
    """A figure with its badge: how it was had stands in the help, and a flaw under the figure itself."""
    said = f"{figure.in_words()} {more}".strip()
    place.metric(label, text, help=literal(said), delta=flaw or None, delta_color="orange", delta_arrow="off")


def plan_figures(plan: Plan) -> None:
    """Four figures that move with the form."""
    parts = ", ".join(f"{name} {units.nbytes(size)}" for name, size in plan.parts() if size)
    micro = f", {plan.micro_batch:,} at once" if plan.micro_batch < plan.batch_size else ""
    in_all = "until its time is over" if plan.total_steps is None else f"{plan.total_steps:,} in all"
    known = provenance.of_plan(plan)
    with st.container(key="plan"):
        columns = st.columns(4)
        badged(columns[0], "Parameters", f"{plan.parameters:,}", known["parameters"])
        badged(
            columns[1], "Per step", units.flops(plan.train_flops_per_example * plan.batch_size), known["flops_per_step"],
            more=f"Batches of {plan.batch_size:,}{micro}." if micro else "",
        )  # fmt: skip
        badged(
            columns[2], "Memory", units.nbytes(plan.total_bytes), known["total_bytes"], more=f"Of training: {parts}."
        )
        badged(
            columns[3], "Steps per epoch", f"{plan.steps_per_epoch:,}", known["steps_per_epoch"],
            more=f"The run takes steps {in_all}.",
        )  # fmt: skip


BUSY = "machine was busy"


def _race_of_surface(run: Run | RunRow) -> str:
    drawn = state.open_run(run.config.landscape.runs[0])
    return (drawn.group or "") if drawn else ""


@dataclass(frozen=True, slots=True)
class TaskView:
    """The page that shows the runs of a task, if that is not Train."""

    page: str
    view: str  # empty: the page chooses it
    parameter: str = "run"  # of the address
    shown_as: Callable[[Run | RunRow], str] = lambda run: run.run_id  # its value; empty: Train shows the run


_TASK_VIEWS: Mapping[TaskName, TaskView] = {
    "batch-law": TaskView("compare", "Batch-size law", "law"),
    "calibrate": TaskView("hardware", "Calibrate"),
    "infer": TaskView("inference", ""),
    "landscape": TaskView("compare", "Descent path", "race", _race_of_surface),
}
TRAIN = "../pages/train.py"


def final_figures(run: Run) -> None:
    """What a run that is over came to; each figure says how it was had. Of one that trains no net, what it is and does."""
    if own := _FIGURES.get(run.config.task):
        own(run)
        return
    if about := run.config.task_facts.about:
        st.caption(literal(about))
        return
    account = account_of(run)
    s, known = run.summary(), provenance.of_run(run, account)
    flaw = BUSY if s.busy else ""
    with st.container(key=f"final-{run.run_id}"):
        columns = st.columns([1.35, 1, 1.15, 1, 1.1])
    badged(
        columns[0], "Next-character accuracy" if run.config.is_text else "Test accuracy",
        units.accuracy(s.test_accuracy), known["test_accuracy"],
    )  # fmt: skip
    badged(columns[1], "Training loss", units.loss(s.final_train_loss), known["final_train_loss"])
    badged(
        columns[2], "Samples per second", units.count(s.samples_per_s and round(s.samples_per_s)), known["samples_per_s"],
        flaw=flaw,
    )  # fmt: skip
    badged(
        columns[3], "Training time", units.duration(s.train_seconds), known["train_seconds"],
        more=f"{units.flops(s.flops)} (derived).", flaw=flaw,
    )  # fmt: skip
    badged(
        columns[4],
        "Training memory",
        units.nbytes(s.peak_memory_bytes),
        known["peak_memory_bytes"],
        more=_memory_in_words(run),
    )
    if besides := _besides(run, account):
        st.caption(literal(" · ".join(besides)))


def page_of(run: Run | RunRow) -> str:
    """The page that shows a run: that of its task."""
    return f"../pages/{_TASK_VIEWS[run.config.task].page}.py" if _shown_as(run) else TRAIN


def _serving_figures(run: Run) -> None:
    """Of a measurement of inference: how well it answers, how many, how soon."""
    found, s = matrix_of(run), run.summary()
    measured = found.measured
    best = max(measured, key=lambda c: c.samples_per_s or 0.0, default=None)
    soonest = min(measured, key=lambda c: c.quantile_s("p99") or 0.0, default=None)
    untrained = "" if found.is_trained else "untrained weights"
    busy = BUSY if s.busy else ""
    told = (
        ("Test accuracy", units.accuracy(s.test_accuracy), "Measured on all held-out examples.", untrained),
        ("Most samples per second", units.count(round(best.samples_per_s or 0) if best else None),
         f"Measured: {cell_in_words(found, best.cell)}." if best else "", busy),
        ("Shortest p99", units.duration(soonest.quantile_s("p99") if soonest else None),
         f"Measured: {cell_in_words(found, soonest.cell)}." if soonest else "", busy),
        ("Cells measured", f"{len(measured)} of {len(found.cells)}", "Counted.", ""),
    )  # fmt: skip
    with st.container(key=f"final-{run.run_id}"):
        for column, (title, text, how, flaw) in zip(st.columns(4), told, strict=True):
            column.metric(title, text, help=literal(how), delta=flaw or None, delta_color="orange", delta_arrow="off")


_FIGURES: Mapping[TaskName, Callable[[Run], None]] = {"infer": _serving_figures}


def has_weights(run: Run) -> bool:
    """Whether this run left weights that can answer."""
    return (
        run.config.task_facts.trains_one_model
        and run.status == "finished"
        and request_checks.weights_of(run) is not None
    )


def address_of(run: Run | RunRow) -> dict[str, str]:
    """What the address of that page holds to show this run."""
    shown_as = _shown_as(run)
    if not shown_as:
        return {"run": run.run_id}
    place = _TASK_VIEWS[run.config.task]
    return ({"view": place.view} if place.view else {}) | {place.parameter: shown_as}


def _shown_as(run: Run | RunRow) -> str:
    """What a study is called where it is shown; empty where that is the page Train. A surface stands beside its race."""
    place = _TASK_VIEWS.get(run.config.task)
    return place.shown_as(run) if place else ""


def at_work(run_id: str) -> Run:
    """A run that goes on, as it is now; once it is over, or gone, the whole page is drawn anew."""
    run = state.open_run(run_id)
    if run is not None:
        run.refresh()
    if run is None or run.is_over:
        st.rerun()
    return run


def progress_of(run: Run, text: str) -> None:
    """How far a run is, in words, beside what stops it."""
    bar, action = st.columns([5, 1], vertical_alignment="center")
    bar.progress(run.progress() or 0.0, text=literal(text))
    if state.client().may("cancel", run.run_id) and action.button(
        "Stop", key=f"stop-{run.run_id}", icon=":material/stop:", width="stretch"
    ):
        state.client().cancel(run.run_id)


def account_of(run: Run) -> energy.Account:
    """The energy of a run, with the prices of this store and what the machine draws when idle."""
    return energy.in_store(state.store(), run)


def split_of(run: Run) -> None:
    """Where a step's time went, which part is the bottleneck, and what would make it shorter."""
    found = step_breakdown.parts(run.step_split, evaluation_s=run.evaluation_s, steps=len(run.steps))
    if not found:
        if run.step_split and run.step_split.reason:
            st.caption(literal(f"Where a step's time goes is not known: {run.step_split.reason}"))
        return
    assert run.step_split
    with st.container(border=True, key=f"split-{run.run_id}"):
        st.markdown(
            "**Where a step's time goes**",
            help=literal(
                f"Measured: {run.step_split.method}; evaluation from the run's own evaluations, by its steps."
            ),
        )
        figure = split_chart([("", found)])
        st.plotly_chart(figure, key=f"split-chart-{run.run_id}", theme=None, config={"displayModeBar": False})
        st.markdown(f":material/lightbulb: {literal(step_breakdown.sentence(found, run.config))}")
        if known := step_breakdown.agrees(found, run.summary().train_seconds / max(1, len(run.steps))):
            st.caption(literal(known))


def hardware_of(run: Run) -> None:
    """What a run ran on and what it drew, for who asks."""
    if run.started is None:
        return
    account = account_of(run)
    with st.expander("Hardware and energy of this run", icon=":material/memory:"):
        known = run.started.environment
        facts = [
            (title, write(known[key]))
            for key, (title, write) in ENVIRONMENT.items()
            if known.get(key) is not None and not (key == "cpu" and known.get("device") == known["cpu"])
        ]
        lines = [f":small[{literal(title)}]  \n{literal(visible(text))}" for title, text in facts]
        with st.container(horizontal=True, key=f"hardware-{run.run_id}"):
            for line in lines:
                st.markdown(line, width=150)
        st.divider()
        rows = [
            Detail("Energy", energy.in_words(account), energy.how_in_words(account), account.is_short),
            *energy.details(account),
            *_mfu(run),
        ]
        for title, text, how, is_short in rows:
            value = f":gray[{literal(text)}]" if is_short else f"**{literal(text)}**"
            st.markdown(f"{literal(title)}: {value}  \n:small[{literal(how[:1].upper() + how[1:])}]")
        if tip := energy.hint(account):
            st.caption(literal(tip))


def _mfu(run: Run) -> list[Detail]:
    """MFU against both peaks, or why it is not told."""
    device, name = calibration.of_run(run)
    attained, found = cost.flops_per_s(run), state.calibration_of(device, name)
    told = {
        "MFU of the measured peak": cost.mfu(run.config, attained, found),
        "MFU of the data sheet": cost.data_sheet_mfu(run.config, attained, name),
    }
    busy = f" ({BUSY})" if run.summary().busy else ""
    how = "derived: FLOP/s on the training clock, over the peak from"
    return [
        Detail(title, "not told", mfu.reason)
        if mfu.value is None
        else Detail(title, units.percent(mfu.value, digits=1) + busy, f"{how} {mfu.peak_from}")
        for title, mfu in told.items()
    ]


def _memory_in_words(run: Run) -> str:
    memory = run.memory
    if memory is None:
        return ""
    sizes = {
        "Weights": memory.weight_bytes,
        "optimizer state": memory.optimizer_bytes,
        "one step's peak": memory.step_peak_bytes,
    }
    words = ", ".join(f"{name} {units.nbytes(size)}" for name, size in sizes.items())
    return f"{words}. Data on the device, apart: {units.nbytes(memory.data_bytes)}."


def _besides(run: Run, account: energy.Account) -> list[str]:
    """What only some runs have: a target, time to compile; and the process around the training."""
    s, target = run.summary(), run.config.target
    words: list[str] = []
    if target.value is not None:
        goal = (
            f"{units.accuracy(target.value)} accuracy"
            if target.metric == "test_accuracy"
            else f"test loss {target.value:g}"
        )
        words.append(f"Target of {goal} {_when_reached(run)}")
    if compiled := run.latest(Compiled):
        words.append(f"{units.duration(compiled.seconds)} to compile, not in the training time")
    if account.is_measured or account.source == "estimate":
        words.append(f"Energy {energy.in_words(account)}")
    if s.busy:
        words.append(f"Machine was busy: {s.busy_why}")
    if s.process_memory_bytes is not None:
        words.append(f"Whole process {units.nbytes(s.process_memory_bytes)}, PyTorch itself included")
    return words


def _when_reached(run: Run) -> str:
    s = run.summary()
    if s.target_step is None:
        return "not reached"
    return f"reached at step {s.target_step:,}, after {units.duration(s.target_seconds)} of training"


def why_box(run: Run) -> None:
    """Whether it was made here, and why it ended before its budget."""
    if said := sharing.origin_in_words(run):
        st.info(literal(" ".join(said)), icon=":material/file_open:")
    if run.status == "failed":
        st.error(literal(run.why()), icon=":material/error:")
    elif run.status == "interrupted":
        st.info(literal(f"{run.status.capitalize()}: {run.why()}"), icon=":material/info:")
    for problem in run.problems:
        st.warning(literal(f"Recording: {problem}."), icon=":material/warning:")


def origins_of(runs: Sequence[tuple[str, Run]]) -> None:
    """Which of some runs, by their names, were not made here."""
    if names := list(dict.fromkeys(name for name, run in runs if run.imported)):
        st.badge("imported, unverified", color="orange", icon=":material/download:")
        st.caption(literal(f"Not made here: {', '.join(names)}."))


def status_badge(status: Status) -> None:
    st.badge(status, color=COLORS[status])  # type: ignore[arg-type]


def run_line(row: RunRow, now: float) -> None:
    """A run in one line that opens it."""
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
            figures.insert(0, f"{units.accuracy(row.summary.test_accuracy)} accuracy")
        st.caption(
            literal(" · ".join(figures + ([visible(row.name, _LONGEST_IN_A_LINE)] if row.name else []))),
            help="Accuracy: measured on held-out examples, at the last evaluation."
            if row.summary.test_accuracy is not None
            else None,
        )


def machine_card(machine: Machine) -> None:
    """What this computer offers a run."""
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
