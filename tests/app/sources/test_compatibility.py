"""Checkpoints that do not fit are refused with every reason at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from app.contract.tensors import TensorHeader
from app.sources.architectures.whisper.shapes import EMBEDDING, OUTPUT, expected_shapes
from app.sources.checkpoint import ResolvedCheckpoint
from app.sources.compatibility import TiedCopy, check_compatible

CONFIG: dict[str, Any] = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 24,
    "num_mel_bins": 4,
    "vocab_size": 20,
    "max_source_positions": 10,
    "max_target_positions": 6,
}


def checkpoint(
    name: str = "base",
    changes: Mapping[str, tuple[str, tuple[int, ...]] | None] | None = None,
    dtype: str = "F32",
    **config: Any,
) -> ResolvedCheckpoint:
    """Return a checkpoint as CONFIG says, with tensors changed, added or (None) left out."""
    entries: dict[str, Any] = {n: (dtype, shape) for n, shape in expected_shapes(CONFIG).items()}
    entries |= changes or {}
    tensors = {
        key: TensorHeader(key, entry[0], entry[1], "model.safetensors", 0, 0)
        for key, entry in entries.items()
        if entry is not None
    }
    return ResolvedCheckpoint(
        uri=f"file:///{name}",
        resolved=f"file:///{name}",
        name=name,
        config=CONFIG | config,
        tensors=tensors,
        files=(),
    )


def problems_of(
    reference: ResolvedCheckpoint, *others: ResolvedCheckpoint
) -> list[tuple[str | None, str]]:
    labelled = [(f"checkpoints[{i}].uri", other) for i, other in enumerate(others)]
    _, problems = check_compatible(reference, labelled, reference_param="base")
    return [(problem.param, problem.message) for problem in problems]


def test_equal_checkpoints_fit() -> None:
    checked, problems = check_compatible(checkpoint(), [("checkpoints[0].uri", checkpoint("a"))])
    assert problems == []
    assert list(checked.tensors) == list(expected_shapes(CONFIG))
    assert checked.tied == {OUTPUT: EMBEDDING}
    assert checked.tied_copies == ()


def test_floating_point_dtypes_mix() -> None:
    assert problems_of(checkpoint(dtype="F16"), checkpoint(), checkpoint(dtype="BF16")) == []


def test_a_stored_output_projection_is_a_tied_copy() -> None:
    copy = {OUTPUT: ("F32", (20, 8))}
    others = [("0", checkpoint("a")), ("1", checkpoint("b", copy))]
    checked, problems = check_compatible(checkpoint("base", copy), others)
    assert problems == []
    assert OUTPUT not in checked.tensors
    assert checked.tied_copies == (
        TiedCopy(None, OUTPUT, EMBEDDING),
        TiedCopy(1, OUTPUT, EMBEDDING),
    )


def test_an_untied_output_projection_is_a_tensor_like_others() -> None:
    copy = {OUTPUT: ("F32", (20, 8))}
    untied = checkpoint("base", copy, tie_word_embeddings=False)
    checked, problems = check_compatible(untied, [("0", untied)])
    assert problems == []
    assert OUTPUT in checked.tensors
    assert (checked.tied, checked.tied_copies) == ({}, ())
    assert "tie_word_embeddings True" in problems_of(untied, checkpoint("a"))[0][1]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": None}, "model_type None"),
        ({"architectures": None}, "WhisperForConditionalGeneration is needed"),
        ({"d_model": "8"}, "d_model '8'; a positive integer"),
        ({"vocab_size": True}, "vocab_size True"),
        ({"encoder_layers": 0}, "encoder_layers 0"),
        ({"encoder_layers": 10**12}, "more than 1,024"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config: dict[str, Any], said: str) -> None:
    [(param, message)] = problems_of(checkpoint("x", None, "F32", **config))
    assert param == "base"
    assert said in message
    [(param, message)] = problems_of(checkpoint(), checkpoint("x", None, "F32", **config))
    assert param == "checkpoints[0].uri"
    assert said in message


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "wav2vec2"}, "model_type 'wav2vec2'"),
        ({"model_type": None}, "model_type None"),
        ({"architectures": ["WhisperModel"]}, "('WhisperModel')"),
    ],
)
def test_two_architectures_are_refused(config: dict[str, Any], said: str) -> None:
    [(param, message)] = problems_of(checkpoint(), checkpoint("x", None, "F32", **config))
    assert param == "checkpoints[0].uri"
    assert said in message
    assert "('WhisperForConditionalGeneration'): checkpoints of two architectures" in message


def test_a_config_of_another_size_is_refused_by_key_and_value() -> None:
    found = problems_of(checkpoint(), checkpoint("x", d_model=16, vocab_size=21))
    assert [message for _, message in found] == [
        "file:///x: config.json says d_model 16, that of file:///base 8: they must be equal",
        "file:///x: config.json says vocab_size 21, that of file:///base 20: they must be equal",
    ]


def test_a_reference_must_be_what_its_config_says() -> None:
    found = problems_of(checkpoint(encoder_layers=3, max_target_positions=7))
    assert "15 tensors are missing of those that config.json asks for" in found[0][1]
    assert "model.encoder.layers.2.self_attn.q_proj.weight" in found[0][1]
    assert "and 12 more" in found[0][1]
    assert "embed_positions.weight ([6, 8] instead of [7, 8])" in found[1][1]


def test_missing_extra_and_misshapen_tensors_are_told_at_once() -> None:
    other = checkpoint(
        "x",
        {
            "model.encoder.conv1.bias": None,
            "adapter.weight": ("F32", (2, 2)),
            EMBEDDING: ("F32", (21, 8)),
            "model.decoder.layer_norm.bias": ("I8", (8,)),
        },
    )
    messages = [message for _, message in problems_of(checkpoint(), other)]
    assert messages == [
        "file:///x: 1 tensor is missing of those that file:///base has: model.encoder.conv1.bias",
        "file:///x: 1 tensor is stored beyond those that file:///base has: adapter.weight",
        f"file:///x: 1 tensor is of another shape: {EMBEDDING} ([21, 8] instead of [20, 8])",
        "file:///x: 1 tensor is of another dtype: "
        "model.decoder.layer_norm.bias (I8 instead of F32)",
    ]


def test_a_tied_copy_of_another_shape_is_refused() -> None:
    other = checkpoint("x", {OUTPUT: ("F32", (21, 8))})
    assert "proj_out.weight ([21, 8] instead of [20, 8])" in problems_of(checkpoint(), other)[0][1]
    assert "proj_out.weight" in problems_of(other)[0][1]


def test_a_quantised_reference_is_refused() -> None:
    [(_, message)] = problems_of(checkpoint(dtype="F8_E4M3"))
    assert "cannot be merged" in message


def test_problems_of_every_checkpoint_are_told() -> None:
    found = problems_of(checkpoint(d_model=9), checkpoint("a", d_model=16), checkpoint("b"))
    assert {param for param, _ in found} == {"base", "checkpoints[0].uri", "checkpoints[1].uri"}
