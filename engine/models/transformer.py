"""Arithmetic of Transformers: an encoder of patches, or a causal decoder of text."""

from __future__ import annotations

from math import ceil

from engine.config.models import Transformer
from engine.data.datasets import Dataset
from engine.models.arithmetic import Family, Product, Stage

FEED_FORWARD = 4  # width of a block's feed-forward net, in model widths


class TransformerFamily(Family[Transformer]):
    """Blocks of attention and a feed-forward net over patches or characters."""

    limits_context = True  # each position has a learned vector, and there are seq_len of them

    def input_shape(self, model: Transformer, data: Dataset) -> tuple[int, ...]:
        """(patches, values of a patch); (seq_len,) characters of a text."""
        if data.kind == "text":
            return data.shape
        side = self.patch_size(model, data)
        if data.kind == "vector":
            return ceil(data.shape[0] / side), side
        channels, height, width = data.shape
        return ceil(height / side) * ceil(width / side), channels * side**2

    def products(self, model: Transformer, data: Dataset) -> list[Product]:
        positions, *patch = self.input_shape(model, data)
        d, text = model.d_model, data.kind == "text"
        block = [
            Product("linear", d, 3 * d, rows=positions, bias=0),
            # The queries of each head by its keys, then its weights by its values. A causal mask hides half of the
            # result, but all of it is computed, and the flop counter counts it.
            Product("attention", d, positions, rows=positions, weights=False),
            Product("attention", positions, d, rows=positions, weights=False),
            Product("linear", d, d, rows=positions, bias=0),
            Product("linear", d, FEED_FORWARD * d, rows=positions, bias=0),
            Product("linear", FEED_FORWARD * d, d, rows=positions, bias=0),
        ]
        first = [] if text else [Product("linear", patch[0], d, rows=positions, input_gradient_rows=0)]
        head = Product("linear", d, data.num_classes, rows=positions if text else 1, bias=0 if text else 1)
        return [*first, *model.num_layers * block, head]

    def stages(self, model: Transformer, data: Dataset, batch_size: int) -> list[Stage]:
        positions, d, text = self.input_shape(model, data)[0], model.d_model, data.kind == "text"
        # Per position of a block: two residual streams, two norms, queries, keys and values, the output of attention,
        # and twice four model widths around GELU; the log-sums of attention per head; means and deviations of the
        # norms.
        block = Stage(positions * ((8 + 2 * FEED_FORWARD) * d + model.num_heads + 4), positions * d)
        answers = positions * data.num_classes if text else data.num_classes
        head = positions * (d + 2) + (positions * d if text else d) + answers
        return [Stage(0, positions * d), *[block] * model.num_layers, Stage(head, answers)]

    def other_parameters(self, model: Transformer, data: Dataset) -> int:
        norms, positions = 2 * model.num_layers + 1, self.input_shape(model, data)[0]
        return model.d_model * (norms + positions + (data.num_classes if data.kind == "text" else 0))

    def patch_size(self, model: Transformer, data: Dataset) -> int:
        if isinstance(model.patch_size, int):
            return model.patch_size
        return max(1, round(min(data.shape[1:]) / 8)) if data.kind == "image" else ceil(data.shape[0] / 64)

    def image_border(self, model: Transformer, data: Dataset) -> tuple[int, tuple[int, int]]:
        side = self.patch_size(model, data)
        _, height, width = data.shape
        return 1, (ceil(height / side) * side, ceil(width / side) * side)
