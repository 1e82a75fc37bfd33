"""Runs frozen into one document: its JSON holds everything, and the HTML page is rendered from it (reports/html).

A report says what was run, on what machine, and with what result. It does not say who ran it or where: of the
environment only named facts are kept, and every text goes through redaction.py. It holds all events of a run, so that
an import restores the run in another store (reports/sharing).
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from engine import __version__
from engine.common.errors import ConfigError, StoreError
from engine.common.sanitize import encodable
from engine.events.base import Moment
from engine.measurement.energy import Account, of_run
from engine.reports.frozen_run import FileName, FrozenModel, Id, ReportRun, Text
from engine.reports.points import UnpackBudget
from engine.reports.redaction import LONGEST_TEXT
from engine.store.run import Run
from engine.studies import race_results, races
from engine.studies.race_results import Outcome

SCHEMA_VERSION: Literal[2] = 2
MAX_RUNS = 256
_LONGEST_NOTES = 20_000


class Conclusion(FrozenModel):
    """The result of a race, or of a comparison of runs, at the moment the report was made."""

    kind: Literal["race"] = "race"
    group: Id | None = None
    outcome: Outcome


class Report(FrozenModel):
    """Runs under a title. Two reports with the same content hash have the same content."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    title: Text
    created: Moment
    isoflop: Text
    notes: Annotated[str, Field(max_length=_LONGEST_NOTES)] = ""  # the author's notes, shown verbatim
    conclusions: list[Conclusion] = Field(default=[], max_length=MAX_RUNS)
    runs: Annotated[list[ReportRun], Field(min_length=1, max_length=MAX_RUNS)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        counted = Counter(run.run_id for run in self.runs)
        if twice := next((run_id for run_id, times in counted.items() if times > 1), None):
            raise ValueError(f"it contains the run {twice} twice")
        unknown = {i for c in self.conclusions for lane in c.outcome.lanes for i in lane.run_ids} - counted.keys()
        if unknown:
            raise ValueError(f"a conclusion names the run {min(unknown)[:16]!r}, which the report does not contain")
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
        """Freeze the present state of the runs, with every point.

        Args:
            title: The title of the report.
            runs: 1 to `MAX_RUNS` runs.
            clock: Unix time in seconds.
            account_of: Computes a run's energy; `energy.in_store` also uses the idle power that the store knows.
            notes: The author's notes.
            conclusions: Results of comparisons of these runs.
            file_names: Keep the names of the user's own files.
            files: Weight files to list; a zip carries them.

        Raises:
            ConfigError: The notes are too long, or there are no runs or too many.
        """
        if len(notes) > _LONGEST_NOTES:
            raise ConfigError(f"The notes have {len(notes):,} characters.", fix=f"Shorten them to {_LONGEST_NOTES:,}.")
        if not 1 <= len(runs) <= MAX_RUNS:
            raise ConfigError(f"A report cannot have {len(runs):,} runs.", fix=f"Choose 1 to {MAX_RUNS}.")
        frozen = [ReportRun.freeze(run, account_of, file_names=file_names, files=files) for run in runs]
        return cls(
            title=encodable(title)[:LONGEST_TEXT],
            created=clock(),
            isoflop=__version__,
            notes=encodable(notes),
            conclusions=list(conclusions),
            runs=frozen,
        )

    def to_json(self) -> str:
        """The JSON document, the same for the same report."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse a report of this or an earlier schema.

        Raises:
            StoreError: The text is not a report, is damaged, or has a newer schema.
        """  # noqa: DOC501
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
            version = data["schema_version"]
            assert isinstance(data["runs"], list)
        except _NonFiniteConstant as error:
            raise StoreError(
                f"The report contains {error} without quotes, which is not valid JSON.",
                fix='Export it again with Isoflop, which writes "NaN" as a text.',
            ) from None
        except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
            raise StoreError(
                "This is not a report, or it is incomplete.", fix="Choose a file that Isoflop exported."
            ) from None
        if version not in (1, SCHEMA_VERSION) or isinstance(version, bool):
            is_newer = isinstance(version, int) and version > SCHEMA_VERSION
            raise StoreError(
                f"The report has schema {str(version)[:20]!s}; this version of Isoflop reads 1 to {SCHEMA_VERSION}.",
                fix="Update Isoflop." if is_newer else "No version of Isoflop wrote this file. Export the runs again.",
            )
        try:
            report = cls.model_validate_json(text, context=UnpackBudget())
        except ValidationError as error:
            raise _damaged(error) from None
        return report if report.schema_version == SCHEMA_VERSION else report.model_copy(update={"schema_version": 2})

    @property
    def content_hash(self) -> str:
        """SHA-256 of the JSON, equal to `sha256sum` of the exported .json file."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def thinned(self, max_rows: int) -> Self:
        """The report with at most `max_rows` rows in each table of a run."""
        return self.model_copy(update={"runs": [run.thinned(max_rows) for run in self.runs]})


class _NonFiniteConstant(ValueError):
    """The JSON contains NaN or Infinity without quotes."""


def _refuse_constant(word: str) -> Any:
    raise _NonFiniteConstant(word)


def _damaged(error: ValidationError) -> StoreError:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))[:120]
    if first["type"] == "union_tag_invalid" and "said" in first["loc"]:
        kind = str(first["ctx"]["tag"])[:40]
        return StoreError(
            f"The report contains events of the kind {kind!r}, which this version of Isoflop does not know.",
            fix="Update Isoflop.",
        )
    what = first["msg"].removeprefix("Value error, ").rstrip(".")
    return StoreError(f"The report is damaged: {where + ': ' if where else ''}{what}.", fix="Export it again.")


_IN_PAGE = re.compile(r'<script type="application/json" id="report">(.*?)</script>', re.DOTALL)
_HASH_IN_PAGE = re.compile(r'<code class="hash">([0-9a-f]{64})</code>')


def json_in(page: str) -> str:
    """The JSON inside an exported page, byte for byte as it was hashed; "" if there is none."""
    found = _IN_PAGE.search(page)
    return re.sub(r"\\(u003c|.)", lambda m: "<" if m[1] == "u003c" else m[0], found[1]) if found else ""


def hash_in(page: str) -> str:
    """The content hash that the page shows; "" if it shows none."""
    found = _HASH_IN_PAGE.search(page)
    return found[1] if found else ""


def concluded(
    runs: Sequence[Run], *, metric: races.Metric = "test_accuracy", target: float | None = None, baseline: str = ""
) -> list[Conclusion]:
    """Compare the runs as a race; empty if they are not at least two comparable configurations."""
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
