"""The expected tensors are those that transformers saves."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.sources.compatibility import check_compatible
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve
from app.sources.whisper import expected_shapes


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Save a Whisper of unlike sizes with transformers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        d_model=12,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=3,
        encoder_ffn_dim=16,
        decoder_ffn_dim=20,
        num_mel_bins=8,
        vocab_size=64,
        max_source_positions=10,
        max_target_positions=7,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    folder = tmp_path / "models" / "saved"
    model.save_pretrained(folder)
    return folder


def test_the_expected_tensors_are_those_that_transformers_saves(
    saved: Path, policy: SourcePolicy
) -> None:
    found = resolve(saved.as_uri(), policy)
    assert {n: t.shape for n, t in found.tensors.items()} == expected_shapes(found.config)
    assert check_compatible(found, [("checkpoints[0].uri", found)])[1] == []
