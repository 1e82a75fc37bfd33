"""The SQLite index over run folders, for lists, search and sorting."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.common.errors import ConfigError, StoreError
from engine.config.parsing import parse_config_json
from engine.events.base import TERMINAL, Status
from engine.events.summary import Summary
from engine.store import query
from engine.store.listing import GroupLine, RunLine, RunRow, line_of, matches_search, search_words, searchable_text
from engine.store.migrations import LISTED_COLUMNS, MIGRATIONS, migrate, schema_version
from engine.store.query import Condition
from engine.system import disk_space


@contextlib.contextmanager
def index_in_memory(rows: Iterable[RunRow]) -> Iterator[Index]:
    """An index of these rows only, for the same queries in memory."""
    index = Index(None)
    try:
        for row in rows:
            index.put(row)
        yield index
    finally:
        index.close()


def matching_lines(
    rows: Sequence[RunRow], search: str, status: Sequence[Status], where: Sequence[Condition]
) -> list[RunRow]:
    """The rows that match a search, one of the statuses (if there are any) and all conditions."""
    found = [row for row in rows if matches_search(line_of(row), search, status)]
    if not found or not where:
        return found
    with index_in_memory(found) as index:
        known = index.values((), "", (), where, None)
    return [row for row in found if row.run_id in known]


@dataclass(frozen=True, slots=True)
class Stamp:
    """A value that changes whenever one of some files or folders changes: inode, size and mtime of each."""

    seen: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, *paths: Path) -> Stamp | None:
        """The stamp of some paths; None if one changed just now.

        Within one tick of the file system's clock a later change would leave the same stamp.
        """
        now, seen = time.time_ns(), []
        for path in paths:
            try:
                stat = path.stat()
            except OSError:
                seen.append((0, 0, 0))
                continue
            if now - stat.st_mtime_ns <= MTIME_TICK_NS:
                return None
            seen.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return cls(tuple(seen))


# Columns with an SQL index.
SORTABLE = ("created", "test_accuracy", "final_train_loss", "samples_per_s", "train_seconds", "steps")
MTIME_TICK_NS = 50_000_000
_COLUMNS = (
    "run_id", "name", "status", "created", "grouped", "config", "summary", "why", *SORTABLE[1:], "owner", "updated",
    "words", "seed", "searched", "busy", "tags", "notes", "pinned",
)  # fmt: skip


def check_order(order: str) -> None:
    """Check a column to sort by.

    Raises:
        StoreError: there is no such column.
    """
    if order not in SORTABLE and order not in query.FIGURES:
        raise StoreError(f"order={order!r} is not a column.", fix=f"Choose from {', '.join(SORTABLE)}.")


class Index:
    """One row per run, in `root`/index.sqlite; in memory if `root` is None.

    The supervisor is the only process that opens the index for writing, because SQLite before 3.44.6 can lose pages of a
    WAL that two processes checkpoint at once (https://sqlite.org/wal.html#walresetbug). Opening for writing moves a
    damaged file aside and creates an empty one.

    Raises:
        FileNotFoundError: there is no index to read.
        StoreError: a newer Isoflop wrote the index, which is left unchanged.
        sqlite3.OperationalError: the file cannot be used (no room, no permission).
    """

    def __init__(self, root: Path | None, *, readonly: bool = False) -> None:
        path = root and root / "index.sqlite"
        if readonly and path and not path.exists():
            raise FileNotFoundError(path)
        self.path = path
        self.unreadable: set[str] = set()  # runs whose rows could not be read
        try:
            self._open(path, readonly)
        except sqlite3.DatabaseError as error:
            if readonly or path is None or not is_damage(error, path):
                raise
            move_aside(path, "damaged")
            self._open(path, readonly)

    def _open(self, path: Path | None, readonly: bool) -> None:
        if path is None:
            self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        else:
            self._db = _connect(path, readonly)
        try:
            self.version = schema_version(self._db)
            if readonly:
                return
            if damage := self.damage():
                raise sqlite3.DatabaseError(damage)
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=normal")
            migrate(self._db, path, self.version)
            self._db.execute(f"select {', '.join(_COLUMNS)} from runs limit 0")  # the schema can be damaged, too
            self.version = len(MIGRATIONS)
            self._fill_list_columns()
            self._file = path.stat() if path else None
        except (sqlite3.Error, OSError, StoreError):
            self._db.close()
            raise

    @classmethod
    def recreate(cls, root: Path) -> Index:
        """An empty index. An existing file that cannot be used is moved aside.

        Raises:
            sqlite3.DatabaseError: the file cannot be used now (no room, no permission).
        """
        path = root / "index.sqlite"
        try:
            index = cls(root)
        except StoreError:
            move_aside(path, "newer")
            return cls(root)
        try:
            index.clear()
        except sqlite3.DatabaseError as error:
            index.close()
            if not is_damage(error, path):
                raise
            move_aside(path, "damaged")
            return cls(root)
        return index

    def is_in_place(self) -> bool:
        """Whether the open file is still the one at `path`. Writing to a deleted file succeeds, and the data is lost."""
        if self.path is None or self._file is None:
            return self.path is None
        try:
            return os.path.samestat(self.path.stat(), self._file)
        except OSError:
            return False

    @classmethod
    @contextlib.contextmanager
    def reading(cls, root: Path) -> Iterator[Index]:
        """Open the index for reading. All queries in the block see one snapshot."""
        index = cls(root, readonly=True)
        try:
            index._db.execute("begin")
            yield index
        finally:
            index.close()

    def damage(self) -> str:
        """The damage that SQLite finds in the file, in its words; empty if there is none."""
        result = self._db.execute("pragma quick_check(1)").fetchone()[0]
        return "" if result == "ok" else str(result).splitlines()[-1].strip(". ")

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def put(self, row: RunRow) -> None:
        """Insert or replace the row of a run."""
        line = line_of(row)
        values = (
            row.run_id, row.name, row.status, row.created, row.group, row.config.model_dump_json(),
            row.summary.model_dump_json(), row.why, *(getattr(line, column) for column in SORTABLE[1:]), row.owner,
            time.time(), line.words, line.seed, searchable_text(line), line.busy, "\n".join(row.tags), row.notes, row.pinned,
        )  # fmt: skip
        marks = ",".join("?" * len(values))
        self._db.execute(f"insert or replace into runs ({', '.join(_COLUMNS)}) values ({marks})", values)

    def remove(self, run_id: str) -> None:
        """Delete the row of a run, if there is one."""
        self._db.execute("delete from runs where run_id = ?", (run_id,))

    def clear(self) -> None:
        """Delete all rows."""
        self._db.execute("delete from runs")

    def _fill_list_columns(self) -> None:
        """Fill the list columns of rows that were written before these columns existed."""
        fields = "run_id, name, status, created, grouped, config, summary, why, owner, tags, notes, pinned"
        for columns in self._db.execute(f"select {fields} from runs where searched is null").fetchall():
            if row := _row_from(*columns):
                self.put(row)
            else:
                self.remove(columns[0])  # unreadable: the run is read from its folder

    def ids(self, status: Sequence[Status] = ()) -> set[str]:
        """The ids of all indexed runs, or of those with one of these statuses."""
        where = f"where status in ({','.join('?' * len(status))})" if status else ""
        return {row[0] for row in self._db.execute(f"select run_id from runs {where}", tuple(status))}

    def lines(
        self,
        search: str,
        status: Sequence[Status],
        order: str,
        *,
        descending: bool,
        limit: int,
        offset: int,
        where: Sequence[Condition] = (),
        pinned_first: bool = False,
    ) -> tuple[list[RunLine], int]:
        """A page of the lines that match, and the number of all that match.

        Unknown values come last. Raises StoreError for an unknown order or an index of an old schema.
        """
        check_order(order)
        self._require_listing()
        condition, parameters = _where(search, status, where)
        by = order if order in SORTABLE else query.value_of(order)[0]
        direction = f"{'pinned desc, ' if pinned_first else ''}{by} {'desc' if descending else 'asc'}"
        found = self._db.execute(
            f"select run_id, {', '.join(LISTED_COLUMNS)} from runs {condition} "
            f"order by {direction} nulls last, created desc limit ? offset ?",
            (*parameters, limit, offset),
        )
        lines = [_line_from(columns) for columns in found]
        total = self._db.execute(f"select count(*) from runs {condition}", parameters).fetchone()[0]
        return lines, total

    def values(
        self,
        fields: Sequence[str],
        search: str,
        status: Sequence[Status],
        where: Sequence[Condition],
        run_ids: Sequence[str] | None,
    ) -> dict[str, tuple[Any, ...]]:
        """Values of some fields of the runs that match, by run id."""
        self._require_listing()
        asked = [query.value_of(field) for field in fields]
        condition, parameters = _where(search, status, where)
        if run_ids is not None:
            condition += f"{' and' if condition else 'where'} run_id in ({','.join('?' * len(run_ids))})"
            parameters = (*parameters, *run_ids)
        found = self._db.execute(
            f"select {', '.join(['run_id', *(text for text, _ in asked)])} from runs {condition}",
            (*(p for _, known in asked for p in known), *parameters),
        )
        return {columns[0]: columns[1:] for columns in found}

    def groups(self, limit: int) -> list[GroupLine]:
        """The newest groups of runs."""
        self._require_listing()
        ended = ", ".join(f"'{status}'" for status in sorted(TERMINAL))
        found = self._db.execute(
            f"""
            select grouped, min(created), count(*), sum(status not in ({ended})), count(distinct words || char(10) || name),
              max(json_extract(config, '$.parallel.num_ranks')), group_concat(distinct nullif(name, '')),
              min(json_extract(config, '$.data')), max(json_extract(summary, '$.imported') is not null),
              min(coalesce(json_extract(config, '$.task'), 'train'))
            from runs where grouped is not null group by grouped order by min(created) desc limit ?
            """,
            (limit,),
        )
        return [
            GroupLine(
                group,
                created,
                n,
                alive,
                lanes,
                ranks or 1,
                tuple((names or "").split(",")[:6]),
                data or "",
                bool(theirs),
                task,
            )
            for group, created, n, alive, lanes, ranks, names, data, theirs, task in found
        ]

    def _require_listing(self) -> None:
        if self.version < len(MIGRATIONS):  # an older supervisor may still hold this index
            raise StoreError(f"The index has no columns for lists yet (schema {self.version}).")

    def rows(
        self,
        *,
        limit: int | None = None,
        order: str = "created",
        status: Sequence[Status] = (),
        group: str | None = None,
    ) -> list[RunRow]:
        """Rows of runs, newest (or largest) first. Unreadable ones are left out and noted in `unreadable`."""
        check_order(order)
        conditions = [f"status in ({','.join('?' * len(status))})"] if status else []
        conditions += ["grouped = ?"] if group is not None else []
        where = f"where {' and '.join(conditions)}" if conditions else ""
        found = self._db.execute(
            f"select run_id, name, status, created, grouped, config, summary, why, {self._later_columns} from runs {where} "
            f"order by {order} desc nulls last limit ?",
            (*status, *([] if group is None else [group]), -1 if limit is None else limit),
        )
        return [row for columns in found if (row := self._readable(columns))]

    @property
    def _later_columns(self) -> str:
        """Columns of later schemas, or constants: an older supervisor may still hold an index without them."""
        owner = "owner" if self.version > 1 else "''"
        return f"{owner}, tags, notes, pinned" if self.version > 5 else f"{owner}, '', '', 0"

    def _readable(self, columns: tuple[Any, ...]) -> RunRow | None:
        row = _row_from(*columns)
        if row is None:
            self.unreadable.add(columns[0])
        return row


def _line_from(columns: tuple[Any, ...]) -> RunLine:
    *listed, busy, tags, notes, pinned = columns
    labels = (tuple(tags.split("\n") if tags else ()), notes, bool(pinned))
    values = [*listed, None if busy is None else bool(busy), *labels]  # SQLite knows no bool
    return RunLine(*values)


def _where(search: str, status: Sequence[Status], where: Sequence[Condition]) -> tuple[str, tuple[Any, ...]]:
    """The SQL `where` clause and its parameters; search words first, because the covering index answers them alone."""
    words = search_words(search)
    found: list[tuple[str, tuple[Any, ...]]] = [("instr(searched, ?)", (word,)) for word in words]
    found += [(f"status in ({','.join('?' * len(status))})", tuple(status))] if status else []
    found += [condition.sql() for condition in where]
    if not found:
        return "", ()
    return f"where {' and '.join(text for text, _ in found)}", tuple(p for _, known in found for p in known)


def _row_from(
    run_id: str,
    name: str,
    status: Status,
    created: float,
    group: str | None,
    config: str,
    summary: str,
    why: str,
    owner: str,
    tags: str,
    notes: str,
    pinned: int,
) -> RunRow | None:
    """The row that was written; None if it cannot be read, so that it does not hide the others."""
    try:
        return RunRow(
            run_id=run_id,
            name=name,
            status=status,
            created=created,
            group=group,
            why=why,
            owner=owner,
            config=parse_config_json(config),
            summary=Summary.model_validate_json(summary),
            tags=tuple(tags.split("\n") if tags else ()),
            notes=notes,
            pinned=bool(pinned),
        )
    except (ConfigError, ValidationError, TypeError):
        return None


def _connect(path: Path, readonly: bool) -> sqlite3.Connection:
    if not readonly:
        with contextlib.suppress(IsADirectoryError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives the WAL files the same mode
            path.chmod(0o600)
    uri = f"{path.as_uri()}?mode={'ro' if readonly else 'rw'}"
    return sqlite3.connect(uri, uri=True, timeout=5, isolation_level=None, check_same_thread=False)


def is_damage(error: sqlite3.Error, path: Path) -> bool:
    """Whether the file is damaged. Otherwise it only cannot be used now: it is locked, or there is no room or permission."""
    if path.is_dir() or not isinstance(error, sqlite3.OperationalError):
        return True
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)  # without one: text that is not UTF-8
    return code & 0xFF in {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def move_aside(path: Path, why: str) -> None:
    """Rename an index that cannot be used to `<name>.<why>`. It is derived data, so it is rebuilt from the folders."""
    aside = path.with_name(f"{path.name}.{why}")
    disk_space.remove(aside)
    with contextlib.suppress(FileNotFoundError):
        path.replace(aside)
    for rest in ("-wal", "-shm"):
        disk_space.remove(path.with_name(path.name + rest))
