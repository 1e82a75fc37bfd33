"""The part of the form about training: optimizer, batch size, budget, and the groups that are closed at first."""

from __future__ import annotations

import streamlit as st

from dashboard import state
from dashboard.widgets.form_fields import KEY, draw, draw_rows, field_of, group, optimizer_knobs, set_value, value_of
from engine.config.base import as_text
from engine.config.run import RunConfig
from engine.config.training import BUDGETS, FULL, OPTIMIZERS
from engine.data.datasets import Dataset
from engine.hardware import probe

_USUAL_BUDGET = {"steps": "1000", "epochs": "10", "samples": "50000", "seconds": "10", "flops": "1e11"}


# The fields that a schedule uses.
SCHEDULE_FIELDS = {
    "constant": ["warmup_steps"],
    "cosine": ["warmup_steps", "lr_end"],
    "step": ["warmup_steps", "lr_gamma", "lr_milestones"],
    "warm-up": ["warmup_steps"],
    "one-cycle": [],
}


REGULARIZATION = ["grad_accumulation", "label_smoothing", "max_grad_norm", "ema_decay", "activation_checkpointing"]


EXECUTION = ["precision", "execution", "device", "threads"]


DISTRIBUTED = ["parallel.num_ranks", "parallel.strategy", "parallel.devices", "parallel.timeout_s"]


EVALUATION = ["seed", "evaluate_every", "checkpoints"]


def draw_optimizer() -> None:
    """Draw the optimizer, its learning rate and its momentum."""
    left, right = st.columns([3, 2], wrap=False)
    with left:
        draw("optimizer.name", on_change=_optimizer_changed)
    with right:
        draw("optimizer.lr")
    draw_rows(_knobs_beside())


def _knobs_beside() -> list[str]:
    """The optimizer's field that is shown beside it; the others are in a group below."""
    return [path for path in optimizer_knobs() if path == "optimizer.momentum"]


def _optimizer_changed() -> None:
    """Set the usual learning rate of the new optimizer, and the full batch or mini-batches, as it needs."""
    facts = OPTIMIZERS[value_of("optimizer.name")]
    set_value("optimizer.lr", as_text(facts.usual_lr))
    if facts.full_batch:
        set_value("batch_size", FULL)
    elif value_of("batch_size") == FULL:
        set_value("batch_size", RunConfig.model_fields["batch_size"].default)


def draw_batch_size(facts: Dataset | None) -> None:
    """Draw the slider of the batch size, up to the size of the training set."""
    largest = facts.train_examples if facts else 4_096
    # A small data set must not be refused because of a batch size that was chosen for another one.
    if facts and value_of("new_data"):
        set_value("new_data", False)
        if value_of("batch_size") != FULL and value_of("batch_size") > largest:
            set_value("batch_size", 2 ** (largest.bit_length() - 1))
    numbers = {2**i for i in range(largest.bit_length())} | {v for v in [value_of("batch_size")] if v != FULL}
    info = field_of("batch_size")
    st.select_slider(
        info.title or "",
        options=[*sorted(numbers), FULL],
        key=f"{KEY}batch_size",
        help=info.description,
        disabled=OPTIMIZERS[value_of("optimizer.name")].full_batch,
        format_func=lambda b: f"{b:,}" if b != FULL else f"full ({largest:,})" if facts else FULL,
    )


def draw_budget() -> None:
    """Draw the training budget: a number and its unit."""
    unit = value_of("unit")
    left, right = st.columns([2, 3], vertical_alignment="bottom", wrap=False)
    right.selectbox(
        "Unit of the budget",
        BUDGETS,
        key=f"{KEY}unit",
        label_visibility="collapsed",
        on_change=_unit_changed,
        format_func=lambda name: _title(f"budget.{name}"),
    )
    with left:
        draw(f"budget.{unit}", "Train for", help="Training budget. Evaluation time is not counted.")
    if others := [
        f"{value_of(f'budget.{u}')} {_title(f'budget.{u}')}" for u in _other_units() if value_of(f"budget.{u}")
    ]:
        st.caption(f"or {' or '.join(others)}, whichever comes first")


