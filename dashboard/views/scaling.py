"""Pieces of the page Scale: which training on how many ranks, the study as it goes, its verdict and its figures."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard import state
from dashboard.api import readers
from dashboard.live.race import race_view
from dashboard.widgets import config_form, run_parts
from dashboard.widgets.component import addresses, stub
from engine.access import settings
from engine.common import units
from engine.common.errors import ConfigError, EngineError, StoreError
from engine.common.sanitize import LONGEST_NAME, shell_words, visible
from engine.config.data import DATA
from engine.config.parallel import Parallel
from engine.config.parsing import overrides_from, with_overrides
from engine.config.presets import PRESETS, preset_config
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.config.training import FULL
from engine.hardware import probe
from engine.studies import scaling, scaling_results, scaling_table, scaling_text
from engine.studies.race_results import CLAIM_SEEDS, check_target
from engine.studies.races import Lane, Metric
from engine.studies.scaling import Study
from engine.studies.scaling_results import Outcome

DEFAULT = "lenet"
OF_TRAIN = "train"  # in the place of a preset: what the form of the page Train holds
_REFRESH_S = 1.5
_MOST_CURVES = 72
_LANE_WIDTH = 130  # px: 1.75 (1.60 to 1.91)
_REPEATS_A_ROUND = 2
_NAMES = ("preset", "batch", "ranks", "beyond", "weak", "strategy", "device", "seeds", "target")


# --- which training, on how many ranks --------------------------------------------------------------------------------


def keep_choices() -> None:
    """What was chosen is still so after a look at another page, where Streamlit forgets what is not drawn."""
    kept: dict[str, object] = st.session_state.setdefault("scale.kept", {})
    steps = {str(key) for key in [*st.session_state, *kept] if str(key).startswith("scale.steps.")}
    linked = {"scale.preset"} if "preset" in st.query_params else set()
    for key in [*(f"scale.{name}" for name in _NAMES), *steps]:
        if key in st.session_state:
            kept[key] = st.session_state[key]
        elif key in kept and key not in linked:
            st.session_state[key] = kept[key]


class ScalingRequest:
    """What the form holds: the lanes, or the sentence that says why there can be none."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.seeds = scaling.DEFAULT_SEEDS
        self.target: tuple[Metric, float] | None = None
        self.seconds = 0.0  # estimated
        self.wrong: EngineError | None = None
        self.warnings: list[str] = []
        self.command = ""  # the same in a terminal
        self.alone = ""  # why there is nothing to scale to


def form(preset: str) -> ScalingRequest:
    """The card that says what is to be scaled."""
    asked = ScalingRequest()
    try:
        _draw(asked, preset)
    except EngineError as error:
        asked.wrong = error
    return asked


def _draw(asked: ScalingRequest, preset: str) -> None:
    config = _draw_training(preset)
    machine = state.machine()
    if len(devices := probe.device_choices(machine)) > 1:
        st.session_state.setdefault("scale.device", "cuda:0" if len(machine.gpus) > 1 else "cpu")
        kinds = [device for device in devices if device in {"cpu", "cuda:0"}]
        device = st.segmented_control("Device", kinds, key="scale.device", required=True, help="GPUs from cuda:0 on.")
        config = with_overrides(config, [f"device={device}", "parallel.devices=[]"])
    config = _draw_batch(config)
    most = scaling.room(config, machine)
    beyond = _draw_beyond(config, most)
    numbers = scaling.ranks_here(config, machine, beyond=beyond)
    ranks = _draw_ranks(config, numbers, most)
    st.session_state.setdefault("scale.weak", True)
    weak = st.toggle(
        "Weak scaling, too", key="scale.weak", disabled=config.batch_size == FULL,
        help="Strong scaling shares one batch out: the same training, hopefully sooner. Weak scaling gives each rank that batch: "
        "more examples in the same time, and another training.",
    )  # fmt: skip
    info = Parallel.model_fields["strategy"]
    strategy = st.selectbox(
        info.title or "", list(config_form.WORDS["parallel.strategy"]), key="scale.strategy",
        format_func=config_form.WORDS["parallel.strategy"].__getitem__, help=info.description,
    )  # fmt: skip
    config = with_overrides(config, [f"parallel.strategy={strategy}"])
    steps, asked.seeds = _draw_amount(config)
    asked.target = _draw_target(config)
    if len(numbers) == 1:
        asked.alone = _alone(config, most)
        return
    base = scaling.as_base(config, steps)
    asked.command = _command(config, ranks, steps, asked.seeds, weak=bool(weak) and config.batch_size != FULL)
    asked.lanes = scaling.lanes_of(base, ranks, weak=bool(weak) and config.batch_size != FULL, most=most)
    if len(asked.lanes) < 2:
        raise ConfigError("One rank alone is no study.", fix="Choose at least one more number of ranks.")
    plans = [state.check(lane.config) for lane in asked.lanes]
    asked.warnings = list(dict.fromkeys(warning for plan in plans for warning in plan.warnings))
    asked.seconds = scaling.estimate_seconds(base, plans[0], len(asked.lanes) * asked.seeds, steps)


