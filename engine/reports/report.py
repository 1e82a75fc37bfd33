"""Runs frozen into one value to keep and to send: its JSON is the truth, the HTML page is drawn from it (reports/html).

A report says what was run, on what, and what came out. It does not say who ran it or where: of the environment only
the facts named here are kept, and every text goes through redaction.py. It holds all that a run said, so that it comes
back as a run in another store (sharing).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    RootModel,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from engine import __version__
from engine.common import units
from engine.common.downsample import minmax
from engine.common.errors import ConfigError, StoreError
from engine.common.sanitize import encodable, shell_words
from engine.config.inference import infer_config, infer_matrix
from engine.config.parsing import overrides_from
from engine.config.presets import PRESETS, STUDIES
from engine.config.run import RunConfig
from engine.config.tasks import Cell, TaskName
from engine.events.base import TERMINAL, Count, Moment, Seconds, Status
from engine.events.catalog import AnyEvent
from engine.events.imported import Origin
from engine.events.inference import Latency, NotRun, Quality
from engine.events.lifecycle import Cancelled, Failed, Finished, Interrupted, SeedBlock
from engine.events.studies import Surface, Trial
from engine.events.summary import Summary
from engine.events.training import Compiled, Memory, StepSplit, TargetReached, WarmUp
from engine.measurement import provenance
from engine.measurement.energy import Account, of_run
from engine.measurement.provenance import Figure
from engine.reports.redaction import LONGEST_TEXT, Redaction
from engine.store.columns import Table
from engine.store.event_log import events_of
from engine.store.run import Run
from engine.studies import inference as inference
from engine.studies import race_results, races
from engine.studies.inference import Matrix
from engine.studies.loss_surface import SURFACE_FILE
from engine.studies.race_results import Outcome

SCHEMA_VERSION: Literal[2] = 2
MAX_RUNS = 256
MAX_UNPACKED_BYTES = 500_000_000  # of all columns and files of a report from elsewhere
_LONGEST_NOTES = 20_000
_MAX_TRIALS = 100_000  # of one run, in a file from elsewhere
_MAX_SURFACE_BYTES = 8 * 2**20

# What a report keeps of a run's environment, and how it is called and written.
ENVIRONMENT: dict[str, tuple[str, Callable[[Any], str]]] = {
    "device": ("Device", str),
    "cpu": ("Processor", str),
    "cpu_isa": ("Vector instructions", str),
    "physical_cores": ("Cores of the processor", units.count),
    "usable_cores": ("Cores this process may use", units.count),
    "threads": ("Threads used", units.count),
    "num_ranks": ("Ranks", units.count),
    "strategy": ("Strategy of the ranks", str),
    "backend": ("Ranks exchange through", str),
    "memory_bytes": ("Memory", units.nbytes),
    "gpu_memory_bytes": ("GPU memory", units.nbytes),
    "gpu_driver": ("GPU driver", str),
    "gpu_compute_capability": ("GPU compute capability", str),
    "gpu_power_limit_w": ("GPU power limit", units.power),
    "os": ("System", str),
    "python": ("Python", str),
    "torch": ("PyTorch", str),
    "cuda": ("CUDA", str),
    "cudnn": ("cuDNN", str),
    "numpy": ("NumPy", str),
    "isoflop": ("Isoflop", str),
}


# --- columns of numbers in JSON -----------------------------------------------------------------------------------


def _pack(values: np.ndarray) -> dict[str, Any]:
    """A column without loss and small: whole numbers (or nanoseconds) as differences, others as float32 or float64."""
    for per in (1, 1_000_000_000):
        whole = _whole(values, per)
        if whole is not None:
            return {"deltas": _deflated(np.diff(whole, prepend=0)), "per": per}
    for name in ("float32", "float64"):
        with np.errstate(over="ignore"):
            small = values.astype(name)
        if np.array_equal(small.astype(np.float64), values, equal_nan=True):
            return {name: _deflated(small)}
    raise AssertionError("every column is float64")


def _whole(values: np.ndarray, per: int) -> np.ndarray | None:
    if not np.isfinite(values).all() or (len(values) and np.abs(values).max() > 2**53 / per):
        return None
    whole = np.rint(values * per)
    return whole.astype(np.int64) if np.array_equal(whole / per, values) else None


class Room:
    """How many bytes a report from elsewhere may still unpack to."""

    def __init__(self, size: int | None = None) -> None:
        self.size = self.left = MAX_UNPACKED_BYTES if size is None else size

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError(f"it would unpack to more than {self.size:,} bytes")


def _unpack(packed: Any, info: ValidationInfo) -> np.ndarray:
    if isinstance(packed, np.ndarray):
        return np.asarray(packed, np.float64)
    room = info.context if isinstance(info.context, Room) else Room()
    match packed:
        case {"deltas": str(text), "per": 1 | 1_000_000_000 as per}:
            return np.cumsum(_inflated(text, "<i8", room)) / per
        case {"float32": str(text)}:
            return _inflated(text, "<f4", room).astype(np.float64)
        case {"float64": str(text)}:
            return _inflated(text, "<f8", room).astype(np.float64)
    raise ValueError("a column is {deltas, per}, {float32} or {float64}")


def _deflated(values: np.ndarray) -> str:
    little = values.astype(values.dtype.newbyteorder("<"))
    return base64.b64encode(zlib.compress(little.tobytes(), 9)).decode()


def _inflated(text: str, dtype: str, room: Room) -> np.ndarray:
    stream = zlib.decompressobj()
    size = np.dtype(dtype).itemsize
    try:
        data = stream.decompress(base64.b64decode(text, validate=True), room.left * size // 8 + 1)
    except zlib.error as error:
        raise ValueError(f"a column does not unpack: {error}") from None
    room.take(len(data) * 8 // size)  # every column is float64 in memory
    if not stream.eof:
        raise ValueError("a column is cut off")
    if len(data) % size:
        raise ValueError("a column ends within a number")
    return np.frombuffer(data, dtype)


Column = Annotated[np.ndarray, PlainValidator(_unpack), PlainSerializer(_pack, return_type=dict)]


class Points(RootModel[dict[str, Column]]):
    """A frozen table: columns (n,) by name. A column it does not hold is unknown, NaN throughout."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    @classmethod
    def of(cls, table: Table) -> Points:
        """The rows now, without columns that are unknown; times to the nanosecond, which is finer than any clock behind them."""
        times, known = ("seconds", "elapsed"), [name for name in table.names if table.knows(name)]
        return cls({n: np.rint(table[n] * 1e9) / 1e9 if n in times else table[n].copy() for n in known})

    def knows(self, name: str) -> bool:
        return name in self.root

    def model_post_init(self, _context: Any) -> None:
        if len({len(column) for column in self.root.values()}) > 1:
            raise ValueError("the columns of a table differ in length")

    def __len__(self) -> int:
        return len(next(iter(self.root.values()), ()))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.root[name] if name in self.root else np.full(len(self), np.nan)

    def rows(self, kept: np.ndarray) -> Points:
        return Points({name: column[kept] for name, column in self.root.items()})


