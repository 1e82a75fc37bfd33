"""Facts of the data sets, the fixed test split, and the standardisation."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from engine.config.data import DATA, USER_DATA, DatasetName
from engine.data import datasets
from engine.data.datasets import BUNDLED, DATASETS, KNOWN, Release

RELEASES = {name: known.origin for name, known in KNOWN.items() if isinstance(known.origin, Release)}


def test_every_data_set_has_a_title():
    assert list(DATA) == list(get_args(DatasetName))
    assert all(facts.title for facts in DATA.values())


def test_every_data_set_of_fixed_size_has_classes_source_and_licence():
    assert set(DATASETS) == set(DATA) - USER_DATA - {"text", "synthetic"}
    for known in KNOWN.values():
        assert len(known.classes) == known.facts.num_classes and known.facts.source and known.facts.licence


def test_every_file_has_a_sha256():
    digests = [b.sha256 for b in BUNDLED.values()] + [a.sha256 for r in RELEASES.values() for a in r.archives]
    assert all(len(digest) == 64 and int(digest, 16) for digest in digests)


def test_no_release_is_a_pickle():
    assert not [a.name for r in RELEASES.values() for a in r.archives if "python" in a.name or "pkl" in a.name]


@pytest.mark.parametrize("order", [np.sort, np.random.default_rng(0).permuted])
def test_a_fifth_of_every_class_is_in_the_test_split_in_any_order(order):
    labels = order(np.repeat([3, 1, 8], [50, 500, 5]))
    mask = datasets.split_mask(labels)
    assert [int(mask[labels == label].sum()) for label in (3, 1, 8)] == [10, 100, 1]


def test_the_test_split_is_that_of_a_search_class_by_class():
    labels = np.random.default_rng(1).integers(-3, 40, size=2_000)
    rng = np.random.default_rng(20_260_101)
    expected = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        expected[rng.permutation(members)[: round(0.2 * len(members))]] = True
    assert np.array_equal(datasets.split_mask(labels), expected)


@pytest.mark.parametrize("shape", [(997, 5), (97, 3, 4, 6)])
def test_mean_and_std_match_numpy_across_blocks(shape):
    x = np.random.default_rng(2).normal(1e4, 3, shape).astype(np.float32)
    axes = (0,) if len(shape) == 2 else (0, 2, 3)
    mean = sum(b.sum(axis=axes, dtype=np.float64) for b in datasets._blocks(x, values=100)) / (x.size / shape[1])
    found, std = datasets.standardisation(x)
    assert np.allclose(found.reshape(-1), x.astype(np.float64).mean(axes)) and np.allclose(mean, found.reshape(-1))
    assert np.allclose(std.reshape(-1), x.astype(np.float64).std(axes))
    assert found.shape == std.shape == (shape[1:] if len(shape) == 2 else (3, 1, 1))


def test_a_constant_feature_has_std_1():
    mean, std = datasets.standardisation(np.full((1_000, 2), 0.1, np.float32))
    assert np.allclose(mean, 0.1) and std.tolist() == [1, 1]
