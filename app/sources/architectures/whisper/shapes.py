"""The tensors that a Whisper config asks for, by name and shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

EMBEDDING = "model.decoder.embed_tokens.weight"
OUTPUT = "proj_out.weight"

# What decides shapes: config.json must agree on these, and states each as a positive integer.
SIZE_KEYS = (
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "num_mel_bins",
    "vocab_size",
    "max_source_positions",
    "max_target_positions",
)
_MOST_LAYERS = 1024
_Shape = tuple[int, ...]


def config_problems(config: Mapping[str, Any]) -> list[str]:
    """Return what keeps the config from being that of a Whisper model for transcription."""
    kind, architectures = config.get("model_type"), config.get("architectures")
    if kind != "whisper":
        return [f"config.json says model_type {_show(kind)}; this is no Whisper"]
    if not isinstance(architectures, list) or (
        "WhisperForConditionalGeneration" not in architectures
    ):
        return [
            f"config.json says architectures {_show(architectures)}; "
            "WhisperForConditionalGeneration is needed"
        ]
    return [
        f"config.json says {key} {_show(config.get(key))}; a positive integer is needed"
        for key in SIZE_KEYS
        if type(config.get(key)) is not int or config[key] < 1
    ] + [
        f"config.json says {key} {config[key]:,}, more than {_MOST_LAYERS:,}"
        for key in ("encoder_layers", "decoder_layers")
        if type(config.get(key)) is int and config[key] > _MOST_LAYERS
    ]


def is_output_tied(config: Mapping[str, Any]) -> bool:
    """Return whether the output projection is the token embedding (so for every OpenAI model)."""
    return config.get("tie_word_embeddings", True) is not False


def expected_shapes(config: Mapping[str, Any]) -> dict[str, _Shape]:
    """Return name and shape of every tensor stored for a config without problems, ties once."""
    d, vocabulary = config["d_model"], config["vocab_size"]
    shapes: dict[str, _Shape] = {
        "model.encoder.conv1.weight": (d, config["num_mel_bins"], 3),
        "model.encoder.conv1.bias": (d,),
        "model.encoder.conv2.weight": (d, d, 3),
        "model.encoder.conv2.bias": (d,),
        "model.encoder.embed_positions.weight": (config["max_source_positions"], d),
        EMBEDDING: (vocabulary, d),
        "model.decoder.embed_positions.weight": (config["max_target_positions"], d),
    }
    for side, attentions in (
        ("encoder", ("self_attn",)),
        ("decoder", ("self_attn", "encoder_attn")),
    ):
        for index in range(config[f"{side}_layers"]):
            layer = f"model.{side}.layers.{index}"
            shapes.update(_layer(layer, attentions, d, config[f"{side}_ffn_dim"]))
        shapes.update(_norm(f"model.{side}.layer_norm", d))
    if not is_output_tied(config):
        shapes[OUTPUT] = (vocabulary, d)
    return shapes


def _layer(
    layer: str, attentions: tuple[str, ...], d: int, ffn: int
) -> Iterator[tuple[str, _Shape]]:
    for attention in attentions:
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{layer}.{attention}.{projection}.weight", (d, d)
            # Whisper's keys have no bias: softmax would cancel it.
            if projection != "k_proj":
                yield f"{layer}.{attention}.{projection}.bias", (d,)
        yield from _norm(f"{layer}.{attention}_layer_norm", d)
    yield f"{layer}.fc1.weight", (ffn, d)
    yield f"{layer}.fc1.bias", (ffn,)
    yield f"{layer}.fc2.weight", (d, ffn)
    yield f"{layer}.fc2.bias", (d,)
    yield from _norm(f"{layer}.final_layer_norm", d)


def _norm(name: str, d: int) -> Iterator[tuple[str, _Shape]]:
    yield f"{name}.weight", (d,)
    yield f"{name}.bias", (d,)


def _show(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