# --- the report ---------------------------------------------------------------------------------------------------

Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
LastWord = Annotated[Finished | Cancelled | Failed | Interrupted, Field(discriminator="kind")]
SharedEvent = Annotated[AnyEvent, Field(discriminator="kind")]
FileName = Literal["landscape.safetensors", "model.safetensors", "trajectory.safetensors"]

# A report tells these by fields of its own, or not at all: which process it was, and what it waited for.
_TOLD = {
    "queued", "started", "compiled", "warm_up", "memory", "step_split", "target_reached", "trial", "steps", "evaluation",
    "hardware", "finished", "cancelled", "failed", "interrupted", "imported", "rows", "artifact",
}  # fmt: skip
_UNTOLD = {"starting", "preparing", "stopping"}
TABLES: Mapping[str, str] = {  # and the column whose extremes are kept where one is thinned
    "steps": "loss",
    "evaluations": "test_loss",
    "hardware": "process_cpu_percent",
    "throughput": "samples_per_s",
    "grad_norms": "grad_norm",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True, ser_json_inf_nan="strings")


def _bytes(value: Any, info: ValidationInfo) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("a file is base64")
    data = base64.b64decode(value, validate=True)
    if isinstance(info.context, Room):
        info.context.take(len(data))
    return data


_Bytes = Annotated[
    bytes | None,
    PlainValidator(_bytes, json_schema_input_type=str | None),
    PlainSerializer(lambda data: data and base64.b64encode(data).decode(), return_type=str | None),
]


