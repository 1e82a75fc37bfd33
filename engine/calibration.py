"""What calibrate runs of a store say: read from their folders, nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine import units
from engine.config import RunConfig
from engine.errors import StoreError
from engine.records import Calibration, Measurement
from engine.store import Run, Store

OLD_S = 30 * 86_400.0
BUSY = 1.2  # wall time over CPU time of one thread: above it somebody else wanted the core
_MOST_READ = 20  # calibrations that are opened to find one
_ABOUT_SAME = 1.05  # more threads are worth it from here
SMALL = (64, 784, 128)  # the product that stands for small nets


@dataclass(frozen=True, slots=True)
class Found:
    """A calibration and the run that made it."""

    run_id: str
    calibration: Calibration


def latest(store: Store, device: str, device_name: str | None) -> Found | None:
    """The newest finished calibration of this device, by place and name; None where there is none, or no name is known."""
    if not device_name:
        return None
    for run in _runs(store):
        made = run.calibration
        if made and run.status == "finished" and (made.device, made.device_name) == (device, device_name):
            return Found(run.run_id, made)
    return None


def _runs(store: Store) -> Sequence[Run]:
    """Runs that calibrated, newest first."""
    lines = store.listing(search="calibration of this machine", status=("finished",), limit=_MOST_READ).lines
    runs = []
    for line in lines:
        try:
            run = store.run(line.run_id, keep_points=1)
        except StoreError:  # deleted meanwhile
            continue
        if run.config.task == "calibrate" and not run.imported:  # another machine says nothing of this one
            runs.append(run)
    return runs


def of_run(run: Run) -> tuple[str, str | None]:
    """Device and device name of a run, as `latest` asks for them; no name of a run of another machine, alike as it may be."""
    if run.imported:
        return run.config.device, None
    name = run.started.environment.get("device") if run.started else None
    return run.config.device, str(name) if name else None


def idle_w(store: Store, run: Run) -> float | None:
    """What the run's device draws when nothing runs, by the newest calibration of it that could measure that; W."""
    found = latest(store, *of_run(run))
    idle = [m.median for m in found.calibration.measurements if m.name == "idle_power"] if found else []
    return idle[0] if idle else None


# --- what it comes to ---------------------------------------------------------------------------------------------


def products(calibration: Calibration, dtype: str, threads: int, name: str = "gemm") -> list[Measurement]:
    return [m for m in calibration.measurements if (m.name, m.dtype, m.threads) == (name, dtype, threads)]


def peak(calibration: Calibration, dtype: str, threads: int) -> Measurement | None:
    """The fastest product of a dtype and thread count, by the 5th percentile of its times."""
    return max(products(calibration, dtype, threads), key=lambda m: m.p05, default=None)


def peaks(calibration: Calibration, threads: int) -> Mapping[str, Measurement]:
    """The fastest product of each dtype that was measured, fastest dtype first."""
    found = {
        m.dtype: best for m in calibration.measurements if m.dtype and (best := peak(calibration, m.dtype, threads))
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].p05))


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes read and written per second; what fits in `fits_bytes` is served by the cache."""

    cache: Measurement
    memory: Measurement
    fits_bytes: int

    def of(self, working_set_bytes: float) -> Measurement:
        return self.cache if working_set_bytes <= self.fits_bytes else self.memory


def bandwidth(calibration: Calibration, threads: int) -> Bandwidth | None:
    """In cache and in memory: the fastest working set, and the largest.

    A working set counts as cached up to the largest that ran above the geometric mean of the two.
    """
    found = [m for m in calibration.measurements if m.name in {"copy", "triad"} and m.threads == threads and m.shape]
    if not found:
        return None
    largest = max(m.shape[0] for m in found)
    memory = max((m for m in found if m.shape[0] == largest), key=lambda m: m.p05)
    cache = max(found, key=lambda m: m.p05)
    middle = math.sqrt(cache.p05 * memory.p05)
    fits = max((m.shape[0] for m in found if m.p05 >= middle and m.shape[0] < largest), default=0)
    return Bandwidth(cache, memory, fits)


def first(calibration: Calibration, *names: str) -> Measurement | None:
    return next((m for m in calibration.measurements if m.name in names), None)


def threads_of(config: RunConfig) -> int:
    """The thread count a run's figures are compared at: on a GPU there is one."""
    return config.threads if config.device == "cpu" else 1


def best_threads(calibration: Calibration) -> tuple[int | None, int | None]:
    """The fewest threads within 5 % of the fastest: for the product of a small net, and for the largest products."""
    small = {m.threads: m.p05 for m in calibration.measurements if m.name == "thin_gemm" and m.shape == SMALL}
    large = {n: found.p05 for n in calibration.threads if (found := peak(calibration, "fp32", n))}
    return _fewest(small), _fewest(large)


