"""The view “Batch-size law” of the page Compare: form, live progress and result of a study of batch sizes.

A study measured before is found again by its configuration; `law=ID` in the address is the run that is shown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import plotly.graph_objects as go
import streamlit as st

from dashboard import state
from dashboard.views.shared import newest_like, submit_button
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
_SIMILAR = 1.25  # batch sizes up to this many times slower than the fastest are called similar
_MOST_TICKS = 6  # batch sizes named below the chart: more overlap on a phone


def law_view(preset: str = DEFAULT_LAW) -> None:
    """Form and button, then the progress or the result of the study."""
    base, linked = _base(preset)
    with st.container(border=True, key="law"):
        title = st.empty()
        title.markdown(f"**{run_parts.literal(describe(base))}**")
        st.caption(
            "Trains to the same target loss at every batch size, each with its own tuned learning rate. Shows how many steps "
            "a larger batch saves and how many samples it costs."
        )
        try:
            config = _form(base)
            plan = state.check(config)
            _check_target(config)
        except EngineError as error:
            run_parts.error_box(error)
            return
        title.markdown(f"**{run_parts.literal(describe(config))}**")
        run = _run_of(config, linked)
        _submit(config, plan, run)
    if run is None:
        return
    if st.query_params.get("law") != run.run_id:
        st.query_params["law"] = run.run_id
    if run.is_over:
        _result(run)
    else:
        _progress(run.run_id)


# --- form ---------------------------------------------------------------------------------------------------------


def _base(preset: str) -> tuple[RunConfig, Run | None]:
    """The configuration the form starts from, and the run of the link if there is one."""
    wanted = st.query_params.get("law")
    run = state.open_run(wanted)
    if run is not None and run.config.task == "batch-law":
        return run.config, run
    if wanted:
        st.warning("The batch-size law of this link is not in this store.", icon=":material/warning:")
    return preset_config(preset), None


def _form(base: RunConfig) -> RunConfig:
    """Draw the form and return its configuration.

    Raises:
        ConfigError: The configuration cannot be measured.
    """
    law = base.law
    left, right = st.columns(2, gap="medium")
    target = left.number_input(
        "Target loss", value=law.target_loss, step=0.05, format="%.3g", key="law.target",
        help="Each training stops when its training loss has fallen to this value. A lower target takes longer and "
        "usually raises B_crit, because the gradient of a network near its minimum is mostly noise.",
    )  # fmt: skip
    seeds = right.slider(
        "Seeds", 1, max(_MOST_SEEDS, law.seeds), law.seeds, key="law.seeds",
        help="Trainings per batch size at its best learning rate, each with other initial weights and another data order. "
        "More seeds give a narrower interval; one seed gives none.",
    )  # fmt: skip
    sizes = sorted({*preset_config(DEFAULT_LAW).law.batch_sizes, *law.batch_sizes})
    chosen = st.pills(
        "Batch sizes", [*map(str, sizes), _FULL], selection_mode="multi", key="law.sizes", wrap=True,
        default=[*map(str, law.batch_sizes), *([_FULL] if law.full_batch else [])],
        format_func=lambda size: "full batch" if size == _FULL else size,
        help="Samples per optimizer step. The learning rate is tuned for each batch size, because one rate does not suit all.",
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
    """Refuse a target that a network reaches by guessing.

    Raises:
        ConfigError: The target loss is at least that of guessing.
    """
    classes = loading.facts(config.data, config.source).num_classes
    if config.law.target_loss >= math.log(classes):
        raise ConfigError(
            f"A target loss of {config.law.target_loss:g} is reached by guessing at random, which has a loss of "
            f"{math.log(classes):.2f} with {classes} classes.",
            fix="Choose a lower target loss.",
        )


def _run_of(config: RunConfig, linked: Run | None) -> Run | None:
    """Pick the run to show: link, last click, or newest; None if there is none."""
    if linked is not None and linked.config == config:
        run: Run | None = linked
    else:
        run = state.open_run(_kept().get(config.fingerprint) or newest_like(config))
    if run is not None:
        run.refresh()
    return run


def _kept() -> dict[str, str]:
    kept: dict[str, str] = st.session_state.setdefault("law.runs", {})
    return kept


def _submit(config: RunConfig, plan: Plan, run: Run | None) -> None:
    """The estimated time and, unless the study is running, the button."""
    seconds = batch_law.estimate_seconds(
        config.law, train_examples=plan.train_examples, forward_flops_per_example=plan.forward_flops_per_example,
        train_flops_per_example=plan.train_flops_per_example,
    )  # fmt: skip
    st.caption(
        f"Takes about {units.duration(seconds)} (estimated for a target about as hard as a loss of 0.2 on 8x8 digits). A lower "
        "target or a busy machine takes longer."
    )
    if run is not None and not run.is_over:
        return
    run_id = submit_button(
        "Measure it again" if run else "Measure the law", config, name="Batch-size law", key="law.measure",
        icon=":material/straighten:", primary=run is None,
    )  # fmt: skip
    if run_id:
        _kept()[config.fingerprint] = st.query_params["law"] = run_id
        st.rerun()


# --- progress -----------------------------------------------------------------------------------------------------


@st.fragment(run_every=1.5)
def _progress(run_id: str) -> None:
    """Progress, and the chart of the batch sizes that are done; the whole page is drawn again when the run ends."""
    run = run_parts.refreshed(run_id)
    progress = run.latest(Progress)
    trials = known_trials(run)
    done = len({t.batch_size for t in trials})
    text = (
        f"{done} of {progress.total} batch sizes done; now {progress.text}"
        if progress and progress.text
        else run.status
    )
    run_parts.progress_of(run, text.capitalize())
    if trials:
        _chart(run, trials)
    else:
        st.caption("The first points appear when the learning rate of the smallest batch size is found.")


def known_trials(run: Run) -> list[Trial]:
    """The trials of the finished batch sizes. The running one is left out, because it may still miss the target."""
    if run.status == "finished" or not run.trials:
        return list(run.trials)
    current = run.trials[-1].batch_size
    if sum(t.batch_size == current and not t.tuning for t in run.trials) == run.config.law.seeds:
        return list(run.trials)
    return [t for t in run.trials if t.batch_size != current]


def _chart(run: Run, trials: Sequence[Trial]) -> None:
    """Build the figure again only for new trials, because a new figure replaces the chart and flickers."""
    key = (run.run_id, len(trials))
    before, figure = st.session_state.get("law.figure", (None, None))
    if before != key:
        figure = figure_of(run, trials)
        st.session_state["law.figure"] = (key, figure)
    with st.container(height=int(figure.layout.height) + 16, border=False):  # keeps what is below in place
        st.plotly_chart(figure, key=f"law.chart.{run.run_id}", theme=None, config={"displayModeBar": False})


def figure_of(run: Run, trials: Sequence[Trial]) -> go.Figure:
    """The chart of the trials, with axis ends that stay while points arrive."""
    found = batch_law.outcome(trials)
    law = found.law
    if law and not run.is_over and law.b_crit > max(t.batch_size for t in trials):
        law = None  # B_crit would be beyond the batch sizes measured so far
    figure = batch_law_chart(trials, law, found.step_time)
    sizes = run.config.law.sizes(run.started.train_examples) if run.started else [t.batch_size for t in trials]
    every = math.ceil(len(sizes) / _MOST_TICKS)
    ends = math.log10(min(sizes)) - 0.1, math.log10(max(sizes)) + 0.15
    return figure.update_xaxes(range=ends, tickvals=sizes[::-1][::every])


# --- result -------------------------------------------------------------------------------------------------------


def _result(run: Run) -> None:
    run_parts.why_box(run)
    trials = known_trials(run)
    found = batch_law.outcome(trials, budget_s=run.config.budget.seconds)
    st.caption(run_parts.literal(_origin(run, found)))
    rows = batch_law.facts(found)
    with st.container(key=f"final-law-{run.run_id}"):  # page.css lays out two per row on a phone
        columns = st.columns([1, 1, 1, 1.5, 1.5]) if rows else []
    for column, (title, value, how) in zip(columns, rows, strict=False):
        column.markdown(f"{run_parts.literal(title)}  \n**{run_parts.literal(value)}**")
        column.caption(run_parts.literal(how))
    for sentence in in_words(trials, found):
        st.markdown(run_parts.literal(sentence))
    if trials:
        _chart(run, trials)
        st.caption(
            "Dots are measured, one per training at the tuned learning rate. The line is the law, fitted to the best learning "
            "rate of each batch size. Both axes are logarithmic."
        )
    if run.status == "finished" or found.law:  # for a stopped run, the line above says why there is no law
        for note in found.notes:
            st.caption(run_parts.literal(note))


def _origin(run: Run, found: Outcome) -> str:
    """Age, machine, number of trainings, and whether the run ended early."""
    where = run.started.environment.get("cpu" if run.config.device == "cpu" else "device") if run.started else None
    text = f"Measured {units.age(time.time() - run.created)}{f' on {where}' if where else ''}, {len(run.trials):,} trainings."
    if run.summary().busy:
        text += f" The machine was busy, so training took longer than it would on an idle machine: {run.summary().busy_why}."
    if run.status == "finished":
        return text
    ended = {"failed": "It failed", "interrupted": "It was interrupted"}.get(run.status, "It was stopped")
    rest = "the law is fitted to these" if found.law else "too few for a law"
    return f"{text} {ended} with {len(found.sizes)} batch sizes done: {rest}."


def in_words(trials: Sequence[Trial], found: Outcome) -> list[str]:
    """What the law means, what the largest batch costs, which batch size is fastest, and what to try next."""
    fitted = [at for at in found.sizes if at.in_fit]
    if found.law is None or len(fitted) < MIN_BATCH_SIZES:
        return []
    law, small, large = found.law, fitted[0], fitted[-1]
    return [
        f"The target takes at least about {units.about(law.s_min)} steps (S_min) and at least about {units.about(law.e_min)} "
        f"samples (E_min). At a batch size of {units.about(law.b_crit)} (B_crit) it takes twice as many of both. Below B_crit, "
        "doubling the batch size nearly halves the steps; far above, it only doubles the samples.",
        _cost_of_the_largest(trials, small, large),
        _fastest(trials, fitted, found),
        "Try next: a lower target, where B_crit is usually larger, or another machine, where the number of steps stays about "
        "the same and the times change.",
    ]


def _cost_of_the_largest(trials: Sequence[Trial], small: BatchSizeResult, large: BatchSizeResult) -> str:
    few, many = _mean(trials, small, "samples"), _mean(trials, large, "samples")
    rates = (
        f"The best learning rate was {small.lr:.2g} for batch size {small.batch_size:,} and {large.lr:.2g} for batch size "
        f"{large.batch_size:,}. With one rate for both you would be comparing rates, not batch sizes."
        if small.lr and large.lr
        else ""
    )
    return (
        f"Measured: batch size {large.batch_size:,} needed {units.about(many)} samples to the target, {units.about(many / few)}x "
        f"as many as batch size {small.batch_size:,} ({units.about(few)}). {rates}"
    ).strip()


def _fastest(trials: Sequence[Trial], fitted: Sequence[BatchSizeResult], found: Outcome) -> str:
    """The fastest batch size by measured time, those that are similar, and the optimum the law predicts."""
    times = {at.batch_size: _mean(trials, at, "train_s") for at in fitted}
    best = min(times, key=times.__getitem__)
    similar = [size for size, seconds in times.items() if seconds <= _SIMILAR * times[best]]
    flat = (
        f"Batch sizes {min(similar):,} to {max(similar):,} are at most {units.percent(_SIMILAR - 1)} slower: the optimum is flat"
        if len(similar) > 1 and _are_neighbours(similar, list(times))
        else f"All others are more than {units.percent(_SIMILAR - 1)} slower"
        if len(similar) == 1
        else f"Batch sizes {', '.join(f'{size:,}' for size in similar)} differ by at most {units.percent(_SIMILAR - 1)}"
    )
    formula = (
        f"; the law and the step times predict about {batch_law.rounded_batch(found.best.b_star):,}"
        if found.best and math.isfinite(found.best.b_star)
        else ""
    )
    return f"On this machine batch size {best:,} was fastest, with {units.duration(times[best])}. {flat}{formula}."


def _are_neighbours(some: Sequence[int], every: Sequence[int]) -> bool:
    return every.index(some[-1]) - every.index(some[0]) + 1 == len(some)


def _mean(trials: Sequence[Trial], at: BatchSizeResult, what: str) -> float:
    """Geometric mean over the measuring trials of a batch size that all reached the target."""
    values = [getattr(t, what) for t in trials if t.batch_size == at.batch_size and not t.tuning]
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values))
