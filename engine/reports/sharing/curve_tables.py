"""Reads a CSV of another tool as text, and finds the role of each column: step, loss, time and others.

The names of the columns decide their roles. A note names each guess and each column that is not used.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.common.errors import ConfigError
from engine.common.sanitize import visible

if TYPE_CHECKING:
    import pandas as pd

MAX_COLUMNS, MAX_ROWS, MAX_CELL = 2_000, 2_000_000, 131_072  # MAX_CELL: characters, the csv module's own limit
ROLES = {  # role: its title
    "step": "Step",
    "epoch": "Epoch",
    "seconds": "Time",
    "samples": "Samples",
    "loss": "Training loss",
    "test_loss": "Test loss",
    "test_accuracy": "Test accuracy",
    "lr": "Learning rate",
}
CURVES = ("loss", "test_loss", "test_accuracy")
_MOST_NAMED = 12

_TRAINING = r"(?:train(?:ing)?|batch)"
_HELD_OUT = r"(?:val(?:id(?:ation)?)?|test|evaluation|eval|dev|held_?out)"
_ACCURACY = (
    r"(?:(?:(?:sparse_)?categorical_|binary_|multiclass_)?acc(?:uracy)?(?:_?1)?|top_?1(?:_acc(?:uracy)?)?|prec_?1)"
)
_PATTERNS = {
    "step": r"(?:global_|trainer_global_|optimizer_)?(?:steps?|iter(?:ation)?s?|updates?)",
    "epoch": r"epochs?",
    "samples": r"(?:examples?|samples?)(?:_seen)?",
    "seconds": r"(?:(?:train(?:ing)?_|wall_?|elapsed_|relative_|epoch_)?time|time_(?:per_)?epoch|epoch_(?:seconds|duration)|"
    r"elapsed|seconds|secs?|runtime|minutes|hours|wall|relative_time_(?:process|wall))",
    "test_loss": rf"{_HELD_OUT}_loss|loss_{_HELD_OUT}",
    "test_accuracy": rf"{_HELD_OUT}_{_ACCURACY}|{_ACCURACY}_{_HELD_OUT}",
    "train_accuracy": rf"{_TRAINING}_{_ACCURACY}|{_ACCURACY}_{_TRAINING}",
    "loss": rf"(?:{_TRAINING}_)?loss|loss_{_TRAINING}",
    "accuracy": _ACCURACY,
    "lr": r"lr|learning_rate",
}
_UNIT_IN = re.compile(
    r"[(\[]\s*(ms|milliseconds|s|sec|seconds|min|minutes|h|hours|%|percent)\s*[)\]]|_(ms|s|sec|min|h|pct|percent)$"
)
_UNIT_NAMES = {"milliseconds": "ms", "minutes": "min", "hours": "h", "pct": "%", "percent": "%"}
_UNIT_NAMES |= dict.fromkeys(("sec", "secs", "seconds"), "s")
# As float(), but without "1_10" and digits of other scripts, which people do not read as numbers.
_NUMBER = (
    r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[iI][nN][fF](?:[iI][nN][iI][tT][yY])?|[nN][aA][nN])"
)
_EMPTY = r"(?i:<?na>?|n/a|null|none)"  # Keras writes NA for an epoch without the value; NaN is a value
_DECIMAL_COMMA = r"[+-]?[0-9]+,[0-9]+(?:[eE][+-]?[0-9]+)?"
_CLOCK = r"(?:[0-9]+:)?[0-9]{1,3}:[0-5][0-9](?:\.[0-9]+)?"  # fastai: 00:18
_WANDB = re.compile(r"(.+) - (.+)", re.DOTALL)  # in an export of a chart, each column is "NAME OF THE RUN - METRIC"
_WANDB_RANGE = ("__MIN", "__MAX")  # the range of the points that one exported point stands for


@dataclass
class Table:
    """The columns that have a role, as text, with their units and the notes on guesses."""

    cells: pd.DataFrame  # (rows, roles), stripped; "" for an empty or missing cell; the header is row 1
    headers: dict[str, str]  # role: header
    unit: dict[str, str]  # role: unit, if the header names one
    notes: list[str] = field(default_factory=list)

    def numbers(self, role: str) -> np.ndarray:
        """A column as (rows,) float64; NaN for an empty cell, which `has_value` distinguishes from a NaN in the file.

        Raises:
            ConfigError: A cell is not a number; the message names its row.
        """
        cells = self.cells[role]
        wrong = cells[(cells != "") & ~cells.str.fullmatch(_NUMBER)]
        if len(wrong):
            raise ConfigError(
                f"Row {wrong.index[0]}, column {visible(self.headers[role], 40)!r}: "
                f"{visible(wrong.iloc[0], 30)!r} is not a number.",
                fix="Correct the row, or choose another column or none. Write numbers without thousands separators.",
            )
        return cells.where(cells != "", "nan").to_numpy(dtype=object).astype(np.float64)

    def has_value(self, roles: Sequence[str]) -> np.ndarray:
        """(rows,) bool, whether any of the cells is not empty."""
        return (self.cells[list(roles)] != "").any(axis=1).to_numpy()


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a file, to choose from."""

    headers: list[str]
    roles: dict[str, str]  # role: header, as guessed
    rows: list[list[str]]  # the first rows


