"""The batch-size law on a page: what is asked, a run that measures it live, and what it says in words.

A part of a page: `law_view()`. A law that was measured before is found again by its configuration; `law=ID` in the
address is the run that is looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import plotly.graph_objects as go
import streamlit as st

from dashboard import state
from dashboard.widgets import run_parts
from engine.charts.batch_law import batch_law_chart
from engine.common import units
from engine.common.errors import ConfigError, EngineError
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.config.tasks import MIN_BATCH_SIZES
from engine.data import loading
from engine.events.lifecycle import Progress
from engine.events.studies import Trial
from engine.planning.planner import Plan
from engine.store.run import Run
from engine.studies import batch_law
from engine.studies.batch_law import BatchSizeResult, Outcome

DEFAULT_LAW = "digits-law"
_FULL = "full"
_MOST_SEEDS = 10
_ALIKE = 1.25  # times up to this much longer than the best are called about the same
_MOST_TICKS = 6  # batch sizes named below the chart: more run into each other on a phone
_GONE = {"failed", "cancelled", "interrupted"}


def law_view(preset: str = DEFAULT_LAW) -> None:
    """Knobs, the button, and the law: on its way, or measured by now."""
    base, linked = _base(preset)
    with st.container(border=True, key="law"):
        title = st.empty()
        title.markdown(f"**{run_parts.literal(describe(base))}**")
        st.caption(
            "Many short trainings, each until its loss is down to the target, at every batch size with a learning rate tuned "
            "for it: what does a larger batch save in steps, and what does it cost in examples?"
        )
        try:
            config = _knobs(base)
            plan = state.check(config)
            _check_target(config)
        except EngineError as error:
            run_parts.error_box(error)
            return
        title.markdown(f"**{run_parts.literal(describe(config))}**")
        run = _run_of(config, linked)
        _offer(config, plan, run)
    if run is None:
        return
    if st.query_params.get("law") != run.run_id:
        st.query_params["law"] = run.run_id
    if run.is_over:
        _show(run)
    else:
        _follow(run.run_id)


# --- what is asked ------------------------------------------------------------------------------------------------


def _base(preset: str) -> tuple[RunConfig, Run | None]:
    """What the knobs start from: the law of the link, or a preset."""
    wanted = st.query_params.get("law")
    run = state.open_run(wanted)
    if run is not None and run.config.task == "batch-law":
        return run.config, run
    if wanted:
        st.warning("The batch-size law of this link is not in this store.", icon=":material/warning:")
    return preset_config(preset), None


def _knobs(base: RunConfig) -> RunConfig:
    """The configuration as the knobs stand; raises ConfigError for what cannot be measured."""
    law = base.law
    left, right = st.columns(2, gap="medium")
    target = left.number_input(
        "Target loss", value=law.target_loss, step=0.05, format="%.3g", key="law.target",
        help="Each training goes on until its training loss is down to this. A lower target takes longer and usually moves "
        "B_crit up, as the gradient of a net that is nearly done is mostly noise.",
    )  # fmt: skip
    seeds = right.slider(
        "Seeds", 1, max(_MOST_SEEDS, law.seeds), law.seeds, key="law.seeds",
        help="Trainings per batch size at its best learning rate, each with other first weights and another order of the "
        "examples. More give a narrower interval; one gives none.",
    )  # fmt: skip
    sizes = sorted({*preset_config(DEFAULT_LAW).law.batch_sizes, *law.batch_sizes})
    chosen = st.pills(
        "Batch sizes", [*map(str, sizes), _FULL], selection_mode="multi", key="law.sizes", wrap=True,
        default=[*map(str, law.batch_sizes), *([_FULL] if law.full_batch else [])],
        format_func=lambda size: "all examples" if size == _FULL else size,
        help="Examples per optimizer step. The learning rate is tuned for each of them, so that no batch size loses by a "
        "rate that suits another.",
    )  # fmt: skip
    if len(chosen) < MIN_BATCH_SIZES:
        many = "One batch size is" if len(chosen) == 1 else f"{len(chosen) or 'No'} batch sizes are"
        raise ConfigError(f"{many} too few for a law.", fix=f"Choose at least {MIN_BATCH_SIZES}.")
    numbers = ",".join(size for size in chosen if size != _FULL)
    full = str(_FULL in chosen).lower()
    return with_overrides(
        base,
        [
            f"law.target_loss={target:g}",
            f"law.seeds={seeds}",
            f"law.batch_sizes={numbers}",
            f"law.full_batch={full}",
        ],
    )


def _check_target(config: RunConfig) -> None:
    """Raises ConfigError for a target that a net reaches by guessing."""
    classes = loading.facts(config.data, config.source).num_classes
    if config.law.target_loss >= math.log(classes):
        raise ConfigError(
            f"A target loss of {config.law.target_loss:g} is reached by guessing: among {classes} classes that has "
            f"a loss of {math.log(classes):.2f}.",
            fix="Choose a lower one.",
        )


def _run_of(config: RunConfig, linked: Run | None) -> Run | None:
    """The run to show: of the link, of the last click, or one measured before. One that is gone only where asked for."""
    if linked is not None and linked.config == config:
        run: Run | None = linked
    else:
        run = state.open_run(_kept().get(config.fingerprint) or _measured_before(config))
    if run is not None:
        run.refresh()
    return run


def _kept() -> dict[str, str]:
    kept: dict[str, str] = st.session_state.setdefault("law.runs", {})
    return kept


def _measured_before(config: RunConfig) -> str | None:
    """The newest run of the same law that stands or is on its way."""
    rows = state.store().rows(limit=200)
    alike = (row for row in rows if row.config.task == "batch-law" and row.config == config)
    return next((row.run_id for row in alike if row.status not in _GONE), None)


def _offer(config: RunConfig, plan: Plan, run: Run | None) -> None:
    """How long it takes, and the button; not while it is measured."""
    seconds = batch_law.estimate_seconds(
        config.law, train_examples=plan.train_examples, forward_flops_per_example=plan.forward_flops_per_example,
        train_flops_per_example=plan.train_flops_per_example,
    )  # fmt: skip
    st.caption(
        f"Takes about {units.duration(seconds)} (estimated for a target about as hard as a loss of 0.2 on 8x8 digits: a lower "
        "one takes longer, and so does a busy machine)."
    )
    if run is not None and not run.is_over:
        return
    may = state.client().may("submit")
    clicked = st.button(
        "Measure it again" if run else "Measure the law", icon=":material/straighten:", key="law.measure",
        type="secondary" if run else "primary", disabled=not may,
    )  # fmt: skip
    if not may:
        st.caption("As viewer you may look at laws; an admin can let you measure some.")
    if not clicked:
        return
    try:
        run_id = state.submit(config, name="Batch-size law")
    except EngineError as error:
        run_parts.error_box(error)
        return
    _kept()[config.fingerprint] = st.query_params["law"] = run_id
    st.rerun()


# --- while it is measured -----------------------------------------------------------------------------------------


@st.fragment(run_every=1.5)
def _follow(run_id: str) -> None:
    """How far the run is, and the chart of the batch sizes it has finished; the page is drawn anew at its end."""
    run = run_parts.refreshed(run_id)
    said = run.latest(Progress)
    trials = known_trials(run)
    done = len({t.batch_size for t in trials})
    text = f"{done} of {said.total} batch sizes done; now {said.text}" if said and said.text else run.status
    run_parts.progress_of(run, text.capitalize())
    if trials:
        _chart(run, trials)
    else:
        st.caption("The first points come once the learning rate of the smallest batch size is found.")


def known_trials(run: Run) -> list[Trial]:
    """The trials of batch sizes that are done: of the one at work it is not known yet whether it reaches the target."""
    if run.status == "finished" or not run.trials:
        return list(run.trials)
    at_work = run.trials[-1].batch_size
    if sum(t.batch_size == at_work and not t.tuning for t in run.trials) == run.config.law.seeds:
        return list(run.trials)
    return [t for t in run.trials if t.batch_size != at_work]


def _chart(run: Run, trials: Sequence[Trial]) -> None:
    """Drawn anew only when there is more to see: another figure would be another chart, and flicker."""
    key = (run.run_id, len(trials))
    before, figure = st.session_state.get("law.figure", (None, None))
    if before != key:
        figure = _figure(run, trials)
        st.session_state["law.figure"] = (key, figure)
    with st.container(height=int(figure.layout.height) + 16, border=False):  # what is below does not jump meanwhile
        st.plotly_chart(figure, key=f"law.chart.{run.run_id}", theme=None, config={"displayModeBar": False})


def _figure(run: Run, trials: Sequence[Trial]) -> go.Figure:
    found = batch_law.outcome(trials)
    law = found.law
    if law and not run.is_over and law.b_crit > max(t.batch_size for t in trials):
        law = None  # of what is still to be measured
    figure = batch_law_chart(trials, law, found.step_time)
    sizes = run.config.law.sizes(run.started.train_examples) if run.started else [t.batch_size for t in trials]
    every = math.ceil(len(sizes) / _MOST_TICKS)
    ends = math.log10(min(sizes)) - 0.1, math.log10(max(sizes)) + 0.15
    return figure.update_xaxes(range=ends, tickvals=sizes[::-1][::every])  # the frame stands while points arrive


# --- what it says -------------------------------------------------------------------------------------------------


def _show(run: Run) -> None:
    run_parts.why_box(run)
    trials = known_trials(run)
    found = batch_law.outcome(trials)
    st.caption(run_parts.literal(_origin(run, found)))
    rows = batch_law.facts(found)
    with st.container(key=f"final-law-{run.run_id}"):  # two in a row on a phone, as a run's own figures
        columns = st.columns([1, 1, 1, 1.5, 1.5]) if rows else []
    for column, (title, value, how) in zip(columns, rows, strict=False):
        column.markdown(f"{run_parts.literal(title)}  \n**{run_parts.literal(value)}**")
        column.caption(run_parts.literal(how))
    for sentence in in_words(trials, found):
        st.markdown(run_parts.literal(sentence))
    if trials:
        _chart(run, trials)
        st.caption("Dots: one training each. Line: the law. Both axes are logarithmic. Measured; the line is fitted.")
    if run.status == "finished" or found.law:  # what is missing for a law was stopped, and is said so above
        for note in found.notes:
            st.caption(run_parts.literal(note))


def _origin(run: Run, found: Outcome) -> str:
    """How old it is, where it was measured, of how many trainings; that it ended early where it did."""
    where = run.started.environment.get("cpu" if run.config.device == "cpu" else "device") if run.started else None
    said = f"Measured {units.age(time.time() - run.created)}{f' on {where}' if where else ''}, {len(run.trials):,} trainings."
    if run.summary().busy:
        said += f" The machine was busy, so times are longer than its own: {run.summary().busy_why}."
    if run.status == "finished":
        return said
    ended = {"failed": "It failed", "interrupted": "It was interrupted"}.get(run.status, "It was stopped")
    rest = "the law is theirs" if found.law else "too few for a law"
    return f"{said} {ended} with {len(found.sizes)} batch sizes done: {rest}."


def in_words(trials: Sequence[Trial], found: Outcome) -> list[str]:
    """What a law means, what the full batch costs, which batch the clock prefers, what to try next."""
    fitted = [at for at in found.sizes if at.in_fit]
    if found.law is None or len(fitted) < MIN_BATCH_SIZES:
        return []
    law, small, large = found.law, fitted[0], fitted[-1]
    return [
        f"However large the batch, the target takes about {units.about(law.s_min)} steps (S_min); however small, about "
        f"{units.about(law.e_min)} examples (E_min). At a batch of {units.about(law.b_crit)} (B_crit) it takes twice as many of "
        "both. Below that, doubling the batch nearly halves the steps; far above, it only doubles the examples.",
        _cost_of_the_largest(trials, small, large),
        _fastest(trials, fitted, found),
        "Try next: a lower target, where B_crit is usually larger; or the same law on another machine, where the steps "
        "stay about the same and the times do not.",
    ]


def _cost_of_the_largest(trials: Sequence[Trial], small: BatchSizeResult, large: BatchSizeResult) -> str:
    few, many = _mean(trials, small, "samples"), _mean(trials, large, "samples")
    rates = (
        f"The best learning rate was {small.lr:.2g} for the one and {large.lr:.2g} for the other: with the same rate for "
        "both, the rate would decide and not the batch."
        if small.lr and large.lr
        else ""
    )
    return (
        f"Measured: a batch of {large.batch_size:,} used {units.about(many)} examples to the target, {units.about(many / few)} "
        f"times as many as a batch of {small.batch_size:,} ({units.about(few)}). {rates}"
    ).strip()


def _fastest(trials: Sequence[Trial], fitted: Sequence[BatchSizeResult], found: Outcome) -> str:
    """Measured times; the formula beside them."""
    times = {at.batch_size: _mean(trials, at, "train_s") for at in fitted}
    best = min(times, key=times.__getitem__)
    alike = [size for size, seconds in times.items() if seconds <= _ALIKE * times[best]]
    flat = (
        f"Batches of {min(alike):,} to {max(alike):,} take at most {units.percent(_ALIKE - 1)} longer: the optimum is flat"
        if len(alike) > 1 and _are_neighbours(alike, list(times))
        else f"No other takes less than {units.percent(_ALIKE - 1)} longer"
        if len(alike) == 1
        else f"Those of {', '.join(f'{size:,}' for size in alike)} differ by at most {units.percent(_ALIKE - 1)}"
    )
    formula = (
        f"; the law and the step times put it at about {units.about(found.best.b_star)}"
        if found.best and math.isfinite(found.best.b_star)
        else ""
    )
    return (
        f"By the clock of this machine a batch of {best:,} was fastest, {units.duration(times[best])}. {flat}{formula}."
    )


def _are_neighbours(some: Sequence[int], all_of_them: Sequence[int]) -> bool:
    first, last = all_of_them.index(some[0]), all_of_them.index(some[-1])
    return last - first + 1 == len(some)


def _mean(trials: Sequence[Trial], at: BatchSizeResult, what: str) -> float:
    """Geometric mean over the measuring trials of a batch size that all reached the target."""
    values = [getattr(t, what) for t in trials if t.batch_size == at.batch_size and not t.tuning]
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values))