def _command(config: RunConfig, ranks: Sequence[int], steps: int, seeds: int, *, weak: bool) -> str:
    preset = state.closest_preset(config)
    sets = [word for a in overrides_from(PRESETS[preset].config, config) for word in ("--set", a)]
    words = ["python", "-m", "engine", "scale", "--preset", preset, *sets, "--ranks", ",".join(map(str, ranks))]
    return shell_words([*words, *(["--weak"] if weak else []), "--seeds", str(seeds), "--steps", str(steps)])


def _draw_training(preset: str) -> RunConfig:
    names = [*PRESETS, *([OF_TRAIN] if "train.link" in st.session_state else [])]
    if st.session_state.get("scale.preset") not in names:
        st.session_state["scale.preset"] = preset if preset in names else DEFAULT
    name = st.selectbox(
        "Training", names, key="scale.preset", on_change=_forget_batch,
        format_func=lambda n: "What the page Train shows" if n == OF_TRAIN else PRESETS[n].title,
        help="The training that is run on 1, 2, 4 ... ranks. Anything else can be set up under Train.",
    )  # fmt: skip
    config = state.config_from_link(st.session_state["train.link"])[1] if name == OF_TRAIN else preset_config(name)
    st.caption(run_parts.literal(describe(config) if name == OF_TRAIN else PRESETS[name].teaches))
    return with_overrides(config, ["parallel.num_ranks=1", "parallel.devices=[]"])


def _forget_batch() -> None:
    for name in ("batch", "target"):
        st.session_state.pop(f"scale.{name}", None)
        st.session_state.get("scale.kept", {}).pop(f"scale.{name}", None)


def _draw_batch(config: RunConfig) -> RunConfig:
    """Powers of two, and the preset's own: what a batch is worth to several ranks is its size."""
    own = config.batch_size
    sizes = sorted({2**i for i in range(3, 12)} | ({own} if isinstance(own, int) else set()))
    options = [*map(str, sizes), *([FULL] if own == FULL else [])]
    if st.session_state.get("scale.batch") not in options:
        st.session_state["scale.batch"] = str(own)
    chosen = st.select_slider(
        "Global batch", options, key="scale.batch",
        help="Examples of one optimizer step, all ranks together. The larger, the more there is to compute between two exchanges.",
    )  # fmt: skip
    return with_overrides(config, [f"batch_size={chosen}"])


def _draw_beyond(config: RunConfig, most: int) -> bool:
    if config.device != "cpu":
        return False
    return st.toggle(
        "More ranks than cores", key="scale.beyond",
        help=f"One number of ranks more than this machine has cores for ({most}): they share, and nothing can be gained. To see "
        "what that looks like.",
    )  # fmt: skip


def _draw_ranks(config: RunConfig, numbers: Sequence[int], most: int) -> list[int]:
    many = [n for n in numbers if n > 1]
    if not many:
        return [1]
    kept = [n for n in st.session_state.get("scale.ranks", ()) if n in many]
    if "scale.ranks" in st.session_state:
        st.session_state["scale.ranks"] = kept
    chosen = st.pills(
        "Ranks besides 1", many, selection_mode="multi", key="scale.ranks",
        default=None if "scale.ranks" in st.session_state else many,
        format_func=lambda n: f"{n} (shared)" if n > most else str(n), help=Parallel.model_fields["num_ranks"].description,
    )  # fmt: skip
    if isinstance(batch := config.batch_size, int) and chosen:
        n = max(chosen)
        st.caption(
            f"Global batch {batch:,} = {n} ranks x {batch / n:g}. Weak scaling: {n} ranks x {batch:,} = {batch * n:,}."
        )
    return [1, *sorted(chosen)]


