"""What a run is: one value, its JSON, its fingerprint, its assignments, and the sentence when it is not allowed."""

from __future__ import annotations

import itertools

import pytest

from engine.config import (
    FULL,
    MLP,
    PRESETS,
    Optimizer,
    RunConfig,
    overrides_from,
    parse_config,
    parse_config_json,
    preset_config,
    with_overrides,
)
from engine.errors import ConfigError

CONFIGS = {name: preset.config for name, preset in PRESETS.items()}
BASE = CONFIGS["mnist-mlp"]


def refusal(*assignments: str, base: RunConfig = BASE) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        with_overrides(base, assignments)
    return refused.value


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_config_survives_its_json(config):
    assert parse_config_json(config.model_dump_json()) == config


def test_a_fingerprint_depends_on_every_field():
    changed = [
        "model.hidden=64", "model.family=cnn", "data=digits", "optimizer.name=sgd", "optimizer.lr=0.002",
        "optimizer.momentum=0.5", "batch_size=65", "budget.epochs=21", "budget.steps=9", "budget.seconds=9",
        "device=cuda:0", "threads=2", "seed=1", "evaluate_every=9",
    ]  # fmt: skip
    prints = {BASE.fingerprint} | {with_overrides(BASE, [change]).fingerprint for change in changed}
    assert len(prints) == len(changed) + 1


def test_a_fingerprint_is_the_same_on_every_machine_and_day():
    """Change the literal only together with a new field: reports and links of old runs quote it."""
    assert BASE.fingerprint == parse_config_json(BASE.model_dump_json()).fingerprint == "3b736d2dda18d6d9"


@pytest.mark.parametrize(("base", "config"), list(itertools.permutations(CONFIGS, 2)))
def test_overrides_lead_from_any_preset_to_any_other(base, config):
    assignments = overrides_from(CONFIGS[base], CONFIGS[config])
    assert with_overrides(CONFIGS[base], assignments) == CONFIGS[config]


def test_nothing_to_change_is_no_assignment():
    assert overrides_from(BASE, BASE) == []


@pytest.mark.parametrize(
    ("text", "hidden"), [("64", (64,)), ("[64]", (64,)), ("512,256", (512, 256)), ("[]", ()), ("", ())]
)
def test_hidden_layers_are_typed_as_one_likes(text, hidden):
    assert with_overrides(BASE, [f"model.hidden={text}"]).model.hidden == hidden


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "2000000000", "1e30", "nan", "inf", "true", "none", "foo", ""])
def test_a_batch_size_that_cannot_be_is_refused_with_what_can(value):
    sentence = str(refusal(f"batch_size={value}"))
    assert sentence.startswith("batch_size=")
    assert "a whole number from 1 to the number of training examples, or full" in sentence


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0", "-1", "10000000", "fast", "True"])
def test_a_learning_rate_that_cannot_be_is_refused_with_what_can(value):
    sentence = str(refusal(f"optimizer.lr={value}"))
    assert sentence == f"optimizer.lr={value} is not allowed. optimizer.lr may be a number above 0 to 1000000."


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("device=tpu", "device=tpu is not allowed. device may be cpu, or cuda:0"),
        ("device=cuda", "device=cuda is not allowed"),
        ("model.hidden=0", "model.hidden.0=0 is not allowed. model.hidden may be a list of at most 16 numbers"),
        ("model.family=gru", "model.family='gru' is not known. Choose from mlp, cnn."),
        ("optimizer.name=adamm", "optimizer.name=adamm is not allowed. optimizer.name may be one of sgd"),
        ("data=imagenet", "data=imagenet is not allowed. data may be one of mnist5k, digits"),
        ("threads=0", "threads=0 is not allowed. threads may be a whole number from 1 to 1024"),
        ("seed=-1", "seed=-1 is not allowed. seed may be a whole number from 0 to 4294967295"),
        ("budget.epochs=none", "budget: needs at least one of steps, epochs, seconds"),
        ("budget.steps=1.5", "budget.steps=1.5 is not allowed. budget.steps may be a whole number from 1"),
    ],
)
def test_a_refusal_names_the_field_the_value_and_what_is_allowed(assignment, said):
    assert said in str(refusal(assignment))


@pytest.mark.parametrize(
    ("assignment", "near"),
    [
        ("batchsize=3", "batchsize is not a known key (did you mean batch_size?)"),
        ("optimizer.learning=3", "optimizer.learning is not a known key"),
        ("optimiser.lr=3", "optimiser.lr is not a known key (did you mean optimizer?)"),
        ("model.widht=3", "model.widht is not a known key"),
        ("budget.epoch=3", "(did you mean epochs?)"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(assignment, near):
    refused = refusal(assignment)
    assert near in refused.message
    assert refused.fix.startswith("Known here: ")


@pytest.mark.parametrize(
    "text",
    ["batch_size", "=3", "", "optimizer=adam", "optimizer.lr.x=3", "model=3", "budget=[]", "seed=" + "[" * 99_999],
)
def test_what_is_no_assignment_is_refused(text):
    assert refusal(text).fix


def test_a_refusal_quotes_no_more_than_the_beginning_of_a_long_value():
    assert "optimizer.lr=1000" in refusal("optimizer.lr=1" + "0" * 400).message
    assert len(refusal("optimizer.lr=1" + "0" * 400).message) < 120


def test_a_whole_branch_replaced_by_text_is_refused_whatever_else_is_assigned():
    assert "optimizer" in refusal("optimizer.name=gd", "optimizer=adam").message


@pytest.mark.parametrize("data", [None, 3, [], "x", {"batch_size": 0}, {"nope": 1}, {"model": 3}, {"optimizer": None}])
def test_a_file_that_is_no_configuration_is_one_config_error(data):
    with pytest.raises(ConfigError):
        parse_config(data)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, "[" * 900 + "]" * 900])
def test_a_text_that_is_no_configuration_is_one_config_error(text):
    with pytest.raises(ConfigError):
        parse_config_json(text)


def test_gradient_descent_means_the_whole_training_set():
    assert with_overrides(BASE, ["optimizer.name=gd"]).batch_size == FULL
    assert with_overrides(CONFIGS["mnist-gd"], ["optimizer.name=adam"]).batch_size == 64


def test_gradient_descent_with_a_batch_is_refused_with_both_ways_out():
    sentence = str(refusal("optimizer.name=gd", "batch_size=64"))
    assert "set batch_size=full, or optimizer.name=sgd" in sentence


def test_another_family_starts_from_its_own_defaults():
    assert with_overrides(CONFIGS["lenet"], ["model.family=mlp"]).model == MLP()


def test_an_unknown_preset_names_the_nearest_and_all():
    with pytest.raises(ConfigError, match=r"preset='mnist-mpl' is not known \(did you mean mnist-mlp\?\)"):
        preset_config("mnist-mpl")


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Optimizer().lr = 3.0