def is_table(name: str) -> bool:
    """Whether a file of this name is read as a table, unless it begins as a report does."""
    return name.lower().endswith((".csv", ".tsv", ".txt"))


def columns_of(text: str) -> Columns:
    """The columns of a table and their guessed roles.

    Raises:
        ConfigError: The text is not a table.
    """
    headers, cells, _ = _headers_and_cells(text)
    place, _ = _roles(headers, {})
    shown = [[visible(cell, 40) for cell in row] for row in cells.iloc[:5].to_numpy().tolist()]
    return Columns(headers, {role: headers[number] for role, number in place.items()}, shown)


def read_table(text: str, chosen: Mapping[str, str]) -> Table:
    """The columns of the text that have a role. `chosen` maps roles to headers, or to "" for none.

    Raises:
        ConfigError: The text is not a table, no column is a curve, or a chosen role or column does not exist.
    """
    headers, cells, notes = _headers_and_cells(text)
    place, guesses = _roles(headers, chosen)
    notes = [*guesses, *notes]
    if not place.keys() & set(CURVES):
        raise ConfigError(
            f"No column is a loss or an accuracy. The columns are {_named(headers, 8)}.",
            fix="Choose the column of the training loss, test loss or test accuracy.",
        )
    named = {role: headers[number] for role, number in place.items()}
    unit = {role: unit for role, header in named.items() if (unit := _unit_in(header, role))}
    cells = cells[list(place.values())].set_axis(list(place), axis=1)
    cells = cells.mask(cells.apply(lambda column: column.str.fullmatch(_EMPTY)), "")
    if "seconds" in cells:
        cells = _with_seconds(cells, unit)
    return Table(_with_points(cells, notes), named, unit, notes)


# --- cells ------------------------------------------------------------------------------------------------------------


