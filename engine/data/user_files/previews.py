"""The preview of a user's data: counts of classes, first rows, images or characters, and the standardisation."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.data.datasets import Arrays, Dataset, Preview

MOST_CLASSES = 100
MOST_IMAGES = 12
_CHARACTERS = 300

_STANDARDISED = {
    "vector": "Each feature is standardised: minus its mean, divided by its standard deviation in the training split.",
    "image": "Each channel is standardised: minus its mean, divided by its standard deviation in the training split.",
    "text": "Each character is a number of its own; nothing is standardised.",
}


def preview_of(arrays: Arrays) -> Preview:
    """The preview of a data set in memory."""
    if arrays.train_y is None or arrays.test_y is None:
        text = "".join(arrays.classes[i] for i in arrays.train_x[:_CHARACTERS])
        return Preview(text=text, standardised=_STANDARDISED["text"])
    images, shown = None, np.empty(0, np.int64)
    if arrays.facts.kind == "image":
        first = [int(np.argmax(arrays.train_y == label)) for label in np.unique(arrays.train_y)[:MOST_IMAGES]]
        images, shown = arrays.train_x[first], arrays.train_y[first]
    found = preview(arrays.facts, arrays.train_y, arrays.test_y, arrays.classes, images, shown)
    if table := arrays.preview:
        return replace(found, columns=table.columns, uses=table.uses, rows=table.rows)
    return found


def preview(
    facts: Dataset,
    train_y: np.ndarray,
    test_y: np.ndarray,
    classes: Sequence[str],
    images: np.ndarray | None,
    shown: np.ndarray,
) -> Preview:
    """The preview of labels (n,) of both splits, and of `images` (k, c, h, w) with the labels `shown` (k,)."""
    trained, tested = (np.bincount(y, minlength=len(classes)).tolist() for y in (train_y, test_y))
    return Preview(
        classes=tuple(zip(classes[:MOST_CLASSES], trained, tested, strict=False)),
        images=() if images is None else _pngs(images, [classes[i] for i in shown]),
        standardised=_STANDARDISED[facts.kind],
    )


def _pngs(images: np.ndarray, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Images (k, c, h, w) as PNG in base64: grey or colour, from the smallest value in black to the largest in white."""
    from PIL import Image

    if images.shape[1] not in (1, 3):
        images = images[:, :1]
    if images.dtype != np.uint8:
        low, high = images.min(), images.max()
        images = ((images - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    found = []
    for pixels, name in zip(images, names, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, "PNG")
        found.append((name, base64.b64encode(buffer.getvalue()).decode()))
    return tuple(found)
