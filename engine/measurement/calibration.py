"""Reads the calibrations of a store: peaks, bandwidth, overheads, and reasons for doubt. Nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from engine.common import units
from engine.common.errors import StoreError
from engine.config.run import RunConfig
from engine.events.machine import Calibration, Measurement
from engine.store import query
from engine.store.listing import RunLine
from engine.store.run import Run
from engine.store.store import Store

OLD_S = 30 * 86_400.0
BUSY = 1.2  # wall time / CPU time of one thread; above it, another program used the core
NOT_QUIET = "Not known, because other programs used the cores. Calibrate again when the machine is quiet."
_MOST_READ = 20  # calibrations that are opened, at most, to find one
_MOST_LISTED = 1_000
_ABOUT_SAME = 1.05  # ratio of rates from which more threads count as faster
NOT_KNOWN = "not known"
COPIES = frozenset({"copy", "triad"})
DTYPES = ("fp32", "tf32", "bf16", "fp16", "int8")
SMALL = (64, 784, 128)  # M, K, N of the matrix product that represents small networks


@dataclass(frozen=True, slots=True)
class LatestCalibration:
    """A calibration and the run that made it."""

    run_id: str
    calibration: Calibration


def latest(store: Store, device: str, device_name: str | None) -> LatestCalibration | None:
    """The newest finished calibration of a device, by its key ("cpu", "cuda:0") and name; None where there is none."""
    if not device_name:
        return None
    found = (_opened(store, line.run_id, device, device_name) for line in _lines(store, _MOST_READ))
    return next(filter(None, found), None)


def _lines(store: Store, limit: int) -> Sequence[RunLine]:
    """The runs that calibrated, newest first."""
    return store.listing(where=query.parse("task = calibrate"), status=("finished",), limit=limit).lines


def _opened(store: Store, run_id: str, device: str, device_name: str) -> LatestCalibration | None:
    """The calibration that a run made; None if the run was deleted, or did not calibrate this device."""
    try:
        run = store.run(run_id, keep_points=1)
    except StoreError:
        return None
    made = run.latest(Calibration)
    if made is None or run.status != "finished" or run.config.task != "calibrate" or run.imported:
        return None  # an imported one is of another machine
    return LatestCalibration(run_id, made) if (made.device, made.device_name) == (device, device_name) else None


RECORDED_AS = "calibration"  # key in the environment of a run, with the id of the newest calibration at its start


def candidates(store: Store, run: Run) -> Iterator[LatestCalibration]:
    """The calibrations that a run can be compared with, the preferred one first.

    The preferred one is what the run recorded at its start. If it recorded none, it is the newest from before the run.
    Then come later ones, the oldest first. So another calibration does not change a figure that a run has.
    """
    device, name = of_run(run)
    if not name or run.started is None:
        return
    lines = _lines(store, _MOST_LISTED)
    recorded = run.started.environment.get(RECORDED_AS)
    before = [line.run_id for line in lines if line.created <= run.created]
    after = [line.run_id for line in reversed(lines) if line.created > run.created and line.run_id != recorded]
    ids = chain([str(recorded)] if recorded else (), before)
    opened = (found for run_id in ids if (found := _opened(store, run_id, device, name)))
    yield from islice(opened, 1)
    yield from (found for run_id in after[:_MOST_READ] if (found := _opened(store, run_id, device, name)))


def of_run(run: Run) -> tuple[str, str | None]:
    """Device and device name of a run, as arguments of `latest`. The name of an imported run is None: another machine."""
    if run.imported:
        return run.config.device, None
    name = run.started.environment.get("device") if run.started else None
    return run.config.device, str(name) if name else None


def idle_w(store: Store, run: Run) -> float | None:
    """Power of the run's device when nothing runs, W, from the first of its calibrations that measured it; None without."""
    idle = (first(found.calibration, "idle_power") for found in candidates(store, run))
    return next((m.median for m in idle if m), None)


# --- figures -----------------------------------------------------------------------------------------------------


def known(calibration: Calibration) -> list[Measurement]:
    """The measurements that hold.

    A figure of several threads holds on a busy machine only if its threads hardly waited for a core. Calibrations of
    older versions do not say whether they did.
    """
    return [m for m in calibration.measurements if _holds(m, calibration)]


def _holds(m: Measurement, calibration: Calibration) -> bool:
    if m.threads == 1:
        return True
    if m.slowdown is not None:
        return m.slowdown <= BUSY
    return calibration.wall_per_cpu is None or calibration.wall_per_cpu <= BUSY


