"""Rows and pages of the list of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel

from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.events.base import Status, is_number
from engine.events.summary import Summary
from engine.store.run import Run


class RunRow(BaseModel):
    """A run in a list: what the index holds of it."""

    run_id: str
    name: str
    status: Status
    created: float
    config: RunConfig
    summary: Summary
    group: str | None = None
    owner: str = ""
    why: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""
    pinned: bool = False
    needs: str = ""  # the newer Isoflop that alone can read it; `config` is then the default, not the run's


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run in a long list: what stands in its columns, without its configuration."""

    run_id: str
    name: str
    status: Status
    created: float
    group: str | None
    why: str
    words: str  # the experiment, as RunConfig.in_words says it
    seed: int | None
    test_accuracy: float | None
    final_train_loss: float | None
    samples_per_s: float | None
    train_seconds: float | None
    steps: int
    busy: bool | None  # whether something else used the machine; None is not known
    tags: tuple[str, ...] = ()
    notes: str = ""
    pinned: bool = False

    @property
    def is_imported(self) -> bool:
        return self.words.endswith(IMPORTED)


@dataclass(frozen=True, slots=True)
class GroupLine:
    """Runs that were asked for together, in a list."""

    group: str
    created: float
    num_runs: int
    num_alive: int
    num_lanes: int  # that differ in more than their seed, or in their name
    most_ranks: int
    lanes: tuple[str, ...]  # some of their names
    data: str
    is_imported: bool

    def with_more(self, other: GroupLine) -> GroupLine:
        """The same group, a part of whose runs is elsewhere."""
        return replace(
            self, created=min(self.created, other.created), num_runs=self.num_runs + other.num_runs,
            num_alive=self.num_alive + other.num_alive, num_lanes=max(self.num_lanes, other.num_lanes),
            most_ranks=max(self.most_ranks, other.most_ranks), lanes=tuple(dict.fromkeys(self.lanes + other.lanes)),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a list of runs."""

    lines: list[RunLine]
    total: int  # that match, on all pages
    unread: int  # not yet in the index and too many to read for a list: they come with the index, in seconds


def row_of(run: Run) -> RunRow:
    labels = run.labels
    return RunRow(
        run_id=run.run_id, name=run.name, status=run.status, created=run.created, config=run.config,
        summary=run.summary(), group=run.group, owner=run.owner, why=run.why(),
        tags=labels.tags, notes=labels.notes, pinned=labels.pinned,
    )  # fmt: skip


def line_of(row: RunRow) -> RunLine:
    s = row.summary
    return RunLine(
        row.run_id, row.name, row.status, row.created, row.group, row.why, words_of(row), row.config.seed,
        _finite(s.test_accuracy), _finite(s.final_train_loss), _finite(s.samples_per_s), s.train_seconds, s.steps,
        s.busy, row.tags, row.notes, row.pinned,
    )  # fmt: skip


IMPORTED = "imported, unverified"


def words_of(row: RunRow) -> str:
    """The experiment in words; of one that was not made here, that it was not."""
    if row.needs:
        return f"cannot be read here: {row.needs}"
    match row.summary.imported:
        case "report" if row.config.task_facts.measures_machine:
            return f"{row.config.task_facts.title.lower()} of another machine · {row.config.device} · {IMPORTED}"
        case "report":
            return f"{describe(row.config)} · {IMPORTED}"
        case "curve":  # its configuration is not known
            return f"a curve on {row.config.data} · {IMPORTED}"
        case _:
            return describe(row.config)


def _finite(value: float | None) -> float | None:
    """An index cannot tell NaN from unknown, and nothing that is no number has a place in an order."""
    return value if is_number(value) else None


def in_order(lines: list[RunLine], order: str, descending: bool, pinned_first: bool) -> list[RunLine]:
    """As the index orders them: unknown values last, equal ones by age."""
    newest_first = sorted(lines, key=lambda line: line.created, reverse=True)
    known = [line for line in newest_first if getattr(line, order, None) is not None]
    unknown = [line for line in newest_first if getattr(line, order, None) is None]
    ordered = sorted(known, key=lambda line: getattr(line, order), reverse=descending) + unknown
    return sorted(ordered, key=lambda line: not line.pinned) if pinned_first else ordered


def searchable_text(line: RunLine) -> str:
    """What a search looks through."""
    return "\n".join([line.name, line.words, line.status, line.run_id, line.why, *line.tags, line.notes]).casefold()


def search_words(search: str) -> list[str]:
    """Words to look for; a text that is no UTF-8 finds nothing but hurts nobody."""
    return search.encode(errors="replace").decode().casefold().split()[:_MOST_WORDS]


def matches_search(line: RunLine, search: str, status: Sequence[Status]) -> bool:
    searched = searchable_text(line)
    return (not status or line.status in status) and all(word in searched for word in search_words(search))


def sort_key(row: RunRow, order: str) -> float:
    value = row.created if order == "created" else getattr(row.summary, order)
    return value if is_number(value) else -math.inf


_MOST_WORDS = 100
