"""Data sets as tensors: standardised, laid out as each family reads them, and in a random order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from engine.config.data import Source
from engine.config.models import CNN, MLP, RNN, Transformer
from engine.data import loading
from engine.data.datasets import Arrays, Dataset
from engine.models import input_shape
from engine.pytorch.data import Batches, Examples, Order, tensors


def arrays(kind, *shape, count=6):
    """Examples that are not standardised and whose values all differ, so that a misplaced value is found."""
    facts = Dataset(title="", kind=kind, shape=shape, num_classes=2, train_examples=count, test_examples=2)
    x = np.arange(1, 1 + count * int(np.prod(shape)), dtype=np.float32).reshape(count, *shape)
    y = np.arange(count) % 2
    one = np.ones((shape[0], 1, 1) if kind == "image" else shape, np.float32)
    return Arrays(facts, x, y, x[:2], y[:2], 0 * one, one, ("a", "b"))


def text(content: str, seq_len: int) -> Examples:
    return Examples(torch.tensor([ord(c) for c in content], dtype=torch.int32), None, seq_len)


def words(x: torch.Tensor) -> list[str]:
    return ["".join(map(chr, row)) for row in x.tolist()]


# --- layout --------------------------------------------------------------------------------------------------------

LAYOUTS = [
    ("image", (1, 28, 28), MLP()), ("image", (3, 8, 6), CNN()), ("image", (3, 40, 50), CNN()),
    ("image", (3, 8, 6), RNN()), ("image", (1, 28, 28), Transformer()), ("image", (3, 9, 7), Transformer(patch_size=4)),
    ("vector", (40,), MLP()), ("vector", (40,), CNN()), ("vector", (40,), RNN()), ("vector", (130,), Transformer()),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "shape", "model"), LAYOUTS)
def test_examples_have_the_shape_the_family_reads(kind, shape, model):
    data = arrays(kind, *shape)
    training, held_out = tensors(data, model)
    assert training.x.shape == (6, *input_shape(model, data.facts))
    assert len(training) == 6
    assert len(held_out) == 2


@pytest.mark.parametrize(("kind", "shape", "model"), LAYOUTS)
def test_no_value_is_lost_or_moved_to_another_example(kind, shape, model):
    data = arrays(kind, *shape)
    training, _ = tensors(data, model)
    for raw, laid_out in zip(data.train_x, training.x, strict=True):
        assert set(raw.ravel().tolist()) == set(laid_out.flatten().tolist()) - {0.0}  # 0 is the border


def test_an_rnn_reads_an_image_row_by_row():
    data = arrays("image", 3, 8, 6)
    training, _ = tensors(data, RNN())
    assert training.x[2, 5].tolist() == data.train_x[2, :, 5, :].ravel().tolist()


def test_a_patch_is_a_square_of_the_image():
    data = arrays("image", 3, 8, 8)
    training, _ = tensors(data, Transformer(patch_size=4))
    assert training.x[1, 1].tolist() == data.train_x[1, :, 0:4, 4:8].ravel().tolist()


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_lenets_input_is_32_by_32_with_a_black_border_and_the_same_picture(name):
    found = loading.load(name, Source())
    small, large = (tensors(found, model)[1].x for model in (MLP(), CNN()))
    side = found.facts.shape[1]
    scale = 32 // side
    border = (32 - scale * side) // 2
    inner = slice(border, 32 - border, scale)
    assert large.shape[1:] == (1, 32, 32)
    assert torch.equal(large[:, :, inner, inner].flatten(1), small)
    black = (0 - found.mean.item()) / found.std.item()
    assert large[0, 0, 0, 0].item() == pytest.approx(black)


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_pixels_are_standardised(name):
    x = tensors(loading.load(name, Source()), MLP())[0].x
    assert abs(x.mean().item()) < 0.02
    assert abs(x.std().item() - 1) < 0.02


# --- order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 64, 100])
@pytest.mark.parametrize("gathers", [True, False])
def test_each_epoch_sees_every_example_once_in_another_order(batch_size, gathers):
    x = torch.arange(100)
    batches = Batches(Examples(x, x.clone()), batch_size, seed=0)
    batches.gathers = gathers
    seen = [torch.cat([y for _, y in itertools.islice(iterator, -(-100 // batch_size))])
            for iterator in [iter(batches)] for _ in range(2)]  # fmt: skip
    assert all(epoch.sort().values.equal(x) for epoch in seen)
    assert batch_size == 100 or not seen[0].equal(seen[1])


def test_images_and_labels_stay_together():
    x = torch.arange(100)
    batches = Batches(Examples(x, x.clone()), 32, seed=0)
    assert all(bx.equal(by) for bx, by in itertools.islice(batches, 8))


def test_a_seed_is_an_order():
    x = torch.arange(50)
    first, again, other = (Order(Examples(x, x), seed).epoch() for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


# --- text ----------------------------------------------------------------------------------------------------------


def test_a_text_predicts_its_own_next_character():
    x, y = text("abcdefghij", 3).take(torch.tensor([0, 4]))
    assert (words(x), words(y)) == (["abc", "efg"], ["bcd", "fgh"])


def test_windows_in_order_cut_the_text_once():
    x, y = zip(*text("abcdefghij", 3).in_order(2), strict=True)
    assert words(torch.cat(x)) == ["abc", "def", "ghi"]
    assert words(torch.cat(y)) == ["bcd", "efg", "hij"]


def test_an_epoch_of_text_sees_every_character_at_most_once_from_another_place():
    examples = text("".join(map(chr, range(200, 260))), 4)
    order = Order(examples, seed=0)
    starts = [order.epoch() for _ in range(12)]
    for epoch in starts:
        seen = examples.take(epoch)[0].flatten().tolist()
        assert len(seen) == len(set(seen)) == 4 * len(examples)
    assert len({int(epoch.min()) for epoch in starts}) > 1


def test_a_batch_of_text_is_smaller_at_the_end_of_an_epoch():
    examples = text("x" * 41, 4)
    sizes = [len(y) for _, y in itertools.islice(Batches(examples, 4, seed=0), 6)]
    assert sizes == [4, 4, 2, 4, 4, 2]