class Attachment(_Frozen):
    """A file of the run that goes along, always safetensors; without `data` it lies beside the JSON in a zip."""

    name: FileName
    size_bytes: Count
    sha256: Sha256
    data: _Bytes = None

    @classmethod
    def of(cls, path: Path, *, inside: bool) -> Attachment:
        data = path.read_bytes()
        return cls(
            name=path.name,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            data=data if inside else None,
        )


class ReportRun(_Frozen):
    """One run as it was when the report was made."""

    run_id: Id
    name: Text
    created: Moment
    config: RunConfig
    fingerprint: Text
    status: Status
    why: Text
    summary: Summary
    parameters: Count | None
    train_flops_per_example: Count | None
    train_examples: Count | None
    test_examples: Count | None
    setup_s: Seconds | None
    warm_up_s: Seconds | None
    compiled_s: Seconds | None = None  # this and the other defaults: reports from before these were recorded
    warm_up_steps: Count = 0
    data_sha256: Sha256 | None = None  # of the user's own file
    memory: Memory | None = None  # of training
    target_reached: TargetReached | None = None
    step_split: StepSplit | None = None
    evaluation_s: Seconds = 0.0  # all evaluations together
    peak_memory_method: Text  # of the whole process
    energy_method: Text
    energy: Account | None = None
    figures: dict[Text, Figure] = Field(default={}, max_length=100)
    environment: dict[Text, str | int | float | None]
    missing_readings: dict[Text, Text]  # reading: why there is none
    problems: list[Text]
    recorded_steps: Count  # more than there are in `steps` where the report was thinned
    steps: Points
    evaluations: Points
    hardware: Points
    throughput: Points
    grad_norms: Points = Points({})
    trials: list[Trial] = Field(default=[], max_length=_MAX_TRIALS)  # of a batch-size law
    # From here on since schema 2: what lets it come back as a run.
    started_at: Moment | None = None
    total_steps: Count | None = None
    last_word: LastWord | None = None
    said: list[SharedEvent] = Field(default=[], max_length=_MAX_TRIALS)  # every other record, as the run's log has it
    files: list[Attachment] = Field(default=[], max_length=3)
    asked_name: Text | None = (
        None  # what it was called when it was asked for, where that is not `name`: a lane of a race
    )
    group: Id | None = None  # runs asked for together share it
    heat: SeedBlock | None = None  # and of these, those that took turns
    imported: Origin | None = None  # where it was imported from

    @model_validator(mode="after")
    def _can_be_stored(self) -> Self:
        for name, value in self.summary:
            if isinstance(value, int) and not 0 <= value < 2**63:
                raise ValueError(f"summary.{name}={value} is not a count")
        if self.heat and not re.fullmatch(r"[\w: .-]{1,64}", self.heat.id):
            raise ValueError("heat.id is not an id")
        if odd := next((event.kind for event in self.said if event.kind in _TOLD | _UNTOLD), None):
            raise ValueError(f"said holds a record of kind {odd}, which has its own place")
        return self

    @property
    def latencies(self) -> list[Latency]:
        """Of inference, the last word of each cell; like what follows it stands in `said`."""
        return list({event.cell: event for event in self.said if isinstance(event, Latency)}.values())

    @property
    def qualities(self) -> list[Quality]:
        return [event for event in self.said if isinstance(event, Quality)]

    @property
    def not_run(self) -> list[NotRun]:
        return [event for event in self.said if isinstance(event, NotRun)]

    @property
    def matrix(self) -> Matrix:
        """Of a run of inference."""
        isa = str(self.environment.get("cpu_isa") or "")
        return inference.matrix(
            self.config, self.latencies, self.qualities, self.not_run, is_over=self.status in TERMINAL, cpu_isa=isa
        )

    @classmethod
    def freeze(
        cls,
        run: Run,
        account_of: Callable[[Run], Account] = of_run,
        *,
        file_names: bool = False,
        files: Sequence[FileName] = (),
    ) -> ReportRun:
        """The run now. `files` of its weights are named in it and go along in a zip; a loss surface is always inside."""
        account = account_of(run)
        hidden = Redaction(run.config, file_names)
        clean = hidden.text
        with run.lock:
            account = account.model_copy(update={"method": clean(account.method)})
            started, last = run.started, run.last_word
            warm_up, compiled = run.latest(WarmUp), run.latest(Compiled)
            known = started.environment if started else {}
            config = hidden.configuration()
            asked_name = run.queued.name if run.queued else ""
            return cls(
                run_id=run.run_id,
                name=run.name[:LONGEST_TEXT],
                created=run.created,
                config=config,
                fingerprint=config.fingerprint,
                status=run.status,
                why=clean(run.why()),
                summary=run.summary().model_copy(update={"imported": None, "busy_why": clean(run.summary().busy_why)}),
                parameters=started.parameters if started else None,
                train_flops_per_example=started.train_flops_per_example if started else None,
                train_examples=started.train_examples if started else None,
                test_examples=started.test_examples if started else None,
                setup_s=started.setup_s if started else None,
                warm_up_s=warm_up.seconds if warm_up else None,
                warm_up_steps=warm_up.steps if warm_up else 0,
                compiled_s=compiled.seconds if compiled else None,
                data_sha256=started.data_sha256 if started else None,
                memory=run.memory and hidden.model(run.memory),
                target_reached=run.target_reached,
                step_split=run.step_split and hidden.model(run.step_split),
                evaluation_s=run.evaluation_s,
                peak_memory_method=clean(last.peak_memory_method if last else ""),
                energy_method=clean(last.energy_method if last else ""),
                energy=account,
                figures={
                    name: figure.model_copy(update={"method": clean(figure.method), "note": clean(figure.note)})
                    for name, figure in provenance.of_run(run, account).items()
                },
                environment={key: known[key] for key in ENVIRONMENT if known.get(key) is not None},
                missing_readings={key: clean(why) for key, why in run.missing_readings.items()},
                problems=[clean(problem) for problem in run.problems[:20]],
                recorded_steps=run.imported.recorded_steps if run.imported else len(run.steps),
                **{table: Points.of(getattr(run, table)) for table in TABLES},
                trials=run.trials[:_MAX_TRIALS],
                started_at=started.at if started else None,
                total_steps=started.total_steps if started else None,
                last_word=last and hidden.model(last).model_copy(update={"detail": "", "checksum": ""}),
                said=[hidden.model(event) for event in events_of(run.folder, _TOLD | _UNTOLD) if _counts(event, run)],
                files=_attachments(run, files),
                asked_name=asked_name if asked_name != run.name else None,
                group=run.group,
                heat=run.heat,
                imported=run.imported.origin if run.imported else None,
            )

    @property
    def is_thinned(self) -> bool:
        return len(self.steps) < self.recorded_steps

    def thinned(self, max_rows: int) -> ReportRun:
        """With at most `max_rows` rows in each table, extremes and non-finite values kept."""
        tables: dict[str, Points] = {table: getattr(self, table) for table in TABLES}
        thin: dict[str, Any] = {
            name: table.rows(minmax(table[TABLES[name]], max_rows)) for name, table in tables.items()
        }
        most = max(8, max_rows // _CELLS_A_TABLE)
        thin["said"] = [_thinned(event, most) if isinstance(event, Latency) else event for event in self.said]
        return self.model_copy(update=thin)


def _counts(event: AnyEvent, run: Run) -> bool:
    """Whether no later record takes its place: a cell's latency is written again after each round."""
    return not isinstance(event, Latency) or event.round == run.by_key(Latency)[event.key].round


_CELLS_A_TABLE = 32  # so many timelines of requests take the room of one table


def _thinned(latency: Latency, most: int) -> Latency:
    """With fewer single requests; percentiles and histogram are of all of them."""
    kept = minmax(latency.latency_s, most)
    return latency.model_copy(update={"start_s": latency.start_s[kept], "latency_s": latency.latency_s[kept]})


def _attachments(run: Run, names: Sequence[FileName]) -> list[Attachment]:
    """A loss surface inside the JSON, for a chart needs it; weights by their hash."""
    inside = run.folder / SURFACE_FILE
    found = []
    if run.latest(Surface) and inside.is_file() and inside.stat().st_size <= _MAX_SURFACE_BYTES:
        found.append(Attachment.of(inside, inside=True))
    return found + [
        Attachment.of(run.folder / name, inside=False)
        for name in names
        if (run.folder / name).is_file() and name != SURFACE_FILE
    ]


class Conclusion(_Frozen):
    """What a race, or runs laid beside each other, came to when the report was made."""

    kind: Literal["race"] = "race"
    group: Id | None = None
    outcome: Outcome


class Report(_Frozen):
    """Some runs under a title. Two reports with the same content hash say the same."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    title: Text
    created: Moment
    isoflop: Text
    notes: Annotated[str, Field(max_length=_LONGEST_NOTES)] = ""  # of who made it; Markdown, shown as it was typed
    conclusions: list[Conclusion] = Field(default=[], max_length=MAX_RUNS)
    runs: Annotated[list[ReportRun], Field(min_length=1, max_length=MAX_RUNS)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        counted = Counter(run.run_id for run in self.runs)
        if twice := next((run_id for run_id, times in counted.items() if times > 1), None):
            raise ValueError(f"the run {twice} is in it twice")
        strangers = {i for c in self.conclusions for lane in c.outcome.lanes for i in lane.run_ids} - counted.keys()
        if strangers:
            raise ValueError(f"a conclusion names the run {min(strangers)[:16]!r}, which is not in it")
        return self

    @classmethod
    def freeze(
        cls,
        title: str,
        runs: Sequence[Run],
        *,
        clock: Callable[[], float] = time.time,
        account_of: Callable[[Run], Account] = of_run,
        notes: str = "",
        conclusions: Sequence[Conclusion] = (),
        file_names: bool = False,
        files: Sequence[FileName] = (),
    ) -> Self:
        """What the runs say now, with every point; `account_of` knows more of their energy (`energy.in_store`)."""
        if len(notes) > _LONGEST_NOTES:
            raise ConfigError(
                f"The notes have {len(notes):,} characters.", fix=f"They may have {_LONGEST_NOTES:,}: shorten them."
            )
        if not 1 <= len(runs) <= MAX_RUNS:
            raise ConfigError(f"{len(runs):,} runs are too many for one report.", fix=f"Choose 1 to {MAX_RUNS}.")
        frozen = [ReportRun.freeze(run, account_of, file_names=file_names, files=files) for run in runs]
        return cls(
            title=encodable(title)[:LONGEST_TEXT], created=clock(), isoflop=__version__, notes=encodable(notes),
            conclusions=list(conclusions), runs=frozen,
        )  # fmt: skip

    def to_json(self) -> str:
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """A report from its JSON, also one of an earlier schema; raises StoreError in one sentence when it is none."""
        try:
            data = json.loads(text, parse_constant=_refuse)
            version = data["schema_version"]
            assert isinstance(data["runs"], list)
        except _BareWord as error:
            raise StoreError(
                f"The report holds the bare word {error}, which is not JSON.",
                fix="Export it again; NaN is written as a text.",
            ) from None
        except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
            raise StoreError(
                "This is not a report, or not all of one.", fix="Choose a file that Isoflop exported."
            ) from None
        if version not in (1, SCHEMA_VERSION) or isinstance(version, bool):
            raise StoreError(
                f"The report has schema {str(version)[:20]!s}; this Isoflop reads up to {SCHEMA_VERSION}.",
                fix="Update Isoflop.",
            )
        try:
            report = cls.model_validate_json(text, context=Room())
        except ValidationError as error:
            raise _damaged(error) from None
        return report if report.schema_version == SCHEMA_VERSION else report.model_copy(update={"schema_version": 2})

    @property
    def content_hash(self) -> str:
        """SHA-256 of the JSON: what `sha256sum` says of the exported .json file."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def thinned(self, max_rows: int) -> Self:
        return self.model_copy(update={"runs": [run.thinned(max_rows) for run in self.runs]})


class _BareWord(ValueError):
    pass


def _refuse(word: str) -> Any:
    raise _BareWord(word)


def _damaged(error: ValidationError) -> StoreError:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))[:120]
    if first["type"] == "union_tag_invalid" and "said" in first["loc"]:
        kind = str(first["ctx"]["tag"])[:40]
        return StoreError(
            f"The report holds records of a kind {kind!r} that this Isoflop does not know.", fix="Update Isoflop."
        )
    what = first["msg"].removeprefix("Value error, ").rstrip(".")
    return StoreError(f"The report is damaged: {where + ': ' if where else ''}{what}.", fix="Export it again.")


