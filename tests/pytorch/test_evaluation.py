"""The standard error of an accuracy knows that the characters of a window of text are not independent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from engine.pytorch.data import Examples
from engine.pytorch.training.net import Score, totals

SEQ_LEN, WINDOWS, CHARACTERS = 16, 40, 5


class Shy(nn.Module):
    """Predicts each next character correctly, except in windows that begin with character 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        following = (x + (x[:, :1] > 0)) % CHARACTERS
        return nn.functional.one_hot(following, CHARACTERS).float()


def text() -> Examples:
    return Examples(torch.arange(SEQ_LEN * WINDOWS + 1, dtype=torch.int32) % CHARACTERS, None, SEQ_LEN)


@pytest.mark.parametrize("batch_size", [7, WINDOWS])
def test_the_standard_error_of_a_texts_accuracy_is_that_of_the_mean_over_windows(batch_size):
    score = Score.of(totals(Shy(), text().in_order(batch_size), torch.device("cpu")))
    of_window = np.array([float(start % CHARACTERS > 0) for start in range(0, SEQ_LEN * WINDOWS, SEQ_LEN)])
    assert score.accuracy == pytest.approx(of_window.mean())
    assert score.standard_error == pytest.approx(of_window.std(ddof=1) / np.sqrt(WINDOWS))


def test_samples_with_one_answer_need_none():
    examples = Examples(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    score = Score.of(totals(nn.Identity(), examples.in_order(3), torch.device("cpu")))
    assert (score.accuracy, score.standard_error) == (0.75, None)
