"""The decoder of Whisper: returns the logits after the next tokens of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worker.evaluation.whisper.kv_cache import KeyValueCache
from worker.evaluation.whisper.products import linear
from worker.evaluation.whisper.weights import CrossAttention, SelfAttention, decoder_layers, norm_of


class Decoder:
    """A transformers WhisperForConditionalGeneration's decoder and output layer."""

    def __init__(self, model: Any) -> None:
        """Share the model's weights."""
        module = model.model.decoder
        self.tokens = module.embed_tokens.weight.data
        self.positions = module.embed_positions.weight.data
        self.layers = decoder_layers(module)
        self.norm = norm_of(module.layer_norm)
        self.output = model.proj_out.weight.data
        self.heads = module.config.decoder_attention_heads

    def add(self, cache: KeyValueCache, slot: int, encoded: Tensor) -> None:
        """Add an utterance, encoded as (positions, width), to the cache."""
        for number, layer in enumerate(self.layers):
            pair = layer.cross.kv(encoded).unflatten(1, (2, self.heads, -1))
            cache.cross[number, :, slot] = pair.permute(1, 2, 0, 3)

    def new_cache(self, slots: int, positions: int) -> KeyValueCache:
        """Return a cache for `slots` utterances of `positions` encoder positions."""
        size = self.tokens.shape[1] // self.heads
        return KeyValueCache(
            slots, len(self.layers), self.heads, positions, size, self.tokens.dtype
        )

    def read(self, cache: KeyValueCache, prompts: Tensor) -> Tensor:
        """Return the logits, (slots, vocabulary), after prompts of shape (slots, length).

        Logits are float32 for any dtype of the weights, since searches add them up.
        """
        length = prompts.shape[1]
        later = self.tokens.new_full((length, length), -torch.inf).triu(1)
        hidden = self._advance(cache, prompts, self.positions[:length], later)
        return self._logits(hidden[:, -1])

    def step(
        self, cache: KeyValueCache, tokens: Tensor, position: int, mask: Tensor | None
    ) -> Tensor:
        """Return the logits, (slots · beams, vocabulary), after a token for every beam.

        `tokens` is (slots, beams). `mask`, of shape (slots, beams, entries including these tokens),
        is minus infinity where a beam does not see an entry, and 0 elsewhere.
        """
        hidden = self._advance(cache, tokens, self.positions[position], mask)
        return self._logits(hidden.flatten(0, 1))

    def _logits(self, rows: Tensor) -> Tensor:
        return linear(self.norm(rows), self.output).float()

    def _advance(
        self, cache: KeyValueCache, tokens: Tensor, positions: Tensor, mask: Tensor | None
    ) -> Tensor:
        cache.reserve(tokens.shape[1])
        hidden: Tensor = (self.tokens[tokens] + positions).flatten(0, 1)
        for number, layer in enumerate(self.layers):
            hidden = hidden + self._attend_self(cache, number, layer.attention, hidden, mask)
            hidden = hidden + self._attend_cross(cache, number, layer.cross, hidden)
            hidden = hidden + layer.feed_forward(hidden)
        cache.entries += tokens.shape[1]
        return hidden.view(*tokens.shape, -1)

    def _attend_self(
        self,
        cache: KeyValueCache,
        number: int,
        attention: SelfAttention,
        hidden: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        slots, entries = cache.slots, cache.entries
        parts = attention.qkv(attention.norm(hidden)).unflatten(0, (slots, -1))
        # (slots, beams, query key value, heads, size) to (three, slots, heads, beams, size)
        parts = parts.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        end = entries + parts.shape[3]
        past = cache.past[number, :, :slots, :, :end]
        past[..., entries:, :] = parts[1:]
        return attention.out(_attention(parts[0], past[0], past[1], mask))

    def _attend_cross(
        self, cache: KeyValueCache, number: int, attention: CrossAttention, hidden: Tensor
    ) -> Tensor:
        slots = cache.slots
        queries = attention.query(attention.norm(hidden)).unflatten(0, (slots, -1))
        queries = queries.unflatten(2, (self.heads, -1)).transpose(1, 2)
        keys, values = cache.cross[number, :, :slots]
        return attention.out(_attention(queries, keys, values, None))


def _attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention, (slots · beams, width), of queries, (slots, heads, beams, size)."""
    slots, heads, beams, size = queries.shape
    scaled = (queries * size**-0.5).flatten(0, 1)
    scores = torch.bmm(scaled, keys.flatten(0, 1).transpose(1, 2))
    if mask is not None:
        scores.unflatten(0, (slots, heads)).add_(mask if mask.dim() == 2 else mask[:, None])
    attended = torch.bmm(torch.softmax(scores, dim=-1), values.flatten(0, 1))
    return attended.view(slots, heads, beams, size).transpose(1, 2).reshape(slots * beams, -1)
