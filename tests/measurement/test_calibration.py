"""What is read from calibrations: the latest one of a device, reasons for doubt, peaks, and their card."""

from __future__ import annotations

import time

from engine.cli import main as cli
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.machine import Measurement
from engine.hardware import datasheets
from engine.measurement import calibration, cost
from tests.fakes import make_run
from tests.measurement.fake_calibration import fake, gemm, kept


def test_the_newest_finished_calibration_of_this_very_device_is_found(store):
    kept(store, fake(at=1.0))
    newest = kept(store, fake(at=2.0))
    kept(store, fake(at=3.0), status="cancelled")
    kept(store, fake(at=4.0, device_name="Another CPU"))
    found = calibration.latest(store, "cpu", "AMD EPYC 9575F")
    assert (found.run_id, found.calibration.at) == (newest, 2.0)
    assert calibration.latest(store, "cuda:0", "AMD EPYC 9575F") is None
    assert calibration.latest(store, "cpu", None) is None


def test_calibrating_again_does_not_change_the_mfu_of_a_run(store):
    kept(store, fake(device_name="Another CPU"))
    before = kept(store, fake())
    run = make_run(store)
    kept(store, fake(gemm(rate=900e9)))
    assert cost.judged_by(store, run).run_id == before
    assert cost.mfu(run.config, 45e9, cost.judged_by(store, run)).peak_from.startswith(f"calibration {before} of ")


def test_a_run_from_before_all_calibrations_keeps_the_first_that_gives_an_mfu(store):
    run = make_run(store, with_overrides(RunConfig(), ["threads=2"]))
    kept(store, fake(threads=(1,)))
    first = kept(store, fake())
    kept(store, fake(gemm(threads=2, rate=900e9)))
    assert cost.judged_by(store, run).run_id == first


def test_a_run_is_compared_with_the_calibration_that_it_recorded(store):
    older, newer = kept(store, fake()), kept(store, fake(gemm(rate=900e9)))
    run = make_run(store)
    assert cost.judged_by(store, run).run_id == newer
    run.started.environment[calibration.RECORDED_AS] = older
    assert cost.judged_by(store, run).run_id == older


def test_idle_power_is_that_of_the_runs_own_calibration(store):
    idle = Measurement(name="idle_power", unit="w", p05=20, best=20, median=20, calls=1)
    kept(store, fake(idle))
    run = make_run(store)
    kept(store, fake(idle.model_copy(update={"median": 99.0})))
    assert calibration.idle_w(store, run) == 20


def test_a_run_that_is_only_called_so_is_no_calibration(store):
    make_run(store, name="calibration of this machine")
    assert calibration.latest(store, "cpu", "AMD EPYC 9575F") is None


def test_a_calibration_is_doubted_when_old_busy_or_of_other_versions():
    now = time.time()
    assert calibration.doubts(fake(), now=now, versions={"torch": "2.13.0"}) == []
    doubts = calibration.doubts(fake(at=now - 31 * 86_400, wall_per_cpu=1.6), now=now, versions={"torch": "2.14.0"})
    assert [d.split(":")[0].split(";")[0] for d in doubts] == [
        "It was made 31 days ago", "It was made with torch 2.13.0", "The machine was busy",
    ]  # fmt: skip


def test_on_a_busy_machine_only_one_thread_is_vouched_for():
    busy = fake(gemm(threads=4, slowdown=None), threads=(1, 4), wall_per_cpu=1.6)
    assert calibration.peak(busy, "fp32", 1).p05 == 90e9 and calibration.peak(busy, "fp32", 4) is None
    assert calibration.best_threads(busy)[1] is None
    assert (
        "fp32 at 4 threads: Not known, because other programs used the cores" in calibration.missing_in_words(busy)[0]
    )
    waited = fake(gemm(threads=4, rate=300e9), threads=(1, 4), wall_per_cpu=1.6)  # its threads did not wait
    assert calibration.peak(waited, "fp32", 4).p05 == 300e9
    quiet = fake(gemm(threads=4, slowdown=None), threads=(1, 4))
    assert calibration.peak(quiet, "fp32", 4) and "not known whether" in calibration.doubts(quiet, now=quiet.at)[0]


def test_the_fewest_threads_that_are_about_as_fast_are_the_best():
    small = [
        Measurement(
            name="thin_gemm", unit="flops_per_s", dtype="fp32", shape=calibration.SMALL, threads=n, p05=rate, best=rate,
            median=rate, calls=9, slowdown=1.0,
        )
        for n, rate in ((1, 80e9), (2, 82e9))
    ]  # fmt: skip
    assert calibration.best_threads(fake(*small)) == (1, 2)


def test_what_fits_in_the_cache_is_served_by_it():
    found = calibration.bandwidth(fake(), 1)
    assert (found.fits_bytes, found.of(2**20).p05, found.of(2**26).p05) == (2**24, 60e9, 18e9)


def test_a_device_is_known_by_its_exact_name_or_not_at_all():
    assert datasheets.vendor_peak("NVIDIA H100 80GB HBM3").flops_per_s["bf16"] == 989.4e12
    assert datasheets.vendor_peak("NVIDIA H100 PCIe").flops_per_s["bf16"] == 756e12
    for unknown in ("NVIDIA H200", "NVIDIA H100", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "H100", "AMD EPYC", ""):
        assert datasheets.vendor_peak(unknown) is None


def test_every_data_sheet_figure_is_dense_and_has_a_source():
    assert len({p.device_name for p in datasheets.PEAKS}) == len(datasheets.PEAKS)
    for p in datasheets.PEAKS:
        assert p.dense and p.source.name and p.source.url.startswith("https://")
        assert set(p.flops_per_s) <= {"fp32", "tf32", "bf16", "fp16", "int8"}
        assert p.flops_per_s.get("bf16", p.flops_per_s["fp16"]) == p.flops_per_s["fp16"]


def test_turing_has_no_bf16():
    assert "bf16" not in datasheets.vendor_peak("Tesla T4").flops_per_s


def test_the_card_of_a_calibration_says_how_each_figure_was_had(store, capsys):
    run_id = kept(store, fake(missing={"idle_power": "No counter."}))
    assert cli.main(["show", run_id, "--store", str(store.root)]) == 0
    card = capsys.readouterr().out
    assert "fp32 products at 2 threads" in card and "170 GFLOP/s" in card and "idle power: No counter." in card


def test_calibrating_a_device_that_is_not_there_is_a_usage_error(store, capsys):
    assert cli.main(["calibrate", "--device", "cuda:7", "--store", str(store.root)]) == cli.USAGE
    assert "cuda:7 is not on this machine" in capsys.readouterr().err
