"""The encoder of Whisper: encodes one utterance's features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worker.evaluation.whisper.products import linear
from worker.evaluation.whisper.weights import SelfAttention, encoder_layers, norm_of

# Query rows at once: their scores (1.5 MB for 1,500 positions) stay in a core's cache.
_QUERIES = 250


class Encoder:
    """Runs a transformers WhisperEncoder's weights on one utterance at a time.

    One utterance's activations fit in a processor's cache; a batch's do not.
    """

    def __init__(self, module: Any) -> None:
        """Share the module's weights."""
        self.convolutions = (module.conv1, module.conv2)
        self.positions = module.embed_positions.weight.data
        self.layers = encoder_layers(module)
        self.norm = norm_of(module.layer_norm)
        self.heads = module.config.encoder_attention_heads

    def encode(self, features: Tensor) -> Tensor:
        """Return the encoding, (positions, width), of log-mel features, (bins, frames).

        The result has the weights' dtype.
        """
        x = features[None].to(self.positions.dtype)
        for convolution in self.convolutions:
            x = functional.gelu(convolution(x))
        hidden = x[0].t() + self.positions
        for layer in self.layers:
            hidden = hidden + self._attend(layer.attention, hidden)
            hidden = hidden + layer.feed_forward(hidden)
        return self.norm(hidden)

    def _attend(self, attention: SelfAttention, hidden: Tensor) -> Tensor:
        positions, width = hidden.shape
        size = width // self.heads
        queries, keys, values = attention.qkv(attention.norm(hidden)).split(width, dim=1)
        queries, keys = (
            part.unflatten(1, (self.heads, size)).transpose(0, 1).contiguous()
            for part in (queries * size**-0.5, keys)
        )
        values = values.t().contiguous()
        attended = torch.empty_like(hidden)
        for head in range(self.heads):
            columns = slice(head * size, (head + 1) * size)
            for start in range(0, positions, _QUERIES):
                rows = slice(start, start + _QUERIES)
                weights = torch.softmax(linear(queries[head, rows], keys[head]), dim=-1)
                attended[rows, columns] = linear(weights, values[columns])
        return attention.out(attended)
