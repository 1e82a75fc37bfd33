"""One run as a report holds it: its configuration, figures, points and events, after redaction."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationInfo, model_validator

from engine.common import units
from engine.common.downsample import minmax
from engine.config.run import RunConfig
from engine.config.summary import describe
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
from engine.reports.points import Points, UnpackBudget
from engine.reports.redaction import LONGEST_TEXT, Redaction
from engine.store.event_log import events_of
from engine.store.run import Run
from engine.studies import inference
from engine.studies.inference import Matrix
from engine.studies.loss_surface import SURFACE_FILE

_MAX_TRIALS = 100_000  # of one run; limits what an imported file can hold
_MAX_SURFACE_BYTES = 8 * 2**20

# The facts of a run's environment that a report keeps: title and formatter of each.
ENVIRONMENT: dict[str, tuple[str, Callable[[Any], str]]] = {
    "device": ("Device", str),
    "cpu": ("Processor", str),
    "cpu_isa": ("Vector instructions", str),
    "cpu_int8_dot": ("int8 dot product", units.yes_or_no),
    "cpu_bf16": ("bfloat16 arithmetic", units.yes_or_no),
    "cpu_fp16": ("float16 arithmetic", units.yes_or_no),
    "physical_cores": ("Physical cores", units.count),
    "usable_cores": ("Usable cores", units.count),
    "threads": ("Threads used", units.count),
    "num_ranks": ("Ranks", units.count),
    "strategy": ("Parallel strategy", str),
    "backend": ("Backend of the ranks", str),
    "memory_bytes": ("Memory", units.nbytes),
    "gpu_memory_bytes": ("GPU memory", units.nbytes),
    "gpu_driver": ("GPU driver", str),
    "gpu_compute_capability": ("GPU compute capability", str),
    "gpu_power_limit_w": ("GPU power limit", units.power),
    "calibration": ("Compared with calibration", str),
    "os": ("Operating system", str),
    "python": ("Python", str),
    "torch": ("PyTorch", str),
    "cuda": ("CUDA", str),
    "cudnn": ("cuDNN", str),
    "numpy": ("NumPy", str),
    "isoflop": ("Isoflop", str),
}

Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FinalEvent = Annotated[Finished | Cancelled | Failed | Interrupted, Field(discriminator="kind")]
SharedEvent = Annotated[AnyEvent, Field(discriminator="kind")]
FileName = Literal["landscape.safetensors", "model.safetensors", "trajectory.safetensors"]

# Events that a report keeps in fields of their own, and events that it leaves out because they concern one process.
_IN_FIELDS = {
    "queued", "started", "compiled", "warm_up", "memory", "step_split", "target_reached", "trial", "steps", "evaluation",
    "hardware", "finished", "cancelled", "failed", "interrupted", "imported", "rows", "artifact",
}  # fmt: skip
_LEFT_OUT = {"starting", "preparing", "stopping"}
TABLES: Mapping[str, str] = {  # table: the column whose extremes are kept when rows are dropped
    "steps": "loss",
    "evaluations": "test_loss",
    "hardware": "process_cpu_percent",
    "throughput": "samples_per_s",
    "grad_norms": "grad_norm",
}


class FrozenModel(BaseModel):
    """Base of a report's records: immutable; unknown fields are ignored, so that a newer report can be read."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True, ser_json_inf_nan="strings")


def _bytes(value: Any, info: ValidationInfo) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("the data of a file must be base64")
    data = base64.b64decode(value, validate=True)
    if isinstance(info.context, UnpackBudget):
        info.context.take(len(data))
    return data


_Bytes = Annotated[
    bytes | None,
    PlainValidator(_bytes, json_schema_input_type=str | None),
    PlainSerializer(lambda data: data and base64.b64encode(data).decode(), return_type=str | None),
]


class Attachment(FrozenModel):
    """A safetensors file of the run. Without `data`, its bytes are beside the JSON in the zip."""

    name: FileName
    size_bytes: Count
    sha256: Sha256
    data: _Bytes = None

    @classmethod
    def of(cls, path: Path, *, inside: bool) -> Attachment:
        """Describe the file at `path`; `inside` puts its bytes into the JSON."""
        data = path.read_bytes()
        return cls(
            name=path.name,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            data=data if inside else None,
        )


