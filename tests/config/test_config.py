"""Configurations: JSON, fingerprint, assignments, and the error for a value that is not allowed."""

from __future__ import annotations

import itertools

import pytest

from engine.common.errors import ConfigError
from engine.config.base import Spec
from engine.config.messages import GROUPS
from engine.config.models import MLP, MODELS
from engine.config.parsing import overrides_from, parse_config, parse_config_json, with_overrides
from engine.config.presets import PRESETS, preset_config
from engine.config.run import RunConfig
from engine.config.training import FULL, Optimizer

CONFIGS = {name: preset.config for name, preset in PRESETS.items()}
BASE = CONFIGS["mnist-mlp"]
CHANGES = """
model.hidden=64 model.family=cnn data=digits optimizer.name=sgd optimizer.lr=0.002 optimizer.momentum=0.5
optimizer.beta1=0.8 optimizer.beta2=0.9 optimizer.alpha=0.9 optimizer.weight_decay=0.1 batch_size=65
budget.epochs=21 budget.steps=9 budget.samples=9 budget.seconds=9 budget.flops=9 target.value=0.9
target.metric=test_loss device=cuda:0 threads=2 seed=1 evaluate_every=9 schedule=cosine warmup_steps=3
lr_end=0.1 lr_gamma=0.5 lr_milestones=[0.3] grad_accumulation=2 label_smoothing=0.1 max_grad_norm=1
ema_decay=0.9 activation_checkpointing=true precision=bf16 execution=dataloader source.path=a.csv source.label=b
source.seq_len=9 source.shape=[3] source.num_classes=3 source.num_examples=9 model.family=rnn
model.family=transformer checkpoints=9 landscape.runs=0123456789abcdef landscape.plane=random
landscape.resolution=21 landscape.split=test landscape.examples=99 landscape.margin=1 parallel.num_ranks=2
parallel.strategy=fsdp parallel.devices=cpu parallel.timeout_s=9 infer.run=0123456789abcdef
infer.weights=a.safetensors infer.shape=1x28x28 infer.load=open infer.rate=9 infer.requests=9 infer.seconds=9
infer.warm_up=9 infer.rounds=9 infer.cells=[{}] infer.runtime=eager infer.prompt_len=9 infer.new_tokens=9
infer.cache=false
"""


def refusal(*assignments: str, base: RunConfig = BASE) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        with_overrides(base, assignments)
    return refused.value


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_config_survives_its_json(config):
    assert parse_config_json(config.model_dump_json()) == config


def test_a_fingerprint_depends_on_every_field():
    changed = CHANGES.split()
    prints = {BASE.fingerprint} | {with_overrides(BASE, [change]).fingerprint for change in changed}
    assert len(prints) == len(changed) + 1


def test_a_fingerprint_is_the_same_on_every_machine_and_day():
    """Reports and links of old runs contain fingerprints, so the literal must not change."""
    assert BASE.fingerprint == parse_config_json(BASE.model_dump_json()).fingerprint == "39cc71d492dee4f2"


@pytest.mark.parametrize(("base", "config"), list(itertools.permutations(CONFIGS, 2)))
def test_overrides_change_any_preset_into_any_other(base, config):
    assignments = overrides_from(CONFIGS[base], CONFIGS[config])
    assert with_overrides(CONFIGS[base], assignments) == CONFIGS[config]


@pytest.mark.parametrize("family", MODELS)
def test_a_size_sets_every_dimension_and_is_read_back(family):
    for size in MODELS[family].sizes:
        model = with_overrides(BASE, [f"model.family={family}", f"model.size={size}"]).model
        assert model.size == size
        assert MODELS[family].model_validate({"size": size}) == model


def test_a_size_replaces_dimensions_and_leaves_the_rest():
    config = with_overrides(CONFIGS["mnist1d-gru"], ["model.size=base"])
    assert (config.model.hidden_size, config.model.num_layers, config.model.bidirectional) == (256, 2, True)


def test_a_dimension_overrides_that_of_the_size():
    model = with_overrides(BASE, ["model.family=transformer", "model.size=base", "model.num_layers=2"]).model
    assert (model.num_layers, model.d_model, model.size) == (2, 256, "custom")


def test_a_size_and_its_dimensions_have_the_same_fingerprint():
    by_size = with_overrides(BASE, ["model.size=base"])
    assert by_size.fingerprint == with_overrides(BASE, ["model.hidden=512,256"]).fingerprint