def _title(path: str) -> str:
    title = field_of(path).title or path
    return title if title.isupper() or title == "FLOPs" else title.lower()


def _other_units() -> list[str]:
    return [unit for unit in BUDGETS if unit != value_of("unit")]


def _unit_changed() -> None:
    """Move the limit to the new unit; a limit that this unit already has is kept."""
    unit = value_of("unit")
    set_value(f"budget.{value_of('unit_was')}", "")
    set_value(f"budget.{unit}", value_of(f"budget.{unit}") or _USUAL_BUDGET[unit])
    set_value("unit_was", unit)


# --- groups that are closed at first ------------------------------------------------------------------------------


def draw_groups() -> None:
    """Draw the closed groups: schedule, regularization, early stopping, execution, ranks, evaluation."""
    fine = [path for path in optimizer_knobs() if path not in _knobs_beside()]
    paths = [*SCHEDULE_FIELDS[value_of("schedule")], "optimizer.weight_decay", *fine]
    with group("Schedule and optimizer", ["schedule", *paths], key="schedule"):
        draw("schedule")
        draw_rows(paths)
    with group("Regularization and memory", REGULARIZATION, key="tricks"):
        draw_rows(REGULARIZATION)
    with group("Early stopping", ["target.value"], key="stop"):
        _draw_stopping()
    with group("Precision and execution", EXECUTION, key="precision"):
        _draw_execution()
    with group("Distributed", DISTRIBUTED, key="ranks"):
        _draw_ranks()
    with group("Seed and evaluation", EVALUATION, key="seed"):
        draw_rows(EVALUATION)


def _draw_stopping() -> None:
    st.caption("The run ends when two evaluations in a row have reached the target.")
    left, right = st.columns(2, wrap=False)
    with left:
        draw("target.metric")
    with right:
        loss = value_of("target.metric") == "test_loss"
        draw(
            "target.value",
            "Target value",
            placeholder="0.1" if loss else "97 %",
            help=f"{'A test loss.' if loss else '97 % or 0.97.'} Empty: the run uses its whole budget.",
        )
    st.caption("Further limits. The run ends when it reaches the first of its limits.")
    draw_rows([f"budget.{unit}" for unit in _other_units()])


def _draw_ranks() -> None:
    """Draw the fields of data-parallel training, and the share of the batch that each rank gets."""
    st.caption("Several processes share each batch (data parallelism), on several GPUs or CPU cores.")
    left, right = st.columns([2, 3], vertical_alignment="bottom", wrap=False)
    with left:
        draw("parallel.num_ranks")
    with right:
        draw("parallel.strategy")
    ranks, batch = value_of("parallel.num_ranks"), value_of("batch_size")
    if ranks > 1 and isinstance(batch, int):
        st.caption(f"Global batch {batch:,} = {ranks} ranks x {batch / ranks:,.4g}.")
    elif ranks > 1:
        st.caption(f"Global batch: the whole training set, shared equally by {ranks} ranks.")
    draw("parallel.devices")
    draw("parallel.timeout_s")
    st.page_link(
        "../pages/scale.py",
        label="Measure the speed-up on page Scale",
        icon=":material/hub:",
        query_params={"preset": "train"},
    )


def _draw_execution() -> None:
    machine = state.machine()
    draw("precision")
    draw("execution")
    devices, chosen = probe.device_choices(machine), value_of("device")
    words = field_of("device")
    st.selectbox(
        words.title or "",
        [*devices, *([] if chosen in devices else [chosen])],
        key=f"{KEY}device",
        help=words.description,
    )
    if (cores := max(machine.cpu.usable_cores, value_of("threads"))) > 1:
        threads = field_of("threads")
        st.slider(threads.title or "", 1, cores, key=f"{KEY}threads", help=threads.description)