class ReportRun(FrozenModel):
    """One run at the moment the report was made."""

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
    compiled_s: Seconds | None = None  # a default is for reports made before the field existed
    warm_up_steps: Count = 0
    data_sha256: Sha256 | None = None  # hash of the user's own data file
    memory: Memory | None = None  # training memory
    target_reached: TargetReached | None = None
    step_split: StepSplit | None = None
    evaluation_s: Seconds = 0.0  # of all evaluations together
    peak_memory_method: Text  # how the process memory was measured
    energy_method: Text
    energy: Account | None = None
    figures: dict[Text, Figure] = Field(default={}, max_length=100)
    environment: dict[Text, str | int | float | None]
    missing_readings: dict[Text, Text]  # hardware reading: why it is not available
    problems: list[Text]
    recorded_steps: Count  # larger than the length of `steps` if rows were dropped
    steps: Points
    evaluations: Points
    hardware: Points
    throughput: Points
    grad_norms: Points = Points({})
    trials: list[Trial] = Field(default=[], max_length=_MAX_TRIALS)  # trials of a batch-size law
    # Since schema 2: what an import needs to restore the run.
    started_at: Moment | None = None
    total_steps: Count | None = None
    last_word: FinalEvent | None = None
    said: list[SharedEvent] = Field(default=[], max_length=_MAX_TRIALS)  # the other events of the log, in order
    files: list[Attachment] = Field(default=[], max_length=3)
    asked_name: Text | None = None  # the name at submission, if it differs from `name` (a configuration of a race)
    group: Id | None = None  # id shared by runs that were submitted together
    heat: SeedBlock | None = None  # seed block: runs of the group that took turns
    imported: Origin | None = None  # the report or table it was imported from

    @model_validator(mode="after")
    def _can_be_stored(self) -> Self:
        for name, value in self.summary:
            if isinstance(value, int) and not 0 <= value < 2**63:
                raise ValueError(f"summary.{name}={value} is not a count")
        if self.heat and not re.fullmatch(r"[\w: .-]{1,64}", self.heat.id):
            raise ValueError("heat.id is not a valid id")
        if misplaced := next((event.kind for event in self.said if event.kind in _IN_FIELDS | _LEFT_OUT), None):
            raise ValueError(f"said holds an event of kind {misplaced}, which has a field of its own")
        return self

    def contradiction(self) -> str:
        """What in the run's figures cannot be, or is not what its own points say; "" if nothing.

        A table with fewer rows than were recorded still holds its last row.
        """
        stated = {name: value for name, value in self.summary if isinstance(value, int | float)}
        if wrong := next((n for n, value in stated.items() if value < 0 and not n.endswith("loss")), ""):
            return f"summary.{wrong}={stated[wrong]} is negative"
        if (accuracy := stated.get("test_accuracy", 0)) > 1:
            return f"summary.test_accuracy={accuracy} is above 1"
        points = self._last_values() if self.config.task_facts.trains_one_model else {}
        for name, value in points.items():
            if name in stated and value is not None and not _is_close(stated[name], value):
                return f"summary.{name}={stated[name]}, but its points say {value:g}"
        for name, figure in self.figures.items():
            value = getattr(self.summary, name, None)
            if isinstance(value, int | float) and figure.value is not None and not _is_close(figure.value, value):
                return f"figures.{name}={figure.value}, but its summary says {value:g}"
        return ""

    def _last_values(self) -> dict[str, float | None]:
        """Figures of the summary that follow from the last rows of the tables; None where these do not say."""

        def last(table: Points, name: str) -> float | None:
            return float(table[name][-1]) if len(table) and table.knows(name) else None

        seconds = last(self.steps, "seconds")
        return {
            "test_accuracy": last(self.evaluations, "test_accuracy"),
            "test_loss": last(self.evaluations, "test_loss"),
            "samples": last(self.steps, "samples"),
            "train_seconds": seconds,
            "steps": None if self.is_curve else self.recorded_steps,
            "samples_per_s": self.summary.samples / seconds if self.summary.samples and seconds else None,
        }

    @property
    def latencies(self) -> list[Latency]:
        """The latest latencies of each combination of an inference run."""
        return list({event.cell: event for event in self.said if isinstance(event, Latency)}.values())

    @property
    def qualities(self) -> list[Quality]:
        """How far each runtime and precision of an inference run is from the reference outputs."""
        return [event for event in self.said if isinstance(event, Quality)]

    @property
    def not_run(self) -> list[NotRun]:
        """The combinations of an inference run that could not be measured, with reasons."""
        return [event for event in self.said if isinstance(event, NotRun)]

    @property
    def matrix(self) -> Matrix:
        """The results of an inference run, per combination."""
        return inference.matrix(
            self.config, self.latencies, self.qualities, self.not_run,
            is_over=self.status in TERMINAL, environment=self.environment,
        )  # fmt: skip

    @classmethod
    def freeze(
        cls,
        run: Run,
        account_of: Callable[[Run], Account] = of_run,
        *,
        file_names: bool = False,
        files: Sequence[FileName] = (),
    ) -> ReportRun:
        """Freeze the present state of a run, with every text redacted.

        Args:
            run: The run.
            account_of: Computes its energy.
            file_names: Keep the names of the user's own files.
            files: Weight files to list with their hash; a zip carries them. A loss surface is always inside the JSON.
        """
        account = account_of(run)
        redaction = Redaction(run.config, file_names)
        clean = redaction.text
        with run.lock:
            account = account.model_copy(update={"method": clean(account.method)})
            started, last = run.started, run.last_word
            warm_up, compiled = run.latest(WarmUp), run.latest(Compiled)
            known = started.environment if started else {}
            config = redaction.configuration()
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
                memory=run.memory and redaction.model(run.memory),
                target_reached=run.target_reached,
                step_split=run.step_split and redaction.model(run.step_split),
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
                last_word=last and redaction.model(last).model_copy(update={"detail": "", "checksum": ""}),
                said=[
                    redaction.model(event)
                    for event in events_of(run.folder, _IN_FIELDS | _LEFT_OUT)
                    if _is_latest(event, run)
                ],
                files=_attachments(run, files),
                asked_name=asked_name if asked_name != run.name else None,
                group=run.group,
                heat=run.heat,
                imported=run.imported.origin if run.imported else None,
            )

    @property
    def is_curve(self) -> bool:
        """Whether it is a table of another tool: of its configuration, only what the importing person stated is known."""
        return self.imported is not None and self.imported.form == "curve"

    @property
    def about(self) -> str:
        """The configuration as one line, as far as it is known."""
        return f"a curve on {self.config.data}" if self.is_curve else describe(self.config)

    @property
    def is_thinned(self) -> bool:
        """Whether the run recorded more steps than this report holds."""
        return len(self.steps) < self.recorded_steps

    def thinned(self, max_rows: int) -> ReportRun:
        """The run with at most `max_rows` rows in each table; extremes and non-finite values stay."""
        tables: dict[str, Points] = {table: getattr(self, table) for table in TABLES}
        thin: dict[str, Any] = {
            name: table.rows(minmax(table[TABLES[name]], max_rows)) for name, table in tables.items()
        }
        most = max(8, max_rows // _LATENCIES_PER_TABLE)
        thin["said"] = [_thinned(event, most) if isinstance(event, Latency) else event for event in self.said]
        return self.model_copy(update=thin)


def _is_close(a: float, b: float) -> bool:
    """Whether two figures are the same, apart from the rounding of times; NaN is the same as anything."""
    return math.isnan(a) or math.isnan(b) or math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-8)


def _is_latest(event: AnyEvent, run: Run) -> bool:
    """False for a latency that a later round replaces: the log has one per combination and round."""
    return not isinstance(event, Latency) or event.round == run.by_key(Latency)[event.key].round


_LATENCIES_PER_TABLE = 32  # so many request timelines together get as many points as one table


def _thinned(latency: Latency, most: int) -> Latency:
    """The latency with fewer single requests; its percentiles and histogram still cover all of them."""
    kept = minmax(latency.latency_s, most)
    return latency.model_copy(update={"start_s": latency.start_s[kept], "latency_s": latency.latency_s[kept]})


def _attachments(run: Run, names: Sequence[FileName]) -> list[Attachment]:
    """The loss surface inside the JSON, because a chart needs it; weights by their hash only."""
    inside = run.folder / SURFACE_FILE
    found = []
    if run.latest(Surface) and inside.is_file() and inside.stat().st_size <= _MAX_SURFACE_BYTES:
        found.append(Attachment.of(inside, inside=True))
    return found + [
        Attachment.of(run.folder / name, inside=False)
        for name in names
        if (run.folder / name).is_file() and name != SURFACE_FILE
    ]
