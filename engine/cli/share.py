"""`python -m engine export`, `import` and `reports`: runs to files and back."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from engine.cli import common
from engine.common import units
from engine.common.errors import ConfigError, StoreError
from engine.common.jsontext import json_text
from engine.common.sanitize import visible
from engine.config.parsing import with_overrides
from engine.config.presets import DEFAULT_PRESET, PRESETS, preset_config
from engine.config.summary import describe
from engine.measurement import energy
from engine.reports import exporters, sharing
from engine.reports.report import Report, concluded
from engine.reports.sharing import CurveChoices
from engine.runtime.client import Client
from engine.store.run import Run
from engine.store.store import Store
from engine.studies import race_results, race_verdicts

WEIGHTS = ("model.safetensors", "trajectory.safetensors")
_EXTENSIONS = (".html", ".json", ".zip", ".csv", ".parquet")
_CHOOSE_WITH = "Options: --column ROLE=HEADER, --seconds-in, --seconds-are, --percent."


def register(add: common.Adder) -> None:
    """Add the commands."""
    export = add("export", export_command, "write runs to a file, or to TensorBoard or MLflow")
    export.add_argument("runs", nargs="+", metavar="RUN", help="ids, beginnings of ids, or last")
    export.add_argument("-o", "--output", help=f"FILE{'|'.join(_EXTENSIONS)}")
    export.add_argument("--title", default="", help="title of the report (default: the name of the first run)")
    export.add_argument("--notes", default="", help="notes for the report, or @FILE")
    export.add_argument("--target", help="target of the comparison: test_accuracy=0.95, test_loss=0.3 or none")
    export.add_argument("--baseline", default="", metavar="LABEL", help="baseline of the comparison")
    export.add_argument("--weights", action="store_true", help=".zip only: include the weights of the runs")
    export.add_argument(
        "--file-names", action="store_true", help="keep the names of your own files (never their folders)"
    )
    export.add_argument("--preview", action="store_true", help="list the content of the report, and write nothing")
    export.add_argument("--tensorboard", metavar="DIR", help="write event files for TensorBoard, one folder per run")
    export.add_argument("--mlflow", metavar="DIR", help="write a folder that `mlflow ui` reads")

    importing = add("import", import_command, "import runs from reports, or a curve from a CSV")
    importing.add_argument("files", nargs="+", metavar="FILE", help=".html, .json or .zip exported by Isoflop, or .csv")
    importing.add_argument("--name", default="", help="CSV only: name of the curve (default: the name of the file)")
    importing.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="ROLE=HEADER",
        help="CSV only: the column of a role, e.g. loss=HEADER, test_accuracy=HEADER; seconds= reads no column as time",
    )
    importing.add_argument(
        "--seconds-in", default="", choices=["", *("s", "ms", "min", "h")], help="CSV only: the unit of time"
    )
    importing.add_argument(
        "--seconds-are",
        default="",
        choices=["", "total", "each"],
        help="CSV only: whether a time is counted from the start, or is that of each row",
    )
    importing.add_argument(
        "--percent", action=argparse.BooleanOptionalAction, help="CSV only: whether accuracy is in percent"
    )
    importing.add_argument(
        "--preset", default=DEFAULT_PRESET, help="CSV only: the preset closest to the experiment (default %(default)s)"
    )
    importing.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="CSV only: set a field of the configuration, e.g. data=digits",
    )

    add("reports", reports_command, "list imported reports, with notes and conclusions")


# --- export -------------------------------------------------------------------------------------------------------------


def export_command(a: argparse.Namespace) -> int:
    """Write runs to a file; its extension decides the format.

    Raises:
        ConfigError: No output is given, or its extension is unknown.
    """
    store = common.store_of(a)
    runs = [store.run(store.find(r)) for r in dict.fromkeys(a.runs)]
    if not (a.output or a.tensorboard or a.mlflow or a.preview):
        raise ConfigError("No output is given.", fix=f"Give -o FILE{'|'.join(_EXTENSIONS)}, --tensorboard or --mlflow.")
    path = Path(a.output) if a.output else None
    if path and path.suffix not in _EXTENSIONS:
        raise ConfigError(
            f"-o {path.name}: unknown extension {path.suffix or '(none)'!r}.",
            fix=f"Choose {', '.join(_EXTENSIONS[:-1])} or {_EXTENSIONS[-1]}.",
        )
    if a.weights and path and path.suffix != ".zip":
        raise ConfigError(
            f"-o {path.name}: only a .zip can contain weights.", fix="Write a .zip, or leave out --weights."
        )
    if a.preview:
        return _preview(a, report_of(store, runs, a))
    written = []
    if path:
        _write(path, store, runs, a)
        written.append(path)
    if a.tensorboard:
        written += exporters.write_tensorboard(Path(a.tensorboard), runs)
    if a.mlflow:
        written += exporters.write_mlflow(Path(a.mlflow), runs)
    size = sum(file.stat().st_size for file in written)
    if a.json:
        print(json_text({"file": str(written[0]), "files": [str(file) for file in written], "size_bytes": size}))
    else:
        for file in written:
            print(f"{visible(str(file))} ({units.nbytes(file.stat().st_size)})")
    return common.OK


def report_of(store: Store, runs: Sequence[Run], a: argparse.Namespace) -> Report:
    """The report of the arguments, with the comparison of the runs if they are comparable.

    Raises:
        ConfigError: An argument is not valid.
    """
    metric, target = race_results.parse_target(a.target) if a.target else _own_target(runs)
    return Report.freeze(
        a.title or runs[0].name or describe(runs[0].config),
        runs,
        account_of=partial(energy.in_store, store),
        notes=_notes(a.notes),
        conclusions=concluded(runs, metric=metric, target=target, baseline=a.baseline),
        file_names=a.file_names,
        files=WEIGHTS if a.weights else (),  # type: ignore[arg-type]
    )


def _own_target(runs: Sequence[Run]) -> tuple[Any, float | None]:
    """The target of the runs, if they share one."""
    targets = {(run.config.target.metric, run.config.target.value) for run in runs}
    return next(iter(targets)) if len(targets) == 1 else ("test_accuracy", None)


def _notes(text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"--notes {text}: the file cannot be read as UTF-8 text.", fix="Name a text file.") from None


def _preview(a: argparse.Namespace, report: Report) -> int:
    rows = sharing.preview(report)
    if a.json:
        print(json_text({"leaves": [{"run_id": r.run or None, "what": r.what, "text": r.text} for r in rows]}))
        return common.OK
    for row in rows:
        print(f"{row.run or 'report':16}  {row.what:28} {visible(row.text, 200)}")
    print("Nothing was written.")
    return common.OK


def _page(report: Report) -> str:
    from engine.reports.html import page  # imports Plotly, which is slow and which other commands do not need

    return page.render(report)


def _write(path: Path, store: Store, runs: Sequence[Run], a: argparse.Namespace) -> None:
    if path.suffix == ".zip":
        sharing.write_zip(path, report_of(store, runs, a), {run.run_id: run for run in runs})
        return
    if path.suffix == ".parquet":
        exporters.write_parquet(path, runs)
        return
    if path.suffix == ".csv":
        text: Iterable[str] = exporters.points_csv(runs)
    else:
        report = report_of(store, runs, a)
        text = [_page(report) if path.suffix == ".html" else report.to_json()]
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.writelines(text)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written: {error.strerror}.", fix="Choose another file with -o.") from None


# --- import -------------------------------------------------------------------------------------------------------------


def import_command(a: argparse.Namespace) -> int:
    """Import all files, or none.

    Raises:
        StoreError: A file cannot be imported.
    """
    client = Client(common.store_of(a))
    try:
        found = client.import_files([Path(file) for file in a.files], curve=_curve(a))
    except StoreError as error:  # its fix also fits the page, so it names no options
        if not error.fix.startswith("Choose") or not any(sharing.is_table(file) for file in a.files):
            raise
        raise StoreError(error.message, fix=f"{error.fix} {_CHOOSE_WITH}") from None
    if a.json:
        print(
            json_text(
                {
                    "run_ids": found.run_ids,
                    "group_ids": found.group_ids,
                    "report_ids": found.report_ids,
                    "warnings": found.warnings,
                }
            )
        )
        return common.OK
    for run_id in found.run_ids:
        run = client.store.run(run_id, keep_points=1)
        print(f"{run_id}  {run.status:<11}  {visible(run.name, 60)}  {sharing.run_in_words(run)}")
    for group_id in found.group_ids:
        print(f"group {group_id}: its runs were submitted together")
    for warning in found.warnings:
        print(f"  ! {visible(warning)}")
    print("Imported, unverified: Isoflop cannot check the numbers in a file.")
    return common.OK


def _curve(a: argparse.Namespace) -> CurveChoices:
    columns = {}
    for text in a.column:
        role, equals, header = text.partition("=")
        if not equals:
            raise ConfigError(f'--column {text} has no "=".', fix="Write it as loss=HEADER.")
        columns[role.strip()] = header.strip()
    if a.preset not in PRESETS:
        preset_config(a.preset)  # raises ConfigError, which lists the presets
    return CurveChoices(
        name=a.name,
        columns=columns,
        seconds_in=a.seconds_in,
        seconds_are=a.seconds_are,
        percent=a.percent,
        config=with_overrides(preset_config(a.preset), a.set),
    )


def reports_command(a: argparse.Namespace) -> int:
    """List imported reports, newest first."""
    found = sharing.saved_reports(common.store_of(a))
    if a.json:
        print(json_text({"reports": [report.model_dump(exclude={"conclusions"}) for report in found]}))
        return common.OK
    if not found:
        print("No reports yet. Import one: python -m engine import FILE")
    for report in found:
        print(
            f"{report.report_id}  {units.date(report.origin.at)}  {len(report.run_ids)} runs  {visible(report.title, 80)}"
        )
        if report.notes:
            print(f"  {visible(report.notes, 200)}")
        for conclusion in report.conclusions:
            print("  " + "\n  ".join(race_verdicts.table(conclusion.outcome)))
    return common.OK
