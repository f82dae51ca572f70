"""The decoder of Whisper: from the next tokens of a batch to the logits of those after them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worker.evaluation.whisper.memory import Memory
from worker.evaluation.whisper.products import linear
from worker.evaluation.whisper.weights import CrossAttention, SelfAttention, decoder_layers, norm_of


class Decoder:
    """A transformers WhisperForConditionalGeneration's decoder and output layer."""

    def __init__(self, model: Any) -> None:
        """Take over the model's weights; it stays usable."""
        module = model.model.decoder
        self.tokens = module.embed_tokens.weight.data
        self.positions = module.embed_positions.weight.data
        self.layers = decoder_layers(module)
        self.norm = norm_of(module.layer_norm)
        self.output = model.proj_out.weight.data
        self.heads = module.config.decoder_attention_heads

    def listen(self, memory: Memory, slot: int, encoded: Tensor) -> None:
        """Put an utterance, encoded as (positions, width), into a slot of the memory."""
        for number, layer in enumerate(self.layers):
            pair = layer.cross.kv(encoded).unflatten(1, (2, self.heads, -1))
            memory.heard[number, :, slot] = pair.permute(1, 2, 0, 3)

    def new_memory(self, slots: int, positions: int) -> Memory:
        """Return a memory for so many utterances of so many encoder positions."""
        size = self.tokens.shape[1] // self.heads
        return Memory(slots, len(self.layers), self.heads, positions, size, self.tokens.dtype)

    def read(self, memory: Memory, prompts: Tensor) -> Tensor:
        """Return the logits, (slots, vocabulary), after prompts of shape (slots, length).

        They are float32, as in `step`, whatever the weights are: searches add them up.
        """
        length = prompts.shape[1]
        later = self.tokens.new_full((length, length), -torch.inf).triu(1)
        hidden = self._advance(memory, prompts, self.positions[:length], later)
        return self._logits(hidden[:, -1])

    def step(self, memory: Memory, tokens: Tensor, position: int, mask: Tensor | None) -> Tensor:
        """Return the logits, (slots · beams, vocabulary), after a token for every beam.

        `tokens` is (slots, beams); `mask`, of shape (slots, beams, entries with these tokens), is
        minus infinity where a beam does not see an entry, and 0 elsewhere.
        """
        hidden = self._advance(memory, tokens, self.positions[position], mask)
        return self._logits(hidden.flatten(0, 1))

    def _logits(self, rows: Tensor) -> Tensor:
        return linear(self.norm(rows), self.output).float()

    def _advance(
        self, memory: Memory, tokens: Tensor, positions: Tensor, mask: Tensor | None
    ) -> Tensor:
        memory.make_room(tokens.shape[1])
        hidden: Tensor = (self.tokens[tokens] + positions).flatten(0, 1)
        for number, layer in enumerate(self.layers):
            hidden = hidden + self._attend_self(memory, number, layer.attention, hidden, mask)
            hidden = hidden + self._attend_cross(memory, number, layer.cross, hidden)
            hidden = hidden + layer.feed_forward(hidden)
        memory.entries += tokens.shape[1]
        return hidden.view(*tokens.shape, -1)

    def _attend_self(
        self,
        memory: Memory,
        number: int,
        attention: SelfAttention,
        hidden: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        slots, entries = memory.slots, memory.entries
        parts = attention.qkv(attention.norm(hidden)).unflatten(0, (slots, -1))
        # (slots, beams, query key value, heads, size) to (three, slots, heads, beams, size)
        parts = parts.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        end = entries + parts.shape[3]
        said = memory.said[number, :, :slots, :, :end]
        said[..., entries:, :] = parts[1:]
        return attention.out(_attention(parts[0], said[0], said[1], mask))

    def _attend_cross(
        self, memory: Memory, number: int, attention: CrossAttention, hidden: Tensor
    ) -> Tensor:
        slots = memory.slots
        queries = attention.query(attention.norm(hidden)).unflatten(0, (slots, -1))
        queries = queries.unflatten(2, (self.heads, -1)).transpose(1, 2)
        keys, values = memory.heard[number, :, :slots]
        return attention.out(_attention(queries, keys, values, None))


def _attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Return (slots · beams, width) of queries, (slots, heads, beams, size), over all entries."""
    slots, heads, beams, size = queries.shape
    scaled = (queries * size**-0.5).flatten(0, 1)
    scores = torch.bmm(scaled, keys.flatten(0, 1).transpose(1, 2))
    if mask is not None:
        scores.unflatten(0, (slots, heads)).add_(mask if mask.dim() == 2 else mask[:, None])
    heard = torch.bmm(torch.softmax(scores, dim=-1), values.flatten(0, 1))
    return heard.view(slots, heads, beams, size).transpose(1, 2).reshape(slots * beams, -1)
