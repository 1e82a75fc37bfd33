"""Energy used by a run, from a hardware counter; None with a reason when there is none.

An estimate is made only when the user has set a power range in settings.toml. It is a range with its formula. It says that
it is not a measurement, and is never ranked with one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.access import settings
from engine.access.settings import Energy as Prices
from engine.common import units
from engine.events.base import BoundedStr
from engine.events.imported import Imported
from engine.hardware import probe
from engine.hardware.energy_counters import COUNTER_PERIOD_S
from engine.measurement import calibration
from engine.store.run import Run
from engine.store.store import Store

Source = Literal["nvml", "rapl", "estimate", "none"]
PERIODS = 10  # in a window of fewer periods of the counter, the joules are shown with their uncertainty
DIFFERS = 0.1  # the integral of sampled power is shown when it differs from the counter by more than this share
_J_PER_KWH = 3.6e6
NO_PRICES = Prices()
NO_IDLE = "no calibration of this machine has measured its idle power"


class Account(BaseModel):
    """The energy of one run. None is unknown; `method` says how the joules were measured, or why there are none."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    source: Source
    method: BoundedStr
    joules: float | None = None  # gross: from the run's start to its end, with evaluations
    window_s: float | None = None  # between the first and the last reading of the counter
    period_s: float | None = None  # between two updates of the counter
    uncertainty: float | None = None  # of the joules, as a share: each end of the window is known to one period
    sampled_j: float | None = None  # integral of the sampled power, where that is independent of the counter
    idle_w: float | None = None
    net_j: float | None = None  # joules above the idle device
    net_reason: BoundedStr = ""  # why that is unknown
    per_1000_samples_j: float | None = None
    to_target_j: float | None = None
    to_target_s: float | None = None  # from the run's start to the target
    low_j: float | None = None  # of an estimate, whose joules are None
    high_j: float | None = None
    money: float | None = None
    currency: str = Field("", max_length=8)
    price_per_kwh: float | None = None
    gco2: float | None = None
    gco2_per_kwh: float | None = None

    @property
    def is_measured(self) -> bool:
        """Whether a counter measured the joules."""
        return self.joules is not None

    @property
    def is_short(self) -> bool:
        """Whether the counter was updated so rarely that the joules are too uncertain to compare."""
        return _is_short(self.uncertainty)

    @property
    def to_target_uncertainty(self) -> float | None:
        """Uncertainty of `to_target_j`, as a share; larger than the run's, because the window is shorter."""
        return share_unknown(self.period_s, self.to_target_s)

    @property
    def differs(self) -> bool:
        """Whether counter and sampled power disagree; then both are shown."""
        if self.sampled_j is None or not self.joules:
            return False
        return abs(self.sampled_j - self.joules) > DIFFERS * self.joules


class Detail(NamedTuple):
    """A figure derived from a run's energy: its title, its value in words, and how it was computed."""

    title: str
    text: str
    how: str
    is_short: bool = False  # the window is too short for the counter: shown in grey, with its uncertainty


def share_unknown(period_s: float | None, window_s: float | None) -> float | None:
    """The share of a window's joules that is uncertain, 0 to 1: its ends are known to one period of the counter."""
    return min(1.0, period_s / window_s) if period_s and window_s else None


def _is_short(share: float | None) -> bool:
    return share is not None and share > 1 / PERIODS


def too_short(share: float | None) -> str:
    """A warning for an uncertainty above a tenth; empty below."""
    return f"Shorter than {PERIODS} periods of the counter, so not comparable" if _is_short(share) else ""


def with_doubt(text: str, share: float | None) -> str:
    """A figure, with its uncertainty where that is above a tenth."""
    return f"{text} ± {units.percent(share)}" if _is_short(share) else text


def doubt_to_target(run: Run, elapsed_s: float | None) -> float | None:
    """Uncertainty, as a share, of the joules that a run used in the first `elapsed_s` seconds."""
    last = run.last_word
    source = "rapl" if probe.gpu_index(run.config.device) is None else "nvml"
    return share_unknown((last.energy_period_s if last else None) or COUNTER_PERIOD_S[source], elapsed_s)


