"""The cells of an inference measurement for the browser: where each lies in the maps, its name and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from dashboard.api.wire import short
from engine.common import units
from engine.common.sanitize import visible
from engine.config.tasks import Cell, RuntimeName
from engine.events.inference import Latency, NotRun
from engine.events.machine import BUSY_FROM
from engine.store.run import Run
from engine.studies.inference import RUNTIME_WORDS

LONGEST_TEXT = 300


class Place(NamedTuple):
    """A cell of one of the runs that are shown together. In a load test the runs differ in their rate."""

    run: Run
    cell: Cell

    @property
    def rate(self) -> float | None:
        """The offered rate in requests/s; None in a closed loop."""
        return self.run.config.infer.rate if self.run.config.infer.load == "open" else None

    @property
    def key(self) -> str:
        """The name of this cell in addresses and in the browser, such as `8x2-fp32-eager`."""
        c = self.cell
        rate = "" if self.rate is None else f"{self.rate:g}r-"
        return f"{rate}{c.batch_size}x{c.threads}-{c.precision}-{c.runtime}"

    @property
    def found(self) -> Latency | None:
        """What was measured so far, or None."""
        return self.run.by_key(Latency).get(self.cell)

    @property
    def round(self) -> int:
        """The number of measured rounds; 1 for a cell that could not run."""
        if self.cell in self.run.by_key(NotRun):
            return 1
        return self.found.round if self.found else 0


def places(runs: Sequence[Run]) -> list[Place]:
    """All cells of these runs."""
    return [Place(run, cell) for run in runs for cell in run.config.cells]


# --- rows, columns and lines --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Axes:
    """The settings along the rows and the columns of the maps. Every other combination of settings is a slice of its own.

    A curve follows batch size or rate; each value of the other axis has its line.
    """

    row: str
    column: str
    rows: tuple[Any, ...]
    columns: tuple[Any, ...]
    slices: tuple[tuple[Any, ...], ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, all_of_them: Sequence[Place]) -> Axes:
        """The axes that suit the settings that vary among these cells."""
        values = {
            name: tuple(dict.fromkeys(_value(place, name) for place in all_of_them))
            for name in ("batch_size", "threads", "precision", "runtime", "rate")
        }
        on_gpu = all_of_them[0].run.config.device != "cpu"
        many = [
            name for name in (["precision", "threads"] if on_gpu else ["threads", "precision"]) if len(values[name]) > 1
        ]
        if values["rate"] != (None,):
            row, column = "rate", next(iter([*many, *(["runtime"] if len(values["runtime"]) > 1 else [])]), "threads")
        elif len(values["runtime"]) > 1 and not many:
            row, column = "runtime", "batch_size"  # names of runtimes are long, so they are labels of rows
        else:
            row, column = "batch_size", next(iter(many), "precision" if on_gpu else "threads")
        others = tuple(name for name in values if name not in {row, column})
        slices = tuple(dict.fromkeys(tuple(_value(p, name) for name in others) for p in all_of_them))
        return cls(row, column, _in_order(values[row]), _in_order(values[column]), slices, others)

    @property
    def line(self) -> str:
        """The setting in which the lines of a curve differ."""
        return self.row if self.row == "runtime" else self.column

    def at(self, place: Place) -> tuple[int, int, int]:
        """The numbers of its slice, row and column."""
        rest = tuple(_value(place, name) for name in self.others)
        row, column = _value(place, self.row), _value(place, self.column)
        return self.slices.index(rest), self.rows.index(row), self.columns.index(column)

    def about(self) -> dict[str, Any]:
        """The labels of rows, columns, lines and slices, as JSON."""
        varied = [n for n, name in enumerate(self.others) if len({s[n] for s in self.slices}) > 1]
        lines = self.rows if self.line == self.row else self.columns
        return {
            "rows": [
                {"id": f"{v:g}" if self.row == "rate" else str(v), "label": _short(self.row, v)} for v in self.rows
            ],
            "columns": [{"id": str(v), "label": setting_in_words(self.column, v)} for v in self.columns],
            "lines": [setting_in_words(self.line, v) for v in lines],
            "slices": [
                {"label": ", ".join(setting_in_words(self.others[n], s[n]) for n in varied) or "all"}
                for s in self.slices
            ],
            "kind": "ladder" if self.row == "runtime" else "arrivals" if self.row == "rate" else "matrix",
        }


def _value(place: Place, name: str) -> Any:
    return place.rate if name == "rate" else getattr(place.cell, name)


def _in_order(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers in rising order; names in the order in which they were chosen."""
    return tuple(sorted(values)) if all(isinstance(v, int | float) for v in values) else values