_IN_PAGE = re.compile(r'<script type="application/json" id="report">(.*?)</script>', re.DOTALL)
_HASH_IN_PAGE = re.compile(r'<code class="hash">([0-9a-f]{64})</code>')


def json_in(page: str) -> str:
    """The JSON inside an exported page, byte for byte as it was hashed; nothing where there is none."""
    found = _IN_PAGE.search(page)
    return re.sub(r"\\(u003c|.)", lambda m: "<" if m[1] == "u003c" else m[0], found[1]) if found else ""


def hash_in(page: str) -> str:
    """The content hash the page shows; nothing where it shows none."""
    found = _HASH_IN_PAGE.search(page)
    return found[1] if found else ""


def concluded(
    runs: Sequence[Run], *, metric: races.Metric = "test_accuracy", target: float | None = None, baseline: str = ""
) -> list[Conclusion]:
    """What the runs came to as a race; nothing where they are no two lanes that can be compared."""
    groups = {run.group for run in runs}
    group = next(iter(groups)) if len(groups) == 1 else None
    race = races.of_runs(sorted(runs, key=lambda run: run.order) if group else runs, group=group or "")
    if race is None or len(race.lanes) < 2:
        return []
    try:
        races.check_comparable([(lane.label, lane.config) for lane in race.lanes])
        result = race_results.outcome(race, metric=metric, target=target, baseline=baseline)
    except ConfigError:
        return []
    return [Conclusion(group=group, outcome=result)]