def _headers_and_cells(text: str) -> tuple[list[str], pd.DataFrame, list[str]]:
    """The header, the rows below it as stripped text, and notes on what was left out.

    Raises:
        ConfigError: The table is empty, damaged or too large.
    """  # noqa: DOC501
    cells = _parsed(text)
    if (longest := max((int(cells[name].str.len().max()) for name in cells), default=0)) > MAX_CELL:
        raise _unreadable(f"a cell has {longest:,} characters, the limit is {MAX_CELL:,}")
    cells = cells.apply(lambda column: column.str.strip())
    cells = cells[(cells != "").any(axis=1)]
    if len(cells) < 2:
        raise ConfigError("The table has no rows below its header.", fix="Add rows; the first row names the columns.")
    header, extra = cells.iloc[0, :-1], cells.iloc[1:, -1]
    if len(header) > MAX_COLUMNS or len(cells) > MAX_ROWS + 1:
        raise ConfigError(
            f"The table has {len(header):,} columns and {len(cells) - 1:,} rows.",
            fix=f"The limit is {MAX_COLUMNS:,} columns and {MAX_ROWS:,} rows.",
        )
    cells, notes = cells.iloc[1:, :-1].reset_index(drop=True), []
    cells.index += 2
    if more := int((extra != "").sum()):
        notes.append(
            f"Rows with more cells than the header: {more:,}. The cells beyond it were left out. Numbers with decimal "
            "commas need semicolons or tabs between them."
        )
    repeated = (cells == header).all(axis=1)  # a tool that resumed a run wrote its header again
    if repeated.any():
        notes.append(f"Rows that repeat the header were left out: {int(repeated.sum()):,}.")
    return [str(name).lstrip("\ufeff") for name in header], cells[~repeated], notes


def _parsed(text: str) -> pd.DataFrame:
    """The cells as text, because pandas reads more texts as numbers or dates than people do.

    The last column has the first cell beyond the header of each row.

    Raises:
        ConfigError: The text is not a table.
    """  # noqa: DOC501
    import pandas as pd  # imported here, because the command line must start without it

    if "\0" in text:  # the parser would end a cell there
        raise _unreadable("it contains a NUL character")
    delimiter = max(",;\t", key=text.lstrip("\r\n").partition("\n")[0].count)

    def read(**more: Any) -> pd.DataFrame:
        cells: pd.DataFrame = pd.read_csv(
            io.StringIO(text), sep=delimiter, header=None, dtype=str, na_filter=False, low_memory=False, **more
        )
        return cells

    try:
        # With numbered columns, pandas drops cells beyond them instead of using the first column as an index.
        width = read(nrows=1).shape[1]
        try:
            return read(names=range(width + 1), usecols=range(width + 1)).fillna("")
        except (pd.errors.ParserError, ValueError):  # no row is longer than the header, or a row is damaged
            return read(names=range(width), usecols=range(width)).assign(beyond="")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (pd.errors.ParserError, ValueError) as error:
        raise _unreadable(visible(str(error), 200).rstrip(".")) from None


def _unreadable(why: str) -> ConfigError:
    return ConfigError(f"The table cannot be read: {why}.", fix="Save it as CSV in UTF-8.")