def _short(name: str, value: Any) -> str:
    if name == "rate":
        return f"{units.count(value)}/s"
    return f"{value:,}" if isinstance(value, int) else setting_in_words(name, value)


def setting_in_words(name: str, value: Any) -> str:
    """A setting of a cell with its value, such as `2 threads`."""
    match name:
        case "threads":
            return f"{value} thread{'' if value == 1 else 's'}"
        case "batch_size":
            return f"batch {value:,}"
        case "rate":
            return f"{units.count(value)} requests/s"
        case "runtime":
            return RUNTIME_WORDS[cast(RuntimeName, value)]
        case _:
            return str(value)


def capitalized(text: str) -> str:
    """The text with an upper-case first letter; the rest is unchanged."""
    return text[:1].upper() + text[1:]


# --- one cell ---------------------------------------------------------------------------------------------------------


def label_of(place: Place) -> str:
    """The name of a cell: `Batch 32, 2 threads`, and every setting that differs from the usual one."""
    c = place.cell
    parts = [capitalized(setting_in_words("batch_size", c.batch_size))]
    parts += [setting_in_words("threads", c.threads)] if place.run.config.device == "cpu" else [c.precision]
    parts += [setting_in_words("runtime", c.runtime)] if c.runtime != "inference_mode" else []
    parts += [c.precision] if c.precision != "fp32" and place.run.config.device == "cpu" else []
    parts += [setting_in_words("rate", place.rate)] if place.rate is not None else []
    return ", ".join(parts)


def cell_as_json(place: Place, axes: Axes) -> dict[str, Any]:
    """A cell for the maps and curves."""
    answer: dict[str, Any] = {
        "key": place.key,
        "at": axes.at(place),
        "label": label_of(place),
        "short": _shortest(place, axes),
        "line": axes.at(place)[1 if axes.line == axes.row else 2],
        "batch_size": place.cell.batch_size,
    }
    if not_run := place.run.by_key(NotRun).get(place.cell):
        return answer | {"why": visible(not_run.reason, LONGEST_TEXT)}
    if (m := place.found) is None:
        return answer
    figures: dict[str, Any] = {
        "round": m.round,
        "rounds": m.rounds,
        "requests": m.requests,
        "samples_per_s": short(m.samples_per_s),
        "p50": short(m.p50_s),
        "p90": short(m.p90_s),
        "p99": short(m.p99_s),
        "max": short(m.max_s),
        "words": _in_words(m),
    }
    if m.offered_per_s is not None:
        figures |= {"offered": short(place.rate), "reached": short(m.reached_per_s)}
    for name in ("ttft", "tpot"):
        if found := getattr(m, name):
            figures[name] = [short(found.p50_s), short(found.p99_s)]
    return answer | figures


def _shortest(place: Place, axes: Axes) -> str:
    """The settings in which a cell differs from the others of its maps."""
    names = [name for name, values in ((axes.row, axes.rows), (axes.column, axes.columns)) if len(values) > 1]
    return ", ".join(setting_in_words(name, _value(place, name)) for name in names) or setting_in_words(
        "batch_size", place.cell.batch_size
    )


def _in_words(m: Latency) -> str:
    words = [
        units.samples_per_s(m.samples_per_s),
        f"p50 {units.duration(m.p50_s)}, p99 {units.duration(m.p99_s)}",
        f"{m.requests:,} requests, round {m.round} of {m.rounds}",
    ]
    if busy := busy_in_words(m):
        words.append(busy)
    return "; ".join(words)


def busy_in_words(m: Latency) -> str:
    """How much other programs slowed this cell; empty if they did not."""
    if m.wall_per_cpu is None or m.wall_per_cpu <= BUSY_FROM:
        return ""
    return f"machine was busy: about {m.wall_per_cpu:.2f} times slower"