def steps_csv(run: Run) -> str:
    """One row per step: numbers only, so that no spreadsheet takes a cell for a formula; empty where not measured."""
    examples = run.started.train_examples if run.started else 0
    norms = dict(zip(run.grad_norms["step"].tolist(), run.grad_norms["grad_norm"].tolist(), strict=True))
    lines = ["step,loss,seconds,samples,lr,epoch,grad_norm"]
    columns = (run.steps[name].tolist() for name in ("step", "loss", "seconds", "samples", "lr"))
    for step, loss, seconds, samples, lr in zip(*columns, strict=True):
        epoch = f"{samples / examples:.6g}" if examples else ""
        norm = f"{norms[step]:.9g}" if step in norms else ""
        lines.append(f"{step:.0f},{loss:.9g},{seconds:.9f},{samples:.0f},{lr:.9g},{epoch},{norm}")
    return "\n".join(lines) + "\n"


def reproduce(config: RunConfig) -> str:
    """The command that runs the same experiment, from the preset that needs the fewest changes."""
    return shell_words(["python", "-m", "engine", *_COMMANDS.get(config.task, _run_words)(config)])


def _run_words(config: RunConfig) -> list[str]:
    changes = {name: overrides_from(preset.config, config) for name, preset in {**PRESETS, **STUDIES}.items()}
    name = min(changes, key=lambda n: len(changes[n]))
    return ["run", "--preset", name, *(w for c in changes[name] for w in ("--set", c))]