def of_group(name: str, dtype: str | None, threads: int) -> str:
    """The name of measurements that differ only in their size, as in `Calibration.missing`."""
    words = f"{name} {dtype}" if "gemm" in name else "memory" if name in COPIES else name
    return words if threads == 1 else f"{words} at {threads} threads"


def why_missing(calibration: Calibration, name: str, dtype: str | None, threads: int) -> str:
    """Why a group of measurements is missing; empty where the calibration does not say."""
    missing = missing_of(calibration)
    return missing.get(of_group(name, dtype, threads)) or missing.get(of_group(name, dtype, 1), "")


def missing_of(calibration: Calibration) -> dict[str, str]:
    """The reason for each quantity that is not known."""
    disturbed = [m for m in calibration.measurements if not _holds(m, calibration)]
    return dict(calibration.missing) | {of_group(m.name, m.dtype, m.threads): NOT_QUIET for m in disturbed}


def products(calibration: Calibration, dtype: str, threads: int, name: str = "gemm") -> list[Measurement]:
    """The measured matrix products of a dtype and thread count."""
    return [m for m in known(calibration) if (m.name, m.dtype, m.threads) == (name, dtype, threads)]


def peak(calibration: Calibration, dtype: str, threads: int) -> Measurement | None:
    """The fastest matrix product of a dtype and thread count, by the 5th percentile of its times."""
    return max(products(calibration, dtype, threads), key=lambda m: m.p05, default=None)


