"""The data sets of the runs, loaded by the referee itself, and its own modules of their models."""

from __future__ import annotations

from pydoc_data.topics import topics

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

SPLIT_SEED = 20_260_101  # a fifth of every class is the test split (docs/config.md, Data)
MEAN, STD = 0.3053, 0.3761  # of all pixels as shares of 16, to four digits
SEQ_LEN = 64


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training x (1438, 64) and y, test x (359, 64) and y; pixels standardised."""
    pixels, labels = load_digits(return_X_y=True)
    rng, test = np.random.default_rng(SPLIT_SEED), np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        test[rng.permutation(members)[: round(0.2 * len(members))]] = True
    assert abs(pixels.mean() / 16 - MEAN) < 1e-4
    assert abs(pixels.std() / 16 - STD) < 1e-4
    x = (torch.tensor(pixels, dtype=torch.float32) - np.float32(16 * MEAN)) / np.float32(16 * STD)
    y = torch.tensor(labels, dtype=torch.int64)
    return x[~test], y[~test], x[test], y[test]


def lenet_images(x: Tensor) -> Tensor:
    """Digits (n, 64) as LeNet reads them: (n, 1, 32, 32), each pixel four times as large; no border is left over."""
    return x.reshape(-1, 1, 8, 8).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


def text_windows() -> tuple[Tensor, Tensor, int]:
    """Test windows x and y (n, SEQ_LEN) of Python's reference, and the number of different characters."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    alphabet = {character: place for place, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[character] for character in text])
    test = codes[int(0.9 * len(codes)) :]
    count = (len(test) - 1) // SEQ_LEN
    x = test[: count * SEQ_LEN].reshape(count, SEQ_LEN)
    y = test[1 : count * SEQ_LEN + 1].reshape(count, SEQ_LEN)
    return x, y, len(alphabet)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


class CharLSTM(nn.Module):
    """An embedding, one LSTM layer and a linear layer at every position."""

    def __init__(self, characters: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, hidden)
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.out = nn.Linear(hidden, characters)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seq_len) characters to (batch, seq_len, characters) logits."""
        return self.out(self.lstm(self.embedding(x))[0])


_NAMES = {"0.": "embedding.", "1.cell.": "lstm.", "2.": "out."}  # of the exported tensors: of CharLSTM


def with_weights(module: nn.Module, tensors: dict[str, np.ndarray]) -> nn.Module:
    """The module with the exported weights."""
    if isinstance(module, CharLSTM):
        tensors = {
            new + name[len(old) :]: t
            for old, new in _NAMES.items()
            for name, t in tensors.items()
            if name.startswith(old)
        }
    module.load_state_dict({name: torch.from_numpy(t) for name, t in tensors.items()})
    return module
