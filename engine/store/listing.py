"""Rows and pages of the list of runs, and their search and order without an index."""

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
    """A run as the index stores it."""

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
    needs: str = ""  # the newer Isoflop that can read the run; `config` is then the default, not the run's


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run in a long list: the values of its columns, without its configuration."""

    run_id: str
    name: str
    status: Status
    created: float
    group: str | None
    why: str
    words: str  # the configuration without its seed, in words
    seed: int | None
    test_accuracy: float | None
    final_train_loss: float | None
    samples_per_s: float | None
    train_seconds: float | None
    steps: int | None
    busy: bool | None  # whether the machine was busy with other programs; None is unknown
    tags: tuple[str, ...] = ()
    notes: str = ""
    pinned: bool = False

    @property
    def is_imported(self) -> bool:
        """Whether the run was imported from a report or a curve."""
        return self.words.endswith(IMPORTED)


@dataclass(frozen=True, slots=True)
class GroupLine:
    """A group of runs that were submitted together, in a list."""

    group: str
    created: float
    num_runs: int
    num_alive: int
    num_lanes: int  # configurations: runs that differ in more than their seed, or in their name
    most_ranks: int
    lanes: tuple[str, ...]  # names of up to 6 configurations
    data: str
    is_imported: bool

    def merged_with(self, other: GroupLine) -> GroupLine:
        """This group together with more of its runs, which the index does not have yet."""
        return replace(
            self,
            created=min(self.created, other.created),
            num_runs=self.num_runs + other.num_runs,
            num_alive=self.num_alive + other.num_alive,
            num_lanes=max(self.num_lanes, other.num_lanes),
            most_ranks=max(self.most_ranks, other.most_ranks),
            lanes=tuple(dict.fromkeys(self.lanes + other.lanes)),
        )


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a list of runs."""

    lines: list[RunLine]
    total: int  # number of matching runs on all pages
    unread: int  # runs not yet indexed and too many to read for a list; they appear within seconds


def row_of(run: Run) -> RunRow:
    """The index row of a run."""
    labels = run.labels
    return RunRow(
        run_id=run.run_id,
        name=run.name,
        status=run.status,
        created=run.created,
        config=run.config,
        summary=run.summary(),
        group=run.group,
        owner=run.owner,
        why=run.why(),
        tags=labels.tags,
        notes=labels.notes,
        pinned=labels.pinned,
    )


def line_of(row: RunRow) -> RunLine:
    """The list line of a row."""
    s = row.summary
    return RunLine(
        row.run_id,
        row.name,
        row.status,
        row.created,
        row.group,
        row.why,
        words_of(row),
        row.config.seed,
        _finite(s.test_accuracy),
        _finite(s.final_train_loss),
        _finite(s.samples_per_s),
        s.train_seconds,
        s.steps,
        s.busy,
        row.tags,
        row.notes,
        row.pinned,
    )


IMPORTED = "imported, unverified"
_MAX_SEARCH_WORDS = 100


def words_of(row: RunRow) -> str:
    """The configuration in words, with a remark on an imported run."""
    if row.needs:
        return f"cannot be read here: {row.needs}"
    match row.summary.imported:
        case "report" if row.config.task_facts.measures_machine:
            return f"{row.config.task_facts.title.lower()} of another machine · {row.config.device} · {IMPORTED}"
        case "report":
            return f"{describe(row.config)} · {IMPORTED}"
        case "curve":  # its configuration is unknown
            return f"a curve on {row.config.data} · {IMPORTED}"
        case _:
            return describe(row.config)


def _finite(value: float | None) -> float | None:
    """None for NaN and infinities, because SQLite stores NaN as NULL, and they have no place in an order."""
    return value if is_number(value) else None


def in_order(lines: list[RunLine], order: str, descending: bool, pinned_first: bool) -> list[RunLine]:
    """Lines in the order of the index: unknown values last, equal values newest first."""
    newest_first = sorted(lines, key=lambda line: line.created, reverse=True)
    known = [line for line in newest_first if getattr(line, order, None) is not None]
    unknown = [line for line in newest_first if getattr(line, order, None) is None]
    ordered = sorted(known, key=lambda line: getattr(line, order), reverse=descending) + unknown
    return sorted(ordered, key=lambda line: not line.pinned) if pinned_first else ordered


def searchable_text(line: RunLine) -> str:
    """The text that a search looks through."""
    return "\n".join([line.name, line.words, line.status, line.run_id, line.why, *line.tags, line.notes]).casefold()


def search_words(search: str) -> list[str]:
    """The words of a search. Invalid UTF-8 matches nothing."""
    return search.encode(errors="replace").decode().casefold().split()[:_MAX_SEARCH_WORDS]


def matches_search(line: RunLine, search: str, status: Sequence[Status]) -> bool:
    """Whether a line has one of the statuses (if there are any) and contains all words of the search."""
    searched = searchable_text(line)
    return (not status or line.status in status) and all(word in searched for word in search_words(search))


def sort_key(row: RunRow, order: str) -> float:
    """The value that a row is sorted by; -inf if it is unknown."""
    value = row.created if order == "created" else getattr(row.summary, order)
    return value if is_number(value) else -math.inf