def _draw_amount(config: RunConfig) -> tuple[int, int]:
    """Steps of a run, at first about three seconds of them; and repeats."""
    left, right = st.columns(2, wrap=False)
    try:
        usual = scaling.default_steps(config, state.check(config))
    except EngineError:
        usual = 100  # what is wrong is said of the lanes
    key = f"scale.steps.{st.session_state['scale.preset']}.{config.batch_size}"
    st.session_state.setdefault(key, usual)
    steps = left.number_input(
        "Steps of a run", 20, 1_000_000, step=50, key=key,
        help="The same for every number of ranks, so that all do the same work. Enough for some seconds: a shorter run says more "
        "about the moment than about the ranks.",
    )  # fmt: skip
    st.session_state.setdefault("scale.seeds", scaling.DEFAULT_SEEDS)
    seeds = right.number_input(
        "Repeats", 1, scaling.MOST_SEEDS, key="scale.seeds",
        help=f"Each with another seed, in turns: one rank and several meet the same machine. Three give an interval; a verdict takes "
        f"{CLAIM_SEEDS}.",
    )  # fmt: skip
    return int(steps), int(seeds)


def _draw_target(config: RunConfig) -> tuple[Metric, float] | None:
    st.session_state.setdefault("scale.target", "" if config.is_text or DATA[config.data].measures_speed_only else "90")
    text = st.text_input(
        "Target accuracy (%)", key="scale.target", placeholder="none", max_chars=10,
        help="Time, energy and money until two evaluations in a row have reached it stand in the table. It ends no run.",
    )  # fmt: skip
    if not text.strip(" %"):
        return None
    try:
        value = float(text.strip(" %")) / 100
    except ValueError:
        raise ConfigError(
            f"Target accuracy {text!r} is no number.", fix="Write 90 for 90 %, or leave it empty."
        ) from None
    check_target("test_accuracy", value)
    return "test_accuracy", value


def _alone(config: RunConfig, most: int) -> str:
    if config.device != "cpu":
        return "This machine has one GPU: there is nothing to share a batch with. The CPU's cores can stand in: choose cpu."
    cores = state.machine().cpu.usable_cores
    why = f"{cores} usable core{'' if cores == 1 else 's'}" + (
        f" for {config.threads} threads of a rank" if config.threads > 1 else ""
    )
    return f"This machine has {why}: there is nothing to share a batch with. “More ranks than cores” shows what sharing one costs."


def start(asked: ScalingRequest) -> str:
    """Ask for a study; returns its id. A double click asks for one."""
    wanted = " ".join([*(lane.model_dump_json() for lane in asked.lanes), str(asked.seeds)])
    group = state.key_of(wanted)[:16]
    state.client().submit_seed_blocks(scaling.seed_blocks(asked.lanes, range(asked.seeds), group), group=group)
    return group


def preview(asked: ScalingRequest) -> None:
    """What will run, before it does."""
    runs = len(asked.lanes) * asked.seeds
    st.info(
        f"Press Start: {len(asked.lanes)} lanes x {asked.seeds} repeat{'' if asked.seeds == 1 else 's'} = {runs} runs, one after "
        f"another, about {units.duration(asked.seconds)} (estimated).",
        icon=":material/hub:",
    )
    for warning in asked.warnings:
        run_parts.warn(warning)
    for column, lane in zip(st.columns(min(3, len(asked.lanes))) * 3, asked.lanes, strict=False):
        with column.container(border=True):
            st.markdown(f"**{run_parts.literal(lane.label)}**")
            st.caption(run_parts.literal(_in_words(lane.config)))


def _in_words(config: RunConfig) -> str:
    ranks, batch = config.parallel.num_ranks, config.batch_size
    if ranks == 1:
        return f"One process, batch {batch if isinstance(batch, str) else f'{batch:,}'}: what the others are compared with."
    each = f"{batch / ranks:g} examples each" if isinstance(batch, int) else "a share of the whole set each"
    shared = ", taking turns on fewer cores" if config.device == "cpu" and config.parallel.devices else ""
    return f"{ranks} processes, {each}{shared}; gradients are averaged over all of them in every step."


# --- the study as it goes ---------------------------------------------------------------------------------------------


