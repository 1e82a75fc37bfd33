"""The summary of a study: sums over its trials where the trials record them, otherwise unknown, never 0."""

from __future__ import annotations

import pytest

from engine.config.inference import infer_config, infer_matrix
from engine.config.presets import preset_config
from engine.config.tasks import TASKS, Landscape
from engine.events.imported import Imported, Origin
from engine.events.studies import Trial
from engine.events.summary import Summary, Work
from engine.measurement import provenance
from engine.store import migrations
from engine.store.index import Index
from engine.store.listing import line_of, row_of
from tests.fakes import make_run
from tests.studies.test_inference import latency

STUDIES = [task for task, facts in TASKS.items() if not facts.trains_one_model]
COUNTED = ("steps", "samples", "epochs", "train_seconds", "samples_per_s", "flops")


def inferred(store, batch_sizes, *more):
    config = infer_matrix(infer_config(preset_config("lenet"), "0123456789abcdef"), batch_sizes)
    return make_run(store, config, num_steps=0, said=[*more, *(latency(cell, 1e-4) for cell in config.cells)])


@pytest.mark.parametrize("task", STUDIES)
def test_a_study_that_counts_nothing_says_unknown(store, task):
    config = preset_config("digits-mlp").model_copy(update={"task": task, "landscape": Landscape(runs=["0" * 16])})
    run = make_run(store, config, num_steps=0)
    row = row_of(run)
    assert [getattr(row.summary, name) for name in COUNTED] == [None] * len(COUNTED)
    assert (line_of(row).steps, line_of(row).train_seconds) == (None, None)


def trial(steps, *, made=True):
    counted = {"steps_made": steps, "samples_made": 8 * steps} if made else {}
    return Trial(
        batch_size=8, lr=0.1, seed=0, tuning=False, reached=False, max_steps=steps, step_s=0.5, last_loss=1.0, **counted
    )  # fmt: skip


def test_a_batch_law_counts_the_work_of_all_its_trials_or_none(store):
    config = preset_config("digits-law")
    counted = make_run(store, config, num_steps=0, said=[trial(10), trial(30)]).summary()
    assert (counted.steps, counted.samples, counted.train_seconds, counted.samples_per_s) == (40, 320, 20.0, None)
    assert counted.flops == 320 * make_run(store, config, num_steps=0).started.train_flops_per_example
    older = make_run(store, config, num_steps=0, said=[trial(10), trial(30, made=False)]).summary()
    assert (older.steps, older.samples, older.train_seconds, older.flops) == (None,) * 4


def test_inference_counts_the_samples_of_all_combinations_and_has_one_rate_only_for_one(store):
    several, one = inferred(store, (1, 8)), inferred(store, (8,))
    answered = [found.requests * found.cell.batch_size for found in several.latencies]
    assert several.summary().samples == sum(answered) > max(answered)
    assert several.summary().samples_per_s is None
    assert one.summary().samples_per_s == one.latencies[0].samples_per_s
    trained = ("steps", "epochs", "train_seconds", "flops")
    assert [getattr(one.summary(), name) for name in trained] == [None] * 4
    figures = [provenance.of_run(run)["samples_per_s"] for run in (several, one)]
    assert figures[0].in_words() == "Not available: several combinations have no common rate."
    assert figures[1].value == one.summary().samples_per_s
    assert provenance.of_run(one)["train_seconds"].in_words() == "Not available: inference trains no model."


def test_a_sum_is_unknown_if_one_trial_is():
    known, unknown = Work(10, 640, 0.5), Work(10, None, 0.25)
    assert Work.total([known, unknown]) == Work(20, None, 0.75)
    assert Work.total([]) == Work()


def test_zeros_of_an_early_report_of_a_study_are_not_taken(store):
    origin = Origin(form="report", at=1.0, from_run_id="0" * 16)
    early = Summary(steps=0, samples=0, train_seconds=0.0, flops=0, samples_per_s=5.0, test_accuracy=0.98)
    said = Imported(origin=origin, recorded_steps=0, frozen={"summary": early.model_dump()})
    s = inferred(store, (1, 8), said).summary()
    assert (s.steps, s.flops, s.samples_per_s, s.test_accuracy) == (None, None, None, 0.98)
    assert s.samples > 0


def test_the_index_forgets_the_zeros_of_studies(store):
    study, training = inferred(store, (1,)), make_run(store, num_steps=20)
    index = Index(store.root)
    for run in (study, training):
        index.put(row_of(run))
    index._db.execute("update runs set steps = 0 where run_id = ?", (study.run_id,))
    index._db.execute("pragma user_version=6")
    index.close()
    index = Index(store.root)
    assert index.version == len(migrations.MIGRATIONS)
    assert index.ids() == {training.run_id}  # the supervisor reads the study again
    index.close()