def in_store(store: Store, run: Run) -> Account:
    """The energy of a run, with the prices of its store and the idle power that a calibration there has measured."""
    counted = run.last_word is not None and run.last_word.energy_j is not None
    idle_w = calibration.idle_w(store, run) if counted else None
    return of_run(run, idle_w=idle_w, prices=settings.load(store.root).energy)


def of_run(run: Run, *, idle_w: float | None = None, prices: Prices = NO_PRICES) -> Account:
    """The energy of a run that is over; for a running run, `source` is "none".

    `idle_w` is the power of the same device when nothing runs, from a calibration of this machine.
    """
    if run.imported:  # from another machine, with other prices: take the values of its report
        return _as_imported(run.imported)
    with run.lock:
        last, summary = run.last_word, run.summary()
        if last is None:
            return Account(source="none", method="It is known when the run is over.")
        if summary.energy_j is None:
            return _estimated(run, last.energy_method, prices)
        joules, window_s, period_s = summary.energy_j, last.energy_window_s, last.energy_period_s
        source = last.energy_source or ("nvml" if probe.gpu_index(run.config.device) is not None else "rapl")
        account = Account(
            source=source,
            method=last.energy_method,
            joules=joules,
            window_s=window_s,
            period_s=period_s,
            uncertainty=share_unknown(period_s, window_s),
            sampled_j=_sampled(run, window_s) if source == "nvml" else None,
            idle_w=idle_w,
            net_j=joules - idle_w * window_s if idle_w is not None and window_s else None,
            net_reason=""
            if idle_w is not None and window_s
            else NO_IDLE
            if idle_w is None
            else "the window is not recorded",
            per_1000_samples_j=1_000 * joules / summary.samples if summary.steps and summary.samples else None,
            to_target_j=_to_target(run),
            to_target_s=run.target_reached.elapsed_s if run.target_reached else None,
        )
    return priced(account, prices)


def _as_imported(imported: Imported) -> Account:
    try:
        return Account.model_validate(imported.frozen.get("energy"))
    except ValidationError:
        return Account(source="none", method="The imported file has no energy.")


def priced(account: Account, prices: Prices) -> Account:
    """The account with money and CO2, by the user's price and factor. An estimate gets neither."""
    if account.joules is None:
        return account
    kwh = account.joules / _J_PER_KWH
    return account.model_copy(
        update={
            "price_per_kwh": prices.price_per_kwh,
            "currency": prices.currency,
            "money": None if prices.price_per_kwh is None else kwh * prices.price_per_kwh,
            "gco2_per_kwh": prices.gco2_per_kwh,
            "gco2": None if prices.gco2_per_kwh is None else kwh * prices.gco2_per_kwh,
        }
    )


def joules_at(run: Run, elapsed_s: np.ndarray) -> np.ndarray | None:
    """Joules (n,) that the run used until moments of its clock `elapsed_s` (n,), interpolated between samples.

    None where the run's energy was not sampled.
    """
    at, joules = run.hardware["elapsed"], run.hardware["energy_j"]
    known = np.isfinite(joules)
    if not known.any():
        return None
    times, counted = [0.0, *at[known].tolist()], [0.0, *joules[known].tolist()]
    last = run.last_word
    if last and last.energy_j is not None and last.energy_window_s is not None and last.energy_window_s > times[-1]:
        times, counted = [*times, last.energy_window_s], [*counted, last.energy_j]
    return np.interp(elapsed_s, times, counted)


def _to_target(run: Run) -> float | None:
    if run.target_reached is None:
        return None
    joules = joules_at(run, np.array([run.target_reached.elapsed_s]))
    return None if joules is None else float(joules[0])


def _sampled(run: Run, window_s: float | None) -> float | None:
    """Mean sampled power of the board (trapezoidal rule) times the counter's window, J."""
    at, power = run.hardware["elapsed"], run.hardware["gpu_power_w"]
    known = np.isfinite(power)
    at, power = at[known], power[known]
    if not len(at) or not window_s:
        return None
    if len(at) == 1 or at[-1] <= at[0]:
        return float(power[0]) * window_s
    return float(np.trapezoid(power, at) / (at[-1] - at[0])) * window_s