def open_study(group: str | None) -> Study | None:
    """The study of a link, from the readers all pages share. Raises ConfigError where its runs are none."""
    if not group:
        return None
    try:
        return scaling.find(state.store(), group, readers.shared_run)
    except StoreError:
        return None


def show_study(study: Study, target: tuple[Metric, float] | None) -> None:
    """Verdict, charts, figures, loss curves."""
    group, live = study.race.group, not study.is_over
    may_stop = live and all(state.client().may("cancel", run.run_id) for run in study.runs)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{run_parts.literal(_title(study))}**", width="stretch")
        if may_stop and st.button("Stop", key="scale.stop", icon=":material/stop:"):
            for run in study.runs:
                if not run.is_over:
                    state.client().cancel(run.run_id)
    run_parts.origins_of([(lane.label, run) for lane in study.race.lanes for run in lane.runs.values()])
    again = st.fragment(run_every=_REFRESH_S if live else None)
    again(_draw_verdict)(group, target)
    mount = st.components.v2.component("isoflop_scale", js=stub("scale.js"), isolate_styles=False)
    mount(key=f"scale-{group}", data={"study": group} | addresses())
    again(_draw_table)(group, target)
    st.markdown("**Loss curves, laid over each other**")
    st.caption(
        "Over steps the lanes with one global batch lie on each other, as they take the same steps; over seconds of training "
        "they part as far as more ranks are faster. A lane with a larger batch is another training."
    )
    race_view(_curves(study), key=f"scale-race-{group}", axis="seconds", alive=live)
    if not live:
        _more_repeats(study)


def _title(study: Study) -> str:
    numbers = sorted({lane.ranks for lane in study.lanes})
    return f"{describe(study.base.config)} · on {', '.join(map(str, numbers))} ranks"


def _curves(study: Study) -> list[dict[str, object]]:
    """Lanes for the loss curves; of many repeats the first, as one poll asks for 72 runs at most."""
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
        if said := [*scaling_text.reasons(found), *scaling_text.fits(found), scaling_text.agreement(found)]:
            st.caption("\n".join(f"- {run_parts.literal(text)}" for text in said if text))
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
    lanes = {
        name: st.column_config.TextColumn(width=_LANE_WIDTH) for name in table.columns[1:-1]
    }  # or a phone cuts them
    st.dataframe(table, hide_index=True, height="content", key="scale-table", column_config=lanes)
    notes = [scaling_text.intervals(), "Figures of a lane are medians over its finished runs."]
    if found.method:
        notes.append(f"Waiting and all-reduce: {found.method}.")
    if found.why_no_energy and found.base.joules is None:
        notes.append(f"No energy: {found.why_no_energy}")
    elif found.target and all(at.money_to_target is None for at in found.lanes):
        notes.append(f"Money: set price_per_kwh under [energy] in {settings.FILE} of the store.")
    st.caption(run_parts.literal(" ".join(note if note.endswith(".") else f"{note}." for note in notes)))


def as_table(found: Outcome) -> pd.DataFrame:
    """One row per figure, one column per lane, and how each figure was had."""
    labels = [visible(at.label, LONGEST_NAME) for at in found.lanes]
    rows = [[title, *texts, how] for title, texts, how in scaling_table.rows(found)]
    return pd.DataFrame(rows, columns=["", *labels, "How"])


def _more_repeats(study: Study) -> None:
    done = len(study.seeds)
    client = state.client()
    mine = client.may("submit") and all(client.may("cancel", run.run_id) for run in study.runs)
    if done >= scaling.MOST_SEEDS or not mine:
        return
    number = min(max(CLAIM_SEEDS - done, _REPEATS_A_ROUND), scaling.MOST_SEEDS - done)
    try:
        if st.button(
            f"Repeat {number} more time{'' if number == 1 else 's'}", icon=":material/replay:", key="scale.more",
            help="The same lanes with other seeds: the intervals become narrower.",
        ):  # fmt: skip
            free = [seed for seed in range(scaling.MOST_SEEDS) if seed not in study.seeds][:number]
            lanes = [Lane(label=lane.label, config=lane.config) for lane in study.lanes]
            seed_blocks = scaling.seed_blocks(lanes, free, study.race.group)
            client.submit_seed_blocks(seed_blocks, group=study.race.group, round=study.race.rounds + 1)
            st.rerun()
    except EngineError as error:
        run_parts.error_box(error)