def peaks(calibration: Calibration, threads: int) -> Mapping[str, Measurement]:
    """dtype -> its fastest matrix product, the fastest dtype first."""
    found = {m.dtype: best for m in known(calibration) if m.dtype and (best := peak(calibration, m.dtype, threads))}
    return dict(sorted(found.items(), key=lambda item: -item[1].p05))


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes read and written per second, in the cache and in memory. The cache holds up to `fits_bytes`."""

    cache: Measurement
    memory: Measurement
    fits_bytes: int

    def of(self, working_set_bytes: float) -> Measurement:
        """The bandwidth of a working set of this size."""
        return self.cache if working_set_bytes <= self.fits_bytes else self.memory


def bandwidth(calibration: Calibration, threads: int) -> Bandwidth | None:
    """The bandwidth of the fastest working set (cache) and of the largest one (memory); None where none was measured.

    A working set counts as cached up to the largest one that ran above the geometric mean of the two.
    """
    found = [m for m in known(calibration) if m.name in COPIES and m.threads == threads and m.shape]
    if not found:
        return None
    largest = max(m.shape[0] for m in found)
    memory = max((m for m in found if m.shape[0] == largest), key=lambda m: m.p05)
    cache = max(found, key=lambda m: m.p05)
    middle = math.sqrt(cache.p05 * memory.p05)
    fits = max((m.shape[0] for m in found if m.p05 >= middle and m.shape[0] < largest), default=0)
    return Bandwidth(cache, memory, fits)


def first(calibration: Calibration, *names: str) -> Measurement | None:
    """The first measurement with one of the names; None where there is none."""
    return next((m for m in calibration.measurements if m.name in names), None)


def threads_of(config: RunConfig) -> int:
    """The thread count of the measurements that a run is compared with; 1 on a GPU."""
    return config.threads if config.device == "cpu" else 1


def best_threads(calibration: Calibration) -> tuple[int | None, int | None]:
    """The fewest threads within 5 % of the fastest, for the matrix product of a small network and for the largest products.

    None where the speed at one of the calibration's thread counts is not known.
    """
    small = {m.threads: m.p05 for m in known(calibration) if m.name == "thin_gemm" and m.shape == SMALL}
    large = {n: found.p05 for n in calibration.threads if (found := peak(calibration, "fp32", n))}
    return _fewest(small, calibration.threads), _fewest(large, calibration.threads)


def _fewest(rates: Mapping[int, float], threads: Sequence[int]) -> int | None:
    if not rates.keys() >= set(threads):
        return None
    return next((n for n in sorted(rates) if rates[n] * _ABOUT_SAME >= max(rates.values())), None)


# --- in words -----------------------------------------------------------------------------------------------------


def doubts(calibration: Calibration, *, now: float, versions: Mapping[str, str | None] | None = None) -> list[str]:
    """Reasons to calibrate again. `now` is Unix time, s; `versions` are those installed now."""
    found = []
    if now - calibration.at > OLD_S:
        found.append(
            f"It was made {units.age(now - calibration.at)}: drivers, cooling and other programs can have changed since."
        )
    for name, was in calibration.versions.items():
        if versions is not None and name in versions and versions[name] != was:
            found.append(f"It was made with {name} {was}; {versions[name]} is installed now.")
    if calibration.wall_per_cpu is not None and calibration.wall_per_cpu > BUSY:
        found.append(
            f"The machine was busy: a call of one thread took {calibration.wall_per_cpu:.2f} times its CPU time. This hardly "
            "affects the matrix products of one thread, but the memory bandwidth can be too low. Figures of more threads "
            "are only given where the threads did not wait for a core."
        )
    if any(m.threads > 1 and m.slowdown is None for m in known(calibration)):
        found.append(
            "It is not known whether other programs disturbed the figures of more than one thread, because it was not "
            "recorded how long the threads waited for a core."
        )
    if calibration.others_on_gpu:
        found.append(f"{calibration.others_on_gpu} other programs used the GPU at the same time.")
    elif calibration.others_reason:
        found.append(calibration.others_reason)
    return found


def spread_in_words(measurement: Measurement) -> str:
    """The number of timings, and how far the rounds differ."""
    if measurement.spread is None:
        return f"{measurement.calls:,} timings"
    return f"{measurement.calls:,} timings, rounds differ by at most {units.percent(measurement.spread)}"


def value_in_words(measurement: Measurement, value: float | None = None) -> str:
    """The measurement, or another `value` of it, with its unit."""
    shown = measurement.p05 if value is None else value
    match measurement.unit:
        case "flops_per_s":
            text = units.flops_per_s(shown)
            return text.replace("FLOP", "OP") if measurement.dtype == "int8" else text
        case "bytes_per_s":
            return units.bytes_per_s(shown)
        case "s":
            return units.duration(shown)
        case "w":
            return units.power(shown)


def facts(calibration: Calibration) -> list[tuple[str, str, str]]:
    """Title, value and method of the main figures. `missing_in_words` has what could not be measured."""
    rows: list[tuple[str, str, str]] = []
    missing = missing_of(calibration)
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
        disturbed = [dtype for dtype in DTYPES if missing.get(of_group("gemm", dtype, n)) == NOT_QUIET]
        rows += [(f"{dtype} products{at}", NOT_KNOWN, "other programs used the cores") for dtype in disturbed]
        if memory := bandwidth(calibration, n):
            for title, m in (("cache", memory.cache), ("memory", memory.memory)):
                rows.append(
                    (f"{title} bandwidth{at}", value_in_words(m), _how(m, f"{m.name} over {units.nbytes(m.shape[0])}"))
                )
        elif missing.get(of_group("copy", None, n)) == NOT_QUIET:
            rows.append((f"memory bandwidth{at}", NOT_KNOWN, "other programs used the cores"))
    rows += [(_SINGLE[m.name], value_in_words(m), _how(m, "")) for m in calibration.measurements if m.name in _SINGLE]
    small, large = best_threads(calibration)
    if calibration.device == "cpu" and len(calibration.threads) > 1:
        words = f"{small or NOT_KNOWN} for small networks, {large or NOT_KNOWN} for large products"
        words = words if small or large else NOT_KNOWN
        rows.append(("best threads", words, "derived: the fewest measured threads within 5 % of the fastest"))
    return rows


_SINGLE = {
    "to_device": "host to device",
    "to_host": "device to host",
    "op": "an operation",
    "launch": "a kernel launch",
    "round_trip": "launch and wait",
    "recording": "recording a step",
    "idle_power": "idle power",
}


def single_title(measurement: Measurement) -> str | None:
    """The title of a quantity that is measured once; None for others."""
    return _SINGLE.get(measurement.name)


def _how(measurement: Measurement, what: str) -> str:
    if measurement.unit == "w":
        return "measured: energy counter over an idle window"
    return "measured: " + ", ".join(part for part in (what, spread_in_words(measurement)) if part)


def missing_in_words(calibration: Calibration) -> list[str]:
    """What could not be measured, with the reason; one line per reason."""
    names: dict[str, list[str]] = {}
    for name, reason in missing_of(calibration).items():
        names.setdefault(reason, []).append(name.replace("gemm ", "").replace("_", " "))
    return [f"{', '.join(what)}: {reason}" for reason, what in names.items()]


def predicted_seconds(threads: int) -> float:
    """About how long a calibration takes on a quiet machine, s: its timed calls, and buffers and warm-up between them."""
    return 24.0 + 0.5 * threads