def _estimated(run: Run, reason: str, prices: Prices) -> Account:
    """A range from the user's power range and how busy the device was; no energy where one of them is missing."""
    unknown = Account(source="none", method=reason or "The energy of this run was not recorded.")
    if prices.tdp_w is None or run.heat is not None or run.started is None:
        return unknown
    seconds = run.hardware.last("elapsed")
    if probe.gpu_index(run.config.device) is not None:
        busy, what = run.hardware["gpu_utilization_percent"], "GPU utilization"
        shares = busy[np.isfinite(busy)] / 100
    else:
        cores = run.started.environment.get("physical_cores")
        used = run.hardware["process_cpu_percent"]
        shares = used[np.isfinite(used)] / 100 / cores if isinstance(cores, int) and cores > 0 else np.empty(0)
        what = "of the CPU's cores in use"
    if not seconds or not len(shares):
        return unknown
    low, high = prices.tdp_w
    share = min(1.0, float(shares.mean()))
    formula = f"{low:g} to {high:g} W (set in {settings.FILE}) x {units.percent(share, digits=1)} {what} x {units.duration(seconds)}"
    return Account(
        source="estimate",
        method=f"Not a measurement: {formula}. No counter: {unknown.method}",
        low_j=low * share * seconds,
        high_j=high * share * seconds,
    )


def in_words(account: Account) -> str:
    """The joules with their uncertainty, and the sampled ones where they differ; a dash where there are none."""
    if account.source == "estimate":
        return f"{units.energy(account.low_j)} to {units.energy(account.high_j)} (estimated)"
    if account.joules is None:
        return units.UNKNOWN
    words = with_doubt(units.energy(account.joules), account.uncertainty)
    if account.differs:
        words += f" (sampled power gives {units.energy(account.sampled_j)})"
    return words


def how_in_words(account: Account) -> str:
    """How the joules were measured, or why there are none."""
    if account.source == "none":
        return f"Not available here: {account.method}"
    if account.source == "estimate":
        return account.method
    words = [f"Measured ({account.source}): {account.method}. Gross: from the run's start to its end"]
    if account.window_s is not None and account.period_s:
        words.append(
            f"The window is {units.duration(account.window_s)}, and the counter is updated every {units.duration(account.period_s)}: "
            f"± {units.percent(account.uncertainty, digits=1)}"
        )
    if short := too_short(account.uncertainty):
        words.append(short)
    if account.net_j is not None:
        words.append(f"Above the idle device's {units.power(account.idle_w)}: {units.energy(account.net_j)} (derived)")
    else:
        words.append(f"The idle power is not subtracted: {account.net_reason}")
    return ". ".join(words) + "."


def details(account: Account) -> list[Detail]:
    """The figures derived from the joules."""
    rows: list[Detail] = []

    def row(title: str, text: str, how: str, share: float | None = account.uncertainty) -> None:
        rows.append(Detail(title, with_doubt(text, share), how, _is_short(share)))

    if account.per_1000_samples_j is not None:
        per_1000 = units.energy(account.per_1000_samples_j)
        row("Energy per 1,000 samples", per_1000, "derived: gross energy / samples seen")
    if account.to_target_j is not None:
        how = "derived: the counter where the target was reached, interpolated between samples"
        row("Energy to target", units.energy(account.to_target_j), how, account.to_target_uncertainty)
    if account.net_j is not None:
        share = (
            account.uncertainty and account.joules and account.uncertainty * account.joules / abs(account.net_j or 1)
        )
        how = f"derived: gross energy minus that of the idle device ({units.power(account.idle_w)})"
        row("Energy above idle", units.energy(account.net_j), how, share)
    if account.money is not None and account.price_per_kwh is not None:
        how = f"derived: your price of {account.price_per_kwh:g} {account.currency}".rstrip() + " per kWh"
        row("Price of the energy", f"{account.money:.3g} {account.currency}".rstrip(), how)
    if account.gco2 is not None and account.gco2_per_kwh is not None:
        row("CO2 of the energy", f"{account.gco2:.3g} g", f"derived: your {account.gco2_per_kwh:g} g per kWh")
    return rows


def hint(account: Account) -> str:
    """Where to set a price and the grid's CO2; empty where both are set, or there is no energy."""
    if account.joules is None or (account.money is not None and account.gco2 is not None):
        return ""
    return f"For price and CO2 of the energy, set price_per_kwh, currency and gco2_per_kwh under [energy] in the store's {settings.FILE}."
