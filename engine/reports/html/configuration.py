"""The configuration, the machine, and the commands that repeat the runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.common import units
from engine.config.base import Spec
from engine.config.run import RunConfig
from engine.config.tasks import Cell
from engine.reports.commands import reproduce
from engine.reports.frozen_run import ENVIRONMENT, ReportRun
from engine.reports.html.parts import Group, Head, PlacedRun, grouped, listed

_SEED = RunConfig.model_fields["seed"].title or "Seed"
_BASICS = {
    "model", "data", "optimizer", "name", "lr", "batch_size", "precision", "execution", "device", "threads", "seed",
    "evaluate_every",
}  # fmt: skip

_DATA = RunConfig.model_fields["data"].title or "data"
Row = tuple[str, list[str], str]  # title, a cell for each column, and "differs", "code" or nothing


def configuration(runs: Sequence[PlacedRun]) -> tuple[str, list[Head], list[Row], str]:
    """The configuration as a sentence, or one column head per configuration, the fields worth showing, and a remark.

    A field is worth showing if it is basic or not at its default in one of the configurations.
    """
    groups = grouped(runs)
    firsts = [group.first.run for group in groups]
    seeds = [", ".join(map(str, sorted(group.seeds))) for group in groups]
    settings = [list(_stated(run.config) if run.is_curve else _settings(run.config)) for run in firsts]
    values = [{title: text for _, title, text, _ in some} for some in settings]
    rows: list[Row] = []
    in_order = sorted((setting for some in settings for setting in some), key=lambda setting: setting[0])
    for title in dict.fromkeys(title for _, title, _, is_shown in in_order if is_shown):
        cells = (
            seeds
            if title == _SEED and not all(run.is_curve for run in firsts)
            else [known.get(title, units.UNKNOWN) for known in values]
        )
        rows.append((title, cells, "differs" if len(set(cells)) > 1 else ""))
    first = " of the first seed" if any(len(group.seeds) > 1 for group in groups) else ""
    if not all(run.is_curve for run in firsts):
        fingerprints = [units.UNKNOWN if run.is_curve else run.fingerprint for run in firsts]
        rows.append((f"Fingerprint{first}", fingerprints, "code"))
    if any(run.data_sha256 for run in firsts):
        rows.append(("SHA-256 of the data file", [run.data_sha256 or units.UNKNOWN for run in firsts], "code"))
    if len(groups) == 1:
        return firsts[0].about, [], rows, _remark(firsts)
    return "", [Head.of(group.label, group.first.place) for group in groups], rows, _remark(firsts)


def _remark(runs: Sequence[ReportRun]) -> str:
    known = "" if all(run.is_curve for run in runs) else "Every other field is at its default."
    unknown = (
        "Of an imported table, only what was stated at its import is known." if any(r.is_curve for r in runs) else ""
    )
    return f"{known} {unknown}".strip()


def _settings(config: RunConfig) -> Iterator[tuple[int, str, str, bool]]:
    """Each field: its position in the configuration, its title, its value as text, and whether it is worth showing."""
    for place, (name, field) in enumerate(RunConfig.model_fields.items()):
        value = getattr(config, name)
        if not isinstance(value, Spec):
            is_shown = name in _BASICS or value != field.default
            is_shown &= name not in config.task_facts.unused
            yield place, field.title or name, _in_words(value), is_shown
            continue
        for inner, part in type(value).model_fields.items():
            title = part.title or {"family": "Model"}.get(inner, inner.replace("_", " ").capitalize())
            title = f"Budget: {title.lower()}" if name == "budget" else title
            is_shown = name == "model" or inner in _BASICS or getattr(value, inner) != part.default
            is_shown |= name == "optimizer" and inner in config.optimizer.facts.knobs
            is_shown &= name != "target" or config.target.value is not None
            is_shown &= name not in config.task_facts.unused
            yield place, title, _in_words(getattr(value, inner)), is_shown


def _stated(config: RunConfig) -> Iterator[tuple[int, str, str, bool]]:
    """As `_settings`: the data set, and the fields that the person who imported a curve changed."""
    usual = RunConfig()
    for place, title, text, _ in _settings(config):
        if title == _DATA or (place, title, text) not in {row[:3] for row in _settings(usual)}:
            yield place, title, text, True


def _in_words(value: object) -> str:
    if isinstance(value, Cell):
        return f"{value.batch_size} x {value.threads} {value.precision} {value.runtime}"
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(_in_words, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


Facts = tuple[tuple[str, str], ...]  # title and text of each


def machines(runs: Sequence[PlacedRun]) -> list[tuple[str, Facts]]:
    """Each different machine once, with the labels of its runs, or "" if all runs share one machine."""
    found: dict[Facts, list[str]] = {}
    for run in runs:
        found.setdefault(_facts(run.run), []).append(run.label)
    return [(listed(labels, len(runs)) if len(found) > 1 else "", facts) for facts, labels in found.items()]


def _facts(run: ReportRun) -> Facts:
    known = {key: value for key, value in run.environment.items() if value is not None}
    if known.get("cpu") == known.get("device"):
        known.pop("cpu", None)  # the device names it already
    facts = [
        (title, value if isinstance(value := known[key], str) else write(value))  # an imported file can hold a text
        for key, (title, write) in ENVIRONMENT.items()
        if key in known
    ]
    if run.missing_readings:
        facts.append(
            ("Not available here", " ".join(sorted({f"{why.rstrip('.')}." for why in run.missing_readings.values()})))
        )
    return tuple(facts) or (("Unknown", "the table does not say" if run.is_curve else "the run did not start"),)


def commands(runs: Sequence[PlacedRun]) -> list[tuple[str, str]]:
    """Each different shell command once, with the labels of the runs it repeats, or "" if it repeats all.

    For runs that differ only in the seed it names the first seed. An imported curve has no command.
    """
    groups = [g for g in grouped(runs) if g.first.run.imported is None or g.first.run.imported.form != "curve"]
    found: dict[str, list[str]] = {}
    for group in groups:
        found.setdefault(reproduce(group.first.run.config), []).append(f"{group.label}{_other_seeds(group)}")
    is_named = len(found) > 1 or len(groups) < len(runs)
    return [(", ".join(labels) if is_named else "", text) for text, labels in found.items()]


def _other_seeds(group: Group) -> str:
    seed = group.first.run.config.seed
    others = ", ".join(str(other) for other in group.seeds if other != seed)
    return f" (seed {seed}; the others: seed={others})" if len(group.seeds) > 1 else ""
