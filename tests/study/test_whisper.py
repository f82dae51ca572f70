"""The reader of CTranslate2's binary format, on a small file of that form."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from study.whisper import _named, _read_variables


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def variable(name: str, values: np.ndarray) -> bytes:
    shape = struct.pack("<B", values.ndim) + struct.pack(f"<{values.ndim}I", *values.shape)
    return text(name) + shape + struct.pack("<BI", 4, values.nbytes) + values.tobytes()


def model(**variables: np.ndarray) -> bytes:
    head = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    return head + b"".join(variable(name, values) for name, values in variables.items())


def test_fused_projections_are_cut_into_query_key_and_value() -> None:
    fused = np.arange(12, dtype="<f2").reshape(6, 2)
    name = "decoder/layer_1/self_attention/linear_0/weight"
    found = dict(_named(_read_variables(model(**{name: fused}))))
    parts = [found[f"model.decoder.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert np.array_equal(np.concatenate(parts), fused.astype(np.float32))
    assert {part.dtype for part in parts} == {np.dtype(np.float32)}


def test_keys_have_no_bias() -> None:
    bias = np.zeros(6, dtype="<f2")
    found = dict(
        _named(_read_variables(model(**{"encoder/layer_0/self_attention/linear_0/bias": bias})))
    )
    assert [name.split(".")[-2] for name in found] == ["q_proj", "v_proj"]


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="version 6"):
        _read_variables(struct.pack("<I", 5) + text("WhisperSpec"))