def _inference_words(config: RunConfig) -> list[str]:
    """The arguments of `infer` for the same cells: as four lists where the cells are all their combinations."""
    base = PRESETS[_nearest_preset(config)].config
    infer, cells = config.infer, config.infer.cells
    start = infer_config(base, infer.run)
    if infer.run:  # model and data come with the run
        start = start.model_copy(update={"model": config.model, "data": config.data, "source": config.source})
    axes = [list(dict.fromkeys(getattr(cell, name) for cell in cells)) for name in Cell.model_fields]
    lists: list[str] = []
    if cells and infer_matrix(config, *axes).infer == infer:
        options = ("--batch-sizes", "--threads", "--precisions", "--runtimes")
        lists = [w for option, axis in zip(options, axes, strict=True) for w in (option, ",".join(map(str, axis)))]
        config = config.model_copy(update={"threads": start.threads, "infer": infer.model_copy(update={"cells": ()})})
    changes = overrides_from(start, config)
    origin = ["--run", infer.run] if infer.run else ["--preset", _nearest_preset(config)]
    return ["infer", *origin, *(w for c in changes for w in ("--set", c)), *lists]


def _nearest_preset(config: RunConfig) -> str:
    """The preset from which model and data are the fewest changes away."""

    def changes(preset: RunConfig) -> int:
        same = preset.model_copy(update={"model": config.model, "data": config.data, "source": config.source})
        return len(overrides_from(preset, same))

    return min(PRESETS, key=lambda name: changes(PRESETS[name].config))


_COMMANDS: Mapping[TaskName, Callable[[RunConfig], list[str]]] = {
    "infer": _inference_words
}  # of tasks not run by `run`


def has_own_command(config: RunConfig) -> bool:
    """Whether another command than `run` runs the task."""
    return config.task in _COMMANDS
