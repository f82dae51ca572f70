"""A loaded Whisper's weights, combined for few large products, without copies in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.evaluation.whisper.products import linear, linear_gelu


@dataclass(frozen=True)
class Linear:
    """A weight of shape (out, in) and its bias."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Return (rows, out) of (rows, in)."""
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Norm:
    """A layer normalisation."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return the normalised rows, of x's shape."""
        return functional.layer_norm(x, (len(self.weight),), self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class FeedForward:
    """A layer's feed-forward part, with its normalisation."""

    norm: Norm
    inner: Linear
    outer: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """Return the residual to add to the rows x."""
        return self.outer(linear_gelu(self.norm(x), self.inner.weight, self.inner.bias))


@dataclass(frozen=True)
class SelfAttention:
    """Self-attention; `qkv` computes queries, keys and values side by side."""

    norm: Norm
    qkv: Linear
    out: Linear


@dataclass(frozen=True)
class CrossAttention:
    """Attention to the encoder's output; `kv` computes keys and values side by side."""

    norm: Norm
    query: Linear
    kv: Linear
    out: Linear


@dataclass(frozen=True)
class EncoderLayer:
    """One layer of the encoder."""

    attention: SelfAttention
    feed_forward: FeedForward


@dataclass(frozen=True)
class DecoderLayer:
    """One layer of the decoder."""

    attention: SelfAttention
    cross: CrossAttention
    feed_forward: FeedForward


def norm_of(module: Any) -> Norm:
    """Return an nn.LayerNorm's parameters."""
    return Norm(module.weight.data, module.bias.data, module.eps)


def encoder_layers(encoder: Any) -> list[EncoderLayer]:
    """Return the layers of a transformers WhisperEncoder, sharing its memory."""
    return [EncoderLayer(_self_attention(layer), _feed_forward(layer)) for layer in encoder.layers]


def decoder_layers(decoder: Any) -> list[DecoderLayer]:
    """Return the layers of a transformers WhisperDecoder, sharing its memory."""
    return [
        DecoderLayer(_self_attention(layer), _cross_attention(layer), _feed_forward(layer))
        for layer in decoder.layers
    ]


def _self_attention(layer: Any) -> SelfAttention:
    module = layer.self_attn
    return SelfAttention(
        norm=norm_of(layer.self_attn_layer_norm),
        qkv=_side_by_side(module.q_proj, module.k_proj, module.v_proj),
        out=_linear(module.out_proj),
    )


def _cross_attention(layer: Any) -> CrossAttention:
    module = layer.encoder_attn
    return CrossAttention(
        norm=norm_of(layer.encoder_attn_layer_norm),
        query=_linear(module.q_proj),
        kv=_side_by_side(module.k_proj, module.v_proj),
        out=_linear(module.out_proj),
    )


def _feed_forward(layer: Any) -> FeedForward:
    return FeedForward(norm_of(layer.final_layer_norm), _linear(layer.fc1), _linear(layer.fc2))


def _linear(module: nn.Linear) -> Linear:
    return Linear(module.weight.data, None if module.bias is None else module.bias.data)


def _side_by_side(*modules: nn.Linear) -> Linear:
    """Return one layer for several with the same input; the modules become views of it."""
    weight = torch.cat([module.weight.data for module in modules])
    bias = torch.cat(
        [
            weight.new_zeros(len(module.weight)) if module.bias is None else module.bias.data
            for module in modules
        ]
    )
    sizes = [len(module.weight) for module in modules]
    for module, rows, offsets in zip(modules, weight.split(sizes), bias.split(sizes), strict=True):
        module.weight.data = rows
        if module.bias is not None:
            module.bias.data = offsets
    return Linear(weight, bias)