@pytest.mark.parametrize(
    ("assignments", "sentence"),
    [
        (["model.size=huge"], "size='huge' is not allowed; choose from tiny, small, base, large, custom"),
        (["model.size={}"], "size={} is not allowed; choose from tiny"),
        (["data=text"], "model.family='mlp' cannot be combined with data='text'"),
        (["data=text", "model.family=rnn", "model.bidirectional=true"], "reading from the end shows the character"),
        (["data=csv"], "source.path is missing; data='csv' reads your own file"),
        (["model.family=transformer", "model.num_heads=3"], "d_model=128 is not divisible by num_heads=3"),
        (["target.value=97"], "accuracy is from 0 to 1, so 97 % is 0.97"),
        (["schedule=one-cycle", "warmup_steps=5"], "warmup_steps cannot be combined with schedule='one-cycle'"),
        (["execution=cuda-graph"], "execution='cuda-graph' needs an NVIDIA GPU"),
        (
            ["execution=cuda-graph", "device=cuda:0", "optimizer.name=muon"],
            "cannot be combined with execution='cuda-graph'",
        ),
        (["execution=cuda-graph", "device=cuda:0", "precision=fp16"], "set precision=bf16, or execution=eager"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_a_remedy(assignments, sentence):
    assert sentence in str(refusal(*assignments))


def test_the_name_of_a_label_column_can_be_a_number():
    assert with_overrides(BASE, ["source.label=3", "source.path=true"]).source.label == "3"


def test_equal_configurations_need_no_assignment():
    assert overrides_from(BASE, BASE) == []


@pytest.mark.parametrize(
    ("text", "hidden"), [("64", (64,)), ("[64]", (64,)), ("512,256", (512, 256)), ("[]", ()), ("", ())]
)
def test_hidden_layers_can_be_typed_in_several_ways(text, hidden):
    assert with_overrides(BASE, [f"model.hidden={text}"]).model.hidden == hidden


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "2000000000", "1e30", "nan", "inf", "true", "none", "foo", ""])
def test_a_wrong_batch_size_is_refused_with_the_allowed_values(value):
    sentence = str(refusal(f"batch_size={value}"))
    assert sentence.startswith("batch_size=")
    assert "a whole number from 1 to the number of training samples, or full" in sentence


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0", "-1", "10000000", "fast", "true"])
def test_a_wrong_learning_rate_is_refused_with_the_allowed_values(value):
    sentence = str(refusal(f"optimizer.lr={value}"))
    assert (
        sentence == f"optimizer.lr={value} is not allowed. optimizer.lr must be a number above 0 and at most 1,000,000."
    )


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("device=tpu", "device=tpu is not allowed. device must be cpu, or cuda:0"),
        ("device=cuda", "device=cuda is not allowed"),
        ("model.hidden=0", "model.hidden.0=0 is not allowed. model.hidden must be a list of at most 16 values"),
        ("model.family=gru", "model.family='gru' is not known. Choose from mlp, cnn, rnn, transformer."),
        ("optimizer.name=adamm", "optimizer.name=adamm is not allowed. optimizer.name must be one of gd, sgd"),
        ("optimizer.name=[1]", "optimizer.name=[1] is not allowed. optimizer.name must be one of gd, sgd"),
        ("target.value=-1", "target.value=-1 is not allowed. target.value must be a number of at least 0."),
        ("data=imagenet", "data=imagenet is not allowed. data must be one of mnist5k, digits"),
        ("threads=0", "threads=0 is not allowed. threads must be a whole number from 1 to 1,024"),
        ("seed=-1", "seed=-1 is not allowed. seed must be a whole number from 0 to 4,294,967,295"),
        ("budget.epochs=none", "budget: needs at least one of steps, epochs, samples, seconds, flops"),
        ("budget.steps=1.5", "budget.steps=1.5 is not allowed. budget.steps must be a whole number from 1"),
    ],
)
def test_a_refusal_names_the_field_the_value_and_what_is_allowed(assignment, sentence):
    assert sentence in str(refusal(assignment))


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
def test_text_that_is_not_an_assignment_is_refused(text):
    assert refusal(text).fix


def test_a_refusal_quotes_only_the_beginning_of_a_long_value():
    assert "optimizer.lr=1000" in refusal("optimizer.lr=1" + "0" * 400).message
    assert len(refusal("optimizer.lr=1" + "0" * 400).message) < 120


def test_text_in_place_of_a_group_of_fields_is_refused():
    assert "optimizer" in refusal("optimizer.name=gd", "optimizer=adam").message


@pytest.mark.parametrize("data", [None, 3, [], "x", {"batch_size": 0}, {"nope": 1}, {"model": 3}, {"optimizer": None}])
def test_data_that_is_not_a_configuration_raises_a_config_error(data):
    with pytest.raises(ConfigError):
        parse_config(data)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, "[" * 900 + "]" * 900])
def test_text_that_is_not_a_configuration_raises_a_config_error(text):
    with pytest.raises(ConfigError):
        parse_config_json(text)


def test_gradient_descent_means_the_whole_training_set():
    assert with_overrides(BASE, ["optimizer.name=gd"]).batch_size == FULL
    assert with_overrides(CONFIGS["mnist-gd"], ["optimizer.name=adam"]).batch_size == 64


def test_gradient_descent_with_a_batch_size_is_refused_with_both_remedies():
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


@pytest.mark.parametrize("spec", [*GROUPS.values(), *MODELS.values()], ids=lambda spec: spec.__name__)
def test_every_field_has_a_title_and_a_help_text_unless_it_is_a_group(spec):
    """The help text is the string below the field, which pydantic reads from the source file."""
    for name, field in spec.model_fields.items():
        is_group = isinstance(field.default, Spec) or name == "family"
        assert is_group or (field.title and field.description), name


@pytest.mark.parametrize("text", ['{"seed": 1, "seed": 2}', '{"optimizer": {"lr": 0.1, "name": "sgd", "lr": 0.2}}'])
def test_a_key_that_occurs_twice_is_refused(text):
    with pytest.raises(ConfigError, match=r"has the key '(seed|lr)' twice\. Remove one of them"):
        parse_config_json(text)