def _fewest(rates: Mapping[int, float]) -> int | None:
    return next((n for n in sorted(rates) if rates[n] * _ABOUT_SAME >= max(rates.values())), None)


# --- in words -----------------------------------------------------------------------------------------------------


def doubts(calibration: Calibration, *, now: float, versions: Mapping[str, str | None] | None = None) -> list[str]:
    """Why one may want to calibrate again; `versions` are those of now."""
    found = []
    if now - calibration.at > OLD_S:
        found.append(f"It was made {units.age(now - calibration.at)}: drivers, cooling and neighbours change.")
    for name, was in calibration.versions.items():
        if versions is not None and name in versions and versions[name] != was:
            found.append(f"It was made with {name} {was}, and here is {versions[name]}.")
    if calibration.wall_per_cpu is not None and calibration.wall_per_cpu > BUSY:
        found.append(
            f"The machine was busy: a call took {calibration.wall_per_cpu:.2f} times its CPU time. The 5th percentile of products "
            "holds up against that; memory is shared, and may read low."
        )
    if calibration.others_on_gpu:
        found.append(f"{calibration.others_on_gpu} other programs computed on the GPU meanwhile.")
    elif calibration.others_reason:
        found.append(calibration.others_reason)
    return found


def spread_in_words(measurement: Measurement) -> str:
    if measurement.spread is None:
        return f"{measurement.calls:,} timings"
    return f"{measurement.calls:,} timings, rounds within {units.percent(measurement.spread)}"


def value_in_words(measurement: Measurement, value: float | None = None) -> str:
    shown = measurement.p05 if value is None else value
    match measurement.unit:
        case "flops_per_s":
            return (
                units.flops_per_s(shown)
                if measurement.dtype != "int8"
                else units.flops_per_s(shown).replace("FLOP", "OP")
            )
        case "bytes_per_s":
            return units.bytes_per_s(shown)
        case "s":
            return units.duration(shown)
        case "w":
            return units.power(shown)


def facts(calibration: Calibration) -> list[tuple[str, str, str]]:
    """Title, value and how it was had, of what one wants to know first; one row for all that is missing comes apart."""
    rows: list[tuple[str, str, str]] = []
    for n in calibration.threads if calibration.device == "cpu" else (1,):
        at = f" at {n} thread{'' if n == 1 else 's'}" if calibration.device == "cpu" else ""
        for dtype, best in peaks(calibration, n).items():
            size = "x".join(map(str, best.shape))
            rows.append(
                (
                    f"{dtype} products{at}",
                    value_in_words(best),
                    _how(best, f"{size}, best {value_in_words(best, best.best)}"),
                )
            )
        if memory := bandwidth(calibration, n):
            for title, m in (("cache", memory.cache), ("memory", memory.memory)):
                rows.append(
                    (f"{title} bandwidth{at}", value_in_words(m), _how(m, f"{m.name} over {units.nbytes(m.shape[0])}"))
                )
    rows += [(_SINGLE[m.name], value_in_words(m), _how(m, "")) for m in calibration.measurements if m.name in _SINGLE]
    small, large = best_threads(calibration)
    if calibration.device == "cpu" and small and large and len(calibration.threads) > 1:
        words = f"{small} for small nets, {large} for large products"
        rows.append(("best threads", words, "derived: the fewest within 5 % of the fastest, of those measured"))
    return rows


_SINGLE = {
    "to_device": "host to device", "to_host": "device to host", "op": "an operation", "launch": "a kernel launch",
    "round_trip": "launch and wait", "recording": "recording a step", "idle_power": "idle power",
}  # fmt: skip


def single_title(measurement: Measurement) -> str | None:
    """What a quantity of which there is only one is called."""
    return _SINGLE.get(measurement.name)


def _how(measurement: Measurement, what: str) -> str:
    if measurement.unit == "w":
        return "measured: energy counter over an idle window"
    return "measured: " + ", ".join(part for part in (what, spread_in_words(measurement)) if part)


def missing_in_words(calibration: Calibration) -> list[str]:
    """Reasons, each with what it is the reason for."""
    names: dict[str, list[str]] = {}
    for name, reason in calibration.missing.items():
        names.setdefault(reason, []).append(name.replace("gemm ", "").replace("_", " "))
    return [f"{', '.join(what)}: {reason}" for reason, what in names.items()]


def predicted_seconds(threads: int) -> float:
    """How long a calibration takes, about: its timed calls, and buffers and warm-up between them."""
    return 24.0 + 0.5 * threads
