"""Filters on any field, fields as columns, groups and labels in the list of runs."""

from __future__ import annotations

import pytest

from engine.common.errors import ConfigError, StoreError
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.runtime.client import Client
from engine.runtime.supervisor import Supervisor
from engine.store import query
from engine.store.index import Index
from engine.store.store import Store
from tests.fakes import make_run

BASE = PRESETS["digits-mlp"].config


@pytest.fixture
def many(store) -> Store:
    for seed, assignments in enumerate(
        (
            ["optimizer.name=adam", "optimizer.lr=0.001", "batch_size=64"],
            ["optimizer.name=adam", "optimizer.lr=0.01", "batch_size=128"],
            ["optimizer.name=sgd", "optimizer.lr=0.1", "batch_size=full"],
            ["optimizer.name=sgd", "optimizer.lr=0.1", "batch_size=32", "model.hidden=[128,64]"],
        )
    ):
        make_run(store, with_overrides(BASE, [*assignments, f"seed={seed}"]), name=f"run {seed}")
    return store


def seeds(store: Store, text: str) -> list[int | None]:
    found = store.listing(where=query.parse(text), order="created", descending=False)
    assert found.total == len(found.lines)
    return sorted(line.seed for line in found.lines)


ASKED = [
    ("", [0, 1, 2, 3]),
    ("optimizer.name = adam", [0, 1]),
    ("optimizer.name = ADAM, batch_size > 64", [1]),
    ("optimizer.name = adam and batch_size >= 64 and optimizer.lr < 0.005", [0]),
    ("batch_size > 1", [0, 1, 3]),  # 'full' is no number
    ("batch_size = full", [2]),
    ("optimizer.name != adam", [2, 3]),
    ("model.hidden = [128, 64]", [3]),
    ('name = "run 2"', [2]),
    ("name ~ UN", [0, 1, 2, 3]),
    ("optimizer.lr = 1e-1", [2, 3]),
    ("group = none", [0, 1, 2, 3]),
    ("imported != none", []),
    ("steps > 1e9", []),
]


@pytest.mark.parametrize(("text", "found"), ASKED)
@pytest.mark.parametrize("indexed", [True, False])
def test_runs_are_found_by_any_field_with_and_without_an_index(many, text, found, indexed):
    if indexed:
        into_the_index(many)
    assert seeds(many, text) == found


def into_the_index(store: Store) -> None:
    index = Index(store.root)
    for row in store.rows():
        index.put(row)
    index.close()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lr = 1", "optimizer.lr"),
        ("optimizer.nmae = adam", "optimizer.name"),
        ("optimizer.lr", "is not a condition"),
        ("batch_size > many", "is not a number"),
        ("'; drop table runs; --' = 1", "is not a condition"),
        (", ".join(["seed = 1"] * 21), "21 conditions"),
        ("seed = 1" + " " * 600, "608 characters"),
    ],
)
def test_an_invalid_filter_is_explained_in_one_sentence(text, why):
    with pytest.raises(ConfigError, match=why):
        query.parse(text)


def test_every_field_of_a_configuration_and_every_figure_can_be_shown_and_sorted_by(many):
    into_the_index(many)
    values = many.values(query.FIELDS)
    assert len(values) == 4 and all(len(row) == len(query.FIELDS) for row in values.values())
    lr = query.FIELDS.index("optimizer.lr")
    assert sorted(row[lr] for row in values.values()) == [0.001, 0.01, 0.1, 0.1]
    for figure in query.FIGURES:
        assert len(many.listing(order=figure).lines) == 4


def test_a_nan_value_comes_last_in_every_order(store):
    make_run(store, BASE, diverges_at=9)
    make_run(store, BASE)
    into_the_index(store)
    assert [value for (value,) in store.values(["final_train_loss"]).values()].count(None) == 1
    assert store.listing(order="test_loss", descending=True).lines[-1].status == "failed"


def test_labels_can_be_searched_and_survive_a_rebuild(store):
    run_id = make_run(store, BASE, name="first").run_id
    make_run(store, BASE, name="second")
    client = Client(store)
    supervisor = Supervisor(store, None)  # type: ignore[arg-type]
    client._send = lambda command: store.post(__import__("json").dumps(command))  # type: ignore[method-assign]
    client.label(run_id, tags=["paper", " draft "], notes="the one\nof figure 2", pinned=True)
    client.rename(run_id, "renamed")
    supervisor.recover()
    supervisor.tick()
    labels = store.run(run_id).labels
    assert (labels.name, labels.tags, labels.notes, labels.pinned) == (
        "renamed",
        ("paper", "draft"),
        "the one\nof figure 2",
        True,
    )
    assert [line.name for line in store.listing(pinned_first=True).lines] == ["renamed", "second"]
    for text in ("tag = Draft", "tag ~ pap", "pinned = yes"):
        assert [line.tags for line in store.listing(where=query.parse(text)).lines] == [("paper", "draft")], text
    assert store.listing(search="figure").total == 1
    supervisor.index.rebuild()
    assert store.rows()[1].pinned and store.rows()[1].notes == labels.notes
    supervisor.index.close()


@pytest.mark.parametrize("tags", [["x" * 41], ["a,b"], ["\u202e"], [str(i) for i in range(21)]])
def test_an_invalid_tag_is_refused(store, tags):
    with pytest.raises(ConfigError):
        Client(store).label(make_run(store, BASE).run_id, tags=tags)


def test_a_deleted_run_can_be_restored_until_undo_s_have_passed(store, monkeypatch):
    run = make_run(store, BASE, name="precious")
    supervisor = Supervisor(store, None)  # type: ignore[arg-type]
    supervisor.recover()
    supervisor._delete(run.run_id, undo=True)
    assert store.ids() == [] and store.rows() == [] and not supervisor.is_idle
    supervisor.tick()
    supervisor._restore(run.run_id)
    assert store.run(run.run_id).steps["loss"].tolist() == run.steps["loss"].tolist()
    assert [row.name for row in store.rows()] == ["precious"]
    monkeypatch.setattr("engine.runtime.supervisor.UNDO_S", 0.0)
    supervisor._delete(run.run_id, undo=True)
    supervisor.tick()
    assert not list(store.runs.iterdir()) and supervisor.is_idle
    with pytest.raises(StoreError, match="deleted for good"):
        supervisor._restore(run.run_id)
    supervisor.index.close()


def test_runs_submitted_together_are_one_group(store):
    for seed in (0, 1):
        for name, lr in (("slow", 0.01), ("fast", 0.1)):
            config = with_overrides(BASE, [f"seed={seed}", f"optimizer.lr={lr}"])
            make_run(store, config, name=name, group="0123456789abcdef")
    make_run(store, BASE)
    for _ in range(2):  # without an index, and with one
        (group,) = store.groups()
        assert (group.num_runs, group.num_lanes, group.num_alive, group.most_ranks) == (4, 2, 0, 1)
        assert sorted(group.lanes) == ["fast", "slow"]
        into_the_index(store)
