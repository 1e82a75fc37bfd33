"""Greedy decoding of text models: the prompt is read at once (prefill), then one character is made at a time (decode).

With a cache each new character costs the work of one position, because the keys and values of all positions before it
are kept (Transformer; Pope et al. 2022, arXiv:2211.05102) or the state is (RNN). Without a cache every new character
reads the whole text again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.pytorch.models import Block, Positions, Recurrent


class Decoder:
    """Decodes greedily with a text model that `models.build` built, or with a copy of it whose layers are quantised.

    Use it without autograd, and for one request at a time, because the next request of the same size reuses the caches.
    """

    def __init__(self, model: nn.Sequential, *, prompt_len: int, new_tokens: int, cache: bool = True) -> None:
        self.prompt_len, self.new_tokens, self.cache = prompt_len, new_tokens, cache
        parts = list(model)
        self._embedding, *middle, self._head = parts
        self._positions = next((part for part in middle if isinstance(part, Positions)), None)
        self._layers = [
            part for part in middle if not isinstance(part, Positions)
        ]  # blocks or recurrent layers, and norm
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by batch size: keys and values of every block
        self._states: list[object] = []  # of every recurrent layer
        self.first_ns = 0  # time.perf_counter_ns at the first new character of the last request
        self.wait: Callable[[], object] | None = None  # waits for the device before that clock is read

    def __call__(self, ids: Tensor) -> Tensor:
        """New characters (batch, new_tokens) after the prompts (batch, prompt_len)."""
        logits = self.prefill(ids)
        token = logits.argmax(-1)
        if self.wait:
            self.wait()
        self.first_ns = time.perf_counter_ns()
        tokens = [token]
        for place in range(self.prompt_len, self.prompt_len + self.new_tokens - 1):
            if self.cache:
                logits = self.step(token, place)
            else:
                ids = torch.cat([ids, token.unsqueeze(1)], dim=1)
                logits = self.prefill(ids)
            token = logits.argmax(-1)
            tokens.append(token)
        return torch.stack(tokens, dim=1)

    def prefill(self, ids: Tensor) -> Tensor:
        """Logits (batch, characters) of the character after ids (batch, length); keys, values and states are kept."""
        x = self._begin(ids, 0)
        self._states = []
        block = 0
        for layer in self._layers:
            if isinstance(layer, Block):
                x = self._block(layer, x, block, 0)
                block += 1
            elif isinstance(layer, Recurrent):
                x, state = layer.cell(x)
                self._states.append(state)
            else:
                x = layer(x)
        last: Tensor = self._head(x[:, -1])
        return last

    def step(self, token: Tensor, place: int) -> Tensor:
        """Logits (batch, characters) of the character after `token` (batch,), which is at position `place` from 0."""
        x = self._begin(token.unsqueeze(1), place)
        block = recurrent = 0
        for layer in self._layers:
            if isinstance(layer, Block):
                x = self._block(layer, x, block, place)
                block += 1
            elif isinstance(layer, Recurrent):
                x, self._states[recurrent] = layer.cell(x, self._states[recurrent])
                recurrent += 1
            else:
                x = layer(x)
        last: Tensor = self._head(x[:, -1])
        return last

    def _begin(self, ids: Tensor, place: int) -> Tensor:
        x: Tensor = self._embedding(ids)
        return x if self._positions is None else x + self._positions.weight[place : place + ids.shape[1]]

    def _block(self, block: Block, x: Tensor, number: int, place: int) -> Tensor:
        """`Block.forward` for positions from `place` on; the positions before it are in the cache."""
        attention, length = block.attention, x.shape[1]
        parts = attention.qkv(block.norm1(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts)
        if self.cache:
            keys, values = self._cache_of(number, k)
            keys[:, :, place : place + length] = k
            values[:, :, place : place + length] = v
            k, v = keys[:, :, : place + length], values[:, :, : place + length]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)  # a single position sees all that is kept
        x = x + attention.out(y.transpose(1, 2).flatten(2))
        out: Tensor = x + block.feed_forward(block.norm2(x))
        return out

    def _cache_of(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of block `number`, for the batch, heads and dtype of `like` (batch, heads, length, size)."""
        kept = self._kept.setdefault(len(like), [])
        if number == len(kept):
            batch, heads, _, size = like.shape
            room = self.prompt_len + self.new_tokens
            kept.append((like.new_empty(batch, heads, room, size), like.new_empty(batch, heads, room, size)))
        return kept[number]
