"""Text models decode the same characters with a cache as without one."""

from __future__ import annotations

import pytest
import torch

from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.data import loading
from engine.pytorch import models
from engine.pytorch.inference.decoder import Decoder


def text_model(preset, *assignments, seed=0):
    config = with_overrides(preset_config(preset), ["source.seq_len=24", *assignments])
    return models.build(config.model, loading.facts(config.data, config.source), seed=seed).eval()


TEXT = {
    "transformer": ("char-decoder", "model.size=tiny"),
    "lstm": ("char-lstm", "model.hidden_size=16"),
    "gru": ("char-lstm", "model.hidden_size=16", "model.cell=gru", "model.num_layers=2"),
    "tanh": ("char-lstm", "model.hidden_size=16", "model.cell=tanh"),
}


@pytest.mark.parametrize("name", TEXT)
def test_with_a_cache_every_character_gets_the_logits_it_has_without(name):
    model = text_model(*TEXT[name])
    ids = torch.randint(90, (3, 24), generator=torch.Generator().manual_seed(1))
    decoder = Decoder(model, prompt_len=7, new_tokens=17)
    with torch.inference_mode():
        whole = model(ids)
        found = [decoder.prefill(ids[:, :7])] + [decoder.step(ids[:, place], place) for place in range(7, 24)]
    for place, logits in enumerate(found):
        torch.testing.assert_close(logits, whole[:, 6 + place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TEXT)
def test_the_cache_changes_no_answer(name):
    model = text_model(*TEXT[name], seed=3)
    ids = torch.randint(90, (2, 5), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        with_it, without = (Decoder(model, prompt_len=5, new_tokens=12, cache=cache)(ids) for cache in (True, False))
    assert torch.equal(with_it, without) and with_it.shape == (2, 12)


def test_a_second_request_does_not_see_the_first(tmp_path):
    model = text_model(*TEXT["transformer"])
    one, two = torch.randint(90, (2, 1, 6), generator=torch.Generator().manual_seed(4))
    decoder, other = (Decoder(model, prompt_len=6, new_tokens=9) for _ in range(2))
    with torch.inference_mode():
        decoder(one)
        assert torch.equal(decoder(two), other(two))
