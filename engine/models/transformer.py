"""Arithmetic of Transformers: an encoder of patches, or a causal decoder of text."""

from __future__ import annotations

from math import ceil

from engine.config.models import Transformer
from engine.data.datasets import Dataset
from engine.models.arithmetic import Family, Layer, Product, Stage

FEED_FORWARD = 4  # width of a block's MLP / d_model (Vaswani et al. 2017, arXiv:1706.03762)


class TransformerFamily(Family[Transformer]):
    """Blocks of attention and MLP over patches or characters."""

    limits_context = True  # there are learned position embeddings for seq_len positions

    def input_shape(self, model: Transformer, data: Dataset) -> tuple[int, ...]:
        """(patches, values of a patch), or (seq_len,) characters of a text."""
        if data.kind == "text":
            return data.shape
        side = self.patch_size(model, data)
        if data.kind == "vector":
            return ceil(data.shape[0] / side), side
        channels, height, width = data.shape
        return ceil(height / side) * ceil(width / side), channels * side**2

    def products(self, model: Transformer, data: Dataset) -> list[Product]:
        """The patch embedding, the products of all blocks, and the output layer."""
        positions, *patch = self.input_shape(model, data)
        d, text = model.d_model, data.kind == "text"
        block = [
            Product("linear", d, 3 * d, rows=positions, bias=0),
            # Queries by keys, then attention weights by values. A causal mask hides half of the result, but all of it
            # is computed, and the flop counter counts it.
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
        """One stage for the embedding, one per block, and one for the output layer."""
        positions, d, text = self.input_shape(model, data)[0], model.d_model, data.kind == "text"
        # Per position of a block: the residual stream twice, two norms, queries, keys, values, the output of attention,
        # and the input and output of GELU; the log-sum-exp of each attention head; mean and deviation of each norm.
        block = Stage(positions * ((8 + 2 * FEED_FORWARD) * d + model.num_heads + 4), positions * d)
        logits = positions * data.num_classes if text else data.num_classes
        head = positions * (d + 2) + (positions * d if text else d) + logits
        return [Stage(0, positions * d), *[block] * model.num_layers, Stage(head, logits)]

    def layers(self, model: Transformer, data: Dataset, batch_size: int, half: float) -> list[list[Layer]]:
        """The embedding, attention and MLP of each block, and the head.

        Under autocast the residual stream and the norms stay in float32, and autograd keeps 16-bit copies of the norms.
        """
        positions, *patch = self.input_shape(model, data)
        d, text, heads, wide = model.d_model, data.kind == "text", model.num_heads, FEED_FORWARD * model.d_model
        head_parameters = d * data.num_classes + (0 if text else data.num_classes) + d
        attention_kept = d + half * 5 * d + heads + 2  # stream; norm, queries, keys, values, output
        mlp_kept = d + half * (d + 2 * wide) + 2  # stream; norm, input and output of GELU
        cast = (1 - half) * d  # 16-bit copy of a gradient of the stream
        attention = Layer(
            kept=positions * attention_kept,
            evaluation=positions * (3 * d + half * 5 * d),  # input of the block, stream, norm; the others
            backward=positions * (attention_kept + d + cast + half * 4 * d),
            last=positions * (3 * d + half * 4 * d),
            parameters=4 * d * d + d,
        )
        mlp = Layer(
            kept=positions * mlp_kept,
            evaluation=positions * (3 * d + half * 2 * wide),
            backward=positions * (mlp_kept + d + cast + half * wide),  # gradients of the stream and of GELU
            last=positions * (3 * d + half * (wide + d)),
            parameters=2 * d * wide + d,
        )
        logits, read = (positions if text else 1) * data.num_classes, positions if text else 1
        head_kept = positions * (d + 2) + half * read * d + logits
        head = Layer(
            kept=head_kept,
            forward=head_kept + half * logits,
            evaluation=max(2 * positions * d, half * read * d + (1 + half) * logits, (3 if half < 1 else 2) * logits),
            backward=head_kept + max(2 * logits, 2 * positions * d),
            last=positions * (d + 2) + half * (logits + 2 * read * d),
            parameters=head_parameters,
        )
        cast_of_patches = 0.0 if text else (1 - half) * positions * patch[0]
        first = Layer(
            kept=cast_of_patches,
            evaluation=cast_of_patches + (1 + half) * positions * d,
            backward=cast_of_patches + 2 * positions * d,
            last=cast_of_patches + 2 * positions * d,
            parameters=positions * d + (data.num_classes * d if text else (patch[0] + 1) * d),
        )
        return [[first], *[[attention, mlp]] * model.num_layers, [head]]

    def other_parameters(self, model: Transformer, data: Dataset) -> int:
        """Norms (weight only), position embeddings, and the embedding of characters."""
        norms, positions = 2 * model.num_layers + 1, self.input_shape(model, data)[0]
        return model.d_model * (norms + positions + (data.num_classes if data.kind == "text" else 0))

    def patch_size(self, model: Transformer, data: Dataset) -> int:
        """An eighth of an image's shorter side, or at most 64 patches of a signal, unless the model sets it."""
        if isinstance(model.patch_size, int):
            return model.patch_size
        return max(1, round(min(data.shape[1:]) / 8)) if data.kind == "image" else ceil(data.shape[0] / 64)

    def image_border(self, model: Transformer, data: Dataset) -> tuple[int, tuple[int, int]]:
        """Pads an image to whole patches."""
        side = self.patch_size(model, data)
        _, height, width = data.shape
        return 1, (ceil(height / side) * side, ceil(width / side) * side)