def _with_points(cells: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The cells with decimal points instead of decimal commas.

    In a whole number a comma separates thousands, and so it can if another cell has a point: such a cell stays, and is
    refused later.
    """
    parts = [role for role in cells if role not in {"step", "samples"}]
    commas = cells[parts].apply(lambda column: column.str.fullmatch(_DECIMAL_COMMA))
    if (
        not commas.to_numpy().any()
        or cells[parts].apply(lambda column: column.str.contains(r"[0-9]\.")).to_numpy().any()
    ):
        return cells
    first = str(cells[parts].to_numpy()[commas.to_numpy()][0])
    notes.append(f"Commas were read as decimal points: {first} is {first.replace(',', '.')}.")
    return cells.assign(**{str(role): cells[role].str.replace(",", ".") for role in parts})


def _with_seconds(cells: pd.DataFrame, unit: dict[str, str]) -> pd.DataFrame:
    """The cells with times such as 00:18 as seconds, if the column has any."""
    clocks = cells["seconds"].str.fullmatch(_CLOCK)
    if not clocks.any():
        return cells
    parts = (
        cells["seconds"][clocks].str.split(":").map(lambda p: sum(float(n) * 60**i for i, n in enumerate(reversed(p))))
    )
    unit["seconds"] = "s"
    return cells.assign(seconds=cells["seconds"].mask(clocks, parts.map(repr)))


# --- roles ------------------------------------------------------------------------------------------------------------


def _roles(headers: Sequence[str], chosen: Mapping[str, str]) -> tuple[dict[str, int], list[str]]:
    """The number of each role's column, chosen ones first, and notes on guesses and on columns that are not used.

    Raises:
        ConfigError: A chosen role or column does not exist.
    """
    place = dict[str, int]()
    for role, header in chosen.items():
        if role not in ROLES:
            raise ConfigError(f"{role!r} is not a role of a column.", fix=f"Choose from {', '.join(ROLES)}.")
        if header and header not in headers:
            raise ConfigError(
                f"There is no column {visible(header, 40)!r}.",
                fix=f"Choose from {', '.join(visible(h, 40) for h in headers[:12])}.",
            )
        if header:
            place[role] = headers.index(header)
    names, guessed = _metrics(headers, list(place.values()))
    open_roles = [role for role in _PATTERNS if role not in chosen]
    if "test_accuracy" in chosen:
        open_roles.remove("accuracy")
    for number, name in names.items():
        fits = (role for role in open_roles if role not in place and re.fullmatch(_PATTERNS[role], name))
        if number not in place.values() and (role := next(fits, "")):
            place[role] = number
    explained = set[int]()
    if "accuracy" in place:  # in Keras, the training accuracy, beside val_accuracy
        number = place.pop("accuracy")
        header = repr(visible(headers[number], 40))
        if "test_accuracy" in place:
            guessed.append(f"{header} was left out, because beside a test accuracy it is the training accuracy.")
            explained.add(number)
        else:
            place["test_accuracy"] = number
            guessed.append(f"{header} was read as test accuracy.")
    if "train_accuracy" in place:
        explained.add(number := place.pop("train_accuracy"))
        header = repr(visible(headers[number], 40))
        guessed.append(f"{header} was left out, because Isoflop does not record training accuracy.")
    used = ", ".join(f"{visible(headers[number], 40)!r} as {role}" for role, number in place.items())
    unused = [h for number, h in enumerate(headers) if h and number not in explained and number not in place.values()]
    if unused:
        guessed.append(f"Not used: {_named(unused, _MOST_NAMED)}.")
    return place, [f"Columns: {used}.", *guessed]


def _metrics(headers: Sequence[str], chosen: Sequence[int]) -> tuple[dict[int, str], list[str]]:
    """The plain name of each column that can have a role, by its number, and a note if another run's columns are left out.

    An export of Weights & Biases has the columns of one or more runs; those of one run are read.
    """
    names, runs = dict[int, str](), dict[int, str]()
    for number, header in enumerate(headers):
        names[number] = _plain(header)
        found = _WANDB.fullmatch(header)
        if found and not any(re.fullmatch(pattern, names[number]) for pattern in _PATTERNS.values()):
            runs[number], names[number] = found[1], _plain(found[2])
    all_runs = list(dict.fromkeys(runs.values()))
    run = next((runs[number] for number in chosen if number in runs), next(iter(all_runs), ""))
    can_have_role = {
        number: name
        for number, name in names.items()
        if not headers[number].endswith(_WANDB_RANGE) and runs.get(number, run) == run
    }
    if len(all_runs) < 2:
        return can_have_role, []
    return can_have_role, [
        f"The table has the runs {_named(all_runs, 6)}; the columns of {visible(run, 30)!r} were read."
    ]


def _plain(header: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", _UNIT_IN.sub("", header.lower())).strip("_")


def _unit_in(header: str, role: str) -> str:
    """The unit that a header names, or ""."""
    if found := _UNIT_IN.search(header.lower()):
        return _UNIT_NAMES.get(found[1] or found[2], found[1] or found[2])
    return _UNIT_NAMES.get(_plain(header), "") if role == "seconds" else ""


def _named(headers: Sequence[str], most: int) -> str:
    more = f" and {len(headers) - most:,} more" if len(headers) > most else ""
    return ", ".join(repr(visible(header, 40)) for header in headers[:most]) + more
